# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Keys and values kept for decoding, layer by layer, as the attention of one token reads them.

A block is {"k": [N, K, G, S, E], "v": [N, K, G, E, S]}, without the axis G for a prompt, which its
samples share. Both lie as the products of attention want them, so nothing is turned around for each
token. Kept in int8, a block also has "k_scale" [..., S, 1] and "v_scale" [..., 1, S].
"""

import jax
import jax.numpy as jnp

from rlvlm_jax.types import Array

KINDS = ("model", "bfloat16", "int8")  # "model" is the compute dtype
_SLOTS = {"k": -2, "k_scale": -2, "v": -1, "v_scale": -1}  # axis S of each


def stored(k: Array, v: Array, kind: str) -> dict:
    """Returns a block of keys [..., S, E] and values [..., E, S].

    Args:
        k: of any float dtype.
        v: alike.
        kind: one of `KINDS`; int8 keeps round(127 x / max |x|) and max |x| / 127 of every head and
            slot.
    """
    if kind != "int8":
        dtype = k.dtype if kind == "model" else kind
        return {"k": k.astype(dtype), "v": v.astype(dtype)}
    block = {}
    for name, x, axis in (("k", k, -1), ("v", v, -2)):
        x = x.astype(jnp.float32)
        scale = jnp.max(jnp.abs(x), axis=axis, keepdims=True) / 127
        block[name] = jnp.round(x / jnp.where(scale > 0, scale, 1.0)).astype(jnp.int8)
        block[f"{name}_scale"] = scale
    return block


def empty(prompt: dict, samples: int, slots: int) -> dict:
    """Returns a block of zeros, S = `slots` for each of G = `samples`, of the kind of `prompt`."""
    block = {}
    for name, x in prompt.items():
        shape = [*x.shape[:2], samples, *x.shape[2:]]
        shape[_SLOTS[name]] = slots
        block[name] = jnp.zeros(shape, x.dtype)
    return block


def write(block: dict, k: Array, v: Array, slot: Array) -> dict:
    """Returns the block with one slot written.

    Args:
        block: see above.
        k: [N, K, G, 1, E].
        v: [N, K, G, E, 1].
        slot: int32[].
    """
    kind = "int8" if "k_scale" in block else block["k"].dtype.name
    return {
        name: jax.lax.dynamic_update_slice_in_dim(block[name], x, slot, _SLOTS[name] % x.ndim)
        for name, x in stored(k, v, kind).items()
    }


def read(block: dict, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Returns (keys, values) of a block in `dtype`."""

    def one(name: str) -> Array:
        scale = block.get(f"{name}_scale")
        x = block[name].astype(dtype)
        return x if scale is None else (x * scale).astype(dtype)

    return one("k"), one("v")
