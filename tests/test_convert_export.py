# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The commands `convert` and `export`: what comes back is bit-equal, what fails leaves nothing."""

import importlib.resources
import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors import safe_open

import rlvlm_jax
from rlvlm_jax import checkpoint, cli, convert, export, sharding, startup
from rlvlm_jax.errors import InputError
from rlvlm_jax.models import families
from rlvlm_jax.models import huggingface as weights
from rlvlm_jax.types import TrainState

BUNDLED = Path(str(importlib.resources.files("rlvlm_jax") / "assets" / "tiny"))
SIDE_FILES = ("config.json", "generation_config.json", "preprocessor_config.json")
SIDE_FILES += ("tokenizer.json", "tokenizer_config.json")


def tensors(directory):
    """{name: (type, shape, bytes)} of every tensor in a Hugging Face directory."""
    found = {}
    for path in sorted(Path(directory).glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                array = file.get_tensor(name)
                found[name] = (str(array.dtype), array.shape, array.tobytes())
    return found


def content(directory):
    """{relative path: bytes} of all files below a directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(Path(directory).rglob("*"))
        if path.is_file()
    }


def assert_same_bits(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype == np.float32
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def loaded():
    """The bundled model: (parameters, its files)."""
    source = startup.open_source(str(BUNDLED))
    return weights.load_hf(BUNDLED, source.config)[0], dict(source.files)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "orbax"
    assert convert.main([f"--source={BUNDLED}", f"--out={out}"]) == cli.DONE
    return out


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory, loaded):
    """A run's checkpoints on eight devices: step 2 as bundled, step 10 with one layer trained."""
    params, files = loaded
    mesh = sharding.make_mesh(2, 2, 2)
    model = families.build(weights.read_config(files))
    shardings = sharding.param_shardings(params, model.param_rules, mesh)
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    manager = checkpoint.open_manager(directory, keep=2)
    for step, change in ((2, 0.0), (10, 1e-6)):
        moved = jax.tree.map(np.array, params)
        moved["language"]["layers"]["mlp"]["up"]["weight"][1] += np.float32(change)
        sharded = jax.device_put(moved, shardings)
        opt_state = optax.sgd(1.0).init(sharded)
        state = TrainState(sharded, opt_state, jnp.int32(step), jnp.int32(0))
        checkpoint.save(manager, step, state, {"step": step}, files)
    manager.close()
    return directory


# ---------------------------------------------------------------- convert


def test_a_converted_model_is_the_model(converted, loaded):
    params, files = loaded
    source = startup.open_source(str(converted))
    assert source.is_orbax
    assert dict(source.files) == files
    assert source.config == startup.open_source(str(BUNDLED)).config
    assert_same_bits(checkpoint.restore_params(converted), params)
    text = startup.load_tokenizer(source)
    assert text.decode(text.encode("3*4=12")) == "3*4=12"
    assert [path.name for path in converted.parent.iterdir()] == ["orbax"]


def test_any_mesh_restores_a_converted_model(converted, loaded):
    params, files = loaded
    model = families.build(weights.read_config(files))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    shardings = sharding.param_shardings(shapes, model.param_rules, sharding.make_mesh(1, 4, 2))
    got = checkpoint.restore_params(converted, sharding.with_shardings(shapes, shardings))
    assert_same_bits(got, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, got) == shardings


def damaged(tmp_path):
    source = tmp_path / "damaged"
    shutil.copytree(BUNDLED, source)
    with (source / "model.safetensors").open("r+b") as file:
        file.truncate(1_000_000)
    return source


def without_config(tmp_path):
    source = tmp_path / "no_config"
    source.mkdir()
    return source


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda tmp_path: tmp_path / "missing", "there is no directory .*missing"),
        (without_config, "no_config has no config.json"),
        (damaged, "model.safetensors is truncated or damaged"),
        (lambda tmp_path: BUNDLED / "config.json", "is a file, expected a model directory"),
    ],
)
def test_a_source_that_is_no_model_leaves_nothing(tmp_path, source, message):
    given = source(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        convert.main([f"--source={given}", f"--out={tmp_path / 'out'}"])
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_is_converted_already_is_refused(tmp_path, converted):
    with pytest.raises(InputError, match="--source=.* is an orbax directory already"):
        convert.main([f"--source={converted}", f"--out={tmp_path / 'out'}"])
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_converted_over_what_is_there(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    before = content(tmp_path)
    for name in ("file", "full", "empty"):
        with pytest.raises(InputError, match=f"--out=.*{name} exists already; name a directory"):
            convert.main([f"--source={BUNDLED}", f"--out={tmp_path / name}"])
    assert content(tmp_path) == before
    assert list((tmp_path / "empty").iterdir()) == []


def test_convert_to_where_nothing_can_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file"):
        convert.main([f"--source={BUNDLED}", f"--out={tmp_path / 'file' / 'out'}"])
    assert content(tmp_path) == {"file": b"mine"}


# ---------------------------------------------------------------- export


def test_there_and_back_is_bit_equal(tmp_path, converted):
    out = tmp_path / "new" / "hf"
    assert export.main([f"--checkpoint={converted}", f"--out={out}"]) == cli.DONE
    assert tensors(out) == tensors(BUNDLED)
    for name in SIDE_FILES:
        assert (out / name).read_bytes() == (BUNDLED / name).read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["hf"]


@pytest.mark.slow
def test_the_newest_step_of_a_run_or_the_one_that_is_named(tmp_path, run_directory):
    """Only the tensor whose values bfloat16 cannot hold becomes float32."""
    given = {"newest": run_directory, "old": run_directory / "2", "new": run_directory / "10"}
    for name, path in given.items():
        assert export.main([f"--checkpoint={path}", f"--out={tmp_path / name}"]) == cli.DONE
    bundled = tensors(BUNDLED)
    assert tensors(tmp_path / "old") == bundled
    newest = tensors(tmp_path / "newest")
    assert newest == tensors(tmp_path / "new")
    changed = "model.layers.1.mlp.up_proj.weight"
    assert {name for name in newest if newest[name] != bundled[name]} == {changed}
    kind, shape, data = newest[changed]
    assert (kind, shape) == ("float32", bundled[changed][1])
    stored = checkpoint.restore_params(run_directory)["language"]["layers"]["mlp"]["up"]["weight"]
    np.testing.assert_array_equal(np.frombuffer(data, np.float32).reshape(shape), stored[1])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_type_that_is_asked_for_is_written_and_stated(tmp_path, converted, loaded, dtype):
    out = tmp_path / "hf"
    assert export.main([f"--checkpoint={converted}", f"--out={out}", f"--dtype={dtype}"]) == 0
    assert {kind for kind, _, _ in tensors(out).values()} == {dtype}
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype
    params, _ = weights.load_hf(out, startup.open_source(str(out)).config)
    if dtype == "float32":
        assert_same_bits(params, loaded[0])
    for got, want in zip(jax.tree.leaves(params), jax.tree.leaves(loaded[0]), strict=True):
        np.testing.assert_allclose(got, want, rtol=2**-11, atol=2**-25)  # of a float16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda tmp_path: tmp_path / "missing", "there is no directory .*missing"),
        (lambda tmp_path: BUNDLED, "--checkpoint=.* holds no checkpoint; name RUN/checkpoints"),
        (without_config, "no_config"),
    ],
)
def test_what_holds_no_checkpoint_leaves_nothing(tmp_path, given, message):
    path = given(tmp_path)
    before = sorted(entry.name for entry in tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        export.main([f"--checkpoint={path}", f"--out={tmp_path / 'out'}"])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == before


@pytest.mark.parametrize("item", ["model_files", "params/_METADATA"])
def test_an_incomplete_checkpoint_leaves_nothing(tmp_path, converted, item):
    broken = tmp_path / "broken"
    shutil.copytree(converted, broken)
    victim = broken / item
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    with pytest.raises(InputError, match="broken"):
        export.main([f"--checkpoint={broken}", f"--out={tmp_path / 'out'}"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["broken"]


def test_a_model_is_never_exported_over_another(tmp_path, converted):
    out = tmp_path / "hf"
    out.mkdir()
    (out / "config.json").write_text("{}")
    (out / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = content(tmp_path)
    with pytest.raises(InputError, match=r"hf already holds a model \(config.json\)"):
        export.main([f"--checkpoint={converted}", f"--out={out}"])
    with pytest.raises(InputError, match="file is a file, expected a directory"):
        export.main([f"--checkpoint={converted}", f"--out={tmp_path / 'file'}"])
    assert content(tmp_path) == before


def test_export_to_where_nothing_can_be_written_is_told(tmp_path, converted):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file"):
        export.main([f"--checkpoint={converted}", f"--out={tmp_path / 'file' / 'out'}"])
    assert content(tmp_path) == {"file": b"mine"}


# ---------------------------------------------------------------- as commands and in `VLM`


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        (convert.main, ["--source={missing}", "--out={out}"]),
        (export.main, ["--checkpoint={missing}", "--out={out}"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, program, flags):
    paths = {"missing": tmp_path / "missing", "out": tmp_path / "out"}
    monkeypatch.setattr(sys, "argv", ["command", *(flag.format(**paths) for flag in flags)])
    with pytest.raises(SystemExit) as ended:
        cli.exit_with(program)
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert str(tmp_path / "missing") in output.err
    assert output.err.count("\n") == 1


@pytest.mark.parametrize("program", [convert.main, export.main])
@pytest.mark.parametrize("flags", [[], ["--out=x", "--unknown=1"]])
def test_bad_usage_is_status_2(program, flags, capsys):
    with pytest.raises(SystemExit) as ended:
        program(flags)
    assert ended.value.code == 2
    assert "usage: " in capsys.readouterr().err


def test_vlm_opens_every_kind_of_orbax_directory_on_one_device(
    tmp_path, converted, run_directory, loaded
):
    """A run's parameters were divided over eight devices."""
    for number, path in enumerate((converted, run_directory / "2")):
        vlm = rlvlm_jax.VLM.from_pretrained(path)
        assert_same_bits(vlm.params, loaded[0])
        for leaf in jax.tree.leaves(vlm.params):
            assert isinstance(leaf, jax.Array)
            assert len(leaf.sharding.device_set) == 1
        vlm.save_pretrained(tmp_path / str(number))
        assert tensors(tmp_path / str(number)) == tensors(BUNDLED)
