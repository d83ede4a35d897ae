# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Published sizes without a weight: parameter tree, counts, sharding rules, shapes of all calls."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvlm_jax.models.common import cache
from rlvlm_jax.models.families import build
from rlvlm_jax.models.huggingface import param_shapes
from rlvlm_jax.models.qwen2_vl.config import to_hf
from rlvlm_jax.models.qwen2_vl.media import Patches
from rlvlm_jax.models.qwen2_vl.published import PUBLISHED
from rlvlm_jax.types import Prompts

# As stated on the hub.
COUNTS = {
    "qwen2-vl-2b": 2_208_985_600,
    "qwen2-vl-7b": 8_291_375_616,
    "qwen2-vl-72b": 73_405_560_320,
    "qwen2.5-vl-3b": 3_754_622_976,
    "qwen2.5-vl-7b": 8_292_166_656,
    "qwen2.5-vl-32b": 33_452_718_336,
    "qwen2.5-vl-72b": 73_410_777_344,
}


def abstract_params(model):
    return jax.eval_shape(model.init, jax.random.key(0))


def by_path(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_the_published_parameters(name):
    params = by_path(abstract_params(build(PUBLISHED[name], dtype="bfloat16", remat="full")))
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype("float32")}
    assert {path: leaf.shape for path, leaf in params.items()} == param_shapes(PUBLISHED[name])
    assert sum(leaf.size for leaf in params.values()) == COUNTS[name]


@pytest.mark.parity
@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_counts_the_same_parameters(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = PUBLISHED[name]
    family = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}[config.family]
    with torch.device("meta"):
        model = getattr(transformers, f"{family}ForConditionalGeneration")(
            getattr(transformers, f"{family}Config")(**to_hf(config))
        )
    assert model.num_parameters() == COUNTS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_parameter_has_one_rule_that_divides_it(name):
    model = build(PUBLISHED[name])
    used = set()
    for path, leaf in by_path(abstract_params(model)).items():
        matches = [rule for rule in model.param_rules if re.search(rule[0], path)]
        assert len(matches) == 1, f"{path} matches {matches}"
        used.add(matches[0][0])
        spec = matches[0][1]
        assert len(spec) <= len(leaf.shape)
        for axis, size in zip(spec, leaf.shape, strict=False):
            assert axis is None or size % 8 == 0, f"{path} {leaf.shape} over {axis}"
        large = leaf.size * 4 > 2**30
        assert not large or any(axis is not None for axis in spec), f"{path} is replicated"
        assert model.part(path) in ("vit", "connector", "llm", "head")
    unused = {pattern for pattern, _ in model.param_rules if "lora" not in pattern} - used
    assert unused == ({r"^language/head/weight$"} if model.config.tie_embeddings else set())


def test_part_is_what_can_be_frozen():
    part = build(PUBLISHED["qwen2.5-vl-3b"]).part
    assert part("vision/patch_embed/weight") == "vit"
    assert part("vision/merger/fc1/weight") == "connector"
    assert part("language/layers/norm1/scale") == "llm"
    with pytest.raises(ValueError, match="visual/x"):
        part("visual/x")


@pytest.mark.parametrize(
    "name", [pytest.param("qwen2-vl-2b", marks=pytest.mark.slow), "qwen2.5-vl-7b"]
)
def test_every_call_has_the_promised_shapes_and_types(name):
    config = PUBLISHED[name]
    model = build(config, dtype="bfloat16")
    params = abstract_params(model)
    n, g, p, r, i = 2, 4, 1536, 1024, 5120

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    batch = Prompts(
        tokens=array(np.int32, n, p),
        mask=array(bool, n, p),
        positions=array(np.int32, n, 3, p),
        media=Patches(
            pixels=array(np.uint8, n, i, 588),
            coords=array(np.int32, n, i, 2),
            image=array(np.int32, n, i),
            window=array(np.int32, n, i),
        ),
    )
    bf16 = jnp.bfloat16
    features = jax.eval_shape(model.encode_images, params, batch)
    assert features == array(bf16, n, i // 4, config.width)

    hidden, prefix = jax.eval_shape(model.prefill, params, batch, features)
    k, e = config.kv_heads, config.head_size
    assert hidden == array(bf16, n, config.width)
    keys = cache.KVBlock(array(bf16, n, k, e, p), None, transposed=True)  # P is a multiple of 64
    values = cache.KVBlock(array(bf16, n, k, p, e), None, transposed=False)  # and so is E
    assert prefix == (cache.KVPair(keys, values),) * config.layers

    keys = cache.KVBlock(array(bf16, n, k, g, e, r), None, transposed=True)
    values = cache.KVBlock(array(bf16, n, k, g, r, e), None, transposed=False)
    block = cache.KVPair(keys, values)
    blocks = jax.eval_shape(lambda prefix: model.grow_cache(prefix, (), g, r), prefix)
    assert blocks == ((block,),) * config.layers
    weights = jax.eval_shape(model.decoder, params)
    assert {x.dtype for x in jax.tree.leaves(weights) if x.ndim > 1} == {jnp.dtype(bf16)}
    row, step = array(np.int32, n * g), array(np.int32)
    rotary = jax.eval_shape(model.rotary, row)
    arguments = (weights, row, rotary, prefix, batch.mask, blocks, step)
    hidden, after = jax.eval_shape(model.decode, *arguments)
    assert hidden == array(bf16, n * g, config.width)
    assert after == blocks

    tokens, mask = array(np.int32, n * g, r), array(bool, n * g, r)
    hidden = jax.eval_shape(model.forward, params, batch, features, tokens, mask)
    assert hidden == array(bf16, n * g, r, config.width)
    logits = jax.eval_shape(model.logits, params, hidden)
    assert logits == array(np.float32, n * g, r, config.vocab_size)
