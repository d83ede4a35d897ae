# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What is counted and what is timed."""

import types

import jax
import numpy as np
import psutil
import pytest

from rlvlm_jax import instruments

# ---------------------------------------------------------------- compilations


def test_a_new_program_or_shape_is_counted_and_a_cached_one_is_not():
    function = jax.jit(lambda x: x * 3 + 1)
    short, long = np.ones(3, np.float32), np.ones(5, np.float32)
    early = instruments.CompileCounter()
    function(short)
    assert early.count == 1
    late = instruments.CompileCounter()
    function(short + 1)
    assert (early.count, late.count) == (1, 0)
    function(long)
    assert (early.count, late.count) == (2, 1)
    jax.jit(lambda x: x * 3 + 2)(short)
    assert (early.count, late.count) == (3, 2)


def test_tracing_alone_is_no_compilation():
    counter = instruments.CompileCounter()
    jax.eval_shape(lambda x: x @ x.T, np.ones((2, 3), np.float32))
    jax.jit(lambda x: x - 7).lower(np.ones(3, np.float32))
    assert counter.count == 0


def test_a_program_from_disk_is_counted_apart(compiled):
    del compiled
    counter = instruments.CompileCounter()
    function = jax.jit(lambda x: x * 17 - 3)
    function(np.ones(3, np.float32))
    assert (counter.count, counter.from_disk) == (1, 0)
    jax.clear_caches()
    function(np.ones(3, np.float32))
    assert (counter.count, counter.from_disk) == (1, 1)
    jax.jit(lambda x: x * 17 - 4)(np.ones(3, np.float32))
    assert (counter.count, counter.from_disk) == (2, 1)


# ---------------------------------------------------------------- time


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told to go on."""
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(instruments.time, "perf_counter", lambda: now.seconds)
    return now


def test_parts_add_up_and_the_step_is_timed_from_the_start(clock):
    watch = instruments.Stopwatch()
    clock.seconds += 1
    for seconds in (2, 4):
        with watch.measure("rollout"):
            clock.seconds += seconds
    with watch.measure("data"), watch.measure("inner"):
        clock.seconds += 8
    clock.seconds += 16
    assert watch.seconds == {"rollout": 6, "inner": 8, "data": 8}
    assert watch.elapsed() == 31


def test_a_watch_without_parts_has_the_step_alone(clock):
    watch = instruments.Stopwatch()
    clock.seconds += 3
    assert (watch.seconds, watch.elapsed()) == ({}, 3)


def test_the_first_run_is_counted_from_the_start_of_the_process(monkeypatch):
    now = types.SimpleNamespace(seconds=110.0)
    monkeypatch.setattr(instruments.time, "time", lambda: now.seconds)
    monkeypatch.setattr(instruments.ProgramClock, "_process_start", 100.0)
    first = instruments.ProgramClock()
    now.seconds += 30
    assert first.elapsed() == 40.0
    second = instruments.ProgramClock()
    now.seconds += 5
    assert second.elapsed() == 5.0


def test_the_process_started_before_this_test():
    started = psutil.Process().create_time()
    assert instruments.ProgramClock._process_start in (None, started)


# ---------------------------------------------------------------- memory


def test_memory_of_the_process_and_of_devices_that_tell(monkeypatch):
    def device(stats):
        return types.SimpleNamespace(memory_stats=lambda: stats)

    peaks = [{"peak_bytes_in_use": 2**30}, {"peak_bytes_in_use": 3 * 2**29}, None, {}, {"other": 1}]
    monkeypatch.setattr(
        instruments.jax, "local_devices", lambda: [device(stats) for stats in peaks]
    )
    found = instruments.memory()
    assert found.keys() == {"host_rss_gib", "device_peak_gib"}
    assert found["device_peak_gib"] == 1.5
    resident = psutil.Process().memory_info().rss / 2**30
    assert found["host_rss_gib"] == pytest.approx(resident, rel=0.2)


def test_a_peak_that_no_device_tells_is_absent(monkeypatch):
    silent = types.SimpleNamespace(memory_stats=lambda: None)
    monkeypatch.setattr(instruments.jax, "local_devices", lambda: [silent])
    assert instruments.memory().keys() == {"host_rss_gib"}
