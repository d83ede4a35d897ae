# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Counted work against hand numbers, and against XLA's own count of programs of one layer.

XLA counts additions and exponentials too, and sums of rows by products, hence the tolerances.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvlm_jax.models.common import cache, costs
from rlvlm_jax.models.families import build
from rlvlm_jax.models.qwen2_vl import costs as vision_costs
from rlvlm_jax.models.qwen2_vl.config import QwenVLConfig, VisionConfig
from rlvlm_jax.models.qwen2_vl.media import Patches
from rlvlm_jax.models.qwen2_vl.published import PUBLISHED
from rlvlm_jax.types import Prompts

# One layer each, so that XLA's counting of a loop's body once is right; wide, so that products
# outweigh the rest.
VISION = VisionConfig(
    family="qwen2_5_vl",
    depth=1,
    width=256,
    heads=2,
    mlp_width=512,
    out_width=256,
    window_size=56,
    full_attention_blocks=(),
    act="silu",
)
ONE = QwenVLConfig(
    family="qwen2_5_vl",
    vocab_size=2048,
    width=256,
    layers=1,
    heads=2,
    kv_heads=1,
    head_size=128,
    mlp_width=1024,
    rope_theta=10000.0,
    mrope_section=(16, 24, 24),
    norm_eps=1e-6,
    tie_embeddings=False,
    image_token_id=1,
    video_token_id=2,
    vision_start_token_id=3,
    vision_end_token_id=4,
    vision_token_id=None,
    vision=VISION,
)
N, G, P, R, PATCHES = 2, 4, 64, 32, 64


