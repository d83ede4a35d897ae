# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A run's files: whole lines, strict JSON, and no step twice or missing after a crash."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rlvlm_jax.errors import InputError
from rlvlm_jax.run_directory import RunDirectory


def steps(path):
    """The steps in metrics.jsonl, read as strict JSON."""
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail)["step"] for line in lines]


def filled(path, last, every=2):
    """A run of `last` steps that evaluates every second step, as a loop writes it."""
    run = RunDirectory(path)
    for step in range(1, last + 1):
        run.write_rollouts(step, [{"id": step}])
        run.append("train", step, step / 10, {"reward/score": 0.5})
        if step % every == 0:
            run.write_evaluation(step, "val", "pass@1_t0.01", [{"id": step}])
            run.append("eval", step, step / 10, {"eval/val/pass@1_t0.01": 0.25})
    return run


SHORT = """
import resource, sys
from rlvlm_jax.run_directory import RunDirectory
run = RunDirectory(sys.argv[1])
run.append("train", 1, 0.1, {"reward/score": 0.5})
size = (run.path / "metrics.jsonl").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))
try:
    run.append("train", 2, 0.2, {"reward/score": 0.5})
except OSError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
run.append("train", 3, 0.3, {"reward/score": 0.5})
"""


def test_a_line_that_does_not_fit_on_the_disk_is_not_written_by_half(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", SHORT, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "No space left on device" in ran.stdout
    assert steps(tmp_path) == [1, 3]


def test_goodput_counts_interruptions_and_lost_steps(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("rlvlm_jax.run_directory.time.time", lambda: now[0])
    run = RunDirectory(tmp_path)
    run.trim(None)
    run.write_config({})
    for step, wait in ((1, 30.0), (2, 10.0)):
        now[0] += wait
        found = run.goodput(10.0)
        run.append("train", step, 0.1, {"time/step_s": 10.0})
    assert found == 20 / 40

    now[0] += 50.0  # step 2 was not in a checkpoint, and the run stood still
    again = RunDirectory(tmp_path)
    again.trim(1)
    again.write_config({})
    now[0] += 10.0
    assert again.goodput(10.0) == 20 / 100


def test_goodput_counts_from_the_start_of_the_program_and_what_was_lost_before_a_checkpoint(
    tmp_path, monkeypatch
):
    now = [1030.0]
    monkeypatch.setattr("rlvlm_jax.run_directory.time.time", lambda: now[0])
    for began in (1000.0, 1095.0):  # the second goes on with nothing
        run = RunDirectory(tmp_path, began)
        run.trim(None)
        run.write_config({})
        now[0] += 10.0
        found = run.goodput(10.0)
        run.append("train", 1, 0.1, {"time/step_s": 10.0})
        now[0] = 1100.0
    assert found == 10 / 110


def files(path, folder):
    return sorted(file.name for file in (path / folder).iterdir())


def test_lines_and_files_have_the_documented_names_and_content(tmp_path):
    run = filled(tmp_path / "new" / "run", 2)
    run.write_config({"config": {"seed": 1}, "git_revision": None})
    assert json.loads((run.path / "config.json").read_text())["config"] == {"seed": 1}
    train, _, evaluation = map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())
    assert train.pop("wall_s") >= 0
    assert train == {"phase": "train", "step": 1, "epoch": 0.1, "reward/score": 0.5}
    assert evaluation["phase"] == "eval"
    assert evaluation["eval/val/pass@1_t0.01"] == 0.25
    assert files(run.path, "rollouts") == ["1.jsonl", "2.jsonl"]
    assert files(run.path, "eval") == ["2.val.pass@1_t0.01.jsonl"]
    assert json.loads((run.path / "rollouts" / "2.jsonl").read_text()) == {"id": 2}


def test_texts_of_any_kind_stay_one_line_each(tmp_path):
    texts = [
        "two\nlines",
        "tab\t",
        "\u2028 \u2029 \x85 \x0b",
        "\u00e9\u4f60 \U0001f600",
        "\ud800",
        '"\\',
    ]
    run = RunDirectory(tmp_path)
    run.write_rollouts(1, [{"response": text} for text in texts])
    content = (tmp_path / "rollouts" / "1.jsonl").read_bytes().decode()
    assert [json.loads(line)["response"] for line in content.splitlines()] == texts
    assert content.count("\n") == len(texts)
    assert "\u4f60 \U0001f600" in content  # readable as it is


@pytest.mark.parametrize("checkpointed", [1, 2, 3, 4, 5])
def test_trim_and_go_on_gives_every_step_once(tmp_path, checkpointed):
    filled(tmp_path, 5)
    run = RunDirectory(tmp_path)
    run.trim(checkpointed)
    assert max(steps(tmp_path)) == checkpointed
    assert files(tmp_path, "rollouts") == [f"{s}.jsonl" for s in range(1, checkpointed + 1)]
    assert all(int(name.split(".")[0]) <= checkpointed for name in files(tmp_path, "eval"))
    for step in range(checkpointed + 1, 8):
        run.append("train", step, 0.0, {})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["phase"] == "train"] == list(range(1, 8))


def test_trim_without_a_checkpoint_removes_all_records(tmp_path):
    filled(tmp_path, 3)
    RunDirectory(tmp_path).trim(None)
    assert steps(tmp_path) == []
    assert files(tmp_path, "rollouts") == files(tmp_path, "eval") == []


