# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Parity with transformers' torch models of random weights, float32 on the CPU.

Torch gets pixel values made from the same bytes and computes positions and windows itself.
"""

import json

import jax
import model_cases as cases
import numpy as np
import pytest

from rlvlm_jax.models.families import build
from rlvlm_jax.models.huggingface import load_hf
from rlvlm_jax.models.qwen2_vl.config import from_hf, to_hf

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

# In patches. Qwen2.5-VL's windows are 4x4 patches here: none of these grids is a multiple of it,
# the first is smaller than one window, the last wider than two.
SMALL, WIDE, TALL = (2, 2), (6, 10), (18, 6)
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
            if key.endswith(
                ("layernorm.weight", "norm.weight", "norm1.weight", "norm2.weight", "ln_q.weight")
            ):
                weight.add_(1.0)
    return model


@pytest.fixture(scope="module")
def make_pair(tmp_path_factory):
    """(torch model, our model, our params read from the directory that torch saved), cached."""
    made = {}

    def make(family, **options):
        key = (family, *sorted(options.items()))
        if key not in made:
            transformers = pytest.importorskip("transformers")
            transformers.utils.logging.disable_progress_bar()
            theirs = torch_model(cases.tiny_config(family, **options))
            directory = tmp_path_factory.mktemp("hf")
            theirs.save_pretrained(directory)
            config = from_hf(json.loads((directory / "config.json").read_text()))
            params, _ = load_hf(directory, config)
            made[key] = theirs, build(config), params
        return made[key]

    return make


def image_inputs(config, batch, repeats):
    """pixel_values and image_grid_thw of each row `repeats` times, or nothing without images."""
    vision = config.vision
    mean, std = (np.array(v)[:, None, None] for v in (vision.image_mean, vision.image_std))
    pixels, grids = [], []
    for row in np.repeat(np.arange(len(batch.tokens)), repeats):
        for image in range(1, batch.media.image[row].max() + 1):
            mine = batch.media.image[row] == image
            still = batch.media.pixels[row, mine].reshape(-1, 3, 1, vision.patch_size**2)
            still = (still / 255.0 - mean) / std
            pixels.append(np.repeat(still, 2, axis=2).reshape(len(still), -1))
            grids.append([1, *(batch.media.coords[row, mine].max(0) + 1)])
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
    columns = np.tile(batch.tokens.shape[1] - 1 + np.arange(tokens.shape[1]), (len(tokens), 1))
    columns[:, 0] = [np.flatnonzero(row)[-1] for row in np.repeat(batch.mask, groups, 0)]
    return np.take_along_axis(logits, columns[..., None], axis=1)


def logprobs_of(logits, tokens):
    logits = np.float64(logits)
    logits -= logits.max(-1, keepdims=True)
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.take_along_axis(logps, tokens[..., None], axis=-1)[..., 0]


def largest_error(pair, batch, groups=2, length=5):
    """Largest difference of a valid response token's log-probability, nats."""
    theirs, model, params = pair
    tokens, mask = cases.random_responses(batch, groups, length)
    expected = logprobs_of(torch_logits(theirs, model.config, batch, tokens, mask), tokens)
    hidden = cases.compiled(model).forward(params, batch, tokens, mask)
    ours = logprobs_of(model.logits(params, hidden), tokens)
    assert expected[mask].std() > 0.5, "the weights say nothing"
    return np.abs(ours - expected)[mask].max()


@pytest.mark.parametrize("pad", ["left", "right", "hole"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_of_mixed_images_under_any_padding(make_pair, family, pad):
    pair = make_pair(family)
    assert largest_error(pair, cases.make_batch(pair[1].config, MIXED, pad=pad)) < 5e-5


@pytest.mark.parametrize(  # the families differ in their towers, not in these
    ("family", "heads", "kv_heads", "tied"),
    [
        *(("qwen2_5_vl", *heads) for heads in [(2, 2, True), (4, 2, True), (7, 1, False)]),
        *(("qwen2_vl", *heads) for heads in [(4, 2, True), (7, 1, True)]),
    ],
)
def test_logprobs_of_grouped_heads_and_tied_heads(make_pair, family, heads, kv_heads, tied):
    pair = make_pair(family, heads=heads, kv_heads=kv_heads, tied=tied, layers=3)
    batch = cases.make_batch(pair[1].config, [([WIDE], 3), ([SMALL], 6)])
    assert largest_error(pair, batch) < 5e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_of_text_alone(make_pair, family):
    pair = make_pair(family)
    # Left padding only: without an image, transformers counts positions over the padding too.
    batch = cases.make_batch(pair[1].config, [([], 9), ([], 4)])
    assert largest_error(pair, batch) < 5e-5


@pytest.mark.parametrize("grid", [SMALL, (4, 4), (4, 8), (6, 6), WIDE, TALL, (2, 18)])
@pytest.mark.parametrize("family", FAMILIES)
def test_image_features_at_window_edges(make_pair, family, grid):
    theirs, model, params = make_pair(family)
    batch = cases.make_batch(model.config, [([grid, SMALL], 1)], extra=(0, 3))
    inputs = image_inputs(model.config, batch, 1)
    with torch.no_grad():
        expected = theirs.model.visual(inputs["pixel_values"], inputs["image_grid_thw"])
    expected = expected.pooler_output.numpy()
    features = np.asarray(jax.jit(model.encode_images)(params, batch))[0]
    assert len(features) == len(expected) + 3  # padding, at the end
    scale = np.abs(expected).max()
    np.testing.assert_allclose(features[: len(expected)] / scale, expected / scale, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_of_the_test_batches_are_those_of_transformers(make_pair, family):
    theirs, model, _ = make_pair(family)
    batch = cases.make_batch(model.config, MIXED)
    positions, _ = theirs.model.get_rope_index(
        torch.tensor(batch.tokens, dtype=torch.long),
        mm_token_type_ids=torch.tensor(batch.tokens == cases.IMAGE, dtype=torch.int),
        image_grid_thw=image_inputs(model.config, batch, 1)["image_grid_thw"],
        attention_mask=torch.tensor(batch.mask),
    )
    expected = np.where(batch.mask[:, None], positions.numpy().swapaxes(0, 1), 0)
    np.testing.assert_array_equal(batch.positions, expected)


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_gives_torchs_tokens(make_pair, family, pad):
    theirs, model, params = make_pair(family)
    batch = cases.make_batch(model.config, MIXED, pad=pad)
    count, length = len(batch.tokens), 8

    def choose(logits):  # vision tokens are never sampled
        return np.asarray(logits)[:, : cases.WORDS].argmax(-1).astype(np.int32)

    expected = np.zeros((count, 0), np.int32)
    for _ in range(length):
        padded = np.pad(expected, ((0, 0), (0, 1)))
        mask = np.ones(padded.shape, bool)
        logits = torch_logits(theirs, model.config, batch, padded, mask)[:, -1]
        expected = np.concatenate([expected, choose(logits)[:, None]], axis=1)

    hidden, prefix = cases.compiled(model).prefill(params, batch)
    weights = model.decoder(params)
    cache = cases.dirty_cache(model, prefix, count // len(batch.tokens), length)
    tokens = []
    for step in range(length):
        tokens.append(choose(model.logits(params, hidden)))
        rotary = model.rotary(cases.first_positions(batch) + step)
        hidden, cache = cases.compiled(model).decode(
            weights, tokens[-1], rotary, prefix, batch.mask, cache, np.int32(step)
        )
    np.testing.assert_array_equal(np.stack(tokens, axis=1), expected)
    assert len(np.unique(expected)) > length  # not one token over and over
