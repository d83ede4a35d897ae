# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The language model of Qwen2-VL and Qwen2.5-VL: four ways through one stack of decoder blocks.

* `prefill` runs prompts and returns their keys and values.
* `decode` adds one token to each sequence.
* `forward` runs prompts and complete responses together, for training.
* `packed` does the same with several prompts and responses per row.

In all four, a response attends with one softmax to its prompt, which is computed once for its G
responses, and to itself. The module does not know how tokens are chosen or where the positions of
prompts come from. All hidden states that it returns are normed.

`prefill`, `forward` and `packed` scan over layers, so that the program stays small. Whether
decoding does depends on the platform; see `Runtime.scans_layers`.
"""

import operator
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from rlvlm_jax.models.common import cache, lora
from rlvlm_jax.models.common.attention import HeadKeys, Ids, Keys, attend, attend_by_head, by_head
from rlvlm_jax.models.common.exact_cpu import product
from rlvlm_jax.models.common.layers import INIT, GatedMlp, Linear, RMSNorm, stacked
from rlvlm_jax.models.common.rope import mrope, rotate
from rlvlm_jax.models.common.runtime import Runtime
from rlvlm_jax.models.qwen2_vl.config import QwenVLConfig
from rlvlm_jax.types import Array, Params, Prompts

LANGUAGE_RULES = (
    (r"^language/embed/embedding$", P("tensor", "fsdp")),  # [V, D]
    (r"^language/layers/attn/[qkv]/weight$", P(None, "tensor", "fsdp")),  # [L, heads * E, D]
    (r"^language/layers/attn/[qkv]/bias$", P(None, "tensor")),  # [L, heads * E]
    (r"^language/layers/attn/o/weight$", P(None, "fsdp", "tensor")),  # [L, D, H * E]
    (r"^language/layers/mlp/(gate|up)/weight$", P(None, "tensor", "fsdp")),  # [L, F, D]
    (r"^language/layers/mlp/down/weight$", P(None, "fsdp", "tensor")),  # [L, D, F]
    (r"^language/(layers/norm[12]|norm)/scale$", P()),
    (r"^language/head/weight$", P("tensor", "fsdp")),  # [V, D]
)
RULES = (*LANGUAGE_RULES, *lora.rules(LANGUAGE_RULES))

Rotary = tuple[Array, Array]


class Tokens(NamedTuple):
    """What every layer has to know about the tokens of a stream."""

    ids: Ids
    rotary: Rotary


class Attention(nn.Module):
    """Grouped-query projections with biases and M-RoPE; the attention itself is `attend`."""

    config: QwenVLConfig
    dtype: Any

    def setup(self) -> None:
        """Declares the four projections."""
        c = self.config
        self.q = Linear(c.heads * c.head_size, self.dtype, bias=True)
        self.k = Linear(c.kv_heads * c.head_size, self.dtype, bias=True)
        self.v = Linear(c.kv_heads * c.head_size, self.dtype, bias=True)
        self.o = Linear(c.width, self.dtype, bias=False)

    def project(
        self, x: Array, rotary: Rotary, constrain: Callable[[Array], Array] = lambda x: x
    ) -> tuple[Array, Array, Array]:
        """Maps [N, G, T, D] to rotated queries [N, G, T, H, E] and keys, and values [..., K, E].

        Args:
            x: hidden states.
            rotary: of the tokens.
            constrain: shards the projections, whose heads are still joined, on the mesh.
        """
        q, k, v = constrain(self.q(x)), constrain(self.k(x)), constrain(self.v(x))
        shape = (*x.shape[:-1], -1, self.config.head_size)
        return rotate(q.reshape(shape), rotary), rotate(k.reshape(shape), rotary), v.reshape(shape)


class Block(nn.Module):
    """One decoder block."""

    config: QwenVLConfig
    runtime: Runtime

    def setup(self) -> None:
        """Declares the two norms, attention and MLP, which all streams share."""
        c, dtype = self.config, self.runtime.dtype
        self.norm1 = RMSNorm(epsilon=c.norm_eps, dtype=dtype)
        self.attn = Attention(c, dtype)
        self.norm2 = RMSNorm(epsilon=c.norm_eps, dtype=dtype)
        self.mlp = GatedMlp(c.mlp_width, c.width, "silu", False, dtype)

    def __call__(
        self, streams: tuple[Array, ...], _: None, tokens: tuple[Tokens, ...]
    ) -> tuple[tuple[Array, ...], tuple[Array, Array] | None]:
        """Runs one layer.

        Args:
            streams: prompts [N, 1, P, D], or these and responses [N, G, T, D].
            tokens: those of each stream.

        Returns:
            (streams, the prompts' (k, v), each [N, P, K, E], if they run alone, else None).
        """
        sharding = self.runtime.sharding
        outputs, keys = [], []
        for x, (ids, rotary) in zip(streams, tokens, strict=True):
            x = sharding.tokens(x)
            q, k, v = self.attn.project(self.norm1(x), rotary)
            k, v = sharding.gather_tokens(k, 2), sharding.gather_tokens(v, 2)
            # The responses share the keys of their prompt.
            keys.append(Keys(k, v, ids) if keys else Keys(k[:, 0], v[:, 0], ids))
            attended = attend(q, ids, keys, kernel=self.runtime.kernel)
            x = x + self.attn.o(attended.reshape(*x.shape[:-1], -1))
            outputs.append(x + self.mlp(self.norm2(x)))
        return tuple(outputs), (keys[0].k, keys[0].v) if len(keys) == 1 else None

    def decode(
        self,
        x: Array,
        rotary: Rotary,
        query_ids: Ids,
        pairs: tuple[cache.KVPair, ...],
        ids: tuple[Ids, ...],
        slot: Array | None = None,
    ) -> tuple[Array, cache.KVPair | tuple[Array, Array]]:
        """Runs one layer for one token per sequence.

        Args:
            x: [N, G, 1, D].
            rotary: of the token.
            query_ids: ids of the token.
            pairs: KV pairs of the prompt and then of the response.
            ids: of each pair; they must hide slots that are not written yet.
            slot: int32[], the slot of the last pair to write first; None writes nothing.

        Returns:
            (x, the last pair with the token's key and value in it; without a slot these, by head,
            [N, K, G, 1, E] each).
        """
        sharding = self.runtime.sharding
        normed = sharding.replicate(self.norm1(x))
        # Before heads are split: their number may not divide.
        q, k, v = self.attn.project(normed, rotary, sharding.columns_to_rows)
        k, v = by_head(k), by_head(v)
        if slot is None:
            new = k, v
            # In the cache's dtype, so that a token sees itself as later tokens see it.
            own = cache.stored(k, v, pairs[-1].k.x.dtype.name, self.runtime.platform)
            pairs, ids = (*pairs, own), (*ids, query_ids)
        else:
            new = cache.write(pairs[-1], k, v, slot)
            pairs = (*pairs[:-1], new)
        attended = attend_by_head((q, query_ids), self._head_keys(pairs, ids))
        heads = sharding.rows(attended).reshape(*x.shape[:-1], -1)
        x = x + sharding.rows(self.attn.o(sharding.columns(heads)))
        return x + sharding.rows(self.mlp(sharding.replicate(self.norm2(x)))), new

    def _head_keys(self, pairs, ids):
        return [
            HeadKeys(
                *(cache.read(block, self.runtime.dtype) for block in pair),
                pair_ids,
                pair.k.transposed,
                pair.v.transposed,
            )
            for pair, pair_ids in zip(pairs, ids, strict=True)
        ]


class LanguageModel(nn.Module):
    """Declares the weights, the head only if it is not tied to the embedding."""

    config: QwenVLConfig
    runtime: Runtime

    @nn.compact
    def __call__(self) -> None:
        """Touches every weight; only initialisation calls it."""
        c = self.config
        embed = nn.Embed(c.vocab_size, c.width, embedding_init=INIT, name="embed")
        x = embed(jnp.zeros((1, 1, 1), int)).astype(self.runtime.dtype)
        tokens = Tokens(_ids(jnp.ones((1, 1, 1), bool)), rotary(c, jnp.zeros((1, 1, 1))))
        (x,), _ = _layers(c, self.runtime, name="layers")((x,), None, (tokens,))
        x = RMSNorm(epsilon=c.norm_eps, dtype=self.runtime.dtype, name="norm")(x)
        if not c.tie_embeddings:
            _head(c, self.runtime, name="head")(x)


def _layers(config, runtime, **module):
    """Returns all blocks as one scan over layers."""
    gather = runtime.sharding.gather(RULES, "language/layers/", True, runtime.dtype)
    return stacked(Block, config.layers, runtime.remat, gather)(config, runtime, **module)


def _head(config, runtime, **module):
    """Returns the output layer of a model whose embedding is not tied to it."""
    return Linear(config.vocab_size, runtime.dtype, bias=False, out=jnp.float32, **module)


def _normed(config, runtime, weights, x):
    """Applies the final norm."""
    norm = RMSNorm(epsilon=config.norm_eps, dtype=runtime.dtype)
    return norm.apply({"params": weights["norm"]}, x)


def _logits(config, runtime, weights, hidden):
    with jax.named_scope("logits"):
        if not config.tie_embeddings:
            return _head(config, runtime).apply({"params": weights["head"]}, hidden)
        table = weights["embed"]["embedding"].astype(runtime.dtype)
        return product(hidden.astype(runtime.dtype), table, jnp.float32)


def logits(config: QwenVLConfig, runtime: Runtime, params: Params, hidden: Array) -> Array:
    """See `Model.logits`; accumulated in float32."""
    sharding = runtime.sharding
    hidden = sharding.replicate_for_logits(hidden)
    return sharding.logits(_logits(config, runtime, params["language"], hidden))


def next_logits(config: QwenVLConfig, runtime: Runtime, weights: Params, hidden: Array) -> Array:
    """See `Model.next_logits`."""
    sharding = runtime.sharding
    hidden = sharding.replicate(hidden)
    return sharding.columns_to_rows(_logits(config, runtime, weights["language"], hidden))


def spread(config: QwenVLConfig, runtime: Runtime, params: Params) -> Params:
    """See `Model.spread`."""
    part, leaf = ("embed", "embedding") if config.tie_embeddings else ("head", "weight")
    weights = params["language"]
    table = {**weights[part], leaf: runtime.sharding.output_layer(weights[part][leaf])}
    return {**params, "language": {**weights, part: table}}


def prefill(
    config: QwenVLConfig, runtime: Runtime, params: Params, batch: Prompts, features: Array
) -> tuple[Array, tuple[cache.KVPair, ...]]:
    """See `Model.prefill`."""
    weights = params["language"]
    x, tokens = _prompts(config, runtime, weights, batch, features)
    layers = _layers(config, runtime)
    (x,), (k, v) = layers.apply({"params": weights["layers"]}, (x,), None, (tokens,))
    hidden = _normed(config, runtime, weights, _last_valid(x[:, 0], batch.mask))
    storage = runtime.cache, runtime.platform
    if runtime.scans_layers:
        k, v = (jnp.moveaxis(x, (3, 0), (1, 2)) for x in (k, v))  # [N, K, L, P, E]
        pair = cache.stored(k, v, *storage)
        return hidden, (jax.tree.map(runtime.sharding.cached, pair),)
    layers = range(config.layers)
    return hidden, tuple(cache.stored(by_head(k[i]), by_head(v[i]), *storage) for i in layers)


def forward(
    config: QwenVLConfig,
    runtime: Runtime,
    params: Params,
    batch: Prompts,
    features: Array,
    tokens: Array,
    mask: Array,
) -> Array:
    """See `Model.forward`."""
    weights = params["language"]
    n, length = batch.tokens.shape
    groups, steps = tokens.shape[0] // n, tokens.shape[1]
    positions = response_positions(batch, jnp.arange(steps))[:, None]
    responses = Tokens(_ids(mask.reshape(n, groups, steps), length), rotary(config, positions))
    prompt_x, prompts = _prompts(config, runtime, weights, batch, features)
    x = _embed(runtime, weights, tokens).reshape(n, groups, steps, -1)
    (prompt_x, x), _ = _layers(config, runtime).apply(
        {"params": weights["layers"]}, (prompt_x, x), None, (prompts, responses)
    )

    # Shifted by one token: the prompt's last column predicts the first response token.
    first = _last_valid(prompt_x[:, 0], batch.mask)[:, None, None]
    first = jnp.broadcast_to(first, (n, groups, 1, first.shape[-1]))
    hidden = jnp.concatenate([first, x[:, :, :-1]], axis=2)
    hidden = _normed(config, runtime, weights, hidden.reshape(n * groups, steps, -1))
    return runtime.sharding.gather_tokens(hidden, 1)


def packed(
    config: QwenVLConfig,
    runtime: Runtime,
    params: Params,
    batch: Prompts,
    features: Array,
    tokens: Array,
    source: Array,
) -> Array:
    """See `Model.packed`."""
    weights = params["language"]
    n, length = batch.tokens.shape
    rows, steps = tokens.shape
    group = jnp.arange(rows) // (rows // n)  # the prompt of each response

    def to_streams(prompts: Array, responses: Array) -> Array:
        """[S, T, ...] of [N, P, ...] and [B, R, ...], or arrays that broadcast to these."""
        inner = jnp.shape(prompts)[2:]
        prompts = jnp.broadcast_to(prompts, (n, length, *inner)).reshape(-1, *inner)
        responses = jnp.broadcast_to(responses, (rows, steps, *inner)).reshape(-1, *inner)
        return jnp.concatenate([prompts, responses])[source]

    x = _embed(runtime, weights, to_streams(batch.tokens, tokens))  # [S, T, D]
    if features.shape[1]:
        is_image = (batch.tokens == config.image_token_id) & batch.mask
        first = jnp.arange(n)[:, None] * features.shape[1]
        number = jnp.clip(jnp.cumsum(is_image, axis=1) - 1, 0, features.shape[1] - 1)
        number = to_streams(jnp.where(is_image, first + number, -1), -1)
        chosen = features.reshape(-1, features.shape[-1])[jnp.maximum(number, 0)]
        x = jnp.where(number[..., None] >= 0, chosen.astype(x.dtype), x)

    own_positions = response_positions(batch, jnp.arange(steps))[group]  # int32[B, R]
    positions = to_streams(batch.positions.swapaxes(1, 2), own_positions[..., None])
    segment = to_streams(jnp.arange(n)[:, None] + 1, group[:, None] + 1)
    branch = to_streams(jnp.zeros((n, 1), jnp.int32), jnp.arange(rows)[:, None] + 1)
    ids = Ids(
        segment=jnp.where(source < 0, 0, segment)[:, None],
        order=jnp.arange(source.shape[1]),
        branch=branch[:, None],
    )
    streams = Tokens(ids, _rotary(config, positions.swapaxes(1, 2)[:, None]))
    (x,), _ = _layers(config, runtime).apply(
        {"params": weights["layers"]}, (x[:, None],), None, (streams,)
    )
    return runtime.sharding.gather_tokens(_normed(config, runtime, weights, x[:, 0]), 1)


def response_positions(batch: Prompts, steps: Array) -> Array:
    """See `Model.response_positions`.

    Source: Wang et al. 2024, Qwen2-VL (arXiv:2409.12191), section 2.1.
    """
    last = jnp.where(batch.mask[:, None], batch.positions, -1).max((1, 2))  # int32[N]
    return last[:, None] + 1 + steps


def decoder(config: QwenVLConfig, runtime: Runtime, params: Params) -> Params:
    """See `Model.decoder`."""

    def cast(path: tuple, x: Array) -> Array:
        if path[-1].key in ("scale", "bias", "lora_scale"):
            return x
        name = "language/" + "/".join(entry.key for entry in path)
        (rule,) = [spec for pattern, spec in RULES if re.search(pattern, name)]
        return runtime.sharding.decoder_weight(x.astype(runtime.dtype), rule)

    weights = jax.tree_util.tree_map_with_path(cast, params["language"])
    if not runtime.scans_layers:
        layers = (
            jax.tree.map(operator.itemgetter(number), weights["layers"])
            for number in range(config.layers)
        )
        weights = {**weights, "layers": tuple(layers)}
    return {"language": weights}


def grow_cache(
    runtime: Runtime, prefix: tuple[cache.KVPair, ...], old: cache.Cache, samples: int, slots: int
) -> cache.Cache:
    """See `Model.grow_cache`."""
    pairs = tuple(cache.empty(pair, samples, slots, runtime.platform) for pair in prefix)
    pairs = jax.tree.map(runtime.sharding.cached, pairs)
    old = old or ((),) * len(prefix)
    return tuple((*blocks, pair) for blocks, pair in zip(old, pairs, strict=True))


def rotary(config: QwenVLConfig, positions: Array) -> Rotary:
    """See `Model.rotary`."""
    return _rotary(config, jnp.stack([positions] * 3, axis=-2))


def decode(
    config: QwenVLConfig,
    runtime: Runtime,
    weights: Params,
    tokens: Array,
    rotary: Rotary,
    prefix: tuple[cache.KVPair, ...],
    prefix_mask: Array,
    blocks: cache.Cache,
    step: Array,
) -> tuple[Array, cache.Cache]:
    """See `Model.decode`; `weights` are from `decoder`."""
    weights = weights["language"]
    n, columns = prefix_mask.shape
    groups = tokens.shape[0] // n
    rotary = tuple(part.reshape(n, groups, 1, -1) for part in rotary)
    x = weights["embed"]["embedding"][tokens].reshape(n, groups, 1, -1)
    x = runtime.sharding.rows(x)
    sizes = [block.k.slots for block in blocks[0]]
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    # In a scan the token is not in its slot yet. It takes the column before that, after all others.
    column = columns + step - 1 if runtime.scans_layers else columns + step
    query_ids = Ids(jnp.ones((n, 1, 1), jnp.int32), jnp.reshape(column, 1))
    ids = [_ids(prefix_mask[:, None])]
    for size, start in zip(sizes, starts, strict=True):
        ids.append(_ids(jnp.ones((n, 1, size), bool), columns + start))

    slot = step - starts[-1]
    layers = []
    if runtime.scans_layers:
        (prompt_pair,), (response_pairs,) = prefix, blocks
        one_layer = partial(
            _decode_layer, config, runtime, rotary, query_ids, (prompt_pair, *response_pairs), ids
        )
        inputs = weights["layers"], jnp.arange(config.layers)
        x, new_pairs = jax.lax.scan(one_layer, x, inputs)
        k, v = (jnp.moveaxis(new, 0, 2) for new in new_pairs)  # [N, K, L, G, 1, E]
        last = cache.write(response_pairs[-1], k, v, slot)
        layers.append((*response_pairs[:-1], last))
    else:
        block = Block(config, runtime)
        for layer_weights, prompt_pair, response_pairs in zip(
            weights["layers"], prefix, blocks, strict=True
        ):
            x, last = block.apply(
                {"params": layer_weights},
                *(x, rotary, query_ids, (prompt_pair, *response_pairs), ids, slot),
                method="decode",
            )
            layers.append((*response_pairs[:-1], last))
    hidden = _normed(config, runtime, weights, x.reshape(tokens.shape[0], -1))
    return hidden, tuple(layers)


def _decode_layer(config, runtime, rotary, query_ids, pairs, ids, x, inputs):
    """Runs a layer of `decode` in a scan over (its weights, its number)."""
    weights, number = inputs
    layer_of = partial(jax.lax.dynamic_index_in_dim, index=number, axis=2, keepdims=False)
    pairs = jax.tree.map(layer_of, pairs)
    arguments = x, rotary, query_ids, pairs, ids
    return Block(config, runtime).apply({"params": weights}, *arguments, method="decode")


def _prompts(config, runtime, weights, batch, features):
    """Returns prompt embeddings [N, 1, P, D] with image features, and their tokens."""
    x = merge_images(
        _embed(runtime, weights, batch.tokens),
        features,
        (batch.tokens == config.image_token_id) & batch.mask,
    )
    rotary_pair = _rotary(config, batch.positions[:, None])
    return x[:, None], Tokens(_ids(batch.mask[:, None]), rotary_pair)


def _embed(runtime, weights, tokens):
    # Take rows before the cast: casting the table would touch all of it for each token.
    return runtime.sharding.look_up(weights["embed"]["embedding"], tokens, runtime.dtype)


def _rotary(config, positions):
    return mrope(positions, config.mrope_section, config.rope_theta)


def merge_images(x: Array, features: Array, is_image: Array) -> Array:
    """Replaces the k-th image token of each row by feature k of that row.

    Args:
        x: [N, P, D], token embeddings.
        features: [N, M, D]; features beyond the row's image tokens are ignored.
        is_image: bool[N, P].

    Returns:
        [N, P, D] in the dtype of `x`.
    """
    if features.shape[1] == 0:
        return x
    index = jnp.clip(jnp.cumsum(is_image, axis=1) - 1, 0, features.shape[1] - 1)
    chosen = jnp.take_along_axis(features, index[..., None], axis=1)
    return jnp.where(is_image[..., None], chosen.astype(x.dtype), x)


def _ids(mask, first_column=0):
    """Returns ids of one sequence's tokens in consecutive columns; mask bool[N, G, S]."""
    return Ids(mask.astype(jnp.int32), first_column + jnp.arange(mask.shape[-1]))


def _last_valid(x, mask):
    """Maps [N, P, D] to [N, D]: the last valid column, on whichever side the padding is."""
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
