# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Advantages from scores: REINFORCE++, GRPO, RLOO, and ADORA's weights (end of step III).

Scores are one number per response; this module does not know how they are made. Statistics are over
all rows that count, so under `jit` on sharded arrays they are global for any number of devices. The
group estimators return one number per response, which applies to all its tokens. An estimator is a
function and its row in `ADVANTAGES`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlvlm_jax.algorithms import masked


def reinforce_pp(
    scores: jax.Array,
    mask: jax.Array,
    *,
    gamma: float = 1.0,
    kl: jax.Array | None = None,
    kl_coef: float = 0.0,
    whiten: str = "center",
) -> jax.Array:
    """Computes discounted returns of token rewards and whitens them over the batch.

    r_t = score * [t is the response's last token] - kl_coef * kl_t
    G_t = r_t + gamma * G_{t+1}
    A_t = (G_t - mean) / sqrt(var + 1e-8)           "center"
    A_t = (G_t - mean) / sqrt(var + 1e-8) + mean    "scale"

    mean and unbiased var are over all valid tokens of the batch, so a response's weight is its
    number of tokens. Time counts valid tokens: a hole in the mask adds no reward and no discount.

    Args:
        scores: float32[B], reward units.
        mask: bool[B, R], valid response tokens.
        gamma: Discount per token, in [0, 1].
        kl: float32[B, R], nats, estimates of the divergence from the reference (k1 is the unbiased
            one as a penalty), or None.
        kl_coef: Reward units per nat.
        whiten: "center" for zero mean and unit variance; "scale" for MAYE's released code, which
            adds the mean back (all advantages are positive if all scores are); "none" for plain
            returns.

    Returns:
        float32[B, R], 0 outside the mask. "center" gives exactly 0 if all returns are equal.
        Differences of returns far below 1e-4 stay small instead of being scaled to unit variance.
        A row without valid tokens has no effect.

    Raises:
        ValueError: Wrong ranks or shapes, an unknown whiten, kl_coef without kl.

    Source: Hu 2025 (arXiv:2501.03262); MAYE (arXiv:2504.02587), eq. 1.
        # Deviates from MAYE: statistics are over the whole batch, not over one device's rows.
    """
    scores, mask = jnp.asarray(scores, jnp.float32), jnp.asarray(mask, bool)
    masked.check_shape("scores", scores, (None,))
    masked.check_shape("mask", mask, (scores.shape[0], None))
    if whiten not in ("center", "scale", "none"):
        raise ValueError(f"whiten={whiten!r} is unknown; use 'center', 'scale' or 'none'")
    if kl is None and kl_coef:
        raise ValueError(f"kl_coef={kl_coef} needs kl, the estimates it multiplies")

    rewards = masked.fill(scores[:, None], masked.is_last(mask))
    if kl is not None:
        masked.check_shape("kl", jnp.asarray(kl), mask.shape)
        rewards -= kl_coef * masked.fill(kl, mask)
    returns = _discounted_returns(rewards, mask, gamma)
    if whiten == "none":
        return masked.fill(returns, mask)
    return masked.whiten(returns, mask, keep_mean=whiten == "scale", eps=1e-8)


