# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a verdict is, and what the comparisons share."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from rlvlm_jax.rewards.math.tree import Tree

MAX_COMPARISONS = 2000  # of one verdict outside of a worker

Status = Literal["ok", "unparsable", "timeout", "no_answer"]
Rounding = Literal["none", "reference", "both"]


class NeedsAlgebra(Exception):  # noqa: N818 (no error: it sends an item to the workers)
    """Raised by the quick comparison where only computer algebra can decide."""


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


class Judge(NamedTuple):
    """How to compare, and what was found to differ."""

    rules: Rules
    algebra: bool
    reasons: list[str]
    compare: "Callable[[Tree, Tree, Judge], bool]"
    spent: list[int]

    def match(self, answer: Sequence[Tree], reference: Sequence[Tree], ordered: bool) -> bool:
        """Whether parts, as many on both sides, are equal in order, or each to another one."""
        if ordered:
            return all(self.equal(g, w) for g, w in zip(answer, reference, strict=True))
        left = list(answer)
        for part in reference:
            match = next((i for i, g in enumerate(left) if self.equal(g, part)), None)
            if match is None:
                return False
            del left[match]
        return True

    def no(self, reason: str) -> bool:
        """False, and remembers why."""
        self.reasons.append(reason)
        return False

    def equal(self, answer: Tree, reference: Tree) -> bool:
        """Whether two answers of any kind are equal; long work is left to the workers."""
        self.spent.append(1)
        if len(self.spent) > MAX_COMPARISONS and not self.algebra:
            raise NeedsAlgebra
        return self.compare(answer, reference, self)
