# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The optimizer: which parameters are trained, the learning-rate schedule, AdamW.

Frozen parameters have no gradient and no optimizer state: parameters are split into two trees of
the same structure, one with None where the other has an array. JAX and optax skip None.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from rlvlm_jax.sharding import path_name
from rlvlm_jax.types import Params

Optimizer = optax.GradientTransformation


def make_trained(settings: ConfigDict, part_of: Callable[[str], str]) -> Callable[[str], bool]:
    """Returns a function from a parameter's path to whether it is trained.

    Args:
        settings: the configuration's keys: `parts` are trained, the head only with the language
            model, and with a `lora_rank` only adapters.
        part_of: the model's function from "a/b/c" to "vit", "connector", "llm" or "head".
    """
    parts = set(settings.parts)
    if "llm" not in parts:
        parts.discard("head")

    def trained(path: str) -> bool:
        if part_of(path) not in parts:
            return False
        return not settings.lora_rank or path.endswith(("/lora_a", "/lora_b"))

    return trained


def split(params: Params, trained: Callable[[str], bool]) -> tuple[Params, Params]:
    """Splits parameters into (trained, frozen).

    Args:
        params: nested dict of arrays, shapes or shardings.
        trained: from `make_trained`.

    Returns:
        Two trees of the structure of `params`, each with None at the other's leaves.
    """

    def keep(trained_leaves: bool) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if trained(path_name(path)) == trained_leaves else None, params
        )

    return keep(True), keep(False)


def merge(trained: Params, frozen: Params) -> Params:
    """Joins the two trees again; the inverse of `split`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda leaf: leaf is None
    )


def make_schedule(settings: ConfigDict, total_updates: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates so far.

    Linear from lr / n to lr over the first n = round(warmup * total) updates, then
    half a cosine down to final_lr * lr at the last update.
    """
    warm = max(1, round(settings.warmup * total_updates))
    last = max(1, total_updates - 1 - warm)

    def schedule(count: jax.Array) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        rising = jnp.minimum(1.0, (count + 1) / warm)  # Deviates from MAYE: never 0
        fraction = jnp.clip((count - warm) / last, 0.0, 1.0)
        falling = 0.5 * (1 + jnp.cos(jnp.pi * fraction))
        falling = settings.final_lr + (1 - settings.final_lr) * falling
        return settings.lr * jnp.where(count < warm, rising, falling)

    return schedule


def make_optimizer(
    settings: ConfigDict, total_updates: int, part_of: Callable[[str], str]
) -> tuple[Optimizer, optax.Schedule]:
    """Returns (AdamW with global-norm clipping, its learning-rate schedule).

    Weight decay applies only to matrices (weights and embeddings), never to adapters. The
    vision side's own rate, `lr_vision`, follows the same schedule.

    Source: Loshchilov and Hutter 2019 (arXiv:1711.05101).
    """
    schedule = make_schedule(settings, total_updates)

    def decayed(params: Params) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path[-1].key in ("weight", "embedding"), params
        )

    clip = optax.clip_by_global_norm(settings.grad_clip) if settings.grad_clip else optax.identity()
    adamw = optax.adamw(
        schedule,
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        mask=decayed,
    )

    def scale(updates: Params, params: Params | None = None) -> Params:
        del params
        return jax.tree_util.tree_map_with_path(
            lambda path, x: (
                x * (settings.lr_vision / settings.lr)
                if part_of(path_name(path)) in ("vit", "connector")
                else x
            ),
            updates,
        )

    rates = optax.stateless(scale) if settings.lr_vision else optax.identity()
    return optax.chain(clip, adamw, rates), schedule


def state_shardings(optimizer: Optimizer, trained: Params, shardings: Params, scalar: Any) -> Any:
    """Shards optimizer state like its parameters, everything else as `scalar` says.

    Args:
        optimizer: from `make_optimizer`.
        trained: shapes of the trained parameters.
        shardings: their shardings, the same tree.
        scalar: sharding of leaves without a parameter, i.e. counters.

    Returns:
        The tree of `optimizer.init(trained)` with shardings for leaves.
    """
    return optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, trained),
        shardings,
        transform_non_params=lambda _: scalar,
    )
