# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reads the tokens of an answer into a typed tree.

Between `tokens` and `compare`: finds parts, relations, brackets, units and words by what parts
them, and leaves the rest to `expression`. Which trees are equal is not known here.
"""

import contextlib
import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

from rlvlm_jax.rewards.math import spans, spelling, units
from rlvlm_jax.rewards.math import tokens as lexer
from rlvlm_jax.rewards.math.expression import grouped
from rlvlm_jax.rewards.math.literals import CHOICES, choice, compound, counted, is_constant, literal
from rlvlm_jax.rewards.math.spans import closing, every, has_words, split, trim, trim_groups
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
_COMMAS = spans.LIST_WORDS | {","}
_OR = frozenset({"or", "或"})
_TURNED = {">": "<", "ge": "le"}
_MONEY = {"＄": "dollar", "€": "euro", "£": "£", "¥": "yuan", "₹": "rupee", "US": "dollar"}
_MONEY |= {"USD": "dollar", "RMB": "yuan", "EUR": "euro", "Rs": "rupee"}
_SHORT_WORDS = frozenset({"yes", "no", "true", "dne", "ray"})
_PROSE = frozenset("-'.&?!")  # signs that may stand among words
_PHRASES = {
    r"(?:there (?:is|are|exists?) |the equation has )?no (?:real )?(?:solutions?|roots?|values?)"
    r"(?: exists?)?|(?:the )?(?:empty|null) set|无解|空集|none exist": symbol("emptyset"),
    r"dne|(?:it |the limit )?does not exist|不存在": Tree("word", ("does not exist",)),
    r"(?:the set of )?(?:all )?(?:the )?real numbers|(?:any|every) real number|all reals?"
    r"|(?:全体|任意|一切)实数": REALS,
}
_BARE_UNIT = re.compile(r"\\Omega|[A-Za-z](?:/[A-Za-z])?|\\frac\{[A-Za-z]\}\{[A-Za-z]\}")
_PLAIN_NUMBER = re.compile(r"-?[0-9]{1,30}(?:\.[0-9]{1,30})?")


@functools.lru_cache(maxsize=4096)
def readings(content: str) -> tuple[Reading, ...]:
    """Reads a box's content, both ways where a comma may part thousands or answers.

    The one with thousands is first; empty content has none. Raises Unreadable.
    """
    if _PLAIN_NUMBER.fullmatch(content):  # most answers are
        return (Reading(number(content)),)
    if set(content) <= set("? .,;:"):
        return ()
    text = spelling.plain(content)
    joined = spelling.join_thousands(text)
    ways = [trim(lexer.tokens(way)) for way in dict.fromkeys((joined, text))]
    answers = tuple(_reading(way) for way in ways[:1] if way)
    with contextlib.suppress(Unreadable):  # \frac{1,234}{2} can be read in one way only
        answers += tuple(_reading(way) for way in ways[1:] if way)
    if any(_depth(reading.tree) > MAX_DEPTH for reading in answers):
        raise Unreadable(f"an expression of more than {MAX_DEPTH} levels")
    return answers


def _reading(tokens: Tokens) -> Reading:
    letter, rest = choice(tokens) or ("", tokens)
    if not rest:
        return Reading(symbol(letter))
    try:
        return Reading(_answer(rest), letter)
    except Unreadable:
        if not letter:
            raise
        return Reading(_text(rest), letter)  # the text of a choice need not be read


def _depth(tree: Tree) -> int:
    level, depth = [tree], 0
    while level:
        parts = [part for tree in level for part in tree.parts if isinstance(part, tuple)]
        rows = [(part,) if isinstance(part, Tree) else part for part in parts]  # of matrices
        level = [part for row in rows for part in row]
        depth += 1
    return depth


def _text(tokens: Tokens) -> Tree:
    return Tree("text", (flat(tokens),))


def _answers(parts: Iterable[Tokens], depth: int) -> tuple[Tree, ...]:
    return tuple(_answer(part, depth + 1) for part in parts)


def _answer(tokens: Tokens, depth: int = 0) -> Tree:
    tokens = trim(tokens)
    if depth > MAX_PARTS_DEPTH:
        raise Unreadable(f"parts in more than {MAX_PARTS_DEPTH} levels")
    parts, signs = spans.numbered(tokens), [";"]
    if len(parts) == 1:
        parts, signs = split(tokens, _ORDERED)
        parts = list(filter(trim, parts))
    words = [t.value.lower() for t in tokens if t.kind == "run"]
    mixed = units.mixed_words(words) if len(words) == len(tokens) else None
    if mixed is not None:  # one hundred and five
        return exact(mixed)
    if len(parts) > 1:
        return Tree("list", _answers(parts, depth), "to" if "to" in signs else ";")
    parts, signs = split(tokens, _COMMAS)
    parts = list(filter(trim, parts))
    if _OR & set(signs):
        cases = split(tokens, _OR)[0]
        sizes = [len(split(case, _COMMAS)[0]) for case in cases]
        if "and" in signs or min(sizes) == max(sizes) > 1:
            return Tree("list", _answers(cases, depth), "or")
    if len(parts) > 1:
        words = set(signs) - {","}
        mark = ("or" if _OR & words else "and") if words else ","
        return _joined(_answers(parts, depth), mark)
    if any(token.kind == "sign" and token.value in ("pm", "mp") for token in every(tokens)):
        both = ({"pm": "+", "mp": "-"}, {"pm": "-", "mp": "+"})
        return Tree("list", _answers((spans.signed(tokens, way) for way in both), depth), ",")
    return _single(tokens, depth)


def _joined(trees: tuple[Tree, ...], mark: str) -> Tree:
    """A list; `x > 1 and x < 2` is one relation, `1 hour and 20 minutes` one quantity."""
    if mark == "and" and len(trees) == 2:
        sizes = {units.scale(tree.mark) for tree in trees if tree.kind == "quantity"} - {None}
        if len(sizes) == 2 and len(dict(sizes)) == 1:  # two units of one scale
            return Tree("compound", trees)
        for low, high in (trees, trees[::-1]):
            related = low.kind == high.kind == "relation" and {low.mark, high.mark} <= {"<", "le"}
            if related and low.parts[1] == high.parts[0] and low.parts[1].kind == "symbol":
                return Tree("relation", (*low.parts, high.parts[1]), f"{low.mark} {high.mark}")
    return Tree("list", trees, mark)


def _single(tokens: Tokens, depth: int) -> Tree:
    """Reads an answer without separators: a relation or a value."""
    if len(tokens) == 1 and tokens[0].kind == "group":
        return _answer(tokens[0].args[0], depth + 1)
    if condition := spans.condition_at(tokens):
        return Tree("list", _answers((tokens[:condition], tokens[condition:]), depth), ",")
    parts, signs = split(tokens, lexer.RELATIONS)
    if len(tokens) == 1 and (signs or tokens[0].value in ("ldots", "checkmark", "square")):
        return Tree("word", (tokens[0].value.replace("perp", "perpendicular"),))
    if not signs:
        return _value(tokens, depth)
    try:
        terms = [_term(part, depth) if part else NOTHING for part in parts]
    except Unreadable:
        if has_words(tokens):
            return _text(tokens)
        raise
    if set(signs) <= set(_TURNED):
        terms, signs = terms[::-1], [_TURNED[sign] for sign in signs[::-1]]
    return Tree("relation", tuple(terms), " ".join(signs))


def _last_bracket(tokens: Tokens) -> int:
    """Where the bracket of a name such as `P(A)` begins that ends the tokens; else 0."""
    opening = next((i for i, token in enumerate(tokens) if token.value == "("), 0)
    return opening if closing(tokens, opening) == len(tokens) - 1 else 0


def _term(tokens: Tokens, depth: int) -> Tree:
    r"""Reads one side of a relation, which may be a name such as `P(A)` or `m\angle A`."""
    tokens = trim_groups(tokens)
    if re.match(r"m\\(?:angle|hat)", flat(tokens[:2])):
        tokens = tokens[1:]
    opening = _last_bracket(tokens)
    marks = all(t.kind in ("sub", "sup") or t.value == "'" for t in tokens[1:opening])
    letter, inside = tokens[0].value, {token.value for token in tokens[opening:]}
    factor = letter in inside or (inside & {"+", "-"} and letter in "abckmnrxz")
    if opening and marks and tokens[0].kind == "run" and len(letter) == 1 and not factor:
        return symbol(flat(tokens))
    return _value(tokens, depth, alone=False)


def _value(tokens: Tokens, depth: int, alone: bool = True) -> Tree:
    tokens = trim_groups(tokens)
    if not tokens:
        raise Unreadable("an empty part")
    for read in (_bracket, _table, literal, _ratio, _words, _quantity):
        if tree := read(tokens, depth, alone):
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
            return _text(tokens)
        raise


def _bracket(tokens: Tokens, depth: int, alone: bool) -> Tree | None:
    first, last, inside = tokens[0].value, tokens[-1].value, tokens[1:-1]
    if first not in ("(", "[", "lbrace", "langle"):
        opening = _last_bracket(tokens) if alone else 0
        name = flat(tokens[:opening])
        if not re.fullmatch(r"[A-Z](?:_\{\w+\}|')?", name):
            return None
        point = _bracket(tokens[opening:], depth, alone)
        named = point is not None and point.kind == "bracket"
        return Tree("relation", (symbol(name), point), "=") if named else None
    if closing(tokens, 0) != len(tokens) - 1:
        return None
    if first == "lbrace":
        return _set(inside, depth)
    parts = split(inside, frozenset({","}))[0]
    parts = parts if len(parts) > 1 else split(inside, _ORDERED)[0]
    if len(parts) > 1 and all(parts):
        trees = _answers(parts, depth)
        if trees == (negative(symbol("infty")), symbol("infty")):
            return REALS
        return Tree("bracket", trees, "<>" if first == "langle" else first + last)
    if first == "[" and len(parts) == 1 and inside and inside[0].kind != "table":
        return _text(tokens)
    return _answer(inside, depth + 1) if (first, last) == ("(", ")") and inside else None


def _set(inside: Tokens, depth: int) -> Tree:
    if not inside:
        return symbol("emptyset")
    bar = next((i for i, t in enumerate(inside) if t.value in ("|", ":") and i), 0)
    letter, condition = inside[0].value, inside[bar + 1 :]
    member = bar and inside[0].kind in ("run", "symbol") and inside[1].value in ("in", "|", ":")
    if member and letter in {token.value for token in condition}:
        tree = _answer(condition, depth + 1)
        if tree.kind == "relation" and tree.mark == "=" and tree.parts[0] != symbol(letter):
            return _text(inside)
        tree = tree._replace(mark="and") if tree.mark == "," else tree
        domain = _answer(inside[2:bar], depth + 1) if bar > 2 else REALS
        if domain == REALS:
            return tree
        return Tree("list", (Tree("relation", (symbol(letter), domain), "in"), tree), "and")
    if bar and letter == "(":  # a set of points
        return _text(inside)
    trees = _answers(filter(None, split(inside, _COMMAS | {";"})[0]), depth)
    listed = [part for tree in trees for part in (tree.parts if tree.kind == "list" else (tree,))]
    return Tree("set", tuple(dict.fromkeys(listed)))


def _table(tokens: Tokens, depth: int, alone: bool) -> Tree | None:
    bars = tokens[0].value == "|"
    if len(tokens) == 2 and tokens[0].value == "lbrace":
        tokens = tokens[1:]
    if len(tokens) == 3 and tokens[0].value in ("(", "[", "langle", "|"):
        tokens = tokens[1:2]
    if len(tokens) != 1 or tokens[0].kind != "table":
        return None
    name, rows = tokens[0].value, tokens[0].args
    lines = [spans.joined_row(row) for row in rows]
    related = all(any(token.value in lexer.RELATIONS for token in line) for line in lines)
    if name not in lexer.MATRICES or related:
        trees = _answers(lines, depth)
        return trees[0] if len(trees) == 1 else Tree("list", trees, "and" if related else ";")
    mark = {"vmatrix": "|", "Vmatrix": "‖"}.get(name, "|" * bars)
    return Tree("matrix", tuple(_answers(row, depth) for row in rows), mark)


def _ratio(tokens: Tokens, depth: int, alone: bool) -> Tree | None:
    parts, _ = split(tokens, frozenset({":"}))
    if len(parts) < 2 or not all(parts):
        return None
    label = _text(parts[0])
    words = has_words(parts[0]) and all(token.kind in ("run", "han") for token in parts[0])
    if len(parts) == 2 and words and not label.parts[0].isupper():
        return Tree("relation", (label, _answer(parts[1], depth + 1)), "=")
    if any(token.text for token in tokens):
        return None
    return Tree("ratio", tuple(_value(part, depth + 1, alone=False) for part in parts))


def _words(tokens: Tokens, depth: int, alone: bool) -> Tree | None:
    if any(token.kind not in ("run", "han") and token.value not in _PROSE for token in tokens):
        return None
    line = re.sub(r"(?<=[A-Za-z]{3})!$", "", flat(tokens).rstrip("."))
    for pattern, tree in _PHRASES.items():
        if re.fullmatch(pattern, line, re.IGNORECASE):
            return tree
    words = re.split(r"[ -]", line.lower())
    number = units.number_words(words)
    if number and number[1] == len(words):
        return exact(number[0])
    if len(tokens) == 1 and tokens[0].kind == "run":
        if line in lexer.SPELLED or line == "infinity" or len(line) == 1:
            return symbol(line.replace("infinity", "infty"))
        several = CHOICES.issuperset(line) and len(set(line)) == len(line)
        if (len(line) > 3 and not several) or line.lower() in _SHORT_WORDS:
            return Tree("word", (line,))
        if tokens[0].text or alone:
            return Tree("run", (line,), "text" if tokens[0].text else "")
    long = any(len(t.value) > 3 or t.value.lower() in _SHORT_WORDS or t.text for t in tokens)
    return Tree("text", (line,)) if long and not number else None  # three apples


def _quantity(tokens: Tokens, depth: int, alone: bool) -> Tree | None:
    """Reads a value with its unit, its percent sign or the noun that it counts."""
    minus = int(tokens[0].value == "-")
    start = minus + 1  # of the amount of money
    if len(tokens) > start and (currency := _MONEY.get(tokens[minus].value)):
        start += tokens[minus].kind == "run" and tokens[start].value in (*_MONEY, ".")  # US$ 5
        return _measured(tokens[:minus] + tokens[start:], currency, depth)
    called = any(token.kind == "function" or token.value in lexer.FUNCTIONS for token in tokens)
    signed = tokens[-1].value in ("%", "¢", *_MONEY) or (tokens[-1].value == "°" and not called)
    tokens, start = counted(tokens)
    letters = [i for i, token in enumerate(tokens) if not is_constant(token)]
    words = [i for i in letters if tokens[i].text or tokens[i].value == "Ω"]
    first, textual = (next(iter(places), 0) for places in (letters, words))
    for at in dict.fromkeys(((len(tokens) - 1) * signed, start or first, textual, textual - 1)):
        value, tail = tokens[:at], tokens[at:]
        if at > 0 and value[-1].value in ("/", "(", "-", "+"):
            value, tail = tokens[: at - 1], tokens[at - 1 :]
        if at > 0 and value and (tree := _with_tail(value, tail, depth, alone)):
            return tree
    return None


def _with_tail(value: Tokens, tail: Tokens, depth: int, alone: bool) -> Tree | None:
    line, words = flat(tail), [token.value for token in tail]
    if parts := compound((*value, *tail)):
        return parts
    scale = units.number_words(["1", line.lower()])
    plural = line.lower() in units.GREAT or line.endswith("s")
    if scale and scale[1] == 2 and plural:
        return Tree("product", (grouped(value), exact(scale[0])))
    unit = units.unit(line, spaced=tail[0].space or tail[0].text)
    if unit and unit not in ("'", '"'):
        runs = [token for token in every(tail) if token.kind in ("run", "symbol")]
        letters_alone = all(t.value in ("Omega", t.value[0]) and not t.text for t in runs)
        bare = bool(runs) and letters_alone and tail[0].value != "°"
        plain = bool(re.fullmatch(r"[+-]?[\d.]+", flat(value)))
        letters = bare or (line in ("hr", "ha", "mg") and not tail[0].text)  # as in \pi hr
        if (letters and not plain) or (bare and not (alone and _BARE_UNIT.fullmatch(line))):
            return None
        return _measured(value, unit, depth)
    if len(line) < 4 and not (tail[0].space or tail[0].text):
        return None  # a product such as 5xyz
    rate = words.index("per") if "per" in words else len(words)  # words per minute
    per = units.unit(flat(tail[rate + 1 :]), spaced=True)
    if any(t.kind not in ("run", "han") for t in tail[:rate]) or (rate < len(words) and not per):
        return None
    noun = units.noun(words[:rate], single=flat(value) == "1" and not per) if rate else ""
    name = f"{noun}/{per}" if per else noun
    return None if noun is None else _measured(value, name, depth)


def _measured(value: Tokens, unit: str, depth: int) -> Tree | None:
    """A quantity; None where what is left is no value."""
    try:
        tree = _answer(value, depth + 1)
    except Unreadable:
        return None
    if tree.kind == "quantity" and tree.mark.startswith("/"):
        return Tree("quantity", tree.parts, unit + tree.mark)  # $4 per hour
    nested = ("text", "word", "relation", "quantity", "compound", "time", "date")
    summed = unit == "%" and tree.kind in ("sum", "score")
    return None if tree.kind in nested or summed else Tree("quantity", (tree,), unit)
