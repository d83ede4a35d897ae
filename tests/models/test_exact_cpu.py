# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Products, sums and norms of a row do not depend on how many rows there are, to the last bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvlm_jax.models.common.exact_cpu import product, row_sum, unit_rms


def normal(seed, *shape):
    """From NumPy, whose arrays are cut without compiling anything."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize(("width", "out"), [(192, 512), (576, 1536), (896, 192), (2048, 64)])
def test_a_row_has_the_same_bits_alone_and_among_others(width, out, batch):
    multiply = jax.jit(product, static_argnums=2)
    y = normal(2, *batch, out, width)
    x = np.broadcast_to(normal(1, 256, width), (*batch, 256, width))
    together = np.asarray(multiply(x, y, jnp.float32))
    for rows in (1, 2, 8, 32, 128):
        np.testing.assert_array_equal(
            multiply(x[..., :rows, :], y, jnp.float32), together[..., :rows, :]
        )
    np.testing.assert_allclose(together, jnp.einsum("...mc,...dc->...md", x, y), rtol=1e-4)


@pytest.mark.parametrize(
    ("inner", "columns"), [(16, 64), (64, 64), (80, 128), (128, 256), (320, 64), (192, 128)]
)
def test_a_transposed_factor_gives_the_same_bits_where_columns_fill_the_lanes(inner, columns):
    multiply = jax.jit(product, static_argnums=(2, 3))
    x, y = normal(1, 6, 256, inner), normal(2, 6, columns, inner)
    together = np.asarray(multiply(x, y, jnp.float32, False))
    for rows in (1, 2, 3, 5, 7, 8, 16):
        alone = multiply(x[:, :rows], np.swapaxes(y, 1, 2), jnp.float32, True)
        np.testing.assert_array_equal(alone, together[:, :rows])


def test_a_transposed_factor_may_have_any_size():
    x, y = np.random.default_rng(0).normal(size=(2, 3, 5)), np.ones((2, 5, 7))
    expected = np.repeat(x.sum(axis=2, keepdims=True), 7, axis=2)
    found = product(jnp.float32(x), jnp.float32(y), jnp.float32, transposed=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    alone = product(jnp.float32(x[:, :1]), jnp.float32(y), jnp.float32, transposed=True)
    np.testing.assert_allclose(alone, expected[:, :1], rtol=1e-5)


@pytest.mark.parametrize("length", [16, 48, 192, 300, 1024])
def test_a_row_has_the_same_sum_alone_and_among_others(length):
    total = jax.jit(lambda x: row_sum(jnp.square(x)))  # a part of a loop, as in norm and softmax
    x = normal(0, 4, 48, length)
    sums = np.asarray(total(x))
    for rows in (1, 3, 24):
        np.testing.assert_array_equal(total(x[:, :rows]), sums[:, :rows])
        np.testing.assert_array_equal(total(x[2:3, :rows]), sums[2:3, :rows])
    exact = np.square(np.float64(x)).sum(-1, keepdims=True)
    np.testing.assert_allclose(sums, exact, rtol=1e-6)


def test_the_gradient_of_a_sum_is_the_same_for_all_its_terms():
    gradient = jax.grad(lambda x: (row_sum(x)[..., 0] * jnp.array([1.0, 2.0])).sum())
    assert gradient(jnp.ones((2, 3))).tolist() == [[1.0] * 3, [2.0] * 3]


@pytest.mark.parametrize("width", [80, 192, 576, 1024])
def test_a_row_has_the_same_norm_alone_and_among_others(width):
    norm = jax.jit(lambda x: unit_rms(x, 1e-6))
    x = normal(0, 4, 48, width)
    together = np.asarray(norm(x))
    for rows in (1, 3, 24):
        np.testing.assert_array_equal(norm(x[:, :rows]), together[:, :rows])
    root = np.sqrt(np.square(np.float64(x)).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(together, x / root, rtol=1e-6)


@pytest.mark.parametrize(("inner", "outer"), [(3, 5), (5, 3)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_a_product_with_a_matrix_are_those_of_the_sum(inner, outer, dtype):
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(2, 4, inner)), rng.normal(size=(2, 4, outer))
    y = rng.normal(size=(outer, inner))

    def pulled(x, y):
        return (product(x, y, jnp.float32) * g).sum()

    of_x, of_y = jax.jit(jax.grad(pulled, (0, 1)))(jnp.asarray(x, dtype), jnp.asarray(y, dtype))
    assert of_x.dtype == of_y.dtype == dtype
    exact = dtype == "float32"
    close = {"rtol": 1e-5, "atol": 1e-6} if exact else {"rtol": 0.02, "atol": 0.05}
    np.testing.assert_allclose(np.float32(of_x), np.einsum("abd,dc->abc", g, y), **close)
    np.testing.assert_allclose(np.float32(of_y), np.einsum("abd,abc->dc", g, x), **close)
