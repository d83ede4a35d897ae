# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Steps III and IV: what must not change the result, and what must."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlvlm_jax import sharding
from rlvlm_jax.config import trains_vision
from rlvlm_jax.sampling.sampler import SampleSettings, make_sample_fn, sequence_keys
from rlvlm_jax.selection import kept_groups
from rlvlm_jax.trajectory import compute_advantages
from rlvlm_jax.update import minibatch_order
from tests import tiny_model, tiny_steps
from tests.tiny_model import BANNED, PAD, STOP
from tests.tiny_steps import ONE, POLICY


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
    batch, features, rollout = jax.device_get((batch, features, rollout))
    mask = rollout.valid.copy()
    mask[5, 3:] = mask[10, 1:] = False
    return batch, features, rollout._replace(valid=mask, sampled=mask)


def judge(collected, *, mesh=ONE, reference=None, scores=None, **settings):
    """Step III; returns (parameters, trajectory, stats), on the mesh."""
    config = tiny_model.settings(**settings)
    devices = tiny_steps.make_mesh(mesh)
    batch, features, rollout = sharding.put_batch(collected, devices)
    if scores is None:
        scores = np.arange(16, dtype=np.float32) % 3
    kept = np.repeat(kept_groups(config, (scores > 0).astype(np.float32)), 4)
    frozen = not trains_vision(config)
    seen = batch, features if frozen else None, rollout
    params = tiny_steps.sharded_params(mesh)
    passes = tiny_steps.passes(**settings)(params, reference, *seen)
    scores = sharding.put_batch(scores, devices)
    trajectory, stats = tiny_steps.trajectory(**settings)(*seen, passes, scores, kept)
    return params, trajectory, stats


def run(collected, *, mesh=ONE, poison=None, reference=None, scores=None, **settings):
    """One pass through steps III and IV; returns (state, stats of both, trajectory)."""
    given = {"reference": reference, "scores": scores}
    _, trajectory, stats = judge(collected, mesh=mesh, **given, **settings)
    if poison is not None:
        trajectory = poison(trajectory)
    order = minibatch_order(tiny_model.settings(**settings), jax.random.key(5))
    state = tiny_steps.state(mesh, **settings)
    state, more = tiny_steps.update(mesh, **settings)(state, trajectory, order)
    return state, {**stats, **more}, trajectory


