# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The language model of Qwen2-VL and Qwen2.5-VL: four ways through one stack of decoder blocks.

* `prefill` runs prompts and returns their keys and values.
* `decode` adds one token to each sequence.
* `forward` runs prompts and complete responses together, for training.
* `packed` does the same with several prompts and responses per row.

In all four, a response attends with one softmax to its prompt, which is computed once for its G
responses, and to itself. The module does not know how tokens are chosen or where the positions of
prompts come from.

`prefill` and `forward` scan over layers, so that the program stays small. On CPU, decoding is
unrolled, because a scan there copies the weights and the cache of every layer for every token.
Other platforms read a slice in place, so decoding is a scan too: for a large model, unrolled layers
take minutes and gigabytes to compile.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from rlvlm_jax.models.common import cache, lora
from rlvlm_jax.models.common.activation_sharding import ActivationSharding
from rlvlm_jax.models.common.attention import HeadKeys, Ids, Keys, attend, attend_by_head, by_head
from rlvlm_jax.models.common.exact_cpu import product
from rlvlm_jax.models.common.kernels import PLAIN, Kernel
from rlvlm_jax.models.common.layers import INIT, GatedMlp, Linear, RMSNorm, stacked
from rlvlm_jax.models.common.rope import mrope, rotate
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

Rotary = tuple[Array, Array]


class Context(NamedTuple):
    """Ids and rotary pairs for every layer; None if there is no response."""

    prompt: Ids
    prompt_rotary: Rotary
    response: Ids | None = None
    response_rotary: Rotary | None = None


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
        size = self.config.head_size
        q, k, v = (
            constrain(p(x)).reshape(*x.shape[:-1], -1, size) for p in (self.q, self.k, self.v)
        )
        return rotate(q, rotary), rotate(k, rotary), v

    def join(self, heads: Array) -> Array:
        """Maps [N, G, T, H, E] to [N, G, T, D]."""
        return self.o(heads.reshape(*heads.shape[:-2], -1))


class Block(nn.Module):
    """One decoder block over up to two streams: prompts [N, 1, P, D], responses [N, G, T, D]."""

    config: QwenVLConfig
    dtype: Any
    kernel: Kernel = PLAIN  # of `__call__`; decoding is plain
    sharding: ActivationSharding = ActivationSharding()

    def setup(self) -> None:
        """Declares the two norms, attention and MLP, which both streams share."""
        c = self.config
        self.norm1 = RMSNorm(epsilon=c.norm_eps, dtype=self.dtype)
        self.attn = Attention(c, self.dtype)
        self.norm2 = RMSNorm(epsilon=c.norm_eps, dtype=self.dtype)
        self.mlp = GatedMlp(c.mlp_width, c.width, "silu", False, self.dtype)

    def __call__(self, streams: tuple, _: None, context: Context) -> tuple[tuple, Any]:
        """Runs one layer.

        Args:
            streams: (prompt, response or None).
            context: ids and rotary pairs.

        Returns:
            (streams, the prompt's (k, v), each [N, P, K, E], if it runs alone, else None).
        """
        prompt, response = (x if x is None else self.sharding.tokens(x) for x in streams)
        q, k, v = self._project(prompt, context.prompt_rotary)
        prompt_keys = Keys(k[:, 0], v[:, 0], context.prompt)
        attended = attend(q, context.prompt, [prompt_keys], kernel=self.kernel)
        prompt = self.finish(prompt, attended)
        if response is None:
            return (prompt, None), (k[:, 0], v[:, 0])

        q, k, v = self._project(response, context.response_rotary)
        keys = [prompt_keys, Keys(k, v, context.response)]
        attended = attend(q, context.response, keys, kernel=self.kernel)
        response = self.finish(response, attended)
        return (prompt, response), None

    def decode(
        self, x: Array, rotary: Rotary, query_ids: Ids, pairs: tuple, ids: list[Ids], slot: Array
    ) -> tuple[Array, dict]:
        """Runs one layer for one token per sequence.

        Args:
            x: [N, G, 1, D].
            rotary: of the token.
            query_ids: ids of the token.
            pairs: KV pairs of the prompt and then of the response.
            ids: of each pair.
            slot: int32[], the slot of the last pair to write.

        Returns:
            (x, the last pair with the token's key and value in it).
        """
        q, k, v = self._project_rows(x, rotary)
        last = cache.write(pairs[-1], by_head(k), by_head(v), slot)
        runs = self._runs((*pairs[:-1], last), ids)
        return self._finish_rows(x, attend_by_head(q, query_ids, runs)), last

    def decode_without_write(
        self, x: Array, rotary: Rotary, query_ids: Ids, pairs: tuple, ids: list[Ids]
    ) -> tuple[Array, tuple[Array, Array]]:
        """`decode`, but returns the token's key and value instead of writing them.

        Args:
            x: [N, G, 1, D].
            rotary: of the token.
            query_ids: ids of the token.
            pairs: KV pairs of the prompt and then of the response.
            ids: of each pair; they must hide slots that are not written yet.

        Returns:
            (x, (key, value) by head, [N, K, G, 1, E] each).
        """
        q, k, v = self._project_rows(x, rotary)
        k, v = by_head(k), by_head(v)
        # In the cache's dtype, so that a token sees itself as later tokens see it.
        own_pair = cache.stored(k, v, pairs[-1].k.x.dtype.name, "")
        runs = self._runs((*pairs, own_pair), [*ids, query_ids])
        return self._finish_rows(x, attend_by_head(q, query_ids, runs)), (k, v)

    def _project(self, x, rotary):
        """Returns queries of each device's own tokens, keys and values of all tokens."""
        q, k, v = self.attn.project(self.norm1(x), rotary)
        return q, self.sharding.gather_tokens(k, 2), self.sharding.gather_tokens(v, 2)

    def _project_rows(self, x, rotary):
        """Returns queries, keys and values of one token per row; see `ActivationSharding`."""

        def constrain(x: Array) -> Array:  # before heads are split: their number may not divide
            return self.sharding.rows(self.sharding.columns(x))

        return self.attn.project(self.sharding.replicate(self.norm1(x)), rotary, constrain)

    def _runs(self, pairs, ids):
        return [
            HeadKeys(
                *(cache.read(block, self.dtype) for block in pair),
                pair_ids,
                pair.k.transposed,
                pair.v.transposed,
            )
            for pair, pair_ids in zip(pairs, ids, strict=True)
        ]

    def _finish_rows(self, x, attended):
        """`finish` for one token per row."""
        heads = self.sharding.rows(attended).reshape(*attended.shape[:-2], -1)
        joined = self.attn.o(self.sharding.columns(heads))
        x = x + self.sharding.rows(joined)
        return x + self.sharding.rows(self.mlp(self.sharding.replicate(self.norm2(x))))

    def finish(self, x: Array, attended: Array) -> Array:
        """Adds the results of attention and then of the MLP to the stream."""
        x = x + self.attn.join(attended)
        return x + self.mlp(self.norm2(x))


