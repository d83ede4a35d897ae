# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What is no arithmetic: times, dates, scores, number bases, compounds, choices.

Part of reading an answer, from its tokens.
"""

import re

from rlvlm_jax.rewards.math import units
from rlvlm_jax.rewards.math.spans import every, trim
from rlvlm_jax.rewards.math.tokens import Token, Tokens, flat
from rlvlm_jax.rewards.math.tree import Tree, number

_TIME = re.compile(
    r"(?P<h>\d{1,2})(?::(?P<m>\d\d))?(?::(?P<s>\d\d))? ?(?:(?P<half>[ap])\.?m\.?|o'clock)?", re.I
)
_MONTHS = "january february march april may june july august september october november december"
_MONTH = {name: i + 1 for i, full in enumerate(_MONTHS.split()) for name in (full, full[:3])}
_DATES = (
    re.compile(r"(?P<month>[A-Za-z]{3,9})\.? ?(?P<day>\d{1,2})(?:st|nd|rd|th)?"),
    re.compile(r"(?P<day>\d{1,2})(?:st|nd|rd|th)?(?: of)? ?(?P<month>[A-Za-z]{3,9})"),
    re.compile(r"(?P<month>\d{1,2})月(?P<day>\d{1,2})[日号]"),
)
_NUMERIC_DATE = re.compile(r"(\d{1,4})([-/.])(\d{1,2})\2(\d{1,4})")
_DOTTED_LIST = re.compile(
    r"\d(?:\.\d){2,}\.?|(?:\(\d\)){2,}"
)  # the numbers of right statements, 1.3.4.
_SCORE = re.compile(r"(\d{1,3})-(\d{1,3})")
_BASE = re.compile(
    r"\(?([0-9A-F]*\d[0-9A-F]*)\)?_\{\(?(\d{1,2}|[a-z]+)\)?\}|([0-9A-F]+) ?base ?(\w+)"
)
_CHOICE = re.compile(
    r"\(([A-J])\)|([A-J])[.):]|(?:[Oo]ption|[Cc]hoice):? *\(?([A-J])(?![A-Za-z])"
    r"|([A-J])(?= \d|[(\\])"
)
# Another choice, or what takes the letter back
_OTHER_CHOICE = re.compile(
    r"\([A-J]\)|(?<![A-Za-z\\])[A-J][.):](?!\w)|(?:or|and) [a-j][.)]|or none|n't|invalid"
    r"|(?i:^(?:or|and|is|if|but|unless|except|maybe|perhaps|possibly|probably|likely))(?!\w)|(?i:^no,)"
    r"|(?i:(?:is|are|was) ?(?:not|wrong|incorrect|false)|not (?:right|correct|sure))"
    r"|^(?:不对|不是|错误|不正确)$"
)
CHOICES = frozenset("ABCDEFGHIJ")
_LITERAL_SIGNS = frozenset(":-/.")


def literal(tokens: Tokens) -> Tree | None:
    """Reads one of these; None for anything else."""
    if all(token.kind == "circled" for token in tokens):
        numbers = tuple(number(token.value) for token in tokens)
        return numbers[0] if len(numbers) == 1 else Tree("list", numbers, ",")
    if _DOTTED_LIST.fullmatch(flat(tokens)):
        return Tree("list", tuple(map(number, re.findall(r"\d", flat(tokens)))), ",")
    written = (t.value in _LITERAL_SIGNS or t.kind in ("run", "han", "sub") for t in tokens)
    if not any(written) and not (len(tokens) > 1 and tokens[1].kind == "number"):
        return None
    line = flat(tokens)
    time = _TIME.fullmatch(line)
    seconds = time and time["s"] and not re.search(r"(?<!\d)0\d", line)
    if time and (time["half"] or (time["m"] and not seconds) or "clock" in line):
        hour, minute, second = (int(time[part] or 0) for part in "hms")
        if hour < 25 and minute < 60 and second < 60:
            half = (time["half"] or "").lower()
            return Tree("time", (hour, minute, second), half)
    for pattern in _DATES:
        date = pattern.fullmatch(line)
        month = date and (
            _MONTH.get(date["month"].lower()) or date["month"].isdigit() and int(date["month"])
        )
        if month:
            return Tree("date", (month, int(date["day"])))
    numeric = _NUMERIC_DATE.fullmatch(line)
    if numeric and not (numeric[2] == "." and len(numeric[1]) < 4 > len(numeric[4])):
        return Tree("date", tuple(int(numeric[i]) for i in (1, 3, 4)), "numeric")
    score = _SCORE.fullmatch(line)
    if score:
        return Tree("score", (number(score[1]), number(score[2])))
    base = _BASE.fullmatch(line)
    if base and (base[3] or tokens[-1].kind == "sub"):
        digits, name = (base[3], base[4]) if base[3] else (base[1], base[2])
        radix = units.number_words([name])
        if tokens[0].kind != "run" or (name.isdigit() and int(name) > 10):  # A_2 is a letter
            return Tree("base", (digits.lstrip("0") or "0", str(radix[0]) if radix else name))
    return None


def counted(tokens: Tokens) -> tuple[Tokens, int]:
    """Writes a number in words at the start as digits: three apples, sixty-five degrees."""
    ends, words = [], []
    for i, token in enumerate(tokens):
        if token.kind not in ("run", "number") and token.value != "-":
            break
        if token.kind == "run" or (token.kind == "number" and not i):
            words.append(token.value.lower())
            ends.append(i + 1)
    count = units.number_words(words) if tokens[0].kind == "run" else None
    if not count or ends[count[1] - 1] == len(tokens):
        return tokens, 0
    return (Token("number", str(count[0])), *tokens[ends[count[1] - 1] :]), 1


def compound(tokens: Tokens) -> Tree | None:
    """Reads 1 hour 20 minutes or 40°30'."""
    parts, at = [], 0
    while at < len(tokens):
        end = at + 1
        while end < len(tokens) and tokens[end].kind != "number":
            end += 1
        unit = units.unit(flat(tokens[at + 1 : end]), spaced=True)
        if tokens[at].kind != "number" or unit is None or not units.scale(unit):
            return None
        if parts and parts[0].mark == "°":
            unit = {"min": "'", "s": '"'}.get(unit, unit)
        parts.append(Tree("quantity", (number(tokens[at].value),), unit))
        at = end
    sizes = [units.scale(part.mark) for part in parts]
    one_scale = all(units.same_scale(parts[0].mark, part.mark) for part in parts)
    ordered = one_scale and all(a[1] > b[1] for a, b in zip(sizes, sizes[1:], strict=False))
    return Tree("compound", tuple(parts)) if ordered and len(parts) > 1 else None


