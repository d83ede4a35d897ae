# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Step IV, policy update: the train step.

One compiled, donated function makes all optimizer steps of a batch: a scan over minibatches, in
each a scan over micro-batches whose gradients add up. Every loss is a sum divided by a count over
the whole minibatch, so neither the micro-batch size nor the number of devices changes it.

`make_optimizer_step` is shared with supervised training. Text and files are unknown here.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from rlvlm_jax.algorithms import kl, losses
from rlvlm_jax.config import microbatch, sequences, shards
from rlvlm_jax.logprobs import make_logprobs_fn
from rlvlm_jax.optim import make_trained, merge, split
from rlvlm_jax.sampling.logits import Policy
from rlvlm_jax.sharding import batch_sharding
from rlvlm_jax.types import Array, Params, TrainState, Trajectory

Sums = dict[str, Array]  # name -> float32[], added over micro-batches
LossFn = Callable[[Params, Any], tuple[Array, Sums]]


def init_state(params: Params, optimizer: Any, trained: Callable[[str], bool]) -> TrainState:
    """Returns the state before the first update; `trained` is from `optim.make_trained`."""
    moved, _ = split(params, trained)
    return TrainState(params, optimizer.init(moved), jnp.int32(0), jnp.int32(0))


def make_optimizer_step(
    optimizer: Any, is_trained: Callable[[str], bool]
) -> Callable[[TrainState, LossFn, Any], tuple[TrainState, Sums]]:
    """Builds optimizer_step(state, loss_fn, pieces, some) -> (state, sums).

    Args:
        optimizer: an optax transformation of the trained parameters.
        is_trained: from `optim.make_trained`; only what it chooses is differentiated.

    Returns:
        A function of the state, of loss_fn(params, piece) -> (its share of the loss, sums to be
        reported), of the pieces, stacked on a leading axis, and of whether there is anything to
        train on: without it, nothing moves, not even by weight decay, and no step is counted.
        Gradients add up over the pieces. A non-finite gradient leaves parameters and optimizer as
        they are and adds one to `bad_steps`; a finite one sets it to 0. Sums gain "loss",
        "grad_norm" (before clipping) and "skipped".
    """

    def optimizer_step(
        state: TrainState, loss_fn: LossFn, pieces: Any, some: Array
    ) -> tuple[TrainState, Sums]:
        trained, frozen = split(state.params, is_trained)

        def piece_loss(weights: Params, piece: Any) -> tuple[Array, Sums]:
            return loss_fn(merge(weights, frozen), piece)

        def gradient(piece: Any) -> tuple[Params, Sums]:
            (loss, sums), grads = jax.value_and_grad(piece_loss, has_aux=True)(trained, piece)
            return grads, {"loss": loss, **sums}

        def add_piece(total: tuple[Params, Sums], piece: Any) -> tuple[tuple[Params, Sums], None]:
            return jax.tree.map(jnp.add, total, gradient(piece)), None

        shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], pieces))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (grads, sums), _ = jax.lax.scan(add_piece, zeros, pieces)
        norm = optax.tree.norm(grads)

        def accept() -> TrainState:
            updates, opt_state = optimizer.update(grads, state.opt_state, trained)
            moved = optax.apply_updates(trained, updates)
            return TrainState(merge(moved, frozen), opt_state, state.step + 1, jnp.int32(0))

        def skip() -> TrainState:
            return state._replace(bad_steps=state.bad_steps + ~good)

        good = jnp.isfinite(norm) & jnp.isfinite(sums["loss"])
        taken = good & some
        state = jax.lax.cond(taken, accept, skip)
        return state, {**sums, "grad_norm": norm, "skipped": 1.0 - taken.astype(jnp.float32)}

    return optimizer_step


def select(trajectory: Trajectory, rows: Array, sharing: int, group_size: int) -> Trajectory:
    """Returns the given sequences, each `sharing` adjacent ones with one copy of their prompt.

    Args:
        trajectory: of B sequences.
        rows: int32[b]; runs of `sharing` belong to one prompt.
        sharing: divides `group_size` and b.
        group_size: G.
    """
    prompts = rows[::sharing] // group_size
    batch, features = jax.tree.map(lambda x: x[prompts], (trajectory.batch, trajectory.features))
    per_row = jax.tree.map(lambda x: x[rows], trajectory._replace(batch=None, features=None))
    return per_row._replace(batch=batch, features=features)


