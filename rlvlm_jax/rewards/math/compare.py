# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""Judges an answer by a reference: reads both, and compares their trees kind by kind.

Last step of the strict judge. `quick` decides what needs no computer algebra, in bounded time and
in any process; `strict` decides the rest as well and belongs in a worker.
"""

import logging
import re

from rlvlm_jax.rewards.math.literals import CHOICES
from rlvlm_jax.rewards.math.parse import Reading, readings
from rlvlm_jax.rewards.math.relations import (
    equal_relations,
    equal_to_relation,
    is_domain,
    is_solved_domain,
    relation_equal_to,
    same_solutions,
)
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
    return _judge(answer, reference, Judge(rules, False, equal))


def strict(answer: str | None, reference: str | None, rules: Rules = DEFAULT_RULES) -> Verdict:
    """Judges like `quick`, by computer algebra where needed; call it in a worker only."""
    return _judge(answer, reference, Judge(rules, True, equal))


def explain(answer: str | None, reference: str | None) -> tuple[Verdict, str]:
    """Judges like `strict` and says why: what differs, or what cannot be read."""
    judge = Judge(DEFAULT_RULES, True, equal)
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


def _judge(answer: str | None, reference: str | None, judge: Judge) -> Verdict:
    if answer is None or not answer.strip():
        judge.reasons.append(r"the answer has no complete \boxed{}")
        return Verdict(False, "no_answer")
    if reference and _ASKED.search(reference):  # then an answer may be asked as well
        reference, answer = (_ASKED.sub("", text) for text in (reference, answer))
    unusable = problem(reference)
    if unusable is not None or len(answer) > MAX_CHARS:
        judge.reasons.append(
            f"the reference cannot be used: {unusable}" if unusable else "too long"
        )
        return Verdict(False, "unparsable")
    try:
        answers = readings(answer)
    except Unreadable as error:
        judge.reasons.append(f"{error} in the answer cannot be read")
        return Verdict(False, "unparsable")
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
        judge.reasons.append(f"undecided: {undecided}")
        return Verdict(False, "unparsable")
    return Verdict(False, "ok")


def _same_answer(answer: Reading, reference: Reading, judge: Judge) -> bool:
    letter = _letter(reference.tree) if not reference.letter else reference.letter
    named = answer.letter or (answer.tree.kind == "symbol" and answer.tree.parts[0].upper())
    if _letter(reference.tree) and answer.tree.kind == "relation" and not answer.letter:
        return judge.no("a relation, not a choice")
    if letter and named in CHOICES:
        both_texts = answer.letter and reference.letter
        if named != letter:
            return judge.no(f"choice {named}, not {letter}")
        return not both_texts or equal(answer.tree, reference.tree, judge)
    if answer.letter:
        return judge.no("a choice")
    return equal(answer.tree, reference.tree, judge)


_MANY = ("list", "set", "union")


def equal(answer: Tree, reference: Tree, judge: Judge) -> bool:
    """Whether two answers are equal by the conventions."""
    if answer == reference:
        return True
    kinds = {answer.kind, reference.kind}
    if kinds & set(_MANY):
        return _equal_parts(answer, reference, judge)
    if "relation" in kinds:
        return equal_relations(answer, reference, judge)
    if kinds & {"bracket", "matrix"}:
        return _equal_brackets(answer, reference, judge)
    if kinds & {"quantity", "compound"}:
        return equal_quantities(answer, reference, judge)
    if kinds & {"time", "date", "score", "ratio", "base"}:
        return equal_literals(answer, reference, judge)
    if kinds & {"word", "text", "run"}:
        return equal_words(answer, reference, judge)
    return equal_values(answer, reference, judge)


def _equal_parts(answer: Tree, reference: Tree, judge: Judge) -> bool:
    answer, reference = _as_parts(answer, reference), _as_parts(reference, answer)
    for many, other in ((answer, reference), (reference, answer)):
        if many.kind in _MANY and len(many.parts) == 1 and other.kind not in _MANY:
            part = many.parts[0]
            interval = part.kind == "bracket" and many.kind == "set" and part.mark != "()"
            if part.kind in _MANY or interval or part.parts == ("emptyset",):
                return judge.no("a set in a set")
            return equal(part, other, judge) if many is answer else equal(other, part, judge)
    if answer.kind not in _MANY or reference.kind not in _MANY:
        if answer.kind == "relation" and (reference.kind == "set" or answer.mark in ("in", "=")):
            return relation_equal_to(answer, reference, judge)
        if reference.kind == "relation" and (answer.kind == "set" or reference.mark in ("in", "=")):
            return equal_to_relation(answer, reference, judge)
        joined = all(tree.kind != "list" or _is_union(tree) for tree in (answer, reference))
        if joined and is_domain(answer) and is_domain(reference) and is_solved_domain(answer):
            return same_solutions(answer, reference, judge)
        return judge.no("one answer has several parts, the other does not")
    if max(len(answer.parts), len(reference.parts)) > MAX_PARTS:
        return judge.no(f"more than {MAX_PARTS} parts")
    answer, reference = (
        _distinct(tree, judge) if tree.kind == "set" else tree for tree in (answer, reference)
    )
    kinds = {answer.kind, reference.kind}
    nested = [any(part.kind in _MANY for part in tree.parts) for tree in (answer, reference)]
    if _opposed(answer, reference) or ("set" in kinds and nested[0] != nested[1]):
        return judge.no("parts that are joined in another way")
    related = [part for part in reference.parts if part.kind == "relation" and not _named(part)]
    if related and {answer.mark, reference.mark} == {"or", ","}:
        return all(map(is_domain, (answer, reference))) and same_solutions(answer, reference, judge)
    if "union" in kinds and len(kinds) == 2 and not (_is_union(answer) and _is_union(reference)):
        return judge.no("a union, and parts that are none")
    if "to" in (answer.mark, reference.mark) and answer.mark != reference.mark:
        return judge.no("an order, and parts without one")
    ordered = reference.mark in (";", "to") or _order_counts(answer, reference)
    answer_list, reference_list = _unnumbered(answer, reference), _unnumbered(reference, answer)
    if len(answer_list.parts) == len(reference_list.parts) and judge.match(
        answer_list.parts, reference_list.parts, ordered
    ):
        return True
    part_kinds = {part.kind for part in (*answer.parts, *reference.parts)}
    if (
        part_kinds <= {"bracket", "set", "relation"}
        and "union" in kinds
        and is_domain(answer)
        and is_domain(reference)
    ):
        return same_solutions(answer, reference, judge)
    if len(answer.parts) != len(reference.parts):
        return judge.no(f"{len(answer.parts)} parts, not {len(reference.parts)}")
    return False


def _opposed(answer: Tree, reference: Tree) -> bool:
    """Whether "or" joins one side's parts, and the other side means all of them."""
    marks = {answer.mark, reference.mark}
    if "or" not in marks or len(marks) == 1:
        return False
    names = {_named(part) for part in reference.parts} - {""}
    if len(names) > 1 or all(map(_letter, reference.parts)):
        return True
    related = [part for part in reference.parts if part.kind == "relation" and not _named(part)]
    if len({frozenset(symbols(part)) for part in related}) > 1:
        return True
    if "and" in marks and any(part.kind in ("word", "text", "run") for part in reference.parts):
        return True
    if "and" in marks:
        return bool(related) or any(map(symbols, reference.parts)) and not names
    return not all(map(is_solved_domain, related))


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
    lettered = tree.kind == "run" and len(set(tree.parts[0]) & CHOICES) == len(tree.parts[0])
    if lettered and all(_letter(part) for part in partner.parts):
        return Tree("list", tuple(symbol(c) for c in tree.parts[0]), ",")
    if tree.kind == "bracket" and all(_named(part) for part in partner.parts):
        names = [_named(part) for part in partner.parts]
        names = sorted(names) if set(names) <= {"x", "y", "z"} else names
        pairs = zip(names, tree.parts, strict=False)
        if len(names) == len(tree.parts) and tree.mark in ("()", "<>"):
            named = (Tree("relation", (symbol(name), value), "=") for name, value in pairs)
            return Tree("list", tuple(named), ",")
    if tree.kind == "relation" and set(tree.mark.split()) == {"="}:
        *names, value = tree.parts
        if len(names) == 1 and names[0].kind == value.kind == "bracket":
            names, values = list(names[0].parts), value.parts
        else:
            values = (value,) * len(names)
        letters = all(name.kind == "symbol" for name in names)
        if letters and 1 < len(names) == len(values):
            pairs = zip(names, values, strict=True)
            return Tree("list", tuple(Tree("relation", pair, "=") for pair in pairs), ",")
    return tree


