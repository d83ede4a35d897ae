# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The policy loss: signs and gradients by hand, a numpy oracle, splitting, garbage."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvlm_jax.algorithms import advantages, losses

LOG2 = float(np.log(2.0))


def one_token(ratio, advantage, **options):
    """(loss, d loss / d logprob) of a single token whose ratio is given; old logprob -1."""

    def loss(logprob):
        return losses.policy_loss(
            logprob, jnp.array([[-1.0]]), jnp.array([advantage]), jnp.array([[True]]), **options
        )[0]

    value, gradient = jax.value_and_grad(loss)(jnp.array([[-1.0 + np.log(ratio)]]))
    return float(value), float(gradient[0, 0])


def oracle(lp, old, adv, mask, *, kind, low, high, dual=None, rollout=None, cap=None):
    """Losses of every token by the formulas, in float64, token by token."""
    result = np.zeros(mask.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        log_ratio = lp[i, t] - old[i, t]
        if kind == "gspo":
            log_ratio = np.mean([lp[i, s] - old[i, s] for s in np.flatnonzero(mask[i])])
        ratio = np.exp(log_ratio)
        clipped = min(max(ratio, -np.inf if low is None else 1 - low), 1 + high)
        if kind == "cispo":
            value = -clipped * adv[i, t] * lp[i, t]
        else:
            value = -min(ratio * adv[i, t], clipped * adv[i, t])
        if dual is not None and adv[i, t] < 0:
            value = min(value, -dual * adv[i, t])
        if cap is not None:
            value *= min(np.exp(old[i, t] - rollout[i, t]), cap)
        result[i, t] = value
    return result


def ragged(seed=0, rows=6, columns=11):
    """Random log-probabilities whose ratios fall on both sides of every clip."""
    rng = np.random.default_rng(seed)
    mask = np.arange(columns)[None] < np.array([11, 4, 1, 0, 7, 10])[:rows, None]
    old = -rng.exponential(1.0, mask.shape)
    lp = old + rng.normal(0, 0.6, mask.shape)
    return {
        "lp": lp,
        "old": old,
        "adv": rng.normal(0, 1, mask.shape),
        "mask": mask,
        "rollout": old + rng.normal(0, 0.5, mask.shape),
    }


# ---------------------------------------------------------------- single tokens by hand


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),  # inside: d loss / d logp = -A ratio
        (1.5, 2.0, -2.4, 0.0),  # A > 0 above the clip: stopped
        (0.5, 2.0, -1.0, -1.0),  # A > 0 below: still pushed up
        (1.5, -2.0, 3.0, 3.0),  # A < 0 above: still pushed down, not clipped
        (0.5, -2.0, 1.6, 0.0),  # A < 0 below: stopped
    ],
)
def test_ppo_signs(ratio, advantage, loss, gradient):
    got = one_token(ratio, advantage, kind="ppo", clip_low=0.2, clip_high=0.2)
    assert got == pytest.approx((loss, gradient), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.25, 1.0, -1.25, -1.25),  # within clip-higher
        (1.30, 1.0, -1.28, 0.0),
        (0.75, -1.0, 0.8, 0.0),
    ],
)
def test_clip_higher_is_asymmetric(ratio, advantage, loss, gradient):
    got = one_token(ratio, advantage, clip_low=0.2, clip_high=0.28)
    assert got == pytest.approx((loss, gradient), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (2.9, -2.0, 5.8, 5.8),  # below c: as without
        (5.0, -2.0, 6.0, 0.0),  # above c: bounded by -c A, stopped
        (5.0, 2.0, -2.4, 0.0),  # A > 0: the bound has no say
        (0.1, -2.0, 1.6, 0.0),
    ],
)
def test_dual_clip(ratio, advantage, loss, gradient):
    got = one_token(ratio, advantage, dual_clip=3.0)
    assert got == pytest.approx((loss, gradient), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "low", "weight"),
    [(1.1, 0.2, 1.1), (5.0, 0.2, 1.2), (0.1, 0.2, 0.8), (0.1, None, 0.1)],
)
@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_cispo_gradient_is_the_constant_weight(ratio, low, weight, advantage):
    """Every token keeps a gradient, -w A, with no derivative of the weight itself."""
    loss, gradient = one_token(ratio, advantage, kind="cispo", clip_low=low, clip_high=0.2)
    assert gradient == pytest.approx(-weight * advantage, rel=1e-5)
    assert loss == pytest.approx(-weight * advantage * (-1.0 + np.log(ratio)), rel=1e-5)


