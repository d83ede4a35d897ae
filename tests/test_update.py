# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Steps III and IV: what must not change the result, and what must."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvlm_jax import optim, sharding
from rlvlm_jax.logprobs import make_logprobs_fn
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


@pytest.fixture(scope="module")
def collected(tiny):
    """Steps I and II, the same for all tests: (batch, features, rollout) on the host."""
    model, params = tiny
    settings = SampleSettings(
        samples=4,
        max_tokens=6,
        stop_ids=(STOP,),
        pad_id=PAD,
        banned_ids=BANNED,
        temperature=0.8,
        chunk=4,
        policy=POLICY,
    )
    keys = sequence_keys(jax.random.key(1), np.arange(16, dtype=np.uint32))
    batch = tiny_model.batch()
    features = jax.jit(model.encode_images)(params, batch)
    rollout = jax.jit(make_sample_fn(model, settings))(params, batch, features, keys)
    rollout = rollout._replace(mask=rollout.mask.at[5, 3:].set(False).at[10, 1:].set(False))
    return batch, *jax.device_get((features, rollout))


@functools.cache
def update_fn(mesh, **settings):
    """Step IV, compiled once for all tests with the same settings."""
    model, _ = tiny_model.build()
    config = tiny_model.settings(**settings)
    optimizer, _ = optim.make_optimizer(config.update, 10)
    return jax.jit(make_update_fn(model, config, optimizer, POLICY, sharding.make_mesh(*mesh)))


def run(tiny, collected, *, mesh=(1, 1, 1), reference=None, scores=None, poison=None, **settings):
    """One pass through steps III and IV; returns (state, stats of both, trajectory)."""
    model, params = tiny
    config = tiny_model.settings(**settings)
    devices = sharding.make_mesh(*mesh)
    places = sharding.param_shardings(jax.eval_shape(lambda: params), model.param_rules, devices)
    placed = jax.device_put(params, places)
    batch, features, rollout = sharding.put_batch(collected, devices)
    optimizer, _ = optim.make_optimizer(config.update, 10)
    parts = optim.trained_parts(config.update)
    state = jax.jit(lambda p: init_state(p, optimizer, model, parts))(placed)
    if scores is None:
        scores = np.arange(16, dtype=np.float32) % 3
    scores = sharding.put_batch(scores, devices)
    accuracy = (scores > 0).astype(jnp.float32)
    frozen = not (config.update.train_vit or config.update.train_connector)
    trajectory, stats, _ = jax.jit(make_trajectory_fn(model, config, POLICY))(
        placed, reference, batch, features if frozen else None, rollout, scores, accuracy
    )
    if poison is not None:
        trajectory = poison(trajectory)
    state, more = update_fn(mesh, **settings)(state, trajectory, jax.random.key(5))
    return state, {**stats, **more}, trajectory


def distance(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


@pytest.fixture(scope="module")
def base(tiny, collected):
    return run(tiny, collected)


def test_sampler_and_trainer_agree(base):
    _, stats, _ = base
    assert 0 < float(stats["rollout/logprob_gap_max"]) < 1e-5


def test_parameters_move_and_numbers_are_sane(tiny, collected, base):
    state, stats, trajectory = base
    assert int(state.step) == 2  # 16 sequences, minibatches of 8
    assert distance(state.params["language"], tiny[1]["language"]) > 5e-4
    assert 0 < float(stats["update/entropy"]) < np.log(tiny_model.VOCABULARY)
    assert float(stats["update/grad_norm"]) > 0
    assert not np.asarray(trajectory.advantages)[~np.asarray(trajectory.mask)].any()


@pytest.mark.slow
def test_ratio_is_one_before_the_first_update(tiny, collected):
    _, stats, _ = run(tiny, collected, update__minibatch=16)
    assert float(stats["update/ratio_mean"]) == pytest.approx(1.0, abs=1e-6)
    assert float(stats["update/clip_fraction"]) == 0.0


@pytest.mark.parametrize(
    ("aggregate", "micro"),
    [
        ("token", 4),
        pytest.param("sequence", 2, marks=pytest.mark.slow),
        pytest.param("constant", 2, marks=pytest.mark.slow),
    ],
)
def test_micro_batches_change_nothing(tiny, collected, aggregate, micro):
    settings = {} if aggregate == "token" else {"algorithm__aggregate": aggregate}
    whole = run(tiny, collected, **settings)
    parts = run(tiny, collected, **settings, update__microbatch=micro)
    assert distance(whole[0].params, parts[0].params) < 1e-5
    assert float(parts[1]["update/loss"]) == pytest.approx(float(whole[1]["update/loss"]), abs=1e-5)


def test_rows_that_share_a_prompt_equal_rows_that_do_not(tiny, collected, base):
    """G = 4 with micro-batches of one sequence each: nothing is shared."""
    alone = run(tiny, collected, update__microbatch=1)
    assert distance(base[0].params, alone[0].params) < 1e-5


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param((4, 1, 1), marks=pytest.mark.slow),
        pytest.param((1, 4, 1), marks=pytest.mark.slow),
        pytest.param((2, 1, 2), marks=pytest.mark.slow),
        (1, 4, 2),
    ],
)
def test_devices_change_nothing(tiny, collected, base, mesh):
    keys = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), mesh, strict=True))
    other = run(tiny, collected, **keys, mesh=mesh)
    assert len(jax.tree.leaves(other[0].params)[0].sharding.device_set) == np.prod(mesh)
    assert distance(base[0].params, other[0].params) < 1e-5
    for name, value in base[1].items():
        assert float(other[1][name]) == pytest.approx(float(value), abs=1e-5), name


