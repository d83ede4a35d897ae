# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""config.json in three layouts gives one configuration; what would change the model is refused."""

import copy
import dataclasses
import json

import pytest

from rlvlm_jax.errors import InputError
from rlvlm_jax.models.qwen2_vl.config import (
    CLIP_MEAN,
    CLIP_STD,
    QwenVLConfig,
    VisionConfig,
    from_hf,
    to_hf,
)
from rlvlm_jax.models.qwen2_vl.published import PUBLISHED

# What stands in the published files, in the flat layout.
PUBLISHED_2 = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 1536,
    "initializer_range": 0.02,
    "intermediate_size": 8960,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2_vl",
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_chans": 3,
        "hidden_size": 1536,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}
PUBLISHED_2_5 = {
    **{key: value for key, value in PUBLISHED_2.items() if key != "vision_config"},
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
}
# The fields that later layouts move into text_config.
TEXT_KEYS = [
    key
    for key in PUBLISHED_2
    if not key.endswith("_token_id") or key in ("bos_token_id", "eos_token_id")
    if key not in ("architectures", "model_type", "tie_word_embeddings", "torch_dtype")
    if key not in ("transformers_version", "vision_config")
]


def tiny(family, **changes):
    """A small model whose every size differs from every default."""
    windowed = family == "qwen2_5_vl"
    tower = VisionConfig(
        family=family,
        depth=3,
        width=24,
        heads=3,
        mlp_width=72,
        out_width=48,
        patch_size=6,
        temporal_patch_size=2,
        merge_size=3,
        window_size=36 if windowed else 0,
        full_attention_blocks=(1,) if windowed else (0, 1, 2),
        act="silu" if windowed else "quick_gelu",
    )
    config = QwenVLConfig(
        family=family,
        vocab_size=80,
        width=48,
        layers=4,
        heads=6,
        kv_heads=2,
        head_size=8,
        mlp_width=56,
        rope_theta=5000.0,
        mrope_section=(2, 1, 1),
        norm_eps=2e-6,
        tie_embeddings=False,
        image_token_id=70,
        video_token_id=71,
        vision_start_token_id=72,
        vision_end_token_id=73,
        vision_token_id=None,
        vision=tower,
    )
    return dataclasses.replace(config, **changes)


def nested(flat):
    """The layout of transformers 4.5x: text_config beside a repetition at the top level."""
    config = copy.deepcopy(flat)
    config["rope_scaling"] |= {"rope_type": "default", "type": "default"}
    config["text_config"] = {
        **{key: config[key] for key in TEXT_KEYS if key in config},
        "model_type": flat["model_type"] + "_text",
        "layer_types": ["full_attention"] * config["num_hidden_layers"],
        "sliding_window": None,
        "torch_dtype": "bfloat16",
        "image_token_id": None,
        "video_token_id": None,
        "vision_start_token_id": flat["vision_start_token_id"],
    }
    return config


def newest(flat):
    """The layout of transformers 5.x."""
    config = nested(flat)
    text = config["text_config"]
    for key in (*TEXT_KEYS, "torch_dtype"):
        config.pop(key, None)
    del text["torch_dtype"], text["image_token_id"], text["video_token_id"]
    del text["vision_start_token_id"]
    section = text.pop("rope_scaling")["mrope_section"]
    text["rope_parameters"] = {
        "type": "mrope",
        "rope_type": "default",
        "mrope_section": section,
        "rope_theta": text.pop("rope_theta"),
    }
    config["dtype"] = "bfloat16"
    config["vision_config"] |= {
        "model_type": flat["model_type"] + "_vision",
        "initializer_range": 0.02,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"},
    }
    return config


LAYOUTS = {"flat": lambda config: config, "nested": nested, "newest": newest}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("file", "name"), [(PUBLISHED_2, "qwen2-vl-2b"), (PUBLISHED_2_5, "qwen2.5-vl-7b")]
)
def test_published_files_in_every_layout(file, name, layout):
    expected = PUBLISHED[name]
    if "vision_token_id" not in file:
        expected = dataclasses.replace(expected, vision_token_id=None)
    assert from_hf(LAYOUTS[layout](copy.deepcopy(file))) == expected


@pytest.mark.parametrize("config", [*PUBLISHED.values(), tiny("qwen2_vl"), tiny("qwen2_5_vl")])
def test_written_configuration_reads_back(config):
    assert from_hf(json.loads(json.dumps(to_hf(config)))) == config


