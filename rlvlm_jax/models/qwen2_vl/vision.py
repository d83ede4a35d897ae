# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The vision tower of Qwen2-VL and Qwen2.5-VL with its patch merger: pixels in, image tokens out.

The two families differ in norm and MLP, and most blocks of Qwen2.5-VL attend within windows. All
images of a prompt share one axis of patches; the numbers of image and window in `media.Patches`
keep attention within an image or a window. If there are many patches, they are first sorted by
window, so that each attends to nearby patches only. This module knows nothing about text.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from rlvlm_jax.models.common import lora
from rlvlm_jax.models.common.attention import Ids, Keys, attend
from rlvlm_jax.models.common.kernels import Kernel
from rlvlm_jax.models.common.layers import (
    ACTIVATIONS,
    GatedMlp,
    Gather,
    Linear,
    RMSNorm,
    gathering,
    stacked,
)
from rlvlm_jax.models.common.rope import rope_2d, rotate
from rlvlm_jax.models.common.runtime import Runtime
from rlvlm_jax.models.qwen2_vl.config import QwenVLConfig, VisionConfig
from rlvlm_jax.models.qwen2_vl.media import Patches
from rlvlm_jax.types import Array, Params, Prompts

# The tower is small next to the decoder: sharded over `fsdp` for memory, replicated over `tensor`.
VISION_RULES = (
    (r"^vision/patch_embed/weight$", P("fsdp", None)),  # [Dv, C * frames]
    (r"^vision/blocks/(attn/qkv|mlp/(fc1|gate|up))/weight$", P(None, None, "fsdp")),  # [Lv, F, Dv]
    (r"^vision/blocks/(attn/proj|mlp/(fc2|down))/weight$", P(None, "fsdp", None)),  # [Lv, Dv, F]
    (r"^vision/merger/fc[12]/weight$", P(None, "fsdp")),  # [out, in]
    (r"^vision/(blocks|merger)/.*/(bias|scale)$", P()),
)


def normalise(patches: Array, config: VisionConfig) -> Array:
    """Maps bytes to (x / 255 - mean) / std and repeats the still frame.

    Args:
        patches: uint8[N, I, C], channel-major, one frame.
        config: mean and deviation of each channel, and the number of frames.

    Returns:
        float32[N, I, 3 * frames * patch_size**2], in the order channel, frame, row, column.
    """
    n, i, _ = patches.shape
    mean, std = (np.float32(value)[:, None] for value in (config.image_mean, config.image_std))
    pixels = (patches.reshape(n, i, 3, -1).astype(jnp.float32) / 255.0 - mean) / std
    frames = jnp.repeat(pixels[:, :, :, None], config.temporal_patch_size, axis=3)
    return frames.reshape(n, i, -1)


def norm(config: VisionConfig, dtype: Any) -> nn.Module:
    """Returns the family's norm: LayerNorm (Qwen2-VL) or RMSNorm (Qwen2.5-VL), in float32."""
    if config.family == "qwen2_vl":
        return nn.LayerNorm(epsilon=config.norm_eps, dtype=dtype, use_fast_variance=False)
    return RMSNorm(epsilon=config.norm_eps, dtype=dtype)


class Mlp(nn.Module):
    """fc2(act(fc1(x))); `width` is the hidden width, `out` the output's; both have a bias."""

    width: int
    out: int
    act: str
    dtype: Any

    def setup(self) -> None:
        """Declares the two layers."""
        self.fc1 = Linear(self.width, self.dtype, bias=True)
        self.fc2 = Linear(self.out, self.dtype, bias=True)

    def __call__(self, x: Array) -> Array:
        """Maps [..., D] to [..., out]."""
        return self.fc2(ACTIVATIONS[self.act](self.fc1(x)))


