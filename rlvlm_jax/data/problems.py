# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The bundled visual problems: computed, the same on every machine, without a download.

Six families of two-step arithmetic about a small image, each in two kinds. A *text-dominant*
problem states the facts in its text; the image only supports it. A *vision-dominant* problem shows
the facts in its image alone. Every problem has an integer answer and a worked solution that ends
with the answer in a box.

Splits share no facts. A stable hash assigns the subject of a problem (its family and numbers, in
any order with the same answer) to train, val or test, for both kinds at once. The
out-of-distribution test `test_ood` consists of *special figures* (see `Family.special`) in other
colours; no other split contains either.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from random import Random

from rlvlm_jax.data.drawing import (
    COLOURS,
    UNSEEN_COLOURS,
    draw_bars,
    draw_grid,
    draw_number_line,
    draw_rectangle,
    draw_triangle_angles,
    draw_triangle_sides,
    pick,
)
from rlvlm_jax.data.example import Example
from rlvlm_jax.errors import InputError

KINDS = ("text", "vision")
COUNTS = {"train": 4000, "val": 200, "test": 200, "test_ood": 200}  # both kinds together

Facts = tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """One kind of exercise.

    Attributes:
        name: part of the ids of its problems.
        space: all possible facts.
        key: facts -> what splits must not share; equal for facts that differ only in order.
        special: whether the facts are reserved for the out-of-distribution test.
        text: the question that states the facts.
        vision: the question that leaves them to the image.
        steps: facts -> the two computations, written out.
        draw: draws the image, see `drawing`.
    """

    name: str
    space: tuple[Facts, ...]
    key: Callable[[Facts], Facts]
    special: Callable[[Facts], bool]
    text: str
    vision: str
    steps: Callable[[Facts], tuple[str, str]]
    draw: Callable[..., bytes]


def _product_minus(facts: Facts) -> tuple[str, str]:
    a, b, c = facts
    return f"{a}*{b}={a * b}", f"{a * b}-{c}={a * b - c}"


def _product_plus(facts: Facts) -> tuple[str, str]:
    start, step, steps = facts
    return f"{step}*{steps}={step * steps}", f"{step * steps}+{start}={step * steps + start}"


def _sum(facts: Facts) -> tuple[str, str]:
    a, b, c = facts
    return f"{a}+{b}={a + b}", f"{a + b}+{c}={a + b + c}"


def _sum_minus(facts: Facts) -> tuple[str, str]:
    a, b, c = facts
    return f"{a}+{b}={a + b}", f"{a + b}-{c}={a + b - c}"


def _third_angle(facts: Facts) -> tuple[str, str]:
    a, b = facts
    return f"{a}+{b}={a + b}", f"180-{a + b}={180 - a - b}"


def _pair_first(facts: Facts) -> Facts:
    return (*sorted(facts[:2]), *facts[2:])


def _any_order(facts: Facts) -> Facts:
    return tuple(sorted(facts))


_DIGITS = range(2, 10)
_ANGLES = range(20, 125, 5)

FAMILIES = (
    Family(
        name="hole",
        space=tuple((a, b, c) for a, b, c in product(_DIGITS, _DIGITS, range(1, 10)) if c < a * b),
        key=_pair_first,
        special=lambda facts: facts[0] == facts[1],  # the rectangle is a square
        text="A rectangle is {0} by {1}. A hole of area {2} is cut out. Find the area left.",
        vision="Find the area of the rectangle without the hole.",
        steps=_product_minus,
        draw=draw_rectangle,
    ),
    Family(
        name="sides",
        space=tuple(f for f in product(range(3, 16), repeat=3) if 2 * max(f) < sum(f)),
        key=_any_order,
        special=lambda facts: len(set(facts)) < 3,  # the triangle is isosceles
        text="A triangle has sides {0}, {1} and {2}. Find its perimeter.",
        vision="Find the perimeter of the triangle.",
        steps=_sum,
        draw=draw_triangle_sides,
    ),
    Family(
        name="angles",
        space=tuple((a, b) for a, b in product(_ANGLES, repeat=2) if a + b <= 160),
        key=_any_order,
        special=lambda facts: 90 in facts,  # the triangle has a right angle
        text="A triangle has angles {0} and {1}. Find the third angle.",
        vision="Find the third angle of the triangle.",
        steps=_third_angle,
        draw=draw_triangle_angles,
    ),
    Family(
        name="bars",
        space=tuple(f for f in product(range(1, 10), repeat=3) if f[0] + f[1] > f[2]),
        key=_pair_first,
        special=lambda facts: facts[0] == facts[1],  # two bars are equally high
        text="Bar A is {0}, bar B is {1} and bar C is {2}. Find A + B - C.",
        vision="Read the bars. Find A + B - C.",
        steps=_sum_minus,
        draw=draw_bars,
    ),
    Family(
        name="line",
        space=tuple(product(range(1, 25), _DIGITS, _DIGITS)),
        key=lambda facts: (facts[0], *sorted(facts[1:])),
        special=lambda facts: facts[0] > 20,  # the line starts at a larger number
        text="A number line starts at {0}. Each step is {1}. Find the number after {2} steps.",
        vision="Find the number at the point on the line.",
        steps=_product_plus,
        draw=draw_number_line,
    ),
    Family(
        name="grid",
        space=tuple(
            (a, b, c) for a, b, c in product(range(2, 7), range(2, 7), range(1, 13)) if c < a * b
        ),
        key=_pair_first,
        special=lambda facts: facts[0] == facts[1],  # the grid is a square
        text="A grid has {0} rows and {1} columns. {2} cells are dark. How many are light?",
        vision="How many cells of the grid are light?",
        steps=_product_minus,
        draw=draw_grid,
    ),
)


