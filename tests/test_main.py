# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The command from end to end: the run directory, resuming, signals, the other modes."""

import contextlib
import json
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import psutil
import pytest

from rlvlm_jax import VLM, checkpoint, export, main, recorder, rewards, run
from rlvlm_jax.evaluation import runs
from rlvlm_jax.models.common import lora
from tests import run_cases
from tests.run_cases import accuracy_by_reflection, read_lines, write_problems

OF_THE_CLOCK = ("time/", "goodput/", "throughput/", "memory/", "compile/", "wall_s")


def arguments(workdir, data, **keys):
    """The command line of a run, whose batches have one shape unless something else is said."""
    return run_cases.arguments(workdir, data, **{"data__buckets": 1, **keys})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """A run of six steps that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    assert main.main(arguments(workdir, data, total_steps=6)) == 0
    return workdir


def train_lines(workdir):
    lines = [line for line in read_lines(workdir / "metrics.jsonl") if line["phase"] == "train"]
    return [
        {name: value for name, value in line.items() if not name.startswith(OF_THE_CLOCK)}
        for line in lines
    ]


def made_or_read(line):
    """Programs compiled, or found on disk, up to a line of the metrics."""
    return line["compile/count"] + line.get("compile/from_disk", 0)


def final_parameters(workdir):
    state = checkpoint.restore_params(workdir / "checkpoints")
    return {
        jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def assert_same_run(one, other):
    assert train_lines(one) == train_lines(other)
    assert final_parameters(one) == final_parameters(other)


def start(workdir, data, compiled, **keys):
    """Starts the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "rlvlm_jax.main", *arguments(workdir, data, **keys)],
        env={
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": compiled,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, process, limit_s=240.0):
    end = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "the run makes no progress"
        time.sleep(0.02)


def status_of(process):
    """Waits for the process; returns its exit status, and shows what it wrote to stderr."""
    _, written = process.communicate(timeout=240)
    sys.stderr.write(written)
    return process.returncode


# ---- one run ---------------------------------------------------------------------------------


def test_the_directory_of_a_run(finished, data):
    about = json.loads((finished / "config.json").read_text())
    assert about["config"]["data"]["train"] == str(data)
    assert about["config"]["seed"] == 0
    assert about["device_kind"]
    assert about["attention"] == "plain"
    assert about["judge_version"] == rewards.JUDGE_VERSION
    assert {"jax", "rlvlm_jax"} <= set(about["versions"])
    lines = read_lines(finished / "metrics.jsonl")
    phases = [(line["phase"], line["step"]) for line in lines]
    steps = [("train", step) for step in range(1, 7)]
    assert phases == [
        *[("eval", 0), *steps[:2], ("eval", 2), *steps[2:4]],
        *[("eval", 4), *steps[4:], ("eval", 6)],
    ]
    assert all(isinstance(line["wall_s"], float) for line in lines)
    assert sorted(int(path.name) for path in (finished / "checkpoints").iterdir()) == [4, 6]
    evaluated = read_lines(finished / "eval" / "6.val.pass@1_t0.01.jsonl")
    assert [row["id"] for row in evaluated] == [f"p{n}" for n in range(12)]
    assert {row["judge_version"] for row in evaluated} == {rewards.JUDGE_VERSION}
    rate = np.mean([row["correct"] for row in evaluated])
    assert lines[-1]["eval/val/pass@1_t0.01"] == pytest.approx(rate)


def test_names_and_values_of_the_metrics(finished):
    line = train_lines(finished)[-1]
    expected = {
        *("reward/score", "reward/accuracy", "response/length", "response/truncated_fraction"),
        *("update/loss", "update/policy_loss", "update/entropy", "update/clip_fraction"),
        *("update/ratio_mean", "update/grad_norm", "update/lr", "rollout/logprob_gap_mean"),
        *("rollout/logprob_gap_max", "filter/kept_fraction", "judge/timeouts"),
        *("judge/unparsable", "reflection/ratio"),
    }
    assert expected <= set(line)
    assert "update/kl" not in line  # no reference was asked for
    assert line["epoch"] == pytest.approx(6 * 4 / 12)
    assert "epoch/train_accuracy" in line  # the second epoch ends with step 6
    assert line["rollout/logprob_gap_mean"] < 1e-6
    assert line["rollout/logprob_gap_max"] < 1e-5


def test_rollouts_are_complete(finished, data):
    rows = read_lines(finished / "rollouts" / "3.jsonl")
    assert len(rows) == 8
    for row in rows:
        assert {"id", "question", "solution", "response", "rewards", "reflective"} <= set(row)
        assert Path(row["image"]).samefile(data.parent / f"{row['id'][1:]}.png")
        assert 0 < row["tokens"] <= 8
        assert row["judge"] in ("ok", "unparsable", "timeout", "no_answer")
        assert 0 <= row["logprob_gap"] < 1e-5
        assert isinstance(row["correct"], bool)
        assert isinstance(row["truncated"], bool)
    assert [rows[2 * k]["id"] for k in range(4)] == [rows[2 * k + 1]["id"] for k in range(4)]
    line = next(x for x in read_lines(finished / "metrics.jsonl") if x["step"] == 3)
    assert line["response/truncated_fraction"] == np.mean([row["truncated"] for row in rows])


def test_tokens_of_the_first_prompts(finished):
    rows = read_lines(finished / "rollouts" / "2.jsonl")
    assert len(rows) <= 2 * recorder.TOKEN_PROMPTS  # so all have them
    for row in rows:
        assert len(row["pieces"]) == len(row["logprobs"]) == len(row["advantages"]) == row["tokens"]
        assert "".join(row["pieces"]) == row["response"]
        assert max(row["logprobs"]) <= 0.0
        assert len(set(row["advantages"])) == 1  # of the group, the same for every token


def test_numbers_that_hold_together(finished):
    for line in read_lines(finished / "metrics.jsonl"):
        if line["phase"] == "train":
            accuracy = accuracy_by_reflection(line)
            assert accuracy == pytest.approx(line["reward/accuracy"], abs=1e-6), line["step"]


def test_later_steps_and_evaluations_compile_nothing(finished):
    counts = [made_or_read(line) for line in read_lines(finished / "metrics.jsonl")[1:]]
    assert len(counts) == 9
    assert len(set(counts)) == 1


def test_an_epoch_sees_every_problem_once(finished):
    for first in (1, 4):
        seen = [
            row["id"]
            for step in range(first, first + 3)
            for row in read_lines(finished / "rollouts" / f"{step}.jsonl")[::2]
        ]
        assert sorted(seen) == sorted(f"p{n}" for n in range(12))


@pytest.mark.slow
def test_no_image_size_compiles_anything_after_the_first_step(tmp_path):
    """40 images of random sizes, 10 steps an epoch; two static shapes."""
    data = write_problems(tmp_path / "many", count=40, seed=1)
    workdir = tmp_path / "run"
    keys = {"data__buckets": 2, "total_steps": 14, "eval_every": 0, "data__val": ""}
    assert main.main(arguments(workdir, data, **keys)) == 0
    counts = [made_or_read(line) for line in read_lines(workdir / "metrics.jsonl")]
    assert len(counts) == 14
    assert len(set(counts)) == 1


@pytest.mark.slow
def test_packed_streams_and_two_shapes_change_the_work_and_not_the_numbers(
    tmp_path, data, finished
):
    settings = {"total_steps": 3, "train__pack_tokens": 160, "data__buckets": 2}
    assert main.main(arguments(tmp_path, data, **settings)) == 0
    packed, rows = train_lines(tmp_path), train_lines(finished)
    share = "update/useful_token_fraction"
    for step, (one, other) in enumerate(zip(packed, rows[:3], strict=True), start=1):
        assert 0 < other.pop(share) < 1
        assert 0 < one.pop(share) < 1
        assert one.keys() == other.keys()
        assert one.pop("phase") == other.pop("phase")
        for name in one if step == 1 else ():  # of the same parameters
            assert one[name] == pytest.approx(other[name], abs=1e-5, rel=1e-5), name
    assert len({made_or_read(line) for line in read_lines(tmp_path / "metrics.jsonl")[1:]}) == 1


@pytest.mark.slow
def test_a_packed_run_is_resumed(tmp_path, data):
    settings = {"train__pack_tokens": 160, "train__epochs": 2, "eval_every": 0}
    for steps in (2, 4):
        assert main.main(arguments(tmp_path / "a", data, total_steps=steps, **settings)) == 0
    assert main.main(arguments(tmp_path / "b", data, total_steps=4, **settings)) == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.fixture(scope="module")
def without_cache(tmp_path_factory, data):
    """The run `finished` with the tower run at every step."""
    workdir = tmp_path_factory.mktemp("runs") / "without"
    keys = {"total_steps": 6, "data__feature_cache_gib": 0.0}
    assert main.main(arguments(workdir, data, **keys)) == 0
    return workdir


@pytest.mark.slow
def test_features_from_the_host_change_no_bit_of_a_run(without_cache, finished):
    assert_same_run(without_cache, finished)
    files = sorted(path.name for path in (without_cache / "eval").iterdir())
    assert len(files) == 4
    for name in files:
        assert read_lines(without_cache / "eval" / name) == read_lines(finished / "eval" / name)


@pytest.mark.slow
def test_from_the_second_epoch_on_all_features_are_from_the_host(without_cache, finished):
    without, with_cache = (
        [line for line in read_lines(run / "metrics.jsonl") if line["phase"] == "train"]
        for run in (without_cache, finished)
    )
    hits = [line["memory/feature_cache_hits"] for line in with_cache]
    assert hits[3:] == [1.0] * 3
    assert with_cache[-1]["memory/feature_cache_gib"] > 0
    assert not any("memory/feature_cache_hits" in line for line in without)


# ---- resuming --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, data, finished, monkeypatch):
    for steps, judge in ((2, 7), (6, 8), (6, 9)):  # the last finds nothing left to do
        monkeypatch.setattr(rewards, "JUDGE_VERSION", judge)
        assert main.main(arguments(tmp_path, data, total_steps=steps)) == 0
    assert_same_run(tmp_path, finished)
    resumed = runs.read_run(tmp_path)
    assert resumed.about["judge_version"] == 9
    assert resumed.judge_versions == (7, 8)  # evaluations keep the one that decided them


@pytest.mark.slow
def test_sigterm_saves_and_exits_75_and_the_run_goes_on(tmp_path, data, compiled, finished, capsys):
    process = start(tmp_path, data, compiled, total_steps=6, checkpoint_every=0)
    wait_for((tmp_path / "rollouts" / "1.jsonl").exists, process)
    process.send_signal(signal.SIGTERM)
    assert status_of(process) == 75
    assert f"run the same command again to resume in {tmp_path}" in capsys.readouterr().err
    reached = checkpoint.latest_step(tmp_path / "checkpoints")
    assert reached == train_lines(tmp_path)[-1]["step"]
    assert reached < 6
    assert main.main(arguments(tmp_path, data, total_steps=6, checkpoint_every=0)) == 0
    assert_same_run(tmp_path, finished)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_run_begins_is_exit_75_too(tmp_path, data, compiled, number, capsys):
    process = start(tmp_path / "run", data, compiled)
    caught = 1 << (signal.SIGTERM - 1)  # by the program, as Linux tells

    def is_ready():
        state = Path(f"/proc/{process.pid}/status").read_text()
        return int(re.search(r"SigCgt:\s*(\w+)", state)[1], 16) & caught

    wait_for(is_ready, process)
    process.send_signal(number)
    assert status_of(process) == 75
    assert "stopped before the run began" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 4])
