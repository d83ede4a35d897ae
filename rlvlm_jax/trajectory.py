# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Step III, trajectory generation: old and reference log-probabilities, and advantages.

Responses have been scored on the host by now; this is one compiled function of arrays. It knows
nothing of text or rewards.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rlvlm_jax.algorithms import advantages, filtering, kl, masked
from rlvlm_jax.config import logprob_passes
from rlvlm_jax.logprobs import make_logprobs_fn
from rlvlm_jax.sampling.logits import Policy
from rlvlm_jax.types import Array, Batch, Params, Rollout, Trajectory


def _in_passes(function: Callable[..., Any], passes: int, prompts: int, arrays: Any) -> Any:
    """Applies `function` to parts of a batch, one after another, and joins the results.

    A part takes every `passes`-th prompt with its samples, so that each device, which holds a
    contiguous run of prompts, has its share of every part.

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
    algorithm: ConfigDict,
    scores: Array,
    mask: Array,
    group_size: int,
    token_kl: Array | None,
) -> Array:
    """Returns the advantage of every token by the configured estimator.

    Args:
        algorithm: `config.algorithm`.
        scores: float32[B], reward units.
        mask: bool[B, R].
        group_size: G.
        token_kl: float32[B, R], nats, where a KL penalty belongs into the return.

    Returns:
        float32[B, R], 0 outside the mask.
    """
    if algorithm.advantage == "reinforce_pp":
        result = advantages.reinforce_pp(
            scores,
            mask,
            gamma=algorithm.gamma,
            kl=token_kl,
            kl_coef=algorithm.kl_reward_coef,
            whiten=algorithm.whiten,
        )
    elif algorithm.advantage == "grpo":
        result = advantages.grpo(scores, group_size, scale=algorithm.scale, eps=algorithm.eps)
    else:
        result = advantages.rloo(scores, group_size)
    if result.ndim == 1:
        result = result[:, None]
    return jnp.where(mask, result, 0.0)


def kept_rows(algorithm: ConfigDict, accuracy: Array, group_size: int) -> Array:
    """Returns bool[B], the sequences whose group the accuracy filter leaves in."""
    if not algorithm.filter:
        return jnp.ones(accuracy.shape, bool)
    return filtering.keep_groups(
        accuracy, group_size, low=algorithm.filter_low, high=algorithm.filter_high
    )


def filter_stats(kept: Array, accuracy: Array, group_size: int) -> dict[str, Array]:
    """Returns the shares of groups that are kept, all correct and all wrong."""
    if group_size == 1:
        return {}
    means = accuracy.reshape(-1, group_size).mean(axis=1)
    return {
        "filter/kept_fraction": jnp.mean(kept.astype(jnp.float32)),
        "filter/all_correct": jnp.mean((means == 1).astype(jnp.float32)),
        "filter/all_wrong": jnp.mean((means == 0).astype(jnp.float32)),
    }


def make_trajectory_fn(model: Any, config: ConfigDict, policy: Policy) -> Callable[..., Any]:
    """Builds step III, to be jitted once.

    Args:
        model: functions of parameters (see models.Model).
        config: the whole configuration.
        policy: the distribution the sampler recorded.

    Returns:
        trajectory(params, ref_params, batch, features, rollout, scores, accuracy) ->
        (Trajectory, stats, gap float32[B]). `ref_params` is None where no reference is asked
        for. The gap is each sequence's largest |sampler - trainer| log-probability, in nats.
    """
    logprobs = make_logprobs_fn(model, policy, config.update.logprob_chunk)
    algorithm = config.algorithm
    passes = logprob_passes(config)

    def trajectory(
        params: Params,
        ref_params: Params | None,
        batch: Batch,
        features: Array | None,
        rollout: Rollout,
        scores: Array,
        accuracy: Array,
    ) -> tuple[Trajectory, dict[str, Array], Array]:
        def all_logprobs(weights: Params, encoded: Array | None) -> tuple[Array, Array]:
            arrays = (batch, encoded, rollout.tokens, rollout.mask)
            prompts = batch.tokens.shape[0]
            return _in_passes(lambda part: logprobs(weights, *part), passes, prompts, arrays)

        old, entropy = all_logprobs(params, features)
        ref = None
        if ref_params is not None:
            ref, _ = all_logprobs(ref_params, features)
        in_reward = algorithm.kl_reward_coef != 0
        token_kl = kl.estimate(old, ref, kind=algorithm.kl_reward_kind) if in_reward else None
        token_advantages = compute_advantages(
            algorithm, scores, rollout.mask, config.rollout.samples, token_kl
        )
        kept = kept_rows(algorithm, accuracy, config.rollout.samples)
        gap = jnp.where(rollout.mask, jnp.abs(rollout.logprobs - old), 0.0)
        stats = {
            "rollout/logprob_gap_mean": masked.mean(gap, rollout.mask),
            "rollout/logprob_gap_max": jnp.max(gap),
            "update/entropy": masked.mean(entropy, rollout.mask),
            **filter_stats(kept, accuracy, config.rollout.samples),
        }
        result = Trajectory(
            batch=batch,
            features=features,
            tokens=rollout.tokens,
            mask=rollout.mask & kept[:, None],
            rollout_logprobs=rollout.logprobs,
            old_logprobs=old,
            ref_logprobs=ref,
            advantages=token_advantages,
        )
        return result, stats, jnp.max(gap, axis=1)

    return trajectory
