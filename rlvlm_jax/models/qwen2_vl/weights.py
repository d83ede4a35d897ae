# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Names of the weights of Qwen2-VL and Qwen2.5-VL in a Hugging Face directory."""

from rlvlm_jax.models.common.weights import WeightTable, make_rules
from rlvlm_jax.models.qwen2_vl.config import QwenVLConfig

# Hugging Face name, our path, letters of the Hugging Face shape; see `make_rules`.
_LANGUAGE = (
    ("model.embed_tokens.weight", "language/embed/embedding", "V D"),
    ("model.layers.{l}.input_layernorm.weight", "language/layers/norm1/scale", "D"),
    ("model.layers.{l}.self_attn.q_proj.weight", "language/layers/attn/q/weight", "Q D"),
    ("model.layers.{l}.self_attn.q_proj.bias", "language/layers/attn/q/bias", "Q"),
    ("model.layers.{l}.self_attn.k_proj.weight", "language/layers/attn/k/weight", "K D"),
    ("model.layers.{l}.self_attn.k_proj.bias", "language/layers/attn/k/bias", "K"),
    ("model.layers.{l}.self_attn.v_proj.weight", "language/layers/attn/v/weight", "K D"),
    ("model.layers.{l}.self_attn.v_proj.bias", "language/layers/attn/v/bias", "K"),
    ("model.layers.{l}.self_attn.o_proj.weight", "language/layers/attn/o/weight", "D Q"),
    ("model.layers.{l}.post_attention_layernorm.weight", "language/layers/norm2/scale", "D"),
    ("model.layers.{l}.mlp.gate_proj.weight", "language/layers/mlp/gate/weight", "F D"),
    ("model.layers.{l}.mlp.up_proj.weight", "language/layers/mlp/up/weight", "F D"),
    ("model.layers.{l}.mlp.down_proj.weight", "language/layers/mlp/down/weight", "D F"),
    ("model.norm.weight", "language/norm/scale", "D"),
)
_HEAD = (("lm_head.weight", "language/head/weight", "V D"),)
_ATTENTION = (
    ("visual.blocks.{l}.attn.qkv.weight", "vision/blocks/attn/qkv/weight", "3W W"),
    ("visual.blocks.{l}.attn.qkv.bias", "vision/blocks/attn/qkv/bias", "3W"),
    ("visual.blocks.{l}.attn.proj.weight", "vision/blocks/attn/proj/weight", "W W"),
    ("visual.blocks.{l}.attn.proj.bias", "vision/blocks/attn/proj/bias", "W"),
)
_PATCHES = (("visual.patch_embed.proj.weight", "vision/patch_embed/weight", "W 3 T P P"),)
_MERGER = (
    ("visual.merger.mlp.0.weight", "vision/merger/fc1/weight", "M M"),
    ("visual.merger.mlp.0.bias", "vision/merger/fc1/bias", "M"),
    ("visual.merger.mlp.2.weight", "vision/merger/fc2/weight", "O M"),
    ("visual.merger.mlp.2.bias", "vision/merger/fc2/bias", "O"),
)
_TOWER = {
    "qwen2_vl": (
        *_PATCHES,
        ("visual.blocks.{l}.norm1.weight", "vision/blocks/norm1/scale", "W"),
        ("visual.blocks.{l}.norm1.bias", "vision/blocks/norm1/bias", "W"),
        *_ATTENTION,
        ("visual.blocks.{l}.norm2.weight", "vision/blocks/norm2/scale", "W"),
        ("visual.blocks.{l}.norm2.bias", "vision/blocks/norm2/bias", "W"),
        ("visual.blocks.{l}.mlp.fc1.weight", "vision/blocks/mlp/fc1/weight", "H W"),
        ("visual.blocks.{l}.mlp.fc1.bias", "vision/blocks/mlp/fc1/bias", "H"),
        ("visual.blocks.{l}.mlp.fc2.weight", "vision/blocks/mlp/fc2/weight", "W H"),
        ("visual.blocks.{l}.mlp.fc2.bias", "vision/blocks/mlp/fc2/bias", "W"),
        ("visual.merger.ln_q.weight", "vision/merger/norm/scale", "W"),
        ("visual.merger.ln_q.bias", "vision/merger/norm/bias", "W"),
        *_MERGER,
    ),
    "qwen2_5_vl": (
        *_PATCHES,
        ("visual.blocks.{l}.norm1.weight", "vision/blocks/norm1/scale", "W"),
        *_ATTENTION,
        ("visual.blocks.{l}.norm2.weight", "vision/blocks/norm2/scale", "W"),
        ("visual.blocks.{l}.mlp.gate_proj.weight", "vision/blocks/mlp/gate/weight", "H W"),
        ("visual.blocks.{l}.mlp.gate_proj.bias", "vision/blocks/mlp/gate/bias", "H"),
        ("visual.blocks.{l}.mlp.up_proj.weight", "vision/blocks/mlp/up/weight", "H W"),
        ("visual.blocks.{l}.mlp.up_proj.bias", "vision/blocks/mlp/up/bias", "H"),
        ("visual.blocks.{l}.mlp.down_proj.weight", "vision/blocks/mlp/down/weight", "W H"),
        ("visual.blocks.{l}.mlp.down_proj.bias", "vision/blocks/mlp/down/bias", "W"),
        ("visual.merger.ln_q.weight", "vision/merger/norm/scale", "W"),
        *_MERGER,
    ),
}
# Prefixes of the second generation of names (transformers from 4.52) -> of the first.
_RENAMED = (("model.language_model.", "model."), ("model.visual.", "visual."))
# Rotary frequencies, which some old versions saved although the configuration determines them.
_DERIVED = r"\.rotary_(pos_)?emb\.inv_freq$"


def weight_table(config: QwenVLConfig) -> WeightTable:
    """Returns the table of a model."""
    tower = config.vision
    sizes = {
        "V": config.vocab_size,
        "D": config.width,
        "Q": config.heads * config.head_size,
        "K": config.kv_heads * config.head_size,
        "F": config.mlp_width,
        "W": tower.width,
        "3W": 3 * tower.width,
        "H": tower.mlp_width,
        "M": tower.width * tower.merge_size**2,
        "O": tower.out_width,
        "T": tower.temporal_patch_size,
        "P": tower.patch_size,
        "3": 3,
    }
    rows = _LANGUAGE + (() if config.tie_embeddings else _HEAD) + _TOWER[config.family]
    layers = {"language": config.layers, "vision": tower.depth}
    tied = (_HEAD[0][0], _LANGUAGE[0][0]) if config.tie_embeddings else None
    return WeightTable(make_rules(rows, sizes, layers), tied, _RENAMED, _DERIVED)