def _letter(tree: Tree) -> str:
    return tree.parts[0] if tree.kind == "symbol" and tree.parts[0] in CHOICES else ""


def _named(tree: Tree) -> str:
    """The name in `x = 3`, empty for anything else."""
    simple = tree.kind == "relation" and tree.mark == "=" and tree.parts[0].kind == "symbol"
    return tree.parts[0].parts[0] if simple else ""


def _distinct(tree: Tree, judge: Judge) -> Tree:
    parts: list[Tree] = []
    for part in tree.parts:
        if part not in parts and not any(judge.equal(part, other) for other in parts):
            parts.append(part)
    return tree._replace(parts=tuple(parts))


def _order_counts(answer: Tree, reference: Tree) -> bool:
    """True where one side says which value belongs to which name or unit, the other does not."""
    answer_labels, reference_labels = (
        [_label(part) for part in tree.parts] for tree in (answer, reference)
    )
    if (
        any(answer_labels) != any(reference_labels)
        and len({*answer_labels, *reference_labels} - {""}) > 1
    ):
        return True
    nouns = [{p.mark for p in tree.parts if p.kind == "quantity"} for tree in (answer, reference)]
    return min(map(len, nouns)) == 0 and max(map(len, nouns)) > 1


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
    first, *others = map(_evaluated, tree.parts)
    for other in others:
        a, b = first.parts, other.parts
        matrices = first.kind == other.kind == "matrix"
        if matrices and tree.kind == "sum" and list(map(len, a)) == list(map(len, b)):
            rows = zip(a, b, strict=True)
            cells = [[Tree("sum", pair) for pair in zip(*row, strict=True)] for row in rows]
        elif matrices and tree.kind == "product" and all(len(row) == len(b) for row in a):
            columns = list(zip(*b, strict=True))
            dots = [[list(map(product, row, column)) for column in columns] for row in a]
            cells = [[Tree("sum", tuple(dot)) for dot in row] for row in dots]
        elif tree.kind == "product" and "matrix" in (first.kind, other.kind) and not matrices:
            factor, rows = (first, b) if other.kind == "matrix" else (other, a)
            cells = [[product(factor, cell) for cell in row] for row in rows]
        elif tree.kind == "product" and not matrices:
            first = product(first, other)
            continue
        else:
            return tree
        first = Tree("matrix", tuple(map(tuple, cells)))
    return first


