# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Signals that ask the program to stop: SIGTERM before a machine is taken away, and Ctrl-C."""

import signal
from types import FrameType
from typing import Any

NUMBERS = (signal.SIGTERM, signal.SIGINT)
_stop_requested = False
_before: dict[int, Any] = {}


def catch() -> None:
    """From now on a signal is remembered, and does nothing else."""
    global _stop_requested
    if all(signal.getsignal(number) is _remember for number in NUMBERS):
        return  # since a run before this one; one that came between them counts
    _stop_requested = False
    _before.update({number: signal.signal(number, _remember) for number in NUMBERS})


def release() -> None:
    """Gives signals back to what had them before `catch`; what was asked stays known."""
    for number, handler in _before.items():
        signal.signal(number, handler)


def ignore() -> None:
    """From now on a signal does nothing: the program ends by itself, and tells others so."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def stop_requested() -> bool:
    """Returns whether this process has been asked to stop since the last `catch`."""
    return _stop_requested


def _remember(number: int, frame: FrameType | None) -> None:
    global _stop_requested
    del number, frame
    _stop_requested = True
