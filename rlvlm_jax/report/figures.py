# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The evaluation scheme's figures, laid out like the paper's figures 4 to 8.

A figure is a grid of panels; a panel is one metric over steps or epochs, with one line per method.
Panels are also drawn separately, for narrow pages such as on a phone.
"""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rlvlm_jax.evaluation.analysis import SELECT_BY
from rlvlm_jax.evaluation.scores import REFLECTION_WORDS
from rlvlm_jax.report.curves import SETTINGS, SPLITS, TRAINING_ACCURACY, Method, x_of

# Distinguishable without red-green vision. Each further method of a kind takes the next colour.
# After the last colour, the colours repeat with the next line style.
STYLES = ("-", (0, (6, 2, 1, 2)), (0, (1, 1.5)))
COLOURS = {
    "RL": ("#c0392b", "#e08e45", "#7d3c98", "#8d6e63"),
    "SFT": ("#1f6fb2", "#17a2b8", "#34495e", "#5dade2"),
    "Vanilla": ("#3d8b37", "#9aa82e", "#6b8e7f", "#2e8b57"),
    "Evaluated": ("#6a5acd", "#999999", "#b5651d", "#4b7f7f"),
}
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "rlvlm_jax",  # the same numbers give the same file
    "font.family": "sans-serif",
    "text.parse_math": False,  # names of directories may contain dollar signs
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_TITLES = {
    TRAINING_ACCURACY: "training accuracy",
    "reward/accuracy": "training accuracy per step",
    "response/length": "response length (tokens)",
    "response/length_correct": "length of correct responses",
    "response/length_incorrect": "length of incorrect responses",
    "response/truncated_fraction": "truncated share",
    "response/repetition_fraction": "looping share",
    "reflection/ratio": "reflection ratio",
    "reflection/ratio_in_correct": "reflection ratio in correct answers",
    "reflection/ratio_in_incorrect": "reflection ratio in incorrect answers",
    "reflection/accuracy_with": "accuracy with reflection",
    "reflection/accuracy_without": "accuracy without reflection",
}


class Layout(NamedTuple):
    """A figure: its file name, its caption, and the metrics of its panels, row by row."""

    name: str
    caption: str
    columns: int
    metrics: tuple[str, ...]


def layouts(methods: Sequence[Method]) -> tuple[Layout, ...]:
    """Returns the figures for which any method has data.

    The dynamics include the two reflection words that occur most often.
    """
    names = [f"reflection_words/{word}" for word in REFLECTION_WORDS]
    words = [name for name in names if _occurrences(methods, name)]
    often = [*sorted(words, key=lambda name: -_occurrences(methods, name)), None, None]
    accuracy = TRAINING_ACCURACY
    if not any(method.find(accuracy) for method in methods):  # no run has finished an epoch
        accuracy = "reward/accuracy"
    accuracies = [f"eval/{split}/{setting}" for split in SPLITS for setting in SETTINGS]
    candidates = (
        Layout(
            "overview",
            "Held-out accuracy, accuracy while training, and response length.",
            3,
            (f"eval/val/{SELECT_BY}", accuracy, "response/length"),
        ),
        Layout(
            "dynamics",
            "Training dynamics: accuracy of the sampled responses, their length, and reflection.",
            3,
            (
                *(accuracy, "reflection/ratio", often[0]),
                *("response/length", "reflection/accuracy_with", often[1]),
            ),
        ),
        Layout("accuracy", "Accuracy on held-out questions.", 3, tuple(accuracies)),
        Layout(
            "reflection",
            "Length, reflection, and how reflection relates to being correct.",
            3,
            (
                *("response/length", "reflection/ratio_in_correct", "reflection/accuracy_with"),
                *("reflection/ratio", "reflection/ratio_in_incorrect"),
                "reflection/accuracy_without",
            ),
        ),
        Layout(
            "responses",
            "Lengths of correct and incorrect responses, and how they end.",
            4,
            (
                *("response/length_correct", "response/length_incorrect"),
                *("response/truncated_fraction", "response/repetition_fraction"),
            ),
        ),
        Layout(
            "words",
            "Occurrences of reflection words per step, without words that never occur.",
            5,
            tuple(words),
        ),
    )
    drawable = []
    for layout in candidates:
        metrics = tuple(
            m for m in layout.metrics if m and any(method.find(m) for method in methods)
        )
        if metrics:
            drawable.append(layout._replace(metrics=metrics))
    return tuple(drawable)


def line_styles(methods: Sequence[Method]) -> dict[str, tuple[str, Any]]:
    """Returns label -> (colour, line style)."""
    taken = dict.fromkeys(COLOURS, 0)
    chosen = {}
    for method in methods:
        palette = COLOURS[method.kind]
        cycle, index = divmod(taken[method.kind], len(palette))
        chosen[method.label] = palette[index], STYLES[cycle % len(STYLES)]
        taken[method.kind] += 1
    return chosen


def draw_panel(axes: Any, metric: str, methods: Sequence[Method]) -> None:
    """Draws a metric: mean line and band of one deviation; untrained models as dashed lines."""
    chosen = line_styles(methods)
    for method in methods:
        curve = method.find(metric)
        if curve is None:
            continue
        colour, style = chosen[method.label]
        common = {"color": colour, "alpha": 0.6 if method.published else 1.0}
        label = method.label if curve.n is None else f"{method.label} (n={curve.n})"
        if method.kind in ("Vanilla", "Evaluated"):
            axes.axhline(curve.mean[0], linestyle="--", linewidth=1.2, label=label, **common)
            continue
        width = 1.0 if method.published else 1.5
        marker = "o" if len(curve.x) == 1 else None
        line = {"linestyle": style, "linewidth": width, "marker": marker}
        axes.plot(curve.x, curve.mean, label=label, **line, **common)
        low, high = curve.mean - curve.std, curve.mean + curve.std
        if np.any(curve.std):
            shade = {**common, "alpha": 0.15, "linewidth": 0}
            axes.fill_between(curve.x, low, high, **shade)
    axes.set_title(title_of(metric))
    x = x_of(metric, methods[0].over)
    axes.set_xlabel(x if x == "epoch" else "generation step")
    axes.grid(alpha=0.25, linewidth=0.5)


def title_of(metric: str) -> str:
    """Returns the title of a metric's panel."""
    if metric.startswith("eval/"):
        _, split, setting = metric.split("/")
        return f"{SPLITS[split]}: {SETTINGS[setting]}"
    if metric.startswith("reflection_words/"):
        return f"“{metric.split('/')[1]}”"
    return _TITLES[metric]


