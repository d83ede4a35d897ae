# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""Reads the tokens of an answer into a typed tree.

Second step of the strict judge, between `tokens` and `compare`. Parts, relations, brackets, units
and words are found first, by what parts them; `_Expression` reads the rest by precedence, so a tree
has every function's argument and every product explicit. Which trees are equal is not known here.
"""

import functools
import itertools
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

from rlvlm_jax.rewards.math import tokens as tokens_of
from rlvlm_jax.rewards.math import units
from rlvlm_jax.rewards.math.tokens import Token, Tokens, Unreadable, flat

MAX_PARTS_DEPTH = 6
MAX_CHAIN = 30  # of divisions, powers or functions in one expression: each is a level of its tree


class Tree(NamedTuple):
    """An answer, a part of it, or an expression.

    Attributes:
        kind: of answers: "list", "set", "union", "bracket" (tuple, point, interval), "matrix",
            "relation", "ratio", "quantity" (value and unit), "compound" (of quantities), "time",
            "date", "score", "base", "run" (letters that stand alone), "word", "text", "nothing".
            Of expressions: "number", "symbol", "sum", "product", "quotient", "power", "call" (of a
            function), "series" (sum, product, integral, limit).
        parts: the trees it is made of; for a leaf its one value.
        mark: what else tells it from others of its kind: brackets, the signs of a relation, the
            unit, the function, the digits as written, "text" of letters set as text.
    """

    kind: str
    parts: tuple[Any, ...] = ()
    mark: str = ""


class Reading(NamedTuple):
    """One way to read a box; `letter` is that of `B. 12 cm`, whose tree is 12 cm."""

    tree: Tree
    letter: str = ""


NOTHING = Tree("nothing")
REALS = Tree("symbol", ("reals",))
_ORDERED = frozenset({";", "\n", "to"})
_LIST_WORDS = frozenset({"or", "and", "或", "和", "与", "及", "且"})
_COMMAS = _LIST_WORDS | {","}
_LEADING = frozenset({"=", "therefore", "Rightarrow", "because", ",", ";", ":", "\n", "checkmark"})
_TRAILING = frozenset({".", ",", ";", ":", "?", "\n", "checkmark"})
_TURNED = {">": "<", "ge": "le"}
_MONEY = {"＄": "dollar", "€": "euro", "£": "pound", "¥": "yuan", "₹": "rupee"}
_SHORT_WORDS = frozenset({"yes", "no", "true", "dne"})
_LITERAL_SIGNS = frozenset(":-/.")
_PROSE = frozenset("-'.&?!")  # signs that may stand among words
# Runs of two or three letters that are words, so that their order counts; products otherwise
_WORDS = frozenset(
    """no on up or so to it is in at by do go we me us he an as if of am pm my ok not ton
    ten net one two six sin cos tan log cot sec csc max min mod gcd lcm exp cat act tac odd add dad
    yes day may was saw now won own tip pit top pot top opt ear are era eat tea ate dog god end den
    arc car rat art tar bat tab tub but bus sub cub big gib red set all non and dan the any few low
    owl kg""".split()  # noqa: SIM905 (a list is hard to read)
)
_ROMAN = frozenset({"IV", "VI", "IX", "XI"})
_NOTHING_WORDS = re.compile(
    r"(?:there (?:is|are|exists?) )?no (?:real )?(?:solutions?|roots?|values?)(?: exists?)?"
    r"|(?:the )?(?:empty|null) set|无解|空集|none exist",
    re.IGNORECASE,
)
_NO_LIMIT = re.compile(r"dne|(?:it )?does not exist|不存在", re.IGNORECASE)
_ALL_REALS = re.compile(
    r"(?:the set of )?(?:all )?(?:the )?real numbers?|all reals?|全体实数", re.I
)
_TIME = re.compile(
    r"(?P<h>\d{1,2})(?::(?P<m>\d\d))?(?::(?P<s>\d\d))? ?(?:(?P<half>[ap])\.?m\.?|o'clock)?", re.I
)
_MONTHS = "january february march april may june july august september october november december"
_MONTH = {name: i + 1 for i, full in enumerate(_MONTHS.split()) for name in (full, full[:3])}
_DATES = (
    re.compile(r"(?P<month>[A-Za-z]{3,9})\.? ?(?P<day>\d{1,2})(?:st|nd|rd|th)?"),
    re.compile(r"(?P<day>\d{1,2})(?:st|nd|rd|th)?(?: of)? ?(?P<month>[A-Za-z]{3,9})"),
    re.compile(r"(?P<month>\d{1,2})月(?P<day>\d{1,2})[日号]"),
)
_NUMERIC_DATE = re.compile(r"(\d{1,4})([-/.])(\d{1,2})\2(\d{1,4})")
_DOTTED_LIST = re.compile(r"\d(?:\.\d){2,}\.?")  # the numbers of right statements, 1.3.4.
_SCORE = re.compile(r"(\d{1,3})-(\d{1,3})")
_BASE = re.compile(r"\(?([0-9A-F]*\d[0-9A-F]*)\)?_\{(\d{1,2}|[a-z]+)\}")
_DERIVATIVE = re.compile(r"d(?:\^\{\d\})?\\?[A-Za-z]*|\\partial.*")
_BARE_UNIT = re.compile(r"\\Omega|[A-Za-z](?:/[A-Za-z])?|\\frac\{[A-Za-z]\}\{[A-Za-z]\}")
CHOICES = frozenset("ABCDEFGHIJ")
_PLAIN_NUMBER = re.compile(r"-?[0-9]{1,30}(?:\.[0-9]{1,30})?")
_CHOICE = re.compile(
    r"\(([A-J])\)|([A-J])[.):]|(?:[Oo]ption|[Cc]hoice) *\(?([A-J])(?![A-Za-z])|([A-J]) (?=\d)"
)
_CHOICE_AMONG = re.compile(r"(?<![A-Za-z\\°])(?:[A-J](?![A-Za-z])|[a-j][.)])")
_NO_CHOICE = units.DOUBTS - {"no", "none"} | {"or", "and", "is", "if"}  # as the first word


@functools.lru_cache(maxsize=4096)
def readings(content: str) -> tuple[Reading, ...]:
    """Reads a box's content, both ways where a comma may part thousands or answers.

    Returns:
        No reading for an empty content, else the one with thousands first.

    Raises:
        Unreadable: with the construct that cannot be read.
    """
    if _PLAIN_NUMBER.fullmatch(content):  # most answers are
        return (Reading(_number(content)),)
    text = tokens_of.plain(content)
    ways = [tokens_of.tokens(way) for way in dict.fromkeys((tokens_of.join_thousands(text), text))]
    return tuple(_choice(way) or Reading(_answer(way)) for way in map(_trim, ways) if way)


def _choice(tokens: Tokens) -> Reading | None:
    """Reads the letter of a choice and its text; None where another letter or a doubt follows."""
    if tokens[0].value not in CHOICES and tokens[0].value.lower() not in ("(", "option", "choice"):
        return None
    match = _CHOICE.match(flat(tokens))
    letter = match and (match[1] or match[2] or match[3] or match[4])
    start = next((i for i, token in enumerate(tokens) if token.value == letter), -1) + 1
    while letter and start < len(tokens) and tokens[start].value in (")", ".", ":", ")."):
        start += 1
    rest = _trim(tokens[start:])
    line = flat(rest)
    if match and match[3] and not rest:
        return Reading(Tree("symbol", (letter,)))
    if not letter or not rest or (match[4] and not (rest[0].space and rest[0].kind == "number")):
        return None
    if re.split(r"[^a-z]", line.lower(), maxsplit=1)[0] in _NO_CHOICE:
        return None
    if not {letter}.issuperset(_CHOICE_AMONG.findall(line)):
        return None
    return Reading(_answer(rest), letter)


# --------------------------------------------------------------------------------------------------
# Parts, relations, brackets
# --------------------------------------------------------------------------------------------------


def _answer(tokens: Tokens, depth: int = 0) -> Tree:
    tokens = _trim(tokens)
    if depth > MAX_PARTS_DEPTH:
        raise Unreadable(f"parts in more than {MAX_PARTS_DEPTH} levels")
    parts = _numbered(tokens)
    if len(parts) > 1:
        return Tree("list", tuple(_answer(part, depth + 1) for part in parts), ";")
    for separators in (_ORDERED, _COMMAS):
        parts, signs = _split(tokens, separators)
        parts = [part for part in parts if _trim(part)]
        if len(parts) < 2:
            continue
        trees = tuple(_answer(part, depth + 1) for part in parts)
        if separators is _ORDERED:
            return Tree("list", trees, ";")
        words = {{"或": "or"}.get(sign, "and" if sign != "or" else sign) for sign in signs}
        mark = words.pop() if len(words) == 1 and "," not in signs else ","
        return _joined(trees, mark)
    if any(token.kind == "sign" and token.value in ("pm", "mp") for token in _every(tokens)):
        both = ({"pm": "+", "mp": "-"}, {"pm": "-", "mp": "+"})
        return Tree("list", tuple(_answer(_signed(tokens, s), depth + 1) for s in both), ",")
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
                if low.parts[1] == high.parts[0] and set(signs.split()) <= {"<", "le"}:
                    if low.parts[1].kind == "symbol":
                        return Tree("relation", (*low.parts, high.parts[1]), signs)
    return Tree("list", trees, mark)


def _single(tokens: Tokens, depth: int) -> Tree:
    """Reads an answer without separators: a relation or a value."""
    if len(tokens) == 1 and tokens[0].kind == "group":
        return _answer(tokens[0].args[0], depth + 1)
    if len(tokens) == 2 and tokens[0].value == "lbrace" and tokens[1].kind == "table":
        tokens = tokens[1:]
    parts, signs = _split(tokens, tokens_of.RELATIONS)
    if len(tokens) == 1 and tokens[0].value in ("ldots", "checkmark", "square"):
        return Tree("word", (tokens[0].value,))
    if len(tokens) == 1 and signs:
        return Tree("word", ({"perp": "perpendicular"}.get(signs[0], signs[0]),))
    if not signs:
        return _value(tokens, depth)
    try:
        terms = [_term(part, depth) if part else NOTHING for part in parts]
    except Unreadable:
        if _has_words(tokens):
            return Tree("text", (flat(tokens),))
        raise
    if set(signs) <= set(_TURNED):
        terms, signs = terms[::-1], [_TURNED[sign] for sign in signs[::-1]]
    return Tree("relation", tuple(terms), " ".join(signs))


def _term(tokens: Tokens, depth: int) -> Tree:
    """Reads one side of a relation, which may be a name such as `P(A)` or `m\angle A`."""
    tokens = _trim_groups(tokens)
    if flat(tokens[:2]) == r"m\angle" or (
        flat(tokens[:1]) == "m" and tokens[1:2] and tokens[1].value == "hat"
    ):
        tokens = tokens[1:]
    if len(tokens) > 2 and tokens[0].kind == "run" and len(tokens[0].value) == 1:
        opening = next((i for i, t in enumerate(tokens) if t.value == "("), 0)
        label = all(token.kind == "sub" or token.value == "'" for token in tokens[1:opening])
        if opening and label and _closing(tokens, opening) == len(tokens) - 1:
            return Tree("symbol", (flat(tokens),))
    return _value(tokens, depth, alone=False)


def _value(tokens: Tokens, depth: int, alone: bool = True) -> Tree:
    tokens = _trim_groups(tokens)
    if not tokens:
        raise Unreadable("an empty part")
    for read in (_bracket, _table, _literal if alone else _ratio, _words, _quantity):
        tree = read(tokens, depth, alone)
        if tree is not None:
            return tree
    for sign in ("cup", "cap", "setminus"):
        parts = [part for part in _split(tokens, frozenset({sign}))[0] if part]
        if len(parts) > 1:
            trees = tuple(_value(part, depth + 1) for part in parts)
            return Tree("union", trees, ";") if sign == "cup" else Tree("call", trees, sign)
    try:
        return _grouped(tokens)
    except Unreadable:
        if _has_words(tokens):
            return Tree("text", (flat(tokens),))
        raise


def _bracket(tokens: Tokens, depth: int, alone: bool) -> Tree | None:
    first = tokens[0].value
    if first in tokens_of.OPENING and first[0] in "([l" and not first.startswith(("lf", "lc")):
        if _closing(tokens, 0) != len(tokens) - 1:
            return None
        inside = tokens[1:-1]
        if first == "lbrace":
            return _set(inside, depth)
        parts = _split(inside, _COMMAS)[0]
        parts = parts if len(parts) > 1 else _split(inside, _ORDERED)[0]
        if len(parts) > 1 and all(parts):
            trees = tuple(_answer(part, depth + 1) for part in parts)
            infinite = [str(tree.parts[:1]) for tree in trees]
            if (
                len(trees) == 2
                and all("infty" in part for part in infinite)
                and trees[0] != trees[1]
            ):
                return REALS
            mark = {"langle": "<>"}.get(first, first + tokens[-1].value)
            return Tree("bracket", trees, mark)
        if first == "(" and tokens[-1].value == ")" and inside:
            return _answer(inside, depth + 1)
        return None
    opening = next((i for i, token in enumerate(tokens) if token.value == "("), 0)
    if 0 < opening < 3 and _closing(tokens, opening) == len(tokens) - 1 and alone:
        name = tokens[:opening]
        if re.fullmatch(r"[A-Z](?:_\{\w+\}|'+)?", flat(name)):
            point = _bracket(tokens[opening:], depth, alone)
            if point is not None and point.kind == "bracket":
                return Tree("relation", (Tree("symbol", (flat(name),)), point), "=")
    return None


def _set(inside: Tokens, depth: int) -> Tree:
    if not inside:
        return Tree("symbol", ("emptyset",))
    bar = next((i for i, t in enumerate(inside) if t.value in ("|", ":") and i), 0)
    if bar and inside[0].kind in ("run", "symbol") and (bar == 1 or inside[1].value == "in"):
        if inside[0].value in {token.value for token in inside[bar + 1 :]}:
            return _answer(inside[bar + 1 :], depth + 1)
    parts = [part for part in _split(inside, _COMMAS | {";"})[0] if part]
    trees = [_answer(part, depth + 1) for part in parts]
    trees = [t for tree in trees for t in (tree.parts if tree.kind == "list" else (tree,))]
    return Tree("set", tuple(dict.fromkeys(trees)))


def _table(tokens: Tokens, depth: int, alone: bool) -> Tree | None:
    if len(tokens) == 3 and tokens[1].kind == "table" and tokens[0].value in ("(", "[", "langle"):
        tokens = tokens[1:2]
    if len(tokens) != 1 or tokens[0].kind != "table":
        return None
    name, rows = tokens[0].value, tokens[0].args
    lines = [tuple(token for cell in row for token in cell) for row in rows]
    related = all(any(token.value in tokens_of.RELATIONS for token in line) for line in lines)
    if name not in tokens_of.MATRICES or (name == "array" and related):
        trees = tuple(_answer(line, depth + 1) for line in lines)
        return trees[0] if len(trees) == 1 else Tree("list", trees, ",")
    matrix = tuple(tuple(_answer(cell, depth + 1) for cell in row) for row in rows)
    return Tree("matrix", matrix, "|" if name in ("vmatrix", "Vmatrix") else "")


def _literal(tokens: Tokens, depth: int, alone: bool) -> Tree | None:
    """Reads what looks like arithmetic and is none: times, dates, scores, circled numbers."""
    if all(token.kind == "circled" for token in tokens):
        numbers = tuple(_number(token.value) for token in tokens)
        return numbers[0] if len(numbers) == 1 else Tree("list", numbers, ",")
    literal = (t.value in _LITERAL_SIGNS or t.kind in ("run", "han", "sub") for t in tokens)
    if not any(literal) and not (len(tokens) > 1 and tokens[1].kind == "number"):
        return None
    line = flat(tokens)
    time = _TIME.fullmatch(line)
    if time and (time["half"] or (time["m"] and not time["s"]) or "clock" in line):
        hour, minute, second = (int(time[part] or 0) for part in "hms")
        if hour < 25 and minute < 60 and second < 60:
            half = (time["half"] or "").lower()
            return Tree("time", (hour, minute, second), half)
    for pattern in _DATES:
        date = pattern.fullmatch(line)
        month = date and (
            _MONTH.get(date["month"].lower()) or date["month"].isdigit() and int(date["month"])
        )
        if month:
            return Tree("date", (month, int(date["day"])))
    numeric = _NUMERIC_DATE.fullmatch(line)
    if numeric and not (numeric[2] == "." and len(numeric[1]) < 4 > len(numeric[4])):
        return Tree("date", tuple(int(numeric[i]) for i in (1, 3, 4)), "numeric")
    if _DOTTED_LIST.fullmatch(line):
        return Tree("list", tuple(map(_number, re.findall(r"\d", line))), ",")
    score = _SCORE.fullmatch(line)
    if score:
        return Tree("score", (_number(score[1]), _number(score[2])))
    base = _BASE.fullmatch(line)
    if (
        base
        and tokens[-1].kind == "sub"
        and (
            tokens[0].kind == "number"
            or tokens[0].value == "("
            or base[2].isdigit()
            and int(base[2]) > 10
        )
    ):
        radix = units.number_words([base[2]])
        return Tree("base", (base[1].lstrip("0") or "0", str(radix[0]) if radix else base[2]))
    return _ratio(tokens, depth, alone)


def _ratio(tokens: Tokens, depth: int, alone: bool) -> Tree | None:
    parts, _ = _split(tokens, frozenset({":"}))
    if len(parts) < 2 or not all(parts) or any(token.text for token in tokens):
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
        (_NOTHING_WORDS, Tree("symbol", ("emptyset",))),
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
        if line in tokens_of.SPELLED or len(line) == 1:
            return Tree("symbol", (line,))
        several = CHOICES.issuperset(line) and len(set(line)) == len(line)
        if (len(line) > 3 and not several) or line.lower() in _SHORT_WORDS:
            return Tree("word", (line,))
        if tokens[0].text or alone:
            return Tree("run", (line,), "text" if tokens[0].text else "")
    long = any(len(token.value) > 3 or token.value.lower() in _SHORT_WORDS for token in tokens)
    if long or any(token.text for token in tokens) and not (number and number[1]):
        return Tree("text", (line,))
    return None


def _quantity(tokens: Tokens, depth: int, alone: bool) -> Tree | None:
    """Reads a value with its unit, its percent sign or the noun that it counts."""
    sign = -1 if tokens[0].value == "-" else 1
    money = _MONEY.get(tokens[0].value) or (sign < 0 and tokens[1:] and _MONEY.get(tokens[1].value))
    if money and len(tokens) > 1:
        return _measured((*tokens[: sign < 0], *tokens[1 + (sign < 0) :]), money, depth)
    last = tokens[-1].value
    called = any(token.kind == "function" or token.value in tokens_of.FUNCTIONS for token in tokens)
    if len(tokens) > 1 and (last in _MONEY or last in ("%", "¢") or (last == "°" and not called)):
        unit = _MONEY.get(last) or {"¢": "cent"}.get(last, last)
        return _measured(tokens[:-1], unit, depth)
    arc = [token.value for token in tokens if not token.text]
    if "°" in arc and last in ("'", '"'):
        return _compound(tokens)
    words = [token.value.lower() for token in tokens if token.kind == "run"]
    start = 0
    count = (
        units.number_words(words)
        if tokens[0].kind == "run" and not tokens[0].value.istitle()
        else None
    )
    if count and count[1] and len(tokens) > count[1]:
        tokens = (Token("number", str(count[0])), *tokens[count[1] :])
        start = 1
    start = start or next(
        (i for i, token in enumerate(tokens) if not _is_constant(token)), len(tokens)
    )
    textual = next(
        (i for i, t in enumerate(tokens) if t.text and t.kind in ("run", "han") or t.value == "Ω"),
        0,
    )
    for start in dict.fromkeys((start, textual, textual - 1)):
        if not 0 < start < len(tokens):
            continue
        value, tail = tokens[:start], tokens[start:]
        if value[-1].value in ("/", "(", "-", "+", "^"):
            value, tail = value[:-1], tokens[start - 1 :]
        tree = value and _with_tail(value, tail, depth, alone)
        if tree:
            return tree
    return None


def _with_tail(value: Tokens, tail: Tokens, depth: int, alone: bool) -> Tree | None:
    line = flat(tail)
    if any(token.kind == "number" for token in tail):
        compound = _compound((*value, *tail))
        if compound:
            return compound
    scale = units.number_words(["1", line.lower()])
    if scale and scale[1] == 2 and scale[0] != 1:
        return _Expression(value).whole()._replace() and _scaled(value, scale[0])
    unit = units.unit(line, spaced=tail[0].space or tail[0].text)
    if unit and unit not in ("'", '"'):
        runs = [token for token in _every(tail) if token.kind in ("run", "symbol")]
        letters_alone = all(t.value in ("Omega", t.value[0]) and not t.text for t in runs)
        if runs and letters_alone and tail[0].value != "°":
            plain = (
                len(value) < 3
                and value[-1].kind == "number"
                and value[0].value in ("+", "-", value[-1].value)
            )
            if not (alone and plain and _BARE_UNIT.fullmatch(line)):
                return None
        return _measured(value, unit, depth)
    if all(token.kind in ("run", "han") for token in tail):
        noun = units.noun([token.value for token in tail], one=flat(value) == "1")
        if noun:
            return _measured(value, noun, depth)
    return None


def _scaled(value: Tokens, scale: Fraction) -> Tree:
    return Tree("product", (_Expression(value).whole(), Tree("number", (scale,))))


def _measured(value: Tokens, unit: str, depth: int) -> Tree | None:
    """A quantity; None where what is left is no value."""
    try:
        tree = _answer(value, depth + 1)
    except Unreadable:
        return None
    return (
        Tree("quantity", (tree,), unit) if tree.kind not in ("text", "word", "relation") else None
    )


def _compound(tokens: Tokens) -> Tree | None:
    """Reads 1 hour 20 minutes or 40°30'."""
    parts, at = [], 0
    while at < len(tokens):
        end = at + 1
        while end < len(tokens) and tokens[end].kind != "number":
            end += 1
        unit = units.unit(flat(tokens[at + 1 : end]), spaced=True)
        if tokens[at].kind != "number" or unit is None or not units.scale(unit):
            return None
        parts.append(Tree("quantity", (_number(tokens[at].value),), unit))
        at = end
    sizes = [units.scale(part.mark) for part in parts]
    one_scale = all(units.same_scale(parts[0].mark, part.mark) for part in parts)
    ordered = one_scale and all(a[1] > b[1] for a, b in zip(sizes, sizes[1:], strict=False))
    return Tree("compound", tuple(parts)) if ordered and len(parts) > 1 else None


