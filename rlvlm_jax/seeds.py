# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Several seeds of one recipe: `--config.seeds=3` runs them one after another and sums them up.

Each seed is a whole run in WORKDIR/seed_N, with its own data order, sampling keys and, where
parameters are drawn, initialisation. When the command is given again, a seed that was cut off goes
on, and one that is done is not trained any further. What the seeds have in common goes to
WORKDIR/summary.json.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlvlm_jax.evaluation import analysis, runs

SUMMARY = "summary.json"


def run_seeds(program: Callable[[ConfigDict, str], bool], config: ConfigDict, workdir: str) -> bool:
    """Runs `program(config, directory)` for `config.seeds` seeds from `config.seed` on.

    Returns:
        True when all are done; False when a signal asked one to stop.
    """
    for seed in range(config.seed, config.seed + config.seeds):
        one = config.copy_and_resolve_references()
        one.seed, one.seeds = seed, 1
        if not program(one, str(Path(workdir) / f"seed_{seed}")):
            return False
    (group,) = runs.read_groups([workdir])
    text = json.dumps(summary(group), indent=1, allow_nan=False) + "\n"
    partial = Path(workdir) / f".{SUMMARY}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(Path(workdir) / SUMMARY)
    return True


def summary(group: runs.Group) -> dict[str, Any]:
    """Returns what a group of runs has in common.

    Returns:
        seeds; accuracy: {SPLIT/SETTING: `analysis.accuracy_row`}; and, where the runs collected
        responses, length (`analysis.length_sensitivity`) and reflection
        (`analysis.reflection_and_length`).
    """
    found: dict[str, Any] = {"seeds": [run.seed for run in group.runs], "accuracy": {}}
    for name in group.metrics:
        if name.startswith("eval/") and "/pass@" in name:
            _, split, setting = name.split("/")
            found["accuracy"][f"{split}/{setting}"] = analysis.accuracy_row(group, split, setting)
    if all(run.rollouts for run in group.runs):
        found["length"] = analysis.length_sensitivity(group)
        found["reflection"] = analysis.reflection_and_length(group)
    return found
