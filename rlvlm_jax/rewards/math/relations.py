# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Compares relations: names before values, chains, number sentences, equations, intervals."""

import re
from typing import Any, NamedTuple

from rlvlm_jax.rewards.math import units
from rlvlm_jax.rewards.math.ratio import is_linear, proportional, ratio
from rlvlm_jax.rewards.math.tree import (
    NOTHING,
    TRIGONOMETRY,
    Tree,
    is_constant,
    leaves,
    negative,
    symbol,
    symbols,
)
from rlvlm_jax.rewards.math.values import bare, is_estimate
from rlvlm_jax.rewards.math.verdict import Judge

# Words that change a value, so that what they stand in is no name of it
_IN_NAMES = ("the", "for", "from", "with", "into", "second", "third", "score", "root", "max", "min")
_IN_NAMES += ("least", "most", "greatest", "all", "per", "power")  # but not "at least"
# What is no name of the value, but of what is done to it
_CHANGED = "^(?:the )?(?:square|cube|reciprocal|inverse|opposite|negative|multiple)s? of"
_NO_NAMES = units.NO_NOUNS.difference(_IN_NAMES)


class _Chain(NamedTuple):
    """`AB = BC = 10/2 = 5`: names, and the value; no value where a link is false."""

    names: tuple[Tree, ...]
    value: Tree | None
    estimate: bool = False


def _chain(relation: Tree, judge: Judge) -> _Chain | None:
    """Reads a chain of equals signs and estimates; None where it is another relation."""
    signs, terms = relation.mark.split(), list(relation.parts)
    if not set(signs) <= {"=", "approx"}:
        return None
    if len(terms) == 2 and is_variable(terms[1]) and not _is_name(terms[0]):
        terms.reverse()
    count = next(i for i, term in enumerate(terms) if not _is_name(term) or i == len(terms) - 1)
    names, values = tuple(terms[:count]), terms[count:]
    if "approx" in signs[: max(count - 1, 0)] or (NOTHING in values):
        return None
    if names and signs[count - 1] == "approx":
        return _Chain(tuple(n for n in names if n != NOTHING), values[0], estimate=True)
    if not names and not all(map(is_constant, values)):
        return None
    units_found = {value.mark for value in values if value.kind == "quantity"}
    links = zip(signs[count:], values, values[1:], strict=False)
    if len(units_found - {"%", "°", "rad"}) > 1 or not all(_holds(*link, judge) for link in links):
        return _Chain(names, None)
    exact = [*signs[count:], "approx"].index("approx")
    return _Chain(names, values[exact])


def _holds(sign: str, left: Tree, right: Tree, judge: Judge) -> bool:
    """Whether a link of a chain is true; there no percent or degree sign may be left out."""
    if sign == "approx":
        return is_estimate(left, right, judge)
    marks = {tree.mark for tree in (left, right) if tree.kind == "quantity"}
    if marks & {"%", "°"} and left.mark != right.mark:
        left, right = bare(left), bare(right)
    return judge.equal(left, right)


def _is_name(tree: Tree) -> bool:
    """What may stand left of an equals sign and be left out: a letter, a side, an angle, words."""
    if tree == NOTHING:
        return True
    if tree.kind == "symbol":
        return tree.parts[0] not in ("pi", "infty", "reals", "emptyset")
    if tree.kind in ("word", "text", "run"):
        if tree.kind == "run" and not tree.mark and not tree.parts[0].isupper():
            return False  # a product
        line = tree.parts[0].lower()
        bound = re.search(rf"at (?:least|most)|not|[不非半倍约]|大于|小于|{_CHANGED}", line)
        return not bound and _NO_NAMES.isdisjoint(re.split(r"\W+", line))
    if tree.kind == "power":  # the inverse of a matrix
        capital = re.fullmatch("[A-Z]", str(tree.parts[0].parts[0]))
        return capital is not None and tree.parts[1].parts[0] == -1
    if tree.kind == "call" and tree.mark == "abs":
        return tree.parts[0].parts == ("z",)
    if tree.kind == "call":
        letters = [part for part in tree.parts if re.fullmatch("[a-z]", str(part.parts[0]))]
        named = tree.mark in ("cap", "setminus", "norm", "dot", "cross")
        return all(map(_is_name, tree.parts)) and (
            named or (tree.mark in TRIGONOMETRY and not letters)
        )
    if tree.kind == "bracket" and sorted(tree.parts, key=repr) != list(tree.parts):
        return False  # (y, x) = (1, 2) is not (1, 2)
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
        or any(t.kind not in ("symbol", "run") for t in leaves(chain.value))
    )