def test_gspo_ratio_is_the_geometric_mean_and_reaches_every_token():
    lp = jnp.array([[-1.0 + 3 * LOG2, -1.0 - LOG2, 7.0]])  # mean log ratio: log 2
    old, mask = jnp.full((1, 3), -1.0), jnp.array([[True, True, False]])

    def loss(lp, advantage, high):
        options = {"kind": "gspo", "clip_high": high, "aggregate": "sequence"}
        return losses.policy_loss(lp, old, jnp.array([advantage]), mask, **options)[0]

    value, gradient = jax.value_and_grad(loss)(lp, 3.0, 5.0)
    assert value == pytest.approx(-6.0, rel=1e-5)  # -A s
    np.testing.assert_allclose(gradient, [[-3.0, -3.0, 0.0]], rtol=1e-5)  # -A s / |o| each
    value, gradient = jax.value_and_grad(loss)(lp, 3.0, 0.2)  # s = 2 above the clip
    assert value == pytest.approx(-3.6, rel=1e-5)
    assert not gradient.any()
    value, gradient = jax.value_and_grad(loss)(lp, -3.0, 0.2)  # A < 0: not stopped
    assert value == pytest.approx(6.0, rel=1e-5)
    np.testing.assert_allclose(gradient, [[3.0, 3.0, 0.0]], rtol=1e-5)


def test_truncated_importance_weight_is_constant_and_outside_the_clip():
    def run(logprob_diff, ratio, cap):
        def loss(lp, old, rollout):
            return losses.policy_loss(
                lp,
                old,
                jnp.array([2.0]),
                jnp.array([[True]]),
                rollout_logprobs=rollout,
                is_cap=cap,
            )[0]

        old = jnp.array([[-2.0]])
        arguments = (old + np.log(ratio), old, old - logprob_diff)
        value, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))(*arguments)
        return float(value), [float(g[0, 0]) for g in gradients]

    value, gradients = run(logprob_diff=LOG2, ratio=1.1, cap=3.0)
    assert value == pytest.approx(2 * -2.2, rel=1e-5)
    assert gradients == pytest.approx([2 * -2.2, 0.0, 0.0], rel=1e-5)
    assert run(logprob_diff=LOG2, ratio=1.1, cap=1.5)[0] == pytest.approx(1.5 * -2.2, rel=1e-5)
    assert run(logprob_diff=-LOG2, ratio=1.5, cap=1.5)[0] == pytest.approx(0.5 * -2.4, rel=1e-5)


# ---------------------------------------------------------------- aggregation


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # on-policy rows of 3, 1, 0 and 2 valid tokens with advantages 1, 2, 9 and -2
        ({"aggregate": "token"}, -(3 * 1 + 1 * 2 - 2 * 2) / 6),
        ({"aggregate": "sequence"}, -(1 + 2 - 2) / 3),
        ({"aggregate": "constant", "length_norm": 5}, -(3 * 1 + 1 * 2 - 2 * 2) / (4 * 5)),
    ],
)
def test_aggregation_by_hand(options, expected):
    mask = jnp.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]], bool)
    lp = jnp.full((4, 3), -0.5)
    adv = jnp.array([1.0, 2.0, 9.0, -2.0])
    loss, stats = losses.policy_loss(lp, lp, adv, mask, **options)
    assert loss == pytest.approx(expected, abs=1e-6)
    assert loss.shape == ()
    assert loss.dtype == jnp.float32
    assert stats["policy_loss"] == pytest.approx(expected, abs=1e-6)


def test_on_policy_loss_is_minus_the_mean_advantage_and_its_gradient():
    data = ragged()
    lp, adv, mask = data["old"], data["adv"], data["mask"]
    (loss, stats), gradient = jax.value_and_grad(losses.policy_loss, has_aux=True)(
        jnp.float32(lp), lp, adv, mask
    )
    assert loss == pytest.approx(-adv[mask].mean(), rel=1e-5)
    np.testing.assert_allclose(gradient, np.where(mask, -adv / mask.sum(), 0), rtol=1e-5)
    assert stats["ratio_mean"] == 1
    assert stats["clip_fraction"] == 0
    assert stats["approx_kl"] == 0


