# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Several processes of one run on this machine, connected as on several hosts.

    python -m tests.processes same --workdir=DIR

runs ten steps on 1 process of 1 device and on 2 x 4, 1 x 8 and 4 x 2, and goes on from what 2 x 4
has saved on 1 x 2 and on 4 x 2; then five with adapters, a divergence from the reference and a
filter that samples more, on 1 x 1 and 2 x 2. All records must be the same.

    python -m tests.processes kill --kills=20 --workdir=DIR

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

import pytest

from rlvlm_jax import checkpoint
from tests.run_cases import arguments, read_lines, write_problems

ROOT = Path(__file__).parents[1]
LOSSES, OTHERS = 1e-5, 1e-4  # how close numbers must be, absolutely or relatively
OF_THE_CLOCK = ("time/", "goodput/", "throughput/", "memory/", "compile/", "wall_s")


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(count, devices, argv, log=None, hosts=None, port=None, only=None):
    """Starts the command in `count` processes of so many devices.

    Args:
        count: of the processes.
        devices: of each.
        argv: flags of the command.
        log: names files for the output of each.
        hosts: (address, command that runs another one there) of each; None for this machine.
        port: of the first; None for a free one.
        only: the numbers of those to start; None for all.
    """
    port = port or free_port()
    hosts = hosts or [("localhost", [])] * count
    started, flags = [], os.environ.get("XLA_FLAGS", "")
    for number in range(count) if only is None else only:
        env = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
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
        "train__minibatch": 8,
        "eval__batch": 8,
        "total_steps": 10,
        "eval_every": 10,
        "checkpoint_every": 10,
        "log__writers": "()",
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


def kill_repeatedly(kills, workdir, data, seed=0, **keys):
    """Runs two processes, killing one in the middle, `kills` times; then lets them finish.

    Args:
        kills: how many.
        workdir: of the run.
        data: its records.
        seed: of which is killed, and when.
        **keys: of the run; a checkpoint at every step among them.

    Returns:
        [(which was killed, behind which step, status of the other, how long it stayed)].
    """
    rng = random.Random(seed)
    argv = arguments(workdir, **settings(data, hosts__heartbeat_s=10, **keys))
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


def assert_same_run(found, expected):
    """Metrics close to each other, responses token for token, each line once.

    Returns:
        The largest absolute difference of a loss.
    """
    (lines, files), (lines2, files2), largest = found, expected, 0.0
    assert [(a["phase"], a["step"]) for a in lines] == [(a["phase"], a["step"]) for a in lines2]
    for ours, theirs in zip(lines, lines2, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            if name == "update/useful_token_fraction":  # more devices share fewer prompts
                continue
            if isinstance(value, float):
                close = LOSSES if name.endswith("loss") else OTHERS
                assert value == pytest.approx(theirs[name], abs=close, rel=close), name
                if name.endswith("loss"):
                    largest = max(largest, abs(value - theirs[name]))
            else:
                assert value == theirs[name], name
    assert files.keys() == files2.keys()
    for name in files:
        for ours, theirs in zip(files[name], files2[name], strict=True):
            for key in ours.keys() - {"logprob_gap", "logprobs", "advantages"}:
                assert ours[key] == theirs[key], (name, key)
    return largest


def until(found, step):
    """What `records` gives of the first steps of a run."""
    lines, files = found
    return (
        [line for line in lines if line["step"] <= step],
        {name: rows for name, rows in files.items() if int(Path(name).name.split(".")[0]) <= step},
    )


def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


RICH = {  # what takes part in a step beside the least
    "rollout__samples": 4,
    "train__minibatch": 16,
    "train__lora_rank": 4,
    "train__lr": 1e-3,
    "algorithm__kl_loss_coef": 0.1,
    "algorithm__filter_low": 0.1,
    "algorithm__filter_high": 0.9,
    "algorithm__filter_refills": 2,
}
SHAPES = {  # a run of so many processes and devices of each: (keys, what it begins from)
    "1x1": ({}, None),
    "2x4": ({"mesh__data": 2, "mesh__fsdp": 4}, None),
    "1x8": ({"mesh__fsdp": 8}, None),
    "4x2": ({"mesh__data": 2, "mesh__fsdp": 2, "mesh__sequence": 2}, None),
    "2x4-begin": ({"mesh__data": 2, "mesh__fsdp": 4, "total_steps": 2}, None),
    "1x2-later": ({"mesh__fsdp": 2, "total_steps": 4}, "2x4-begin"),
    "4x2-later": ({"mesh__data": 4, "mesh__tensor": 2, "total_steps": 4}, "2x4-begin"),
    "1x1-rich": ({"total_steps": 5, **RICH}, None),
    "2x2-rich": ({"mesh__fsdp": 2, "mesh__tensor": 2, "total_steps": 5, **RICH}, None),
}


def same(workdir, data):
    """Runs on every shape and compares those of several devices with those of one."""
    for name, (keys, begun) in SHAPES.items():
        run = workdir / name
        if begun:
            shutil.copytree(workdir / begun, run)
        processes, devices = map(int, name[:3].split("x"))
        begin = time.monotonic()
        argv = arguments(run, **settings(data, **keys))
        status = finish(start(processes, devices, argv, run.with_suffix(".log")), 1800)
        assert status == [0] * processes, name
        seconds = time.monotonic() - begin
        if name.startswith("1x1") or name.endswith("begin"):
            continue
        expected = records(workdir / ("1x1-rich" if name.endswith("rich") else "1x1"))
        largest = assert_same_run(records(run), until(expected, keys.get("total_steps", 10)))
        count = sum(map(len, records(run)[1].values()))
        say(
            f"{name}: {count} responses the same token for token, largest difference of a loss "
            f"{largest:.1e}, {seconds:.0f} s"
        )
        if name.endswith("rich"):
            lines = [line for line in records(run)[0] if line["phase"] == "train"]
            rounds, trained = (
                [line[f"filter/{key}"] for line in lines] for key in ("rounds", "trained")
            )
            say(f"{name}: rounds {rounds}, groups trained on {trained}")
    return 0


def kill(workdir, data, kills, steps):
    """Kills and compares."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(workdir / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    plain, killed = workdir / "plain", workdir / "killed"
    keys = {"total_steps": steps, "eval_every": 0, "checkpoint_every": 1}
    keys["mesh__fsdp"] = 2
    assert finish(start(2, 1, arguments(plain, **settings(data, **keys)))) == [0, 0]
    for one in kill_repeatedly(kills, killed, data, **keys):
        say("process {} killed behind step {}; the other left with {} after {} s".format(*one))
    alike = records(plain) == records(killed)
    say(f"{kills} kills in {steps} steps; all records the same: {alike}")
    return 0 if alike else 1


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("same", "kill"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workdir", type=Path, required=True)
    given = parser.parse_args()
    shutil.rmtree(given.workdir, ignore_errors=True)
    data = write_problems(given.workdir / "data", count=24)
    if given.what == "same":
        return same(given.workdir, data)
    return kill(given.workdir, data, given.kills, given.steps)


if __name__ == "__main__":
    sys.exit(main())
