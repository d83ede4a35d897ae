# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Step IV, policy update: the train step.

One compiled function with a donated state makes all optimizer steps of a batch. It scans over
minibatches; in each, a loop over micro-batches adds up gradients. Every loss is a sum divided by a
count over the whole minibatch. So it depends neither on the micro-batch size nor on the number of
devices, nor on whether a micro-batch is rows or packed streams.

Supervised training uses `make_optimizer_step` too. This module knows nothing about text or files.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from rlvlm_jax.algorithms import kl, losses
from rlvlm_jax.config import microbatch, old_logprobs, pass_shards, sequences
from rlvlm_jax.logprobs import make_logprobs_fn, make_packed_logprobs_fn
from rlvlm_jax.optim import make_trained, merge, split
from rlvlm_jax.packing import Plan, max_prompts
from rlvlm_jax.sampling.logits import Policy
from rlvlm_jax.sharding import ROWS, batch_sharding, pass_sharding
from rlvlm_jax.types import Array, Params, Prompts, TrainState, Trajectory

Sums = dict[str, Array]  # name -> float32[], added over micro-batches
LossFn = Callable[[Params, Any], tuple[Array, Sums]]


def init_state(params: Params, optimizer: Any, trained: Callable[[str], bool]) -> TrainState:
    """Returns the state before the first update; `trained` is from `optim.make_trained`."""
    moved, _ = split(params, trained)
    return TrainState(params, optimizer.init(moved), jnp.int32(0), jnp.int32(0))


