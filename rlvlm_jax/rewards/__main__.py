# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""How the strict judge reads two answers: `python -m rlvlm_jax.rewards REFERENCE ANSWER`.

Prints both trees and the verdict with its reason. Each argument is a whole text with a `\boxed{}`,
or the content of the box. `--references DATA …` instead lists the solutions that cannot be judged.
"""

import argparse
import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from rlvlm_jax import cli
from rlvlm_jax.errors import InputError
from rlvlm_jax.rewards import boxes, check_golds, math, pool


def main(argv: Sequence[str]) -> int:
    """Explains one verdict, or lists unusable references; returns the exit status."""
    parser = argparse.ArgumentParser(prog="rlvlm_jax.rewards", description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="the reference, then the answer")
    parser.add_argument(
        "--references",
        nargs="+",
        metavar="DATA",
        help="data sets, as in config.data.train: list each solution that cannot be judged, with "
        "the unreadable part; exit status 2 if there is one",
    )
    arguments = parser.parse_args(argv)
    if arguments.references and not arguments.texts:
        return list_unusable(arguments.references)
    if arguments.references or len(arguments.texts) != 2:
        raise InputError("give a reference and an answer, or --references with data sets")
    reference, answer = arguments.texts
    reference_box = boxes.last_box(reference) if r"\boxed" in reference else reference
    answer_box = boxes.answer_box(answer) if r"\boxed" in answer else answer
    for name, box in (("reference", reference_box), ("answer", answer_box)):
        sys.stdout.write(f"{name}: {box}\n{_drawn(box)}\n")
    explained = pool.shared(1).map(math.explain, [(answer_box, reference_box)], 5.0)[0]
    timeout = (math.Verdict(False, "timeout"), "5 s")
    verdict, reason = timeout if explained is pool.LOST else explained
    word = "right" if verdict.correct else "wrong"
    sys.stdout.write(f"{word} ({verdict.status}): {reason}\n")
    return cli.DONE


def list_unusable(names: Sequence[str]) -> int:
    """Prints every record whose solution cannot be judged; returns 2 if there is one."""
    from rlvlm_jax.data import dataset
    from rlvlm_jax.data.example import Example

    total = unusable = 0
    for name in names:
        records = list(dataset.read_records(name, "--references"))
        examples = [(where, record) for where, record in records if isinstance(record, Example)]
        problems = check_golds([example.solution for _, example in examples])
        total += len(examples)
        for (where, example), problem in zip(examples, problems, strict=True):
            if problem:
                unusable += 1
                sys.stdout.write(f"{where} ({example.id}): {problem}\n")
    sys.stdout.write(f"{unusable} of {total} solutions cannot be judged\n")
    return cli.BAD_INPUT if unusable else cli.DONE


def _drawn(box: str | None) -> str:
    """Returns the trees of a box, one node per line."""
    if box is None:
        return "  no complete box"
    try:
        ways = math.readings(box)
    except math.Unreadable as error:
        return f"  cannot be read: {error}"
    lines = []
    for way in ways:
        lines += ["  or" * bool(lines)] * bool(lines)
        lines += [f"  choice {way.letter}"] * bool(way.letter)
        lines += _lines(way.tree, 1)
    return "\n".join(lines)


def _lines(node: Any, depth: int) -> list[str]:
    blank = "  " * depth
    if isinstance(node, math.Tree):
        leaf = [str(part) for part in node.parts if isinstance(part, str | int | Fraction)]
        line = " ".join([node.kind, *leaf, *([f"[{node.mark}]"] if node.mark else [])])
        inside = [part for part in node.parts if isinstance(part, tuple)]
        return [blank + line, *(line for part in inside for line in _lines(part, depth + 1))]
    return [blank + "row", *(line for part in node for line in _lines(part, depth + 1))]


if __name__ == "__main__":
    cli.exit_with(main)
