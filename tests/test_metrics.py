# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Numbers about a step: what is counted, what is timed, what is undefined, where it is shown."""

import importlib.util
import sys
import types

import jax
import numpy as np
import psutil
import pytest
from ml_collections import ConfigDict

from rlvlm_jax import metrics
from rlvlm_jax.errors import InputError
from tests.run_cases import accuracy_by_reflection

SILENT = {"writers": ()}


# ---------------------------------------------------------------- compilations


def test_numbers_in_the_text_format_of_prometheus():
    text = metrics.exposition({"step": 3, "reward/score": 0.5, "eval/val/pass@1_t0.01": 1})
    assert text == "rlvlm_step 3.0\nrlvlm_reward_score 0.5\nrlvlm_eval_val_pass_1_t0_01 1.0\n"


def test_memory_of_several_processes():
    mine = {"memory/host_rss_gib": 1.0}
    found = metrics.memory_metrics(lambda _: [mine, {"memory/host_rss_gib": 3.0}])
    assert found == {
        "memory/host_rss_gib": 3.0,
        "memory/host_rss_gib_0": 1.0,
        "memory/host_rss_gib_1": 3.0,
    }


def test_a_new_program_or_shape_is_counted_and_a_cached_one_is_not():
    function = jax.jit(lambda x: x * 3 + 1)
    short, long = np.ones(3, np.float32), np.ones(5, np.float32)
    early = metrics.CompileCounter()
    function(short)
    assert early.count == 1
    late = metrics.CompileCounter()
    function(short + 1)
    assert (early.count, late.count) == (1, 0)
    function(long)
    assert (early.count, late.count) == (2, 1)
    jax.jit(lambda x: x * 3 + 2)(short)
    assert (early.count, late.count) == (3, 2)


def test_tracing_alone_is_no_compilation():
    counter = metrics.CompileCounter()
    jax.eval_shape(lambda x: x @ x.T, np.ones((2, 3), np.float32))
    jax.jit(lambda x: x - 7).lower(np.ones(3, np.float32))
    assert counter.count == 0


def test_a_program_from_disk_is_counted_apart(compiled):
    del compiled
    counter = metrics.CompileCounter()
    function = jax.jit(lambda x: x * 17 - 3)
    function(np.ones(3, np.float32))
    assert counter.metrics() == {"compile/count": 1}
    jax.clear_caches()
    function(np.ones(3, np.float32))
    assert counter.metrics() == {"compile/count": 1, "compile/from_disk": 1}
    jax.jit(lambda x: x * 17 - 4)(np.ones(3, np.float32))
    assert counter.metrics() == {"compile/count": 2, "compile/from_disk": 1}