def grpo(
    scores: jax.Array,
    group_size: int,
    *,
    scale: str = "group",
    ddof: int = 1,
    eps: float = 1e-6,
    in_update: jax.Array | None = None,
) -> jax.Array:
    """Normalises each score inside its group.

    A_i = (r_i - mean_g) / (std + eps), the mean over the G samples of one prompt and the standard
    deviation over the same samples or over the batch.

    Args:
        scores: float32[B], B = prompts * group_size, samples of one prompt adjacent; reward units.
        group_size: G >= 2.
        scale: "group" divides by the group's deviation, "batch" by that of all scores in the
            update, "none" by nothing (Dr.GRPO).
        ddof: 1 for the sample deviation, 0 for the population's.
        eps: Added to the deviation, reward units.
        in_update: bool[B], rows that count in the batch's deviation; None for all. A filter removes
            whole groups, so that no other statistic depends on it.

    Returns:
        float32[B], dimensionless ("none": reward units); exactly 0 for a group of equal scores.

    Raises:
        ValueError: group_size < 2, or it does not divide B; an unknown scale.

    Source: Shao et al. 2024 (arXiv:2402.03300), outcome supervision; without the deviation: Liu et
        al. 2025 (arXiv:2503.20783). TRL and VLM-R1 use eps 1e-4, MM-EUREKA 1e-9, EasyDeL ddof 0.
    """
    groups = grouped("scores", scores, group_size)  # float32[N, G]
    everything = jnp.ones_like(groups, bool)
    advantages = masked.centre(groups, everything, axis=1)
    if scale == "group":
        deviation = jnp.sqrt(masked.var(groups, everything, 1, keepdims=True, ddof=ddof))
        advantages /= deviation + eps
    elif scale == "batch":
        counted = everything if in_update is None else jnp.reshape(in_update, groups.shape)
        advantages /= jnp.sqrt(masked.var(groups, counted, ddof=ddof)) + eps
    elif scale != "none":
        raise ValueError(f"scale={scale!r} is unknown; use 'group', 'batch' or 'none'")
    return advantages.reshape(-1)


def rloo(scores: jax.Array, group_size: int) -> jax.Array:
    """Subtracts from each score the mean of the other samples of its prompt.

    A_i = r_i - sum_{j != i} r_j / (G - 1) = G / (G - 1) * (r_i - mean_g)

    Args:
        scores: float32[B], B = prompts * group_size, samples of one prompt adjacent; reward units.
        group_size: G >= 2.

    Returns:
        float32[B], reward units; exactly 0 for a group of equal scores.

    Raises:
        ValueError: group_size < 2, or it does not divide B.

    Source: Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!"; Ahmadian et al.
        2024 (arXiv:2402.14740).
    """
    groups = grouped("scores", scores, group_size)
    centred = masked.centre(groups, jnp.ones_like(groups, bool), axis=1)
    return (group_size / (group_size - 1) * centred).reshape(-1)


def reinforce_baseline(scores: jax.Array, group_size: int) -> jax.Array:
    """Subtracts from each score the mean of its group: `grpo` without a deviation.

    Source: Williams 1992, "Simple Statistical Gradient-Following Algorithms for Connectionist
        Reinforcement Learning", with the group's mean as baseline.
    """
    return grpo(scores, group_size, scale="none")


def adora_weights(
    scores: jax.Array,
    lengths: jax.Array,
    group_size: int,
    *,
    lam: float = 0.1,
    max_length: int,
) -> jax.Array:
    """Downweights groups whose right responses are not longer than their wrong ones.

    w_g = 1 if no response is right, or max(length of right) > mean(length of wrong), else lam

    Right is score > 0.5. The mean excludes wrong responses of max_length tokens or more (cut off);
    if none is left, the mean is infinite and the group gets lam.

    Args:
        scores: float32[B], reward units, samples of one prompt adjacent.
        lengths: int32[B], tokens.
        group_size: G >= 1.
        lam: The lower weight, dimensionless.
        max_length: Tokens; a response of at least this length counts as cut off.

    Returns:
        float32[B], dimensionless, the same within a group; multiplies its advantages.

    Raises:
        ValueError: group_size < 1, or it does not divide B, or shapes differ.

    Source: ADORA as in MM-EUREKA's code, which fixes max_length at its token limit less 2.
    """
    groups = grouped("scores", scores, group_size, least=1)
    lengths = grouped("lengths", lengths, group_size, least=1)
    masked.check_shape("lengths", lengths, groups.shape)
    right = groups > 0.5
    wrong = ~right & (lengths < max_length)
    longest_right = jnp.max(masked.fill(lengths, right), axis=1)
    mean_wrong = jnp.where(wrong.any(axis=1), masked.mean(lengths, wrong, axis=1), jnp.inf)
    full = ~right.any(axis=1) | (longest_right > mean_wrong)
    return jnp.repeat(jnp.where(full, 1.0, jnp.float32(lam)), group_size)


