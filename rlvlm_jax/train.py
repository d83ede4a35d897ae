# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reinforcement learning of a vision-language model from rule rewards (`config.mode="rl"`).

`train` sets up and runs the loop of the paper's four steps: I data flow, II response collection,
III trajectory generation, IV policy update. `make_steps` builds the compiled steps once; the
arithmetic is in sampling/, trajectory.py and update.py.

Sampler and trainer share the parameters, so that no weights are transferred, and the features of
images if the vision side is frozen.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rlvlm_jax import collection, optim, packing, sharding, startup
from rlvlm_jax.collection import Round
from rlvlm_jax.config import pass_shards, sequences, shards
from rlvlm_jax.evaluation import scheme
from rlvlm_jax.run import Run
from rlvlm_jax.sampling.logits import Policy
from rlvlm_jax.sampling.sampler import SampleSettings, make_sample_fn, sequence_keys
from rlvlm_jax.trajectory import make_trajectory, run_passes
from rlvlm_jax.types import Params, Passes, Prompts, Rollout, TrainState, Trajectory
from rlvlm_jax.update import (
    Setup,
    Stats,
    computed_tokens,
    cut,
    minibatch_order,
    optimizer_steps,
    rl_loss,
    train_step,
    update_metrics,
)


@dataclasses.dataclass(frozen=True)
class Steps:
    """The functions of the loop, jitted, or compiled for one batch shape."""

    encode: Callable[[Params, Prompts], Any] | None  # None if the vision side is trained
    sample: Callable[..., Rollout]  # (params, version, prompts, features, key, round number)
    passes: Callable[..., Passes]  # `trajectory.run_passes` from its params on
    trajectory: Callable[..., tuple[Trajectory, Stats]]  # `make_trajectory` from its prompts on
    update: Callable[..., tuple[TrainState, Stats]]  # (trajectory, state, minibatch)


def make_steps(session: startup.Session, optimizer: optim.Optimizer, state: TrainState) -> Steps:
    """Builds and jits steps II, III and IV once; the state keeps its sharding."""
    config, model = session.config, session.model
    policy = Policy(config.rollout.temperature, session.banned)
    settings = SampleSettings(
        samples=config.rollout.samples,
        max_tokens=config.rollout.max_tokens,
        stop_ids=session.tokenizer.stop_ids,
        pad_id=session.tokenizer.pad_id,
        banned_ids=session.banned,
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        top_k=config.rollout.top_k,
        shards=shards(config),
        policy=policy,
    )
    sample = make_sample_fn(model, settings)
    ids = np.arange(sequences(config), dtype=np.uint32)
    rows, replicated = sharding.batch_sharding(session.mesh), sharding.replicated(session.mesh)
    setup = Setup(model, config, policy, optimizer, session.mesh)
    return Steps(
        encode=jax.jit(model.encode_images, out_shardings=rows),
        sample=jax.jit(
            lambda params, version, prompts, features, key, number: sample(
                params, prompts, features, sequence_keys(key, ids + number * ids.size), version
            ),
            out_shardings=rows,
        ),
        passes=jax.jit(partial(run_passes, model, config, policy), out_shardings=rows),
        trajectory=jax.jit(partial(make_trajectory, config), out_shardings=(rows, replicated)),
        update=jax.jit(
            partial(train_step, setup, rl_loss),
            out_shardings=(jax.tree.map(lambda x: x.sharding, state), replicated),
            donate_argnums=1,
        ),
    )


