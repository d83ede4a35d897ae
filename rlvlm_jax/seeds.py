# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Several seeds of one recipe: `--config.seeds=3` runs them in sequence and summarises them.

Each seed is a whole run in WORKDIR/seed_N, with its own data order, sampling keys and, if
parameters are random, initialisation. Running the command again resumes a seed that was cut off,
does not train a finished seed any further, and repeats an evaluation-only seed. The summary over
seeds goes to WORKDIR/summary.json.
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
    """Runs `program(config, directory)` for `config.seeds` seeds, starting at `config.seed`.

    Returns:
        True if all are done; False if a signal asked one to stop.
    """
    directories = {
        seed: Path(workdir) / f"seed_{seed}"
        for seed in range(config.seed, config.seed + config.seeds)
    }
    for seed, directory in directories.items():
        seed_config = config.copy_and_resolve_references()
        seed_config.seed, seed_config.seeds = seed, 1
        if config.log.checkpoints:
            seed_config.log.checkpoints = f"{config.log.checkpoints}/{directory.name}"
        if not program(seed_config, str(directory)):
            return False
        if directory != list(directories.values())[-1] and any(
            distributed.gather(signals.stop_requested())
        ):
            return False  # a signal arrived while the last step was being saved
    if not distributed.is_first():
        return True
    (group,) = runs.read_groups(directories.values())
    text = json.dumps(summary(group), indent=1, allow_nan=False) + "\n"
    partial = Path(workdir) / f".{SUMMARY}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(Path(workdir) / SUMMARY)
    return True


def summary(group: runs.Group) -> dict[str, Any]:
    """Returns the summary of a group of runs.

    Returns:
        seeds; accuracy: {SPLIT/SETTING: `analysis.accuracy_row`}; and, if the runs sampled in
        training, length (`analysis.length_sensitivity`) and reflection
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
