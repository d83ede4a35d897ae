# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What is no arithmetic: times, dates, scores, number bases, compounds, choices.

Part of reading an answer, from its tokens.
"""

import itertools
import re

from rlvlm_jax.rewards.math import units
from rlvlm_jax.rewards.math.spans import every, trim
from rlvlm_jax.rewards.math.tokens import Token, Tokens, flat
from rlvlm_jax.rewards.math.tree import Tree, number

_TIME = re.compile(
    r"(?P<h>\d{1,2})(?::(?P<m>\d\d))?(?::(?P<s>\d\d))? ?(?:(?P<half>[ap])\.?m\.?|o'clock)?", re.I
)
_MONTHS = "january february march april may june july august september october november december"
_MONTH = {
    name: i + 1 for i, full in enumerate(_MONTHS.split()) for name in (full, full[:3], str(i + 1))
}
_DATES = (
    re.compile(r"(?P<month>[A-Za-z]{3,9})\.? ?(?P<day>\d{1,2})(?:st|nd|rd|th)?"),
    re.compile(r"(?P<day>\d{1,2})(?:st|nd|rd|th)?(?: of)? ?(?P<month>[A-Za-z]{3,9})"),
    re.compile(r"0?(?P<month>\d{1,2})月(?P<day>\d{1,2})[日号]"),
)
_NUMERIC_DATE = re.compile(r"(?!\d{1,3}\.\d+\.\d{1,3}$)(\d{1,4})([-/.])(\d{1,2})\2(\d{1,4})")
_DOTTED_LIST = re.compile(r"\d(?:\.\d){2,}\.?|(?:\(\d\)){2,}")  # of right statements, 1.3.4.
_SCORE = re.compile(r"(\d{1,3})-(\d{1,3})")
_BASE = re.compile(
    r"\(?0*(?P<digits>[0-9A-F]*\d[0-9A-F]*)\)?_\{\(?(?P<radix>\d{1,2}|[a-z]+)\)?\}"
    r"|0*(?P<spelled>[0-9A-F]+) ?base ?(?P<named>\w+)"
)
_CHOICE = re.compile(
    r"\(([A-J])\)|([A-J])[.):]|(?:[Oo]ption|[Cc]hoice):? *\(?([A-J])(?![A-Za-z])"
    r"|(?P<bare>[A-J])(?= \d|[(\\])"
)
# Another choice, or what takes the letter back
_OTHER_CHOICE = re.compile(
    r"\([A-J]\)|(?<![A-Za-z\\])[A-J][.):](?!\w)|(?:or|and) [a-j][.)]|or none|n't|invalid"
    r"|(?i:^(?:or|and|is|if|but|unless|except|maybe|perhaps|possibly|probably|likely))(?!\w)|(?i:^no,)"
    r"|(?i:(?:is|are|was) ?(?:not|wrong|incorrect|false)|not (?:right|correct|sure))"
    r"|^(?:不对|不是|错误|不正确)$"
)
CHOICES = frozenset("ABCDEFGHIJ")
_SIGNS = frozenset(":-/.(")  # of times, scores, dates and lists


def literal(tokens: Tokens, depth: int, alone: bool) -> Tree | None:
    """Reads one of these that stands alone, at any depth; None for anything else."""
    spelled = any(t.value in _SIGNS or t.kind in ("run", "han", "sub", "circled") for t in tokens)
    if not alone or not (spelled or (len(tokens) > 1 and tokens[1].kind == "number")):
        return None
    line = flat(tokens)
    if all(token.kind == "circled" for token in tokens):
        numbers = [token.value for token in tokens]
    else:
        numbers = re.findall(r"\d", line) if _DOTTED_LIST.fullmatch(line) else []
    if numbers:
        trees = tuple(map(number, numbers))
        return trees[0] if len(trees) == 1 else Tree("list", trees, ",")
    time = _TIME.fullmatch(line)
    seconds = time and time["s"] and not re.search(r"(?<!\d)0\d", line)
    if time and (time["half"] or (time["m"] and not seconds) or "clock" in line):
        hour, minute, second = (int(time[part] or 0) for part in "hms")
        if hour < 25 and minute < 60 and second < 60:
            return Tree("time", (hour, minute, second), (time["half"] or "").lower())
    for pattern in _DATES:
        date = pattern.fullmatch(line)
        if date and date["month"].lower() in _MONTH:
            return Tree("date", (_MONTH[date["month"].lower()], int(date["day"])))
    if date := _NUMERIC_DATE.fullmatch(line):
        return Tree("date", tuple(map(int, date.group(1, 3, 4))), "numeric")
    if score := _SCORE.fullmatch(line):
        return Tree("score", tuple(map(number, score.groups())))
    if base := _BASE.fullmatch(line):
        digits, name = base["digits"] or base["spelled"], base["radix"] or base["named"]
        if tokens[0].kind != "run" or (name.isdigit() and int(name) > 10):  # A_2 is a letter
            radix = units.number_words([name])
            return Tree("base", (digits, str(radix[0]) if radix else name))
    return None


def counted(tokens: Tokens) -> tuple[Tokens, int]:
    """Writes a number in words at the start as digits: three apples, sixty-five degrees."""
    head = itertools.takewhile(lambda token: token.kind == "run" or token.value == "-", tokens)
    ends = [i + 1 for i, token in enumerate(head) if token.kind == "run"]
    count = units.number_words([tokens[end - 1].value.lower() for end in ends])
    if not count or tokens[0].kind != "run" or ends[count[1] - 1] == len(tokens):
        return tokens, 0
    rest = tokens[ends[count[1] - 1] :]
    if flat(rest[:3]) == f"({count[0]})":  # three (3) apples
        rest = rest[3:]
    return (Token("number", str(count[0])), *rest), 1


def compound(tokens: Tokens) -> Tree | None:
    """Reads 1 hour 20 minutes or 40°30'."""
    starts = [i for i, token in enumerate(tokens) if token.kind == "number"]
    if len(starts) < 2 or starts[0]:
        return None
    parts: list[Tree] = []
    for start, end in itertools.pairwise([*starts, len(tokens)]):
        unit = units.unit(flat(tokens[start + 1 : end]), spaced=True) or ""
        if parts and parts[0].mark == "°":
            unit = {"min": "'", "s": '"'}.get(unit, unit)
        parts.append(Tree("quantity", (number(tokens[start].value),), unit))
    sizes = [units.scale(part.mark) or ("", 0) for part in parts]
    families = {family for family, _ in sizes}
    descending = len(families) == 1 and sizes == sorted(set(sizes), reverse=True)
    return Tree("compound", tuple(parts)) if descending else None


