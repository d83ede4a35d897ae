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
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlvlm_jax.models.common.exact_cpu import transposed_is_exact
from rlvlm_jax.types import Array

KINDS = ("model", "bfloat16", "int8")  # "model" is the compute dtype


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("x", "scale"), meta_fields=("transposed",)
)
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

    def zeros(like: KVBlock, transposed: bool) -> KVBlock:
        def zeros_like(x: Array) -> Array:
            *outer, _, width = _transpose(x, like.transposed).shape
            return _transpose(jnp.zeros((*outer, samples, slots, width), x.dtype), transposed)

        return KVBlock(*jax.tree.map(zeros_like, (like.x, like.scale)), transposed)

    k_transposed = platform == "cpu" and transposed_is_exact(slots)
    return KVPair(zeros(prompt.k, k_transposed), zeros(prompt.v, prompt.v.transposed))


def write(pair: KVPair, k: Array, v: Array, slot: Array) -> KVPair:
    """Returns the pair with one slot written.

    Args:
        pair: [N, K, G, ...].
        k: [N, K, G, 1, E].
        v: like `k`.
        slot: int32[].
    """

    def put(block: KVBlock, x: Array) -> KVBlock:
        axis = x.ndim + block.slot_axis
        new = _make_block(x, block.x.dtype.name, block.transposed)
        return jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis), block, new
        )

    return KVPair(put(pair.k, k), put(pair.v, v))


def read(block: KVBlock, dtype: jnp.dtype) -> Array:
    """Returns keys or values in `dtype`, transposed if the block is."""
    x = block.x.astype(dtype)
    return x if block.scale is None else (x * block.scale).astype(dtype)


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
