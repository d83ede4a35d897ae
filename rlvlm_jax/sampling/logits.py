# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From logits to a choice of token: pure functions of one row of logits each, or of a batch.

`Policy` names the distribution whose log-probabilities are recorded and trained. Top-k and top-p
only restrict what is drawn; they do not enter the recorded log-probabilities, which stay those of
the full policy in the sampler and in the trainer alike.
"""

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
    """Sets all but the k largest logits to -inf; ties with the k-th stay.

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

    The most probable token always stays, so a tiny p is greedy decoding.

    Args:
        logits: float32[..., V].
        p: 1 keeps everything.

    Source: Holtzman et al. 2020 (arXiv:1904.09751), nucleus sampling.
    """
    if p >= 1:
        return logits
    ordered = -jnp.sort(-logits, axis=-1)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities  # mass of more probable tokens
    kept = jnp.where(before < p, ordered, jnp.inf).at[..., 0].set(ordered[..., 0])
    return jnp.where(logits < kept.min(axis=-1, keepdims=True), -jnp.inf, logits)


def draw(
    keys: jax.Array, logits: jax.Array, *, temperature: float, top_k: int, top_p: float
) -> jax.Array:
    """Draws one token a row, each with a key of its own.

    Args:
        keys: key[B].
        logits: float32[B, V], not yet divided by the temperature; -inf where banned.
        temperature: 0 takes the most probable token.
        top_k: 0 = off.
        top_p: 1 = off.

    Returns:
        int32[B].
    """
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    kept = keep_top_p(keep_top_k(logits / temperature, top_k), top_p)
    return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)
