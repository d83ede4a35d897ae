# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""The strict judge: is the answer in the last `\boxed{}` equal to the reference answer?

Second half of the strict judge; `latex` is the first, `exact` reads numbers and `units` what stands
beside them. An answer is read into a small tree of lists, sets and brackets whose leaves are single
values. Trees are compared by rule. Leaves are compared as exact fractions where they are plain
numbers (`quick`, always finite, runs anywhere), and by math-verify where they need algebra
(`strict`, may run for ever, hence only in a worker).

The rules, where taste enters:

* Numbers are equal exactly; where one of them is a decimal, to 1e-6 of the reference. Nothing is
  rounded: 13.4 is not 6√5, 0.333 is not 1/3. `Rules` may say otherwise of both.
* A unit beside a number may be left out or added. Two units must be the same; nothing is converted.
  So with counted nouns, but only a single plural may be added: 5 is `5 balls`, not `5 red balls`.
* 50% is 0.5, and 50 is not.
* `x = 20` is 20, but another name's value is not: `y = 20` is not `x = 20`. An equation without a
  name (`5 = 5`, `2 + 3 = 5`) is no number.
* Where the reference is solved (`x = 5`, `x > 2`), so must the answer be: `x + 7 = 12` only repeats
  the question. Other equations and inequalities are equal where they are equivalent.
* Parts with commas, "or", "and" and sets are equal in any order, each part matched once. Parts on
  lines or between semicolons (numbered blanks), tuples and intervals are equal in order. A tuple is
  not a list.
* Words are equal up to case and a leading article; letters, alone or in short runs, exactly. Where
  the reference is one letter from A to H, the answer may add the text of that choice.
* Only what is known to be read in full is given to math-verify, which skips what it does not know.
"""

import functools
import logging
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from rlvlm_jax.rewards import exact, latex, units
from rlvlm_jax.rewards.exact import number

Status = Literal["ok", "unparsable", "timeout", "no_answer"]

Rounding = Literal["none", "reference", "both"]
LEAST_PLACES = 2  # of an answer that may stand for an exact reference
MAX_PARTS = 64
MAX_NESTING = 12  # of brackets in one value; deeper ones are no answers but slow to read


class Rules(NamedTuple):
    """Where numbers need not be equal.

    Attributes:
        tolerance: greatest difference of two numbers of which one is a decimal, as a share of the
            reference.
        rounding: "none"; "reference" where a reference written with d decimal places is also
            matched by what rounds to it, as 13.4 by 6√5 and by 13.42; "both" where moreover an
            answer with two or more decimal places is matched by a reference that rounds to it, as
            13.42 by 6√5.
    """

    tolerance: float = 1e-6
    rounding: Rounding = "none"


DEFAULT_RULES = Rules()


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


def quick(answer: str | None, reference: str | None, rules: Rules = DEFAULT_RULES) -> Verdict:
    """Judges whatever can be decided without computer algebra, in bounded time.

    Args:
        answer: content of the response's last box, None where there is none.
        reference: content of the solution's last box, likewise.
        rules: for numbers.

    Raises:
        NeedsAlgebra: the item has to go to `strict`.
    """
    return _judge(answer, reference, _Quick(rules))


def strict(answer: str | None, reference: str | None, rules: Rules = DEFAULT_RULES) -> Verdict:
    """Judges like `quick`, by computer algebra where needed; call it in a worker only."""
    return _judge(answer, reference, _Algebra(rules))


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
        _check(readings[0], (_Algebra if algebra else _Quick)(DEFAULT_RULES))
    except Unreadable as error:
        return f"{error} cannot be read as mathematics or as words"
    return None


def warm_up() -> None:
    """Imports what `strict` needs and runs it once, so that no deadline pays for it."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its alarm is off
    strict(r"2\sqrt{3}+x^{2}", r"\frac{\sqrt{12}}{1}+x^{2}")


