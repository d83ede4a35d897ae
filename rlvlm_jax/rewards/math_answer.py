# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""The strict judge: is the answer in the last `\boxed{}` equal to the reference answer?

Second half of the strict judge; `latex` is the first. An answer is read into a small tree of lists,
sets and brackets whose leaves are single values. Trees are compared by rule. Leaves are compared
as exact fractions where they are plain numbers (`quick`, always finite, runs anywhere), and by
math-verify where they need algebra (`strict`, may run for ever, hence only in a worker).

The rules, where taste enters:

* Numbers are equal exactly; where one of them is a decimal, to 1e-6 of the reference. Nothing is
  rounded: 13.4 is not 6√5, 0.333 is not 1/3.
* A unit beside a number may be left out or added. Two units must be the same; nothing is converted.
* 50% is 0.5, and 50 is not.
* `x = 20` is 20, but another name's value is not: `y = 20` is not `x = 20`. An equation without a
  name (`5 = 5`, `2 + 3 = 5`) is no number.
* Parts with commas, "or", "and" and sets are equal in any order, each part matched once. Parts on
  lines or between semicolons (numbered blanks), tuples and intervals are equal in order. A tuple is
  not a list.
* Words are equal up to case; letters, alone or in short runs, exactly.
"""

import logging
import math
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from rlvlm_jax.rewards import latex

Status = Literal["ok", "unparsable", "timeout", "no_answer"]

RELATIVE_TOLERANCE = Fraction(1, 10**6)  # of decimals
MAX_PARTS = 64
MAX_NESTING = 12  # of brackets in one value; deeper ones are no answers but slow to read


class Verdict(NamedTuple):
    """What a judge says of one response.

    Attributes:
        correct: whether the response earns the accuracy reward.
        status: "ok" when the two answers were compared; "no_answer" when the response has no
            complete last box; "unparsable" when either answer cannot be read; "timeout" when the
            deadline passed or the worker died. Only "ok" can be correct.
    """

    correct: bool
    status: Status


class NeedsAlgebra(Exception):  # noqa: N818 (no error: it sends an item to the workers)
    """Raised by the quick comparison where only computer algebra can decide."""


class Unreadable(Exception):  # noqa: N818 (an outcome, caught in this file)
    """Raised for a value that nobody can read as mathematics or as words."""


# --------------------------------------------------------------------------------------------------
# Judging
# --------------------------------------------------------------------------------------------------


def quick(answer: str | None, reference: str | None) -> Verdict:
    """Judges whatever can be decided without computer algebra, in bounded time.

    Args:
        answer: content of the response's last box, None where there is none.
        reference: content of the solution's last box, likewise.

    Raises:
        NeedsAlgebra: the item has to go to `strict`.
    """
    return _judge(answer, reference, _Quick)


def strict(answer: str | None, reference: str | None) -> Verdict:
    """Judges like `quick`, by computer algebra where needed; call it in a worker only."""
    return _judge(answer, reference, _Algebra)


def problem(reference: str | None, *, algebra: bool) -> str | None:
    r"""Says why nothing can be judged by this content of a solution's box, or None.

    Args:
        reference: content of the last `\boxed{}`.
        algebra: allow computer algebra, which may run for ever.

    Raises:
        NeedsAlgebra: `algebra` is False and it is needed.
    """
    if reference is None:
        return r"it has no complete \boxed{}"
    if len(reference) > latex.MAX_CHARS:
        return rf"its \boxed{{}} holds more than {latex.MAX_CHARS} characters"
    readings = _readings(reference)
    if not readings:
        return r"its \boxed{} is empty"
    try:
        _check(readings[0], _Algebra if algebra else _Quick)
    except Unreadable as error:
        return f"{error} cannot be read as mathematics or as words"
    return None


def warm_up() -> None:
    """Imports what `strict` needs and runs it once, so that no deadline pays for it."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its alarm is off
    strict(r"2\sqrt{3}+x^{2}", r"\frac{\sqrt{12}}{1}+x^{2}")


def _judge(answer: str | None, reference: str | None, leaves: type) -> Verdict:
    if answer is None or not answer.strip():
        return Verdict(False, "no_answer")
    if len(answer) > latex.MAX_CHARS:
        return Verdict(False, "unparsable")
    given = _readings(answer)
    if not given:
        return Verdict(False, "no_answer")
    if problem(reference, algebra=leaves is _Algebra) is not None:
        return Verdict(False, "unparsable")
    wanted = _readings(reference)
    # 1,234 may be one number or two parts, but it must be read alike on both sides.
    pairs = dict.fromkeys([(given[0], wanted[0]), (given[-1], wanted[-1])])
    try:
        correct = any(_equal(g, w, leaves) for g, w in pairs)
    except Unreadable:
        return Verdict(False, "unparsable")
    return Verdict(correct, "ok")


