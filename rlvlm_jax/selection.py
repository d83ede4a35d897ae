# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Online filtering: which sampled groups a step trains on, over one or several rounds of sampling.

A round is one batch of prompts with its scored responses. The filter drops groups outside the
accuracy limits; then more rounds may be sampled until enough groups are kept (DAPO's dynamic
sampling). Surplus groups are dropped, so a step never trains on samples of older parameters. Host
arrays in, host arrays out.

Source: DAPO (arXiv:2503.14476), section 3.2; MM-EUREKA (arXiv:2503.07365), online filter.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from rlvlm_jax import sharding
from rlvlm_jax.algorithms import filtering
from rlvlm_jax.data.example import Example
from rlvlm_jax.data.loader import fit_bucket
from rlvlm_jax.data.prompts import Media, pad_prompts
from rlvlm_jax.rewards import Scores
from rlvlm_jax.sampling.responses import Responses
from rlvlm_jax.sampling.sampler import rows_of
from rlvlm_jax.types import Passes, Prompts, Rollout


class Round(NamedTuple):
    """One batch of N prompts with its B = N * G responses."""

    examples: list[Example]  # N
    batch: Prompts  # on the device
    rollout: Rollout  # on the device
    passes: Passes  # on the device
    responses: Responses  # B
    scores: Scores  # B
    keep: np.ndarray  # bool[N], see `kept_groups`


def kept_groups(config: ConfigDict, accuracy: np.ndarray) -> np.ndarray:
    """Returns bool[N], the groups whose mean accuracy passes the filter; all without a filter.

    Args:
        config: the whole configuration.
        accuracy: float32[B], the accuracy reward.
    """
    algorithm, samples = config.algorithm, config.rollout.samples
    if algorithm.filter_low <= 0 and algorithm.filter_high >= 1:
        return np.ones(len(accuracy) // samples, bool)
    limits = {"low": algorithm.filter_low, "high": algorithm.filter_high}
    return np.asarray(filtering.keep_groups(accuracy, samples, **limits))[::samples]


def is_enough(config: ConfigDict, rounds: Sequence[Round]) -> bool:
    """Returns whether these rounds suffice for the step's update."""
    if not rounds:
        return False
    num_kept = sum(int(r.keep.sum()) for r in rounds)
    return num_kept >= config.rollout.prompts or len(rounds) > config.algorithm.filter_refills


def choose(config: ConfigDict, rounds: Sequence[Round]) -> np.ndarray:
    """Returns int[N], indices into the concatenated rounds: kept groups first, in order.

    If too few are kept, others fill up the batch; they are masked, so they train nothing.
    """
    if len(rounds) == 1:  # the batch as it is
        return np.arange(config.rollout.prompts)
    keep = np.concatenate([r.keep for r in rounds])
    return np.argsort(~keep, kind="stable")[: config.rollout.prompts]


def merge(
    config: ConfigDict,
    rounds: Sequence[Round],
    chosen: np.ndarray,
    buckets: Sequence[tuple[int, int]],
    pad_id: int,
    media: Media,
) -> tuple[Prompts, Rollout, Passes]:
    """Merges the chosen groups of several rounds into one batch.

    Args:
        config: the whole configuration.
        rounds: of one step.
        chosen: from `choose`.
        buckets: the possible shapes (P, I) of a batch; the last fits every prompt.
        pad_id: fills the padding of prompts that move into a larger shape.
        media: of the model.

    Returns:
        Host arrays: N prompts, in the smallest shape that fits all rounds, and their B responses.
    """
    shapes = [(r.batch.tokens.shape[1], media.size(r.batch.media)) for r in rounds]
    shape = fit_bucket(tuple(map(max, zip(*shapes, strict=True))), buckets)
    host_rounds = sharding.to_host([(r.batch, r.rollout, r.passes) for r in rounds])
    batches = [pad_prompts(batch, *shape, pad_id, media) for batch, *_ in host_rounds]
    rows = rows_of(chosen, config.rollout.samples)

    def join(parts: Sequence[Any], indices: np.ndarray) -> Any:
        return jax.tree.map(lambda *x: np.concatenate(x)[indices], *parts)

    return join(batches, chosen), *join([responses for _, *responses in host_rounds], rows)


def scores_of(
    config: ConfigDict, rounds: Sequence[Round], chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (scores float32[B], whether to train on each, bool[B]) of the chosen groups."""
    samples = config.rollout.samples
    scores = np.concatenate([r.scores.score for r in rounds])[rows_of(chosen, samples)]
    keep = np.concatenate([r.keep for r in rounds])[chosen]
    return scores, np.repeat(keep, samples)
