# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A method's metrics as mean and band, measured here or published.

Groups of runs and settings of a file of published curves both become a `Method`, so that figures
and tables need not know the source of a number.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlvlm_jax.errors import InputError
from rlvlm_jax.evaluation.runs import Group
from rlvlm_jax.evaluation.scores import REFLECTION_WORDS

SPLITS = {"val": "validation", "test": "test", "test_ood": "test, out of distribution"}
SETTINGS = {
    "pass@8_t1.0": "pass@8, T = 1.0",
    "pass@1_t0.6": "pass@1, T = 0.6",
    "pass@1_t0.01": "pass@1, T = 0.01",
}
BEHAVIOUR = {  # our metric -> key in a file of published curves
    "response/length": "response_length",
    "reflection/ratio": "reflection_ratio",
    "reflection/ratio_in_correct": "reflection_ratio_in_correct_answers",
    "reflection/ratio_in_incorrect": "reflection_ratio_in_incorrect_answers",
    "reflection/accuracy_with": "correct_ratio_in_reflection_texts",
    "reflection/accuracy_without": "correct_ratio_in_no_reflection_texts",
}
TRAINING_ACCURACY = "epoch/train_accuracy"


class Curve(NamedTuple):
    """Mean over runs at each x, and the population deviation, the band of the figures.

    At an x that some runs have not reached, it covers those that have.
    """

    x: np.ndarray  # float64[T]
    mean: np.ndarray  # float64[T]
    std: np.ndarray  # float64[T], zeros for a single run
    n: int | None  # runs that have the metric; None if the source does not say


@dataclass(frozen=True)
class Method:
    """One line of the figures.

    Attributes:
        label: unique.
        kind: "RL", "SFT", "Vanilla" or "Evaluated": the colour.
        published: whether it was read from a paper.
        find: metric name -> its curve, None if there is none. Accuracy is over epochs, behaviour
            over steps.
        group: the runs, if there are any.
        over: the x axis of accuracies, "epoch" or "step".
    """

    label: str
    kind: str
    published: bool
    find: Callable[[str], Curve | None]
    group: Group | None = None
    over: str = "epoch"


def x_of(name: str, over: str = "epoch") -> str:
    """Returns `over` for accuracies (the paper uses epochs), "step" for behaviour."""
    return over if name.startswith(("eval/", "epoch/")) else "step"


def measured(group: Group, over: str = "epoch") -> Method:
    """Returns a group of runs as a method."""

    def find(name: str) -> Curve | None:
        x, values = group.all_curves(name, x_of(name, over))
        if not len(x):
            return None
        runs = int((~np.isnan(values)).any(axis=1).sum())
        return Curve(x, np.nanmean(values, axis=0), np.nanstd(values, axis=0), runs)

    return Method(group.label, group.method, published=False, find=find, group=group, over=over)


def published(file: str | Path) -> dict[str, tuple[Method, ...]]:
    """Reads published curves.

    Args:
        file: JSON: {"settings": {KEY: name}, KEY: {metric: {"mean": [...], "std": [...]},
            "word_counts": {word: the same}, "eval": {SPLIT_SETTING: {"rl_mean", "rl_std", "sft",
            "vanilla"}}}}.

    Returns:
        {name of the setting: its RL, SFT and vanilla methods, if present}.

    Raises:
        InputError: the file is missing or not of this form.
    """
    try:
        content = json.loads(Path(file).read_bytes())
        names = content["settings"]
        return {name: tuple(_published(content[key], name)) for key, name in names.items()}
    except OSError as error:
        raise InputError(f"--paper={file} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"--paper={file} is not a file of published curves ({type(error).__name__}: {error})"
        ) from error


def _published(setting: dict[str, Any], name: str) -> Iterable[Method]:
    curves: dict[str, dict[str, Curve]] = {"RL": {}, "SFT": {}, "Vanilla": {}}
    for metric, key in BEHAVIOUR.items():
        curves["RL"][metric] = _curve(setting[key], first=1)
    for word in REFLECTION_WORDS:
        curves["RL"][f"reflection_words/{word}"] = _curve(setting["word_counts"][word], first=1)
    curves["RL"][TRAINING_ACCURACY] = _curve(setting["training_accuracy"], first=1)
    for key, values in setting["eval"].items():
        split, _, rest = key.partition("_")
        metric = f"eval/{split}/{rest.replace('pass', 'pass@')}"
        line = {"mean": values["rl_mean"], "std": values["rl_std"]}
        curves["RL"][metric] = _curve(line, first=1)
        if values["sft"]:
            sft = {"mean": values["sft"], "std": np.zeros(len(values["sft"]))}
            curves["SFT"][metric] = _curve(sft, first=1, n=1)
        if values["vanilla"] is not None:
            curves["Vanilla"][metric] = _curve({"mean": [values["vanilla"]], "std": [0.0]}, n=1)
    for kind, by_metric in curves.items():
        if by_metric:
            yield Method(f"{kind} {name} (published)", kind, published=True, find=by_metric.get)


# Published lists begin with the first step or epoch, number 1 here.
def _curve(line: dict[str, Any], first: int = 0, n: int | None = None) -> Curve:
    mean, std = (np.asarray(line[part], np.float64) for part in ("mean", "std"))
    return Curve(first + np.arange(len(mean), dtype=np.float64), mean, std, n)
