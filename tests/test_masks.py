# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What exists, what the policy drew and what is trained on are three things.

The model is a fake: its hidden state counts the response's valid tokens before a token, and logits
are that count for every even token. So log-probabilities follow by hand from what is attended to.
"""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlvlm_jax import packing, sharding
from rlvlm_jax.sampling.logits import Policy
from rlvlm_jax.sampling.responses import read_responses
from rlvlm_jax.trajectory import make_trajectory, run_passes
from rlvlm_jax.types import Passes, Rollout, Trajectory
from rlvlm_jax.update import Setup, cut, init_state, rl_loss, train_step, update_metrics
from tests import tiny_model, tiny_steps
from tests.tiny_model import PAD

VOCABULARY = 4
B, R = 16, 6
TOKENS = np.tile(np.array([0, 1, 2, 3, 0, 1], np.int32), (B, 1))
VALID = np.tile(np.array([1, 1, 1, 1, 1, 0], bool), (B, 1))  # column 5 is padding
TOOL = np.array([0, 0, 1, 0, 0, 0], bool)  # column 2 is a tool's output
SAMPLED = VALID & ~TOOL
TRAINED = SAMPLED & (np.arange(R) != 1)  # column 1 is the policy's own, but not trained on
ORDER = np.arange(B).reshape(1, 1, B)


def fake():
    """Returns a model of one parameter, w = 1, that multiplies the count."""

    def forward(params, prompts, features, tokens, valid):
        counts = jnp.cumsum(valid, axis=1) - valid  # valid tokens before each
        return params["w"] * counts[..., None].astype(jnp.float32)

    def logits(params, hidden):
        return hidden * jnp.array([1.0, 0.0, 1.0, 0.0])

    return SimpleNamespace(
        forward=forward, logits=logits, spread=lambda params: params, part=lambda path: "llm"
    )


def by_hand(valid=VALID):
    """Log-probabilities and entropies float64[B, R] of the fake's, everywhere."""
    counts = (np.cumsum(valid, axis=1) - valid).astype(float)
    normaliser = np.log(2 * np.exp(counts) + 2)
    even = TOKENS % 2 == 0
    entropy = normaliser - 2 * counts * np.exp(counts - normaliser)
    return np.where(even, counts, 0) - normaliser, entropy


def config(**settings):
    keys = {"train__minibatch": B, "algorithm__old_logprobs": "update"}
    return tiny_model.settings(**keys, **settings)


def trajectory(**changes):
    """Advantages differ by column; the sampler's log-probabilities are off by a tenth a column."""
    advantages = np.tile(np.arange(1.0, R + 1, dtype=np.float32), (B, 1))
    columns = np.arange(R) / 10
    rollout = np.where(SAMPLED, by_hand()[0] + columns, 0).astype(np.float32)
    fields = {
        "prompts": tiny_model.batch(),
        "features": np.zeros((4, 0, 1), np.float32),
        "tokens": TOKENS,
        "valid": VALID,
        "sampled": SAMPLED,
        "trained": TRAINED,
        "rollout_logprobs": rollout,
        "old_logprobs": None,
        "ref_logprobs": None,
        "advantages": advantages,
    }
    return Trajectory(**{**fields, **changes})


def update(trajectory, **settings):
    """Returns (w after one step of gradient descent with rate 1, metrics)."""
    c = config(**settings)
    optimizer = optax.sgd(1.0)
    setup = Setup(fake(), c, Policy(), optimizer, sharding.make_mesh(1, 1, 1))
    state = init_state({"w": jnp.float32(1)}, optimizer, lambda path: True)
    step = jax.jit(functools.partial(jax.lax.scan, functools.partial(train_step, setup, rl_loss)))
    (state, _), stats = step((state, trajectory), cut(c, ORDER, None))
    stats = jax.device_get(stats)
    metrics, diffs = update_metrics(stats, ORDER, trajectory.sampled.any(axis=1))
    return float(state.params["w"]), metrics | {"logprob_diffs": diffs}


@pytest.fixture(scope="module")
def base():
    return update(trajectory())


def test_the_loss_is_over_trained_tokens(base):
    """With ratio 1 it is minus the mean advantage of columns 0, 3 and 4."""
    assert base[1]["update/loss"] == pytest.approx(-(1 + 4 + 5) / 3, rel=1e-6)