def test_an_evaluation_that_was_cut_off_is_made_up_for(tmp_path, data, finished, monkeypatch, at):
    record = run.Run.record_evaluations

    def interrupted(self, *arguments):
        if self._position.step == at:
            signal.raise_signal(signal.SIGTERM)
        record(self, *arguments)

    monkeypatch.setattr(run.Run, "record_evaluations", interrupted)
    assert main.main(arguments(tmp_path, data, total_steps=6)) == 75
    assert checkpoint.latest_step(tmp_path / "checkpoints") == at
    monkeypatch.undo()
    assert main.main(arguments(tmp_path, data, total_steps=6)) == 0
    assert_same_run(tmp_path, finished)
    one, other = (
        [line for line in read_lines(place / "metrics.jsonl") if line["phase"] == "eval"]
        for place in (tmp_path, finished)
    )
    name = "eval/val/pass@1_t0.01"
    assert [(a["step"], a[name]) for a in one] == [(b["step"], b[name]) for b in other]


@pytest.mark.slow
def test_sigkill_at_random_moments_loses_nothing(tmp_path, data, compiled, finished):
    moment = random.Random(0)
    keys = {"total_steps": 6, "checkpoint_every": 1}
    for file in ("metrics.jsonl", "rollouts/2.jsonl", "rollouts/4.jsonl"):
        process = start(tmp_path, data, compiled, **keys)
        wait_for((tmp_path / file).exists, process)
        time.sleep(moment.uniform(0.0, 0.5))
        process.kill()
        assert status_of(process) == -signal.SIGKILL
    assert status_of(start(tmp_path, data, compiled, **keys)) == 0
    assert_same_run(tmp_path, finished)


