# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters: where they lie, what they compute, and that merging keeps the result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvlm_jax import logprobs as logprobs_lib
from rlvlm_jax import sharding
from rlvlm_jax.models.common import lora
from rlvlm_jax.sampling.logits import Policy
from tests import tiny_model


def leaves(params):
    return {
        sharding.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


@pytest.fixture(scope="module")
def new():
    """The tiny model's parameters with new adapters everywhere."""
    _, params = tiny_model.build()
    return jax.jit(lambda params, key: lora.add(params, key, 4, 8.0, lambda _: True))(
        params, jax.random.key(1)
    )


@pytest.fixture(scope="module")
def adapted(new):
    """(model, its parameters, the same with adapters everywhere that add something)."""
    model, params = tiny_model.build()
    rng = np.random.default_rng(2)

    def fill(path, leaf):
        if path[-1].key != "lora_b":
            return leaf
        return jnp.asarray(0.02 * rng.standard_normal(leaf.shape), leaf.dtype)

    return model, params, jax.tree_util.tree_map_with_path(fill, new)


@functools.cache
def logprobs(model):
    return jax.jit(functools.partial(logprobs_lib.logprobs, model, Policy(), 4))


def logprobs_of(model, params):
    batch = tiny_model.batch()
    tokens = np.arange(8 * 6, dtype=np.int32).reshape(8, 6) % 57
    everything = np.ones((8, 6), bool)
    return logprobs(model)(params, batch, None, tokens, everything, everything)[0]


def test_adapters_lie_beside_the_chosen_weights_and_nowhere_else(adapted):
    _, params, _ = adapted
    some = lora.add(params, jax.random.key(0), 3, 6.0, lambda path: "attn" in path)
    names = set(leaves(some)) - set(leaves(params))
    weights = {name for name in leaves(params) if name.endswith("/weight") and "attn" in name}
    assert weights
    assert names == {f"{w.removesuffix('weight')}{leaf}" for w in weights for leaf in lora.LEAVES}
    q = some["language"]["layers"]["attn"]["q"]
    assert q["lora_a"].shape == (2, 3, 32)  # two layers, rank, input
    assert q["lora_b"].shape == (2, 32, 3)
    assert not np.asarray(q["lora_b"]).any()
    assert np.asarray(q["lora_scale"]).tolist() == [2.0, 2.0]
    assert np.asarray(q["lora_a"]).std() == pytest.approx(3**-0.5, rel=0.2)
    k = some["language"]["layers"]["attn"]["k"]
    assert not np.array_equal(q["lora_a"], k["lora_a"])


@pytest.mark.slow
def test_new_adapters_change_nothing(adapted, new):
    model, params, _ = adapted
    assert np.array_equal(logprobs_of(model, new), logprobs_of(model, params))


def test_merged_weights_give_the_same_log_probabilities(adapted):
    model, params, changed = adapted
    merged = lora.merge(changed)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    assert not lora.has_adapters(merged)
    assert lora.has_adapters(changed)
    with_adapters = logprobs_of(model, changed)
    assert float(jnp.abs(with_adapters - logprobs_of(model, params)).max()) > 0.01
    np.testing.assert_allclose(with_adapters, logprobs_of(model, merged), rtol=0, atol=1e-5)


def test_merging_by_hand():
    params = {
        "x": {
            "weight": jnp.array([[1.0, 2.0]]),
            "bias": jnp.array([7.0]),
            "lora_a": jnp.array([[1.0, -1.0], [0.0, 2.0]]),
            "lora_b": jnp.array([[3.0, 5.0]]),
            "lora_scale": jnp.float32(0.5),
        }
    }
    merged = lora.merge(params)
    assert merged["x"].keys() == {"weight", "bias"}
    assert merged["x"]["weight"].tolist() == [[1 + 0.5 * 3, 2 + 0.5 * (-3 + 10)]]


def test_shapes_like_those_of_a_checkpoint(adapted):
    _, params, _ = adapted
    stored = lora.add(params, jax.random.key(0), 3, 6.0, lambda path: "mlp" in path)
    shapes, plain = (jax.eval_shape(lambda tree=tree: tree) for tree in (stored, params))
    assert lora.shapes_like(plain, shapes) == shapes
    assert lora.shapes_like(plain, plain) == plain
    assert lora.drop(shapes) == plain


def test_every_adapter_has_one_sharding(adapted):
    model, _, changed = adapted
    mesh = sharding.make_mesh(2, 2, 2)
    shardings = leaves(
        sharding.param_shardings(jax.eval_shape(lambda: changed), model.param_rules, mesh)
    )
    assert tuple(shardings["language/layers/attn/q/lora_a"].spec) == (None, None, "fsdp")
    assert tuple(shardings["language/layers/attn/q/lora_b"].spec) == (None, "tensor", None)
    assert tuple(shardings["vision/merger/fc1/lora_a"].spec) == (None, "fsdp")
