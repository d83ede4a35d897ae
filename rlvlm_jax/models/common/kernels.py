# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Library attention kernels, one for each kind of device, and the choice between them.

`plain` is `attention.attend`'s own computation. It runs everywhere, reads the keys of a shared
prompt once for all responses, and is the only one that gives the sampler and the trainer the same
bits on CPU. The others need the keys of a sequence as one array:

* `xla`: `jax.nn.dot_product_attention` in XLA's own operations. Any device, any dtype. It stores
  all scores and serves as a baseline for measurements.
* `cudnn`: the same function by cuDNN's fused kernel. NVIDIA GPUs of compute capability 8.0 and up,
  bfloat16, head sizes that are multiples of 8 up to 128. It takes even lengths; odd ones are padded
  here. The mask is an array of one number per query and key, shared by the heads.
* `splash`: the Pallas kernel in JAX. TPUs, any dtype and length; lengths are padded here to
  multiples of 128. It stores neither scores nor mask, and skips what the causal mask hides. It
  cannot handle packed streams, in which several responses follow one prompt.

`choose` refuses what a kernel cannot do before anything is traced; there is no fallback while
tracing. The functions here only see arrays: `attention` decides the masking.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlvlm_jax.errors import InputError
from rlvlm_jax.sharding import PASS_ROWS, ROWS
from rlvlm_jax.types import Array

KERNELS = ("plain", "xla", "cudnn", "splash")
GPUS = ("gpu", "cuda")  # the platform's name on a device, and in a topology without devices
LANES = 128  # splash's block sizes are multiples of this
MAX_BLOCK = 512  # largest side of splash's blocks: 1 MiB of float32 scores


class Kernel(NamedTuple):
    """How to compute attention over full sequences.

    Attributes:
        name: one of `KERNELS`.
        mesh: mesh of the program, None for one device. On several devices `cudnn` and `splash` run
            on each device's shard: heads over `tensor`, sequences as `by_tokens` says.
        by_tokens: True shards sequences over `data` and `fsdp` and their queries over `sequence`;
            False shards sequences over all three.
        interpret: whether to run splash in Pallas's interpreter, on any device; for tests, very
            slow.
    """

    name: str = "plain"
    mesh: Mesh | None = None
    by_tokens: bool = False
    interpret: bool = False

    @property
    def query_parts(self) -> int:
        """Number of devices over which the queries of a sequence are sharded."""
        return self.mesh.shape["sequence"] if self.mesh and self.by_tokens else 1


PLAIN = Kernel()


def choose(
    attention: str,
    *,
    dtype: str,
    head_sizes: Sequence[int],
    mesh: Mesh,
    packed: bool = False,
    interpret: bool = False,
) -> Kernel:
    """Returns the kernel for `model.attention` on the devices of a mesh.

    "auto" is splash on TPUs, cudnn on NVIDIA GPUs if it supports the model, and plain otherwise.
    The mesh's devices need not be on this machine: a program compiled ahead of time gets the kernel
    of its target devices.

    Args:
        attention: "auto" or one of `KERNELS`.
        dtype: compute dtype.
        head_sizes: of all attention layers.
        mesh: on which the program will run.
        packed: whether there are packed streams (config.train.pack_tokens).
        interpret: see `Kernel`.

    Raises:
        InputError: the named kernel does not support this model on these devices.
    """
    request = {
        "dtype": dtype,
        "head_sizes": head_sizes,
        "platform": mesh.devices.flat[0].platform,
        "packed": packed,
    }
    platform = request["platform"]
    name = attention
    if attention == "auto":
        name = "splash" if platform == "tpu" else "cudnn" if platform in GPUS else "plain"
        if unsupported_reason(name, **request):
            name = "plain"
    elif problem := unsupported_reason(name, **request):
        raise InputError(f"config.model.attention={attention!r} {problem}; use 'auto' or 'plain'")
    return Kernel(name, mesh if mesh.size > 1 else None, interpret=interpret)


