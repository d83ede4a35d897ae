# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Decides whether two expressions, equations or solution sets are equal, exactly or not at all.

Third step of the strict judge, called by `compare` for what is no word, unit or list. `Ratio` is a
normal form of rational expressions in letters, pi, i and square roots: two are equal where their
difference is zero, and the answer comes at once. The rest goes to sympy, which may run for ever, in
a worker only. Trees are turned into sympy objects here and not by a LaTeX reader, since those have
a mind of their own: latex2sympy2_extended reads I as the imaginary unit, \\Gamma as a constant and
0.25 as a float, and takes ten to a hundred milliseconds for a formula.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from rlvlm_jax.rewards.math.parse import Tree

MAX_BITS = 20_000  # of an exact number
MAX_TERMS = 300  # of a polynomial
MAX_POWER = 40  # of a polynomial
MAX_RADICAND = 10**10


class NeedsAlgebra(Exception):  # noqa: N818 (no error: it sends an item to the workers)
    """Raised by the quick comparison where only computer algebra can decide."""


class Undecided(Exception):  # noqa: N818 (an outcome: the verdict is "unparsable")
    """Raised where neither equality nor difference can be shown."""


# --------------------------------------------------------------------------------------------------
# A normal form of rational expressions
# --------------------------------------------------------------------------------------------------

Monomial = tuple[tuple[str, int], ...]  # sorted; square roots as "√2", which are independent
Polynomial = Mapping[Monomial, Fraction]


class Ratio(NamedTuple):
    """A quotient of two polynomials, not reduced."""

    above: Polynomial
    below: Polynomial


_ONE: Polynomial = {(): Fraction(1)}


@functools.lru_cache(maxsize=4096)
def ratio(tree: Tree, degrees: Fraction | None = None) -> Ratio | None:
    """Brings an expression to its normal form; None where it has functions, or is too large.

    Args:
        tree: an expression.
        degrees: what a degree stands for; None drops the sign, as a unit left out.
    """
    try:
        return _ratio(tree)
    except _TooHardError:
        return None


class _TooHardError(Exception):
    pass


def _ratio(tree: Tree) -> Ratio:
    kind, parts = tree.kind, tree.parts
    if kind == "number":
        return Ratio({(): parts[0]} if parts[0] else {}, _ONE)
    if kind == "symbol":
        if parts[0] in ("infty", "emptyset", "reals"):
            raise _TooHardError
        return Ratio({((parts[0], 1),): Fraction(1)}, _ONE)
    if kind == "sum":
        return functools.reduce(_plus, map(_ratio, parts))
    if kind == "product":
        return functools.reduce(_times, map(_ratio, parts))
    if kind == "quotient":
        return _over(_ratio(parts[0]), _ratio(parts[1]))
    if kind == "power":
        return _power(_ratio(parts[0]), _ratio(parts[1]))
    if kind == "call" and tree.mark == "degree":
        return _ratio(parts[0])
    if kind == "call" and tree.mark == "factorial":
        n = constant(_ratio(parts[0]))
        if n is not None and n.denominator == 1 and 0 <= n <= 500:
            return Ratio({(): Fraction(math.factorial(int(n)))}, _ONE)
    if kind == "call" and tree.mark == "binom":
        both = [constant(_ratio(part)) for part in parts]
        if all(n is not None and n.denominator == 1 and 0 <= n <= 500 for n in both):
            return Ratio({(): Fraction(math.comb(*map(int, both)))}, _ONE)  # type: ignore[arg-type]
    if kind == "call" and tree.mark == "root":
        index = constant(_ratio(parts[1])) if len(parts) > 1 else Fraction(2)
        return _root(constant(_ratio(parts[0])), index)
    if kind == "call" and tree.mark == "abs":
        value = constant(_ratio(parts[0]))
        if value is not None:
            return Ratio({(): abs(value)}, _ONE) if value else Ratio({}, _ONE)
    raise _TooHardError


def constant(value: Ratio) -> Fraction | None:
    """The value of a rational constant, None for the rest."""
    if set(value.above) <= {()} and set(value.below) == {()}:
        return value.above.get((), Fraction(0)) / value.below[()]
    return None


def _plus(a: Ratio, b: Ratio) -> Ratio:
    if a.below == b.below:
        return Ratio(_add(a.above, b.above), a.below)
    above = _add(_multiply(a.above, b.below), _multiply(b.above, a.below))
    return Ratio(above, _multiply(a.below, b.below))


def _times(a: Ratio, b: Ratio) -> Ratio:
    return Ratio(_multiply(a.above, b.above), _multiply(a.below, b.below))


