# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Step II, response collection: one compiled program from prompts to responses.

Each prompt is prefilled once; its G samples read the same keys and values. A while loop carries the
responses' own cache. Its body scans over `chunk` tokens, so the loop ends when every row has
stopped, without involving the host. The cache grows in blocks, so that short responses do not
attend to slots for long ones. Once most rows have stopped, the others continue in a smaller batch.
The sampler receives the model as functions and knows nothing about text, rewards or training.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlvlm_jax.sampling.compaction import (
    Context,
    State,
    put_state,
    take_context,
    take_state,
    unfinished,
)
from rlvlm_jax.sampling.logits import Policy, draw
from rlvlm_jax.types import Array, Params, Prompts, Rollout

FIRST_BLOCK = 128  # slots, at least
BLOCKS = 4  # of the cache, at most: the loop is compiled once per block
SHRINK = 4  # after the first block, once at most 1 / SHRINK of the rows run, decode only those


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How responses are drawn, and which distribution's log-probabilities are recorded."""

    samples: int  # G, responses per prompt
    max_tokens: int  # R
    stop_ids: tuple[int, ...]  # each of them ends a response and is part of it
    pad_id: int
    banned_ids: tuple[int, ...] = ()  # never drawn
    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0
    top_k: int = 0
    chunk: int = 16  # tokens between two checks whether every row has stopped
    shards: int = 1  # parts of the batch on different devices
    policy: Policy = Policy()  # recorded


def sequence_keys(key: Array, sequence_ids: Array) -> Array:
    """Returns key[B], one per sequence: fold_in(key, id), independent of the order of rows.

    Args:
        key: the step's key.
        sequence_ids: uint32[B].
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, sequence_ids)


def rows_of(groups: np.ndarray, samples: int) -> np.ndarray:
    """Returns int[len(groups) * G], the rows of these groups' samples."""
    return (groups[:, None] * samples + np.arange(samples)).reshape(-1)


def next_positions(batch: Prompts) -> Array:
    """Returns int32[N], the rotary position of the first response token of each prompt.

    It is one past the prompt's largest position on any axis, as Qwen2-VL counts after an image.
    """
    valid = jnp.where(batch.mask[:, None, :], batch.positions, -1)
    return valid.max(axis=(1, 2)) + 1


