# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Step IV, policy update: the train step.

`train_step` makes one optimizer step on one minibatch. An update is one compiled program, a
`jax.lax.scan` of it over the minibatches of a batch. A minibatch is a stack of pieces, which are
rows or packed streams; a loop over the pieces adds up gradients. Tokens in the loss are those that
the policy drew, in groups that the filter keeps and, with `algorithm.mask_truncated`, in responses
that ended; `Trajectory.trained` marks them. A loss is a sum divided by a count over the whole
minibatch, so it depends neither on the size or kind of the pieces nor on the number of devices. The
exception is `algorithm.aggregate="microbatch"`.

Supervised training has its own loss and the same step. This module knows nothing about text or
files.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from rlvlm_jax.algorithms import kl, losses
from rlvlm_jax.config import microbatch, old_logprobs, pass_shards, sequences
from rlvlm_jax.logprobs import CHUNK, Streams, logprobs
from rlvlm_jax.models.model import Model
from rlvlm_jax.optim import Optimizer, make_trained, merge, split
from rlvlm_jax.packing import Plan, max_prompts
from rlvlm_jax.sampling.logits import Policy
from rlvlm_jax.sharding import PASS, ROWS, batch_sharding, pass_sharding, put, replicated
from rlvlm_jax.types import Array, Params, Prompts, TrainState, Trajectory

Stats = dict[str, Array]  # name -> float32[] or float32[B]
Piece = Array | Streams  # int32[m], the rows of sequences, or streams of their tokens


class Setup(NamedTuple):
    """The static part of a train step."""

    model: Model
    config: ConfigDict  # the whole configuration
    policy: Policy  # the distribution that the sampler recorded
    optimizer: Optimizer  # from `optim.make_optimizer`
    mesh: Mesh  # pieces are sharded over its `data` and `fsdp` axes


class Minibatch(NamedTuple):
    """The sequences of one optimizer step, cut into a stack of K pieces; `cut` stacks them."""

    rows: Array  # int32[b], the sequences
    pieces: Piece  # stacked: int32[K, b / K], or (source, previous), int32[K, S, T] each
    num_pieces: Array | None  # int32[], how many of K are used; None for all, as for rows


class Denominators(NamedTuple):
    """Denominators of a minibatch, float32[] each."""

    loss: Array  # as `algorithm.aggregate` says
    trained_tokens: Array
    sampled_tokens: Array


# (setup, trajectory, denominators, frozen and trained parameters, piece) -> (loss, statistics)
LossFn = Callable[[Setup, Trajectory, Denominators, Params, Params, Piece], tuple[Array, Stats]]


# ---- one optimizer step -------------------------------------------------------------------------


def train_step(
    setup: Setup, loss_fn: LossFn, carry: tuple[TrainState, Trajectory], minibatch: Minibatch
) -> tuple[tuple[TrainState, Trajectory], Stats]:
    """Makes one optimizer step: the body of a `jax.lax.scan` over minibatches.

    Only trained parameters are differentiated. A non-finite loss or gradient leaves parameters
    and optimizer unchanged and adds one to `bad_steps`; a step that is taken sets it to 0. If no
    token of the minibatch is trained on, nothing changes, not even by weight decay.

    Args:
        setup: static.
        loss_fn: `rl_loss`, or `sft.sft_loss`.
        carry: (the state before the step, the trajectory of all B sequences).
        minibatch: one of `cut`.

    Returns:
        ((state, trajectory), stats). The trajectory is the same. Stats are those of `loss_fn`,
        added up over pieces, and "loss", "grad_norm" (before the optimizer clips it) and
        "skipped", 1 if no step was taken.
    """
    state, trajectory = carry
    is_trained = make_trained(setup.config.train, setup.model.part)
    params, frozen_params = split(state.params, is_trained)
    denoms = denominators(setup.config, trajectory, minibatch.rows)
    piece_loss = partial(loss_fn, setup, trajectory, denoms, frozen_params)
    piece_gradient = partial(jax.value_and_grad(piece_loss, has_aux=True), params)

    first_piece = jax.tree.map(lambda x: x[0], minibatch.pieces)
    shapes = jax.eval_shape(piece_loss, params, first_piece), params
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    num_pieces = minibatch.num_pieces
    if num_pieces is None:
        num_pieces = len(minibatch.pieces)
    add = partial(add_piece, piece_gradient, minibatch.pieces)
    (loss, stats), grads = jax.lax.fori_loop(0, num_pieces, add, zeros)

    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(grad_norm) & jnp.isfinite(loss)
    taken = finite & trajectory.trained[minibatch.rows].any()

    def take_step() -> TrainState:
        updates, opt_state = setup.optimizer.update(grads, state.opt_state, params)
        new_params = optax.apply_updates(params, updates)
        return TrainState(merge(new_params, frozen_params), opt_state, state.step + 1, jnp.int32(0))

    def skip_step() -> TrainState:
        return state._replace(bad_steps=state.bad_steps + ~finite)

    skipped = 1.0 - taken.astype(jnp.float32)
    stats = {"loss": loss, **stats, "grad_norm": grad_norm, "skipped": skipped}
    return (jax.lax.cond(taken, take_step, skip_step), trajectory), stats


