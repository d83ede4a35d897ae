# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Configuration of a Qwen2-VL or Qwen2.5-VL model, read from Hugging Face's config.json.

`from_hf` accepts the three layouts in circulation: flat (transformers 4.x), nested with
`text_config` (4.5x) and nested with `rope_parameters` (5.x). This module knows nothing about
weights or arrays.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rlvlm_jax.errors import InputError
from rlvlm_jax.models.common.hf_config import Fields, is_number

FAMILIES = ("qwen2_vl", "qwen2_5_vl")
ACTIVATION = {"qwen2_vl": "quick_gelu", "qwen2_5_vl": "silu"}  # of the vision tower's MLP
ARCHITECTURE = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
}
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # red, green, blue in 0..1
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
NORM_EPS = 1e-6  # of every norm in the vision tower; no published field sets it


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower and the merger that hands its output to the language model.

    Attributes:
        family: "qwen2_vl" or "qwen2_5_vl".
        depth: Number of blocks.
        width: Width of the tower.
        heads: Attention heads; `width // heads` is a multiple of 4 (two rotated axes).
        mlp_width: Inner width of a block's MLP.
        out_width: Width after the merger, equal to the language model's.
        patch_size: Side of a patch, pixels.
        temporal_patch_size: Frames per patch; a still image repeats its one frame.
        merge_size: Side of the square of patches that become one image token.
        window_size: Side of an attention window, pixels; 0 without windows (Qwen2-VL).
        full_attention_blocks: Blocks in which a patch sees its whole image.
        act: Activation of the MLP: "quick_gelu" (plain MLP) or "silu" (gated MLP).
        norm_eps: Epsilon of the tower's norms.
        image_mean: Mean of red, green, blue in 0..1, subtracted from the pixels.
        image_std: Divisor of the difference.
    """

    family: str
    depth: int
    width: int
    heads: int
    mlp_width: int
    out_width: int
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    window_size: int = 0
    full_attention_blocks: tuple[int, ...] = ()
    act: str = "quick_gelu"
    norm_eps: float = NORM_EPS
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD

    @property
    def window_side(self) -> int:
        """Side of an attention window, patches, in whole merge blocks; 0 without windows."""
        return self.window_size // (self.patch_size * self.merge_size) * self.merge_size


@dataclasses.dataclass(frozen=True)
class QwenVLConfig:
    """Sizes of the decoder, the ids of the vision tokens, and the vision tower.

    Attributes:
        family: "qwen2_vl" or "qwen2_5_vl".
        vocab_size: Rows of the embedding, which may exceed the tokenizer's vocabulary.
        width: Width of the decoder.
        layers: Number of decoder layers.
        heads: Query heads.
        kv_heads: Key and value heads, a divisor of `heads`.
        head_size: Size of a head, `width // heads`.
        mlp_width: Inner width of the gated MLP.
        rope_theta: Base of the rotary frequencies.
        mrope_section: Rotary frequencies given to time, row, column; sum `head_size // 2`.
        norm_eps: Epsilon of the RMS norms.
        tie_embeddings: Whether the output head is the embedding, transposed.
        image_token_id: Placeholder of one image token in a prompt.
        video_token_id: The same for video, which is never used.
        vision_start_token_id: Opens an image.
        vision_end_token_id: Closes an image.
        vision_token_id: Another reserved vision token, if the configuration names one.
        vision: The vision tower.
    """

    family: str
    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_width: int
    rope_theta: float
    mrope_section: tuple[int, int, int]
    norm_eps: float
    tie_embeddings: bool
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    vision_token_id: int | None
    vision: VisionConfig

    @property
    def vision_token_ids(self) -> set[int]:
        """Ids of all vision tokens, which are never sampled."""
        ids = (getattr(self, key) for key in _TOKEN_IDS)
        return {number for number in ids if number is not None}

    @property
    def head_sizes(self) -> tuple[int, int]:
        """Sizes of an attention head of the decoder and of the tower."""
        return self.head_size, self.vision.width // self.vision.heads


# transformers 4.5x repeats these inside text_config, as null or as at the top; the top counts.
_TOKEN_IDS = (
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "vision_token_id",
)


def from_hf(config: Mapping, preprocessor: Mapping | None = None) -> QwenVLConfig:
    """Reads the contents of config.json, in any of the three layouts.

    Args:
        config: The parsed config.json.
        preprocessor: The parsed preprocessor_config.json, for the mean and deviation of the pixels;
            None gives CLIP's, the default of both families.

    Returns:
        The sizes of the model. Absent fields get the defaults that transformers gives them.

    Raises:
        InputError: a field is missing, a value is not supported or makes no sense, or an unknown
            field might change what the model computes; the message names it.
    """
    top = Fields(config)
    family = top.get("model_type")
    if family not in FAMILIES:
        top.refuse("model_type", " or ".join(map(repr, FAMILIES)))
    tied = top.boolean("tie_word_embeddings", False)
    ids = {
        key: top.integer(key, default, minimum=0)
        for key, default in zip(_TOKEN_IDS, (151655, 151656, 151652, 151653), strict=False)
    }
    vision_token_id = top.get("vision_token_id", None)
    if vision_token_id is not None:
        vision_token_id = top.integer("vision_token_id", minimum=0)

    unknown = []
    if top.get("text_config", None) is None:
        text = _read_text(top)
    else:
        inner = Fields(config["text_config"], "text_config.")
        text = _read_text(inner)
        _check_repeated(top, inner, text)
        inner.only("model_type", family + "_text", family)
        # transformers ties the head if either says so.
        tied |= inner.boolean("tie_word_embeddings", False)
        inner.read.update(_TOKEN_IDS)
        unknown += inner.unknown()

    tower = Fields(top.get("vision_config"), "vision_config.")
    tower.only("model_type", family + "_vision", family)
    read_vision = _read_vision_2 if family == "qwen2_vl" else _read_vision_2_5
    vision = read_vision(tower, text["width"], **_read_pixels(tower, preprocessor))
    unknown += tower.unknown()

    unknown = top.unknown() + unknown
    if unknown:
        raise InputError(
            f"config.json has fields that {family} is not known to have and that might change what "
            f"it computes: {', '.join(unknown)}; remove them if they have no effect"
        )
    return QwenVLConfig(
        family=family,
        tie_embeddings=tied,
        **ids,
        vision_token_id=vision_token_id,
        vision=vision,
        **text,
    )


def _read_text(fields: Fields) -> dict[str, Any]:
    """Returns the decoder's fields of `QwenVLConfig`, from the top level or text_config."""
    width = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    kv_heads = heads
    if fields.get("num_key_value_heads") is not None:
        kv_heads = fields.integer("num_key_value_heads")
    layers = fields.integer("num_hidden_layers")
    if width % heads or width // heads % 2:
        fields.refuse("num_attention_heads", f"a divisor of hidden_size {width} into even parts")
    if heads % kv_heads:
        fields.refuse("num_key_value_heads", f"a divisor of num_attention_heads {heads}")
    head_size = width // heads
    fields.only("head_dim", head_size, None)  # transformers supports no other value either
    fields.only("hidden_act", "silu")
    fields.only("use_sliding_window", False, None)
    fields.only("layer_types", ["full_attention"] * layers, None)
    theta, section = _read_rotary(fields, head_size)
    return {
        "vocab_size": fields.integer("vocab_size"),
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_size": head_size,
        "mlp_width": fields.integer("intermediate_size"),
        "rope_theta": theta,
        "mrope_section": section,
        "norm_eps": fields.number("rms_norm_eps", 1e-5),
    }


