# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Several processes as one program: they connect, agree, and exit together.

Each process drives the accelerators of one host. `jax.distributed` connects them. The environment
says which cluster they are in: an address in JAX_COORDINATOR_ADDRESS, Slurm, Open MPI or a TPU pod.
Arrays move between devices inside compiled programs; anything else goes through `gather`. All
functions also work with a single process, and then send nothing.

JAX aborts a process that has lost another one. The program therefore runs in a child process. Its
parent only waits, passes signals on, and turns an abort into a sentence and exit status 1.
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
AGAIN = "Run the same command again on all hosts: it resumes from the newest checkpoint"
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_CHUNK = 1 << 18  # bytes per transfer; a fixed size, so there is one compiled program
_HEADER = 8  # bytes in front of the data that hold its length
_PR_SET_PDEATHSIG = 1  # linux/prctl.h: the signal sent to a child when its parent dies
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED")
_NOT_FOUND = (
    "the processes did not find each other within config.hosts.start_s; start one on every host, "
    "with the same command and the same address of the first host"
)
PREEMPTED = 75
_connected = -1  # pipe to the parent process; written to once the other processes are connected


def cluster() -> str:
    """Returns the connection method for `start`, "" for a single process.

    Raises:
        InputError: the environment announces several processes, but not how to connect them.
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
            "this Open MPI does not say where its first process is: set "
            f"{ADDRESS}=HOST:PORT, the same for all processes, to an address of rank 0's host"
        )
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
    if hosts is not None:
        slices = env.get("MEGASCALE_NUM_SLICES") or "1"  # of several slices, each may have one host
        return "gketpu" if "," in hosts or slices != "1" else ""
    on_tpu = bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
    disabled = "TPU_SKIP_MDS_QUERY" in env or env.get("JAX_PLATFORMS", "tpu").startswith("cpu")
    if on_tpu and not disabled and importlib.util.find_spec("libtpu"):
        return "gcetpu"
    if (env.get(COUNT) or "1") != "1" or (env.get(NUMBER) or "0") != "0":
        raise InputError(
            f"{COUNT}={env.get(COUNT)} and {NUMBER}={env.get(NUMBER)} announce several processes, "
            f"but not where the first one is; set {ADDRESS}=HOST:PORT, the same for all"
        )
    return ""


def _explicit() -> dict[str, Any]:
    """Returns the address and this process's index from the environment.

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
                f"{ADDRESS}={env[ADDRESS]} also needs {name}, a whole number, but it is {text!r}; "
                f"set {COUNT} to the number of processes and {NUMBER} to 0, 1, ..."
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
    """With several processes, continues in a child process; the parent waits and never returns.

    Call it before any thread starts, so before JAX is imported. The child is killed if the parent
    dies. The parent exits with the child's status. If a signal ended the child (JAX aborts when
    another process is lost), the parent says so and exits with 1, or with 75 if the signal asked
    the child to stop before the processes had connected.

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
        if os.getppid() != parent:  # the parent died before prctl
            os._exit(1)
        faulthandler.enable()  # prints the stack of each thread if JAX aborts
        return
    os.close(_connected)

    def pass_on(number: int, frame: object) -> None:
        del frame
        with contextlib.suppress(ProcessLookupError):  # the child has just ended
            os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        os.set_blocking(read_end, False)
        try:
            connected = bool(os.read(read_end, 1))
        except BlockingIOError:  # a surviving descendant still has the pipe open
            connected = False
        text, status = _after_signal(-status, connected)
        sys.stderr.write(text + "\n")
    sys.stderr.flush()
    os._exit(status)


def _after_signal(number: int, connected: bool) -> tuple[str, int]:
    """Returns the message and the exit status for a child that a signal ended.

    Args:
        number: the signal number.
        connected: whether the child had connected to the other processes.
    """
    if not connected and number in (signal.SIGTERM, signal.SIGINT):
        return "stopped before the run began; run the same command again", PREEMPTED
    if number != signal.SIGABRT:
        return f"error: {signal.Signals(number).name} ended this process. {AGAIN}", 1
    if not connected:
        return f"error: {_NOT_FOUND}", 1
    reason = "has lost contact with another process, or another one failed; see its output"
    return f"error: this process {reason}. {AGAIN}", 1


def lost_contact(error: Exception) -> bool:
    """Returns whether an error says that another machine does not answer."""
    return any(mark in str(error)[:300] for mark in _LOST)


def start(hosts: Any) -> None:
    """Connects the processes if there are several; call it before anything asks for devices.

    Args:
        hosts: the configuration group `hosts`, of which it reads `heartbeat_s` and `start_s`.

    Raises:
        InputError: the environment is incomplete.
        ConnectionError: the processes did not connect in time. (In most such cases JAX aborts the
            process instead, and `supervise` prints the same message.)
    """
    method = cluster()
    if not method:
        return
    import jax

    options = _explicit() if method == "address" else {"cluster_detection_method": method}
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0]
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    if method == "slurm" and tasks == "1" and gpus.isdecimal():
        # The only process on a node drives all its GPUs; JAX would give it one.
        options["local_device_ids"] = list(range(int(gpus)))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's service would capture SIGTERM, and nothing here uses it.
    jax.config.update("jax_enable_preemption_service", False)
    # It waits outside Python, so Python's handlers would not run.
    signals = (signal.SIGTERM, signal.SIGINT)
    handlers = [signal.signal(number, signal.SIG_DFL) for number in signals]
    try:
        jax.distributed.initialize(
            **options,
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
    """Returns whether this is the process that writes the records."""
    import jax

    return jax.process_index() == 0


def gather(value: T) -> list[T]:
    """Returns the value of every process, in process order; all processes must call it.

    Args:
        value: anything that can be pickled.
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
        rows: int[], the row numbers of `part`; no two processes share a row.
        part: this process's rows.
        join: concatenates several parts.
        take: selects rows of a part by index.
    """
    shares = gather((rows, part))
    if len(shares) == 1:
        return part
    order = np.argsort(np.concatenate([rows for rows, _ in shares]))
    return take(join([part for _, part in shares]), order)


class _Agreed(InputError):
    """An error of one process, raised in all of them."""


def together(part: Callable[[], T]) -> list[T]:
    """Runs `part` in every process and gathers the results; `part` may itself call `together`.

    Raises:
        InputError: the first process's error, in process order; every process raises it.
    """
    try:
        outcome: T | InputError = part()
    except _Agreed:  # from inside `part`: all processes have it already
        raise
    except InputError as error:
        outcome = InputError(str(error))
    outcomes = gather(outcome)
    for other in outcomes:
        if isinstance(other, InputError):
            raise _Agreed(str(other))
    return outcomes


def leave_after_failure() -> None:
    """With several processes, prints the traceback and exits this one at once with status 1.

    The others notice the exit instead of waiting. Returns if there is only one process.
    """
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return
    traceback.print_exc()
    sys.stderr.write(f"error: this process, or one that it waited for, failed. {AGAIN}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
