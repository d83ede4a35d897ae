# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What stands beside a number: its unit, or the noun that it counts.

Part of the strict judge, between reading (`latex`, `exact`) and comparing (`math_answer`). It parts
a value from its unit and says whether the unit may be there when the reference has none; nothing
is converted.
"""

import re
from typing import NamedTuple

from rlvlm_jax.rewards import exact
from rlvlm_jax.rewards.latex import DEGREE, DOLLAR, TRIGONOMETRY


class Measured(NamedTuple):
    """A value and what stands beside it.

    Attributes:
        value: the text that is left.
        unit: one name a unit, or the noun in the singular; None where there is neither.
        optional: whether it may stand beside a value that the reference gives alone.
    """

    value: str
    unit: str | None
    optional: bool = True


_UNIT_NAMES = {
    "mm": "millimeter millimetre 毫米",
    "cm": "centimeter centimetre 厘米",
    "dm": "decimeter decimetre 分米",
    "m": "meter metre 米",
    "km": "kilometer kilometre 千米 公里",
    "in": "inch inche",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "ha": "hectare 公顷",
    "mg": "milligram 毫克",
    "g": "gram 克",
    "kg": "kilogram 千克 公斤",
    "ton": "tonne t 吨",
    "lb": "pound",
    "oz": "ounce",
    "s": "second sec 秒",
    "min": "minute 分钟",
    "h": "hour hr 小时 时",
    "day": "天",
    "week": "周",
    "month": "",
    "year": "年",
    "ml": "milliliter millilitre mL 毫升",
    "L": "liter litre l 升",
    "rad": "radian",
    "Hz": "hertz",
    "Pa": "pascal",
    "kPa": "",
    "kJ": "",
    "J": "joule",
    "N": "newton",
    "kN": "",
    "W": "watt",
    "kW": "",
    "kWh": "",
    "V": "volt",
    "kV": "",
    "mV": "",
    "A": "ampere amp",
    "mA": "",
    "Ω": "ohm",
    "kΩ": "",
    "mol": "mole",
    "dollar": "USD",
    "cent": "",
    "yuan": "RMB CNY 元",
    "euro": "EUR",
    "unit": "",
    "mph": "",
    "K": "kelvin",
}
_UNITS = {name: unit for unit, names in _UNIT_NAMES.items() for name in (unit, *names.split())}
_APART = frozenset("VAlt")  # these need a blank before them: 5t is a product
_MONEY = {DOLLAR: "dollar", "€": "euro", "£": "pound", "¥": "yuan"}

_POWER = r"(?:\^\{?([23])\}?|([23]))?"
_NAME = r"[A-Za-z]+|k?Ω|[\u4e00-\u9fff]{1,4}"
_ONE_UNIT = rf"(?:(square|cubic|sq\.?|cu\.?)\s+|(平方|立方))?({_NAME}){_POWER}"
_TAIL = re.compile(rf"(?:(?<=[\d}})!])|(?<=\\pi)\s) *({_ONE_UNIT}(?:\s*(?:/|per)\s*{_ONE_UNIT})?)$")
_PER = re.compile(r"\s*(?:/|\bper\b)\s*")

_NOUNS = re.compile(r"([-+]?[\d.,]+)((?: +[A-Za-z]{3,}){1,3})")
# Plurals without the letter s
_PLURALS = frozenset({"people", "children", "men", "women", "teeth", "mice", "fish", "sheep"})
# Words that take back what they stand beside
DOUBTS = frozenset(
    """not nor nope no never none but unless except maybe possibly perhaps probably presumably
    likely approximately approx about around roughly nearly almost circa estimated estimate guess
    guesses wrong incorrect false sometimes""".split()  # noqa: SIM905 (a list is hard to read)
)
# After a number these are no nouns either: they change its value or the claim made.
_NO_NOUNS = DOUBTS | frozenset(
    """hundred thousand million billion trillion lakh crore grand myriad dozen gross score pair
    couple half halve quarter third second fifth eighth ninth twelfth twentieth hundredth
    thousandth millionth thirty forty fifty sixty seventy eighty ninety percent percentage pct
    fraction squared cubed times plus minus over mod modulo factorial root power per fold
    and either neither with without from into the for was has does always any all infinity
    more less than least most greater fewer other above below between true correct right
    yes""".split()  # noqa: SIM905
)
_NO_NOUNS |= {word + suffix for word in exact.WORDS for suffix in ("", "th")}


def measured(s: str) -> Measured:
    """Parts a value from the unit or the counted noun beside it.

    `20 cm^2` gives ("20", "cm^2"), and `5 apples` gives ("5", "apple"). Three words at most are a
    noun. It is optional where it is one word in the plural (or beside a 1): `5 red balls` says more
    than 5, and in `20 roughly` nothing is counted. Percent is no unit: it changes the value.
    """
    s = s.strip()
    if s and s[0] in _MONEY:
        return Measured(s[1:].strip(), _MONEY[s[0]])
    if s.startswith("-") and s[1:2] in _MONEY:
        return Measured("-" + s[2:].strip(), _MONEY[s[1]])
    if s and s[-1] in _MONEY:
        return Measured(s[:-1].strip(), _MONEY[s[-1]])
    if s.endswith(DEGREE) and not TRIGONOMETRY.search(s):  # the angle of a sine has no bare number
        return Measured(s[:-1].strip(), DEGREE)
    if s.endswith((DEGREE + "C", DEGREE + "F", DEGREE + " C", DEGREE + " F")):
        value, _, scale = s.rpartition(DEGREE)
        return Measured(value.strip(), DEGREE + scale.strip())
    match = _TAIL.search(s, max(0, len(s) - 60))
    if match:
        names = [_unit(part) for part in _PER.split(match.group(1))]
        value = s[: match.start()].strip()
        glued = match.group(1) in _APART and match.start() == match.start(1)
        if (
            all(names)
            and not glued
            and not re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", value))
        ):
            return Measured(value, "/".join(names))
    match = _NOUNS.fullmatch(s)
    return _counted(*match.groups()) if match else Measured(s, None)


def _unit(text: str) -> str | None:
    match = re.fullmatch(_ONE_UNIT, text.strip())
    if match is None:
        return None
    shape, name, power = match[1] or match[2], match[3], match[4] or match[5]
    unit = _UNITS.get(name) or _UNITS.get(name.lower()) if len(name) > 1 else _UNITS.get(name)
    if unit is None and name.endswith("s"):
        unit = _UNITS.get(name[:-1].lower()) if len(name) > 3 else None
    if unit is None:
        return None
    if shape:
        power = "2" if shape[0] in "s平" else "3"
    return f"{unit}^{power}" if power else unit


def _counted(value: str, noun: str) -> Measured:
    *others, last = noun.lower().split()
    words = [*others, _singular(last)]
    if _NO_NOUNS.intersection((*words, last)):
        return Measured(f"{value}{noun}", None)
    several = last != words[-1] or last in _PLURALS
    return Measured(value, " ".join(words), not others and (several or value == "1"))


def _singular(word: str) -> str:
    """Takes off the ending of the plural; adverbs such as upwards have none."""
    if word.endswith(("ss", "us", "is", "wards", "abouts")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("ses", "xes", "zes", "ches", "shes")):
        return word[:-2]
    return word.removesuffix("s")