class Attention(nn.Module):
    """Non-causal self-attention within segments of the patch axis, with 2-D rotary."""

    config: VisionConfig
    dtype: Any
    kernel: Kernel

    def setup(self) -> None:
        """Declares the joint and the output projection."""
        self.qkv = Linear(3 * self.config.width, self.dtype, bias=True)
        self.proj = Linear(self.config.width, self.dtype, bias=True)

    def __call__(self, x: Array, full: Array, shared: tuple) -> Array:
        """Maps [N, I, Dv] to the same; see `Block`."""
        image, window, rotary = shared
        n, i, _ = x.shape
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(n, i, 3, self.config.heads, -1), 2, 0)
        q, k = rotate(q, rotary), rotate(k, rotary)
        if by_window(self.config, i):
            size = self.config.window_side**2
            attended = jax.lax.cond(
                full,
                partial(attend_within, segment=image, kernel=self.kernel),
                partial(attend_near, segment=window, size=size, kernel=self.kernel),
                *(q, k, v),
            )
        else:
            attended = attend_within(q, k, v, jnp.where(full, image, window), self.kernel)
        return self.proj(attended.reshape(x.shape))


def attend_within(q: Array, k: Array, v: Array, segment: Array, kernel: Kernel) -> Array:
    """Computes attention between all patches of a segment.

    Args:
        q: [N, I, H, E], as are k and v.
        k: keys.
        v: values.
        segment: int32[N, I], 0 at padding.
        kernel: attention kernel.
    """
    ids = Ids(segment[:, None], jnp.zeros(segment.shape[1], jnp.int32))
    return attend(q[:, None], ids, [Keys(k, v, ids)], kernel=kernel, causal=False)[:, 0]


