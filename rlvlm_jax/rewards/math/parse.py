# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reads the tokens of an answer into a typed tree.

Between `tokens` and `compare`: finds parts, relations, brackets,
units and words by what parts them, and leaves the rest to `expression`. Which trees are equal is
not known here.
"""

import functools
import re
from typing import NamedTuple

from rlvlm_jax.rewards.math import spelling, units
from rlvlm_jax.rewards.math import tokens as lexer
from rlvlm_jax.rewards.math.expression import grouped
from rlvlm_jax.rewards.math.literals import CHOICES, choice, compound, counted, is_constant, literal
from rlvlm_jax.rewards.math.spans import (
    LIST_WORDS,
    OPENING,
    closing,
    condition_at,
    every,
    has_words,
    joined_row,
    numbered,
    signed,
    split,
    trim,
    trim_groups,
)
from rlvlm_jax.rewards.math.spelling import Unreadable
from rlvlm_jax.rewards.math.tokens import Tokens, flat
from rlvlm_jax.rewards.math.tree import NOTHING, Tree, exact, negative, number, symbol

MAX_PARTS_DEPTH = 6
MAX_DEPTH = 100  # of a tree


class Reading(NamedTuple):
    """One way to read a box; `letter` is that of `B. 12 cm`, whose tree is 12 cm."""

    tree: Tree
    letter: str = ""


REALS = symbol("reals")
_ORDERED = frozenset({";", "\n", "to"})
_COMMAS = LIST_WORDS | {","}
_TURNED = {">": "<", "ge": "le"}
_MONEY = {"＄": "dollar", "€": "euro", "£": "pound", "¥": "yuan", "₹": "rupee"}
_CURRENCIES = {"US": "dollar", "USD": "dollar", "RMB": "yuan", "EUR": "euro", "Rs": "rupee"}
_SHORT_WORDS = frozenset({"yes", "no", "true", "dne", "ray"})
_PROSE = frozenset("-'.&?!")  # signs that may stand among words
_NOTHING_WORDS = re.compile(
    r"(?:there (?:is|are|exists?) |the equation has )?no (?:real )?(?:solutions?|roots?|values?)"
    r"(?: exists?)?|(?:the )?(?:empty|null) set|无解|空集|none exist",
    re.IGNORECASE,
)
_NO_LIMIT = re.compile(r"dne|(?:it |the limit )?does not exist|不存在", re.IGNORECASE)
_ALL_REALS = re.compile(
    r"(?:the set of )?(?:all )?(?:the )?real numbers|(?:any|every) real number|all reals?"
    r"|(?:全体|任意|一切)实数",
    re.IGNORECASE,
)
_BARE_UNIT = re.compile(r"\\Omega|[A-Za-z](?:/[A-Za-z])?|\\frac\{[A-Za-z]\}\{[A-Za-z]\}")
_PLAIN_NUMBER = re.compile(r"-?[0-9]{1,30}(?:\.[0-9]{1,30})?")


@functools.lru_cache(maxsize=4096)
def readings(content: str) -> tuple[Reading, ...]:
    """Reads a box's content, both ways where a comma may part thousands or answers.

    Returns:
        No reading for an empty content, else the one with thousands first.

    Raises:
        Unreadable: with the construct that cannot be read.
    """
    if _PLAIN_NUMBER.fullmatch(content):  # most answers are
        return (Reading(number(content)),)
    if set(content) <= set("? .,;:"):
        return ()
    text = spelling.plain(content)
    ways = [lexer.tokens(way) for way in dict.fromkeys((spelling.join_thousands(text), text))]
    answers = tuple(_reading(way) for way in map(trim, ways) if way)
    if any(_depth(reading.tree) > MAX_DEPTH for reading in answers):
        raise Unreadable(f"an expression of more than {MAX_DEPTH} levels")
    return answers


def _reading(tokens: Tokens) -> Reading:
    labelled = choice(tokens)
    if labelled is None:
        return Reading(_answer(tokens))
    letter, rest = labelled
    if not rest:
        return Reading(symbol(letter))
    try:
        return Reading(_answer(rest), letter)
    except Unreadable:  # the text of a choice need not be read
        return Reading(Tree("text", (flat(rest),)), letter)


def _depth(tree: Tree) -> int:
    level, depth = [tree], 0
    while level:
        parts = [part for tree in level for part in tree.parts if isinstance(part, tuple)]
        rows = [(part,) if isinstance(part, Tree) else part for part in parts]  # of matrices
        level = [part for row in rows for part in row]
        depth += 1
    return depth


# --------------------------------------------------------------------------------------------------
# Parts, relations, brackets
# --------------------------------------------------------------------------------------------------


def _answer(tokens: Tokens, depth: int = 0) -> Tree:
    tokens = trim(tokens)
    if depth > MAX_PARTS_DEPTH:
        raise Unreadable(f"parts in more than {MAX_PARTS_DEPTH} levels")
    parts = numbered(tokens)
    if len(parts) > 1:
        return Tree("list", tuple(_answer(part, depth + 1) for part in parts), ";")
    for separators in (_ORDERED, _COMMAS):
        parts, signs = split(tokens, separators)
        parts = [part for part in parts if trim(part)]
        words = [flat((token,)).lower() for token in tokens if token.kind == "run"]
        mixed = units.mixed_words(words) if len(words) == len(tokens) else None
        if mixed is not None:  # one hundred and five
            return exact(mixed)
        cases = split(tokens, frozenset({"or", "或"}))[0] if {"or", "或"} & set(signs) else []
        sizes = {len(split(case, _COMMAS)[0]) for case in cases}
        if len(cases) > 1 and ("and" in signs or (len(sizes) == 1 and sizes != {1})):
            return Tree("list", tuple(_answer(case, depth + 1) for case in cases), "or")
        if len(parts) < 2:
            continue
        trees = tuple(_answer(part, depth + 1) for part in parts)
        if separators is _ORDERED:
            return Tree("list", trees, "to" if "to" in signs else ";")
        words = [sign for sign in signs if sign != ","]
        mark = ("or" if {"or", "或"} & set(words) else "and") if words else ","
        return _joined(trees, mark)
    if any(token.kind == "sign" and token.value in ("pm", "mp") for token in every(tokens)):
        both = ({"pm": "+", "mp": "-"}, {"pm": "-", "mp": "+"})
        return Tree("list", tuple(_answer(signed(tokens, s), depth + 1) for s in both), ",")
    return _single(tokens, depth)


def _joined(trees: tuple[Tree, ...], mark: str) -> Tree:
    """A list; `x > 1 and x < 2` is one relation, `1 hour and 20 minutes` one quantity."""
    if mark == "and" and len(trees) == 2:
        if all(tree.kind == "quantity" for tree in trees):
            marks = [tree.mark for tree in trees]
            if marks[0] != marks[1] and units.scale(marks[0]) and units.same_scale(*marks):
                return Tree("compound", trees)
        for low, high in (trees, trees[::-1]):
            if low.kind == high.kind == "relation" and len(low.parts) == len(high.parts) == 2:
                signs = f"{low.mark} {high.mark}"
                one_letter = low.parts[1] == high.parts[0] and low.parts[1].kind == "symbol"
                if one_letter and set(signs.split()) <= {"<", "le"}:
                    return Tree("relation", (*low.parts, high.parts[1]), signs)
    return Tree("list", trees, mark)


def _single(tokens: Tokens, depth: int) -> Tree:
    """Reads an answer without separators: a relation or a value."""
    if len(tokens) == 1 and tokens[0].kind == "group":
        return _answer(tokens[0].args[0], depth + 1)
    if len(tokens) == 2 and tokens[0].value == "lbrace" and tokens[1].kind == "table":
        tokens = tokens[1:]
    condition = condition_at(tokens)
    if condition:
        trees = tuple(_answer(part, depth + 1) for part in (tokens[:condition], tokens[condition:]))
        return Tree("list", trees, ",")
    parts, signs = split(tokens, lexer.RELATIONS)
    if len(tokens) == 1 and tokens[0].value in ("ldots", "checkmark", "square"):
        return Tree("word", (tokens[0].value,))
    if len(tokens) == 1 and signs:
        return Tree("word", ({"perp": "perpendicular"}.get(signs[0], signs[0]),))
    if not signs:
        return _value(tokens, depth)
    try:
        terms = [_term(part, depth) if part else NOTHING for part in parts]
    except Unreadable:
        if has_words(tokens):
            return Tree("text", (flat(tokens),))
        raise
    if set(signs) <= set(_TURNED):
        terms, signs = terms[::-1], [_TURNED[sign] for sign in signs[::-1]]
    return Tree("relation", tuple(terms), " ".join(signs))


def _term(tokens: Tokens, depth: int) -> Tree:
    r"""Reads one side of a relation, which may be a name such as `P(A)` or `m\angle A`."""
    tokens = trim_groups(tokens)
    if flat(tokens[:1]) == "m" and re.match(r"\\(?:angle|hat)", flat(tokens[1:2])):
        tokens = tokens[1:]
    if len(tokens) > 2 and tokens[0].kind == "run" and len(tokens[0].value) == 1:
        opening = next((i for i, t in enumerate(tokens) if t.value == "("), 0)
        label = all(
            token.kind in ("sub", "sup") or token.value == "'" for token in tokens[1:opening]
        )
        if opening and label and closing(tokens, opening) == len(tokens) - 1:
            return symbol(flat(tokens))
    return _value(tokens, depth, alone=False)


def _value(tokens: Tokens, depth: int, alone: bool = True) -> Tree:
    tokens = trim_groups(tokens)
    if not tokens:
        raise Unreadable("an empty part")
    for read in (_bracket, _table, _literal, _ratio, _words, _quantity):
        tree = read(tokens, depth, alone)
        if tree is not None:
            return tree
    for sign in ("cup", "cap", "setminus"):
        parts = [part for part in split(tokens, frozenset({sign}))[0] if part]
        if len(parts) > 1:
            trees = tuple(_value(part, depth + 1) for part in parts)
            return Tree("union", trees, ";") if sign == "cup" else Tree("call", trees, sign)
    try:
        return grouped(tokens)
    except Unreadable:
        if has_words(tokens):
            return Tree("text", (flat(tokens),))
        raise


def _bracket(tokens: Tokens, depth: int, alone: bool) -> Tree | None:
    first = tokens[0].value
    if first in OPENING and first[0] in "([l" and not first.startswith(("lf", "lc")):
        if closing(tokens, 0) != len(tokens) - 1:
            return None
        inside = tokens[1:-1]
        if first == "lbrace":
            return _set(inside, depth)
        parts = split(inside, frozenset({","}))[0]
        parts = parts if len(parts) > 1 else split(inside, _ORDERED)[0]
        if len(parts) > 1 and all(parts):
            trees = tuple(_answer(part, depth + 1) for part in parts)
            if trees == (negative(symbol("infty")), symbol("infty")):
                return REALS
            mark = {"langle": "<>"}.get(first, first + tokens[-1].value)
            return Tree("bracket", trees, mark)
        if first == "[" and len(parts) == 1 and inside and inside[0].kind != "table":
            return Tree("text", (flat(tokens),))
        if first == "(" and tokens[-1].value == ")" and inside:
            return _answer(inside, depth + 1)
        return None
    opening = next((i for i, token in enumerate(tokens) if token.value == "("), 0)
    if 0 < opening < 3 and closing(tokens, opening) == len(tokens) - 1 and alone:
        name = tokens[:opening]
        if re.fullmatch(r"[A-Z](?:_\{\w+\}|'+)?", flat(name)):
            point = _bracket(tokens[opening:], depth, alone)
            if point is not None and point.kind == "bracket":
                return Tree("relation", (symbol(flat(name)), point), "=")
    return None


def _set(inside: Tokens, depth: int) -> Tree:
    if not inside:
        return symbol("emptyset")
    bar = next((i for i, t in enumerate(inside) if t.value in ("|", ":") and i), 0)
    condition = inside[bar + 1 :]
    member = bar and inside[0].kind in ("run", "symbol") and (bar == 1 or inside[1].value == "in")
    if member and inside[0].value in {token.value for token in condition}:
        tree = _answer(condition, depth + 1)
        tree = tree._replace(mark="and") if tree.mark == "," else tree
        if (
            tree.kind == "relation"
            and tree.mark == "="
            and tree.parts[0] != symbol(inside[0].value)
        ):
            return Tree("text", (flat(inside),))
        domain = _answer(inside[2:bar], depth + 1) if bar > 2 else REALS
        if domain == REALS:
            return tree
        member = Tree("relation", (symbol(inside[0].value), domain), "in")
        return Tree("list", (member, tree), "and")
    if bar and inside[0].value == "(":  # a set of points
        return Tree("text", (flat(inside),))
    parts = [part for part in split(inside, _COMMAS | {";"})[0] if part]
    trees = [_answer(part, depth + 1) for part in parts]
    trees = [t for tree in trees for t in (tree.parts if tree.kind == "list" else (tree,))]
    return Tree("set", tuple(dict.fromkeys(trees)))


def _table(tokens: Tokens, depth: int, alone: bool) -> Tree | None:
    bars = tokens[0].value == "|"
    if len(tokens) == 3 and tokens[0].value in ("(", "[", "langle", "|"):
        tokens = tokens[1:2]
    if len(tokens) != 1 or tokens[0].kind != "table":
        return None
    name, rows = tokens[0].value, tokens[0].args
    lines = [joined_row(row) for row in rows]
    related = all(any(token.value in lexer.RELATIONS for token in line) for line in lines)
    if name not in lexer.MATRICES or related:
        trees = tuple(_answer(line, depth + 1) for line in lines)
        return trees[0] if len(trees) == 1 else Tree("list", trees, "and" if related else ";")
    matrix = tuple(tuple(_answer(cell, depth + 1) for cell in row) for row in rows)
    return Tree("matrix", matrix, {"vmatrix": "|", "Vmatrix": "‖"}.get(name, "|" * bars))


def _literal(tokens: Tokens, depth: int, alone: bool) -> Tree | None:
    labelled = any(token.value == ":" for token in tokens) and has_words(tokens[:1])
    return literal(tokens) if alone and not labelled else None


def _ratio(tokens: Tokens, depth: int, alone: bool) -> Tree | None:
    parts, _ = split(tokens, frozenset({":"}))
    if len(parts) < 2 or not all(parts):
        return None
    label = flat(parts[0])
    words = has_words(parts[0]) and all(token.kind in ("run", "han") for token in parts[0])
    if len(parts) == 2 and words and not label.isupper():
        return Tree("relation", (Tree("text", (label,)), _answer(parts[1], depth + 1)), "=")
    if any(token.text for token in tokens):
        return None
    return Tree("ratio", tuple(_value(part, depth + 1, alone=False) for part in parts))


# --------------------------------------------------------------------------------------------------
# Words and units
# --------------------------------------------------------------------------------------------------


def _words(tokens: Tokens, depth: int, alone: bool) -> Tree | None:
    if any(token.kind not in ("run", "han") and token.value not in _PROSE for token in tokens):
        return None
    line = re.sub(r"(?<=[A-Za-z]{3})!$", "", flat(tokens).rstrip("."))
    for pattern, tree in (
        (_NOTHING_WORDS, symbol("emptyset")),
        (_NO_LIMIT, Tree("word", ("does not exist",))),
        (_ALL_REALS, REALS),
    ):
        if pattern.fullmatch(line):
            return tree
    words = re.split(r"[ -]", line.lower())
    number = units.number_words(words)
    if number and number[1] == len(words):
        return Tree("number", (number[0],))
    if len(tokens) == 1 and tokens[0].kind == "run":
        if line == "infinity":
            return symbol("infty")
        if line in lexer.SPELLED or len(line) == 1:
            return symbol(line)
        several = CHOICES.issuperset(line) and len(set(line)) == len(line)
        if (len(line) > 3 and not several) or line.lower() in _SHORT_WORDS:
            return Tree("word", (line,))
        if tokens[0].text or alone:
            return Tree("run", (line,), "text" if tokens[0].text else "")
    long = any(len(token.value) > 3 or token.value.lower() in _SHORT_WORDS for token in tokens)
    if number:
        return None  # three apples
    return Tree("text", (line,)) if long or any(token.text for token in tokens) else None


def _quantity(tokens: Tokens, depth: int, alone: bool) -> Tree | None:
    """Reads a value with its unit, its percent sign or the noun that it counts."""
    first = tokens[0].value
    if first in _CURRENCIES and len(tokens) > 1:
        rest = tokens[1 + (tokens[1].value in _MONEY or tokens[1].value == ".") :]
        return _measured(rest, _CURRENCIES[first], depth)
    minus = int(first == "-")
    if len(tokens) > 1 + minus and tokens[minus].value in _MONEY:
        rest = tokens[:minus] + tokens[minus + 1 :]
        return _measured(rest, _MONEY[tokens[minus].value], depth)
    last = tokens[-1].value
    called = any(token.kind == "function" or token.value in lexer.FUNCTIONS for token in tokens)
    if len(tokens) > 1 and (last in _MONEY or last in ("%", "¢") or (last == "°" and not called)):
        unit = _MONEY.get(last) or {"¢": "cent"}.get(last, last)
        return _measured(tokens[:-1], unit, depth)
    arc = [token.value for token in tokens if not token.text]
    if "°" in arc and last in ("'", '"'):
        return compound(tokens)
    tokens, start = counted(tokens)
    letters = [i for i, token in enumerate(tokens) if not is_constant(token)]
    start = start or (letters[0] if letters else 0)
    words = [i for i in letters if tokens[i].text or tokens[i].value == "Ω"]
    textual = words[0] if words else 0
    for at in dict.fromkeys((start, textual, textual - 1)):
        if not 0 < at < len(tokens):
            continue
        value, tail = tokens[:at], tokens[at:]
        if value[-1].value in ("/", "(", "-", "+", "^"):
            value, tail = value[:-1], tokens[at - 1 :]
        tree = value and _with_tail(value, tail, depth, alone)
        if tree:
            return tree
    return None


def _with_tail(value: Tokens, tail: Tokens, depth: int, alone: bool) -> Tree | None:
    line = flat(tail)
    if any(token.kind == "number" for token in tail):
        parts = compound((*value, *tail))
        if parts:
            return parts
    scale = units.number_words(["1", line.lower()])
    plural = line.lower() in units.GREAT or line.endswith("s")
    if scale and scale[1] == 2 and plural:
        return Tree("product", (grouped(value), Tree("number", (scale[0],))))
    unit = units.unit(line, spaced=tail[0].space or tail[0].text)
    if unit and unit not in ("'", '"'):
        runs = [token for token in every(tail) if token.kind in ("run", "symbol")]
        letters_alone = all(t.value in ("Omega", t.value[0]) and not t.text for t in runs)
        plain = bool(re.fullmatch(r"[+-]?[\d.]+", flat(value)))
        if runs and letters_alone and tail[0].value != "°":
            if not (alone and plain and _BARE_UNIT.fullmatch(line)):
                return None
        elif not plain and line in ("hr", "ha", "mg") and not tail[0].text:
            return None  # letters, as in \pi hr
        return _measured(value, unit, depth)
    if tail[0].value == "per" and units.unit(flat(tail[1:]), spaced=True):
        return _measured(value, f"per {units.unit(flat(tail[1:]), spaced=True)}", depth)
    rate = next((i for i, token in enumerate(tail) if token.value == "per"), 0)
    per = rate and units.unit(flat(tail[rate + 1 :]), spaced=True)
    if per and all(token.kind == "run" for token in tail[:rate]):  # words per minute
        noun = units.noun([token.value for token in tail[:rate]], one=False)
        return _measured(value, f"{noun} per {per}", depth) if noun else None
    if all(token.kind in ("run", "han") for token in tail):
        noun = units.noun([token.value for token in tail], one=flat(value) == "1")
        if noun:
            return _measured(value, noun, depth)
    return None


def _measured(value: Tokens, unit: str, depth: int) -> Tree | None:
    """A quantity; None where what is left is no value."""
    try:
        tree = _answer(value, depth + 1)
    except Unreadable:
        return None
    if tree.kind == "quantity" and tree.mark.startswith("per "):
        return Tree("quantity", tree.parts, f"{unit} {tree.mark}")  # $4 per hour
    nested = ("text", "word", "relation", "quantity", "compound", "time", "date", "choice")
    summed = unit == "%" and tree.kind in ("sum", "score")
    return None if tree.kind in nested or summed else Tree("quantity", (tree,), unit)
