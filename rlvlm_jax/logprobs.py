# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Teacher-forced log-probabilities and entropies of responses, without all logits in memory.

The old, reference and new passes, supervised training and `VLM.logprobs` all use this module, so
that they cannot differ. Logits exist for `chunk` response tokens per row at a time.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rlvlm_jax.models.model import Model
from rlvlm_jax.sampling.logits import Policy
from rlvlm_jax.types import Array, Params, Prompts

CHUNK = 64  # response tokens per row whose logits exist at a time

Streams = tuple[Array, Array]  # (source, previous), int32[S, T] each, of a `packing.Plan`


def logprobs(
    model: Model,
    policy: Policy,
    chunk: int,
    params: Params,
    prompts: Prompts,
    features: Any,
    tokens: Array,
    valid: Array,
    scored: Array,
    streams: Streams | None = None,
    *,
    flat_positions: bool = False,
    entropy_gradient: bool = False,
) -> tuple[Array, Array, Array]:
    """Computes log-probabilities and entropies of responses, as rows or packed into streams.

    Args:
        model: functions `forward` or `packed`, `spread`, `logits`, and `encode_images` if features
            is None.
        policy: the distribution, the same as the sampler's.
        chunk: tokens per row or stream whose logits exist at a time; their memory is
            4 * rows * chunk * V bytes.
        params: of the model.
        prompts: N prompts.
        features: of their images. If None, they are computed here, so that gradients reach the
            vision tower.
        tokens: int32[B, R]. B is a multiple of N; the B / N responses of a prompt are adjacent and
            share one pass over it.
        valid: bool[B, R], tokens that exist; later tokens attend to them.
        scored: bool[B, R], the valid tokens of interest.
        streams: the tokens to compute, packed; None for all, one row per response.
        flat_positions: use token counts instead of the prompts' rotary positions, on all axes.
            # MAYE's code does so by mistake in training, not in sampling.
        entropy_gradient: whether gradients also flow through entropies.

    Returns:
        (log-probabilities, entropies, present). The first two are float32[B, R] in nats, 0 outside
        `present`. Entropies are of the policy's full distribution. `present`, bool[B, R], are the
        scored tokens that were computed.
    """
    if flat_positions:
        prompts = _count_positions(prompts)
    if features is None:
        features = model.encode_images(params, prompts)
    if streams is None:
        hidden = model.forward(params, prompts, features, tokens, valid)  # [B, R, D]
        targets, present = jnp.where(scored, tokens, 0), scored
    else:
        source, previous = streams
        hidden = model.packed(params, prompts, features, tokens, source)  # [S, T, D]
        hidden = jnp.take_along_axis(hidden, previous[..., None], axis=1)
        index = source - prompts.tokens.size  # among the responses' tokens
        targets = jnp.where(index >= 0, jnp.take(tokens, jnp.maximum(index, 0)), 0)

    hidden, targets, (rows, length) = _chunks(hidden, targets, chunk)
    stats = jax.checkpoint(  # the backward pass recomputes the logits
        partial(_chunk_stats, model, policy, model.spread(params))
    )
    lps, entropies = jax.lax.map(stats, (hidden, targets))
    lps, entropies = (x.swapaxes(0, 1).reshape(rows, -1)[:, :length] for x in (lps, entropies))
    if streams is not None:
        index = jnp.where(index >= 0, index, tokens.size)
        lps, entropies = (_from_streams(x, index, tokens.shape) for x in (lps, entropies))
        present = scored & _from_streams(index < tokens.size, index, tokens.shape)
    lps, entropies = jnp.where(present, lps, 0.0), jnp.where(present, entropies, 0.0)
    return lps, entropies if entropy_gradient else jax.lax.stop_gradient(entropies), present


def _chunk_stats(
    model: Model, policy: Policy, params: Params, chunk: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Returns (log-probability, entropy) of a chunk (hidden [B, c, D], tokens int32[B, c]).

    Both are float32[B, c], in nats.
    """
    hidden, tokens = chunk
    scaled = policy.scale(model.logits(params, hidden))  # float32[B, c, V]
    normaliser = jax.nn.logsumexp(scaled, axis=-1)
    chosen = jnp.take_along_axis(scaled, tokens[..., None], axis=-1)[..., 0]
    finite = jnp.where(jnp.isfinite(scaled), scaled, 0.0)  # a banned token adds 0, not 0 * -inf
    probabilities = jnp.exp(scaled - normaliser[..., None])
    entropy = normaliser - jnp.sum(probabilities * finite, axis=-1)
    return chosen - normaliser, entropy


def _chunks(hidden: Array, tokens: Array, chunk: int) -> tuple[Array, Array, tuple[int, int]]:
    """Cuts hidden [B, R, D] and tokens int32[B, R] to [chunks, B, c, ...]; also returns (B, R)."""
    rows, length, width = hidden.shape
    size = min(chunk, length)
    padding = -length % size
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    tokens = jnp.pad(tokens, ((0, 0), (0, padding)))
    hidden = hidden.reshape(rows, -1, size, width).swapaxes(0, 1)
    return hidden, tokens.reshape(rows, -1, size).swapaxes(0, 1), (rows, length)


def _from_streams(values: Array, index: Array, shape: tuple[int, int]) -> Array:
    """Returns [B, R], the values [S, T] at their index among B * R; 0 for tokens not in it."""
    flat = jnp.zeros(shape[0] * shape[1], values.dtype)
    return flat.at[index].set(values, mode="drop").reshape(shape)


def _count_positions(prompts: Prompts) -> Prompts:
    """Returns the prompts with token counts as positions, on all three axes."""
    counted = jnp.maximum(jnp.cumsum(prompts.mask, axis=1) - 1, 0)
    flat = jnp.broadcast_to(counted[:, None], prompts.positions.shape)
    return prompts._replace(positions=flat.astype(prompts.positions.dtype))