def _equal_brackets(answer: Tree, reference: Tree, judge: Judge) -> bool:
    """Tuples, points, intervals, vectors and matrices."""
    answer, reference = _evaluated(answer), _evaluated(reference)
    if answer.kind == reference.kind == "matrix":
        shapes = [[len(row) for row in tree.parts] for tree in (answer, reference)]
        if shapes[0] != shapes[1] or answer.mark != reference.mark:
            return judge.no("matrices of different shapes")
        rows = zip(answer.parts, reference.parts, strict=True)
        return all(judge.match(one, other, True) for one, other in rows)
    sides = []
    for tree in (answer, reference):
        if tree.kind == "matrix" and not tree.mark:
            column = tuple(row[0] for row in tree.parts)
            flat_matrix = all(len(row) == 1 for row in tree.parts)
            row = tree.parts[0] if len(tree.parts) == 1 else ()
            tree = Tree("bracket", column if flat_matrix else row, "()")
        elif tree.mark == "<>":
            tree = tree._replace(mark="()")
        sides.append(tree)
    answer, reference = sides
    if is_domain(answer) and is_domain(reference) and "symbol" in (answer.kind, reference.kind):
        return same_solutions(answer, reference, judge)
    if (
        answer.kind != reference.kind
        or answer.mark != reference.mark
        or len(answer.parts) != len(reference.parts)
    ):
        return judge.no("brackets of different kinds or lengths")
    return judge.match(answer.parts, reference.parts, True)
