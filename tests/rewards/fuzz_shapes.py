# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""References to draw from, spellings, and tables of kinds, for the fuzz test.

A reference is what a `\boxed{}` holds. Part of them are K12's own, where that data lies beside the
repository, the others are made here. Nothing in this file knows a judge.
"""

import functools
import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random

Pair = tuple[str, str]  # contents of the answer's box and of the reference's
Kind = Callable[[Random], Pair]

K12 = Path(__file__).parents[3] / "shared/data/k12/k12.jsonl"
K12_SHARE = 0.3  # of the draws from a pool that holds both

VARIABLES = "xyzpqknuvw"  # no unit, no constant, no function
CONSONANTS = "bckpqvwxz"  # no two or three of these are a word or a unit
POINTS = "ABCDEFGHPQRT"
CHOICES = "ABCDEFGHIJ"
GREEK = {
    r"\alpha": "α",
    r"\beta": "β",
    r"\gamma": "γ",
    r"\delta": "δ",
    r"\eta": "η",
    r"\theta": "θ",
    r"\kappa": "κ",
    r"\lambda": "λ",
    r"\mu": "μ",
    r"\nu": "ν",
    r"\xi": "ξ",
    r"\rho": "ρ",
    r"\sigma": "σ",
    r"\tau": "τ",
    r"\phi": "φ",
    r"\psi": "ψ",
    r"\omega": "ω",
}
SQUAREFREE = (2, 3, 5, 6, 7, 10, 11, 13, 14, 15, 17, 19, 21, 22, 23)

ONES = tuple(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen""".split()  # noqa: SIM905 (a list is hard to read)
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


# --- K12's references -----------------------------------------------------------------------------


@functools.cache
def k12() -> tuple[str, ...]:
    """Returns those K12 references that are one piece of mathematics; none without the data."""
    if not K12.exists():
        return ()
    lines = K12.read_text("utf-8").splitlines()
    boxes = [json.loads(line)["solution"].strip()[len(r"\boxed{") : -1] for line in lines]
    return tuple(box for box in boxes if _is_one_piece(box))


def _is_one_piece(box: str) -> bool:
    without_macros = re.sub(r"\\[A-Za-z]+", "", box)
    return (
        len(box) <= 60
        and not re.search(r"[$\n?→∠;]|\\\(|^\(\d\)|\d\.\d\.|\d +-?\d", box)
        and not re.search(r"[A-Za-z]{3}", without_macros)
        and re.search(r"[0-9A-Za-z]", without_macros) is not None
    )


_NUMERAL = re.compile(r"-?\d+(\.\d+)?\.?")
_VALUE = re.compile(
    r"-?(\d+(\.\d+)?|\\d?frac\{\d+\}\{\d+\}|\d*\\sqrt\{\d+\})(\^\{?\\circ\}?|°)?\.?"
)


@functools.cache
def k12_matching(pattern: re.Pattern) -> tuple[str, ...]:
    """Returns the K12 references that a pattern covers, zero left out."""
    return tuple(box for box in k12() if pattern.fullmatch(box) and re.search("[1-9]", box))


def core(reference: str) -> str:
    """Takes off the full stop and the blanks around a reference."""
    return reference.strip().removesuffix(".").strip()


# --- numbers --------------------------------------------------------------------------------------


def nonzero(rng: Random, largest: int = 12) -> int:
    return rng.choice((-1, 1)) * rng.randint(1, largest)


def decimal(rng: Random) -> str:
    """Returns a decimal of at most five digits, the last of them not zero."""
    places = rng.choice((1, 1, 2))
    return f"{rng.randint(0, 199)}.{rng.randint(0, 9) if places == 2 else ''}{rng.randint(1, 9)}"


def ratio(rng: Random, largest: int = 30) -> Fraction:
    """Returns a positive fraction that is no whole number."""
    while True:
        value = Fraction(rng.randint(1, largest), rng.randint(2, 15))
        if value.denominator > 1:
            return value


def finite(rng: Random) -> Fraction:
    """Returns a fraction with a short decimal."""
    while True:
        value = Fraction(rng.randint(1, 60), rng.choice((2, 4, 5, 8, 10, 20, 25)))
        if value.denominator > 1:
            return value


