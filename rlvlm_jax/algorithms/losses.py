# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The policy loss: clipped ratios of tokens or sequences, averaged over a batch (step IV).

A loss is numerator / denominator, and there is a function for each. An update that splits its
minibatch computes `denominator` of the whole minibatch first. It then divides `policy_loss_sum`
(and `weighted_sum` of further terms) of each part by that number: gradients add up, and the result
does not depend on the split or the device count. `policy_loss` combines the two.

This module knows no model, optimizer or other loss term.
"""

import jax
import jax.numpy as jnp

from rlvlm_jax.algorithms import kl, masked

AGGREGATES = ("token", "sequence", "constant", "microbatch")
KINDS = ("ppo", "gspo", "cispo")


def policy_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    kind: str = "ppo",
    clip_low: float | None = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    aggregate: str = "token",
    length_norm: float | None = None,
    rollout_logprobs: jax.Array | None = None,
    is_cap: float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the policy loss of one batch.

    policy_loss_sum(...) / denominator(...); see both for formulas and arguments.

    Args:
        logprobs: float32[B, R], nats.
        old_logprobs: float32[B, R], nats.
        advantages: float32[B] or float32[B, R].
        mask: bool[B, R].
        kind: "ppo", "gspo" or "cispo".
        clip_low: Width of the trust region below ratio 1; None for no floor.
        clip_high: Width above ratio 1.
        dual_clip: c > 1, or None.
        aggregate: "token", "sequence", "constant" or "microbatch".
        length_norm: Tokens, for "constant" only.
        rollout_logprobs: float32[B, R], nats, or None.
        is_cap: Greatest weight of the sampler-trainer correction, or None.

    Returns:
        (loss, statistics). The loss, float32[], is to be minimised; it is 0 with zero gradient if
        the mask is empty. The statistics are those of `policy_loss_sum` as means over valid tokens,
        plus "policy_loss".

    Raises:
        ValueError: Wrong shapes, unknown names, or options that do not go together.
    """
    total = denominator(mask, aggregate, length_norm)
    numerator, sums = policy_loss_sum(
        logprobs,
        old_logprobs,
        advantages,
        mask,
        kind=kind,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        aggregate=aggregate,
        rollout_logprobs=rollout_logprobs,
        is_cap=is_cap,
    )
    tokens = denominator(mask, "token")
    stats = {name: value / tokens for name, value in sums.items()}
    stats["policy_loss"] = jax.lax.stop_gradient(numerator / total)
    return numerator / total, stats


