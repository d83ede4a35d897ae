# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Keys and values kept for decoding: what is read is what was written, as exactly as it is kept."""

import functools

import jax
import jax.numpy as jnp
import model_cases as cases
import numpy as np
import pytest

from rlvlm_jax.models.common import cache, exact_cpu
from rlvlm_jax.models.families import build

N, K, G, E = 2, 3, 4, 8


def natural(block, x):
    """[..., S, *] of an array that lies like `block`."""
    return x.swapaxes(-1, -2) if block.transposed else x


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("kind", "dtype"), [("model", "float32"), ("bfloat16", "bfloat16")])
def test_float_kinds_keep_the_values_in_their_type(kind, dtype):
    for slots in (5, exact_cpu.LANES):
        k, v = draw(N, K, slots, E), draw(N, K, slots, E)
        for block, values in zip(cache.stored(k, v, kind), (k, v), strict=True):
            assert block.x.dtype == dtype
            assert block.scale is None
            found = natural(block, cache.read(block, jnp.float32))
            np.testing.assert_array_equal(found, values.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("kind", cache.KINDS)
@pytest.mark.parametrize("slots", [5, 64, 96, 128])
@pytest.mark.parametrize("size", [8, 64, 80, 128])
def test_products_columns_are_the_last_axis_where_they_fill_the_lanes(kind, slots, size):
    def empty():
        prompt = cache.stored(draw(N, K, 6, size), draw(N, K, 6, size), kind)
        return cache.empty(prompt, G, slots)

    def stored():
        return cache.stored(draw(N, K, slots, size), draw(N, K, slots, size), kind)

    for found in map(jax.eval_shape, (empty, stored)):
        assert found.k.transposed == (slots in (64, 128))
        assert found.v.transposed == (size in (8, 80))
        assert found.k.slots == found.v.slots == slots
        for block in found:
            inner = (size, slots) if block.transposed else (slots, size)
            assert block.x.shape[-2:] == inner
            if kind == "int8":
                assert block.scale.shape == tuple(
                    1 if axis == block.x.ndim - (2 if block.transposed else 1) else length
                    for axis, length in enumerate(block.x.shape)
                )


def test_elsewhere_a_slot_is_one_piece():
    prompt = cache.stored(draw(N, K, 64, 80), draw(N, K, 64, 80), "model", "tpu")
    pair = cache.empty(prompt, G, 128, "tpu")
    for block, slots in ((prompt.k, 64), (prompt.v, 64), (pair.k, 128), (pair.v, 128)):
        assert not block.transposed
        assert block.x.shape[-2:] == (slots, 80)


@pytest.mark.parametrize("slots", [5, 64])
def test_int8_keeps_each_head_of_each_slot_within_half_a_step(slots):
    k, v = draw(N, K, slots, E), draw(N, K, slots, E, seed=1) * 100
    k[0, 1, 2] = 0
    for block, values in zip(cache.stored(k, v, "int8"), (k, v), strict=True):
        assert block.x.dtype == jnp.int8
        assert natural(block, block.scale).shape == (N, K, slots, 1)
        assert np.abs(block.x).max() == 127
        step = np.abs(values).max(axis=-1, keepdims=True) / 127
        found = natural(block, cache.read(block, jnp.float32))
        assert (np.abs(found - values) <= step * 0.5001).all()


@pytest.mark.parametrize("kind", cache.KINDS)
@pytest.mark.parametrize("slots", [7, 64])
def test_writing_a_slot_changes_that_slot_alone(kind, slots):
    prompt = cache.stored(draw(N, K, 6, E), draw(N, K, 6, E), kind)
    block = jax.tree.map(lambda x: x + x.dtype.type(3), cache.empty(prompt, G, slots))
    k, v = draw(N, K, G, 1, E), draw(N, K, G, 1, E, seed=1)
    written = jax.jit(cache.write)(block, k, v, 4)
    assert jax.tree.structure(written) == jax.tree.structure(block)
    for new, old, alone in zip(written, block, cache.stored(k, v, kind), strict=True):
        for found, before, value in (
            (new.x, old.x, alone.x),
            (new.scale, old.scale, alone.scale),
        ):
            if before is None:
                assert kind != "int8"
                continue
            expected = np.array(natural(old, before))
            assert expected.shape[:4] == (N, K, G, slots)
            expected[..., 4, :] = np.array(natural(alone, value))[..., 0, :]
            np.testing.assert_array_equal(natural(new, found), expected)


@pytest.mark.parametrize("kind", cache.KINDS)
@pytest.mark.parametrize("layers", [pytest.param((), marks=pytest.mark.slow), (2,)])
def test_rows_are_taken_and_put_whatever_the_layout(kind, layers):
    prompt = cache.stored(draw(N, K, *layers, 6, E), draw(N, K, *layers, 6, E), kind)
    full, last = (
        jax.tree.map(
            lambda x: jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape).astype(x.dtype),
            cache.empty(prompt, G, slots),
        )
        for slots in (64, 5)
    )
    rows = np.array([6, 1, 3])
    whole = ((full, last),)
    part = jax.jit(cache.take_rows)(whole, rows)
    assert jax.tree.structure(part) == jax.tree.structure(whole)
    for taken, x in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
        assert taken.shape == (3, K, *layers, 1, *x.shape[-2:])
        for row, values in zip(rows, taken, strict=True):
            np.testing.assert_array_equal(values, x[row // G, ..., row % G : row % G + 1, :, :])

    negative = jax.tree.map(lambda x: -x, part)
    ((same, new),) = jax.jit(cache.put_rows)(whole, rows, negative)
    jax.tree.map(np.testing.assert_array_equal, same, full)
    ((_, again),) = cache.take_rows(((same, new),), rows)
    jax.tree.map(np.testing.assert_array_equal, again, negative[0][1])
    others = np.setdiff1d(np.arange(N * G), rows)
    ((_, untouched),), ((_, expected),) = (
        cache.take_rows(x, others) for x in (((same, new),), whole)
    )
    jax.tree.map(np.testing.assert_array_equal, untouched, expected)


@functools.cache
def decoded(kind):
    """Hidden states of the responses' tokens, with the cache of that kind."""
    config = cases.tiny_config()
    model = build(config, cache=kind)
    batch = cases.make_batch(config, [([(4, 6)], 2), ([], 9)])
    tokens, mask = cases.random_responses(batch, 3, 5)
    return cases.decode_all(model, cases.random_params(model), batch, tokens)[mask]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "most"), [("bfloat16", 0.01), ("int8", 0.02)])
def test_a_smaller_kind_decodes_nearly_the_same(kind, most):
    expected, found = decoded("model"), decoded(kind)
    deviation = (found - expected).std() / expected.std()
    assert 0 < deviation < most
