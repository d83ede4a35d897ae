# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Mistakes through the command: status 2, one sentence that names the thing, nothing written."""

import json
import shutil
import signal
import sys

import numpy as np
import pytest
from PIL import Image

from rlvlm_jax import checkpoint, config, main, recorder, startup
from rlvlm_jax import run as run_lib
from rlvlm_jax.models import huggingface
from tests.run_cases import CONFIGS, arguments, execute, read_lines, write_problems, write_records

BUNDLED = startup.open_source("bundled").directory


@pytest.fixture(autouse=True)
def _handlers():
    """The command takes over SIGTERM and SIGINT; a process that goes on wants them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def data(tmp_path):
    return write_problems(tmp_path / "data")


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Returns a function that runs the command and returns its one message."""

    def refuse(argv):
        before = sorted(path for path in tmp_path.rglob("*") if "data" not in path.parts)
        assert execute(argv, monkeypatch) == 2
        after = sorted(path for path in tmp_path.rglob("*") if "data" not in path.parts)
        assert before == after  # nothing half-written
        lines = capfd.readouterr().err.strip().splitlines()
        assert "Traceback" not in "".join(lines)
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1
        assert lines[-1] == errors[0]
        return errors[0]

    return refuse


def change(file, number, **changes):
    """Changes fields of one record; None removes a field."""
    records = read_lines(file)
    records[number] = {
        key: value for key, value in {**records[number], **changes}.items() if value is not None
    }
    return write_records(file, records)


# ---- configuration ---------------------------------------------------------------------------


def test_misspelt_key(refused, tmp_path, data):
    message = refused(arguments(tmp_path / "run", data, rollout__sample=3))
    assert "config.rollout.sample" in message
    assert "did you mean config.rollout.samples" in message


def test_a_profile_of_steps_that_never_come(refused, tmp_path, data):
    message = refused(arguments(tmp_path / "run", data, total_steps=2, log__profile=3))
    assert "config.log.profile=3 starts after the last step (2)" in message


def test_wrong_type(refused, tmp_path, data):
    message = refused(arguments(tmp_path / "run", data, rollout__samples="many"))
    assert "rollout.samples" in message
    assert "many" in message


def test_no_such_config_file(refused, tmp_path, data):
    argv = [f"--config={tmp_path}/none.py", f"--workdir={tmp_path}/run"]
    assert "none.py" in refused(argv)


@pytest.mark.parametrize(
    "body",
    [
        "def get_config(:\n",
        "import no_such_module\n",
        "def get_config():\n    raise ValueError('no such argument')\n",
        "def get_config():\n    return {}['recipe']\n",
        "x = 1\n",
    ],
)
def test_config_file_that_does_not_load(refused, tmp_path, body):
    file = tmp_path / "mine.py"
    file.write_text(body)
    assert "mine.py" in refused([f"--config={file}", f"--workdir={tmp_path}/run"])


def test_sizes_that_do_not_divide(refused, tmp_path, data):
    message = refused(arguments(tmp_path / "run", data, train__minibatch=3))
    assert "config.train.minibatch=3 does not divide" in message


def test_more_devices_than_there_are(refused, tmp_path, data):
    keys = {"mesh__data": 16, "rollout__prompts": 16, "train__minibatch": 16}
    assert "config.mesh" in refused(arguments(tmp_path / "run", data, **keys))


@pytest.mark.parametrize("name", ["no_such_module:reward", "json:no_such_function"])
def test_custom_reward_that_is_not_there(refused, tmp_path, data, name):
    message = refused(arguments(tmp_path / "run", data, rewards__custom=name))
    assert name.split(":")[0] in message


def test_workdir_that_is_a_file(refused, tmp_path, data):
    (tmp_path / "taken").write_text("mine")
    message = refused(arguments(tmp_path / "taken", data))
    assert "taken" in message
    assert (tmp_path / "taken").read_text() == "mine"


