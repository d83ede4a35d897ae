# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""Compares the trees of an answer and a reference, kind by kind.

Last step of the strict judge. `quick` decides what needs no computer algebra, in bounded time and
in any process; `strict` decides the rest as well and belongs in a worker. The conventions are in
the table at the head of `rewards.math`.
"""

import functools
import logging
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from rlvlm_jax.rewards.math import algebra, units
from rlvlm_jax.rewards.math.algebra import NeedsAlgebra, Undecided
from rlvlm_jax.rewards.math.parse import (
    CHOICES,
    NOTHING,
    Reading,
    Tree,
    is_word,
    letters,
    negative,
    product,
    readings,
)
from rlvlm_jax.rewards.math.tokens import MAX_CHARS, Unreadable

Status = Literal["ok", "unparsable", "timeout", "no_answer"]
Rounding = Literal["none", "reference", "both"]
LEAST_PLACES = 2  # of an answer that may stand for an exact reference
MAX_PARTS = 64


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
            complete last box; "unparsable" when either answer cannot be read or it cannot be
            decided whether they are equal; "timeout" when the deadline passed or the worker died.
            Only "ok" can be correct.
    """

    correct: bool
    status: Status


class _Judge(NamedTuple):
    """How to compare, and what was found to differ."""

    rules: Rules
    algebra: bool
    reasons: list[str]

    def no(self, reason: str) -> bool:
        self.reasons.append(reason)
        return False


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
    return _judge(answer, reference, _Judge(rules, False, []))


def strict(answer: str | None, reference: str | None, rules: Rules = DEFAULT_RULES) -> Verdict:
    """Judges like `quick`, by computer algebra where needed; call it in a worker only."""
    return _judge(answer, reference, _Judge(rules, True, []))


def explain(answer: str | None, reference: str | None) -> tuple[Verdict, str]:
    """Judges like `strict` and says why: what differs, or what cannot be read."""
    judge = _Judge(DEFAULT_RULES, True, [])
    verdict = _judge(answer, reference, judge)
    if verdict.correct:
        return verdict, "they are equal"
    return verdict, judge.reasons[-1] if judge.reasons else "they are not equal"


def problem(reference: str | None) -> str | None:
    r"""Says why nothing can be judged by this content of a solution's box, or None."""
    if reference is None:
        return r"it has no complete \boxed{}"
    if len(reference) > MAX_CHARS:
        return rf"its \boxed{{}} holds more than {MAX_CHARS} characters"
    try:
        return None if readings(reference) else r"its \boxed{} is empty"
    except Unreadable as error:
        return f"{error} cannot be read as mathematics or as words"


