# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Compares single values: quantities, times, words, expressions, and what is rounded."""

import re
from fractions import Fraction
from typing import Any

from rlvlm_jax.rewards.math import units
from rlvlm_jax.rewards.math.expression import is_word, letters
from rlvlm_jax.rewards.math.ratio import UNKNOWN, constant, differ, has_poles, ratio, real, same
from rlvlm_jax.rewards.math.tree import (
    NOTHING,
    Tree,
    exact,
    in_radians,
    is_constant,
    names,
    negative,
    product,
    radians,
    symbol,
    symbols,
    walk,
)
from rlvlm_jax.rewards.math.verdict import Judge

LEAST_PLACES = 2  # of an answer that may stand for an exact reference
_EXPRESSIONS = {"number", "symbol", "sum", "product", "quotient", "power", "call", "series"}
_LETTER_UNIT = re.compile(r"[A-Za-z](?:\^\d)?(?:/[A-Za-z](?:\^\d)?)?")


def equal_quantities(answer: Tree, reference: Tree, judge: Judge) -> bool:
    """Compares values of which one has a unit at least."""
    if "compound" in (answer.kind, reference.kind):
        return _equal_compounds(answer, reference) or judge.no("another compound")
    (value, unit), (expected, expected_unit) = (
        (tree.parts[0], tree.mark) if tree.kind == "quantity" else (tree, "")
        for tree in (answer, reference)
    )
    marks = {unit, expected_unit}
    if unit == expected_unit:
        return judge.equal(value, expected)
    if "%" in marks:
        if "" not in marks:
            return judge.no("a percentage has no other unit")
        return judge.equal(value, expected) or judge.equal(bare(answer), bare(reference))
    plain = value if unit != "°" else expected
    if marks == {"°", "rad"} or (marks == {"°", ""} and "pi" in names(plain)):
        return judge.equal(bare(answer), bare(reference))
    if "" not in marks:
        if not _same_noun(unit, expected_unit):
            return judge.no(f"the units differ: {unit}, not {expected_unit}")
    elif unit.startswith("narrowed"):
        return judge.no(f"{unit.removeprefix('narrowed ')} says more than the number")
    elif _LETTER_UNIT.fullmatch(unit or expected_unit) and symbols(expected if unit else value):
        spelled = _times_unit(value, unit), _times_unit(expected, expected_unit)
        if symbols(spelled[0]) == symbols(spelled[1]):
            return judge.equal(*spelled)
    return judge.equal(value, expected)


def _same_noun(*two_units: str) -> bool:
    """Whether the same things are counted; any are, where a side only says that they are."""
    kinds, words = zip(*(unit.partition(" ")[::2] for unit in two_units), strict=True)
    any_counted = set(kinds) <= {"counted", "narrowed"} and "counted" in two_units
    return any_counted or words[0] == words[1] != ""


def _times_unit(value: Tree, unit: str) -> Tree:
    """A value times the letters of its unit, m^2 or m/s."""
    if not unit:
        return value
    factors = []
    for factor in unit.split("/"):
        letter, _, power = factor.partition("^")
        base = symbol(letter)
        factors.append(Tree("power", (base, exact(int(power)))) if power else base)
    value = product(value, factors[0])
    return Tree("quotient", (value, factors[1])) if factors[1:] else value


def bare(tree: Tree) -> Tree:
    """A percentage or an angle as the number that it is; other values as they are."""
    if tree.kind != "quantity" or tree.mark not in ("%", "°", "rad"):
        return tree
    value = tree.parts[0]
    if tree.mark == "%":
        return Tree("quotient", (value, exact(100)))
    return radians(value) if tree.mark == "°" else value