def is_variable(tree: Tree) -> bool:
    """Whether it is a letter that stands for a number, or the one left out in `> 5`."""
    return tree == NOTHING or (tree.kind == "symbol" and bool(symbols(tree)))


def equal_relations(answer: Tree, reference: Tree, judge: Judge) -> bool:
    """Compares two answers of which one is a relation at least."""
    if answer.kind != "relation":
        return equal_to_relation(answer, reference, judge)
    if reference.kind != "relation":
        return relation_equal_to(answer, reference, judge)
    if "in" in (answer.mark, reference.mark):
        return _equal_domains(answer, reference, judge)
    for one, other in ((answer, reference), (reference, answer)):  # A = {x | x > 1}
        kinds = ("relation", "bracket", "union", "set")
        holds = one.mark == "=" and len(one.parts) == 2 and one.parts[1].kind in kinds
        if holds and _is_name(one.parts[0]) and other.parts[-1].kind not in kinds:
            sides = (one.parts[1], other) if one is answer else (other, one.parts[1])
            return judge.equal(*sides)
    if all(map(is_constant, reference.parts)):
        return _written(answer) == _written(reference) or judge.no("another number sentence")
    if _same_terms(answer, reference, judge):
        return True
    answer_chain, reference_chain = _chain(answer, judge), _chain(reference, judge)
    if answer_chain and reference_chain and answer_chain.names and reference_chain.names:
        if answer_chain.value is None or reference_chain.value is None:
            return judge.no("a link of the chain is false")
        if answer_chain.estimate != reference_chain.estimate:
            return judge.no("an estimate is no value")
        names, expected = ({*chain.names} - {NOTHING} for chain in (answer_chain, reference_chain))
        called = {str(name.parts[0]) for name in names | expected}
        function = "y" in called and len(called) == 2 and re.search(r"[fgh]\(x\)", " ".join(called))
        same = expected <= names or (bool(function) and "x" in symbols(reference_chain.value))
        if same and judge.equal(answer_chain.value, reference_chain.value):
            return True
        if is_constant(reference_chain.value):
            return judge.no("another value" if same else "the value of another name")
    elif (
        reference_chain
        and reference_chain.names
        and reference_chain.value
        and is_constant(reference_chain.value)
    ):
        return judge.no("the reference is solved, the answer is not")
    if _is_solved(reference) or not set(reference.mark.split()) <= {"=", "ne", "<", "le"}:
        return judge.no("the reference is solved, the answer is not the same")
    return _equivalent(answer, reference, judge)


def equal_to_relation(answer: Tree, reference: Tree, judge: Judge) -> bool:
    """Compares a value with a reference that is a relation."""
    has_members = reference.parts[-1].kind in ("relation", "union", "set", "bracket")
    if reference.mark == "in" or (reference.mark == "=" and has_members):
        named = _is_name(reference.parts[0]) and len(reference.parts) == 2
        return named and judge.equal(answer, reference.parts[-1])
    if is_domain(answer) and reference.mark != "=":
        interval = _as_interval(reference)
        return (
            judge.equal(answer, interval) if interval else same_solutions(answer, reference, judge)
        )
    chain = _chain(reference, judge)
    if chain is None or not (chain.names or chain.estimate) or not _droppable(chain):
        return judge.no("the reference is a relation")
    return judge.equal(answer, chain.value or NOTHING)


def relation_equal_to(answer: Tree, reference: Tree, judge: Judge) -> bool:
    """Compares a relation with a reference that is a value."""
    has_members = answer.parts[-1].kind in ("relation", "union", "set", "bracket")
    if answer.mark == "in" or (answer.mark == "=" and has_members):
        named = _is_name(answer.parts[0]) and len(answer.parts) == 2
        return named and judge.equal(answer.parts[-1], reference)
    if is_domain(reference):
        interval = _as_interval(answer)
        if interval:
            return judge.equal(interval, reference)
        if answer.mark != "=" and (answer.mark == "ne" or _is_distance(answer)):
            return same_solutions(answer, reference, judge)
    chain = _chain(answer, judge)
    if chain is None or chain.value is None or not _droppable(chain):
        return judge.no("the answer is another relation, or one of its links is false")
    if chain.estimate and not (reference.kind == "number" and reference.mark):
        return judge.no("an estimate is no value")
    return judge.equal(chain.value, reference)


def _written(tree: Tree) -> Any:
    """A relation between constants as it is written, but for the order of operands and sides."""
    if not tree.parts or not isinstance(tree.parts[0], Tree):
        return (tree.kind, str(tree.parts))
    parts = [_written(part) for part in tree.parts]
    free = tree.kind in ("sum", "product") or (
        tree.kind == "relation" and set(tree.mark.split()) == {"="}
    )
    return (tree.kind, tree.mark, tuple(sorted(parts, key=repr) if free else parts))