def is_constant(token: Token) -> bool:
    """Whether a token may be part of a number without a unit."""
    if token.kind in ("number", "frac", "root", "sup", "group"):
        return not any(t.kind in ("run", "han") for part in token.args for t in every(part))
    return token.value in ("pi", "times", "cdot", "div", "!") or (
        token.kind == "sign" and token.value in "+-*/().,:"
    )


def choice(tokens: Tokens) -> tuple[str, Tokens] | None:
    """The letter of a choice and its text, as `B. 12 cm`; None where another letter follows."""
    if tokens[0].value not in CHOICES and tokens[0].value.lower() not in ("(", "option", "choice"):
        return None
    match = _CHOICE.match(flat(tokens))
    letter = match and (match[1] or match[2] or match[3] or match[4])
    start = next((i for i, token in enumerate(tokens) if token.value == letter), -1) + 1
    while letter and start < len(tokens) and tokens[start].value in (")", ".", ":", ")."):
        start += 1
    rest = trim(tokens[start:])
    line = flat(rest)
    if match and letter and not rest and (match[3] or (match[2] and flat(tokens).endswith(")"))):
        return letter, ()
    begins = rest and (rest[0].kind in ("number", "frac", "root") or rest[0].value == "(")
    begins = begins and not (rest[0].value == "(" and "," in line)  # the point A (4, -1)
    if not match or not letter or not rest or (match[4] and not (begins and rest[0].space)):
        return None
    return None if _OTHER_CHOICE.search(line) else (letter, rest)
