# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a verdict is, and what the comparisons share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from rlvlm_jax.rewards.math.tree import Tree

MAX_COMPARISONS = 2000  # of one verdict outside of a worker

Status = Literal["ok", "unparsable", "timeout", "no_answer"]
Rounding = Literal["none", "reference", "both"]


class NeedsAlgebra(Exception):  # noqa: N818 (no error: it sends an item to the workers)
    """Raised by the quick comparison where only computer algebra can decide."""


class Undecided(Exception):  # noqa: N818 (an outcome: the verdict is "unparsable")
    """Raised where neither equality nor difference can be shown."""


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


@dataclass
class Judge:
    """How to compare, and what differs.

    Attributes:
        rules: for numbers.
        algebra: the module of that name in a worker, None elsewhere.
        compare: `compare.equal`.
        reasons: what differs, the last reason last.
        comparisons: number of comparisons so far.
    """

    rules: Rules
    algebra: Any
    compare: "Callable[[Tree, Tree, Judge], bool]"
    reasons: list[str] = field(default_factory=list)
    comparisons: int = 0

    def equal(self, answer: Tree, reference: Tree) -> bool:
        """Whether two answers of any kind are equal; long work is left to the workers."""
        self.comparisons += 1
        if self.comparisons > MAX_COMPARISONS and not self.algebra:
            raise NeedsAlgebra
        return self.compare(answer, reference, self)

    def match(self, answer: Sequence[Tree], reference: Sequence[Tree], ordered: bool) -> bool:
        """Whether parts, as many on both sides, are equal in order, or each to another one."""
        left = list(answer)
        for part in reference:
            tried = left[:1] if ordered else left
            match = next((i for i, other in enumerate(tried) if self.equal(other, part)), None)
            if match is None:
                return False
            del left[match]
        return True

    def no(self, reason: str) -> bool:
        """False, and remembers why."""
        self.reasons.append(reason)
        return False

    def computed(self, function: str, *arguments: Any) -> Any:
        """What a function of `algebra` says; whatever sympy raises leaves it undecided."""
        if not self.algebra:
            raise NeedsAlgebra
        try:
            return getattr(self.algebra, function)(*arguments)
        except (MemoryError, RecursionError, Undecided):
            raise
        except Exception as error:  # any of dozens of kinds, by what a model happened to write
            raise Undecided(f"sympy: {type(error).__name__}") from error
