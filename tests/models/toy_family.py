# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A family with other images than Qwen's, written by following docs/adding-a-model.md.

Every image becomes a square of 28 x 28 pixels, hence 16 patches, and two neighbours one token. The
positions of patches are learnt, those of tokens are counted on one axis. There are two features
for a token: the first replaces its embedding, the second is added after the first layer. Nothing
in `rlvlm_jax` knows of it but the row that the test adds.
"""

import dataclasses
from operator import itemgetter
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from PIL import Image

from rlvlm_jax.data.prompts import Encoded
from rlvlm_jax.errors import InputError
from rlvlm_jax.models.common import cache
from rlvlm_jax.models.common.attention import HeadKeys, Ids, Keys, attend, attend_by_head, by_head
from rlvlm_jax.models.common.costs import DENSE, Work
from rlvlm_jax.models.common.exact_cpu import product, row_sum, unit_rms
from rlvlm_jax.models.common.hf_config import Fields
from rlvlm_jax.models.common.rope import frequencies, rotate
from rlvlm_jax.models.common.weights import WeightTable, make_rules
from rlvlm_jax.models.family import Family
from rlvlm_jax.models.model import Model

SIDE, PATCH, PATCHES, PER_TOKEN = 28, 7, 16, 2

# ---- config.py ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    """Sizes of the decoder and of the tower, which has one layer."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    image_token_id: int
    vision_width: int
    family: str = "toy_vl"

    @property
    def vision_token_ids(self):
        return {self.image_token_id}

    @property
    def head_size(self):
        return self.width // self.heads

    @property
    def kv_heads(self):
        return self.heads

    @property
    def head_sizes(self):
        return self.head_size, self.vision_width


SIZES = [f.name for f in dataclasses.fields(ToyConfig) if f.name != "family"]


def read_config(config, preprocessor=None):
    fields = Fields(config)
    fields.only("model_type", "toy_vl")
    sizes = {name: fields.integer(name) for name in SIZES}
    if fields.unknown():
        raise InputError(f"config.json has unknown fields: {', '.join(fields.unknown())}")
    return ToyConfig(**sizes)


def write_config(config):
    sizes = {name: getattr(config, name) for name in SIZES}
    return {"model_type": "toy_vl", "architectures": ["ToyForConditionalGeneration"], **sizes}


# ---- weights.py --------------------------------------------------------------------------------

ROWS = (
    ("toy.embed", "language/embed/embedding", "V D"),
    ("toy.layers.{l}.norm1", "language/layers/norm1/scale", "D"),
    ("toy.layers.{l}.qkv", "language/layers/qkv/weight", "3D D"),
    ("toy.layers.{l}.out", "language/layers/out/weight", "D D"),
    ("toy.layers.{l}.norm2", "language/layers/norm2/scale", "D"),
    ("toy.layers.{l}.up", "language/layers/up/weight", "F D"),
    ("toy.layers.{l}.down", "language/layers/down/weight", "D F"),
    ("toy.norm", "language/norm/scale", "D"),
    ("toy.vision.patch", "vision/patch/weight", "W 3 S S"),
    ("toy.vision.position", "vision/position/embedding", "N W"),
    ("toy.merger.first", "vision/merger/first/weight", "D M"),
    ("toy.merger.second", "vision/merger/second/weight", "D M"),
)


def weight_table(config):
    sizes = {"V": config.vocab_size, "D": config.width, "3D": 3 * config.width}
    sizes |= {"F": config.mlp_width, "W": config.vision_width, "3": 3, "S": PATCH, "N": PATCHES}
    sizes |= {"M": PER_TOKEN * config.vision_width}
    return WeightTable(make_rules(ROWS, sizes, {"language": config.layers}), tied=None)