class LanguageModel(nn.Module):
    """Embeddings, decoder blocks, final norm and head. All returned hidden states are normed.

    Attributes:
        config: sizes.
        dtype: compute dtype.
        remat: see `layers.stacked`.
        kernel: attention kernel; decoding does not use it.
        sharding: of activations and decoding weights.
    """

    config: QwenVLConfig
    dtype: Any
    remat: str = "none"
    kernel: Kernel = PLAIN
    sharding: ActivationSharding = ActivationSharding()

    def setup(self) -> None:
        """Declares the weights; the head only if it is not tied to the embedding."""
        c = self.config
        self.embed = nn.Embed(c.vocab_size, c.width, embedding_init=INIT)
        rules = (*LANGUAGE_RULES, *lora.rules(LANGUAGE_RULES))
        gather = self.sharding.gather(rules, "language/layers/", True, self.dtype)
        self.layers = stacked(Block, c.layers, self.remat, gather)(
            c, self.dtype, self.kernel, self.sharding
        )
        self.norm = RMSNorm(epsilon=c.norm_eps, dtype=self.dtype)
        if not c.tie_embeddings:
            self.head = Linear(c.vocab_size, self.dtype, bias=False, out=jnp.float32)

    def __call__(self, batch: Prompts, features: Array) -> Array:
        """Touches every weight; initialisation traces it."""
        return self.logits(self.prefill(batch, features, "model", "cpu")[0])

    def logits(self, hidden: Array) -> Array:
        """Maps [..., M, D] to float32[..., M, V], accumulated in float32."""
        return self.sharding.logits(self._head(self.sharding.replicate_for_logits(hidden)))

    def next_logits(self, hidden: Array) -> Array:
        """Maps [B, D] to float32[B, V], with weights sharded for decoding."""
        return self.sharding.rows(
            self.sharding.columns(self._head(self.sharding.replicate(hidden)))
        )

    def _head(self, hidden):
        with jax.named_scope("logits"):
            if not self.config.tie_embeddings:
                return self.head(hidden)
            table = self.embed.embedding.astype(self.dtype)
            return product(hidden.astype(self.dtype), table, jnp.float32)

    def prefill(self, batch: Prompts, features: Array, *storage: str) -> tuple[Array, tuple]:
        """See `Model.prefill`; `storage` is the kind and platform that `cache.stored` takes."""
        prompt, context = self._start(batch, features)
        (prompt, _), (k, v) = self.layers((prompt, None), None, context)
        hidden = self.norm(_last_valid(prompt[:, 0], batch.mask))
        if is_scanned(storage[1]):
            k, v = (jnp.moveaxis(x, (3, 0), (1, 2)) for x in (k, v))  # [N, K, L, P, E]
            return hidden, (jax.tree.map(self.sharding.cached, cache.stored(k, v, *storage)),)
        layers = range(self.config.layers)
        return hidden, tuple(cache.stored(by_head(k[i]), by_head(v[i]), *storage) for i in layers)

    def forward(self, batch: Prompts, features: Array, tokens: Array, mask: Array) -> Array:
        """See `Model.forward`."""
        n, length = batch.tokens.shape
        groups, steps = tokens.shape[0] // n, tokens.shape[1]
        # A response starts after the largest position of its prompt, on all three axes.
        last = jnp.where(batch.mask[:, None], batch.positions, -1).max((1, 2))  # int32[N]
        positions = last[:, None] + 1 + jnp.arange(steps)
        positions = jnp.broadcast_to(positions[:, None, None], (n, 1, 3, steps))
        ids = _ids(mask.reshape(n, groups, steps), length)

        prompt, context = self._start(batch, features)
        context = context._replace(response=ids, response_rotary=self._rotary(positions))
        response = self._embed(tokens).reshape(n, groups, steps, -1)
        (prompt, response), _ = self.layers((prompt, response), None, context)

        # Shifted by one token: the prompt's last column predicts the first response token.
        first = _last_valid(prompt[:, 0], batch.mask)[:, None, None]
        first = jnp.broadcast_to(first, (n, groups, 1, first.shape[-1]))
        hidden = jnp.concatenate([first, response[:, :, :-1]], axis=2)
        return self.sharding.gather_tokens(self.norm(hidden.reshape(n * groups, steps, -1)), 1)

    def packed(self, batch: Prompts, features: Array, tokens: Array, source: Array) -> Array:
        """See `Model.packed`."""
        n, length = batch.tokens.shape
        rows, steps = tokens.shape
        group = jnp.arange(rows) // (rows // n)  # the prompt of each response
        column = jnp.arange(steps)

        def to_streams(prompts, responses):
            """[S, T, ...] of [N, P, ...] and [B, R, ...], or arrays that broadcast to these."""
            inner = jnp.shape(prompts)[2:]
            prompts = jnp.broadcast_to(prompts, (n, length, *inner)).reshape(-1, *inner)
            responses = jnp.broadcast_to(responses, (rows, steps, *inner)).reshape(-1, *inner)
            return jnp.concatenate([prompts, responses])[source]

        x = self._embed(to_streams(batch.tokens, tokens))  # [S, T, D]
        if features.shape[1]:
            is_image = (batch.tokens == self.config.image_token_id) & batch.mask
            first = jnp.arange(n)[:, None] * features.shape[1]
            number = jnp.clip(jnp.cumsum(is_image, axis=1) - 1, 0, features.shape[1] - 1)
            number = to_streams(jnp.where(is_image, first + number, -1), -1)
            chosen = features.reshape(-1, features.shape[-1])[jnp.maximum(number, 0)]
            x = jnp.where(number[..., None] >= 0, chosen.astype(x.dtype), x)

        last = jnp.where(batch.mask[:, None], batch.positions, -1).max((1, 2))  # as in `forward`
        response_positions = last[group, None] + 1 + column  # int32[B, R]
        positions = to_streams(batch.positions.swapaxes(1, 2), response_positions[..., None])
        segment = to_streams(jnp.arange(n)[:, None] + 1, group[:, None] + 1)
        branch = to_streams(jnp.zeros((n, 1), jnp.int32), jnp.arange(rows)[:, None] + 1)
        ids = Ids(
            segment=jnp.where(source < 0, 0, segment)[:, None],
            order=jnp.arange(source.shape[1]),
            branch=branch[:, None],
        )
        rotary = self._rotary(positions.swapaxes(1, 2)[:, None])
        (x, _), _ = self.layers((x[:, None], None), None, Context(ids, rotary))
        return self.sharding.gather_tokens(self.norm(x[:, 0]), 1)

    def _start(self, batch, features):
        """Returns prompt embeddings [N, 1, P, D] with image features, and their context."""
        x = merge_images(
            self._embed(batch.tokens),
            features,
            (batch.tokens == self.config.image_token_id) & batch.mask,
        )
        rotary = self._rotary(batch.positions[:, None])
        return x[:, None], Context(_ids(batch.mask[:, None]), rotary)

    def _embed(self, tokens):
        # Take rows before the cast: casting the table would touch all of it for each token.
        return self.sharding.look_up(self.embed.embedding, tokens, self.dtype)

    def _rotary(self, positions):
        return mrope(positions, self.config.mrope_section, self.config.rope_theta)


