# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Compares single values: quantities, times, words, expressions, and what is rounded."""

import re
from fractions import Fraction
from typing import Any

from rlvlm_jax.rewards.math import algebra, units
from rlvlm_jax.rewards.math.algebra import Undecided
from rlvlm_jax.rewards.math.expression import is_word, letters
from rlvlm_jax.rewards.math.ratio import (
    approximate,
    constant,
    differ,
    poles_agree,
    ratio,
    same,
)
from rlvlm_jax.rewards.math.tree import (
    NOTHING,
    Tree,
    exact,
    is_constant,
    leaves,
    names,
    negative,
    product,
    symbol,
    symbols,
    walk,
)
from rlvlm_jax.rewards.math.verdict import Judge, NeedsAlgebra

LEAST_PLACES = 2  # of an answer that may stand for an exact reference
_EXPRESSIONS = {"number", "symbol", "sum", "product", "quotient", "power", "call", "series"}


def equal_quantities(answer: Tree, reference: Tree, judge: Judge) -> bool:
    """Compares values of which one has a unit at least."""
    if "compound" in (answer.kind, reference.kind):
        return _equal_compounds(answer, reference) or judge.no("another compound")
    (value, unit), (expected, expected_unit) = (
        (tree.parts[0], tree.mark) if tree.kind == "quantity" else (tree, "")
        for tree in (answer, reference)
    )
    if "%" in (unit, expected_unit):
        return _equal_percents(value, unit, expected, expected_unit, judge)
    angle = {unit, expected_unit} <= {"°", "rad", ""} and "°" in (unit, expected_unit)
    if angle and unit != expected_unit:
        turned = [
            _radians(v) if u == "°" else v for v, u in ((value, unit), (expected, expected_unit))
        ]
        plain = value if unit != "°" else expected
        if "rad" in (unit, expected_unit) or "pi" in names(plain):
            return judge.equal(turned[0], turned[1])
    if unit != expected_unit and unit and expected_unit and not _same_noun(unit, expected_unit):
        return judge.no(f"the units differ: {unit}, not {expected_unit}")
    if unit != expected_unit and not (unit and expected_unit):
        if unit.startswith("narrowed"):
            return judge.no(f"{unit.removeprefix('narrowed ')} says more than the number")
        alone, letter = (value, expected_unit) if not unit else (expected, unit)
        if symbols(alone) and re.fullmatch(r"[A-Za-z](?:\^\d)?(?:/[A-Za-z](?:\^\d)?)?", letter):
            spelled = [_times_unit(v, u) for v, u in ((value, unit), (expected, expected_unit))]
            if symbols(spelled[0]) == symbols(spelled[1]):
                return judge.equal(spelled[0], spelled[1])
    return judge.equal(value, expected)


def _same_noun(answer_unit: str, reference_unit: str) -> bool:
    words = [unit.partition(" ")[2] for unit in (answer_unit, reference_unit)]
    counted = all(
        unit.startswith(("counted", "narrowed")) for unit in (answer_unit, reference_unit)
    )
    return words[0] == words[1] != "" or (counted and "counted" in (answer_unit, reference_unit))


def _times_unit(value: Tree, unit: str) -> Tree:
    """A value times the letters of its unit, m^2 or m/s."""
    factors = [_letter_power(name) for name in unit.split("/") if name]
    value = product(value, *factors[:1])
    return Tree("quotient", (value, factors[1])) if len(factors) > 1 else value


def _letter_power(name: str) -> Tree:
    letter, _, power = name.partition("^")
    return Tree("power", (symbol(letter), exact(int(power)))) if power else symbol(letter)


def bare(tree: Tree) -> Tree:
    """A quantity in percent or degrees as the number that it is; other values as they are."""
    if tree.kind == "quantity" and tree.mark == "%":
        return Tree("quotient", (tree.parts[0], exact(100)))
    return _radians(tree.parts[0]) if tree.kind == "quantity" and tree.mark == "°" else tree