def _is_constant(token: Token) -> bool:
    if token.kind in ("number", "frac", "root", "sup", "group"):
        return not any(t.kind in ("run", "han") for part in token.args for t in _every(part))
    return token.value in ("pi", "times", "cdot", "div", "!") or (
        token.kind == "sign" and token.value in "+-*/().,:"
    )


# --------------------------------------------------------------------------------------------------
# Lists of tokens
# --------------------------------------------------------------------------------------------------


def _trim(tokens: Tokens) -> Tokens:
    while tokens and tokens[0].value in _LEADING and tokens[0].kind == "sign" and len(tokens) > 1:
        tokens = tokens[1:]
    while tokens and tokens[-1].value in _TRAILING and tokens[-1].kind == "sign":
        tokens = tokens[:-1]
    return tokens


def _trim_groups(tokens: Tokens) -> Tokens:
    while len(tokens) == 1 and tokens[0].kind == "group":
        tokens = tokens[0].args[0]
    return tokens


def _closing(tokens: Tokens, start: int) -> int:
    """Index of the bracket that closes the one at `start`; [0, 1) may close with another one."""
    depth = 0
    for i in range(start, len(tokens)):
        depth += (tokens[i].value in tokens_of.OPENING) - (tokens[i].value in tokens_of.CLOSING)
        if depth == 0:
            return i
    return -1