def _read_rotary(fields: Fields, head_size: int) -> tuple[float, tuple[int, int, int]]:
    """Returns base and sections of the rotary embedding, in any of its three spellings."""
    old, new = fields.get("rope_scaling", None), fields.get("rope_parameters", None)
    name = "rope_scaling" if old else "rope_parameters"
    rotary = Fields(old or new or {}, f"{fields.where}{name}.")
    # "mrope" and "default" both mean unscaled frequencies, split among three axes.
    rotary.only("type", "mrope", "default", None)
    rotary.only("rope_type", "default", "mrope", None)
    rotary.only("partial_rotary_factor", 1.0, None)
    section = rotary.integers("mrope_section", (16, 24, 24))
    if len(section) != 3 or min(section) < 0 or sum(section) != head_size // 2:
        raise InputError(
            f"config.json: {rotary.where}mrope_section is {section}, expected three integers that "
            f"add up to half the head size, {head_size // 2}"
        )
    outer = fields.number("rope_theta", 1_000_000.0)
    theta = rotary.number("rope_theta", outer)
    if rotary.unknown():
        raise InputError(
            f"config.json: {', '.join(rotary.unknown())} would change the rotary embedding and is "
            "not supported"
        )
    return theta, tuple(section)


def _check_repeated(top: Fields, inner: Fields, text: dict[str, Any]):
    """Accepts a top level that repeats text_config (transformers 4.5x) but not one that differs."""
    repeated = {key: top.get(key) for key in sorted(inner.read) if key in top.fields}
    merged = Fields({**inner.fields, **repeated})
    # The rotary fields have several spellings, so compare their meaning instead.
    same_spelling = [key for key in repeated if key in inner.fields and "rope" not in key]
    differing = [key for key in same_spelling if repeated[key] != inner.fields[key]]
    if not differing and repeated and _read_text(merged) != text:
        differing = [key for key in repeated if key not in same_spelling]
    if differing:
        raise InputError(
            f"config.json gives {', '.join(differing)} at the top level and another value in "
            "text_config; remove one of the two"
        )


