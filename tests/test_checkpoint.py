# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: bit-equal, on another mesh, after a kill, and when something is broken."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rlvlm_jax import checkpoint, sharding
from rlvlm_jax.errors import InputError
from rlvlm_jax.types import TrainState

FILES = {"config.json": '{"model_type": "x"}', "vocab.json": "{}\n\u00e9"}
ABOUT = {"config": {"seed": 3, "tuple": [1, 2]}, "cursor": {"epoch": 1, "next": 17}}
PATHS = {"weight": PartitionSpec("fsdp", None), "bias": PartitionSpec()}


def make_params(seed=0):
    """Three arrays whose bits are not round numbers."""
    rng = np.random.default_rng(seed)
    return {
        "vision": {"weight": rng.normal(size=(8, 3)).astype(np.float32)},
        "language": {
            "weight": rng.normal(size=(16, 4)).astype(np.float32),
            "bias": np.array([np.pi, -0.0, 1e-40, 3e38], np.float32),  # a subnormal, a near-inf
        },
    }


def make_state(seed=0, mesh=None):
    """A state whose optimizer knows the language part only, as when the rest is frozen."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    params = jax.tree.map(jnp.asarray, make_params(seed))
    opt_state = optimizer.init({"vision": {"weight": None}, "language": params["language"]})
    opt_state = jax.tree.map(lambda x: x + 1 if x.ndim == 0 else x + 0.1, opt_state)
    state = TrainState(params, opt_state, jnp.int32(5 + seed), jnp.int32(1))
    return state if mesh is None else jax.device_put(state, state_shardings(state, mesh))


def state_shardings(state, mesh):
    """Kernels divided over `fsdp`, everything else on every device."""

    def leaf_sharding(path, leaf):
        name = str(getattr(path[-1], "key", ""))
        return NamedSharding(mesh, PATHS[name] if leaf.ndim == 2 else PartitionSpec())

    return jax.tree_util.tree_map_with_path(leaf_sharding, state)


def wanted(state, mesh=None):
    """The state's shapes with their shardings, as a resuming run knows them."""
    mesh = mesh or sharding.make_mesh(1, 1, 1)
    return sharding.with_shardings(jax.eval_shape(lambda: state), state_shardings(state, mesh))


def saved(directory, steps=(1,), keep=3, mesh=None):
    """Writes make_state(step) at each step; returns the checkpoints' directory."""
    manager = checkpoint.open_manager(directory, keep)
    for step in steps:
        checkpoint.save(manager, step, make_state(step, mesh), ABOUT | {"step": step}, FILES)
    manager.close()
    return directory


def assert_bits_equal(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


# ---------------------------------------------------------------- what is written is read


def test_a_state_comes_back_bit_for_bit_in_its_own_structure(tmp_path):
    directory = saved(tmp_path / "checkpoints", steps=(1, 2))
    state = make_state(2)
    got = checkpoint.restore(directory, wanted(state))
    assert_bits_equal(got, state)
    assert type(got.opt_state[1][0]) is type(state.opt_state[1][0])  # optax's named tuple
    assert_bits_equal(checkpoint.restore(directory / "1", wanted(state)), make_state(1))
    assert checkpoint.read_run(directory) == ABOUT | {"step": 2}
    assert checkpoint.read_run(directory / "1") == ABOUT | {"step": 1}
    assert checkpoint.read_model_files(directory) == FILES


def test_only_the_newest_are_kept(tmp_path):
    directory = saved(tmp_path, steps=(1, 2, 5, 10), keep=2)
    assert checkpoint.latest_step(directory) == 10
    assert sorted(int(entry.name) for entry in directory.iterdir()) == [5, 10]


def test_the_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    manager = checkpoint.open_manager(tmp_path, 1)
    state = make_state(1)
    expected = jax.tree.map(np.array, state)
    checkpoint.save(manager, 1, state, ABOUT, FILES)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    jax.block_until_ready(overwrite(state))
    manager.close()
    assert_bits_equal(
        jax.tree.map(np.asarray, checkpoint.restore(tmp_path, wanted(expected))), expected
    )


@pytest.mark.parametrize(("before", "after"), [((1, 8, 1), (1, 1, 1)), ((1, 1, 1), (2, 4, 1))])
def test_restores_on_another_mesh_and_goes_on(tmp_path, before, after):
    """A step on the restored state: scalars committed to one device alone would fail here."""
    saved(tmp_path, mesh=sharding.make_mesh(*before))
    mesh, state = sharding.make_mesh(*after), make_state(1)
    target = wanted(state, mesh)
    got = checkpoint.restore(tmp_path, target)
    assert_bits_equal(got, state)
    for leaf, want in zip(jax.tree.leaves(got), jax.tree.leaves(target), strict=True):
        assert leaf.sharding == want.sharding
    moved = jax.jit(lambda s: jax.tree.map(lambda x: x + s.step.astype(x.dtype), s))(got)
    assert moved.step == 2 * state.step


def test_params_alone_to_the_host_or_to_shardings(tmp_path):
    directory = saved(tmp_path / "run")
    checkpoint.write_params(tmp_path / "converted", make_params(1), FILES)
    target = wanted(make_state(1), sharding.make_mesh(1, 8, 1)).params
    for path in (directory, directory / "1", tmp_path / "converted", str(tmp_path / "converted")):
        assert checkpoint.is_checkpoint(path)
        on_host = checkpoint.restore_params(path)
        assert_bits_equal(on_host, make_params(1))
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(on_host))
        restored = checkpoint.restore_params(path, target)
        assert_bits_equal(restored, make_params(1))
        assert restored["language"]["weight"].sharding == target["language"]["weight"].sharding
        assert checkpoint.read_model_files(path) == FILES


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "7").write_text("a file, not a step")
    for path in (tmp_path, tmp_path / "file", tmp_path / "missing", "no/such/place"):
        assert not checkpoint.is_checkpoint(path)
        assert checkpoint.latest_step(path) is None
    with pytest.raises(InputError, match="no complete checkpoint"):
        checkpoint.read_run(tmp_path)