def shapes():
    """(params, batch, features, tokens, mask) without values."""
    model = build(ONE)

    def shape(*sizes, dtype=np.int32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    batch = Prompts(
        tokens=shape(N, P),
        mask=shape(N, P, dtype=bool),
        positions=shape(N, 3, P),
        media=Patches(
            pixels=shape(N, PATCHES, 3 * 14**2, dtype=np.uint8),
            coords=shape(N, PATCHES, 2),
            image=shape(N, PATCHES),
            window=shape(N, PATCHES),
        ),
    )
    params = jax.eval_shape(model.init, jax.random.key(0))
    features = shape(N, PATCHES // 4, 256, dtype=np.float32)
    return model, params, batch, features, shape(N * G, R), shape(N * G, R, dtype=bool)


def xla_flops(function, *args):
    return jax.jit(function).lower(*args).cost_analysis()["flops"]


def test_vision_against_xla():
    model, params, batch, *_ = shapes()
    counted = vision_costs.encode_images(ONE, [(8, 8)] * N, PATCHES, N, 4)
    assert xla_flops(model.encode_images, params, batch) == pytest.approx(
        counted.executed, rel=0.05
    )
    assert counted.needed < counted.executed, "windows of 4 x 4 patches are a quarter of the image"


@pytest.mark.slow
def test_prefill_against_xla():
    model, params, batch, features, *_ = shapes()
    counted = costs.prefill(ONE, N, P, 4)
    assert xla_flops(model.prefill, params, batch, features) == pytest.approx(
        counted.executed, rel=0.05
    )


def test_forward_and_logits_against_xla():
    model, params, batch, features, tokens, mask = shapes()

    def forward(params, batch, features, tokens, mask):
        return model.logits(params, model.forward(params, batch, features, tokens, mask))

    counted = costs.forward(ONE, N, G, P, R, 4)
    found = xla_flops(forward, params, batch, features, tokens, mask)
    assert found == pytest.approx(counted.executed, rel=0.05)


@pytest.mark.slow
def test_gradient_against_xla():
    model, params, batch, features, tokens, mask = shapes()

    def loss(params, batch, features, tokens, mask):
        hidden = model.forward(params, batch, features, tokens, mask)
        return jnp.sum(jax.checkpoint(lambda h: jnp.sin(model.logits(params, h)))(hidden))

    passed = costs.forward(ONE, N, G, P, R, 4)
    counted = costs.gradient(ONE, passed, N * G * R, 1, False, 4)
    found = xla_flops(jax.value_and_grad(loss), params, batch, features, tokens, mask)
    assert found == pytest.approx(counted.executed, rel=0.05)


def test_one_step_of_decoding_against_xla():
    model, params, batch, _, _, _ = shapes()

    def step(weights, tokens, positions, prefix, mask, blocks, number):
        rotary = model.rotary(positions)
        hidden, blocks = model.decode(weights, tokens, rotary, prefix, mask, blocks, number)
        return model.logits(weights, hidden), blocks

    def number(*shape, dtype=np.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    keys = number(N, 1, P, 128)
    prefix = (jax.eval_shape(lambda k, v: cache.stored(k, v, "model"), keys, keys),)
    blocks = ((jax.eval_shape(lambda of_prompt: cache.empty(of_prompt, G, R), prefix[0]),),)
    row, slot = number(N * G, dtype=np.int32), number(dtype=np.int32)
    weights = jax.eval_shape(model.decoder, params)
    found = xla_flops(step, weights, row, row, prefix, batch.mask, blocks, slot)
    counted = costs.decode(ONE, N, G, P, R, 4)
    assert found * R == pytest.approx(counted.executed, rel=0.05)


def test_counts_by_hand():
    c = dataclasses.replace(
        ONE,
        width=4,
        layers=3,
        heads=2,
        kv_heads=1,
        head_size=2,
        mlp_width=5,
        vocab_size=7,
    )
    assert costs.layer_weights(c) == 3 * (4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 5)  # q, k v, o, MLP
    assert costs.head_weights(c) == 28
    # Two prompts of three tokens: 6 tokens, and per layer 1 + 2 + 3 pairs of 2 x 4 x 4 FLOPs each.
    assert costs.prefill(c, 2, 3, 2) == (
        2 * 324 * 6 + 3 * 16 * 12,
        2 * 324 * 6 + 3 * 16 * 18,
        324 * 2 + 2 * 3 * 2 * 6 * 2,
    )
    # Two samples each, two new tokens: the first is only drawn, the second meets 3 keys and itself.
    assert costs.decode(c, 2, 2, 3, 2, 2) == (
        2 * 324 * 4 + 3 * 16 * 4 * 4 + 2 * 28 * 8,
        2 * 324 * 8 + 3 * 16 * 8 * 5 + 2 * 28 * 8,
        # layers once, head twice; a prompt's 3 keys for two samples, a response's own read, written
        (324 + 2 * 28) * 2 + 2 * 3 * 2 * (2 * 3 + 4 * 1 + 4) * 2,
    )
    assert costs.logits(c, 10) == 560
    shared = costs.forward(c, 2, 2, 3, 2, 2)
    apart = costs.forward(c, 2, 2, 3, 2, 2, copies=2)
    assert shared.needed == apart.needed == 2 * 324 * 14 + 3 * 16 * (12 + 4 * (6 + 3)) + 56 * 8
    assert apart.executed - shared.executed == 2 * 324 * 6 + 3 * 16 * 18


def test_windows_and_whole_images_by_hand():
    vision = dataclasses.replace(VISION, depth=3, full_attention_blocks=(1,))
    c = dataclasses.replace(ONE, vision=vision)
    # Windows of 4 x 4 patches over 6 x 4: one of 16 patches, one of 8.
    less = vision_costs.encode_images(c, [(6, 4)], 24, 1, 4).needed
    all_whole = dataclasses.replace(vision, window_size=0)
    more = vision_costs.encode_images(
        dataclasses.replace(c, vision=all_whole), [(6, 4)], 24, 1, 4
    ).needed
    assert more - less == 4 * 256 * 2 * (24**2 - 16**2 - 8**2)


def test_many_patches_meet_their_neighbours_alone():
    vision = dataclasses.replace(VISION, depth=3, full_attention_blocks=(1,))
    c = dataclasses.replace(ONE, vision=vision)
    few, many = (vision_costs.encode_images(c, [], padded, 1, 4) for padded in (95, 97))
    matrices, merger = vision_costs.vision_weights(vision)
    assert few.executed == 2 * 95 * (matrices + merger / 4) + 4 * 256 * 3 * 95**2
    # 7 blocks of 16 patches, each with 3 of them as keys.
    pairs = 97**2 + 2 * 7 * 16 * 48
    assert many.executed == 2 * 97 * (matrices + merger / 4) + 4 * 256 * pairs


def test_remat_and_the_optimizer():
    passed = costs.forward(ONE, N, G, P, R, 4)
    kept, again = (costs.gradient(ONE, passed, N * G * R, 2, remat, 4) for remat in (False, True))
    assert kept.needed == again.needed == 3 * passed.needed
    assert again.executed == 4 * passed.executed
    assert kept.executed == 3 * passed.executed + costs.logits(ONE, N * G * R)
    assert costs.optimizer_step(10, 2) == (0.0, 0.0, 560.0)


@pytest.mark.parametrize(("name", "billions"), [("qwen2.5-vl-3b", 3.09), ("qwen2.5-vl-7b", 7.07)])
def test_published_sizes(name, billions):
    c = PUBLISHED[name]
    assert (costs.layer_weights(c) + costs.head_weights(c)) / 1e9 == pytest.approx(
        billions, abs=0.01
    )


def test_blocks_of_the_cache_are_met_when_they_have_begun():
    config = ONE
    one = costs.decode(config, 2, 4, 16, 64, 4)
    assert costs.decode(config, 2, 4, 16, 64, 4, (64,)) == one
    halves = costs.decode(config, 2, 4, 16, 64, 4, (32, 32))
    assert (halves.needed, halves.bytes) == (one.needed, one.bytes)
    # The first 32 tokens of 8 rows do without 32 slots: two products of H * E each.
    saved = 8 * 32 * 32 * 2 * 2 * config.heads * config.head_size * config.layers
    assert one.executed - halves.executed == saved


def test_no_passes_are_no_work():
    assert costs.total([]) == costs.Work(0.0, 0.0, 0.0)
