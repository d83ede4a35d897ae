# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`config.mode="sft"`: supervised training on worked solutions, a baseline for RL.

Same model, data, optimizer, mesh, run directory and evaluation as `train`; the loss is the mean
negative log-probability of the solution's tokens, including the end token. One batch of
`train.minibatch` problems is one optimizer step.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rlvlm_jax import optim, sharding, startup
from rlvlm_jax.algorithms import masked
from rlvlm_jax.config import microbatch
from rlvlm_jax.data.tokenizer import Tokenizer
from rlvlm_jax.evaluation import scheme
from rlvlm_jax.logprobs import CHUNK, logprobs
from rlvlm_jax.optim import merge
from rlvlm_jax.run import Run
from rlvlm_jax.sampling.logits import Policy
from rlvlm_jax.types import Array, Params, Prompts, TrainState, Trajectory
from rlvlm_jax.update import Denominators, Minibatch, Setup, Stats, mean_stats, select, train_step


def encode_solutions(
    solutions: Sequence[str], tokenizer: Tokenizer, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens int32[B, R], mask bool[B, R]): solutions with their end token.

    Raises:
        ValueError: a solution has more than R tokens; `dataset.Reader` drops such records.
    """
    tokens = np.full((len(solutions), length), tokenizer.pad_id, np.int32)
    mask = np.zeros((len(solutions), length), bool)
    for row, solution in enumerate(solutions):
        ids = tokenizer.encode_response(solution)
        tokens[row, : len(ids)] = ids
        mask[row, : len(ids)] = True
    return tokens, mask


def sft_loss(
    setup: Setup,
    trajectory: Trajectory,
    denoms: Denominators,
    frozen_params: Params,
    trained_params: Params,
    rows: Array,
) -> tuple[Array, Stats]:
    """Returns the share of `rows`, int32[m], in the mean negative log-probability, and in entropy.

    See `update.rl_loss`.
    """
    piece = select(trajectory, rows, 1, 1)
    piece = jax.lax.with_sharding_constraint(piece, sharding.pass_sharding(setup.mesh))
    lps, entropies, _ = logprobs(
        setup.model,
        setup.policy,
        CHUNK,
        merge(trained_params, frozen_params),
        piece.prompts,
        piece.features,
        piece.tokens,
        valid=piece.valid,
        scored=piece.trained,
    )
    share = -masked.sum(lps, piece.trained) / denoms.trained_tokens
    return share, {"entropy": masked.sum(entropies, piece.trained) / denoms.trained_tokens}


def sft_step(
    setup: Setup, state: TrainState, batch: Prompts, tokens: Array, mask: Array
) -> tuple[TrainState, Stats]:
    """Makes one optimizer step on solutions, to be jitted once; returns (state, metrics).

    Args:
        setup: static.
        state: before the step.
        batch: B prompts.
        tokens: int32[B, R], from `encode_solutions`.
        mask: bool[B, R], from `encode_solutions`.
    """
    not_sampled = jnp.zeros_like(mask)
    trajectory = Trajectory(batch, None, tokens, mask, not_sampled, mask, *(None,) * 4)
    rows = jnp.arange(len(tokens))
    minibatch = Minibatch(rows, rows.reshape(-1, microbatch(setup.config)), None)
    (state, _), stats = train_step(setup, sft_loss, (state, trajectory), minibatch)
    return state, mean_stats(stats)


def make_step(
    session: startup.Session, optimizer: optim.Optimizer, state: TrainState
) -> Callable[..., tuple[TrainState, Stats]]:
    """Builds and jits `sft_step` from its state on; the state keeps its sharding."""
    setup = Setup(session.model, session.config, Policy(), optimizer, session.mesh)
    return jax.jit(
        partial(sft_step, setup),
        out_shardings=(
            jax.tree.map(lambda x: x.sharding, state),
            sharding.replicated(session.mesh),
        ),
        donate_argnums=0,
    )


def train(config: ConfigDict, workdir: str) -> bool:
    """Runs supervised training in `workdir`, from its latest checkpoint if there is one.

    Returns:
        True if all steps are done; False if a signal stopped the run and a checkpoint was saved.

    Raises:
        InputError: something the user can fix.
        FloatingPointError: too many updates in a row had a non-finite gradient.
    """
    run = Run(config, workdir)
    session = run.session
    optimizer, schedule = optim.make_optimizer(config.train, run.total_steps, session.model.part)
    state = run.restore_or_init(optimizer)
    step_fn = make_step(session, optimizer, state)
    evaluate = scheme.make_evaluate_fn(session, config, startup.make_feature_cache(session))

    with run:
        run.evaluate_if_missing(evaluate, state.params)
        for step in run.steps():
            if run.stopping():
                break
            watch = run.begin_step(step)
            with watch.measure("data"):
                examples, host_prompts = run.loader.next()
                solutions = [example.solution for example in examples]
                tokens, mask = encode_solutions(
                    solutions, session.tokenizer, config.rollout.max_tokens
                )
                prompts = sharding.put_rows(host_prompts, config.train.minibatch, session.mesh)
                arrays = sharding.put_batch((tokens, mask), session.mesh)
            with watch.measure("update"):
                state, stats = step_fn(state, prompts, *arrays)
                stats = sharding.to_host(stats)
            if np.isfinite(stats["update/loss"]):  # a step was taken, at this rate
                stats["update/lr"] = schedule(int(state.step) - 1)
            run.record_supervised(step, stats, int(mask.sum()), watch)
            run.end_step(evaluate, state)
        run.finish(state)
    return not run.stopped
