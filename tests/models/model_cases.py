# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny models and batches for the tests of this directory, numpy only.

Positions and windows are computed here a second time, in the plainest way, so that a slip in the
package does not hide itself.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from rlvlm_jax.models.qwen2_vl.config import QwenVLConfig, VisionConfig
from rlvlm_jax.models.qwen2_vl.media import Patches
from rlvlm_jax.types import Prompts

IMAGE, VIDEO, START, END = 150, 151, 152, 153
WORDS = 140  # ids below are plain text


def tiny_config(family="qwen2_5_vl", *, heads=4, kv_heads=2, tied=False, layers=2):
    """Head size 16, patches of 4 pixels; for Qwen2.5-VL windows of 4x4 patches but in block 1."""
    windowed = family == "qwen2_5_vl"
    vision = VisionConfig(
        family=family,
        depth=3,
        width=32,
        heads=2,
        mlp_width=64,
        out_width=16 * heads,
        patch_size=4,
        window_size=16 if windowed else 0,
        full_attention_blocks=(1,) if windowed else (0, 1, 2),
        act="silu" if windowed else "quick_gelu",
    )
    return QwenVLConfig(
        family=family,
        vocab_size=160,
        width=16 * heads,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=16,
        mlp_width=96,
        rope_theta=10000.0,
        mrope_section=(2, 3, 3),
        norm_eps=1e-6,
        tie_embeddings=tied,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        vision_token_id=None,
        vision=vision,
    )


