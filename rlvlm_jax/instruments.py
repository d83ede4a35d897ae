# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What measures a run: a stopwatch, a clock, a counter of compilations, and memory.

`step_metrics` gives the numbers their names.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import psutil

GIB = 2.0**30
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"  # or a program read from disk
_READ_EVENT = "/jax/compilation_cache/cache_hits"


class CompileCounter:
    """Counts the programs that XLA has built in this process since the counter was created.

    Attributes:
        from_disk: programs that were compiled at an earlier start; see startup.keep_compiled.
    """

    def __init__(self) -> None:
        self._made = self.from_disk = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        jax.monitoring.register_event_listener(self._listen_to_reads)

    @property
    def count(self) -> int:
        """Programs that this process compiled."""
        return self._made - self.from_disk

    def _listen(self, event: str, duration: float, **_: Any) -> None:
        del duration
        if event == _COMPILE_EVENT:
            self._made += 1

    def _listen_to_reads(self, event: str, **_: Any) -> None:
        if event == _READ_EVENT:
            self.from_disk += 1


class ProgramClock:
    """Seconds that the user has waited for a run, imports included.

    The first run in a process counts from the start of the process, later runs from the creation of
    their clock.

    Attributes:
        start: in seconds since 1970.
    """

    _process_start: float | None = psutil.Process().create_time()

    def __init__(self) -> None:
        self.start = ProgramClock._process_start or time.time()
        ProgramClock._process_start = None

    def elapsed(self) -> float:
        """Returns the seconds until now."""
        return time.time() - self.start


class Stopwatch:
    """Seconds spent in the named parts of one step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the time of the block to `name`."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def elapsed(self) -> float:
        """Returns the seconds since the watch was created."""
        return time.perf_counter() - self._start


def memory() -> dict[str, float]:
    """Returns this process's largest resident memory and its devices' peak, in GiB.

    The peak is absent if the devices do not report it.
    """
    result = {"host_rss_gib": psutil.Process().memory_info().rss / GIB}
    peaks = [
        stats["peak_bytes_in_use"]
        for device in jax.local_devices()
        if (stats := device.memory_stats()) and "peak_bytes_in_use" in stats
    ]
    if peaks:
        result["device_peak_gib"] = max(peaks) / GIB
    return result
