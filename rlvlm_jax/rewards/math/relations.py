# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Compares relations: names before values, chains, number sentences, equations, intervals."""

import re
from typing import Any, NamedTuple

from rlvlm_jax.rewards.math import units
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
    kind, parts, mark = tree
    if kind == "symbol":
        return parts[0] not in ("pi", "infty", "reals", "emptyset")
    if kind == "run" and not mark and not parts[0].isupper():
        return False  # a product
    if kind in ("word", "text", "run"):
        line = parts[0].lower()
        bound = re.search(rf"at (?:least|most)|not|[不非半倍约]|大于|小于|{_CHANGED}", line)
        return not bound and _NO_NAMES.isdisjoint(re.split(r"\W+", line))
    if kind == "power":  # the inverse of a matrix
        return bool(re.fullmatch("[A-Z]", str(parts[0].parts[0]))) and parts[1].parts[0] == -1
    if mark == "abs":
        return parts[0].parts == ("z",)
    if kind == "call":
        letters = any(re.fullmatch("[a-z]", str(part.parts[0])) for part in parts)
        named = mark in ("cap", "setminus", "norm", "dot", "cross")
        return (named or (mark in TRIGONOMETRY and not letters)) and all(map(_is_name, parts))
    if kind == "bracket" and sorted(parts, key=repr) != list(parts):
        return False  # (y, x) = (1, 2) is not (1, 2)
    return tree == NOTHING or (
        kind in ("quotient", "ratio", "bracket", "union")
        and all(part.kind in ("symbol", "run") and _is_name(part) for part in parts)
    )


def _droppable(chain: _Chain) -> bool:
    """BD in `EB = BD` is a statement about EB, not its value."""
    if chain.value in (None, NOTHING):
        return False
    plain = re.compile(r"[^ ]_|.$|.'|.\(|[a-z]+$|.\^")
    single = any(name.kind == "symbol" and plain.match(name.parts[0]) for name in chain.names)
    points = all(leaf.kind in ("symbol", "run") for leaf in leaves(chain.value))
    return not chain.names or single or not points


def is_variable(tree: Tree) -> bool:
    """Whether it is a letter that stands for a number, or the one left out in `> 5`."""
    return tree == NOTHING or (tree.kind == "symbol" and bool(symbols(tree)))


def equal_relations(answer: Tree, reference: Tree, judge: Judge) -> bool:
    """Compares two answers of which one is a relation at least."""
    if answer.kind != "relation" or reference.kind != "relation":
        return _equal_to_value(answer, reference, judge)
    if "in" in (answer.mark, reference.mark):
        return _equal_domains(answer, reference, judge)
    members = [_has_members(tree) and _is_named(tree) for tree in (answer, reference)]
    if members[0] and reference.parts[-1].kind not in _MEMBERS:  # A = {x | x > 1}
        return judge.equal(answer.parts[1], reference)
    if members[1] and answer.parts[-1].kind not in _MEMBERS:
        return judge.equal(answer, reference.parts[1])
    if all(map(is_constant, reference.parts)):
        return _written(answer) == _written(reference) or judge.no("another number sentence")
    if _same_terms(answer, reference, judge):
        return True
    chain, expected = _chain(answer, judge), _chain(reference, judge)
    named = expected is not None and bool(expected.names)
    solved = named and expected.value is not None and is_constant(expected.value)
    if named and chain and chain.names:
        if chain.value is None or expected.value is None:
            return judge.no("a link of the chain is false")
        if chain.estimate != expected.estimate:
            return judge.no("an estimate is no value")
        same_names = _same_names(chain, expected)
        if same_names and judge.equal(chain.value, expected.value):
            return True
        if solved:
            return judge.no("another value" if same_names else "the value of another name")
    if solved or _is_solved(reference) or not set(reference.mark.split()) <= {"=", "ne", "<", "le"}:
        return judge.no("the reference is solved, the answer is not the same")
    return judge.computed("equal_relations", answer, reference)


def _same_names(chain: _Chain, expected: _Chain) -> bool:
    """Whether the reference's names are all there; y and f(x) are the same."""
    names, expected_names = ({*c.names} - {NOTHING} for c in (chain, expected))
    called = {str(name.parts[0]) for name in names | expected_names}
    function = "y" in called and len(called) == 2 and re.search(r"[fgh]\(x\)", " ".join(called))
    return expected_names <= names or (bool(function) and "x" in symbols(expected.value))


_MEMBERS = ("relation", "union", "set", "bracket")


def _has_members(relation: Tree) -> bool:
    r"""Whether it says what is in a set: `x \in [1, 2)`, `A = {1, 2}`."""
    return relation.mark == "in" or (relation.mark == "=" and relation.parts[-1].kind in _MEMBERS)


def _is_named(relation: Tree) -> bool:
    return len(relation.parts) == 2 and _is_name(relation.parts[0])


def _equal_to_value(answer: Tree, reference: Tree, judge: Judge) -> bool:
    """Compares a relation with a value, whichever is the reference."""
    by_relation = reference.kind == "relation"
    relation, value = (reference, answer) if by_relation else (answer, reference)

    def same(part: Tree) -> bool:
        return judge.equal(value, part) if by_relation else judge.equal(part, value)

    if _has_members(relation):
        return _is_named(relation) and same(relation.parts[-1])
    if is_domain(value) and relation.mark != "=":
        interval = _as_interval(relation)
        if interval:
            return same(interval)
        if by_relation or relation.mark == "ne" or _is_distance(relation):
            return judge.computed("same_solutions", answer, reference)
    chain = _chain(relation, judge)
    if chain is None or not _droppable(chain):
        return judge.no("another relation, or one of its links is false")
    if by_relation and not (chain.names or chain.estimate):
        return judge.no("the reference is a number sentence")
    if chain.estimate and not by_relation and not (value.kind == "number" and value.mark):
        return judge.no("an estimate is no value")
    return same(chain.value)


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
    turns = len(answer.parts) == 2 and reference.mark not in one_way

    def same(a: Tree, b: Tree) -> bool:
        if NOTHING in (a, b):
            return is_variable(a) and is_variable(b)
        return judge.equal(a, b)

    ways = (answer.parts, answer.parts[::-1]) if turns else (answer.parts,)
    return any(all(map(same, terms, reference.parts)) for terms in ways)


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
    if len(terms) == 2 and is_variable(terms[0]):
        signs, terms = ["<", *signs], (negative(infinite), *terms)
    elif len(terms) == 2:
        signs, terms = [*signs, "<"], (*terms, infinite)
    if len(terms) != 3 or not is_variable(terms[1]):
        return None
    brackets = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
    return Tree("bracket", (terms[0], terms[2]), brackets)


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
    names, domains = [], []
    for tree in (answer, reference):
        member = tree.mark == "in"
        names.append({tree.parts[0]} if member else set(map(symbol, symbols(tree))))
        domains.append(tree.parts[1] if member else _as_interval(tree) or tree)
    if all(names) and names[0] != names[1]:
        return judge.no("the domain of another name")
    return judge.equal(*domains)