def is_scanned(platform: str) -> bool:
    """Returns whether decoding on this platform is a scan over layers."""
    return platform != "cpu"


def decoder(
    params: Params, config: QwenVLConfig, dtype: Any, platform: str, sharding: ActivationSharding
) -> Params:
    """See `Model.decoder`; `params` are those of the language model."""
    rules = (*LANGUAGE_RULES, *lora.rules(LANGUAGE_RULES))

    def cast(path, x):
        if path[-1].key in ("scale", "bias", "lora_scale"):
            return x
        name = "language/" + "/".join(entry.key for entry in path)
        (rule,) = [spec for pattern, spec in rules if re.search(pattern, name)]
        return sharding.decoder_weight(x.astype(dtype), rule)

    params = jax.tree_util.tree_map_with_path(cast, params)
    if is_scanned(platform):
        return params

    def layer(number):
        return jax.tree.map(lambda x: x[number], params["layers"])

    return {**params, "layers": tuple(map(layer, range(config.layers)))}


def rotary(positions: Array, config: QwenVLConfig) -> Rotary:
    """See `Model.rotary`."""
    on_all_axes = jnp.stack([positions] * 3, axis=-2)
    return mrope(on_all_axes, config.mrope_section, config.rope_theta)


def decode(
    weights: Params,
    config: QwenVLConfig,
    dtype: Any,
    tokens: Array,
    rotary: Rotary,
    prefix: tuple,
    prefix_mask: Array,
    blocks: tuple,
    step: Array,
    platform: str,
    sharding: ActivationSharding,
) -> tuple[Array, tuple]:
    """See `Model.decode`; `weights` are from `decoder`."""
    n, columns = prefix_mask.shape
    groups = tokens.shape[0] // n
    rotary = tuple(part.reshape(n, groups, 1, -1) for part in rotary)
    x = sharding.rows(weights["embed"]["embedding"][tokens].reshape(n, groups, 1, -1))
    sizes = [block.k.slots for block in blocks[0]]
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    # In a scan the token is not in its slot yet. It takes the column before that, after all others.
    scanned = is_scanned(platform)
    column = columns + step - 1 if scanned else columns + step
    query_ids = Ids(jnp.ones((n, 1, 1), jnp.int32), jnp.reshape(column, 1))
    ids = [_ids(prefix_mask[:, None])]
    for size, start in zip(sizes, starts, strict=True):
        ids.append(_ids(jnp.ones((n, 1, size), bool), columns + start))

    block = Block(config, dtype, sharding=sharding)
    norm = RMSNorm(epsilon=config.norm_eps, dtype=dtype)

    def normed(x):
        return norm.apply({"params": weights["norm"]}, x.reshape(tokens.shape[0], -1))

    if scanned:
        (prompt_pair,), (response_pairs,) = prefix, blocks

        def one_layer(x, inputs):
            layer_weights, number = inputs
            pairs = jax.tree.map(
                lambda x: jax.lax.dynamic_index_in_dim(x, number, 2, keepdims=False),
                (prompt_pair, *response_pairs),
            )
            apply = partial(block.apply, {"params": layer_weights}, method="decode_without_write")
            return apply(x, rotary, query_ids, pairs, ids)

        inputs = weights["layers"], jnp.arange(config.layers)
        x, new_pairs = jax.lax.scan(one_layer, x, inputs)
        k, v = (jnp.moveaxis(new, 0, 2) for new in new_pairs)  # [N, K, L, G, 1, E]
        last = cache.write(response_pairs[-1], k, v, step - starts[-1])
        return normed(x), ((*response_pairs[:-1], last),)

    layers = []
    for layer_weights, prompt_pair, response_pairs in zip(
        weights["layers"], prefix, blocks, strict=True
    ):
        x, last = block.apply(
            {"params": layer_weights},
            *(x, rotary, query_ids, (prompt_pair, *response_pairs), ids, step - starts[-1]),
            method="decode",
        )
        layers.append((*response_pairs[:-1], last))
    return normed(x), tuple(layers)


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