def as_transformers_reads(config):
    """The same configuration by way of transformers' own classes, which need no torch."""
    transformers = pytest.importorskip("transformers")
    family = config["model_type"]
    classes = {"qwen2_vl": "Qwen2VLConfig", "qwen2_5_vl": "Qwen2_5_VLConfig"}
    read = getattr(transformers, classes[family]).from_dict(copy.deepcopy(config))
    text, tower = read.text_config, read.vision_config
    windowed = family == "qwen2_5_vl"
    head_size = text.hidden_size // text.num_attention_heads
    return QwenVLConfig(
        family=family,
        vocab_size=text.vocab_size,
        width=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_size=head_size,
        mlp_width=text.intermediate_size,
        rope_theta=text.rope_parameters["rope_theta"],
        mrope_section=tuple(text.rope_parameters["mrope_section"]),
        norm_eps=text.rms_norm_eps,
        tie_embeddings=read.tie_word_embeddings,
        image_token_id=read.image_token_id,
        video_token_id=read.video_token_id,
        vision_start_token_id=read.vision_start_token_id,
        vision_end_token_id=read.vision_end_token_id,
        vision_token_id=getattr(read, "vision_token_id", None),
        vision=VisionConfig(
            family=family,
            depth=tower.depth,
            width=tower.hidden_size if windowed else tower.embed_dim,
            heads=tower.num_heads,
            mlp_width=tower.intermediate_size
            if windowed
            else int(tower.embed_dim * tower.mlp_ratio),
            out_width=tower.out_hidden_size if windowed else tower.hidden_size,
            patch_size=tower.patch_size,
            temporal_patch_size=tower.temporal_patch_size,
            merge_size=tower.spatial_merge_size,
            window_size=tower.window_size if windowed else 0,
            full_attention_blocks=tuple(tower.fullatt_block_indexes)
            if windowed
            else tuple(range(tower.depth)),
            act=tower.hidden_act,
        ),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_agrees_with_transformers(family, tied, layout):
    config = LAYOUTS[layout](to_hf(tiny(family, tie_embeddings=tied)))
    assert from_hf(config) == as_transformers_reads(config)


@pytest.mark.parametrize("where", ["top", "text", "both", "neither"])
def test_tying_as_transformers_decides(where):
    config = newest(PUBLISHED_2)
    del config["tie_word_embeddings"]
    if where in ("top", "both"):
        config["tie_word_embeddings"] = True
    if where in ("text", "both"):
        config["text_config"]["tie_word_embeddings"] = True
    assert from_hf(config).tie_embeddings == (where != "neither")
    assert from_hf(config) == as_transformers_reads(config)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_absent_fields_get_the_defaults_of_transformers(family):
    config = {
        "model_type": family,
        "vocab_size": 152064,
        "hidden_size": 3584,  # the width that both families' default tower hands on
        "intermediate_size": 18944,
        "num_hidden_layers": 2,
        "num_attention_heads": 28,
        "num_key_value_heads": None,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {},
    }
    assert from_hf(config).kv_heads == 28
    assert from_hf(config) == as_transformers_reads(config)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_all_that_transformers_dumps_is_accepted(family):
    transformers = pytest.importorskip("transformers")
    classes = {"qwen2_vl": "Qwen2VLConfig", "qwen2_5_vl": "Qwen2_5_VLConfig"}
    wanted = tiny(family)
    whole = getattr(transformers, classes[family]).from_dict(newest(to_hf(wanted))).to_dict()
    assert from_hf(json.loads(json.dumps(whole))) == wanted


def test_pixel_statistics_come_from_the_preprocessor():
    half = {"image_mean": [0.5, 0.25, 0.125], "image_std": [1, 2, 4], "min_pixels": 3136}
    vision = from_hf(PUBLISHED_2, half).vision
    assert vision.image_mean == (0.5, 0.25, 0.125)
    assert vision.image_std == (1.0, 2.0, 4.0)
    assert from_hf(PUBLISHED_2).vision.image_mean == CLIP_MEAN
    assert from_hf(PUBLISHED_2, {}).vision.image_std == CLIP_STD


def change(path, value):
    def apply(config):
        *levels, last = path.split(".")
        for level in levels:
            config = config[level]
        if value is KeyError:
            del config[last]
        else:
            config[last] = value

    return apply


BAD_FLAT = {
    "other model": ("model_type", "llama", "model_type is 'llama', expected 'qwen2_vl' or"),
    "no model type": ("model_type", KeyError, "the field model_type is missing"),
    "no width": ("hidden_size", KeyError, "the field hidden_size is missing"),
    "no tower": ("vision_config", KeyError, "the field vision_config is missing"),
    "tower no object": ("vision_config", 3, "vision_config is 3, expected an object"),
    "width as text": ("hidden_size", "3584", "hidden_size is '3584', expected an integer"),
    "no layers": ("num_hidden_layers", 0, "num_hidden_layers is 0, expected an integer of at"),
    "true is no number": ("vocab_size", True, "vocab_size is True, expected an integer"),
    "epsilon": ("rms_norm_eps", float("nan"), "rms_norm_eps is nan, expected a positive number"),
    "heads": ("num_attention_heads", 25, "num_attention_heads is 25, expected a divisor of"),
    "kv heads": ("num_key_value_heads", 3, "num_key_value_heads is 3, expected a divisor of"),
    "head size": ("head_dim", 64, "head_dim is 64, expected 128"),
    "activation": ("hidden_act", "gelu", "hidden_act is 'gelu', expected 'silu'"),
    "sliding": ("use_sliding_window", True, "use_sliding_window is True, expected False"),
    "layers": ("layer_types", ["sliding_attention"] * 28, "layer_types is ['sliding_attention'"),
    "tying": ("tie_word_embeddings", "yes", "tie_word_embeddings is 'yes', expected true or"),
    "bias": ("attention_bias", False, "might change what it computes: attention_bias"),
    "unknown": ("window_scale", 2, "might change what it computes: window_scale"),
    "unknown in tower": ("vision_config.rank", 2, "might change what it computes: vision_conf"),
    "quantised": ("quantization_config", {"bits": 4}, "quantization_config is {'bits': 4}, exp"),
    "decoder": ("add_cross_attention", True, "add_cross_attention is True, expected False"),
    "yarn": ("rope_scaling.type", "yarn", "rope_scaling.type is 'yarn', expected 'mrope' or"),
    "dynamic": ("rope_scaling.rope_type", "dynamic", "rope_scaling.rope_type is 'dynamic'"),
    "factor": ("rope_scaling.factor", 4.0, "rope_scaling.factor would change the rotary"),
    "section sum": ("rope_scaling.mrope_section", [16, 16, 16], "add up to half the head size, 64"),
    "two axes": ("rope_scaling.mrope_section", [32, 32], "mrope_section is [32, 32], expected th"),
    "section type": ("rope_scaling.mrope_section", "16", "is '16', expected a list of integers"),
    "partly rotated": ("rope_scaling.partial_rotary_factor", 0.5, "partial_rotary_factor is 0.5"),
    "token id": ("image_token_id", None, "image_token_id is None, expected an integer"),
    "tower activation": ("vision_config.hidden_act", "gelu", "hidden_act is 'gelu', expected 'si"),
    "tower of another": ("vision_config.model_type", "qwen3_vl", "vision_config.model_type is 'q"),
    "gray": ("vision_config.in_channels", 1, "vision_config.in_channels is 1, expected 3"),
    "tower heads": ("vision_config.num_heads", 64 * 3, "vision_config.num_heads is 192, expected"),
    "odd tower heads": ("vision_config.num_heads", 128, "expected a divisor of the tower's width"),
    "joint": ("vision_config.out_hidden_size", 2048, "out_hidden_size is 2048, expected 3584"),
    "window": ("vision_config.window_size", 100, "window_size is 100, expected a multiple of 28"),
    "two patch sizes": ("vision_config.spatial_patch_size", 16, "patch_size is 16, expected 14"),
    "oblong patch": ("vision_config.patch_size", [14, 16], "patch_size is [14, 16], expected an"),
    "blocks": ("vision_config.fullatt_block_indexes", 7, "is 7, expected a list of integers"),
    "tower rotary": (
        "vision_config.rope_parameters",
        {"rope_theta": 500.0},
        "vision_config.rope_parameters.rope_theta is 500.0, expected 10000.0",
    ),
}


@pytest.mark.parametrize("case", BAD_FLAT)
def test_refuses_by_name(case):
    path, value, message = BAD_FLAT[case]
    config = copy.deepcopy(PUBLISHED_2_5)
    change(path, value)(config)
    with pytest.raises(InputError) as refusal:
        from_hf(config)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


BAD_NESTED = {
    "unknown": ("text_config.logit_scale", 2.0, "might change what it computes: text_config.logit"),
    "missing": (
        "text_config.hidden_size",
        KeyError,
        "the field text_config.hidden_size is missing",
    ),
    "differs": ("hidden_size", 7168, "config.json gives hidden_size at the top level and another"),
    "epsilon differs": ("rms_norm_eps", 1e-5, "config.json gives rms_norm_eps at the top level"),
    "rotary differs": ("rope_theta", 1e4, "config.json gives rope_scaling, rope_theta at the top"),
    "other": ("text_config.model_type", "qwen3", "text_config.model_type is 'qwen3', expected"),
    "rotary": ("text_config.rope_scaling.type", "yarn", "text_config.rope_scaling.type is 'yarn'"),
    "no object": ("text_config", [], "text_config is [], expected an object with fields"),
}


@pytest.mark.parametrize("case", BAD_NESTED)
def test_refuses_by_name_inside_text_config(case):
    path, value, message = BAD_NESTED[case]
    config = copy.deepcopy(nested(PUBLISHED_2_5))
    change(path, value)(config)
    with pytest.raises(InputError) as refusal:
        from_hf(config)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("preprocessor", "message"),
    [
        ({"patch_size": 16}, "patch_size is 16, expected 14"),
        ({"merge_size": 4}, "merge_size is 4, expected 2"),
        ({"do_normalize": False}, "do_normalize is False, expected True"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0, expected 1/255"),
        ({"image_mean": [0.5]}, "image_mean is [0.5], expected three numbers"),
        ({"image_std": [1, 1, 0]}, "image_std is [1, 1, 0], expected three numbers"),
        ([], "preprocessor_config.json: the content is [], expected an object"),
    ],
)
def test_refuses_a_preprocessor_that_does_not_fit(preprocessor, message):
    with pytest.raises(InputError) as refusal:
        from_hf(PUBLISHED_2, preprocessor)
    assert message in str(refusal.value)
    assert str(refusal.value).startswith("preprocessor_config.json: ")


def test_refuses_content_that_is_no_object():
    with pytest.raises(InputError, match="the content is 5, expected an object"):
        from_hf(5)
