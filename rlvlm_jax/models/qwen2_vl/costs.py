# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""FLOPs and bytes of the vision tower of Qwen2-VL and Qwen2.5-VL; see `common.costs`.

A window needs its own patches only.
"""

import math
from collections.abc import Sequence

from rlvlm_jax.models.common.costs import DENSE, Work
from rlvlm_jax.models.qwen2_vl.config import QwenVLConfig, VisionConfig
from rlvlm_jax.models.qwen2_vl.vision import by_window


def vision_weights(vision: VisionConfig) -> tuple[int, int]:
    """Returns the sizes of the tower's matrices: (applied per patch, applied per merge block).

    The second is the merger's.
    """
    pixels = 3 * vision.temporal_patch_size * vision.patch_size**2
    matrices = 3 if vision.family == "qwen2_5_vl" else 2  # gated MLP or plain
    block = 4 * vision.width**2 + matrices * vision.width * vision.mlp_width
    merged = vision.width * vision.merge_size**2
    return vision.width * pixels + vision.depth * block, merged * (merged + vision.out_width)


def _vision_pairs(vision: VisionConfig, rows: int, columns: int) -> int:
    """Returns the (query, key) pairs of one image over all blocks."""
    whole = (rows * columns) ** 2
    full = len(vision.full_attention_blocks)
    if not vision.window_size:
        return vision.depth * whole
    side = vision.window_side

    def squares(length: int) -> int:  # windows start at the edge, the last may be smaller
        return length // side * side**2 + (length % side) ** 2

    return full * whole + (vision.depth - full) * squares(rows) * squares(columns)


def encode_images(
    config: QwenVLConfig,
    images: Sequence[tuple[int, int]] | None,
    padded: int,
    prompts: int,
    size: int,
) -> Work:
    """Counts one pass of the vision tower over the images of a batch.

    Args:
        config: the model's.
        images: (rows, columns) of patches of every image; None: one square image of all patches
            of a prompt.
        padded: I, patches per prompt with padding; these are executed.
        prompts: N.
        size: bytes of a number in the compute type.
    """
    if not padded:
        return Work(0.0, 0.0, 0.0)
    vision = config.vision
    per_patch, per_block = vision_weights(vision)
    merge = vision.merge_size**2
    if images is None:
        side = max(1, math.isqrt(padded // merge)) * vision.merge_size
        images = [(side, side)] * prompts

    def flops(patches: int, pairs: int) -> float:
        linear = per_patch * patches + per_block * patches / merge
        return 2.0 * linear + 4.0 * vision.width * pairs

    needed = flops(
        sum(rows * columns for rows, columns in images),
        sum(_vision_pairs(vision, *grid) for grid in images),
    )
    pairs = vision.depth * padded**2
    if by_window(vision, padded):
        full, window = len(vision.full_attention_blocks), vision.window_side**2
        blocks = -(-padded // window)
        pairs = full * padded**2 + (vision.depth - full) * blocks * window * 3 * window
    executed = flops(prompts * padded, prompts * pairs)
    return Work(needed, executed, float((per_patch + per_block) * size))


COSTS = DENSE._replace(encode_images=encode_images)
