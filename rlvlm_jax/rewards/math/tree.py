# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The typed tree that an answer is read into, its small constructors, and how to walk it."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple


class Tree(NamedTuple):
    """An answer, a part of it, or an expression.

    Attributes:
        kind: of answers: "list", "set", "union", "bracket" (tuple, point, interval), "matrix",
            "relation", "ratio", "quantity" (value and unit), "compound" (of quantities), "time",
            "date", "score", "base", "run" (letters that stand alone), "word", "text", "nothing".
            Of expressions: "number", "symbol", "sum", "product", "quotient", "power", "call" (of a
            function), "series" (sum, product, integral, limit).
        parts: the trees it is made of; for a leaf its one value.
        mark: what else tells it from others of its kind: brackets, the signs of a relation, the
            unit, the function, the digits as written, "text" of letters set as text.
    """

    kind: str
    parts: tuple[Any, ...] = ()
    mark: str = ""


NOTHING = Tree("nothing")
TRIGONOMETRY = frozenset(("sin", "cos", "tan", "cot", "sec", "csc"))


def symbol(name: str) -> Tree:
    """A letter, or another name of a value."""
    return Tree("symbol", (name,))


def exact(value: Fraction | int) -> Tree:
    """A number that is written without a decimal point."""
    return Tree("number", (Fraction(value),))


def product(*factors: Tree) -> Tree:
    """A product without products in it."""
    single = [f for tree in factors for f in (tree.parts if tree.kind == "product" else (tree,))]
    return single[0] if len(single) == 1 else Tree("product", tuple(single))


def negative(tree: Tree) -> Tree:
    """The tree with the other sign."""
    if tree.kind == "number":
        return Tree("number", (-tree.parts[0],), tree.mark)
    if tree.kind == "product" and tree.parts[0].kind == "number":
        return Tree("product", (negative(tree.parts[0]), *tree.parts[1:]))
    return product(exact(-1), tree)


def number(digits: str) -> Tree:
    """The number that these digits write."""
    return Tree("number", (Fraction(digits.rstrip(".")),), digits if "." in digits else "")


def radians(degrees: Tree) -> Tree:
    """An angle in degrees, as a number."""
    return product(degrees, Tree("quotient", (symbol("pi"), exact(180))))


def in_radians(tree: Tree, everywhere: bool = False) -> Tree:
    """Writes degrees as radians, everywhere or in the arguments of trigonometric functions."""
    everywhere = everywhere or tree.mark in TRIGONOMETRY
    if not any(isinstance(part, Tree) for part in tree.parts):
        return tree
    parts = tuple(in_radians(part, everywhere) for part in tree.parts)
    return radians(parts[0]) if everywhere and tree.mark == "degree" else tree._replace(parts=parts)


def walk(tree: Tree) -> Iterator[Tree]:
    """The tree and every tree in it, but for the cells of matrices."""
    yield tree
    for part in tree.parts:
        if isinstance(part, Tree):
            yield from walk(part)


def leaves(tree: Tree) -> list[Tree]:
    """The trees that are made of no others."""
    return [t for t in walk(tree) if not (t.parts and isinstance(t.parts[0], Tree))]


def names(tree: Tree) -> set[str]:
    """The names of all symbols in a tree, constants among them."""
    return {t.parts[0] for t in walk(tree) if t.kind == "symbol"}


def symbols(tree: Tree) -> set[str]:
    """The letters of an expression, its constants left out."""
    letters = {leaf.parts[0] for leaf in leaves(tree) if leaf.kind in ("symbol", "run")}
    return letters - {"pi", "e", "i", "infty"}


def is_constant(tree: Tree) -> bool:
    """Whether it has neither letters nor words."""
    words = any(leaf.kind in ("word", "text", "nothing") for leaf in leaves(tree))
    return not words and not symbols(tree)