def test_workdir_that_is_no_local_path(refused, data):
    for keys in ({}, {"seeds": 2}):
        message = refused(arguments("gs://bucket/run", data, **keys))
        assert "bucket/run" in message
        assert "config.log.checkpoints may be gs://" in message


@pytest.mark.parametrize(
    "place", ["s3://bucket/run", "gs://bucket", "gs:///run", "gs:/bucket/run", "gs//bucket/run"]
)
def test_checkpoints_where_none_can_be(refused, tmp_path, data, place):
    message = refused(arguments(tmp_path / "run", data, log__checkpoints=place))
    assert f"config.log.checkpoints='{place}'" in message


def test_checkpoints_in_a_bucket_without_the_package(refused, tmp_path, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    message = refused(arguments(tmp_path / "run", data, log__checkpoints="gs://bucket/run"))
    assert "cannot be written to gs://bucket/run (gs:// needs the package gcsfs" in message


@pytest.mark.slow
def test_checkpoints_below_a_file(refused, tmp_path, data):
    (tmp_path / "taken").write_text("mine")
    message = refused(
        arguments(tmp_path / "run", data, log__checkpoints=tmp_path / "taken" / "run")
    )
    assert "checkpoints cannot be written to" in message


# ---- data ------------------------------------------------------------------------------------


def test_no_such_data_file(refused, tmp_path):
    message = refused(arguments(tmp_path / "run", tmp_path / "none.jsonl"))
    assert "config.data.train" in message or "config.data.val" in message
    assert "none.jsonl" in message


def test_no_such_data_set(refused, tmp_path, data):
    message = refused(arguments(tmp_path / "run", data, data__train="bundled:everything"))
    assert "bundled:everything" in message


def test_malformed_json(refused, tmp_path, data):
    records = read_lines(data)
    write_records(data, [*records[:2], '{"question": "?', *records[3:]])
    assert "problems.jsonl:3" in refused(arguments(tmp_path / "run", data))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"question": None}, "question is missing"),
        ({"question": ["What?"]}, "question is a list"),
        ({"solution": None}, "solution is missing"),
        ({"solution": ""}, "solution is missing"),
        ({"solution": "It is five."}, "\\boxed"),
        ({"solution": "\\boxed{}"}, "is empty"),
        ({"image": "gone.png"}, "gone.png"),
        ({"id": "p1"}, "p1"),
    ],
)
def test_bad_record_is_named_by_line_and_id(refused, tmp_path, data, changes, expected):
    change(data, 4, **changes)
    message = refused(arguments(tmp_path / "run", data))
    assert expected in message
    assert "problems.jsonl:5" in message
    assert changes.get("id", "p4") in message
    assert "on_bad_record" in message


def test_image_that_is_no_image(refused, tmp_path, data):
    (data.parent / "4.png").write_text("not an image")
    message = refused(arguments(tmp_path / "run", data))
    assert "4.png" in message
    assert "p4" in message


def test_image_of_an_impossible_shape(refused, tmp_path, data):
    Image.new("RGB", (2010, 10)).save(data.parent / "4.png")
    message = refused(arguments(tmp_path / "run", data))
    assert "p4" in message
    assert "aspect ratio over 200" in message


@pytest.mark.slow
def test_bad_records_are_left_out_when_asked(tmp_path, data, monkeypatch):
    (data.parent / "4.png").write_text("not an image")
    change(data, 7, solution="")
    keys = {"data__on_bad_record": "skip", "total_steps": 1, "eval_every": 0, "data__val": ""}
    assert execute(arguments(tmp_path / "run", data, **keys), monkeypatch) == 0
    report = json.loads((tmp_path / "run" / "config.json").read_text())["data"]["train"]
    assert (report["records"], report["used"]) == (12, 10)
    assert sorted(names for kind in report["dropped"].values() for names in kind) == ["p4", "p7"]


