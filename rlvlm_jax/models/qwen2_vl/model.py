# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`build(config) -> Model` for Qwen2-VL and Qwen2.5-VL."""

import functools

import jax
import jax.numpy as jnp

from rlvlm_jax.errors import InputError
from rlvlm_jax.models.common import cache as kv_cache
from rlvlm_jax.models.common import lora
from rlvlm_jax.models.common.activation_sharding import ActivationSharding
from rlvlm_jax.models.common.exact_cpu import row_sum
from rlvlm_jax.models.common.kernels import PLAIN, Kernel
from rlvlm_jax.models.common.layers import REMAT_POLICIES
from rlvlm_jax.models.model import Model
from rlvlm_jax.models.qwen2_vl import language as qwen2_vl
from rlvlm_jax.models.qwen2_vl.config import QwenVLConfig
from rlvlm_jax.models.qwen2_vl.language import LANGUAGE_RULES, LanguageModel
from rlvlm_jax.models.qwen2_vl.media import Patches
from rlvlm_jax.models.qwen2_vl.vision import VISION_RULES, VisionTower
from rlvlm_jax.types import Prompts

RULES = (*VISION_RULES, *LANGUAGE_RULES)
DTYPES = ("float32", "bfloat16")
UNSHARDED = ActivationSharding()


def build(
    config: QwenVLConfig,
    *,
    dtype: str = "float32",
    remat: str = "none",
    attention: Kernel = PLAIN,
    cache: str = "model",
    platform: str = "cpu",
    sharding: ActivationSharding = UNSHARDED,
) -> Model:
    """Returns the functions of a Qwen2-VL or Qwen2.5-VL model.

    Args:
        config: sizes, family and token ids.
        dtype: compute dtype, "float32" or "bfloat16"; parameters, softmax, norms, rotary angles and
            logits are always float32.
        remat: what the backward pass recomputes: "none" nothing, "elementwise" all but matrix
            products, "dots" all but products with weights, "full" everything.
        attention: kernel for full sequences, e.g. from `kernels.choose`.
        cache: how decoding stores keys and values, one of `cache.KINDS`.
        platform: JAX's name for the platform of the decoding devices.
        sharding: of activations and decoding weights.

    Raises:
        InputError: `dtype`, `remat` or `cache` is not one of the accepted values.
    """
    if dtype not in DTYPES:
        raise InputError(f"model.dtype={dtype!r} is not one of {', '.join(DTYPES)}")
    if remat not in REMAT_POLICIES:
        raise InputError(f"model.remat={remat!r} is not one of {', '.join(REMAT_POLICIES)}")

    if cache not in kv_cache.KINDS:
        raise InputError(f"rollout.cache={cache!r} is not one of {', '.join(kv_cache.KINDS)}")

    vision = VisionTower(config.vision, jnp.dtype(dtype), remat, attention, sharding)
    language = LanguageModel(
        config, jnp.dtype(dtype), remat, attention._replace(by_tokens=True), sharding
    )

    def init(key):
        vision_key, language_key = jax.random.split(key)
        batch = _smallest_batch(config)
        features = jnp.zeros((1, 1, config.width))
        unsharded = {"kernel": PLAIN, "sharding": UNSHARDED}  # one prompt cannot be sharded
        return {
            "vision": vision.clone(**unsharded).init(vision_key, batch.media)["params"],
            "language": language.clone(**unsharded).init(language_key, batch, features)["params"],
        }

    def encode_images(params, batch):
        prompts, patches = batch.media.image.shape
        if patches == 0:
            return jnp.zeros((prompts, 0, config.width), dtype)
        return vision.apply({"params": params["vision"]}, batch.media)

    def language_method(method):
        def apply(params, *args):
            return language.apply({"params": params["language"]}, *args, method=method)

        return apply

    def prefill(params, batch, features):
        return language_method("prefill")(params, batch, features, cache, platform)

    def decoder(params):
        decoded = qwen2_vl.decoder(params["language"], config, dtype, platform, sharding)
        return {"language": decoded}

    def empty_cache(prefix, samples, slots):
        blocks = tuple(
            kv_cache.empty(prompt_pair, samples, slots, platform) for prompt_pair in prefix
        )
        return jax.tree.map(sharding.cached, blocks)

    def decode(weights, *args):
        return qwen2_vl.decode(
            weights["language"], config, jnp.dtype(dtype), *args, platform, sharding
        )

    def spread(params):
        part, leaf = ("embed", "embedding") if config.tie_embeddings else ("head", "weight")
        table = {
            **params["language"][part],
            leaf: sharding.output_layer(params["language"][part][leaf]),
        }
        return {**params, "language": {**params["language"], part: table}}

    return Model(
        config=config,
        init=init,
        encode_images=encode_images,
        prefill=prefill,
        decoder=decoder,
        empty_cache=empty_cache,
        rotary=functools.partial(qwen2_vl.rotary, config=config),
        decode=decode,
        forward=language_method("forward"),
        packed=language_method("packed"),
        next_logits=language_method("next_logits"),
        row_sum=row_sum,
        spread=spread,
        logits=language_method("logits"),
        param_rules=(*RULES, *lora.rules(RULES)),
        part=part,
    )


def part(path: str) -> str:
    """Returns the part of the model that a parameter belongs to; see `Model.part`."""
    for prefix, name in (
        ("vision/merger/", "connector"),
        ("vision/", "vit"),
        ("language/head/", "head"),
        ("language/", "llm"),
    ):
        if path.startswith(prefix):
            return name
    raise ValueError(f"{path} is neither under vision/ nor under language/")


def _smallest_batch(config):
    """One prompt of one token and one merge block of patches: enough to shape every parameter."""
    patches = config.vision.merge_size**2
    return Prompts(
        tokens=jnp.zeros((1, 1), jnp.int32),
        mask=jnp.ones((1, 1), bool),
        positions=jnp.zeros((1, 3, 1), jnp.int32),
        media=Patches(
            pixels=jnp.zeros((1, patches, 3 * config.vision.patch_size**2), jnp.uint8),
            coords=jnp.zeros((1, patches, 2), jnp.int32),
            image=jnp.ones((1, patches), jnp.int32),
            window=jnp.ones((1, patches), jnp.int32),
        ),
    )
