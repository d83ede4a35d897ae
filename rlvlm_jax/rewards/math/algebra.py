# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""Computer algebra: are two expressions, relations or sets of solutions equal?

Part of comparing, for what `ratio` cannot decide. sympy may run for ever, so all of this belongs in
a worker. Equality is shown exactly or not at all. Trees are turned into sympy objects here and not
by a reader of LaTeX, since those have a mind of their own: latex2sympy2_extended reads I as the
imaginary unit, \Gamma as a constant and 0.25 as a float, and needs ten to a hundred milliseconds.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from rlvlm_jax.rewards.math.ratio import MAX_BITS, SAMPLES, TRIGONOMETRY, Ratio
from rlvlm_jax.rewards.math.tree import Tree, names


class Undecided(Exception):  # noqa: N818 (an outcome: the verdict is "unparsable")
    """Raised where neither equality nor difference can be shown."""


_NAMES = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "ceil": "ceiling", "max": "Max"}
_NAMES |= {f"arc{name}": f"a{name}" for name in ("cot", "sec", "csc", "sinh", "cosh", "tanh")}
_NAMES |= {"min": "Min", "floor": "floor", "factorial": "factorial", "binom": "binomial"}


def symbolic(tree: Tree, radians: bool = False) -> Any:
    """Turns an expression into a sympy object; letters are real.

    Args:
        tree: an expression.
        radians: a degree is pi/180; else its sign is dropped, as a unit left out. In the argument
            of a trigonometric function it is always pi/180.
    """
    import sympy

    kind, parts = tree.kind, tree.parts
    if kind == "number":
        return sympy.Rational(parts[0].numerator, parts[0].denominator)
    if kind == "symbol":
        known = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "infty": sympy.oo}
        return known.get(parts[0]) or sympy.Symbol(parts[0], real=True)
    if kind == "series":
        return _series(tree, radians)
    if kind == "call" and tree.mark in ("cross", "norm"):
        return sympy.Symbol(repr(tree), real=True)
    if kind not in ("sum", "product", "quotient", "power", "call"):
        raise Undecided(f"a {kind} in a formula")
    inside = [symbolic(part, radians or tree.mark in TRIGONOMETRY) for part in parts]
    minus = kind == "product" and len(inside) == 2 and inside[0] == -1
    if not minus and any(part.has(sympy.oo, sympy.nan, sympy.zoo) for part in inside):
        raise Undecided("arithmetic with infinity")
    if kind == "sum":
        return sympy.Add(*inside)
    if kind == "product":
        return sympy.Mul(*inside)
    if kind == "quotient":
        return inside[0] / inside[1]
    if kind == "power":
        return _bounded_power(*inside)
    name = tree.mark
    if name == "root":
        odd = len(inside) > 1 and inside[1].is_odd
        return _odd_root(*inside) if odd else sympy.root(inside[0], *inside[1:] or (2,))
    if name == "degree":
        return inside[0] * sympy.pi / 180 if radians else inside[0]
    if name == "abs" and inside[0].has(sympy.I) and inside[0].free_symbols:
        raise Undecided("a letter that may be complex")
    if name == "abs":
        return sympy.Abs(inside[0])
    if name in ("log", "lg"):
        return sympy.log(inside[0], inside[1] if len(inside) > 1 else 10)
    if name == "ln":
        return sympy.log(inside[0])
    if name in ("factorial", "binom") and any(
        part.is_number and abs(part) > 5000 for part in inside
    ):
        raise Undecided("a factorial too large to compute")
    if name in ("dot", "cap", "setminus"):
        return sympy.Symbol(repr(tree), real=True)
    if name in ("gcd", "lcm") and any(part.free_symbols for part in inside):
        return sympy.Symbol(repr(tree), real=True)
    if name in ("gcd", "lcm"):
        return functools.reduce(getattr(sympy, name), inside)
    return getattr(sympy, _NAMES.get(name, name))(*inside)


def _odd_root(radicand: Any, index: Any) -> Any:
    """The real root, of a negative number too."""
    import sympy

    return sympy.sign(radicand) * sympy.Abs(radicand) ** (sympy.S.One / index)


