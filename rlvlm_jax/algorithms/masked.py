# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reductions over the part of an array that counts: the only place that divides by a mask's sum.

The advantages, the losses and the metrics all reduce through these functions, so that no two of
them can disagree about padding or about an empty mask. They know nothing about tokens or rewards.
"""

import jax
import jax.numpy as jnp

Axis = int | tuple[int, ...] | None


def check_shape(name: str, array: jax.Array, shape: tuple[int | None, ...]) -> None:
    """Refuses an array of another shape, before broadcasting could hide the mistake.

    Args:
        name: What to call the array in the message.
        array: Any array.
        shape: The expected sizes, None where any size will do.

    Raises:
        ValueError: The rank or a size differs.
    """
    sizes = zip(array.shape, shape, strict=False)
    if array.ndim != len(shape) or any(want not in (None, got) for got, want in sizes):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {array.shape}, expected ({expected})")


def fill(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Puts 0 where nothing counts, in float32.

    Applied to *inputs*, before any exponential: a garbage value that reaches exp gives an infinite
    derivative there, and a mask applied afterwards multiplies it by 0, which is NaN.

    Args:
        values: Number[...], anything at all outside the mask.
        mask: bool[...], of a shape that broadcasts with the values'.

    Returns:
        float32[...].
    """
    return jnp.where(jnp.asarray(mask, bool), jnp.asarray(values, jnp.float32), 0.0)


def sum(values: jax.Array, mask: jax.Array, axis: Axis = None, keepdims: bool = False) -> jax.Array:
    """Adds up the values that count; float32, 0 where none does."""
    return jnp.sum(fill(values, mask), axis=axis, keepdims=keepdims)


def count(mask: jax.Array, axis: Axis = None, keepdims: bool = False) -> jax.Array:
    """Counts what counts; float32, exact below 2**24 items."""
    return jnp.sum(jnp.asarray(mask, bool), axis=axis, keepdims=keepdims, dtype=jnp.float32)


def mean(
    values: jax.Array, mask: jax.Array, axis: Axis = None, keepdims: bool = False
) -> jax.Array:
    """Averages the values that count.

    Args:
        values: Number[...].
        mask: bool[...] of the values' shape.
        axis: Axes to reduce, None for all.
        keepdims: Whether reduced axes stay as axes of size 1.

    Returns:
        float32, 0 where nothing counts.
    """
    return sum(values, mask, axis, keepdims) / jnp.maximum(count(mask, axis, keepdims), 1.0)


def centre(values: jax.Array, mask: jax.Array, axis: Axis = None) -> jax.Array:
    """Subtracts the mean of the values that count.

    The mean is taken of the distances to the smallest value. Equal values, whatever they are, thus
    give exactly 0 and no rounding noise that a later division by a deviation would blow up.

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
    """Computes the variance of the values that count.

    sum((x - mean)**2) / (count - ddof)

    Args:
        values: Number[...].
        mask: bool[...] of the values' shape.
        axis: Axes to reduce, None for all.
        keepdims: Whether reduced axes stay as axes of size 1.
        ddof: 1 for the unbiased variance, 0 for the population's.

    Returns:
        float32 in squared units; 0 where count <= ddof, and exactly 0 where all values are equal.
    """
    squares = sum(jnp.square(centre(values, mask, axis)), mask, axis, keepdims)
    return squares / jnp.maximum(count(mask, axis, keepdims) - ddof, 1.0)


def whiten(
    values: jax.Array, mask: jax.Array, *, keep_mean: bool = False, eps: float = 1e-8
) -> jax.Array:
    """Scales the values that count to unit variance, around 0 or around their mean.

    (x - mean) / sqrt(var + eps) [+ mean], with the unbiased variance over everything that counts.

    Args:
        values: Number[...].
        mask: bool[...] of the values' shape.
        keep_mean: Whether the mean is added back after the division.
        eps: Added to the variance, squared units. It bounds how far tiny differences are enlarged:
            with 1e-8, by a factor of 1e4.

    Returns:
        float32[...] of the values' shape, 0 outside the mask. Equal values give exactly 0 (with
        keep_mean, their common value).
    """
    whitened = centre(values, mask) * jax.lax.rsqrt(var(values, mask) + eps)
    return fill(whitened + mean(values, mask), mask) if keep_mean else whitened


def is_last(mask: jax.Array) -> jax.Array:
    """Marks the last position that counts of each row.

    Args:
        mask: bool[B, R].

    Returns:
        bool[B, R], one True in a row, none where the row of the mask is empty.
    """
    mask = jnp.asarray(mask, bool)
    left = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]  # positions that count from here on
    return mask & (left == 1)
