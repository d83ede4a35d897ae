# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""Judges an answer by a reference: reads both, and compares their trees kind by kind.

Last step of the strict judge. `quick` decides what needs no computer algebra, in bounded time and
in any process; `strict` decides the rest as well and belongs in a worker.
"""

import functools
import logging
import re
from typing import Any

from rlvlm_jax.rewards.math.literals import CHOICES
from rlvlm_jax.rewards.math.parse import Reading, readings
from rlvlm_jax.rewards.math.relations import equal_relations, is_domain, is_solved_domain
from rlvlm_jax.rewards.math.spelling import MAX_CHARS, Unreadable
from rlvlm_jax.rewards.math.tree import Tree, product, symbol, symbols
from rlvlm_jax.rewards.math.values import (
    equal_literals,
    equal_quantities,
    equal_values,
    equal_words,
)
from rlvlm_jax.rewards.math.verdict import DEFAULT_RULES, Judge, Rules, Undecided, Verdict

MAX_PARTS = 64
_ASKED = re.compile(r"\?+(?=[\s$.)\\]*$)")


def quick(answer: str | None, reference: str | None, rules: Rules = DEFAULT_RULES) -> Verdict:
    """Judges whatever can be decided without computer algebra, in bounded time.

    Args:
        answer: content of the response's last box, None where there is none.
        reference: content of the solution's last box, likewise.
        rules: for numbers.

    Raises:
        NeedsAlgebra: the item has to go to `strict`.
    """
    return _judge(answer, reference, Judge(rules, None, equal))


def strict(answer: str | None, reference: str | None, rules: Rules = DEFAULT_RULES) -> Verdict:
    """Judges like `quick`, by computer algebra where needed; call it in a worker only."""
    return _judge(answer, reference, Judge(rules, _algebra(), equal))


def explain(answer: str | None, reference: str | None) -> tuple[Verdict, str]:
    """Judges like `strict` and says why: what differs, or what cannot be read."""
    judge = Judge(DEFAULT_RULES, _algebra(), equal)
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
        return None if readings(_ASKED.sub("", reference)) else r"its \boxed{} is empty"
    except Unreadable as error:
        return f"{error} cannot be read as mathematics or as words"


def warm_up() -> None:
    """Imports what `strict` needs and runs it once, so that no deadline pays for it."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its alarm is off
    strict(r"2\sqrt{x}+\sin^2 x", r"\sqrt{4x}+1-\cos^2 x")


def _algebra() -> Any:
    from rlvlm_jax.rewards.math import algebra  # imports sympy, so in workers only

    return algebra


def _judge(answer: str | None, reference: str | None, judge: Judge) -> Verdict:
    if answer is None or not answer.strip():
        return Verdict(judge.no(r"the answer has no complete \boxed{}"), "no_answer")
    if reference and _ASKED.search(reference):  # then an answer may be asked as well
        reference, answer = (_ASKED.sub("", text) for text in (reference, answer))
    unusable = problem(reference)
    if unusable:
        return Verdict(judge.no(f"the reference cannot be used: {unusable}"), "unparsable")
    if len(answer) > MAX_CHARS:
        return Verdict(judge.no("too long"), "unparsable")
    try:
        answers = readings(answer)
    except Unreadable as error:
        return Verdict(judge.no(f"{error} in the answer cannot be read"), "unparsable")
    if not answers:
        return Verdict(False, "no_answer")
    references = readings(reference or "")
    undecided = None
    # 1,234 may be one number or two parts, but it must be read alike on both sides.
    for pair in dict.fromkeys([(answers[0], references[0]), (answers[-1], references[-1])]):
        try:
            if _same_answer(*pair, judge):
                return Verdict(True, "ok")
        except (Unreadable, Undecided) as error:
            undecided = error
    if undecided is not None:
        return Verdict(judge.no(f"undecided: {undecided}"), "unparsable")
    return Verdict(False, "ok")


def _same_answer(answer: Reading, reference: Reading, judge: Judge) -> bool:
    letter = reference.letter or _letter(reference.tree)
    named = answer.letter or (answer.tree.kind == "symbol" and answer.tree.parts[0].upper())
    if _letter(reference.tree) and answer.tree.kind == "relation" and not answer.letter:
        return judge.no("a relation, not a choice")
    if letter and named in CHOICES:
        if named != letter:
            return judge.no(f"choice {named}, not {letter}")
        if not (answer.letter and reference.letter):
            return True
    elif answer.letter:
        return judge.no("a choice")
    return equal(answer.tree, reference.tree, judge)


_MANY = ("list", "set", "union")


def equal(answer: Tree, reference: Tree, judge: Judge) -> bool:
    """Whether two answers are equal by the conventions."""
    if answer == reference:
        return True
    for kinds, compare in _COMPARISONS:
        if answer.kind in kinds or reference.kind in kinds:
            return compare(answer, reference, judge)
    return equal_values(answer, reference, judge)