def make_sample_fn(model: Any, settings: SampleSettings) -> Callable[..., Rollout]:
    """Builds sample(params, batch, features, keys) -> Rollout, to be jitted once.

    Args:
        model: see models.Model; `prefill`, `decode`, `next_logits` and what they need are used.
        settings: static.

    Returns:
        A function of (params, N prompts, their image features, key[B]) with B = N * G
        and the samples of a prompt adjacent.
    """
    s = settings
    length = math.ceil(s.max_tokens / s.chunk) * s.chunk  # cache slots; R rounded up to a chunk
    sizes = block_sizes(length, s.chunk)
    stops = np.asarray(s.stop_ids, np.int32)
    unbanned = Policy(1.0, s.banned_ids)

    def one_token(
        weights: Params, context: Context, state: State, inputs: tuple[Array, Any]
    ) -> tuple[State, None]:
        t, rotary = inputs
        logits = model.next_logits(weights, state.hidden)  # float32[B, V]
        row_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(context.keys, t)
        token = draw(
            row_keys,
            unbanned.scale(logits),
            temperature=s.temperature,
            top_k=s.top_k,
            top_p=s.top_p,
            row_sum=model.row_sum,
        )
        token = jnp.where(state.done, s.pad_id, token)
        scaled = s.policy.scale(logits)
        chosen = jnp.take_along_axis(scaled, token[:, None], axis=1)[:, 0]
        logprob = jnp.where(state.done, 0.0, chosen - jax.nn.logsumexp(scaled, axis=-1))

        def write(x: Array, column: Array) -> Array:
            return jax.lax.dynamic_update_slice(x, column[:, None], (0, t))

        hidden, cache = model.decode(
            weights, token, rotary, context.prefix, context.mask, state.cache, t
        )
        return State(
            hidden=hidden,
            cache=cache,
            done=state.done | jnp.isin(token, stops) | (t + 1 >= s.max_tokens),
            tokens=write(state.tokens, token),
            mask=write(state.mask, ~state.done),
            logprobs=write(state.logprobs, logprob),
        ), None

    def one_chunk(
        weights: Params, context: Context, shard_rows: int, state: State, t: Array
    ) -> State:
        """Decodes s.chunk tokens; only unfinished rows if at most `shard_rows` per shard."""
        steps = t + jnp.arange(s.chunk)

        def run(context: Context, state: State) -> State:
            rotary = model.rotary(context.first + steps[:, None])  # of [chunk, B]
            return jax.lax.scan(partial(one_token, weights, context), state, (steps, rotary))[0]

        def unfinished_rows(state: State) -> State:
            rows = unfinished(state.done, s.shards, shard_rows)
            part_context = take_context(context, rows, s.samples)
            part = run(part_context, take_state(state, rows, s.samples))
            return put_state(state, part, rows, s.samples)

        if not shard_rows:
            return run(context, state)
        left = (~state.done).reshape(s.shards, -1).sum(axis=1).max()
        return jax.lax.cond(left <= shard_rows, unfinished_rows, partial(run, context), state)

    def sample(params: Params, batch: Prompts, features: Array | None, keys: Array) -> Rollout:
        rows = batch.tokens.shape[0] * s.samples
        if features is None:
            features = model.encode_images(params, batch)
        hidden, prefix = model.prefill(params, batch, features)
        weights = model.decoder(params)
        first = jnp.repeat(next_positions(batch), s.samples)  # int32[B]
        context = Context(prefix, batch.mask, keys, first)
        state = State(
            hidden=jnp.repeat(hidden, s.samples, axis=0),  # [B, D]
            cache=((),) * len(prefix),
            done=jnp.repeat(~jnp.any(batch.mask, axis=1), s.samples),  # True for an empty prompt
            tokens=jnp.full((rows, length), s.pad_id, jnp.int32),
            mask=jnp.zeros((rows, length), bool),
            logprobs=jnp.zeros((rows, length), jnp.float32),
        )
        end = 0
        for size in sizes:
            block = model.empty_cache(prefix, s.samples, size)
            cache = tuple((*old, new) for old, new in zip(state.cache, block, strict=True))
            start, end = end, end + size
            shard_rows = rows // (s.shards * SHRINK) if start else 0  # unfinished rows per shard
            # Each of them reads its own copy of the prompt; that must not read more in total.
            prompts, width = batch.mask.shape
            if shard_rows * s.shards * (width + end) >= prompts * width + rows * end:
                shard_rows = 0
            chunk = partial(one_chunk, weights, context, shard_rows)

            def has_unfinished(carry: tuple[State, Array], end: int = end) -> Array:
                state, t = carry
                return (t < end) & ~jnp.all(state.done)

            state, _ = jax.lax.while_loop(
                has_unfinished,
                lambda carry, chunk=chunk: (chunk(*carry), carry[1] + s.chunk),
                (state._replace(cache=cache), jnp.int32(start)),
            )
        tokens, mask, logprobs = (
            x[:, : s.max_tokens] for x in (state.tokens, state.mask, state.logprobs)
        )
        ended = jnp.any(jnp.isin(tokens, stops) & mask, axis=1)
        return Rollout(tokens, mask, logprobs, truncated=~ended & jnp.any(mask, axis=1))

    return sample


def block_sizes(length: int, chunk: int) -> tuple[int, ...]:
    """Cuts a cache of `length` slots into blocks, each as long as all before it together.

    Attention reads the blocks started so far: after the first, at most twice the slots in use.

    Args:
        length: a multiple of `chunk`.
        chunk: every block is a multiple of it. The first has at least `FIRST_BLOCK` slots, and
            enough that there are at most `BLOCKS` blocks.
    """
    first = math.ceil(max(FIRST_BLOCK, length / 2 ** (BLOCKS - 1)) / chunk) * chunk
    ends = [min(first, length)]
    while ends[-1] < length:
        ends.append(min(2 * ends[-1], length))
    return tuple(int(size) for size in np.diff([0, *ends]))
