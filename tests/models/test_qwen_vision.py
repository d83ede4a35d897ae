# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Windows attended to by themselves give what the masked whole gives, for less work."""

import jax
import jax.numpy as jnp
import model_cases as cases
import numpy as np
import pytest

from rlvlm_jax.models.common.kernels import PLAIN, Kernel
from rlvlm_jax.models.families import build
from rlvlm_jax.models.qwen2_vl import vision

# Side 4 patches: ragged at both edges, several images, a flat and a tall one, none at all.
PROMPTS = [([(10, 6), (4, 14)], 3), ([(12, 12)], 1), ([], 4), ([(2, 30), (30, 2)], 2)]


def random_segments(rng, rows, length, most):
    """int32[rows, length]: runs of 1 to `most` of one number, none at some ends."""
    segments = np.zeros((rows, length), np.int32)
    for row in segments:
        place = rng.integers(0, most)
        end = length - rng.integers(0, most)
        number = 0
        while place < end:
            number += 1
            size = rng.integers(1, most + 1)
            row[place : min(place + size, end)] = number
            place += size
    return segments


@pytest.mark.parametrize("kernel", [PLAIN, Kernel("xla")], ids=["plain", "xla"])
@pytest.mark.parametrize("length", [24, 29, 48])
def test_near_is_within_where_segments_are_short(length, kernel):
    rng = np.random.default_rng(length)
    q, k, v = rng.standard_normal((3, 5, length, 2, 8)).astype(np.float32)
    segment = random_segments(rng, 5, length, 6)
    near = jax.jit(vision.attend_near, static_argnums=(4, 5))(q, k, v, segment, 6, kernel)
    within = jax.jit(vision.attend_within, static_argnums=4)(q, k, v, segment, PLAIN)
    np.testing.assert_allclose(near, within, atol=1e-6)
    assert np.abs(np.where((segment > 0)[..., None, None], within, 0)).max() > 0.5
    assert (np.asarray(near)[segment == 0] == 0).all()


def test_near_costs_three_blocks_a_query():
    shape = jax.ShapeDtypeStruct((2, 1024, 2, 64), np.float32)
    segment = jax.ShapeDtypeStruct((2, 1024), np.int32)

    def count(function):
        return jax.jit(function).lower(shape, shape, shape, segment).cost_analysis()["flops"]

    near = count(lambda *args: vision.attend_near(*args, 64, PLAIN))
    within = count(lambda *args: vision.attend_within(*args, PLAIN))
    products = 4 * 2 * 128 * 1024 * 3 * 64
    assert products < near < 1.2 * products
    assert near * 5 < within


@pytest.fixture(scope="module")
def both():
    """(features, gradient) of a model that goes by windows and of one that does not."""
    config = cases.tiny_config()
    batch = cases.make_batch(config, PROMPTS)
    counts = (batch.media.image[:, ::4] > 0)[..., None]
    assert vision.by_window(config.vision, batch.media.image.shape[1])

    def run():
        model = build(config)

        def loss(params):
            features = model.encode_images(params, batch)
            return jnp.sum(jnp.where(counts, jnp.sin(features), 0)), features

        gradient, features = jax.jit(jax.grad(loss, has_aux=True))(cases.random_params(model))
        return np.asarray(features), gradient["vision"]

    windowed = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vision, "by_window", lambda config, patches: False)
        return windowed, run()


@pytest.mark.slow
def test_features_are_the_same_and_in_the_same_order(both):
    (windowed, _), (masked, _) = both
    counts = cases.make_batch(cases.tiny_config(), PROMPTS).media.image[:, ::4] > 0
    np.testing.assert_allclose(windowed[counts], masked[counts], atol=2e-5)
    assert masked[counts].std() > 0.1
    assert np.isfinite(windowed).all()


@pytest.mark.slow
def test_gradients_are_the_same(both):
    (_, windowed), (_, masked) = both
    for found, expected in zip(jax.tree.leaves(windowed), jax.tree.leaves(masked), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_few_patches_and_no_windows_are_left_alone():
    config = cases.tiny_config().vision
    assert config.window_side == 4
    assert not vision.by_window(config, 95)
    assert vision.by_window(config, 96)
    assert not vision.by_window(cases.tiny_config("qwen2_vl").vision, 10_000)


def test_sorting_by_window_keeps_merge_blocks_together():
    config = cases.tiny_config()
    patches = cases.make_batch(config, PROMPTS).media
    ordered, positions = vision.sort_by_window(patches, 2)
    window = np.asarray(ordered.window)
    assert (np.diff(window, axis=1) >= 0).all()
    for before, after in zip(patches, map(np.asarray, ordered), strict=True):
        after = after.reshape(len(after), positions.shape[1], -1)
        back = np.take_along_axis(after, np.asarray(positions)[..., None], axis=1)
        np.testing.assert_array_equal(back.reshape(before.shape), before)