def policy_loss_sum(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    kind: str = "ppo",
    clip_low: float | None = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    aggregate: str = "token",
    rollout_logprobs: jax.Array | None = None,
    is_cap: float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Adds up the policy loss of these rows, not yet divided.

    ppo    ratio_t = exp(logp_t - old_t)
           l_t = max(-A ratio, -A clip(ratio, 1 - clip_low, 1 + clip_high))
    gspo   the same with ratio = exp(mean over the response of (logp - old)) for all its tokens; the
           gradient reaches every token through that mean
    cispo  l_t = -stop_gradient(clip(ratio_t, 1 - clip_low, 1 + clip_high)) * A * logp_t

    With dual_clip = c, if A < 0: l_t = min(l_t, -c A). With is_cap: after all clipping, l_t is
    multiplied by stop_gradient(min(exp(old_t - rollout_t), is_cap)). `weighted_sum` then adds up
    the l_t.

    Args:
        logprobs: float32[B, R], nats, of the policy being trained; the only differentiated input.
        old_logprobs: float32[B, R], nats, the trainer's before the update.
        advantages: float32[B], one per response, or float32[B, R], one per token.
        mask: bool[B, R], valid response tokens.
        kind: "ppo", "gspo" or "cispo".
        clip_low: Width of the trust region below ratio 1; None for no floor.
        clip_high: Width above ratio 1. DAPO's clip-higher is 0.28; GSPO needs about 3e-4 and 4e-4,
            since its ratios are geometric means.
        dual_clip: c > 1, bounds the loss of a bad token whose probability has grown; not for cispo,
            whose weight is already bounded. MM-EUREKA's cap of the ratio is c = 3.
        aggregate: As in `denominator`.
        rollout_logprobs: float32[B, R], nats, recorded by the sampler; required with is_cap.
        is_cap: Greatest importance weight of the trainer's old policy against the sampler's.

    Returns:
        (numerator, sums). The numerator is float32[]. The sums over valid tokens, float32[] each
        and without gradient, are to be divided by `denominator(mask, "token")`: "ratio_mean";
        "clip_fraction" (tokens whose gradient a clip stops or, for cispo, whose weight it changes);
        "approx_kl" (k3 estimate of KL(old || new), nats); with is_cap also "is_weight".

    Raises:
        ValueError: Wrong shapes, unknown names, or options that do not go together.

    Source: PPO arXiv:1707.06347; dual clip arXiv:1912.09729; GSPO arXiv:2507.18071; CISPO
        arXiv:2506.13585, where clip_low=None is the paper's choice; truncated weights: Yao et al.
        2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training".
        TRL's cispo caps the ratio at its epsilon_high itself, ours at 1 + clip_high.
    """
    mask = jnp.asarray(mask, bool)
    masked.check_shape("mask", mask, (None, None))
    logprobs = _per_token("logprobs", logprobs, mask)
    old_logprobs = jax.lax.stop_gradient(_per_token("old_logprobs", old_logprobs, mask))
    if jnp.ndim(advantages) == 1:
        masked.check_shape("advantages", jnp.asarray(advantages), mask.shape[:1])
        advantages = jnp.broadcast_to(jnp.asarray(advantages)[:, None], mask.shape)
    advantages = jax.lax.stop_gradient(_per_token("advantages", advantages, mask))
    _check_options(kind, dual_clip, aggregate, rollout_logprobs, is_cap)

    log_ratio = logprobs - old_logprobs
    if kind == "gspo":
        log_ratio = masked.fill(masked.mean(log_ratio, mask, axis=1, keepdims=True), mask)
    ratio = jnp.exp(jnp.minimum(log_ratio, kl.MAX_LOG_RATIO))
    clipped = jnp.clip(ratio, None if clip_low is None else 1.0 - clip_low, 1.0 + clip_high)

    if kind == "cispo":
        loss = -jax.lax.stop_gradient(clipped) * advantages * logprobs
        is_clipped = clipped != ratio
    else:
        loss = jnp.maximum(-advantages * ratio, -advantages * clipped)
        is_clipped = -advantages * clipped > -advantages * ratio
    if dual_clip is not None:
        bound = -dual_clip * advantages
        is_clipped |= (advantages < 0) & (loss > bound)
        loss = jnp.where(advantages < 0, jnp.minimum(loss, bound), loss)

    stats = {
        "ratio_mean": ratio,
        "clip_fraction": is_clipped,
        "approx_kl": kl.estimate(old_logprobs, logprobs, "k3"),
    }
    if is_cap is not None:
        rollout_logprobs = _per_token("rollout_logprobs", rollout_logprobs, mask)
        logprob_diff = jnp.minimum(old_logprobs - rollout_logprobs, kl.MAX_LOG_RATIO)
        weight = jax.lax.stop_gradient(jnp.minimum(jnp.exp(logprob_diff), is_cap))
        loss *= weight
        stats["is_weight"] = weight
    sums = {name: jax.lax.stop_gradient(masked.sum(x, mask)) for name, x in stats.items()}
    return weighted_sum(loss, mask, aggregate), sums


def weighted_sum(values: jax.Array, mask: jax.Array, aggregate: str = "token") -> jax.Array:
    """Adds up a value per token with the weights of an aggregation.

    "token", "microbatch" and "constant": sum over valid tokens. "sequence": sum over responses of
    the mean over their valid tokens. Divided by `denominator`, it is the aggregated value. Further
    loss terms (divergence, entropy) use it too.

    Args:
        values: float32[B, R], any unit.
        mask: bool[B, R].
        aggregate: As in `denominator`.

    Returns:
        float32[], the values' unit (times tokens or responses).

    Raises:
        ValueError: An unknown aggregate.
    """
    _check_aggregate(aggregate)
    if aggregate == "sequence":
        return jnp.sum(masked.mean(values, mask, axis=1))
    return masked.sum(values, mask)


def denominator(
    mask: jax.Array, aggregate: str = "token", length_norm: float | None = None
) -> jax.Array:
    """Returns the divisor of `weighted_sum`, counted over all rows of one update.

    "token"     number of valid tokens (DAPO)
    "microbatch"  the same per micro-batch, whose means are then averaged (MAYE's code)
    "sequence"  number of responses with at least one valid token (GRPO; MAYE's eq. 1)
    "constant"  B * length_norm, with all rows counted (Dr.GRPO)

    Args:
        mask: bool[B, R], of the whole minibatch, not of a part.
        aggregate: One of these.
        length_norm: Tokens, > 0, often the response limit; only for "constant", which requires it.

    Returns:
        float32[], at least 1 except for "constant", so that an empty mask gives 0.

    Raises:
        ValueError: An unknown aggregate, or "constant" without length_norm.

    Source: DAPO arXiv:2503.14476; GRPO arXiv:2402.03300; Dr.GRPO arXiv:2503.20783.
    """
    _check_aggregate(aggregate)
    mask = jnp.asarray(mask, bool)
    masked.check_shape("mask", mask, (None, None))
    if aggregate == "constant":
        if length_norm is None or length_norm <= 0:
            raise ValueError(f"aggregate='constant' needs length_norm > 0, got {length_norm}")
        return jnp.float32(mask.shape[0] * length_norm)
    counted = mask.any(axis=1) if aggregate == "sequence" else mask
    return jnp.maximum(masked.count(counted), 1.0)


def _per_token(name: str, values: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns float32[B, R], set to 0 outside the mask before anything is computed from it."""
    masked.check_shape(name, jnp.asarray(values), mask.shape)
    return masked.fill(values, mask)


def _check_aggregate(aggregate: str) -> None:
    if aggregate not in AGGREGATES:
        raise ValueError(f"aggregate={aggregate!r} is unknown; use one of {', '.join(AGGREGATES)}")


def _check_options(kind, dual_clip, aggregate, rollout_logprobs, is_cap) -> None:
    _check_aggregate(aggregate)
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; use one of {', '.join(KINDS)}")
    if dual_clip is not None and kind == "cispo":
        raise ValueError("dual_clip does not apply to kind='cispo', whose weight is bounded")
    if dual_clip is not None and dual_clip <= 1.0:
        raise ValueError(f"dual_clip={dual_clip} must be above 1")
    if (rollout_logprobs is None) != (is_cap is None):
        raise ValueError("rollout_logprobs and is_cap go together: give both, or neither")