def _split(tokens: Tokens, separators: frozenset[str]) -> tuple[list[Tokens], list[str]]:
    """Splits at separators outside all brackets; gives the parts and the separators."""
    if separators.isdisjoint([token.value for token in tokens]):
        return [tokens], []
    parts, signs, start, depth = [], [], 0, 0
    for i, token in enumerate(tokens):
        depth += (token.value in tokens_of.OPENING) - (token.value in tokens_of.CLOSING)
        if (
            depth == 0
            and token.value in separators
            and (token.kind == "sign" or token.value in _LIST_WORDS)
        ):
            parts.append(tokens[start:i])
            signs.append(token.value)
            start = i + 1
    return [*parts, tokens[start:]], signs


def _numbered(tokens: Tokens) -> list[Tokens]:
    """Parts (1) 3, (2) 5; one part where the answer is not numbered so."""
    if tokens[:1] == () or tokens[0].value != "(":
        return [tokens]
    marks = [i for i in range(len(tokens) - 2) if re.fullmatch(r"\(\d\)", flat(tokens[i : i + 3]))]
    numbers = [int(tokens[i + 1].value) for i in marks]
    if not marks or marks[0] != 0 or numbers != list(range(1, len(numbers) + 1)):
        return [tokens]
    return [tokens[i + 3 : end] for i, end in zip(marks, [*marks[1:], len(tokens)], strict=True)]


