# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Numbers and rational expressions, compared at once and exactly, without computer algebra.

Part of comparing. `Ratio` is a normal form of expressions in letters, pi, i and square roots: two
of them are equal where their difference is zero. For the rest `differ` can show a difference in
floating point, but never equality.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from rlvlm_jax.rewards.math.tree import Tree, symbols

MAX_BITS = 20_000  # of an exact number
MAX_TERMS = 300  # of a polynomial
MAX_POWER = 40  # of a polynomial
MAX_RADICAND = 10**8
Monomial = tuple[tuple[str, int], ...]  # sorted; square roots as "√2", which are independent
Polynomial = Mapping[Monomial, Fraction]
ONE: Polynomial = {(): Fraction(1)}


class _TooHardError(Exception):
    pass


@dataclass(frozen=True)
class Ratio:
    """A quotient of two polynomials, not reduced. Its operators raise _TooHardError."""

    above: Polynomial
    below: Polynomial = field(default_factory=lambda: ONE)

    def __add__(self, other: "Ratio") -> "Ratio":
        if self.below == other.below:
            return Ratio(_add(self.above, other.above), self.below)
        crossed = _multiply(self.above, other.below), _multiply(other.above, self.below)
        return Ratio(_add(*crossed), _multiply(self.below, other.below))

    def __mul__(self, other: "Ratio") -> "Ratio":
        return Ratio(_multiply(self.above, other.above), _multiply(self.below, other.below))

    def __truediv__(self, other: "Ratio") -> "Ratio":
        if not other.above:
            raise _TooHardError  # no number
        return self * Ratio(other.below, other.above)

    def __pow__(self, exponent: "Ratio") -> "Ratio":
        n, value = constant(exponent), constant(self)
        if n is None or n.denominator > 10 or (n.denominator > 1 and abs(n.numerator) > 10):
            raise _TooHardError
        if n.denominator > 1:
            return _root(value, n.denominator) ** _rational(n.numerator)
        if value is not None:
            size = max(value.numerator.bit_length(), value.denominator.bit_length())
            if size * abs(n) > MAX_BITS or (value == 0 and n <= 0):
                raise _TooHardError
            return _rational(value**n)
        if abs(n) > MAX_POWER:
            raise _TooHardError
        power = functools.reduce(operator.mul, [self] * abs(int(n)), _rational(1))
        return power if n >= 0 else _rational(1) / power


def _rational(value: Fraction | int) -> Ratio:
    return Ratio({(): Fraction(value)} if value else {})


@functools.lru_cache(maxsize=4096)
def ratio(tree: Tree) -> Ratio | None:
    """Brings an expression to its normal form; None where it has functions, or is too large.

    A degree sign is dropped, as a unit left out.
    """
    try:
        return _ratio(tree)
    except _TooHardError:
        return None


_OPERATORS = {"sum": operator.add, "product": operator.mul, "quotient": operator.truediv}
_OPERATORS |= {"power": operator.pow}
_COUNTS = {"factorial": math.factorial, "binom": math.comb}


def _ratio(tree: Tree) -> Ratio:
    kind, parts, mark = tree
    if kind == "number":
        return _rational(parts[0])
    if kind == "symbol" and parts[0] != "infty":
        return Ratio({((parts[0], 1),): Fraction(1)})
    if kind in _OPERATORS:
        return functools.reduce(_OPERATORS[kind], map(_ratio, parts))
    if kind != "call" or mark not in ("degree", "root", "abs", *_COUNTS):
        raise _TooHardError
    inside = [_ratio(part) for part in parts]
    if mark == "degree":
        return inside[0]
    values = [constant(value) for value in inside]
    if mark == "root":
        return _root(values[0], *values[1:])
    if mark == "abs" and values[0] is not None:
        return _rational(abs(values[0]))
    if mark in _COUNTS and all(n in range(201) for n in values):
        return _rational(_COUNTS[mark](*map(int, values)))
    raise _TooHardError


def constant(value: Ratio) -> Fraction | None:
    """The value of a rational constant, None for the rest."""
    if set(value.above) <= {()} and set(value.below) == {()}:
        return value.above.get((), Fraction(0)) / value.below[()]
    return None


def _root(value: Fraction | None, index: Fraction | int | None = 2) -> Ratio:
    if value is None or value < 0 or index not in range(2, 11):
        raise _TooHardError
    above, below = (_exact_root(n, int(index)) for n in (value.numerator, value.denominator))
    if above is not None and below is not None:
        return _rational(Fraction(above, below))
    radicand = value.numerator * value.denominator
    if index != 2 or radicand > MAX_RADICAND:
        raise _TooHardError
    outside, monomial, divisor = 1, [], 2
    while radicand > 1:
        divisor = divisor if divisor * divisor <= radicand else radicand  # a prime is left
        while radicand % (divisor * divisor) == 0:
            radicand //= divisor * divisor
            outside *= divisor
        if radicand % divisor == 0:
            monomial.append((f"√{divisor}", 1))
            radicand //= divisor
        divisor += 1
    return Ratio({tuple(sorted(monomial)): Fraction(outside, value.denominator)})


