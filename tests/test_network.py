# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Two hosts with addresses of their own, made of network namespaces, and a cable that is pulled."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.processes import finish, records, settings, start, wait_for
from tests.run_cases import arguments, write_problems

NAMES, ADDRESSES = ("rlvlm-a", "rlvlm-b"), ("10.77.13.1", "10.77.13.2")
pytestmark = pytest.mark.slow


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


def test_hosts_that_lose_each_other_leave_and_go_on(tmp_path, compiled, hosts):
    data = write_problems(tmp_path / "data", count=24)
    keys = {"mesh__fsdp": 2, "eval_every": 0, "checkpoint_every": 1, "hosts__heartbeat_s": 15}
    keys["total_steps"] = 6
    whole, run = tmp_path / "whole", tmp_path / "run"
    argv = [arguments(w, **settings(data, **keys, compile_cache=compiled)) for w in (whole, run)]
    assert finish(start(2, 1, argv[0], tmp_path / "whole", hosts)) == [0, 0]

    log = tmp_path / "cut"
    processes = start(2, 1, argv[1], log, hosts)
    wait_for((run / "rollouts" / "3.jsonl").exists, processes)
    cable("down")
    begin = time.monotonic()
    assert finish(processes, timeout_s=60) == [1, 1]
    assert time.monotonic() - begin < 60
    for number in range(2):
        said = (tmp_path / f"cut.{number}").read_text()
        assert "Run the same command again on all hosts" in said

    cable("up")
    assert finish(start(2, 1, argv[1], tmp_path / "again", hosts)) == [0, 0]
    assert records(run) == records(whole)