def _over(a: Ratio, b: Ratio) -> Ratio:
    if not b.above:
        raise _TooHardError  # no number
    return Ratio(_multiply(a.above, b.below), _multiply(a.below, b.above))


def _power(base: Ratio, exponent: Ratio) -> Ratio:
    n = constant(exponent)
    value = constant(base)
    if n is None:
        raise _TooHardError
    if n.denominator != 1:
        if n.denominator > 10 or abs(n.numerator) > 10:
            raise _TooHardError
        root = _root(value, Fraction(n.denominator))
        return _power(root, Ratio({(): Fraction(n.numerator)}, _ONE))
    if value is not None:
        size = max(value.numerator.bit_length(), value.denominator.bit_length())
        if size * abs(n) > MAX_BITS or (value == 0 and n <= 0):
            raise _TooHardError
        return Ratio({(): value**n} if value else {}, _ONE)
    if abs(n) > MAX_POWER or not base.above:
        raise _TooHardError
    factor = base if n >= 0 else Ratio(base.below, base.above)
    return functools.reduce(_times, [factor] * abs(int(n)), Ratio(_ONE, _ONE))


def _root(value: Fraction | None, index: Fraction | None) -> Ratio:
    if (
        value is None
        or index is None
        or index.denominator != 1
        or not 2 <= index <= 10
        or value < 0
    ):
        raise _TooHardError
    n = int(index)
    above, below = (_exact_root(part, n) for part in (value.numerator, value.denominator))
    if above is not None and below is not None:
        return Ratio({(): Fraction(above, below)} if above else {}, _ONE)
    radicand = value.numerator * value.denominator
    if n != 2 or radicand > MAX_RADICAND:
        raise _TooHardError
    outside, primes, divisor = 1, [], 2
    while divisor * divisor <= radicand:
        while radicand % (divisor * divisor) == 0:
            radicand //= divisor * divisor
            outside *= divisor
        if radicand % divisor == 0:
            primes.append(divisor)
            radicand //= divisor
        divisor += 1
    primes += [radicand] if radicand > 1 else []
    monomial = tuple(sorted((f"√{prime}", 1) for prime in primes))
    return Ratio({monomial: Fraction(outside, value.denominator)}, _ONE)