def test_the_gradient_is_that_of_trained_tokens_after_valid_ones(base):
    """d logp / dw = count * ([token is even] - share of even tokens), counts 0, 3 and 4."""
    counts = np.array([0.0, 3.0, 4.0])
    share = np.exp(counts) / (np.exp(counts) + 1)
    slopes = counts * (np.array([1.0, 0.0, 1.0]) - share)
    assert base[0] == pytest.approx(1 + (np.array([1, 4, 5]) * slopes).sum() / 3, rel=1e-5)


def test_sampler_and_trainer_are_compared_on_sampled_tokens(base):
    """Columns 0, 1, 3 and 4; the second is not trained on."""
    assert base[1]["rollout/logprob_gap_mean"] == pytest.approx((0.1 + 0.3 + 0.4) / 4, rel=1e-5)
    np.testing.assert_allclose(base[1]["logprob_diffs"], 0.4, rtol=1e-5)


def test_the_entropy_is_that_of_sampled_tokens(base):
    expected = by_hand()[1][SAMPLED].mean()
    assert base[1]["update/entropy"] == pytest.approx(expected, rel=1e-5)


def test_a_tools_numbers_count_nowhere(base):
    garbage = np.where(TOOL, 99.0, 0).astype(np.float32)
    t = trajectory()
    other = t._replace(
        advantages=t.advantages + garbage, rollout_logprobs=t.rollout_logprobs + garbage
    )
    assert_same(update(other), base)


def test_a_token_that_is_not_trained_on_has_no_advantage_in_the_loss(base):
    t = trajectory()
    other = t.advantages.copy()
    other[:, 1] = -50
    assert_same(update(t._replace(advantages=other)), base)


def assert_same(updated, expected):
    assert updated[0] == expected[0]
    for name, value in expected[1].items():
        np.testing.assert_array_equal(updated[1][name], value, err_msg=name)


def test_a_row_outside_the_update_is_in_no_mean(base):
    """Half of the rows leave it: all means stay, for the rows are alike."""
    rows = (np.arange(B) < 8)[:, None]
    _, metrics = update(trajectory(sampled=SAMPLED & rows, trained=TRAINED & rows))
    for name in ("update/loss", "update/entropy", "rollout/logprob_gap_mean"):
        assert metrics[name] == pytest.approx(base[1][name], rel=1e-5), name
    assert np.isnan(metrics["logprob_diffs"]).tolist() == [False] * 8 + [True] * 8


def rollout():
    zeros = np.zeros((B, R), np.float32)
    logprobs = np.where(SAMPLED, by_hand()[0], zeros).astype(np.float32)
    return Rollout(TOKENS, VALID, SAMPLED, logprobs, np.zeros(B, bool), np.full(B, 7, np.int32))


def test_the_passes_are_of_sampled_tokens():
    c = tiny_model.settings(algorithm__old_logprobs="trainer")
    features = np.zeros((4, 0, 1), np.float32)
    run = functools.partial(run_passes, fake(), c, Policy(), {"w": 1.0}, None)
    passes = run(tiny_model.batch(), features, rollout())
    lps, entropies = by_hand()
    np.testing.assert_allclose(passes.old, np.where(SAMPLED, lps, 0), rtol=1e-5)
    np.testing.assert_allclose(passes.entropy, np.where(SAMPLED, entropies, 0), rtol=1e-5)
    assert np.asarray(passes.logprob_diff).max() < 1e-5


def test_a_trajectory_keeps_the_masks_apart():
    """The second row is cut off, and the groups from the third on leave the update."""
    c = tiny_model.settings(algorithm__mask_truncated=True, algorithm__old_logprobs="sampler")
    in_update, truncated = np.arange(B) < 8, np.arange(B) == 1
    drawn = rollout()._replace(truncated=truncated)
    passes, scores = Passes(None, None, None, None), np.arange(B, dtype=np.float32)
    t, _ = make_trajectory(c, None, None, drawn, passes, scores, in_update)
    used = SAMPLED & (in_update & ~truncated)[:, None]
    assert np.array_equal(t.valid, VALID)
    assert np.array_equal(t.sampled, used)
    assert np.array_equal(t.trained, used)
    assert not np.asarray(t.advantages)[~(SAMPLED & in_update[:, None])].any()