# --------------------------------------------------------------------------------------------------
# Reading an answer into a tree
# --------------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """Several answers; equal in order, or part by part in any order."""

    parts: tuple["Tree", ...]
    ordered: bool


class Bracket(NamedTuple):
    """A tuple, a point or an interval: order and both brackets count."""

    opening: str
    parts: tuple["Tree", ...]
    closing: str


Tree = str | Parts | Bracket

_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_SPACED_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?: \d{3})+")
_BLANKS = re.compile(r"[;\n]|\\(?:to|rightarrow)(?![A-Za-z])")
_COMMA = re.compile(r",|(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])")
_UNION = re.compile(r"\\cup(?![A-Za-z])")
_NUMBERED = re.compile(r"\((\d)\)")
_SIGNS = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_MEMBER = re.compile(r"^([A-Za-z](?:_\{\w\})?|\\[A-Za-z]+)\s*\\in(?![A-Za-z])\s*")


@lru_cache(maxsize=4096)
def _readings(content: str) -> tuple[Tree, ...]:
    """Reads a box's content, both ways where a comma may part thousands or answers.

    Returns:
        No reading for an empty content, else the reading with thousands first.
    """
    text = latex.normalise(content)
    if not text:
        return ()
    joined = _THOUSANDS.sub(lambda m: m.group().replace(",", ""), text)
    return (_read(joined),) if joined == text else (_read(joined), _read(text))


def _read(text: str, depth: int = 0) -> Tree:
    text = latex.trim(text)
    if depth > 4:
        return text
    if _SPACED_THOUSANDS.fullmatch(text):
        return text.replace(" ", "")
    numbers = _NUMBERED.findall(text)
    if text.startswith("(1)") and numbers == [str(i + 1) for i in range(len(numbers))] != ["1"]:
        found = _NUMBERED.split(text)[2::2]
        return Parts(tuple(_read(part, depth + 1) for part in found), True)
    for separator, ordered in ((_BLANKS, True), (_COMMA, False), (_UNION, False)):
        found = [part for part in latex.split(text, separator) if latex.trim(part)]
        if len(found) > 1:
            return Parts(tuple(_read(part, depth + 1) for part in found), ordered)
    if _SIGNS.search(text):
        return Parts(
            tuple(
                _read(_SIGNS.sub(lambda m, s=sign: s[m.group(1)], text), depth + 1)
                for sign in ({"pm": "+", "mp": "-"}, {"pm": "-", "mp": "+"})
            ),
            False,
        )
    text = _MEMBER.sub("", text)
    if text.startswith(r"\{") and latex.closing(text, 0) == len(text) - 1:
        inner = _read(text[2:-2], depth + 1)
        return inner if isinstance(inner, Parts) else Parts((inner,), False)
    if text[:1] in ("(", "[") and latex.closing(text, 0) == len(text) - 1:
        found = latex.split(text[1:-1], _COMMA)
        if len(found) > 1:
            return Bracket(text[0], tuple(_read(part, depth + 1) for part in found), text[-1])
        if text[0] == "(" and text[-1] == ")":
            return _read(text[1:-1], depth + 1)
    return text


# --------------------------------------------------------------------------------------------------
# Comparing trees
# --------------------------------------------------------------------------------------------------


def _equal(given: Tree, wanted: Tree, leaves: type) -> bool:
    if given == wanted:
        return True
    if isinstance(wanted, Parts) and len(wanted.parts) == 1 and not isinstance(given, Parts):
        wanted = wanted.parts[0]
    if isinstance(given, Parts) and len(given.parts) == 1 and not isinstance(wanted, Parts):
        given = given.parts[0]
    if isinstance(given, Parts) and isinstance(wanted, Parts):
        if len(given.parts) != len(wanted.parts) or len(wanted.parts) > MAX_PARTS:
            return False
        ordered = wanted.ordered or _order_of_names_counts(given.parts, wanted.parts)
        return _equal_parts(given.parts, wanted.parts, ordered, leaves)
    given, wanted = _as_interval(given, wanted), _as_interval(wanted, given)
    if isinstance(given, Bracket) and isinstance(wanted, Bracket):
        return (
            (given.opening, given.closing) == (wanted.opening, wanted.closing)
            and len(given.parts) == len(wanted.parts)
            and _equal_parts(given.parts, wanted.parts, True, leaves)
        )
    if isinstance(given, str) and isinstance(wanted, str):
        return _equal_leaves(given, wanted, leaves)
    return False


