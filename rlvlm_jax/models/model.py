# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`Model`: all that the rest of the program knows about a network.

A set of pure functions of a plain nested dict of parameters. Sampler, loss and update receive it as
an argument; nothing outside this package knows about Flax.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from rlvlm_jax.types import Array, Params, Prompts


class Config(Protocol):
    """What the rest of the program reads of a model's configuration; a frozen dataclass.

    Attributes:
        family: its key in `families.FAMILIES`, the model_type of config.json.
        vocab_size: rows of the embedding.
        image_token_id: id of `Media.image_token`.
        vision_token_ids: ids of all vision tokens, which are never sampled.
        head_sizes: sizes of all attention heads, for the choice of a kernel.
        layers: decoder layers.
        kv_heads: key and value heads.
        head_size: of the decoder. The counts of `common.costs` also read width, heads, mlp_width.
    """

    family: str
    vocab_size: int
    image_token_id: int
    vision_token_ids: set[int]
    head_sizes: tuple[int, ...]
    layers: int
    kv_heads: int
    head_size: int


@dataclass(frozen=True)
class Model:
    """Functions of the parameters; sequence b of B = N * G belongs to prompt b // G.

    Attributes:
        config: sizes and token ids, a `Config`.
        init: key -> params, float32 nested dict.
        encode_images: (params, batch) -> features, a pytree of arrays [N, M, ...]; feature k of a
            prompt belongs to its k-th image token. Finite but meaningless at padding.
        prefill: (params, batch, features) -> (hidden [N, D] of each prompt's last valid column,
            prefix: what `decode` has to know of the prompts, a pytree with leading axis N).
        decoder: params -> weights for `decode` and `next_logits`, in the compute dtype and sharded
            as `config.rollout.layout` says; built once, used for every token.
        grow_cache: (prefix, cache, G, S) -> the responses' cache with S more slots, which are
            empty; the first call takes (). A pytree whose leading axis is prompts or sequences, in
            their order; only the model knows the other axes.
        take_rows: (cache, rows int32[n]) -> the cache of these sequences, each with a prompt of its
            own: N = n, G = 1.
        put_rows: (cache, rows int32[n], part) -> the cache with these sequences replaced by `part`,
            which has decoded no more than the slots of the last `grow_cache`.
        response_positions: (batch, steps int32[T]) -> int32[N, T], the position of response token
            number `steps` of each prompt: one past the prompt's largest position on any axis, and
            one more per token. An empty prompt's responses start at 0.
        rotary: positions int32[..., B] of response tokens -> the rotary pair that `decode` takes,
            arrays [..., B, *]. Computed for many tokens at once: inside `decode`, XLA would
            recompute it in every layer for every head.
        decode: (weights, tokens int32[B], their `rotary`, prefix, prefix_mask bool[N, P], cache,
            step int32[]) -> (hidden [B, D], cache). Runs one token per sequence and writes slot
            `step`, which is in the slots of the last `grow_cache`. Attends to the prefix, which is
            read once per group, and to slots 0..step.
        forward: (params, batch, features, tokens int32[B, R], mask bool[B, R]) -> hidden [B, R, D]
            where hidden[:, t] predicts tokens[:, t]. Each prompt runs once for its G responses.
            Positions are `response_positions`.
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

    config: Config
    init: Callable[[Array], Params]
    encode_images: Callable[[Params, Prompts], Any]
    prefill: Callable[[Params, Prompts, Any], tuple[Array, Any]]
    decoder: Callable[[Params], Params]
    grow_cache: Callable[[Any, Any, int, int], Any]
    take_rows: Callable[[Any, Array], Any]
    put_rows: Callable[[Any, Array, Any], Any]
    response_positions: Callable[[Prompts, Array], Array]
    rotary: Callable[[Array], Any]
    decode: Callable[..., tuple[Array, Any]]
    forward: Callable[[Params, Prompts, Any, Array, Array], Array]
    packed: Callable[[Params, Prompts, Any, Array, Array], Array]
    next_logits: Callable[[Params, Array], Array]
    row_sum: Callable[[Array], Array]
    spread: Callable[[Params], Params]
    logits: Callable[[Params, Array], Array]
    param_rules: tuple[tuple[str, Any], ...]
    part: Callable[[str], str]