def grouped(name: str, values: jax.Array, group_size: int, least: int = 2) -> jax.Array:
    """Reshapes values per sequence to one row per prompt.

    Args:
        name: Name of the values for errors.
        values: Number[B], samples of one prompt adjacent.
        group_size: G.
        least: Smallest valid group; 2 if samples are compared with each other.

    Returns:
        float32[B / G, G].

    Raises:
        ValueError: group_size < least, or it does not divide B, or values is not of rank 1.
    """
    values = jnp.asarray(values, jnp.float32)
    masked.check_shape(name, values, (None,))
    if group_size < least:
        raise ValueError(f"group_size={group_size} must be at least {least}")
    if values.shape[0] % group_size:
        raise ValueError(f"group_size={group_size} does not divide the {values.shape[0]} {name}")
    return values.reshape(-1, group_size)


def _discounted_returns(rewards: jax.Array, mask: jax.Array, gamma: float) -> jax.Array:
    """G_t = r_t + gamma * G_{t+1} along axis 1, skipping invalid columns; float32[B, R]."""

    def earlier(following, column):
        reward, valid = column
        current = jnp.where(valid, reward + gamma * following, following)
        return current, current

    last = jnp.zeros_like(rewards[:, 0])
    _, returns = jax.lax.scan(earlier, last, (rewards.T, mask.T), reverse=True)
    return returns.T


# ---- the estimators of the configuration --------------------------------------------------------


class Scored(NamedTuple):
    """A batch of scored responses, samples of one prompt adjacent."""

    scores: jax.Array  # float32[B], reward units
    mask: jax.Array  # bool[B, R], the policy's tokens; empty rows take part in no statistic
    kl: jax.Array | None  # float32[B, R], nats, for a penalty in the return
    group_size: int  # G

    def returns(self, settings: Any) -> jax.Array:
        """Returns float32[B], the scores less the KL penalty of the whole response."""
        if self.kl is None:
            return self.scores
        return self.scores - settings.kl_reward_coef * masked.sum(self.kl, self.mask, axis=1)


class Estimator(NamedTuple):
    """A row of `ADVANTAGES`."""

    # (batch, the configuration's group `algorithm`) -> float32[B], or float32[B, R] per token
    estimate: Callable[[Scored, Any], jax.Array]
    grouped: bool = True  # compares the samples of a prompt, so needs at least two


def _reinforce_pp(batch: Scored, settings: Any) -> jax.Array:
    """REINFORCE++ with separate statistics for each of `whiten_parts` equal runs of rows."""

    def one_part(part: tuple[jax.Array, jax.Array, jax.Array | None]) -> jax.Array:
        part_scores, part_mask, part_kl = part
        return reinforce_pp(
            part_scores,
            part_mask,
            gamma=settings.gamma,
            kl=part_kl,
            kl_coef=settings.kl_reward_coef,
            whiten="center" if settings.whiten == "auto" else settings.whiten,
        )

    arrays, parts = (batch.scores, batch.mask, batch.kl), settings.whiten_parts
    if parts == 1:
        return one_part(arrays)
    arrays = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), arrays)
    return jax.vmap(one_part)(arrays).reshape(batch.mask.shape)


def _grpo(batch: Scored, settings: Any) -> jax.Array:
    return grpo(
        batch.returns(settings),
        batch.group_size,
        scale=settings.scale,
        eps=settings.eps,
        in_update=batch.mask.any(axis=1),
    )


def _rloo(batch: Scored, settings: Any) -> jax.Array:
    return rloo(batch.returns(settings), batch.group_size)


def _reinforce_baseline(batch: Scored, settings: Any) -> jax.Array:
    return reinforce_baseline(batch.returns(settings), batch.group_size)


ADVANTAGES = {
    "reinforce_pp": Estimator(_reinforce_pp, grouped=False),
    "grpo": Estimator(_grpo),
    "rloo": Estimator(_rloo),
    "reinforce_baseline": Estimator(_reinforce_baseline),
}
