# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Keys and values kept for decoding, layer by layer, as the attention of one token reads them.

They lie as its products want them, so that nothing is turned around for each token. On GPUs and
TPUs that is any way, and a slot is one piece of memory. On CPU there are two ways. In that of
`exact_cpu.product` both factors are summed along their last axis, and XLA copies the second one
before it multiplies. The other way around it is read as it lies, three to five times as fast. The
faster way is taken just where `exact_cpu` says that both give the same bits, so that sampler and
trainer stay equal. The products' columns are slots for scores, E for their sums of values.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlvlm_jax.models.exact_cpu import transposed_is_exact
from rlvlm_jax.types import Array

KINDS = ("model", "bfloat16", "int8")  # "model" is the compute dtype


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("x", "scale"), meta_fields=("turned",)
)
@dataclasses.dataclass(frozen=True)
class Kept:
    """The keys or the values of S slots of one layer, without the axis G for a prompt.

    Where all layers lie together, their axis L is behind K.

    Attributes:
        x: [N, K, G, S, E], turned [N, K, G, E, S].
        scale: float32[N, K, G, S, 1], turned alike, where `x` is int8; else None.
        turned: whether slots are the last axis.
    """

    x: Array
    scale: Array | None
    turned: bool

    @property
    def slots(self) -> int:
        """S."""
        return self.x.shape[self.slot_axis]

    @property
    def slot_axis(self) -> int:
        """The axis S, from the end."""
        return -1 if self.turned else -2


class Block(NamedTuple):
    """Keys, on CPU turned where S fills the lanes, and values, there where E does not."""

    k: Kept
    v: Kept


def stored(k: Array, v: Array, kind: str, platform: str = "cpu") -> Block:
    """Returns a block of these keys and values.

    Args:
        k: [..., S, E], of any float dtype.
        v: alike.
        kind: one of `KINDS`; int8 keeps round(127 x / max |x|) and max |x| / 127 of every head and
            slot.
        platform: of the devices, as JAX calls it.
    """
    on_cpu, (slots, size) = platform == "cpu", k.shape[-2:]
    k = _keep(k, kind, on_cpu and transposed_is_exact(slots))
    return Block(k, _keep(v, kind, on_cpu and not transposed_is_exact(size)))


def empty(prompt: Block, samples: int, slots: int, platform: str = "cpu") -> Block:
    """Returns a block of zeros, S = `slots` for each of G = `samples`, of the kind of `prompt`."""

    def zeros(like: Kept, turned: bool) -> Kept:
        def one(x: Array) -> Array:
            *outer, _, width = _turn(x, like.turned).shape
            return _turn(jnp.zeros((*outer, samples, slots, width), x.dtype), turned)

        return Kept(*jax.tree.map(one, (like.x, like.scale)), turned)

    k_turned = platform == "cpu" and transposed_is_exact(slots)
    return Block(zeros(prompt.k, k_turned), zeros(prompt.v, prompt.v.turned))


def write(block: Block, k: Array, v: Array, slot: Array) -> Block:
    """Returns the block with one slot written.

    Args:
        block: [N, K, G, ...].
        k: [N, K, G, 1, E].
        v: alike.
        slot: int32[].
    """

    def put(kept: Kept, x: Array) -> Kept:
        axis = x.ndim + kept.slot_axis
        new = _keep(x, kept.x.dtype.name, kept.turned)
        return jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis), kept, new
        )

    return Block(put(block.k, k), put(block.v, v))


def read(kept: Kept, dtype: jnp.dtype) -> Array:
    """Returns keys or values in `dtype`, turned as they are kept."""
    x = kept.x.astype(dtype)
    return x if kept.scale is None else (x * kept.scale).astype(dtype)


def _keep(x, kind, turned):
    """Keys or values [..., S, E] as they are kept."""
    scale = None
    if kind == "int8":
        x = x.astype(jnp.float32)
        scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
        x = jnp.round(x / jnp.where(scale > 0, scale, 1.0))
        scale = _turn(scale, turned)
    return Kept(_turn(x if kind == "model" else x.astype(kind), turned), scale, turned)


def _turn(x, turned):
    return x.swapaxes(-1, -2) if turned else x