def _equal_compounds(answer: Tree, reference: Tree) -> bool:
    totals, names = [], []
    for tree in (answer, reference):
        parts = tree.parts if tree.kind == "compound" else (tree,)
        sizes = [units.scale(part.mark) for part in parts if part.kind == "quantity"]
        if len(sizes) < len(parts) or None in sizes:
            return False
        values = [ratio(part.parts[0]) for part in parts]
        numbers = [value and constant(value) for value in values]
        if None in numbers:
            return False
        total = sum(n * size for n, (_, size) in zip(numbers, sizes, strict=True))
        totals.append((sizes[0][0], total))
        names.append({part.mark for part in parts})
    own = names[0] <= names[1] or names[1] <= names[0]
    return totals[0] == totals[1] and (own or answer.kind == reference.kind)


def equal_literals(answer: Tree, reference: Tree, judge: Judge) -> bool:
    """Times, dates, scores, ratios and numbers to a base."""
    kinds = {answer.kind, reference.kind}
    if kinds == {"time"}:
        hours = [_hours(tree) for tree in (answer, reference)]
        both = answer.mark and reference.mark
        same_time = hours[0] == hours[1] if both else bool(hours[0] & hours[1])
        return same_time or judge.no("another time")
    if answer.kind == "score" and reference.kind not in ("date", "time", "ratio", "base", "score"):
        return judge.equal(Tree("sum", (answer.parts[0], negative(answer.parts[1]))), reference)
    if answer.kind == "time" and _ratio_terms(answer):  # no clock was asked for
        answer = Tree("ratio", _ratio_terms(answer))
    terms, expected = _ratio_terms(answer), _ratio_terms(reference)
    if terms and len(terms) == len(expected):
        clock = reference.kind == "time"  # 16:25 may be a ratio, but is not reduced
        if clock and answer.kind == "quotient":
            return False
        if clock or any(judge.equal(term, exact(0)) for term in (*terms, *expected)):
            return judge.match(terms, expected, True)
        return all(
            judge.equal(product(a, expected[0]), product(b, terms[0]))
            for a, b in zip(terms[1:], expected[1:], strict=True)
        )
    quotients = [
        Tree("quotient", tree.parts) if tree.kind == "ratio" and len(tree.parts) == 2 else tree
        for tree in (answer, reference)
    ]
    if {tree.kind for tree in quotients} & {"time", "date", "score", "ratio", "base"}:
        return judge.no(f"a {answer.kind}, not a {reference.kind}")
    return judge.equal(*quotients)


def _ratio_terms(tree: Tree) -> tuple[Tree, ...]:
    if tree.kind == "time" and not tree.mark and tree.parts[1] > 9:
        return tuple(exact(n) for n in tree.parts[:2])
    return tree.parts if tree.kind in ("ratio", "quotient") else ()


def _hours(time: Tree) -> set[tuple[int, ...]]:
    """The times that may be meant: as written, and of a.m. and p.m. on a clock of 24 hours."""
    hour, *rest = time.parts
    turned = {(hour % 12 + 12 * (time.mark == "p"), *rest)} if time.mark else set()
    return {time.parts} | turned


_ARTICLE = re.compile(r"(?:an?|the) (?=[a-z-]{3})", re.IGNORECASE)


def equal_words(answer: Tree, reference: Tree, judge: Judge) -> bool:
    """Compares words, sentences and runs of letters."""
    sides = answer, reference
    prose = [side.parts[0] for side in sides if side.kind in ("word", "text")]
    if len(prose) == 2:
        lines = [_fold(_ARTICLE.sub("", line, count=1)) for line in prose]
        return lines[0] == lines[1] or judge.no("other words")
    if prose:
        return judge.no("words on one side only")
    runs = [side.parts[0] for side in sides if side.kind == "run"]
    if len(runs) == 2 and runs[0] == runs[1]:
        return True
    word = len(runs) == 2 and any(map(is_word, runs))
    if "text" in (answer.mark, reference.mark):
        same_word = word and len(runs[0]) == 3 and runs[0].lower() == runs[1].lower()
        return same_word or judge.no("letters set as text, in another order or case")
    if word and not runs[0].isupper():
        return judge.no("another word")
    sides = (product(*letters(t.parts[0])) if t.kind == "run" else t for t in sides)
    return equal_values(*sides, judge)