def random_params(model, seed=0, std=0.2):
    """Parameters large enough, biases and scales included, that an unused one shows."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    rng = np.random.default_rng(seed)
    values = []
    for path, leaf in leaves:
        value = std * rng.standard_normal(leaf.shape)
        values.append(np.float32(value + (path[-1].key == "scale")))
    return jax.tree.unflatten(tree, values)


def patch_fields(grids, config, rng):
    """Patches of one prompt, in merge-block order: (bytes, coords, image, window)."""
    vision = config.vision
    merge = vision.merge_size
    side = vision.window_size // vision.patch_size  # patches along a window, 0 without windows
    coords, image, window = [], [], []
    windows = {}
    for number, (rows, cols) in enumerate(grids, start=1):
        for block_row in range(0, rows, merge):
            for block_col in range(0, cols, merge):
                for row in range(block_row, block_row + merge):
                    for col in range(block_col, block_col + merge):
                        coords.append((row, col))
                        image.append(number)
                        key = (number, row // side, col // side) if side else number
                        window.append(windows.setdefault(key, len(windows) + 1))
    pixels = rng.integers(0, 256, (len(coords), 3 * vision.patch_size**2), dtype=np.uint8)
    return pixels, np.array(coords).reshape(-1, 2), np.array(image), np.array(window)


def text_with_images(grids, words, config, rng):
    """(tokens int[p], positions int[3, p]): `words` text tokens, then image and text in turn."""
    tokens, positions, now = [], [], 0

    def text(ids):
        nonlocal now
        for token in ids:
            tokens.append(token)
            positions.append((now, now, now))
            now += 1

    text(rng.integers(3, WORDS, words))
    for rows, cols in grids:
        text([START])
        rows, cols = rows // config.vision.merge_size, cols // config.vision.merge_size
        for row in range(rows):
            for col in range(cols):
                tokens.append(IMAGE)
                positions.append((now, now + row, now + col))
        now += max(rows, cols)
        text([END, *rng.integers(3, WORDS, 3)])
    return np.array(tokens), np.array(positions).T


def make_batch(config, prompts, *, seed=0, pad="left", extra=(2, 8)):
    """Builds Prompts given as (grids, number of leading words).

    Args:
        config: the model's.
        prompts: list of (list of patch grids, int).
        seed: of the bytes and words.
        pad: side of the text padding, "left", "right" or "hole" (in the middle).
        extra: padding beyond the longest prompt, in text columns and merge blocks of patches.
    """
    rng = np.random.default_rng(seed)
    texts = [text_with_images(grids, words, config, rng) for grids, words in prompts]
    images = [patch_fields(grids, config, rng) for grids, _ in prompts]
    n = len(prompts)
    p = max(len(tokens) for tokens, _ in texts) + extra[0]
    i = max(len(fields[0]) for fields in images) + extra[1] * config.vision.merge_size**2
    batch = Prompts(
        tokens=np.full((n, p), 1, np.int32),
        mask=np.zeros((n, p), bool),
        positions=np.zeros((n, 3, p), np.int32),
        media=Patches(
            pixels=np.zeros((n, i, 3 * config.vision.patch_size**2), np.uint8),
            coords=np.zeros((n, i, 2), np.int32),
            image=np.zeros((n, i), np.int32),
            window=np.zeros((n, i), np.int32),
        ),
    )
    for row, ((tokens, positions), fields) in enumerate(zip(texts, images, strict=True)):
        free = p - len(tokens)
        columns = np.arange(len(tokens))
        if pad == "left":
            columns += free
        elif pad == "hole":
            columns[len(columns) // 2 :] += free
        batch.tokens[row, columns] = tokens
        batch.mask[row, columns] = True
        batch.positions[row][:, columns] = positions
        for array, values in zip(batch.media, fields, strict=True):
            array[row, : len(values)] = values
    return batch


def random_responses(batch, groups, length, seed=1):
    """(tokens int32[B, R], mask bool[B, R]) with responses of various lengths, the first full."""
    rng = np.random.default_rng(seed)
    count = len(batch.tokens) * groups
    ends = rng.integers(1, length + 1, count)
    ends[0] = length
    tokens = rng.integers(3, WORDS, (count, length)).astype(np.int32)
    return tokens, np.arange(length) < ends[:, None]


def first_positions(batch):
    """int32[N]: position of the first response token of each prompt."""
    return np.where(batch.mask[:, None], batch.positions, -1).max((1, 2)).astype(np.int32) + 1


@functools.cache
def compiled(model):
    """The model's functions, jitted once for all tests, those of batches with images encoded."""

    def prefill(params, batch):
        return model.prefill(params, batch, model.encode_images(params, batch))

    def forward(params, batch, tokens, mask):
        features = model.encode_images(params, batch)
        return model.forward(params, batch, features, tokens, mask)

    return Compiled(*map(jax.jit, (prefill, model.decoder, model.rotary, model.decode, forward)))


class Compiled(NamedTuple):
    """(params, batch), params, as in `Model` twice, and (params, batch, tokens, mask)."""

    prefill: Callable
    decoder: Callable
    rotary: Callable
    decode: Callable
    forward: Callable


def decode_all(model, params, batch, tokens):
    """Hidden states of every response position by prefill and one decode a token, [B, R, D]."""
    count, length = tokens.shape
    groups = count // len(batch.tokens)
    first, prefix = compiled(model).prefill(params, batch)
    weights = compiled(model).decoder(params)
    hidden = [np.repeat(first, groups, axis=0)]
    cache = dirty_cache(model, prefix, groups, length)
    positions = np.repeat(first_positions(batch), groups)
    for step in range(length - 1):
        rotary = compiled(model).rotary(positions + step)
        out, cache = compiled(model).decode(
            weights, tokens[:, step], rotary, prefix, batch.mask, cache, np.int32(step)
        )
        hidden.append(out)
    return np.stack(hidden, axis=1)


def dirty_cache(model, prefix, groups, *sizes):
    """A cache of blocks of these sizes whose unwritten slots would be noticed."""
    cache = ()
    for size in sizes:
        cache = model.grow_cache(prefix, cache, groups, size)
    return jax.tree.map(lambda x: jax.numpy.full_like(x, 7), cache)


def with_vision(config, **changes):
    """The configuration with fields of its vision tower replaced."""
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, **changes))
