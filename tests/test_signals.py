# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Signals that ask to stop are remembered, within a run and between two of them."""

import signal

import pytest

from rlvlm_jax import config, distributed, seeds, signals


@pytest.fixture(autouse=True)
def heard():
    """The numbers of the signals that came through to what was there before."""
    numbers = []
    before = {
        number: signal.signal(number, lambda number, _: numbers.append(number))
        for number in signals.NUMBERS
    }
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_a_signal_is_remembered_and_then_given_back(number, heard):
    signals.catch()
    assert not signals.stop_requested()
    signal.raise_signal(number)
    signals.catch()  # by another run, before the first one has released them
    assert signals.stop_requested()
    assert heard == []

    signals.release()
    assert signals.stop_requested()
    signal.raise_signal(number)
    assert heard == [number]

    signals.catch()
    assert not signals.stop_requested()
    signals.release()


def run_of(begun, at, told):
    """A program that notes its seed; at one of them a signal comes, of which it may be told."""

    def program(one, workdir):
        signals.catch()
        begun.append((one.seed, workdir.rsplit("/", 1)[1]))
        if one.seed == at:
            signal.raise_signal(signal.SIGTERM)
        signals.release()
        return not (told and signals.stop_requested())

    return program


def test_signals_that_are_ignored_come_through_to_nobody(heard):
    signals.catch()
    signals.ignore()
    for number in signals.NUMBERS:
        signal.raise_signal(number)
    assert not signals.stop_requested()
    assert heard == []


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("at", [5, 6])
def test_no_seed_is_begun_once_a_signal_has_come(tmp_path, at, told):
    c, begun = config.default(), []
    c.seed, c.seeds = 5, 3
    assert not seeds.run_seeds(run_of(begun, at, told), c, str(tmp_path))
    assert begun == [(seed, f"seed_{seed}") for seed in range(5, at + 1)]


def test_no_seed_is_begun_once_another_process_was_asked_to_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "gather", lambda mine: [mine, True])
    c, begun = config.default(), []
    c.seeds = 2
    assert not seeds.run_seeds(run_of(begun, None, False), c, str(tmp_path))
    assert begun == [(0, "seed_0")]