def _bounded_power(base: Any, exponent: Any) -> Any:
    if exponent.is_Rational and exponent.q % 2 and exponent.q > 1 and base.is_extended_real:
        return _odd_root(base, exponent.q) ** exponent.p
    if base.is_number and exponent.is_number and base not in (0, 1, -1) and base.is_finite:
        size = max(abs(math.log2(abs(complex(base.evalf(15))) or 1)), 1)
        if not size * abs(complex(exponent.evalf(15))) < MAX_BITS:
            raise Undecided("a power too large to compute")
    return base**exponent


def _series(tree: Tree, radians: bool) -> Any:
    import sympy

    body, variable, low, high = tree.parts
    letter = sympy.Symbol(variable.parts[0], real=True)
    index = re.compile(rf"(?<![a-z]){re.escape(variable.parts[0])}(?![a-z])")
    if any(index.search(name) and name != variable.parts[0] for name in names(body)):
        raise Undecided(f"a function of {variable.parts[0]} that is not given")
    inside = symbolic(body, radians)
    if tree.mark == "lim":
        end = symbolic(low)
        return sympy.limit(inside, letter, end, "+-" if end.is_finite else "-")
    if tree.mark == "int":
        if "nothing" in (low.kind, high.kind):
            raise Undecided("an integral without its bounds")
        return sympy.integrate(inside, (letter, symbolic(low), symbolic(high)))
    if "nothing" in (low.kind, high.kind):
        raise Undecided("a sum without bounds")
    index = sympy.Symbol(variable.parts[0], integer=True)
    make = sympy.Sum if tree.mark == "sum" else sympy.Product
    return make(inside.subs(letter, index), (index, symbolic(low), symbolic(high))).doit()


def equal_expressions(
    answer: Tree, reference: Tree, tolerance: float | None, radians: bool
) -> bool:
    """Compares two expressions: real for the same values of their letters, and equal there.

    Args:
        answer: of the response.
        reference: of the solution.
        tolerance: greatest relative difference of constants; None where both are exact.
        radians: see `symbolic`.

    Raises:
        Undecided: neither equality nor difference can be shown.
    """
    import sympy

    a, b = symbolic(answer, radians), symbolic(reference, radians)
    if a.has(sympy.nan, sympy.zoo) or b.has(sympy.nan, sympy.zoo):
        raise Undecided("a value that is not defined")
    if a == b and not a.free_symbols:
        return True
    letters = sorted(a.free_symbols | b.free_symbols, key=str)
    if not letters:
        return _equal_constants(a, b, tolerance)
    patterns = list(itertools.islice(itertools.product((1, -1), repeat=len(letters)), 16))
    if len(letters) > 4:  # all positive, all negative, one of each sign alone
        patterns = [
            [(-1) ** (i == j) for i in range(len(letters))] for j in range(len(letters) + 1)
        ]
        patterns.append([-1] * len(letters))
    real_somewhere = False
    for signs, shift in itertools.product(patterns, (0, 1, 2, 4)):
        numbers = itertools.islice(itertools.cycle(SAMPLES), shift, shift + len(letters))
        point = {x: s * sympy.Rational(n) for x, s, n in zip(letters, signs, numbers, strict=True)}
        values = [_value_at(x, point) for x in (a, b)]
        if None in values:
            continue  # a pole of one of them
        real = [value.is_real for value in values]
        complex_at_all = a.has(sympy.I) or b.has(sympy.I)
        if real[0] != real[1] and not complex_at_all:
            return False
        if real[0] or complex_at_all:
            real_somewhere = True
            if abs(values[0] - values[1]) > 1e-15 * (1 + abs(values[1])):
                return False
    if not real_somewhere:
        raise Undecided("an expression that is real nowhere")
    if sympy.simplify(a - b) == 0:
        return True
    for signs in patterns:
        positive = {x: s * sympy.Dummy(positive=True) for x, s in zip(letters, signs, strict=True)}
        difference = (a - b).subs(positive)
        if sympy.simplify(difference) != 0 and not _never_real(a.subs(positive)):
            raise Undecided(f"{a} and {b}")
    return True


