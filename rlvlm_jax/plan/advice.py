# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Suggests what may make a run fit: single configuration changes, or a larger slice."""

from collections.abc import Iterator

from rlvlm_jax.config import eval_batch, logprob_passes, microbatch, pass_shards, shards
from rlvlm_jax.plan.predict import Sizes
from rlvlm_jax.plan.topology import TPU_SHAPES, Topology, parse


def changes(s: Sizes, step: str) -> Iterator[str]:
    """Yields the flags of each change that lowers the memory of a step.

    Args:
        s: the run.
        step: "encode", "sample", "passes", "trajectory", "update" or "evaluate".
    """
    c = s.config
    fewer_rows = pass_shards(c)
    if step == "update":
        if c.model.remat != "full":
            yield "--config.model.remat=full"
        if microbatch(c) > fewer_rows:
            yield f"--config.train.microbatch={fewer_rows}"
        elif c.mesh.fsdp % 2 == 0 and c.rollout.max_tokens % (2 * c.mesh.sequence) == 0:
            yield (
                f"--config.mesh.fsdp={c.mesh.fsdp // 2} --config.mesh.sequence="
                f"{c.mesh.sequence * 2} --config.train.microbatch={fewer_rows // 2}"
            )
    if step == "passes" and logprob_passes(c) < c.rollout.prompts // fewer_rows:
        yield f"--config.train.logprob_batch={c.rollout.samples * fewer_rows}"
    if step == "evaluate" and eval_batch(c) > shards(c):
        yield f"--config.eval.batch={max(shards(c), eval_batch(c) // 2)}"
    if step == "sample":
        if c.rollout.cache != "int8":
            yield "--config.rollout.cache=int8"
        if s.layout == "replicated":
            yield "--config.rollout.layout=tensor"
    if not c.train.lora_rank:  # less optimizer state, which is there in every step
        yield "--config.train.lora_rank=64"
    if c.rollout.prompts > shards(c):
        yield f"--config.rollout.prompts={max(shards(c), c.rollout.prompts // 2)}"


def advise(s: Sizes, topology: Topology, step: str) -> str:
    """Returns one sentence that says what may make the run fit.

    Args:
        s: the run.
        topology: the hardware that is too small.
        step: the step that needs the most memory.
    """
    flags = ", ".join(changes(s, step))
    settings = f"these settings save memory there: {flags}" if flags else "no setting saves memory"
    larger = next_larger(topology)
    slice_ = f"; or take a larger slice, such as {larger.name}" if larger else ""
    return f"step {step!r} of the iteration needs the most; {settings}{slice_}"


def next_larger(topology: Topology) -> Topology | None:
    """Returns the next larger slice of the same chips, if there is one."""
    if not topology.is_tpu:
        chips = 8 if topology.chips < 8 else topology.chips * 2
        return parse(f"{chips}x{topology.kind}")
    number = int(topology.name.rsplit("-", 1)[1])
    sizes = [size for size in TPU_SHAPES[topology.kind] if size > number]
    return parse(f"{topology.kind}-{min(sizes)}") if sizes else None
