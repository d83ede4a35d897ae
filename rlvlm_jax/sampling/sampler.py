# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Step II, response collection: one compiled program from prompts to responses.

Each prompt is prefilled once; its G samples read the same keys and values. A while loop carries the
responses' own cache. Its body scans over `chunk` tokens, so the loop ends when every row has
stopped, without involving the host. The cache grows in blocks, so that short responses do not
attend to slots for long ones. Once most rows have stopped, the others continue in a smaller batch.
The sampler receives the model as functions. It knows nothing about text, rewards or training, nor
about the layout of caches.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

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

CHUNK = 16  # decode steps between two checks whether every row has stopped
FIRST_BLOCK = 128  # slots, at least
BLOCKS = 4  # of the cache, at most: the loop is compiled once per block
SHRINK = 4  # after the first block, once at most 1 / SHRINK of the rows run, decode only those


class Decoder(Protocol):
    """The functions of a model that draw responses; see `models.Model`."""

    encode_images: Callable[[Params, Prompts], Any]
    prefill: Callable[[Params, Prompts, Any], tuple[Array, Any]]
    decoder: Callable[[Params], Params]
    grow_cache: Callable[[Any, Any, int, int], Any]
    take_rows: Callable[[Any, Array], Any]
    put_rows: Callable[[Any, Array, Any], Any]
    response_positions: Callable[[Prompts, Array], Array]
    rotary: Callable[[Array], Any]
    decode: Callable[..., tuple[Array, Any]]
    next_logits: Callable[[Params, Array], Array]
    row_sum: Callable[[Array], Array]


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
    chunk: int = CHUNK  # tokens between two checks whether every row has stopped
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


def make_sample_fn(model: Decoder, settings: SampleSettings) -> Callable[..., Rollout]:
    """Returns `sample` from its params on, to be jitted once."""
    return partial(sample, model, settings)


def sample(
    model: Decoder,
    settings: SampleSettings,
    params: Params,
    batch: Prompts,
    features: Any,
    keys: Array,
    version: Array | int = 0,
) -> Rollout:
    """Draws G responses for each prompt; the samples of a prompt are adjacent.

    Args:
        model: its functions.
        settings: static.
        params: of the model.
        batch: N prompts.
        features: their image features, None to compute them here.
        keys: key[B], B = N * G; see `sequence_keys`.
        version: int32[], recorded for every response; see `Rollout`.
    """
    s = settings
    rows = batch.tokens.shape[0] * s.samples
    length = math.ceil(s.max_tokens / s.chunk) * s.chunk  # cache slots; R rounded up to a chunk
    if features is None:
        features = model.encode_images(params, batch)
    hidden, prefix = model.prefill(params, batch, features)
    weights = model.decoder(params)
    positions = model.response_positions(batch, jnp.arange(length))
    context = Context(prefix, batch.mask, keys, jnp.repeat(positions, s.samples, axis=0))
    state = State(
        hidden=jnp.repeat(hidden, s.samples, axis=0),  # [B, D]
        cache=(),
        done=jnp.repeat(~jnp.any(batch.mask, axis=1), s.samples),  # True for an empty prompt
        tokens=jnp.full((rows, length), s.pad_id, jnp.int32),
        mask=jnp.zeros((rows, length), bool),
        logprobs=jnp.zeros((rows, length), jnp.float32),
    )
    end = 0
    for size in block_sizes(length, s.chunk):
        start, end = end, end + size
        state = state._replace(cache=model.grow_cache(prefix, state.cache, s.samples, size))
        shard_rows = rows // (s.shards * SHRINK) if start else 0  # unfinished rows per shard
        # Each of them reads its own copy of the prompt; that must not read more in total.
        prompts, width = batch.mask.shape
        if shard_rows * s.shards * (width + end) >= prompts * width + rows * end:
            shard_rows = 0
        state, _ = jax.lax.while_loop(
            partial(_has_unfinished, end),
            partial(_decode_chunk, model, s, weights, context, shard_rows),
            (state, jnp.int32(start)),
        )
    tokens, mask, logprobs = (
        x[:, : s.max_tokens] for x in (state.tokens, state.mask, state.logprobs)
    )
    ended = jnp.any(_is_stop(tokens, s) & mask, axis=1)
    truncated = ~ended & jnp.any(mask, axis=1)
    version = jnp.full(rows, version, jnp.int32)
    return Rollout(tokens, mask, mask, logprobs, truncated, version)  # all that exists is drawn


def _is_stop(tokens, settings):
    return jnp.isin(tokens, np.asarray(settings.stop_ids, np.int32))


def _has_unfinished(end, carry):
    """Returns whether a row goes on and slot t is before `end`."""
    state, t = carry
    return (t < end) & ~jnp.all(state.done)


def _decode_chunk(model, settings, weights, context, shard_rows, carry):
    """Decodes a chunk of tokens; only unfinished rows if at most `shard_rows` per shard."""
    state, t = carry
    decode_all = partial(_decode_rows, model, settings, weights, t, context)
    if shard_rows:
        left = (~state.done).reshape(settings.shards, -1).sum(axis=1).max()
        decode_unfinished = partial(
            _decode_unfinished, model, settings, weights, t, context, shard_rows
        )
        state = jax.lax.cond(left <= shard_rows, decode_unfinished, decode_all, state)
    else:
        state = decode_all(state)
    return state, t + settings.chunk


def _decode_unfinished(model, settings, weights, t, context, shard_rows, state):
    """`_decode_rows` for `shard_rows` rows of each shard, among them all unfinished ones."""
    rows = unfinished(state.done, settings.shards, shard_rows)
    context = take_context(context, rows, settings.samples)
    part = take_state(state, rows, model.take_rows)
    part = _decode_rows(model, settings, weights, t, context, part)
    return put_state(state, rows, part, model.put_rows)


def _decode_rows(model, settings, weights, t, context, state):
    """Decodes the tokens of slots t to t + chunk."""
    positions = jax.lax.dynamic_slice_in_dim(context.positions, t, settings.chunk, axis=1)
    inputs = t + jnp.arange(settings.chunk), model.rotary(positions.T)  # of [chunk, B]
    return jax.lax.scan(partial(_one_token, model, settings, weights, context), state, inputs)[0]


def _one_token(model, settings, weights, context, state, inputs):
    """Draws the token of slot t and decodes it."""
    s = settings
    t, rotary = inputs
    logits = model.next_logits(weights, state.hidden)  # float32[B, V]
    row_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(context.keys, t)
    token = draw(
        row_keys,
        Policy(1.0, s.banned_ids).scale(logits),
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
    state = State(
        hidden=hidden,
        cache=cache,
        done=state.done | _is_stop(token, s) | (t + 1 >= s.max_tokens),
        tokens=write(state.tokens, token),
        mask=write(state.mask, ~state.done),
        logprobs=write(state.logprobs, logprob),
    )
    return state, None


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
