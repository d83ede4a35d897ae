# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Parity with transformers' torch models of random weights, float32 on the CPU.

Torch gets pixel values made from the same bytes and computes positions and windows itself.
"""

import json

import jax
import jax.numpy as jnp
import model_cases as cases
import numpy as np
import pytest

from rlvlm_jax.models import build
from rlvlm_jax.models.qwen_vl_config import from_hf, to_hf

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

# In patches. Qwen2.5-VL's windows are 4x4 patches here: none of these grids is a multiple of it,
# the first is smaller than one window, the last wider than two.
SMALL, WIDE, TALL = (2, 2), (6, 10), (14, 6)
MIXED = [([WIDE, SMALL], 2), ([], 7), ([TALL], 1)]
FAMILIES = ["qwen2_vl", "qwen2_5_vl"]


def torch_model(config, seed=0):
    transformers = pytest.importorskip("transformers")
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}[config.family]
    hf_config = getattr(transformers, f"{name}Config")(**to_hf(config))
    hf_config._attn_implementation = "eager"
    model = getattr(transformers, f"{name}ForConditionalGeneration")(hf_config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
            if "norm" in key and key.endswith("weight") or key.endswith("ln_q.weight"):
                weight.add_(1.0)
    return model


@pytest.fixture(scope="module")
def make_pair(tmp_path_factory):
    """(torch model, our model, our params read from the directory that torch saved), cached."""
    from rlvlm_jax.models.convert import load_hf

    made = {}

    def make(family, **options):
        key = (family, *sorted(options.items()))
        if key not in made:
            theirs = torch_model(cases.tiny_config(family, **options))
            directory = tmp_path_factory.mktemp("hf")
            theirs.save_pretrained(directory)
            config = from_hf(json.loads((directory / "config.json").read_text()))
            made[key] = theirs, build(config), load_hf(directory, config)
        return made[key]

    return make


def image_inputs(config, batch, repeats):
    """pixel_values and image_grid_thw of each row `repeats` times, or nothing without images."""
    vision = config.vision
    mean, std = (np.array(v)[:, None, None] for v in (vision.image_mean, vision.image_std))
    pixels, grids = [], []
    for row in np.repeat(np.arange(len(batch.tokens)), repeats):
        for image in range(1, batch.patch_image[row].max() + 1):
            mine = batch.patch_image[row] == image
            still = batch.patches[row, mine].reshape(-1, 3, 1, vision.patch_size**2)
            still = (still / 255.0 - mean) / std
            pixels.append(np.repeat(still, 2, axis=2).reshape(len(still), -1))
            grids.append([1, *(batch.patch_coords[row, mine].max(0) + 1)])
    if not grids:
        return {}
    return {
        "pixel_values": torch.tensor(np.concatenate(pixels), dtype=torch.float32),
        "image_grid_thw": torch.tensor(np.array(grids)),
    }


def torch_logits(theirs, config, batch, tokens, mask):
    """float32[B, R, V]: logits for each response token, from full rows of prompt and response."""
    groups = len(tokens) // len(batch.tokens)
    rows = np.concatenate([np.repeat(batch.tokens, groups, 0), tokens], 1)
    counts = np.concatenate([np.repeat(batch.mask, groups, 0), mask], 1)
    inputs = {
        "input_ids": torch.tensor(rows, dtype=torch.long),
        "attention_mask": torch.tensor(counts, dtype=torch.long),
        "mm_token_type_ids": torch.tensor(rows == cases.IMAGE, dtype=torch.int),
        **image_inputs(config, batch, groups),
    }
    theirs.model.rope_deltas = None
    with torch.no_grad():
        logits = theirs(**inputs, use_cache=False).logits.numpy()
    length = batch.tokens.shape[1]
    columns = length + np.arange(tokens.shape[1])[None] - 1
    last = [np.flatnonzero(row)[-1] for row in np.repeat(batch.mask, groups, 0)]
    columns = np.where(columns < length, np.array(last)[:, None], columns)
    return np.take_along_axis(logits, columns[..., None], axis=1)


def logprobs_of(logits, tokens):
    logits = np.float64(logits)
    logits -= logits.max(-1, keepdims=True)
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.take_along_axis(logps, tokens[..., None], axis=-1)[..., 0]


def our_logits(model, params, batch, tokens, mask):
    features = model.encode_images(params, batch)
    return model.logits(params, model.forward(params, batch, features, tokens, mask))


@pytest.mark.parametrize("pad", ["left", "right", "hole"])
@pytest.mark.parametrize("family", FAMILIES)
def test_response_logprobs_equal_torch_on_mixed_images_and_padding(make_pair, family, pad):
    theirs, model, params = make_pair(family)
    batch = cases.make_batch(model.config, MIXED, pad=pad)
    tokens, mask = cases.random_responses(batch, groups=2, length=5)
    expected = logprobs_of(torch_logits(theirs, model.config, batch, tokens, mask), tokens)
    ours = logprobs_of(jax.jit(our_logits, static_argnums=0)(model, params, batch, tokens, mask), tokens)
    assert np.abs(expected[mask]).mean() > 1.0
    print("GAP", np.abs(ours - expected)[mask].max())
    np.testing.assert_allclose(ours[mask], expected[mask], atol=2e-4, rtol=0)
