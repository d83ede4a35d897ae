# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The mesh and the shardings on it, over eight fake devices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rlvlm_jax import sharding
from rlvlm_jax.data.prompts import collate
from rlvlm_jax.errors import InputError
from tests import tiny_model

RULES = (
    ("weight$", PartitionSpec(None, "fsdp", "tensor")),
    ("embedding", PartitionSpec(("fsdp", "tensor"), None)),
    ("scale|bias", PartitionSpec()),
)


def shapes(**leaves):
    """{"a_b": shape} as {"a": {"b": float32[shape]}}."""
    tree = {}
    for name, shape in leaves.items():
        first, last = name.split("_")
        tree.setdefault(first, {})[last] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return tree


# ---------------------------------------------------------------- mesh


def test_the_mesh_takes_the_first_devices_it_needs():
    mesh = sharding.make_mesh(1, 2, 3)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "sequence": 1, "tensor": 3}
    assert set(mesh.devices.flat) == set(jax.devices()[:6])


def test_the_mesh_keeps_to_the_devices_it_is_given():
    given = jax.devices()[3:7]
    assert set(sharding.make_mesh(2, 1, 1, given).devices.flat) == set(given[:2])


class Chip:
    """A device that is not here, with what JAX asks of it."""

    def __init__(self, number, kind, coords=None, part=0):
        self.id, self.device_kind, self.slice_index = number, kind, part
        self.platform = "tpu" if coords else "gpu"
        self.coords, self.core_on_chip, self.process_index = coords, 0, number // 8


def tpus(kind, *shape, parts=1):
    """The chips of so many slices of this shape."""
    indices = [tuple(reversed(c)) for c in itertools.product(*map(range, reversed(shape)))]
    slices = itertools.product(range(parts), indices)
    return [Chip(n, kind, coords, part) for n, (part, coords) in enumerate(slices)]


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("TPU v6 lite", (8, 8, 1)), ("TPU v5", (4, 4, 4)), ("TPU v5 lite", (8, 8, 1))],
)
@pytest.mark.parametrize(
    "axes", [(1, 64, 1, 1), (1, 32, 1, 2), (2, 32, 1, 1), (8, 8, 1, 1), (1, 8, 1, 8), (1, 16, 2, 2)]
)
def test_every_mesh_of_powers_of_two_lies_on_a_slice(kind, shape, axes):
    chips = tpus(kind, *shape)
    data, fsdp, sequence, tensor = axes
    mesh = sharding.make_mesh(data, fsdp, tensor, chips, sequence=sequence)
    assert mesh.devices.shape == axes
    assert set(mesh.devices.flat) == set(chips)


def test_several_slices_are_the_outer_part_of_an_axis():
    chips = tpus("TPU v5 lite", 4, 4, 1, parts=2)
    for axes in ((2, 16, 1), (1, 32, 1), (1, 16, 2)):
        devices = sharding.make_mesh(*axes, chips).devices
        assert [chip.slice_index for chip in devices.reshape(-1)] == [0] * 16 + [1] * 16
    with pytest.raises(InputError, match="does not divide over 2 slices"):
        sharding.make_mesh(1, 3, 1, [*chips[:2], chips[16]])


