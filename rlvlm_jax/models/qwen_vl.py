# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The language model of Qwen2-VL and Qwen2.5-VL: four ways through one stack of decoder blocks.

`prefill` runs prompts and keeps their keys and values, `decode` adds one token to each sequence,
`forward` runs prompts and complete responses together for training, and so does `packed` where
several of them share a row. In all four a response attends, with one softmax, to its prompt
(computed once for the G responses to it) and to itself.
The module does not know how tokens are chosen, nor where positions of prompts come from.

`prefill` and `forward` are a scan over layers, so that the program stays small. Decoding is written
out layer by layer: a scan would copy the weights and the cache of every layer for every token.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from rlvlm_jax.models import cache
from rlvlm_jax.models.attention import HeadKeys, Ids, Keys, attend, attend_by_head, by_head
from rlvlm_jax.models.kernels import PLAIN, Kernel
from rlvlm_jax.models.layers import INIT, GatedMlp, Linear, RMSNorm, product, stacked
from rlvlm_jax.models.qwen_vl_config import QwenVLConfig
from rlvlm_jax.models.rope import mrope, rotate
from rlvlm_jax.types import Array, Batch, Params

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
    """What every layer needs to know about the tokens; None where there is no response."""

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

    def project(self, x: Array, rotary: Rotary) -> tuple[Array, Array, Array]:
        """Maps [N, G, T, D] to turned queries [N, G, T, H, E] and keys, and values [..., K, E]."""
        size = self.config.head_size
        q, k, v = (p(x).reshape(*x.shape[:-1], -1, size) for p in (self.q, self.k, self.v))
        return rotate(q, rotary), rotate(k, rotary), v

    def join(self, heads: Array) -> Array:
        """Maps [N, G, T, H, E] to [N, G, T, D]."""
        return self.o(heads.reshape(*heads.shape[:-2], -1))


