# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Teacher-forced log-probabilities and entropies of responses, without all logits in memory.

The old, reference and new passes, supervised training and `VLM.logprobs` all use this module, so
that they cannot differ. Logits exist for `chunk` response tokens per row at a time.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlvlm_jax.sampling.logits import Policy
from rlvlm_jax.types import Array, Params, Prompts


def _chunk_stats(
    model: Any, policy: Policy, params: Params, hidden: Array, tokens: Array
) -> tuple[Array, Array]:
    """Returns (log-probability of the token, entropy), float32[B, c] each, in nats."""
    scaled = policy.scale(model.logits(params, hidden))  # float32[B, c, V]
    normaliser = jax.nn.logsumexp(scaled, axis=-1)
    chosen = jnp.take_along_axis(scaled, tokens[..., None], axis=-1)[..., 0]
    finite = jnp.where(jnp.isfinite(scaled), scaled, 0.0)  # a banned token adds 0, not 0 * -inf
    probabilities = jnp.exp(scaled - normaliser[..., None])
    entropy = normaliser - jnp.sum(probabilities * finite, axis=-1)
    return chosen - normaliser, entropy


def _count_positions(batch: Prompts) -> Prompts:
    """Returns the batch with token counts as positions, on all three axes."""
    counted = jnp.maximum(jnp.cumsum(batch.mask, axis=1) - 1, 0)
    flat = jnp.broadcast_to(counted[:, None], batch.positions.shape)
    return batch._replace(positions=flat.astype(batch.positions.dtype))


def _stats_in_chunks(
    model: Any, policy: Policy, params: Params, chunk: int, hidden: Array, tokens: Array
) -> tuple[Array, Array]:
    """`_chunk_stats` of hidden [B, R, D] and tokens int32[B, R], `chunk` tokens per row at once."""
    rows, length, width = hidden.shape
    size = min(chunk, length)
    padding = -length % size
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    tokens = jnp.pad(tokens, ((0, 0), (0, padding)))
    params = model.spread(params)
    hidden = hidden.reshape(rows, -1, size, width).swapaxes(0, 1)  # [chunks, B, c, D]
    tokens = tokens.reshape(rows, -1, size).swapaxes(0, 1)

    @jax.checkpoint  # the backward pass recomputes the logits
    def stats(chunked: tuple[Array, Array]) -> tuple[Array, Array]:
        return _chunk_stats(model, policy, params, *chunked)

    lps, entropies = jax.lax.map(stats, (hidden, tokens))
    lps, entropies = (x.swapaxes(0, 1).reshape(rows, -1)[:, :length] for x in (lps, entropies))
    return lps, entropies


def make_logprobs_fn(
    model: Any,
    policy: Policy,
    chunk: int,
    *,
    flat_positions: bool = False,
    entropy_gradient: bool = False,
) -> Callable[..., tuple[Array, Array]]:
    """Builds logprobs(params, batch, features, tokens, mask) -> (log-probs, entropies).

    Args:
        model: functions `forward`, `spread`, `logits` (see models.Model).
        policy: the distribution, the same as the sampler's.
        chunk: response tokens per row whose logits exist at a time; their memory is
            4 * B * chunk * V bytes.
        flat_positions: use token counts instead of the batch's rotary positions, on all axes.
            # MAYE's code does so by mistake in training, not in sampling.
        entropy_gradient: whether gradients also flow through entropies.

    Returns:
        A function of (params, N prompts, image features, int32[B, R], bool[B, R]) that
        returns two float32[B, R] in nats, 0 outside the mask. If features is None, it computes
        them, so that gradients reach the vision tower. B is a multiple of N; the B / N responses of
        a prompt are adjacent and share one pass over it. Entropies are of the policy's full
        distribution.
    """

    def logprobs(
        params: Params, batch: Prompts, features: Array | None, tokens: Array, mask: Array
    ) -> tuple[Array, Array]:
        if flat_positions:
            batch = _count_positions(batch)
        if features is None:
            features = model.encode_images(params, batch)
        hidden = model.forward(params, batch, features, tokens, mask)  # [B, R, D]
        targets = jnp.where(mask, tokens, 0)
        lps, entropies = _stats_in_chunks(model, policy, params, chunk, hidden, targets)
        lps, entropies = jnp.where(mask, lps, 0.0), jnp.where(mask, entropies, 0.0)
        return lps, entropies if entropy_gradient else jax.lax.stop_gradient(entropies)

    return logprobs


def make_packed_logprobs_fn(
    model: Any,
    policy: Policy,
    chunk: int,
    *,
    flat_positions: bool = False,
    entropy_gradient: bool = False,
) -> Callable[..., tuple[Array, Array, Array]]:
    """Builds the same function for tokens packed into streams; see `packing.Plan`.

    Args:
        model: functions `packed`, `spread`, `logits`, and `encode_images` if features is None.
        policy: see `make_logprobs_fn`.
        chunk: tokens per stream whose logits exist at a time.
        flat_positions: see `make_logprobs_fn`.
        entropy_gradient: see `make_logprobs_fn`.

    Returns:
        logprobs(params, N prompts, image features, int32[B, R], bool[B, R], source
        int32[S, T], previous int32[S, T]) -> (log-probs, entropies, present): two float32[B, R] in
        nats, 0 outside `present`, and bool[B, R], the tokens of the mask that are in the streams.
    """

    def logprobs(
        params: Params,
        batch: Prompts,
        features: Array | None,
        tokens: Array,
        mask: Array,
        source: Array,
        previous: Array,
    ) -> tuple[Array, Array, Array]:
        if flat_positions:
            batch = _count_positions(batch)
        if features is None:
            features = model.encode_images(params, batch)
        hidden = model.packed(params, batch, features, tokens, source)  # [S, T, D]
        hidden = jnp.take_along_axis(hidden, previous[..., None], axis=1)
        index = source - batch.tokens.size  # among the responses' tokens
        targets = jnp.where(index >= 0, jnp.take(tokens, jnp.maximum(index, 0)), 0)
        stats = _stats_in_chunks(model, policy, params, chunk, hidden, targets)
        flat_index = jnp.where(index >= 0, index, tokens.size)

        def spread(values: Array) -> Array:
            flat = jnp.zeros(tokens.size, values.dtype)
            return flat.at[flat_index].set(values, mode="drop").reshape(tokens.shape)

        lps, entropies = (jnp.where(mask, spread(x), 0.0) for x in stats)
        present = mask & spread(index >= 0)
        return lps, entropies if entropy_gradient else jax.lax.stop_gradient(entropies), present

    return logprobs
