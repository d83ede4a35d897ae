# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Steps III and IV: what must not change the result, and what must."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvlm_jax import optim, sharding
from rlvlm_jax.sampling.logits import Policy
from rlvlm_jax.sampling.sampler import SampleSettings, make_sample_fn, sequence_keys
from rlvlm_jax.trajectory import make_trajectory_fn
from rlvlm_jax.update import init_state, make_update_fn
from tests import tiny_model
from tests.tiny_model import BANNED, PAD, STOP

POLICY = Policy(0.8, BANNED)


@pytest.fixture(scope="module")
def tiny():
    return tiny_model.build()


def rollout_of(model, params, config, batch):
    settings = SampleSettings(
        samples=config.rollout.samples,
        max_tokens=config.rollout.max_tokens,
        stop_ids=(STOP,),
        pad_id=PAD,
        banned_ids=BANNED,
        temperature=0.8,
        chunk=4,
        policy=POLICY,
    )
    keys = sequence_keys(jax.random.key(1), np.arange(16, dtype=np.uint32))
    features = model.encode_images(params, batch)
    return features, jax.jit(make_sample_fn(model, settings))(params, batch, features, keys)


def run(tiny, config, *, mesh=(1, 1, 1), reference=None, scores=None, poison=None):
    """One pass through steps III and IV; returns (state, stats of both, trajectory)."""
    model, params = tiny
    mesh = sharding.make_mesh(*mesh)
    shapes = jax.eval_shape(lambda: params)
    places = sharding.param_shardings(shapes, model.param_rules, mesh)
    host_batch = tiny_model.batch()
    features, rollout = rollout_of(model, params, config, host_batch)
    placed = jax.device_put(params, places)
    batch, features, rollout = sharding.put_batch((host_batch, features, rollout), mesh)
    optimizer, _ = optim.make_optimizer(config.update, 10)
    parts = optim.trained_parts(config.update)
    state = jax.jit(lambda p: init_state(p, optimizer, model, parts))(placed)
    if scores is None:
        scores = np.arange(16, dtype=np.float32) % 3
    scores = sharding.put_batch(scores, mesh)
    accuracy = (scores > 0).astype(jnp.float32)
    frozen = not (config.update.train_vit or config.update.train_connector)
    trajectory, stats, _ = jax.jit(make_trajectory_fn(model, config, POLICY))(
        placed, reference, batch, features if frozen else None, rollout, scores, accuracy
    )
    if poison is not None:
        trajectory = poison(trajectory)
    update = jax.jit(make_update_fn(model, config, optimizer, POLICY, mesh))
    state, more = update(state, trajectory, jax.random.key(5))
    return state, {**stats, **more}, trajectory


def distance(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


@pytest.fixture(scope="module")
def base(tiny):
    return run(tiny, tiny_model.settings())


def test_sampler_and_trainer_agree(base):
    _, stats, _ = base
    assert 0 < float(stats["rollout/logprob_gap_max"]) < 1e-5


def test_parameters_move_and_numbers_are_sane(tiny, base):
    state, stats, trajectory = base
    assert int(state.step) == 2  # 16 sequences, minibatches of 8
    assert distance(state.params["language"], tiny[1]["language"]) > 1e-3
    assert 0 < float(stats["update/entropy"]) < np.log(tiny_model.VOCABULARY)
    assert float(stats["update/grad_norm"]) > 0
    assert not np.asarray(trajectory.advantages)[~np.asarray(trajectory.mask)].any()


def test_ratio_is_one_before_the_first_update(tiny):
    config = tiny_model.settings(update__minibatch=16)
    _, stats, _ = run(tiny, config)
    assert float(stats["update/ratio_mean"]) == pytest.approx(1.0, abs=1e-6)
    assert float(stats["update/clip_fraction"]) == 0.0


@pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
@pytest.mark.parametrize("micro", [2, 4])
def test_micro_batches_change_nothing(tiny, aggregate, micro):
    whole = run(tiny, tiny_model.settings(algorithm__aggregate=aggregate))
    parts = run(tiny, tiny_model.settings(algorithm__aggregate=aggregate, update__microbatch=micro))
    assert distance(whole[0].params, parts[0].params) < 1e-5
    assert float(parts[1]["update/loss"]) == pytest.approx(float(whole[1]["update/loss"]), abs=1e-5)


def test_rows_that_share_a_prompt_equal_rows_that_do_not(tiny):
    """G = 4 with micro-batches of one sequence each: nothing is shared."""
    shared = run(tiny, tiny_model.settings())
    alone = run(tiny, tiny_model.settings(update__microbatch=1))
    assert distance(shared[0].params, alone[0].params) < 1e-5
