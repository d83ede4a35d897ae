# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The KV cache for decoding, layer by layer.

Keys and values are stored in the order that the products of one token need, so that nothing is
transposed per token. On GPUs and TPUs any order will do, and a slot is contiguous. On CPU there are
two. In the order of `exact_cpu.product`, both factors are contracted along their last axis, and XLA
copies the second one before it multiplies. The transposed order needs no copy and is three to five
times as fast. It is used only if `exact_cpu` says that both give the same bits, so that sampler and
trainer stay equal. The columns of the product are slots for scores, E for sums of values.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlvlm_jax.models.common.exact_cpu import transposed_is_exact
from rlvlm_jax.types import Array

KINDS = ("model", "bfloat16", "int8")  # "model" is the compute dtype


@partial(jax.tree_util.register_dataclass, data_fields=("x", "scale"), meta_fields=("transposed",))
@dataclasses.dataclass(frozen=True)
class KVBlock:
    """A KV block: the keys or the values of S slots of one layer. A prompt's has no axis G.

    If all layers are in one block, their axis L comes after K.

    Attributes:
        x: [N, K, G, S, E], transposed [N, K, G, E, S].
        scale: float32[N, K, G, S, 1], transposed like `x`, if `x` is int8; else None.
        transposed: whether slots are the last axis.
    """

    x: Array
    scale: Array | None
    transposed: bool

    @property
    def slots(self) -> int:
        """S."""
        return self.x.shape[self.slot_axis]

    @property
    def slot_axis(self) -> int:
        """The axis S, from the end."""
        return -1 if self.transposed else -2


class KVPair(NamedTuple):
    """Keys and values. On CPU, keys are transposed if S fills the lanes, values if E does not."""

    k: KVBlock
    v: KVBlock


# For each entry of the prompts' prefix the pairs of the responses, earlier slots first.
Cache = tuple[tuple[KVPair, ...], ...]


def stored(k: Array, v: Array, kind: str, platform: str = "cpu") -> KVPair:
    """Returns the KV pair of these keys and values.

    Args:
        k: [..., S, E], of any float dtype.
        v: like `k`.
        kind: one of `KINDS`; int8 stores round(127 x / max |x|) and max |x| / 127 of every head and
            slot.
        platform: JAX's name for the devices' platform.
    """
    on_cpu, (slots, size) = platform == "cpu", k.shape[-2:]
    k = _make_block(k, kind, on_cpu and transposed_is_exact(slots))
    return KVPair(k, _make_block(v, kind, on_cpu and not transposed_is_exact(size)))


def empty(prompt: KVPair, samples: int, slots: int, platform: str = "cpu") -> KVPair:
    """Returns a KV pair of zeros with S = `slots` and G = `samples`, of the kind of `prompt`."""
    k_transposed = platform == "cpu" and transposed_is_exact(slots)
    return KVPair(
        _zeros(prompt.k, samples, slots, k_transposed),
        _zeros(prompt.v, samples, slots, prompt.v.transposed),
    )


def _zeros(like, samples, slots, transposed):
    """Returns a KV block of zeros for the samples of the prompts in `like`."""

    def zeros(x: Array) -> Array:
        *outer, _, width = _transpose(x, like.transposed).shape
        return _transpose(jnp.zeros((*outer, samples, slots, width), x.dtype), transposed)

    return KVBlock(*jax.tree.map(zeros, (like.x, like.scale)), transposed)


def write(pair: KVPair, k: Array, v: Array, slot: Array) -> KVPair:
    """Returns the pair with one slot written.

    Args:
        pair: [N, K, G, ...].
        k: [N, K, G, 1, E].
        v: like `k`.
        slot: int32[].
    """
    return KVPair(_write(pair.k, k, slot), _write(pair.v, v, slot))


def _write(block, x, slot):
    new = _make_block(x, block.x.dtype.name, block.transposed)
    axis = x.ndim + block.slot_axis
    update = partial(jax.lax.dynamic_update_slice_in_dim, start_index=slot, axis=axis)
    return jax.tree.map(update, block, new)


def read(block: KVBlock, dtype: jnp.dtype) -> Array:
    """Returns keys or values in `dtype`, transposed if the block is."""
    x = block.x.astype(dtype)
    return x if block.scale is None else (x * block.scale).astype(dtype)


def take_rows(cache: Cache, rows: Array) -> Cache:
    """Returns the cache of these rows, each in a group of its own: blocks [n, K, (L,) 1, ...].

    Args:
        cache: blocks [N, K, (L,) G, ...]; row b of N * G is sample b % G of prompt b // G.
        rows: int32[n].
    """
    return jax.tree.map(partial(_take_rows, rows=rows), cache)


def put_rows(cache: Cache, rows: Array, part: Cache) -> Cache:
    """Returns the cache with these rows of its last pairs replaced; see `take_rows`."""
    put = partial(_put_rows, rows=rows)
    return tuple(
        (*blocks[:-1], jax.tree.map(put, blocks[-1], new[-1]))
        for blocks, new in zip(cache, part, strict=True)
    )


def _take_rows(x, rows):
    return jnp.expand_dims(x[_index(x, rows)], -3)


def _put_rows(x, new, rows):
    return x.at[_index(x, rows)].set(new.squeeze(-3))


def _index(x, rows):
    """Returns the index of these rows in an array [N, K, (L,) G, S, E]."""
    samples = x.shape[-3]
    return (rows // samples, *[slice(None)] * (x.ndim - 4), rows % samples)


def _make_block(x, kind, transposed):
    """Returns keys or values [..., S, E] as a KV block."""
    scale = None
    if kind == "int8":
        x = x.astype(jnp.float32)
        scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
        x = jnp.round(x / jnp.where(scale > 0, scale, 1.0))
        scale = _transpose(scale, transposed)
    return KVBlock(
        _transpose(x if kind == "model" else x.astype(kind), transposed), scale, transposed
    )


def _transpose(x, transposed):
    return x.swapaxes(-1, -2) if transposed else x
