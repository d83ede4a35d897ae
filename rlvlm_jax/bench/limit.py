# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The roofline: measured FLOP/s and bandwidth, and the least time that each part can take.

The rates are measured with large products and large arrays, not taken from a data sheet. The bound
of a part is the sum over its phases of max(FLOPs / rate, bytes / bandwidth), counting only the
FLOPs that the mathematics needs. Weights and caches that fit the processor's caches move faster
than memory bandwidth, so a small model can beat its bound.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlvlm_jax import optim
from rlvlm_jax.bench.work import Workload
from rlvlm_jax.config import logprob_passes, microbatch, old_logprobs, sequences
from rlvlm_jax.models.common.costs import Work, optimizer_step, total
from rlvlm_jax.sampling.sampler import block_sizes
from rlvlm_jax.train import needs_reference
from rlvlm_jax.update import optimizer_steps, prompt_sharing


class Limit(NamedTuple):
    """Measured rates of the device."""

    flops_per_s: float  # matrix product in the case's dtype
    bytes_per_s: float  # the faster of reading and copying
    read_bytes_per_s: float
    copy_bytes_per_s: float  # bytes read plus bytes written


def _fastest(run: Callable[[], Any], repeats: int = 5) -> float:
    """Returns the seconds of the fastest call, after one call that compiles."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure(dtype: str) -> Limit:
    """Measures the default device.

    Args:
        dtype: of the matrix product, "float32" or "bfloat16".
    """
    large = jax.default_backend() != "cpu"
    size, count = (8192, 2**30) if large else (1024, 2**25)
    x = jnp.ones((size, size), dtype)
    y = jnp.ones((count,), jnp.float32)
    moved = y.size * y.dtype.itemsize
    read = jax.jit(jnp.sum)
    copy = jax.jit(lambda y: -y)
    read_rate = moved / _fastest(lambda: read(y))
    copy_rate = 2 * moved / _fastest(lambda: copy(y))
    # Libraries may prefer either form of a product; the model uses the first.
    forms = [
        jax.jit(lambda x, axis=axis: jax.lax.dot_general(x, x, (((1,), (axis,)), ((), ()))))
        for axis in (1, 0)
    ]
    rate = 2.0 * size**3 / min(_fastest(lambda form=form: form(x), 10) for form in forms)
    return Limit(rate, max(read_rate, copy_rate), read_rate, copy_rate)


def fastest(*limits: Limit) -> Limit:
    """Returns the best of several measurements; other load on the machine may slow some."""
    return Limit(*(max(values) for values in zip(*limits, strict=True)))


def counted(work: Workload) -> dict[str, dict[str, Work]]:
    """Counts the work of each part of a step.

    Returns:
        part -> phase -> Work, summed over all devices. `iteration` holds the phases of all parts.
    """
    c, source = work.config, work.session.source
    model, costs = source.config, source.family.costs
    size = np.dtype(jnp.dtype(c.model.dtype)).itemsize
    prompts, samples, steps = c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens
    media, length = work.session.media, work.batch.tokens.shape[1]
    images, patches = media.grids(work.batch.media), media.size(work.batch.media)
    rows, micro = sequences(c), microbatch(c)
    blocks = block_sizes(-(-steps // c.rollout.chunk) * c.rollout.chunk, c.rollout.chunk)

    vision = costs.encode_images(model, images, patches, prompts, size)
    one_pass = costs.forward(model, prompts, samples, length, steps, size)
    parts = logprob_passes(c)
    one_pass = one_pass._replace(bytes=one_pass.bytes * parts)
    passes = needs_reference(c) + (old_logprobs(c) == "trainer")
    copies = samples / prompt_sharing(c)
    forward = costs.forward(model, prompts, samples, length, steps, size, copies)
    gradient = costs.gradient(
        model, forward, rows * steps, rows // micro, c.model.remat == "full", size
    )
    trained, _ = optim.split(
        work.session.shapes, optim.make_trained(c.update, work.session.model.part)
    )
    numbers = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(trained))
    counts = {
        "rollout": {
            "prefill": costs.prefill(model, prompts, length, size),
            "decode": costs.decode(model, prompts, samples, length, steps, size, blocks),
        },
        "logprobs": {"passes": total([one_pass] * passes)},
        "update": {
            "gradient": total([gradient] * c.update.epochs),
            "optimizer": optimizer_step(numbers, optimizer_steps(c)),
        },
    }
    if work.session.features_frozen:
        counts["rollout"] = {"vision": vision, **counts["rollout"]}
    counts["iteration"] = {k: v for part in list(counts.values()) for k, v in part.items()}
    return counts


def bound_s(phases: dict[str, Work], limit: Limit) -> float:
    """Returns the least seconds that these phases can take in sequence."""
    return sum(
        max(work.needed / limit.flops_per_s, work.bytes / limit.bytes_per_s)
        for work in phases.values()
    )
