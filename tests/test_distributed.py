# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Several processes: finding each other, the same run on any of them, leaving together."""

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from rlvlm_jax import checkpoint, config, distributed, main
from rlvlm_jax.errors import InputError
from tests.processes import (
    ROOT,
    free_port,
)

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
ADDRESS = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No cluster but the one that a test puts into the environment."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "JAX_COORD", "JAX_NUM_P", "JAX_PROC")):
            monkeypatch.delenv(name)


def put(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


# ---- which cluster ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, ""),
        (ADDRESS, "address"),
        (SLURM, "slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, ""),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, ""),  # inside salloc, without srun
        (OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:4"}, "ompi"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, ""),
        (OPEN_MPI | ADDRESS, "address"),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"}, "gketpu"),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "1"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "gketpu"),
    ],
)
def test_cluster_is_read_from_the_environment(monkeypatch, variables, name):
    put(monkeypatch, variables)
    assert distributed.cluster() == name


def test_tpu_pod_is_told_by_its_chips(monkeypatch):
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: [pattern] * ("accel" in pattern))
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv("JAX_PLATFORMS")
    assert distributed.cluster() == "gcetpu"
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # Kaggle, Colab: one host, no metadata server
    assert distributed.cluster() == ""
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert distributed.cluster() == ""


def started(monkeypatch, variables):
    """What `jax.distributed.initialize` is given."""
    put(monkeypatch, variables)
    given = {}
    monkeypatch.setattr(jax.distributed, "initialize", given.update)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    distributed.start(config.default().hosts)
    return given


def test_one_process_connects_to_nothing(monkeypatch):
    assert started(monkeypatch, {}) == {}
    empty = {"JAX_NUM_PROCESSES": "", "JAX_PROCESS_ID": "", "JAX_COORDINATOR_ADDRESS": ""}
    assert started(monkeypatch, empty) == {}


def test_address_and_place_are_explicit(monkeypatch):
    given = started(monkeypatch, ADDRESS)
    assert given["coordinator_address"] == "10.0.0.1:1234"
    assert (given["num_processes"], given["process_id"]) == (2, 1)
    assert given["heartbeat_timeout_seconds"] == 30


@pytest.mark.parametrize(("others", "place"), [(OPEN_MPI, (4, 3)), (SLURM, (2, 1))])
def test_place_comes_from_the_launcher_where_only_the_address_is_given(monkeypatch, others, place):
    given = started(monkeypatch, {"JAX_COORDINATOR_ADDRESS": "a:1"} | others)
    assert (given["num_processes"], given["process_id"]) == place


@pytest.mark.parametrize(
    ("tasks", "gpus", "devices"),
    [("1(x2)", "8", list(range(8))), ("8(x2)", "8", None), ("1(x2)", "", None)],
)
def test_slurm_process_alone_on_its_node_gets_all_gpus(monkeypatch, tasks, gpus, devices):
    more = {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_GPUS_ON_NODE": gpus}
    assert started(monkeypatch, SLURM | more).get("local_device_ids") == devices


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "needs JAX_NUM_PROCESSES"),
        (ADDRESS | {"JAX_PROCESS_ID": "x"}, "needs JAX_PROCESS_ID"),
        (ADDRESS | {"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID=2 must be less than"),
        (ADDRESS | {"JAX_COORDINATOR_ADDRESS": "host"}, "not of the form HOST:PORT"),
        (ADDRESS | {"JAX_COORDINATOR_ADDRESS": "host:99999"}, "not of the form HOST:PORT"),
        (OPEN_MPI, "set JAX_COORDINATOR_ADDRESS=HOST:PORT"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "not where the first one is"),
        ({"JAX_PROCESS_ID": "1"}, "not where the first one is"),
    ],
)
def test_incomplete_environment_is_refused(monkeypatch, variables, message):
    with pytest.raises(InputError, match=message):
        started(monkeypatch, variables)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RuntimeError("DEADLINE_EXCEEDED: barrier"), ConnectionError, "did not find each other"),
        (ValueError("port 99999"), InputError, "cannot be started here: port 99999"),
    ],
)
def test_processes_that_are_not_found_are_an_error(monkeypatch, error, kind, message):
    put(monkeypatch, ADDRESS)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def never(**_):
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "it waits outside of Python"
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", never)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(kind, match=message):
        distributed.start(config.default().hosts)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_a_lost_machine_is_told_from_a_damaged_file(tmp_path):
    lost = ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")
    damaged = ValueError("Error reading the array: no such chunk")
    assert distributed.lost_contact(lost)
    assert not distributed.lost_contact(damaged)
    with pytest.raises(ValueError, match="Gloo AllGather failed"):
        checkpoint._raise_damaged(tmp_path, lost)
    with pytest.raises(InputError, match="is damaged"):
        checkpoint._raise_damaged(tmp_path, damaged)


def test_different_commands_are_refused_by_all(monkeypatch):
    ours = config.default()

    def theirs(**changes):
        monkeypatch.setattr(distributed, "gather", lambda mine: [mine, {**mine, **changes}])

    theirs()
    main.check_same(ours)
    theirs(**{"hosts.deadline_s": 5.0, "data.workers": 3})  # not among what is compared
    main.check_same(ours)
    theirs(seed=7)
    with pytest.raises(InputError, match=r"config.seed is \d+, 7; give all hosts the same command"):
        main.check_same(ours)


WAITS = """
import time
from rlvlm_jax import cli, config, distributed, main
def program(argv):
    distributed.supervise()
    hosts = config.default().hosts
    hosts.start_s, hosts.heartbeat_s = float(argv[0]), 10.0
    print("looking", flush=True)
    distributed.start(hosts)
    print("found", flush=True)
    time.sleep(60)
import signal
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, main.leave)
cli.exit_with(program)
"""