def _fold(line: str) -> str:
    """Lower case, but not of letters alone and of genotypes such as Rr or AABB."""

    def folded(match: re.Match[str]) -> str:
        word = match[0]
        short = len(word) < 3 and word.lower() != "no"
        ordinary = word.islower() or word.istitle() or (word.isupper() and line.isupper())
        genotype = re.fullmatch(r"(?:(\w)\1)+", word.lower())
        return word if short or genotype or not ordinary else word.lower()

    return re.sub("[A-Za-z]+", folded, line)


def _is_expression(tree: Tree) -> bool:
    return tree.kind in _EXPRESSIONS and all(
        tree.kind in ("number", "symbol") or _is_expression(part) or part == NOTHING
        for part in tree.parts
    )


def equal_values(answer: Tree, reference: Tree, judge: Judge) -> bool:
    """Compares expressions: in normal form, by a difference in floats, or by computer algebra."""
    if not (_is_expression(answer) and _is_expression(reference)):
        return judge.no(f"a {answer.kind}, not a {reference.kind}")
    if answer == reference:
        return True
    sides = answer, reference
    decimal = any(part.kind == "number" and part.mark for side in sides for part in walk(side))
    tolerance = judge.rules.tolerance if decimal else None
    degrees = {any(part.mark == "degree" for part in walk(side)) for side in sides}
    if True in degrees:
        turned = len(degrees) > 1 and "pi" in names(answer) | names(reference)
        sides = tuple(in_radians(side, turned) for side in sides)
    exact = judge.rules.rounding == "none" or any(map(symbols, sides))  # only constants are rounded
    ratios = [ratio(side) for side in sides]
    decided = None if None in ratios else same(*ratios)
    if decided and any(map(has_poles, ratios)):
        decided = judge.computed("same_poles", *ratios)
    elif decided is None and exact and differ(*sides, judge.rules.tolerance):
        decided = False
    elif decided is None:
        decided = judge.computed("equal_expressions", *sides, tolerance)
    elif not decided and decimal:
        numbers = [_number(side, judge) for side in sides]
        if None not in numbers:
            a, b = map(Fraction, numbers)
            decided = abs(a - b) <= Fraction(repr(tolerance)) * abs(b)
    return decided or _rounded(*sides, judge) or judge.no("another value")


def _number(tree: Tree, judge: Judge) -> Any:
    """The value of a constant as Fraction or float, None for anything else."""
    normal = ratio(tree)
    value = normal and constant(normal)
    if value is not None or not is_constant(tree):
        return value
    if normal:
        try:
            return real(tree)
        except UNKNOWN:
            pass
    return judge.computed("number_of", tree)


def _rounds_to(exact: Any, decimal: Tree, least: int = 1) -> bool:
    """Whether a number, rounded to the places of a decimal, is that decimal."""
    places = len(decimal.mark.partition(".")[2])
    if exact is None or decimal.kind != "number" or places < least:
        return False
    return abs(Fraction(exact) - decimal.parts[0]) <= Fraction(1, 2 * 10**places)


def is_estimate(value: Tree, estimate: Tree, judge: Judge) -> bool:
    """Whether the right side of an approximate equality is the left side, rounded."""
    value, estimate = (t.parts[0] if t.kind == "quantity" else t for t in (value, estimate))
    return _rounds_to(_number(value, judge), estimate, least=0)


def _rounded(answer: Tree, reference: Tree, judge: Judge) -> bool:
    """Whether one value is the other, rounded, as far as the rules allow."""
    if judge.rules.rounding == "none":
        return False
    numbers = [_number(side, judge) for side in (answer, reference)]
    if None in numbers:
        return False
    both = judge.rules.rounding == "both"
    return _rounds_to(numbers[0], reference) or (
        both and _rounds_to(numbers[1], answer, LEAST_PLACES)
    )