class Block(nn.Module):
    """One decoder block over up to two streams: prompts [N, 1, P, D], responses [N, G, T, D]."""

    config: QwenVLConfig
    dtype: Any
    kernel: Kernel = PLAIN  # of `__call__`; decoding is plain

    def setup(self) -> None:
        """Declares the two norms, attention and MLP, which the streams share."""
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
            (streams, the prompt's (k, v), each [N, P, K, E], where it runs alone, else None).
        """
        prompt, response = streams
        q, k, v = self.attn.project(self.norm1(prompt), context.prompt_rotary)
        of_prompt = Keys(k[:, 0], v[:, 0], context.prompt)
        seen = attend(q, context.prompt, [of_prompt], kernel=self.kernel)
        prompt = self.finish(prompt, seen)
        if response is None:
            return (prompt, None), (k[:, 0], v[:, 0])

        q, k, v = self.attn.project(self.norm1(response), context.response_rotary)
        keys = [of_prompt, Keys(k, v, context.response)]
        seen = attend(q, context.response, keys, kernel=self.kernel)
        response = self.finish(response, seen)
        return (prompt, response), None

    def decode(
        self, x: Array, rotary: Rotary, own: Ids, kept: tuple, ids: list[Ids], slot: Array
    ) -> tuple[Array, dict]:
        """Runs one layer for one token a sequence.

        Args:
            x: [N, G, 1, D].
            rotary: of the token.
            own: ids of the token.
            kept: keys and values of the prompt, then those of the response in blocks.
            ids: of each of them.
            slot: int32[], the slot of the last block to write.

        Returns:
            (x, the last block with the token's key and value in it).
        """
        q, k, v = self.attn.project(self.norm1(x), rotary)
        last = cache.write(kept[-1], by_head(k), by_head(v), slot)
        runs = [
            HeadKeys(*(cache.read(x, self.dtype) for x in one), of_one, one.k.turned, one.v.turned)
            for one, of_one in zip((*kept[:-1], last), ids, strict=True)
        ]
        return self.finish(x, attend_by_head(q, own, runs)), last

    def finish(self, x: Array, seen: Array) -> Array:
        """Adds the attention's result and then the MLP's to the stream."""
        x = x + self.attn.join(seen)
        return x + self.mlp(self.norm2(x))


class LanguageModel(nn.Module):
    """Embeddings, decoder blocks, final norm and head. All hidden states returned are normed.

    Attributes:
        config: sizes.
        dtype: compute dtype.
        remat: see `layers.stacked`.
        kernel: what computes attention, but for decoding.
    """

    config: QwenVLConfig
    dtype: Any
    remat: str = "none"
    kernel: Kernel = PLAIN

    def setup(self) -> None:
        """Declares the weights; the head only where it is not the embedding itself."""
        c = self.config
        self.embed = nn.Embed(c.vocab_size, c.width, embedding_init=INIT)
        self.layers = stacked(Block, c.layers, self.remat)(c, self.dtype, self.kernel)
        self.norm = RMSNorm(epsilon=c.norm_eps, dtype=self.dtype)
        if not c.tie_embeddings:
            self.head = Linear(c.vocab_size, self.dtype, bias=False, out=jnp.float32)

    def __call__(self, batch: Batch, features: Array) -> Array:
        """Touches every weight: what initialisation traces."""
        return self.logits(self.prefill(batch, features, "model")[0])

    def logits(self, hidden: Array) -> Array:
        """Maps [..., M, D] to float32[..., M, V], accumulated in float32."""
        with jax.named_scope("logits"):
            if not self.config.tie_embeddings:
                return self.head(hidden)
            table = self.embed.embedding.astype(self.dtype)
            return product(hidden.astype(self.dtype), table, jnp.float32)

    def prefill(self, batch: Batch, features: Array, *kept: str) -> tuple[Array, tuple]:
        """See `Model.prefill`; `kept` is how, kind and platform, as `cache.stored` takes them."""
        prompt, context = self._start(batch, features)
        (prompt, _), (k, v) = self.layers((prompt, None), None, context)
        hidden = self.norm(_last_valid(prompt[:, 0], batch.mask))
        layers = range(self.config.layers)
        return hidden, tuple(cache.stored(by_head(k[i]), by_head(v[i]), *kept) for i in layers)

    def forward(self, batch: Batch, features: Array, tokens: Array, mask: Array) -> Array:
        """See `Model.forward`."""
        n, length = batch.tokens.shape
        groups, steps = tokens.shape[0] // n, tokens.shape[1]
        # The response goes on after the largest position of its prompt, on all three axes.
        last = jnp.where(batch.mask[:, None], batch.positions, -1).max((1, 2))  # int32[N]
        positions = last[:, None] + 1 + jnp.arange(steps)
        positions = jnp.broadcast_to(positions[:, None, None], (n, 1, 3, steps))
        ids = _ids(mask.reshape(n, groups, steps), length)

        prompt, context = self._start(batch, features)
        context = context._replace(response=ids, response_rotary=self._rotary(positions))
        response = self._embed(tokens).reshape(n, groups, steps, -1)
        (prompt, response), _ = self.layers((prompt, response), None, context)

        # One token earlier: the prompt's last column predicts the first response token.
        first = _last_valid(prompt[:, 0], batch.mask)[:, None, None]
        first = jnp.broadcast_to(first, (n, groups, 1, first.shape[-1]))
        hidden = jnp.concatenate([first, response[:, :, :-1]], axis=2)
        return self.norm(hidden.reshape(n * groups, steps, -1))

    def packed(self, batch: Batch, features: Array, tokens: Array, source: Array) -> Array:
        """See `Model.packed`."""
        n, length = batch.tokens.shape
        rows, steps = tokens.shape
        group = jnp.arange(rows) // (rows // n)  # the prompt of each response
        column = jnp.arange(steps)

        def of_stream(prompts, responses):
            """[S, T, ...] of [N, P, ...] and [B, R, ...], or what broadcasts to these."""
            inner = jnp.shape(prompts)[2:]
            prompts = jnp.broadcast_to(prompts, (n, length, *inner)).reshape(-1, *inner)
            responses = jnp.broadcast_to(responses, (rows, steps, *inner)).reshape(-1, *inner)
            return jnp.concatenate([prompts, responses])[source]

        x = self._embed(of_stream(batch.tokens, tokens))  # [S, T, D]
        if features.shape[1]:
            is_image = (batch.tokens == self.config.image_token_id) & batch.mask
            first = jnp.arange(n)[:, None] * features.shape[1]
            number = jnp.clip(jnp.cumsum(is_image, axis=1) - 1, 0, features.shape[1] - 1)
            number = of_stream(jnp.where(is_image, first + number, -1), -1)
            chosen = features.reshape(-1, features.shape[-1])[jnp.maximum(number, 0)]
            x = jnp.where(number[..., None] >= 0, chosen.astype(x.dtype), x)

        last = jnp.where(batch.mask[:, None], batch.positions, -1).max((1, 2))  # as in `forward`
        onwards = last[group, None] + 1 + column  # int32[B, R]
        positions = of_stream(batch.positions.swapaxes(1, 2), onwards[..., None])
        segment = of_stream(jnp.arange(n)[:, None] + 1, group[:, None] + 1)
        branch = of_stream(jnp.zeros((n, 1), jnp.int32), jnp.arange(rows)[:, None] + 1)
        ids = Ids(
            segment=jnp.where(source < 0, 0, segment)[:, None],
            order=jnp.arange(source.shape[1]),
            branch=branch[:, None],
        )
        rotary = self._rotary(positions.swapaxes(1, 2)[:, None])
        (x, _), _ = self.layers((x[:, None], None), None, Context(ids, rotary))
        return self.norm(x[:, 0])

    def _start(self, batch, features):
        """Prompt embeddings [N, 1, P, D] with the image features in place, and their context."""
        x = merge_images(
            self._embed(batch.tokens),
            features,
            (batch.tokens == self.config.image_token_id) & batch.mask,
        )
        rotary = self._rotary(batch.positions[:, None])
        return x[:, None], Context(_ids(batch.mask[:, None]), rotary)

    def _embed(self, tokens):
        # Rows are gathered before the cast: casting the table would touch all of it for each token.
        return self.embed.embedding[tokens].astype(self.dtype)

    def _rotary(self, positions):
        return mrope(positions, self.config.mrope_section, self.config.rope_theta)


def decoder(params: Params, config: QwenVLConfig, dtype: Any) -> Params:
    """See `Model.decoder`; `params` is the language model's part."""

    def cast(path, x):
        return x.astype(dtype) if path[-1].key not in ("scale", "bias", "lora_scale") else x

    params = jax.tree_util.tree_map_with_path(cast, params)

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
) -> tuple[Array, tuple]:
    """See `Model.decode`; `weights` are from `decoder`."""
    n, columns = prefix_mask.shape
    groups = tokens.shape[0] // n
    rotary = tuple(part.reshape(n, groups, 1, -1) for part in rotary)
    x = weights["embed"]["embedding"][tokens].reshape(n, groups, 1, -1)
    sizes = [block.k.slots for block in blocks[0]]
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    own = Ids(jnp.ones((n, 1, 1), jnp.int32), jnp.reshape(columns + step, 1))
    ids = [_ids(prefix_mask[:, None])]
    for size, start in zip(sizes, starts, strict=True):
        ids.append(_ids(jnp.ones((n, 1, size), bool), columns + start))

    block, layers = Block(config, dtype), []
    for of_layer, of_prompt, own_blocks in zip(weights["layers"], prefix, blocks, strict=True):
        x, last = block.apply(
            {"params": of_layer},
            *(x, rotary, own, (of_prompt, *own_blocks), ids, step - starts[-1]),
            method="decode",
        )
        layers.append((*own_blocks[:-1], last))
    norm = RMSNorm(epsilon=config.norm_eps, dtype=dtype)
    hidden = norm.apply({"params": weights["norm"]}, x.reshape(tokens.shape[0], -1))
    return hidden, tuple(layers)


def merge_images(x: Array, features: Array, is_image: Array) -> Array:
    """Replaces the k-th image token of each row by feature k of that row.

    Args:
        x: [N, P, D], token embeddings.
        features: [N, M, D]; those beyond the row's image tokens are not read.
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
    """Ids of tokens of one sequence in consecutive columns; mask bool[N, G, S]."""
    return Ids(mask.astype(jnp.int32), first_column + jnp.arange(mask.shape[-1]))


def _last_valid(x, mask):
    """[N, D] of [N, P, D]: the last column that counts, wherever the padding is."""
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
