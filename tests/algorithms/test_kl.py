# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The divergence estimators: numbers by hand, gradients, expectations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvlm_jax.algorithms import kl

LOGPROBS = np.array([[-1.0, -2.0], [-0.5, -3.0]], np.float32)
REFERENCE = np.array([[-1.0, -1.0], [-1.5, -3.5]], np.float32)  # d = 0, 1, -1, -0.5
E = np.e


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("k1", [[0.0, -1.0], [1.0, 0.5]]),
        ("k2", [[0.0, 0.5], [0.5, 0.125]]),
        ("k3", [[0.0, E - 2], [1 / E, E**-0.5 - 0.5]]),
    ],
)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.vmap], ids=["eager", "jit", "vmap"])
def test_values_by_hand(kind, expected, wrap):
    def estimate(logprobs, reference):
        return kl.estimate(logprobs, reference, kind)

    if wrap is jax.vmap:
        got = jax.vmap(estimate)(LOGPROBS[:, None], REFERENCE[:, None])[:, 0]
    else:
        got = wrap(estimate)(LOGPROBS, REFERENCE)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)
    assert got.dtype == jnp.float32


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("k1", [[1.0, 1.0], [1.0, 1.0]]),  # the same at any distance: no pull as a loss
        ("k2", [[0.0, -1.0], [1.0, 0.5]]),  # logp - ref
        ("k3", [[0.0, 1 - E], [1 - 1 / E, 1 - E**-0.5]]),  # 1 - exp(ref - logp)
    ],
)
def test_gradients_by_hand_and_none_to_the_reference(kind, expected):
    def total(logprobs, reference):
        return kl.estimate(logprobs, reference, kind).sum()

    to_policy, to_reference = jax.grad(total, argnums=(0, 1))(LOGPROBS, REFERENCE)
    np.testing.assert_allclose(to_policy, expected, rtol=1e-6, atol=1e-7)
    assert not to_reference.any()


def test_k1_and_k3_are_unbiased_and_their_loss_gradients_are_as_documented():
    """Exact expectations over a distribution of four outcomes instead of samples."""
    logits = jnp.array([0.3, -1.0, 0.8, 0.1])
    reference = jax.nn.log_softmax(jnp.array([0.0, 0.5, 0.2, -0.7]))

    def expected(logits, kind):  # sampling weights are constant: that is what a loss sees
        weights = jax.lax.stop_gradient(jax.nn.softmax(logits))
        estimates = kl.estimate(jax.nn.log_softmax(logits)[None], reference[None], kind)[0]
        return (weights * estimates).sum()

    def reverse(logits):  # KL(policy || reference)
        logp = jax.nn.log_softmax(logits)
        return (jnp.exp(logp) * (logp - reference)).sum()

    def forward(logits):  # KL(reference || policy)
        return (jnp.exp(reference) * (reference - jax.nn.log_softmax(logits))).sum()

    assert expected(logits, "k1") == pytest.approx(float(reverse(logits)), rel=1e-5)
    assert expected(logits, "k3") == pytest.approx(float(reverse(logits)), rel=1e-5)
    gradient = {kind: jax.grad(expected)(logits, kind) for kind in ("k1", "k2", "k3")}
    np.testing.assert_allclose(gradient["k1"], np.zeros(4), atol=1e-7)
    np.testing.assert_allclose(gradient["k2"], jax.grad(reverse)(logits), atol=1e-6)
    np.testing.assert_allclose(gradient["k3"], jax.grad(forward)(logits), atol=1e-6)


def test_k3_keeps_small_differences_and_stays_finite_at_huge_ones():
    small = kl.estimate(np.full((1, 1), -1e-3, np.float32), np.zeros((1, 1)), "k3")
    assert float(small[0, 0]) == pytest.approx(0.5e-6, rel=1e-2)  # exp(d) - 1 - d: 20 % off here
    value, gradient = jax.value_and_grad(lambda x: kl.estimate(x, jnp.zeros((1, 2)), "k3").sum())(
        jnp.array([[-200.0, 200.0]])
    )
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_refuses_unknown_kinds_and_other_shapes():
    with pytest.raises(ValueError, match="'k4'"):
        kl.estimate(LOGPROBS, REFERENCE, "k4")
    with pytest.raises(ValueError, match="ref_logprobs"):
        kl.estimate(LOGPROBS, REFERENCE[0], "k1")
