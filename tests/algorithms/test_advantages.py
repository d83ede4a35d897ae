# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Advantages: numbers by hand, a numpy oracle on ragged masks, exact zeros."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvlm_jax.algorithms import advantages

WRAPS = pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])


def reinforce_pp_oracle(scores, mask, gamma, kl, kl_coef, whiten):
    """The definition in float64, one token after another."""
    returns = np.zeros(mask.shape)
    for row, (score, valid) in enumerate(zip(scores, mask, strict=True)):
        columns = np.flatnonzero(valid)
        following = 0.0
        for column in columns[::-1]:
            reward = (score if column == columns[-1] else 0.0) - kl_coef * kl[row, column]
            following = returns[row, column] = reward + gamma * following
    if whiten != "none":
        valid = returns[mask]
        mean, deviation = valid.mean(), np.sqrt(valid.var(ddof=1) + 1e-8)
        returns = (returns - mean) / deviation + (mean if whiten == "scale" else 0.0)
    return np.where(mask, returns, 0.0)


# ---------------------------------------------------------------- REINFORCE++


@WRAPS
def test_reinforce_pp_by_hand(wrap):
    """Nine tokens, three of them worth 1: mean 1/3, unbiased deviation exactly 1/2."""
    scores, mask = jnp.array([1.0, 0.0, 0.0]), jnp.ones((3, 3), bool)
    for whiten, right, wrong in (
        ("center", 4 / 3, -2 / 3),
        ("scale", 5 / 3, -1 / 3),
        ("none", 1.0, 0.0),
    ):
        got = wrap(functools.partial(advantages.reinforce_pp, whiten=whiten))(scores, mask)
        np.testing.assert_allclose(got, [[right] * 3, [wrong] * 3, [wrong] * 3], rtol=1e-6)
        assert got.dtype == jnp.float32


@WRAPS
def test_reinforce_pp_discount_and_penalty_by_hand(wrap):
    mask = jnp.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
    kl = jnp.array([[1.0, 2.0, 4.0, 99.0], [0.0, -2.0, 99.0, 99.0]])
    got = wrap(functools.partial(advantages.reinforce_pp, gamma=0.5, kl_coef=0.5, whiten="none"))(
        jnp.array([4.0, 1.0]), mask, kl=kl
    )
    # rewards: -0.5, -1, 4 - 2 and 0, 1 + 1
    np.testing.assert_allclose(got, [[-0.5, 0.0, 2.0, 0.0], [1.0, 2.0, 0.0, 0.0]], atol=1e-7)


@pytest.mark.parametrize("whiten", ["center", "scale", "none"])
@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_reinforce_pp_equals_the_definition_on_ragged_masks(whiten, gamma):
    rng = np.random.default_rng(1)
    lengths = np.array([1, 17, 0, 5, 40, 23, 39, 2])
    mask = np.arange(40)[None] < lengths[:, None]
    mask[4, 7:11] = False  # a gap, as between turns
    scores, kl = rng.normal(size=8), rng.normal(size=mask.shape)
    expected = reinforce_pp_oracle(scores, mask, gamma, kl, 0.1, whiten)
    got = advantages.reinforce_pp(scores, mask, gamma=gamma, kl=kl, kl_coef=0.1, whiten=whiten)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)
    if whiten == "center":
        assert np.asarray(got)[mask].mean() == pytest.approx(0.0, abs=1e-6)
        assert np.asarray(got)[mask].var(ddof=1) == pytest.approx(1.0, rel=1e-5)


def test_reinforce_pp_return_is_the_score_on_every_token():
    mask = np.arange(50)[None] < np.array([50, 3])[:, None]
    got = advantages.reinforce_pp(np.array([0.3, -0.1]), mask, whiten="none")
    expected = np.where(mask, np.float32([[0.3], [-0.1]]), 0)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("score", [0.0, 1.0, -0.1, 1 / 3])
def test_reinforce_pp_of_equal_scores_is_exactly_zero(score):
    mask = np.arange(64)[None] < np.array([64, 3, 17, 0])[:, None]
    scores = np.full(4, score)
    assert not np.any(advantages.reinforce_pp(scores, mask))
    scaled = advantages.reinforce_pp(scores, mask, whiten="scale")
    np.testing.assert_allclose(scaled, np.where(mask, score, 0.0), rtol=1e-6)


