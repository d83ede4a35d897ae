# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Spread, intervals and correlations, by hand and against the published curves."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from rlvlm_jax.evaluation import statistics

FIGURES = Path(__file__).parents[3] / "shared" / "data" / "maye_figures.json"


def test_spread_by_hand():
    found = statistics.spread([1.0, 2.0, 6.0])
    assert found["n"] == 3
    assert found["mean"] == 3.0
    assert found["std_population"] == pytest.approx((14 / 3) ** 0.5)
    assert found["std_sample"] == pytest.approx(7**0.5)
    assert "std_sample" not in statistics.spread([4.0])
    with pytest.raises(ValueError, match="at least one"):
        statistics.spread([])


def exact_distribution(table):
    """The mean of every equally likely draw of runs and questions, by going through all."""
    runs, questions = table.shape
    return np.array(
        [
            table[np.ix_(r, q)].mean()
            for r in itertools.product(range(runs), repeat=runs)
            for q in itertools.product(range(questions), repeat=questions)
        ]
    )


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_interval_is_that_of_all_draws_of_runs_and_questions(runs):
    table = np.random.default_rng(1).random((3, 4))[:runs]
    low, high = statistics.interval(table, resamples=20_000)
    expected = np.quantile(exact_distribution(table), [0.025, 0.975])
    np.testing.assert_allclose([low, high], expected, atol=0.01)


def test_difference_is_paired_over_the_questions():
    easy = np.array([0.0, 1.0] * 50)  # half of the questions are right in every run
    better = np.stack([np.minimum(easy + (np.arange(100) == 0), 1)] * 3)
    low, high = statistics.interval(better, np.stack([easy] * 2))
    assert (low, high) == (pytest.approx(0.0), pytest.approx(0.03))  # one question of a hundred
    unpaired = statistics.interval(better)
    assert unpaired[1] - unpaired[0] > 0.15


def test_interval_of_what_does_not_vary_is_a_point():
    assert statistics.interval([[0.25]]) == (0.25, 0.25)
    assert statistics.interval(np.ones((3, 7))) == (1.0, 1.0)


@pytest.mark.parametrize(
    "tables", [([1.0],), (np.ones((0, 3)),), (np.ones((2, 3)), np.ones((2, 4)))]
)
def test_tables_that_do_not_fit_are_refused(tables):
    with pytest.raises(ValueError, match="expected"):
        statistics.interval(*tables)


def test_coverage_of_the_interval():
    """The true rate lies within the 95 % interval about as often as it should: 20 runs."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        skill = rng.normal(0.5, 0.05, (20, 1))
        question = rng.normal(0.0, 0.2, (1, 60))
        low, high = statistics.interval(skill + question, resamples=400)
        hits += low <= 0.5 <= high
    assert 88 <= hits <= 99


def test_correlations_by_hand():
    trend = np.arange(20.0)
    wiggle = np.array([1.0, -1.0] * 10)
    found = statistics.correlations(trend + wiggle, trend - wiggle)
    assert found["pearson"] > 0.9
    assert found["detrended"] == pytest.approx(-1.0)
    assert found["differences"] < 0
    assert found["smoothed"] > found["pearson"]
    assert statistics.correlations([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == {}


@pytest.mark.skipif(not FIGURES.exists(), reason="the paper's curves are not at hand")
def test_published_curves():
    figures = json.loads(FIGURES.read_text())
    expected = {
        "a": (0.75, 0.61, 0.81, 0.43, 0.30),
        "b": (0.77, 0.72, 0.92, 0.28, 0.29),
        "c": (0.69, 0.54, 0.81, 0.60, 0.18),
        "d": (0.39, 0.48, 0.64, 0.51, 0.43),
    }
    for setting, values in expected.items():
        curves = figures[setting]
        length, ratio = curves["response_length"]["mean"], curves["reflection_ratio"]["mean"]
        found = statistics.correlations(length, ratio)
        assert list(found.values()) == pytest.approx(values, abs=0.02), setting
