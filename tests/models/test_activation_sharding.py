# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Any sharding of weights, and a scan over layers, give the same numbers; eight fake devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvlm_jax import sharding
from rlvlm_jax.data.prompts import collate
from rlvlm_jax.logprobs import logprobs
from rlvlm_jax.models import families
from rlvlm_jax.models.common import activation_sharding, cache
from rlvlm_jax.models.qwen2_vl import config as qwen2_vl_config
from rlvlm_jax.sampling import sampler
from rlvlm_jax.sampling.logits import Policy
from rlvlm_jax.sampling.sampler import SampleSettings, make_sample_fn, sequence_keys
from tests import tiny_model
from tests.models import model_cases as cases


@pytest.mark.slow
@pytest.mark.parametrize("kind", cache.KINDS)
def test_a_scan_over_layers_decodes_the_same(kind):
    config = cases.tiny_config(layers=3)
    unrolled = families.build(config, cache=kind)
    scanned = families.build(config, cache=kind, platform="tpu")
    params = cases.random_params(unrolled)
    batch = cases.make_batch(config, [([(4, 6)], 2), ([], 9)])
    tokens, mask = cases.random_responses(batch, 3, 7)
    expected = cases.decode_all(unrolled, params, batch, tokens)[mask]
    found = cases.decode_all(scanned, params, batch, tokens)[mask]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def model_of(mesh=None, layout="train", platform="cpu", **changes):
    config = qwen2_vl_config.from_hf(tiny_model.hf_config(**changes))
    chosen = activation_sharding.ActivationSharding()
    if mesh:
        chosen = activation_sharding.choose(layout, mesh, 0)
    return families.build(config, platform=platform, sharding=chosen)


def sample(model, params, batch, shards=1):
    settings = SampleSettings(
        samples=4,
        max_tokens=48,
        stop_ids=(0, 1),
        pad_id=tiny_model.PAD,
        banned_ids=tiny_model.BANNED,
        chunk=8,
        policy=Policy(1.0, tiny_model.BANNED),
        shards=shards,
    )
    keys = sequence_keys(jax.random.key(8), np.arange(16, dtype=np.uint32))
    return jax.device_get(jax.jit(make_sample_fn(model, settings))(params, batch, None, keys))


@pytest.fixture(scope="module")
def plainly():
    _, params = tiny_model.build()
    return params, sample(model_of(), params, tiny_model.batch())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "platform", "sequence"),
    [
        ("tensor", "cpu", 1),
        ("tensor", "tpu", 2),
        ("replicated", "cpu", 1),
        ("train", "tpu", 1),
        ("train", "cpu", 2),
    ],
)
def test_samples_do_not_depend_on_the_sharding_of_weights(
    monkeypatch, plainly, layout, platform, sequence
):
    monkeypatch.setattr(sampler, "FIRST_BLOCK", 16)  # several blocks, and a smaller batch
    monkeypatch.setattr(sampler, "SHRINK", 2)
    params, expected = plainly
    mesh = sharding.make_mesh(1, 4 // sequence, 2, sequence=sequence)
    model = model_of(mesh, layout, platform)
    shardings = sharding.param_shardings(params, model.param_rules, mesh)
    batch = sharding.put_batch(tiny_model.batch(), mesh)
    found = sample(model, jax.device_put(params, shardings), batch, shards=4)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.truncated, expected.truncated)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=2e-5)