def train(config: ConfigDict, workdir: str) -> bool:
    """Runs reinforcement learning in `workdir`, from its latest checkpoint if there is one.

    Returns:
        True if all steps are done; False if a signal stopped the run and a checkpoint was saved.

    Raises:
        InputError: something the user can fix.
        FloatingPointError: too many updates in a row had a non-finite gradient.
    """
    # ---- set-up: run directory, model, data, state --------------------------------------------
    run = Run(config, workdir)
    session = run.session
    planner = make_planner(session)
    planner.check(run.loader.buckets)
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
    cache = startup.make_feature_cache(session)
    evaluate = scheme.make_evaluate_fn(session, config, cache)
    base_key = jax.random.key(config.seed)
    replicated = sharding.replicated(session.mesh)
    draw_order = jax.jit(partial(minibatch_order, config), out_shardings=replicated)
    draw_order = draw_order.lower(base_key).compile()

    with run:
        if run.evaluation_is_missing():
            run.record_evaluations(evaluate, state.params)
        for step in range(run.first_step + 1, run.total_steps + 1):
            sample_key, update_key = jax.random.split(jax.random.fold_in(base_key, step))
            watch = run.begin_step(step)
            rounds: list[Round] = []
            while not (collection.is_enough(config, rounds) or run.stopping()):
                # Step I: data flow. Shuffled records become one batch of prompts on the device.
                with watch.measure("data"):
                    examples, host_batch = run.loader.next()
                    batch = run.put(host_batch)
                    steps = compiled[sharding.shape_key(batch)]

                # Step II: response collection, with the current parameters.
                with watch.measure("rollout"):
                    features = cache.encode(steps.encode, state.params, batch, host_batch)
                    number = np.uint32(len(rounds))
                    rollout = steps.sample(
                        state.params, state.step, batch, features, sample_key, number
                    )
                    responses = run.read(rollout)

                # Step III: trajectory generation. The device runs the log-prob passes over the
                # responses while the host scores their texts.
                with watch.measure("trajectory"):
                    prompt_mask = sharding.to_host(batch.mask)
                    plan = planner.for_passes(prompt_mask, responses.tokens)
                    plan = sharding.put_plan(plan, session.mesh)
                passes = steps.passes(state.params, reference, batch, features, rollout, plan)
                with watch.measure("score"):
                    scores = run.score(responses, examples)
                keep = collection.kept_groups(config, scores.rewards["accuracy"])
                rounds.append(Round(examples, batch, rollout, passes, responses, scores, keep))

            if run.stopping():  # the next start repeats this step
                break
            with watch.measure("trajectory"):
                chosen = collection.choose(config, rounds)
                if len(rounds) > 1:
                    arrays = collection.merge(
                        *(config, rounds, chosen, run.loader.buckets, session.tokenizer.pad_id),
                        session.media,
                    )
                    prompt_mask = arrays[0].mask
                    batch, rollout, passes = sharding.put_batch(arrays, session.mesh)
                    steps = compiled[sharding.shape_key(batch)]
                    features = cache.encode(steps.encode, state.params, batch, arrays[0])
                trajectory, trajectory_stats = steps.trajectory(
                    batch,
                    features,
                    rollout,
                    passes,
                    *sharding.put_batch(collection.scores_of(config, rounds, chosen), session.mesh),
                )
                trajectory_stats = sharding.to_host(trajectory_stats)
                valid, sampled = sharding.to_host((trajectory.valid, trajectory.sampled))
                lengths = valid.sum(axis=1) * sampled.any(axis=1)  # 0 if the update leaves it out
                order = np.asarray(draw_order(update_key))
                plans = planner.for_update(prompt_mask, lengths, order)

            # Step IV: policy update. Each minibatch is one optimizer step.
            with watch.measure("update"):
                all_stats = []
                for minibatch in cut(config, order, plans):
                    minibatch = sharding.put_plan(minibatch, session.mesh)
                    state, stats = steps.update(trajectory, state, minibatch)
                    all_stats.append(stats)
                update_stats, logprob_diffs = update_metrics(
                    sharding.to_host(all_stats), order, lengths > 0
                )

            update_stats["update/useful_token_fraction"] = packing.useful_fraction(
                prompt_mask, lengths, order, computed_tokens(config, prompt_mask, plans)
            )
            if np.isfinite(update_stats["update/loss"]):  # a step was taken, at this rate
                update_stats["update/lr"] = schedule(int(state.step) - 1)
            stats = {**trajectory_stats, **update_stats, **cache.metrics()}
            per_token = sharding.to_host(trajectory.advantages)
            run.record_step(step, rounds, chosen, per_token, logprob_diffs, stats, watch)
            run.check_gradients(int(state.bad_steps))
            if run.is_due(config.eval_every):
                run.record_evaluations(evaluate, state.params)
            if run.is_due(config.checkpoint_every):
                run.save(state)
        run.finish(state)
    return not run.stopped


