# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The report's numbers as rows of text cells, for the page and for CSV files alike."""

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rlvlm_jax.evaluation import analysis
from rlvlm_jax.evaluation.scores import REFLECTION_WORDS
from rlvlm_jax.evaluation.statistics import correlations
from rlvlm_jax.report.curves import SETTINGS, SPLITS, Method


class Table(NamedTuple):
    """Cells are text; an empty cell is undefined."""

    name: str  # of the CSV file
    caption: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


def to_csv(table: Table) -> str:
    """Returns the table as CSV, heads first."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(table.head)
    writer.writerows(table.rows)
    return target.getvalue()


def accuracy(methods: Sequence[Method]) -> Table:
    """The accuracy table: one row a data set, decoding setting and method; in percent."""
    rows = []
    for split, split_words in SPLITS.items():
        for setting, setting_words in SETTINGS.items():
            for method in methods:
                cells = _accuracy_cells(method, split, setting)
                if cells is not None:
                    rows.append((split_words, setting_words, method.label, *cells))
    return Table(
        "accuracy",
        "Accuracy in percent. “Selected” is the accuracy at the step that validation accuracy "
        "chose, ± population standard deviation over the n runs, with the 95 % bootstrap interval "
        "over runs and questions. “Mean” is over all evaluations after the start and all runs. "
        "“Max (optimistic)” takes each run's best evaluation on the very questions it reports, as "
        "the paper does, and is biased upwards.",
        (
            *("questions", "decoding", "method", "n", "before training", "mean"),
            *("max (optimistic)", "selected", "95 % interval"),
        ),
        rows,
    )


def _accuracy_cells(method: Method, split: str, setting: str) -> tuple[str, ...] | None:
    if method.group is not None:
        row = analysis.accuracy_row(method.group, split, setting)
        if row is None:
            return None
        if method.kind == "Vanilla":
            return (str(row["n"]), percent(row.get("initial")), "", "", "", _interval(row))
        selected = row.get("selected")
        at = "" if selected is None else percent(selected["mean"])
        if selected is not None and row["n"] > 1:
            at += f" ± {percent(selected['std_population'])}"
        return (
            str(row["n"]),
            *(percent(row.get(name)) for name in ("initial", "mean", "max")),
            at,
            _interval(row),
        )
    curve = method.find(f"eval/{split}/{setting}")
    if curve is None:
        return None
    n = "" if curve.n is None else str(curve.n)
    if method.kind == "Vanilla":
        return (n, percent(curve.mean[0]), "", "", "", "")
    best = percent(curve.mean.max()) if curve.n == 1 else ""
    return (n, "", percent(curve.mean.mean()), best, "", "")


def _interval(row: dict[str, Any]) -> str:
    selected = row.get("selected")
    return "" if selected is None else f"{percent(selected['low'])}–{percent(selected['high'])}"


def correlation(methods: Sequence[Method]) -> Table:
    """Reflection ratio against response length, over steps and over single responses."""
    names = ("pearson", "spearman", "smoothed", "detrended", "differences")
    rows = []
    for method in methods:
        lengths, ratios = method.find("response/length"), method.find("reflection/ratio")
        if lengths is None or ratios is None:
            continue
        shared = np.intersect1d(lengths.x, ratios.x)
        of = [curve.mean[np.isin(curve.x, shared)] for curve in (lengths, ratios)]
        found = correlations(*of)
        single = None
        if method.group is not None:
            single = analysis.reflection_and_length(method.group).get("responses")
        rows.append((method.label, *(number(found.get(name)) for name in names), number(single)))
    return Table(
        "correlation",
        "Correlation of reflection ratio and response length: Pearson and Spearman over steps, "
        "Pearson of 5-step averages, beside a parabola in time, and of changes from step to step; "
        "and Pearson over single responses.",
        ("method", *names, "single responses"),
        rows,
    )


def sensitivity(methods: Sequence[Method]) -> Table:
    """How far response length depends on the seed."""
    rows = []
    for method in methods:
        if method.group is None:
            continue
        found = analysis.length_sensitivity(method.group)
        if found:
            rows.append(
                (
                    method.label,
                    f"{found['n']:.0f}",
                    *(f"{found[k]:.1f}" for k in ("length_first", "length_last")),
                    f"{100 * found['change']:+.1f} %",
                    *(f"{found[k]:.2f}" for k in ("std_first", "std_last")),
                    f"{100 * found['relative_std_last']:.1f} %",
                )
            )
    return Table(
        "length",
        "Response length in tokens, over the first and the last fifth of the steps, and its "
        "population standard deviation over the runs.",
        (
            *("method", "n", "first", "last", "change", "std, first", "std, last"),
            "std, last, relative",
        ),
        rows,
    )


def difference(methods: Sequence[Method]) -> Table:
    """RL against SFT and the untrained model on every data set."""
    groups = [method for method in methods if method.group is not None]
    rows = []
    for split, words in SPLITS.items():
        for ours in groups:
            for theirs in groups:
                if ours.kind != "RL" or theirs.kind == "RL":
                    continue
                for setting, setting_words in SETTINGS.items():
                    found = analysis.compare(ours.group, theirs.group, split, setting)
                    if found is not None:
                        rows.append(
                            (
                                *(words, setting_words, f"{ours.label} − {theirs.label}"),
                                f"{100 * found['difference']:+.1f}",
                                f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}",
                                str(found["questions"]),
                            )
                        )
    return Table(
        "difference",
        "Differences in percentage points on the same questions, each method at its selected "
        "steps, with the 95 % bootstrap interval over runs and questions.",
        ("questions", "decoding", "methods", "difference", "95 % interval", "number of questions"),
        rows,
    )


def words(methods: Sequence[Method]) -> Table:
    """The fifteen word counts a step, first and last tenth of the steps, and in total."""
    rows = []
    for method in methods:
        for word in REFLECTION_WORDS:
            curve = method.find(f"reflection_words/{word}")
            if curve is not None:
                tenth = max(1, len(curve.mean) // 10)
                ends = (curve.mean[:tenth].mean(), curve.mean[-tenth:].mean())
                cells = (*(f"{end:.1f}" for end in ends), f"{curve.mean.sum():.0f}")
                rows.append((method.label, word, *cells))
    return Table(
        "words",
        "Occurrences of reflection words a step (mean over runs): first and last tenth of the "
        "steps, and in total.",
        ("method", "word", "first", "last", "total"),
        rows,
    )


def speed(methods: Sequence[Method]) -> Table:
    """Throughput and the parts of a step's time: medians over steps and runs."""
    names = (
        *("throughput/rollout_tokens_per_s", "throughput/update_tokens_per_s"),
        *(f"time/{part}_s" for part in ("step", "data", "rollout", "score", "trajectory")),
        "time/update_s",
    )
    rows = []
    for method in methods:
        if method.group is None:
            continue
        found = [
            np.concatenate([run.curve(name)[1][1:] for run in method.group.runs]) for name in names
        ]
        if any(map(len, found)):
            cells = [f"{np.median(values):.4g}" if len(values) else "" for values in found]
            rows.append((method.label, *cells))
    return Table(
        "speed",
        "Medians over the steps after the first: tokens per second while sampling and updating, "
        "and seconds per step and part of a step.",
        ("method", "rollout tokens/s", "update tokens/s", *(n[5:-2] + " (s)" for n in names[2:])),
        rows,
    )


def everything(methods: Sequence[Method]) -> list[Table]:
    """Returns all tables that have a row."""
    made = (accuracy, difference, correlation, sensitivity, words, speed)
    return [table for table in (make(methods) for make in made) if table.rows]


def percent(value: float | None) -> str:
    """Returns 0.4312 as "43.1"."""
    return "" if value is None else f"{100 * value:.1f}"


def number(value: float | None) -> str:
    """Returns two decimals, or nothing for what is undefined."""
    return "" if value is None else f"{value:.2f}"
