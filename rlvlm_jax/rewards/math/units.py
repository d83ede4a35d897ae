# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Units, counted nouns and numbers in words: tables, and how they are spelled.

Serves `parse` and `compare`; takes text and knows no trees. Each unit has one name, whatever its
spelling. Nothing is converted but the parts of a compound (1 hour 20 minutes).
"""

import re
from collections.abc import Sequence
from fractions import Fraction

# Each unit by its one name, with other spellings
_SPELLINGS = r"""
    mm=millimeter=millimetre=毫米 cm=centimeter=centimetre=厘米 dm=decimeter=decimetre=分米
    m=meter=metre=米 km=kilometer=kilometre=千米=公里 in=inch=inche ft=foot=feet yd=yard
    mi=mile ha=hectare=公顷 mg=milligram=毫克 g=gram=克 kg=kilogram=千克=公斤 ton=tonne=t=吨
    lb=pound oz=ounce s=second=sec=秒 min=minute=分钟 h=hour=hr=hrs=小时=时 day=天 week=周
    month year=年 ml=milliliter=millilitre=mL=毫升 L=liter=litre=l=升 rad=radian
    °=degree=deg=度 °C=摄氏度 °F ' " %=percent=percentage=pct Hz=hertz kHz MHz nm kcal rpm
    kph ms Pa=pascal kPa kJ J=joule N=newton kN W=watt kW kWh V=volt kV mV
    A=ampere=amp mA Ω=ohm=Omega kΩ mol=mole dollar=USD=buck=＄ cent=¢ yuan=RMB=CNY=元=¥
    euro=EUR=€ rupee=INR=₹ £ unit mph K=kelvin μm=micrometer=µm=mum
"""
_UNITS = {name: row.split("=")[0] for row in _SPELLINGS.split() for name in row.split("=")}
_APART = frozenset("VAlt")  # these need a blank before them: 5t is a product
_SCALES = """day=86400 h=3600 min=60 s=1, °=3600 '=60 "=1, mi=63360 yd=36 ft=12 in=1, lb=16 oz=1,
    km=1000000 m=1000 dm=100 cm=10 mm=1, ton=1000000000 kg=1000000 g=1000 mg=1, L=1000 ml=1,
    dollar=100 cent=1, year=12 month=1"""


def _sizes(table: str) -> dict[str, int]:
    return {name: int(size) for name, size in (row.split("=") for row in table.split())}


_SCALE = {
    name: (family, size)
    for family, table in enumerate(_SCALES.split(","))
    for name, size in _sizes(table).items()
}
_ONE_UNIT = re.compile(
    r"(?P<shape>(?:square|cubic|sq|cu)\.? ?|平方|立方)?"
    r"(?P<name>[kμµ°]?[A-Za-zΩ%¢＄€£¥₹'\"]+|°|[\u4e00-\u9fff]{1,4})"
    r"(?P<power>\^\{[23]\}|[23]| squared| cubed)?"
)

# Plurals without the letter s
_PLURALS = frozenset({"people", "children", "men", "women", "teeth", "mice", "fish", "sheep"})
_COUNTERS = frozenset("个人种条本只次名位张台辆件棵根块支户组道页层颗朵头岁分")  # in Chinese
_FILLERS = """different distinct possible total whole separate unique old altogether such overall"""
_FILLERS = frozenset(_FILLERS.split())  # adjectives that do not narrow what is counted
# Words that take back what they stand beside, or change its value or the claim made
_CLAIMS = """not nor nope no never none but unless except maybe possibly perhaps probably presumably
    likely approximately approx about around roughly nearly almost circa estimated estimate guess
    guesses wrong incorrect false sometimes lakh crore grand myriad dozen gross score pair couple
    half halve quarter third second fifth eighth ninth twelfth twentieth hundredth thousandth
    millionth billionth trillionth fraction squared cubed times plus minus over mod modulo
    factorial root power per fold and either neither with without from into the for was has does
    always any all infinity more less than least most greater fewer other above below between
    true correct right yes max min depends fails works varies exists equals remains divides
    exceeds loses negatives positives inverses reciprocals trio duo quartet twice double triple
    cannot opposites complements logs"""
_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen"""
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBERS = {word: i for i, word in enumerate(_ONES.split())}
_NUMBERS |= {word: 20 + 10 * i for i, word in enumerate(_TENS)}
GREAT = _sizes("hundred=2 thousand=3 million=6 billion=9 trillion=12")  # powers of ten
_PARTS = _sizes("""half=2 halves=2 third=3 quarter=4 fourth=4 fifth=5 sixth=6 seventh=7 eighth=8
    ninth=9 tenth=10 twelfth=12 hundredth=100 thousandth=1000""")
_STARTS = frozenset((*_NUMBERS, "half", "quarter", "a", "an", "negative", "minus"))
NO_NOUNS = frozenset((*_CLAIMS.split(), *GREAT))
NO_NOUNS |= {word + suffix for word in _NUMBERS for suffix in ("", "th", "s")}


