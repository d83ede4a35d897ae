# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Filter of groups to train on, and the overlong penalty (between steps III and IV).

Knows nothing about refilling a batch, which the training loop does.
"""

import jax
import jax.numpy as jnp

from rlvlm_jax.algorithms.advantages import grouped
from rlvlm_jax.algorithms.masked import check_shape


def keep_groups(
    accuracy: jax.Array, group_size: int, low: float = 0.1, high: float = 0.9
) -> jax.Array:
    """Keeps the groups that are neither almost all wrong nor almost all right.

    keep_g = low <= mean_g(accuracy) <= high

    Args:
        accuracy: float32[B] in [0, 1], the accuracy reward only, samples of one prompt adjacent.
        group_size: G >= 1.
        low: Least mean accuracy, inclusive.
        high: Greatest mean accuracy, inclusive.

    Returns:
        bool[B], the same for all samples of a prompt.

    Raises:
        ValueError: group_size < 1, or it does not divide B, or not 0 <= low <= high <= 1.

    Source: MM-EUREKA (arXiv:2503.07365), online filter with 0.1 and 0.9; dynamic sampling of DAPO
        (arXiv:2503.14476) is low and high just inside 0 and 1.
    """
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError(f"low={low} and high={high} must satisfy 0 <= low <= high <= 1")
    means = jnp.mean(grouped("accuracy", accuracy, group_size, least=1), axis=1)
    slack = 1e-5  # 9 right of 10 count as 0.9, however float32 rounds
    keep = (means >= low - slack) & (means <= high + slack)
    return jnp.repeat(keep, group_size)


def overlong_penalty(lengths: jax.Array, max_length: int, cache_length: int) -> jax.Array:
    """Penalises responses softly in the last tokens before the limit.

    0 up to max_length - cache_length, then linear down to -1 at max_length, -1 beyond.

    Args:
        lengths: int32[B], tokens (not characters).
        max_length: Length from which the penalty is -1, tokens.
        cache_length: Width of the linear part, tokens, 1 to max_length.

    Returns:
        float32[B] in [-1, 0], reward units.

    Raises:
        ValueError: cache_length is not between 1 and max_length.

    Source: DAPO (arXiv:2503.14476), eq. 13.
    """
    if not 1 <= cache_length <= max_length:
        raise ValueError(
            f"cache_length={cache_length} must be between 1 and max_length={max_length}"
        )
    lengths = jnp.asarray(lengths, jnp.float32)
    check_shape("lengths", lengths, (None,))
    return jnp.clip((max_length - cache_length - lengths) / cache_length, -1.0, 0.0)