def add_piece(
    piece_gradient: Callable[[Piece], tuple], pieces: Piece, k: Array, total: tuple
) -> tuple:
    """Adds ((loss, stats), gradient) of piece k to the total."""
    piece = jax.tree.map(lambda x: x[k], pieces)
    return jax.tree.map(jnp.add, total, piece_gradient(piece))


# ---- the loss of a piece ------------------------------------------------------------------------


def rl_loss(
    setup: Setup,
    trajectory: Trajectory,
    denoms: Denominators,
    frozen_params: Params,
    trained_params: Params,
    piece: Piece,
) -> tuple[Array, Stats]:
    """Returns a piece's share of the policy loss with its KL and entropy terms, and statistics.

    Args:
        setup: static.
        trajectory: of all B sequences.
        denoms: denominators of the minibatch.
        frozen_params: parameters without gradient.
        trained_params: parameters with gradient.
        piece: the sequences, or the streams.

    Returns:
        (float32[], statistics, which are shares of means over the minibatch). If no pass computed
        old log-probs before the update, the statistics also hold those of `compare`, with the
        differences at the sequences' own rows: float32[B].
    """
    model, config, policy = setup.model, setup.config, setup.policy
    algorithm, params = config.algorithm, merge(trained_params, frozen_params)
    t, rows, streams = gather_piece(setup, params, trajectory, piece)
    new, entropies, present = logprobs(
        model,
        policy,
        CHUNK,
        params,
        t.prompts,
        t.features,
        t.tokens,
        valid=t.valid,
        scored=t.sampled,
        streams=streams,
        flat_positions=algorithm.flat_positions,
        entropy_gradient=algorithm.entropy_coef > 0,
    )
    # Streams carry all sequences; `present` are the sampled tokens that are in this piece.
    t = t._replace(trained=t.trained & present, sampled=present)
    if losses.AGGREGATES[algorithm.aggregate].per_piece:
        pieces = config.train.minibatch / microbatch(config)
        denoms = denoms._replace(loss=losses.denominator(t.trained) * pieces)
    old = t.old_logprobs
    if old is None:  # one optimizer step per batch: the policy is still the one that sampled
        old = jax.lax.stop_gradient(new)
    numerator, sums = losses.policy_loss_sum(
        new,
        old,
        t.advantages,
        t.trained,
        kind=algorithm.loss,
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
        dual_clip=algorithm.dual_clip or None,
        aggregate=algorithm.aggregate,
        rollout_logprobs=t.rollout_logprobs if algorithm.is_cap else None,
        is_cap=algorithm.is_cap or None,
    )
    loss = numerator / denoms.loss
    stats = {name: value / denoms.trained_tokens for name, value in sums.items()}
    stats["policy_loss"] = loss
    if old_logprobs(config) != "trainer":  # no pass in step III compared sampler and trainer
        stats |= compare(new, entropies, t, denoms)
        # A sequence is in one piece, so that the sum over pieces is its difference.
        everywhere = jnp.zeros(len(trajectory.tokens))
        stats["logprob_diff"] = everywhere.at[rows].set(stats["logprob_diff"])
    if algorithm.kl_loss_coef:
        divergence = kl.estimate(new, t.ref_logprobs, kind=algorithm.kl_loss_kind)
        stats["kl"] = losses.weighted_sum(divergence, t.trained) / denoms.trained_tokens
        term = losses.weighted_sum(divergence, t.trained, algorithm.aggregate) / denoms.loss
        loss = loss + algorithm.kl_loss_coef * term
    if algorithm.entropy_coef:
        term = losses.weighted_sum(entropies, t.trained, algorithm.aggregate) / denoms.loss
        loss = loss - algorithm.entropy_coef * term
    return loss, stats