CASES = [
    {"kind": "ppo", "low": 0.2, "high": 0.28},
    {"kind": "ppo", "low": 0.2, "high": 0.2, "dual": 1.5},
    {"kind": "gspo", "low": 0.03, "high": 0.04},
    {"kind": "gspo", "low": 0.03, "high": 0.04, "dual": 1.1},
    {"kind": "cispo", "low": 0.2, "high": 0.2},
    {"kind": "cispo", "low": None, "high": 0.5},
    {"kind": "ppo", "low": 0.2, "high": 0.2, "cap": 1.3},
    {"kind": "gspo", "low": 0.03, "high": 0.04, "cap": 1.3},
    {"kind": "cispo", "low": None, "high": 0.5, "cap": 1.3},
]
# A loss of each token and its aggregation are independent; all pairs would only be slow.
COMBINATIONS = [(case, "token") for case in CASES] + [
    (CASES[0], "sequence"),
    (CASES[0], "constant"),
    (CASES[7], "sequence"),
]


def settings(case, data):
    """The case's options under the names of the interface."""
    options = {"kind": case["kind"], "clip_low": case["low"], "clip_high": case["high"]}
    options["dual_clip"] = case.get("dual")
    if "cap" in case:
        options |= {"is_cap": case["cap"], "rollout_logprobs": data["rollout"]}
    return options