def test_logprob_passes_change_nothing(tiny, collected, base):
    other = run(tiny, collected, update__logprob_batch=8)
    np.testing.assert_allclose(other[2].old_logprobs, base[2].old_logprobs, atol=1e-6)
    assert distance(base[0].params, other[0].params) < 1e-5


@pytest.mark.slow
def test_logprob_chunk_changes_nothing(tiny, collected, base):
    other = run(tiny, collected, update__logprob_chunk=64)
    np.testing.assert_allclose(other[2].old_logprobs, base[2].old_logprobs, atol=1e-6)
    assert distance(base[0].params, other[0].params) < 1e-5


def test_frozen_parts_keep_their_bytes_and_have_no_state(tiny, collected, base):
    state, _, _ = base
    before, after = tiny[1]["vision"], state.params["vision"]
    assert all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    )
    trained = sum(x.size for x in jax.tree.leaves(tiny[1]["language"]))
    held = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert held == 2 * trained  # Adam's two moments of the language model alone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("switch", "moved", "kept"),
    [
        ("train_vit", "vision/blocks", "vision/merger"),
        ("train_connector", "vision/merger", "vision/blocks"),
    ],
)
def test_each_part_is_a_switch(tiny, collected, switch, moved, kept):
    settings = {"update__train_llm": False, f"update__{switch}": True}
    state, _, _ = run(tiny, collected, **settings)

    def part(params, path):
        for key in path.split("/"):
            params = params[key]
        return params

    assert distance(part(state.params, moved), part(tiny[1], moved)) > 1e-4
    assert distance(part(state.params, kept), part(tiny[1], kept)) == 0
    assert distance(state.params["language"], tiny[1]["language"]) == 0


def test_a_non_finite_gradient_is_skipped_and_counted(tiny, collected):
    def poison(trajectory):
        return trajectory._replace(advantages=trajectory.advantages * jnp.nan)

    state, stats, _ = run(tiny, collected, poison=poison)
    assert int(state.bad_steps) == 2
    assert float(stats["update/skipped"]) == 2
    assert int(state.step) == 0
    assert distance(state.params, tiny[1]) == 0


def test_garbage_outside_the_mask_changes_nothing(tiny, collected, base):
    def scramble(trajectory):
        outside = ~trajectory.mask
        assert bool(outside.any())
        return trajectory._replace(
            tokens=jnp.where(outside, 3, trajectory.tokens),
            old_logprobs=jnp.where(outside, -99.0, trajectory.old_logprobs),
            advantages=jnp.where(outside, jnp.inf, trajectory.advantages),
        )

    other = run(tiny, collected, poison=scramble)
    assert distance(base[0].params, other[0].params) == 0


@pytest.mark.slow
def test_reference_divergence_is_zero_at_the_start_and_pulls_back_later(tiny, collected):
    settings = {"update__minibatch": 16, "algorithm__kl_loss_coef": 0.1}
    _, stats, _ = run(tiny, collected, **settings, reference=tiny[1])
    assert float(stats["update/kl"]) == pytest.approx(0.0, abs=1e-9)
    moved = jax.tree.map(lambda x: x * 1.1, tiny[1])
    _, stats, _ = run(tiny, collected, **settings, reference=moved)
    assert float(stats["update/kl"]) > 1e-4


def test_the_filter_leaves_groups_out_of_loss_and_counts(tiny, collected):
    scores = np.zeros(16, np.float32)
    scores[:4] = 1  # all right; groups 1 and 2 all wrong; group 3 mixed
    scores[12] = 1
    _, stats, trajectory = run(tiny, collected, scores=scores, algorithm__filter=True)
    kept = np.asarray(trajectory.mask).any(axis=1)
    assert kept.tolist() == [False] * 12 + [True] * 4
    assert float(stats["filter/kept_fraction"]) == 0.25
    assert float(stats["filter/all_correct"]) == 0.25
    assert float(stats["filter/all_wrong"]) == 0.5


def test_equal_scores_move_nothing(tiny, collected):
    state, _, _ = run(tiny, collected, scores=np.ones(16, np.float32))
    assert distance(state.params, tiny[1]) == 0


@pytest.mark.parametrize(
    "advantage",
    [
        "grpo",
        pytest.param("rloo", marks=pytest.mark.slow),
        pytest.param("reinforce_pp", marks=pytest.mark.slow),
    ],
)
def test_good_responses_become_more_probable(tiny, collected, advantage):
    model, params = tiny
    scores = np.tile(np.array([1, 0, 0, 0], np.float32), 4)
    settings = {} if advantage == "grpo" else {"algorithm__advantage": advantage}
    state, _, before = run(tiny, collected, **settings, scores=scores)
    features = model.encode_images(state.params, before.batch)
    after, _ = jax.jit(make_logprobs_fn(model, POLICY, 64))(
        state.params, before.batch, features, before.tokens, before.mask
    )
    gain = np.asarray((after - before.old_logprobs).sum(axis=1))
    assert gain[scores == 1].mean() > gain[scores == 0].mean()
