# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The records that the four steps pass on: Prompts -> Rollout -> Trajectory -> TrainState.

They are named tuples, hence pytrees. This module imports neither JAX nor Flax, so the host side
(data, rewards) can use it without loading an accelerator library.

Letters in shapes throughout the project:

    N  prompts in a batch          B  sequences = N * G, the samples of one prompt adjacent
    G  samples of one prompt       R  response length, tokens (static)
    P  prompt length, tokens (static bucket, padded on the left)
    I  image patches of one prompt (static bucket)
    M  image tokens of one prompt, the most for its I patches
    L  layers, D width, H query heads, K key/value heads, E head size, F MLP width, V vocabulary

A mask is True where something counts.
"""

from typing import Any, NamedTuple

Array = Any  # jax.Array on the device, numpy.ndarray on the host
Params = dict[str, Any]  # plain nested dict of arrays


class Prompts(NamedTuple):
    """Prompts on the device, each once, for any number of samples drawn from it.

    The leading axis of every array is N: `jax.tree.map(lambda x: x[rows], prompts)` selects rows.
    """

    tokens: Array  # int32[N, P], left-padded; image tokens already repeated
    mask: Array  # bool[N, P]
    positions: Array  # int32[N, A, P] on the A axes that the family counts on; 0 at padding
    media: Any  # the images, a pytree of the model family; see `data.prompts.Media`


class Rollout(NamedTuple):
    """The sampler's result."""

    tokens: Array  # int32[B, R], pad id after the end
    valid: Array  # bool[B, R], exists and is attended to; up to and including the stop token
    sampled: Array  # bool[B, R], drawn by the policy; implies valid
    logprobs: Array  # float32[B, R], nats, 0 if not sampled; see sampling.Policy
    truncated: Array  # bool[B], no stop token within R
    version: Array  # int32[B], `TrainState.step` of the parameters that drew it; 0 outside training


class Passes(NamedTuple):
    """Results of the trainer's log-prob passes over the responses; nats, 0 if not sampled.

    A field is None if its pass is not made: see `config.algorithm.old_logprobs`; `ref` is None if
    no reference is needed.
    """

    old: Array | None  # float32[B, R], log-probabilities before the update
    ref: Array | None  # float32[B, R], the reference's
    entropy: Array | None  # float32[B, R]
    logprob_diff: Array | None  # float32[B, R], |sampler - trainer| log-probability


class Trajectory(NamedTuple):
    """The loss's input: the prompts, their responses, and one advantage per token.

    Supervised training has None for everything that a policy's own tokens have.
    """

    prompts: Prompts
    features: Any  # image features, a pytree [N, M, ...], or None if the vision side is trained
    tokens: Array  # int32[B, R]
    valid: Array  # bool[B, R], exists and is attended to
    sampled: Array  # bool[B, R], drawn by the policy, in the responses that the update uses
    trained: Array  # bool[B, R], in the loss and its denominators; in RL so far equal to sampled
    rollout_logprobs: Array | None  # float32[B, R], the sampler's
    old_logprobs: Array | None  # float32[B, R], before the update; None: use the update's own
    ref_logprobs: Array | None  # float32[B, R], or None if no reference is needed
    advantages: Array | None  # float32[B, R], 0 in groups that the filter drops


class TrainState(NamedTuple):
    """Everything that the update changes; donated and returned."""

    params: Params  # all parameters, frozen ones included
    opt_state: Any  # optax state of the trained parameters only
    step: Array  # int32[], optimizer steps taken (skipped ones not counted)
    bad_steps: Array  # int32[], optimizer steps skipped as not finite since the last one taken