def denominators(config: ConfigDict, trajectory: Trajectory, rows: Array) -> Denominators:
    """Returns the denominators of the minibatch with the sequences `rows`, int32[b]."""
    algorithm = config.algorithm
    length = config.rollout.max_tokens
    trained = trajectory.trained[rows]
    return Denominators(
        loss=losses.denominator(trained, algorithm.aggregate, length),
        trained_tokens=losses.denominator(trained),
        sampled_tokens=losses.denominator(trajectory.sampled[rows]),
    )


def compare(new: Array, entropies: Array, t: Trajectory, denoms: Denominators) -> Stats:
    """Compares sampler and trainer on the tokens of a piece that the policy drew.

    Args:
        new: float32[b, R], the trainer's log-probabilities in nats.
        entropies: float32[b, R], nats.
        t: the piece.
        denoms: denominators of the minibatch.

    Returns:
        "logprob_diff", float32[b], the largest difference of each row in nats. "logprob_diff_mean"
        and "entropy", float32[], shares of means over the minibatch.
    """
    diff = jnp.where(t.sampled, jnp.abs(new - t.rollout_logprobs), 0.0)
    return {
        "logprob_diff": jnp.max(diff, axis=1),
        "logprob_diff_mean": losses.weighted_sum(diff, t.sampled) / denoms.sampled_tokens,
        "entropy": losses.weighted_sum(entropies, t.sampled) / denoms.sampled_tokens,
    }


def gather_piece(
    setup: Setup, params: Params, trajectory: Trajectory, piece: Piece
) -> tuple[Trajectory, Array | slice, Streams | None]:
    """Returns (the trajectory of a piece, its rows among all B, its streams or None).

    Rows are gathered. Streams index all sequences, so their trajectory has all rows; images of
    prompts in the streams are encoded here if the vision side is trained.
    """
    mesh, config = setup.mesh, setup.config
    if not isinstance(piece, tuple):
        t = select(trajectory, piece, prompt_sharing(config), config.rollout.samples)
        return jax.lax.with_sharding_constraint(t, pass_sharding(mesh)), piece, None
    streams = jax.lax.with_sharding_constraint(piece, pass_sharding(mesh))
    t = trajectory
    if t.features is None:
        features = encode_present_images(setup.model, params, t.prompts, streams[0], mesh)
        t = t._replace(features=features)
    return t, slice(None), streams


# ---- minibatches and their pieces ---------------------------------------------------------------


def group_part(config: ConfigDict) -> int:
    """Returns how many adjacent sequences of a group are always in the same minibatch."""
    return math.gcd(config.rollout.samples, config.train.minibatch)


