# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""Computer algebra: are two expressions, relations or sets of solutions equal?

Part of comparing, for what `ratio` cannot decide; only `Judge.computed` imports it. sympy may run
for ever, so all of this belongs in a worker. Equality is shown exactly or not at all. Trees are
turned into sympy objects here and not by a reader of LaTeX, since those have a mind of their own:
latex2sympy2_extended reads I as the imaginary unit, \Gamma as a constant and 0.25 as a float, and
needs ten to a hundred milliseconds.
"""

import functools
import itertools
import math
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import sympy
from sympy import S

from rlvlm_jax.rewards.math.ratio import MAX_BITS, SAMPLES, Ratio, sample
from rlvlm_jax.rewards.math.tree import Tree, in_radians, names, symbols
from rlvlm_jax.rewards.math.verdict import Undecided


def _power(base: Any, exponent: Any) -> Any:
    """A power: of a negative number too, where the exponent's denominator is odd."""
    if exponent.is_Rational and exponent.q % 2 and exponent.q > 1 and base.is_extended_real:
        return (sympy.sign(base) * sympy.Abs(base) ** (S.One / exponent.q)) ** exponent.p
    if base.is_number and exponent.is_number and base not in (0, 1, -1) and base.is_finite:
        size = max(abs(math.log2(abs(complex(base.evalf(15))) or 1)), 1)
        if not size * abs(complex(exponent.evalf(15))) < MAX_BITS:
            raise Undecided("a power too large to compute")
    return base**exponent


def _root(radicand: Any, index: Any = 2) -> Any:
    return _power(radicand, S.One / index)


def _logarithm(x: Any, base: Any = 10) -> Any:
    return sympy.log(x, base)


_CONSTANTS = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "infty": sympy.oo}
_OPERATIONS: dict[str, Callable[..., Any]] = {"sum": sympy.Add, "product": sympy.Mul}
_OPERATIONS |= {"quotient": operator.truediv, "power": _power, "root": _root, "abs": sympy.Abs}
_OPERATIONS |= {"log": _logarithm, "lg": _logarithm, "ln": sympy.log, "degree": lambda x: x}
_OPERATIONS |= {"max": sympy.Max, "min": sympy.Min, "ceil": sympy.ceiling, "binom": sympy.binomial}
_OPERATIONS |= {"gcd": lambda *n: sympy.gcd(n), "lcm": lambda *n: sympy.lcm(n)}


def symbolic(tree: Tree) -> Any:
    """Turns an expression into a sympy object; letters are real.

    A degree in the argument of a trigonometric function is pi/180; else its sign is dropped, as a
    unit left out.
    """
    return _symbolic(in_radians(tree))


def _symbolic(tree: Tree) -> Any:
    kind, parts = tree.kind, tree.parts
    name = tree.mark if kind == "call" else kind
    if kind == "number":
        return sympy.Rational(parts[0])
    if kind == "symbol":
        return _CONSTANTS.get(parts[0]) or sympy.Symbol(parts[0], real=True)
    if kind == "series":
        return _series(tree)
    if kind not in ("sum", "product", "quotient", "power", "call"):
        raise Undecided(f"a {kind} in a formula")
    unknown = ("cross", "norm", "dot", "cap", "setminus")
    if name in unknown or (name in ("gcd", "lcm") and symbols(tree)):
        return sympy.Symbol(repr(tree), real=True)
    inside = [_symbolic(part) for part in parts]
    minus = kind == "product" and len(inside) == 2 and inside[0] == -1
    if not minus and any(part.has(sympy.oo, sympy.nan, sympy.zoo) for part in inside):
        raise Undecided("arithmetic with infinity")
    if name == "abs" and inside[0].has(sympy.I) and inside[0].free_symbols:
        raise Undecided("a letter that may be complex")
    large = any(part.is_number and abs(part) > 5000 for part in inside)
    if name in ("factorial", "binom") and large:
        raise Undecided("a factorial too large to compute")
    operation = _OPERATIONS.get(name) or getattr(sympy, name.replace("arc", "a"))
    return operation(*inside)


