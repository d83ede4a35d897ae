# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Decoding state of a batch, and compaction to its unfinished rows.

Once most responses have ended, the others are moved to a smaller batch, in which each row has its
own prompt, and put back after a few tokens. Rows stay on their device: the batch is cut into
`shards`, and the same number of rows is taken from each. This module knows nothing about models,
the layout of their caches or how tokens are drawn.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlvlm_jax.types import Array


class Context(NamedTuple):
    """The constant part; row b of B = N * G belongs to prompt b // G."""

    prefix: Any  # leading axis N, see Model.prefill
    mask: Array  # bool[N, P], of the prompts
    keys: Array  # key[B]
    positions: Array  # int32[B, slots], of the tokens of the response


class State(NamedTuple):
    """The part that changes with every token."""

    hidden: Array  # [B, D], predicts the next token
    cache: Any  # leading axis N or B, see Model.grow_cache
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
    """Returns the context of these rows, each with its own prompt.

    Args:
        context: of the whole batch.
        rows: int32[shards, n], rows within each shard.
        samples: G.
    """
    prompts = _by_shard(_take, rows // samples, (context.prefix, context.mask))
    return Context(*prompts, *_by_shard(_take, rows, (context.keys, context.positions)))


def take_state(state: State, rows: Array, take_rows: Callable[[Any, Array], Any]) -> State:
    """Returns the state of these rows.

    Args:
        state: of the whole batch.
        rows: int32[shards, n], rows within each shard.
        take_rows: see Model.take_rows.
    """
    cache = _by_shard(take_rows, rows, state.cache)
    return _by_shard(_take, rows, state._replace(cache=None))._replace(cache=cache)


def put_state(
    state: State, rows: Array, part: State, put_rows: Callable[[Any, Array, Any], Any]
) -> State:
    """Returns the state with these rows replaced by those of `part`.

    Args:
        state: of the whole batch.
        rows: int32[shards, n], rows within each shard.
        part: of these rows.
        put_rows: see Model.put_rows.
    """
    cache = _by_shard(put_rows, rows, state.cache, part.cache)
    state, part = state._replace(cache=None), part._replace(cache=None)
    return _by_shard(_put, rows, state, part)._replace(cache=cache)


def _by_shard(function, rows, tree, *parts):
    """Returns function(tree, rows, *parts) of each shard, joined along the leading axis."""

    def cut(x: Array) -> Array:
        return x.reshape(len(rows), -1, *x.shape[1:])

    def join(x: Array) -> Array:
        return x.reshape(-1, *x.shape[2:])

    tree, parts = jax.tree.map(cut, (tree, parts))
    return jax.tree.map(join, jax.vmap(function)(tree, rows, *parts))


def _take(tree, rows):
    return jax.tree.map(lambda x: x[rows], tree)


def _put(tree, rows, part):
    return jax.tree.map(lambda x, new: x.at[rows].set(new), tree, part)