def prompt_sharing(config: ConfigDict) -> int:
    """Returns how many adjacent sequences share one pass over their prompt if nothing is packed."""
    return math.gcd(group_part(config), microbatch(config) // pass_shards(config))


def optimizer_steps(config: ConfigDict) -> int:
    """Returns how many optimizer steps the update of one batch makes."""
    return config.train.epochs * sequences(config) // config.train.minibatch


def computed_tokens(config: ConfigDict, prompts: np.ndarray, plans: Plan | None) -> int:
    """Returns the number of tokens, padding included, in the passes of one batch's update.

    Args:
        config: the whole configuration.
        prompts: bool[N, P], the prompts' mask.
        plans: of its minibatches, on the host; None if nothing is packed.
    """
    if plans is not None:
        return int(plans.count.sum()) * plans.source[0, 0, 0].size
    rows = config.train.epochs * sequences(config)
    return rows // prompt_sharing(config) * prompts.shape[1] + rows * config.rollout.max_tokens


def minibatch_order(config: ConfigDict, key: Array) -> Array:
    """Draws which sequences make up each minibatch: int32[epochs, minibatches, b].

    A minibatch consists of whole groups if `train.minibatch` is a multiple of `rollout.samples`,
    else of parts of groups. Every epoch draws new ones.

    Args:
        config: the whole configuration.
        key: of the update.
    """
    rows, mini, unit = sequences(config), config.train.minibatch, group_part(config)

    def one_epoch(epoch_key: Array) -> Array:
        units = jax.random.permutation(epoch_key, rows // unit)
        return (units[:, None] * unit + jnp.arange(unit)).reshape(rows // mini, mini)

    return jax.lax.map(one_epoch, jax.random.split(key, config.train.epochs))


def cut(config: ConfigDict, order: np.ndarray, plans: Plan | None) -> Minibatch:
    """Cuts each minibatch into pieces, on the host; stacks the epochs * minibatches results.

    Args:
        config: the whole configuration.
        order: from `minibatch_order`.
        plans: the packed streams of each minibatch, with the leading axes of `order`; None cuts
            rows into micro-batches.
    """
    rows = np.asarray(order).reshape(-1, order.shape[-1])
    if plans is None:
        return Minibatch(rows, rows.reshape(len(rows), -1, microbatch(config)), None)
    source, previous, count = (x.reshape(-1, *x.shape[2:]) for x in plans)
    return Minibatch(rows, (source, previous), count)


def minibatch_shardings(minibatches: Minibatch, mesh: Mesh) -> Minibatch:
    """Returns the shardings of the result of `cut`: streams are sharded, rows replicated."""
    whole, streams = replicated(mesh), NamedSharding(mesh, PartitionSpec(None, None, *PASS))
    packed = isinstance(minibatches.pieces, tuple)
    pieces = (streams, streams) if packed else whole
    return Minibatch(whole, pieces, whole if packed else None)


def put_minibatches(minibatches: Minibatch, mesh: Mesh) -> Minibatch:
    """Moves the result of `cut` onto the mesh."""
    return jax.tree.map(put, minibatches, minibatch_shardings(minibatches, mesh))


def select(trajectory: Trajectory, rows: Array, sharing: int, group_size: int) -> Trajectory:
    """Returns the sequences `rows`, with one copy of the prompt per `sharing` adjacent ones.

    Args:
        trajectory: of B sequences.
        rows: int32[b]; runs of `sharing` belong to one prompt.
        sharing: divides `group_size` and b.
        group_size: G.
    """
    prompt_rows = rows[::sharing] // group_size
    prompts, features = jax.tree.map(
        lambda x: x[prompt_rows], (trajectory.prompts, trajectory.features)
    )
    per_row = jax.tree.map(lambda x: x[rows], trajectory._replace(prompts=None, features=None))
    return per_row._replace(prompts=prompts, features=features)


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
    num_prompts, size = prompts.tokens.shape
    streams, tokens = source.shape
    # The prompt of each token; past the last for a response's token and for padding.
    prompt = jnp.where(source < 0, num_prompts, source // size)
    present = jnp.zeros(num_prompts, bool).at[prompt].set(True, mode="drop")
    devices = math.prod(mesh.shape[axis] for axis in ROWS)
    max_present = streams * max_prompts(tokens, size)
    max_present = min(num_prompts, -(-max_present // devices) * devices)
    (rows,) = jnp.nonzero(present, size=max_present, fill_value=num_prompts)
    present_prompts = jax.tree.map(lambda x: jnp.take(x, rows, axis=0, mode="clip"), prompts)
    present_prompts = jax.lax.with_sharding_constraint(present_prompts, batch_sharding(mesh))
    features = model.encode_images(params, present_prompts)

    def scatter(feature: Array) -> Array:
        everywhere = jnp.zeros((num_prompts, *feature.shape[1:]), feature.dtype)
        return everywhere.at[rows].set(feature, mode="drop")

    return jax.tree.map(scatter, features)


def init_state(
    params: Params, optimizer: Optimizer, is_trained: Callable[[str], bool]
) -> TrainState:
    """Returns the state before the first update; `is_trained` is from `optim.make_trained`."""
    trained_params, _ = split(params, is_trained)
    return TrainState(params, optimizer.init(trained_params), jnp.int32(0), jnp.int32(0))


# ---- statistics of an update --------------------------------------------------------------------


def update_metrics(
    stats: Stats, order: np.ndarray, in_update: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Returns the metrics of an update from the statistics of its optimizer steps, on the host.

    Args:
        stats: of `train_step`, stacked over the minibatches of `order`.
        order: from `minibatch_order`.
        in_update: bool[B], responses that the update uses.

    Returns:
        (metrics, differences). Metrics are the means of `mean_stats`. If no pass compared sampler
        and trainer (see `algorithm.old_logprobs`), the first optimizer step did, before it changed
        the parameters. Then metrics also have rollout/logprob_gap_*, and the differences are
        float32[B], the largest of each sequence in nats, NaN if it was not in that step; else None.
    """
    if "logprob_diff" not in stats:
        return jax.device_get(mean_stats(stats)), None
    averaged = {name: x for name, x in stats.items() if not name.startswith("logprob_diff")}
    largest, mean = stats["logprob_diff"][0], stats["logprob_diff_mean"][0]
    compared = np.isin(np.arange(len(in_update)), order[0, 0]) & in_update
    metrics = jax.device_get(mean_stats(averaged)) | {
        "rollout/logprob_gap_mean": np.where(compared.any(), mean, np.nan),
        "rollout/logprob_gap_max": np.where(compared.any(), largest.max(), np.nan),
    }
    return dict(sorted(metrics.items())), np.where(compared, largest, np.nan)


@jax.jit
def mean_stats(stats: Stats) -> Stats:
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