def waiting(start_s, count):
    """Starts so many of two processes; returns them."""
    env = {**os.environ, **ADDRESS, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    env["JAX_COORDINATOR_ADDRESS"] = f"localhost:{free_port()}"
    command = [sys.executable, "-u", "-c", WAITS, str(start_s)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [
        subprocess.Popen(command, env={**env, "JAX_PROCESS_ID": str(number)}, **pipes)
        for number in range(count)
    ]


@pytest.mark.slow
def test_a_process_that_finds_no_other_says_so():
    (alone,) = waiting(3, 1)
    output = alone.communicate(timeout=60)[0]
    assert alone.returncode == 1
    assert "the processes did not find each other within config.hosts.start_s" in output
    assert "lost contact" not in output


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_signal_is_answered_before_the_run_begins(count):
    """While a process looks for the others, and after it has found them."""
    processes = waiting(300, count)
    word = {1: "looking", 2: "found"}[count]
    for process in processes:
        while word not in process.stdout.readline():
            assert process.poll() is None
    time.sleep(1.0)  # it says so just before it looks
    begin = time.monotonic()
    for process in processes:
        process.send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [75] * count, outputs
    assert all("stopped before the run began" in output for output in outputs)
    assert time.monotonic() - begin < 30


# ---- alone -----------------------------------------------------------------------------------


def test_one_process_gathers_from_itself():
    assert distributed.gather({"a": 1}) == [{"a": 1}]
    assert distributed.together(lambda: 3) == [3]
    rows, values = np.array([0, 1]), ["a", "b"]
    assert distributed.gather_rows(rows, values, None, None) is values
    with pytest.raises(InputError, match="bad"):
        distributed.together(lambda: (_ for _ in ()).throw(InputError("bad")))


def test_rows_of_several_processes_are_put_in_order(monkeypatch):
    parts = [(np.array([2, 0]), ["c", "a"]), (np.array([3, 1]), ["d", "b"])]
    monkeypatch.setattr(distributed, "gather", lambda mine: parts)

    def join(parts):
        return [item for part in parts for item in part]

    found = distributed.gather_rows(*parts[0], join, lambda items, rows: [items[r] for r in rows])
    assert found == ["a", "b", "c", "d"]


# ---- two processes ---------------------------------------------------------------------------

TALK = """
import sys
from rlvlm_jax import config, distributed
from rlvlm_jax.errors import InputError
distributed.supervise()
distributed.start(config.default().hosts)
import jax, numpy as np
from rlvlm_jax import sharding
me = jax.process_index()
long = bytes([me]) * (600_000 * (me + 1))  # several chunks, of different lengths
assert distributed.gather(long) == [bytes([k]) * (600_000 * (k + 1)) for k in range(2)]
assert distributed.gather({"me": me}) == [{"me": 0}, {"me": 1}]
mesh = sharding.make_mesh(1, 2, 2)
assert sharding.rows_here(mesh, 8).tolist() == list(range(4 * me, 4 * me + 4))
assert sharding.rows_owned(mesh, 8).tolist() == list(range(4 * me, 4 * me + 4))
held = sharding.rows_here(mesh, 8)
x = sharding.put_rows(np.arange(16).reshape(8, 2)[held], 8, mesh)
assert sharding.to_host(x).tolist() == np.arange(16).reshape(8, 2).tolist()
assert sharding.take_here(x, held[1:3]).tolist() == np.arange(16).reshape(8, 2)[held[1:3]].tolist()
both = sharding.make_mesh(1, 1, 4)  # both hold all rows; each answers for half of them
assert sharding.rows_here(both, 8).tolist() == list(range(8))
assert sharding.rows_owned(both, 8).tolist() == list(range(4 * me, 4 * me + 4))
y = sharding.put_batch(np.arange(8), both)
assert sharding.take_here(y, np.array([5, 6])).tolist() == [5, 6]
try:
    sharding.make_mesh(1, 1, 2)
except InputError as error:
    assert "use all of them" in str(error)
def part():
    if me == 1:
        raise InputError("record 7 of host 1 is damaged")
def nested():  # the other one is already waiting for a second answer
    return distributed.together(part) if me == 0 else part()
try:
    distributed.together(nested)
except InputError as error:
    print(error)
    sys.exit(2)
"""


def talk(program, devices=2):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "XLA_FLAGS": flags}
    env |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    env["JAX_COORDINATOR_ADDRESS"] = f"localhost:{free_port()}"
    started = []
    for number in range(2):
        place = {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(number)}
        command = [sys.executable, "-c", program]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, env=env | place, **pipes))
    outputs = [process.communicate(timeout=120)[0] for process in started]
    return [process.returncode for process in started], outputs


def test_two_processes_talk_and_share_rows():
    statuses, outputs = talk(TALK)
    assert statuses == [2, 2], outputs
    assert all("record 7 of host 1 is damaged" in output for output in outputs)


FAIL = """
import sys, time
from rlvlm_jax import cli, config, distributed
def program(argv):
    distributed.supervise()
    hosts = config.default().hosts
    hosts.heartbeat_s = 10.0
    distributed.start(hosts)
    import jax
    if jax.process_index() == 1:
        raise ZeroDivisionError("here")
    distributed.gather(1)
cli.exit_with(program)
"""


@pytest.mark.slow
def test_a_failure_of_one_process_ends_both():
    begin = time.monotonic()
    statuses, outputs = talk(FAIL, devices=1)
    assert statuses == [1, 1], outputs
    assert "ZeroDivisionError: here" in outputs[1]
    assert all("Run the same command again on all hosts" in output for output in outputs)
    assert time.monotonic() - begin < 60