def _equal_parts(answer: Tree, reference: Tree, judge: Judge) -> bool:
    sides = answer, reference = _as_parts(answer, reference), _as_parts(reference, answer)
    domains = all(map(is_domain, sides))
    for many, other in (sides, sides[::-1]):
        if many.kind in _MANY and len(many.parts) == 1 and other.kind not in _MANY:
            part = many.parts[0]
            interval = part.kind == "bracket" and many.kind == "set" and part.mark != "()"
            if part.kind in _MANY or interval or part.parts == ("emptyset",):
                return judge.no("a set in a set")
            return equal(*(part if side is many else side for side in sides), judge)
    for many, other in (sides, sides[::-1]):
        if many.kind in _MANY and other.kind not in _MANY:
            if other.kind == "relation" and (many.kind == "set" or other.mark in ("in", "=")):
                return equal_relations(answer, reference, judge)
            joined = many.kind != "list" or _is_union(many)
            if joined and domains and is_solved_domain(answer):
                return judge.computed("same_solutions", answer, reference)
            return judge.no("one answer has several parts, the other does not")
    if max(len(answer.parts), len(reference.parts)) > MAX_PARTS:
        return judge.no(f"more than {MAX_PARTS} parts")
    sides = answer, reference = [
        _distinct(side, judge) if side.kind == "set" else side for side in sides
    ]
    kinds, marks = {answer.kind, reference.kind}, {answer.mark, reference.mark}
    nested = {any(part.kind in _MANY for part in side.parts) for side in sides}
    if _opposed(answer, reference) or ("set" in kinds and len(nested) > 1):
        return judge.no("parts that are joined in another way")
    if marks == {"or", ","} and _related(reference):
        return domains and judge.computed("same_solutions", answer, reference)
    if "union" in kinds and len(kinds) == 2 and not all(map(_is_union, sides)):
        return judge.no("a union, and parts that are none")
    if "to" in marks and len(marks) == 2:
        return judge.no("an order, and parts without one")
    ordered = reference.mark in (";", "to") or _order_counts(answer, reference)
    parts = _unnumbered(answer, reference).parts, _unnumbered(reference, answer).parts
    as_many = len(parts[0]) == len(parts[1])
    if as_many and judge.match(*parts, ordered):
        return True
    part_kinds = {part.kind for side in sides for part in side.parts}
    if "union" in kinds and domains and part_kinds <= {"bracket", "set", "relation"}:
        return judge.computed("same_solutions", answer, reference)
    return not as_many and judge.no(f"{len(parts[0])} parts, not {len(parts[1])}")


def _related(tree: Tree) -> list[Tree]:
    """Its relations that name no value."""
    return [part for part in tree.parts if part.kind == "relation" and not _named(part)]


def _opposed(answer: Tree, reference: Tree) -> bool:
    """Whether "or" joins one side's parts, and the other side means all of them."""
    marks = {answer.mark, reference.mark}
    if "or" not in marks or len(marks) == 1:
        return False
    names = {_named(part) for part in reference.parts} - {""}
    related = _related(reference)
    if len(names) > 1 or all(map(_letter, reference.parts)):
        return True
    if len({frozenset(symbols(part)) for part in related}) > 1:
        return True
    if "and" not in marks:
        return not all(map(is_solved_domain, related))
    words = any(part.kind in ("word", "text", "run") for part in reference.parts)
    return words or bool(related) or (any(map(symbols, reference.parts)) and not names)


def _is_union(tree: Tree) -> bool:
    """Whether parts may be intervals: points with round brackets alone are not."""
    if tree.kind == "set" or tree.mark == "and":
        return tree.kind == "union"
    return tree.kind == "union" or all(
        part.kind == "relation"
        or (part.kind == "bracket" and ("infty" in repr(part) or part.mark != "()"))
        for part in tree.parts
    )


def _as_parts(tree: Tree, partner: Tree) -> Tree:
    """Writes what stands for several parts as a list, where its partner is one."""
    if partner.kind not in _MANY:
        return tree
    lettered = tree.kind == "run" and len(CHOICES.intersection(tree.parts[0])) == len(tree.parts[0])
    if lettered and all(map(_letter, partner.parts)):
        return Tree("list", tuple(map(symbol, tree.parts[0])), ",")
    names: list[str] = []
    values = tree.parts
    if tree.kind == "bracket" and tree.mark in ("()", "<>"):
        names = [_named(part) for part in partner.parts]
        names = sorted(names) if set(names) <= {"x", "y", "z"} else names
    elif tree.kind == "relation" and set(tree.mark.split()) == {"="}:
        *left, value = tree.parts
        if len(left) == 1 and left[0].kind == value.kind == "bracket":
            left, values = left[0].parts, value.parts
        else:
            values = (value,) * len(left)
        names = [name.parts[0] if name.kind == "symbol" else "" for name in left]
    if not all(names) or not 1 < len(names) == len(values):
        return tree
    pairs = zip(map(symbol, names), values, strict=True)
    return Tree("list", tuple(Tree("relation", pair, "=") for pair in pairs), ",")


def _letter(tree: Tree) -> str:
    return tree.parts[0] if tree.kind == "symbol" and tree.parts[0] in CHOICES else ""