def test_trim_of_a_new_directory_does_nothing(tmp_path):
    RunDirectory(tmp_path).trim(None)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_trim_keeps_what_it_did_not_write(tmp_path):
    run = filled(tmp_path, 2)
    (tmp_path / "rollouts" / "notes.txt").write_text("mine")
    run.trim(None)
    assert files(tmp_path, "rollouts") == ["notes.txt"]


@pytest.mark.parametrize(
    "tail", [b'{"phase": "train", "st', b"\xe4\xbd", b'{"phase": "train", "step": 4}']
)
def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path, tail):
    filled(tmp_path, 3)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(tail)  # no line end: the crash came in between
    run = RunDirectory(tmp_path)
    run.trim(3)
    run.append("train", 4, 0.0, {})
    assert steps(tmp_path) == [1, 2, 2, 3, 4]


def test_a_file_cut_off_by_a_crash_is_not_seen_and_goes_away(tmp_path):
    run = filled(tmp_path, 2)

    def rows():
        yield {"id": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.write_rollouts(2, rows())
    assert json.loads((tmp_path / "rollouts" / "2.jsonl").read_text()) == {"id": 2}
    (tmp_path / "rollouts" / ".3.jsonl.partial").write_text('{"id"')
    run.trim(2)
    assert files(tmp_path, "rollouts") == ["1.jsonl", "2.jsonl"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("-inf")])
def test_undefined_numbers_are_absent(tmp_path, value):
    run = RunDirectory(tmp_path)
    run.append("train", 1, 0.0, {"update/loss": value, "update/kl": None, "update/lr": 0.0})
    run.write_rollouts(1, [{"image": None, "logprob_gap": value, "rewards": {"x": value, "y": 1}}])
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert set(line) == {"phase", "step", "epoch", "wall_s", "update/lr"}
    row = json.loads((tmp_path / "rollouts" / "1.jsonl").read_text())
    assert row == {"image": None, "rewards": {"y": 1}}


@pytest.mark.parametrize("name", ["step", "", "update/", "/loss", "update/two\nlines"])
def test_a_metric_cannot_be_named_like_anything_else(tmp_path, name):
    run = RunDirectory(tmp_path)
    with pytest.raises(ValueError, match="no metric name"):
        run.append("train", 1, 0.0, {name: 1.0})
    assert not (tmp_path / "metrics.jsonl").exists()


KILLED = """
import sys
from rlvlm_jax.run_directory import RunDirectory
run = RunDirectory(sys.argv[1])
print("go", flush=True)
for step in range(1, 100000):
    run.append("train", step, 0.0, {f"name/{i}": i / 7 for i in range(200)})
"""


def test_after_a_kill_every_line_is_whole(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        process.stdout.readline()
        while not (tmp_path / "metrics.jsonl").exists() or len(steps_of(tmp_path)) < 20:
            assert process.poll() is None
        process.kill()
    RunDirectory(tmp_path).trim(15)
    assert steps(tmp_path) == list(range(1, 16))


def steps_of(path):
    return (path / "metrics.jsonl").read_bytes().splitlines()


def test_equal_images_are_written_once_and_different_ones_apart(tmp_path):
    run = RunDirectory(tmp_path)
    first = run.write_image(b"\x89PNG data")
    assert (tmp_path / first).read_bytes() == b"\x89PNG data"
    assert (tmp_path / first).resolve().is_relative_to(tmp_path / "images")
    assert first.endswith(".png")
    assert run.write_image(b"\x89PNG data") == first
    other = run.write_image(b"\x89PNG other")
    assert other != first
    assert (tmp_path / other).read_bytes() == b"\x89PNG other"
    assert run.write_image(b"\xff\xd8 data").endswith(".jpg")


def test_what_has_been_recorded_is_known(tmp_path):
    run = RunDirectory(tmp_path)
    assert not run.has("eval", 0)
    run.append("eval", 0, 0.0, {})
    run.append("train", 1, 0.1, {})
    assert [run.has(*line) for line in (("eval", 0), ("train", 1), ("eval", 1))] == [1, 1, 0]


def test_a_directory_that_cannot_be_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="--workdir=.*file"):
            RunDirectory(target)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        RunDirectory(tmp_path / "run")


def test_a_foreign_metrics_file_is_refused_in_one_sentence(tmp_path):
    for line in ("not json", "[1]", '{"phase": "train"}', '{"step": "x"}', ""):
        (tmp_path / "metrics.jsonl").write_text(f'{{"phase": "train", "step": 1}}\n{line}\n')
        with pytest.raises(InputError, match=r"metrics.jsonl, line 2"):
            RunDirectory(tmp_path).trim(5)


@pytest.mark.parametrize("content", ["", '{"config": {', "[1]", "null"])
def test_a_damaged_configuration_is_refused_in_one_sentence(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config.json: expected a JSON object; remove the file"):
        RunDirectory(tmp_path).trim(None)


def test_scalars_of_numpy_and_jax_are_accepted(tmp_path):
    values = {
        "a/f": np.float32(0.25),
        "a/i": np.int32(3),
        "a/b": np.bool_(True),
        "a/j": jnp.ones(()),
    }
    RunDirectory(tmp_path).append("train", np.int64(1), np.float32(0.5), values)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    line.pop("wall_s")
    expected = {"phase": "train", "step": 1, "epoch": 0.5, "a/f": 0.25, "a/i": 3, "a/b": True}
    assert line == expected | {"a/j": 1.0}
