# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Predicts an iteration from sizes alone: seconds and dollars.

Phases with large matrix products take FLOPs over an assumed fraction of the chip's peak (MFU).
Decoding takes bytes over memory bandwidth, collectives take bytes over link bandwidth. No overlap
is assumed, and host work (data, rewards) is left out. Every response is assumed to have full
length, which is the most that an iteration can take.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from rlvlm_jax.config import (
    logprob_passes,
    microbatch,
    old_logprobs,
    sequences,
    shards,
    trains_vision,
)
from rlvlm_jax.models.common.activation_sharding import MAX_REPLICATED
from rlvlm_jax.models.common.costs import GRADIENT, Costs, Work, optimizer_step, total
from rlvlm_jax.models.families import FAMILIES
from rlvlm_jax.models.model import Config
from rlvlm_jax.plan.topology import Topology
from rlvlm_jax.sampling.sampler import CHUNK, block_sizes
from rlvlm_jax.update import optimizer_steps, prompt_sharing


class Sizes(NamedTuple):
    """What the prediction needs to know about a run.

    Attributes:
        config: validated, with its mesh resolved.
        model: sizes of the network.
        bucket: (P tokens, I patches) per prompt.
        trained: number of trained parameters.
        reference: whether there is a reference model.
        frozen: whether image features stay the same during training.
    """

    config: ConfigDict
    model: Config
    bucket: tuple[int, int]
    trained: int
    reference: bool
    frozen: bool

    @property
    def costs(self) -> Costs:
        """The counts of the model's family."""
        return FAMILIES[self.model.family].costs

    @property
    def weights(self) -> int:
        """Numbers that are read to decode a token: layers and head."""
        return self.costs.layer_weights(self.model) + self.costs.head_weights(self.model)

    @property
    def item(self) -> int:
        """Bytes per number in the compute dtype."""
        return 2 if self.config.model.dtype == "bfloat16" else 4

    @property
    def parts(self) -> int:
        """Devices that a parameter is sharded over."""
        return self.config.mesh.fsdp * self.config.mesh.tensor

    @property
    def decoding_parts(self) -> int:
        """Devices that a parameter is sharded over in decoding with `rollout.layout="tensor"`."""
        return self.parts * self.config.mesh.sequence

    @property
    def slots(self) -> int:
        """Cache slots per response."""
        return -(-self.config.rollout.max_tokens // CHUNK) * CHUNK

    @property
    def layout(self) -> str:
        """`rollout.layout`, with "auto" resolved."""
        chosen = self.config.rollout.layout
        if chosen == "auto":
            return "replicated" if self.weights * self.item <= MAX_REPLICATED else "tensor"
        return chosen


def blocks(s: Sizes) -> tuple[int, ...]:
    """Returns the slots per block of a response's cache."""
    return block_sizes(s.slots, CHUNK)


def _cache_bytes(s: Sizes) -> float:
    """Bytes of one token's keys and values, all layers."""
    kind, c = s.config.rollout.cache, s.model
    size = {"bfloat16": 2.0, "int8": 1.0 + 4.0 / c.head_size}.get(kind, float(s.item))
    heads = c.kv_heads / math.gcd(c.kv_heads, s.config.mesh.tensor)
    return 2.0 * c.layers * heads * c.head_size * size


def count_work(s: Sizes, images: Sequence[Any] | None = None) -> dict[str, Work]:
    """Counts the phases of an iteration, all devices together; every response has full length.

    Args:
        s: the run.
        images: of a batch, what `Media.grids` returns; None for one in each prompt that fills it.
    """
    c, m, costs = s.config, s.model, s.costs
    prompts, samples, steps = c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens
    length, patches = s.bucket
    rows, micro = sequences(c), microbatch(c)
    vision = costs.encode_images(m, images, patches, prompts, s.item)
    one_pass = costs.forward(m, prompts, samples, length, steps, s.item)
    one_pass = one_pass._replace(bytes=one_pass.bytes * logprob_passes(c))
    passes = s.reference + (old_logprobs(c) == "trainer")
    copies = samples / prompt_sharing(c)
    forward = costs.forward(m, prompts, samples, length, steps, s.item, copies)
    gradient = costs.gradient(
        m, forward, rows * steps, rows // micro, c.model.remat == "full", s.item
    )
    update = {
        "update": total([gradient] * c.train.epochs),
        "optimizer": optimizer_step(s.trained, optimizer_steps(c)),
    }
    if c.mode == "sft":
        count = 1 + GRADIENT * trains_vision(c)
        return {"vision": total([vision] * count), **update}
    if not s.frozen:  # the vision tower runs in every other pass
        count = 1 + passes + (1 + GRADIENT) * c.train.epochs * copies
        vision = Work(vision.needed * count, vision.executed * count, vision.bytes * count)
    return {
        "vision": vision,
        "prefill": costs.prefill(m, prompts, length, s.item),
        "decode": costs.decode(m, prompts, samples, length, steps, s.item, blocks(s)),
        "passes": total([one_pass] * passes),
        **update,
    }


class Assumed(NamedTuple):
    """Assumed fractions of the peak.

    Attributes:
        train: of FLOP/s, in gradient and log-prob passes.
        prefill: of FLOP/s, in prefill and vision tower.
        decode: of memory bandwidth, in decoding.
        link: of link bandwidth.
    """

    train: float = 0.4
    prefill: float = 0.4
    decode: float = 0.6
    link: float = 0.7


def decode_bytes(s: Sizes) -> float:
    """Returns the bytes that each device reads to decode all tokens of its rows.

    Per token: its shard of the weights (or all of them), the keys and values of its prompts, and
    all slots of the response blocks that have begun.
    """
    weight_shards = 1 if s.layout == "replicated" else s.decoding_parts
    if s.layout == "train":  # gathered per token, then read
        weight_shards = s.config.mesh.tensor
    sizes = blocks(s)
    met = sum(size * sum(sizes[: number + 1]) for number, size in enumerate(sizes))
    prompts, rows = (x / shards(s.config) for x in (s.config.rollout.prompts, sequences(s.config)))
    read = s.slots * prompts * s.bucket[0] + rows * met
    return s.slots * s.weights * s.item / weight_shards + read * _cache_bytes(s)


def seconds(
    s: Sizes, topology: Topology, sent: dict[str, float], assumed: Assumed
) -> dict[str, float]:
    """Predicts the seconds of an iteration's phases.

    Args:
        s: the run.
        topology: the hardware.
        sent: step -> bytes sent per device and iteration, from the compiled steps.
        assumed: fractions of the peak.

    Returns:
        phase -> seconds; "collectives" is the time on the link, with no overlap.
    """
    chip, done = topology.chip, count_work(s)
    devices = math.prod(s.config.mesh.values())
    wire = chip.link if topology.nodes == 1 else chip.network

    phase_seconds = {}
    for phase, phase_work in done.items():
        share = assumed.prefill if phase in ("vision", "prefill") else assumed.train
        phase_seconds[phase] = phase_work.executed / (devices * chip.flops * share)
        if phase == "decode":
            read = decode_bytes(s) / (chip.bandwidth * assumed.decode)
            phase_seconds[phase] = max(phase_seconds[phase], read)
        elif phase == "optimizer":
            phase_seconds[phase] = phase_work.bytes / s.parts / (chip.bandwidth * assumed.decode)
    return {**phase_seconds, "collectives": sum(sent.values()) / (wire * assumed.link)}


def summary(
    s: Sizes, topology: Topology, phases: dict[str, float], dollars: float
) -> dict[str, float]:
    """Returns seconds per iteration, response tokens per second, MFU and dollars.

    Args:
        s: the run.
        topology: the hardware.
        phases: from `seconds`.
        dollars: per chip-hour.
    """
    whole = sum(phases.values())
    needed = sum(phase_work.needed for phase_work in count_work(s).values())
    devices = math.prod(s.config.mesh.values())
    return {
        "iteration_s": whole,
        "tokens_per_s": sequences(s.config) * s.config.rollout.max_tokens / whole,
        "mfu": needed / (whole * devices * topology.chip.flops),
        "dollars_per_1000": whole * 1000 / 3600 * topology.chips * dollars,
    }
