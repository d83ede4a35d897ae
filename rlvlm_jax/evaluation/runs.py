# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reads the directories of finished or unfinished runs: the input of analysis and report.

A run is one directory; runs that differ only in their seed form a group. Reads files, writes none,
and only picks out numbers. Imports no JAX.
"""

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlvlm_jax import old_keys
from rlvlm_jax.config import HARMLESS
from rlvlm_jax.errors import InputError

TRAININGS = {"rl": "RL", "sft": "SFT"}  # config.mode -> name in figures
# Names of runs that only evaluate: the model from which the other runs started, or any other one.
VANILLA, EVALUATED = "Vanilla", "Evaluated"
FIRST_JUDGE = 1  # the judge version of records without a judge_version
Question = tuple[str, str, str]  # id, text, solution: ids alone may repeat between data sets


@dataclass(frozen=True)
class RunRecord:
    """One run directory.

    Attributes:
        path: of the directory.
        config: the resolved configuration, with today's keys.
        about: the rest of config.json: versions, device, dropped records.
        lines: of metrics.jsonl.
    """

    path: Path
    config: dict[str, Any]
    about: dict[str, Any]
    lines: tuple[dict[str, Any], ...]

    @property
    def mode(self) -> str:
        """One of rl, sft, eval."""
        return self.config["mode"]

    @property
    def model(self) -> str | None:
        """The model from which the run started, as named in its configuration."""
        return self.config.get("model", {}).get("path")

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config["seed"]

    def curve(self, name: str, x: str = "step") -> tuple[np.ndarray, np.ndarray]:
        """Returns (x, values) of a metric, float64, from every line that has it.

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
        evaluations: dict[tuple[str, str], dict[int, Path]] = {}
        for file in (self.path / "eval").glob("*.jsonl"):
            step, _, rest = file.name.removesuffix(".jsonl").partition(".")
            split, _, setting = rest.partition(".")
            if step.isdecimal() and setting:
                evaluations.setdefault((split, setting), {})[int(step)] = file
        return {key: dict(sorted(files.items())) for key, files in sorted(evaluations.items())}

    @functools.cached_property
    def rollouts(self) -> dict[int, Path]:
        """{step: file of the training responses}, in order."""
        files = (self.path / "rollouts").glob("*.jsonl")
        by_step = {int(f.stem): f for f in files if f.stem.isdecimal()}
        return dict(sorted(by_step.items()))

    @functools.cached_property
    def judge_versions(self) -> tuple[int, ...]:
        """The versions of the judge in its evaluations; without evaluations, config.json's.

        There are several if the run was resumed under another judge.
        """
        files = [file for steps in self.evaluations.values() for file in steps.values()]
        rows = [row for file in files for row in read_rows(file)] or [self.about]
        return tuple(sorted({row.get("judge_version", FIRST_JUDGE) for row in rows}))

    def solved(self, split: str, setting: str, step: int, kind: str = "") -> dict[Question, float]:
        """Returns which questions an evaluation solved.

        Args:
            split: "val", "test" or "test_ood".
            setting: "pass@k_...".
            step: of an evaluation.
            kind: of question, see `data.example.Example`; "" for all.

        Returns:
            {question: 1 if any of its first k responses is correct, else 0}.
        """
        k = int(setting.removeprefix("pass@").partition("_")[0])
        correct_by_question: dict[Question, list[bool]] = {}
        for row in read_rows(self.evaluations[split, setting][step]):
            if not kind or row.get("kind") == kind:
                question = row["id"], row["question"], row["solution"]
                correct_by_question.setdefault(question, []).append(row["correct"])
        return {
            question: float(any(correct[:k])) for question, correct in correct_by_question.items()
        }

    def kinds(self, split: str) -> list[str]:
        """Returns the kinds of question in an evaluated set, if its records name them."""
        for (evaluated_split, _), files in self.evaluations.items():
            if evaluated_split == split:
                rows = read_rows(next(iter(files.values())))
                return sorted({row["kind"] for row in rows if "kind" in row})
        return []


