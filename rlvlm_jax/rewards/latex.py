# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""Text work on answers: finding the last `\boxed{}` and writing its content in one normal form.

First half of the strict judge. Everything here is plain string work whose time grows linearly with
its input (box search) or whose input is bounded (the rest), so it needs no deadline. It does not
know which answers are equal; see `math_answer`.
"""

import re
from functools import lru_cache
from typing import NamedTuple

MAX_CHARS = 2000  # of a box's content; longer ones are not answers

_BOX = re.compile(r"\\boxed(?![A-Za-z])\s*(\{|$)")


def last_box(text: str) -> str | None:
    r"""Finds the content of the last `\boxed{}`.

    A backslash escapes the character after it, so `\{` and `\}` do not count as braces. Runs in
    linear time and without recursion, whatever the nesting.

    Returns:
        The text between the braces, or None where there is no box or the last one is cut off.
    """
    last = None
    for last in _BOX.finditer(text):  # noqa: B007 (only the last one is wanted)
        pass
    if last is None or not last.group(1):
        return None
    start = last.end()
    depth = 1
    for token in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        if token.group() == "{":
            depth += 1
        elif token.group() == "}":
            depth -= 1
            if depth == 0:
                return text[start : start + token.start()]
    return None


# --------------------------------------------------------------------------------------------------
# Normal form
# --------------------------------------------------------------------------------------------------

DEGREE = "°"
TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
DOLLAR = "\uff04"  # an escaped dollar is money, a bare one only delimits mathematics

_CHARS = {0xFF01 + i: 0x21 + i for i in range(94)}  # full-width forms of ASCII
_CHARS |= str.maketrans(dict.fromkeys("−﹣‐‑‒–—", "-"))
_CHARS |= str.maketrans(dict.fromkeys("\u00a0\u2002\u2003\u2009\u200a\u202f\u3000\t\r", " "))
_CHARS |= str.maketrans(dict.fromkeys("\u200b\u2060\ufeff", None))
_CHARS |= str.maketrans({"。": ".", "、": ",", "￥": "¥", "º": DEGREE, "˚": DEGREE})
_CHARS |= str.maketrans(
    {
        "×": r"\times ",
        "÷": r"\div ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "±": r"\pm ",
        "∓": r"\mp ",
        "≤": r"\le ",
        "⩽": r"\le ",
        "≥": r"\ge ",
        "⩾": r"\ge ",
        "≠": r"\ne ",
        "∞": r"\infty ",
        "∪": r"\cup ",
        "→": r"\to ",
        "∈": r"\in ",
        "∅": r"\emptyset ",
        "∠": r"\angle ",
        "△": r"\triangle ",
        "π": r"\pi ",
        "α": r"\alpha ",
        "β": r"\beta ",
        "γ": r"\gamma ",
        "θ": r"\theta ",
        "λ": r"\lambda ",
        "ω": r"\omega ",
        "½": r"\frac{1}{2}",
        "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}",
        "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}",
        "²": "^{2}",
        "³": "^{3}",
    }
)

_TEXT = (
    r"\\(?:text(?:rm|bf|it|sf|tt|normal|up)?|math(?:rm|bf|it|sf|tt|normal)"
    r"|mbox|hbox|boldsymbol|bm|number|num|unit|si)"
)
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\$", DOLLAR),
        # Two formulas side by side are two answers: `7$$ $$10`
        (r"(?<=\S)\${1,2}\s+\${1,2}(?=\S)", "\n"),
        (r"\\[()\[\]](?![A-Za-z])|\$(?!textdegree)", ""),
        (r"\\\\(?:\[[^\]]*\])?|\\newline(?![A-Za-z])", "\n"),
        # degrees in all their spellings
        (r"\$?\\?text\s*degrees?(?![A-Za-z])|\\degrees?(?![A-Za-z])", DEGREE),
        (r"(?:\{\s*\})?\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z])|\{\s*°\s*\}|°)", DEGREE),
        (r"(?:\s|\\ |~)*\\text\s*\{\s*degrees?\s*\}|(?<=[\d})])\s*degrees?(?![A-Za-z])", DEGREE),
        # thousands separators that cannot be anything else
        (r"(?<=\d)(?:\{,\}|\\,|,\\!|\\!,|\\thinspace)(?=\d{3}(?!\d))", ""),
        # spacing, sizes, styles
        (r"\\[,;:!> ]|~|\\(?:q?quad|thinspace|enspace|hfill|nobreak)(?![A-Za-z])", " "),
        (r"\\(?:left|right)(?![A-Za-z])\s*\.", ""),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])", ""),
        (r"\\(?:display|text|script)style(?![A-Za-z])|\\(?:no)?limits(?![A-Za-z])", ""),
        (r"\\(?:quantity|qty|SI)\s*(\{[^{}]*\})\s*(\{[^{}]*\})", r"\1 \2"),
        # one name a thing
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\%", "%"),
        (r"\\(?:leqslant|leqq|leq|le)(?![A-Za-z])\s*", r"\\le "),
        (r"\\(?:geqslant|geqq|geq|ge)(?![A-Za-z])\s*", r"\\ge "),
        (r"\\neq?(?![A-Za-z])\s*", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:infin|infty)(?![A-Za-z])\s*", r"\\infty "),
        (r"\+\s*\\infty", r"\\infty"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\(?:lor|vee)(?![A-Za-z])", " or "),
        (r"√\s*(\d+(?:\.\d+)?|[A-Za-z])", r"\\sqrt{\1}"),
        (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"√\s*(?=\{)", r"\\sqrt"),
    )
]
_UNWRAP = re.compile(_TEXT + r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_SHORT_FORMS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\frac\s*([0-9A-Za-z])\s*([0-9A-Za-z])", r"\\frac{\1}{\2}"),
        (r"\\frac\s*([0-9A-Za-z])\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*([0-9A-Za-z])", r"\1{\2}"),
        (r"\\sqrt\s*([0-9A-Za-z])", r"\\sqrt{\1}"),
        (r" *([\^_])\s*([0-9A-Za-z]|(?=\{))", lambda m: m[1] + (m[2] and f"{{{m[2]}}}")),
        (r"\{ *([0-9A-Za-z.+-]+) *\}", r"{\1}"),
        (r" +", " "),
        (r" *\n\s*", "\n"),
    )
]
_AFTER_COMMAND = re.compile(r"(\\[A-Za-z]+) +(?![A-Za-z ])")
_NEEDLESS_SPACE = re.compile(r"(?<![A-Za-z0-9.]) | (?![A-Za-z0-9.])")


@lru_cache(maxsize=4096)
def normalise(content: str) -> str:
    r"""Writes the content of a box in one form: ASCII, no delimiters, no spacing, no text wrappers.

    `\dfrac12` becomes `\frac{1}{2}`, `30^{\circ}` becomes `30°`, `20\,\text{cm}` becomes `20 cm`.
    Line breaks stay, for they part answers. At most `MAX_CHARS` characters are accepted.
    """
    s = content.translate(_CHARS)
    for pattern, replacement in _REWRITES:
        s = pattern.sub(replacement, s)
    for _ in range(8):  # innermost first; deeper nesting is no answer
        unwrapped = _UNWRAP.sub(r" \1 ", s)
        if unwrapped == s:
            break
        s = unwrapped
    for pattern, replacement in _SHORT_FORMS:
        s = pattern.sub(replacement, s)
    return trim(s)


def trim(s: str) -> str:
    """Removes blanks and closing punctuation, and braces around the whole."""
    while True:
        before = s
        s = s.strip().rstrip(".,;:?").rstrip()
        s = s.lstrip(",;:").lstrip()
        if s.startswith("{") and closing(s, 0) == len(s) - 1:
            s = s[1:-1]
        if s == before:
            return s


def compact(s: str) -> str:
    """Drops the blanks that carry no meaning: all but those between words or numbers."""
    return _NEEDLESS_SPACE.sub("", _AFTER_COMMAND.sub(r"\1", s))


# --------------------------------------------------------------------------------------------------
# Brackets
# --------------------------------------------------------------------------------------------------

_BRACKET = re.compile(r"\\[{}]|\\.|[()\[\]{}]", re.DOTALL)
_OPENING = {"(", "[", "{", r"\{"}
_CLOSING = {")", "]", "}", r"\}"}


def closing(s: str, start: int) -> int:
    """Index of the last character of the bracket that closes the one at `start`, or -1.

    Round and square ones may close each other, as in the interval [0, 1).
    """
    depth = 0
    for token in _BRACKET.finditer(s, start):
        if token.group() in _OPENING:
            depth += 1
        elif token.group() in _CLOSING:
            depth -= 1
            if depth == 0:
                return token.end() - 1
    return -1


def nesting(s: str) -> int | None:
    """Depth of the deepest bracket, or None where brackets do not pair off."""
    depth = deepest = 0
    for token in _BRACKET.finditer(s):
        depth += (token.group() in _OPENING) - (token.group() in _CLOSING)
        deepest = max(deepest, depth)
        if depth < 0:
            return None
    return None if depth else deepest


def split(s: str, separator: re.Pattern[str]) -> list[str]:
    """Splits at a separator wherever it stands outside all brackets."""
    parts, start, depth = [], 0, 0
    inside = []
    for token in _BRACKET.finditer(s):
        if token.group() in _OPENING:
            if depth == 0:
                opened = token.start()
            depth += 1
        elif token.group() in _CLOSING and depth > 0:
            depth -= 1
            if depth == 0:
                inside.append((opened, token.end()))
    if depth > 0:
        inside.append((opened, len(s)))
    spans = iter(inside)
    low, high = next(spans, (len(s) + 1, len(s) + 1))
    for match in separator.finditer(s):
        while match.start() >= high:
            low, high = next(spans, (len(s) + 1, len(s) + 1))
        if match.end() <= low:
            parts.append(s[start : match.start()])
            start = match.end()
    parts.append(s[start:])
    return parts


# --------------------------------------------------------------------------------------------------
# Units
# --------------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """A value and the unit beside it."""

    value: str
    unit: str | None  # one name a unit; None where there is none, or a counted noun ("5 apples")


_UNIT_NAMES = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "dm": "decimeter decimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "in": "inch inche",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "mg": "milligram",
    "g": "gram",
    "kg": "kilogram",
    "lb": "pound",
    "oz": "ounce",
    "ton": "tonne",
    "s": "second sec",
    "min": "minute",
    "h": "hour hr",
    "day": "",
    "week": "",
    "month": "",
    "year": "",
    "ml": "milliliter millilitre mL",
    "L": "liter litre",
    "rad": "radian",
    "Hz": "hertz",
    "Pa": "pascal",
    "kPa": "",
    "kJ": "",
    "J": "joule",
    "N": "newton",
    "W": "watt",
    "kW": "",
    "kWh": "",
    "mol": "mole",
    "dollar": "USD",
    "cent": "",
    "yuan": "RMB CNY",
    "euro": "EUR",
    "unit": "",
    "mph": "",
    "K": "kelvin",
}
_UNITS = {name: unit for unit, names in _UNIT_NAMES.items() for name in (unit, *names.split())}
_MONEY = {DOLLAR: "dollar", "€": "euro", "£": "pound", "¥": "yuan"}
# After a number these words are no counted noun: they change its value or the claim made.
_NOT_NOUNS = frozenset(
    """hundred thousand million billion trillion dozen score half quarter third percent percentage
    pct squared cubed times plus minus over mod modulo factorial root power per and not nor but
    unless except maybe possibly perhaps approximately about either neither more less than least
    most greater fewer other above below between true false wrong correct yes none infinity the for
    with from into""".split()  # noqa: SIM905 (a list of sixty strings is harder to read)
)
_POWER = r"(?:\^\{?([23])\}?)?"
_ONE_UNIT = rf"(?:(square|cubic|sq\.?|cu\.?)\s+)?([A-Za-z]+){_POWER}"
_TAIL = re.compile(rf"(?:(?<=[\d}})!])|(?<=\\pi)\s) *({_ONE_UNIT}(?:\s*(?:/|per)\s*{_ONE_UNIT})?)$")
_NOUNS = re.compile(r"^([-+]?[\d.,]+)((?: +[A-Za-z]{3,}){1,3})$")
_PER = re.compile(r"\s*(?:/|\bper\b)\s*")


def measured(s: str) -> Measured:
    """Parts a value from the unit beside it.

    `20 cm^2` gives ("20", "cm^2"), and `5 apples` gives ("5", None), for a noun is only counted.

    Percent is no unit: it changes the value.
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
        if all(names) and not re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", value)):
            return Measured(value, "/".join(names))
    match = _NOUNS.match(s)
    if match and not _NOT_NOUNS & set(match.group(2).lower().split()):
        return Measured(match.group(1), None)
    return Measured(s, None)


def _unit(text: str) -> str | None:
    match = re.fullmatch(_ONE_UNIT, text.strip())
    if match is None:
        return None
    shape, name, power = match.groups()
    unit = _UNITS.get(name) or _UNITS.get(name.lower()) if len(name) > 1 else _UNITS.get(name)
    if unit is None and name.endswith("s"):
        unit = _UNITS.get(name[:-1].lower()) if len(name) > 3 else None
    if unit is None:
        return None
    if shape:
        power = "2" if shape.startswith("s") else "3"
    return f"{unit}^{power}" if power else unit