def test_groups_that_the_filter_removed_take_part_in_no_statistic():
    """Two groups stay: their eight scores have mean 0 and deviation sqrt(28 / 7) = 2."""
    in_update = np.arange(B) < 8
    scores = np.float32([3, 1, 0, 0, -3, -2, -1, 2] + [100] * 4 + [50, -50, 50, -50])
    batch = np.float32([1, 0, -0.5, -0.5, -1, -0.5, 0, 1.5])  # less 1 and -1, divided by 2
    group_0 = np.float32([2, 0, -1, -1]) / 2**0.5
    group_1 = np.float32([-2, -1, 0, 3]) / (14 / 3) ** 0.5

    def advantages(**settings):
        settings = {f"algorithm__{name}": value for name, value in settings.items()}
        c = tiny_model.settings(
            algorithm__filter_low=0.1,
            algorithm__filter_high=0.9,
            algorithm__old_logprobs="sampler",
            algorithm__eps=0,
            **settings,
        )
        passes = Passes(None, None, None, None)
        t, _ = make_trajectory(c, None, None, rollout(), passes, scores, in_update)
        assert not np.asarray(t.advantages)[~in_update].any()
        first = SAMPLED.argmax(axis=1)  # of the row's own tokens, which all have one advantage
        return np.asarray(t.advantages)[np.arange(B), first][:8]

    np.testing.assert_allclose(advantages(scale="batch"), batch, atol=1e-6)
    np.testing.assert_allclose(advantages(), np.concatenate([group_0, group_1]), atol=1e-6)
    # With n tokens in each row, the variance over them all is 3.5 * 8 n / (8 n - 1).
    tokens = 8 * SAMPLED[0].sum()
    assert len(set(SAMPLED.sum(axis=1))) == 1
    whitened = scores[:8] / (3.5 * tokens / (tokens - 1)) ** 0.5
    np.testing.assert_allclose(advantages(advantage="reinforce_pp"), whitened, atol=1e-6)
    centred = 2 * batch
    normalised = centred / (np.mean(centred**2) * tokens / (tokens - 1)) ** 0.5
    for advantage in ("grpo", "rloo", "reinforce_baseline"):
        settings = {"advantage": advantage, "scale": "none", "whiten": "scale"}
        np.testing.assert_allclose(advantages(**settings), normalised, atol=1e-6)


def test_lengths_are_those_of_valid_tokens():
    tokenizer = SimpleNamespace(decode_batch=lambda ids: [str(row) for row in ids])
    responses = read_responses(rollout(), tokenizer)
    assert responses.tokens.tolist() == [5] * B
    assert responses.ids[0] == [0, 1, 2, 3, 0]


# ---- the real model: a tool's tokens are attended to -----------------------------------------


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 57, (B, R)).astype(np.int32)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_a_tools_tokens_change_later_logprobs_only(tokens, packed):
    model, params = tiny_model.build()
    batch = tiny_model.batch()
    features = jax.jit(model.encode_images)(params, batch)
    streams = None
    if packed:
        lengths = VALID.sum(axis=1)
        sizes = {"tokens": 256, "streams": 1, "prompt_size": 24, "response_size": R}
        plan = packing.plan(batch.mask.sum(axis=1), lengths, np.arange(B), **sizes)
        assert plan.count == 1
        streams = plan.source[0], plan.previous[0]
    other = np.where(TOOL, (tokens + 1) % 57, tokens)
    before, after = (
        tiny_steps.logprobs()(params, batch, features, x, VALID, SAMPLED, streams)
        for x in (tokens, other)
    )
    assert np.array_equal(np.asarray(before[2]), SAMPLED)
    assert not np.asarray(before[0])[~SAMPLED].any()
    changed = np.abs(np.asarray(before[0]) - np.asarray(after[0])) > 1e-6
    assert not changed[:, :3].any()
    assert changed[:, 3:5].all()


def test_padding_is_not_attended_to(tokens):
    model, params = tiny_model.build()
    batch = tiny_model.batch()
    features = jax.jit(model.encode_images)(params, batch)
    other = np.where(VALID, tokens, PAD)
    compute = tiny_steps.logprobs()
    before, after = (compute(params, batch, features, x, VALID, SAMPLED) for x in (tokens, other))
    assert np.array_equal(np.asarray(before[0]), np.asarray(after[0]))