def _exact_root(n: int, index: int) -> int | None:
    if n.bit_length() > 4096:
        raise _TooHardError
    low, high = 0, 1 << (n.bit_length() // index + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**index <= n else (low, middle - 1)
    return low if low**index == n else None


def _add(a: Polynomial, b: Polynomial) -> Polynomial:
    total = dict(a)
    for monomial, factor in b.items():
        total[monomial] = total.get(monomial, Fraction(0)) + factor
        if not total[monomial]:
            del total[monomial]
    return total


def _multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    if len(a) * len(b) > MAX_TERMS:
        raise _TooHardError
    if b == _ONE or a == _ONE:
        return a if b == _ONE else b
    total: dict[Monomial, Fraction] = {}
    for (one, m), (other, n) in itertools.product(a.items(), b.items()):
        powers = dict(one)
        factor = m * n
        for name, power in other:
            powers[name] = powers.get(name, 0) + power
            if name[0] == "√" and powers[name] == 2:
                factor *= int(name[1:])
                del powers[name]
            elif name == "i" and powers[name] > 1:
                factor, powers[name] = -factor, powers[name] - 2
                if not powers[name]:
                    del powers[name]
        monomial = tuple(sorted(powers.items()))
        total[monomial] = total.get(monomial, Fraction(0)) + factor
    return {monomial: factor for monomial, factor in total.items() if factor}


def same(a: Ratio, b: Ratio) -> bool | None:
    """Whether two normal forms are equal; None where they are too large to tell."""
    try:
        return _multiply(a.above, b.below) == _multiply(b.above, a.below)
    except _TooHardError:
        return None


def approximate(value: Ratio) -> float | Fraction | None:
    """The value of a real constant: exact where it is rational; None where it has letters."""
    exact = constant(value)
    if exact is not None:
        return exact
    both = []
    for polynomial in value:
        total = 0.0
        for monomial, factor in polynomial.items():
            if not 1e-100 < abs(factor) < 1e100:
                return None
            term = float(factor)
            for name, power in monomial:
                if name not in _CONSTANTS and name[0] != "√":
                    return None
                root = math.sqrt(int(name[1:])) if name[0] == "√" else _CONSTANTS[name]
                term *= root**power
            total += term
        both.append(total)
    return both[0] / both[1] if both[1] else None


_CONSTANTS = {"pi": math.pi, "e": math.e}


def proportional(a: Ratio, b: Ratio) -> Fraction | None:
    """The number that makes a polynomial out of another one; None where there is none.

    For polynomials alone: None too where a letter stands below.
    """
    if set(a.below) != {()} or set(b.below) != {()} or set(a.above) != set(b.above) or not a.above:
        return None
    quotients = {a.above[monomial] / b.above[monomial] for monomial in a.above}
    quotient = quotients.pop()
    return None if quotients else quotient * b.below[()] / a.below[()]


def is_linear(value: Ratio) -> bool:
    """Whether it is a polynomial of the first degree in its letters, with rational factors."""
    names = {name for monomial in value.above for name, _ in monomial}
    plain = not any(name in _CONSTANTS or name[0] == "√" or name == "i" for name in names)
    degree = all(sum(power for _, power in monomial) < 2 for monomial in value.above)
    return plain and degree and set(value.below) == {()} and bool(names)


# --------------------------------------------------------------------------------------------------
# What needs computer algebra: in a worker only
# --------------------------------------------------------------------------------------------------

_SAMPLES = ("1/3", "2", "5/2", "7", "1", "3", "11/5", "1/7")
_TRIGONOMETRY = frozenset(("sin", "cos", "tan", "cot", "sec", "csc"))
_NAMES = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "ceil": "ceiling", "max": "Max"}
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
    inside = [symbolic(part, radians or tree.mark in _TRIGONOMETRY) for part in parts]
    if any(part.has(sympy.oo, sympy.nan, sympy.zoo) for part in inside) and kind != "series":
        if kind != "product" or len(inside) != 2 or inside[0] != -1:
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
    inside = symbolic(body, radians)
    if tree.mark == "lim":
        return sympy.limit(inside, letter, symbolic(low))
    if tree.mark == "int":
        if "nothing" in (low.kind, high.kind):
            return sympy.integrate(inside, letter)
        return sympy.integrate(inside, (letter, symbolic(low), symbolic(high)))
    if "nothing" in (low.kind, high.kind):
        raise Undecided("a sum without bounds")
    index = sympy.Symbol(variable.parts[0], integer=True)
    make = sympy.Sum if tree.mark == "sum" else sympy.Product
    return make(inside.subs(letter, index), (index, symbolic(low), symbolic(high))).doit()


def equal_expressions(given: Tree, wanted: Tree, tolerance: float | None, radians: bool) -> bool:
    """Compares two expressions: real for the same values of their letters, and equal there.

    Args:
        given: the answer.
        wanted: the reference.
        tolerance: greatest relative difference of constants; None where both are exact.
        radians: see `symbolic`.

    Raises:
        Undecided: neither equality nor difference can be shown.
    """
    import sympy

    a, b = symbolic(given, radians), symbolic(wanted, radians)
    if a.has(sympy.nan, sympy.zoo) or b.has(sympy.nan, sympy.zoo):
        raise Undecided("a value that is not defined")
    if a == b and not a.free_symbols:
        return True
    letters = sorted(a.free_symbols | b.free_symbols, key=str)
    if not letters:
        return _equal_constants(a, b, tolerance)
    patterns = list(itertools.islice(itertools.product((1, -1), repeat=len(letters)), 16))
    real_somewhere = False
    for signs, shift in itertools.product(patterns, (0, 1, 2, 4)):
        numbers = itertools.islice(itertools.cycle(_SAMPLES), shift, shift + len(letters))
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


def number_of(tree: Tree) -> Any:
    """The value of a constant, to 30 digits; None where it is not real and finite."""
    value = symbolic(tree).evalf(30)
    return Fraction(str(value)) if value.is_real and value.is_finite else None


def equal_relations(given: Tree, wanted: Tree) -> bool:
    """Compares relations with variables: one a multiple of the other, or the same solutions.

    Raises:
        Undecided: sympy cannot solve them.
    """
    import sympy

    if len(given.parts) == len(wanted.parts) == 2 and given.mark == wanted.mark:
        a, b = (symbolic(tree.parts[1]) - symbolic(tree.parts[0]) for tree in (given, wanted))
        quotient = sympy.simplify(a / b) if b != 0 else sympy.nan
        if quotient.is_number and quotient.is_finite and quotient != 0:
            return bool(quotient > 0) or wanted.mark in ("=", "ne")
        letters = a.free_symbols
        if letters != b.free_symbols or not letters:
            return False
        if len(letters) > 1:
            return wanted.mark == "=" and _same_curve(a, b)
    return same_solutions(given, wanted)


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
    for letter, number in itertools.product(letters, _SAMPLES):
        point = {x: sympy.Rational(number) for x in letters if x != letter}
        if sympy.solveset(a.subs(point), letter, sympy.S.Reals) is not sympy.S.EmptySet:
            return True
    raise Undecided(f"whether {a} = 0 has real solutions")