def warm_up() -> None:
    """Imports what `strict` needs and runs it once, so that no deadline pays for it."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its alarm is off
    strict(r"2\sqrt{x}+\sin^2 x", r"\sqrt{4x}+1-\cos^2 x")


def _judge(answer: str | None, reference: str | None, judge: _Judge) -> Verdict:
    if answer is None or not answer.strip():
        judge.reasons.append(r"the answer has no complete \boxed{}")
        return Verdict(False, "no_answer")
    unusable = problem(reference)
    if unusable is not None or len(answer) > MAX_CHARS:
        judge.reasons.append(
            f"the reference cannot be used: {unusable}" if unusable else "too long"
        )
        return Verdict(False, "unparsable")
    try:
        given = readings(answer)
    except Unreadable as error:
        judge.reasons.append(f"{error} in the answer cannot be read")
        return Verdict(False, "unparsable")
    if not given:
        return Verdict(False, "no_answer")
    wanted = readings(reference or "")
    undecided = None
    # 1,234 may be one number or two parts, but it must be read alike on both sides.
    for pair in dict.fromkeys([(given[0], wanted[0]), (given[-1], wanted[-1])]):
        try:
            if _same_answer(*pair, judge):
                return Verdict(True, "ok")
        except (Unreadable, Undecided) as error:
            undecided = error
    if undecided is not None:
        judge.reasons.append(f"undecided: {undecided}")
        return Verdict(False, "unparsable")
    return Verdict(False, "ok")


def _same_answer(given: Reading, wanted: Reading, judge: _Judge) -> bool:
    letter = _letter(wanted.tree) if not wanted.letter else wanted.letter
    named = given.letter or (given.tree.kind == "symbol" and given.tree.parts[0].upper())
    if letter and named in CHOICES:
        both_texts = given.letter and wanted.letter
        if named != letter:
            return judge.no(f"choice {named}, not {letter}")
        return not both_texts or equal(given.tree, wanted.tree, judge)
    if given.letter:
        return judge.no("a choice")
    return equal(given.tree, wanted.tree, judge)


# --------------------------------------------------------------------------------------------------
# Parts, brackets, matrices
# --------------------------------------------------------------------------------------------------

_EXPRESSIONS = {"number", "symbol", "sum", "product", "quotient", "power", "call", "series"}
_MANY = ("list", "set", "union")


def equal(given: Tree, wanted: Tree, judge: _Judge) -> bool:
    """Whether two answers are equal by the conventions."""
    if given == wanted:
        return True
    kinds = {given.kind, wanted.kind}
    if kinds & set(_MANY):
        return _equal_parts(given, wanted, judge)
    if "relation" in kinds:
        return _equal_relations(given, wanted, judge)
    if kinds & {"bracket", "matrix"}:
        return _equal_brackets(given, wanted, judge)
    if kinds & {"quantity", "compound"}:
        return _equal_quantities(given, wanted, judge)
    if kinds & {"time", "date", "score", "ratio", "base"}:
        return _equal_literals(given, wanted, judge)
    if kinds & {"word", "text", "run"}:
        return _equal_words(given, wanted, judge)
    return _equal_values(given, wanted, judge)


def _equal_parts(given: Tree, wanted: Tree, judge: _Judge) -> bool:
    given, wanted = _as_parts(given, wanted), _as_parts(wanted, given)
    for many, other in ((given, wanted), (wanted, given)):
        if many.kind in _MANY and len(many.parts) == 1 and other.kind not in _MANY:
            pair = (many.parts[0], other) if many is given else (other, many.parts[0])
            return equal(*pair, judge)
    if given.kind not in _MANY or wanted.kind not in _MANY:
        if given.kind == "relation" and (wanted.kind == "set" or given.mark == "in"):
            return _relation_equal_to(given, wanted, judge)
        if wanted.kind == "relation" and (given.kind == "set" or wanted.mark == "in"):
            return _equal_to_relation(given, wanted, judge)
        if _is_domain(given) and _is_domain(wanted) and _is_solved_domain(given):
            return _same_solutions(given, wanted, judge)
        return judge.no("one answer has several parts, the other does not")
    if "set" in (given.kind, wanted.kind):
        given, wanted = (
            _distinct(tree, judge) if tree.kind == "set" else tree for tree in (given, wanted)
        )
    if len(given.parts) != len(wanted.parts) or len(wanted.parts) > MAX_PARTS:
        return judge.no(f"{len(given.parts)} parts, not {len(wanted.parts)}")
    related = any(part.kind == "relation" and part.mark != "=" for part in wanted.parts)
    if {given.mark, wanted.mark} == {"and", "or"} and related:
        return judge.no("and, or")
    ordered = wanted.mark == ";" and wanted.kind == "list" or _order_of_names_counts(given, wanted)
    given, wanted = _unnumbered(given, wanted), _unnumbered(wanted, given)
    return _match(given.parts, wanted.parts, ordered, judge)


def _match(given: Sequence[Tree], wanted: Sequence[Tree], ordered: bool, judge: _Judge) -> bool:
    """Whether parts are equal in order, or each to another one."""
    if ordered:
        return all(equal(g, w, judge) for g, w in zip(given, wanted, strict=True))
    left = list(given)
    for part in wanted:
        match = next((i for i, g in enumerate(left) if equal(g, part, judge)), None)
        if match is None:
            return False
        del left[match]
    return True


def _as_parts(tree: Tree, partner: Tree) -> Tree:
    """Writes what stands for several parts as a list, where its partner is one."""
    if partner.kind not in _MANY:
        return tree
    if tree.kind == "run" and len(set(tree.parts[0])) == len(tree.parts[0]):
        if CHOICES.issuperset(tree.parts[0]) and all(_letter(part) for part in partner.parts):
            return Tree("list", tuple(Tree("symbol", (c,)) for c in tree.parts[0]), ",")
    if tree.kind == "bracket" and all(_named(part) for part in partner.parts):
        names = [_named(part) for part in partner.parts]
        pairs = zip(sorted(names), tree.parts, strict=False)
        if len(names) == len(tree.parts) and tree.mark in ("()", "<>"):
            return Tree(
                "list",
                tuple(Tree("relation", (Tree("symbol", (n,)), v), "=") for n, v in pairs),
                ",",
            )
    if tree.kind == "relation" and set(tree.mark.split()) == {"="}:
        *names, value = tree.parts
        if len(names) == 1 and names[0].kind == value.kind == "bracket":
            names, values = list(names[0].parts), value.parts
        else:
            values = (value,) * len(names)
        if (
            len(names) > 1
            and len(names) == len(values)
            and all(name.kind == "symbol" for name in names)
        ):
            pairs = zip(names, values, strict=True)
            return Tree("list", tuple(Tree("relation", pair, "=") for pair in pairs), ",")
    return tree


def _letter(tree: Tree) -> str:
    return tree.parts[0] if tree.kind == "symbol" and tree.parts[0] in CHOICES else ""


def _named(tree: Tree) -> str:
    """The name in `x = 3`, empty for anything else."""
    simple = tree.kind == "relation" and tree.mark == "=" and tree.parts[0].kind == "symbol"
    return tree.parts[0].parts[0] if simple else ""


def _distinct(tree: Tree, judge: _Judge) -> Tree:
    parts: list[Tree] = []
    for part in tree.parts:
        if not any(equal(part, other, judge) for other in parts):
            parts.append(part)
    return tree._replace(parts=tuple(parts))


def _order_of_names_counts(given: Tree, wanted: Tree) -> bool:
    """True where one side says which value belongs to which letter and the other does not."""
    one, other = ([_named(p).partition("_")[0] for p in tree.parts] for tree in (given, wanted))
    return any(one) != any(other) and len({*one, *other} - {""}) > 1


def _unnumbered(tree: Tree, partner: Tree) -> Tree:
    """Writes `x_1 = 2, x_2 = 3` without indices where its partner calls every solution x."""
    names = {_named(part) for part in partner.parts}
    own = [_named(part) for part in tree.parts]
    name = names.pop() if len(names) == 1 else ""
    if not name or len({*own}) != len(own) or any(n.partition("_")[0] != name for n in own):
        return tree
    renamed = (
        part._replace(parts=(Tree("symbol", (name,)), *part.parts[1:])) for part in tree.parts
    )
    return tree._replace(parts=tuple(renamed))


def _equal_brackets(given: Tree, wanted: Tree, judge: _Judge) -> bool:
    """Tuples, points, intervals, vectors and matrices."""
    if given.kind == wanted.kind == "matrix":
        shapes = [[len(row) for row in tree.parts] for tree in (given, wanted)]
        if shapes[0] != shapes[1] or given.mark != wanted.mark:
            return judge.no("matrices of different shapes")
        rows = zip(given.parts, wanted.parts, strict=True)
        return all(_match(one, other, True, judge) for one, other in rows)
    sides = []
    for tree in (given, wanted):
        if tree.kind == "matrix" and not tree.mark:
            column = tuple(row[0] for row in tree.parts)
            flat_matrix = all(len(row) == 1 for row in tree.parts)
            row = tree.parts[0] if len(tree.parts) == 1 else ()
            tree = Tree("bracket", column if flat_matrix else row, "()")
        elif tree.mark == "<>":
            tree = tree._replace(mark="()")
        sides.append(tree)
    one, other = sides
    if _is_domain(one) and _is_domain(other) and "symbol" in (one.kind, other.kind):
        return _same_solutions(one, other, judge)
    if one.kind != other.kind or one.mark != other.mark or len(one.parts) != len(other.parts):
        return judge.no("brackets of different kinds or lengths")
    return _match(one.parts, other.parts, True, judge)


# --------------------------------------------------------------------------------------------------
# Relations
# --------------------------------------------------------------------------------------------------


class _Chain(NamedTuple):
    """`AB = BC = 10/2 = 5 \\approx ...`: names, and the value; no value where a link is false."""

    names: tuple[Tree, ...]
    value: Tree | None
    estimate: bool = False


def _chain(relation: Tree, judge: _Judge) -> _Chain | None:
    """Reads a chain of equals signs and estimates; None where it is another relation."""
    signs, terms = relation.mark.split(), list(relation.parts)
    if not set(signs) <= {"=", "approx"}:
        return None
    if len(terms) == 2 and _is_variable(terms[1]) and not _is_name(terms[0]):
        terms.reverse()
    count = next(i for i, term in enumerate(terms) if not _is_name(term) or i == len(terms) - 1)
    names, values = tuple(terms[:count]), terms[count:]
    if "approx" in signs[: max(count - 1, 0)] or (NOTHING in values):
        return None
    if names and signs[count - 1] == "approx":
        return _Chain(tuple(n for n in names if n != NOTHING), values[0], estimate=True)
    if not names and not all(map(_is_constant, values)):
        return None
    for sign, left, right in zip(signs[count:], values, values[1:], strict=False):
        if sign == "approx" and not _is_estimate(left, right, judge):
            return _Chain(names, None)
        if sign == "=" and not equal(left, right, judge):
            return _Chain(names, None)
    exact = [*signs[count:], "approx"].index("approx")
    return _Chain(names, values[exact])


def _is_name(tree: Tree) -> bool:
    """What may stand left of an equals sign and be left out: a letter, a side, an angle, words."""
    if tree == NOTHING:
        return True
    if tree.kind == "symbol":
        return tree.parts[0] not in ("pi", "infty", "reals", "emptyset")
    if tree.kind in ("word", "text", "run"):
        if tree.kind == "run" and not tree.mark and not tree.parts[0].isupper():
            return False  # a product
        return units.DOUBTS.isdisjoint(re.split(r"\W+", tree.parts[0].lower()))
    if tree.kind == "call":
        return tree.mark not in ("abs", "root", "degree", "factorial") and all(
            map(_is_name, tree.parts)
        )
    return tree.kind in ("quotient", "ratio", "bracket", "union") and all(
        part.kind in ("symbol", "run") and _is_name(part) for part in tree.parts
    )


def _droppable(chain: _Chain) -> bool:
    """BD in `EB = BD` is a statement about EB, not its value."""
    if chain.value is None or chain.value == NOTHING:
        return False
    single = any(
        n.kind == "symbol" and re.match(r"[^ ]_|.$|.'|.\(|[a-z]+$|.\^", n.parts[0])
        for n in chain.names
    )
    return (
        not chain.names
        or single
        or any(t.kind not in ("symbol", "run") for t in _leaves(chain.value))
    )


def _leaves(tree: Tree) -> Iterable[Tree]:
    if not tree.parts or not isinstance(tree.parts[0], Tree):
        yield tree
    for part in tree.parts:
        if isinstance(part, Tree):
            yield from _leaves(part)


def _symbols(tree: Tree) -> set[str]:
    """The letters of an expression, its constants left out."""
    found = {t.parts[0] for t in _leaves(tree) if t.kind in ("symbol", "run")}
    return found - {"pi", "e", "i", "infty"}


def _is_constant(tree: Tree) -> bool:
    return not any(t.kind in ("word", "text", "nothing") for t in _leaves(tree)) and not _symbols(
        tree
    )


def _is_variable(tree: Tree) -> bool:
    return tree == NOTHING or (tree.kind == "symbol" and bool(_symbols(tree)))


def _equal_relations(given: Tree, wanted: Tree, judge: _Judge) -> bool:
    if given.kind != "relation":
        return _equal_to_relation(given, wanted, judge)
    if wanted.kind != "relation":
        return _relation_equal_to(given, wanted, judge)
    if "in" in (given.mark, wanted.mark):
        return _equal_domains(given, wanted, judge)
    if all(map(_is_constant, wanted.parts)):
        return _written(given) == _written(wanted) or judge.no("another number sentence")
    if _same_terms(given, wanted, judge):
        return True
    one, other = _chain(given, judge), _chain(wanted, judge)
    if one and other and one.names and other.names:
        if one.value is None or other.value is None:
            return judge.no("a link of the chain is false")
        if one.estimate != other.estimate:
            return judge.no("an estimate is no value")
        names, expected = ({str(n.parts[0]) for n in chain.names} for chain in (one, other))
        functions = {name for name in names | expected if re.fullmatch(r"y|[fgh]\(x\)", name)}
        same = bool(names & expected) or (
            "y" in functions and len(functions) > 1 and "x" in _symbols(other.value)
        )
        if same and equal(one.value, other.value, judge):
            return True
        if _is_constant(other.value):
            return judge.no("another value" if same else "the value of another name")
    elif other and other.names and other.value and _is_constant(other.value):
        return judge.no("the reference is solved, the answer is not")
    if _is_solved(wanted):
        return judge.no("the reference is solved, the answer is not the same")
    return _equivalent(given, wanted, judge)


def _equal_to_relation(given: Tree, wanted: Tree, judge: _Judge) -> bool:
    """Compares a value with a reference that is a relation."""
    if wanted.mark == "in":
        return equal(given, wanted.parts[1], judge)
    if _is_domain(given) and wanted.mark != "=":
        interval = _as_interval(wanted)
        return equal(given, interval, judge) if interval else _same_solutions(given, wanted, judge)
    chain = _chain(wanted, judge)
    if chain is None or not (chain.names or chain.estimate) or not _droppable(chain):
        return judge.no("the reference is a relation")
    return equal(given, chain.value or NOTHING, judge)


def _relation_equal_to(given: Tree, wanted: Tree, judge: _Judge) -> bool:
    """Compares a relation with a reference that is a value."""
    if given.mark == "in":
        return equal(given.parts[1], wanted, judge)
    if _is_domain(wanted):
        interval = _as_interval(given)
        if interval:
            return equal(interval, wanted, judge)
        if given.mark != "=" and (given.mark == "ne" or _is_distance(given)):
            return _same_solutions(given, wanted, judge)
    chain = _chain(given, judge)
    if chain is None or chain.value is None or not _droppable(chain):
        return judge.no("the answer is another relation, or one of its links is false")
    if chain.estimate and not (wanted.kind == "number" and wanted.mark):
        return judge.no("an estimate is no value")
    return equal(chain.value, wanted, judge)


def _written(tree: Tree) -> Any:
    """A relation between constants as it is written, but for the order of operands and sides."""
    if not tree.parts or not isinstance(tree.parts[0], Tree):
        return (tree.kind, str(tree.parts))
    parts = [_written(part) for part in tree.parts]
    free = tree.kind in ("sum", "product") or (
        tree.kind == "relation" and set(tree.mark.split()) == {"="}
    )
    return (tree.kind, tree.mark, tuple(sorted(parts, key=repr) if free else parts))


def _same_terms(given: Tree, wanted: Tree, judge: _Judge) -> bool:
    if given.mark != wanted.mark or len(given.parts) != len(wanted.parts):
        return False
    symmetric = len(given.parts) == 2 and wanted.mark not in (
        "<",
        "le",
        "in",
        "notin",
        "subset",
        "subseteq",
    )
    for terms in (given.parts, given.parts[::-1])[: 1 + symmetric]:
        pairs = list(zip(terms, wanted.parts, strict=True))
        if all(
            (NOTHING in pair and all(map(_is_variable, pair)))
            or (NOTHING not in pair and equal(*pair, judge))
            for pair in pairs
        ):
            return True
    return False


def _is_solved(relation: Tree) -> bool:
    """True where a variable stands alone between constants."""
    rest = [term for term in relation.parts if not _is_constant(term)]
    return len(rest) == 1 and _is_variable(rest[0])


def _is_distance(relation: Tree) -> bool:
    """True for |x| < 2: as good an answer as the interval."""
    rest = [term for term in relation.parts if not _is_constant(term)]
    return len(rest) == 1 and rest[0].mark == "abs" and len(_symbols(rest[0])) == 1


def _as_interval(relation: Tree) -> Tree | None:
    r"""Writes `1 < x \le 2` as (1, 2]; None where the relation is no interval."""
    signs, terms = relation.mark.split(), relation.parts
    infinite = Tree("symbol", ("infty",))
    if not set(signs) <= {"<", "le"} or not _is_solved(relation):
        return None
    if len(terms) == 3 and _is_variable(terms[1]):
        low, high, opening, end = terms[0], terms[2], signs[0], signs[1]
    elif len(terms) == 2 and _is_variable(terms[0]):
        low, high, opening, end = negative(infinite), terms[1], "<", signs[0]
    elif len(terms) == 2:
        low, high, opening, end = terms[0], infinite, signs[0], "<"
    else:
        return None
    return Tree(
        "bracket", (low, high), ("(" if opening == "<" else "[") + (")" if end == "<" else "]")
    )


def _is_domain(tree: Tree) -> bool:
    """Whether an answer may be a set of real numbers."""
    if tree.kind in ("union", "list") and len(tree.parts) > 1:
        return all(_is_domain(part) or part.kind == "relation" for part in tree.parts)
    if tree.kind == "bracket":
        return len(tree.parts) == 2 and tree.mark[0] in "([" and tree.mark != "<>"
    return tree.kind in ("set", "relation") or tree.parts == ("reals",)


def _is_solved_domain(tree: Tree) -> bool:
    """Whether an answer names its set of numbers, as against x^2 < 4."""
    if tree.kind == "relation":
        return (
            tree.mark == "ne"
            or bool(_as_interval(tree))
            or (tree.mark != "=" and _is_distance(tree))
        )
    return tree.kind != "list" or all(map(_is_solved_domain, tree.parts))


def _equal_domains(given: Tree, wanted: Tree, judge: _Judge) -> bool:
    """Compares `x \\in [1, 2)` with another relation on x."""
    sides, names = [], []
    for tree in (given, wanted):
        member = tree.mark == "in"
        names.append(_symbols(tree.parts[0] if member else tree))
        sides.append(tree.parts[1] if member else _as_interval(tree) or tree)
    if all(names) and names[0] != names[1]:
        return judge.no("the domain of another name")
    return equal(sides[0], sides[1], judge)


def _same_solutions(given: Tree, wanted: Tree, judge: _Judge) -> bool:
    if not judge.algebra:
        raise NeedsAlgebra
    return _computed(algebra.same_solutions, given, wanted)


def _equivalent(given: Tree, wanted: Tree, judge: _Judge) -> bool:
    """Whether two relations with variables say the same."""
    sides = [
        tree for tree in (given, wanted) if len(tree.parts) == 2 and tree.mark in ("=", "<", "le")
    ]
    if len(sides) == 2 and given.mark == wanted.mark and NOTHING not in given.parts + wanted.parts:
        ratios = [algebra.ratio(Tree("sum", (t.parts[1], negative(t.parts[0])))) for t in sides]
        if ratios[0] and ratios[1]:
            factor = algebra.proportional(ratios[0], ratios[1])
            if factor and (factor > 0 or wanted.mark == "="):
                return True
            if all(algebra.is_linear(ratio) for ratio in ratios if ratio):
                return judge.no("relations that do not say the same")
    if not judge.algebra:
        raise NeedsAlgebra
    return _computed(algebra.equal_relations, given, wanted)


def _computed(compare: Any, *arguments: Any) -> bool:
    """Runs computer algebra; whatever sympy raises leaves the question undecided."""
    try:
        return bool(compare(*arguments))
    except (MemoryError, RecursionError, Undecided):
        raise
    except Exception as error:  # any of dozens of kinds, by what a model happened to write
        raise Undecided(f"sympy: {type(error).__name__}") from error


# --------------------------------------------------------------------------------------------------
# Units, times, words, values
# --------------------------------------------------------------------------------------------------


def _equal_quantities(given: Tree, wanted: Tree, judge: _Judge) -> bool:
    if "compound" in (given.kind, wanted.kind):
        return _equal_compounds(given, wanted) or judge.no("another compound")
    (value, unit), (expected, expected_unit) = (
        (tree.parts[0], tree.mark) if tree.kind == "quantity" else (tree, "")
        for tree in (given, wanted)
    )
    if "%" in (unit, expected_unit):
        return _equal_percents(value, unit, expected, expected_unit, judge)
    angle = {unit, expected_unit} <= {"°", "rad", ""} and "°" in (unit, expected_unit)
    if angle and unit != expected_unit:
        turned = [
            _radians(v) if u == "°" else v for v, u in ((value, unit), (expected, expected_unit))
        ]
        plain = value if unit != "°" else expected
        if "rad" in (unit, expected_unit) or _has_pi(plain):
            return equal(turned[0], turned[1], judge)
    if unit != expected_unit and unit and expected_unit and not _same_noun(unit, expected_unit):
        return judge.no(f"the units differ: {unit}, not {expected_unit}")
    if unit != expected_unit and not (unit and expected_unit):
        if unit.startswith("narrowed"):
            return judge.no(f"{unit.removeprefix('narrowed ')} says more than the number")
        bare, letter = (value, expected_unit) if not unit else (expected, unit)
        if _symbols(bare) and re.fullmatch(r"[A-Za-z](?:\^\d)?(?:/[A-Za-z](?:\^\d)?)?", letter):
            spelled = [_times_unit(v, u) for v, u in ((value, unit), (expected, expected_unit))]
            if _symbols(spelled[0]) == _symbols(spelled[1]):
                return equal(spelled[0], spelled[1], judge)
    return equal(value, expected, judge)


def _same_noun(one: str, other: str) -> bool:
    words = [unit.partition(" ")[2] for unit in (one, other)]
    return (
        words[0] == words[1] != ""
        or "counted" in (one, other)
        and all(u.startswith(("counted", "narrowed")) for u in (one, other))
    )


def _times_unit(value: Tree, unit: str) -> Tree:
    above, _, below = unit.partition("/")
    factors = [_power_of(name) for name in (above, below) if name]
    if not factors:
        return value
    return (
        Tree("quotient", (product(value, factors[0]), factors[1]))
        if below
        else product(value, factors[0])
    )


def _power_of(name: str) -> Tree:
    letter, _, power = name.partition("^")
    symbol = Tree("symbol", (letter,))
    return Tree("power", (symbol, Tree("number", (Fraction(power),)))) if power else symbol


def _radians(value: Tree) -> Tree:
    half_turn = Tree("quotient", (Tree("symbol", ("pi",)), Tree("number", (Fraction(180),))))
    return product(value, half_turn)


def _has_pi(tree: Tree) -> bool:
    return any(leaf.parts == ("pi",) for leaf in _leaves(tree))


def _equal_percents(
    value: Tree, unit: str, expected: Tree, expected_unit: str, judge: _Judge
) -> bool:
    if unit and expected_unit and unit != expected_unit:
        return judge.no("a percentage has no other unit")
    if unit == expected_unit or equal(value, expected, judge):
        return equal(value, expected, judge)
    hundred = Tree("number", (Fraction(100),))
    if unit:
        return equal(Tree("quotient", (value, hundred)), expected, judge)
    return equal(value, Tree("quotient", (expected, hundred)), judge)


def _equal_compounds(given: Tree, wanted: Tree) -> bool:
    totals, names = [], []
    for tree in (given, wanted):
        parts = tree.parts if tree.kind == "compound" else (tree,)
        if any(part.kind != "quantity" or not units.scale(part.mark) for part in parts):
            return False
        values = [algebra.ratio(part.parts[0]) for part in parts]
        numbers = [value and algebra.constant(value) for value in values]
        if any(number is None for number in numbers):
            return False
        sizes = [units.scale(part.mark) or ("", 0) for part in parts]
        totals.append(
            (sizes[0][0], sum(n * size for n, (_, size) in zip(numbers, sizes, strict=True)))
        )
        names.append({part.mark for part in parts})
    own = names[0] <= names[1] or names[1] <= names[0]
    return totals[0] == totals[1] and (own or given.kind == wanted.kind)


def _equal_literals(given: Tree, wanted: Tree, judge: _Judge) -> bool:
    """Times, dates, scores, ratios and numbers to a base."""
    if given.kind == wanted.kind == "time":
        hours = [_hours(tree) for tree in (given, wanted)]
        return bool(hours[0] & hours[1]) or judge.no("another time")
    if given.kind == "score" and wanted.kind not in ("date", "time", "ratio", "base", "score"):
        given = Tree("sum", (given.parts[0], negative(given.parts[1])))
        return equal(given, wanted, judge)
    terms = [_ratio_terms(tree) for tree in (given, wanted)]
    if terms[0] and terms[1] and len(terms[0]) == len(terms[1]):
        if "time" in (given.kind, wanted.kind):  # 16:25 may be a ratio, but is not reduced
            return _match(terms[0], terms[1], True, judge)
        zero = Tree("number", (Fraction(0),))
        if any(equal(term, zero, judge) for term in (*terms[0], *terms[1])):
            return _match(terms[0], terms[1], True, judge)
        crossed = (
            (product(g, terms[1][0]), product(w, terms[0][0]))
            for g, w in zip(terms[0][1:], terms[1][1:], strict=True)
        )
        return all(equal(one, other, judge) for one, other in crossed)
    values = [
        Tree("quotient", tree.parts) if tree.kind == "ratio" and len(tree.parts) == 2 else tree
        for tree in (given, wanted)
    ]
    if {values[0].kind, values[1].kind} & {"time", "date", "score", "ratio", "base"}:
        return judge.no(f"a {given.kind}, not a {wanted.kind}")
    return equal(values[0], values[1], judge)


def _ratio_terms(tree: Tree) -> tuple[Tree, ...]:
    if tree.kind == "time" and not tree.mark:
        return tuple(Tree("number", (Fraction(n),)) for n in tree.parts[:2])
    return tree.parts if tree.kind in ("ratio", "quotient") else ()


def _hours(time: Tree) -> set[tuple[int, ...]]:
    """The times of day that may be meant: with a.m. or p.m. one of 24 hours, else as written."""
    hour, *rest = time.parts
    if not time.mark:
        return (
            {(hour, *rest, 0)} | {(hour % 12, *rest, half) for half in (1, 2)}
            if hour < 13
            else {(hour - 12, *rest, 2), (hour, *rest, 0)}
        )
    return {(hour % 12, *rest, 1 if time.mark == "a" else 2)}


_ARTICLE = re.compile(r"(?:an?|the) (?=[a-z-]{3})", re.IGNORECASE)


def _equal_words(given: Tree, wanted: Tree, judge: _Judge) -> bool:
    prose = ("word", "text")
    if given.kind in prose and wanted.kind in prose:
        lines = [_ARTICLE.sub("", tree.parts[0], count=1) for tree in (given, wanted)]
        return _fold(lines[0]) == _fold(lines[1]) or judge.no("other words")
    if given.kind in prose or wanted.kind in prose:
        return judge.no("words on one side only")
    if given.kind == wanted.kind == "run":
        one, other = given.parts[0], wanted.parts[0]
        if one == other:
            return True
        if "text" in (given.mark, wanted.mark):
            lower = one.lower() == other.lower() and len(one) == 3 and is_word(one)
            return lower or judge.no("letters in another order or case")
        if not one.isupper() and (is_word(one) or is_word(other)):
            return judge.no("another word")
    if "text" in (given.mark, wanted.mark):
        return judge.no("letters set as text")
    sides = [product(*letters(t.parts[0])) if t.kind == "run" else t for t in (given, wanted)]
    return _equal_values(sides[0], sides[1], judge)


def _fold(line: str) -> str:
    """Lower case, but not of words that mix cases, such as genotypes."""
    ordinary = all(w.islower() or w.istitle() or w.isupper() for w in re.findall("[A-Za-z]+", line))
    return line.lower() if ordinary else line


def _is_expression(tree: Tree) -> bool:
    return tree.kind in _EXPRESSIONS and all(
        tree.kind in ("number", "symbol") or _is_expression(part) or part == NOTHING
        for part in tree.parts
    )


def _equal_values(given: Tree, wanted: Tree, judge: _Judge) -> bool:
    if not (_is_expression(given) and _is_expression(wanted)):
        return judge.no(f"a {given.kind}, not a {wanted.kind}")
    if given == wanted:
        return True
    decimal = any(
        leaf.kind == "number" and leaf.mark for side in (given, wanted) for leaf in _leaves(side)
    )
    tolerance = judge.rules.tolerance if decimal else None
    degrees = [any(t.mark == "degree" for t in _calls(side)) for side in (given, wanted)]
    radians = any(degrees) and not all(degrees) and (_has_pi(given) or _has_pi(wanted))
    one, other = (None, None) if radians else (algebra.ratio(given), algebra.ratio(wanted))
    decided = algebra.same(one, other) if one and other else None
    if (
        decided is None
        and judge.rules.rounding == "none"
        and not radians
        and algebra.differ(given, wanted, judge.rules.tolerance)
    ):
        decided = False
    if decided is None:
        if not judge.algebra:
            raise NeedsAlgebra
        decided = _computed(algebra.equal_expressions, given, wanted, tolerance, radians)
    elif decided is False and tolerance is not None and one and other:
        numbers = [algebra.approximate(ratio) for ratio in (one, other)]
        if None not in numbers:
            share = Fraction(repr(tolerance))
            a, b = (Fraction(number) for number in numbers if number is not None)
            decided = bool(b) and abs(a - b) <= share * abs(b)
    return decided or _rounded(given, wanted, judge) or judge.no("another value")


def _calls(tree: Tree) -> Iterable[Tree]:
    yield tree
    for part in tree.parts:
        if isinstance(part, Tree):
            yield from _calls(part)


# --------------------------------------------------------------------------------------------------
# Rounding
# --------------------------------------------------------------------------------------------------


def _number(tree: Tree, judge: _Judge) -> Any:
    """The value of a constant as Fraction or float, None for anything else."""
    value = algebra.ratio(tree)
    if value is not None:
        return algebra.approximate(value)
    if not _is_constant(tree):
        return None
    if not judge.algebra:
        raise NeedsAlgebra
    return algebra.number_of(tree)


def _rounds_to(exact: Any, decimal: Tree, least: int = 1) -> bool:
    """Whether a number, rounded to the places of a decimal, is that decimal."""
    places = len(decimal.mark.partition(".")[2]) if decimal.kind == "number" else 0
    if exact is None or places < least or decimal.kind != "number":
        return False
    return abs(Fraction(exact) - decimal.parts[0]) <= Fraction(1, 2 * 10**places)


def _is_estimate(exact: Tree, estimate: Tree, judge: _Judge) -> bool:
    """Whether the right side of an approximate equality is the left side, rounded."""
    exact, estimate = (t.parts[0] if t.kind == "quantity" else t for t in (exact, estimate))
    return _rounds_to(_number(exact, judge), estimate, least=0)


def _rounded(given: Tree, wanted: Tree, judge: _Judge) -> bool:
    """Whether one value is the other, rounded, as far as the rules allow."""
    if judge.rules.rounding == "none":
        return False
    one, other = _number(given, judge), _number(wanted, judge)
    if one is None or other is None:
        return False
    if _rounds_to(one, wanted):
        return True
    return judge.rules.rounding == "both" and _rounds_to(other, given, LEAST_PLACES)