def test_nodes_of_gpus_are_taken_one_after_the_other():
    """JAX calls each of them a slice."""
    gpus = [Chip(n, "NVIDIA H200", part=n // 8) for n in range(16)]
    assert sharding.make_mesh(1, 2, 8, gpus).devices.reshape(-1).tolist() == gpus


@pytest.mark.parametrize(
    ("axes", "devices", "message"),
    [
        (
            (3, 3, 1),
            None,
            r"data=3 x fsdp=3 x sequence=1 x tensor=1 = 9 devices, but this program sees 8",
        ),
        (
            (1, 1, 2),
            1,
            r"data=1 x fsdp=1 x sequence=1 x tensor=2 = 2 devices, but this program sees 1",
        ),
    ],
)
def test_too_few_devices_are_named(axes, devices, message):
    with pytest.raises(InputError, match=f"config.mesh asks for {message}"):
        sharding.make_mesh(*axes, devices and jax.devices()[:devices])


# ---------------------------------------------------------------- parameters


def test_each_parameter_lies_where_its_rule_says():
    mesh = sharding.make_mesh(2, 2, 2)
    tree = shapes(mlp_weight=(3, 4, 6), mlp_bias=(3, 5), embed_embedding=(8, 3))
    shardings = sharding.param_shardings(tree, RULES, mesh)
    assert jax.tree.structure(shardings) == jax.tree.structure(tree)
    assert all(leaf.mesh == mesh for leaf in jax.tree.leaves(shardings))
    shards = jax.tree.map(lambda leaf, sharding: sharding.shard_shape(leaf.shape), tree, shardings)
    assert shards == {
        "mlp": {"weight": (3, 2, 3), "bias": (3, 5)},
        "embed": {"embedding": (2, 3)},
    }


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ({"mlp_other": (4,)}, "mlp/other fits 0 sharding rules, expected 1"),
        ({"bias_weight": (2, 4, 4)}, "bias/weight fits 2 sharding rules, expected 1"),
        (
            {"mlp_weight": (2, 5, 4)},
            r"mlp/weight: dimension 5 is not divisible by \('fsdp',\) = 2",
        ),
        (
            {"a_embedding": (6, 4)},
            r"a/embedding: dimension 6 is not divisible by \('fsdp', 'tensor'\) = 4",
        ),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(leaves, message):
    tree = shapes(fine_weight=(1, 2, 2), **leaves)
    with pytest.raises(InputError, match=f"^parameters do not fit config.mesh: {message}$"):
        sharding.param_shardings(tree, RULES, sharding.make_mesh(2, 2, 2))


def test_every_problem_counts_and_the_first_five_are_told():
    tree = shapes(a_weight=(1, 3, 5), b_weight=(1, 3, 5), c_weight=(1, 3, 5), d_none=(1,))
    with pytest.raises(InputError, match=r"a/weight.*c/weight: dimension 3.*; and 2 more$"):
        sharding.param_shardings(tree, RULES, sharding.make_mesh(1, 2, 2))


def test_an_axis_of_one_device_divides_everything():
    shardings = sharding.param_shardings(
        shapes(a_weight=(1, 3, 5)), RULES, sharding.make_mesh(8, 1, 1)
    )
    assert shardings["a"]["weight"].shard_shape((1, 3, 5)) == (1, 3, 5)


def test_shapes_carry_their_shardings():
    mesh = sharding.make_mesh(1, 2, 1)
    tree = shapes(a_weight=(1, 2, 3), a_bias=(4,))
    shardings = sharding.param_shardings(tree, RULES, mesh)
    got = sharding.with_shardings(tree, shardings)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), got) == jax.tree.map(
        lambda x: (x.shape, x.dtype), tree
    )
    assert jax.tree.map(lambda x: x.sharding, got) == shardings


# ---------------------------------------------------------------- batches


def test_batch_shapes_are_those_of_a_collated_batch_on_the_mesh():
    mesh = sharding.make_mesh(2, 2, 2)
    batch = tiny_model.batch(4)
    empty = collate([None], batch.tokens.shape[1], batch.media.image.shape[1], 0, tiny_model.SPEC)
    stated = sharding.batch_shapes(empty, 4, mesh)
    sharded = sharding.put_batch(batch, mesh)
    leaves = (jax.tree.leaves(x) for x in (stated, batch, sharded))
    for want, host, device in zip(*leaves, strict=True):
        assert (want.shape, want.dtype) == (host.shape, host.dtype)
        assert want.sharding == device.sharding
    assert sharding.shape_key(stated) == sharding.shape_key(sharded)


def test_a_batch_is_divided_over_data_and_fsdp_and_repeated_over_tensor():
    mesh = sharding.make_mesh(2, 2, 2)
    rows = np.arange(8).reshape(8, 1)
    sharded = sharding.put_batch({"rows": rows, "none": None}, mesh)["rows"]
    pieces = [tuple(np.asarray(shard.data).ravel()) for shard in sharded.addressable_shards]
    assert sorted(pieces) == sorted([(0, 1), (2, 3), (4, 5), (6, 7)] * 2)
    back = sharding.to_host({"rows": sharded})["rows"]
    assert isinstance(back, np.ndarray)
    np.testing.assert_array_equal(back, rows)


def test_replicated_is_whole_everywhere():
    mesh = sharding.make_mesh(1, 2, 2)
    sharded = jax.device_put(np.arange(3), sharding.replicated(mesh))
    assert [shard.data.shape for shard in sharded.addressable_shards] == [(3,)] * 4


def test_paths_are_written_with_slashes():
    leaves = jax.tree_util.tree_leaves_with_path({"a": {"b": 1, "c": {"d": 2}}})
    assert [sharding.path_name(path) for path, _ in leaves] == ["a/b", "a/c/d"]
