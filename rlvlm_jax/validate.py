# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Checks a configuration: ranges, choices, and what fits together.

All problems are reported at once, before anything is allocated.

    python -m rlvlm_jax.validate > docs/configuration.md
"""

import math
import re
import sys
from collections.abc import Iterator

from ml_collections import ConfigDict

from rlvlm_jax.algorithms.advantages import ADVANTAGES
from rlvlm_jax.algorithms.kl import KL
from rlvlm_jax.algorithms.losses import AGGREGATES, LOSSES
from rlvlm_jax.config import (
    GROUPS,
    KEYS,
    check_hosts,
    flatten,
    microbatch,
    pass_shards,
    resolve_mesh,
    sequences,
    shards,
)
from rlvlm_jax.errors import InputError
from rlvlm_jax.models.common import cache
from rlvlm_jax.models.common.activation_sharding import LAYOUTS
from rlvlm_jax.models.common.kernels import KERNELS
from rlvlm_jax.models.common.layers import REMAT_POLICIES
from rlvlm_jax.rewards.scoring import JUDGES

TABLES = {  # key -> the table of functions whose names are its choices
    "model.remat": REMAT_POLICIES,
    "model.attention": ("auto", *KERNELS),
    "rollout.cache": cache.KINDS,
    "rollout.layout": LAYOUTS,
    "rewards.judge": JUDGES,
    "algorithm.advantage": ADVANTAGES,
    "algorithm.loss": LOSSES,
    "algorithm.aggregate": AGGREGATES,
    "algorithm.kl_loss_kind": KL,
}


def choices(name: str) -> tuple[str, ...]:
    """Returns the choices of a key by its dotted name, () if it has none."""
    return KEYS[name].choices or tuple(TABLES.get(name, ()))


def _value_problems(c: ConfigDict) -> Iterator[str]:
    """Yields a sentence for every value that is no choice or outside its range."""
    for name, value in flatten(c):
        key, allowed = KEYS[name], choices(name)
        if isinstance(value, tuple):
            for part in value:
                if part not in allowed:
                    yield f"config.{name} has {part!r}; known are {', '.join(allowed)}"
        elif allowed and value not in allowed:
            yield f"config.{name}={value!r} is not one of {', '.join(allowed)}"
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"config.{name}={value} is not a finite number"
        elif key.range and not key.allows(value):
            rule = f"be {key.range}".replace("be not", "not be")
            yield f"config.{name}={value} must {rule}"


def _divisors(number: int, multiple: int = 1) -> str:
    """Returns the divisors of `number` that are multiples of `multiple`, as text."""
    divisors = [d for d in range(1, number + 1) if number % d == 0 and d % multiple == 0]
    shown = [str(d) for d in divisors]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:6], "...", *shown[-5:]]) or "none"


def _shape_problems(c: ConfigDict) -> Iterator[str]:
    """Yields a sentence for every size that does not divide another one as required."""
    rows, mini, micro = sequences(c), c.train.minibatch, microbatch(c)
    devices, in_pass = shards(c), pass_shards(c)
    if c.mode == "sft":
        rows = mini  # one optimizer step per batch
    if rows % mini:
        yield (
            f"config.train.minibatch={mini} does not divide the {rows} sequences of a step "
            f"(config.rollout.prompts x config.rollout.samples); use one of {_divisors(rows)}"
        )
    if mini % micro:
        yield (
            f"config.train.microbatch={micro} does not divide config.train.minibatch={mini}; "
            f"use one of {_divisors(mini, in_pass)}"
        )
    elif micro % in_pass:
        yield (
            f"a pass of {micro} sequences (config.train.microbatch, or config.train.minibatch "
            f"if that is 0) does not divide over config.mesh.data x config.mesh.fsdp = "
            f"{in_pass} devices; use a multiple of {in_pass}"
        )
    elif c.mode == "sft" and mini % devices:
        yield (
            f"config.train.minibatch={mini} does not divide over config.mesh.data x "
            f"config.mesh.fsdp x config.mesh.sequence = {devices} devices; use a multiple of "
            f"{devices}"
        )
    for key, tokens in (
        ("rollout.max_tokens", c.rollout.max_tokens),
        ("train.pack_tokens", c.train.pack_tokens),
    ):
        if tokens % c.mesh.sequence:
            yield (
                f"config.{key}={tokens} does not divide over config.mesh.sequence="
                f"{c.mesh.sequence}; use a multiple of it"
            )
    if 0 < c.train.pack_tokens <= c.rollout.max_tokens:
        yield (
            f"config.train.pack_tokens={c.train.pack_tokens} has no room for a prompt and "
            f"config.rollout.max_tokens={c.rollout.max_tokens}; use at least the longest prompt's "
            "tokens and config.rollout.max_tokens together, or 0"
        )
    if c.mode == "rl" and c.rollout.prompts % devices:
        yield (
            f"config.rollout.prompts={c.rollout.prompts} does not divide over config.mesh.data x "
            f"config.mesh.fsdp x config.mesh.sequence = {devices} devices; use a multiple of "
            f"{devices}"
        )


def _recipe_problems(c: ConfigDict) -> Iterator[str]:
    """Yields a sentence for every combination that makes no sense."""
    grouped = ADVANTAGES[c.algorithm.advantage].grouped
    if c.mode == "rl" and grouped and c.rollout.samples < 2:
        yield (
            f"config.algorithm.advantage={c.algorithm.advantage!r} compares the samples of a "
            f"prompt, so config.rollout.samples={c.rollout.samples} must be at least 2"
        )
    if grouped and c.algorithm.whiten == "center":
        yield (
            "config.algorithm.whiten='center' is for config.algorithm.advantage='reinforce_pp', "
            f"not {c.algorithm.advantage!r}; use 'auto', 'scale' or 'none'"
        )
    if c.mode == "rl" and c.rollout.prompts % c.algorithm.whiten_parts:
        yield (
            f"config.algorithm.whiten_parts={c.algorithm.whiten_parts} does not divide "
            f"config.rollout.prompts={c.rollout.prompts}; use one of {_divisors(c.rollout.prompts)}"
        )
    if c.rewards.rules.overlong and not 1 <= c.rewards.overlong_tokens <= c.rollout.max_tokens:
        yield (
            f"config.rewards.overlong_tokens={c.rewards.overlong_tokens} must be between 1 and "
            f"config.rollout.max_tokens={c.rollout.max_tokens} if config.rewards.rules.overlong is "
            "set"
        )
    if c.algorithm.old_logprobs == "update":
        if c.train.epochs * sequences(c) != c.train.minibatch:
            yield (
                "config.algorithm.old_logprobs='update' is for one optimizer step per batch; set "
                f"config.train.minibatch={sequences(c)} and config.train.epochs=1, or use 'auto'"
            )
        if c.algorithm.kl_reward_coef:
            yield (
                "config.algorithm.old_logprobs='update' comes too late for "
                f"config.algorithm.kl_reward_coef={c.algorithm.kl_reward_coef}; use 'auto'"
            )
    if c.algorithm.old_logprobs == "sampler":
        if c.algorithm.is_cap:
            yield (
                f"config.algorithm.is_cap={c.algorithm.is_cap} compares the trainer's old "
                "log-probs with the sampler's; use config.algorithm.old_logprobs='trainer'"
            )
        if c.model.dtype != "float32" or c.rollout.cache != "model":
            yield (
                f"config.model.dtype={c.model.dtype!r} and config.rollout.cache="
                f"{c.rollout.cache!r} would train on rounding errors with "
                "config.algorithm.old_logprobs='sampler'; use 'trainer'"
            )
        if c.algorithm.flat_positions:
            yield (
                "config.algorithm.flat_positions makes the trainer's model differ from the "
                "sampler's; use config.algorithm.old_logprobs='trainer'"
            )
    if c.algorithm.dual_clip and c.algorithm.dual_clip <= 1:
        yield f"config.algorithm.dual_clip={c.algorithm.dual_clip} must be 0 (off) or above 1"
    if c.train.pack_tokens and c.algorithm.aggregate == "microbatch":
        yield (
            "config.algorithm.aggregate='microbatch' averages micro-batches with a fixed number of "
            "sequences, but config.train.pack_tokens packs a varying number; change one of them"
        )
    if c.algorithm.filter_refills and c.algorithm.filter_low <= 0 and c.algorithm.filter_high >= 1:
        yield (
            f"config.algorithm.filter_refills={c.algorithm.filter_refills} needs a filter: set "
            "config.algorithm.filter_low or config.algorithm.filter_high"
        )
    if c.algorithm.filter_low > c.algorithm.filter_high:
        yield "config.algorithm.filter_low is above config.algorithm.filter_high"
    if c.mode == "rl" and c.rollout.temperature == 0:
        yield (
            "config.rollout.temperature=0 samples the same response every time; "
            "RL needs a value above 0"
        )
    if c.mode != "eval" and not {"vit", "connector", "llm"}.intersection(c.train.parts):
        yield f"nothing is trained: config.train.parts={c.train.parts} has no vit, connector or llm"
    if c.data.min_pixels and c.data.max_pixels and c.data.min_pixels > c.data.max_pixels:
        yield (
            f"config.data.min_pixels={c.data.min_pixels} is above "
            f"config.data.max_pixels={c.data.max_pixels}"
        )
    checkpoints = c.log.checkpoints
    if re.match(r"\w+:/|gs//", checkpoints) and not re.match("gs://[^/]+/.", checkpoints):
        yield (
            f"config.log.checkpoints={c.log.checkpoints!r} is neither a path nor of the form "
            "gs://BUCKET/DIRECTORY"
        )
    if not c.model.path:
        yield "config.model.path is empty; name a Hugging Face directory or repository"
    if c.mode != "eval" and not c.data.train:
        yield "config.data.train is empty; name a jsonl file, a data set, or bundled:train"
    if c.mode != "eval" and not c.total_steps and not c.epochs:
        yield "config.total_steps and config.epochs are both 0; set one of them"
    if c.eval_every and not (c.data.val or c.data.test or c.data.test_ood):
        yield f"config.eval_every={c.eval_every} but config.data.val and config.data.test are empty"
    if c.mode == "sft" and c.sft.direct_share and not c.data.train.startswith("bundled:"):
        yield (
            f"config.sft.direct_share={c.sft.direct_share} needs the bundled problems, not "
            f"config.data.train={c.data.train!r}; use 0"
        )
    if c.rewards.custom and c.rewards.custom.count(":") != 1:
        yield f"config.rewards.custom={c.rewards.custom!r} is not of the form module:function"


def validate(config: ConfigDict, devices: int) -> None:
    """Checks a whole configuration, and resolves a -1 in `config.mesh`.

    Args:
        config: changed in place.
        devices: number of devices.

    Raises:
        InputError: one sentence per problem.
    """
    check_hosts(config)
    resolve_mesh(config, devices)
    problems = list(_value_problems(config))
    if not problems:
        problems = [*_shape_problems(config), *_recipe_problems(config)]
    if problems:
        raise InputError("; ".join(problems))


def table() -> str:
    """Returns docs/configuration.md: every key by group."""
    lines = [
        "# Configuration",
        "",
        f"The {len(KEYS)} keys, set as `--config.GROUP.KEY=VALUE`. Written by",
        "`python -m rlvlm_jax.validate > docs/configuration.md`.",
    ]
    for prefix, group in GROUPS.items():
        lines += ["", f"## {prefix.rstrip('.') or 'The run'}", ""]
        lines += ["| key | default | values | meaning |", "|---|---|---|---|"]
        for key in group:
            values = ", ".join(choices(prefix + key.name)) or key.range
            values = "; ".join(filter(None, (values, key.unit)))
            lines.append(f"| `{prefix}{key.name}` | `{key.default!r}` | {values} | {key.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