def _exact_root(n: int, index: int) -> int | None:
    if n.bit_length() > 1000:
        raise _TooHardError
    root = math.isqrt(n) if index == 2 else round(n ** (1 / index))
    return root if root**index == n else None


def _add(a: Polynomial, b: Polynomial) -> Polynomial:
    total = {monomial: a.get(monomial, 0) + b.get(monomial, 0) for monomial in {**a, **b}}
    return {monomial: factor for monomial, factor in total.items() if factor}


def _multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    if len(a) * len(b) > MAX_TERMS:
        raise _TooHardError
    if ONE in (a, b):
        return a if b == ONE else b
    total: dict[Monomial, Fraction] = {}
    for (left, m), (right, n) in itertools.product(a.items(), b.items()):
        powers, factor = dict(left), m * n
        for name, power in right:
            powers[name] = powers.get(name, 0) + power
            if powers[name] > 1 and (name == "i" or name[0] == "√"):
                powers[name] -= 2
                factor *= -1 if name == "i" else int(name[1:])
        monomial = tuple(sorted((name, power) for name, power in powers.items() if power))
        total[monomial] = total.get(monomial, 0) + factor
    return {monomial: factor for monomial, factor in total.items() if factor}


def same(a: Ratio, b: Ratio) -> bool | None:
    """Whether two normal forms are equal; None where they are too large to tell."""
    try:
        return _multiply(a.above, b.below) == _multiply(b.above, a.below)
    except _TooHardError:
        return None


def has_poles(value: Ratio) -> bool:
    """Whether a letter stands below."""
    below = {name for monomial in value.below for name, _ in monomial}
    return not all(name in ("pi", "e", "i") or name[0] == "√" for name in below)


def _real_power(base: float, exponent: float) -> float:
    if base >= 0 or float(exponent).is_integer():
        return base**exponent
    fraction = Fraction(exponent).limit_denominator(99)
    if fraction.denominator % 2 == 0 or abs(float(fraction) - exponent) > 1e-9:
        raise ValueError("not real")
    return (-1) ** fraction.numerator * (-base) ** exponent


SAMPLES = tuple(map(Fraction, ("1/3", "2", "5/2", "7", "1", "3", "11/5", "1/7")))
_CONSTANTS = {"pi": math.pi, "e": math.e}
# In floats; a ValueError says that the value is not real
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "sum": lambda *terms: math.fsum(terms), "product": lambda *factors: math.prod(factors),
    "quotient": operator.truediv, "power": _real_power, "degree": lambda x: x,
    "root": lambda x, index=2.0: _real_power(x, 1 / index),
    "sin": math.sin, "cos": math.cos, "tan": math.tan, "cot": lambda x: 1 / math.tan(x),
    "sec": lambda x: 1 / math.cos(x), "csc": lambda x: 1 / math.sin(x), "arcsin": math.asin,
    "arccos": math.acos, "arctan": math.atan, "sinh": math.sinh, "cosh": math.cosh,
    "tanh": math.tanh, "ln": math.log, "lg": math.log10, "log": lambda x, b=10: math.log(x, b),
    "abs": abs, "max": max, "min": min,
}  # fmt: skip
_LARGE = 1e9  # beyond it a float's last digits may hide a difference
UNKNOWN = (ArithmeticError, TypeError, KeyError)  # what `real` raises where it cannot tell


def sample(letters: Sequence[Any], signs: Sequence[int], shift: int) -> dict[Any, Fraction]:
    """Values for letters, from the table on from an index; the signs are repeated."""
    return {
        x: signs[i % len(signs)] * SAMPLES[(i + shift) % len(SAMPLES)]
        for i, x in enumerate(letters)
    }


def real(tree: Tree, point: Mapping[str, float] = _CONSTANTS) -> float | None:
    """The value of an expression at a point, in floats; None where it is not real there."""
    try:
        return _float(tree, point)
    except ValueError:
        return None


def _float(tree: Tree, point: Mapping[str, float]) -> float:
    if tree.kind == "number":
        value = float(tree.parts[0])
    elif tree.kind == "symbol":
        value = float(point[tree.parts[0]])
    else:
        function = _FUNCTIONS[tree.mark if tree.kind == "call" else tree.kind]
        value = function(*(_float(part, point) for part in tree.parts))
    if not abs(value) < _LARGE:
        raise ArithmeticError
    return value


def differ(answer: Tree, reference: Tree, tolerance: float) -> bool:
    """Whether two expressions clearly differ somewhere, or one of them alone is real there."""
    letters = sorted(symbols(answer) | symbols(reference))
    for shift, turned in itertools.product((0, 3, 5), ((1,), (-1,), (1, -1))):
        point = _CONSTANTS | sample(letters, turned, shift)
        try:
            values = [real(tree, point) for tree in (answer, reference)]
        except UNKNOWN:
            continue
        if (values[0] is None) != (values[1] is None):
            return True
        a, b = (value or 0.0 for value in values)
        if abs(a - b) > max(1e-6, 2 * tolerance) * (1 + max(abs(a), abs(b))):
            return True
    return False
