# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Worker processes with a deadline for every item.

Symbolic algebra can run for ever on a hostile answer, inside C code that no signal interrupts, so
it runs in processes that can be killed. pebble supplies the pool; this file adds what a training
run needs:

* Workers never run the user's `__main__` and never load JAX, so they start quickly and in the same
  way under `python script.py`, `python -m` and `python -`.
* Ctrl-C and SIGTERM reach only the parent, which decides; only SIGKILL ends a worker.
* On Linux the kernel kills the workers when the parent dies for any reason.
* An item whose worker died is tried once more, and a broken pool is replaced.

Knows nothing about the items, except that `shared` preloads the judge. POSIX only.
"""

import atexit
import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, context, popen_spawn_posix, resource_tracker, spawn
from typing import Any

import pebble

MAX_WORKERS = 8  # by default; with more, judging is seldom the bottleneck
TASKS_PER_WORKER = 5000  # then a new process replaces it: sympy's caches only ever grow
MEMORY_BYTES = 4 << 30  # limit of one judgement
STARTS = 5  # attempts to start the workers, in case something kills them
START_S = 120.0  # limit until a first worker is ready, also on a busy machine
STALL_S = 30.0  # a pool that finishes nothing for the deadline plus this is broken
STOP_S = 60.0  # limit until the workers have ended
POLL_S = 1.0  # how often a waiting thread checks for signals and for the life of its pool
_LOG = logging.getLogger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1


class Lost:
    """The result of an item that ran past its deadline or whose worker died twice."""


LOST = Lost()

# --------------------------------------------------------------------------------------------------
# Starting workers
# --------------------------------------------------------------------------------------------------

_spawn_lock = threading.Lock()


@contextlib.contextmanager
def _main_hidden() -> Iterator[None]:
    """Keeps multiprocessing from telling the new process to run the user's script again.

    Only for this thread: another thread may start processes that need the script.
    """
    original, owner = spawn.get_preparation_data, threading.get_ident()

    def without_main(name: str) -> dict[str, Any]:
        data = original(name)
        if threading.get_ident() == owner:
            data.pop("init_main_from_name", None)
            data.pop("init_main_from_path", None)
        return data

    spawn.get_preparation_data = without_main
    try:
        yield
    finally:
        spawn.get_preparation_data = original


class _Popen(popen_spawn_posix.Popen):
    def _launch(self, process_obj: Any) -> None:
        resource_tracker.ensure_running()  # before blocking: it resets this thread's signal mask
        with _spawn_lock, _main_hidden():
            # The child inherits the mask: no signal reaches it before `_start_worker` is ready.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                super()._launch(process_obj)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Process(context.SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> _Popen:  # noqa: N802 (multiprocessing's name)
        return _Popen(process_obj)

    # Workers ignore SIGTERM, so SIGKILL ends them. A forked copy of the parent inherits this object
    # and pebble's exit hook, but must not end its parent's workers.

    def _is_ours(self) -> bool:
        return self._parent_pid == os.getpid()

    def terminate(self) -> None:
        if self._is_ours():
            self.kill()

    def join(self, timeout: float | None = None) -> None:
        if self._is_ours():
            super().join(timeout)

    def is_alive(self) -> bool:
        return self._is_ours() and super().is_alive()


class _Context(context.SpawnContext):
    Process = _Process


def _ignore(signum: int, frame: Any) -> None:
    # A handler rather than SIG_IGN, which the user's subprocesses would inherit.
    pass


def _start_worker(parent: int, warm_up: Callable[[], None] | None) -> None:
    """Prepares a worker; runs in it before its first item, outside any deadline."""
    for signum in _SIGNALS:
        signal.signal(signum, _ignore)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the call above
            os._exit(0)
    else:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["JAX_PLATFORMS"] = "cpu"  # if a user's reward imports JAX, keep it off the device
    if warm_up is not None:
        warm_up()


def _end_with_parent() -> None:
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(0)


@contextlib.contextmanager
def limited_memory(most: int = MEMORY_BYTES) -> Iterator[None]:
    """Limits this process to `most` bytes; an allocation beyond raises MemoryError.

    Linux only. Counts writable memory, not memory that is only reserved or mapped from files.
    """
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


# --------------------------------------------------------------------------------------------------
# The pool
# --------------------------------------------------------------------------------------------------


class Pool:
    """A fixed number of worker processes, which start at the first item and stay.

    Safe to use from several threads at once.

    Args:
        workers: number of processes; 0 means one per core, at most `MAX_WORKERS`.
        warm_up: a module-level function, called without arguments in every new worker before its
            first item, so that imports do not count against a deadline.
        tasks_per_worker: number of items after which a worker is replaced.
    """

    def __init__(
        self,
        workers: int = 0,
        warm_up: Callable[[], None] | None = None,
        tasks_per_worker: int = TASKS_PER_WORKER,
    ):
        self.workers = workers or min(os.cpu_count() or 1, MAX_WORKERS)
        self._warm_up = warm_up
        self._tasks_per_worker = tasks_per_worker
        self._lock = threading.RLock()
        self._pool: pebble.ProcessPool | None = None
        self._closing = self._closed = threading.Event()  # of the running pool
        self._finished = 0  # items finished so far, for any thread: the sign of life
        self._waiting: set[Future] = set()  # of all threads; cancelled when the pool ends
        self._closes = 0

    def map(self, function: Callable[..., Any], items: Sequence[tuple], deadline_s: float) -> list:
        """Applies a function to every item in the workers.

        Args:
            function: importable from a module; must not raise.
            items: positional arguments of each call; picklable.
            deadline_s: seconds that one call may take, counted from its start in a worker, without
                the time in the queue.

        Returns:
            The results in the order of the items, `LOST` for an item that ran out of time or killed
            its worker twice.

        Raises:
            RuntimeError: the workers do not start, or another thread called `close`.
        """
        closes = self._closes
        results: list[Any] = [LOST] * len(items)
        deaths = [0] * len(items)
        breakdowns = 0
        todo = list(range(len(items)))
        while todo:
            # After two breakdowns, submit single items, so that the next one identifies its cause.
            submitted = todo if breakdowns < 2 else todo[:1]
            pool, futures = self._submit(
                function, [items[i] for i in submitted], deadline_s, closes
            )
            again = todo[len(submitted) :]
            broken = False
            try:
                for i, future in zip(submitted, futures, strict=True):
                    if broken and not future.done():
                        again.append(i)
                        continue
                    try:
                        results[i] = self._wait(pool, future, deadline_s + STALL_S)
                    except TimeoutError:
                        pass  # stays LOST
                    except pebble.ProcessExpired:
                        deaths[i] += 1
                        if deaths[i] < 2:
                            again.append(i)
                    except (BrokenProcessPool, CancelledError):
                        broken = True
                        if len(submitted) > 1 or deaths[i] == 0:
                            deaths[i] += len(submitted) == 1
                            again.append(i)
            except BaseException:  # Ctrl-C, preemption: leave no work in the queue
                self._discard(pool)
                raise
            self._check_not_closed(closes)
            if broken:
                breakdowns += 1
                self._discard(pool)
            todo = sorted(again)
        return results

    def close(self) -> None:
        """Kills the workers. A later `map` starts new ones."""
        with self._lock:
            self._closes += 1
            if self._pool is not None:
                self._discard(self._pool)

    def forget(self) -> None:
        """Drops the workers without ending them: for a forked child, whose parent owns them."""
        self._lock = threading.RLock()
        self._pool = None
        self._waiting = set()

    def _submit(
        self, function: Callable[..., Any], items: list[tuple], deadline_s: float, closes: int
    ) -> tuple[pebble.ProcessPool, list[Future]]:
        while True:
            pool = self._running()
            futures = []
            try:
                for item in items:
                    future = pool.schedule(function, args=item, timeout=deadline_s)
                    self._waiting.add(future)
                    future.add_done_callback(self._done)
                    futures.append(future)
            except RuntimeError:  # pebble: the pool broke or was closed
                self._discard(pool)
                self._check_not_closed(closes)
            else:
                if pool is not self._pool:  # added after the others were cancelled
                    for future in futures:
                        future.cancel()
                return pool, futures

    def _check_not_closed(self, closes: int) -> None:
        if self._closes != closes:
            raise RuntimeError("the worker pool was closed while it was working")

    def _done(self, future: Future) -> None:
        self._finished += 1
        self._waiting.discard(future)

    def _wait(self, pool: pebble.ProcessPool, future: Future, silence_s: float) -> Any:
        """Waits for one future, while its pool lives and finishes any item within `silence_s`."""
        finished, since = self._finished, time.monotonic()
        while True:
            try:
                return future.result(timeout=POLL_S)
            except TimeoutError:
                if future.done():  # the item's own deadline, or it has just finished
                    return future.result()
            if self._finished != finished:
                finished, since = self._finished, time.monotonic()
            if pool is not self._pool or not pool.active:
                raise BrokenProcessPool("the workers are gone")
            if time.monotonic() - since > silence_s:
                raise BrokenProcessPool("no item finished for a long time")

    def _running(self) -> pebble.ProcessPool:
        with self._lock:
            if self._pool is not None and not self._pool.active:
                self._discard(self._pool)
            if self._pool is None:
                self._start()
            return self._pool

    def _start(self) -> None:
        """Starts the workers; retries a limited number of times if something kills them."""
        end = time.monotonic() + START_S
        for attempt in range(STARTS):
            self._pool = pool = pebble.ProcessPool(
                max_workers=self.workers,
                max_tasks=self._tasks_per_worker,
                initializer=_start_worker,
                initargs=(os.getpid(), self._warm_up),
                context=_Context(),
            )
            started, self._closing, self._closed = (threading.Event() for _ in range(3))
            threading.Thread(
                target=_run_pool,
                args=(pool, started, self._closing, self._closed),
                name="reward pool",
                daemon=True,
            ).start()
            started.wait()
            try:
                if self._closed.is_set():
                    raise BrokenProcessPool("the processes could not be started")
                self._wait(pool, pool.schedule(os.getpid), START_S)
                return
            except (RuntimeError, pebble.ProcessExpired) as error:
                self._discard(pool)
                if attempt + 1 == STARTS or time.monotonic() > end:
                    raise RuntimeError(
                        "the reward workers do not start; their messages are above"
                    ) from error

    def _discard(self, pool: pebble.ProcessPool) -> None:
        with self._lock:
            if pool is not self._pool:
                return  # another thread was faster
            self._pool = None
            self._closing.set()
            if not self._closed.wait(STOP_S):
                _LOG.warning("the old reward workers do not stop; carrying on without them")
            for future in tuple(self._waiting):
                future.cancel()  # pebble leaves them pending for ever


def _run_pool(
    pool: pebble.ProcessPool,
    started: threading.Event,
    closing: threading.Event,
    closed: threading.Event,
) -> None:
    """Starts and stops one pool, in a thread that lives as long as the pool.

    Starts it, because the kernel ties a worker to the thread that started it, not to the process: a
    short-lived thread would end the workers with itself. Stops it, because a second Ctrl-C reaches
    only the main thread and so cannot interrupt the stop.
    """
    try:
        try:
            pool.active  # noqa: B018 (this property starts the processes)
        finally:
            started.set()
        closing.wait()
        pool.stop()
        pool.join()
    finally:
        closed.set()


# --------------------------------------------------------------------------------------------------
# The shared pool
# --------------------------------------------------------------------------------------------------

_shared: Pool | None = None
_shared_lock = threading.Lock()


def _load_judge() -> None:
    from rlvlm_jax.rewards import math

    math.warm_up()


def shared(workers: int | None = None) -> Pool:
    """Returns the pool that all judging in this process shares.

    Args:
        workers: number of processes, 0 for one per core; a number other than the running pool's
            replaces the pool. None keeps it as it is.
    """
    global _shared
    with _shared_lock:
        if _shared is not None and workers is not None:
            num_workers = workers or min(os.cpu_count() or 1, MAX_WORKERS)
            if num_workers != _shared.workers:
                _shared.close()
                _shared = None
        if _shared is None:
            _shared = Pool(workers or 0, _load_judge)
            atexit.register(_shared.close)  # before multiprocessing's own hook, which would wait
        return _shared


def close() -> None:
    """Kills the shared pool's workers. The next judgement starts new ones."""
    with _shared_lock:
        if _shared is not None:
            _shared.close()


def _after_fork() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    if _shared is not None:
        _shared.forget()


os.register_at_fork(after_in_child=_after_fork)
