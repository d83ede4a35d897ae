# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The policy loss: clipped ratios of tokens or sequences, averaged over a batch (step IV).

A loss is numerator / denominator, and there is a function for each. An update that splits its
minibatch computes `denominator` of the whole minibatch first. It then divides `policy_loss_sum`
(and `weighted_sum` of further terms) of each part by that number: gradients add up, and the result
does not depend on the split or the device count. `policy_loss` combines the two.

A loss is a function and its row in `LOSSES`; a way to average is a row in `AGGREGATES`. This module
knows no model, optimizer or other loss term.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlvlm_jax.algorithms import kl, masked

# ---- the losses of a token ----------------------------------------------------------------------


class Clip(NamedTuple):
    """The trust region of the ratio."""

    low: float | None  # its width below ratio 1; None for no floor
    high: float  # its width above ratio 1
    dual: float | None  # c > 1 bounds the loss at -c A if A < 0; None for no bound


class TokenLoss(NamedTuple):
    """What a loss computes: float32[B, R], float32[B, R] and bool[B, R]."""

    loss: jax.Array  # to be minimised; the only part with a gradient that counts
    ratio: jax.Array  # of the new policy to the old one, before any clip
    is_clipped: jax.Array  # whether a clip stops the token's gradient or changes its weight


def ppo(
    logprobs: jax.Array, old_logprobs: jax.Array, advantages: jax.Array, mask: jax.Array, clip: Clip
) -> TokenLoss:
    """ratio_t = exp(logp_t - old_t); l_t = max(-A ratio, -A clip(ratio, 1 - low, 1 + high)).

    With clip.dual = c, if A < 0: l_t = min(l_t, -c A). It bounds the loss of a bad token whose
    probability has grown; MM-EUREKA's cap of the ratio is c = 3. DAPO's clip-higher is high = 0.28.

    Source: arXiv:1707.06347; dual clip arXiv:1912.09729.
    """
    del mask
    return _clipped_surrogate(logprobs - old_logprobs, advantages, clip)


def gspo(
    logprobs: jax.Array, old_logprobs: jax.Array, advantages: jax.Array, mask: jax.Array, clip: Clip
) -> TokenLoss:
    """The loss of `ppo` with ratio = exp(mean over the response of logp - old) for all its tokens.

    The gradient reaches every token through that mean. The ratio is a geometric mean, so low and
    high are about 3e-4 and 4e-4.

    Source: arXiv:2507.18071.
    """
    log_ratio = masked.mean(logprobs - old_logprobs, mask, axis=1, keepdims=True)
    return _clipped_surrogate(masked.fill(log_ratio, mask), advantages, clip)


def cispo(
    logprobs: jax.Array, old_logprobs: jax.Array, advantages: jax.Array, mask: jax.Array, clip: Clip
) -> TokenLoss:
    """l_t = -stop_gradient(clip(ratio_t, 1 - low, 1 + high)) * A * logp_t, ratio_t as in `ppo`.

    Source: arXiv:2506.13585, where low = None is the paper's choice. TRL's cispo caps the ratio at
        its epsilon_high itself, ours at 1 + high.
    """
    del mask
    if clip.dual is not None:
        raise ValueError("dual_clip does not apply to kind='cispo', whose weight is bounded")
    ratio, clipped = _clip(logprobs - old_logprobs, clip)
    loss = -jax.lax.stop_gradient(clipped) * advantages * logprobs
    return TokenLoss(loss, ratio, clipped != ratio)


def _clip(log_ratio: jax.Array, clip: Clip) -> tuple[jax.Array, jax.Array]:
    """Returns the ratio and the clipped ratio, float32[B, R] each."""
    ratio = jnp.exp(jnp.minimum(log_ratio, kl.MAX_LOG_RATIO))
    return ratio, jnp.clip(ratio, None if clip.low is None else 1.0 - clip.low, 1.0 + clip.high)


def _clipped_surrogate(log_ratio: jax.Array, advantages: jax.Array, clip: Clip) -> TokenLoss:
    ratio, clipped = _clip(log_ratio, clip)
    loss = jnp.maximum(-advantages * ratio, -advantages * clipped)
    is_clipped = -advantages * clipped > -advantages * ratio
    if clip.dual is not None:
        bound = -clip.dual * advantages
        is_clipped |= (advantages < 0) & (loss > bound)
        loss = jnp.where(advantages < 0, jnp.minimum(loss, bound), loss)
    return TokenLoss(loss, ratio, is_clipped)


# (logprobs, old_logprobs, advantages, mask, clip) -> TokenLoss, with every array [B, R] and 0
# outside the mask. Only `logprobs` is differentiated.
LossFn = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, Clip], TokenLoss]
LOSSES: dict[str, LossFn] = {"ppo": ppo, "gspo": gspo, "cispo": cispo}


# ---- the average over a batch -------------------------------------------------------------------


class Aggregate(NamedTuple):
    """How the values of tokens become one number: numerator / denominator."""

    numerator: Callable[[jax.Array, jax.Array], jax.Array]  # (values, mask) [B, R] -> float32[]
    denominator: Callable[[jax.Array, float | None], jax.Array]  # (mask, length_norm) -> float32[]
    per_piece: bool = False  # the denominator is a micro-batch's, and micro-batches are averaged


