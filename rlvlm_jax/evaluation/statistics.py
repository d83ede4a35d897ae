# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Uncertainty of results: spread over runs, intervals over runs and questions, correlations.

Pure functions of numbers, float64. Knows nothing of their source.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

RESAMPLES = 2000


def spread(values: Sequence[float]) -> dict[str, float]:
    """Describes one number per run.

    Args:
        values: n >= 1 numbers.

    Returns:
        n, mean and, for n > 1, std_population (ddof 0, the band in MAYE's figures) and std_sample
        (ddof 1, the estimate for more runs).
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"values of shape {x.shape}: expected one number per run, at least one")
    result = {"n": len(x), "mean": float(x.mean())}
    if len(x) > 1:
        result["std_population"], result["std_sample"] = float(x.std()), float(x.std(ddof=1))
    return result


def interval(
    scores: Any,
    against: Any = None,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstraps the mean score, or the difference of two, over runs and over questions.

    Draws runs and questions with replacement, independently of each other. Two methods are compared
    on the same questions, so they share the drawn questions but not the runs. A single run is not
    resampled: the interval then covers only the questions. With few runs the interval understates
    the spread between runs, as any bootstrap of few items does.

    Args:
        scores: [runs, questions], e.g. 1 for correct and 0 for wrong.
        against: [other runs, the same questions], subtracted; None for the mean itself.
        confidence: share of the resampled means inside the interval.
        resamples: number of draws.
        seed: of the draws.

    Returns:
        (low, high), the percentile interval.

    Raises:
        ValueError: the tables are not two-dimensional, are empty, or differ in questions.

    Source: Owen 2007 (arXiv:0712.1111), the bootstrap of crossed factors.
    """
    tables = [np.asarray(t, np.float64) for t in (scores, against) if t is not None]
    for table in tables:
        if table.ndim != 2 or not table.size or table.shape[1] != tables[0].shape[1]:
            shapes = " and ".join(str(t.shape) for t in tables)
            raise ValueError(
                f"tables of shape {shapes}: expected [runs, questions], same questions"
            )
    factors = [np.arange(len(table)) for table in tables] + [np.arange(tables[0].shape[1])]
    free = [number for number, items in enumerate(factors) if len(items) > 1]

    def difference(*drawn: np.ndarray) -> float:
        chosen = list(factors)
        for number, items in zip(free, drawn, strict=True):
            chosen[number] = items
        *runs, questions = chosen
        means = [t[np.ix_(r, questions)].mean() for t, r in zip(tables, runs, strict=True)]
        return means[0] - sum(means[1:])

    if not free:
        return (difference(), difference())
    bounds = scipy.stats.bootstrap(
        [factors[number] for number in free],
        difference,
        n_resamples=resamples,
        vectorized=False,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return (float(bounds.low), float(bounds.high))


def correlations(x: Sequence[float], y: Sequence[float], window: int = 5) -> dict[str, float]:
    """Correlates two curves, also without the part that a common trend explains.

    Args:
        x: T numbers, one per step.
        y: T numbers.
        window: steps of the moving average.

    Returns:
        pearson, spearman, smoothed (of moving averages), detrended (of residuals from a fitted
        parabola) and differences (of changes from step to step). Values that are undefined, because
        a curve is constant or too short, are absent.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"curves of shape {x.shape} and {y.shape}: expected the same length")
    steps = np.arange(len(x))

    def averaged(curve: np.ndarray) -> np.ndarray:
        return np.convolve(curve, np.full(window, 1 / window), mode="valid")

    def without_parabola(curve: np.ndarray) -> np.ndarray:
        return curve - np.polyval(np.polyfit(steps, curve, 2), steps)

    def pearson(a: np.ndarray, b: np.ndarray) -> float | None:
        if len(a) < 3 or _constant(a) or _constant(b):  # any two points lie on a line
            return None
        return float(scipy.stats.pearsonr(a, b)[0])

    coefficients = {"pearson": pearson(x, y)}
    if coefficients["pearson"] is not None:
        coefficients["spearman"] = float(scipy.stats.spearmanr(x, y)[0])
    if len(x) >= window:
        coefficients["smoothed"] = pearson(averaged(x), averaged(y))
    if len(x) > 5:
        coefficients["detrended"] = pearson(without_parabola(x), without_parabola(y))
        coefficients["differences"] = pearson(np.diff(x), np.diff(y))
    return {name: value for name, value in coefficients.items() if value is not None}


def _constant(curve: np.ndarray) -> bool:
    """Whether a curve varies by no more than rounding, so that a correlation would be noise."""
    return len(curve) < 2 or float(np.ptp(curve)) <= 1e-12 * float(np.abs(curve).max(initial=1.0))