# ---- the same program elsewhere --------------------------------------------------------------


@pytest.mark.slow
def test_eight_devices_write_the_same_responses(tmp_path, data, finished):
    keys = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
    assert main.main(arguments(tmp_path, data, total_steps=1, eval_every=0, **keys)) == 0
    one, other = (read_lines(place / "rollouts" / "1.jsonl") for place in (finished, tmp_path))
    assert [row["response"] for row in one] == [row["response"] for row in other]
    a, b = train_lines(finished)[0], train_lines(tmp_path)[0]
    for name in ("update/loss", "update/entropy", "reward/score"):
        assert b[name] == pytest.approx(a[name], abs=1e-5), name
    assert b["update/grad_norm"] == pytest.approx(a["update/grad_norm"], rel=1e-4)


def test_evaluation_of_a_checkpoint(tmp_path, data, finished, monkeypatch):
    monkeypatch.chdir(data.parent)
    keys = {"mode": "eval", "model__path": finished / "checkpoints"}
    assert main.main(arguments(tmp_path, data.name, **keys)) == 0
    (row, *_) = read_lines(tmp_path / "eval" / "0.val.pass@1_t0.01.jsonl")
    assert row["image"] == str(data.parent / "0.png")  # found from anywhere
    (line,) = read_lines(tmp_path / "metrics.jsonl")
    last = read_lines(finished / "metrics.jsonl")[-1]
    assert line["phase"] == "eval"
    assert line["eval/val/pass@1_t0.01"] == last["eval/val/pass@1_t0.01"]
    assert not (tmp_path / "checkpoints").exists() or not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.slow
