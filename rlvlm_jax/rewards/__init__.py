# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Rewards by rule: text in, number out.

`judge` and `judge_batch` say whether an answer is right, `score` adds the other rewards, and
`check_golds` finds the solutions by which nothing can be judged. `boxes` finds the answer, `math`
is the strict judge, `faithful` has two published ones, `text_rules` the rest, `custom` the user's
own; `pool` holds the worker processes. Nothing here loads JAX, and importing it loads no computer
algebra.
"""

from rlvlm_jax.rewards.boxes import has_several_answers
from rlvlm_jax.rewards.custom import load_custom
from rlvlm_jax.rewards.math import JUDGE_VERSION, Rules, Verdict
from rlvlm_jax.rewards.pool import close
from rlvlm_jax.rewards.scoring import (
    RewardConfig,
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
    "RewardConfig",
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
