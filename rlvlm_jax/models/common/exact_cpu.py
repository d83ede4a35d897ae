# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Products, sums and norms that on CPU round a token the same way in a batch of any shape.

The usual ones do not: the order of a sum depends on the shape it is compiled for. So the last bits
of a token that runs alone, as in the sampler, differ from those of the same token among others, as
in the trainer. Measured in float32 on a model of 135M trained weights: the largest difference
between the sampler's and the trainer's log-probability of a token falls from 3.1e-5 nats to 0, with
jax 0.10.2 and 0.12.0. The rest of this package need not care. On GPU and TPU nothing is guaranteed,
and sums are the library's.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from rlvlm_jax.types import Array

LANES = 64  # columns of a product


def transposed_is_exact(columns: int) -> bool:
    """Returns whether `product` gives the same bits with and without `transposed` factors.

    Args:
        columns: D of the result.
    """
    return columns % LANES == 0


def product(x: Array, y: Array, dtype: Any, transposed: bool = False) -> Array:
    """Returns x y^T: [..., M, D] of x [..., M, C] and y [..., D, C] or [D, C], in `dtype`.

    Both factors are contracted along their last axis. In this form a row of the result has, on CPU,
    the same bits for any number of rows; contracting along the first axis of `y` does not guarantee
    that (measured for widths of 192 to 2048). A single row would take another code path, so it is
    computed twice.

    With `transposed`, `y` is [..., C, D]. That is faster for few rows. For a batch of `y` it gives
    the same bits if `transposed_is_exact(D)`.
    """
    return (
        _product(x, y, dtype, transposed) if transposed or y.ndim > 2 else _by_weight(x, y, dtype)
    )


def _product(x, y, dtype, transposed=False):
    rows = x.shape[-2] if y.ndim > 2 else x.size // x.shape[-1]
    if rows == 1:
        x = jnp.concatenate([x, x], axis=-2)
    equation = "...mc,...cd->...md" if transposed else "...mc,...dc->...md"
    result = jnp.einsum(equation, x, y, preferred_element_type=dtype)
    return result[..., :1, :] if rows == 1 else result


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _by_weight(x, y, dtype):
    """`product` with one matrix; its gradient transposes the narrower of its two factors.

    The gradient [D, C] is a product along the rows. For it, XLA on CPU first transposes a copy of
    one factor, by default the wider one. A float32 result of bfloat16 factors, such as the logits,
    sends its gradient back in bfloat16.
    """
    return _product(x, y, dtype)


def _by_weight_forward(x, y, dtype):
    return _product(x, y, dtype), (x, y)


def _by_weight_backward(dtype, factors, g):
    del dtype
    x, y = factors
    g = g.astype(y.dtype)
    x_grad = jnp.einsum("...md,dc->...mc", g, y, preferred_element_type=x.dtype)
    x_rows, g_rows = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    if x_rows.shape[1] < g_rows.shape[1]:
        y_grad = jnp.einsum("mc,md->cd", x_rows, g_rows, preferred_element_type=y.dtype).T
    else:
        y_grad = jnp.einsum("md,mc->dc", g_rows, x_rows, preferred_element_type=y.dtype)
    return x_grad, y_grad


_by_weight.defvjp(_by_weight_forward, _by_weight_backward)


def row_sum(x: Array) -> Array:
    """Sums float32[..., M, S] along the last axis: float32[..., M, 1].

    On CPU it adds the upper half of the columns to the lower until one is left, as a tree. The
    order of a reduction depends on the loop it is compiled into; from jax 0.12 on, a product with
    ones depends on the number of rows.
    """
    return jax.lax.platform_dependent(x, cpu=_sum_by_halves, default=_sum)


def _sum(x):
    return jnp.sum(x, axis=-1, keepdims=True)


@jax.custom_jvp
def _sum_by_halves(x):
    width = 1 << (x.shape[-1] - 1).bit_length()
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])
    while width > 1:
        width //= 2
        x = x[..., :width] + x[..., width:]
    return x


@_sum_by_halves.defjvp
def _sum_by_halves_jvp(primals, tangents):
    return _sum_by_halves(*primals), _sum(*tangents)  # its gradient is a broadcast


def unit_rms(x: Array, epsilon: float) -> Array:
    """Divides float32[..., M, D] by the root of its mean square: x / sqrt(mean(x^2) + epsilon).

    Computed as sqrt(D) / sqrt(sum(x^2) + D epsilon). The last bits of the usual reciprocal square
    root of a mean differ between a vectorised loop and its remainder, so a token's norm would
    depend on the number of tokens. Exact roots and quotients avoid that. The maximum changes no
    value; it keeps the compiler from turning the root back into a reciprocal root.
    """
    width = x.shape[-1]
    total = row_sum(jnp.square(x)) + width * epsilon
    root = jnp.maximum(jnp.sqrt(total), jnp.finfo(jnp.float32).tiny)
    return x * (width**0.5 / root)