def test_reinforce_pp_does_not_blow_up_tiny_differences():
    """One language penalty of 1e-6 among equal scores stays small instead of unit variance."""
    mask = np.ones((8, 16), bool)
    scores = np.zeros(8)
    scores[0] = -1e-6
    assert np.abs(advantages.reinforce_pp(scores, mask)).max() < 0.02


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30])
def test_reinforce_pp_ignores_what_lies_outside_the_mask(garbage):
    rng = np.random.default_rng(2)
    mask = np.arange(6)[None] < np.array([6, 2, 0])[:, None]
    clean = np.where(mask, rng.normal(size=mask.shape), 0)
    dirty = np.where(mask, clean, garbage)
    scores = np.array([1.0, 0.0, 0.5])
    options = {"gamma": 0.9, "kl_coef": 0.3}
    np.testing.assert_array_equal(
        advantages.reinforce_pp(np.where([1, 1, 0], scores, garbage), mask, kl=dirty, **options),
        advantages.reinforce_pp(scores, mask, kl=clean, **options),
    )


def test_reinforce_pp_does_not_depend_on_padding_or_row_order():
    rng = np.random.default_rng(3)
    mask = np.arange(9)[None] < np.array([9, 4, 6, 1])[:, None]
    scores, order = rng.normal(size=4), np.array([2, 0, 3, 1])
    plain = np.asarray(advantages.reinforce_pp(scores, mask, gamma=0.95))
    wide = advantages.reinforce_pp(scores, np.pad(mask, ((0, 0), (0, 7))), gamma=0.95)
    np.testing.assert_allclose(wide[:, :9], plain, rtol=1e-5, atol=1e-6)
    turned = advantages.reinforce_pp(scores[order], mask[order], gamma=0.95)
    np.testing.assert_allclose(turned, plain[order], rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- group estimators


@WRAPS
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # means 1/4 and 2; deviations 1/2 and sqrt(8/3) with ddof 1
        ({}, [1.5, -0.5, -0.5, -0.5, -1.2247449, 0.0, 0.0, 1.2247449]),
        ({"ddof": 0}, [3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5), -(2**0.5), 0, 0, 2**0.5]),
        (
            {"eps": 0.5},
            [
                0.75,
                -0.25,
                -0.25,
                -0.25,
                -2 / (0.5 + (8 / 3) ** 0.5),
                0,
                0,
                2 / (0.5 + (8 / 3) ** 0.5),
            ],
        ),
        ({"scale": "none"}, [0.75, -0.25, -0.25, -0.25, -2.0, 0.0, 0.0, 2.0]),
        # all eight: sum 9, squares 25, variance (25 - 81/8) / 7
        ({"scale": "batch"}, np.array([0.75, -0.25, -0.25, -0.25, -2, 0, 0, 2]) / 2.125**0.5),
    ],
)
def test_grpo_by_hand(wrap, options, expected):
    scores = jnp.array([1.0, 0.0, 0.0, 0.0, 0.0, 2.0, 2.0, 4.0])
    got = wrap(functools.partial(advantages.grpo, group_size=4, **options))(scores)
    np.testing.assert_allclose(got, expected, rtol=5e-6, atol=1e-7)
    assert got.dtype == jnp.float32


def test_grpo_leaves_rows_out_of_the_batchs_deviation():
    scores = jnp.array([3.0, 1.0, 0.0, 0.0, 9.0, 9.0, -9.0, 9.0, -3.0, -2.0, -1.0, 2.0])
    in_update = np.repeat([True, False, True], 4)  # mean 0, variance 28 / 7
    got = advantages.grpo(scores, 4, scale="batch", eps=0.0, in_update=in_update)
    expected = np.array([1, 0, -0.5, -0.5, -1, -0.5, 0, 1.5])
    np.testing.assert_allclose(got[in_update], expected, atol=1e-6)
    everything = np.ones(12, bool)
    assert np.array_equal(
        advantages.grpo(scores, 4, scale="batch", in_update=everything),
        advantages.grpo(scores, 4, scale="batch"),
    )


@WRAPS
def test_rloo_by_hand(wrap):
    got = wrap(functools.partial(advantages.rloo, group_size=3))(
        jnp.array([1.0, 0.0, 0.5, 2.0, 2.0, 5.0])
    )
    np.testing.assert_allclose(got, [0.75, -0.75, 0.0, -1.5, -1.5, 3.0], atol=1e-6)


