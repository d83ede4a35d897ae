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
_TRAILING = frozenset({".", ",", ";", ":", "\n", "checkmark"})
_LEADING = _TRAILING - {"."} | {"=", "therefore", "Rightarrow", "to", "because"}


def _depths(tokens: Tokens) -> list[int]:
    """How many brackets are open after each token."""
    return list(itertools.accumulate((t.value in OPENING) - (t.value in CLOSING) for t in tokens))


def closing(tokens: Tokens, start: int) -> int:
    """Index of the bracket that closes the one at `start`; [0, 1) may close with another one."""
    depths = _depths(tokens[start:])
    return start + depths.index(0) if 0 in depths else -1


def split(tokens: Tokens, separators: frozenset[str]) -> tuple[list[Tokens], list[str]]:
    """Splits at separators outside all brackets; gives the parts and the separators."""
    if separators.isdisjoint([token.value for token in tokens]):
        return [tokens], []
    parts, signs, start = [], [], 0
    for i, (token, depth) in enumerate(zip(tokens, _depths(tokens), strict=True)):
        parting = token.value in separators and (token.kind == "sign" or token.value in LIST_WORDS)
        if parting and depth == 0:
            parts.append(tokens[start:i])
            signs.append(token.value)
            start = i + 1
    return [*parts, tokens[start:]], signs


def every(parts: tuple) -> list[Token]:
    """All tokens in lists and tables of them, those inside others too."""
    tokens: list[Token] = []
    for part in parts:
        inside = part
        if isinstance(part, Token):
            tokens.append(part)
            inside = part.args
        tokens += every(inside) if inside else ()
    return tokens


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
    if not tokens or tokens[0].value != "(":
        return [tokens]
    marks = [flat(tokens[i : i + 3]) for i in range(len(tokens) - 2)]
    starts = [i for i, mark in enumerate(marks) if re.fullmatch(r"\(\d\)", mark)]
    parts = [tokens[a + 3 : b] for a, b in itertools.pairwise([*starts, len(tokens)])]
    in_order = [marks[i] for i in starts] == [f"({i + 1})" for i in range(len(starts))]
    return parts if starts[:1] == [0] and in_order and all(parts) else [tokens]


def signed(part: Any, signs: dict[str, str]) -> Any:
    """The tokens with other signs, inside others too."""
    if isinstance(part, Token):
        value = signs.get(part.value, part.value) if part.kind == "sign" else part.value
        return part._replace(value=value, args=signed(part.args, signs))
    return tuple(signed(inner, signs) for inner in part)


def has_words(tokens: Tokens) -> bool:
    """Whether words, or rows of numbers, make it text where it is no formula."""
    if any(t.value in ("equiv", "forall", "exists", "pmod", "bmod") for t in tokens):
        return True
    row = any(a.kind == b.kind == "number" and b.space for a, b in itertools.pairwise(tokens))
    return row or any(
        t.kind == "han" or t.value == ":" or (t.kind == "run" and (t.text or len(t.value) > 1))
        for t in every(tokens)
    )


def joined_row(cells: tuple[Tokens, ...]) -> Tokens:
    """The cells of a row of a system; a comma goes before the condition of a case."""
    line: Tokens = ()
    for cell in cells:
        while cell and cell[0].value in ("if", "when", "for", "where"):
            cell = cell[1:]
        if line and cell and not {line[-1].value, cell[0].value} & (RELATIONS | {","}):
            line += (Token("sign", ","),)
        line += cell
    return line


def condition_at(tokens: Tokens) -> int:
    """Where the bracket of `y = 2x (0 < x < 5)` begins; 0 where there is none."""
    depths = _depths(tokens)
    for i in range(len(tokens) - 1, 0, -1):
        if depths[i - 1] == depths[-1]:
            related = any(token.value in RELATIONS for token in tokens[i:])
            called = tokens[i - 1].kind == "run" and tokens[i - 1].value.isupper()  # P(X > 1)
            return i * (tokens[i].value == "(" and related and not called)
    return 0
