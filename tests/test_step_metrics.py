# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The names of a step's numbers, and which are undefined."""

import types

import numpy as np
import pytest

from rlvlm_jax import step_metrics
from tests.run_cases import accuracy_by_reflection


def machine(seconds, step_s, memory, count, from_disk, first_step_s=None):
    watch = types.SimpleNamespace(seconds=seconds, elapsed=lambda: step_s)
    compiles = types.SimpleNamespace(count=count, from_disk=from_disk)
    return step_metrics.machine_metrics(watch, memory, compiles, first_step_s)


def test_of_the_machine():
    metrics = machine({"data": 1.0, "rollout": 6.0}, 31.0, [{"host_rss_gib": 1.5}], 2, 1, 40.0)
    assert metrics == {
        "time/data_s": 1.0,
        "time/rollout_s": 6.0,
        "time/step_s": 31.0,
        "memory/host_rss_gib": 1.5,
        "compile/count": 2,
        "compile/from_disk": 1,
        "time/to_first_step_s": 40.0,
    }
    later = machine({}, 31.0, [{"host_rss_gib": 1.5}], 2, 0)
    assert later["time/to_first_step_s"] is None
    assert later["compile/from_disk"] is None


def test_memory_of_several_processes():
    memory = [{"host_rss_gib": 1.0}, {"host_rss_gib": 3.0}]
    metrics = machine({}, 1.0, memory, 0, 0)
    assert {name: gib for name, gib in metrics.items() if name.startswith("memory/")} == {
        "memory/host_rss_gib": 3.0,
        "memory/host_rss_gib_0": 1.0,
        "memory/host_rss_gib_1": 3.0,
    }


def test_of_the_feature_cache():
    assert step_metrics.cache_metrics(0, 0, 0.5) == {}
    assert step_metrics.cache_metrics(12, 8, 0.5) == {
        "memory/feature_cache_hits": 8 / 12,
        "memory/feature_cache_gib": 0.5,
    }


# ---------------------------------------------------------------- responses


LOOP = "and so on and so on and so on and so on and so on"


def test_responses_by_hand():
    found = step_metrics.response_metrics(
        texts=["Wait, yet: 2", LOOP, "I await it", "yet yet"],
        lengths=[10, 20, 60, 0],
        correct=[True, False, False, True],
        truncated=[False, False, True, False],
    )
    expected = {
        "response/length": 22.5,
        "response/length_correct": 5.0,
        "response/length_incorrect": 40.0,
        "response/truncated_fraction": 0.25,
        "response/repetition_fraction": 0.25,
        "response/accuracy_untruncated": 2 / 3,
        "reflection/ratio": 0.75,
        "reflection/ratio_in_correct": 1.0,
        "reflection/ratio_in_incorrect": 0.5,
        "reflection/accuracy_with": 2 / 3,
        "reflection/accuracy_without": 0.0,
        "reflection_words/wait": 2,
        "reflection_words/yet": 3,
        "reflection_whole_words/wait": 1,
        "reflection_whole_words/yet": 3,
        "reflection_responses/wait": 1,
        "reflection_responses/yet": 2,
    }
    counts = {name: value for name, value in found.items() if name.startswith("reflection_")}
    assert len(counts) == 3 * 15
    assert {name for name, value in counts.items() if value} <= set(expected)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("right", [True, False])
def test_a_mean_over_no_response_is_undefined_not_zero(right):
    found = step_metrics.response_metrics(
        ["a", "b"], np.array([3, 5]), np.array([right] * 2), [True] * 2
    )
    defined, undefined = ("correct", "incorrect") if right else ("incorrect", "correct")
    assert found[f"response/length_{defined}"] == 4.0
    assert found[f"response/length_{undefined}"] is None
    assert found["response/accuracy_untruncated"] is None
    assert f"reflection/ratio_in_{undefined}" not in found
    assert "reflection/accuracy_with" not in found


def test_accuracy_is_the_mean_of_reflective_and_other_responses():
    """The identity of the scheme: ratio * accuracy_with + (1 - ratio) * accuracy_without."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        texts = rng.choice(["wait", "so", "check again", "let me verify", "12"], 40)
        correct = rng.random(40) < rng.random()
        found = step_metrics.response_metrics(texts.tolist(), [1] * 40, correct, [False] * 40)
        assert accuracy_by_reflection(found) == pytest.approx(correct.mean(), abs=1e-12)


@pytest.mark.parametrize(
    ("chosen", "expected"), [([True, False, True], 2.5), ([False] * 3, None), ([True] * 3, 2.0)]
)
def test_mean_where(chosen, expected):
    assert step_metrics.mean_where(np.array([2.0, 1.0, 3.0]), np.array(chosen)) == expected
