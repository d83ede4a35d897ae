# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Step II, response collection: one compiled program from prompts to responses.

Prompts are prefilled once each; their G samples read the same keys and values. The responses' own
cache is carried through a while loop whose body is a scan over `chunk` tokens, so the loop ends
when every row has stopped, without asking the host. The cache grows by blocks, so that short
responses do not attend to room for long ones; and once most rows have stopped, the others go on in
a batch of their own. The sampler gets the model as functions and knows nothing of text, rewards or
training.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlvlm_jax.sampling.logits import Policy, draw
from rlvlm_jax.types import Array, Batch, Params, Rollout

FIRST_BLOCK = 128  # slots
SHRINK = 4  # behind the first block, a chunk of few unfinished rows runs on 1 / SHRINK of them


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
    shards: int = 1  # parts of the batch that lie on different devices
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
    sizes = block_sizes(length, s.chunk)
    stops = np.asarray(s.stop_ids, np.int32)
    forbidden = Policy(1.0, s.banned_ids)

    def sample(params: Params, batch: Batch, features: Array | None, keys: Array) -> Rollout:
        rows = batch.tokens.shape[0] * s.samples
        if features is None:
            features = model.encode_images(params, batch)
        hidden, prefix = model.prefill(params, batch, features)
        weights = model.decoder(params)
        first = jnp.repeat(next_positions(batch), s.samples)  # int32[B]

        def one_token(context: tuple, carry: tuple, t: Array) -> tuple[tuple, None]:
            prefix, prefix_mask, keys, first = context
            hidden, cache, done, tokens, mask, logprobs = carry
            logits = model.logits(weights, hidden)  # float32[B, V]
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
            hidden, cache = model.decode(weights, token, first + t, prefix, prefix_mask, cache, t)
            return (hidden, cache, done, tokens, mask, logprobs), None

        context = (prefix, batch.mask, keys, first)
        cache = ((),) * len(prefix)
        done = jnp.repeat(~jnp.any(batch.mask, axis=1), s.samples)  # a dummy prompt is silent
        tokens = jnp.full((rows, length), s.pad_id, jnp.int32)
        mask = jnp.zeros((rows, length), bool)
        logprobs = jnp.zeros((rows, length), jnp.float32)
        carry = (jnp.repeat(hidden, s.samples, axis=0), cache, done, tokens, mask, logprobs)
        for start, size in zip(np.cumsum((0, *sizes[:-1])), sizes, strict=True):
            hidden, cache, done, *found = carry
            new = model.empty_cache(prefix, s.samples, size)
            cache = tuple((*old, block) for old, block in zip(cache, new, strict=True))
            carry = (hidden, cache, done, *found)

            few = rows // (s.shards * SHRINK) if start else 0  # unfinished rows of a shard

            def run_all(t: Array, carry: tuple) -> tuple:
                return jax.lax.scan(partial(one_token, context), carry, t + jnp.arange(s.chunk))[0]

            def run_few(t: Array, carry: tuple, few: int = few) -> tuple:
                places = Places.of_unfinished(carry[2], s.shards, few, s.samples)
                small = partial(one_token, places.take_context(context))
                found, _ = jax.lax.scan(small, places.take_carry(carry), t + jnp.arange(s.chunk))
                return places.put_carry(carry, found)

            def one_chunk(state: tuple, few: int = few) -> tuple:
                t, carry = state
                if not few:
                    return t + s.chunk, run_all(t, carry)
                left = (~carry[2]).reshape(s.shards, -1).sum(axis=1).max()
                return t + s.chunk, jax.lax.cond(left <= few, run_few, run_all, t, carry)

            def unfinished(state: tuple, end: int = start + size) -> Array:
                t, (_, _, done, *_) = state
                return (t < end) & ~jnp.all(done)

            _, carry = jax.lax.while_loop(unfinished, one_chunk, (jnp.int32(start), carry))
        tokens, mask, logprobs = (x[:, : s.max_tokens] for x in carry[3:])
        ended = jnp.any(jnp.isin(tokens, stops) & mask, axis=1)
        return Rollout(tokens, mask, logprobs, truncated=~ended & jnp.any(mask, axis=1))

    return sample


