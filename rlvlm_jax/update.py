# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Step IV, policy update: the train step.

`train_step` makes one optimizer step; it is one compiled program with a donated state. Its
minibatch is a stack of pieces, which are rows or packed streams; a loop over them adds up
gradients. Every loss is a sum divided by a count over the whole minibatch. So it depends neither on
the size or kind of the pieces nor on the number of devices.

Supervised training has its own loss and the same step. This module knows nothing about text or
files.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlvlm_jax.algorithms import kl, losses
from rlvlm_jax.config import microbatch, old_logprobs, pass_shards, sequences
from rlvlm_jax.logprobs import Streams, logprobs
from rlvlm_jax.models import Model
from rlvlm_jax.optim import Optimizer, make_trained, merge, split
from rlvlm_jax.packing import Plan, max_prompts
from rlvlm_jax.sampling.logits import Policy
from rlvlm_jax.sharding import ROWS, batch_sharding, pass_sharding
from rlvlm_jax.types import Array, Params, Prompts, TrainState, Trajectory

Sums = dict[str, Array]  # name -> float32[], added over pieces
Piece = Array | Streams  # rows, int32[m], or tokens in streams
Total = tuple[Params, Sums]  # gradients and sums


class Setup(NamedTuple):
    """The static part of a train step."""

    model: Model
    config: ConfigDict  # the whole configuration
    policy: Policy  # the distribution that the sampler recorded
    optimizer: Optimizer  # from `optim.make_optimizer`
    mesh: Mesh  # pieces are sharded over its `data` and `fsdp` axes


class Minibatch(NamedTuple):
    """The sequences of one optimizer step, cut into a stack of K pieces."""

    rows: Array  # int32[b], the sequences
    pieces: Piece  # with a leading axis K: int32[K, b / K], or int32[K, S, T] twice
    count: Array | None  # int32[], pieces in use; None for all


class Counts(NamedTuple):
    """Denominators of a minibatch, float32[] each."""

    aggregate: Array  # that of `algorithm.aggregate`
    trained: Array  # tokens that are trained on
    compared: Array  # tokens on which sampler and trainer are compared


LossFn = Callable[[Setup, Trajectory, Counts, Params, Params, Piece], tuple[Array, Sums]]


def init_state(params: Params, optimizer: Optimizer, trained: Callable[[str], bool]) -> TrainState:
    """Returns the state before the first update; `trained` is from `optim.make_trained`."""
    moved, _ = split(params, trained)
    return TrainState(params, optimizer.init(moved), jnp.int32(0), jnp.int32(0))


# ---- minibatches and their pieces ---------------------------------------------------------------


def group_part(config: ConfigDict) -> int:
    """Returns how many sequences of a group stay together when drawing minibatches."""
    return math.gcd(config.rollout.samples, config.update.minibatch)


