# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Step III, trajectory generation: old and reference log-probabilities, and advantages.

Two compiled functions of arrays: the log-prob passes, which run on the device while the host scores
the texts, and the advantages, which need the scores. This module knows nothing about text or
rewards.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rlvlm_jax.algorithms import advantages, kl, masked
from rlvlm_jax.config import logprob_passes, old_logprobs
from rlvlm_jax.logprobs import make_logprobs_fn, make_packed_logprobs_fn
from rlvlm_jax.packing import Plan
from rlvlm_jax.sampling.logits import Policy
from rlvlm_jax.types import Array, Params, Passes, Prompts, Rollout, Trajectory


def _in_passes(function: Callable[..., Any], passes: int, prompts: int, arrays: Any) -> Any:
    """Applies `function` to parts of a batch in sequence and joins the results.

    A part takes every `passes`-th prompt with its samples. Each device has a contiguous run of
    prompts, so it has a share of every part.

    Args:
        function: of one argument, the pytree `arrays` with shorter leading axes.
        passes: number of parts.
        prompts: N.
        arrays: leading axes N or B.

    Returns:
        What `function` returns, with the leading axes of the whole batch.
    """
    if passes == 1:
        return function(arrays)

    def cut(x: Array) -> Array:
        x = x.reshape(prompts // passes, passes, x.shape[0] // prompts, *x.shape[1:])
        return x.swapaxes(0, 1).reshape(passes, -1, *x.shape[3:])

    def join(x: Array) -> Array:
        x = x.reshape(passes, prompts // passes, -1, *x.shape[2:])
        return x.swapaxes(0, 1).reshape(-1, *x.shape[3:])

    return jax.tree.map(join, jax.lax.map(function, jax.tree.map(cut, arrays)))


def compute_advantages(
    config: ConfigDict, scores: Array, mask: Array, token_kl: Array | None
) -> Array:
    """Returns the advantage of every token by the configured estimator.

    Args:
        config: the whole configuration; `algorithm` and `rollout` are read.
        scores: float32[B], reward units.
        mask: bool[B, R].
        token_kl: float32[B, R], nats, for a KL penalty in the return, or None.

    Returns:
        float32[B, R], 0 outside the mask.
    """
    algorithm, group_size = config.algorithm, config.rollout.samples
    if algorithm.advantage == "reinforce_pp":
        result = _reinforce_pp(algorithm, scores, mask, token_kl)
    else:
        returns = scores
        if token_kl is not None:
            returns = scores - algorithm.kl_reward_coef * masked.sum(token_kl, mask, axis=1)
        if algorithm.advantage == "rloo":
            result = advantages.rloo(returns, group_size)
        else:  # the group's mean as baseline; GRPO divides by its deviation
            scale = algorithm.scale if algorithm.advantage == "grpo" else "none"
            result = advantages.grpo(returns, group_size, scale=scale, eps=algorithm.eps)
        result = masked.fill(result[:, None], mask)
        if algorithm.normalise:
            result = masked.whiten(result, mask)
    if algorithm.adora:
        weights = advantages.adora_weights(
            scores,
            masked.count(mask, axis=1),
            group_size,
            lam=algorithm.adora_lambda,
            max_length=config.rollout.max_tokens - 2,
        )
        result = weights[:, None] * result
    return masked.fill(result, mask)


def _reinforce_pp(
    algorithm: ConfigDict, scores: Array, mask: Array, token_kl: Array | None
) -> Array:
    """REINFORCE++ with separate statistics for each of `whiten_parts` equal runs of rows."""

    def one_part(part: Any) -> Array:
        part_scores, part_mask, part_kl = part
        return advantages.reinforce_pp(
            part_scores,
            part_mask,
            gamma=algorithm.gamma,
            kl=part_kl,
            kl_coef=algorithm.kl_reward_coef,
            whiten=algorithm.whiten,
        )

    if algorithm.whiten_parts == 1:
        return one_part((scores, mask, token_kl))
    shape = (algorithm.whiten_parts, -1)
    parts = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), (scores, mask, token_kl))
    return jax.vmap(one_part)(parts).reshape(mask.shape)


