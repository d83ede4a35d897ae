# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The strict judge."""

from rlvlm_jax.rewards.math.algebra import NeedsAlgebra
from rlvlm_jax.rewards.math.compare import (
    DEFAULT_RULES,
    Rounding,
    Rules,
    Verdict,
    explain,
    problem,
    quick,
    strict,
    warm_up,
)
from rlvlm_jax.rewards.math.parse import Tree, readings
from rlvlm_jax.rewards.math.tokens import Unreadable

# The version of the conventions above; 1 was not written down.
JUDGE_VERSION = 2

__all__ = [
    "DEFAULT_RULES",
    "JUDGE_VERSION",
    "NeedsAlgebra",
    "Rounding",
    "Rules",
    "Tree",
    "Unreadable",
    "Verdict",
    "explain",
    "problem",
    "quick",
    "readings",
    "strict",
    "warm_up",
]