def distance(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


@pytest.fixture(scope="module")
def base(collected):
    return run(collected)


def test_sampler_and_trainer_agree(base):
    _, stats, _ = base
    assert 0 < float(stats["rollout/logprob_gap_max"]) < 1e-5


def test_parameters_move_and_numbers_are_sane(tiny, collected, base):
    state, stats, trajectory = base
    assert int(state.step) == 2  # 16 sequences, minibatches of 8
    assert distance(state.params["language"], tiny[1]["language"]) > 5e-4
    assert 0 < float(stats["update/entropy"]) < np.log(tiny_model.VOCABULARY)
    assert float(stats["update/grad_norm"]) > 0
    assert not np.asarray(trajectory.advantages)[~np.asarray(trajectory.trained)].any()


@pytest.mark.slow
def test_ratio_is_one_before_the_first_update(collected):
    keys = {"train__minibatch": 16, "train__microbatch": 4}
    _, stats, _ = run(collected, **keys, algorithm__old_logprobs="trainer")
    assert float(stats["update/ratio_mean"]) == pytest.approx(1.0, abs=1e-6)
    assert float(stats["update/clip_fraction"]) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ppo", "gspo"])
def test_one_optimizer_step_needs_no_pass_before_it(collected, loss):
    keys = {"train__minibatch": 16, "train__microbatch": 4, "algorithm__loss": loss}
    state, stats, trajectory = run(collected, **keys)
    assert trajectory.old_logprobs is None
    expected, more, judged = run(collected, **keys, algorithm__old_logprobs="trainer")
    assert judged.old_logprobs is not None
    # AdamW's first moments are a tenth of the gradients. Parameters say less: if a gradient is as
    # small as Adam's epsilon, the step enlarges its rounding error.
    moments = [optax.tree_utils.tree_get(s.opt_state, "mu") for s in (state, expected)]
    largest = max(float(jnp.abs(moment).max()) for moment in jax.tree.leaves(moments[1]))
    assert distance(*moments) < 1e-6 * largest
    assert distance(state.params, expected.params) < 1e-5
    for name in ("loss", "entropy", "ratio_mean", "grad_norm"):
        name = f"update/{name}"
        assert float(stats[name]) == pytest.approx(float(more[name]), abs=1e-5), name
    # What the pass would have compared is compared on the way.
    logprob_diff = np.abs(judged.old_logprobs - judged.rollout_logprobs) * judged.sampled
    np.testing.assert_allclose(stats["logprob_diffs"], logprob_diff.max(axis=1), atol=2e-6)
    assert 0 < float(stats["rollout/logprob_gap_max"]) < 1e-5
    assert float(stats["rollout/logprob_gap_max"]) == stats["logprob_diffs"].max()


@pytest.mark.slow
def test_an_update_of_nothing_has_no_entropy_and_no_gap(collected):
    def nothing(trajectory):
        return trajectory._replace(
            sampled=jnp.zeros_like(trajectory.sampled), trained=jnp.zeros_like(trajectory.trained)
        )

    keys = {"train__minibatch": 16, "train__microbatch": 4}
    _, stats, _ = run(collected, poison=nothing, **keys)
    assert np.isnan(stats["logprob_diffs"]).all()
    for name in ("update/entropy", "rollout/logprob_gap_mean", "rollout/logprob_gap_max"):
        assert np.isnan(float(stats[name])), name


@pytest.mark.slow
def test_without_a_pass_the_samplers_own_are_the_old_ones(collected, base):
    collected = jax.tree.map(np.array, collected)
    collected[2].logprobs[collected[2].sampled] -= 2e-6  # as another order of sums may do
    state, stats, trajectory = run(collected, algorithm__old_logprobs="sampler")
    np.testing.assert_array_equal(trajectory.old_logprobs, collected[2].logprobs)
    assert distance(state.params, base[0].params) < 1e-5
    measured = np.isfinite(stats["logprob_diffs"])
    assert measured.sum() == 8  # the first of two optimizer steps
    assert 0 < np.asarray(stats["logprob_diffs"])[measured].max() < 1e-5
    off = jax.tree.map(np.array, collected)
    off[2].logprobs[off[2].sampled] -= 0.5
    _, stats, _ = run(off, algorithm__old_logprobs="sampler")
    assert float(stats["rollout/logprob_gap_mean"]) == pytest.approx(0.5, abs=1e-4)
    assert np.nanmin(stats["logprob_diffs"]) > 0.49


@pytest.mark.slow
@pytest.mark.parametrize(
    ("aggregate", "micro"),
    [
        ("token", 4),
        ("sequence", 1),
        ("constant", 2),
    ],
)
def test_micro_batches_change_nothing(collected, aggregate, micro):
    settings = {} if aggregate == "token" else {"algorithm__aggregate": aggregate}
    whole = run(collected, **settings)
    parts = run(collected, **settings, train__microbatch=micro)
    assert distance(whole[0].params, parts[0].params) < 1e-5
    assert float(parts[1]["update/loss"]) == pytest.approx(float(whole[1]["update/loss"]), abs=1e-5)


@pytest.mark.slow
def test_rows_that_share_a_prompt_equal_rows_that_do_not(collected, base):
    """G = 4 with micro-batches of one sequence each: nothing is shared."""
    alone = run(collected, train__microbatch=1)
    assert distance(base[0].params, alone[0].params) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [
        (4, 1, 1, 1),
        (1, 4, 1, 1),
        (2, 1, 1, 2),
        (1, 2, 2, 2),
        (1, 4, 1, 2),
    ],
)
def test_devices_change_nothing(collected, base, mesh):
    other = run(collected, mesh=mesh)
    assert len(jax.tree.leaves(other[0].params)[0].sharding.device_set) == np.prod(mesh)
    assert distance(base[0].params, other[0].params) < 1e-5
    for name, value in base[1].items():
        assert float(other[1][name]) == pytest.approx(float(value), abs=1e-5), name


@pytest.mark.slow
def test_logprob_passes_change_nothing(collected, base):
    other = run(collected, train__logprob_batch=8)
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
        ("vit", "vision/blocks", "vision/merger"),
        ("connector", "vision/merger", "vision/blocks"),
    ],
)
def test_each_part_is_a_switch(tiny, collected, switch, moved, kept):
    state, _, _ = run(collected, train__parts=(switch,))

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

    state, stats, _ = run(collected, poison=poison)
    assert int(state.bad_steps) == 2
    assert float(stats["update/skipped"]) == 2
    assert np.isnan(stats["update/loss"])  # undefined, so absent from the records
    assert np.isnan(stats["update/grad_norm"])
    assert int(state.step) == 0
    assert distance(state.params, tiny[1]) == 0


def test_garbage_outside_the_mask_changes_nothing(collected, base):
    def scramble(trajectory):
        outside = ~trajectory.valid
        assert bool(outside.any())
        return trajectory._replace(
            tokens=jnp.where(outside, 3, trajectory.tokens),
            old_logprobs=jnp.where(outside, -99.0, trajectory.old_logprobs),
            advantages=jnp.where(outside, jnp.inf, trajectory.advantages),
        )

    other = run(collected, poison=scramble)
    assert distance(base[0].params, other[0].params) == 0