def _never_real(value: Any) -> bool:
    return value.is_real is False or value.is_imaginary is True


def _value_at(x: Any, point: Mapping[Any, Any]) -> Any:
    """The value of an expression at a point, 30 digits; None where it has none."""
    value = x.subs(point).evalf(30, chop=True)
    return value if value.is_number and value.is_finite else None


def _equal_constants(a: Any, b: Any, tolerance: float | None) -> bool:
    import sympy

    if not (a.is_finite is not False and b.is_finite is not False):
        return a == b
    difference = (a - b).doit()
    if difference == 0:
        return True
    if tolerance is not None:
        return bool(abs(difference).evalf(40) <= tolerance * abs(b.evalf(40)))
    value = difference.evalf(40, chop=False)
    if value.is_number and abs(value) > sympy.Float("1e-30", 40) * abs(b.evalf(40) or 1):
        return False
    equal = sympy.simplify(difference) == 0 or difference.equals(0)
    if equal is None:
        raise Undecided(f"whether {difference} is zero")
    return bool(equal)


def same_poles(answer: Ratio, reference: Ratio) -> bool:
    """Whether two quotients that are equal elsewhere are defined for the same values."""
    import sympy

    factors = []
    for below in (answer.below, reference.below):
        terms = [
            factor.numerator
            * sympy.prod(sympy.Symbol(x, real=True) ** n for x, n in monomial)
            / factor.denominator
            for monomial, factor in below.items()
        ]
        powers = sympy.factor_list(sympy.Add(*terms))[1]
        factors.append(
            {sympy.monic(factor, *sorted(factor.free_symbols, key=str)) for factor, _ in powers}
        )
    only = factors[0] ^ factors[1]
    return all(len(x.free_symbols) == 1 and not sympy.real_roots(x) for x in only)


def number_of(tree: Tree) -> Any:
    """The value of a constant, to 30 digits; None where it is not real and finite."""
    value = symbolic(tree).evalf(30)
    return Fraction(str(value)) if value.is_real and value.is_finite else None


def equal_relations(answer: Tree, reference: Tree) -> bool:
    """Compares relations with variables: one a multiple of the other, or the same solutions.

    Raises:
        Undecided: sympy cannot solve them.
    """
    import sympy

    if len(answer.parts) == len(reference.parts) == 2 and answer.mark == reference.mark:
        a, b = (symbolic(tree.parts[1]) - symbolic(tree.parts[0]) for tree in (answer, reference))
        if not a.free_symbols or not b.free_symbols:
            raise Undecided("a relation whose letters drop out")
        quotient = sympy.simplify(a / b)
        if quotient.is_number and quotient.is_finite and quotient != 0:
            return bool(quotient > 0) or reference.mark in ("=", "ne")
        letters = a.free_symbols
        if letters != b.free_symbols or not letters:
            return False
        if len(letters) > 1:
            return reference.mark == "=" and _same_curve(a, b)
    return same_solutions(answer, reference)


def _same_curve(a: Any, b: Any) -> bool:
    """Whether two equations in several letters have the same factors and some real solution."""
    import sympy

    sides = []
    for x in (a, b):
        above, below = sympy.fraction(sympy.together(x))
        if not (above.is_polynomial() and below.is_polynomial()):
            raise Undecided(f"{x} = 0 in several letters")
        if not below.is_number and sympy.groebner([above, below]).exprs != [1]:
            raise Undecided(f"a pole of {x} where it is zero")
        factors = {sympy.monic(factor) for factor, _ in sympy.factor_list(above)[1]}
        sides.append({factor for factor in factors if not factor.is_number})
    if sides[0] != sides[1]:
        return False
    letters = sorted(a.free_symbols, key=str)
    for letter, number in itertools.product(letters, SAMPLES):
        point = {x: sympy.Rational(number) for x in letters if x != letter}
        if sympy.solveset(a.subs(point), letter, sympy.S.Reals) is not sympy.S.EmptySet:
            return True
    raise Undecided(f"whether {a} = 0 has real solutions")