def block_sizes(length: int, chunk: int) -> tuple[int, ...]:
    """Cuts a cache of `length` slots into blocks, each as long as all before it together.

    Attention reads the blocks begun so far, so at most twice the slots in use.

    Args:
        length: a multiple of `chunk`.
        chunk: every block is a multiple of it; the first has at least `FIRST_BLOCK` slots.
    """
    first = math.ceil(FIRST_BLOCK / chunk) * chunk
    ends = [min(first, length)]
    while ends[-1] < length:
        ends.append(min(2 * ends[-1], length))
    return tuple(int(size) for size in np.diff([0, *ends]))


class Places(NamedTuple):
    """Some rows of a batch, as many of each shard; and how they are taken out and put back.

    Attributes:
        rows: int32[shards, few], places within the shard.
        samples: G.
    """

    rows: Array
    samples: int

    @classmethod
    def of_unfinished(cls, done: Array, shards: int, few: int, samples: int) -> "Places":
        """Returns the places of the first `few` rows of each shard, unfinished ones before others.

        Args:
            done: bool[B].
            shards: divides B.
            few: rows.
            samples: G.
        """
        order = jnp.argsort(done.reshape(shards, -1), axis=1, stable=True)
        return cls(order[:, :few], samples)

    def take_context(self, context: tuple) -> tuple:
        """Takes out (prefix, prefix_mask, keys, first): each row is a prompt of its own."""
        prefix, prefix_mask, keys, first = context
        prompts = Places(self.rows // self.samples, 1)
        prefix, prefix_mask = jax.tree.map(prompts._take, (prefix, prefix_mask))
        return prefix, prefix_mask, self._take(keys), self._take(first)

    def take_carry(self, carry: tuple) -> tuple:
        """Takes out (hidden, cache, then per-row arrays)."""
        hidden, cache, *rest = carry
        cache = jax.tree.map(self._take_kept, cache)
        return (self._take(hidden), cache, *map(self._take, rest))

    def put_carry(self, carry: tuple, found: tuple) -> tuple:
        """Puts rows back; of the cache only the last blocks, no others having changed."""
        hidden, cache, *rest = (
            jax.tree.map(self._put, one, new) if number != 1 else one
            for number, (one, new) in enumerate(zip(carry, found, strict=True))
        )
        cache = tuple(
            (*blocks[:-1], jax.tree.map(self._put_kept, blocks[-1], new[-1]))
            for blocks, new in zip(cache, found[1], strict=True)
        )
        return (hidden, cache, *rest)

    def _by_shard(self, x: Array) -> Array:
        return x.reshape(self.rows.shape[0], -1, *x.shape[1:])

    def _take(self, x: Array) -> Array:
        found = jax.vmap(lambda x, rows: x[rows])(self._by_shard(x), self.rows)
        return found.reshape(-1, *x.shape[1:])

    def _put(self, x: Array, new: Array) -> Array:
        put = jax.vmap(lambda x, rows, new: x.at[rows].set(new))
        return put(self._by_shard(x), self.rows, self._by_shard(new)).reshape(x.shape)

    def _take_kept(self, x: Array) -> Array:
        """Of a block [N, K, G, ...], as [rows, K, 1, ...]."""

        def take(x: Array, rows: Array) -> Array:
            return x[rows // self.samples, :, rows % self.samples]

        found = jax.vmap(take)(self._by_shard(x), self.rows)
        return found.reshape(-1, x.shape[1], 1, *x.shape[3:])

    def _put_kept(self, x: Array, new: Array) -> Array:
        def put(x: Array, rows: Array, new: Array) -> Array:
            return x.at[rows // self.samples, :, rows % self.samples].set(new[:, :, 0])

        return jax.vmap(put)(self._by_shard(x), self.rows, self._by_shard(new)).reshape(x.shape)
