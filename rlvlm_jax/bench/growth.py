# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How the time of an iteration grows with batch size, response length and image size.

Each axis varies one size by a factor of eight or more; the others stay fixed. The fitted exponent
is the slope of log(seconds) over log(size). An exponent of 1 is proportional growth; less than 1
means that some work is shared or that the device was not full.
"""

import dataclasses
import io
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rlvlm_jax.bench import ours
from rlvlm_jax.bench.work import Case, built_in

AXES = {  # name -> (axis label, factors of the base size)
    "batch": ("prompts per step", (1, 2, 4, 8)),
    "response": ("response length (tokens)", (1, 2, 4, 8)),
    "image": ("image tokens", (1, 4, 9, 16)),
}
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "rlvlm_jax",  # the same numbers give the same file
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def variants(case: Case, axis: str) -> list[tuple[int, Case]]:
    """Returns (size, case) along one axis, in ascending order.

    Args:
        case: provides the model; the base has 2 prompts, 16 image tokens of 64, 32 new tokens.
        axis: a key of `AXES`.
    """
    base = dataclasses.replace(case, prompts=2, length=64, image_tokens=16, new=32)
    cases = []
    for factor in AXES[axis][1]:
        if axis == "batch":
            size = base.prompts * factor
            variant = dataclasses.replace(base, prompts=size)
        elif axis == "response":
            size = base.new * factor
            variant = dataclasses.replace(base, new=size)
        else:
            size = base.image_tokens * factor
            text = base.length - base.image_tokens
            variant = dataclasses.replace(base, image_tokens=size, length=text + size)
        cases.append((size, dataclasses.replace(variant, name=f"{case.name}-{axis}-{size}")))
    return cases


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Returns the least-squares slope of log(seconds) over log(sizes)."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def measure(
    case: Case, scratch: Path, devices: int, repeats: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Times our iteration along every axis.

    Args:
        case: provides the model.
        scratch: where model directories are written.
        devices: number of devices.
        repeats: timed iterations per size; the median is fitted.
        say: called with progress messages.

    Returns:
        axis -> {"sizes", "seconds" (every repeat), "median_s", "exponent"}.
    """
    timings = {}
    for axis in AXES:
        sizes, seconds = [], []
        for size, variant in variants(case, axis):
            say(f"growth: {axis} {size}")
            side = ours.start(built_in(variant, scratch, devices))
            side.iteration()  # warm-up
            sizes.append(size)
            seconds.append([side.iteration() for _ in range(repeats)])
        medians = [statistics.median(times) for times in seconds]
        timings[axis] = {
            "sizes": sizes,
            "seconds": seconds,
            "median_s": medians,
            "exponent": exponent(sizes, medians),
        }
    return timings


def figure(timings: dict[str, Any], title: str) -> bytes:
    """Draws the medians and the fitted lines as SVG, one panel per axis."""
    with matplotlib.rc_context(_STYLE):
        drawn = Figure(figsize=(10.5, 2.9), layout="constrained")
        panels = drawn.subplots(1, len(timings), squeeze=False)[0]
        for axes, (axis, timing) in zip(panels, timings.items(), strict=True):
            sizes, medians = np.array(timing["sizes"]), np.array(timing["median_s"])
            offset = np.mean(np.log(medians) - timing["exponent"] * np.log(sizes))
            fitted = np.exp(offset) * sizes ** timing["exponent"]
            axes.loglog(sizes, fitted, "--", color="#999999", linewidth=1.0)
            axes.loglog(sizes, medians, "o-", color="#c0392b", linewidth=1.5)
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.minorticks_off()
            axes.set_xlabel(AXES[axis][0])
            axes.set_ylabel("seconds per iteration")
            axes.set_title(f"exponent {timing['exponent']:.2f}")
            axes.grid(alpha=0.25, linewidth=0.5)
        drawn.suptitle(title, fontsize=10)
        target = io.BytesIO()
        fields = ("Date", "Creator", "Format", "Type")
        drawn.savefig(target, format="svg", metadata=dict.fromkeys(fields))
        return target.getvalue()