def test_params_are_not_written_over_what_is_there(tmp_path):
    checkpoint.write_params(tmp_path / "out", make_params(), FILES)
    with pytest.raises(InputError, match="exists"):
        checkpoint.write_params(tmp_path / "out", make_params(1), FILES)
    assert_bits_equal(checkpoint.restore_params(tmp_path / "out"), make_params())


# ---------------------------------------------------------------- crashes

KILLED_WHILE_SAVING = """
import sys, threading, time
sys.path[:0] = [{tests!r}]
import numpy as np
from test_checkpoint import ABOUT, FILES, make_state
from rlvlm_jax import checkpoint

manager = checkpoint.open_manager({directory!r}, 3)
checkpoint.save(manager, 1, make_state(1), ABOUT | {{"step": 1}}, FILES)
manager.wait_until_finished()
big = make_state(2)._replace(params={{"x": np.ones((1 << 26,), np.float32)}})  # 256 MiB
checkpoint.save(manager, 2, big, ABOUT, FILES)
print("saving", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_save_leaves_the_older_step(tmp_path):
    code = KILLED_WHILE_SAVING.format(directory=str(tmp_path), tests=str(Path(__file__).parent))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout.readline() == b"saving\n"
        deadline = time.monotonic() + 30
        while not (partial := [p.name for p in tmp_path.iterdir() if p.name.startswith("2.")]):
            assert not (tmp_path / "2").exists(), "the save ended before it could be interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert partial
    assert not (tmp_path / "2").exists()
    assert checkpoint.latest_step(tmp_path) == 1
    assert_bits_equal(checkpoint.restore(tmp_path, wanted(make_state(1))), make_state(1))
    saved(tmp_path, steps=(2,))  # the run goes on: leftovers are cleared away
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["1", "2"]
    assert_bits_equal(checkpoint.restore(tmp_path, wanted(make_state(2))), make_state(2))


# ---------------------------------------------------------------- what a user can have broken


def largest_file(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_bytes(step):
    file = largest_file(step / "params")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


def cut_off(step):
    file = largest_file(step / "params")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def remove_metadata(step):
    (step / "params" / "_METADATA").unlink()


def garble_metadata(step):
    (step / "params" / "_METADATA").write_text("{")


def remove_optimizer(step):
    (step / "optimizer").rename(step.parent / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_bytes, "damaged"),
        (cut_off, "damaged"),
        (remove_metadata, "damaged"),
        (garble_metadata, "damaged"),
        (remove_optimizer, r"no complete checkpoint: .*1/optimizer is missing"),
    ],
)
def test_damage_is_one_sentence_that_names_the_place(tmp_path, damage, message):
    directory = saved(tmp_path / "checkpoints")
    damage(directory / "1")
    with pytest.raises(InputError, match=message) as error:
        checkpoint.restore(directory, wanted(make_state(1)))
    assert "\n" not in str(error.value)
    assert str(directory / "1") in str(error.value)


@pytest.mark.parametrize("content", ["{", None])
def test_damaged_json_is_named(tmp_path, content):
    directory = saved(tmp_path)
    for item, read in (("run", checkpoint.read_run), ("model_files", checkpoint.read_model_files)):
        file = directory / "1" / item / "metadata"  # orbax's name for the JSON of the item
        file.unlink() if content is None else file.write_text(content)
        with pytest.raises(InputError, match=f"1/{item} is damaged"):
            read(directory)


def test_another_model_is_named_by_path_and_shape(tmp_path):
    directory = saved(tmp_path)
    state = make_state(1)
    other = dict(state.params["language"], weight=jnp.zeros((16, 5)))
    target = wanted(state._replace(params=state.params | {"language": other}))
    with pytest.raises(
        InputError, match=r"language/weight has shape \(16, 4\), expected \(16, 5\)"
    ) as error:
        checkpoint.restore(directory, target)
    assert "\n" not in str(error.value)
    target = wanted(state._replace(params={"vision": state.params["vision"]}))
    with pytest.raises(InputError, match="language/bias is not expected"):
        checkpoint.restore_params(directory, target.params)
    extra = {**state.params, "head": {"weight": jnp.zeros((2, 2))}}
    with pytest.raises(InputError, match="head/weight is missing"):
        checkpoint.restore_params(directory, wanted(state._replace(params=extra)).params)


def test_another_choice_of_trained_parts_is_named(tmp_path):
    """The optimizer's state of a run that trained something else."""
    directory = saved(tmp_path)
    state = make_state(1)
    opt_state = optax.adamw(1e-3).init(state.params)
    with pytest.raises(InputError, match="another model or optimizer"):
        checkpoint.restore(directory, wanted(state._replace(opt_state=opt_state)))


def test_the_directory_must_be_writable(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        checkpoint.open_manager(tmp_path / "file", 2)