@pytest.mark.slow
def test_reference_divergence_is_zero_at_the_start_and_pulls_back_later(tiny, collected):
    settings = {"train__minibatch": 16, "algorithm__kl_loss_coef": 0.1}
    _, stats, _ = run(collected, **settings, reference=tiny[1])
    assert float(stats["update/kl"]) == pytest.approx(0.0, abs=1e-9)
    moved = jax.tree.map(lambda x: x * 1.1, tiny[1])
    _, stats, _ = run(collected, **settings, reference=moved)
    assert float(stats["update/kl"]) > 1e-4


def test_the_filter_leaves_groups_out_of_loss_and_counts(collected):
    scores = np.zeros(16, np.float32)
    scores[:4] = 1  # all right; groups 1 and 2 all wrong; group 3 mixed
    scores[12] = 1
    state, stats, trajectory = run(collected, scores=scores, **FILTER)
    kept = np.asarray(trajectory.trained).any(axis=1)
    assert kept.tolist() == [False] * 12 + [True] * 4
    assert int(state.step) == 1  # of the two minibatches, one has nothing to train on
    assert float(stats["update/skipped"]) == 1
    assert np.isfinite(stats["update/loss"])
    assert float(stats["update/grad_norm"]) > 0


@pytest.mark.parametrize("advantage", ["reinforce_pp", "rloo"])
def test_groups_that_are_left_out_do_not_take_part_in_whitening(collected, advantage):
    scores = np.zeros(16, np.float32)
    scores[:4] = 1
    scores[[8, 12, 13]] = 1  # groups 2 and 3 are mixed
    settings = {**FILTER, "algorithm__advantage": advantage}
    if advantage == "rloo":
        settings["algorithm__whiten"] = "scale"
    _, t, _ = judge(collected, scores=scores, **settings)
    kept = np.asarray(t.advantages)[np.asarray(t.trained)]
    assert np.asarray(t.trained).any(axis=1).tolist() == [False] * 8 + [True] * 8
    assert abs(kept.mean()) < 1e-6
    assert kept.std(ddof=1) == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_a_batch_with_nothing_left_moves_nothing(tiny, collected):
    settings = {**FILTER, "train__weight_decay": 0.1}
    state, _, _ = run(collected, scores=np.ones(16, np.float32), **settings)
    assert distance(state.params, tiny[1]) == 0
    assert (int(state.step), int(state.bad_steps)) == (0, 0)


def test_equal_scores_move_nothing(tiny, collected):
    state, _, _ = run(collected, scores=np.ones(16, np.float32))
    assert distance(state.params, tiny[1]) == 0


@pytest.mark.parametrize(
    "advantage",
    [
        "grpo",
        pytest.param("rloo", marks=pytest.mark.slow),
        pytest.param("reinforce_pp", marks=pytest.mark.slow),
    ],
)
def test_good_responses_become_more_probable(collected, advantage):
    scores = np.tile(np.array([1, 0, 0, 0], np.float32), 4)
    settings = {} if advantage == "grpo" else {"algorithm__advantage": advantage}
    state, _, before = run(collected, **settings, scores=scores)
    seen = before.prompts, before.features  # the tower is frozen
    masks = before.valid, before.sampled
    after, *_ = tiny_steps.logprobs(64)(state.params, *seen, before.tokens, *masks)
    gain = np.asarray((after - before.old_logprobs).sum(axis=1))
    assert gain[scores == 1].mean() > gain[scores == 0].mean()


# ---- options of the recipes, by hand ----------------------------------------------------------

FILTER = {"algorithm__filter_low": 0.1, "algorithm__filter_high": 0.9}
SCORES = np.array([1, 0, 0, 1] + [0, 0, 0, 1] + [1, 1, 1, 0] + [0, 1, 1, 0], np.float32)


def advantages_of(mask, scores=SCORES, token_kl=None, **settings):
    config = tiny_model.settings(**{f"algorithm__{name}": v for name, v in settings.items()})
    return np.asarray(compute_advantages(config, scores, mask, token_kl))


@pytest.fixture(scope="module")
def ragged(collected):
    """bool[16, 6]: lengths 1 to 6 in turn."""
    return np.arange(6) < (1 + np.arange(16) % 6)[:, None]