def _judge(answer: str | None, reference: str | None, leaves: "_Quick") -> Verdict:
    if answer is None or not answer.strip():
        return Verdict(False, "no_answer")
    if len(answer) > latex.MAX_CHARS:
        return Verdict(False, "unparsable")
    given = _readings(answer)
    if not given:
        return Verdict(False, "no_answer")
    if problem(reference, algebra=isinstance(leaves, _Algebra)) is not None:
        return Verdict(False, "unparsable")
    wanted = _readings(reference)
    if wanted[0] in _CHOICES:
        given = (_chosen(latex.normalise(answer)) or given[0],)
    # 1,234 may be one number or two parts, but it must be read alike on both sides.
    pairs = dict.fromkeys([(given[0], wanted[0]), (given[-1], wanted[-1])])
    try:
        correct = any(_equal(g, w, leaves) for g, w in pairs)
    except Unreadable:
        return Verdict(False, "unparsable")
    return Verdict(correct, "ok")


_CHOICES = frozenset("ABCDEFGH")
_CHOICE = re.compile(
    r"(?:\(([A-H])\)|([A-H])[.):]|(?:[Oo]ption|[Cc]hoice) +\(?([A-H])(?![A-Za-z])[.):]*) *(.*)",
    re.DOTALL,
)
_CHOICE_AMONG = re.compile(r"(?<![A-Za-z\\°])(?:[A-H](?![A-Za-z])|[a-h][.)])")
_NO_CHOICE = units.DOUBTS - {"no", "none"} | {"or", "and", "is", "if"}  # as the first word


def _chosen(text: str) -> str | None:
    """The letter of `B. 12 cm`; None where another letter or a doubt follows."""
    match = _CHOICE.fullmatch(text)
    if match is None or re.split(r"[^a-z]", match[4].lower(), maxsplit=1)[0] in _NO_CHOICE:
        return None
    letter = match[1] or match[2] or match[3]
    return letter if {letter}.issuperset(_CHOICE_AMONG.findall(match[4])) else None