def make_loss_fn(model: Any, config: ConfigDict, policy: Policy) -> Callable[..., Any]:
    """Builds loss(params, Trajectory of a micro-batch, counts) -> (share, sums).

    `counts` are the minibatch's denominators: of the aggregation, and its number of tokens.
    """
    a = config.algorithm
    logprobs_fn = make_logprobs_fn(
        model,
        policy,
        config.update.logprob_chunk,
        flat_positions=a.flat_positions,
        entropy_gradient=a.entropy_coef > 0,
    )

    def loss(params: Params, t: Trajectory, counts: tuple[Array, Array]) -> tuple[Array, Sums]:
        aggregate_count, token_count = counts
        logprobs, entropies = logprobs_fn(params, t.batch, t.features, t.tokens, t.mask)
        numerator, sums = losses.policy_loss_sum(
            logprobs,
            t.old_logprobs,
            t.advantages,
            t.mask,
            kind=a.loss,
            clip_low=a.clip_low,
            clip_high=a.clip_high,
            dual_clip=a.dual_clip or None,
            aggregate=a.aggregate,
            rollout_logprobs=t.rollout_logprobs if a.is_cap else None,
            is_cap=a.is_cap or None,
        )
        share = numerator / aggregate_count
        stats = {name: value / token_count for name, value in sums.items()}
        stats["policy_loss"] = share
        if a.kl_loss_coef:
            divergence = kl.estimate(logprobs, t.ref_logprobs, kind=a.kl_loss_kind)
            stats["kl"] = losses.weighted_sum(divergence, t.mask) / token_count
            term = losses.weighted_sum(divergence, t.mask, a.aggregate) / aggregate_count
            share = share + a.kl_loss_coef * term
        if a.entropy_coef:
            term = losses.weighted_sum(entropies, t.mask, a.aggregate) / aggregate_count
            share = share - a.entropy_coef * term
        return share, stats

    return loss


def make_update_fn(
    model: Any, config: ConfigDict, optimizer: Any, policy: Policy, mesh: Any
) -> Callable[[TrainState, Trajectory, Array], tuple[TrainState, Sums]]:
    """Builds step IV, to be jitted once with the state donated.

    A minibatch is made of whole groups where `update.minibatch` is a multiple of
    `rollout.samples`, of parts of groups otherwise; which ones is drawn anew for every epoch.
    Samples of a prompt that fall into one micro-batch share one pass over it.

    Args:
        model: functions of parameters (see models.Model).
        config: the whole configuration.
        optimizer: from `optim.make_optimizer`.
        policy: the distribution the sampler recorded.
        mesh: micro-batches are divided over its `data` and `fsdp` axes.

    Returns:
        update(state, trajectory, key) -> (state, stats): means over the optimizer steps of this
        batch, and "update/skipped", the number of updates left out.
    """
    rows, mini, micro = sequences(config), config.update.minibatch, microbatch(config)
    group_size, a = config.rollout.samples, config.algorithm
    unit = math.gcd(group_size, mini)  # sequences that stay together when batches are drawn
    sharing = math.gcd(unit, micro // shards(config))  # of them, those in one micro-batch
    norm = (a.length_norm or config.rollout.max_tokens) if a.aggregate == "constant" else None
    loss_fn = make_loss_fn(model, config, policy)
    optimizer_step = make_optimizer_step(optimizer, make_trained(config.update, model.part))

    def update(state: TrainState, trajectory: Trajectory, key: Array) -> tuple[TrainState, Sums]:
        def one_minibatch(state: TrainState, chosen: Array) -> tuple[TrainState, Sums]:
            mask = trajectory.mask[chosen]
            whole = (losses.denominator(mask, a.aggregate, norm), losses.denominator(mask))

            def piece_loss(params: Params, piece_rows: Array) -> tuple[Array, Sums]:
                piece = select(trajectory, piece_rows, sharing, group_size)
                piece = jax.lax.with_sharding_constraint(piece, batch_sharding(mesh))
                counts = whole
                if a.aggregate == "microbatch":
                    counts = (losses.denominator(piece.mask) * (mini / micro), whole[1])
                return loss_fn(params, piece, counts)

            pieces = chosen.reshape(mini // micro, micro)
            return optimizer_step(state, piece_loss, pieces, mask.any())

        def one_epoch(state: TrainState, epoch_key: Array) -> tuple[TrainState, Sums]:
            units = jax.random.permutation(epoch_key, rows // unit)
            order = (units[:, None] * unit + jnp.arange(unit)).reshape(rows // mini, mini)
            return jax.lax.scan(one_minibatch, state, order)

        state, stats = jax.lax.scan(one_epoch, state, jax.random.split(key, config.update.epochs))
        return state, mean_stats(stats)

    return update


def mean_stats(stats: Sums) -> Sums:
    """Averages the statistics of several optimizer steps, leaving out the skipped ones."""
    skipped = stats.pop("skipped")
    taken = jnp.maximum(jnp.sum(1.0 - skipped), 1.0)
    means = {
        f"update/{name}": jnp.sum(jnp.where(skipped > 0, 0.0, value)) / taken
        for name, value in stats.items()
    }
    return {**means, "update/skipped": jnp.sum(skipped)}
