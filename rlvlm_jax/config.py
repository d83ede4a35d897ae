# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The configuration: all groups of keys together, and the sizes derived from them.

Keys are declared beside the code that reads them. A file in `configs/` starts from `default()` and
states what differs. The dictionary is locked, so a misspelt key is an error. This module is read
before JAX is loaded and loads none; `validate` checks values.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from rlvlm_jax import keys
from rlvlm_jax.algorithms.keys import ALGORITHM
from rlvlm_jax.data.keys import DATA
from rlvlm_jax.errors import InputError
from rlvlm_jax.evaluation.keys import EVAL, EVAL_SETTINGS
from rlvlm_jax.models.keys import MODEL
from rlvlm_jax.rewards.keys import REWARDS, RULES
from rlvlm_jax.sampling.keys import ROLLOUT

__all__ = ["EVAL_SETTINGS"]  # recipes name them
GROUPS = {  # prefix of the dotted names -> keys
    "": keys.RUN,
    "model.": MODEL,
    "data.": DATA,
    "rollout.": ROLLOUT,
    "rewards.": REWARDS,
    "rewards.rules.": RULES,
    "algorithm.": ALGORITHM,
    "train.": keys.TRAIN,
    "sft.": keys.SFT,
    "mesh.": keys.MESH,
    "hosts.": keys.HOSTS,
    "eval.": EVAL,
    "log.": keys.LOG,
}
PROFILED_STEPS = 3
KEYS = {prefix + key.name: key for prefix, group in GROUPS.items() for key in group}
HARMLESS = tuple(name for name, key in KEYS.items() if key.harmless)
PER_HOST = tuple(name for name, key in KEYS.items() if key.per_host)


def default() -> ConfigDict:
    """Returns the complete configuration with its default values, locked."""
    c = ConfigDict()
    for prefix, group in GROUPS.items():
        node = c
        for name in prefix.split(".")[:-1]:
            if name not in node:
                node[name] = ConfigDict()
            node = node[name]
        for key in group:
            node[key.name] = key.default
    return c.lock()


def variant(recipe: str, arg: str | None, known: Sequence[str]) -> tuple[str, bool]:
    """Reads a recipe's argument: VARIANT, `smoke`, or `VARIANT,smoke`.

    Args:
        recipe: file, for the error message.
        arg: the text after the colon, None if there is none.
        known: the variants; the first is the default.

    Returns:
        (variant, whether to use the bundled model and data).

    Raises:
        ValueError: there is no such variant.
    """
    name, _, suffix = (arg or "").partition(",")
    if name == "smoke" and not suffix:
        return known[0], True
    if (name and name not in known) or suffix not in ("", "smoke"):
        names = ", ".join(filter(None, known))
        raise ValueError(f"{recipe}:{arg}: use one of {names}, smoke, or VARIANT,smoke")
    return name or known[0], bool(suffix)


