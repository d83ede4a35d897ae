# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A model of two layers and 32 channels, prompts for it, and a configuration that fits both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rlvlm_jax import config
from rlvlm_jax.data.prompts import Encoded, collate
from rlvlm_jax.models import families
from rlvlm_jax.models.qwen2_vl import config as qwen2_vl_config
from rlvlm_jax.models.qwen2_vl.media import ImageSpec, Patches, patch_layout
from rlvlm_jax.models.qwen2_vl.positions import rope_positions
from rlvlm_jax.validate import validate

VOCABULARY, IMAGE, STOP, PAD = 64, 60, 61, 62
BANNED = (58, 59, IMAGE)
SPEC = ImageSpec(window_size=56)


def hf_config(**changes):
    """A config.json of the flat layout."""
    return {
        "model_type": "qwen2_5_vl",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
        "tie_word_embeddings": True,
        "vision_start_token_id": 58,
        "vision_end_token_id": 59,
        "image_token_id": IMAGE,
        "video_token_id": 63,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        **changes,
    }


@functools.cache
def build():
    """Returns (model, parameters) with weights large enough to matter; the same at every call.

    NumPy draws them: to compile `init` takes longer than most tests.
    """
    model = families.build(qwen2_vl_config.from_hf(hf_config()))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(mean + 0.1 * rng.standard_normal(leaf.shape), leaf.dtype)

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, jax.tree_util.tree_map_with_path(draw, shapes)


def prompt(rng, length, grids=()):
    """Returns a random prompt of `length` text tokens with images of the given patch grids."""
    text = rng.integers(0, 57, length)
    pieces, patches, coords, image, window = [text[:2]], [], [], [], []
    for number, (rows, columns) in enumerate(grids, start=1):
        pieces += [[58], [IMAGE] * (rows * columns // 4), [59]]
        places, windows = patch_layout(rows, columns, SPEC)
        patches.append(rng.integers(0, 256, (rows * columns, SPEC.patch_bytes)))
        coords.append(places)
        image.append(np.full(rows * columns, number))
        window.append(windows + 1 + (window[-1].max() if window else 0))
    tokens = np.concatenate([*pieces, text[2:]]).astype(np.int32)
    empty = np.zeros((0,), np.int32)
    media = Patches(
        pixels=np.concatenate([np.zeros((0, SPEC.patch_bytes)), *patches]).astype(np.uint8),
        coords=np.concatenate([np.zeros((0, 2)), *coords]).astype(np.int32),
        image=np.concatenate([empty, *image]).astype(np.int32),
        window=np.concatenate([empty, *window]).astype(np.int32),
    )
    positions = rope_positions(tokens, list(grids), IMAGE, 2)
    return Encoded(tokens, positions, media, len(media.image))


def batch(prompts=4, seed=0):
    """Returns Prompts with none, one and two images of mixed sizes."""
    rng = np.random.default_rng(seed)
    kinds = [((4, 6),), (), ((2, 2), (4, 4)), ((6, 4),)]
    encoded = [prompt(rng, 5 + n % 3, kinds[n % 4]) for n in range(prompts)]
    return collate(encoded, 24, 32, PAD, SPEC)


def settings(**changes):
    """Returns a configuration for `batch()`: 4 prompts, 4 samples, 6 tokens; keys are dotted."""
    c = config.default()
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = 4, 4, 6
    c.train.minibatch, c.train.lr, c.train.weight_decay = 8, 1e-3, 0.0
    c.train.eps = 1e-6  # or Adam makes whole steps of elements whose gradient is rounding error
    with c.unlocked():
        for key, value in changes.items():
            c.update_from_flattened_dict({key.replace("__", "."): value})
    validate(c, devices=8)
    return c