def number_words(words: Sequence[str]) -> tuple[Fraction, int] | None:
    """Reads a number at the start of lower-case words: its value, and how many words it takes.

    `thirty five` is 35, `two thirds` a fraction, `2 billion` two billion; `twenty-fifth` is none.
    """
    if not words or not (words[0] in _STARTS or words[0].isdecimal()):  # most are not
        return None
    if words[0] in ("negative", "minus"):
        positive = number_words(words[1:])
        return positive and (-positive[0], positive[1] + 1)
    value = Fraction(0)
    for at, word in enumerate((*words, "")):
        before = words[at - 1] if at else ""
        part = _PARTS.get(word) or _PARTS.get(word.removesuffix("s"))
        after_ten = before in _TENS and 0 < _NUMBERS.get(word, 0) < 10
        if word.isdecimal() and not at:
            value = Fraction(word)
        elif word in ("half", "quarter") and not at:
            return Fraction(1, _PARTS[word]), 1
        elif word in ("a", "an") and not at and words[1:2] and words[1] in (*_PARTS, *GREAT):
            value = Fraction(1)
        elif word in _NUMBERS and (not at or after_ten or (before == "hundred" and word != "zero")):
            value += _NUMBERS[word]
        elif word in GREAT and at:
            value *= 10 ** GREAT[word]
        elif part and at and before not in GREAT and (before not in _TENS or word.endswith("s")):
            return value / part, at + 1
        else:
            break
    return (value, at) if at else None


def mixed_words(words: Sequence[str]) -> Fraction | None:
    """Reads `one hundred and five` and `two and a half`; None for anything else."""
    if words.count("and") != 1:
        return None
    at = words.index("and")
    whole, rest = number_words(words[:at]), number_words(words[at + 1 :])
    if not whole or not rest or (whole[1], rest[1]) != (at, len(words) - at - 1):
        return None
    hundreds = words[at - 1] == "hundred" and rest[0] < 100
    return whole[0] + rest[0] if rest[0] < 1 or hundreds else None


def unit(line: str, spaced: bool) -> str | None:
    r"""Gives the one name of a unit: `square meters` is m^2, `\frac{m}{s}` m/s.

    The line is as `tokens.flat` writes it; `spaced` where a blank stands before it, or set as text.
    """
    line = " ".join(word for word in line.split() if word.lower() not in _FILLERS)
    line = re.sub(r"(?:degrees?|°) ?(Celsius|Fahrenheit)", lambda m: "°" + m[1][0], line)
    line = re.sub(r"^\((.*)\)$", r"\1", line).replace("per cent", "percent").replace("\\", "")
    line = re.sub(r"^frac\{([^{}]*)\}\{(.*)\}$", r"\1/\2", line)
    if line in _APART and not spaced:
        return None
    names = [_one_unit(part) for part in re.split(r"/|\bper\b|每", line)]
    if len(names) > 2 or not all(names):
        return None
    return "/".join(map(str, names))


def _one_unit(text: str) -> str | None:
    if "cdot" in text:
        names = [_one_unit(factor) for factor in text.split("cdot")]
        return "·".join(map(str, names)) if all(names) else None
    match = _ONE_UNIT.fullmatch(text.strip().rstrip("."))
    if match is None:
        return None
    name, power = match["name"], (match["shape"] or match["power"] or "").strip()
    spellings = [name]
    if len(name) > 3 or (len(name) == 2 and name[0] != "M"):  # Mg is not mg
        spellings.append(name.lower())
    if len(name) > 3:
        spellings.append(name.removesuffix("s").lower())
    unit_name = next((_UNITS[spelling] for spelling in spellings if spelling in _UNITS), None)
    if unit_name is None or not power:
        return unit_name
    if match["power"] and not (name[0] + unit_name[0]).isalpha():
        return None
    return f"{unit_name}^{2 if power[0] in 's平' or '2' in power else 3}"


def scale(name: str) -> tuple[int, int] | None:
    """What family of units this one belongs to, and its size there; None for the others."""
    return _SCALE.get(name)


def noun(words: Sequence[str], single: bool) -> str | None:
    """Names what is counted: "counted ball", or "narrowed red ball"; None for other words.

    A counted noun may stand beside a bare number or not; one that is narrowed says more than the
    number, so an answer may not add it. Where a `single` thing is counted, no plural is needed.
    """
    if len(words) == 1 and words[0][0] in _COUNTERS:  # a counter, and in Chinese what it counts
        return "counted" if len(words[0]) == 1 else f"narrowed {words[0][1:]}"
    words = [word.lower() for word in words]
    if len(words) > 4 or any(len(word) < 3 or not word.isascii() for word in words):
        return None
    kinds = [word for word in words if word not in _FILLERS]
    if not kinds:
        return "counted"
    *adjectives, last = kinds
    stem = _singular(last)
    if NO_NOUNS.intersection((*kinds, stem)) or stem.endswith(("illion", "tieth", "teenth")):
        return None
    plain = not adjectives and (single or stem != last or last in _PLURALS)
    return " ".join(("counted" if plain else "narrowed", *adjectives, stem))


def _singular(word: str) -> str:
    """Takes off the ending of the plural; adverbs such as upwards have none."""
    if word.endswith(("ss", "us", "is", "wards", "abouts")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    endings = ("ses", "xes", "zes", "ches", "shes")
    return word[:-2] if word.endswith(endings) else word.removesuffix("s")
