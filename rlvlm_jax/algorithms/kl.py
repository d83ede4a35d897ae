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

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlvlm_jax.algorithms.masked import check_shape

MAX_LOG_RATIO = 20.0  # exp(20) = 5e8: larger ratios make no sense, and float32 stays finite


def k1(log_ratio: jax.Array) -> jax.Array:
    """-d for d = logp_ref - logp, in nats: unbiased, and can be negative."""
    return -log_ratio


def k2(log_ratio: jax.Array) -> jax.Array:
    """d**2 / 2 for d = logp_ref - logp, in nats: biased, never negative."""
    return 0.5 * jnp.square(log_ratio)


def k3(log_ratio: jax.Array) -> jax.Array:
    """exp(d) - d - 1 for d = logp_ref - logp, in nats, at most MAX_LOG_RATIO: never negative.

    Source: as a loss, Shao et al. 2024 (arXiv:2402.03300), eq. 4.
    """
    log_ratio = jnp.minimum(log_ratio, MAX_LOG_RATIO)
    # Below about 1e-3, exp(d) - d - 1 cancels to noise, even negative; expm1 avoids that.
    return jnp.expm1(log_ratio) - log_ratio


KL: dict[str, Callable[[jax.Array], jax.Array]] = {"k1": k1, "k2": k2, "k3": k3}


def estimate(logprobs: jax.Array, ref_logprobs: jax.Array, kind: str) -> jax.Array:
    """Estimates KL(policy || reference) at each sampled token.

    The gradient flows through `logprobs`; the reference is constant.

    Args:
        logprobs: float32[B, R], nats, of the policy.
        ref_logprobs: float32[B, R], nats, of the reference model at the same tokens.
        kind: A row of `KL`.

    Returns:
        float32[B, R], nats.

    Raises:
        ValueError: An unknown kind, or shapes that differ.

    Source: J. Schulman 2020, "Approximating KL Divergence".
    """
    if kind not in KL:
        raise ValueError(f"kind={kind!r} is not a KL estimator; use one of {', '.join(KL)}")
    logprobs = jnp.asarray(logprobs, jnp.float32)
    ref_logprobs = jax.lax.stop_gradient(jnp.asarray(ref_logprobs, jnp.float32))
    check_shape("logprobs", logprobs, (None, None))
    check_shape("ref_logprobs", ref_logprobs, logprobs.shape)
    return KL[kind](ref_logprobs - logprobs)