def _every(tokens: Tokens) -> list[Token]:
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
    return [*tokens, *(token for part in lists for token in _every(part))]


def _signed(tokens: Tokens, signs: dict[str, str]) -> Tokens:
    def replaced(part: Any) -> Any:
        if isinstance(part, Token):
            value = signs.get(part.value, part.value) if part.kind == "sign" else part.value
            return part._replace(value=value, args=replaced(part.args))
        return tuple(map(replaced, part))

    return replaced(tokens)


def _has_words(tokens: Tokens) -> bool:
    row = any(a.kind == b.kind == "number" and b.space for a, b in itertools.pairwise(tokens))
    return row or any(
        token.kind == "han"
        or token.value == ":"
        or (token.kind == "run" and (token.text or len(token.value) > 1))
        for token in _every(tokens)
    )


# --------------------------------------------------------------------------------------------------
# Expressions
# --------------------------------------------------------------------------------------------------


def letters(run: str) -> tuple[Tree, ...]:
    """Reads a run of letters in mathematics: a segment, points in order, or a product."""
    if run.isupper() and len(run) == 2:
        return (Tree("symbol", (run if run in _ROMAN else "".join(sorted(run)),)),)
    if run.isupper() and len(run) > 2 or run in _WORDS:
        return (Tree("symbol", (run,)),)
    if len(run) > 3:
        raise Unreadable(f"the word {run!r} in a formula")
    return tuple(Tree("symbol", (letter,)) for letter in run)


