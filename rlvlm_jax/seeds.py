# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Several seeds of one recipe: `--config.seeds=3` runs them one after another and sums them up.

Each seed is a whole run in WORKDIR/seed_N, with its own data order, sampling keys and, where
parameters are drawn, initialisation. When the command is given again, a seed that was cut off goes
on, one that is done is not trained any further, and one that only evaluates does so again. What
the seeds have in common goes to WORKDIR/summary.json.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlvlm_jax import distributed, signals
from rlvlm_jax.evaluation import analysis, runs

SUMMARY = "summary.json"


def run_seeds(program: Callable[[ConfigDict, str], bool], config: ConfigDict, workdir: str) -> bool:
    """Runs `program(config, directory)` for `config.seeds` seeds from `config.seed` on.

    Returns:
        True when all are done; False when a signal asked one to stop.
    """
    places = {
        seed: Path(workdir) / f"seed_{seed}"
        for seed in range(config.seed, config.seed + config.seeds)
    }
    for seed, place in places.items():
        seed_config = config.copy_and_resolve_references()
        seed_config.seed, seed_config.seeds = seed, 1
        if config.log.checkpoints:
            seed_config.log.checkpoints = f"{config.log.checkpoints}/{place.name}"
        if not program(seed_config, str(place)):
            return False
        if place != list(places.values())[-1] and any(distributed.gather(signals.stop_requested())):
            return False  # by a signal that came while the last step was saved
    if not distributed.is_first():
        return True
    (group,) = runs.read_groups(places.values())
    text = json.dumps(summary(group), indent=1, allow_nan=False) + "\n"
    partial = Path(workdir) / f".{SUMMARY}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(Path(workdir) / SUMMARY)
    return True


def summary(group: runs.Group) -> dict[str, Any]:
    """Returns what a group of runs has in common.

    Returns:
        seeds; accuracy: {SPLIT/SETTING: `analysis.accuracy_row`}; and, where the runs sampled to
        train, length (`analysis.length_sensitivity`) and reflection
        (`analysis.reflection_and_length`).
    """
    common: dict[str, Any] = {"seeds": [run.seed for run in group.runs], "accuracy": {}}
    for name in group.metrics:
        if name.startswith("eval/") and "/pass@" in name:
            _, split, setting = name.split("/")
            common["accuracy"][f"{split}/{setting}"] = analysis.accuracy_row(group, split, setting)
    if "response/length" in group.metrics:
        common["length"] = analysis.length_sensitivity(group)
        common["reflection"] = analysis.reflection_and_length(group)
    return common