def _equal_parts(
    given: tuple[Tree, ...],
    wanted: tuple[Tree, ...],
    ordered: bool,
    leaves: type,
) -> bool:
    if ordered:
        return all(_equal(g, w, leaves) for g, w in zip(given, wanted, strict=True))
    left = list(given)
    for part in wanted:
        match = next((i for i, g in enumerate(left) if _equal(g, part, leaves)), None)
        if match is None:
            return False
        del left[match]
    return True


_CHAIN = re.compile(r"(?<![<>!\\])=(?!=)")
_RELATION = re.compile(r"\\(?:le|ge|ne)(?![A-Za-z])|[<>]")
# What may stand left of an equals sign: a letter or a function of letters, perhaps with an index,
# an angle or a segment by its points, or words.
_NAME = re.compile(
    r"(?:\\(?:angle|triangle|overline|vec|hat|bar|sin|cos|tan)\s*)*"
    r"(?P<symbol>\{?\\?[A-Za-z]+'*\}?)(?:_\{[^{}=]*\})?'*"
    r"(?P<arguments>\([A-Za-z0-9, ]*\))?"
    r"|[A-Za-z][A-Za-z ]+|\([A-Za-z](?:, ?[A-Za-z])+\)"
)


def _named(text: str) -> tuple[str, list[str]] | None:
    """Parts `x = 10/2 = 5` into its name and its values; None where it is no such thing."""
    name, *values = (part.strip() for part in latex.split(text, _CHAIN))
    if not values or not all(values) or not _NAME.fullmatch(name) or _RELATION.search(text):
        return None
    return latex.compact(name), values


def _order_of_names_counts(given: tuple[Tree, ...], wanted: tuple[Tree, ...]) -> bool:
    """True where one side says which value belongs to which letter and the other does not."""

    def letters(parts: tuple[Tree, ...]) -> list[str | None]:
        named = [_named(part) if isinstance(part, str) else None for part in parts]
        return [n and n[0].partition("_")[0] for n in named]

    one, other = letters(given), letters(wanted)
    if any(one) == any(other):
        return False
    return len({*one, *other} - {None}) > 1


def _equal_leaves(given: str, wanted: str, leaves: type) -> bool:
    one, other = _named(given), _named(wanted)
    if one and other and one[0] == other[0]:
        return all(_equal(_read(g), _read(other[1][-1]), leaves) for g in one[1])
    if one and other and all(_number(v[-1]) is not None for _, v in (one, other)):
        return False
    if one and not other and not _has_equals(wanted) and _droppable(one):
        return all(_equal(_read(g), _read(wanted), leaves) for g in one[1])
    if other and not one and not _has_equals(given) and _droppable(other):
        return _equal(_read(given), _read(other[1][-1]), leaves)
    if _has_equals(given) != _has_equals(wanted):
        return False
    if given in _SYMBOLS or wanted in _SYMBOLS:
        return given == wanted
    if _RELATION.search(given) or _RELATION.search(wanted):
        return _equal_relations(given, wanted, leaves)
    return leaves.equal(given, wanted)


def _has_equals(text: str) -> bool:
    return len(latex.split(text, _CHAIN)) > 1


def _droppable(named: tuple[str, list[str]]) -> bool:
    """True where a name may be left out: BD in `EB = BD` is a statement, not the value of EB."""
    name, values = named
    single = re.fullmatch(r"\\?[A-Za-z](?:_\{.*\})?'*(?:\(.*\))?|\\[A-Za-z]+", name)
    return bool(single or any(c.isdigit() for c in values[-1]) or r"\pi" in values[-1])


def _relation(text: str) -> tuple[list[str], list[str]] | None:
    r"""Parts `1 < x \le 2` into terms and signs, turned so that the signs read "smaller than"."""
    signs = [m.group() for m in _RELATION.finditer(text)]
    if not signs:
        return None
    terms = [t.strip() for t in _RELATION.split(text)]
    if all(sign in (">", r"\ge") for sign in signs):
        terms = terms[::-1]
        signs = [{">": "<", r"\ge": r"\le"}[sign] for sign in reversed(signs)]
    return terms, signs