def panel_svg(metric: str, methods: Sequence[Method]) -> str:
    """Returns one panel as an SVG element with its own legend."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.0, 2.9))
        axes = figure.add_axes((0.13, 0.16, 0.84, 0.73))
        draw_panel(axes, metric, methods)
        axes.legend(fontsize=7, frameon=False)
        text = _bytes(figure, "svg").decode()
    return text[text.index("<svg") :]


def render(layout: Layout, methods: Sequence[Method], form: str) -> bytes:
    """Returns a figure with all its panels and one legend, as "svg" or "png"."""
    rows = -(-len(layout.metrics) // layout.columns)
    with matplotlib.rc_context(_STYLE):
        size = (3.5 * layout.columns, 2.5 * rows + 0.4)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, layout.columns, squeeze=False).ravel()
        handles: dict[str, Any] = {}
        for axes, metric in zip(grid, layout.metrics, strict=False):
            draw_panel(axes, metric, methods)
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        for axes in grid[len(layout.metrics) :]:
            axes.set_visible(False)
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False)
        return _bytes(figure, form)


def _bytes(figure: Figure, form: str) -> bytes:
    target = io.BytesIO()
    fields = ("Date", "Creator", "Format", "Type")  # in SVG they add addresses of vocabularies
    metadata = dict.fromkeys(fields) if form == "svg" else {}
    figure.savefig(target, format=form, dpi=150, metadata=metadata)
    return target.getvalue()


def _occurrences(methods: Sequence[Method], metric: str) -> float:
    curves = [method.find(metric) for method in methods]
    return float(sum(curve.mean.sum() for curve in curves if curve is not None))