def is_word(run: str) -> bool:
    """Whether a short run, or its letters in another order, is a word."""
    return any(sorted(word) == sorted(run.lower()) for word in _WORDS)


def product(*factors: Tree) -> Tree:
    """A product without products in it."""
    flat_factors = [
        f for tree in factors for f in (tree.parts if tree.kind == "product" else (tree,))
    ]
    return flat_factors[0] if len(flat_factors) == 1 else Tree("product", tuple(flat_factors))


def negative(tree: Tree) -> Tree:
    """The tree with the other sign."""
    if tree.kind == "number":
        return Tree("number", (-tree.parts[0],), tree.mark)
    if tree.kind == "product" and tree.parts[0].kind == "number":
        return Tree("product", (negative(tree.parts[0]), *tree.parts[1:]))
    return product(Tree("number", (Fraction(-1),)), tree)


def is_vector(tree: Tree) -> bool:
    """Whether a factor is a vector, so that a cross product is none of numbers."""
    if tree.kind == "symbol":
        return tree.parts[0].startswith("vec ")
    return tree.kind in ("sum", "product") and any(map(is_vector, tree.parts))


def _number(digits: str) -> Tree:
    return Tree("number", (Fraction(digits.rstrip(".")),), digits if "." in digits else "")


_END = Token("end")