def _series(tree: Tree) -> Any:
    body, variable, low, high = tree.parts
    name = variable.parts[0]
    index = re.compile(rf"(?<![a-z]){re.escape(name)}(?![a-z])")
    if any(index.search(other) and other != name for other in names(body)):
        raise Undecided(f"a function of {name} that is not given")
    letter = sympy.Symbol(name, real=True)
    inside = _symbolic(body)
    if tree.mark == "lim":
        end = _symbolic(low)
        return sympy.limit(inside, letter, end, "+-" if end.is_finite else "-")
    if "nothing" in (low.kind, high.kind):
        raise Undecided("an integral or a sum without bounds")
    low, high = _symbolic(low), _symbolic(high)
    if tree.mark == "int":
        return sympy.integrate(inside, (letter, low, high))
    whole = sympy.Symbol(name, integer=True)
    make = sympy.Sum if tree.mark == "sum" else sympy.Product
    return make(inside.subs(letter, whole), (whole, low, high)).doit()


def equal_expressions(answer: Tree, reference: Tree, tolerance: float | None) -> bool:
    """Compares two expressions: real for the same values of their letters, and equal there.

    Args:
        answer: of the response.
        reference: of the solution.
        tolerance: greatest relative difference of constants; None where both are exact.

    Raises:
        Undecided: neither equality nor difference can be shown.
    """
    a, b = symbolic(answer), symbolic(reference)
    if a.has(sympy.nan, sympy.zoo) or b.has(sympy.nan, sympy.zoo):
        raise Undecided("a value that is not defined")
    letters = sorted(a.free_symbols | b.free_symbols, key=str)
    if not letters:
        return a == b or _equal_constants(a, b, tolerance)
    count = len(letters)
    patterns = list(itertools.islice(itertools.product((1, -1), repeat=count), 16))
    if count > 4:  # all positive, all negative, one of each sign alone
        patterns = [tuple((-1) ** (i == j) for i in range(count)) for j in range(count + 1)]
        patterns.append((-1,) * count)
    has_i = a.has(sympy.I) or b.has(sympy.I)
    real_somewhere = False
    for signs, shift in itertools.product(patterns, (0, 1, 2, 4)):
        point = sample(letters, signs, shift)
        values = [_value_at(x, point) for x in (a, b)]
        if None in values:
            continue  # a pole of one of them
        real = [value.is_real for value in values]
        if real[0] != real[1] and not has_i:
            return False
        if real[0] or has_i:
            real_somewhere = True
            if abs(values[0] - values[1]) > 1e-15 * (1 + abs(values[1])):
                return False
    if not real_somewhere:
        raise Undecided("an expression that is real nowhere")
    if sympy.simplify(a - b) == 0:
        return True
    for signs in patterns:
        positive = {x: s * sympy.Dummy(positive=True) for x, s in zip(letters, signs, strict=True)}
        here = a.subs(positive)
        never_real = here.is_real is False or here.is_imaginary is True
        if sympy.simplify((a - b).subs(positive)) != 0 and not never_real:
            raise Undecided(f"{a} and {b}")
    return True


def _value_at(x: Any, point: Mapping[Any, Any]) -> Any:
    """The value of an expression at a point, 30 digits; None where it has none."""
    value = x.subs(point).evalf(30, chop=True)
    return value if value.is_number and value.is_finite else None