def test_supervised_training_learns_the_solutions(tmp_path, data):
    keys = {
        "mode": "sft",
        "rollout__max_tokens": 16,
        "train__minibatch": 12,
        "train__lr": 1e-3,
        "total_steps": 6,
        "checkpoint_every": 3,
        "eval_every": 0,
    }
    assert main.main(arguments(tmp_path, data, **keys)) == 0
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [(line["phase"], line["step"]) for line in lines] == [("sft", k) for k in range(1, 7)]
    assert lines[-1]["update/loss"] < 0.8 * lines[0]["update/loss"]
    assert checkpoint.latest_step(tmp_path / "checkpoints") == 6


@pytest.mark.slow
def test_mixed_styles_of_the_bundled_problems(tmp_path):
    keys = {
        "mode": "sft",
        "rollout__max_tokens": 32,
        "sft__direct_share": 0.6,
        "total_steps": 2,
        "eval_every": 0,
        "data__val": "",
    }
    assert main.main(arguments(tmp_path, "bundled:train:64", **keys)) == 0
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert np.isfinite([line["update/loss"] for line in lines]).all()


@pytest.mark.slow
def test_several_seeds_of_a_recipe(tmp_path, data):
    keys = {"seeds": 2, "seed": 5, "total_steps": 2}
    assert main.main(arguments(tmp_path, data, **keys)) == 0
    one, other = tmp_path / "seed_5", tmp_path / "seed_6"
    for place, seed in ((one, 5), (other, 6)):
        config = json.loads((place / "config.json").read_text())["config"]
        assert (config["seed"], config["seeds"]) == (seed, 1)
    orders = [[row["id"] for row in read_lines(p / "rollouts" / "1.jsonl")] for p in (one, other)]
    assert orders[0] != orders[1]
    summary = (tmp_path / "summary.json").read_text()
    found = json.loads(summary)
    assert found["seeds"] == [5, 6]
    at_start = [read_lines(p / "metrics.jsonl")[0]["eval/val/pass@1_t0.01"] for p in (one, other)]
    assert found["accuracy"]["val/pass@1_t0.01"]["initial"] == pytest.approx(np.mean(at_start))
    lines = [train_lines(place) for place in (one, other)]
    assert main.main(arguments(tmp_path, data, **keys)) == 0  # nothing is left to do
    assert [train_lines(place) for place in (one, other)] == lines
    assert (tmp_path / "summary.json").read_text() == summary


