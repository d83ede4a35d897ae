# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`build(config) -> Model` for Qwen2-VL and Qwen2.5-VL."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from rlvlm_jax.models.common import cache as kv_cache
from rlvlm_jax.models.common import lora
from rlvlm_jax.models.common.activation_sharding import ActivationSharding
from rlvlm_jax.models.common.exact_cpu import row_sum
from rlvlm_jax.models.common.kernels import PLAIN, Kernel
from rlvlm_jax.models.common.runtime import Runtime
from rlvlm_jax.models.model import Model
from rlvlm_jax.models.qwen2_vl import language
from rlvlm_jax.models.qwen2_vl.config import QwenVLConfig
from rlvlm_jax.models.qwen2_vl.language import LANGUAGE_RULES, LanguageModel
from rlvlm_jax.models.qwen2_vl.media import Patches
from rlvlm_jax.models.qwen2_vl.vision import VISION_RULES, VisionTower, encode_images

RULES = (*VISION_RULES, *LANGUAGE_RULES)
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

    """
    runtime = Runtime(jnp.dtype(dtype), remat, attention, cache, platform, sharding)
    by_tokens = runtime._replace(kernel=attention._replace(by_tokens=True))

    def bind(function: Callable) -> Callable:
        return partial(function, config, by_tokens)

    return Model(
        config=config,
        init=partial(_init, config, runtime),
        encode_images=partial(encode_images, config, runtime),
        prefill=bind(language.prefill),
        decoder=bind(language.decoder),
        response_positions=language.response_positions,
        grow_cache=partial(language.grow_cache, by_tokens),
        take_rows=kv_cache.take_rows,
        put_rows=kv_cache.put_rows,
        rotary=partial(language.rotary, config),
        decode=bind(language.decode),
        forward=bind(language.forward),
        packed=bind(language.packed),
        next_logits=bind(language.next_logits),
        row_sum=row_sum,
        spread=bind(language.spread),
        logits=bind(language.logits),
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


def _init(config, runtime, key):
    """See `Model.init`."""
    vision_key, language_key = jax.random.split(key)
    runtime = runtime._replace(kernel=PLAIN, sharding=UNSHARDED)  # one prompt cannot be sharded
    media = _smallest_media(config)
    return {
        "vision": VisionTower(config.vision, runtime).init(vision_key, media)["params"],
        "language": LanguageModel(config, runtime).init(language_key)["params"],
    }


def _smallest_media(config):
    """One merge block of patches: enough to shape every parameter."""
    patches = config.vision.merge_size**2
    return Patches(
        pixels=jnp.zeros((1, patches, 3 * config.vision.patch_size**2), jnp.uint8),
        coords=jnp.zeros((1, patches, 2), jnp.int32),
        image=jnp.ones((1, patches), jnp.int32),
        window=jnp.ones((1, patches), jnp.int32),
    )
