# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reinforcement learning of a vision-language model from rule rewards (`config.mode="rl"`).

`train` sets up and runs the loop of the paper's four steps. I data flow and II response collection
are in collector.py, III trajectory generation in trajectory.py, IV policy update in update.py.
compiled_steps.py compiles them; run.py begins, resumes and ends a run; recorder.py writes files.
"""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from rlvlm_jax import optim, packing, selection, sharding, startup
from rlvlm_jax.collector import Collector, Groups
from rlvlm_jax.compiled_steps import (
    compile_order,
    compile_steps,
    make_planner,
    make_steps,
    needs_reference,
)
from rlvlm_jax.evaluation import scheme
from rlvlm_jax.instruments import Stopwatch
from rlvlm_jax.recorder import TrainedStep
from rlvlm_jax.run import Run
from rlvlm_jax.sampling.sampler import rows_of
from rlvlm_jax.types import Array, Trajectory
from rlvlm_jax.update import (
    Minibatch,
    Stats,
    computed_tokens,
    cut,
    optimizer_steps,
    put_minibatches,
    update_metrics,
)


def train(config: ConfigDict, workdir: str) -> bool:
    """Runs reinforcement learning in `workdir`, from its latest checkpoint if there is one.

    Returns:
        True if all steps are done; False if a signal stopped the run and a checkpoint was saved.

    Raises:
        InputError: something the user can fix.
        FloatingPointError: too many updates in a row had a non-finite gradient.
    """
    # ---- set-up: run directory, model, data, state, compiled steps ----------------------------
    run = Run(config, workdir)
    session = run.session
    make_planner(session).check(run.loader.buckets)
    optimizer, schedule = optim.make_optimizer(
        config.train, run.total_steps * optimizer_steps(config), session.model.part
    )
    reference = startup.initial_params(session) if needs_reference(config) else None
    state = run.restore_or_init(optimizer)
    jitted = make_steps(session, optimizer, state)
    compiled = {
        sharding.shape_key(session.batch_shapes(config.rollout.prompts, bucket)): compile_steps(
            jitted, session, state, reference, bucket
        )
        for bucket in run.loader.buckets
    }
    collector = Collector(session, run.loader, compiled, reference)
    evaluate = scheme.make_evaluate_fn(session, config, collector.cache)
    draw_order = compile_order(session)

    # ---- the four steps -----------------------------------------------------------------------
    with run:
        run.evaluate_if_missing(evaluate, state.params)
        for step in run.steps():
            watch = run.begin_step(step)
            groups = collector.collect(step, state, watch, run.stopping)  # I and II
            if groups is None:
                break
            trajectory, stats = generate_trajectory(session, groups, watch)  # III
            plan = plan_update(session, groups, trajectory, draw_order(step), watch)
            with watch.measure("update"):  # IV: `train_step` for each minibatch
                (state, trajectory), step_stats = groups.batch.steps.update(
                    (state, trajectory), plan.minibatches
                )
                step_stats = sharding.to_host(step_stats)
            learning_rate = schedule(int(state.step) - 1)
            trained = describe_step(groups, trajectory, stats, plan, step_stats, learning_rate)
            run.record_step(step, trained, watch)
            del groups, trajectory, plan, trained  # the next rollout needs their device memory
            run.end_step(evaluate, state)
        run.finish(state)
    return not run.stopped


# ---- what the loop calls -------------------------------------------------------------------------


class UpdatePlan(NamedTuple):
    """Which sequences each optimizer step of an update trains on."""

    order: np.ndarray  # int32[epochs, minibatches, b], from `minibatch_order`
    lengths: np.ndarray  # int[B], tokens of each response, 0 if the update leaves it out
    minibatches: Minibatch  # stacked, on the device
    useful_fraction: float  # share of the tokens to compute that are necessary


def generate_trajectory(
    session: startup.Session, groups: Groups, watch: Stopwatch
) -> tuple[Trajectory, Stats]:
    """Step III: computes the advantages of the groups; returns (trajectory, host statistics)."""
    with watch.measure("trajectory"):
        scores = selection.scores_of(session.config, groups.rounds, groups.chosen)
        trajectory, stats = groups.batch.steps.trajectory(
            groups.batch.prompts,
            groups.batch.features,
            groups.rollout,
            groups.passes,
            *sharding.put_batch(scores, session.mesh),
        )
        return trajectory, sharding.to_host(stats)


def plan_update(
    session: startup.Session,
    groups: Groups,
    trajectory: Trajectory,
    order: Array,
    watch: Stopwatch,
) -> UpdatePlan:
    """Cuts a batch into minibatches and those into pieces, packed if the configuration says so.

    Args:
        session: of the run.
        groups: of the step.
        trajectory: of the groups.
        order: from `minibatch_order`.
        watch: the step's timer.
    """
    config, prompt_mask = session.config, groups.batch.prompt_mask
    with watch.measure("trajectory"):
        valid, sampled = sharding.to_host((trajectory.valid, trajectory.sampled))
        lengths = valid.sum(axis=1) * sampled.any(axis=1)
        order = np.asarray(order)
        plans = make_planner(session).for_update(prompt_mask, lengths, order)
    with watch.measure("update"):
        minibatches = put_minibatches(cut(config, order, plans), session.mesh)
    computed = computed_tokens(config, prompt_mask, plans)
    useful = packing.useful_fraction(prompt_mask, lengths, order, computed)
    return UpdatePlan(order, lengths, minibatches, useful)


def describe_step(
    groups: Groups,
    trajectory: Trajectory,
    trajectory_stats: Stats,
    plan: UpdatePlan,
    step_stats: Stats,
    learning_rate: Array,
) -> TrainedStep:
    """Returns what a step did, for the records; all processes must call it together.

    Args:
        groups: of the step.
        trajectory: of the groups.
        trajectory_stats: from step III.
        plan: of step IV.
        step_stats: of each optimizer step, stacked.
        learning_rate: of the last optimizer step that was taken.
    """
    update_stats, diffs = update_metrics(step_stats, plan.order, plan.lengths > 0)
    if diffs is None:  # the passes compared sampler and trainer, on all responses
        all_diffs = sharding.to_host([r.passes.logprob_diff for r in groups.rounds])
        response_diffs = np.concatenate([diff.max(axis=1) for diff in all_diffs])
    else:
        samples = len(diffs) // len(groups.chosen)
        num_responses = sum(len(r.responses.texts) for r in groups.rounds)
        response_diffs = np.full(num_responses, np.nan, np.float32)
        response_diffs[rows_of(groups.chosen, samples)] = diffs
    return TrainedStep(
        rounds=groups.rounds,
        chosen=groups.chosen,
        advantages=sharding.to_host(trajectory.advantages),
        logprob_diffs=response_diffs,
        device_stats={**trajectory_stats, **update_stats},
        useful_fraction=plan.useful_fraction,
        learning_rate=learning_rate if np.isfinite(update_stats["update/loss"]) else None,
        cache_counts=groups.cache_counts,
    )
