# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Keys and values kept for decoding: what is read is what was written, as exactly as it is kept."""

import jax
import jax.numpy as jnp
import model_cases as cases
import numpy as np
import pytest

from rlvlm_jax.errors import InputError
from rlvlm_jax.models import build, cache

N, K, G, E = 2, 3, 4, 8


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("kind", "dtype"), [("model", "float32"), ("bfloat16", "bfloat16")])
def test_float_kinds_keep_the_values_in_their_type(kind, dtype):
    k, v = draw(N, K, 5, E), draw(N, K, E, 5)
    block = cache.stored(k, v, kind)
    assert {name: x.dtype.name for name, x in block.items()} == {"k": dtype, "v": dtype}
    for found, given in zip(cache.read(block, jnp.float32), (k, v), strict=True):
        np.testing.assert_array_equal(found, given.astype(dtype).astype(np.float32))


def test_int8_keeps_each_head_of_each_slot_within_half_a_step():
    k, v = draw(N, K, 5, E), draw(N, K, E, 5, seed=1) * 100
    k[0, 1, 2] = 0
    block = cache.stored(k, v, "int8")
    assert block["k"].dtype == block["v"].dtype == jnp.int8
    assert block["k_scale"].shape == (N, K, 5, 1)
    assert block["v_scale"].shape == (N, K, 1, 5)
    assert np.abs(block["k"]).max() == 127
    for (found, given), axis in zip(
        zip(cache.read(block, jnp.float32), (k, v), strict=True), (-1, -2), strict=True
    ):
        step = np.abs(given).max(axis=axis, keepdims=True) / 127
        assert (np.abs(found - given) <= step * 0.5001).all()


@pytest.mark.parametrize("kind", cache.KINDS)
def test_writing_a_slot_changes_that_slot_alone(kind):
    prompt = cache.stored(draw(N, K, 6, E), draw(N, K, E, 6), kind)
    block = jax.tree.map(lambda x: x + x.dtype.type(3), cache.empty(prompt, G, 7))
    k, v = draw(N, K, G, 1, E), draw(N, K, G, E, 1, seed=1)
    written = jax.jit(cache.write)(block, k, v, 4)
    alone = cache.stored(k, v, kind)
    assert written.keys() == block.keys() == alone.keys()
    for name, axis in (("k", 3), ("v", 4), ("k_scale", 3), ("v_scale", 4)):
        if name not in block:
            continue
        assert block[name].shape[:3] == (N, K, G)
        assert block[name].shape[axis] == 7
        expected = np.array(block[name])
        np.moveaxis(expected, axis, 0)[4] = np.moveaxis(np.array(alone[name]), axis, 0)[0]
        np.testing.assert_array_equal(written[name], expected)


@pytest.mark.parametrize(("kind", "most"), [("bfloat16", 0.01), ("int8", 0.02)])
def test_a_smaller_kind_decodes_nearly_the_same(kind, most):
    config = cases.tiny_config()
    exact, small = build(config), build(config, cache=kind)
    params = cases.random_params(exact)
    batch = cases.make_batch(config, [([(4, 6)], 2), ([], 9)])
    tokens, mask = cases.random_responses(batch, 3, 5)
    expected = cases.decode_all(exact, params, batch, tokens)[mask]
    found = cases.decode_all(small, params, batch, tokens)[mask]
    gap = (found - expected).std() / expected.std()
    assert 0 < gap < most


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="rollout.cache='int4'"):
        build(cases.tiny_config(), cache="int4")
