# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Decoding state of a batch, and compaction to its unfinished rows.

Once most responses have ended, the others are moved to a smaller batch, in which each row has its
own prompt, and put back after a few tokens. Rows stay on their device: the batch is cut into
`shards`, and the same number of rows is taken from each. This module knows nothing about models or
about how tokens are drawn.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlvlm_jax.types import Array


class Context(NamedTuple):
    """The constant part; row b of B = N * G belongs to prompt b // G."""

    prefix: tuple  # KV pairs [N, ...], see Model.prefill
    mask: Array  # bool[N, P], of the prompts
    keys: Array  # key[B]
    first: Array  # int32[B], position of the first token of the response


class State(NamedTuple):
    """The part that changes with every token."""

    hidden: Array  # [B, D], predicts the next token
    cache: tuple  # per prefix entry a tuple of KV pairs [N, K, (L,) G, ...]; the last is written
    done: Array  # bool[B]
    tokens: Array  # int32[B, slots]
    mask: Array  # bool[B, slots]
    logprobs: Array  # float32[B, slots], nats


def unfinished(done: Array, shards: int, shard_rows: int) -> Array:
    """Returns int32[shards, shard_rows], the rows to take within each shard, unfinished ones first.

    Args:
        done: bool[B].
        shards: divides B.
        shard_rows: rows to take from a shard.
    """
    return jnp.argsort(done.reshape(shards, -1), axis=1, stable=True)[:, :shard_rows]


def take_context(context: Context, rows: Array, samples: int) -> Context:
    """Returns the context of these rows, each with its own prompt."""
    prefix, mask = jax.tree.map(lambda x: _take(x, rows // samples), (context.prefix, context.mask))
    return Context(prefix, mask, _take(context.keys, rows), _take(context.first, rows))


def take_state(state: State, rows: Array, samples: int) -> State:
    """Returns the state of these rows; KV blocks are [rows, K, 1, ...]."""

    def take_block(x: Array) -> Array:
        def take(x: Array, rows: Array) -> Array:
            return x[_of_rows(x, rows, samples)]

        taken = jax.vmap(take)(_by_shard(x, rows), rows)
        return taken.reshape(-1, *x.shape[1:-3], 1, *x.shape[-2:])

    taken = {name: _take(x, rows) for name, x in _row_fields(state).items()}
    return State(cache=jax.tree.map(take_block, state.cache), **taken)


def put_state(state: State, part: State, rows: Array, samples: int) -> State:
    """Returns the state with these rows replaced; only the cache's last pairs are written."""

    def put(x: Array, new: Array) -> Array:
        by_shard = jax.vmap(lambda x, rows, new: x.at[rows].set(new))
        return by_shard(_by_shard(x, rows), rows, _by_shard(new, rows)).reshape(x.shape)

    def put_block(x: Array, new: Array) -> Array:
        def put(x: Array, rows: Array, new: Array) -> Array:
            return x.at[_of_rows(x, rows, samples)].set(new.squeeze(-3))

        by_shard = jax.vmap(put)(_by_shard(x, rows), rows, _by_shard(new, rows))
        return by_shard.reshape(x.shape)

    cache = tuple(
        (*blocks[:-1], jax.tree.map(put_block, blocks[-1], new[-1]))
        for blocks, new in zip(state.cache, part.cache, strict=True)
    )
    part_fields = _row_fields(part)
    return State(
        cache=cache, **{name: put(x, part_fields[name]) for name, x in _row_fields(state).items()}
    )


def _of_rows(x: Array, rows: Array, samples: int) -> tuple:
    """Returns the index of these rows in a block [n, K, (L,) G, ...]."""
    return (rows // samples, *[slice(None)] * (x.ndim - 4), rows % samples)


def _row_fields(state: State) -> dict[str, Any]:
    """Returns all fields but the cache, i.e. those whose leading axis is B."""
    return {name: x for name, x in state._asdict().items() if name != "cache"}


def _by_shard(x: Array, rows: Array) -> Array:
    return x.reshape(rows.shape[0], -1, *x.shape[1:])


def _take(x: Array, rows: Array) -> Array:
    taken = jax.vmap(lambda x, rows: x[rows])(_by_shard(x, rows), rows)
    return taken.reshape(-1, *x.shape[1:])