def _radians(value: Tree) -> Tree:
    half_turn = Tree("quotient", (symbol("pi"), exact(180)))
    return product(value, half_turn)


def _equal_percents(
    value: Tree, unit: str, expected: Tree, expected_unit: str, judge: Judge
) -> bool:
    if unit and expected_unit and unit != expected_unit:
        return judge.no("a percentage has no other unit")
    if unit == expected_unit or judge.equal(value, expected):
        return judge.equal(value, expected)
    hundred = exact(100)
    if unit:
        return judge.equal(Tree("quotient", (value, hundred)), expected)
    return judge.equal(value, Tree("quotient", (expected, hundred)))


def _equal_compounds(answer: Tree, reference: Tree) -> bool:
    totals, names = [], []
    for tree in (answer, reference):
        parts = tree.parts if tree.kind == "compound" else (tree,)
        if any(part.kind != "quantity" or not units.scale(part.mark) for part in parts):
            return False
        values = [ratio(part.parts[0]) for part in parts]
        numbers = [value and constant(value) for value in values]
        if any(number is None for number in numbers):
            return False
        sizes = [units.scale(part.mark) or ("", 0) for part in parts]
        totals.append(
            (sizes[0][0], sum(n * size for n, (_, size) in zip(numbers, sizes, strict=True)))
        )
        names.append({part.mark for part in parts})
    own = names[0] <= names[1] or names[1] <= names[0]
    return totals[0] == totals[1] and (own or answer.kind == reference.kind)


def equal_literals(answer: Tree, reference: Tree, judge: Judge) -> bool:
    """Times, dates, scores, ratios and numbers to a base."""
    if answer.kind == reference.kind == "time":
        hours = [_hours(tree) for tree in (answer, reference)]
        both = answer.mark and reference.mark
        same_time = hours[0] == hours[1] if both else bool(hours[0] & hours[1])
        return same_time or judge.no("another time")
    if answer.kind == "time" and reference.kind != "time" and _ratio_terms(answer):
        answer = Tree("ratio", _ratio_terms(answer))  # no clock was asked for
    if answer.kind == "score" and reference.kind not in ("date", "time", "ratio", "base", "score"):
        answer = Tree("sum", (answer.parts[0], negative(answer.parts[1])))
        return judge.equal(answer, reference)
    terms = [_ratio_terms(tree) for tree in (answer, reference)]
    if terms[0] and terms[1] and len(terms[0]) == len(terms[1]):
        if "time" in (answer.kind, reference.kind):  # 16:25 may be a ratio, but is not reduced
            ratios = "quotient" not in (answer.kind, reference.kind)
            return ratios and judge.match(terms[0], terms[1], True)
        zero = exact(0)
        if any(judge.equal(term, zero) for term in (*terms[0], *terms[1])):
            return judge.match(terms[0], terms[1], True)
        crossed = (
            (product(g, terms[1][0]), product(w, terms[0][0]))
            for g, w in zip(terms[0][1:], terms[1][1:], strict=True)
        )
        return all(judge.equal(one, other) for one, other in crossed)
    values = [
        Tree("quotient", tree.parts) if tree.kind == "ratio" and len(tree.parts) == 2 else tree
        for tree in (answer, reference)
    ]
    if {values[0].kind, values[1].kind} & {"time", "date", "score", "ratio", "base"}:
        return judge.no(f"a {answer.kind}, not a {reference.kind}")
    return judge.equal(values[0], values[1])


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
    prose = ("word", "text")
    if answer.kind in prose and reference.kind in prose:
        lines = [_ARTICLE.sub("", tree.parts[0], count=1) for tree in (answer, reference)]
        return _fold(lines[0]) == _fold(lines[1]) or judge.no("other words")
    if answer.kind in prose or reference.kind in prose:
        return judge.no("words on one side only")
    if answer.kind == reference.kind == "run":
        answer_run, reference_run = answer.parts[0], reference.parts[0]
        if answer_run == reference_run:
            return True
        if "text" in (answer.mark, reference.mark):
            lower = (
                answer_run.lower() == reference_run.lower()
                and len(answer_run) == 3
                and is_word(answer_run)
            )
            return lower or judge.no("letters in another order or case")
        if not answer_run.isupper() and (is_word(answer_run) or is_word(reference_run)):
            return judge.no("another word")
    if "text" in (answer.mark, reference.mark):
        return judge.no("letters set as text")
    sides = [product(*letters(t.parts[0])) if t.kind == "run" else t for t in (answer, reference)]
    return equal_values(sides[0], sides[1], judge)