# ---- media.py ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ToyMedia:
    """See `prompts.Media`. The media of prompts are a dict: `pixels` uint8[N, I, C] and `slot`
    int32[N, I], the number of the patch among all of its prompt from 1, 0 at padding."""

    image_token: ClassVar[str] = "<|image_pad|>"
    video_token: ClassVar[str] = "<|video_pad|>"
    reserved_tokens: ClassVar[tuple[str, ...]] = ("<|vision_start|>", "<|vision_end|>")
    position_axes: ClassVar[int] = 1
    patches_per_token: ClassVar[int] = PER_TOKEN
    max_patches: ClassVar[int] = PATCHES

    def count_tokens(self, width, height):
        return PATCHES // PER_TOKEN

    def encode(self, ids, images, image_id):
        squares = [np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)) for image in images]
        grid = SIDE // PATCH
        cut = [square.reshape(grid, PATCH, grid, PATCH, 3) for square in squares]
        cut = [patches.transpose(0, 2, 4, 1, 3).reshape(PATCHES, -1) for patches in cut]
        repeats = [PATCHES // PER_TOKEN if token == image_id else 1 for token in ids]
        tokens = np.repeat(np.asarray(ids, np.int32), repeats)
        pixels = np.concatenate([np.zeros((0, 3 * PATCH**2), np.uint8), *cut])
        slot = np.arange(1, len(pixels) + 1, dtype=np.int32)
        positions = np.arange(len(tokens), dtype=np.int32)[None]
        return Encoded(tokens, positions, {"pixels": pixels, "slot": slot}, len(slot))

    def pad(self, rows, size):
        pixels = np.zeros((len(rows), size, 3 * PATCH**2), np.uint8)
        slot = np.zeros((len(rows), size), np.int32)
        for number, row in enumerate(rows):
            if row is not None:
                pixels[number, : len(row["slot"])] = row["pixels"]
                slot[number, : len(row["slot"])] = row["slot"]
        return {"pixels": pixels, "slot": slot}

    def rows(self, media):
        counts = np.count_nonzero(media["slot"], axis=1)
        return [{name: x[row, :n] for name, x in media.items()} for row, n in enumerate(counts)]

    def size(self, media):
        return media["slot"].shape[1]

    def pixels(self, row):
        return row["pixels"]

    def fingerprint(self):
        return "toy"

    def side(self, tokens):
        return SIDE

    def grids(self, media):
        return [SIDE] * (np.count_nonzero(media["slot"]) // PATCHES)


# ---- costs.py ----------------------------------------------------------------------------------


def encode_images(config, images, padded, prompts, size):
    weights = config.vision_width * 3 * PATCH**2 + 2 * config.width * config.vision_width
    return Work(2.0 * weights * prompts * padded, 2.0 * weights * prompts * padded, weights * size)


# ---- model.py ----------------------------------------------------------------------------------

RULES = (
    (r"^language/embed/embedding$", P("tensor", "fsdp")),
    (r"^language/layers/(qkv|up)/weight$", P(None, "tensor", "fsdp")),
    (r"^language/layers/(out|down)/weight$", P(None, "fsdp", "tensor")),
    (r"/scale$", P()),
    (r"^vision/", P()),
)


def part(path):
    for prefix, name in (("vision/merger/", "connector"), ("vision/", "vit"), ("language/", "llm")):
        if path.startswith(prefix):
            return name
    raise ValueError(path)


def build(config, *, dtype="float32", **options):
    """Returns the model; of the options it has only the one way that they allow on CPU."""
    size, heads = config.head_size, config.heads

    def init(key):
        params = {}
        for rule in weight_table(config).rules:
            *levels, last = rule.path.split("/")
            key, own = jax.random.split(key)
            value = jnp.ones(rule.our_shape)
            if last != "scale":
                value = jax.random.normal(own, rule.our_shape) * rule.our_shape[-1] ** -0.5
            node = params
            for level in levels:
                node = node.setdefault(level, {})
            node[last] = value
        return params

    def linear(x, layer):
        return product(x.astype(dtype), layer["weight"].astype(dtype), jnp.dtype(dtype))

    def norm(x, layer):
        return (unit_rms(x.astype(jnp.float32), 1e-6) * layer["scale"]).astype(dtype)

    def encode(params, prompts):
        tower, media = params["vision"], prompts.media
        x = linear(media["pixels"].astype(jnp.float32) / 127.5 - 1.0, tower["patch"])
        number = jnp.maximum(media["slot"] - 1, 0) % PATCHES
        x = jnp.tanh(x + tower["position"]["embedding"][number].astype(dtype))
        image = (media["slot"] + PATCHES - 1) // PATCHES
        ids = Ids(image[:, None], jnp.zeros(image.shape[1], jnp.int32))
        q = x[:, None, :, None]  # one head, no projections
        attended = attend(q, ids, [Keys(q[:, 0], q[:, 0], ids)], causal=False)
        x = attended.reshape(*x.shape[:1], -1, PER_TOKEN * x.shape[2])
        merger = tower["merger"]
        return {name: linear(x, merger[name]) for name in ("first", "second")}  # [N, M, D]

    def at_images(prompts, feature, x):
        """Returns x [N, P, D], or the k-th feature of the prompt at its k-th image token."""
        is_image = (prompts.tokens == config.image_token_id) & prompts.mask
        number = jnp.clip(jnp.cumsum(is_image, axis=1) - 1, 0, feature.shape[1] - 1)
        chosen = jnp.take_along_axis(feature, number[..., None], axis=1)
        return jnp.where(is_image[..., None], chosen, x)

    def rotary(positions):
        angles = positions[..., None].astype(jnp.float32) * frequencies(size, 10000.0)
        return jnp.cos(angles), jnp.sin(angles)

    def layers_of(language):
        return [jax.tree.map(itemgetter(i), language["layers"]) for i in range(config.layers)]

    def project(layer, x, angles):
        q, k, v = jnp.split(linear(norm(x, layer["norm1"]), layer["qkv"]), 3, axis=-1)
        q, k, v = (part.reshape(*x.shape[:-1], heads, size) for part in (q, k, v))
        return rotate(q, angles), rotate(k, angles), v

    def finish(layer, x, attended):
        x = x + linear(attended.reshape(x.shape), layer["out"])
        return x + linear(jax.nn.silu(linear(norm(x, layer["norm2"]), layer["up"])), layer["down"])

    def run(params, prompts, features, response=None):
        """Returns prompts and responses after all layers, normed, and keys and values by layer."""
        language = params["language"]
        x = language["embed"]["embedding"][prompts.tokens].astype(dtype)
        x = at_images(prompts, features["first"], x)[:, None]  # [N, 1, P, D]
        second = at_images(prompts, features["second"], jnp.zeros_like(x[:, 0]))
        ids = Ids(prompts.mask[:, None].astype(jnp.int32), jnp.arange(prompts.mask.shape[1]))
        angles, pairs = rotary(prompts.positions), []
        for number, layer in enumerate(layers_of(language)):
            q, k, v = project(layer, x, angles)
            pairs.append((k[:, 0], v[:, 0]))
            prompt_keys = Keys(*pairs[-1], ids)
            x = finish(layer, x, attend(q, ids, [prompt_keys]))
            if response is not None:
                y, own_angles, own = response
                q, k, v = project(layer, y, own_angles)
                y = finish(layer, y, attend(q, own, [prompt_keys, Keys(k, v, own)]))
                response = y, own_angles, own
            if number == 0:
                x = x + second[:, None]
        y = None if response is None else norm(response[0], language["norm"])
        return norm(x[:, 0], language["norm"]), y, pairs

    def last_valid(x, mask):
        last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
        return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]

    def response_positions(prompts, steps):
        last = jnp.where(prompts.mask, prompts.positions[:, 0], -1).max(axis=1)  # int32[N]
        return last[:, None] + 1 + steps

    def prefill(params, prompts, features):
        hidden, _, pairs = run(params, prompts, features)
        stored = tuple(cache.stored(by_head(k), by_head(v), "model") for k, v in pairs)
        return last_valid(hidden, prompts.mask), stored

    def forward(params, prompts, features, tokens, mask):
        n, (rows, steps) = len(prompts.tokens), tokens.shape
        y = params["language"]["embed"]["embedding"][tokens].astype(dtype)
        positions = response_positions(prompts, jnp.arange(steps))[:, None]  # [N, 1, R]
        ids = Ids(
            mask.reshape(n, -1, steps).astype(jnp.int32),
            prompts.mask.shape[1] + jnp.arange(steps),
        )
        response = y.reshape(n, -1, steps, config.width), rotary(positions), ids
        x, y, _ = run(params, prompts, features, response)
        first = jnp.repeat(last_valid(x, prompts.mask), rows // n, axis=0)[:, None]
        return jnp.concatenate([first, y.reshape(rows, steps, -1)[:, :-1]], axis=1)

    def grow_cache(prefix, old, samples, slots):
        old = old or ((),) * len(prefix)
        new = [cache.empty(pair, samples, slots) for pair in prefix]
        return tuple((*blocks, pair) for blocks, pair in zip(old, new, strict=True))

    def decode(weights, tokens, angles, prefix, prefix_mask, blocks, step):
        n, columns = prefix_mask.shape
        x = (
            weights["language"]["embed"]["embedding"][tokens]
            .astype(dtype)
            .reshape(n, -1, 1, config.width)
        )
        angles = tuple(part.reshape(n, -1, 1, part.shape[-1]) for part in angles)
        sizes = [block.k.slots for block in blocks[0]]
        starts = np.cumsum([0, *sizes[:-1]])
        query = Ids(jnp.ones((n, 1, 1), jnp.int32), jnp.reshape(columns + step, 1))
        ids = [Ids(prefix_mask[:, None].astype(jnp.int32), jnp.arange(columns))]
        for start, slots in zip(starts, sizes, strict=True):
            own = jnp.ones((n, 1, slots), jnp.int32)
            ids.append(Ids(own, columns + start + jnp.arange(slots)))
        written = []
        layers = layers_of(weights["language"])
        for layer, prompt, pairs in zip(layers, prefix, blocks, strict=True):
            q, k, v = project(layer, x, angles)
            last = cache.write(pairs[-1], by_head(k), by_head(v), step - starts[-1])
            written.append((*pairs[:-1], last))
            keys = [
                HeadKeys(
                    *(cache.read(block, jnp.dtype(dtype)) for block in pair),
                    *(pair_ids, pair.k.transposed, pair.v.transposed),
                )
                for pair, pair_ids in zip((prompt, *written[-1]), ids, strict=True)
            ]
            x = finish(layer, x, attend_by_head((q, query), keys))
        return norm(x.reshape(len(tokens), -1), weights["language"]["norm"]), tuple(written)

    def logits(params, hidden):
        table = params["language"]["embed"]["embedding"].astype(dtype)
        return product(hidden.astype(dtype), table, jnp.float32)

    return Model(
        config=config,
        init=init,
        encode_images=encode,
        prefill=prefill,
        decoder=lambda params: params,
        grow_cache=grow_cache,
        take_rows=cache.take_rows,
        put_rows=cache.put_rows,
        response_positions=response_positions,
        rotary=rotary,
        decode=decode,
        forward=forward,
        packed=None,
        next_logits=logits,
        row_sum=row_sum,
        spread=lambda params: params,
        logits=logits,
        param_rules=RULES,
        part=part,
    )


# ---- family.py ---------------------------------------------------------------------------------

TOY = Family(
    read_config=read_config,
    write_config=write_config,
    build=build,
    weights=weight_table,
    media=lambda files, min_pixels, max_pixels: ToyMedia(),
    costs=DENSE._replace(encode_images=encode_images),
    architecture="ToyForConditionalGeneration",
)