# ---- what a step trains on, and what is trained -------------------------------------------------


@pytest.mark.slow
def test_batches_are_refilled_and_a_resumed_run_stays_equal(tmp_path):
    """The bundled problems, of which the model solves some, so that groups are left out."""
    keys = {
        "data__val": "",
        "eval_every": 0,
        "rollout__max_tokens": 24,
        "rollout__samples": 4,
        "algorithm__filter_low": 0.1,
        "algorithm__filter_high": 0.9,
        "algorithm__filter_refills": 2,
        "total_steps": 4,
    }
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    data = "bundled:train:40"
    assert main.main(arguments(whole, data, **keys)) == 0
    for steps in (2, 4):
        assert main.main(arguments(cut, data, **{**keys, "total_steps": steps})) == 0
    assert_same_run(cut, whole)
    lines = train_lines(whole)
    rounds = [line["filter/rounds"] for line in lines]
    assert set(rounds) <= {1, 2, 3}
    assert max(rounds) > 1
    consumed = 0
    for line in lines:
        rows = read_lines(whole / "rollouts" / f"{line['step']}.jsonl")
        assert len(rows) == 16 * line["filter/rounds"]
        groups = np.array([row["correct"] for row in rows]).reshape(-1, 4)
        mixed = groups.any(axis=1) & ~groups.all(axis=1)
        trained = np.array([row["trained"] for row in rows]).reshape(-1, 4).any(axis=1)
        assert not trained[~mixed].any()
        assert trained.sum() == min(4, mixed.sum()) == line["filter/trained"]
        assert mixed.sum() - trained.sum() == line["filter/surplus"]
        assert line["reward/accuracy"] == pytest.approx(groups.mean())  # of all that was sampled
        consumed += 4 * line["filter/rounds"]
        assert line["epoch"] == pytest.approx(consumed / 40)


