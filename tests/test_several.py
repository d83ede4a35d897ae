# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whole runs of several processes: the same as of one, ended in many ways, and gone on with.

On more shapes, with more steps and kills: `python -m tests.processes`. All in one file, so in one
worker, as they keep what they have compiled for each other.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlvlm_jax import checkpoint
from tests import bucket
from tests.processes import (
    ROOT,
    assert_same_run,
    finish,
    free_port,
    kill_repeatedly,
    records,
    settings,
    start,
    until,
    wait_for,
)
from tests.run_cases import arguments, read_lines, write_problems

pytestmark = pytest.mark.slow
STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(compiled):
    """No process compiles what an earlier one has compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", compiled)
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("data"), count=24)


@pytest.fixture(scope="module")
def of_one(tmp_path_factory, data):
    """What one process of one device records in three steps."""
    run = tmp_path_factory.mktemp("of_one") / "run"
    keys = {"total_steps": 3, "eval_every": 3, "data__buckets": 1}
    assert finish(start(1, 1, arguments(run, **settings(data, **keys)))) == [0]
    return records(run)


@pytest.fixture(scope="module")
def keys():
    """Keys of a run on two processes that saves every step."""
    divided = {"mesh__fsdp": 2, "data__buckets": 1}
    return {**divided, "eval_every": 0, "checkpoint_every": 1, "total_steps": STEPS}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory, data, keys):
    """What two processes record in six steps that nothing interrupts."""
    run = tmp_path_factory.mktemp("of_two") / "run"
    assert finish(start(2, 1, arguments(run, **settings(data, **keys)))) == [0, 0]
    return records(run)


def test_a_run_is_the_same_on_any_number_of_processes_and_goes_on_on_another(
    tmp_path, data, of_one
):
    run = tmp_path / "run"
    keys = {"total_steps": 3, "eval_every": 3, "data__buckets": 1}
    divided = {"mesh__fsdp": 2, "mesh__sequence": 2} | keys | {"total_steps": 2}
    argv = arguments(run, **settings(data, **divided))
    assert finish(start(2, 2, argv, tmp_path / "log")) == [0, 0]
    argv = arguments(run, **settings(data, mesh__tensor=2, **keys))
    assert finish(start(1, 2, argv)) == [0]
    assert_same_run(records(run), of_one)


def test_a_signal_to_one_process_stops_all(tmp_path, data, keys):
    workdir = tmp_path / "run"
    keys = keys | {"checkpoint_every": 0, "total_steps": 60, "hosts__deadline_s": 0.5}
    argv = arguments(workdir, **settings(data, **keys))
    processes = start(2, 1, argv, tmp_path / "log")
    wait_for((workdir / "rollouts" / "2.jsonl").exists, processes)
    while processes[1].poll() is None:  # again and again, also while it leaves
        processes[1].send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert finish(processes) == [75, 75]
    reached = checkpoint.latest_step(workdir / "checkpoints")
    lines = read_lines(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, reached + 1))
    for number in range(2):
        said = (tmp_path / f"log.{number}").read_text()
        assert "run the same command again to resume" in said
        # The first step of a start takes longer than its deadline, and says where it is.
        assert "Timeout (0:00:00.500000)!" in said
        assert "rlvlm_jax/train.py" in said


def test_hosts_that_do_not_share_the_work_directory_are_refused(tmp_path, data, keys):
    processes, port = [], free_port()
    for number in range(2):
        run = tmp_path / f"disk{number}" / "run"
        argv = arguments(run, **settings(data, **keys, hosts__start_s=15))
        processes += start(2, 1, argv, tmp_path / "log", port=port, only=[number])
    assert finish(processes) == [2, 2]
    for number in range(2):
        said = (tmp_path / f"log.{number}").read_text()
        assert "process 1 does not see what the first one writes to" in said
    assert not list((tmp_path / "disk0" / "run" / "checkpoints").iterdir())


def test_a_killed_process_loses_no_step(tmp_path, data, keys, of_two):
    story = kill_repeatedly(1, tmp_path / "run", data, **keys)
    assert all(status in (0, 1) and seconds < 60 for *_, status, seconds in story), story
    assert records(tmp_path / "run") == of_two


# ---- hosts with addresses of their own, made of network namespaces; a cable that is pulled ------

NAMES, ADDRESSES = ("rlvlm-a", "rlvlm-b"), ("10.77.13.1", "10.77.13.2")


def ip(*words, check=True):
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


def cable(state):
    ip("-n", NAMES[0], "link", "set", "cable", state)


@pytest.fixture
def hosts():
    """[(address, command that runs another one there)] of two hosts."""
    if not shutil.which("ip") or not shutil.which("unshare") or os.geteuid():
        pytest.skip("network namespaces need root, and the commands ip and unshare")
    for name in NAMES:
        ip("netns", "del", name, check=False)
    if ip("netns", "add", NAMES[0], check=False).returncode:
        pytest.skip("this machine does not allow network namespaces")
    folders = [Path("/etc/netns") / name for name in NAMES]  # found by `ip netns exec`
    try:
        ip("netns", "add", NAMES[1])
        ends = [("cable", "netns", name) for name in NAMES]
        ip("link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
        for name, address, folder in zip(NAMES, ADDRESSES, folders, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            for device in ("cable", "lo"):
                ip("-n", name, "link", "set", device, "up")
            folder.mkdir(parents=True)
            lines = [f"{a} {n}\n" for n, a in zip(NAMES, ADDRESSES, strict=True)]
            (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        inside = ["unshare", "--uts", "sh", "-c", SHELL]
        yield [
            (address, ["ip", "netns", "exec", name, *inside, name])
            for name, address in zip(NAMES, ADDRESSES, strict=True)
        ]
    finally:
        for name, folder in zip(NAMES, folders, strict=True):
            ip("netns", "del", name, check=False)
            shutil.rmtree(folder, ignore_errors=True)


SHELL = 'hostname "$0"; exec "$@"'  # each has a name too, by which the other finds it


def test_hosts_that_lose_each_other_leave_and_go_on(tmp_path, data, keys, of_two, hosts):
    run = tmp_path / "run"
    argv = arguments(run, **settings(data, **keys, hosts__heartbeat_s=15))
    processes = start(2, 1, argv, tmp_path / "cut", hosts)
    wait_for((run / "rollouts" / "3.jsonl").exists, processes)
    cable("down")
    begin = time.monotonic()
    assert finish(processes, timeout_s=60) == [1, 1]
    assert time.monotonic() - begin < 60
    for number in range(2):
        said = (tmp_path / f"cut.{number}").read_text()
        assert "Run the same command again on all hosts" in said

    cable("up")
    assert finish(start(2, 1, argv, tmp_path / "again", hosts)) == [0, 0]
    assert records(run) == of_two


# ---- checkpoints in Google Cloud Storage ---------------------------------------------------------


@pytest.fixture
def served(monkeypatch):
    pytest.importorskip("gcsfs", reason="gs:// needs the package gcsfs: pip install -e '.[gcs]'")
    with bucket.serve() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


def test_a_run_goes_on_from_a_bucket_on_other_hosts(tmp_path, data, keys, of_one, served):
    there = f"gs://{bucket.NAME}/some/run"
    one, two = tmp_path / "one", tmp_path / "two"
    keys = keys | {"log__checkpoints": there, "eval_every": 3, "data__buckets": 2}
    argv = arguments(one, **settings(data, **keys | {"total_steps": 2}))
    assert finish(start(2, 1, argv, tmp_path / "log")) == [0, 0]
    assert not (one / "checkpoints").exists()
    assert_same_run(records(one), until(of_one, 2))
    steps = {name.split("/")[2] for name in served.objects if name.startswith("some/run/")}
    assert steps == {"1", "2"}

    # What a process that was killed while it wrote would have left.
    for name in list(served.objects):
        if name.startswith("some/run/2/") and "commit" not in name:
            served.put(name.replace("/2/", "/3/", 1), served.objects[name][1])
    argv = arguments(two, **settings(data, **keys | {"total_steps": 3, "mesh__fsdp": 1}))
    assert finish(start(1, 1, argv, tmp_path / "later")) == [0]
    said = (tmp_path / "later.0").read_text()
    assert f"{two} holds no records of the steps up to 2" in said
    lines, files = of_one
    last = {name: rows for name, rows in files.items() if Path(name).name.startswith("3.")}
    assert_same_run(records(two), ([line for line in lines if line["step"] == 3], last))

    out = tmp_path / "exported"
    command = ["-m", "rlvlm_jax.export", f"--checkpoint={there}", f"--out={out}"]
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT)
    assert (out / "config.json").exists()


def test_a_bucket_that_cannot_be_written_is_named_before_anything_is_lost(tmp_path, data, served):
    run = tmp_path / "run"
    argv = arguments(run, **settings(data, total_steps=1, log__checkpoints="gs://another/run"))
    assert finish(start(1, 1, argv, tmp_path / "log")) == [2]
    said = (tmp_path / "log.0").read_text().splitlines()[-1]
    assert "gs://another/run (it is not there)" in said
    assert not run.exists()