def test_too_few_records_are_left(refused, tmp_path, data):
    write_records(data, read_lines(data)[:3])
    message = refused(arguments(tmp_path / "run", data, data__val="bundled:val"))
    assert "3 usable records" in message
    assert "4" in message


def test_parts_that_train_nothing(refused, tmp_path, data):
    message = refused(arguments(tmp_path / "run", data, train__parts="('head',)"))
    assert "nothing is trained: config.train.parts=('head',)" in message


def test_every_prompt_is_too_long(refused, tmp_path, data):
    message = refused(arguments(tmp_path / "run", data, data__max_prompt_tokens=5))
    assert "prompt_too_long" in message


@pytest.mark.slow
def test_truncated_image_body_ends_the_run_with_its_name(tmp_path, data, monkeypatch, capfd):
    """Its header is sound, so the run has begun when it is found."""
    file = data.parent / "4.png"
    file.write_bytes(file.read_bytes()[:-400])
    keys = {"eval_every": 0, "data__val": ""}
    assert execute(arguments(tmp_path / "run", data, **keys), monkeypatch) == 2
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert "p4" in message


# ---- weights ---------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(BUNDLED, tmp_path / "data" / "model")


def test_no_such_model(refused, tmp_path, data):
    message = refused(arguments(tmp_path / "run", data, model__path=tmp_path / "none"))
    assert "none" in message


def test_model_without_config(refused, tmp_path, data, model):
    (model / "config.json").unlink()
    assert "config.json" in refused(arguments(tmp_path / "run", data, model__path=model))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "llava"}, "llava"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope"),
        ({"hidden_size": 100}, "hidden_size"),
        ({"attention_multiplier": 2.0}, "attention_multiplier"),
    ],
)
def test_config_of_another_model(refused, tmp_path, data, model, changes, expected):
    file = model / "config.json"
    config = json.loads(file.read_text())
    for part in (config, config.get("text_config", {})):
        part.update(changes)
    file.write_text(json.dumps(config))
    assert expected in refused(arguments(tmp_path / "run", data, model__path=model))


