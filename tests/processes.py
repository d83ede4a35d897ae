# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Several processes of one run on this machine, connected as on several hosts.

    python -m tests.processes --kills=20 --workdir=DIR

kills one of two processes that many times in a row, at random times in some step, starts both again
each time, and compares what is left with a run that nothing interrupted.
"""

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from rlvlm_jax import checkpoint
from tests.run_cases import arguments, read_lines, write_problems

ROOT = Path(__file__).parents[1]
OF_THE_CLOCK = ("time/", "goodput/", "throughput/", "memory/", "compile/", "wall_s")


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(count, devices, argv, log=None, hosts=None):
    """Starts the command in `count` processes of so many devices.

    Args:
        count: of the processes.
        devices: of each.
        argv: flags of the command.
        log: names files for the output of each.
        hosts: (address, command that runs another one there) of each; None for this machine.
    """
    port = free_port()
    hosts = hosts or [("localhost", [])] * count
    started = []
    for number in range(count):
        env = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": str(ROOT),
        }
        if count > 1:
            env |= {
                "JAX_COORDINATOR_ADDRESS": f"{hosts[0][0]}:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(number),
            }
        command = [*hosts[number][1], sys.executable, "-m", "rlvlm_jax.main", *map(str, argv)]
        with Path(f"{log}.{number}" if log else os.devnull).open("w") as output:
            started.append(subprocess.Popen(command, env=env, stdout=output, stderr=output))
    return started


def finish(processes, timeout_s=600):
    """Returns the exit statuses."""
    try:
        return [process.wait(timeout_s) for process in processes]
    finally:
        for process in processes:
            process.kill()


def wait_for(condition, processes, timeout_s=300):
    """Waits until `condition()`; fails where a process ends before."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        assert all(process.poll() is None for process in processes), "a process has ended"
        time.sleep(0.02)


def records(workdir):
    """Returns what a run has recorded but for times: (metrics, responses by file)."""
    lines = [
        {name: value for name, value in line.items() if not name.startswith(OF_THE_CLOCK)}
        for line in read_lines(workdir / "metrics.jsonl")
    ]
    files = sorted([*(workdir / "rollouts").iterdir(), *(workdir / "eval").iterdir()])
    return lines, {str(file.relative_to(workdir)): read_lines(file) for file in files}


def settings(data, **keys):
    """What `arguments` takes for a run of ten steps whose batches divide over eight devices."""
    return {
        "data": data,
        "rollout__prompts": 8,
        "rollout__samples": 2,
        "update__minibatch": 8,
        "eval__batch": 8,
        "total_steps": 10,
        "eval_every": 10,
        "checkpoint_every": 10,
        "log__tensorboard": False,
        **keys,
    }


def reached(workdir):
    """Returns the step of the newest checkpoint, 0 for none."""
    return checkpoint.latest_step(workdir / "checkpoints") or 0


def has_gone_on(metrics, since, step):
    """Returns whether a run that was started at this time from this step has made another."""
    if not metrics.exists() or metrics.stat().st_mtime < since:  # a resumed run writes it anew
        return False
    return len(metrics.read_bytes().splitlines()) > step


def kill_repeatedly(kills, workdir, data, compiled, seed=0, steps=10):
    """Runs two processes, killing one in the middle, `kills` times; then lets them finish.

    Returns:
        [(which was killed, behind which step, status of the other, how long it stayed)].
    """
    rng = random.Random(seed)
    argv = arguments(
        workdir,
        **settings(
            data,
            mesh__fsdp=2,
            total_steps=steps,
            eval_every=0,
            checkpoint_every=1,
            hosts__heartbeat_s=10,
            compile_cache=compiled,
        ),
    )
    metrics, story = workdir / "metrics.jsonl", []
    for _ in range(kills):
        gone_on = partial(has_gone_on, metrics, time.time(), reached(workdir))
        processes = start(2, 1, argv, workdir.with_suffix(".log"))
        wait_for(gone_on, processes)
        time.sleep(rng.uniform(0, 3))
        victim = rng.randrange(2)
        processes[victim].send_signal(signal.SIGKILL)
        begin = time.monotonic()
        status = processes[1 - victim].wait(60)
        steps_done = len(metrics.read_bytes().splitlines())
        story.append((victim, steps_done, status, round(time.monotonic() - begin, 1)))
        finish(processes)
    assert finish(start(2, 1, argv, workdir.with_suffix(".log"))) == [0, 0]
    return story


def say(line):
    sys.stdout.write(line + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workdir", type=Path, required=True)
    given = parser.parse_args()
    shutil.rmtree(given.workdir, ignore_errors=True)
    data = write_problems(given.workdir / "data", count=24)
    compiled = str(given.workdir / "compiled")
    plain = given.workdir / "plain"
    keys = {"total_steps": given.steps, "eval_every": 0, "checkpoint_every": 1}
    argv = arguments(plain, **settings(data, mesh__fsdp=2, compile_cache=compiled, **keys))
    assert finish(start(2, 1, argv)) == [0, 0]
    killed = given.workdir / "killed"
    for one in kill_repeatedly(given.kills, killed, data, compiled, steps=given.steps):
        say("process {} killed behind step {}; the other left with {} after {} s".format(*one))
    same = records(plain) == records(killed)
    say(f"{given.kills} kills in {given.steps} steps; all records the same: {same}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