def prompt_sharing(config: ConfigDict) -> int:
    """Returns how many of them share one pass over their prompt if nothing is packed."""
    return math.gcd(group_part(config), microbatch(config) // pass_shards(config))


def optimizer_steps(config: ConfigDict) -> int:
    """Returns how many optimizer steps the update of one batch makes."""
    return config.update.epochs * sequences(config) // config.update.minibatch


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
    return rows // prompt_sharing(config) * prompts.shape[1] + rows * config.rollout.max_tokens


def minibatch_order(config: ConfigDict, key: Array) -> Array:
    """Draws which sequences make up each minibatch: int32[epochs, minibatches, sequences].

    A minibatch consists of whole groups if `update.minibatch` is a multiple of `rollout.samples`,
    else of parts of groups. Every epoch draws new ones.

    Args:
        config: the whole configuration.
        key: of the update.
    """
    rows, mini, unit = sequences(config), config.update.minibatch, group_part(config)

    def one_epoch(epoch_key: Array) -> Array:
        units = jax.random.permutation(epoch_key, rows // unit)
        return (units[:, None] * unit + jnp.arange(unit)).reshape(rows // mini, mini)

    return jax.lax.map(one_epoch, jax.random.split(key, config.update.epochs))


def cut(config: ConfigDict, order: np.ndarray, plans: Plan | None) -> list[Minibatch]:
    """Cuts each minibatch into pieces, on the host.

    Args:
        config: the whole configuration.
        order: from `minibatch_order`.
        plans: of these minibatches, on the host; None cuts rows into micro-batches.
    """
    order = np.asarray(order)
    minibatches = []
    for index in np.ndindex(order.shape[:-1]):
        pieces, count = order[index].reshape(-1, microbatch(config)), None
        if plans is not None:
            pieces, count = (plans.source[index], plans.previous[index]), plans.count[index]
        minibatches.append(Minibatch(order[index], pieces, count))
    return minibatches


def select(trajectory: Trajectory, rows: Array, sharing: int, group_size: int) -> Trajectory:
    """Returns the sequences `rows`, with one copy of the prompt per `sharing` adjacent ones.

    Args:
        trajectory: of B sequences.
        rows: int32[b]; runs of `sharing` belong to one prompt.
        sharing: divides `group_size` and b.
        group_size: G.
    """
    prompts = rows[::sharing] // group_size
    batch, features = jax.tree.map(lambda x: x[prompts], (trajectory.prompts, trajectory.features))
    per_row = jax.tree.map(lambda x: x[rows], trajectory._replace(prompts=None, features=None))
    return per_row._replace(prompts=batch, features=features)


def encode_present_images(
    model: Model, params: Params, prompts: Prompts, source: Array, mesh: Mesh
) -> Any:
    """Encodes images only for prompts that occur in the streams.

    Args:
        model: with `encode_images`.
        params: of the model.
        prompts: N prompts.
        source: int32[S, T], of a `packing.Plan` made with `limit_prompts`.
        mesh: prompts are sharded over its `data`, `fsdp` and `sequence` axes.

    Returns:
        Image features [N, M, ...], 0 for other prompts.
    """
    number, size = prompts.tokens.shape
    streams, tokens = source.shape
    prompt = jnp.where(source < 0, number, source // size)  # past the last for a response too
    present = jnp.zeros(number, bool).at[prompt].set(True, mode="drop")
    devices = math.prod(mesh.shape[axis] for axis in ROWS)
    max_present = streams * max_prompts(tokens, size)
    max_present = min(number, -(-max_present // devices) * devices)
    (rows,) = jnp.nonzero(present, size=max_present, fill_value=number)
    present_prompts = jax.tree.map(lambda x: jnp.take(x, rows, axis=0, mode="clip"), prompts)
    present_prompts = jax.lax.with_sharding_constraint(present_prompts, batch_sharding(mesh))
    features = model.encode_images(params, present_prompts)

    def scatter(present: Array) -> Array:
        everywhere = jnp.zeros((number, *present.shape[1:]), present.dtype)
        return everywhere.at[rows].set(present, mode="drop")

    return jax.tree.map(scatter, features)


# ---- the loss of a piece ------------------------------------------------------------------------


def denominators(config: ConfigDict, trajectory: Trajectory, rows: Array) -> Counts:
    """Returns the counts of the minibatch `rows`, int32[b]."""
    a = config.algorithm
    norm = (a.length_norm or config.rollout.max_tokens) if a.aggregate == "constant" else None
    trained = trajectory.trained[rows]
    return Counts(
        aggregate=losses.denominator(trained, a.aggregate, norm),
        trained=losses.denominator(trained),
        compared=losses.denominator(trajectory.sampled[rows]),
    )


def rl_loss(
    setup: Setup,
    trajectory: Trajectory,
    counts: Counts,
    frozen: Params,
    trained: Params,
    piece: Piece,
) -> tuple[Array, Sums]:
    """Returns a piece's share of the policy loss with its KL and entropy terms, and sums to report.

    Args:
        setup: static.
        trajectory: of all B sequences.
        counts: of the minibatch.
        frozen: parameters without gradient.
        trained: parameters with gradient.
        piece: the sequences, or the streams.

    Returns:
        (float32[], sums). If no pass was made before the update, the sums have those of `compare`.
    """
    model, config, policy, _, mesh = setup
    a, params, streams = config.algorithm, merge(trained, frozen), None
    if isinstance(piece, tuple):
        streams = jax.lax.with_sharding_constraint(piece, pass_sharding(mesh))
        rows, t = slice(None), trajectory
        if t.features is None:
            features = encode_present_images(model, params, t.prompts, streams[0], mesh)
            t = t._replace(features=features)
    else:
        rows, t = piece, select(trajectory, piece, prompt_sharing(config), config.rollout.samples)
        t = jax.lax.with_sharding_constraint(t, pass_sharding(mesh))
    new, entropies, present = logprobs(
        *(model, policy, config.update.logprob_chunk),
        *(params, t.prompts, t.features, t.tokens, t.valid, t.sampled, streams),
        flat_positions=a.flat_positions,
        entropy_gradient=a.entropy_coef > 0,
    )
    if streams is not None:
        t = t._replace(trained=t.trained & present, sampled=present)
    if a.aggregate == "microbatch":
        pieces = config.update.minibatch / microbatch(config)
        counts = counts._replace(aggregate=losses.denominator(t.trained) * pieces)
    numerator, sums = losses.policy_loss_sum(
        new,
        jax.lax.stop_gradient(new) if t.old_logprobs is None else t.old_logprobs,
        t.advantages,
        t.trained,
        kind=a.loss,
        clip_low=a.clip_low,
        clip_high=a.clip_high,
        dual_clip=a.dual_clip or None,
        aggregate=a.aggregate,
        rollout_logprobs=t.rollout_logprobs if a.is_cap else None,
        is_cap=a.is_cap or None,
    )
    share = numerator / counts.aggregate
    stats = {name: value / counts.trained for name, value in sums.items()}
    stats["policy_loss"] = share
    if old_logprobs(config) != "trainer":
        stats |= compare(new, entropies, t, counts)
        largest = jnp.zeros(len(trajectory.tokens)).at[rows].set(stats["logprob_diff"])
        stats["logprob_diff"] = largest
    if a.kl_loss_coef:
        divergence = kl.estimate(new, t.ref_logprobs, kind=a.kl_loss_kind)
        stats["kl"] = losses.weighted_sum(divergence, t.trained) / counts.trained
        term = losses.weighted_sum(divergence, t.trained, a.aggregate) / counts.aggregate
        share = share + a.kl_loss_coef * term
    if a.entropy_coef:
        term = losses.weighted_sum(entropies, t.trained, a.aggregate) / counts.aggregate
        share = share - a.entropy_coef * term
    return share, stats


def compare(new: Array, entropies: Array, t: Trajectory, counts: Counts) -> Sums:
    """Compares sampler and trainer on the tokens of a piece that the policy drew.

    Args:
        new: float32[B, R], the trainer's log-probabilities in nats.
        entropies: float32[B, R], nats.
        t: the piece.
        counts: of the minibatch.

    Returns:
        "logprob_diff", float32[B], the largest difference of each row in nats. "logprob_diff_mean"
        and "entropy", float32[], shares of means over the minibatch.
    """
    diff = jnp.where(t.sampled, jnp.abs(new - t.rollout_logprobs), 0.0)
    return {
        "logprob_diff": jnp.max(diff, axis=1),
        "logprob_diff_mean": losses.weighted_sum(diff, t.sampled) / counts.compared,
        "entropy": losses.weighted_sum(entropies, t.sampled) / counts.compared,
    }


# ---- one optimizer step -------------------------------------------------------------------------


def train_step(
    setup: Setup, loss: LossFn, trajectory: Trajectory, state: TrainState, minibatch: Minibatch
) -> tuple[TrainState, Sums]:
    """Makes one optimizer step, to be jitted once with the state donated.

    Samples of a prompt in the same micro-batch, or the same stream, share one pass over it. Only
    trained parameters are differentiated. If no token of the minibatch is trained on, nothing
    changes, not even by weight decay, and no step is counted. A non-finite gradient leaves
    parameters and optimizer unchanged and adds one to `bad_steps`; a finite one sets it to 0.

    Args:
        setup: static.
        loss: `rl_loss`, or that of supervised training.
        trajectory: of all B sequences.
        state: before the step.
        minibatch: from `cut`.

    Returns:
        (state, stats). Stats are the loss's sums with "loss", "grad_norm" (before clipping) and
        "skipped", 1 if no step was taken.
    """
    trained, frozen = split(state.params, make_trained(setup.config.update, setup.model.part))
    counts = denominators(setup.config, trajectory, minibatch.rows)
    share = partial(loss, setup, trajectory, counts, frozen)  # of (trained, piece)
    gradient = partial(jax.value_and_grad(share, has_aux=True), trained)
    first_piece = jax.tree.map(lambda x: x[0], minibatch.pieces)
    (loss_shape, sums_shape), grads_shape = jax.eval_shape(gradient, first_piece)
    shapes = grads_shape, {"loss": loss_shape, **sums_shape}
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    count = minibatch.count
    if count is None:
        count = len(minibatch.pieces)
    add = partial(add_piece, gradient, minibatch.pieces)
    grads, sums = jax.lax.fori_loop(0, count, add, zeros)

    norm = optax.tree.norm(grads)
    good = jnp.isfinite(norm) & jnp.isfinite(sums["loss"])
    taken = good & trajectory.trained[minibatch.rows].any()

    def accept() -> TrainState:
        updates, opt_state = setup.optimizer.update(grads, state.opt_state, trained)
        moved = optax.apply_updates(trained, updates)
        return TrainState(merge(moved, frozen), opt_state, state.step + 1, jnp.int32(0))

    def skip() -> TrainState:
        return state._replace(bad_steps=state.bad_steps + ~good)

    stats = {**sums, "grad_norm": norm, "skipped": 1.0 - taken.astype(jnp.float32)}
    return jax.lax.cond(taken, accept, skip), stats


def add_piece(
    gradient: Callable[[Piece], tuple], pieces: Piece, number: Array, total: Total
) -> Total:
    """Adds the gradient and the sums of a piece, int32[] in the stack, to the total."""
    (loss, sums), grads = gradient(jax.tree.map(lambda x: x[number], pieces))
    return jax.tree.map(jnp.add, total, (grads, {"loss": loss, **sums}))


# ---- statistics of an update --------------------------------------------------------------------


def update_metrics(
    stats: Sequence[Sums], order: np.ndarray, in_update: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the metrics of an update from the statistics of its optimizer steps, on the host.

    Args:
        stats: of `train_step`, for each minibatch of `order`.
        order: from `minibatch_order`.
        in_update: bool[B], responses of the update.

    Returns:
        Those of `mean_stats`. If no pass compared sampler and trainer (`algorithm.old_logprobs`),
        also rollout/logprob_gap_* and "logprob_diffs" float32[B] of the first optimizer step, NaN
        for sequences not in it: its parameters are those that sampled.
    """
    shape = order.shape[:2]
    stacked = jax.tree.map(lambda *x: np.stack(x).reshape(*shape, *x[0].shape), *stats)
    if "logprob_diff" not in stacked:
        return jax.device_get(mean_stats(stacked))
    largest, mean = stacked.pop("logprob_diff")[0, 0], stacked.pop("logprob_diff_mean")[0, 0]
    first = np.isin(np.arange(len(in_update)), order[0, 0]) & in_update
    return jax.device_get(mean_stats(stacked)) | {
        "rollout/logprob_gap_mean": np.where(first.any(), mean, np.nan),
        "rollout/logprob_gap_max": np.where(first.any(), largest.max(), np.nan),
        "logprob_diffs": np.where(first, largest, np.nan),
    }


@jax.jit
def mean_stats(stats: Sums) -> Sums:
    """Averages the statistics of optimizer steps that were not skipped; NaN if there is none.

    "update/skipped" is the number of skipped steps.
    """
    skipped = stats["skipped"]
    taken = jnp.sum(1.0 - skipped)
    means = {
        f"update/{name}": jnp.sum(jnp.where(skipped > 0, 0.0, value)) / taken
        for name, value in stats.items()
    }
    return {**means, "update/skipped": jnp.sum(skipped)}
