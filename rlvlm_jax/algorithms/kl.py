# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Estimators of the divergence from the reference model, from sampled tokens only (step IV).

Used as a loss term (`losses.weighted_sum` reduces it) or as a penalty in the token rewards
(`advantages.reinforce_pp`). Which kind to use:

* k1 in the reward: unbiased. As a *loss* its expected on-policy gradient is zero,
  E[grad(logp - logp_ref)] = E[grad logp] = 0, so it has no effect.
* k2 as a loss: its on-policy gradient is that of KL(policy || reference).
* k3 as a loss: its on-policy gradient is that of KL(reference || policy). Its *value* is an
  unbiased estimate of KL(policy || reference) with less variance than k1. Neither statement holds
  once the policy has moved away from the one that drew the tokens.

Nothing here knows about masks: pass log-probabilities through `masked.fill` first.
"""

import jax
import jax.numpy as jnp

from rlvlm_jax.algorithms.masked import check_shape

MAX_LOG_RATIO = 20.0  # exp(20) = 5e8: larger ratios make no sense, and float32 stays finite


def estimate(logprobs: jax.Array, ref_logprobs: jax.Array, kind: str) -> jax.Array:
    """Estimates KL(policy || reference) at each sampled token.

    With d = logp_ref - logp:  k1 = -d,  k2 = d**2 / 2,  k3 = exp(d) - d - 1.

    The gradient flows through `logprobs`; the reference is constant.

    Args:
        logprobs: float32[B, R], nats, of the policy.
        ref_logprobs: float32[B, R], nats, of the reference model at the same tokens.
        kind: "k1", "k2" or "k3".

    Returns:
        float32[B, R], nats. k1 can be negative, k2 and k3 cannot. k3 caps d at MAX_LOG_RATIO.

    Raises:
        ValueError: An unknown kind, or shapes that differ.

    Source: J. Schulman 2020, "Approximating KL Divergence"; k3 as a loss: Shao et al. 2024
        (arXiv:2402.03300), eq. 4.
    """
    logprobs = jnp.asarray(logprobs, jnp.float32)
    ref_logprobs = jax.lax.stop_gradient(jnp.asarray(ref_logprobs, jnp.float32))
    check_shape("logprobs", logprobs, (None, None))
    check_shape("ref_logprobs", ref_logprobs, logprobs.shape)
    difference = ref_logprobs - logprobs
    if kind == "k1":
        return -difference
    if kind == "k2":
        return 0.5 * jnp.square(difference)
    if kind == "k3":
        difference = jnp.minimum(difference, MAX_LOG_RATIO)
        # Below about 1e-3, exp(d) - d - 1 cancels to noise, even negative; expm1 avoids that.
        return jnp.expm1(difference) - difference
    raise ValueError(f"kind={kind!r} is not a KL estimator; use 'k1', 'k2' or 'k3'")