# --------------------------------------------------------------------------------------------------
# Reading an answer into a tree
# --------------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """Several answers; equal in order, or part by part in any order.

    `word` is "and" or "or" where no other separator stands between them.
    """

    parts: tuple["Tree", ...]
    ordered: bool
    word: str = ""


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
_WORD_BETWEEN = {word: re.compile(rf"(?<![A-Za-z\\]){word}(?![A-Za-z])") for word in ("and", "or")}
_UNION = re.compile(r"\\cup(?![A-Za-z])")
_NUMBERED = re.compile(r"\((\d)\)")
_SIGNS = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_VARIABLE = re.compile(r"[A-Za-z](?:_\{\w\})?|\\(?!pi$|infty$)[a-z]+")
_BUILDER = re.compile(
    r"^([A-Za-z])\s*(?:\\in(?![A-Za-z])[^|:]*)?(?:\\mid|\\vert|\||:)\s*(?=.*\1)", re.DOTALL
)
_NOTHING = re.compile(
    r"(?:there (?:is|are) )?no (?:real )?(?:solutions?|roots?)|(?:the )?empty set|无解|空集", re.I
)
_MEMBER = re.compile(r"^([A-Za-z](?:_\{\w\})?|\\[A-Za-z]+)\s*\\in(?![A-Za-z])\s*")


@functools.lru_cache(maxsize=4096)
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
    if _NOTHING.fullmatch(text):
        return r"\emptyset"
    numbers = _NUMBERED.findall(text)
    if text.startswith("(1)") and numbers == [str(i + 1) for i in range(len(numbers))] != ["1"]:
        found = _NUMBERED.split(text)[2::2]
        return Parts(tuple(_read(part, depth + 1) for part in found), True)
    for separator, ordered in ((_BLANKS, True), (_COMMA, False), (_UNION, False)):
        found = [part for part in latex.split(text, separator) if latex.trim(part)]
        if len(found) > 1:
            parts = tuple(_read(part, depth + 1) for part in found)
            between = (
                w for w, sign in _WORD_BETWEEN.items() if len(latex.split(text, sign)) == len(found)
            )
            return Parts(parts, ordered, next(between, ""))
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
        inner = _read(_BUILDER.sub("", text[2:-2], count=1), depth + 1)
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


def _equal(given: Tree, wanted: Tree, leaves: "_Quick") -> bool:
    if given == wanted:
        return True
    if isinstance(wanted, Parts) and len(wanted.parts) == 1 and not isinstance(given, Parts):
        wanted = wanted.parts[0]
    if isinstance(given, Parts) and len(given.parts) == 1 and not isinstance(wanted, Parts):
        given = given.parts[0]
    given, wanted = _as_letters(given, wanted), _as_letters(wanted, given)
    if isinstance(given, Parts) and isinstance(wanted, Parts):
        if len(given.parts) != len(wanted.parts) or len(wanted.parts) > MAX_PARTS:
            return False
        if {given.word, wanted.word} == {"and", "or"} and _has_relation(wanted.parts):
            return False
        ordered = wanted.ordered or _order_of_names_counts(given.parts, wanted.parts)
        given, wanted = _unnumbered(given, wanted), _unnumbered(wanted, given)
        return _equal_parts(given.parts, wanted.parts, ordered, leaves)
    given, wanted = _as_chain(given), _as_chain(wanted)
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
    leaves: "_Quick",
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
_COLON = re.compile(":")
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
    """Parts `x = 10/2 = 5` or `5 = x` into its name and values; None where it is no such thing."""
    name, *values = (part.strip() for part in latex.split(text, _CHAIN))
    if len(values) == 1 and _VARIABLE.fullmatch(values[0]) and not _NAME.fullmatch(name):
        name, values = values[0], [name]
    if not values or not all(values) or not _NAME.fullmatch(name) or _RELATION.search(text):
        return None
    if not units.DOUBTS.isdisjoint(name.lower().split()):
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


def _unnumbered(tree: Parts, partner: Parts) -> Parts:
    """Writes `x_1 = 2, x_2 = 3` without indices where its partner calls every solution x."""
    names = {_name_of(part) for part in partner.parts}
    own = [_name_of(part) for part in tree.parts]
    name = names.pop() if len(names) == 1 else None
    if not name or len({*own}) != len(own):
        return tree
    if not all(n and re.fullmatch(rf"{re.escape(name)}_\{{\w\}}", n) for n in own):
        return tree
    return tree._replace(parts=tuple(re.sub(r"_\{\w\}", "", p, count=1) for p in tree.parts))


def _name_of(tree: Tree) -> str | None:
    named = _named(tree) if isinstance(tree, str) else None
    return named and named[0]


def _as_letters(tree: Tree, partner: Tree) -> Tree:
    """Parts AC where its partner lists single letters, as in A, C."""
    listed = isinstance(partner, Parts) and all(part in _CHOICES for part in partner.parts)
    if listed and isinstance(tree, str) and len(tree) > 1 and _CHOICES.issuperset(tree):
        return Parts(tuple(tree), False)
    return tree


def _equal_leaves(given: str, wanted: str, leaves: "_Quick") -> bool:
    one, other = _named(given), _named(wanted)
    if one and other and one[0] == other[0]:
        return all(_equal(_read(g), _read(other[1][-1]), leaves) for g in one[1])
    if other and _has_equals(given) and _is_solution(*other):
        return False  # another name's value, or an equation that is still to be solved
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
    if ":" in given and ":" in wanted and not (_is_text(given) or _is_text(wanted)):
        return _equal_ratios(given, wanted, leaves)
    return leaves.equal(given, wanted)


def _equal_ratios(given: str, wanted: str, leaves: "_Quick") -> bool:
    """Compares 3:4:5 and 6:8:10 by the ratio of each term to the first; 0:1 only by its terms."""
    one, other = latex.split(given, _COLON), latex.split(wanted, _COLON)
    if len(one) != len(other):
        return False
    if len(one) > 1 and not any(n and n.value == 0 for n in (number(one[0]), number(other[0]))):
        one, other = ([rf"\frac{{{t}}}{{{terms[0]}}}" for t in terms[1:]] for terms in (one, other))
    return all(map(leaves.equal, one, other))


def _has_equals(text: str) -> bool:
    return len(latex.split(text, _CHAIN)) > 1


def _droppable(named: tuple[str, list[str]]) -> bool:
    """True where a name may be left out: BD in `EB = BD` is a statement, not the value of EB."""
    name, values = named
    single = re.fullmatch(r"\\?[A-Za-z](?:_\{.*\})?'*(?:\(.*\))?|\\[A-Za-z]+", name)
    return bool(single or any(c.isdigit() for c in values[-1]) or r"\pi" in values[-1])


def _is_solution(name: str, values: list[str]) -> bool:
    """True for `x = 5` and `AB = 5`; `xy = 5` relates two variables."""
    return not re.fullmatch("[a-z]{2,3}", name) and _is_constant_text(values[-1])


def _is_constant_text(text: str) -> bool:
    """True for a value without variables; e is Euler's number."""
    text = units.measured(text).value
    text = re.sub(r"\\([A-Za-z]+)", lambda m: "x" if m[1] in latex.GREEK else " ", text)
    return number(text) is not None or not re.search("[A-Za-df-z]", text)


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


