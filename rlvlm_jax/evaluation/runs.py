# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What finished or unfinished runs left behind, read back: the input of analysis and report.

A run is one directory; runs that differ in their seed only form a group. Reads files, writes none,
and computes nothing beyond picking numbers out. Imports no JAX.
"""

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlvlm_jax.errors import InputError

METHODS = {"rl": "RL", "sft": "SFT", "eval": "Vanilla"}  # config.mode -> name in figures
# Beside the seed, what may differ between the runs of one group: not what is done, but where.
_INCIDENTAL = ("seed", "seeds", "log", "mesh", "checkpoint_every")


@dataclass(frozen=True)
class RunRecord:
    """One run directory.

    Attributes:
        path: of the directory.
        config: the resolved configuration.
        about: the rest of config.json: versions, device, what was dropped.
        lines: of metrics.jsonl.
    """

    path: Path
    config: dict[str, Any]
    about: dict[str, Any]
    lines: tuple[dict[str, Any], ...]

    @property
    def method(self) -> str:
        """RL, SFT or Vanilla (an evaluation alone)."""
        return METHODS[self.config["mode"]]

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config["seed"]

    def curve(self, name: str, x: str = "step") -> tuple[np.ndarray, np.ndarray]:
        """Returns (x, values) of a metric, float64, at every line that has it.

        Args:
            name: such as "response/length".
            x: "step" or "epoch".
        """
        points = [(line[x], line[name]) for line in self.lines if name in line]
        pairs = np.asarray(points, np.float64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    @functools.cached_property
    def evaluations(self) -> dict[tuple[str, str], dict[int, Path]]:
        """(split, setting) -> {step: file of the responses}, steps in order."""
        found: dict[tuple[str, str], dict[int, Path]] = {}
        for file in (self.path / "eval").glob("*.jsonl"):
            step, _, rest = file.name.removesuffix(".jsonl").partition(".")
            split, _, setting = rest.partition(".")
            if step.isdecimal() and setting:
                found.setdefault((split, setting), {})[int(step)] = file
        return {key: dict(sorted(files.items())) for key, files in sorted(found.items())}

    @functools.cached_property
    def rollouts(self) -> dict[int, Path]:
        """{step: file of the training responses}, in order."""
        files = (self.path / "rollouts").glob("*.jsonl")
        found = {int(f.stem): f for f in files if f.stem.isdecimal()}
        return dict(sorted(found.items()))

    def solved(self, split: str, setting: str, step: int, kind: str = "") -> dict[str, float]:
        """Returns what an evaluation found of each question.

        Args:
            split: "val", "test" or "test_ood".
            setting: "pass@k_...".
            step: of an evaluation.
            kind: of question, see `data.dataset.Example`; "" for all.

        Returns:
            {question id: 1 if any of its first k responses is correct, else 0}.
        """
        k = int(setting.removeprefix("pass@").partition("_")[0])
        found: dict[str, list[bool]] = {}
        for row in read_rows(self.evaluations[split, setting][step]):
            if not kind or row.get("kind") == kind:
                found.setdefault(row["id"], []).append(row["correct"])
        return {name: float(any(correct[:k])) for name, correct in found.items()}

    def kinds(self, split: str) -> list[str]:
        """Returns the kinds of question in an evaluated set, where its records name them."""
        for (of, _), files in self.evaluations.items():
            if of == split:
                rows = read_rows(next(iter(files.values())))
                return sorted({row["kind"] for row in rows if "kind" in row})
        return []


@dataclass(frozen=True)
class Group:
    """Runs of the same configuration with different seeds.

    Attributes:
        label: in figures and tables, unique.
        runs: by seed.
    """

    label: str
    runs: tuple[RunRecord, ...]

    @property
    def method(self) -> str:
        """Of its runs."""
        return self.runs[0].method

    @property
    def metrics(self) -> list[str]:
        """The names of all numbers that any of its runs recorded."""
        return sorted({name for run in self.runs for line in run.lines for name in line})

    @property
    def evaluated(self) -> set[tuple[str, str]]:
        """The (split, setting) that all its runs evaluated."""
        return set.intersection(*(set(run.evaluations) for run in self.runs))

    def curves(self, name: str, x: str = "step") -> tuple[np.ndarray, np.ndarray]:
        """Returns (x float64[T], values float64[runs, T]) of the places that all runs have."""
        per_run = []
        for run in self.runs:
            places, values = run.curve(name, x)
            per_run.append(dict(zip(places.tolist(), values.tolist(), strict=True)))
        shared = sorted(set.intersection(*map(set, per_run)))
        table = np.array([[run[place] for place in shared] for run in per_run], np.float64)
        return np.array(shared, np.float64), table.reshape(len(self.runs), len(shared))


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Returns the objects of a jsonl file.

    Raises:
        InputError: a line is not a JSON object.
    """
    rows = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{file}, line {number}: is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(f"{file}, line {number}: expected a JSON object")
        rows.append(row)
    return rows


def read_run(directory: str | Path) -> RunRecord:
    """Reads config.json and metrics.jsonl of a run; the responses are read when asked for.

    Raises:
        InputError: it is no run directory, or a file in it is damaged.
    """
    path = Path(directory)
    try:
        about = json.loads((path / "config.json").read_bytes())
        lines = read_rows(path / "metrics.jsonl")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{directory} is no run directory: it holds no {Path(error.filename).name}; give the "
            "--workdir of a run"
        ) from error
    except ValueError as error:
        raise InputError(f"{path / 'config.json'} is not JSON ({error})") from error
    config = about.pop("config")
    return RunRecord(path, config, about, tuple(lines))


def read_groups(directories: Iterable[str | Path]) -> tuple[Group, ...]:
    """Reads run directories, or parents of `seed_N` directories, and groups them.

    Raises:
        InputError: a directory is neither, or two runs of one group have the same seed.
    """
    records = [read_run(place) for directory in directories for place in _places(Path(directory))]
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        rest = {key: value for key, value in record.config.items() if key not in _INCIDENTAL}
        groups.setdefault(json.dumps(rest, sort_keys=True), []).append(record)
    for members in groups.values():
        members.sort(key=lambda record: record.seed)
        for a, b in zip(members, members[1:], strict=False):
            if a.seed == b.seed:
                raise InputError(
                    f"{a.path} and {b.path} are the same recipe with the same seed {a.seed}; give "
                    "one of them"
                )
    labels = _labels(list(groups.values()))
    return tuple(
        Group(label, tuple(members)) for label, members in zip(labels, groups.values(), strict=True)
    )


def _places(directory: Path) -> list[Path]:
    """A run directory itself, or the `seed_N` directories in it."""
    seeds = sorted(directory.glob("seed_*/config.json"), key=lambda file: (len(str(file)), file))
    return [file.parent for file in seeds] or [directory]


def _labels(groups: Sequence[Sequence[RunRecord]]) -> list[str]:
    """The method's name; where several groups share it, with the directory's name behind it."""
    methods = [members[0].method for members in groups]
    labels = []
    for members, method in zip(groups, methods, strict=True):
        path = members[0].path
        name = path.parent.name if path.name.startswith("seed_") else path.name
        label = method if methods.count(method) == 1 else f"{method} {name}"
        while label in labels:
            label += "'"
        labels.append(label)
    return labels
