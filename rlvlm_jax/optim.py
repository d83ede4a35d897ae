# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The optimizer: which parameters are trained, the learning-rate schedule, AdamW.

What is frozen has no gradient and no optimizer state: parameters are split into two trees of the
same structure, one with None where the other has an array, and JAX and optax skip None.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from rlvlm_jax.sharding import path_name
from rlvlm_jax.types import Params


def trained_parts(update: ConfigDict) -> frozenset[str]:
    """Returns which of "vit", "connector", "llm" the configuration trains."""
    return frozenset(part for part in ("vit", "connector", "llm") if update[f"train_{part}"])


def split(
    params: Params, part_of: Callable[[str], str], parts: Collection[str]
) -> tuple[Params, Params]:
    """Splits parameters into (trained, frozen).

    Args:
        params: nested dict of arrays, shapes or shardings.
        part_of: the model's function from "a/b/c" to "vit", "connector" or "llm".
        parts: those that are trained.

    Returns:
        Two trees of the structure of `params`, with None at the other's leaves.
    """
    trained = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if part_of(path_name(path)) in parts else None, params
    )
    frozen = jax.tree_util.tree_map_with_path(
        lambda path, leaf: None if part_of(path_name(path)) in parts else leaf, params
    )
    return trained, frozen


def merge(trained: Params, frozen: Params) -> Params:
    """Returns the whole parameters again; the inverse of `split`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda leaf: leaf is None
    )


def make_schedule(update: ConfigDict, total_updates: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates already made.

    Linear from lr / n to lr over the first n = round(warmup * total) updates, then constant, or
    half a cosine down to final_lr * lr at the last update.
    """
    warm = max(1, round(update.warmup * total_updates))
    last = max(1, total_updates - 1 - warm)

    def schedule(count: jax.Array) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        rising = jnp.minimum(1.0, (count + 1) / warm)  # Deviates from MAYE: never 0
        if update.schedule == "constant":
            return update.lr * rising
        fraction = jnp.clip((count - warm) / last, 0.0, 1.0)
        falling = 0.5 * (1 + jnp.cos(jnp.pi * fraction))
        falling = update.final_lr + (1 - update.final_lr) * falling
        return update.lr * jnp.where(count < warm, rising, falling)

    return schedule


def make_optimizer(
    update: ConfigDict, total_updates: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns (AdamW with global-norm clipping, its learning-rate schedule).

    Weight decay acts on matrices (weights and embeddings) only.

    Source: Loshchilov and Hutter 2019 (arXiv:1711.05101).
    """
    schedule = make_schedule(update, total_updates)

    def decayed(params: Params) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path[-1].key in ("weight", "embedding"), params
        )

    clip = optax.clip_by_global_norm(update.grad_clip) if update.grad_clip else optax.identity()
    adamw = optax.adamw(
        schedule,
        b1=update.b1,
        b2=update.b2,
        eps=update.eps,
        weight_decay=update.weight_decay,
        mask=decayed,
    )
    return optax.chain(clip, adamw), schedule


def state_shardings(
    optimizer: optax.GradientTransformation, trained: Params, shardings: Params, scalar: Any
) -> Any:
    """Places optimizer state like the parameters it belongs to, and counters everywhere.

    Args:
        optimizer: from `make_optimizer`.
        trained: shapes of the trained parameters.
        shardings: their shardings, the same tree.
        scalar: sharding of what belongs to no parameter.

    Returns:
        The tree of `optimizer.init(trained)` with shardings for leaves.
    """
    return optax.tree_map_params(
        optimizer,
        lambda _, place: place,
        jax.eval_shape(optimizer.init, trained),
        shardings,
        transform_non_params=lambda _: scalar,
    )
