# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""Draws answers that must be accepted or rejected, and counts what the strict judge does.

`python -m tests.rewards.fuzz` draws from every kind of `REWRITES` (the meaning is kept) and of
`MUTATIONS` (the meaning is changed), and prints the rates by kind. The kinds do not know the judge;
only this file calls it. Exit status 1: a mutation was accepted, or less than 98 % of a kind of
rewrites, or less than 99.5 % of all rewrites.

    --seed N     another seed, other draws (0)
    --draws N    draws of each kind (as many as make 10,000 of each table, 300 at least)
    --kind NAME  one kind only
    --show N     prints the first N failures of each kind
"""

import argparse
import sys
from collections.abc import Mapping
from math import ceil
from random import Random
from typing import NamedTuple

from rlvlm_jax.rewards import Verdict, judge_batch
from tests.rewards.fuzz_mutations import MUTATIONS
from tests.rewards.fuzz_relations import RELATIONS
from tests.rewards.fuzz_shapes import Kind, Pair, k12
from tests.rewards.fuzz_values import VALUES

REWRITES = VALUES | RELATIONS

FEWEST, WHOLE_RUN = 300, 10_000  # draws of a kind, and of a table, in the full run
KIND_RATE, WHOLE_RATE = 0.98, 0.995  # of the rewrites that must be accepted


class Drawn(NamedTuple):
    """The pairs of one kind, and their verdicts."""

    kind: str
    pairs: list[Pair]
    verdicts: list[Verdict]

    @property
    def accepted(self) -> int:
        return sum(verdict.correct for verdict in self.verdicts)

    def where(self, accepted: bool) -> list[tuple[Pair, Verdict]]:
        both = zip(self.pairs, self.verdicts, strict=True)
        return [(pair, verdict) for pair, verdict in both if verdict.correct is accepted]


def full_draws(table: Mapping[str, Kind]) -> int:
    """Returns how often the full run draws from each kind of a table."""
    return max(FEWEST, ceil(WHOLE_RUN / len(table)))


def draw(kind: str, function: Kind, seed: int, draws: int) -> list[Pair]:
    """Returns pairs of answer and reference; the same ones for the same seed and kind."""
    rng = Random(f"{seed}/{kind}")
    return [function(rng) for _ in range(draws)]


def judged(table: Mapping[str, Kind], seed: int, draws: int) -> list[Drawn]:
    """Draws from each kind of a table, and asks the judge in one batch."""
    drawn = {kind: draw(kind, function, seed, draws) for kind, function in table.items()}
    pairs = [pair for some in drawn.values() for pair in some]
    verdicts = judge_batch(
        [rf"So \boxed{{{answer}}}." for answer, _ in pairs],
        [rf"\boxed{{{reference}}}" for _, reference in pairs],
    )
    starts = range(0, len(pairs), draws)
    return [
        Drawn(kind, some, verdicts[start : start + draws])
        for (kind, some), start in zip(drawn.items(), starts, strict=True)
    ]


def low_rates(rewrites: list[Drawn]) -> list[str]:
    """Returns the kinds of rewrites of which too few are accepted."""
    return [some.kind for some in rewrites if some.accepted < KIND_RATE * len(some.pairs)]


def report(title: str, drawn: list[Drawn]) -> str:
    """Returns a table in plain text: draws, accepted and the rate of each kind."""
    width = max(len(some.kind) for some in drawn) + 2
    lines = [f"{title:{width}}{'draws':>8}{'accepted':>10}{'rate':>9}"]
    rows = [(some.kind, len(some.pairs), some.accepted) for some in drawn]
    rows.append((f"all {len(drawn)} kinds", sum(r[1] for r in rows), sum(r[2] for r in rows)))
    for name, draws, accepted in rows:
        lines.append(f"{name:{width}}{draws:8}{accepted:10}{100 * accepted / draws:8.2f}%")
    return "\n".join(lines) + "\n"


def listing(some: Drawn, accepted: bool, most: int | None = None) -> str:
    """Returns the pairs of a kind that were, or were not, accepted, a line each."""
    lines = [
        f"{some.kind}: reference {reference!r}, answer {answer!r}: {verdict.status}\n"
        for (answer, reference), verdict in some.where(accepted)[:most]
    ]
    return "".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.rewards.fuzz")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int)
    parser.add_argument("--kind", choices=[*REWRITES, *MUTATIONS], metavar="NAME")
    parser.add_argument("--show", type=int, default=0, metavar="N")
    flags = parser.parse_args(arguments)
    chosen = [
        {kind: function for kind, function in table.items() if flags.kind in (None, kind)}
        for table in (REWRITES, MUTATIONS)
    ]
    found = [
        judged(table, flags.seed, flags.draws or full_draws(whole)) if table else []
        for table, whole in zip(chosen, (REWRITES, MUTATIONS), strict=True)
    ]
    rewrites, mutations = found
    source = "K12's references and generated ones" if k12() else "generated references only: no K12"
    sys.stdout.write(f"seed {flags.seed}; {source}\n")
    if rewrites:
        sys.stdout.write("\n" + report("rewrites, to be accepted", rewrites))
        sys.stdout.writelines(listing(some, False, flags.show) for some in rewrites)
    if mutations:
        sys.stdout.write("\n" + report("mutations, to be rejected", mutations))
        sys.stdout.writelines(listing(some, True) for some in mutations)
    wrong = sum(some.accepted for some in mutations)
    low = low_rates(rewrites)
    draws = sum(len(some.pairs) for some in rewrites)
    enough = sum(some.accepted for some in rewrites) >= WHOLE_RATE * draws
    sys.stdout.write(f"\n{wrong} mutations accepted; kinds of rewrites below 98 %: {len(low)}\n")
    sys.stdout.writelines(f"    {kind}\n" for kind in low)
    return int(wrong > 0 or bool(low) or not enough)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