def _equal_constants(a: Any, b: Any, tolerance: float | None = None) -> bool:
    if a.is_finite is False or b.is_finite is False:
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
    factors = []
    for below in (answer.below, reference.below):
        terms = [
            sympy.Rational(factor) * sympy.prod(sympy.Symbol(x, real=True) ** n for x, n in powers)
            for powers, factor in below.items()
        ]
        powers = sympy.factor_list(sympy.Add(*terms))[1]
        factors.append({sympy.monic(x, *sorted(x.free_symbols, key=str)) for x, _ in powers})
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
    if len(answer.parts) == len(reference.parts) == 2 and answer.mark == reference.mark:
        a, b = (symbolic(tree.parts[1]) - symbolic(tree.parts[0]) for tree in (answer, reference))
        if not a.free_symbols or not b.free_symbols:
            raise Undecided("a relation whose letters drop out")
        quotient = sympy.simplify(a / b)
        if quotient.is_number and quotient.is_finite and quotient != 0:
            return bool(quotient > 0) or reference.mark in ("=", "ne")
        if a.free_symbols != b.free_symbols:
            return False
        if len(a.free_symbols) > 1:
            return reference.mark == "=" and _same_curve(a, b)
    return same_solutions(answer, reference)


def _same_curve(a: Any, b: Any) -> bool:
    """Whether two equations in several letters have the same factors and some real solution."""
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
        point = {x: number for x in letters if x != letter}
        if sympy.solveset(a.subs(point), letter, S.Reals) is not S.EmptySet:
            return True
    raise Undecided(f"whether {a} = 0 has real solutions")


_SETS = {"reals": S.Reals, "emptyset": S.EmptySet}
_RELATIONS = {"=": sympy.Eq, "ne": sympy.Ne, "<": sympy.Lt, "le": sympy.Le}


def same_solutions(answer: Tree, reference: Tree) -> bool:
    """Compares intervals, unions and the real solutions of relations in one letter."""
    if len((symbols(answer) | symbols(reference)) - set(_SETS)) > 1:
        return False
    a, b = solutions(answer), solutions(reference)
    kinds = {answer.kind, reference.kind}
    if a in _SETS.values() and "relation" in kinds and answer != reference:
        return a == b == S.Reals and kinds != {"relation"}
    return _same_set(a, b)


def solutions(tree: Tree) -> Any:
    """The set of real numbers that an answer stands for."""
    if tree.kind == "symbol" and tree.parts[0] in _SETS:
        return _SETS[tree.parts[0]]
    if tree.kind == "bracket":
        low, high = map(symbolic, tree.parts)
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
            if tree.mark == "and" or met is not S.EmptySet:
                return met
        return sympy.Union(*sets)
    if tree.kind == "call" and tree.mark == "setminus":
        return functools.reduce(sympy.Complement, map(solutions, tree.parts))
    if tree.kind != "relation":
        raise Undecided(f"a {tree.kind} is no set of numbers")
    if tree.mark == "in":
        return solutions(tree.parts[1])
    signs, terms = tree.mark.split(), list(map(symbolic, tree.parts))
    letters = set().union(*(term.free_symbols for term in terms))
    if len(letters) != 1 or not set(signs) <= set(_RELATIONS):
        raise Undecided("a relation of another kind, or in several letters")
    solved = S.Reals
    for sign, left, right in zip(signs, terms, terms[1:], strict=False):
        relation = _RELATIONS[sign](left, right)
        if relation in (True, False):
            solved = solved if relation else S.EmptySet
        else:
            solved &= sympy.solveset(relation, *letters, S.Reals)
    return solved


def _same_set(a: Any, b: Any) -> bool:
    if a == b:
        return True
    if isinstance(a, sympy.Interval) and isinstance(b, sympy.Interval):
        ends = zip(a.args[:2], b.args[:2], strict=True)
        return a.args[2:] == b.args[2:] and all(_equal_constants(*pair) for pair in ends)
    for kind, same in ((sympy.FiniteSet, _equal_constants), (sympy.Union, _same_set)):
        if isinstance(a, kind) and isinstance(b, kind):
            return len(a.args) == len(b.args) and all(
                any(same(x, y) for y in b.args) for x in a.args
            )
    if {type(a), type(b)} & {sympy.ConditionSet, sympy.Complement, sympy.ImageSet}:
        raise Undecided("solutions that cannot be listed")
    return False