def same_solutions(answer: Tree, reference: Tree) -> bool:
    """Compares intervals, unions and the real solutions of relations in one letter."""
    import sympy

    letters = [
        names(tree) - {"pi", "e", "i", "infty", "reals", "emptyset"} for tree in (answer, reference)
    ]
    if len(letters[0] | letters[1]) > 1:
        return False
    a, b = solutions(answer), solutions(reference)
    empty = a in (sympy.S.EmptySet, sympy.S.Reals)
    if empty and "relation" in (answer.kind, reference.kind) and answer != reference:
        return a == b and {answer.kind, reference.kind} != {"relation"} and a == sympy.S.Reals
    return _same_set(a, b)


def solutions(tree: Tree) -> Any:
    """The set of real numbers that an answer stands for."""
    import sympy

    if tree.kind == "symbol" and tree.parts[0] in ("reals", "emptyset"):
        return sympy.S.Reals if tree.parts[0] == "reals" else sympy.S.EmptySet
    if tree.kind == "bracket":
        low, high = (symbolic(part) for part in tree.parts)
        if not (low.is_extended_real and high.is_extended_real):
            raise Undecided("an interval with letters")
        return sympy.Interval(low, high, tree.mark[0] == "(", tree.mark[1] == ")")
    if tree.kind == "set":
        return sympy.FiniteSet(*map(symbolic, tree.parts))
    if tree.kind in ("union", "list"):
        sets = list(map(solutions, tree.parts))
        conditions = tree.mark == "," and not all(part.kind == "bracket" for part in tree.parts)
        if tree.mark == "and" or conditions:  # a comma parts conditions that can all be met
            met = sympy.Intersection(*sets)
            if conditions and met in sets:
                raise Undecided("two conditions of which one is enough")
            if tree.mark == "and" or met is not sympy.S.EmptySet:
                return met
        return sympy.Union(*sets)
    if tree.kind == "call" and tree.mark == "setminus":
        first, *others = map(solutions, tree.parts)
        return functools.reduce(sympy.Complement, others, first)
    if tree.kind != "relation":
        raise Undecided(f"a {tree.kind} is no set of numbers")
    if tree.mark == "in":
        return solutions(tree.parts[1])
    makers: dict[str, Callable[..., Any]] = {"=": sympy.Eq, "ne": sympy.Ne, "<": sympy.Lt}
    makers["le"] = sympy.Le
    terms = [symbolic(part) for part in tree.parts]
    letters = set().union(*(term.free_symbols for term in terms))
    if len(letters) != 1 or not set(tree.mark.split()) <= set(makers):
        raise Undecided("a relation of another kind, or in several letters")
    solved = sympy.S.Reals
    for sign, left, right in zip(tree.mark.split(), terms, terms[1:], strict=False):
        relation = makers[sign](left, right)
        if relation in (True, False):
            solved = solved if relation else sympy.S.EmptySet
        else:
            solved &= sympy.solveset(relation, *letters, sympy.S.Reals)
    return solved


def _same_set(a: Any, b: Any) -> bool:
    import sympy

    if a == b:
        return True
    if isinstance(a, sympy.Interval) and isinstance(b, sympy.Interval):
        open_ends = a.left_open == b.left_open and a.right_open == b.right_open
        return open_ends and all(
            _equal_constants(x, y, None) for x, y in ((a.start, b.start), (a.end, b.end))
        )
    for kind in (sympy.FiniteSet, sympy.Union):
        if isinstance(a, kind) and isinstance(b, kind):
            same = _equal_constants if kind is sympy.FiniteSet else _same_set
            more = (None,) if kind is sympy.FiniteSet else ()
            return len(a.args) == len(b.args) and all(
                any(same(x, y, *more) for y in b.args) for x in a.args
            )
    if {type(a), type(b)} & {sympy.ConditionSet, sympy.Complement, sympy.ImageSet}:
        raise Undecided("solutions that cannot be listed")
    return False