def _equal_relations(given: str, wanted: str, leaves: type) -> bool:
    one, other = _relation(given), _relation(wanted)
    if one is None or other is None:
        return False
    if (
        one[1] == other[1]
        and len(one[0]) == len(other[0])
        and all(
            (not g and not w) or (bool(g) and bool(w) and leaves.equal(g, w))
            for g, w in zip(one[0], other[0], strict=True)
        )
    ):
        return True
    if not all(one[0]) or not all(other[0]):
        return False
    return leaves.equivalent(given, wanted)


def _as_interval(tree: Tree, partner: Tree) -> Tree:
    r"""Writes `1 < x \le 2` as (1, 2] where its partner is an interval."""
    if not isinstance(tree, str) or not isinstance(partner, Bracket):
        return tree
    relation = _relation(tree)
    if relation is None or r"\ne" in relation[1]:
        return tree
    terms, signs = relation

    def is_variable(term: str) -> bool:
        return re.fullmatch(r"[A-Za-z](?:_\{\w\})?|\\[a-z]+", term) is not None

    if len(terms) == 3 and is_variable(terms[1]) and set(signs) <= {"<", r"\le"}:
        low, high, opening, end = terms[0], terms[2], signs[0], signs[1]
    elif len(terms) == 2 and is_variable(terms[0]):
        low, high, opening, end = r"-\infty", terms[1], "<", signs[0]
    elif len(terms) == 2 and is_variable(terms[1]):
        low, high, opening, end = terms[0], r"\infty", signs[0], "<"
    else:
        return tree
    return Bracket("(" if opening == "<" else "[", (low, high), ")" if end == "<" else "]")


def _check(tree: Tree, leaves: type) -> None:
    """Raises Unreadable for a tree with a leaf that cannot be read."""
    if isinstance(tree, str):
        leaves.check(tree)
    else:
        for part in tree.parts:
            _check(part, leaves)


# --------------------------------------------------------------------------------------------------
# Leaves that are plain numbers or words
# --------------------------------------------------------------------------------------------------


class Number(NamedTuple):
    """The exact number value * sqrt(root) * pi**power, and whether it holds a decimal.

    One such number has one such form: root is free of squares.
    """

    value: Fraction
    root: int = 1
    power: int = 0
    decimal: bool = False