def make_optimizer_step(
    optimizer: Any, is_trained: Callable[[str], bool]
) -> Callable[..., tuple[TrainState, Sums]]:
    """Builds optimizer_step(state, loss_fn, pieces, has_tokens, num_pieces=None) -> (state, sums).

    Args:
        optimizer: an optax transformation of the trained parameters.
        is_trained: from `optim.make_trained`; only these parameters are differentiated.

    Returns:
        A function of

        * state;
        * loss_fn(params, piece) -> (the piece's share of the loss, sums to report);
        * pieces, stacked on a leading axis;
        * has_tokens, bool[]: whether there is anything to train on. If not, nothing changes, not
          even by weight decay, and no step is counted;
        * num_pieces, int32[]: how many pieces to run; None for all.

        Gradients add up over the pieces. A non-finite gradient leaves parameters and optimizer
        unchanged and adds one to `bad_steps`; a finite one sets it to 0. The sums also get "loss",
        "grad_norm" (before clipping) and "skipped".
    """

    def optimizer_step(
        state: TrainState,
        loss_fn: LossFn,
        pieces: Any,
        has_tokens: Array,
        num_pieces: Array | None = None,
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
        if num_pieces is None:
            (grads, sums), _ = jax.lax.scan(add_piece, zeros, pieces)
        else:  # gradients are taken inside the loop, so its length can be dynamic

            def add_piece_number(k: Array, total: tuple[Params, Sums]) -> tuple[Params, Sums]:
                return add_piece(total, jax.tree.map(lambda x: x[k], pieces))[0]

            grads, sums = jax.lax.fori_loop(0, num_pieces, add_piece_number, zeros)
        norm = optax.tree.norm(grads)

        def accept() -> TrainState:
            updates, opt_state = optimizer.update(grads, state.opt_state, trained)
            moved = optax.apply_updates(trained, updates)
            return TrainState(merge(moved, frozen), opt_state, state.step + 1, jnp.int32(0))

        def skip() -> TrainState:
            return state._replace(bad_steps=state.bad_steps + ~good)

        good = jnp.isfinite(norm) & jnp.isfinite(sums["loss"])
        taken = good & has_tokens
        state = jax.lax.cond(taken, accept, skip)
        return state, {**sums, "grad_norm": norm, "skipped": 1.0 - taken.astype(jnp.float32)}

    return optimizer_step


def select(trajectory: Trajectory, rows: Array, sharing: int, group_size: int) -> Trajectory:
    """Returns the sequences `rows`, with one copy of the prompt per `sharing` adjacent ones.

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
    """Builds loss(params, Trajectory of a micro-batch, counts, streams=None) -> (share, sums).

    `counts` are the minibatch's denominators: that of the aggregation, and the number of tokens.
    `streams` are (source, previous), int32[S, T] each, of a `packing.Plan`; with them, the
    micro-batch is the trajectory's tokens in these streams. If no pass was made before the update,
    sums also hold "logprob_diff", float32[rows of the trajectory], the largest difference from the
    sampler in nats.
    """
    has_pass = old_logprobs(config) == "trainer"
    a = config.algorithm
    settings = (model, policy, config.update.logprob_chunk)
    options = {"flat_positions": a.flat_positions, "entropy_gradient": a.entropy_coef > 0}
    logprobs_fn = make_logprobs_fn(*settings, **options)
    packed_logprobs_fn = make_packed_logprobs_fn(*settings, **options)

    def loss(
        params: Params,
        t: Trajectory,
        counts: tuple[Array, Array],
        streams: tuple[Array, Array] | None = None,
    ) -> tuple[Array, Sums]:
        aggregate_count, token_count = counts
        arrays = (t.batch, t.features, t.tokens, t.mask)
        if streams is None:
            logprobs, entropies = logprobs_fn(params, *arrays)
        else:
            logprobs, entropies, present = packed_logprobs_fn(params, *arrays, *streams)
            t = t._replace(mask=present)
        old = jax.lax.stop_gradient(logprobs) if t.old_logprobs is None else t.old_logprobs
        numerator, sums = losses.policy_loss_sum(
            logprobs,
            old,
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
        if not has_pass:
            logprob_diff = jnp.where(t.mask, jnp.abs(logprobs - t.rollout_logprobs), 0.0)
            stats["logprob_diff"] = jnp.max(logprob_diff, axis=1)
            stats["logprob_diff_mean"] = losses.weighted_sum(logprob_diff, t.mask) / token_count
            stats["entropy"] = losses.weighted_sum(entropies, t.mask) / token_count
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


def _unit(config: ConfigDict) -> int:
    """Returns how many sequences of a group stay together when drawing minibatches."""
    return math.gcd(config.rollout.samples, config.update.minibatch)


def _sharing(config: ConfigDict) -> int:
    """Returns how many of them share one pass over their prompt if nothing is packed."""
    return math.gcd(_unit(config), microbatch(config) // pass_shards(config))


def computed_tokens(config: ConfigDict, prompts: np.ndarray, plans: Plan | None) -> int:
    """Returns the number of tokens, padding included, in the passes of one batch's update.

    Args:
        config: the whole configuration.
        prompts: bool[N, P], the prompts' mask.
        plans: of its minibatches, on the host; None if nothing is packed.
    """
    if plans is not None:
        return int(plans.count.sum()) * plans.source[0, 0, 0].size
    rows = config.update.epochs * sequences(config)
    return rows // _sharing(config) * prompts.shape[1] + rows * config.rollout.max_tokens


def minibatch_order(config: ConfigDict, key: Array) -> Array:
    """Draws which sequences make up each minibatch: int32[epochs, minibatches, sequences].

    A minibatch consists of whole groups if `update.minibatch` is a multiple of `rollout.samples`,
    else of parts of groups. Every epoch draws new ones.

    Args:
        config: the whole configuration.
        key: of the update.
    """
    rows, mini, unit = sequences(config), config.update.minibatch, _unit(config)

    def one_epoch(epoch_key: Array) -> Array:
        units = jax.random.permutation(epoch_key, rows // unit)
        return (units[:, None] * unit + jnp.arange(unit)).reshape(rows // mini, mini)

    return jax.lax.map(one_epoch, jax.random.split(key, config.update.epochs))


def encode_present_images(
    model: Any, params: Params, batch: Prompts, source: Array, mesh: Any
) -> Array:
    """Encodes images only for prompts that occur in the streams.

    Args:
        model: with `encode_images`.
        params: of the model.
        batch: N prompts.
        source: int32[S, T], of a `packing.Plan` made with `limit_prompts`.
        mesh: prompts are sharded over its `data`, `fsdp` and `sequence` axes.

    Returns:
        Image features [N, M, ...], 0 for other prompts.
    """
    prompts, size = batch.tokens.shape
    streams, tokens = source.shape
    prompt = jnp.where(source < 0, prompts, source // size)  # past the last for a response too
    present = jnp.zeros(prompts, bool).at[prompt].set(True, mode="drop")
    devices = math.prod(mesh.shape[axis] for axis in ROWS)
    max_present = streams * max_prompts(tokens, size)
    max_present = min(prompts, -(-max_present // devices) * devices)
    (rows,) = jnp.nonzero(present, size=max_present, fill_value=prompts)
    present_batch = jax.tree.map(lambda x: jnp.take(x, rows, axis=0, mode="clip"), batch)
    present_batch = jax.lax.with_sharding_constraint(present_batch, batch_sharding(mesh))
    features = model.encode_images(params, present_batch)

    def scatter(present: Array) -> Array:
        everywhere = jnp.zeros((prompts, *present.shape[1:]), present.dtype)
        return everywhere.at[rows].set(present, mode="drop")

    return jax.tree.map(scatter, features)


def make_update_fn(
    model: Any, config: ConfigDict, optimizer: Any, policy: Policy, mesh: Any
) -> Callable[..., tuple[TrainState, Sums]]:
    """Builds step IV, to be jitted once with the state donated.

    Samples of a prompt in the same micro-batch, or the same stream, share one pass over it.

    Args:
        model: functions of parameters (see models.Model).
        config: the whole configuration.
        optimizer: from `optim.make_optimizer`.
        policy: the distribution that the sampler recorded.
        mesh: micro-batches are sharded over its `data` and `fsdp` axes.

    Returns:
        update(state, trajectory, order, plans=None) -> (state, stats). There is one optimizer step
        per minibatch of `order`, see `minibatch_order`. With plans of these minibatches,
        micro-batches are packed streams. Stats are means over the optimizer steps, and
        "update/skipped", the number of skipped steps. If no pass compared sampler and trainer
        (`algorithm.old_logprobs`), the first optimizer step does and adds rollout/logprob_gap_* and
        "logprob_diffs" float32[B], NaN for sequences not in it.
    """
    mini, micro = config.update.minibatch, microbatch(config)
    group_size, a = config.rollout.samples, config.algorithm
    sharing = _sharing(config)
    norm = (a.length_norm or config.rollout.max_tokens) if a.aggregate == "constant" else None
    loss_fn = make_loss_fn(model, config, policy)
    optimizer_step = make_optimizer_step(optimizer, make_trained(config.update, model.part))

    def update(
        state: TrainState, trajectory: Trajectory, order: Array, plans: Plan | None = None
    ) -> tuple[TrainState, Sums]:
        def one_minibatch(
            state: TrainState, minibatch: tuple[Array, Plan | None]
        ) -> tuple[TrainState, Sums]:
            chosen, plan = minibatch
            mask = trajectory.mask[chosen]
            minibatch_counts = (
                losses.denominator(mask, a.aggregate, norm),
                losses.denominator(mask),
            )

            def piece_loss(params: Params, piece_rows: Array) -> tuple[Array, Sums]:
                piece = select(trajectory, piece_rows, sharing, group_size)
                piece = jax.lax.with_sharding_constraint(piece, pass_sharding(mesh))
                counts = minibatch_counts
                if a.aggregate == "microbatch":
                    counts = (losses.denominator(piece.mask) * (mini / micro), minibatch_counts[1])
                share, sums = loss_fn(params, piece, counts)
                if "logprob_diff" in sums:  # scatter these rows among all
                    diffs = jnp.zeros(len(trajectory.mask))
                    diffs = diffs.at[piece_rows].set(sums["logprob_diff"])
                    sums = sums | {"logprob_diff": diffs}
                return share, sums

            def stream_loss(params: Params, streams: tuple[Array, Array]) -> tuple[Array, Sums]:
                streams = jax.lax.with_sharding_constraint(streams, pass_sharding(mesh))
                piece = trajectory
                if piece.features is None:
                    features = encode_present_images(model, params, piece.batch, streams[0], mesh)
                    piece = piece._replace(features=features)
                return loss_fn(params, piece, minibatch_counts, streams)

            if plan is not None:
                pieces = plan.source, plan.previous
                return optimizer_step(state, stream_loss, pieces, mask.any(), plan.count)
            pieces = chosen.reshape(mini // micro, micro)
            return optimizer_step(state, piece_loss, pieces, mask.any())

        def one_epoch(state: TrainState, minibatches: Any) -> tuple[TrainState, Sums]:
            return jax.lax.scan(one_minibatch, state, minibatches)

        state, stats = jax.lax.scan(one_epoch, state, (order, plans))
        diff_stats = {}
        if "logprob_diff" in stats:  # valid while the parameters are those that sampled
            first = jnp.zeros(len(trajectory.mask), bool).at[order[0, 0]].set(True)
            first &= trajectory.mask.any(axis=1)
            largest = stats.pop("logprob_diff")[0, 0]
            mean = stats.pop("logprob_diff_mean")[0, 0]
            diff_stats = {
                "rollout/logprob_gap_mean": jnp.where(first.any(), mean, jnp.nan),
                "rollout/logprob_gap_max": jnp.where(first.any(), largest.max(), jnp.nan),
                "logprob_diffs": jnp.where(first, largest, jnp.nan),
            }
        stats = mean_stats(stats) | diff_stats
        if diff_stats:  # undefined without a trained token
            entropy = stats["update/entropy"]
            stats["update/entropy"] = jnp.where(trajectory.mask.any(), entropy, jnp.nan)
        return state, stats

    return update


def mean_stats(stats: Sums) -> Sums:
    """Averages the statistics of optimizer steps that were not skipped; NaN if there is none."""
    skipped = stats.pop("skipped")
    taken = jnp.sum(1.0 - skipped)
    means = {
        f"update/{name}": jnp.sum(jnp.where(skipped > 0, 0.0, value)) / taken
        for name, value in stats.items()
    }
    return {**means, "update/skipped": jnp.sum(skipped)}
