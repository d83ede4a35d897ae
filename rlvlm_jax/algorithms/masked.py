# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Masked reductions: the only module that divides by a mask's sum.

Advantages, losses and metrics all reduce through these functions, so that they cannot disagree
about padding or an empty mask. The functions know nothing about tokens or rewards.
"""

import jax
import jax.numpy as jnp

Axis = int | tuple[int, ...] | None


def check_shape(name: str, array: jax.Array, shape: tuple[int | None, ...]) -> None:
    """Checks an array's shape, before broadcasting could hide a mistake.

    Args:
        name: Name of the array for the message.
        array: Any array.
        shape: The expected sizes; None accepts any size.

    Raises:
        ValueError: The rank or a size differs.
    """
    sizes = zip(array.shape, shape, strict=False)
    if array.ndim != len(shape) or any(want not in (None, size) for size, want in sizes):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {array.shape}, expected ({expected})")


def fill(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Sets values outside the mask to 0, in float32.

    Apply it to *inputs*, before any exponential: a garbage value in exp has an infinite derivative,
    and a mask applied afterwards multiplies it by 0, which is NaN.

    Args:
        values: Number[...], arbitrary outside the mask.
        mask: bool[...], broadcastable with the values.

    Returns:
        float32[...].
    """
    return jnp.where(jnp.asarray(mask, bool), jnp.asarray(values, jnp.float32), 0.0)


def sum(values: jax.Array, mask: jax.Array, axis: Axis = None, keepdims: bool = False) -> jax.Array:
    """Adds up the valid values; float32, 0 if there is none."""
    return jnp.sum(fill(values, mask), axis=axis, keepdims=keepdims)


def count(mask: jax.Array, axis: Axis = None, keepdims: bool = False) -> jax.Array:
    """Counts the True entries; float32, exact below 2**24."""
    return jnp.sum(jnp.asarray(mask, bool), axis=axis, keepdims=keepdims, dtype=jnp.float32)


def mean(
    values: jax.Array, mask: jax.Array, axis: Axis = None, keepdims: bool = False
) -> jax.Array:
    """Averages the valid values.

    Args:
        values: Number[...].
        mask: bool[...] of the values' shape.
        axis: Axes to reduce, None for all.
        keepdims: Whether reduced axes stay as axes of size 1.

    Returns:
        float32, 0 for an empty mask.
    """
    return sum(values, mask, axis, keepdims) / jnp.maximum(count(mask, axis, keepdims), 1.0)


def centre(values: jax.Array, mask: jax.Array, axis: Axis = None) -> jax.Array:
    """Subtracts the mean of the valid values.

    The mean is taken of the distances to the smallest value. Equal values thus give exactly 0, not
    rounding noise that a later division by a deviation would amplify.

    Args:
        values: Number[...].
        mask: bool[...] of the values' shape.
        axis: Axes over which to average, None for all.

    Returns:
        float32[...] of the values' shape, 0 outside the mask.
    """
    not_empty = count(mask, axis, keepdims=True) > 0
    values = fill(values, mask)
    lowest = jnp.min(jnp.where(mask, values, jnp.inf), axis=axis, keepdims=True)
    above = fill(values - jnp.where(not_empty, lowest, 0.0), mask)
    return fill(above - mean(above, mask, axis, keepdims=True), mask)


def var(
    values: jax.Array,
    mask: jax.Array,
    axis: Axis = None,
    keepdims: bool = False,
    *,
    ddof: int = 1,
) -> jax.Array:
    """Computes the variance of the valid values.

    sum((x - mean)**2) / (count - ddof)

    Args:
        values: Number[...].
        mask: bool[...] of the values' shape.
        axis: Axes to reduce, None for all.
        keepdims: Whether reduced axes stay as axes of size 1.
        ddof: 1 for the unbiased variance, 0 for the population's.

    Returns:
        float32 in squared units; 0 if count <= ddof, and exactly 0 if all values are equal.
    """
    squares = sum(jnp.square(centre(values, mask, axis)), mask, axis, keepdims)
    return squares / jnp.maximum(count(mask, axis, keepdims) - ddof, 1.0)


def whiten(
    values: jax.Array, mask: jax.Array, *, keep_mean: bool = False, eps: float = 1e-8
) -> jax.Array:
    """Scales the valid values to unit variance, around 0 or around their mean.

    (x - mean) / sqrt(var + eps) [+ mean], with the unbiased variance over all valid values.

    Args:
        values: Number[...].
        mask: bool[...] of the values' shape.
        keep_mean: Whether the mean is added back after the division.
        eps: Added to the variance, squared units. It bounds the amplification of tiny differences:
            with 1e-8, to a factor of 1e4.

    Returns:
        float32[...] of the values' shape, 0 outside the mask. Equal values give exactly 0 (with
        keep_mean, their common value).
    """
    whitened = centre(values, mask) * jax.lax.rsqrt(var(values, mask) + eps)
    return fill(whitened + mean(values, mask), mask) if keep_mean else whitened


def is_last(mask: jax.Array) -> jax.Array:
    """Marks the last valid position of each row.

    Args:
        mask: bool[B, R].

    Returns:
        bool[B, R], one True per row, none if the row's mask is empty.
    """
    mask = jnp.asarray(mask, bool)
    left = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]  # valid positions from here on
    return mask & (left == 1)