def _same_terms(answer: Tree, reference: Tree, judge: Judge) -> bool:
    if answer.mark != reference.mark or len(answer.parts) != len(reference.parts):
        return False
    one_way = ("<", "le", "in", "notin", "subset", "subseteq")
    symmetric = len(answer.parts) == 2 and reference.mark not in one_way
    for terms in (answer.parts, answer.parts[::-1])[: 1 + symmetric]:
        pairs = list(zip(terms, reference.parts, strict=True))
        if all(
            (NOTHING in pair and all(map(is_variable, pair)))
            or (NOTHING not in pair and judge.equal(*pair))
            for pair in pairs
        ):
            return True
    return False


def _is_solved(relation: Tree) -> bool:
    """True where a variable stands alone between constants."""
    rest = [term for term in relation.parts if not is_constant(term)]
    return len(rest) == 1 and is_variable(rest[0])


def _is_distance(relation: Tree) -> bool:
    """True for |x| < 2: as good an answer as the interval."""
    rest = [term for term in relation.parts if not is_constant(term)]
    return len(rest) == 1 and rest[0].mark == "abs" and len(symbols(rest[0])) == 1


def _as_interval(relation: Tree) -> Tree | None:
    r"""Writes `1 < x \le 2` as (1, 2]; None where the relation is no interval."""
    signs, terms = relation.mark.split(), relation.parts
    infinite = symbol("infty")
    if not set(signs) <= {"<", "le"} or not _is_solved(relation):
        return None
    if len(terms) == 3 and is_variable(terms[1]):
        low, high, opening, end = terms[0], terms[2], signs[0], signs[1]
    elif len(terms) == 2 and is_variable(terms[0]):
        low, high, opening, end = negative(infinite), terms[1], "<", signs[0]
    elif len(terms) == 2:
        low, high, opening, end = terms[0], infinite, signs[0], "<"
    else:
        return None
    brackets = ("(" if opening == "<" else "[") + (")" if end == "<" else "]")
    return Tree("bracket", (low, high), brackets)


def is_domain(tree: Tree) -> bool:
    """Whether an answer may be a set of real numbers."""
    if tree.kind == "call" and tree.mark == "setminus":
        return all(map(is_domain, tree.parts))
    if tree.kind in ("union", "list") and len(tree.parts) > 1:
        return all(is_domain(part) or part.kind == "relation" for part in tree.parts)
    if tree.kind == "bracket":
        return len(tree.parts) == 2 and tree.mark[0] in "([" and tree.mark != "<>"
    return tree.kind in ("set", "relation") or tree.parts == ("reals",)


def is_solved_domain(tree: Tree) -> bool:
    """Whether an answer names its set of numbers, as against x^2 < 4."""
    if tree.kind == "relation":
        distance = tree.mark != "=" and _is_distance(tree)
        return tree.mark == "ne" or distance or _as_interval(tree) is not None
    return tree.kind != "list" or all(map(is_solved_domain, tree.parts))


def _equal_domains(answer: Tree, reference: Tree, judge: Judge) -> bool:
    r"""Compares `x \in [1, 2)` with another relation on x."""
    sides, names = [], []
    for tree in (answer, reference):
        member = tree.mark == "in"
        names.append({tree.parts[0]} if member else set(map(symbol, symbols(tree))))
        sides.append(tree.parts[1] if member else _as_interval(tree) or tree)
    if all(names) and names[0] != names[1]:
        return judge.no("the domain of another name")
    return judge.equal(sides[0], sides[1])


def same_solutions(answer: Tree, reference: Tree, judge: Judge) -> bool:
    """Whether two answers are the same set of real numbers."""
    return judge.computed("same_solutions", answer, reference)


def _equivalent(answer: Tree, reference: Tree, judge: Judge) -> bool:
    """Whether two relations with variables say the same."""
    plain = (
        len(answer.parts) == len(reference.parts) == 2
        and NOTHING not in answer.parts + reference.parts
    )
    if plain and answer.mark == reference.mark and reference.mark in ("=", "<", "le"):
        sides = (Tree("sum", (t.parts[1], negative(t.parts[0]))) for t in (answer, reference))
        ratios = [ratio(side) for side in sides]
        if ratios[0] and ratios[1]:
            factor = proportional(ratios[0], ratios[1])
            if factor and set(ratios[0].above) != {()} and (factor > 0 or reference.mark == "="):
                return True
            if all(is_linear(ratio) for ratio in ratios if ratio):
                return judge.no("relations that do not say the same")
    return judge.computed("equal_relations", answer, reference)