def examples(split: str, kind: str | None = None, count: int | None = None) -> list[Example]:
    """Makes the problems of one split, the same at every call and on every machine.

    The numbering alternates between the kinds, then cycles through the families, then through the
    shuffled facts of the split. After the last facts it starts over with other drawings.

    Args:
        split: "train", "val", "test" or "test_ood".
        kind: "text" or "vision"; None for both, alternating.
        count: number of problems; None for the split's standard size, half of it per kind.

    Returns:
        `count` examples; their images are PNG files of 84 x 84 pixels.

    Raises:
        InputError: the split or kind does not exist.
    """
    if split not in COUNTS:
        raise InputError(f"there is no bundled split '{split}'; expected one of {_names(COUNTS)}")
    if kind is not None and kind not in KINDS:
        raise InputError(f"there is no bundled kind '{kind}'; expected one of {_names(KINDS)}")
    kinds = KINDS if kind is None else (kind,)
    if count is None:
        count = COUNTS[split] * len(kinds) // len(KINDS)
    made: list[Example] = []
    for index in range(-(-count // len(kinds))):
        made.extend(_example(split, each, index) for each in kinds)
    return made[:count]


def named(name: str) -> list[Example]:
    """Makes the problems of a data name.

    Args:
        name: "bundled:SPLIT[/KIND][:COUNT]", such as "bundled:val/vision" or
            "bundled:train:40000".

    Raises:
        InputError: for any other name.
    """
    match = re.fullmatch(r"bundled:(\w+)(?:/(\w+))?(?::([1-9]\d*))?", name)
    if match is None:
        raise InputError(f"'{name}' is no bundled data; expected bundled:SPLIT[/KIND][:COUNT]")
    split, kind, count = match.groups()
    return examples(split, kind, None if count is None else int(count))


def in_mixed_styles(items: list[Example], direct_share: float) -> Iterator[Example]:
    """Replaces some worked solutions by the bare answer, as text on the web mixes the two styles.

    A model trained on the mixture prefers bare answers if they are the more frequent style, though
    it gets them right less often. Reinforcement learning can discover that.

    Args:
        items: problems with worked solutions.
        direct_share: probability, 0 to 1, that a solution becomes only the answer in a box.

    Yields:
        The problems in the same order; their ids alone decide which ones change.
    """
    for item in items:
        direct = Random(f"style {item.id}").random() < direct_share
        yield replace(item, solution=_box(item.answer)) if direct else item


@cache
def _facts(family: Family, split: str) -> tuple[Facts, ...]:
    """Returns the facts of a split, shuffled; val and test get a tenth of the keys each."""
    if split == "test_ood":
        keys = {family.key(facts) for facts in family.space if family.special(facts)}
    else:
        usual = {family.key(facts) for facts in family.space if not family.special(facts)}
        shuffled = sorted(usual, key=lambda key: _hash(family.name, key))
        tenth = len(shuffled) // 10
        part = {"val": (0, tenth), "test": (tenth, 2 * tenth), "train": (2 * tenth, None)}[split]
        keys = set(shuffled[slice(*part)])
    chosen = (facts for facts in family.space if family.key(facts) in keys)
    return tuple(sorted(chosen, key=lambda facts: _hash("order", family.name, facts)))


def _hash(*items: object) -> bytes:
    return hashlib.sha256(repr(items).encode()).digest()


def _example(split: str, kind: str, index: int) -> Example:
    family = FAMILIES[index % len(FAMILIES)]
    space = _facts(family, split)
    facts = space[index // len(FAMILIES) % len(space)]
    rng = Random(f"{split} {kind} {index}")
    steps = family.steps(facts)
    answer = steps[-1].rpartition("=")[2]
    colour = pick(rng, UNSEEN_COLOURS if split == "test_ood" else COLOURS)
    return Example(
        id=f"{split}-{kind}-{family.name}-{index}",
        question=(family.text if kind == "text" else family.vision).format(*facts),
        answer=answer,
        solution="\n".join((*steps, _box(answer))),
        images=(family.draw(facts, kind == "vision", rng, colour),),
        kind=kind,
        source=f"bundled:{split}/{kind}",
    )


def _box(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


def _names(items: object) -> str:
    return ", ".join(items)
