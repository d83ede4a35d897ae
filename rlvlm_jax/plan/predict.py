# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Predicts an iteration from sizes alone: bytes per device, seconds, dollars.

Phases with large matrix products take FLOPs over an assumed fraction of the chip's peak (MFU).
Decoding takes bytes over memory bandwidth, collectives take bytes over link bandwidth. No overlap
is assumed, and host work (data, rewards) is left out. Every response is assumed to have full
length, which is the most that an iteration can take.
"""

import math
from typing import NamedTuple

from ml_collections import ConfigDict

from rlvlm_jax.config import (
    logprob_passes,
    microbatch,
    old_logprobs,
    pass_shards,
    sequences,
    shards,
)
from rlvlm_jax.models.common.activation_sharding import MAX_REPLICATED
from rlvlm_jax.models.common.attention import MAX_SCORES
from rlvlm_jax.models.common.kernels import LANES
from rlvlm_jax.models.qwen2_vl import costs
from rlvlm_jax.models.qwen2_vl.config import QwenVLConfig
from rlvlm_jax.models.qwen2_vl.costs import Work
from rlvlm_jax.models.qwen2_vl.vision import by_window
from rlvlm_jax.plan.topology import Topology
from rlvlm_jax.sampling.sampler import SHRINK, block_sizes

Parts = dict[str, float]  # name -> bytes per device


class Sizes(NamedTuple):
    """What the prediction needs to know about a run.

    Attributes:
        config: validated, with its mesh resolved.
        model: sizes of the network.
        bucket: (P tokens, I patches) per prompt.
        parameters: number of parameters.
        trained: number of trained parameters.
        reference: whether there is a reference model.
        frozen: whether image features stay the same during training.
        kernel: the attention kernel for full sequences.
        on_tpu: whether the devices are TPUs.
    """

    config: ConfigDict
    model: QwenVLConfig
    bucket: tuple[int, int]
    parameters: int
    trained: int
    reference: bool
    frozen: bool
    kernel: str
    on_tpu: bool

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
    def image_tokens(self) -> int:
        """M, image tokens per prompt."""
        return self.bucket[1] // self.model.vision.merge_size**2

    @property
    def slots(self) -> int:
        """Cache slots per response."""
        chunk = self.config.rollout.chunk
        return -(-self.config.rollout.max_tokens // chunk) * chunk

    @property
    def layout(self) -> str:
        """`rollout.layout`, with "auto" resolved."""
        chosen = self.config.rollout.layout
        weights = costs.layer_weights(self.model) + costs.head_weights(self.model)
        if chosen == "auto":
            return "replicated" if weights * self.item <= MAX_REPLICATED else "tensor"
        return chosen


def blocks(s: Sizes) -> tuple[int, ...]:
    """Returns the slots per block of a response's cache."""
    return block_sizes(s.slots, s.config.rollout.chunk)


def resident(s: Sizes) -> Parts:
    """Returns what stays in memory during the whole run."""
    moments = 8.0 * s.trained / s.parts
    return {
        "parameters": 4.0 * s.parameters / s.parts,
        "optimizer": moments,
        "reference": 4.0 * s.parameters / s.parts if s.reference else 0.0,
    }


def carried(s: Sizes) -> Parts:
    """Returns what the steps of an iteration pass to later steps."""
    prompts, rows = (x / shards(s.config) for x in (s.config.rollout.prompts, sequences(s.config)))
    length, patches = s.bucket
    of_patch = 3 * s.model.vision.patch_size**2 + 4 * 4
    return {
        "prompts": prompts * (length * 17.0 + patches * of_patch),
        "features": prompts * s.image_tokens * s.model.width * s.item if s.frozen else 0.0,
        "responses": rows * s.config.rollout.max_tokens * (4 + 1 + 4 * 4.0),
    }


def _layer(s: Sizes) -> float:
    """Bytes of one decoder layer's weights, gathered over fsdp."""
    return costs.layer_weights(s.model) / s.model.layers * s.item / s.config.mesh.tensor


def _cache_bytes(s: Sizes) -> float:
    """Bytes of one token's keys and values, all layers."""
    kind, c = s.config.rollout.cache, s.model
    size = {"bfloat16": 2.0, "int8": 1.0 + 4.0 / c.head_size}.get(kind, float(s.item))
    heads = c.kv_heads / math.gcd(c.kv_heads, s.config.mesh.tensor)
    return 2.0 * c.layers * heads * c.head_size * size


