# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""Text work on answers: finding the last `\boxed{}` and writing its content in one normal form.

First half of the strict judge. Everything here is plain string work whose time grows linearly with
its input (box search) or whose input is bounded (the rest), so it needs no deadline. It does not
know which answers are equal; see `math_answer`.
"""

import itertools
import re
import unicodedata
from functools import lru_cache

MAX_CHARS = 2000  # of a box's content; longer ones are not answers
MANY_BOXES = 16

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
    return None if last is None else _content(text, last)


def has_several_answers(text: str) -> bool:
    """Tells whether a text boxes different things, as a guess at several answers would.

    Only the first `MANY_BOXES` boxes are looked at.
    """
    boxes = itertools.islice(_BOX.finditer(text), MANY_BOXES)
    return len({content for box in boxes if (content := _content(text, box)) is not None}) > 1


def _content(text: str, box: re.Match[str]) -> str | None:
    """The text between the braces of a box; None where they do not close."""
    if not box.group(1):
        return None
    start = box.end()
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

_CHARS = {0xFF01 + i: 0x21 + i for i in range(93)}  # full-width forms of ASCII but for the tilde
_CHARS |= {i: " " + unicodedata.normalize("NFKC", chr(i)) for i in range(0x3380, 0x33E0)}  # ㎝, ㎡
_CHARS |= str.maketrans(dict.fromkeys("−﹣‐‑‒–—", "-"))
_CHARS |= str.maketrans(dict.fromkeys("\u00a0\u2002\u2003\u2009\u200a\u202f\u3000\t\r", " "))
# no width, direction of writing, soft hyphen: nothing on the page
_CHARS |= str.maketrans(dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad", None))
_CHARS |= str.maketrans({"。": ".", "、": ",", "￥": "¥", "º": DEGREE, "˚": DEGREE})
_CHARS |= str.maketrans({"℃": "°C", "℉": "°F", "\u2126": "Ω", "“": '"', "”": '"'})
GREEK = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"),
    *("lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega"),
)
_CHARS |= {
    ord(letter): rf"\{name} " for letter, name in zip("αβγδεζηθικλμνξρστυφχψω", GREEK, strict=True)
}
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
        "≈": r"\approx ",
        "∥": r"\parallel ",
        "⊥": r"\perp ",
        "∞": r"\infty ",
        "∪": r"\cup ",
        "→": r"\to ",
        "∈": r"\in ",
        "∅": r"\emptyset ",
        "∠": r"\angle ",
        "△": r"\triangle ",
        "π": r"\pi ",
        "½": r"\frac{1}{2}",
        "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}",
        "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}",
        "…": "...",
        "⋯": "...",
    }
)

_SMALL = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ₀₁₂₃₄₅₆₇₈₉ₙ", "0123456789+-n0123456789n")
_TEXT = (
    r"\\(?:text(?:rm|bf|it|sf|tt|normal|up)?|math(?:rm|bf|it|sf|tt|normal)"
    r"|mbox|hbox|boldsymbol|bm|number|num|unit|si|emph|underline|fbox)"
)
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\$", DOLLAR),
        ("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda m: f"^{{{m[0].translate(_SMALL)}}}"),
        ("[₀₁₂₃₄₅₆₇₈₉ₙ]+", lambda m: f"_{{{m[0].translate(_SMALL)}}}"),
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
        # what is left out is a part of the answer as well; a lone question mark is no better
        (r"\.(?:\s*\.)+|\\[lc]?dots[bcimo]?(?![A-Za-z])|(?<=[,;])\s*\?", r"\\ldots "),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])", ""),
        (r"\\(?:display|text|script)style(?![A-Za-z])|\\(?:no)?limits(?![A-Za-z])", ""),
        (r"\\(?:quantity|qty|SI)\s*(\{[^{}]*\})\s*(\{[^{}]*\})", r"\1 \2"),
        (r"\\(?:text)?color\s*\{(?!\s*white)[^{}]*\}", ""),
        # lines under one another that all hold
        (
            r"(?s)(?:\\\{\s*)?\\begin\{(cases|array|aligned|align\*?|gathered)\}(?:\{[lcr| ]*\})?"
            r"(.*?)\\end\{\1\}",
            lambda m: _AMPERSAND.sub("", m[2]).strip().replace("\n", ","),
        ),
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
        (r"\\(?:land|wedge)(?![A-Za-z])", " and "),
        (r"\\overrightarrow(?![A-Za-z])", r"\\vec"),
        (r"\\Omega(?![A-Za-z])", "Ω"),
        (r"(?<=\d)\s*度", DEGREE),
        (r"√\s*(\d+(?:\.\d+)?|[A-Za-z])", r"\\sqrt{\1}"),
        (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"√\s*(?=\{)", r"\\sqrt"),
    )
]
_AMPERSAND = re.compile(r"&(?=\s*(?:[=<>]|\\[lg]e))|(?<=[=<>])&")
_UNWRAP = re.compile(_TEXT + r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_SHORT_FORMS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\frac\s*([0-9A-Za-z])\s*([0-9A-Za-z])", r"\\frac{\1}{\2}"),
        (r"\\frac\s*([0-9A-Za-z])\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*([0-9A-Za-z])", r"\1{\2}"),
        (r"\\sqrt\s*([0-9A-Za-z])", r"\\sqrt{\1}"),
        (r"(\\(?:vec|hat|bar|dot|overline))(?![A-Za-z])\s*([0-9A-Za-z])", r"\1{\2}"),
        (r" *([\^_])\s*([0-9A-Za-z]|(?=\{))", lambda m: m[1] + (m[2] and f"{{{m[2]}}}")),
        (r"\{ *([0-9A-Za-z.+-]+) *\}", r"{\1}"),
        # the period of a recurring decimal, under dots or a bar
        (r"(\.\d*)\\dot\{(\d)\}(?:(\d*)\\dot\{(\d)\})?", r"\1\\overline{\2\3\4}"),
        (r"(\.\d*)\\bar(?=\{\d)", r"\1\\overline"),
        (r" +", " "),
        (r" *\n\s*", "\n"),
    )
]
# What may stand around or before an answer and adds nothing to it
_DECORATION = re.compile(r"(\*\*|`+|\")(?P<inside>(?:(?!\1).)+)\1", re.DOTALL)
_LEAD = re.compile(
    r"^(?:\*\*)?(?:(?:the )?(?:final |correct )?answer\s*(?:is(?![A-Za-z])\s*:?|[:=])"
    r"|答案\s*(?:是|为)?\s*:?)(?:\*\*)?\s*(?=\S)",
    re.IGNORECASE,
)
# Words that are called out; n! stays a factorial
_CALL = re.compile(r"(?<![A-Za-z\\])([A-Za-z]{4,}|yes|no)!+$", re.IGNORECASE)
_AFTER_COMMAND = re.compile(r"(\\[A-Za-z]+) +(?![A-Za-z ])")
_NEEDLESS_SPACE = re.compile(r"(?<![A-Za-z0-9.]) | (?![A-Za-z0-9.])")


@lru_cache(maxsize=4096)
def normalise(content: str) -> str:
    r"""Writes the content of a box in one form: ASCII, no delimiters, no spacing, no text wrappers.

    `\dfrac12` becomes `\frac{1}{2}`, `30^{\circ}` becomes `30°`, `20\,\text{cm}` becomes `20 cm`,
    `**Answer:** 20` becomes `20`. Line breaks stay, for they part answers. At most `MAX_CHARS`
    characters are accepted.
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
    s = trim(s)
    while True:  # **Answer: 20** and Answer: **20**
        decorated = _DECORATION.fullmatch(s)
        inside = _LEAD.sub("", decorated["inside"].strip() if decorated else s, count=1)
        if inside == s:
            return _CALL.sub(r"\1", s)
        s = trim(inside)


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
