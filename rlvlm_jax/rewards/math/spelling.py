# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Spells the content of a box in one way: typed characters and plain text as LaTeX.

First step of reading an answer, before `tokens`. Works on text alone.
"""

import itertools
import re
import unicodedata
from typing import Any

MAX_CHARS = 2000  # of a box's content; longer ones are not answers


class Unreadable(Exception):  # noqa: N818 (an outcome; its text names the construct)
    """Raised for what cannot be read as mathematics or as words."""


_UNICODE = """α:alpha β:beta γ:gamma δ:delta ε:epsilon ζ:zeta η:eta θ:theta ι:iota κ:kappa
    λ:lambda μ:mu ν:nu ξ:xi ρ:rho σ:sigma τ:tau υ:upsilon φ:phi χ:chi ψ:psi ω:omega π:pi
    Γ:Gamma Δ:Delta Θ:Theta Λ:Lambda Σ:Sigma Φ:Phi Ψ:Psi ×:times ÷:div ·:cdot ⋅:cdot •:cdot
    ±:pm ∓:mp ≤:le ⩽:le ≦:le ≥:ge ⩾:ge ≧:ge ≠:ne ≈:approx ∥:parallel ⊥:perp ∞:infty ∪:cup ∩:cap
    →:to ∈:in ∅:emptyset ∠:angle △:triangle ∴:therefore ∵:because ∃:exists ∀:forall
    ⇒:Rightarrow √:surd ∑:sum ∫:int ≅:cong ≌:cong ∽:sim ∼:sim ∧:wedge ∨:vee ⊂:subset ⊆:subseteq
    ∉:notin ⌊:lfloor ⌋:rfloor ⌈:lceil ⌉:rceil ✓:checkmark …:ldots ⋯:ldots ⟨:langle ⟩:rangle
    〈:langle 〉:rangle ℝ:mathbb{R} ℤ:mathbb{Z} ℕ:mathbb{N} ½:frac12 ⅓:frac13 ⅔:frac23 ¼:frac14
    ¾:frac34 ⅛:frac18 ⅜:frac38 ⅝:frac58 ⅞:frac78 ⅕:frac15 ⅖:frac25 ⅗:frac35 ⅘:frac45 ⅙:frac16
    ⅚:frac56"""
_CHARS: dict[int, Any] = {0xFF01 + i: 0x21 + i for i in range(93)}  # full-width forms of ASCII
_CHARS |= {ord(pair[0]): rf"\{pair[2:]} " for pair in _UNICODE.split()}
_CHARS |= {0x2460 + i: rf"\circled{{{i + 1}}}" for i in range(10)}  # ①
_CHARS |= str.maketrans("−﹣‐‑‒–—′’。、￥º˚“”″∶\u2126", '-------\'\'.,¥°°""":Ω')
_CHARS |= str.maketrans(dict.fromkeys("\u00a0\u2002\u2003\u2009\u200a\u202f\u3000\t\r~", " "))
# no width, direction of writing, soft hyphen: nothing on the page
_CHARS |= str.maketrans(dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad", None))
_CHARS |= {ord("℃"): "°C", ord("℉"): "°F"}
for _code in range(0x1D400, 0x1D800):  # italic and bold letters
    _CHARS[_code] = unicodedata.normalize("NFKC", chr(_code)).translate(_CHARS)
for _code in range(0x3380, 0x33E0):  # ㎝, ㎡
    _unit = unicodedata.normalize("NFKC", chr(_code))
    _CHARS[_code] = re.sub(r"^(\D+)(\d?)$", r"\\text{ \1}^{\2}", _unit).removesuffix("^{}")
_SMALL = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ₀₁₂₃₄₅₆₇₈₉ₙ", "0123456789+-n0123456789n")
_THOUSANDS = re.compile(r"(?<![\d,.])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_SPACED_THOUSANDS = re.compile(r"\s*[-+]?\d{1,3}(?: \d{3})+(?:\.\d*)?\s*")
_REWRITES: list[tuple[re.Pattern[str], Any]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\$", "＄"),
        ("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda match: f"^{{{match[0].translate(_SMALL)}}}"),
        ("[₀₁₂₃₄₅₆₇₈₉ₙ]+", lambda match: f"_{{{match[0].translate(_SMALL)}}}"),
        (r"(?<=\S)\${1,2}\s+\${1,2}(?=\S)", r"\\\\ "),  # two formulas side by side: 7$$ $$10
        (r"(\\\\)(?:\s*\[[\d. ]*[a-z]{2}\])?|\\[()\[\]]|\$(?!textdegree)", r"\1"),
        (r"\\newline(?![A-Za-z])", r"\\\\ "),
        (r"\$?\\?text\s*degrees?(?![A-Za-z])", "°"),
        (r"(?<=\d)\s*(?:\{,\s*\}|\\[,;]|,\s*\\!|\\!\s*,|\\thinspace)\s*(?=\d{3}(?!\d))", ""),
        (r"(?<!\\)%", r"\\%"),
        (r"\\not\s*=", r"\\ne "),
        (r"\\not\s*\\in(?![A-Za-z])", r"\\notin "),
        (r"(?<=\d)(\s*)''", r'\1"'),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"(?<=[\sa-jlo-zA-Z])!=", r"\\ne "),
        (r"\+/-|\+-", r"\\pm "),
        (r"->", r"\\to "),
        (r"(\\left|\\right)\.", r"\1{}"),  # no bracket
        # colors and tags; white on white is a way to hide
        (r"\\color\s*\{(?!(?i:white|transparent|#f))[^{}!]*\}|\\tag\s*\{(?:\d*|\*|[a-z])\}", "{}"),
        (r"\\textcolor\s*\{(?!(?i:white|transparent|#f))[^{}!]*\}", r"\\mathord "),
        (r"\\[hv]space\s*\{-?[\d.]*\\?[a-z]+\}", " "),
        (
            r"\\(?:SI|qty|quantity)\s*\{((?:[^{}]|\{[^{}]*\})*)\}",
            r"\\text{\1} \\unit ",
        ),  # \SI{5}{cm}
        (r"\\(?:overset|stackrel)\s*(\{\s*)?\\frown(?![A-Za-z])\s*(?(1)\})", r"\\wideparen "),
        (r"(\\begin|\\end)\s+\{", r"\1{"),
        (r"(\\begin\{array\})\{(?:[^{}]|\{[^{}]*\})*\}", r"\1"),  # without its columns
        (r"(\\log_)(\w)", r"\1{\2}"),  # \log_23 is the logarithm of 3
        (r"(?<!\*)\*\*(?=[\w({-])", "^"),
        (r"\.\s*\.(?:\s*\.)+|(?<=[,;])\s*\?", r"\\ldots "),
        (r"(\d) ?[xX] ?(?=10\^)", r"\1\\times "),
        (r"(?<![A-Za-z\\])(\d+(?:\.\d*)?)[eE](\d{1,3}|[-+]\d\d\d?)(?![\w.])", r"\1\\times 10^{\2}"),
    )
]
# What may stand around or before an answer and adds nothing to it
_DECORATION = re.compile(r"(\*\*|`{1,3}|\")(?P<inside>(?:(?!\1).)+)\1", re.DOTALL)
_SAID = (
    r"(?:(?:the )?(?:final |correct )?answer\s*(?:is(?![A-Za-z])\s*:?|[:=])"
    r"|答案\s*(?:是|为)?\s*:?)\s*"
)
_LEAD = re.compile(
    rf"^(?:\*\*)?(?:\\text\{{\s*{_SAID}\}}|(\\text\{{)?\s*{_SAID})(?:\*\*)?\s*(?=\S)", re.IGNORECASE
)


def plain(content: str) -> str:
    """Writes typed characters as LaTeX, and takes off what only stands around an answer."""
    text, before = content.translate(_CHARS).strip(), ""
    while text != before:  # **Answer: 20** and Answer: **20**
        before = text
        decorated = _DECORATION.fullmatch(text)
        text = _LEAD.sub(r"\1", decorated["inside"].strip() if decorated else text).strip()
    if text.startswith("{") and text.endswith("}") and 0 not in depths(text)[:-1]:
        text = text[1:-1].strip()
    for pattern, replacement in _REWRITES:
        if pattern.search(text):  # most do not, and a replacement is parsed before it is used
            text = pattern.sub(replacement, text)
    if len(text) > 3 * MAX_CHARS:
        raise Unreadable(f"more than {MAX_CHARS} characters")
    return text.replace(" ", "") if _SPACED_THOUSANDS.fullmatch(text) else text


def depths(text: str) -> list[int]:
    """How many brackets are open after each character."""
    return list(itertools.accumulate((char in "([{") - (char in ")]}") for char in text))


def join_thousands(text: str) -> str:
    """Takes the commas out of 1,234; not inside brackets, where they part coordinates."""
    open_at = depths(re.sub(r"(?<!\\)[{}]", " ", text))  # \frac{1,234}{2}
    return _THOUSANDS.sub(
        lambda match: match[0] if open_at[match.start()] else match[0].replace(",", ""), text
    )