def _named(tree: Tree) -> str:
    """The name in `x = 3`, empty for anything else."""
    simple = tree.kind == "relation" and tree.mark == "=" and tree.parts[0].kind == "symbol"
    return tree.parts[0].parts[0] if simple else ""


def _distinct(tree: Tree, judge: Judge) -> Tree:
    exact = all(part.kind == "number" and not part.mark for part in tree.parts)
    parts: list[Tree] = list(dict.fromkeys(tree.parts)) if exact else []
    for part in () if exact else tree.parts:
        if part not in parts and not any(judge.equal(part, other) for other in parts):
            parts.append(part)
    return tree._replace(parts=tuple(parts))


def _order_counts(answer: Tree, reference: Tree) -> bool:
    """True where one side says which value belongs to which name or unit, the other does not."""
    sides = answer, reference
    labels = [{_label(part) for part in side.parts} - {""} for side in sides]
    nouns = [{p.mark for p in side.parts if p.kind == "quantity"} for side in sides]
    return any(
        not min(marks, key=len) and len(max(marks, key=len)) > 1 for marks in (labels, nouns)
    )


def _label(tree: Tree) -> str:
    """What stands before an equals sign; the index of a root x_1 does not count."""
    name = _named(tree)
    if name:
        return name.partition("_")[0] if name[0] in "xytzkmn" else name
    return repr(tree.parts[0]) if tree.kind == "relation" and tree.mark == "=" else ""


def _unnumbered(tree: Tree, partner: Tree) -> Tree:
    """Writes `x_1 = 2, x_2 = 3` without indices where its partner calls every solution x."""
    names = {_named(part) for part in partner.parts}
    own = [_named(part) for part in tree.parts]
    name = names.pop() if len(names) == 1 else ""
    if not name or len({*own}) != len(own) or any(n.partition("_")[0] != name for n in own):
        return tree
    renamed = (part._replace(parts=(symbol(name), *part.parts[1:])) for part in tree.parts)
    return tree._replace(parts=tuple(renamed))


def _evaluated(tree: Tree) -> Tree:
    """Carries out sums and products of matrices, and of numbers with matrices."""
    if tree.kind not in ("sum", "product"):
        return tree
    return functools.reduce(functools.partial(_combined, tree.kind), map(_evaluated, tree.parts))


def _combined(kind: str, left: Tree, right: Tree) -> Tree:
    a, b = left.parts, right.parts
    matrices = [left.kind, right.kind].count("matrix")
    if matrices == 0 and kind == "product":
        return product(left, right)
    if matrices == 1 and kind == "product":
        factor, rows = (left, b) if right.kind == "matrix" else (right, a)
        cells = [[product(factor, cell) for cell in row] for row in rows]
    elif matrices == 2 and kind == "sum" and list(map(len, a)) == list(map(len, b)):
        pairs = [zip(*rows, strict=True) for rows in zip(a, b, strict=True)]
        cells = [[Tree("sum", pair) for pair in row] for row in pairs]
    elif matrices == 2 and kind == "product" and all(len(row) == len(b) for row in a):
        columns = list(zip(*b, strict=True))
        cells = [[Tree("sum", tuple(map(product, row, c))) for c in columns] for row in a]
    else:
        return Tree(kind, (left, right))
    return Tree("matrix", tuple(map(tuple, cells)))


def _equal_brackets(answer: Tree, reference: Tree, judge: Judge) -> bool:
    """Tuples, points, intervals, vectors and matrices."""
    answer, reference = _evaluated(answer), _evaluated(reference)
    if answer.kind == reference.kind == "matrix":
        shapes = [[len(row) for row in tree.parts] for tree in (answer, reference)]
        if shapes[0] != shapes[1] or answer.mark != reference.mark:
            return judge.no("matrices of different shapes")
        return all(
            judge.match(*rows, True) for rows in zip(answer.parts, reference.parts, strict=True)
        )
    answer, reference = _as_tuple(answer), _as_tuple(reference)
    if is_domain(answer) and is_domain(reference) and "symbol" in (answer.kind, reference.kind):
        return judge.computed("same_solutions", answer, reference)
    shapes = [(tree.kind, tree.mark, len(tree.parts)) for tree in (answer, reference)]
    if shapes[0] != shapes[1]:
        return judge.no("brackets of different kinds or lengths")
    return judge.match(answer.parts, reference.parts, True)


def _as_tuple(tree: Tree) -> Tree:
    """A vector in any notation as a tuple; other brackets as they are."""
    if tree.kind == "matrix" and not tree.mark:
        vector = len(tree.parts) == 1 or all(len(row) == 1 for row in tree.parts)
        cells = tuple(cell for row in tree.parts for cell in row)
        return Tree("bracket", cells if vector else (), "()")
    return tree._replace(mark="()") if tree.mark == "<>" else tree


_COMPARISONS = (  # by kind; the first one counts
    (_MANY, _equal_parts),
    (("relation",), equal_relations),
    (("bracket", "matrix"), _equal_brackets),
    (("quantity", "compound"), equal_quantities),
    (("time", "date", "score", "ratio", "base"), equal_literals),
    (("word", "text", "run"), equal_words),
)