def _read_pixels(tower: Fields, preprocessor: Mapping | None) -> dict[str, Any]:
    """Returns patch geometry and pixel statistics, on which both files must agree."""
    patch = tower.integer("patch_size", 14)
    frames = tower.integer("temporal_patch_size", 2)
    merge = tower.integer("spatial_merge_size", 2)
    for key in ("in_channels", "in_chans"):
        tower.only(key, 3)
    tower.only("spatial_patch_size", patch)
    geometry = {"patch_size": patch, "temporal_patch_size": frames, "merge_size": merge}

    pixels = Fields({} if preprocessor is None else preprocessor, file="preprocessor_config.json")
    for key, value in geometry.items():
        pixels.only(key, value, None)
    pixels.only("do_normalize", True, None)
    pixels.only("do_rescale", True, None)
    if abs(pixels.number("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        pixels.refuse("rescale_factor", "1/255")
    statistics = {}
    for key, default in {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}.items():
        value = pixels.get(key, None) or default
        if (
            not isinstance(value, list | tuple)
            or len(value) != 3
            or not all(map(is_number, value))
            or (key == "image_std" and min(value) <= 0)
        ):
            pixels.refuse(key, "three numbers, one per colour, above 0 for image_std")
        statistics[key] = tuple(map(float, value))
    return geometry | statistics


def _read_vision_2(tower: Fields, text_width: int, **pixels: Any) -> VisionConfig:
    width = tower.integer("embed_dim", 1280)
    depth = tower.integer("depth", 32)
    tower.only("hidden_size", text_width)
    return VisionConfig(
        family="qwen2_vl",
        depth=depth,
        width=width,
        heads=_read_vision_heads(tower, width),
        mlp_width=int(width * tower.number("mlp_ratio", 4)),
        out_width=text_width,
        window_size=0,
        full_attention_blocks=tuple(range(depth)),
        act=_read_activation(tower, "qwen2_vl"),
        **pixels,
    )


def _read_vision_2_5(tower: Fields, text_width: int, **pixels: Any) -> VisionConfig:
    width = tower.integer("hidden_size", 3584)
    depth = tower.integer("depth", 32)
    tower.only("out_hidden_size", text_width)
    tower.get("tokens_per_second", None)  # only affects the frames of a video
    window, merged = tower.integer("window_size", 112), pixels["patch_size"] * pixels["merge_size"]
    if window % merged:
        tower.refuse("window_size", f"a multiple of {merged} pixels, the side of an image token")
    full = tower.integers("fullatt_block_indexes", (7, 15, 23, 31))
    return VisionConfig(
        family="qwen2_5_vl",
        depth=depth,
        width=width,
        heads=_read_vision_heads(tower, width),
        mlp_width=tower.integer("intermediate_size", 3420),
        out_width=text_width,
        window_size=window,
        full_attention_blocks=tuple(block for block in range(depth) if block in full),
        act=_read_activation(tower, "qwen2_5_vl"),
        **pixels,
    )


def _read_vision_heads(tower: Fields, width: int) -> int:
    heads = tower.integer("num_heads", 16)
    if width % heads or width // heads % 4:
        tower.refuse("num_heads", f"a divisor of the tower's width {width} into multiples of 4")
    rotary = Fields(tower.get("rope_parameters", None) or {}, tower.where + "rope_parameters.")
    rotary.only("rope_type", "axial", "default", None)
    rotary.only("rope_theta", 10000.0, None)
    if rotary.unknown():
        raise InputError(
            f"config.json: {', '.join(rotary.unknown())} would change the rotary embedding and is "
            "not supported"
        )
    return heads


def _read_activation(tower: Fields, family: str) -> str:
    tower.only("hidden_act", ACTIVATION[family])
    return ACTIVATION[family]


def to_hf(config: QwenVLConfig) -> dict[str, Any]:
    """Returns the contents of a config.json in the flat layout, for a model without one.

    A converted model keeps its original file. `from_hf(to_hf(config)) == config` for the
    default pixel statistics, which live in preprocessor_config.json.
    """
    tower = config.vision
    vision = {
        "model_type": config.family,
        "depth": tower.depth,
        "num_heads": tower.heads,
        "hidden_act": tower.act,
        "in_channels": 3,
        "patch_size": tower.patch_size,
        "temporal_patch_size": tower.temporal_patch_size,
        "spatial_merge_size": tower.merge_size,
    }
    if config.family == "qwen2_vl":
        ratio = tower.mlp_width / tower.width
        vision |= {
            "embed_dim": tower.width,
            "hidden_size": tower.out_width,
            "mlp_ratio": int(ratio) if ratio.is_integer() else ratio,
        }
    else:
        vision |= {
            "hidden_size": tower.width,
            "out_hidden_size": tower.out_width,
            "intermediate_size": tower.mlp_width,
            "window_size": tower.window_size,
            "fullatt_block_indexes": list(tower.full_attention_blocks),
        }
    ids = {key: getattr(config, key) for key in _TOKEN_IDS if getattr(config, key) is not None}
    return {
        "architectures": [ARCHITECTURE[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(config.mrope_section)},
        "use_sliding_window": False,
        "tie_word_embeddings": config.tie_embeddings,
        **ids,
        "vision_config": vision,
    }