def _fold(line: str) -> str:
    """Lower case, but not of letters alone and of genotypes such as Rr or AABB."""

    def folded(match: re.Match[str]) -> str:
        word = match[0]
        kept = len(word) < 3 or re.fullmatch(r"(?:(\w)\1)+", word.lower())
        ordinary = word.islower() or word.istitle() or (word.isupper() and line.isupper())
        return word if (kept and word.lower() != "no") or not ordinary else word.lower()

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
    decimal = any(
        leaf.kind == "number" and leaf.mark for side in (answer, reference) for leaf in leaves(side)
    )
    tolerance = judge.rules.tolerance if decimal else None
    degrees = [any(t.mark == "degree" for t in walk(side)) for side in (answer, reference)]
    radians = any(degrees) and not all(degrees) and "pi" in names(answer) | names(reference)
    answer_ratio, reference_ratio = (None, None) if radians else (ratio(answer), ratio(reference))
    decided = same(answer_ratio, reference_ratio) if answer_ratio and reference_ratio else None
    if (
        decided
        and answer_ratio
        and reference_ratio
        and not poles_agree(answer_ratio, reference_ratio)
    ):
        if not judge.algebra:
            raise NeedsAlgebra
        decided = computed(algebra.same_poles, answer_ratio, reference_ratio)
    if (
        decided is None
        and judge.rules.rounding == "none"
        and not radians
        and differ(answer, reference, judge.rules.tolerance)
    ):
        decided = False
    if decided is None:
        if not judge.algebra:
            raise NeedsAlgebra
        decided = computed(algebra.equal_expressions, answer, reference, tolerance, radians)
    elif decided is False and tolerance is not None and answer_ratio and reference_ratio:
        numbers = [approximate(ratio) for ratio in (answer_ratio, reference_ratio)]
        if None not in numbers:
            share = Fraction(repr(tolerance))
            a, b = (Fraction(number) for number in numbers if number is not None)
            decided = bool(b) and abs(a - b) <= share * abs(b)
    return decided or _rounded(answer, reference, judge) or judge.no("another value")


def _number(tree: Tree, judge: Judge) -> Any:
    """The value of a constant as Fraction or float, None for anything else."""
    value = ratio(tree)
    if value is not None:
        return approximate(value)
    if not is_constant(tree):
        return None
    if not judge.algebra:
        raise NeedsAlgebra
    return algebra.number_of(tree)


def _rounds_to(exact: Any, decimal: Tree, least: int = 1) -> bool:
    """Whether a number, rounded to the places of a decimal, is that decimal."""
    places = len(decimal.mark.partition(".")[2]) if decimal.kind == "number" else 0
    if exact is None or places < least or decimal.kind != "number":
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
    answer_number, reference_number = _number(answer, judge), _number(reference, judge)
    if answer_number is None or reference_number is None:
        return False
    if _rounds_to(answer_number, reference):
        return True
    return judge.rules.rounding == "both" and _rounds_to(reference_number, answer, LEAST_PLACES)


def computed(compare: Any, *arguments: Any) -> bool:
    """Runs computer algebra; whatever sympy raises leaves the question undecided."""
    try:
        return bool(compare(*arguments))
    except (MemoryError, RecursionError, Undecided):
        raise
    except Exception as error:  # any of dozens of kinds, by what a model happened to write
        raise Undecided(f"sympy: {type(error).__name__}") from error