def same_solutions(given: Tree, wanted: Tree) -> bool:
    """Compares intervals, unions and the real solutions of relations in one letter."""
    import sympy

    letters = [_letters_of(tree) for tree in (given, wanted)]
    if len(letters[0] | letters[1]) > 1:
        return False
    a, b = solutions(given), solutions(wanted)
    empty = a in (sympy.S.EmptySet, sympy.S.Reals)
    if empty and "relation" in (given.kind, wanted.kind) and given != wanted:
        return a == b and {given.kind, wanted.kind} != {"relation"} and a == sympy.S.Reals
    return _same_set(a, b)


def _letters_of(tree: Tree) -> set[str]:
    return set(_names(tree)) - {"pi", "e", "i", "infty", "reals", "emptyset"}


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
        combine = sympy.Intersection if tree.mark == "and" else sympy.Union
        return combine(*map(solutions, tree.parts))
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
    found = sympy.S.Reals
    for sign, left, right in zip(tree.mark.split(), terms, terms[1:], strict=False):
        relation = makers[sign](left, right)
        if relation in (True, False):
            found = found if relation else sympy.S.EmptySet
        else:
            found &= sympy.solveset(relation, *letters, sympy.S.Reals)
    return found


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


# --------------------------------------------------------------------------------------------------
# Difference in floating point: shown quickly, equality never
# --------------------------------------------------------------------------------------------------

_FUNCTIONS: dict[str, Callable[..., float]] = {
    "sin": math.sin, "cos": math.cos, "tan": math.tan, "cot": lambda x: 1 / math.tan(x),
    "sec": lambda x: 1 / math.cos(x), "csc": lambda x: 1 / math.sin(x), "arcsin": math.asin,
    "arccos": math.acos, "arctan": math.atan, "sinh": math.sinh, "cosh": math.cosh,
    "tanh": math.tanh, "ln": math.log, "lg": math.log10, "log": lambda x, base=10: math.log(x, base),
    "root": lambda x, n=2: x ** (1 / n), "abs": abs, "max": max, "min": min, "degree": lambda x: x,
}  # fmt: skip
_LARGE = 1e9  # beyond it a float's last digits may hide a difference


def differ(given: Tree, wanted: Tree, tolerance: float) -> bool:
    """Whether two expressions clearly differ at some values of their letters."""
    names = sorted({*_names(given), *_names(wanted)})
    for shift in (0, 3, 5):
        numbers = itertools.islice(itertools.cycle(_SAMPLES), shift, shift + len(names))
        point = {name: float(Fraction(number)) for name, number in zip(names, numbers, strict=True)}
        try:
            a, b = _float(given, point), _float(wanted, point)
        except (ValueError, ArithmeticError, TypeError, KeyError):
            continue
        if abs(a - b) > max(1e-6, 2 * tolerance) * (1 + max(abs(a), abs(b))):
            return True
    return False


def _names(tree: Tree) -> Iterator[str]:
    if tree.kind == "symbol":
        yield tree.parts[0]
    for part in tree.parts:
        if isinstance(part, Tree):
            yield from _names(part)


def _float(tree: Tree, point: Mapping[str, float], radians: bool = False) -> float:
    kind, parts = tree.kind, tree.parts
    if kind == "number":
        value = float(parts[0])
    elif kind == "symbol":
        if parts[0] in ("i", "infty", "reals", "emptyset"):
            raise ValueError
        value = _CONSTANTS.get(parts[0]) or point[parts[0]]
    else:
        inside = [_float(part, point, radians or tree.mark in _TRIGONOMETRY) for part in parts]
        if kind == "sum":
            value = math.fsum(inside)
        elif kind == "product":
            value = math.prod(inside)
        elif kind == "quotient":
            value = inside[0] / inside[1]
        elif kind == "power":
            value = inside[0] ** inside[1]
        elif kind == "call" and tree.mark == "degree":
            value = math.radians(inside[0]) if radians else inside[0]
        else:
            value = _FUNCTIONS[tree.mark](*inside)
    if not isinstance(value, float | int) or not abs(value) < _LARGE:
        raise ValueError
    return value