def _equal_relations(given: str, wanted: str, leaves: "_Quick") -> bool:
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
    if not all(one[0]) or not all(other[0]) or _is_solved(other[0]):
        return False
    return leaves.equivalent(given, wanted)


def _is_solved(terms: list[str]) -> bool:
    """True where a variable stands alone between constants."""
    rest = [term for term in terms if not _is_constant_text(term)]
    return len(rest) == 1 and _VARIABLE.fullmatch(rest[0]) is not None


def _has_relation(parts: tuple[Tree, ...]) -> bool:
    return any(isinstance(part, str) and _RELATION.search(part) for part in parts)


def _as_chain(tree: Tree) -> Tree:
    """Writes `x > 1 and x < 2` as 1 < x < 2."""
    if not isinstance(tree, Parts) or tree.word != "and" or len(tree.parts) != 2:
        return tree
    one, other = (_relation(part) if isinstance(part, str) else None for part in tree.parts)
    for low, high in ((one, other), (other, one)):
        if not (low and high and len(low[0]) == len(high[0]) == 2 and low[0][1] == high[0][0]):
            continue
        (least, name), (_, greatest), signs = low[0], high[0], (low[1][0], high[1][0])
        if _VARIABLE.fullmatch(name) and r"\ne" not in signs:
            return f"{least}{signs[0]} {name}{signs[1]} {greatest}"
    return tree


def _as_interval(tree: Tree, partner: Tree) -> Tree:
    r"""Writes `1 < x \le 2` as (1, 2] where its partner is an interval."""
    if not isinstance(tree, str) or not isinstance(partner, Bracket):
        return tree
    relation = _relation(tree)
    if relation is None or r"\ne" in relation[1]:
        return tree
    terms, signs = relation

    alone = [_VARIABLE.fullmatch(term) for term in terms]
    if len(terms) == 3 and alone[1] and set(signs) <= {"<", r"\le"}:
        low, high, opening, end = terms[0], terms[2], signs[0], signs[1]
    elif len(terms) == 2 and alone[0]:
        low, high, opening, end = r"-\infty", terms[1], "<", signs[0]
    elif len(terms) == 2 and alone[1]:
        low, high, opening, end = terms[0], r"\infty", signs[0], "<"
    else:
        return tree
    return Bracket("(" if opening == "<" else "[", (low, high), ")" if end == "<" else "]")


def _check(tree: Tree, leaves: "_Quick") -> None:
    """Raises Unreadable for a tree with a leaf that cannot be read."""
    if isinstance(tree, str):
        leaves.check(tree)
    else:
        for part in tree.parts:
            _check(part, leaves)


# --------------------------------------------------------------------------------------------------
# Leaves that are plain numbers or words
# --------------------------------------------------------------------------------------------------