@dataclass(frozen=True)
class Group:
    """Runs of the same configuration with different seeds.

    Attributes:
        label: in figures and tables, unique.
        method: "RL", "SFT", "Vanilla" or "Evaluated".
        runs: by seed.
    """

    label: str
    method: str
    runs: tuple[RunRecord, ...]

    @property
    def trained(self) -> bool:
        """Whether its runs train and therefore have a sequence of evaluations."""
        return self.method in TRAININGS.values()

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics that any of its runs recorded."""
        return sorted({name for run in self.runs for line in run.lines for name in line})

    @property
    def evaluated(self) -> set[tuple[str, str]]:
        """The (split, setting) that all its runs evaluated."""
        return set.intersection(*(set(run.evaluations) for run in self.runs))

    def kinds(self, split: str) -> list[str]:
        """Returns the kinds of question in an evaluated set that all its runs have."""
        return sorted(set.intersection(*(set(run.kinds(split)) for run in self.runs)))

    def curves(self, name: str, x: str = "step") -> tuple[np.ndarray, np.ndarray]:
        """Returns (x float64[T], values float64[runs, T]) at the x that all runs have."""
        x_values, table = self.all_curves(name, x)
        shared = ~np.isnan(table).any(axis=0)
        return x_values[shared], table[:, shared]

    def all_curves(self, name: str, x: str = "step") -> tuple[np.ndarray, np.ndarray]:
        """Returns the same at every x that any run has; NaN if a run has no number there."""
        per_run = []
        for run in self.runs:
            x_values, values = run.curve(name, x)
            per_run.append(dict(zip(x_values.tolist(), values.tolist(), strict=True)))
        x_values = sorted(set().union(*per_run))
        table = [[run.get(x_value, np.nan) for x_value in x_values] for run in per_run]
        return np.array(x_values, np.float64), np.array(table, np.float64).reshape(len(per_run), -1)


def read_rows(file: Path, *, unfinished: bool = False) -> list[dict[str, Any]]:
    """Returns the objects of a jsonl file.

    Args:
        file: one object per line.
        unfinished: ignore a last line without a line break.

    Raises:
        InputError: a line is not a JSON object.
    """
    rows = []
    content = file.read_bytes()
    if unfinished:
        content = content[: content.rfind(b"\n") + 1]
    for number, line in enumerate(content.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{file}, line {number}: is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(f"{file}, line {number}: expected a JSON object")
        rows.append(row)
    return rows


def read_run(directory: str | Path) -> RunRecord:
    """Reads config.json and metrics.jsonl of a run; responses are read on demand.

    A run that has just begun has no metrics yet. The incomplete last line of an interrupted run is
    ignored.

    Raises:
        InputError: it is not a run directory, or a file in it is damaged.
    """
    path = Path(directory)
    file = path / "config.json"
    try:
        about = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{directory} is no run directory: it holds no config.json; give the --workdir of a run"
        ) from error
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error})") from error
    config = about.pop("config", None) if isinstance(about, dict) else None
    if (
        not isinstance(config, dict)
        or config.get("mode") not in (*TRAININGS, "eval")
        or not isinstance(config.get("seed"), int)
    ):
        raise InputError(f"{file} holds no configuration of a run with a mode and a seed")
    metrics = path / "metrics.jsonl"
    lines = read_rows(metrics, unfinished=True) if metrics.exists() else []
    for number, line in enumerate(lines, 1):
        if not all(isinstance(line.get(name), int | float) for name in ("step", "epoch")):
            raise InputError(f"{metrics}, line {number}: has no step and epoch")
    return RunRecord(path, old_keys.translate(config), about, tuple(lines))


def read_groups(directories: Iterable[str | Path]) -> tuple[Group, ...]:
    """Reads run directories, or parents of `seed_N` directories, and groups them.

    Raises:
        InputError: a directory is neither, or two runs of one group have the same seed.
    """
    records = [
        read_run(path) for directory in directories for path in _run_directories(Path(directory))
    ]
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(_recipe(record.config), []).append(record)
    for members in groups.values():
        members.sort(key=lambda record: record.seed)
        for a, b in zip(members, members[1:], strict=False):
            if a.seed == b.seed:
                raise InputError(
                    f"{a.path} and {b.path} are the same recipe with the same seed {a.seed}; give "
                    "one of them"
                )
    trained = {members[0].model for members in groups.values() if members[0].mode in TRAININGS}
    methods = [
        TRAININGS.get(first.mode, VANILLA if first.model in trained else EVALUATED)
        for first, *_ in groups.values()
    ]
    labels = _labels(methods, [members[0].path for members in groups.values()])
    return tuple(map(Group, labels, methods, map(tuple, groups.values())))


def _recipe(config: dict[str, Any]) -> str:
    """Returns what a run does, as text: the configuration without seed and harmless keys."""

    def relevant(group: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        remaining = {}
        for key, value in group.items():
            name = prefix + key
            if isinstance(value, dict):
                remaining[key] = relevant(value, f"{name}.")
            elif name != "seed" and name not in HARMLESS:
                remaining[key] = value
        return remaining

    return json.dumps(relevant(config), sort_keys=True)


def _run_directories(directory: Path) -> list[Path]:
    """Returns a run directory itself, or the `seed_N` directories in it."""
    seeds = sorted(directory.glob("seed_*/config.json"), key=lambda file: (len(str(file)), file))
    return [file.parent for file in seeds] or [directory]


def _labels(methods: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Returns the method's name per group; if several share it, followed by the directory's."""
    labels: list[str] = []
    for method, path in zip(methods, map(Path.resolve, paths), strict=True):
        name = path.parent.name if path.name.startswith("seed_") else path.name
        label = method if methods.count(method) == 1 else f"{method} {name}"
        while label in labels:
            label += "'"
        labels.append(label)
    return labels
