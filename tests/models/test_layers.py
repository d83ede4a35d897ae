# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The linear layer and the norm by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from rlvlm_jax.models.common.layers import Linear, RMSNorm


def test_rms_norm_by_hand():
    norm = RMSNorm(epsilon=0.5, dtype=jnp.float32)
    params = {"params": {"scale": jnp.array([1.0, 2.0])}}
    # mean square (9 + 16) / 2 = 12.5; with epsilon 13, whose root is 3.605551
    expected = [[3 / 3.605551, 2 * 4 / 3.605551]]
    np.testing.assert_allclose(norm.apply(params, jnp.array([[3.0, 4.0]])), expected, rtol=1e-6)
    zeros = norm.apply(params, jnp.zeros((1, 2)))
    assert zeros.tolist() == [[0.0, 0.0]]


def test_rms_norm_is_computed_in_float32():
    norm = RMSNorm(epsilon=1e-6, dtype=jnp.bfloat16)
    params = norm.init(jax.random.key(0), jnp.zeros((1, 4)))
    out = norm.apply(params, jnp.full((1, 4), 300.0, jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.astype(jnp.float32), 1.0)


def test_linear_by_hand():
    params = {"params": {"weight": jnp.array([[1.0, 2.0], [0.0, -1.0]]), "bias": jnp.ones(2)}}
    layer = Linear(2, jnp.float32, bias=True)
    out = layer.apply(params, jnp.array([[3.0, 4.0], [1.0, 0.0]]))
    assert out.tolist() == [[12.0, -3.0], [2.0, 1.0]]
    assert layer.apply(params, jnp.array([[3.0, 4.0]])).tolist() == [[12.0, -3.0]]


def test_linear_rounds_its_factors_and_sums_in_the_dtype_of_the_result():
    params = {"params": {"weight": jnp.array([[1.0, 1 / 256], [1.0 + 2**-12, 0.0]])}}
    layer = Linear(2, jnp.bfloat16, bias=False, out=jnp.float32)
    out = layer.apply(params, jnp.ones((3, 2)))
    assert out.dtype == jnp.float32
    assert out.tolist() == [[1 + 1 / 256, 1.0]] * 3  # 2**-12 is lost in the weight, 1 / 256 is kept
