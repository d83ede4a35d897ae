# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Step III, trajectory generation: old and reference log-probabilities, and advantages.

Two compiled functions of arrays: the log-prob passes, which run on the device while the host scores
the texts, and the advantages, which need the scores. This module knows nothing about text or
rewards.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rlvlm_jax.algorithms import advantages, kl, masked
from rlvlm_jax.config import logprob_passes, old_logprobs
from rlvlm_jax.logprobs import CHUNK, logprobs
from rlvlm_jax.models.model import Model
from rlvlm_jax.packing import Plan
from rlvlm_jax.sampling.logits import Policy
from rlvlm_jax.types import Array, Params, Passes, Prompts, Rollout, Trajectory


def _in_passes(function: Callable[[Any], Any], passes: int, arrays: Any) -> Any:
    """Applies `function` to parts of a batch in sequence and joins the results.

    A part takes every `passes`-th prompt with its samples. Each device has a contiguous run of
    prompts, so it has a share of every part.

    Args:
        function: of one argument, the pytree `arrays` with shorter leading axes.
        passes: number of parts.
        arrays: leading axes N or B; the first leaf's is N.

    Returns:
        What `function` returns, with the leading axes of the whole batch.
    """
    if passes == 1:
        return function(arrays)
    prompts = len(jax.tree.leaves(arrays)[0])

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
        mask: bool[B, R]; rows without tokens, as the filter leaves them, take part in no statistic.
        token_kl: float32[B, R], nats, for a KL penalty in the return, or None.

    Returns:
        float32[B, R], 0 outside the mask.
    """
    algorithm, group_size = config.algorithm, config.rollout.samples
    batch = advantages.Scored(scores, mask, token_kl, group_size)
    estimate, grouped = advantages.ADVANTAGES[algorithm.advantage]
    result = estimate(batch, algorithm)
    if result.ndim == 1:  # one number per response, for all its tokens
        result = masked.fill(result[:, None], mask)
    if grouped and algorithm.whiten == "scale":
        result = masked.whiten(result, mask)
    if algorithm.adora_weight != 1:
        weights = advantages.adora_weights(
            scores,
            masked.count(mask, axis=1),
            group_size,
            lam=algorithm.adora_weight,
            max_length=config.rollout.max_tokens - 2,
        )
        result = weights[:, None] * result
    return masked.fill(result, mask)


def all_logprobs(
    model: Model,
    config: ConfigDict,
    policy: Policy,
    params: Params,
    prompts: Prompts,
    features: Any,
    rollout: Rollout,
    plan: Plan | None,
) -> tuple[Array, Array]:
    """Returns log-probabilities and entropies of all responses, in parts of the batch or packed."""
    compute = partial(logprobs, model, policy, CHUNK, params)
    compute = partial(compute, flat_positions=config.algorithm.flat_positions)
    if plan is None:
        arrays = (prompts, features, rollout.tokens, rollout.valid, rollout.sampled)
        return _in_passes(lambda part: compute(*part)[:2], logprob_passes(config), arrays)
    if features is None:  # one pass over the images, not one per micro-batch
        features = model.encode_images(params, prompts)
    compute = partial(compute, prompts, features, rollout.tokens, rollout.valid, rollout.sampled)

    def add(k: Array, total: tuple[Array, Array]) -> tuple[Array, Array]:
        return jax.tree.map(jnp.add, total, compute((plan.source[k], plan.previous[k]))[:2])

    nothing = jnp.zeros(rollout.valid.shape, jnp.float32)
    return jax.lax.fori_loop(0, plan.count, add, (nothing, nothing))


def run_passes(
    model: Model,
    config: ConfigDict,
    policy: Policy,
    params: Params,
    ref_params: Params | None,
    prompts: Prompts,
    features: Any,
    rollout: Rollout,
    plan: Plan | None = None,
) -> Passes:
    """Makes the log-prob passes, the first half of step III, to be jitted once. Needs no scores.

    Args:
        model: functions of parameters (see models.Model).
        config: the whole configuration.
        policy: the distribution the sampler recorded.
        params: of the policy.
        ref_params: of the reference; None if none is needed.
        prompts: N prompts.
        features: of their images, or None if the vision side is trained.
        rollout: B responses.
        plan: of all responses; with it the passes are packed.
    """
    inputs = (prompts, features, rollout, plan)
    ref = None
    if ref_params is not None:
        ref = all_logprobs(model, config, policy, ref_params, *inputs)[0]
    if old_logprobs(config) != "trainer":
        return Passes(None, ref, None, None)
    old, entropy = all_logprobs(model, config, policy, params, *inputs)
    logprob_diff = jnp.where(rollout.sampled, jnp.abs(rollout.logprobs - old), 0.0)
    return Passes(old, ref, entropy, logprob_diff)


def make_trajectory(
    config: ConfigDict,
    prompts: Prompts,
    features: Any,
    rollout: Rollout,
    passes: Passes,
    scores: Array,
    in_update: Array,
) -> tuple[Trajectory, dict[str, Array]]:
    """Makes the trajectory, the second half of step III, to be jitted once.

    Args:
        config: the whole configuration.
        prompts: N prompts.
        features: of their images, or None.
        rollout: B responses.
        passes: from `run_passes`.
        scores: float32[B].
        in_update: bool[B]; other rows have no effect.

    Returns:
        (trajectory, stats). Truncated rows that are masked out are not trained on, but still count
        in the baselines of other rows.
    """
    algorithm, token_kl, old = config.algorithm, None, passes.old
    if old_logprobs(config) == "sampler":
        old = rollout.logprobs
    if algorithm.kl_reward_coef:
        token_kl = kl.estimate(old, passes.ref, kind="k1")
    scored = rollout.sampled & in_update[:, None]
    sampled = scored
    if algorithm.mask_truncated:
        sampled = sampled & ~rollout.truncated[:, None]
    trajectory = Trajectory(
        prompts=prompts,
        features=features,
        tokens=rollout.tokens,
        valid=rollout.valid,
        sampled=sampled,
        trained=sampled,  # every token of the policy's own, so far
        rollout_logprobs=rollout.logprobs,
        old_logprobs=old,
        ref_logprobs=passes.ref,
        advantages=compute_advantages(config, scores, scored, token_kl),
    )
    if passes.old is None:
        return trajectory, {}
    return trajectory, {
        "rollout/logprob_gap_mean": masked.mean(passes.logprob_diff, rollout.sampled),
        "rollout/logprob_gap_max": jnp.max(passes.logprob_diff),
        "update/entropy": masked.mean(passes.entropy, rollout.sampled),
    }
