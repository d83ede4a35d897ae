# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Signals that ask the program to stop: SIGTERM before a preemption, and Ctrl-C."""

import signal
from types import FrameType
from typing import Any

NUMBERS = (signal.SIGTERM, signal.SIGINT)
_stop_requested = False
_before: dict[int, Any] = {}


def catch() -> None:
    """Makes signals set a flag and do nothing else."""
    global _stop_requested
    if all(signal.getsignal(number) is _remember for number in NUMBERS):
        return  # caught since an earlier run; a signal since then counts
    _stop_requested = False
    _before.update({number: signal.signal(number, _remember) for number in NUMBERS})


def release() -> None:
    """Restores the handlers from before `catch`; a stop request stays recorded."""
    for number, handler in _before.items():
        signal.signal(number, handler)


def ignore() -> None:
    """Ignores signals from now on: the program is ending by itself and telling the others."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def stop_requested() -> bool:
    """Returns whether a signal has asked this process to stop since the last `catch`."""
    return _stop_requested


def _remember(number: int, frame: FrameType | None) -> None:
    global _stop_requested
    del number, frame
    _stop_requested = True
