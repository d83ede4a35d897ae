# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""Plain numbers of the strict judge, read and compared exactly, without computer algebra.

Serves `units` and `math_answer`. Takes any text and always ends soon; does not know words, units,
names or lists.
"""

import functools
import math
import re
from fractions import Fraction
from typing import NamedTuple

from rlvlm_jax.rewards import latex


class Number(NamedTuple):
    """The exact number value * sqrt(root) * pi**power, and whether it holds a decimal.

    One such number has one such form: root is free of squares.
    """

    value: Fraction
    root: int = 1
    power: int = 0
    decimal: bool = False


_FACTOR = re.compile(
    r"(?P<recurring>(?P<whole>\d{0,30})\.(?P<places>\d{0,30})\\overline\{(?P<period>\d{1,30})\})"
    r"|(?P<tens>10\^\{([-+]?\d{1,3})\})"
    r"|(?P<digits>\d{1,400}(?:\.\d{0,400})?|\.\d{1,400})"
    r"|(?P<root>\\sqrt\{(\d{1,8})\})"
    r"|(?P<pi>\\pi(?![A-Za-z]))"
    r"|(?P<fraction>\\frac(?=\{))"
    r"|(?P<times>\\times(?![A-Za-z])|\\cdot(?![A-Za-z])|\*)"
    r"|(?P<over>/|\\div(?![A-Za-z]))"
    r"|(?P<percent>%$)"
)
# two, as in "they meet in two points"
WORDS = {
    word: n
    for n, word in enumerate(
        """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
        fifteen sixteen seventeen eighteen nineteen twenty""".split()  # noqa: SIM905 (a long list)
    )
}
_SCIENTIFIC = re.compile(r"([-+]?(?:\d{1,400}(?:\.\d{0,400})?|\.\d{1,400}))[eE]([-+]?\d{1,3})")
_MIXED = re.compile(r"([-+]?)(\d{1,30}) (\d{1,30})/(\d{1,30})")
CODE = re.compile(r"0\d+")  # 007 is a label


@functools.lru_cache(maxsize=4096)
def number(text: str) -> Number | None:
    r"""Reads a product or quotient of integers, decimals, fractions, square roots and \pi exactly.

    Also mixed numbers (1\frac{1}{4}, 1 1/4), percentages, powers of ten, recurring decimals
    (0.\overline{3}) and the words from zero to twenty. None for anything else.
    """
    mixed = _MIXED.fullmatch(text.strip())
    if mixed:
        sign, whole, above, below = mixed.groups()
        if not 0 < int(above) < int(below):
            return None
        value = int(whole) + Fraction(int(above), int(below))
        return Number(-value if sign == "-" else value)
    s = latex.compact(text)
    if s.isalpha():
        n = WORDS.get(s.lower())
        return None if n is None else Number(Fraction(n))
    scientific = _SCIENTIFIC.fullmatch(s)
    if scientific:
        value = _fraction(scientific.group(1)) * Fraction(10) ** int(scientific.group(2))
        return Number(value, decimal=True)
    return None if CODE.fullmatch(s) else _product(s)


def _product(s: str, depth: int = 0) -> Number | None:
    negative = s[:1] == "-"
    product, at, before = Number(Fraction(-1 if negative else 1)), int(s[:1] in ("-", "+")), ""
    while at < len(s):
        match = _FACTOR.match(s, at)
        if match is None or (kind := match.lastgroup or "") == "":
            return None
        at = match.end()
        if kind in ("times", "over"):
            if before in ("", "times", "over") or at == len(s):
                return None
        elif kind == "percent":
            if before in ("", "times", "over"):
                return None
            product = _times(product, Number(Fraction(1, 100)))
        else:
            if kind in ("digits", "tens", "recurring"):
                if before not in ("", "times", "over"):
                    return None  # 2 3 and \frac{1}{2}3 are no products
                digits = match.group()
                if kind == "tens":
                    factor = Number(Fraction(10) ** int(digits[4:-1]))
                elif kind == "recurring":
                    factor = Number(_recurring(*match.group("whole", "places", "period")))
                else:
                    factor = Number(_fraction(digits), decimal="." in digits)
            elif kind == "root":
                factor = _square_root(int(match.group(kind)[6:-1]))
            elif kind == "pi":
                factor = Number(Fraction(1), power=1)
            else:
                middle = latex.closing(s, at)
                end = latex.closing(s, middle + 1) if s[middle + 1 : middle + 2] == "{" else -1
                if middle < 0 or end < 0 or depth > 3:
                    return None
                above = _product(s[at + 1 : middle], depth + 1)
                below = _product(s[middle + 2 : end], depth + 1)
                factor = above and below and _times(above, _inverse(below))
                if before == "digits" and factor:  # 1\frac{1}{4}: a mixed number, if it can be one
                    part = factor._replace(decimal=False)
                    if part != Number(part.value) or not 0 < part.value < 1:
                        return None
                    if product.value.denominator != 1 or product != Number(product.value):
                        return None
                    factor = Number(1 + part.value / abs(product.value)) if product.value else None
                at = end + 1
            if before == "over":
                factor = factor and _inverse(factor)
            if factor is None:
                return None
            product = _times(product, factor)
        before = kind
    return product if before else None


def _times(a: Number, b: Number | None) -> Number | None:
    if b is None:
        return None
    common = math.gcd(a.root, b.root)
    return Number(
        a.value * b.value * common,
        a.root // common * (b.root // common),
        a.power + b.power,
        a.decimal or b.decimal,
    )


def _inverse(a: Number) -> Number | None:
    if a.value == 0:
        return None
    return Number(1 / (a.value * a.root), a.root, -a.power, a.decimal)


def _square_root(n: int) -> Number:
    if n == 0:
        return Number(Fraction(0))
    outside, d = 1, 2
    while d * d <= n:
        while n % (d * d) == 0:
            n //= d * d
            outside *= d
        d += 1
    return Number(Fraction(outside), n)


def _recurring(whole: str, places: str, period: str) -> Fraction:
    """The value of 0.1(23), that is (1 + 23/99) / 10."""
    fraction = int(places or "0") + Fraction(int(period), 10 ** len(period) - 1)
    return int(whole or "0") + fraction / 10 ** len(places)


def _fraction(digits: str) -> Fraction:
    return Fraction(digits if digits[-1] != "." else digits[:-1])


def equal(given: Number, wanted: Number, tolerance: float) -> bool:
    """Compares two numbers exactly; where one holds a decimal, to a share of the wanted one."""
    if given.value == 0 or wanted.value == 0:
        return given.value == wanted.value
    if not (given.decimal or wanted.decimal):
        return given == wanted
    share = Fraction(repr(tolerance))
    if (given.root, given.power) == (wanted.root, wanted.power):
        return abs(given.value - wanted.value) <= share * abs(wanted.value)
    ratio = given.value / wanted.value
    if not Fraction(1, 10**100) < ratio < 10**100:
        return False
    ratio = float(ratio) * math.sqrt(given.root / wanted.root)
    return abs(ratio * math.pi ** (given.power - wanted.power) - 1) <= share
