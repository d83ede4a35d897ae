# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Several processes as one program: finding each other, agreeing, and leaving together.

A process drives the accelerators of one host. `jax.distributed` connects them; which cluster they
are in is read from the environment: an address in JAX_COORDINATOR_ADDRESS, Slurm, Open MPI or a TPU
pod. Arrays go between devices inside compiled programs; what is no array goes through `gather`.
All of it works with one process too, where nothing is sent.

JAX ends a process that has lost another one by an abort, so the program runs in a child of a
process that does nothing but wait, pass signals on, and turn that end into a sentence and status 1.
"""

import contextlib
import ctypes
import faulthandler
import glob
import importlib.util
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from rlvlm_jax.errors import InputError

T = TypeVar("T")
ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
AGAIN = "Run the same command again on all hosts: it goes on from the newest checkpoint"
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_CHUNK = 1 << 18  # bytes sent at a time; one size, so one compiled program
_HEADER = 8  # bytes of it that hold the length of what is sent
_PR_SET_PDEATHSIG = 1  # linux/prctl.h: the signal that a child gets when its parent dies
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED")
_NOT_FOUND = (
    "the processes did not find each other within config.hosts.start_s; start one on every host, "
    "with the same command and the same address of the first"
)
PREEMPTED = 75
_connected = -1  # a pipe to the process that waits for this one: that the others have been found


def cluster() -> str:
    """Returns what connects several processes here: a name for `start`, "" for one process alone.

    Raises:
        InputError: the environment says so, but not how.
    """
    env = os.environ
    if env.get(ADDRESS):
        return "address"
    if all(name in env for name in _SLURM) and env["SLURM_NTASKS"] != "1":
        return "slurm"
    if env.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        if "OMPI_MCA_orte_hnp_uri" in env:
            return "ompi"
        raise InputError(
            "this Open MPI does not tell where its first process is: set "
            f"{ADDRESS}=HOST:PORT, the same for all, to an address of the host of rank 0"
        )
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
    if hosts is not None:
        slices = env.get("MEGASCALE_NUM_SLICES") or "1"  # each may have but one host
        return "gketpu" if "," in hosts or slices != "1" else ""
    on_tpu = bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
    told = "TPU_SKIP_MDS_QUERY" in env or env.get("JAX_PLATFORMS", "tpu").startswith("cpu")
    if on_tpu and not told and importlib.util.find_spec("libtpu"):
        return "gcetpu"
    if (env.get(COUNT) or "1") != "1" or (env.get(NUMBER) or "0") != "0":
        raise InputError(
            f"{COUNT}={env.get(COUNT)} and {NUMBER}={env.get(NUMBER)} say that there are several "
            f"processes, but not where the first one is; set {ADDRESS}=HOST:PORT, the same for all"
        )
    return ""


def _explicit() -> dict[str, Any]:
    """Returns the address and this process's place, as the environment gives them.

    Raises:
        InputError: something is missing or out of range.
    """
    env = os.environ
    numbers = {}
    for name, others in (
        (COUNT, ("OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS")),
        (NUMBER, ("OMPI_COMM_WORLD_RANK", "SLURM_PROCID")),
    ):
        text = next((env[variable] for variable in (name, *others) if env.get(variable)), None)
        if text is None or not text.isdecimal():
            raise InputError(
                f"{ADDRESS}={env[ADDRESS]} needs {name} beside it, a whole number, but it is "
                f"{text!r}; set {COUNT} to how many processes there are and {NUMBER} to 0, 1, ..."
            )
        numbers[name] = int(text)
    if not numbers[NUMBER] < numbers[COUNT]:
        raise InputError(f"{NUMBER}={numbers[NUMBER]} must be less than {COUNT}={numbers[COUNT]}")
    host, _, port = env[ADDRESS].rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise InputError(f"{ADDRESS}={env[ADDRESS]} is not of the form HOST:PORT")
    return {
        "coordinator_address": env[ADDRESS],
        "num_processes": numbers[COUNT],
        "process_id": numbers[NUMBER],
        "cluster_detection_method": "deactivate",
    }


def supervise() -> None:
    """Goes on in a child, where there are several processes; the parent waits and never returns.

    Must come before any thread is started, so before JAX is imported. The child is killed when the
    parent dies. The parent exits with the child's status; where a signal ended the child, as JAX
    does when another process is lost, it says so and exits with 1, or with 75 where the child was
    told to stop while it looked for the others.

    Raises:
        InputError: see `cluster`.
    """
    global _connected
    if not cluster():
        return
    parent = os.getpid()
    read_end, _connected = os.pipe()
    child = os.fork()
    if not child:
        os.close(read_end)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before that
            os._exit(1)
        faulthandler.enable()  # where each thread was, when JAX aborts
        return
    os.close(_connected)

    def pass_on(number: int, frame: object) -> None:
        del frame
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        os.set_blocking(read_end, False)
        try:
            connected = bool(os.read(read_end, 1))
        except BlockingIOError:  # a process that the child has left behind could still write
            connected = False
        text, status = _after_signal(-status, connected)
        sys.stderr.write(text + "\n")
    sys.stderr.flush()
    os._exit(status)


def _after_signal(number: int, connected: bool) -> tuple[str, int]:
    """Returns what to say, and the exit status, of a child that a signal has ended.

    Args:
        number: of the signal.
        connected: whether the child had found the other processes.
    """
    if not connected and number in (signal.SIGTERM, signal.SIGINT):
        return "stopped before the run began; run the same command again", PREEMPTED
    if number != signal.SIGABRT:
        return f"error: this process was ended by {signal.Signals(number).name}. {AGAIN}", 1
    if not connected:
        return f"error: {_NOT_FOUND}", 1
    reason = "has lost contact with another process, or another one failed; see its output"
    return f"error: this process {reason}. {AGAIN}", 1


def lost_contact(error: Exception) -> bool:
    """Returns whether an error says that another machine does not answer: no file is to blame."""
    return any(mark in str(error)[:300] for mark in _LOST)


def start(hosts: Any) -> None:
    """Connects the processes, where there are several; must come before anything asks for devices.

    Args:
        hosts: the configuration's group of that name: `heartbeat_s` and `start_s`.

    Raises:
        InputError: the environment is incomplete.
        ConnectionError: the others were not found in time. (JAX aborts the process in most such
            cases; `supervise` says the same then.)
    """
    method = cluster()
    if not method:
        return
    import jax

    where = _explicit() if method == "address" else {"cluster_detection_method": method}
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0]
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    if method == "slurm" and tasks == "1" and gpus.isdecimal():
        # A process alone on its node drives all GPUs there; JAX would give it one.
        where["local_device_ids"] = list(range(int(gpus)))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM for itself, and nothing here asks it.
    jax.config.update("jax_enable_preemption_service", False)
    # It waits outside of Python, where no handler would be run.
    signals = (signal.SIGTERM, signal.SIGINT)
    handlers = [signal.signal(number, signal.SIG_DFL) for number in signals]
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=round(hosts.start_s),
            heartbeat_timeout_seconds=round(hosts.heartbeat_s),
            shutdown_timeout_seconds=round(hosts.heartbeat_s),
        )
    except ValueError as error:
        raise InputError(f"jax.distributed cannot be started here: {error}") from error
    except RuntimeError as error:
        raise ConnectionError(_NOT_FOUND) from error
    finally:
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)
    if _connected >= 0:
        os.write(_connected, b"1")


def is_first() -> bool:
    """Returns whether this is the process that writes records and speaks for all."""
    import jax

    return jax.process_index() == 0


def gather(value: T) -> list[T]:
    """Returns what each process has given, in their order; all must call it together.

    Args:
        value: can be pickled.
    """
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return [value]
    data = pickle.dumps(value)
    data = len(data).to_bytes(_HEADER, "little") + data
    received: list[bytes] = [b""] * jax.process_count()
    longest, start = _HEADER, 0
    while start < longest:
        part = np.zeros(_CHUNK, np.uint8)
        chunk = np.frombuffer(data[start : start + _CHUNK], np.uint8)
        part[: chunk.size] = chunk
        parts = multihost_utils.process_allgather(part)
        received = [old + new.tobytes() for old, new in zip(received, parts, strict=True)]
        start += _CHUNK
        longest = _HEADER + max(int.from_bytes(message[:_HEADER], "little") for message in received)
    return [
        pickle.loads(message[_HEADER : _HEADER + int.from_bytes(message[:_HEADER], "little")])
        for message in received
    ]


def gather_rows(
    rows: np.ndarray, part: T, join: Callable[[list[T]], T], take: Callable[[T, np.ndarray], T]
) -> T:
    """Returns the rows of all processes, in order.

    Args:
        rows: int[], which rows `part` has; no two processes have the same.
        part: rows of something.
        join: puts several parts behind one another.
        take: gives the rows at these places.
    """
    shares = gather((rows, part))
    if len(shares) == 1:
        return part
    order = np.argsort(np.concatenate([rows for rows, _ in shares]))
    return take(join([part for _, part in shares]), order)


class _Agreed(InputError):
    """What one process has raised, in all of them."""


def together(part: Callable[[], T]) -> list[T]:
    """Runs `part` in every process and gathers the results; `part` may do so itself.

    Raises:
        InputError: the first that any of them raised, in all of them.
    """
    try:
        outcome: T | InputError = part()
    except _Agreed:  # inside `part`: all have heard of it
        raise
    except InputError as error:
        outcome = InputError(str(error))
    outcomes = gather(outcome)
    for other in outcomes:
        if isinstance(other, InputError):
            raise _Agreed(str(other))
    return outcomes


def leave_after_failure() -> None:
    """Ends this process at once with the failure's traceback and status 1, if it is one of several.

    The others notice by that, instead of waiting for it. Returns in a process alone.
    """
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return
    traceback.print_exc()
    sys.stderr.write(f"error: this process failed, or another one that it waited for. {AGAIN}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
