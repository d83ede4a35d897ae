# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Pure functions that draw tokens from logits.

`Policy` is the distribution whose log-probabilities are recorded and trained. Top-k and top-p only
restrict what is drawn. They do not affect the recorded log-probabilities, which are those of the
full policy in both sampler and trainer.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Policy(NamedTuple):
    """softmax(logits / temperature) over the tokens that are not banned."""

    temperature: float = 1.0
    banned: tuple[int, ...] = ()  # token ids of probability 0: the vision tokens

    def scale(self, logits: jax.Array) -> jax.Array:
        """Returns float32[..., V], the policy's unnormalised log-probabilities.

        Args:
            logits: float32[..., V], the model's.
        """
        logits = logits.astype(jnp.float32) / self.temperature
        if self.banned:
            allowed = np.ones(logits.shape[-1], bool)
            allowed[list(self.banned)] = False
            logits = jnp.where(allowed, logits, -jnp.inf)
        return logits


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
    """Sets all but the k largest logits to -inf; keeps ties with the k-th.

    Args:
        logits: float32[..., V].
        k: 0 keeps everything.
    """
    if k == 0 or k >= logits.shape[-1]:
        return logits
    smallest = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits < smallest, -jnp.inf, logits)


def keep_top_p(logits: jax.Array, p: float) -> jax.Array:
    """Keeps the smallest set of most probable tokens whose probabilities add up to at least p.

    The most probable token is always kept, so a tiny p is greedy decoding; ties with the last one
    are kept too. No sort: bisection over the 2^30 floats between 0 and 1 finds the smallest
    probability to keep.

    Args:
        logits: float32[..., V].
        p: 1 keeps everything.

    Source: Holtzman et al. 2020 (arXiv:1904.09751), nucleus sampling.
    """
    if p >= 1:
        return logits
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))  # the largest is 1
    enough = p * weights.sum(axis=-1, keepdims=True)

    def value(bits: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(bits, jnp.float32)

    def halve(_: int, limits: tuple) -> tuple:
        # The mass above `low` reaches p, the mass above `high` does not.
        low, high = limits
        middle = jnp.maximum((low + high) // 2, 0)
        above = jnp.where(weights > value(middle), weights, 0.0).sum(axis=-1, keepdims=True)
        return jnp.where(above < enough, low, middle), jnp.where(above < enough, middle, high)

    bits_of_one = jax.lax.bitcast_convert_type(jnp.float32(1.0), jnp.int32)
    low = jnp.full(enough.shape, -1, jnp.int32)
    _, smallest = jax.lax.fori_loop(0, 31, halve, (low, jnp.full_like(low, bits_of_one)))
    return jnp.where(weights >= value(smallest), logits, -jnp.inf)


def choose(
    keys: jax.Array, logits: jax.Array, row_sum: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Draws one token per row from softmax(logits), with two random numbers instead of V.

    The vocabulary is cut into about sqrt(V) runs. The first number chooses a run by its mass, the
    second a token in the run, both by inverting the cumulative distribution. A token of probability
    0 is never chosen.

    Args:
        keys: key[B].
        logits: float32[B, V], at least one finite in each row.
        row_sum: float32[..., M, S] -> float32[..., M, 1]. If it does not depend on the number of
            rows, neither does the token.

    Returns:
        int32[B].

    Source: Devroye 1986, Non-Uniform Random Variate Generation, chapter III.2.
    """
    rows, vocabulary = logits.shape
    size = max(1, round(vocabulary**0.5))
    runs = -(-vocabulary // size)
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    weights = jnp.pad(weights, ((0, 0), (0, runs * size - vocabulary))).reshape(rows, runs, size)
    random = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)

    def invert(weights: jax.Array, random: jax.Array) -> jax.Array:
        # At a weight of 0 the sum may still increase by a rounding error.
        mass = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0.0)
        return jnp.argmax(mass > random[:, None] * mass.max(axis=-1, keepdims=True), axis=-1)

    run = invert(row_sum(weights)[..., 0], random[:, 0])
    run_weights = jnp.take_along_axis(weights, run[:, None, None], axis=1)[:, 0]
    return (run * size + invert(run_weights, random[:, 1])).astype(jnp.int32)


def draw(
    keys: jax.Array,
    logits: jax.Array,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    row_sum: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Draws one token per row, each with its own key.

    Args:
        keys: key[B].
        logits: float32[B, V], not yet divided by the temperature; -inf where banned.
        temperature: 0 takes the most probable token.
        top_k: 0 = off.
        top_p: 1 = off.
        row_sum: see `choose`.

    Returns:
        int32[B].
    """
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return choose(keys, keep_top_p(keep_top_k(logits / temperature, top_k), top_p), row_sum)
