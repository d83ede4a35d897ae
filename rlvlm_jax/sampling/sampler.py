# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Step II, response collection: one compiled program from prompts to responses.

Prompts are prefilled once each; their G samples read the same keys and values. The responses' own
cache is carried through a while loop whose body is a scan over `chunk` tokens, so the loop ends
when every row has stopped, without asking the host. The sampler gets the model as functions and
knows nothing of text, rewards or training.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlvlm_jax.sampling.logits import Policy, draw
from rlvlm_jax.types import Array, Batch, Params, Rollout


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How responses are drawn, and which distribution's log-probabilities are recorded."""

    samples: int  # G, responses a prompt
    max_tokens: int  # R
    stop_ids: tuple[int, ...]  # any of them ends a response, and belongs to it
    pad_id: int
    banned_ids: tuple[int, ...] = ()  # never drawn
    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0
    top_k: int = 0
    chunk: int = 16  # tokens between two looks at whether every row has stopped
    policy: Policy = Policy()  # recorded


def sequence_keys(key: Array, sequence_ids: Array) -> Array:
    """Returns key[B], one a sequence: fold_in(key, id), whatever the order of the rows.

    Args:
        key: the step's key.
        sequence_ids: uint32[B].
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, sequence_ids)


def next_positions(batch: Batch) -> Array:
    """Returns int32[N], the rotary position of the first response token of each prompt.

    One past the largest position of the prompt on any axis, as Qwen2-VL counts on after an image.
    """
    valid = jnp.where(batch.mask[:, None, :], batch.positions, -1)
    return valid.max(axis=(1, 2)) + 1


def make_sample_fn(model: Any, settings: SampleSettings) -> Callable[..., Rollout]:
    """Builds sample(params, batch, features, keys) -> Rollout, to be jitted once.

    Args:
        model: functions `prefill`, `decode`, `logits` (see models.Model).
        settings: static.

    Returns:
        A function of (params, Batch of N prompts, their image features, key[B]) with B = N * G
        and the samples of a prompt adjacent.
    """
    s = settings
    length = math.ceil(s.max_tokens / s.chunk) * s.chunk  # cache slots; R rounded up to a chunk
    stops = np.asarray(s.stop_ids, np.int32)
    forbidden = Policy(1.0, s.banned_ids)

    def sample(params: Params, batch: Batch, features: Array | None, keys: Array) -> Rollout:
        prompts, rows = batch.tokens.shape[0], batch.tokens.shape[0] * s.samples
        if features is None:
            features = model.encode_images(params, batch)
        hidden, prefix = model.prefill(params, batch, features)
        hidden = jnp.repeat(hidden, s.samples, axis=0)  # [B, D]
        first = jnp.repeat(next_positions(batch), s.samples)  # int32[B]
        done = jnp.repeat(~jnp.any(batch.mask, axis=1), s.samples)  # a dummy prompt is silent
        layers, _, _, heads, size = prefix["k"].shape
        slots = (layers, prompts * s.samples, length, heads, size)
        cache = {name: jnp.zeros(slots, prefix[name].dtype) for name in ("k", "v")}
        tokens = jnp.full((rows, length), s.pad_id, jnp.int32)
        mask = jnp.zeros((rows, length), bool)
        logprobs = jnp.zeros((rows, length), jnp.float32)

        def one_token(carry: tuple, t: Array) -> tuple[tuple, None]:
            hidden, cache, done, tokens, mask, logprobs = carry
            logits = model.logits(params, hidden)  # float32[B, V]
            row_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, t)
            token = draw(
                row_keys,
                forbidden.scale(logits),
                temperature=s.temperature,
                top_k=s.top_k,
                top_p=s.top_p,
            )
            token = jnp.where(done, s.pad_id, token)
            scaled = s.policy.scale(logits)
            chosen = jnp.take_along_axis(scaled, token[:, None], axis=1)[:, 0]
            logprob = chosen - jax.nn.logsumexp(scaled, axis=-1)
            tokens = jax.lax.dynamic_update_slice(tokens, token[:, None], (0, t))
            mask = jax.lax.dynamic_update_slice(mask, ~done[:, None], (0, t))
            logprob = jnp.where(done, 0.0, logprob)
            logprobs = jax.lax.dynamic_update_slice(logprobs, logprob[:, None], (0, t))
            done = done | jnp.isin(token, stops) | (t + 1 >= s.max_tokens)
            hidden, cache = model.decode(params, token, first + t, prefix, batch.mask, cache, t)
            return (hidden, cache, done, tokens, mask, logprobs), None

        def one_chunk(state: tuple) -> tuple:
            start, carry = state
            carry, _ = jax.lax.scan(one_token, carry, start + jnp.arange(s.chunk))
            return start + s.chunk, carry

        def unfinished(state: tuple) -> Array:
            start, (_, _, done, *_) = state
            return (start < length) & ~jnp.all(done)

        carry = (hidden, cache, done, tokens, mask, logprobs)
        _, carry = jax.lax.while_loop(unfinished, one_chunk, (jnp.int32(0), carry))
        tokens, mask, logprobs = (x[:, : s.max_tokens] for x in carry[3:])
        ended = jnp.any(jnp.isin(tokens, stops) & mask, axis=1)
        return Rollout(tokens, mask, logprobs, truncated=~ended & jnp.any(mask, axis=1))

    return sample
