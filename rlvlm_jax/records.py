# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The files of a run's directory: configuration, metrics, responses, pictures.

A line is appended whole or not at all, other files are written aside and renamed. After a crash
`trim` removes what lies beyond the checkpoint that the run goes on from, so that no step appears
twice and none is missing. Imports no JAX.
"""

import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlvlm_jax.errors import InputError

METRICS, CONFIG = "metrics.jsonl", "config.json"


def _dump(value: Any) -> str:
    """Returns one line of JSON; NaN and infinities are refused, they are not JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


class RunDirectory:
    """Writes below one directory, which is created."""

    def __init__(self, directory: str | Path):
        """Creates the directory.

        Raises:
            InputError: it is a file, or cannot be written.
        """
        self.path = Path(directory)
        self._start = time.time()
        try:
            for folder in ("rollouts", "eval"):
                (self.path / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--workdir={directory} cannot be written ({error.strerror}); name a directory "
                "that can"
            ) from error

    def write_config(self, content: Mapping[str, Any]) -> None:
        """Writes config.json: the resolved configuration and what the run depends on."""
        self._write(self.path / CONFIG, json.dumps(content, indent=1, allow_nan=False) + "\n")

    def append(self, phase: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Appends one line to metrics.jsonl and puts it on disk.

        Args:
            phase: "train", "eval" or "sft".
            step: of the loop.
            epoch: passes over the training data so far.
            values: name -> finite number; what is undefined is left out by the caller.
        """
        line = {
            "phase": phase,
            "step": step,
            "epoch": round(epoch, 6),
            "wall_s": round(time.time() - self._start, 3),
            **values,
        }
        data = (_dump(line) + "\n").encode()
        with (self.path / METRICS).open("ab", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())

    def write_rollouts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes rollouts/STEP.jsonl, one response a line."""
        self._write(self.path / "rollouts" / f"{step}.jsonl", _lines(rows))

    def write_evaluation(
        self, step: int, split: str, setting: str, rows: Iterable[Mapping[str, Any]]
    ) -> None:
        """Writes eval/STEP.SPLIT.SETTING.jsonl, one response a line."""
        self._write(self.path / "eval" / f"{step}.{split}.{setting}.jsonl", _lines(rows))

    def write_image(self, name: str, encoded: bytes) -> str:
        """Writes a picture that has no file of its own, once; returns its path from here."""
        suffix = ".png" if encoded.startswith(b"\x89PNG") else ".jpg"
        relative = Path("images") / (re.sub(r"[^\w.-]", "_", name) + suffix)
        target = self.path / relative
        if not target.is_file():
            target.parent.mkdir(exist_ok=True)
            self._write(target, encoded)
        return str(relative)

    def trim(self, step: int | None) -> None:
        """Removes everything about later steps, and a line that a crash cut off.

        Args:
            step: of the checkpoint that the run goes on from; None removes all records.
        """
        last = -1 if step is None else step
        metrics = self.path / METRICS
        if metrics.is_file():
            kept = [line for line in _whole_lines(metrics) if line["step"] <= last]
            self._write(metrics, _lines(kept))
        for folder in ("rollouts", "eval"):
            for file in (self.path / folder).iterdir():
                number = file.name.split(".", 1)[0]
                partial = file.name.startswith(".")
                if partial or (number.isdecimal() and int(number) > last):
                    file.unlink()

    def _write(self, target: Path, content: str | bytes) -> None:
        """Writes a whole file, or leaves the old one."""
        data = content.encode() if isinstance(content, str) else content
        partial = target.with_name(f".{target.name}.partial")
        partial.write_bytes(data)
        partial.replace(target)


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(_dump(row) + "\n" for row in rows)


def _whole_lines(file: Path) -> list[dict[str, Any]]:
    """Returns the lines that are complete JSON objects; a crash can cut off only the last."""
    text = file.read_bytes()
    end = text.rfind(b"\n") + 1
    return [json.loads(line) for line in text[:end].splitlines() if line.strip()]
