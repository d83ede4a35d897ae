# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`attend` against plain loops, in blocks, and where nothing is to be seen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvlm_jax.models.common.attention import Ids, Keys, attend

N, G, Q, P, R, H, K, E = 2, 3, 5, 4, 6, 4, 2, 8


def case(seed=0, dtype=np.float32):
    """Queries of G sequences, keys they share, keys of their own; some of each are padding."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    def segments(*shape):
        return np.int32(rng.integers(0, 3, shape))

    shared = Keys(normal(N, P, K, E), normal(N, P, K, E), Ids(segments(N, 1, P), np.arange(P)))
    own = Keys(
        normal(N, G, R, K, E), normal(N, G, R, K, E), Ids(segments(N, G, R), P + np.arange(R))
    )
    return normal(N, G, Q, H, E), Ids(segments(N, G, Q), P + np.arange(Q)), [shared, own]


def by_loops(q, ids, keys):
    """The definition, one query head at a time, in float64."""
    out = np.zeros(q.shape)
    for n, g, i, h in np.ndindex(q.shape[:4]):
        scores, values = [], []
        for k, v, key_ids in keys:
            k, v = (np.asarray(x[n, g] if x.ndim == 5 else x[n], np.float64) for x in (k, v))
            segment = np.broadcast_to(key_ids.segment, (N, G, len(k)))[n, g]
            for s in range(len(k)):
                same = segment[s] == ids.segment[n, g, i] and segment[s] > 0
                if same and key_ids.order[s] <= ids.order[i]:
                    head = h // (H // K)
                    scores.append(np.dot(np.float64(q[n, g, i, h]), k[s, head]) / np.sqrt(E))
                    values.append(v[s, head])
        if scores:
            weights = np.exp(np.array(scores) - max(scores))
            out[n, g, i, h] = weights @ np.array(values) / weights.sum()
    return out


def test_one_softmax_over_shared_and_own_keys_equals_the_definition():
    q, ids, keys = case()
    expected = by_loops(q, ids, keys)
    assert (expected == 0).all(-1).any()  # some queries see nothing
    np.testing.assert_allclose(attend(q, ids, keys), expected, atol=1e-6)


@pytest.mark.parametrize(  # of 5 queries
    "block", [*(pytest.param(size, marks=pytest.mark.slow) for size in (1, 2)), 4]
)
def test_blocks_of_queries_change_neither_result_nor_gradient(block):
    q, ids, keys = case()
    pulled = jnp.asarray(np.random.default_rng(1).standard_normal(q.shape), jnp.float32)

    def loss(q, k, v, max_scores):
        runs = [keys[0], Keys(k, v, keys[1].ids)]
        out = attend(q, ids, runs, max_scores=max_scores)
        return (out * pulled).sum(), out

    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True), static_argnums=3)
    (_, whole), whole_gradients = run(q, keys[1].k, keys[1].v, 10**6)
    (_, blocked), gradients = run(q, keys[1].k, keys[1].v, block * H * (P + R))
    np.testing.assert_allclose(blocked, whole, atol=1e-6)
    for ours, expected in zip(gradients, whole_gradients, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_blocks_bound_the_memory_of_the_scores():
    length, heads = 2048, 8
    x = jax.ShapeDtypeStruct((1, 1, length, heads, E), jnp.float32)

    def loss(x, max_scores):
        ids = Ids(jnp.ones((1, 1, length), jnp.int32), jnp.arange(length))
        return attend(x, ids, [Keys(x, x, ids)], max_scores=max_scores).sum()

    compiled = jax.jit(jax.grad(functools.partial(loss, max_scores=2**20))).lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < heads * length**2 * 4 / 4


def test_a_query_without_keys_gives_zero_and_a_finite_gradient():
    q, ids, keys = case()
    nothing = [run._replace(ids=Ids(np.zeros_like(run.ids.segment), run.ids.order)) for run in keys]

    def loss(q, k, v):
        shared = Keys(k, v, nothing[0].ids)
        return (attend(q, ids, [shared, nothing[1]]) ** 2).sum()

    assert not attend(q, ids, nothing).any()
    for gradient in jax.jit(jax.grad(loss, (0, 1, 2)))(q, keys[0].k, keys[0].v):
        np.testing.assert_array_equal(gradient, 0.0)


def test_large_scores_neither_overflow_nor_leave_float32():
    q, ids, keys = case(dtype=jnp.bfloat16)
    expected = by_loops(1000 * q, ids, keys)
    out = attend(1000 * q, ids, keys)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(out), expected, atol=2e-2)
