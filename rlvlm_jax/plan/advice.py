# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Suggests what would make a run fit: single configuration changes, or a larger slice.

The savings are predictions from sizes, not compiled: plan again before paying for a suggestion.
"""

from collections.abc import Iterator

from rlvlm_jax.config import logprob_passes, microbatch, pass_shards, shards
from rlvlm_jax.plan import predict
from rlvlm_jax.plan.topology import GIB, TPU_SHAPES, Topology, parse


def needed(s: predict.Sizes, step: str) -> float:
    """Returns the predicted bytes per device of a step, resident and carried arrays included."""
    base = sum(predict.resident(s).values()) + sum(predict.carried(s).values())
    return base + sum(predict.temporaries(s)[step].values())


def _with(s: predict.Sizes, values: dict[str, object]) -> predict.Sizes:
    config = s.config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(values)
    return s._replace(config=config)


def changes(s: predict.Sizes) -> Iterator[tuple[str, predict.Sizes]]:
    """Yields (flags to set, the run with them) for every single change that saves memory."""
    c = s.config
    if c.model.remat != "full":
        yield "--config.model.remat=full", _with(s, {"model.remat": "full"})
    if microbatch(c) > pass_shards(c):
        value = pass_shards(c)
        yield f"--config.update.microbatch={value}", _with(s, {"update.microbatch": value})
    elif c.mesh.fsdp % 2 == 0 and c.rollout.max_tokens % (2 * c.mesh.sequence) == 0:
        fsdp, sequence = c.mesh.fsdp // 2, c.mesh.sequence * 2
        values = {"mesh.fsdp": fsdp, "mesh.sequence": sequence}
        values["update.microbatch"] = pass_shards(c) // 2
        flags = (f"--config.{key}={value}" for key, value in values.items())
        yield " ".join(flags), _with(s, values)
    if logprob_passes(c) < c.rollout.prompts // pass_shards(c):
        value = c.rollout.samples * pass_shards(c)
        yield f"--config.update.logprob_batch={value}", _with(s, {"update.logprob_batch": value})
    if c.rollout.cache != "int8":
        yield "--config.rollout.cache=int8", _with(s, {"rollout.cache": "int8"})
    if s.layout == "replicated":
        yield "--config.rollout.layout=tensor", _with(s, {"rollout.layout": "tensor"})
    if not c.update.lora_rank:
        width = s.model.width + s.model.mlp_width
        adapters = 64 * s.model.layers * (4 * s.model.width + 3 * width)
        smaller = _with(s, {"update.lora_rank": 64})._replace(trained=adapters)
        yield "--config.update.lora_rank=64", smaller
    if c.rollout.prompts > shards(c):
        value = max(shards(c), c.rollout.prompts // 2)
        yield f"--config.rollout.prompts={value}", _with(s, {"rollout.prompts": value})


def advise(s: predict.Sizes, topology: Topology, step: str, short: float) -> str:
    """Returns one sentence that says what would make the run fit.

    Args:
        s: the run.
        topology: the hardware that is too small.
        step: the step that needs the most memory.
        short: missing bytes per device, as counted by the compiler.
    """
    now = needed(s, step)
    saved = [(now - needed(other, step), what) for what, other in changes(s)]
    enough = [f"{what} ({-gib:.1f} GiB)" for gib, what in _in_gib(saved) if gib * GIB >= short]
    worthwhile = [f"{what} ({-gib:.1f} GiB)" for gib, what in _in_gib(saved) if gib >= 0.05]
    larger = next_larger(topology)
    ends = f"; or take a larger slice, such as {larger.name}" if larger else ""
    where = f"step {step!r} of the iteration needs the most"
    if enough:
        return f"{where}; any of these is enough (predicted): {', '.join(enough)}{ends}"
    if worthwhile:
        all_changes = ", ".join(worthwhile)
        return f"{where}; no single change is enough; together these save: {all_changes}{ends}"
    return f"{where}; no setting saves memory there{ends}"


def _in_gib(saved: list[tuple[float, str]]) -> list[tuple[float, str]]:
    return [(amount / GIB, what) for amount, what in sorted(saved, reverse=True)]


def next_larger(topology: Topology) -> Topology | None:
    """Returns the next larger slice of the same chips, if there is one."""
    if not topology.is_tpu:
        chips = 8 if topology.chips < 8 else topology.chips * 2
        return parse(f"{chips}x{topology.kind}")
    number = int(topology.name.rsplit("-", 1)[1])
    sizes = [size for size in TPU_SHAPES[topology.kind] if size > number]
    return parse(f"{topology.kind}-{min(sizes)}") if sizes else None