def test_group_baseline_by_hand(ragged):
    found = advantages_of(ragged, advantage="reinforce_baseline")
    means = SCORES.reshape(4, 4).mean(axis=1, keepdims=True)
    expected = (SCORES.reshape(4, 4) - means).reshape(16, 1) * ragged
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("advantage", ["rloo", "grpo", "reinforce_baseline"])
def test_normalised_over_all_tokens_of_the_batch(ragged, advantage):
    plain = advantages_of(ragged, advantage=advantage)[ragged]
    found = advantages_of(ragged, advantage=advantage, whiten="scale")
    assert not found[~ragged].any()
    expected = (plain - plain.mean()) / np.sqrt(plain.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(found[ragged], expected, atol=1e-5)


def test_divergence_is_taken_from_the_scores_of_a_group(ragged):
    token_kl = np.random.default_rng(0).normal(size=ragged.shape).astype(np.float32)
    settings = {"advantage": "rloo", "kl_reward_coef": 0.5}
    found = advantages_of(ragged, token_kl=token_kl, **settings)
    less = SCORES - 0.5 * (token_kl * ragged).sum(axis=1)
    np.testing.assert_allclose(
        found, advantages_of(ragged, scores=less, advantage="rloo"), atol=1e-6
    )


def test_adora_weighs_whole_groups(ragged):
    plain = advantages_of(ragged)
    found = advantages_of(ragged, adora_weight=0.25)
    lengths = ragged.sum(axis=1)
    for group in range(4):
        rows = slice(4 * group, 4 * group + 4)
        right = SCORES[rows] > 0.5
        wrong = lengths[rows][~right & (lengths[rows] < 4)]  # six tokens at most, less two
        longest, mean = lengths[rows][right].max(), wrong.mean() if len(wrong) else np.inf
        weight = 1.0 if longest > mean else 0.25
        np.testing.assert_allclose(found[rows], weight * plain[rows], atol=1e-7)
    # A divergence in the scores makes no right response a wrong one.
    settings = {"token_kl": np.ones(ragged.shape, np.float32), "kl_reward_coef": 1.0}
    with_kl = advantages_of(ragged, adora_weight=0.25, **settings)
    weights = found[ragged] / plain[ragged]
    np.testing.assert_allclose(
        with_kl[ragged], weights * advantages_of(ragged, **settings)[ragged], atol=1e-6
    )


def test_whitening_within_parts_of_the_batch(ragged):
    whole = {"advantage": "reinforce_pp", "whiten": "scale"}
    found = advantages_of(ragged, **whole, whiten_parts=2)
    halves = []
    for rows in (slice(0, 8), slice(8, 16)):
        values = np.repeat(SCORES[rows, None], 6, axis=1)[ragged[rows]]
        halves.append((values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-8) + values.mean())
    np.testing.assert_allclose(found[ragged], np.concatenate(halves), atol=1e-5)
    assert np.abs(found - advantages_of(ragged, **whole)).max() > 1e-3


def test_truncated_responses_may_be_left_out(collected):
    batch, features, rollout = collected
    cut = np.zeros(16, bool)
    cut[[2, 7]] = True
    changed = batch, features, rollout._replace(truncated=cut)
    _, kept, _ = judge(changed)
    _, masked, _ = judge(changed, algorithm__mask_truncated=True)
    assert np.array_equal(np.asarray(masked.trained), np.asarray(kept.trained) & ~cut[:, None])
    assert np.array_equal(np.asarray(masked.advantages), np.asarray(kept.advantages))


@pytest.mark.slow
def test_the_entropy_bonus_raises_entropy(collected):
    scores = np.ones(16, np.float32)  # no advantage: the bonus alone moves
    settings = {"train__minibatch": 16, "algorithm__entropy_coef": 0.1}
    state, stats, t = run(collected, scores=scores, **settings)
    entropy = float(stats["update/entropy"])
    assert float(stats["update/loss"]) == pytest.approx(-0.1 * entropy, rel=1e-5)
    arrays = (t.prompts, t.features, t.tokens, t.valid, t.sampled)
    _, after, _ = tiny_steps.logprobs(4)(state.params, *arrays)
    assert np.asarray(after)[np.asarray(t.trained)].mean() > entropy


@pytest.mark.slow
def test_means_of_micro_batches_are_averaged(collected):
    """With one sequence a micro-batch that is the mean of the sequences' means."""
    micro, sequence, token = (
        run(collected, algorithm__aggregate=aggregate, train__microbatch=1)[0]
        for aggregate in ("microbatch", "sequence", "token")
    )
    assert distance(micro.params, sequence.params) < 1e-6
    assert distance(micro.params, token.params) > 1e-5


@pytest.mark.slow
def test_flat_positions_are_for_training_alone(collected):
    _, _, stats = judge(collected, algorithm__flat_positions=True)
    assert float(stats["rollout/logprob_gap_max"]) > 1e-3  # the mistake is seen by the gap