def _stream(s: Sizes, prompts: float, rows: float, tokens: float) -> float:
    """Bytes of the hidden states [.., D] of prompts and responses."""
    return (prompts * s.bucket[0] + rows * tokens) * s.model.width * s.item


def _logits(s: Sizes, rows: float) -> float:
    """Bytes of one chunk's float32 logits per device, sharded over the vocabulary."""
    chunk = min(s.config.update.logprob_chunk, s.config.rollout.max_tokens)
    return 4.0 * rows * chunk * s.model.vocab_size / s.config.mesh.tensor


def _vision_attention(s: Sizes, prompts: float) -> Parts:
    """What attention in the vision tower allocates besides queries, keys and values."""
    v, patches = s.model.vision, s.bucket[1]
    if s.kernel in ("plain", "xla"):  # scores and their exponentials
        scores = min(MAX_SCORES, v.heads * patches**2)
        return {"scores": 2 * 4.0 * prompts * scores}
    if not by_window(v, patches):
        return {}
    # Queries, and keys and values three times, in tiles of 128 lanes, plus a transposed copy.
    size = v.width // v.heads
    lanes = -(-size // LANES) * LANES / size
    rotated = prompts * patches * 2 * v.width * 4.0  # queries and keys after the rotary embedding
    return {
        "keys by window": prompts * patches * 7 * v.width * s.item * lanes * 2,
        "turned queries and keys": rotated,
    }


def temporaries(s: Sizes) -> dict[str, Parts]:
    """Returns what each step needs besides its arguments: step -> name -> bytes.

    Counts the largest arrays that must be alive at once: caches, gathered weights, hidden states
    saved for the backward pass, the widest layer's inner states, gradients, logits. How many copies
    of hidden states, inner states and a layer's weights exist was fitted to compiled programs of a
    7B model. A step with several phases takes the largest phase.
    """
    c, m = s.config, s.model
    devices, rows = shards(c), sequences(c) / shards(c)
    prompts, steps = c.rollout.prompts / devices, c.rollout.max_tokens
    decoder = (costs.layer_weights(m) + costs.head_weights(m)) * s.item
    weight_shards = {"train": s.parts, "tensor": s.decoding_parts, "replicated": 1}[s.layout]
    few = rows // SHRINK if len(blocks(s)) > 1 else 0
    v = m.vision
    num_patches = prompts * s.bucket[1]
    inner = (2 if s.on_tpu else 2.5) * m.mlp_width * s.item / c.mesh.tensor
    of_prompts = prompts * s.bucket[0] * _cache_bytes(s)
    prefill = {
        "weights for decoding": decoder / weight_shards,
        "prompts' keys and values, twice": 2 * of_prompts,
        "hidden states": 2 * _stream(s, prompts, 0, 0),
        "a layer's inner states": prompts * s.bucket[0] * inner,
        "a layer's weights": _layer(s),
    }
    of_patch = (18.5 if s.on_tpu else 5) * v.width * s.item
    by_step = {
        "encode": {"hidden states": num_patches * of_patch, **_vision_attention(s, prompts)},
        "sample": {
            "weights for decoding": decoder / weight_shards,
            "prompts' keys and values": of_prompts,
            "responses' keys and values": rows * s.slots * _cache_bytes(s),
            "a copy of the last block": rows * blocks(s)[-1] * _cache_bytes(s) if s.on_tpu else 0.0,
            "those of a smaller batch": few * (s.bucket[0] + s.slots) * _cache_bytes(s),
            "logits": 3 * 4.0 * rows * m.vocab_size,
        },
        "passes": {},
        "trajectory": {"advantages": 3 * 4.0 * rows * steps},
    }
    by_step["sample"] = max(prefill, by_step["sample"], key=lambda parts: sum(parts.values()))
    if s.reference or old_logprobs(c) == "trainer":
        in_pass = 1 / logprob_passes(c)
        widest = max(steps * rows, s.bucket[0] * prompts) * in_pass
        stream = _stream(s, prompts * in_pass, rows * in_pass, steps)
        layers = {
            "hidden states": 2 * stream,
            "a layer's inner states": widest * inner,
            "a layer's weights": _layer(s),
        }
        head = {"hidden states": stream, "logits": 3 * _logits(s, rows * in_pass)}
        by_step["passes"] = max(layers, head, key=lambda parts: sum(parts.values()))
    micro = microbatch(c) / devices
    rows_of_pass = microbatch(c) // pass_shards(c)
    sharing = math.gcd(math.gcd(c.rollout.samples, c.update.minibatch), rows_of_pass)
    tokens = micro / sharing * s.bucket[0] + micro * steps
    of_prompt, of_response = micro / sharing * s.bucket[0], micro * steps
    saved_per_layer = tokens * m.width * s.item  # the input of each layer
    if c.model.remat != "full":
        saved_per_layer += tokens * (m.heads + 2 * m.kv_heads) * m.head_size * s.item
        saved_per_layer += tokens * (2 * m.width + 3 * m.mlp_width) * s.item / c.mesh.tensor
    sums = 1 + (microbatch(c) < c.update.minibatch)  # one micro-batch's, and the earlier ones' sum
    by_step["update"] = {
        "gradients": 4.0 * s.trained / s.parts * sums,
        "hidden states of all layers": m.layers * saved_per_layer,
        "a layer's inner states": max(of_prompt, of_response)
        * 8
        * m.mlp_width
        * s.item
        / c.mesh.tensor,
        "a layer's weights and gradient": 3 * _layer(s),
        "logits": 3 * _logits(s, micro),
    }
    if not s.frozen:  # the tower runs in every micro-batch
        shown = micro / sharing
        by_step["update"]["vision tower"] = shown * s.bucket[1] * of_patch
        if c.update.train_vit:
            of_block = shown * s.bucket[1] * v.width * s.item
            by_step["update"]["hidden states of the tower"] = v.depth * of_block
    return {"update": by_step["update"]} if c.mode == "sft" else by_step


def work(s: Sizes) -> dict[str, Work]:
    """Counts the phases of an iteration, all devices together; every response has full length."""
    c, m = s.config, s.model
    prompts, samples, steps = c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens
    length, patches = s.bucket
    rows, micro = sequences(c), microbatch(c)
    side = max(1, math.isqrt(patches // 4)) * 2
    images = [(side, side)] * prompts if patches else []
    vision = costs.encode_images(m, images, patches, prompts, s.item)
    one_pass = costs.forward(m, prompts, samples, length, steps, s.item)
    passes = s.reference + (old_logprobs(c) == "trainer")
    sharing = math.gcd(math.gcd(samples, c.update.minibatch), micro // pass_shards(c))
    forward = costs.forward(m, prompts, samples, length, steps, s.item, samples / sharing)
    gradient = costs.gradient(
        m, forward, rows * steps, rows // micro, c.model.remat == "full", s.item
    )
    updates = c.update.epochs * rows // c.update.minibatch
    update = {
        "update": costs.total([gradient] * c.update.epochs),
        "optimizer": costs.optimizer_step(s.trained, updates),
    }
    if c.mode == "sft":
        count = 1 + costs.GRADIENT * (c.update.train_vit or c.update.train_connector)
        return {"vision": costs.total([vision] * count), **update}
    if not s.frozen:  # the vision tower runs in every other pass
        count = 1 + passes + (1 + costs.GRADIENT) * c.update.epochs * samples / sharing
        vision = Work(vision.needed * count, vision.executed * count, vision.bytes * count)
    return {
        "vision": vision,
        "prefill": costs.prefill(m, prompts, length, s.item),
        "decode": costs.decode(m, prompts, samples, length, steps, s.item, blocks(s)),
        "passes": costs.total([one_pass] * passes),
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
    weights = costs.layer_weights(s.model) + costs.head_weights(s.model)
    weight_shards = 1 if s.layout == "replicated" else s.decoding_parts
    if s.layout == "train":  # gathered per token, then read
        weight_shards = s.config.mesh.tensor
    sizes = blocks(s)
    met = sum(size * sum(sizes[: number + 1]) for number, size in enumerate(sizes))
    prompts, rows = (x / shards(s.config) for x in (s.config.rollout.prompts, sequences(s.config)))
    read = s.slots * prompts * s.bucket[0] + rows * met
    return s.slots * weights * s.item / weight_shards + read * _cache_bytes(s)


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
    chip, done = topology.chip, work(s)
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


def summary(s: Sizes, topology: Topology, phases: dict[str, float], dollars: float) -> Parts:
    """Returns seconds per iteration, response tokens per second, MFU and dollars.

    Args:
        s: the run.
        topology: the hardware.
        phases: from `seconds`.
        dollars: per chip-hour.
    """
    whole = sum(phases.values())
    needed = sum(phase_work.needed for phase_work in work(s).values())
    devices = math.prod(s.config.mesh.values())
    return {
        "iteration_s": whole,
        "tokens_per_s": sequences(s.config) * s.config.rollout.max_tokens / whole,
        "mfu": needed / (whole * devices * topology.chip.flops),
        "dollars_per_1000": whole * 1000 / 3600 * topology.chips * dollars,
    }
