# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Rotary positions against numbers worked out by hand, and against transformers."""

import numpy as np
import pytest

from rlvlm_jax.models.qwen2_vl.positions import rope_positions

T, X, END = 1, 9, 2  # text, image token, closing token


def test_text_alone_counts_up_on_all_axes():
    found = rope_positions([T] * 4, [], X, 2)
    assert found.dtype == np.int32
    assert found.tolist() == [[0, 1, 2, 3]] * 3


def test_one_image_of_two_rows_and_three_columns():
    # 4 x 6 patches, merged to 2 x 3; the text behind goes on at 1 + max(2, 3) = 4
    found = rope_positions([T, *[X] * 6, T, T], [(4, 6)], X, 2)
    assert found.tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4, 5],
        [0, 1, 1, 1, 2, 2, 2, 4, 5],
        [0, 1, 2, 3, 1, 2, 3, 4, 5],
    ]


def test_two_images_with_and_without_text_between():
    # merged 1 x 2, then 3 x 1
    apart = rope_positions([X, X, T, X, X, X, T], [(2, 4), (6, 2)], X, 2)
    assert apart.tolist() == [
        [0, 0, 2, 3, 3, 3, 6],
        [0, 0, 2, 3, 4, 5, 6],
        [0, 1, 2, 3, 3, 3, 6],
    ]
    touching = rope_positions([X, X, X, X, X, T], [(2, 4), (6, 2)], X, 2)
    assert touching.tolist() == [
        [0, 0, 2, 2, 2, 5],
        [0, 0, 2, 3, 4, 5],
        [0, 1, 2, 2, 2, 5],
    ]


def test_merge_of_one_and_image_at_the_end():
    assert rope_positions([T, X, X], [(1, 2)], X, 1).tolist() == [[0, 1, 1], [0, 1, 1], [0, 1, 2]]


@pytest.mark.parametrize(
    ("tokens", "grids"), [([X], []), ([T], [(2, 2)]), ([X, X], [(2, 2)]), ([X] * 3, [(4, 4)])]
)
def test_grids_that_do_not_add_up(tokens, grids):
    with pytest.raises(ValueError, match="image tokens"):
        rope_positions(tokens, grids, X, 2)


def test_interrupted_image():
    with pytest.raises(ValueError, match="inside"):
        rope_positions([X, T, X], [(2, 4)], X, 2)


@pytest.mark.parity
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize(
    "grids",
    [[], [(2, 2)], [(4, 10)], [(10, 4)], [(2, 4), (6, 2)], [(8, 8), (2, 2), (4, 12)]],
)
def test_equal_to_transformers(family, grids):
    torch = pytest.importorskip("torch")
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as new
    from transformers.models.qwen2_vl import modeling_qwen2_vl as old

    ids = {
        "image_token_id": X,
        "video_token_id": 8,
        "vision_start_token_id": 7,
        "vision_end_token_id": END,
    }
    text = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "vocab_size": 10,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    small = {"depth": 1, "num_heads": 1, "intermediate_size": 8}
    if family == "qwen2_vl":
        small |= {"embed_dim": 8, "hidden_size": 8}
        config = old.Qwen2VLConfig(text_config=text, vision_config=small, **ids)
        model = old.Qwen2VLModel(config)
    else:
        small |= {"hidden_size": 8, "out_hidden_size": 8}
        config = new.Qwen2_5_VLConfig(text_config=text, vision_config=small, **ids)
        model = new.Qwen2_5_VLModel(config)

    tokens = [T, T]
    for rows, columns in grids:
        tokens += [7, *[X] * (rows * columns // 4), END]
    tokens += [T, T, T]
    types = (torch.tensor([tokens]) == X).int()
    thw = torch.tensor([[1, *grid] for grid in grids]) if grids else None
    expected, _ = model.get_rope_index(
        torch.tensor([tokens]), mm_token_type_ids=types, image_grid_thw=thw
    )
    found = rope_positions(tokens, grids, X, 2)
    np.testing.assert_array_equal(found, expected[:, 0].numpy())
