# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Runs of tokens: writing them on a line, splitting them at signs, finding brackets and numbering.

Part of reading an answer; knows tokens, and neither trees nor macros.
"""

import itertools
import re
from typing import Any

from rlvlm_jax.rewards.math.tokens import RELATIONS, Token, Tokens, flat

OPENING = {"(": ")", "[": "]", "lbrace": "rbrace", "langle": "rangle"}
OPENING |= {"lfloor": "rfloor", "lceil": "rceil"}
CLOSING = frozenset(OPENING.values())
LIST_WORDS = frozenset(("or", "and", "或", "和", "与", "及", "且"))
_LEADING = frozenset(
    {"=", "therefore", "Rightarrow", "to", "because", ",", ";", ":", "\n", "checkmark"}
)
_TRAILING = frozenset({".", ",", ";", ":", "\n", "checkmark"})


def closing(tokens: Tokens, start: int) -> int:
    """Index of the bracket that closes the one at `start`; [0, 1) may close with another one."""
    depth = 0
    for i in range(start, len(tokens)):
        depth += (tokens[i].value in OPENING) - (tokens[i].value in CLOSING)
        if depth == 0:
            return i
    return -1


def split(tokens: Tokens, separators: frozenset[str]) -> tuple[list[Tokens], list[str]]:
    """Splits at separators outside all brackets; gives the parts and the separators."""
    if separators.isdisjoint([token.value for token in tokens]):
        return [tokens], []
    parts, signs, start, depth = [], [], 0, 0
    for i, token in enumerate(tokens):
        depth += (token.value in OPENING) - (token.value in CLOSING)
        if (
            depth == 0
            and token.value in separators
            and (token.kind == "sign" or token.value in LIST_WORDS)
        ):
            parts.append(tokens[start:i])
            signs.append(token.value)
            start = i + 1
    return [*parts, tokens[start:]], signs


def every(tokens: Tokens) -> list[Token]:
    """All tokens, those inside others too."""
    inside = (part for token in tokens for part in token.args)
    lists = (
        cell
        for part in inside
        for cell in (
            part
            if part and isinstance(part[0], tuple) and not isinstance(part[0], Token)
            else (part,)
        )
    )
    return [*tokens, *(token for part in lists for token in every(part))]


def trim(tokens: Tokens) -> Tokens:
    """Takes off what may stand before or after an answer and adds nothing to it."""
    while tokens and tokens[-1].value in _TRAILING and tokens[-1].kind == "sign":
        tokens = tokens[:-1]
    while len(tokens) > 1 and tokens[0].value in _LEADING and tokens[0].kind == "sign":
        tokens = tokens[1:]
    return tokens


def trim_groups(tokens: Tokens) -> Tokens:
    """Takes off braces around the whole."""
    while len(tokens) == 1 and tokens[0].kind == "group":
        tokens = tokens[0].args[0]
    return tokens


def numbered(tokens: Tokens) -> list[Tokens]:
    """Parts (1) 3, (2) 5; one part where the answer is not numbered so."""
    if tokens[:1] == () or tokens[0].value != "(":
        return [tokens]
    marks = [i for i in range(len(tokens) - 2) if re.fullmatch(r"\(\d\)", flat(tokens[i : i + 3]))]
    numbers = [int(flat(tokens[i + 1 : i + 2])) for i in marks]
    empty = any(b - a == 3 for a, b in itertools.pairwise([*marks, len(tokens)]))
    if not marks or empty or marks[0] != 0 or numbers != list(range(1, len(numbers) + 1)):
        return [tokens]
    return [tokens[i + 3 : end] for i, end in zip(marks, [*marks[1:], len(tokens)], strict=True)]


def signed(tokens: Tokens, signs: dict[str, str]) -> Tokens:
    """The tokens with other signs, inside others too."""

    def replaced(part: Any) -> Any:
        if isinstance(part, Token):
            value = signs.get(part.value, part.value) if part.kind == "sign" else part.value
            return part._replace(value=value, args=replaced(part.args))
        return tuple(map(replaced, part))

    return replaced(tokens)


def has_words(tokens: Tokens) -> bool:
    """Whether words, or rows of numbers, make it text where it is no formula."""
    if any(t.value in ("equiv", "forall", "exists", "pmod", "bmod") for t in tokens):
        return True
    row = any(a.kind == b.kind == "number" and b.space for a, b in itertools.pairwise(tokens))
    return row or any(
        token.kind == "han"
        or token.value == ":"
        or (token.kind == "run" and (token.text or len(token.value) > 1))
        for token in every(tokens)
    )


def joined_row(cells: tuple[Tokens, ...]) -> Tokens:
    """The cells of a row of a system; a comma goes before the condition of a case."""
    line: list[Token] = []
    for cell in cells:
        while cell and cell[0].value in ("if", "when", "for", "where"):
            cell = cell[1:]
        signs = RELATIONS | {","}
        if line and cell and line[-1].value not in signs and cell[0].value not in signs:
            line.append(Token("sign", ","))
        line += cell
    return tuple(line)


def condition_at(tokens: Tokens) -> int:
    """Where the bracket of `y = 2x (0 < x < 5)` begins; 0 where there is none."""
    level = 0
    for i in range(len(tokens) - 1, 0, -1):
        level += (tokens[i].value in CLOSING) - (tokens[i].value in OPENING)
        if level == 0:
            related = any(token.value in RELATIONS for token in tokens[i:])
            called = tokens[i - 1].kind == "run" and tokens[i - 1].value.isupper()  # P(X > 1)
            return i * (tokens[i].value == "(" and related and not called)
    return 0
