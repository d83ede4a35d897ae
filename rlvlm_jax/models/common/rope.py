# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Rotary embeddings as pure functions: M-RoPE for the decoder, 2-D for the vision tower.

A rotary pair is (cos, sin), each float32[..., E/2]. The vector pairs (x_j, x_{j + E/2}) are rotated
by angle j. Positions of tokens come with the prompts; this module only maps them to angles.
"""

import jax.numpy as jnp
import numpy as np

from rlvlm_jax.types import Array

VISION_THETA = 10000.0


def frequencies(size: int, theta: float) -> np.ndarray:
    """Returns theta^(-2j / size) for j < size / 2, float32[size / 2], radians per position."""
    # All in float32, as in the training of the published models.
    return 1.0 / np.float32(theta) ** (np.arange(0, size, 2, dtype=np.float32) / np.float32(size))


def mrope(positions: Array, sections: tuple[int, int, int], theta: float) -> tuple[Array, Array]:
    """Computes the rotary pair of (time, row, column) positions.

    Frequency j belongs to time, row or column in turn: the first `sections[0]` to time, the next
    `sections[1]` to the row, the rest to the column. With three equal axes this is plain rotary.

    Args:
        positions: int32[..., 3, T].
        sections: number of frequencies of each axis; they add up to E / 2.
        theta: base of the frequencies.

    Returns:
        (cos, sin), float32[..., T, E/2].

    Source: Wang et al. 2024, Qwen2-VL (arXiv:2409.12191), section 2.1.
    """
    axis = np.repeat(np.arange(3), sections)  # [E/2]
    per_frequency = jnp.swapaxes(positions[..., axis, :], -1, -2).astype(jnp.float32)
    angles = per_frequency * frequencies(2 * len(axis), theta)
    return jnp.cos(angles), jnp.sin(angles)


def rope_2d(coords: Array, size: int) -> tuple[Array, Array]:
    """Computes the rotary pair of (row, column) coordinates: half the frequencies for each.

    Args:
        coords: int32[..., 2].
        size: head size E, a multiple of 4.

    Returns:
        (cos, sin), float32[..., E/2]: E/4 angles of the row, then E/4 of the column.
    """
    angles = coords[..., None].astype(jnp.float32) * frequencies(size // 2, VISION_THETA)
    angles = angles.reshape(*coords.shape[:-1], size // 2)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Array, rotary: tuple[Array, Array]) -> Array:
    """Rotates each head by the position of its token, in float32.

    Args:
        x: [..., T, H, E].
        rotary: (cos, sin), float32[..., T, E/2].

    Returns:
        [..., T, H, E] in the dtype of `x`.
    """
    cos, sin = (part[..., None, :] for part in rotary)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
