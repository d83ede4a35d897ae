# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Rewards by rule: text in, number out.

`judge` and `judge_batch` decide whether an answer is right, `score` adds the other rewards, and
`check_golds` finds solutions that cannot serve as a reference. `boxes` finds the answer, `math` is
the strict judge, `faithful` contains two published judges, `rules` the table of rewards, `custom`
the user's own, and `pool` the worker processes. Nothing here loads JAX, and importing it loads no
computer algebra.
"""

from rlvlm_jax.rewards.boxes import has_several_answers
from rlvlm_jax.rewards.custom import load_custom
from rlvlm_jax.rewards.math import JUDGE_VERSION, Rules, Verdict
from rlvlm_jax.rewards.pool import close
from rlvlm_jax.rewards.scoring import (
    Scores,
    check_golds,
    gold_problem,
    join,
    judge,
    judge_batch,
    score,
    take,
)

__all__ = [
    "JUDGE_VERSION",
    "Rules",
    "Scores",
    "Verdict",
    "check_golds",
    "close",
    "gold_problem",
    "has_several_answers",
    "join",
    "judge",
    "judge_batch",
    "load_custom",
    "score",
    "take",
]