# ---------------------------------------------------------------- time


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told to go on."""
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now.seconds)
    return now


def test_parts_add_up_and_the_step_is_timed_from_the_start(clock):
    watch = metrics.Stopwatch()
    clock.seconds += 1
    for seconds in (2, 4):
        with watch.measure("rollout"):
            clock.seconds += seconds
    with watch.measure("data"), watch.measure("inner"):
        clock.seconds += 8
    clock.seconds += 16
    assert watch.seconds == {"rollout": 6, "inner": 8, "data": 8}
    assert watch.metrics() == {
        "time/rollout_s": 6,
        "time/inner_s": 8,
        "time/data_s": 8,
        "time/step_s": 31,
    }


def test_a_watch_without_parts_has_the_step_alone(clock):
    watch = metrics.Stopwatch()
    clock.seconds += 3
    assert watch.metrics() == {"time/step_s": 3}


def test_the_first_run_is_counted_from_the_start_of_the_process(monkeypatch):
    now = types.SimpleNamespace(seconds=110.0)
    monkeypatch.setattr(metrics.time, "time", lambda: now.seconds)
    monkeypatch.setattr(metrics.ProgramClock, "_process_start", 100.0)
    first = metrics.ProgramClock()
    now.seconds += 30
    assert first.metrics() == {"time/to_first_step_s": 40.0}
    second = metrics.ProgramClock()
    now.seconds += 5
    assert second.metrics() == {"time/to_first_step_s": 5.0}


def test_the_process_started_before_this_test():
    started = psutil.Process().create_time()
    assert metrics.ProgramClock._process_start in (None, started)


# ---------------------------------------------------------------- memory


def test_memory_of_the_process_and_of_devices_that_tell(monkeypatch):
    def device(stats):
        return types.SimpleNamespace(memory_stats=lambda: stats)

    peaks = [{"peak_bytes_in_use": 2**30}, {"peak_bytes_in_use": 3 * 2**29}, None, {}, {"other": 1}]
    monkeypatch.setattr(metrics.jax, "local_devices", lambda: [device(stats) for stats in peaks])
    found = metrics.memory_metrics()
    assert found.keys() == {"memory/host_rss_gib", "memory/device_peak_gib"}
    assert found["memory/device_peak_gib"] == 1.5
    resident = psutil.Process().memory_info().rss / 2**30
    assert found["memory/host_rss_gib"] == pytest.approx(resident, rel=0.2)


def test_a_peak_that_no_device_tells_is_absent(monkeypatch):
    silent = types.SimpleNamespace(memory_stats=lambda: None)
    monkeypatch.setattr(metrics.jax, "local_devices", lambda: [silent])
    assert metrics.memory_metrics().keys() == {"memory/host_rss_gib"}


# ---------------------------------------------------------------- responses


LOOP = "and so on and so on and so on and so on and so on"


def test_responses_by_hand():
    found = metrics.response_metrics(
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
    found = metrics.response_metrics(
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
        found = metrics.response_metrics(texts.tolist(), [1] * 40, correct, [False] * 40)
        assert accuracy_by_reflection(found) == pytest.approx(correct.mean(), abs=1e-12)


@pytest.mark.parametrize(
    ("chosen", "expected"), [([True, False, True], 2.5), ([False] * 3, None), ([True] * 3, 2.0)]
)
def test_mean_where(chosen, expected):
    assert metrics.mean_where(np.array([2.0, 1.0, 3.0]), np.array(chosen)) == expected


# ---------------------------------------------------------------- where they are shown


def test_tensorboard_gets_every_number(tmp_path):
    writers = metrics.Writers(ConfigDict({"writers": ("tensorboard",)}), str(tmp_path), 10, {})
    for step in (1, 2):
        writers.write(step, {"update/loss": 0.5 * step, "reward/score": -1.0}, note="")
    writers.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    assert content.count(b"update/loss") == content.count(b"reward/score") == 2


def test_prometheus_finds_the_newest_of_every_number(tmp_path):
    writers = metrics.Writers(ConfigDict({"writers": ("prometheus",)}), str(tmp_path), 10, {})
    writers.write(1, {"goodput/run": 0.5, "update/loss": 2.0}, note="")
    writers.write(1, {"eval/val/pass@1": 0.25}, note="")
    writers.write(2, {"goodput/run": 0.75}, note="")
    lines = (tmp_path / "metrics.prom").read_text().splitlines()
    assert sorted(lines) == [
        *("rlvlm_eval_val_pass_1 0.25", "rlvlm_goodput_run 0.75", "rlvlm_step 2.0"),
        "rlvlm_update_loss 2.0",
    ]


def test_what_is_off_writes_nothing(tmp_path, capsys):
    writers = metrics.Writers(ConfigDict({"writers": ("progress",)}), str(tmp_path), 10, {})
    writers.write(1, {"update/loss": 0.5}, note="x")  # and no bar where there is no terminal
    writers.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_wandb_that_is_asked_for_but_not_there_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    metrics.check_writers(ConfigDict(SILENT))
    with pytest.raises(InputError, match="config.log.writers has 'wandb', which needs the package"):
        metrics.check_writers(ConfigDict({"writers": ("wandb",)}))


def test_wandb_gets_project_configuration_and_numbers(tmp_path, monkeypatch):
    calls = []
    session = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )

    def init(**arguments):
        calls.append(arguments)
        return session

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    log = ConfigDict({"writers": ("wandb",)})
    writers = metrics.Writers(log, str(tmp_path), 10, {"seed": 3})
    writers.write(4, {"update/loss": 0.5}, note="")
    writers.close()
    assert calls == [
        {"project": "mine", "dir": str(tmp_path), "config": {"seed": 3}},
        (4, {"update/loss": 0.5}),
        "end",
    ]