def _sum_of_means(values: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(masked.mean(values, mask, axis=1))


def _num_tokens(mask: jax.Array, _: float | None) -> jax.Array:
    return jnp.maximum(masked.count(mask), 1.0)


def _num_responses(mask: jax.Array, _: float | None) -> jax.Array:
    return jnp.maximum(masked.count(mask.any(axis=1)), 1.0)


def _constant(mask: jax.Array, length_norm: float | None) -> jax.Array:
    if length_norm is None or length_norm <= 0:
        raise ValueError(f"aggregate='constant' needs length_norm > 0, got {length_norm}")
    return jnp.float32(mask.shape[0] * length_norm)


AGGREGATES = {
    # Sum over valid tokens / their number: DAPO, arXiv:2503.14476.
    "token": Aggregate(masked.sum, _num_tokens),
    # Sum over responses of the mean over their valid tokens / number of responses with at least one
    # valid token: GRPO, arXiv:2402.03300; MAYE, arXiv:2504.02587, eq. 1.
    "sequence": Aggregate(_sum_of_means, _num_responses),
    # Sum over valid tokens / (B * length_norm), with all rows counted: Dr.GRPO, arXiv:2503.20783.
    "constant": Aggregate(masked.sum, _constant),
    # "token" for each micro-batch, whose means are then averaged: MAYE's code.
    "microbatch": Aggregate(masked.sum, _num_tokens, per_piece=True),
}


# ---- the policy loss ----------------------------------------------------------------------------


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
        kind: A row of `LOSSES`.
        clip_low: Width of the trust region below ratio 1; None for no floor.
        clip_high: Width above ratio 1.
        dual_clip: c > 1, or None.
        aggregate: A row of `AGGREGATES`.
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

    `LOSSES[kind]` computes the l_t. With is_cap, l_t is then multiplied by
    stop_gradient(min(exp(old_t - rollout_t), is_cap)). `weighted_sum` adds up the l_t.

    Args:
        logprobs: float32[B, R], nats, of the policy being trained; the only differentiated input.
        old_logprobs: float32[B, R], nats, the trainer's before the update.
        advantages: float32[B], one per response, or float32[B, R], one per token.
        mask: bool[B, R], valid response tokens.
        kind: A row of `LOSSES`.
        clip_low: Width of the trust region below ratio 1; None for no floor.
        clip_high: Width above ratio 1.
        dual_clip: c > 1, or None; not for cispo.
        aggregate: A row of `AGGREGATES`.
        rollout_logprobs: float32[B, R], nats, recorded by the sampler; required with is_cap.
        is_cap: Greatest importance weight of the trainer's old policy against the sampler's.

    Returns:
        (numerator, sums). The numerator is float32[]. The sums over valid tokens, float32[] each
        and without gradient, are to be divided by `denominator(mask, "token")`: "ratio_mean";
        "clip_fraction" (tokens whose gradient a clip stops or, for cispo, whose weight it changes);
        "approx_kl" (k3 estimate of KL(old || new), nats); with is_cap also "is_weight".

    Raises:
        ValueError: Wrong shapes, unknown names, or options that do not go together.

    Source: truncated weights: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You
        Off-Policy RL Training".
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

    loss, ratio, is_clipped = LOSSES[kind](
        logprobs, old_logprobs, advantages, mask, Clip(clip_low, clip_high, dual_clip)
    )
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

    Divided by `denominator`, it is the aggregated value. Further loss terms (divergence, entropy)
    use it too.

    Args:
        values: float32[B, R], any unit.
        mask: bool[B, R].
        aggregate: A row of `AGGREGATES`.

    Returns:
        float32[], the values' unit (times tokens or responses).

    Raises:
        ValueError: An unknown aggregate.
    """
    _check_choice("aggregate", aggregate, AGGREGATES)
    return AGGREGATES[aggregate].numerator(values, mask)


def denominator(
    mask: jax.Array, aggregate: str = "token", length_norm: float | None = None
) -> jax.Array:
    """Returns the divisor of `weighted_sum`, counted over all rows of one update.

    Args:
        mask: bool[B, R], of the whole minibatch, not of a part.
        aggregate: A row of `AGGREGATES`.
        length_norm: Tokens, > 0, often the response limit; only "constant" reads and requires it.

    Returns:
        float32[], at least 1 except for "constant", so that an empty mask gives 0.

    Raises:
        ValueError: An unknown aggregate, or "constant" without length_norm.
    """
    _check_choice("aggregate", aggregate, AGGREGATES)
    mask = jnp.asarray(mask, bool)
    masked.check_shape("mask", mask, (None, None))
    return AGGREGATES[aggregate].denominator(mask, length_norm)


def _per_token(name: str, values: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns float32[B, R], set to 0 outside the mask before anything is computed from it."""
    masked.check_shape(name, jnp.asarray(values), mask.shape)
    return masked.fill(values, mask)


def _check_choice(name: str, choice: str, table: Mapping[str, object]) -> None:
    if choice not in table:
        raise ValueError(f"{name}={choice!r} is unknown; use one of {', '.join(table)}")


def _check_options(kind, dual_clip, aggregate, rollout_logprobs, is_cap) -> None:
    _check_choice("kind", kind, LOSSES)
    _check_choice("aggregate", aggregate, AGGREGATES)
    if dual_clip is not None and dual_clip <= 1.0:
        raise ValueError(f"dual_clip={dual_clip} must be above 1")
    if (rollout_logprobs is None) != (is_cap is None):
        raise ValueError("rollout_logprobs and is_cap go together: give both, or neither")