@pytest.mark.slow
def test_adapters_are_trained_resumed_evaluated_and_exported(tmp_path, data):
    keys = {
        "train__lora_rank": 2,
        "train__parts": "('vit','llm','head')",
        "train__lr": 1e-2,
        "total_steps": 4,
    }
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main.main(arguments(whole, data, **keys)) == 0
    for steps in (2, 4):
        assert main.main(arguments(cut, data, **{**keys, "total_steps": steps})) == 0
    assert_same_run(cut, whole)
    trained = checkpoint.restore_params(whole / "checkpoints")
    bundled = VLM.from_pretrained("bundled").params
    same = jax.tree.map(np.array_equal, lora.drop(trained), bundled)
    assert all(jax.tree.leaves(same))  # the weights themselves are frozen
    sizes = json.loads((whole / "config.json").read_text())["sizes"]
    weights = sum(x.size for x in jax.tree.leaves(bundled))
    adapters = sum(x.size for x in jax.tree.leaves(trained)) - weights
    assert sizes["parameters"] == weights + adapters
    assert 0 < sizes["trained_parameters"] <= adapters  # all but the fixed scales
    assert 8 * sizes["trained_parameters"] <= sizes["optimizer_bytes"] < 0.2 * 8 * weights
    moved = [np.abs(x).max() for x in jax.tree.leaves(trained["vision"]["blocks"]["attn"])]
    assert max(moved) > 0

    out = tmp_path / "hf"
    assert export.main([f"--checkpoint={whole / 'checkpoints'}", f"--out={out}"]) == 0
    merged = VLM.from_pretrained(out)
    image = {"type": "image", "image": str(data.parent / "0.png")}
    content = [image, {"type": "text", "text": "What is 2 + 3?"}]
    prompts = [{"messages": [{"role": "user", "content": content}]}]
    with_adapters = VLM.from_pretrained(whole / "checkpoints")
    tokens = [[5, 6, 7, 8]]
    one, other = (model.logprobs(prompts, tokens)[0] for model in (merged, with_adapters))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    untrained = VLM.from_pretrained("bundled").logprobs(prompts, tokens)[0]
    assert np.abs(one - untrained).max() > 1e-3

    again = tmp_path / "eval"
    asked = {"mode": "eval", "model__path": whole / "checkpoints"}
    assert main.main(arguments(again, data, **asked)) == 0
    (line,) = read_lines(again / "metrics.jsonl")
    last = read_lines(whole / "metrics.jsonl")[-1]
    assert line["eval/val/pass@1_t0.01"] == last["eval/val/pass@1_t0.01"]


# ---- rewards that do not come back --------------------------------------------------------------

FAULTY = """
import os, time, zlib

FAULTS = ("hangs", "raises", "eats", "dies", "not a number")

def fault(response):
    place = zlib.crc32(response.encode()) % 10
    return FAULTS[place] if place < len(FAULTS) else ""

def reward(response, example):
    what = fault(response)
    if what == "hangs":
        time.sleep(600)
    if what == "raises":
        raise ValueError(response)
    if what == "eats":
        bytearray(6 << 30)
    if what == "dies":
        os._exit(1)
    return float("nan") if what == "not a number" else -0.25
"""


@pytest.mark.slow
def test_training_goes_on_beside_workers_that_hang_raise_eat_die_and_are_killed(
    tmp_path, monkeypatch
):
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.chdir(tmp_path)
    ended, killed = threading.Event(), []

    def kill_workers():
        while len(killed) < 4 and not ended.wait(3.0):
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended by itself
                    if "spawn_main" in " ".join(child.cmdline()):
                        child.kill()
                        killed.append(child.pid)
                        break

    killer = threading.Thread(target=kill_workers)
    killer.start()
    asked = {
        "rewards__custom": "faulty:reward",
        "rewards__deadline_s": 0.5,
        "rewards__workers": 2,
        "rewards__penalty": 0.0,
        "rewards__rules__language": 0.0,
        "rollout__prompts": 8,
        "rollout__samples": 4,
        "rollout__max_tokens": 16,
        "train__minibatch": 16,
        "data__val": "",
        "eval_every": 0,
        "total_steps": 3,
    }
    try:
        assert main.main(arguments(tmp_path / "run", "bundled:train:64", **asked)) == 0
    finally:
        ended.set()
        killer.join()
        sys.modules.pop("faulty", None)
        sys.path.remove(str(tmp_path))
    assert killed
    fault = runpy.run_path(str(tmp_path / "faulty.py"))["fault"]
    met = set()
    lines = train_lines(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        rows = read_lines(tmp_path / "run" / "rollouts" / f"{line['step']}.jsonl")
        faults = [fault(row["response"]) for row in rows]
        met.update(faults)
        assert {row["rewards"]["custom"] for row in rows} == {-0.25}  # a failure is no better
        lost = sum(map(("hangs", "dies").count, faults))
        assert line["judge/timeouts"] == lost
        assert line["judge/custom_errors"] == len(faults) - lost - faults.count("")
        scores = [row["rewards"]["accuracy"] - 0.25 for row in rows]
        assert line["reward/score"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert met == {"", "hangs", "raises", "eats", "dies", "not a number"}
    assert not [c for c in psutil.Process().children() if "spawn_main" in " ".join(c.cmdline())]
