# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`build(config) -> Model`: all that the rest of the program knows about a network.

A `Model` is a set of pure functions of a plain nested dict of parameters. Sampler, loss and update
receive it as an argument; nothing outside this package knows about Flax.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from rlvlm_jax.errors import InputError
from rlvlm_jax.models.common import cache as kv_cache
from rlvlm_jax.models.common import lora
from rlvlm_jax.models.common.activation_sharding import ActivationSharding
from rlvlm_jax.models.common.exact_cpu import row_sum
from rlvlm_jax.models.common.kernels import PLAIN, Kernel
from rlvlm_jax.models.common.layers import REMAT_POLICIES
from rlvlm_jax.models.qwen2_vl import language as qwen2_vl
from rlvlm_jax.models.qwen2_vl.config import QwenVLConfig
from rlvlm_jax.models.qwen2_vl.language import LANGUAGE_RULES, LanguageModel
from rlvlm_jax.models.qwen2_vl.vision import VISION_RULES, VisionTower
from rlvlm_jax.types import Array, Batch, Params

RULES = (*VISION_RULES, *LANGUAGE_RULES)
DTYPES = ("float32", "bfloat16")
UNSHARDED = ActivationSharding()


@dataclass(frozen=True)
class Model:
    """Functions of the parameters; sequence b of B = N * G belongs to prompt b // G.

    Attributes:
        config: sizes and token ids.
        init: key -> params, float32 nested dict.
        encode_images: (params, batch) -> features [N, M, D] in the compute dtype, M = I / merge**2;
            normalises the bytes itself. Finite but meaningless at padding.
        prefill: (params, batch, features) -> (hidden [N, D] of each prompt's last valid column,
            prefix: a tuple of KV pairs, one per layer on CPU, a single one for all layers on other
            platforms; see `models.common.cache`).
        decoder: params -> weights for `decode` and `next_logits`, in the compute dtype and sharded
            as `config.rollout.layout` says; built once, used for every token.
        empty_cache: (prefix, G, S) -> a KV pair of S slots for each entry of the prefix.
        rotary: positions int32[..., B] of response tokens -> the rotary pair that `decode` takes,
            arrays [..., B, *]. Computed for many tokens at once: inside `decode`, XLA would
            recompute it in every layer for every head.
        decode: (weights, tokens int32[B], their `rotary`, prefix, prefix_mask bool[N, P],
            cache: a tuple of KV pairs for each entry of the prefix, step int32[]) -> (hidden
            [B, D], cache). Runs one token per sequence and writes slot `step`, which is in the last
            pair. Attends to the prefix, which is read once per group, and to slots 0..step.
        forward: (params, batch, features, tokens int32[B, R], mask bool[B, R]) -> hidden [B, R, D]
            where hidden[:, t] predicts tokens[:, t]. Each prompt runs once for its G responses.
            A response's positions start after the largest of its prompt, as in `decode`.
        packed: (params, batch, features, tokens int32[B, R], source int32[S, T]) -> hidden
            [S, T, D] of the tokens of S streams, each as in `forward` but at its own column.
            `source` indexes the prompts' N * P tokens followed by the responses' B * R; -1 is
            padding. A prompt occurs once per stream, before its responses.
        next_logits: (weights of `decoder`, hidden [B, D]) -> float32[B, V].
        row_sum: float32[..., M, S] -> float32[..., M, 1], as in the softmax of attention; on CPU it
            does not depend on the number of rows.
        spread: params -> params for many calls of `logits`: the output layer sharded like logits.
        logits: (params, hidden [..., M, D]) -> float32[..., M, V].
        param_rules: (regex, PartitionSpec) pairs for mesh axes "fsdp" and "tensor"; each
            parameter path matches exactly one.
        part: path of a parameter -> "vit", "connector", "llm" or "head" (the output layer if it is
            not tied to the embedding), the parts that can be frozen.
    """

    config: QwenVLConfig
    init: Callable[[Array], Params]
    encode_images: Callable[[Params, Batch], Array]
    prefill: Callable[[Params, Batch, Array], tuple[Array, tuple]]
    decoder: Callable[[Params], Params]
    empty_cache: Callable[[tuple, int, int], tuple]
    rotary: Callable[[Array], Any]
    decode: Callable[..., tuple[Array, tuple]]
    forward: Callable[[Params, Batch, Array, Array, Array], Array]
    packed: Callable[[Params, Batch, Array, Array, Array], Array]
    next_logits: Callable[[Params, Array], Array]
    row_sum: Callable[[Array], Array]
    spread: Callable[[Params], Params]
    logits: Callable[[Params, Array], Array]
    param_rules: tuple[tuple[str, Any], ...]
    part: Callable[[str], str]


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
            "vision": vision.clone(**unsharded).init(vision_key, batch)["params"],
            "language": language.clone(**unsharded).init(language_key, batch, features)["params"],
        }

    def encode_images(params, batch):
        if batch.patches.shape[1] == 0:
            return jnp.zeros((batch.patches.shape[0], 0, config.width), dtype)
        return vision.apply({"params": params["vision"]}, batch)

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
    return Batch(
        tokens=jnp.zeros((1, 1), jnp.int32),
        mask=jnp.ones((1, 1), bool),
        positions=jnp.zeros((1, 3, 1), jnp.int32),
        patches=jnp.zeros((1, patches, 3 * config.vision.patch_size**2), jnp.uint8),
        patch_coords=jnp.zeros((1, patches, 2), jnp.int32),
        patch_image=jnp.ones((1, patches), jnp.int32),
        patch_window=jnp.ones((1, patches), jnp.int32),
    )