@pytest.mark.parametrize(("case", "aggregate"), COMBINATIONS, ids=str)
def test_equals_the_formulas_on_ragged_masks(case, aggregate):
    data = ragged()
    mask = data["mask"]
    rollout = {"rollout": data["rollout"]} if "cap" in case else {}
    tokens = oracle(data["lp"], data["old"], data["adv"], mask, **case, **rollout)
    lengths = mask.sum(1)
    expected = {
        "token": tokens.sum() / mask.sum(),
        "sequence": (tokens.sum(1) / np.maximum(lengths, 1)).sum() / (lengths > 0).sum(),
        "constant": tokens.sum() / (len(mask) * 16),
    }[aggregate]
    options = {"aggregate": aggregate, "length_norm": 16, **settings(case, data)}
    loss, _ = losses.policy_loss(data["lp"], data["old"], data["adv"], mask, **options)
    assert loss == pytest.approx(expected, rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_equals_finite_differences_of_the_formula(case):
    """For cispo the weight is held at its value: the formula is differentiated through logp."""
    data = ragged(seed=3)
    mask, old, adv = data["mask"], data["old"], data["adv"]
    rollout = {"rollout": data["rollout"]} if "cap" in case else {}
    gradient = jax.grad(
        lambda lp: losses.policy_loss(lp, old, adv, mask, **settings(case, data))[0]
    )(jnp.float32(data["lp"]))

    def formula(lp):
        if case["kind"] != "cispo":
            return oracle(lp, old, adv, mask, **case, **rollout).sum() / mask.sum()
        held = oracle(data["lp"], old, adv, mask, **case, **rollout)
        held = np.divide(held, data["lp"], out=np.zeros_like(held), where=mask)
        return (held * lp).sum() / mask.sum()

    step = 1e-6
    for i, t in zip(*np.nonzero(mask), strict=True):
        up, down = data["lp"].copy(), data["lp"].copy()
        up[i, t] += step
        down[i, t] -= step
        slope = (formula(up) - formula(down)) / (2 * step)
        assert gradient[i, t] == pytest.approx(slope, rel=1e-3, abs=1e-5), (i, t)
    assert not np.asarray(gradient)[~mask].any()


@pytest.mark.parametrize("case", [CASES[1], CASES[7], CASES[8]], ids=str)
def test_jit_equals_eager(case):
    data = ragged()
    arguments = [np.float32(data[name]) for name in ("lp", "old", "adv")] + [data["mask"]]
    function = jax.value_and_grad(
        functools.partial(losses.policy_loss, **settings(case, data)), has_aux=True
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, jax.jit(function)(*arguments), function(*arguments))


def test_advantages_of_responses_and_of_tokens_are_the_same_thing():
    data = ragged()
    per_row = data["adv"][:, 0]
    spread = np.repeat(per_row[:, None], data["mask"].shape[1], axis=1)
    assert (
        losses.policy_loss(data["lp"], data["old"], per_row, data["mask"])[0]
        == (losses.policy_loss(data["lp"], data["old"], spread, data["mask"])[0])
    )


def test_vmap_equals_a_loop():
    batches = [ragged(seed) for seed in range(3)]
    names = ("lp", "old", "adv", "mask")
    stacked = [np.stack([batch[name] for batch in batches]) for name in names]
    together = jax.vmap(lambda *x: losses.policy_loss(*x)[0])(*stacked)
    alone = [losses.policy_loss(*(batch[name] for name in names))[0] for batch in batches]
    np.testing.assert_allclose(together, alone, rtol=1e-6)


# ---------------------------------------------------------------- splitting a minibatch


@pytest.mark.slow
@pytest.mark.parametrize(("case", "aggregate"), COMBINATIONS, ids=str)
def test_parts_over_the_whole_denominator_add_up_to_one_batch(case, aggregate):
    data = ragged()
    options = settings(case, data)
    rollout = options.pop("rollout_logprobs", None)
    mask = data["mask"]

    def whole(lp):
        return losses.policy_loss(
            lp,
            data["old"],
            data["adv"],
            mask,
            aggregate=aggregate,
            length_norm=16,
            rollout_logprobs=rollout,
            **options,
        )

    total = losses.denominator(mask, aggregate, 16)

    def part(lp, rows):
        own = {name: jnp.asarray(values)[rows] for name, values in data.items()}
        numerator, sums = losses.policy_loss_sum(
            lp[rows],
            own["old"],
            own["adv"],
            own["mask"],
            aggregate=aggregate,
            rollout_logprobs=None if rollout is None else own["rollout"],
            **options,
        )
        return numerator / total, sums

    lp = jnp.float32(data["lp"])
    (loss, stats), gradient = jax.value_and_grad(whole, has_aux=True)(lp)
    one_part = jax.value_and_grad(part, has_aux=True)
    pieces = [one_part(lp, rows) for rows in np.split(np.arange(len(mask)), 3)]
    assert sum(value for (value, _), _ in pieces) == pytest.approx(float(loss), rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(sum(g for _, g in pieces), gradient, rtol=1e-5, atol=1e-7)
    for name in pieces[0][0][1]:
        added = sum(sums[name] for (_, sums), _ in pieces) / mask.sum()
        assert added == pytest.approx(float(stats[name]), rel=1e-5, abs=1e-6)


def test_weighted_sum_reduces_any_further_term_alike():
    data = ragged()
    mask, values = data["mask"], data["adv"]
    lengths = np.maximum(mask.sum(1), 1)
    by_row = np.where(mask, values, 0).sum(1)
    assert losses.weighted_sum(values, mask, "token") == pytest.approx(by_row.sum(), rel=1e-5)
    assert losses.weighted_sum(values, mask, "constant") == pytest.approx(by_row.sum(), rel=1e-5)
    by_sequence = (by_row / lengths).sum()
    assert losses.weighted_sum(values, mask, "sequence") == pytest.approx(by_sequence, rel=1e-5)


# ---------------------------------------------------------------- what must not matter


@pytest.mark.parametrize(("case", "aggregate"), COMBINATIONS, ids=str)
def test_garbage_outside_the_mask_changes_nothing(case, aggregate):
    data = ragged()
    mask = data.pop("mask")

    def loss(lp, dirty):
        return losses.policy_loss(
            lp,
            dirty["old"],
            dirty["adv"],
            mask,
            aggregate=aggregate,
            length_norm=16,
            **settings(case, dirty),
        )

    def run(filler):
        dirty = {n: np.where(mask, x, filler).astype(np.float32) for n, x in data.items()}
        return differentiated(dirty["lp"], dirty)

    differentiated = jax.value_and_grad(loss, has_aux=True)
    clean = run(0.0)
    for garbage in (np.nan, np.inf, -np.inf, 1e30, -1e30):
        jax.tree.map(np.testing.assert_array_equal, run(garbage), clean)


@pytest.mark.parametrize("kind", losses.LOSSES)
@pytest.mark.parametrize("aggregate", losses.AGGREGATES)
def test_nothing_valid_is_zero_with_a_zero_gradient(kind, aggregate):
    data = ragged()
    nothing = np.zeros_like(data["mask"])

    def loss(lp):
        return losses.policy_loss(
            lp, data["old"], data["adv"], nothing, kind=kind, aggregate=aggregate, length_norm=16
        )

    (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.float32(data["lp"]))
    assert value == 0
    assert not gradient.any()
    assert all(np.isfinite(stat) for stat in stats.values())


@pytest.mark.parametrize("kind", losses.LOSSES)
def test_only_the_new_logprobs_are_differentiated(kind):
    data = ragged()

    def loss(old, adv, rollout):
        return losses.policy_loss(
            data["lp"], old, adv, data["mask"], kind=kind, rollout_logprobs=rollout, is_cap=2.0
        )[0]

    arguments = (jnp.float32(data[name]) for name in ("old", "adv", "rollout"))
    for gradient in jax.grad(loss, argnums=(0, 1, 2))(*arguments):
        assert not gradient.any()


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("kind", losses.LOSSES)
def test_a_wild_ratio_stays_finite(kind, advantage):
    def loss(lp):
        old = jnp.array([[-500.0, -1.0]])
        return losses.policy_loss(lp, old, jnp.array([advantage]), jnp.ones((1, 2)), kind=kind)[0]

    value, gradient = jax.value_and_grad(loss)(jnp.array([[-1.0, -500.0]]))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_rows_over_eight_devices_give_the_same_loss_gradient_and_advantages():
    """Sums are global under jit: no device averages over its own rows."""
    rng = np.random.default_rng(9)
    mask = np.arange(7)[None] < rng.integers(0, 8, 16)[:, None]
    lp, old = -rng.exponential(1.0, (2, 16, 7)).astype(np.float32)
    scores = rng.normal(size=16).astype(np.float32)

    @jax.jit
    def step(lp, old, scores, mask):
        adv = advantages.reinforce_pp(scores, mask)
        loss = functools.partial(losses.policy_loss, aggregate="sequence")
        return adv, jax.value_and_grad(loss, has_aux=True)(lp, old, adv, mask)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    arguments = (lp, old, scores, mask)
    jax.tree.map(close, step(*jax.device_put(arguments, rows)), step(*arguments))


# ---------------------------------------------------------------- statistics, misuse


def test_statistics_by_hand():
    """Ratios 2, 1/2, 1 and 2, advantages 1, 1, 1 and -1: only the first one is stopped."""
    log_ratio = jnp.array([[LOG2, -LOG2], [0.0, LOG2]])
    old, adv = jnp.full((2, 2), -1.0), jnp.array([[1.0, 1.0], [1.0, -1.0]])
    _, stats = losses.policy_loss(old + log_ratio, old, adv, jnp.ones((2, 2), bool))
    assert stats["ratio_mean"] == pytest.approx(5.5 / 4)
    assert stats["clip_fraction"] == pytest.approx(1 / 4)
    assert stats["approx_kl"] == pytest.approx((5.5 - 4 - LOG2) / 4, rel=1e-5)
    assert set(stats) == {"ratio_mean", "clip_fraction", "approx_kl", "policy_loss"}
    _, stats = losses.policy_loss(
        old + log_ratio, old, adv, jnp.ones((2, 2), bool), rollout_logprobs=old - LOG2, is_cap=1.5
    )
    assert stats["is_weight"] == pytest.approx(1.5)


def test_clip_fraction_counts_what_the_dual_clip_stops_for_bad_tokens_only():
    log_ratio = jnp.log(jnp.array([[5.0, 1.0], [2.0, 1.0]]))
    adv = jnp.array([[-1.0, -1.0], [-1.0, 1.0]])
    arguments = (log_ratio, jnp.zeros((2, 2)), adv, jnp.ones((2, 2), bool))
    assert losses.policy_loss(*arguments)[1]["clip_fraction"] == 0
    assert losses.policy_loss(*arguments, dual_clip=3.0)[1]["clip_fraction"] == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "trpo"}, "kind='trpo'"),
        ({"aggregate": "mean"}, "aggregate='mean'"),
        ({"aggregate": "constant"}, "length_norm > 0"),
        ({"dual_clip": 1.0}, "dual_clip=1.0"),
        ({"kind": "cispo", "dual_clip": 3.0}, "dual_clip"),
        ({"is_cap": 2.0}, "go together"),
        ({"rollout_logprobs": np.zeros((2, 3))}, "go together"),
        ({"rollout_logprobs": np.zeros(3), "is_cap": 2.0}, "rollout_logprobs has shape"),
        ({"old_logprobs": np.zeros((2, 1))}, "old_logprobs has shape"),
        ({"advantages": np.zeros(3)}, "advantages has shape"),
        ({"advantages": np.zeros((2, 1))}, "advantages has shape"),
        ({"mask": np.ones(2)}, "mask has shape"),
    ],
)
def test_misuse_is_refused_by_name(options, message):
    arguments = {
        "logprobs": np.zeros((2, 3)),
        "old_logprobs": np.zeros((2, 3)),
        "advantages": np.zeros(2),
        "mask": np.ones((2, 3)),
    }
    with pytest.raises(ValueError, match=message):
        losses.policy_loss(**(arguments | options))
