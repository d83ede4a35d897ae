# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The report's numbers as rows of text cells, for the page and for CSV files alike."""

import csv
import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rlvlm_jax.evaluation import analysis
from rlvlm_jax.evaluation.analysis import SELECT_BY
from rlvlm_jax.evaluation.scores import REFLECTION_WORDS
from rlvlm_jax.evaluation.statistics import correlations
from rlvlm_jax.report.curves import SETTINGS, SPLITS, Method

_UNBIASED = re.compile(r"eval/(\w+)/pass@(\d+)_t([\d.]+)_unbiased")


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


def kinds(methods: Sequence[Method]) -> Table:
    """Accuracy at the selected steps, by kind of question; in percent."""
    rows = []
    for split, split_words in SPLITS.items():
        for method in methods:
            if method.group is None or (split, SELECT_BY) not in method.group.evaluated:
                continue
            for kind in method.group.runs[0].kinds(split):
                found = analysis.selected_accuracy(method.group, split, SELECT_BY, kind)
                cells = (percent(found["mean"]), _interval(found), str(found["questions"]))
                rows.append((split_words, kind, method.label, *cells))
    return Table(
        "kinds",
        f"Accuracy in percent by kind of question, {SETTINGS[SELECT_BY]}, at the step that "
        "validation chose, with the 95 % bootstrap interval over runs and questions.",
        ("questions", "kind", "method", "selected", "95 % interval", "number of questions"),
        rows,
    )


def pass_at_k(methods: Sequence[Method]) -> Table:
    """The unbiased pass@k of many samples, at the last evaluation; in percent."""
    found: dict[tuple[str, str, str], dict[int, str]] = {}
    for split, words in SPLITS.items():
        for method in methods:
            for metric in method.group.metrics if method.group else ():
                match = _UNBIASED.fullmatch(metric)
                curve = method.find(metric) if match and match[1] == split else None
                if curve is not None:
                    row = found.setdefault((words, method.label, f"T = {match[3]}"), {})
                    row[int(match[2])] = percent(curve.mean[-1])
    ks = sorted({k for row in found.values() for k in row})
    rows = [(*about, *(row.get(k, "") for k in ks)) for about, row in found.items()]
    return Table(
        "pass_at_k",
        "Pass@k in percent at the last evaluation, mean over runs: the unbiased estimate from all "
        "samples of a question.",
        ("questions", "method", "decoding", *(f"k = {k}" for k in ks)),
        rows,
    )


def _accuracy_cells(method: Method, split: str, setting: str) -> tuple[str, ...] | None:
    if method.group is not None:
        row = analysis.accuracy_row(method.group, split, setting)
        if row is None:
            return None
        if method.kind == "Vanilla":
            at = _interval(row.get("selected"))
            return (str(row["n"]), percent(row.get("initial")), "", "", "", at)
        selected = row.get("selected")
        at = "" if selected is None else percent(selected["mean"])
        if selected is not None and row["n"] > 1:
            at += f" ± {percent(selected['std_population'])}"
        return (
            str(row["n"]),
            *(percent(row.get(name)) for name in ("initial", "mean", "max")),
            at,
            _interval(selected),
        )
    curve = method.find(f"eval/{split}/{setting}")
    if curve is None:
        return None
    n = "" if curve.n is None else str(curve.n)
    if method.kind == "Vanilla":
        return (n, percent(curve.mean[0]), "", "", "", "")
    best = percent(curve.mean.max()) if curve.n == 1 else ""
    return (n, "", percent(curve.mean.mean()), best, "", "")


def _interval(found: dict[str, Any] | None) -> str:
    return "" if found is None else f"{percent(found['low'])}–{percent(found['high'])}"


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
    """RL against SFT and the untrained model on every data set, and on each kind of question."""
    groups = [method for method in methods if method.group is not None]
    pairs = [(a, b) for a in groups for b in groups if a.kind == "RL" and b.kind != "RL"]
    rows = []
    for split, words in SPLITS.items():
        for ours, theirs in pairs:
            cases = [(setting, "") for setting in SETTINGS]
            cases += [(SELECT_BY, kind) for kind in ours.group.runs[0].kinds(split)]
            for setting, kind in cases:
                found = analysis.compare(ours.group, theirs.group, split, setting, kind)
                if found is not None:
                    rows.append(
                        (
                            f"{words}: {kind}" if kind else words,
                            *(SETTINGS[setting], f"{ours.label} − {theirs.label}"),
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
        evaluations = sum(run.curve("time/eval_s")[1].sum() for run in method.group.runs)
        whole = sum(run.lines[-1]["wall_s"] for run in method.group.runs if run.lines)
        if any(map(len, found)) or evaluations:
            cells = [f"{np.median(values):.4g}" if len(values) else "" for values in found]
            share = f"{100 * evaluations / whole:.0f} %" if evaluations else ""
            rows.append((method.label, *cells, f"{whole / len(method.group.runs):.4g}", share))
    return Table(
        "speed",
        "Medians over the steps after the first: tokens per second while sampling and updating, "
        "and seconds per step and part of a step. Whole run: mean seconds of a run after start-up, "
        "and the share of its evaluations.",
        (
            *("method", "rollout tokens/s", "update tokens/s"),
            *(n[5:-2] + " (s)" for n in names[2:]),
            *("whole run (s)", "evaluations"),
        ),
        rows,
    )


def everything(methods: Sequence[Method]) -> list[Table]:
    """Returns all tables that have a row."""
    made = (accuracy, kinds, difference, pass_at_k, correlation, sensitivity, words, speed)
    return [table for table in (make(methods) for make in made) if table.rows]


def percent(value: float | None) -> str:
    """Returns 0.4312 as "43.1"."""
    return "" if value is None else f"{100 * value:.1f}"


def number(value: float | None) -> str:
    """Returns two decimals, or nothing for what is undefined."""
    return "" if value is None else f"{value:.2f}"