def attend_near(q: Array, k: Array, v: Array, segment: Array, size: int, kernel: Kernel) -> Array:
    """`attend_within` for contiguous segments of at most `size` patches.

    The axis is cut into blocks of `size`. A segment then spans at most two adjacent blocks, so each
    block attends only to itself and its two neighbours.
    """
    n, i = segment.shape
    count = -(-i // size)

    def cut(x: Array) -> Array:  # [N, count, size, ...]
        padding = [(0, 0), (0, count * size - i), *[(0, 0)] * (x.ndim - 2)]
        return jnp.pad(x, padding).reshape(n, count, size, *x.shape[2:])

    def around(x: Array) -> Array:  # [N, count, 3 * size, ...]
        x = jnp.pad(cut(x), [(0, 0), (1, 1), *[(0, 0)] * (x.ndim - 1)])
        return jnp.concatenate([x[:, :-2], x[:, 1:-1], x[:, 2:]], axis=2)

    def rows(x: Array) -> Array:  # each block as its own sequence
        return x.reshape(n * count, *x.shape[2:])

    q, k, v = rows(cut(q)), rows(around(k)), rows(around(v))
    block_ids, near_ids = (
        Ids(rows(x)[:, None], jnp.zeros(x.shape[-1], jnp.int32))
        for x in (cut(segment), around(segment))
    )
    attended = attend(q[:, None], block_ids, [Keys(k, v, near_ids)], kernel=kernel, causal=False)
    return attended.reshape(n, count * size, *attended.shape[3:])[:, :i]


def by_window(config: VisionConfig, patches: int) -> bool:
    """Returns whether windows are sorted and attended to separately, without a mask over all.

    They are if a block of three windows is at most half of all `patches` of a prompt.
    """
    return 0 < 6 * config.window_side**2 <= patches


def sort_by_window(patches: Patches, merge_size: int) -> tuple[Patches, Array]:
    """Sorts the merge blocks of each prompt by their window.

    Args:
        patches: of N prompts; all patches of a merge block are in one window.
        merge_size: patches along its side.

    Returns:
        (the patches in that order, int32[N, M], the new position of each block).
    """
    block = merge_size**2
    order = jnp.argsort(patches.window[:, ::block], axis=1, stable=True)

    def sort(x: Array) -> Array:
        blocks = x.reshape(*order.shape, -1)
        return jnp.take_along_axis(blocks, order[..., None], axis=1).reshape(x.shape)

    return Patches(*map(sort, patches)), jnp.argsort(order, axis=1)


class Block(nn.Module):
    """One pre-norm block; the scanned flag chooses between whole images and windows."""

    config: VisionConfig
    dtype: Any
    kernel: Kernel

    def setup(self) -> None:
        """Declares the family's norms and MLP."""
        c = self.config
        self.norm1 = norm(c, self.dtype)
        self.attn = Attention(c, self.dtype, self.kernel)
        self.norm2 = norm(c, self.dtype)
        if c.family == "qwen2_vl":
            self.mlp = Mlp(c.mlp_width, c.width, c.act, self.dtype)
        else:
            self.mlp = GatedMlp(c.mlp_width, c.width, c.act, True, self.dtype)

    def __call__(self, x: Array, full: Array, shared: tuple) -> tuple[Array, None]:
        """Maps [N, I, Dv] to the same.

        Args:
            x: patches, sorted by window if `by_window` says so.
            full: bool[], whether attention spans images, not windows.
            shared: (image number, window number, int32[N, I] each, 0 at padding, rotary).
        """
        x = x + self.attn(self.norm1(x), full, shared)
        return x + self.mlp(self.norm2(x)), None


class Merger(nn.Module):
    """Joins each merge block of patches into one image token of the language model's width."""

    config: VisionConfig
    dtype: Any

    def setup(self) -> None:
        """Declares the norm of a patch and the MLP of a merge block."""
        c = self.config
        self.norm = norm(c, self.dtype)
        self.fc1 = Linear(c.width * c.merge_size**2, self.dtype, bias=True)
        self.fc2 = Linear(c.out_width, self.dtype, bias=True)

    def __call__(self, x: Array) -> Array:
        """Maps [N, I, Dv] to [N, M, D]."""
        n, i, _ = x.shape
        x = self.norm(x).reshape(n, i // self.config.merge_size**2, -1)
        return self.fc2(ACTIVATIONS["gelu"](self.fc1(x)))


class VisionTower(nn.Module):
    """Maps patches to image tokens."""

    config: VisionConfig
    runtime: Runtime

    def setup(self) -> None:
        """Declares the patch projection, the scanned blocks and the merger."""
        c, runtime = self.config, self.runtime

        def gather(name: str, layers: bool = False) -> Gather:
            rules = (*VISION_RULES, *lora.rules(VISION_RULES))
            return runtime.sharding.gather(rules, f"vision/{name}/", layers, runtime.dtype)

        embed = gathering(Linear, gather("patch_embed"))
        self.patch_embed = embed(c.width, runtime.dtype, bias=False)
        blocks = stacked(Block, c.depth, runtime.remat, gather("blocks", layers=True))
        self.blocks = blocks(c, runtime.dtype, runtime.kernel)
        self.merger = gathering(Merger, gather("merger"))(c, runtime.dtype)

    def __call__(self, patches: Patches) -> Array:
        """Encodes the images of each prompt.

        Args:
            patches: of N prompts.

        Returns:
            [N, M, D] in the compute dtype, one feature per merge block in the order of the patches;
            finite but meaningless at padding.
        """
        c = self.config
        full = np.isin(np.arange(c.depth), c.full_attention_blocks)
        windowed = by_window(c, patches.image.shape[1])
        with jax.named_scope("vision"):
            if windowed:
                patches, positions = sort_by_window(patches, c.merge_size)
            x = self.patch_embed(normalise(patches.pixels, c).astype(self.runtime.dtype))
            rotary = rope_2d(patches.coords, c.width // c.heads)
            shared = (patches.image, patches.window, rotary)
            x, _ = self.blocks(x, jnp.asarray(full), shared)
            x = self.merger(x)
            return jnp.take_along_axis(x, positions[..., None], axis=1) if windowed else x


def encode_images(config: QwenVLConfig, runtime: Runtime, params: Params, batch: Prompts) -> Array:
    """See `Model.encode_images`."""
    prompts, patches = batch.media.image.shape
    if patches == 0:
        return jnp.zeros((prompts, 0, config.width), runtime.dtype)
    return VisionTower(config.vision, runtime).apply({"params": params["vision"]}, batch.media)
