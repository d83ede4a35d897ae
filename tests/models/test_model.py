# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What must hold between the functions of a `Model`, whatever the weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import model_cases as cases
import numpy as np
import pytest

from rlvlm_jax.models.common.cache import stored
from rlvlm_jax.models.common.layers import REMAT_POLICIES
from rlvlm_jax.models.families import build

FAMILIES = ["qwen2_vl", "qwen2_5_vl"]
ONE_IS_SLOW = [pytest.param("qwen2_vl", marks=pytest.mark.slow), "qwen2_5_vl"]  # nearly as much
PROMPTS = [([(6, 10), (2, 2)], 2), ([], 9), ([(4, 6)], 1)]
G, R = 3, 5


@functools.cache
def make(family, dtype="float32", remat="none"):
    model = build(cases.tiny_config(family), dtype=dtype, remat=remat)
    return model, cases.random_params(model)


def forward(model, params, *args):
    return np.asarray(cases.compiled(model).forward(params, *args))


def select(batch, rows):
    return jax.tree.map(lambda x: x[rows], batch)


@functools.cache
def gradient(model):
    """Gradient of sum(hidden * pulled) over valid tokens with respect to (language, features)."""

    def loss(language, features, batch, tokens, mask, pulled):
        hidden = model.forward({"language": language}, batch, features, tokens, mask)
        return jnp.where(mask[..., None], hidden * pulled, 0.0).sum()

    return jax.jit(jax.grad(loss, (0, 1)))


@functools.cache
def vision_gradient(model):
    """Gradient of sum(features * pulled) with respect to the vision parameters."""

    def loss(vision, batch, pulled):
        return (model.encode_images({"vision": vision}, batch) * pulled).sum()

    return jax.jit(jax.grad(loss))


def noise(*shape, seed=2):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_close(tree, expected, relative=1e-5):
    """Every leaf within `relative` of its own largest value."""
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(expected), strict=True
    ):
        scale = np.abs(theirs).max() + 1e-12
        error = np.abs(ours - theirs).max() / scale
        assert error < relative, f"{jax.tree_util.keystr(path)}: {error}"