@pytest.mark.parametrize("axes", [(1, 4, 1, 2), (1, 2, 2, 2), (2, 2, 2, 1), (1, 4, 2, 1)])
def test_no_weight_of_the_decoder_is_whole_on_a_device(axes):
    """After resharding for decoding, by the text of the compiled program."""
    data, fsdp, sequence, tensor = axes
    mesh = sharding.make_mesh(data, fsdp, tensor, sequence=sequence)
    sizes = {"vocab_size": 1024, "hidden_size": 64, "intermediate_size": 160}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    vision = tiny_model.hf_config()["vision_config"] | {"out_hidden_size": 64}
    model = model_of(mesh, "tensor", **sizes, **heads, vision_config=vision)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    shardings = sharding.param_shardings(shapes, model.param_rules, mesh)
    text = (
        jax.jit(model.decoder).lower(sharding.with_shardings(shapes, shardings)).compile().as_text()
    )
    large = [leaf.shape for leaf in jax.tree.leaves(shapes["language"]) if leaf.size >= 64 * 160]
    assert large
    whole = {",".join(map(str, shape)) for shape in large}
    assert not whole & set(re.findall(r"= \w+\[([\d,]+)\]", text))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tied", "fsdp", "sequence", "tensor"),
    [
        (False, 2, 2, 2),
        (True, 4, 1, 2),
        (False, 4, 1, 2),
        (True, 1, 2, 1),
    ],
)
def test_logprobs_and_gradients_do_not_depend_on_the_mesh(tied, fsdp, sequence, tensor):
    batch = tiny_model.batch()
    plain = model_of(tie_word_embeddings=tied)
    params = jax.tree.map(lambda x: 3 * x, jax.jit(plain.init)(jax.random.key(0)))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 57, (8, 6)).astype(np.int32)
    mask = np.arange(6) < rng.integers(1, 7, 8)[:, None]

    def loss(model):
        policy = Policy(1.0, tiny_model.BANNED)

        def total(params, batch, tokens, mask):
            lps, *_ = logprobs(model, policy, 4, params, batch, None, tokens, mask, mask)
            return jnp.sum(jnp.sin(lps)), lps

        return jax.jit(jax.value_and_grad(total, has_aux=True))

    (_, expected), gradients = loss(plain)(params, batch, tokens, mask)
    mesh = sharding.make_mesh(1, fsdp, tensor, sequence=sequence)
    model = model_of(mesh, tie_word_embeddings=tied)
    shardings = sharding.param_shardings(params, model.param_rules, mesh)
    arrays = sharding.put_batch((batch, tokens, mask), mesh)
    (_, found), divided = loss(model)(jax.device_put(params, shardings), *arrays)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    for one, other in zip(jax.tree.leaves(divided), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * max(1.0, np.abs(other).max()))


@pytest.mark.slow
@pytest.mark.parametrize(("fsdp", "sequence", "tensor"), [(8, 1, 1), (2, 2, 2)])
def test_tokens_are_looked_up_without_gathering_table_or_tokens(fsdp, sequence, tensor):
    mesh = sharding.make_mesh(1, fsdp, tensor, sequence=sequence)
    model = model_of(mesh, vocab_size=1024)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    shardings = sharding.param_shardings(shapes, model.param_rules, mesh)
    empty = collate([None], 512, 0, 0, tiny_model.SPEC)
    batch = sharding.batch_shapes(empty, 16, mesh)  # more tokens than the table has rows
    features = jax.ShapeDtypeStruct(
        (16, 0, 32), jnp.float32, sharding=sharding.batch_sharding(mesh)
    )

    def loss(params, batch, features):
        tokens, mask = batch.tokens[:, :64], batch.mask[:, :64]
        hidden = model.forward(params, batch, features, tokens, mask)
        # The table is the output layer too, whose gradient is sharded differently.
        return jnp.square(model.logits(model.spread(params), hidden[:, :4])).sum()

    arguments = sharding.with_shardings(shapes, shardings), batch, features
    text = jax.jit(jax.grad(loss)).lower(*arguments).compile().as_text()
    gathers = re.findall(r"= (\S+) all-gather\(", text)
    assert gathers
    rows = 16 // mesh.shape["data"]
    for shape in gathers:
        assert "[1024," not in shape
        assert f"[{rows},512,32]" not in shape, shape
        assert f"[{rows},1,512,32]" not in shape, shape


def test_auto_replicates_small_models_only():
    mesh = sharding.make_mesh(1, 4, 2)
    assert (
        activation_sharding.choose("auto", mesh, activation_sharding.MAX_REPLICATED).layout
        == "replicated"
    )
    assert (
        activation_sharding.choose("auto", mesh, activation_sharding.MAX_REPLICATED + 1).layout
        == "tensor"
    )
    assert activation_sharding.choose("train", mesh, 1).layout == "train"
    assert activation_sharding.choose("auto", sharding.make_mesh(1, 1, 1), 1).mesh is None