# ---- set-up --------------------------------------------------------------------------------------


def make_planner(session: startup.Session) -> packing.Planner:
    """Returns the planner that packs batches for steps III and IV; by default it packs nothing."""
    config = session.config
    return packing.Planner(
        tokens=config.train.pack_tokens,
        streams=pass_shards(config),
        response_size=config.rollout.max_tokens,
        limit_prompts=not session.features_frozen,
    )


def needs_reference(config: ConfigDict) -> bool:
    """Returns whether any term needs the model that training started from."""
    return bool(config.algorithm.kl_loss_coef or config.algorithm.kl_reward_coef)


def lower_steps(
    steps: Steps,
    session: startup.Session,
    state: TrainState,
    reference: Params | None,
    bucket: tuple[int, int],
) -> Steps:
    """Lowers the steps for one batch shape; compiles and runs nothing.

    Args:
        steps: jitted.
        session: of the run.
        state: arrays, or ShapeDtypeStructs with their shardings.
        reference: parameters of the reference model, or their ShapeDtypeStructs, or None.
        bucket: (P tokens, I patches) of a prompt.

    Returns:
        The result of `jax.jit(...).lower` for each step.
    """
    rows = sharding.batch_sharding(session.mesh)
    key = jax.random.key(0)

    def sharded(shapes: Any) -> Any:
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=rows), shapes)

    batch = session.batch_shapes(session.config.rollout.prompts, bucket)
    encode = features = None
    if session.features_frozen:
        encode = steps.encode.lower(state.params, batch)
        features = sharded(encode.out_info)
    sample = steps.sample.lower(state.params, state.step, batch, features, key, np.uint32(0))
    rollout = sharded(sample.out_info)
    prompt_mask, lengths = np.ones(batch.mask.shape, bool), np.zeros(rollout.truncated.shape, int)
    order = np.zeros(jax.eval_shape(partial(minibatch_order, session.config), key).shape, np.int32)
    planner = make_planner(session)  # an empty plan has the same shape as any other
    plan = planner.for_passes(prompt_mask, lengths)
    minibatch = cut(session.config, order, planner.for_update(prompt_mask, lengths, order))[0]
    plan, minibatch = sharding.with_shardings(
        (plan, minibatch), sharding.plan_shardings((plan, minibatch), session.mesh)
    )
    passes = steps.passes.lower(state.params, reference, batch, features, rollout, plan)
    scores, in_update = (
        sharded(jax.ShapeDtypeStruct(rollout.truncated.shape, dtype))
        for dtype in (np.float32, bool)
    )
    trajectory = steps.trajectory.lower(
        batch, features, rollout, sharded(passes.out_info), scores, in_update
    )
    update = steps.update.lower(sharded(trajectory.out_info[0]), state, minibatch)
    return Steps(encode, sample, passes, trajectory, update)


def compile_steps(
    steps: Steps,
    session: startup.Session,
    state: TrainState,
    reference: Params | None,
    bucket: tuple[int, int],
) -> Steps:
    """Compiles the steps for one batch shape; see `lower_steps`.

    Returns:
        The same functions, which accept only batches of this shape and never recompile.
    """
    lowered = lower_steps(steps, session, state, reference, bucket)
    return Steps(**{name: step and step.compile() for name, step in vars(lowered).items()})