class _Expression:
    """Reads tokens by precedence: sum, product, power."""

    def __init__(self, tokens: Tokens):
        self.tokens = tokens
        self.at = self.functions = 0

    def whole(self) -> Tree:
        if not self.tokens:
            raise Unreadable("an empty group or argument")
        tree = self.sum()
        self.check(self.at == len(self.tokens))
        return tree

    def check(self, readable: bool) -> None:
        if not readable:
            rest = flat(self.tokens[self.at :]) or "its end"
            raise Unreadable(f"{flat(self.tokens):.60} from {rest:.30} on")

    def next(self) -> Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else _END

    def take(self, *values: str) -> str:
        """Takes the next token if it is one of these signs, and returns it."""
        token = self.next()
        if token.kind == "sign" and token.value in values:
            self.at += 1
            return token.value
        return ""

    def sum(self) -> Tree:
        terms = []
        while True:
            minus = False
            while sign := self.take("+", "-"):
                minus ^= sign == "-"
            term = self.term()
            terms.append(negative(term) if minus else term)
            if self.next().value not in ("+", "-"):
                return terms[0] if len(terms) == 1 else Tree("sum", tuple(terms))

    def term(self) -> Tree:
        value = self.factor()
        chained = 0
        while True:
            self.check(chained < MAX_CHAIN)
            if sign := self.take("times", "cdot", "*"):
                factor = self.signed()
                cross = sign == "times" and is_vector(value) and is_vector(factor)
                chained += cross
                value = Tree("call", (value, factor), "cross") if cross else product(value, factor)
            elif self.take("/", "div"):
                chained += 1
                value = Tree("quotient", (value, self.signed()))
            elif self.starts_factor():
                self.check(self.next().kind != "number")
                value = product(value, self.factor())
            else:
                return value

    def signed(self) -> Tree:
        return negative(self.factor()) if self.take("-") else self.factor()

    def starts_factor(self) -> bool:
        token = self.next()
        if token.kind == "sign":
            return token.value in ("(", "[", "angle", "triangle", "lfloor", "lceil", "odot") or (
                token.value in ("|", "norm") and self.bars_ahead()
            )
        return token.kind not in ("end", "sup", "sub", "han", "circled", "table")

    def bars_ahead(self) -> bool:
        return any(t.value == self.next().value for t in self.tokens[self.at + 2 :])

    def factor(self) -> Tree:
        """A factor with its powers; of a run of letters, the last one has them."""
        *before, base = self.base()
        for _ in range(MAX_CHAIN):
            token = self.next()
            if token.kind == "sup":
                self.at += 1
                base = Tree("power", (base, _Expression(token.args[0]).whole()))
            elif token.kind == "sub" and base.kind == "symbol":
                self.at += 1
                base = Tree("symbol", (f"{base.parts[0]}_{flat(token.args[0])}",))
            elif self.take("!"):
                base = Tree("call", (base,), "factorial")
            elif self.take("°"):
                base = Tree("call", (base,), "degree")
            elif self.take("%"):
                base = Tree("quotient", (base, _number("100")))
            elif base.kind == "symbol" and (primes := self.take("'", '"')):
                base = Tree("symbol", (base.parts[0] + ("''" if primes == '"' else "'"),))
            else:
                return product(*before, base)
        raise Unreadable(f"more than {MAX_CHAIN} powers in a row")

    def base(self) -> tuple[Tree, ...]:
        token = self.next()
        self.at += 1
        if token.kind == "number":
            return (self.number(token.value),)
        if token.kind == "run":
            return self.run(token)
        if token.kind == "group":
            return (_grouped(token.args[0]),)
        if token.kind == "symbol":
            return (Tree("symbol", (token.value,)),)
        if token.kind in ("function", "series"):
            return (getattr(self, token.kind)(token.value),)
        if token.kind == "frac":
            above, below = map(flat, token.args)
            if _DERIVATIVE.fullmatch(above) and re.match(r"d\\?[A-Za-z]|\\partial", below):
                return (Tree("symbol", (rf"{above}/{below}",)),)
            return (Tree("quotient", tuple(_Expression(part).whole() for part in token.args)),)
        if token.kind in ("binom", "root"):
            parts = tuple(_Expression(part).whole() for part in token.args if part)
            self.check(bool(token.args[0]))
            return (Tree("call", parts, token.kind),)
        if token.kind == "accent":
            return (_accented(token.value, token.args[0]),)
        if token.kind == "sign":
            return (self.enclosed(token.value),)
        self.at -= 1
        self.check(False)
        raise AssertionError

    def number(self, digits: str) -> Tree:
        value = _number(digits)
        token = self.next()
        if token.kind == "accent" and "." in digits:  # 0.1\overline{6}
            period = ""
            while self.next().kind in ("accent", "number"):
                token = self.next()
                period += flat(token.args[0]) if token.kind == "accent" else token.value
                self.at += 1
            self.check(period.isdigit())
            places = len(digits.partition(".")[2])
            repeated = Fraction(int(period), 10 ** len(period) - 1) / 10**places
            return Tree("number", (value.parts[0] + repeated,))
        part = None
        if token.kind == "frac" and "." not in digits:
            part = [flat(arg) for arg in token.args]
            after = 1
        elif token.kind == "number" and token.space and "." not in digits:  # 1 1/4
            rest = self.tokens[self.at : self.at + 3]
            part = (
                [rest[0].value, rest[2].value] if len(rest) == 3 and rest[1].value == "/" else None
            )
            after = 3
        if part and all(digits.isdigit() for digits in part) and 0 < int(part[0]) < int(part[1]):
            self.at += after
            return Tree("number", (value.parts[0] + Fraction(int(part[0]), int(part[1])),))
        return value

    def run(self, token: Token) -> tuple[Tree, ...]:
        run = token.value
        if run in tokens_of.FUNCTIONS and (
            run not in ("min", "max", "sec") or self.next().value == "("
        ):
            return (self.function(run),)
        if run in tokens_of.SPELLED:
            return (Tree("symbol", (run,)),)
        if token.text and len(run) > 1:
            raise Unreadable(f"the word {run!r} in a formula")
        call = run in ("f", "g", "h") and self.next().value == "("
        if call and _closing(self.tokens, self.at) == self.at + 2:
            self.at += 3
            return (Tree("symbol", (f"{run}({flat(self.tokens[self.at - 2 : self.at - 1])})",)),)
        if self.next().kind == "sub" and len(run) > 1:
            return (*letters(run[:-1]), Tree("symbol", (run[-1],)))
        return letters(run)

    def enclosed(self, sign: str) -> Tree:
        """What stands in brackets or bars, or what an angle is named by."""
        start = self.at
        if sign in ("(", "["):
            self.at = _closing(self.tokens, start - 1) + 1
            self.check(self.at > start)
            return _grouped(self.tokens[start : self.at - 1])
        if sign in ("lfloor", "lceil"):
            self.at = _closing(self.tokens, start - 1) + 1
            self.check(self.at > start)
            return Tree("call", (_Expression(self.tokens[start : self.at - 1]).whole(),), sign[1:])
        if sign in ("|", "norm"):
            end = next(
                (i for i in range(start, len(self.tokens)) if self.tokens[i].value == sign), 0
            )
            self.check(end > start)
            self.at = end + 1
            inside = _Expression(self.tokens[start:end]).whole()
            segment = inside.kind == "symbol" and re.fullmatch("[A-Z]{2}", inside.parts[0])
            return (
                inside
                if segment
                else Tree("call", (inside,), "norm" if is_vector(inside) else "abs")
            )
        self.check(
            sign in ("angle", "triangle", "odot")
            and self.next().kind in ("run", "number", "symbol")
        )
        name = self.next().value
        self.at += 1
        if sign == "angle" and len(name) == 3:
            name = min(name, name[::-1])
        return Tree("symbol", (f"{sign} {name}",))

    def function(self, name: str) -> Tree:
        self.functions += 1
        self.check(self.functions < MAX_CHAIN)
        if name == "sqrt":
            return Tree("call", (self.argument(),), "root")
        power = base = None
        while self.next().kind in ("sup", "sub"):
            token = self.next()
            self.at += 1
            inside = _Expression(token.args[0]).whole()
            power, base = (inside, base) if token.kind == "sup" else (power, inside)
        if power == Tree("number", (Fraction(-1),)) and name in ("sin", "cos", "tan"):
            name, power = f"arc{name}", None
        arguments = self.arguments() if name in ("max", "min", "gcd", "lcm") else (self.argument(),)
        if name == "exp":
            call = Tree("power", (Tree("symbol", ("e",)), *arguments))
        else:
            call = Tree("call", (*arguments, base) if base else arguments, name)
        return Tree("power", (call, power)) if power else call

    def argument(self) -> Tree:
        """The argument of a function: a bracket, or the factors up to the next sign or function."""
        value = self.factor_in_bracket()
        if value is not None:
            return value
        value = self.signed()
        while self.starts_factor() and self.next().kind not in ("function", "series", "number"):
            if self.next().value in tokens_of.FUNCTIONS:
                break
            value = product(value, self.factor())
        return value

    def factor_in_bracket(self) -> Tree | None:
        if self.next().kind != "group" and self.next().value not in ("(", "["):
            return None
        return self.base()[0]

    def arguments(self) -> tuple[Tree, ...]:
        start, end = self.at, _closing(self.tokens, self.at)
        self.check(end > start and self.next().value in ("(", "lbrace"))
        self.at = end + 1
        parts, _ = _split(self.tokens[start + 1 : end], frozenset({","}))
        return tuple(_Expression(part).whole() for part in parts)

    def series(self, name: str) -> Tree:
        """A sum, product, integral or limit: (body, variable, low, high)."""
        low = high = Tree("nothing")
        variable = ""
        while self.next().kind in ("sub", "sup"):
            token = self.next()
            self.at += 1
            inside = token.args[0]
            if token.kind == "sub" and name != "int":
                self.check(len(inside) > 2 and inside[1].value in ("=", "to"))
                variable, inside = flat(inside[:1]), inside[2:]
            bound = _Expression(inside).whole()
            low, high = (low, bound) if token.kind == "sup" else (bound, high)
        if name != "int":
            self.check(bool(variable))
            return Tree("series", (self.term(), Tree("symbol", (variable,)), low, high), name)
        ends = [
            i
            for i in range(self.at, len(self.tokens))
            if re.fullmatch("d[a-z]", self.tokens[i].value)
        ]
        self.check(bool(ends))
        body = _Expression(self.tokens[self.at : ends[0]]).whole()
        variable = self.tokens[ends[0]].value[1]
        self.at = ends[0] + 1
        return Tree("series", (body, Tree("symbol", (variable,)), low, high), name)


def _grouped(tokens: Tokens) -> Tree:
    parts, _ = _split(tokens, frozenset({"over"}))
    trees = tuple(_Expression(part).whole() for part in parts)
    return Tree("quotient", trees) if len(trees) == 2 else trees[0]


def _accented(accent: str, tokens: Tokens) -> Tree:
    name = flat(tokens)
    if accent in ("bar", "hat") and re.fullmatch("[A-Z]{2}", name):
        name = "".join(sorted(name))
        return Tree("symbol", (name if accent == "bar" else f"arc {name}",))
    return Tree("symbol", (f"{accent} {name}",))