def value(rng: Random) -> Fraction:
    """Returns a whole number or a fraction, seldom zero."""
    return (
        Fraction(rng.randint(-15, 15)) if rng.random() < 0.6 else rng.choice((-1, 1)) * ratio(rng)
    )


def values(rng: Random, how_many: int) -> list[Fraction]:
    """Returns different values."""
    found: list[Fraction] = []
    while len(found) < how_many:
        new = value(rng)
        if new not in found:
            found.append(new)
    return found


def tex(number: Fraction | int) -> str:
    number = Fraction(number)
    if number.denominator == 1:
        return str(number.numerator)
    sign = "-" if number < 0 else ""
    return rf"{sign}\frac{{{abs(number.numerator)}}}{{{number.denominator}}}"


def as_decimal(number: Fraction) -> str | None:
    """Returns the decimal where it ends, else None."""
    rest = number.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest > 1:
        return None
    return format(Decimal(number.numerator) / Decimal(number.denominator), "f")


def spelled(rng: Random, number: Fraction | int) -> str:
    """Returns a number in any of the usual spellings."""
    number = Fraction(number)
    if number.denominator == 1:
        return str(number.numerator)
    top, bottom, sign = abs(number.numerator), number.denominator, "-" if number < 0 else ""
    forms = [rf"{sign}\dfrac{{{top}}}{{{bottom}}}", f"{sign}{top}/{bottom}", tex(number)]
    return rng.choice([*forms, as_decimal(number) or forms[0]])


def root(rng: Random) -> str:
    times = rng.randint(1, 12)
    return rf"{times if times > 1 else ''}\sqrt{{{rng.choice(SQUAREFREE)}}}"


