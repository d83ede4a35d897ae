# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The files in a run's directory: configuration, metrics, responses, images.

A line is appended whole or not at all; other files are written under a temporary name and renamed.
After a crash, `trim` removes the records of steps after the checkpoint that the run resumes from,
so no step appears twice and none is missing. Imports no JAX.
"""

import errno
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlvlm_jax.errors import InputError

METRICS, CONFIG = "metrics.jsonl", "config.json"
_METRIC_NAME = re.compile(r"\w+/[^\n]+")


# Valid inside a JSON string, but str.splitlines and some viewers break lines there.
_LINE_ENDS = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}


def _dump(value: Any) -> str:
    """Returns one line of JSON; converts numpy numbers and leaves undefined ones out."""
    text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)
    return text.translate(_LINE_ENDS)


def _plain(value: Any) -> Any:
    """Converts numpy and JAX scalars to Python, and drops NaN and infinities from mappings."""
    if isinstance(value, Mapping):
        plain = {name: _plain(item) for name, item in value.items()}
        undefined = [n for n, x in plain.items() if isinstance(x, float) and not math.isfinite(x)]
        return {name: item for name, item in plain.items() if name not in undefined}
    return value.item() if hasattr(value, "item") else value


def check_writable(directory: str | Path) -> None:
    """Checks that a run's directory can be created and written, without creating it.

    Raises:
        InputError: it is a URL or a file, is below a file, or is not writable.
    """
    if re.match(r"\w+:/", str(directory)):  # pathlib would collapse "//"
        raise _not_writable(
            directory,
            "it is not a local path; use a mounted bucket; config.log.checkpoints may be gs://",
        )
    path = Path(directory).absolute()
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not nearest.is_dir():
        raise _not_writable(directory, f"{nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise _not_writable(directory, f"no permission to write to {nearest}")


def _not_writable(directory: str | Path, reason: str | None) -> InputError:
    return InputError(
        f"--workdir={directory} cannot be written ({reason}); name a directory that can be"
    )


class RunDirectory:
    """Writes the files of one run."""

    def __init__(self, directory: str | Path, began: float | None = None):
        """Creates the directory.

        Args:
            directory: of the run.
            began: start of the program, in seconds since 1970; None for now.

        Raises:
            InputError: it is a file, or cannot be written.
        """
        self.path = Path(directory)
        self._start = time.time()
        self._began = began or self._start
        self._in_steps = 0.0
        try:
            for folder in ("rollouts", "eval"):
                (self.path / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_writable(directory, error.strerror) from error

    def write_config(self, content: Mapping[str, Any]) -> None:
        """Writes config.json: the resolved configuration and what the run depends on.

        Adds "began", the first start of the run, in seconds since 1970.
        """
        content = {**content, "began": round(self._began, 3)}
        self._write(self.path / CONFIG, json.dumps(content, indent=1, allow_nan=False) + "\n")

    def goodput(self, step_s: float) -> float:
        """Returns the fraction of the run's time spent in steps that count.

        The run's time is all time since its first start: start-up, evaluations, lost steps, and the
        pauses between a stop and the next start.

        Args:
            step_s: seconds of the step about to be recorded.
        """
        self._in_steps += step_s
        return self._in_steps / max(time.time() - self._began, step_s)

    def append(self, phase: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Appends one line to metrics.jsonl and syncs it to disk.

        Args:
            phase: "train", "eval" or "sft".
            step: of the loop.
            epoch: passes over the training data so far.
            values: GROUP/NAME -> number; None, NaN and infinities are left out.

        Raises:
            ValueError: a name does not have this form.
        """
        if bad := [name for name in values if not _METRIC_NAME.fullmatch(name)]:
            raise ValueError(f"{bad[0]!r} is no metric name: expected GROUP/NAME on one line")
        line = {
            "phase": phase,
            "step": step,
            "epoch": round(float(epoch), 6),
            "wall_s": round(time.time() - self._start, 3),
            **{name: value for name, value in values.items() if value is not None},
        }
        data = _encode(_dump(line) + "\n")
        with (self.path / METRICS).open("ab", buffering=0) as file:
            before, written = file.tell(), file.write(data)
            if written != len(data):  # the disk or the user's quota is full
                file.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
            os.fsync(file.fileno())

    def has(self, phase: str, step: int) -> bool:
        """Returns whether metrics.jsonl has a line of this phase and step."""
        file = self.path / METRICS
        lines = _whole_lines(file) if file.is_file() else []
        return any((line.get("phase"), line["step"]) == (phase, step) for line in lines)

    def write_rollouts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes rollouts/STEP.jsonl, one response per line."""
        self._write(self.path / "rollouts" / f"{step}.jsonl", _lines(rows))

    def write_evaluation(
        self, step: int, split: str, setting: str, rows: Iterable[Mapping[str, Any]]
    ) -> None:
        """Writes eval/STEP.SPLIT.SETTING.jsonl, one response per line."""
        self._write(self.path / "eval" / f"{step}.{split}.{setting}.jsonl", _lines(rows))

    def write_image(self, encoded: bytes) -> str:
        """Writes an image that has no file of its own, once; returns its path in the directory."""
        suffix = ".png" if encoded.startswith(b"\x89PNG") else ".jpg"
        relative = Path("images") / (hashlib.sha256(encoded).hexdigest()[:24] + suffix)
        target = self.path / relative
        if not target.is_file():
            target.parent.mkdir(exist_ok=True)
            self._write(target, encoded)
        return str(relative)

    def trim(self, step: int | None) -> None:
        """Removes the records of later steps, and a line that a crash cut off.

        Args:
            step: of the checkpoint that the run resumes from; None removes all records.
        """
        last = -1 if step is None else step
        self._began = self.read_config().get("began", self._began)  # also if every step was lost
        metrics = self.path / METRICS
        if metrics.is_file():
            lines = [line for line in _whole_lines(metrics) if line["step"] <= last]
            self._write(metrics, _lines(lines))
            self._start -= lines[-1]["wall_s"] if lines else 0.0  # the clock continues
            self._in_steps = sum(line.get("time/step_s", 0.0) for line in lines)
        for folder in ("rollouts", "eval"):
            for file in (self.path / folder).iterdir():
                number = file.name.split(".", 1)[0]
                partial = file.name.startswith(".")
                if partial or (number.isdecimal() and int(number) > last):
                    file.unlink()

    def read_config(self) -> dict[str, Any]:
        """Returns what `write_config` wrote last, {} if there is no file.

        Raises:
            InputError: the file holds something else.
        """
        file = self.path / CONFIG
        try:
            content = json.loads(file.read_bytes()) if file.is_file() else {}
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise InputError(
                f"{file}: expected a JSON object; remove the file to continue, or use another "
                "--workdir"
            )
        return content

    def _write(self, target: Path, content: str | bytes) -> None:
        """Writes a file atomically."""
        data = _encode(content) if isinstance(content, str) else content
        partial = target.with_name(f".{target.name}.partial")
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power loss could leave an empty file
        partial.replace(target)


def _encode(text: str) -> bytes:
    """Returns UTF-8; a lone surrogate, as in broken data, becomes its JSON escape."""
    return text.encode("utf-8", "backslashreplace")


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(_dump(row) + "\n" for row in rows)


def _whole_lines(file: Path) -> list[dict[str, Any]]:
    """Returns the complete lines; a crash can cut off only the last line.

    Raises:
        InputError: a line is not what `append` writes.
    """
    data = file.read_bytes()
    lines = []
    for number, text in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            line = json.loads(text)
            line["step"] += 0
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{file}, line {number}: expected a JSON object with a step; fix or remove the "
                "line, or use another --workdir"
            ) from error
        lines.append(line)
    return lines
