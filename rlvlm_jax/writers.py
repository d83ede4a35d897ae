# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where the numbers of a run are shown: TensorBoard, W&B, Prometheus and the progress bar.

`run_directory` writes the files of a run.
"""

import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rlvlm_jax.errors import InputError

WANDB_PROJECT = "rlvlm_jax"  # if the environment names no other


def check_writers(log: Any) -> None:
    """Checks that the configured writers are installed.

    Raises:
        InputError: W&B is configured but not installed.
    """
    if "wandb" in log.writers and importlib.util.find_spec("wandb") is None:
        raise InputError(
            "config.log.writers has 'wandb', which needs the package wandb: install "
            "rlvlm_jax[wandb], or leave it out"
        )


def exposition(metrics: Mapping[str, float]) -> str:
    """Returns metrics in Prometheus' text format, as rlvlm_NAME; other characters become "_"."""
    lines = (
        f"rlvlm_{re.sub(r'[^a-zA-Z0-9_]', '_', name)} {float(value)!r}\n"
        for name, value in metrics.items()
    )
    return "".join(lines)


class Writers:
    """The configured writers: TensorBoard, W&B, Prometheus and the progress bar."""

    def __init__(self, log: Any, workdir: str, total_steps: int, run_config: Mapping[str, Any]):
        self._tensorboard = self._wandb = self._progress = self._prometheus = None
        self._newest: dict[str, float] = {}  # newest value per name, for Prometheus
        if "prometheus" in log.writers:
            self._prometheus = Path(workdir) / "metrics.prom"
        if "tensorboard" in log.writers:
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(f"{workdir}/tensorboard")
        if "wandb" in log.writers:
            import wandb

            self._wandb = wandb.init(
                project=os.environ.get("WANDB_PROJECT", WANDB_PROJECT),
                dir=workdir,
                config=dict(run_config),
            )
        console = Console(stderr=True)
        if "progress" in log.writers and console.is_terminal:
            self._progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._task = self._progress.add_task("", total=total_steps, note="")
            self._progress.start()

    def write(self, step: int, metrics: Mapping[str, float], note: str) -> None:
        """Shows the metrics of a step.

        Args:
            step: of the loop.
            metrics: name -> number.
            note: shown next to the progress bar.
        """
        if self._tensorboard:
            for name, value in metrics.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._prometheus:
            self._newest |= {"step": step, **metrics}
            partial = self._prometheus.with_suffix(".partial")
            partial.write_text(exposition(self._newest), encoding="utf-8")
            partial.replace(self._prometheus)
        if self._wandb:
            self._wandb.log(dict(metrics), step=step)
        if self._progress:
            self._progress.update(self._task, completed=step, note=note)

    def close(self) -> None:
        """Flushes and closes everything."""
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()
        if self._progress:
            self._progress.stop()