# These are only equal to themselves
_SYMBOLS = frozenset({"<", ">", "=", r"\le", r"\ge", r"\ne", "+", "-", r"\times", r"\div"})
_SYMBOLS |= {r"\emptyset", r"\ldots", r"\parallel", r"\perp"}
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*(?: [A-Za-z'-]+)*")
_SHORT_WORDS = frozenset({"yes", "no", "true"})
_ARTICLE = re.compile(r"(?:an?|the) (?=[a-z-]{3})", re.IGNORECASE)
_PLACES = re.compile(r"[-+]?\d*\.(\d+)")  # a plain decimal


def _rounds_to(exact: Any, text: str) -> bool:
    """Whether a number, rounded to as many decimal places as `text` has, is what `text` says.

    Args:
        exact: Fraction, or a float where it is irrational.
        text: as it stands in the box, its unit removed.
    """
    places = _PLACES.fullmatch(text)
    if not places:
        return False
    half = Fraction(1, 2 * 10 ** len(places[1]))
    return abs(Fraction(exact) - Fraction(text)) <= half


def _rounded(given: str, wanted: str, values: Callable[[str], Any], rules: Rules) -> bool:
    """Whether one value is the other, rounded, as far as the rules allow.

    Args:
        given: text of the answer.
        wanted: text of the reference.
        values: text -> its number as Fraction or float, None where it is none.
        rules: see `Rules`.
    """
    if rules.rounding == "none":
        return False
    one, other = values(given), values(wanted)
    if one is None or other is None:
        return False
    if _rounds_to(one, wanted):
        return True
    places = _PLACES.fullmatch(given)
    precise = places is not None and len(places[1]) >= LEAST_PLACES
    return rules.rounding == "both" and precise and _rounds_to(other, given)


def _plain_value(text: str) -> Any:
    """The value of a number, None for anything else and for what no float can hold."""
    read = number(text)
    if read is None or not abs(read.value) < 10**100:
        return None
    if read.root == 1 and read.power == 0:
        return read.value
    return float(read.value) * math.sqrt(read.root) * math.pi**read.power


def _is_words(text: str) -> bool:
    """True for prose, as against a product of letters such as `ab`."""
    if not _WORD.fullmatch(text):
        return False
    return max(map(len, text.split())) > 3 or text.lower() in _SHORT_WORDS


class _Quick:
    """Comparison of single values without computer algebra."""

    def __init__(self, rules: Rules):
        self.rules = rules

    def check(self, text: str) -> None:
        named = _named(text)
        value = units.measured(named[1][-1] if named else text).value
        readable = (
            number(value) is not None
            or re.fullmatch(r"[A-Za-z]", value)
            or exact.CODE.fullmatch(value)
            or _is_words(text)
            or _is_text(value)
            or text in _SYMBOLS
        )
        if not readable:
            raise NeedsAlgebra

    def equal(self, given: str, wanted: str) -> bool:
        decided = _decide(given, wanted, self.rules)
        if decided is None:
            raise NeedsAlgebra
        return decided

    def equivalent(self, given: str, wanted: str) -> bool:
        raise NeedsAlgebra


def _decide(given: str, wanted: str, rules: Rules) -> bool | None:
    """Compares two values that are numbers, words or letters; None where they are more."""
    if latex.compact(given) == latex.compact(wanted):
        return True
    if _is_words(given) and _is_words(wanted):
        given, wanted = (_ARTICLE.sub("", text, count=1).lower() for text in (given, wanted))
        return given == wanted
    (given, unit, optional), (wanted, wanted_unit, _) = map(units.measured, (given, wanted))
    if unit and unit != wanted_unit and (wanted_unit or not optional):
        return False
    one, other = number(given), number(wanted)
    if one and other:
        close = exact.equal(one, other, rules.tolerance)
        return close or _rounded(given, wanted, _plain_value, rules)
    if latex.compact(given) == latex.compact(wanted):
        return True
    if any(_is_text(value) for value in (given, wanted)):
        return latex.compact(given).lower() == latex.compact(wanted).lower()
    kinds = {_kind(given), _kind(wanted)}
    return None if "algebra" in kinds else False


def _is_text(value: str) -> bool:
    """True for sentences, rows of numbers and estimates: only an equal text can match them."""
    if re.search(r"\d +\d|[\u4e00-\u9fff]|\\approx", value) and not number(value):
        return True
    words = re.search(r"(?<![\\A-Za-z])[A-Za-z]{4,}", value)
    return words is not None and not re.search(r"\\(?:frac|sqrt|begin)|[\^_]", value)


def _kind(text: str) -> str:
    if number(text):
        return "number"
    if exact.CODE.fullmatch(text) or text in _SYMBOLS or re.fullmatch(r"[A-Za-z]", text):
        return "label"
    return "words" if _is_words(text) else "algebra"


# --------------------------------------------------------------------------------------------------
# Leaves that need computer algebra
# --------------------------------------------------------------------------------------------------

# What math-verify reads in full. It skips other macros and signs, so that \phantom{20}, \vspace{20}
# and 20″ would be 20.
_MACROS = (
    *("frac", "sqrt", "binom", "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos"),
    *("arctan", "sinh", "cosh", "tanh", "log", "ln", "exp", "min", "max", "lim", "sum", "prod"),
    *("int", "pi", "infty", "times", "cdot", "div", "pm", "mp", "le", "ge", "ne", "in", "cup"),
    *("cap", "setminus", "to", "mid", "vert", "lvert", "rvert", "lfloor", "rfloor", "lceil"),
    *("rceil", "circ", "angle", "triangle", "overline", "vec", "hat", "bar", "parallel", "perp"),
    *("varepsilon", "varphi", "vartheta", "Delta", "Gamma", "Phi", "Sigma", "Theta"),
    *latex.GREEK,
)
_READABLE = re.compile(
    rf"(?:\\(?:(?:{'|'.join(_MACROS)})(?![A-Za-z])|[{{}}|])"
    rf"|[0-9A-Za-z\s+*/^_=<>()\[\]{{}}|.,!:%{latex.DEGREE}-])*"
)
_DROPPED = re.compile(r"\d\s*_")  # 20_3, which is 6, would be 20
_INNER_DEGREES = re.compile(rf"(\d+(?:\.\d+)?){latex.DEGREE}")


class _Algebra(_Quick):
    """Comparison of single values by math-verify, the reference first."""

    def check(self, text: str) -> None:
        try:
            super().check(text)
        except NeedsAlgebra:
            if _WORD.fullmatch(text) or _is_text(text):
                return
            if not _is_statement(text):
                relation = _relation(text)
                for term in relation[0] if relation else [text]:
                    if term or not relation:
                        _parse(units.measured(term).value)

    def equal(self, given: str, wanted: str) -> bool:
        decided = _decide(given, wanted, self.rules)
        if decided is not None:
            return decided
        given, wanted = units.measured(given).value, units.measured(wanted).value
        answer = _parse(given)
        try:
            reference = _parse(wanted)
        except Unreadable:  # a statement, which only an equal text could have matched
            return False
        if _digested(functools.partial(_same_value, self.rules), answer, reference):
            return True
        return _rounded(given, wanted, _constant_value, self.rules)

    def equivalent(self, given: str, wanted: str) -> bool:
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


@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> Any:
    """Reads one value into a sympy object.

    Raises:
        Unreadable: math-verify makes nothing of it.
    """
    import sympy
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    depth = latex.nesting(text)
    if (
        depth is None
        or depth > MAX_NESTING
        or _DROPPED.search(text)
        or not _READABLE.fullmatch(text)
    ):
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


def _constant_value(text: str) -> Any:
    """The value of a constant, None where it has none that is real and finite."""
    plain = _plain_value(text)
    if plain is not None:
        return plain
    parsed = _parse(text)
    if not _is_constant(parsed):
        return None
    value = parsed.doit().evalf(30)
    return Fraction(str(value)) if value.is_real and value.is_finite else None


def _same_value(rules: Rules, given: Any, wanted: Any) -> bool:
    import sympy
    from math_verify import verify

    relations = [
        isinstance(x, sympy.core.relational.Relational | sympy.logic.boolalg.Boolean)
        for x in (given, wanted)
    ]
    if relations[0] != relations[1]:
        return False  # math-verify would take the right-hand side for the value
    letters = given.free_symbols | wanted.free_symbols
    if wanted.free_symbols and {letter.name for letter in letters} == {"i"}:  # the imaginary unit
        given, wanted = (x.subs(dict.fromkeys(letters, sympy.I)) for x in (given, wanted))
    if _is_constant(given) and _is_constant(wanted):
        return _same_constant(rules, given, wanted)
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


def _same_constant(rules: Rules, given: Any, wanted: Any) -> bool:
    """Compares two constants: to the rules' tolerance where a decimal occurs, else to 30 digits."""
    import sympy

    given, wanted = given.doit(), wanted.doit()
    if given == wanted:
        return True
    decimal = given.has(sympy.Float) or wanted.has(sympy.Float)
    a, b = given.evalf(40), wanted.evalf(40)
    if not (a.is_finite and b.is_finite):
        return False
    tolerance = sympy.Float(rules.tolerance if decimal else "1e-30", 40)
    return bool(abs(a - b) <= tolerance * abs(b))
