# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The roofline: measured FLOP/s and bandwidth, and the least time that each part can take.

The rates are measured with large products and large arrays, not taken from a data sheet. The bound
of a part is the sum over its phases of max(FLOPs / rate, bytes / bandwidth), counting only the
FLOPs that the mathematics needs. Weights and caches that fit the processor's caches move faster
than memory bandwidth, so a small model can beat its bound.
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlvlm_jax import optim
from rlvlm_jax.bench.work import Workload
from rlvlm_jax.compiled_steps import needs_reference
from rlvlm_jax.models.common.costs import Work
from rlvlm_jax.plan.predict import Sizes, count_work


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
    session, media = work.session, work.session.media
    trained, _ = optim.split(
        session.shapes, optim.make_trained(work.config.train, session.model.part)
    )
    sizes = Sizes(
        config=work.config,
        model=session.source.config,
        bucket=(work.batch.tokens.shape[1], media.size(work.batch.media)),
        trained=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained)),
        reference=needs_reference(work.config),
        frozen=session.features_frozen,
    )
    phases = count_work(sizes, media.grids(work.batch.media))
    parts = {
        "rollout": {name: phases[name] for name in ("vision", "prefill", "decode")},
        "logprobs": {"passes": phases["passes"]},
        "update": {"gradient": phases["update"], "optimizer": phases["optimizer"]},
    }
    if not session.features_frozen:  # the tower runs in all parts; its work is not divided up
        del parts["rollout"]["vision"]
    parts["iteration"] = {name: x for part in list(parts.values()) for name, x in part.items()}
    return parts


def bound_s(phases: dict[str, Work], limit: Limit) -> float:
    """Returns the least seconds that these phases can take in sequence."""
    return sum(
        max(work.needed / limit.flops_per_s, work.bytes / limit.bytes_per_s)
        for work in phases.values()
    )
