# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters (LoRA): parameters next to a linear layer's weight, which stays frozen.

x W^T + (alpha / r) (x A^T) B^T. A [r, in] is drawn from N(0, 1 / r), B [out, r] starts at zero, so
that training starts from the unchanged model. The leaves are next to the weight in the tree and
stacked over layers like it; `layers.Linear` uses them if they are present. This module knows
parameter trees, but no optimizer.

Source: Hu et al. 2021 (arXiv:2106.09685).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rlvlm_jax.types import Array, Params

TRAINED = ("lora_a", "lora_b")
LEAVES = (*TRAINED, "lora_scale")


def add(
    params: Params, key: Array, rank: int, alpha: float, chosen: Callable[[str], bool]
) -> Params:
    """Returns the parameters with adapters next to the chosen weights.

    Args:
        params: nested dict; linear layers are the dicts that hold a "weight".
        key: of the draws.
        rank: r.
        alpha: the adapters' output is multiplied by alpha / r.
        chosen: path of a weight, "a/b/weight" -> whether it gets an adapter.
    """

    def walk(node: Any, path: str) -> Any:
        if not isinstance(node, dict):
            return node
        layer = {name: walk(child, f"{path}{name}/") for name, child in node.items()}
        if "weight" in layer and chosen(f"{path}weight"):
            *layers, out, width = layer["weight"].shape
            number = sum(ord(letter) * 31**index for index, letter in enumerate(path)) % 2**31
            draw = jax.random.normal(jax.random.fold_in(key, number), (*layers, rank, width))
            layer["lora_a"] = draw * rank**-0.5
            layer["lora_b"] = jnp.zeros((*layers, out, rank))
            layer["lora_scale"] = jnp.full(layers, alpha / rank, jnp.float32)
        return layer

    return walk(params, "")


def merge(params: Params) -> Params:
    """Returns the parameters with the adapters merged into their weights and removed.

    W + (alpha / r) B A, in float32.
    """
    if not isinstance(params, dict):
        return params
    merged = {name: merge(child) for name, child in params.items() if name not in LEAVES}
    if "lora_a" in params:
        low = jnp.einsum(
            "...or,...ri->...oi", params["lora_b"], params["lora_a"], precision="highest"
        )
        scale = jnp.asarray(params["lora_scale"])[..., None, None]
        merged["weight"] = params["weight"] + scale * low
    return merged


def has_adapters(params: Params) -> bool:
    """Returns whether any layer has an adapter."""
    return isinstance(params, dict) and (
        "lora_a" in params or any(has_adapters(child) for child in params.values())
    )


def drop(params: Params) -> Params:
    """Returns the parameters (or their shapes) without adapters, weights unchanged."""
    if not isinstance(params, dict):
        return params
    return {name: drop(child) for name, child in params.items() if name not in LEAVES}


def shapes_like(params: Params, stored: Params) -> Params:
    """Returns the shapes of `params` with the adapters of `stored`, at the same rank.

    Args:
        params: shapes without adapters.
        stored: shapes that may include adapters.
    """
    if not isinstance(stored, dict) or not isinstance(params, dict):
        return params
    shapes = {name: shapes_like(child, stored.get(name)) for name, child in params.items()}
    if "lora_a" in stored and "weight" in params:
        rank = stored["lora_a"].shape[-2]
        adapted = jax.eval_shape(
            partial(add, rank=rank, alpha=rank, chosen=bool),  # any path
            {"x": {"weight": params["weight"]}},
            jax.random.key(0),
        )["x"]
        shapes |= {name: adapted[name] for name in LEAVES}
    return shapes


def rules(weight_rules: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, Any], ...]:
    """Returns sharding rules of adapters, derived from the rules of their weights.

    A is sharded like the weight's input, B like its output; r is never sharded.
    """
    adapter_rules: list[tuple[str, Any]] = []
    for pattern, spec in weight_rules:
        if not pattern.endswith("/weight$"):
            continue
        prefix = pattern.removesuffix("weight$")
        *layers, out, width = spec
        adapter_rules += [
            (f"{prefix}lora_a$", PartitionSpec(*layers, None, width)),
            (f"{prefix}lora_b$", PartitionSpec(*layers, out, None)),
            (f"{prefix}lora_scale$", PartitionSpec()),
        ]
    return tuple(adapter_rules)