def words(number: int) -> str:
    """Returns a number from 0 to 100 in words."""
    if number == 100:
        return "one hundred"
    if number < 20:
        return ONES[number]
    ten, one = TENS[number // 10 - 2], number % 10
    return f"{ten}-{ONES[one]}" if one else ten


# --- expressions and the rest ---------------------------------------------------------------------


def term(times: int, letters: str) -> str:
    if not letters:
        return str(times)
    return {1: "", -1: "-"}.get(times, str(times)) + letters


def plus(*terms: str) -> str:
    """Joins terms that carry their own signs."""
    return "+".join(terms).replace("+-", "-")


def polynomial(rng: Random, letter: str, degree: int = 2) -> str:
    powers = [rf"{letter}^{d}" if d > 1 else letter * d for d in range(degree, -1, -1)]
    return plus(*(term(nonzero(rng), power) for power in powers))


def line(a: int, b: int, c: int, names: str = "xy", sign: str = "=") -> str:
    return plus(term(a, names[0]), term(b, names[1])) + f"{sign}{c}"


def ends(rng: Random) -> tuple[int, int]:
    low = rng.randint(-20, 20)
    return low, low + rng.randint(2, 20)


def interval(rng: Random) -> str:
    low, high = ends(rng)
    left, right = rng.choice("(["), rng.choice(")]")
    kind = rng.random()
    if kind < 0.15:
        return rf"{left}{low},+\infty)"
    if kind < 0.3:
        return rf"(-\infty,{low}{right}"
    return f"{left}{low},{high}{right}"


def point(rng: Random) -> str:
    return "(" + ",".join(tex(v) for v in values(rng, rng.choice((2, 2, 3)))) + ")"


def segment(rng: Random, points: str = POINTS) -> str:
    return "".join(rng.sample(points, 2))


LENGTHS = {
    "mm": "millimeter",
    "cm": "centimeter",
    "dm": "decimeter",
    "m": "meter",
    "km": "kilometer",
}
OTHER_UNITS = {
    "mg": "milligrams",
    "g": "grams",
    "kg": "kilograms",
    "s": "seconds",
    "min": "minutes",
    "h": "hours",
    "mL": "milliliters",
    "m/s": "meters per second",
    "km/h": "kilometers per hour",
}


def unit(rng: Random) -> list[str]:
    """Returns spellings of one unit that can stand behind any number."""
    if rng.random() < 0.4:
        name, full = rng.choice(list(LENGTHS.items()))
        shape, power, past = rng.choice((("square", 2, "squared"), ("cubic", 3, "cubed")))
        return [
            rf"\text{{ {name}}}^{power}",
            rf"\ \text{{{name}}}^{{{power}}}",
            rf"\,\mathrm{{{name}}}^{power}",
            rf"\,\mathrm{{{name}^{power}}}",
            rf"\ (\text{{{name}}}^{power})",
            rf"\text{{ {shape} {full}s}}",
            rf"\text{{ {name} {past}}}",
        ]
    name, full = rng.choice([*((n, f + "s") for n, f in LENGTHS.items()), *OTHER_UNITS.items()])
    return [
        rf"\text{{ {name}}}",
        rf"\ \mathrm{{{name}}}",
        rf"\,\text{{{name}}}",
        rf"\text{{ {full}}}",
    ]


# --- pools of both --------------------------------------------------------------------------------


def number(rng: Random) -> str:
    """Returns a plain numeral that is not zero: one of K12's, or a new one."""
    if k12() and rng.random() < K12_SHARE:
        return rng.choice(k12_matching(_NUMERAL))
    if rng.random() < 0.3:
        return decimal(rng)
    return str(rng.choice((-1, 1, 1, 1)) * rng.randint(1, rng.choice((20, 100, 9999))))


def exact(rng: Random) -> str:
    """Returns a numeral, a fraction, a root or a multiple of pi, also K12's; never zero."""
    if k12() and rng.random() < K12_SHARE:
        return rng.choice(k12_matching(_VALUE))
    sign = rng.choice(("", "", "-"))
    forms = (
        lambda: number(rng),
        lambda: sign + tex(ratio(rng)),
        lambda: sign + root(rng),
        lambda: rf"{sign}{rng.randint(2, 40)}\pi",
        lambda: rf"{sign}\frac{{{root(rng)}}}{{{rng.randint(2, 12)}}}",
    )
    return rng.choice(forms)()


def length(rng: Random) -> str:
    """Returns a positive value that is no angle, without a full stop."""
    while True:
        found = core(exact(rng)).lstrip("-")
        if "circ" not in found and "°" not in found:
            return found


def maths(rng: Random) -> str:
    """Returns any piece of mathematics, also K12's."""
    if k12() and rng.random() < K12_SHARE:
        return rng.choice(k12())
    letter = rng.choice(VARIABLES)
    forms = (
        lambda: exact(rng),
        lambda: plus(str(nonzero(rng)), root(rng)),
        lambda: polynomial(rng, letter, rng.choice((1, 2, 3))),
        lambda: f"y={polynomial(rng, 'x', 1)}",
        lambda: line(nonzero(rng), nonzero(rng), nonzero(rng)),
        lambda: point(rng),
        lambda: interval(rng),
        lambda: f"{letter}={rng.randint(-99, 99)}",
        lambda: f"{letter}{rng.choice('<>')}{rng.randint(-99, 99)}",
        lambda: rf"{rng.randint(1, 179)}^\circ",
        lambda: f"{segment(rng)}={rng.randint(2, 9)}{segment(rng)}",
        lambda: rng.choice(CHOICES),
    )
    return rng.choice(forms)()


# --- tables of kinds ------------------------------------------------------------------------------


def entering(table: dict[str, Kind]) -> Callable[[str], Callable[[Kind], Kind]]:
    """Returns a decorator that enters a function into a table, under the name of its kind."""

    def kind(name: str) -> Callable[[Kind], Kind]:
        assert name not in table, name

        def enter(draw: Kind) -> Kind:
            table[name] = draw
            return draw

        return enter

    return kind


def two(rng: Random, *forms: str) -> Pair:
    """Returns two of several spellings of one thing."""
    answer, reference = rng.sample(forms, 2)
    return answer, reference


def either(rng: Random, one: str, other: str) -> Pair:
    """Returns both in either order."""
    return (one, other) if rng.random() < 0.5 else (other, one)


def shuffled(rng: Random, parts: Sequence) -> list:
    return rng.sample(list(parts), len(parts))