def make_passes_fn(model: Any, config: ConfigDict, policy: Policy) -> Callable[..., Passes]:
    """Builds the first half of step III, the log-prob passes, to be jitted once.

    It needs no scores.

    Args:
        model: functions of parameters (see models.Model).
        config: the whole configuration.
        policy: the distribution the sampler recorded.

    Returns:
        passes(params, ref_params, batch, features, rollout, plan=None) -> Passes. `ref_params` is
        None if no reference is needed. With a plan of all responses the passes are packed.
    """
    settings = (model, policy, config.update.logprob_chunk)
    flat = config.algorithm.flat_positions
    logprobs = make_logprobs_fn(*settings, flat_positions=flat)
    packed_logprobs = make_packed_logprobs_fn(*settings, flat_positions=flat)
    parts = logprob_passes(config)

    def passes(
        params: Params,
        ref_params: Params | None,
        batch: Prompts,
        features: Array | None,
        rollout: Rollout,
        plan: Plan | None = None,
    ) -> Passes:
        def packed(weights: Params) -> tuple[Array, Array]:
            encoded = features  # one pass over the images, not one per micro-batch
            if encoded is None:
                encoded = model.encode_images(weights, batch)

            def add(k: Array, total: tuple[Array, Array]) -> tuple[Array, Array]:
                arrays = (batch, encoded, rollout.tokens, rollout.mask)
                stats = packed_logprobs(weights, *arrays, plan.source[k], plan.previous[k])[:2]
                return jax.tree.map(jnp.add, total, stats)

            nothing = jnp.zeros(rollout.mask.shape, jnp.float32)
            return jax.lax.fori_loop(0, plan.count, add, (nothing, nothing))

        def all_logprobs(weights: Params) -> tuple[Array, Array]:
            if plan is not None:
                return packed(weights)
            arrays = (batch, features, rollout.tokens, rollout.mask)
            prompts = batch.tokens.shape[0]
            return _in_passes(lambda part: logprobs(weights, *part), parts, prompts, arrays)

        ref = None if ref_params is None else all_logprobs(ref_params)[0]
        if old_logprobs(config) != "trainer":
            return Passes(None, ref, None, None)
        old, entropy = all_logprobs(params)
        logprob_diff = jnp.where(rollout.mask, jnp.abs(rollout.logprobs - old), 0.0)
        return Passes(old, ref, entropy, logprob_diff)

    return passes


def make_trajectory_fn(config: ConfigDict) -> Callable[..., Any]:
    """Builds the second half of step III, to be jitted once.

    Args:
        config: the whole configuration.

    Returns:
        trajectory(batch, features, rollout, passes, scores float32[B], in_update bool[B]) ->
        (Trajectory, stats). Rows not in the update have no effect. Truncated rows that are masked
        out still count in the baselines of other rows.
    """
    algorithm = config.algorithm

    def trajectory(
        batch: Prompts,
        features: Array | None,
        rollout: Rollout,
        passes: Passes,
        scores: Array,
        in_update: Array,
    ) -> tuple[Trajectory, dict[str, Array]]:
        token_kl, old = None, passes.old
        if old_logprobs(config) == "sampler":
            old = rollout.logprobs
        if algorithm.kl_reward_coef:
            token_kl = kl.estimate(old, passes.ref, kind=algorithm.kl_reward_kind)
        update_mask = rollout.mask & in_update[:, None]
        mask = update_mask
        if algorithm.mask_truncated:
            mask = mask & ~rollout.truncated[:, None]
        result = Trajectory(
            batch=batch,
            features=features,
            tokens=rollout.tokens,
            mask=mask,
            rollout_logprobs=rollout.logprobs,
            old_logprobs=old,
            ref_logprobs=passes.ref,
            advantages=compute_advantages(config, scores, update_mask, token_kl),
        )
        if passes.old is None:
            return result, {}
        stats = {
            "rollout/logprob_gap_mean": masked.mean(passes.logprob_diff, rollout.mask),
            "rollout/logprob_gap_max": jnp.max(passes.logprob_diff),
            "update/entropy": masked.mean(passes.entropy, rollout.mask),
        }
        return result, stats

    return trajectory
