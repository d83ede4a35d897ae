# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes of Qwen2-VL and Qwen2.5-VL: those on the hub, and those that the benchmark times."""

import dataclasses
import functools

from rlvlm_jax.models.qwen2_vl.config import ACTIVATION, QwenVLConfig, VisionConfig


def _published(
    family: str,
    *,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    mlp_width: int,
    vocab_size: int = 152_064,
    tie_embeddings: bool = False,
    vision_mlp_width: int,
) -> QwenVLConfig:
    windowed = family == "qwen2_5_vl"
    tower = VisionConfig(
        family=family,
        depth=32,
        width=1280,
        heads=16,
        mlp_width=vision_mlp_width,
        out_width=width,
        window_size=112 if windowed else 0,
        full_attention_blocks=(7, 15, 23, 31) if windowed else tuple(range(32)),
        act=ACTIVATION[family],
    )
    return QwenVLConfig(
        family=family,
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=128,
        mlp_width=mlp_width,
        rope_theta=1_000_000.0,
        mrope_section=(16, 24, 24),
        norm_eps=1e-6,
        tie_embeddings=tie_embeddings,
        image_token_id=151655,
        video_token_id=151656,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
        vision_token_id=151654,
        vision=tower,
    )


_qwen2 = functools.partial(_published, "qwen2_vl", vision_mlp_width=5120)
_qwen2_5 = functools.partial(_published, "qwen2_5_vl")

# The sizes on the hub, for shape-only tests and for planning memory before a download.
PUBLISHED = {
    "qwen2-vl-2b": _qwen2(
        width=1536,
        layers=28,
        heads=12,
        kv_heads=2,
        mlp_width=8960,
        vocab_size=151_936,
        tie_embeddings=True,
    ),
    "qwen2-vl-7b": _qwen2(width=3584, layers=28, heads=28, kv_heads=4, mlp_width=18944),
    "qwen2-vl-72b": _qwen2(width=8192, layers=80, heads=64, kv_heads=8, mlp_width=29568),
    "qwen2.5-vl-3b": _qwen2_5(
        width=2048,
        layers=36,
        heads=16,
        kv_heads=2,
        mlp_width=11008,
        vocab_size=151_936,
        tie_embeddings=True,
        vision_mlp_width=3420,
    ),
    "qwen2.5-vl-7b": _qwen2_5(
        width=3584, layers=28, heads=28, kv_heads=4, mlp_width=18944, vision_mlp_width=3420
    ),
    "qwen2.5-vl-32b": _qwen2_5(
        width=5120, layers=64, heads=40, kv_heads=8, mlp_width=27648, vision_mlp_width=3456
    ),
    "qwen2.5-vl-72b": _qwen2_5(
        width=8192, layers=80, heads=64, kv_heads=8, mlp_width=29568, vision_mlp_width=3456
    ),
}

_BUNDLED_IDS = {  # of the bundled tokenizer
    "image_token_id": 510,
    "video_token_id": 511,
    "vision_start_token_id": 507,
    "vision_end_token_id": 508,
    "vision_token_id": 509,
}


def _small(
    vocab: int, width: int, layers: int, heads: int, mlp: int, tower: dict[str, int]
) -> QwenVLConfig:
    """A small Qwen2.5-VL with a tied head; windows are 8 patches wide, as in published models."""
    depth = tower["depth"]
    vision = VisionConfig(
        family="qwen2_5_vl",
        out_width=width,
        window_size=112,
        full_attention_blocks=(depth // 2 - 1, depth - 1),
        act="silu",
        **tower,
    )
    return QwenVLConfig(
        family="qwen2_5_vl",
        vocab_size=vocab,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=2,
        head_size=width // heads,
        mlp_width=mlp,
        rope_theta=1_000_000.0,
        mrope_section=(8, 12, 12),
        norm_eps=1e-6,
        tie_embeddings=True,
        vision=vision,
        **_BUNDLED_IDS,
    )


# With the token ids of the bundled tokenizer.
BENCHMARK = {
    "4m": _small(4096, 256, 4, 4, 704, {"depth": 4, "width": 64, "heads": 2, "mlp_width": 128}),
    "84m": _small(
        32_768, 640, 12, 10, 1920, {"depth": 8, "width": 256, "heads": 4, "mlp_width": 512}
    ),
    "3b": dataclasses.replace(PUBLISHED["qwen2.5-vl-3b"], **_BUNDLED_IDS),
    "7b": dataclasses.replace(PUBLISHED["qwen2.5-vl-7b"], **_BUNDLED_IDS),
}
