# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Attention as one pure function, `attend`.

The vision tower and the language model call it in prefill, decoding and training. It handles groups
(G sequences that share the keys of their prompt), grouped heads (H query heads on K key and value
heads) and masking. It knows nothing about weights, positions or caches. `kernels` does the work if
a library's kernel is selected.
"""

from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlvlm_jax.models.common import kernels
from rlvlm_jax.models.common.exact_cpu import product, row_sum
from rlvlm_jax.models.common.kernels import PLAIN, Kernel
from rlvlm_jax.types import Array

# Scores of one sequence in memory at a time: 64 MiB of float32. Beyond that, queries run in blocks.
MAX_SCORES = 2**24
_LOWEST = -1e30  # finite, so that a row without keys does not become NaN


class Ids(NamedTuple):
    """The attention mask: a query sees the keys of its own non-zero segment that are not later.

    Attributes:
        segment: int32[N, G, S] (G may be 1); 0 is padding, which neither sees nor is seen.
        order: int32[S], the column in causal attention; all equal if attention is not causal.
        branch: int32 like `segment`, or None. The whole segment sees a key of branch 0; only its
            own branch sees any other key.
    """

    segment: Array
    order: Array
    branch: Array | None = None


class Keys(NamedTuple):
    """A run of keys and values: [N, S, K, E] shared by the G sequences, or [N, G, S, K, E]."""

    k: Array
    v: Array
    ids: Ids


class HeadKeys(NamedTuple):
    """The same by head: [N, K, (G,) S, E], or transposed [N, K, (G,) E, S]."""

    k: Array
    v: Array
    ids: Ids
    k_transposed: bool = False
    v_transposed: bool = False


@jax.named_scope("attend")
def attend(
    q: Array,
    ids: Ids,
    keys: list[Keys],
    *,
    kernel: Kernel = PLAIN,
    causal: bool = True,
    max_scores: int = MAX_SCORES,
) -> Array:
    """Computes softmax(q k / sqrt(E)) v with one softmax over all runs of keys together.

    The plain kernel never repeats keys and values, neither over heads nor over the group; the other
    kernels copy shared keys for each of the G sequences. If the scores of a sequence would exceed
    `max_scores`, queries run in blocks, which the backward pass recomputes; the result is the same.
    The queries of a block are strided by the number of blocks, so that every device with a run of
    the queries has a share of every block.

    Args:
        q: [N, G, Q, H, E], any float dtype; query head h uses key head h // (H / K).
        ids: segments and columns of the queries.
        keys: one or two runs, e.g. the shared prompt and the sequence's own response.
        kernel: which kernel to use.
        causal: what `ids.order` amounts to, for a kernel that must know it at compile time
            (splash): True if the runs of keys are consecutive columns and the queries are the last
            Q of them; False if all columns are equal.
        max_scores: largest number of scores, heads * queries * keys, of one sequence at a time. For
            a kernel that stores only the mask, the number of its entries, queries * keys.

    Returns:
        [N, G, Q, H, E] in the dtype of `q`; zeros for a query that sees no key. The softmax is
        float32.
    """
    length, heads = q.shape[2:4]
    entries = heads * sum(run.k.shape[-3] for run in keys)  # scores per query
    if kernel.name == "splash" and ids.branch is not None:
        raise ValueError("splash does not support branches; see kernels.choose")
    if kernel.name == "plain":
        runs = [
            HeadKeys(by_head(run.k), by_head(run.v).swapaxes(-1, -2), run.ids, v_transposed=True)
            for run in keys
        ]
        attend_block = partial(attend_by_head, keys=runs)
    else:
        joined = _joined(keys, q.shape[1])
        attend_block = partial(_attend_by_kernel, keys=joined, kernel=kernel, causal=causal)
        entries = {"xla": entries, "cudnn": entries // heads, "splash": 0}[kernel.name]
    block = max(1, max_scores * kernel.query_parts // entries) if entries else length
    if length <= block:
        return attend_block((q, ids))

    block -= block % 128 if block > 128 else 0  # whole tiles on an accelerator
    blocks = -(-length // block)

    def split(x: Array, axis: int) -> Array:
        widths = [(0, blocks * block - length if a == axis else 0) for a in range(x.ndim)]
        shape = (*x.shape[:axis], block, blocks, *x.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(x, widths).reshape(shape), axis + 1, 0)

    queries = split(q, 2), jax.tree.map(lambda x: split(x, x.ndim - 1), ids)
    out = jax.lax.map(jax.checkpoint(attend_block, prevent_cse=False), queries)
    out = jnp.moveaxis(out, 0, 3)
    return out.reshape(*q.shape[:2], blocks * block, *q.shape[3:])[:, :, :length]


def by_head(x: Array) -> Array:
    """Maps keys or values [N, (G,) S, K, E] to [N, K, (G,) S, E]."""
    return jnp.moveaxis(x, -2, 1)


def attend_by_head(queries: tuple[Array, Ids], keys: list[HeadKeys]) -> Array:
    """`attend` without blocks, for any number of runs of keys by head; decoding calls it.

    Args:
        queries: (q, ids) as in `attend`.
        keys: at least one run.
    """
    q, ids = queries
    n, g, length, heads, size = q.shape
    kv_heads = keys[0].k.shape[1]
    h = heads // kv_heads  # query heads per key head
    q_by_head = q.reshape(n, g, length, kv_heads, h, size).transpose(0, 3, 1, 4, 2, 5)
    masks = [_visible(ids, run.ids)[:, None, :, None] for run in keys]  # bool[N, 1, G, 1, Q, S]
    scores = []
    for run, mask in zip(keys, masks, strict=True):
        shared = run.k.ndim == 4
        score = product(_rows(q_by_head, shared), run.k, jnp.float32, transposed=run.k_transposed)
        score = score.reshape(n, kv_heads, g, h, length, -1)
        scores.append(jnp.where(mask, score * size**-0.5, _LOWEST))

    top = reduce(jnp.maximum, [score.max(-1, keepdims=True) for score in scores])
    top = jax.lax.stop_gradient(top)
    weights = [jnp.where(m, jnp.exp(s - top), 0.0) for s, m in zip(scores, masks, strict=True)]
    total = sum(row_sum(weight) for weight in weights)
    total = jnp.where(total > 0, total, 1.0)

    out = 0.0
    for run, weight in zip(keys, weights, strict=True):
        shared = run.v.ndim == 4
        weight = (weight / total).astype(run.v.dtype)
        part = product(_rows(weight, shared), run.v, jnp.float32, transposed=not run.v_transposed)
        out += part.reshape(n, kv_heads, g, h, length, size)
    return out.transpose(0, 2, 4, 1, 3, 5).reshape(q.shape).astype(q.dtype)


def _joined(keys, groups):
    """Joins all runs of keys into one run per sequence: [N, G, S, K, E]."""

    def own(x):
        return x if x.ndim == 5 else jnp.broadcast_to(x[:, None], (len(x), groups, *x.shape[1:]))

    def segment(run):
        return jnp.broadcast_to(run.ids.segment, (len(run.k), groups, run.ids.segment.shape[-1]))

    ids = Ids(
        jnp.concatenate([segment(run) for run in keys], axis=2),
        jnp.concatenate([run.ids.order for run in keys]),
        keys[0].ids.branch if len(keys) == 1 else None,
    )
    k, v = (
        jnp.concatenate([own(x) for x in runs], axis=2)
        for runs in ([run.k for run in keys], [run.v for run in keys])
    )
    return Keys(k, v, ids)


def _attend_by_kernel(queries, keys, kernel, causal):
    """`attend` by a library's kernel, without blocks; keys are from `_joined`."""
    q, ids = queries
    n, g, length = q.shape[:3]

    def sequences(x):
        return x.reshape(n * g, *x.shape[2:])

    ids = ids._replace(segment=jnp.broadcast_to(ids.segment, (n, g, length)))
    visible = sequences(_visible(ids, keys.ids))  # bool[B, Q, S]
    rows, k, v = (sequences(x).astype(q.dtype) for x in (q, keys.k, keys.v))
    if kernel.name == "splash":
        segments = sequences(ids.segment), sequences(keys.ids.segment)
        out = kernels.splash(kernel, rows, k, v, *segments, causal=causal)
    else:
        out = kernels.dot_product(kernel, rows, k, v, visible)
    # A softmax over masked scores only is uniform, not zero.
    out = jnp.where(visible.any(-1)[..., None, None], out, 0)
    return out.reshape(q.shape)


def _rows(x, shared):
    """Maps [N, K, G, h, Q, C] to [N, K, G * h * Q, C] or, for own keys, [N, K, G, h * Q, C]."""
    return x.reshape(*x.shape[: 2 if shared else 3], -1, x.shape[-1])


def _visible(queries, keys):
    """bool[N, G, Q, S]: see `Ids`."""
    query_segment = queries.segment[..., :, None]
    key_segment = keys.segment[..., None, :]
    earlier = keys.order[None, :] <= queries.order[:, None]
    visible = (query_segment == key_segment) & (key_segment > 0) & earlier
    if keys.branch is None:
        return visible
    key_branch = keys.branch[..., None, :]
    return visible & ((key_branch == 0) | (key_branch == queries.branch[..., :, None]))
