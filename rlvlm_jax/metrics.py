# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics of a step, and their writers: TensorBoard, W&B, Prometheus and the progress bar.

Names are paths grouped by step, with the unit as suffix. An undefined value (a mean over nothing)
is absent, never 0. `records` writes the files in a run's directory.
"""

import contextlib
import importlib.util
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rlvlm_jax.errors import InputError
from rlvlm_jax.evaluation.scores import count_reflection, reflection
from rlvlm_jax.rewards.rules import is_repetitive

WANDB_PROJECT = "rlvlm_jax"  # if the environment names no other

GIB = 2.0**30
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"  # or a program read from disk
_READ_EVENT = "/jax/compilation_cache/cache_hits"


class CompileCounter:
    """Counts the programs that XLA has built in this process since the counter was created.

    Attributes:
        from_disk: programs that were compiled at an earlier start; see startup.keep_compiled.
    """

    def __init__(self) -> None:
        self._made = self.from_disk = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        jax.monitoring.register_event_listener(self._listen_to_reads)

    @property
    def count(self) -> int:
        """Programs that this process compiled."""
        return self._made - self.from_disk

    def metrics(self) -> dict[str, int]:
        """Returns compile/count and, if any program was read from disk, compile/from_disk."""
        read = {"compile/from_disk": self.from_disk} if self.from_disk else {}
        return {"compile/count": self.count, **read}

    def _listen(self, event: str, duration: float, **_: Any) -> None:
        del duration
        if event == _COMPILE_EVENT:
            self._made += 1

    def _listen_to_reads(self, event: str, **_: Any) -> None:
        if event == _READ_EVENT:
            self.from_disk += 1


class ProgramClock:
    """Seconds that the user has waited for a run, imports included.

    The first run in a process counts from the start of the process, later runs from the creation of
    their clock.

    Attributes:
        start: in seconds since 1970.
    """

    _process_start: float | None = psutil.Process().create_time()

    def __init__(self) -> None:
        self.start = ProgramClock._process_start or time.time()
        ProgramClock._process_start = None

    def metrics(self) -> dict[str, float]:
        """Returns time/to_first_step_s, the seconds until now."""
        return {"time/to_first_step_s": time.time() - self.start}


class Stopwatch:
    """Seconds spent in the named parts of one step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the time of the block to `name`."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """Returns time/NAME_s for every part, and time/step_s since the watch was created."""
        parts = {f"time/{name}_s": value for name, value in self.seconds.items()}
        return {**parts, "time/step_s": time.perf_counter() - self._start}


def memory_metrics(
    gather: Callable[[dict[str, float]], list[dict[str, float]]] = lambda numbers: [numbers],
) -> dict[str, float]:
    """Returns a process's largest resident memory and the devices' peak if they report it, in GiB.

    Args:
        gather: collects the numbers of all processes. With several processes, NAME_N is the value
            of process N.
    """
    per_process = gather(_memory_here())
    first = per_process[0]
    largest = {name: max(numbers.get(name, 0.0) for numbers in per_process) for name in first}
    if len(per_process) == 1:
        return largest
    return largest | {
        f"{name}_{number}": value
        for number, numbers in enumerate(per_process)
        for name, value in numbers.items()
    }


def _memory_here() -> dict[str, float]:
    result = {"memory/host_rss_gib": psutil.Process().memory_info().rss / GIB}
    peaks = [
        stats["peak_bytes_in_use"]
        for device in jax.local_devices()
        if (stats := device.memory_stats()) and "peak_bytes_in_use" in stats
    ]
    if peaks:
        result["memory/device_peak_gib"] = max(peaks) / GIB
    return result


def mean_where(values: np.ndarray, chosen: np.ndarray) -> float | None:
    """Returns the mean of the chosen values, None if none is chosen."""
    return float(np.mean(values[chosen])) if chosen.any() else None


def response_metrics(
    texts: Sequence[str],
    lengths: Sequence[int],
    correct: Sequence[bool],
    truncated: Sequence[bool],
) -> dict[str, float | None]:
    """Returns the metrics of B responses that need no model.

    Args:
        texts: of the responses.
        lengths: content tokens per response.
        correct: the judge's verdicts.
        truncated: whether the limit ended the response, not a stop token.

    Returns:
        response/*: lengths in tokens without the stop token, fractions, and the accuracy of
        responses that were not truncated;
        reflection/*: the five ratios of `scores.reflection`;
        reflection_words/WORD: occurrences as MAYE counts them, also inside other words;
        reflection_whole_words/WORD: occurrences as a whole word;
        reflection_responses/WORD: responses that contain it as a whole word.
        A mean over nothing is None or absent.
    """
    tokens, right = np.asarray(lengths, np.float64), np.asarray(correct, bool)
    ratios = reflection(texts, right.tolist())
    words = ratios.pop("words")
    whole = [count_reflection(text, "word") for text in texts]
    return {
        "response/length": float(np.mean(tokens)),
        "response/length_correct": mean_where(tokens, right),
        "response/length_incorrect": mean_where(tokens, ~right),
        "response/truncated_fraction": float(np.mean(truncated)),
        "response/repetition_fraction": float(np.mean([is_repetitive(text) for text in texts])),
        "response/accuracy_untruncated": mean_where(right, ~np.asarray(truncated, bool)),
        **{f"reflection/{name}": value for name, value in ratios.items()},
        **{f"reflection_words/{word}": count for word, count in words.items()},
        **{f"reflection_whole_words/{word}": sum(c[word] for c in whole) for word in words},
        **{f"reflection_responses/{word}": sum(c[word] > 0 for c in whole) for word in words},
    }


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