def test_truncated_weights(refused, tmp_path, data, model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "model.safetensors" in refused(arguments(tmp_path / "run", data, model__path=model))


@pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
def test_weights_of_another_model(refused, tmp_path, data, model, fault):
    from safetensors.numpy import load_file, save_file

    file = model / "model.safetensors"
    tensors = load_file(file)
    name = next(key for key in sorted(tensors) if key.endswith("norm.weight"))
    if fault == "missing":
        del tensors[name]
    elif fault == "extra":
        name = "model.layers.0.spare.weight"
        tensors[name] = np.zeros(3, np.float32)
    else:
        tensors[name] = tensors[name][:-1].copy()
    save_file(tensors, file)
    assert name in refused(arguments(tmp_path / "run", data, model__path=model))


def test_model_without_tokenizer(refused, tmp_path, data, model):
    (model / "tokenizer.json").unlink()
    assert "tokenizer" in refused(arguments(tmp_path / "run", data, model__path=model))


def test_tokenizer_of_another_model(refused, tmp_path, data, model):
    file = model / "config.json"
    config = json.loads(file.read_text())
    config["image_token_id"] += 1
    file.write_text(json.dumps(config))
    message = refused(arguments(tmp_path / "run", data, model__path=model))
    assert "image_token_id" in message


# ---- checkpoints -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one step, of the kind that has the fewest programs."""
    place = tmp_path_factory.mktemp("trained")
    data = write_problems(place / "data")
    keys = {"mode": "sft", "rollout__max_tokens": 16, "data__buckets": 1}
    keys["algorithm__aggregate"] = "microbatch"
    keys |= {"total_steps": 1, "eval_every": 0, "checkpoint_every": 1}
    assert main.main(arguments(place / "run", data, **keys)) == 0
    return place / "run", data, keys


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it, to be damaged."""
    workdir, data, keys = trained
    return shutil.copytree(workdir, tmp_path / "run"), data, {**keys, "total_steps": 2}


def test_where_there_is_no_git_the_revision_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert recorder.environment()["git_revision"] is None


def test_a_run_begun_before_a_key_existed_has_its_default():
    defaults = startup.resolved_config(config.default())
    began = json.loads(json.dumps(defaults))
    del began["rollout"]["cache"], began["cache"]
    began["train"]["lr"] = 7.0
    filled = run_lib._with_defaults(began, defaults)
    assert run_lib._changed_keys(filled, defaults) == ["train.lr"]
    assert run_lib._changed_keys(began, defaults) == ["rollout.cache", "train.lr"]


@pytest.mark.slow
def test_resuming_with_another_configuration(refused, run):
    workdir, data, keys = run
    message = refused(arguments(workdir, data, seed=1, train__lr=1.0, **keys))
    assert "config.seed" in message
    assert "config.train.lr" in message


def test_a_run_of_an_older_version_is_not_resumed(refused, run, monkeypatch):
    workdir, data, keys = run
    about = checkpoint.read_run(workdir / "checkpoints" / "1")
    about["config"]["update"] = about["config"].pop("train")
    monkeypatch.setattr(checkpoint, "read_run", lambda _: about)
    message = refused(arguments(workdir, data, **keys))
    assert f"{workdir} holds a run of an older version, which cannot be resumed" in message


def test_records_stay_where_the_checkpoints_are_looked_for_elsewhere(refused, run, tmp_path):
    workdir, data, keys = run
    before = (workdir / "metrics.jsonl").read_bytes()
    message = refused(arguments(workdir, data, log__checkpoints=tmp_path / "data" / "no", **keys))
    assert "config.log.checkpoints=''" in message
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_the_microbatch_may_change_only_where_it_is_not_part_of_the_loss(refused, run):
    workdir, data, keys = run
    message = refused(arguments(workdir, data, train__microbatch=1, **keys))
    assert "config.train.microbatch differs" in message


def test_resuming_with_other_data(refused, run, tmp_path):
    workdir, _, keys = run
    other = write_problems(tmp_path / "data" / "other", seed=5)
    assert "config.data.train" in refused(arguments(workdir, other, **keys))


@pytest.mark.parametrize("item", ["params", "optimizer", "run"])
def test_checkpoint_with_a_missing_item(refused, run, item):
    workdir, data, keys = run
    shutil.rmtree(workdir / "checkpoints" / "1" / item)
    assert "checkpoint" in refused(arguments(workdir, data, **keys))


@pytest.mark.parametrize("item", ["params", "optimizer"])
def test_damaged_checkpoint(refused, run, item):
    workdir, data, keys = run
    folder = workdir / "checkpoints" / "1" / item
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1000]
    for file in files:
        file.write_bytes(b"x" * 100)
    message = refused(arguments(workdir, data, **keys))
    assert "damaged" in message
    assert item in message


def test_checkpoint_of_another_model(refused, tmp_path, data, trained):
    """An orbax directory whose config.json was exchanged."""
    workdir, _, _ = trained
    place = shutil.copytree(workdir / "checkpoints" / "1", tmp_path / "data" / "converted")
    found = place / "model_files" / "metadata"
    files = json.loads(found.read_text())
    config = json.loads(files["config.json"])
    for part in (config, config.get("text_config", {})):
        if "num_hidden_layers" in part:
            part["num_hidden_layers"] += 1
    found.write_text(json.dumps({**files, "config.json": json.dumps(config)}))
    message = refused(arguments(tmp_path / "run", data, model__path=place))
    assert "another model" in message


def test_every_config_in_the_repository_loads():
    """What the tests above break one at a time is sound to begin with."""
    for file in CONFIGS.glob("*.py"):
        from rlvlm_jax import cli

        config, _ = cli.parse_config([f"--config={file}", "--workdir=x"], "rlvlm_jax.main")
        assert config.mode in ("rl", "sft")
    assert huggingface.read_config(startup.open_source("bundled").files).layers > 0
