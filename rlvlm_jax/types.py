# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The four records that the four steps hand on: Batch -> Rollout -> Trajectory -> TrainState.

They are named tuples, hence pytrees, and this file imports neither JAX nor Flax: the host side
(data, rewards) can name them without loading an accelerator library.

Letters used in shapes throughout the project:

    N  prompts in a batch          B  sequences = N * G, the samples of one prompt adjacent
    G  samples of one prompt       R  response length, tokens (static)
    P  prompt length, tokens (static bucket, padded on the left)
    I  image patches of one prompt (static bucket, padded on the right)
    M  image tokens of one prompt = I / merge**2
    C  bytes of one patch = 3 * patch_size**2
    L  layers, D width, H query heads, K key/value heads, E head size, F MLP width, V vocabulary

A mask is True where something counts.
"""

from typing import Any, NamedTuple

Array = Any  # jax.Array on the device, numpy.ndarray on the host
Params = dict[str, Any]  # plain nested dict of arrays


class Batch(NamedTuple):
    """Prompts on the device: each prompt once, however many samples are drawn from it.

    The leading axis of every field is N, so a row selection is `jax.tree.map(lambda x: x[rows])`.
    """

    tokens: Array  # int32[N, P], left-padded; one image token per merged patch, already expanded
    mask: Array  # bool[N, P]
    positions: Array  # int32[N, 3, P], rotary (time, row, column); 0 at padding
    patches: Array  # uint8[N, I, C], channel-major pixels of one still frame, merge-block order
    patch_coords: Array  # int32[N, I, 2], (row, column) of the patch in its image's grid
    patch_image: Array  # int32[N, I], number of the image within the prompt from 1; 0 at padding
    patch_window: Array  # int32[N, I], number of the attention window from 1; 0 at padding


class Rollout(NamedTuple):
    """What the sampler returns."""

    tokens: Array  # int32[B, R], pad id after the end
    mask: Array  # bool[B, R], True up to and including the stop token
    logprobs: Array  # float32[B, R], nats, 0 outside the mask; see sampling.Policy
    truncated: Array  # bool[B], no stop token within R


class Passes(NamedTuple):
    """What the trainer's passes over the responses give; nats, 0 outside the mask.

    None where a pass is not made: see `config.algorithm.old_logprobs`, and where no reference is
    asked for.
    """

    old: Array | None  # float32[B, R], log-probabilities before the update
    ref: Array | None  # float32[B, R], the reference's
    entropy: Array | None  # float32[B, R]
    logprob_diff: Array | None  # float32[B, R], |sampler - trainer| log-probability


class Trajectory(NamedTuple):
    """What the loss consumes: the prompts, their responses, and one advantage a token."""

    batch: Batch
    features: Array | None  # [N, M, D] image features, or None where the vision side is trained
    tokens: Array  # int32[B, R]
    mask: Array  # bool[B, R], without the groups that a filter leaves out
    rollout_logprobs: Array  # float32[B, R], the sampler's
    old_logprobs: Array | None  # float32[B, R], before the update; None: those of the update
    ref_logprobs: Array | None  # float32[B, R], or None where no reference is asked for
    advantages: Array  # float32[B, R], 0 outside the mask


class TrainState(NamedTuple):
    """Everything the update changes; donated to it and returned."""

    params: Params  # all parameters, frozen ones included
    opt_state: Any  # optax state of the trained parameters only
    step: Array  # int32[], optimizer steps taken (skipped ones not counted)
    bad_steps: Array  # int32[], updates skipped in a row for a non-finite gradient
