# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The compiled functions of the training loop: jitted once, then compiled for each batch shape.

Sampler and trainer share the parameters, so that no weights are transferred, and the features of
images if the vision side is frozen. The arithmetic is in sampling/, trajectory.py and update.py.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rlvlm_jax import optim, packing, sharding, startup
from rlvlm_jax.config import pass_shards, sequences, shards
from rlvlm_jax.sampling.logits import Policy
from rlvlm_jax.sampling.sampler import SampleSettings, make_sample_fn, sequence_keys
from rlvlm_jax.trajectory import make_trajectory, run_passes
from rlvlm_jax.types import Array, Params, Passes, Prompts, Rollout, TrainState, Trajectory
from rlvlm_jax.update import (
    Minibatch,
    Setup,
    Stats,
    cut,
    minibatch_order,
    minibatch_shardings,
    rl_loss,
    train_step,
)

Carry = tuple[TrainState, Trajectory]  # what `train_step` hands on; donated


@dataclasses.dataclass(frozen=True)
class Steps:
    """The functions of the loop, jitted, or compiled for one batch shape."""

    encode: Callable[[Params, Prompts], Any] | None  # None if the vision side is trained
    sample: Callable[..., Rollout]  # (params, version, prompts, features, key, round number)
    passes: Callable[..., Passes]  # `trajectory.run_passes` from its params on
    trajectory: Callable[..., tuple[Trajectory, Stats]]  # `make_trajectory` from its prompts on
    # ((state, trajectory), minibatches) -> ((state, trajectory), stats of each optimizer step)
    update: Callable[[Carry, Minibatch], tuple[Carry, Stats]]


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
            partial(jax.lax.scan, partial(train_step, setup, rl_loss)),
            out_shardings=((jax.tree.map(lambda x: x.sharding, state), rows), replicated),
            donate_argnums=0,
        ),
    )


def step_keys(seed: int, step: int) -> tuple[Array, Array]:
    """Returns the random keys of a step: (of its samples, of its update's order)."""
    sample_key, update_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return sample_key, update_key


def compile_order(session: startup.Session) -> Callable[[int], Array]:
    """Returns the compiled function from a step to its `minibatch_order`."""
    config, replicated = session.config, sharding.replicated(session.mesh)
    draw = jax.jit(partial(minibatch_order, config), out_shardings=replicated)
    draw = draw.lower(jax.random.key(config.seed)).compile()
    return lambda step: draw(step_keys(config.seed, step)[1])


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
    minibatches = cut(session.config, order, planner.for_update(prompt_mask, lengths, order))
    plan, minibatches = sharding.with_shardings(
        (plan, minibatches),
        (
            sharding.plan_shardings(plan, session.mesh),
            minibatch_shardings(minibatches, session.mesh),
        ),
    )
    passes = steps.passes.lower(state.params, reference, batch, features, rollout, plan)
    scores, in_update = (
        sharded(jax.ShapeDtypeStruct(rollout.truncated.shape, dtype))
        for dtype in (np.float32, bool)
    )
    trajectory = steps.trajectory.lower(
        batch, features, rollout, sharded(passes.out_info), scores, in_update
    )
    update = steps.update.lower((state, sharded(trajectory.out_info[0])), minibatches)
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