def test_group_estimators_equal_their_vmap_over_groups():
    scores = np.random.default_rng(4).normal(size=(5, 6)).astype(np.float32)
    for estimate in (
        functools.partial(advantages.grpo, group_size=6),
        functools.partial(advantages.rloo, group_size=6),
    ):
        np.testing.assert_allclose(
            estimate(scores.ravel()), jax.vmap(estimate)(scores).ravel(), rtol=1e-6
        )


@pytest.mark.parametrize("group_size", [2, 3, 7, 8])
def test_a_group_of_equal_scores_gets_exactly_zero(group_size):
    equal = np.repeat(np.array([0.1, 1.0, -0.1, 1 / 3], np.float32), group_size)
    for scale in ("group", "batch", "none"):
        estimate = functools.partial(advantages.grpo, group_size=group_size, scale=scale)
        assert not np.any(estimate(equal))
    assert not np.any(advantages.rloo(equal, group_size))


def test_group_estimators_equal_numpy_on_random_scores():
    scores = np.random.default_rng(5).normal(size=(16, 8))
    centred = scores - scores.mean(1, keepdims=True)
    expected = centred / (scores.std(1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(advantages.grpo(scores.ravel(), 8), expected.ravel(), rtol=2e-5)
    others = (scores.sum(1, keepdims=True) - scores) / 7
    got = advantages.rloo(scores.ravel(), 8)
    np.testing.assert_allclose(got, (scores - others).ravel(), rtol=2e-5, atol=1e-6)


@WRAPS
@pytest.mark.parametrize(
    ("case", "scores", "lengths", "weight"),
    [
        ("right ones longer than the mean of wrong ones", [1, 0, 0, 1], [9, 4, 6, 2], 1.0),
        ("right ones not longer", [1, 0, 0, 1], [5, 4, 6, 2], 0.1),
        ("nothing right", [0, 0.5, 0, 0], [5, 4, 6, 2], 1.0),
        ("everything right: mean over none is infinite", [1, 1, 1, 1], [5, 4, 6, 2], 0.1),
        ("a cut-off wrong one is left out", [1, 0, 0, 1], [7, 6, 20, 2], 1.0),
        ("only cut-off wrong ones", [1, 0, 0, 1], [7, 21, 20, 2], 0.1),
        ("a format reward of 0.5 is not right", [0.5, 0, 0, 0], [9, 1, 1, 1], 1.0),
    ],
)
def test_adora_weights_by_hand(wrap, case, scores, lengths, weight):
    other = ([1, 0, 0, 0], [3, 1, 1, 1])  # a second group, always of weight 1
    got = wrap(functools.partial(advantages.adora_weights, group_size=4, max_length=20))(
        np.array(scores + other[0], np.float32), np.array(lengths + other[1])
    )
    np.testing.assert_allclose(got, [weight] * 4 + [1.0] * 4, err_msg=case)


def test_adora_lambda_is_an_argument():
    got = advantages.adora_weights([1, 0], [1, 2], 2, lam=0.25, max_length=9)
    np.testing.assert_array_equal(got, [0.25, 0.25])


# ---------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: advantages.grpo(np.ones(6), 1), "group_size=1 must be at least 2"),
        (lambda: advantages.grpo(np.ones(6), 4), "group_size=4 does not divide the 6 scores"),
        (lambda: advantages.grpo(np.ones((3, 2)), 2), r"scores has shape \(3, 2\)"),
        (lambda: advantages.grpo(np.ones(6), 2, scale="std"), "scale='std'"),
        (lambda: advantages.rloo(np.ones(6), 1), "at least 2"),
        (lambda: advantages.reinforce_pp(np.ones((2, 1)), np.ones((2, 3))), "scores has shape"),
        (lambda: advantages.reinforce_pp(np.ones(3), np.ones((2, 3))), r"mask has shape \(2, 3\)"),
        (lambda: advantages.reinforce_pp(np.ones(2), np.ones((2, 3)), whiten="x"), "whiten='x'"),
        (lambda: advantages.reinforce_pp(np.ones(2), np.ones((2, 3)), kl_coef=0.1), "needs kl"),
        (
            lambda: advantages.reinforce_pp(np.ones(2), np.ones((2, 3)), kl=np.ones(2)),
            "kl has shape",
        ),
        (
            lambda: advantages.adora_weights(np.ones(4), np.ones(2), 2, max_length=3),
            "lengths has shape",
        ),
    ],
)
def test_misuse_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
