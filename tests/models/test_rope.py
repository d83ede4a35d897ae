# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Rotary embeddings by hand, by their invariances, and against transformers."""

import model_cases as cases
import numpy as np
import pytest

from rlvlm_jax.models.common.rope import frequencies, mrope, rope_2d, rotate
from rlvlm_jax.models.qwen2_vl.config import to_hf


def test_frequencies_by_hand():
    np.testing.assert_allclose(frequencies(8, 10000.0), [1.0, 0.1, 0.01, 0.001], rtol=1e-6)


def test_each_frequency_takes_the_position_of_its_axis():
    positions = np.array([[5], [7], [11]])  # time, row, column of one token
    cos, sin = mrope(positions, (1, 2, 1), 10000.0)
    angles = [5 * 1.0, 7 * 0.1, 7 * 0.01, 11 * 0.001]
    np.testing.assert_allclose(cos[0], np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(sin[0], np.sin(angles), atol=1e-6)


def test_2d_rotary_turns_by_the_row_and_then_by_the_column():
    cos, sin = rope_2d(np.array([[3, 4]]), 8)
    angles = [3 * 1.0, 3 * 0.01, 4 * 1.0, 4 * 0.01]
    np.testing.assert_allclose(cos[0], np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(sin[0], np.sin(angles), atol=1e-6)


def test_rotation_pairs_the_halves_of_a_head():
    cos, sin = np.float32([[0.0, 1.0]]), np.float32([[1.0, 0.0]])  # a quarter turn, and none
    x = np.float32([[[1.0, 2.0, 3.0, 4.0]]])
    np.testing.assert_array_equal(rotate(x, (cos, sin))[0, 0], [-3.0, 2.0, 1.0, 4.0])


def test_scores_depend_on_differences_of_positions_only():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 6, 1, 16)).astype(np.float32)
    positions = rng.integers(0, 50, (3, 6))

    def scores(shift):
        rotary = mrope(positions + shift, (2, 3, 3), 10000.0)
        return np.einsum("she,the->st", rotate(q, rotary), rotate(k, rotary))

    np.testing.assert_allclose(scores(1000), scores(0), atol=1e-3)
    assert np.abs(scores(0) - np.einsum("she,the->st", q, k)).max() > 1.0


@pytest.mark.parity
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_mrope_and_2d_rotary_equal_transformers(family):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = cases.tiny_config(family)
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}[family]
    theirs = getattr(transformers, f"{name}ForConditionalGeneration")(
        getattr(transformers, f"{name}Config")(**to_hf(config))
    )
    rng = np.random.default_rng(0)

    positions = rng.integers(0, 3000, (3, 1, 20))
    expected = theirs.model.language_model.rotary_emb(torch.zeros(1), torch.tensor(positions))
    ours = mrope(np.swapaxes(positions, 0, 1), config.mrope_section, config.rope_theta)
    for mine, pair in zip(ours, expected, strict=True):
        np.testing.assert_allclose(np.concatenate([mine, mine], -1), pair, atol=1e-6)

    coords = rng.integers(0, 100, (20, 2))
    expected = theirs.model.visual.rotary_pos_emb(torch.zeros(1), torch.tensor(coords))
    ours = rope_2d(coords, config.vision.width // config.vision.heads)
    for mine, pair in zip(ours, expected, strict=True):
        np.testing.assert_allclose(np.concatenate([mine, mine], -1), pair, atol=1e-6)