def smoke(config: ConfigDict) -> ConfigDict:
    """Switches a recipe to the bundled model and data without changing its algorithm.

    Sizes shrink to fit a laptop: prompts, tokens, steps and sequences per optimizer step.
    Advantage, loss, reward and schedule stay the same.

    Args:
        config: a recipe's configuration, changed in place.

    Returns:
        The same object.
    """
    config.model.path = "bundled"
    config.model.dtype = "float32"
    config.model.remat = "elementwise"
    config.model.attention = "auto"
    config.data.train, config.data.val = "bundled:train", "bundled:val"
    config.data.test, config.data.test_ood = "", ""
    config.data.min_pixels = config.data.max_pixels = 0
    config.data.max_prompt_tokens = 512
    config.eval.limit = 32
    config.data.instruction = config.data.system = ""
    updates = max(1, config.rollout.prompts * config.rollout.samples // config.train.minibatch)
    parts = config.algorithm.whiten_parts
    config.rollout.prompts = (32 if config.rollout.samples == 1 else 8) // parts * parts
    config.rollout.max_tokens = 48
    config.rewards.overlong_tokens = min(config.rewards.overlong_tokens, 16)
    rows = config.rollout.prompts * config.rollout.samples
    config.train.minibatch = max(config.rollout.samples, rows // min(updates, 4))
    config.train.microbatch = config.train.logprob_batch = config.train.pack_tokens = 0
    config.train.lr = max(config.train.lr, 1e-4)
    for axis in config.mesh:
        config.mesh[axis] = 1
    config.total_steps, config.seeds = 4, 1
    config.checkpoint_every = config.eval_every = 2
    config.eval.settings = ("pass@1_t0.01",)
    return config


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for every leaf."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def shards(config: ConfigDict) -> int:
    """Returns how many devices the sequences of a batch are sharded over; needs `resolve_mesh`."""
    return config.mesh.data * config.mesh.fsdp * config.mesh.sequence


def pass_shards(config: ConfigDict) -> int:
    """Returns the same inside the model, where `mesh.sequence` shards the tokens instead."""
    return config.mesh.data * config.mesh.fsdp


def profiled_steps(config: ConfigDict) -> range:
    """Returns the steps to trace, from `log.profile` on."""
    first = config.log.profile
    return range(first, first + PROFILED_STEPS) if first else range(0)


def trains_vision(config: ConfigDict) -> bool:
    """Returns whether the tower or the connector is trained, so that image features change."""
    return not {"vit", "connector"}.isdisjoint(config.train.parts)


def sequences(config: ConfigDict) -> int:
    """Returns B, the responses per step."""
    return config.rollout.prompts * config.rollout.samples


def microbatch(config: ConfigDict) -> int:
    """Returns the sequences per forward-backward pass, at most the minibatch."""
    return min(config.train.microbatch or config.train.minibatch, config.train.minibatch)


def old_logprobs(config: ConfigDict) -> str:
    """Returns `algorithm.old_logprobs` with "auto" resolved: "trainer", "sampler" or "update"."""
    chosen = config.algorithm.old_logprobs
    if chosen == "auto":
        one_step = config.train.epochs * sequences(config) == config.train.minibatch
        chosen = "update" if one_step and not config.algorithm.kl_reward_coef else "trainer"
    return chosen


def logprob_passes(config: ConfigDict) -> int:
    """Returns the number of equal parts that a step's prompts are split into for log-prob passes.

    This is the smallest number that gives each device the same number of prompts and each pass at
    most `train.logprob_batch` sequences; one prompt per device is the least, even if that is more.
    """
    most = config.train.logprob_batch or sequences(config)
    per_device = config.rollout.prompts // pass_shards(config)
    fitting = (
        passes
        for passes in range(1, per_device + 1)
        if per_device % passes == 0 and sequences(config) // passes <= most
    )
    return next(fitting, per_device)


def resolve_mesh(config: ConfigDict, devices: int) -> None:
    """Replaces a -1 in `config.mesh` by the number of remaining devices.

    Raises:
        InputError: two axes are -1, or the others do not divide the number of devices.
    """
    free = [axis for axis in config.mesh if config.mesh[axis] == -1]
    if len(free) > 1:
        raise InputError(f"config.mesh has -1 for {' and '.join(free)}; only one axis may be -1")
    if free:
        fixed = math.prod(config.mesh[axis] for axis in config.mesh if axis != free[0])
        if fixed < 1 or devices % fixed:
            raise InputError(
                f"config.mesh.{free[0]}=-1 cannot be resolved: the other axes take {fixed} of "
                f"{devices} devices"
            )
        config.mesh[free[0]] = devices // fixed


def eval_samples(config: ConfigDict, setting: str) -> int:
    """Returns the responses per question of a setting in EVAL_SETTINGS."""
    samples = EVAL_SETTINGS[setting][0]
    return samples if samples == 1 else config.eval.samples


def eval_batch(config: ConfigDict) -> int:
    """Returns the prompts of one evaluation batch, a multiple of the devices.

    By default an evaluation batch is no larger than training's: at most `rollout.prompts` prompts,
    and with every setting at most `rollout.prompts` x `rollout.samples` responses. One prompt per
    device is the least, even if that is more.
    """
    devices = shards(config)
    if config.eval.batch:
        return -(-config.eval.batch // devices) * devices
    samples = max((eval_samples(config, setting) for setting in config.eval.settings), default=1)
    prompts = min(config.rollout.prompts, sequences(config) // samples)
    return max(prompts // devices, 1) * devices


def check_hosts(config: ConfigDict) -> None:
    """Checks `config.hosts`, which is used before JAX is loaded.

    Raises:
        InputError: one sentence per problem.
    """
    problems = [
        f"config.hosts.{name}={config.hosts[name]:g} is not {key.range} seconds"
        for name, key in ((key.name, key) for key in keys.HOSTS)
        if not key.allows(config.hosts[name])
    ]
    if problems:
        raise InputError("; ".join(problems))
