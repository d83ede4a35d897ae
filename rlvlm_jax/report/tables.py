# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The report's numbers as rows of text cells, for the page and the CSV files."""

import csv
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlvlm_jax.evaluation import analysis
from rlvlm_jax.evaluation.analysis import SELECT_BY
from rlvlm_jax.evaluation.scores import REFLECTION_WORDS
from rlvlm_jax.evaluation.statistics import correlations
from rlvlm_jax.report.curves import SETTINGS, SPLITS, Method, x_of
from rlvlm_jax.report.figures import COLOURS, Layout

_UNBIASED = re.compile(r"eval/(\w+)/pass@(\d+)_t([\d.]+)_unbiased")


class Table(NamedTuple):
    """Cells are text; an empty cell is undefined."""

    name: str  # of the CSV file
    caption: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


def to_csv(table: Table) -> str:
    """Returns the table as CSV, header first."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(table.head)
    writer.writerows(table.rows)
    return target.getvalue()


def accuracy(methods: Sequence[Method]) -> Table:
    """The accuracy table: one row per data set, decoding setting and method; in percent."""
    rows = []
    for split, split_words in SPLITS.items():
        for setting, setting_words in SETTINGS.items():
            for method in methods:
                cells = _accuracy_cells(method, split, setting)
                if cells is not None:
                    rows.append((split_words, setting_words, method.label, *cells))
    return Table(
        "accuracy",
        "Accuracy in percent. “Selected” is the mean accuracy of the n runs, each at the step with "
        "its best validation accuracy (without validation: at its last step), with the standard "
        "deviations over runs and the 95 % bootstrap interval over runs and questions. It is "
        "absent for the validation questions, because they chose the step. For a single run the "
        "interval covers only the questions; for few runs it understates their spread. “Mean” is "
        "over all evaluations after the start and all runs. “Max (optimistic)” takes each run's "
        "best evaluation on the reported questions, as the paper does, and is biased upwards.",
        (
            *("questions", "decoding", "method", "n", "before training", "mean"),
            *("max (optimistic)", "selected", "std (population)", "std (sample)"),
            *("95 % low", "95 % high"),
        ),
        rows,
    )


def _accuracy_cells(method: Method, split: str, setting: str) -> tuple[str, ...] | None:
    if method.group is not None:
        row = analysis.accuracy_row(method.group, split, setting)
        if row is None:
            return None
        selected = row.get("selected", {})
        names = ("mean", "std_population", "std_sample", "low", "high")
        cells = [percent(selected.get(name)) for name in names]
        if not method.group.trained:
            cells[0] = ""  # its only evaluation is the initial one
        return (
            str(row["n"]),
            *(percent(row.get(name)) for name in ("initial", "mean", "max")),
            *cells,
        )
    curve = method.find(f"eval/{split}/{setting}")
    if curve is None:
        return None
    n = "" if curve.n is None else str(curve.n)
    if method.kind == "Vanilla":
        return (n, percent(curve.mean[0]), *[""] * 7)
    best = percent(curve.mean.max()) if curve.n == 1 else ""
    return (n, "", percent(curve.mean.mean()), best, *[""] * 5)


def kinds(methods: Sequence[Method]) -> Table:
    """Accuracy at the selected steps, by kind of question; in percent."""
    rows = []
    for split, split_words in SPLITS.items():
        for method in methods:
            for kind in method.group.kinds(split) if method.group else ():
                selected = analysis.selected_accuracy(method.group, split, SELECT_BY, kind)
                if selected is not None:
                    cells = [percent(selected[name]) for name in ("mean", "low", "high")]
                    about = (split_words, kind, method.label, str(len(method.group.runs)))
                    rows.append((*about, *cells, str(selected["questions"])))
    return Table(
        "kinds",
        f"Accuracy in percent by kind of question, {SETTINGS[SELECT_BY]}, at the step chosen by "
        "validation, with the 95 % bootstrap interval over runs and questions.",
        (
            *("questions", "kind", "method", "n", "selected", "95 % low", "95 % high"),
            "number of questions",
        ),
        rows,
    )


def difference(methods: Sequence[Method]) -> Table:
    """Every method minus those after it in the order RL, SFT, others; also by kind."""
    order = {kind: rank for rank, kind in enumerate(COLOURS)}
    groups = [method for method in methods if method.group is not None]
    pairs = [(a, b) for a in groups for b in groups if order[a.kind] < order[b.kind]]
    rows = []
    for split, words in SPLITS.items():
        for method, baseline in pairs:
            cases = [(setting, "") for setting in SETTINGS]
            cases += [(SELECT_BY, kind) for kind in method.group.kinds(split)]
            for setting, kind in cases:
                comparison = analysis.compare(method.group, baseline.group, split, setting, kind)
                if comparison is not None:
                    rows.append(
                        (
                            f"{words}: {kind}" if kind else words,
                            *(SETTINGS[setting], f"{method.label} − {baseline.label}"),
                            f"{len(method.group.runs)}, {len(baseline.group.runs)}",
                            *(
                                f"{100 * comparison[name]:+.1f}"
                                for name in ("difference", "low", "high")
                            ),
                            str(comparison["questions"]),
                        )
                    )
    return Table(
        "difference",
        "Differences in percentage points on the same questions, each method at its selected "
        "steps, with the 95 % bootstrap interval over runs and questions; n of both methods.",
        (
            *("questions", "decoding", "methods", "n", "difference", "95 % low", "95 % high"),
            "number of questions",
        ),
        rows,
    )


def pass_at_k(methods: Sequence[Method]) -> Table:
    """The unbiased pass@k of many samples, at the last evaluation; in percent."""
    cells: dict[tuple[str, ...], dict[int, str]] = {}
    for split, words in SPLITS.items():
        for method in methods:
            for metric in method.group.metrics if method.group else ():
                match = _UNBIASED.fullmatch(metric)
                curve = method.find(metric) if match and match[1] == split else None
                if curve is not None:
                    about = (words, method.label, str(curve.n), f"T = {match[3]}")
                    cells.setdefault(about, {})[int(match[2])] = percent(curve.mean[-1])
    ks = sorted({k for row in cells.values() for k in row})
    rows = [(*about, *(row.get(k, "") for k in ks)) for about, row in cells.items()]
    return Table(
        "pass_at_k",
        "Pass@k in percent at the last evaluation, mean over n runs: the unbiased estimate from "
        "all samples of a question.",
        ("questions", "method", "n", "decoding", *(f"k = {k}" for k in ks)),
        rows,
    )


def correlation(methods: Sequence[Method]) -> Table:
    """Reflection ratio against response length, over steps and over single responses."""
    names = ("pearson", "spearman", "smoothed", "detrended", "differences")
    rows = []
    for method in methods:
        lengths, ratios = method.find("response/length"), method.find("reflection/ratio")
        if lengths is None or ratios is None:
            continue
        coefficients, n = {}, "" if lengths.n is None else str(lengths.n)
        if method.group is None:
            shared = np.intersect1d(lengths.x, ratios.x)
            means = [curve.mean[np.isin(curve.x, shared)] for curve in (lengths, ratios)]
            coefficients["curves"] = correlations(*means)
        else:
            coefficients = analysis.reflection_and_length(method.group)
        cells = [number(coefficients["curves"].get(name)) for name in names]
        rows.append((method.label, n, *cells, number(coefficients.get("responses"))))
        if method.group is not None and len(method.group.runs) > 1:
            for run, run_coefficients in zip(method.group.runs, coefficients["runs"], strict=True):
                cells = [number(run_coefficients.get(name)) for name in names]
                rows.append((f"{method.label}, seed {run.seed}", "1", *cells, ""))
    return Table(
        "correlation",
        "Correlation of reflection ratio and response length: Pearson and Spearman over the steps "
        "of the mean curves of n runs; Pearson of 5-step averages, of residuals from a parabola in "
        "time, and of changes from step to step; Pearson over single responses. Empty if a curve "
        "is constant.",
        ("method", "n", *names, "single responses"),
        rows,
    )


def sensitivity(methods: Sequence[Method]) -> Table:
    """How much response length depends on the seed."""
    rows = []
    for method in methods:
        statistics = analysis.length_sensitivity(method.group) if method.group else {}
        if statistics:
            rows.append(
                (
                    *(method.label, f"{statistics['n']:.0f}"),
                    *(f"{statistics[name]:.1f}" for name in ("length_first", "length_last")),
                    f"{100 * statistics['change']:+.1f}",
                    *(number(statistics.get(name)) for name in ("std_first", "std_last")),
                    percent(statistics.get("relative_std_last")),
                )
            )
    return Table(
        "length",
        "Response length in tokens over the first and the last fifth of the steps, its change in "
        "percent, its population standard deviation over the n runs, and the latter in percent of "
        "the length.",
        (
            *("method", "n", "first", "last", "change %", "std, first", "std, last"),
            "std, last, %",
        ),
        rows,
    )


def words(methods: Sequence[Method]) -> Table:
    """The fifteen words: occurrences per step, whole words, and responses with the word."""
    rows = []
    for method in methods:
        for word in REFLECTION_WORDS:
            curve = method.find(f"reflection_words/{word}")
            if curve is None:
                continue
            tenth = max(1, len(curve.mean) // 10)
            ends = (curve.mean[:tenth].mean(), curve.mean[-tenth:].mean())
            strict = [
                method.find(f"reflection_{form}/{word}") for form in ("whole_words", "responses")
            ]
            totals = ["" if c is None else f"{c.mean.sum():.0f}" for c in (curve, *strict)]
            n = "" if curve.n is None else str(curve.n)
            rows.append((method.label, n, word, *(f"{end:.1f}" for end in ends), *totals))
    return Table(
        "words",
        "Reflection words, mean over n runs: occurrences per step in the first and the last tenth "
        "of the steps and in total, also inside other words, as the paper counts; occurrences as "
        "whole words; responses with the word.",
        ("method", "n", "word", "first", "last", "total", "whole words", "responses"),
        rows,
    )


def points(methods: Sequence[Method], layouts: Sequence[Layout]) -> Table:
    """Every point of the figures; only for the CSV file."""
    metrics = dict.fromkeys(metric for layout in layouts for metric in layout.metrics)
    rows = [
        (method.label, "" if curve.n is None else str(curve.n), metric, x_of(metric, method.over))
        + tuple(f"{value:.6g}" for value in point)
        for metric in metrics
        for method in methods
        if (curve := method.find(metric)) is not None
        for point in zip(curve.x, curve.mean, curve.std, strict=True)
    ]
    head = ("method", "n", "metric", "x is", "x", "mean", "std (population)")
    return Table("curves", "Every point of the figures.", head, rows)


def audit(methods: Sequence[Method]) -> Table:
    """Signs of rewards earned or lost by accident: means over all steps and runs."""
    counts = ("timeouts", "custom_errors", "unparsable", "no_answer", "several_answers")
    shares = (
        *("response/truncated_fraction", "response/repetition_fraction"),
        *("filter/all_correct", "filter/all_wrong", "filter/kept_fraction"),
    )
    rows = []
    for method in methods:
        curves = [method.find(f"judge/{name}") for name in counts]
        if method.group is not None and any(curve is not None for curve in curves):
            cells = ["" if curve is None else f"{curve.mean.mean():.2f}" for curve in curves]
            means = [method.find(name) for name in shares]
            cells += ["" if curve is None else percent(curve.mean.mean()) for curve in means]
            rows.append((method.label, str(len(method.group.runs)), *cells))
    return Table(
        "audit",
        "Reward audit, means over steps and n runs. Responses per step for which the judge or the "
        "user's reward ran out of time, the user's reward failed, the judge could not read the "
        "answer or found none, or several different answers are boxed; percent of responses that "
        "are truncated or loop; percent of groups all right, all wrong, and trained on.",
        (
            *("method", "n", "timeouts", "errors", "unparsable", "no answer", "several answers"),
            *("truncated %", "looping %", "all right %", "all wrong %", "kept %"),
        ),
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
        series = [
            np.concatenate([run.curve(name)[1][1:] for run in method.group.runs]) for name in names
        ]
        evaluations = sum(run.curve("time/eval_s")[1].sum() for run in method.group.runs)
        whole = sum(run.lines[-1].get("wall_s", 0.0) for run in method.group.runs if run.lines)
        if any(map(len, series)) or evaluations:
            cells = [f"{np.median(values):.4g}" if len(values) else "" for values in series]
            n = len(method.group.runs)
            share = f"{100 * evaluations / whole:.0f}" if evaluations and whole else ""
            goodput = [run.curve("goodput/run")[1][-1:] for run in method.group.runs]
            good = np.concatenate(goodput)
            cells += [f"{whole / n:.4g}", share, f"{100 * good.mean():.0f}" if len(good) else ""]
            for name in ("memory/host_rss_gib", "memory/device_peak_gib"):
                most = np.concatenate([run.curve(name)[1] for run in method.group.runs])
                cells.append(f"{most.max():.3g}" if len(most) else "")
            rows.append((method.label, str(n), *cells))
    return Table(
        "speed",
        "Medians over the steps after the first: tokens per second while sampling and updating, "
        "and seconds per step and part of a step. Whole run: mean seconds of a run after start-up, "
        "and the share of its evaluations, compilation included. Goodput: share of the time since "
        "the first start, interruptions included, that went into steps that count. Memory: peak of "
        "a process and of a device.",
        (
            *("method", "n", "rollout tokens/s", "update tokens/s"),
            *(name[5:-2] + " (s)" for name in names[2:]),
            *("whole run (s)", "evaluations %", "goodput %"),
            *("host memory (GiB)", "device memory (GiB)"),
        ),
        rows,
    )


def all_tables(methods: Sequence[Method]) -> list[Table]:
    """Returns all tables that have a row."""
    makers = (accuracy, kinds, difference, pass_at_k)
    makers += (correlation, sensitivity, words, audit, speed)
    return [table for table in (make(methods) for make in makers) if table.rows]


def percent(value: float | None) -> str:
    """Returns 0.4312 as "43.1"."""
    return "" if value is None else f"{100 * value:.1f}"


def number(value: float | None) -> str:
    """Returns two decimals, or "" if undefined."""
    return "" if value is None else f"{value:.2f}"