_FACTOR = re.compile(
    r"(?P<tens>10\^\{([-+]?\d{1,3})\})"
    r"|(?P<digits>\d{1,400}(?:\.\d{0,400})?|\.\d{1,400})"
    r"|(?P<root>\\sqrt\{(\d{1,8})\})"
    r"|(?P<pi>\\pi(?![A-Za-z]))"
    r"|(?P<fraction>\\frac(?=\{))"
    r"|(?P<times>\\times(?![A-Za-z])|\\cdot(?![A-Za-z])|\*)"
    r"|(?P<over>/|\\div(?![A-Za-z]))"
    r"|(?P<percent>%$)"
)
_SCIENTIFIC = re.compile(r"([-+]?(?:\d{1,400}(?:\.\d{0,400})?|\.\d{1,400}))[eE]([-+]?\d{1,3})")
_MIXED = re.compile(r"([-+]?)(\d{1,30}) (\d{1,30})/(\d{1,30})")
_CODE = re.compile(r"0\d+")  # 007 is a label
_SYMBOLS = frozenset({"<", ">", "=", r"\le", r"\ge", r"\ne", "+", "-", r"\times", r"\div"})
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*(?: [A-Za-z'-]+)*")
_SHORT_WORDS = frozenset({"yes", "no", "true"})


@lru_cache(maxsize=4096)
def _number(text: str) -> Number | None:
    r"""Reads a product or quotient of integers, decimals, fractions, square roots and \pi exactly.

    Also mixed numbers (1\frac{1}{4}, 1 1/4), percentages and powers of ten.
    """
    mixed = _MIXED.fullmatch(text.strip())
    if mixed:
        sign, whole, above, below = mixed.groups()
        if not 0 < int(above) < int(below):
            return None
        value = int(whole) + Fraction(int(above), int(below))
        return Number(-value if sign == "-" else value)
    s = latex.compact(text)
    scientific = _SCIENTIFIC.fullmatch(s)
    if scientific:
        value = _fraction(scientific.group(1)) * Fraction(10) ** int(scientific.group(2))
        return Number(value, decimal=True)
    return None if _CODE.fullmatch(s) else _product(s)


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
            if kind in ("digits", "tens"):
                if before not in ("", "times", "over"):
                    return None  # 2 3 and \frac{1}{2}3 are no products
                digits = match.group()
                if kind == "tens":
                    factor = Number(Fraction(10) ** int(digits[4:-1]))
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


def _fraction(digits: str) -> Fraction:
    return Fraction(digits if digits[-1] != "." else digits[:-1])


def _equal_numbers(given: Number, wanted: Number) -> bool:
    if given.value == 0 or wanted.value == 0:
        return given.value == wanted.value
    if not (given.decimal or wanted.decimal):
        return given == wanted
    if (given.root, given.power) == (wanted.root, wanted.power):
        return abs(given.value - wanted.value) <= RELATIVE_TOLERANCE * abs(wanted.value)
    ratio = given.value / wanted.value
    if not Fraction(1, 10**100) < ratio < 10**100:
        return False
    ratio = float(ratio) * math.sqrt(given.root / wanted.root)
    return abs(ratio * math.pi ** (given.power - wanted.power) - 1) <= RELATIVE_TOLERANCE


def _is_words(text: str) -> bool:
    """True for prose, as against a product of letters such as `ab`."""
    if not _WORD.fullmatch(text):
        return False
    return max(map(len, text.split())) > 3 or text.lower() in _SHORT_WORDS


class _Quick:
    """Comparison of single values without computer algebra."""

    @staticmethod
    def check(text: str) -> None:
        named = _named(text)
        value, _ = latex.measured(named[1][-1] if named else text)
        readable = (
            _number(value) is not None
            or re.fullmatch(r"[A-Za-z]", value)
            or _CODE.fullmatch(value)
            or _is_words(text)
            or _is_text(value)
            or text in _SYMBOLS
        )
        if not readable:
            raise NeedsAlgebra

    @staticmethod
    def equal(given: str, wanted: str) -> bool:
        decided = _decide(given, wanted)
        if decided is None:
            raise NeedsAlgebra
        return decided

    @staticmethod
    def equivalent(given: str, wanted: str) -> bool:
        raise NeedsAlgebra


def _decide(given: str, wanted: str) -> bool | None:
    """Compares two values that are numbers, words or letters; None where they are more."""
    if latex.compact(given) == latex.compact(wanted):
        return True
    if _is_words(given) and _is_words(wanted):
        return given.lower() == wanted.lower()
    (given, unit), (wanted, wanted_unit) = latex.measured(given), latex.measured(wanted)
    if unit and wanted_unit and unit != wanted_unit:
        return False
    one, other = _number(given), _number(wanted)
    if one and other:
        return _equal_numbers(one, other)
    if latex.compact(given) == latex.compact(wanted):
        return True
    if any(_is_text(value) for value in (given, wanted)):
        return latex.compact(given).lower() == latex.compact(wanted).lower()
    kinds = {_kind(given), _kind(wanted)}
    return None if "algebra" in kinds else False


def _is_text(value: str) -> bool:
    """True for sentences and for rows of numbers: only an equal text can match them."""
    if re.search(r"\d +\d", value) and not _number(value):
        return True
    words = re.search(r"(?<![\\A-Za-z])[A-Za-z]{4,}", value)
    return words is not None and not re.search(r"\\(?:frac|sqrt|begin)|[\^_]", value)


def _kind(text: str) -> str:
    if _number(text):
        return "number"
    if _CODE.fullmatch(text) or text in _SYMBOLS or re.fullmatch(r"[A-Za-z]", text):
        return "label"
    return "words" if _is_words(text) else "algebra"


# --------------------------------------------------------------------------------------------------
# Leaves that need computer algebra
# --------------------------------------------------------------------------------------------------

# math-verify reads past these: 20_3, which is 6, would be 20
_DROPPED = re.compile(r"'|\d\s*_|\\(?:approx|simeq|sim|cong|equiv|propto|not|neg)(?![A-Za-z])")
_INNER_DEGREES = re.compile(rf"(\d+(?:\.\d+)?){latex.DEGREE}")


class _Algebra:
    """Comparison of single values by math-verify, the reference first."""

    @staticmethod
    def check(text: str) -> None:
        try:
            _Quick.check(text)
        except NeedsAlgebra:
            if _WORD.fullmatch(text) or _is_text(text):
                return
            if not _is_statement(text):
                relation = _relation(text)
                for term in relation[0] if relation else [text]:
                    if term or not relation:
                        _parse(latex.measured(term).value)

    @staticmethod
    def equal(given: str, wanted: str) -> bool:
        decided = _decide(given, wanted)
        if decided is not None:
            return decided
        given, wanted = latex.measured(given).value, latex.measured(wanted).value
        answer = _parse(given)
        try:
            reference = _parse(wanted)
        except Unreadable:  # a statement, which only an equal text could have matched
            return False
        return _digested(_same_value, answer, reference)

    @staticmethod
    def equivalent(given: str, wanted: str) -> bool:
        return _digested(_same_relation, _parse(given), _parse(wanted))


def _digested(compare: Callable[[Any, Any], bool], given: Any, wanted: Any) -> bool:
    """Compares two sympy objects; whatever sympy raises on them makes them unreadable."""
    try:
        return compare(given, wanted)
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # any of dozens of kinds, by what a model happened to write
        raise Unreadable(f"{wanted!r:.100}") from error


def _is_statement(text: str) -> bool:
    """True where letters carry the answer, though they be no formula, as in 'ABC ~ DEF'."""
    return not re.search(r"\{\s*\}", text) and bool(
        re.search(r"[^\W\d_]", re.sub(r"\\[A-Za-z]+", "", text))
    )


@lru_cache(maxsize=4096)
def _parse(text: str) -> Any:
    """Reads one value into a sympy object.

    Raises:
        Unreadable: math-verify makes nothing of it.
    """
    import sympy
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    depth = latex.nesting(text)
    if depth is None or depth > MAX_NESTING or _DROPPED.search(text):
        raise Unreadable(f"{text!r:.100}")
    s, factor = text, 1
    if s.endswith("%"):
        s, factor = s[:-1], 100
    if latex.TRIGONOMETRY.search(s):
        s = _INNER_DEGREES.sub(r"{(\1\\cdot\\frac{\\pi}{180})}", s)
    s = s.replace(latex.DEGREE, r"^{\circ}").replace("\n", " ")
    config = LatexExtractionConfig(
        normalization_config=NormalizationConfig(
            basic_latex=True,
            units=False,
            malformed_operators=True,
            nits=True,
            boxed="none",
            equations=False,
        )
    )
    found = parse(
        f"${s}$", extraction_config=[config], fallback_mode="no_fallback", parsing_timeout=None
    )
    if not found or not s:
        raise Unreadable(f"{text!r:.100}")
    if factor == 1:
        return found[0]
    if not isinstance(found[0], sympy.Expr):
        raise Unreadable(f"{text!r:.100}")
    return found[0] / factor


def _same_value(given: Any, wanted: Any) -> bool:
    import sympy
    from math_verify import verify

    relations = [
        isinstance(x, sympy.core.relational.Relational | sympy.logic.boolalg.Boolean)
        for x in (given, wanted)
    ]
    if relations[0] != relations[1]:
        return False  # math-verify would take the right-hand side for the value
    if _is_constant(given) and _is_constant(wanted):
        return _same_constant(given, wanted)
    return verify(wanted, given, timeout_seconds=None)


def _same_relation(given: Any, wanted: Any) -> bool:
    from math_verify import verify

    if verify(wanted, given, timeout_seconds=None):
        return True
    if len(wanted.free_symbols) != 1 or wanted.free_symbols != given.free_symbols:
        return False
    try:
        return given.as_set() == wanted.as_set()
    except NotImplementedError:  # sympy cannot solve this kind: not shown to be equal
        return False


def _is_constant(x: Any) -> bool:
    import sympy

    return isinstance(x, sympy.Expr) and not x.free_symbols and x.is_number is not False


def _same_constant(given: Any, wanted: Any) -> bool:
    """Compares two constants: to 1e-6 where a decimal occurs, else to 30 digits."""
    import sympy

    given, wanted = given.doit(), wanted.doit()
    if given == wanted:
        return True
    decimal = given.has(sympy.Float) or wanted.has(sympy.Float)
    a, b = given.evalf(40), wanted.evalf(40)
    if not (a.is_finite and b.is_finite):
        return False
    tolerance = sympy.Float("1e-6" if decimal else "1e-30", 40)
    return bool(abs(a - b) <= tolerance * abs(b))