def is_constant(token: Token) -> bool:
    """Whether a token may be part of a number without a unit."""
    if token.kind in ("number", "frac", "root", "sup", "group"):
        return not any(t.kind in ("run", "han") for part in token.args for t in every(part))
    return token.value in ("pi", "times", "cdot", "div", "!") or (
        token.kind == "sign" and token.value in "+-*/().,:"
    )


def choice(tokens: Tokens) -> tuple[str, Tokens] | None:
    """The letter of a choice and its text, as `B. 12 cm`; None where another letter follows."""
    if tokens[0].value.lower() not in ("(", "option", "choice") and tokens[0].value not in CHOICES:
        return None
    match = _CHOICE.match(flat(tokens))
    letter = match[match.lastindex or 0] if match else ""
    values = [token.value for token in tokens]
    if not match or letter not in values:
        return None
    after = itertools.dropwhile(
        lambda token: token.value in (")", ".", ":"), tokens[values.index(letter) + 1 :]
    )
    rest = trim(tuple(after))
    if not rest:
        return letter, ()
    line = flat(rest)
    point = rest[0].value == "(" and "," in line  # the point A (4, -1)
    begins = rest[0].kind in ("number", "frac", "root") or (rest[0].value == "(" and not point)
    if _OTHER_CHOICE.search(line) or (match["bare"] and not (begins and rest[0].space)):
        return None
    return letter, rest