@pytest.mark.parametrize(
    "pad", ["left", *(pytest.param(pad, marks=pytest.mark.slow) for pad in ("right", "hole"))]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_equals_prefill_and_decode(family, pad):
    model, params = make(family)
    batch = cases.make_batch(model.config, PROMPTS, pad=pad)
    tokens, mask = cases.random_responses(batch, G, R)
    expected = cases.decode_all(model, params, batch, tokens)
    hidden = forward(model, params, batch, tokens, mask)
    np.testing.assert_allclose(hidden[mask], expected[mask], atol=1e-6)
    assert hidden[mask].std() > 0.5


@pytest.mark.slow
def test_sampler_and_trainer_round_alike_at_a_real_width():
    config = cases.tiny_config(layers=3)
    config = dataclasses.replace(config, width=576, heads=9, kv_heads=3, head_size=64)
    config = dataclasses.replace(config, mlp_width=1536, mrope_section=(8, 12, 12))
    model = build(cases.with_vision(config, out_width=576))
    params = cases.random_params(model, std=0.05)
    batch = cases.make_batch(model.config, [([], 70), ([(8, 12)], 9)])
    tokens, mask = cases.random_responses(batch, 4, 24)
    expected = cases.decode_all(model, params, batch, tokens)
    np.testing.assert_array_equal(forward(model, params, batch, tokens, mask)[mask], expected[mask])


@pytest.mark.slow
@pytest.mark.parametrize("family", ONE_IS_SLOW)
def test_responses_of_a_group_equal_the_same_responses_one_by_one(family):
    model, params = make(family)
    batch = cases.make_batch(model.config, PROMPTS)
    tokens, mask = cases.random_responses(batch, G, R)
    hidden = forward(model, params, batch, tokens, mask)
    for sample in range(G):
        rows = np.arange(len(PROMPTS)) * G + sample
        alone = forward(model, params, batch, tokens[rows], mask[rows])
        np.testing.assert_allclose(hidden[rows], alone, atol=1e-5)


@pytest.mark.slow
def test_gradient_of_a_shared_prompt_equals_that_of_separate_rows_with_remat():
    model, params = make("qwen2_5_vl")
    batch = cases.make_batch(model.config, PROMPTS)
    tokens, mask = cases.random_responses(batch, G, R)
    features = noise(len(PROMPTS), batch.media.image.shape[1] // 4, model.config.width)
    pulled = noise(*tokens.shape, model.config.width, seed=3)
    inputs = (tokens, mask, pulled)
    shared, of_features = gradient(model)(params["language"], features, batch, *inputs)

    rows = np.repeat(np.arange(len(PROMPTS)), G)
    remat, _ = make("qwen2_5_vl", remat="full")
    separate, of_each = gradient(remat)(
        params["language"], features[rows], select(batch, rows), *inputs
    )
    assert_close(shared, separate)
    assert_close(of_features, of_each.reshape(len(PROMPTS), G, *features.shape[1:]).sum(1))
    del shared["head"]  # comes after the hidden states
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(shared))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_remat_and_padding_leave_the_vision_gradient_alone(family):
    model, params = make(family)
    remat, _ = make(family, remat="full")
    batch = cases.make_batch(model.config, PROMPTS, extra=(0, 0))
    pulled = noise(len(PROMPTS), batch.media.image.shape[1] // 4, model.config.width)
    expected = vision_gradient(model)(params["vision"], batch, pulled)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(expected))

    padded = cases.make_batch(model.config, PROMPTS, extra=(0, 3))
    # The first prompt has no padding, the second no image at all.
    assert (batch.media.image[0] > 0).all()
    assert not batch.media.image[1].any()
    pulled = np.pad(pulled, ((0, 0), (0, 3), (0, 0)))
    assert_close(vision_gradient(remat)(params["vision"], padded, pulled), expected)


@pytest.mark.parametrize(
    ("remat", "policy"),
    [
        ("elementwise", REMAT_POLICIES["elementwise"]),
        ("dots", jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
        ("full", jax.checkpoint_policies.nothing_saveable),
    ],
)
def test_remat_reaches_both_scans_with_the_policy_named(remat, policy):
    model, params = make("qwen2_vl", remat=remat)
    batch = cases.make_batch(model.config, PROMPTS)
    features = jax.eval_shape(model.encode_images, params, batch)
    for trace in (
        jax.make_jaxpr(model.encode_images)(params, batch),
        jax.make_jaxpr(model.prefill)(params, batch, features),
    ):
        blocks = [eqn for eqn in trace.eqns if eqn.primitive.name == "scan"]
        (inner,) = [e for e in blocks[0].params["jaxpr"].eqns if "policy" in e.params]
        assert inner.params["policy"] is policy


@pytest.mark.parametrize("family", FAMILIES)
def test_what_lies_under_the_masks_changes_nothing(family):
    model, params = make(family)
    batch = cases.make_batch(model.config, PROMPTS, pad="hole")
    tokens, mask = cases.random_responses(batch, G, R)
    rng = np.random.default_rng(3)
    image = batch.media.image > 0
    other = batch._replace(
        # The image token among the rest: it must not take the feature of a real one.
        tokens=np.where(batch.mask, batch.tokens, cases.IMAGE),
        positions=np.where(batch.mask[:, None], batch.positions, 10**6),
        media=batch.media._replace(
            pixels=np.where(
                image[..., None], batch.media.pixels, rng.integers(0, 256, 48, np.uint8)
            ),
            coords=np.where(image[..., None], batch.media.coords, 77),
        ),
    )
    other_tokens = np.where(mask, tokens, rng.integers(3, cases.WORDS, tokens.shape))
    expected = forward(model, params, batch, tokens, mask)
    hidden = forward(model, params, other, other_tokens.astype(np.int32), mask)
    np.testing.assert_array_equal(hidden[mask], expected[mask])


@pytest.mark.slow
@pytest.mark.parametrize("family", ONE_IS_SLOW)
def test_padding_the_patches_further_changes_nothing(family):
    model, params = make(family)
    tokens, mask = cases.random_responses(cases.make_batch(model.config, PROMPTS), G, R)
    hidden = [
        forward(model, params, cases.make_batch(model.config, PROMPTS, extra=extra), tokens, mask)
        for extra in [(0, 0), (2, 8)]
    ]
    np.testing.assert_allclose(hidden[0], hidden[1], atol=1e-5)


@pytest.mark.slow
def test_a_batch_without_patches_is_a_batch_without_images():
    model, params = make("qwen2_5_vl")
    batch = cases.make_batch(model.config, [([], 9), ([], 4)], extra=(1, 3))
    tokens, mask = cases.random_responses(batch, G, R)
    bare = batch._replace(media=jax.tree.map(lambda x: x[:, :0], batch.media))
    assert bare.media.image.shape[1] == 0
    expected = forward(model, params, batch, tokens, mask)
    np.testing.assert_allclose(forward(model, params, bare, tokens, mask), expected, atol=1e-5)


@pytest.mark.slow
def test_an_empty_prompt_is_finite_and_has_no_gradient():
    model, params = make("qwen2_5_vl")
    batch = cases.make_batch(model.config, PROMPTS)
    tokens, mask = cases.random_responses(batch, G, R)
    batch.mask[1] = False
    mask[G : 2 * G] = False
    features = noise(len(PROMPTS), batch.media.image.shape[1] // 4, model.config.width)

    assert np.isfinite(forward(model, params, batch, tokens, mask)).all()
    assert np.isfinite(cases.decode_all(model, params, batch, tokens)).all()

    pulled = noise(*tokens.shape, model.config.width, seed=3)
    run = functools.partial(gradient(model), params["language"])
    expected = run(features, batch, tokens, mask, pulled)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    # Nothing of the empty prompt's row is in it.
    batch.tokens[1], batch.positions[1], features[1], tokens[G : 2 * G] = 9, 9, 9.0, 9
    again = run(features, batch, tokens, mask, pulled)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    only_empty = run(
        features, batch, tokens, mask, pulled * (np.arange(len(mask)) // G == 1)[:, None, None]
    )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(only_empty))


@pytest.mark.slow
def test_bfloat16_computes_close_to_float32_and_gives_float32_logits():
    model, params = make("qwen2_5_vl")
    half, _ = make("qwen2_5_vl", dtype="bfloat16")
    batch = cases.make_batch(model.config, PROMPTS)
    tokens, mask = cases.random_responses(batch, G, R)
    exact = forward(model, params, batch, tokens, mask)
    hidden = cases.compiled(half).forward(params, batch, tokens, mask)
    assert hidden.dtype == jnp.bfloat16
    logits = half.logits(params, hidden)
    assert logits.dtype == jnp.float32
    error = np.abs(np.float32(hidden) - exact)[mask]
    assert 0 < error.mean() < 0.05 * np.abs(exact[mask]).mean()
    # Accumulated in float32: the error is that of rounding the factors, not of the sum.
    head = np.float64(jnp.asarray(params["language"]["head"]["weight"], jnp.bfloat16))
    np.testing.assert_allclose(logits, np.float64(hidden) @ head.T, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_decoding_updates_the_cache_in_place_and_compiles_once(dtype):
    config = cases.tiny_config(layers=6)
    model = build(config, dtype=dtype)
    params = cases.random_params(model)
    n, g, p, r = 2, 4, 16, 1024
    traces = []

    def steps(params, tokens, prefix, mask, cache, first):
        traces.append(first)
        weights = model.decoder(params)

        def body(carry, step):
            tokens, cache = carry
            rotary = model.rotary(p + step)
            hidden, cache = model.decode(weights, tokens, rotary, prefix, mask, cache, step[0])
            tokens = model.logits(weights, hidden).argmax(-1).astype(jnp.int32)
            return (tokens, cache), tokens

        steps = first + jnp.arange(3, dtype=jnp.int32)
        return jax.lax.scan(body, (tokens, cache), jnp.broadcast_to(steps[:, None], (3, n * g)))

    keys = jnp.ones((n, config.kv_heads, p, config.head_size), dtype)
    prefix = (stored(keys, keys, "model"),) * config.layers
    cache = cases.dirty_cache(model, prefix, g, r)
    tokens, mask = np.ones(n * g, np.int32), np.ones((n, p), bool)

    jitted = jax.jit(steps, donate_argnums=4)
    for call in range(3):
        before = jax.tree.map(lambda x: np.array(x, np.float32), cache)
        (tokens, cache), _ = jitted(params, tokens, prefix, mask, cache, np.int32(3 * call))
        for (old,), (new,) in zip(before, cache, strict=True):
            for kept, kept_before in zip(new, old, strict=True):
                changed = np.array(kept.x, np.float32) != kept_before.x
                changed = np.moveaxis(changed, kept.slot_axis, 0).reshape(r, -1).any(axis=1)
                assert np.flatnonzero(changed).tolist() == [3 * call, 3 * call + 1, 3 * call + 2]
    assert len(traces) == 1

    compiled = jitted.lower(params, tokens, prefix, mask, cache, np.int32(0)).compile()
    size = sum(x.nbytes for x in jax.tree.leaves(cache))
    assert compiled.memory_analysis().temp_size_in_bytes < size / 2


@pytest.mark.slow
def test_a_large_image_never_holds_the_scores_of_all_pairs_of_patches():
    config = cases.with_vision(cases.tiny_config(), width=64, heads=16, depth=2)
    model = build(config)
    patches = 5120
    batch = cases.make_batch(config, [([], 1)])
    zeros = jax.tree.map(lambda x: np.zeros((1, patches, *x.shape[2:]), x.dtype), batch.media)
    batch = batch._replace(media=zeros)
    params = jax.eval_shape(model.init, jax.random.key(0))

    def loss(params, batch):
        return model.encode_images(params, batch).sum()

    compiled = jax.jit(jax.grad(loss)).lower(params, batch).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * patches**2 * 4 / 2