def unsupported_reason(
    name: str, *, dtype: str, head_sizes: Sequence[int], platform: str, packed: bool
) -> str:
    """Returns why a kernel cannot run a model, "" if it can.

    The module's docstring lists the rules. Lengths do not matter, since they are padded.

    Args:
        name: one of `KERNELS`.
        dtype: compute dtype.
        head_sizes: of all attention layers.
        platform: JAX's name for the devices' platform.
        packed: whether there are packed streams.
    """
    if name == "cudnn":
        if platform not in GPUS:
            return f"needs NVIDIA GPUs, not {platform!r} devices"
        if dtype != "bfloat16":
            return f"needs config.model.dtype='bfloat16', not {dtype!r}"
        for size in head_sizes:
            if size % 8 or size > 128:
                return f"needs head sizes that are multiples of 8 up to 128, not {size}"
    if name == "splash" and platform != "tpu":
        return f"needs TPUs, not {platform!r} devices"
    if name == "splash" and packed:
        return "cannot serve packed streams (config.train.pack_tokens)"
    return ""


def dot_product(kernel: Kernel, q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Computes attention under any mask with `jax.nn.dot_product_attention`.

    Args:
        kernel: `xla` or `cudnn`.
        q: [B, Q, H, E].
        k: [B, S, K, E]; query head h uses key head h // (H / K).
        v: [B, S, K, E].
        mask: bool[B, Q, S].

    Returns:
        [B, Q, H, E]; finite but meaningless where a query sees no key.
    """
    attend = functools.partial(jax.nn.dot_product_attention, implementation=kernel.name)
    if kernel.name == "xla":  # GSPMD shards it by itself
        return attend(q, k, v, mask=mask[:, None])
    queries = q.shape[1]
    even = 2 * kernel.query_parts
    q, k, v = _pad(q, even, 1), _pad(k, 2, 1), _pad(v, 2, 1)
    mask = _pad(_pad(mask, even, 1), 2, 2)

    def by_mask(q, mask, k, v):
        return attend(q, k, v, mask=mask[:, None])

    return _on_mesh(kernel, by_mask, (q, mask), (k, v))[:, :queries]


def splash(
    kernel: Kernel,
    q: Array,
    k: Array,
    v: Array,
    query_segment: Array,
    key_segment: Array,
    *,
    causal: bool,
) -> Array:
    """Computes attention within segments with the splash kernel.

    Args:
        kernel: `splash`.
        q: [B, Q, H, E].
        k: [B, S, K, E]; query head h uses key head h // (H / K).
        v: [B, S, K, E].
        query_segment: int32[B, Q]; a query sees keys of its own segment.
        key_segment: int32[B, S].
        causal: whether query i sees no key after S - Q + i, i.e. the last keys are the queries'
            own.

    Returns:
        [B, Q, H, E]; finite but meaningless where a query sees no key. Length padding has segment
        0.
    """
    # Imported here: Pallas is slow to import and only TPUs need it.
    from jax.experimental.pallas.ops.tpu import splash_attention

    queries, keys, kv_heads = q.shape[1], k.shape[1], k.shape[2]
    q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
    q, query_segment = (_pad(x, LANES * kernel.query_parts, 1) for x in (q, query_segment))
    k, v, key_segment = (_pad(x, LANES, 1) for x in (k, v, key_segment))
    heads = q.shape[2] // kv_heads
    offset = keys - queries if causal else None
    sizes = q.shape[1], k.shape[1], heads, kernel.query_parts
    sequence_kernel = _splash_kernel(*sizes, offset, kernel.interpret)

    def run(q, query_segment, k, v, key_segment, sequence_kernel):
        b, length, _, size = q.shape
        q = q.reshape(b, length, -1, heads, size).transpose(0, 2, 3, 1, 4)  # [B, K, h, Q, E]
        k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))  # [B, K, S, E]
        by_key_head = jax.vmap(sequence_kernel, (0, 0, 0, None))
        segments = splash_attention.SegmentIds(query_segment, key_segment)
        out = jax.vmap(by_key_head)(q, k, v, segments)
        return out.transpose(0, 3, 1, 2, 4).reshape(b, length, -1, size)

    kernel_specs = jax.tree.map(lambda _: P(), sequence_kernel)
    if kernel.query_parts > 1:
        query_sharding = NamedSharding(kernel.mesh, P(None, "sequence"))
        kernel_specs = sequence_kernel.manual_sharding_spec(query_sharding)
    out = _on_mesh(
        kernel, run, (q, query_segment), (k, v, key_segment), (sequence_kernel, kernel_specs)
    )
    return out[:, :queries]


@functools.cache
def _splash_kernel(queries, keys, heads, parts, offset, interpret):
    """Returns the kernel for `heads` query heads per key head; offset None means not causal.

    Each of `parts` devices has an equal run of the queries.

    Cached, because finding the blocks that the causal mask leaves takes time; as NumPy arrays, so
    that it belongs to no trace.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention

    if offset is None:
        mask = splash_attention.FullMask((queries, keys))
    else:
        mask = splash_attention.CausalMask((queries, keys), offset=offset)
    block_q, block_kv = _block(queries // parts), _block(keys)
    sizes = splash_attention.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_q_dq=block_q,
        block_kv_dq=block_kv,
    )
    with jax.core.eval_context():  # outside any trace
        splash_kernel = splash_attention.make_splash_mqa(
            splash_attention.MultiHeadMask([mask] * heads),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=parts,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, splash_kernel)


def _block(length):
    """Returns the largest multiple of `LANES` up to `MAX_BLOCK` that divides a padded length."""
    return max(b for b in range(LANES, MAX_BLOCK + 1, LANES) if length % b == 0)


def _pad(x, multiple, axis):
    """Pads the end of an axis with zeros (or False) up to the next multiple."""
    padding = -x.shape[axis] % multiple
    return jnp.pad(x, [(0, padding if a == axis else 0) for a in range(x.ndim)]) if padding else x


def _on_mesh(
    kernel: Kernel,
    run: Callable,
    query_arrays: tuple[Array, ...],
    key_arrays: tuple[Array, ...],
    *rest: tuple[Array, Any],
) -> Array:
    """Calls run(*query_arrays, *key_arrays, *rest) on each device's shard; see `Kernel`.

    The compiler cannot shard a kernel that is opaque to it. If the sequences, the queries or the
    key heads do not divide over their axes, each device computes all of them.

    Args:
        kernel: gives the mesh and the sharding.
        run: returns an array like the first of `query_arrays`.
        query_arrays: [B, Q, H, E], and [B, Q, ...] without heads.
        key_arrays: [B, S, K, E], and [B, S, ...] without heads.
        rest: (further argument, its PartitionSpecs).
    """
    mesh = kernel.mesh
    rest_arrays = [array for array, _ in rest]
    if mesh is None:
        return run(*query_arrays, *key_arrays, *rest_arrays)
    q, k = query_arrays[0], key_arrays[0]
    rows = PASS_ROWS if kernel.by_tokens else ROWS
    if q.shape[0] % math.prod(mesh.shape[axis] for axis in rows):
        rows = None
    heads = "tensor" if k.shape[2] % mesh.shape["tensor"] == 0 else None
    tokens = "sequence" if kernel.query_parts > 1 else None

    def specs(arrays: tuple[Array, ...], tokens: str | None) -> list[P]:
        return [P(rows, tokens, *[heads] * (x.ndim == 4)) for x in arrays]

    run_sharded = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(
            *specs(query_arrays, tokens),
            *specs(key_arrays, None),
            *[spec for _, spec in rest],
        ),
        out_specs=P(rows, tokens, heads),
        check_vma=False,
    )
    return run_sharded(*query_arrays, *key_arrays, *rest_arrays)
