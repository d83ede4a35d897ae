# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Features from the host are the tower's, bit for bit; and the tower runs only where it must.

The tower is the tiny model's, or one whose features are sums that are made by hand. A whole run
with such features is among those of test_main.py.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvlm_jax import config, features, sharding, startup
from rlvlm_jax.data.prompts import collate, pad_prompts
from tests import tiny_model

WIDTH = 32
ROW = 4 * WIDTH  # bytes of one feature, float32
GRIDS = (((4, 6),), (), ((2, 2), (4, 4)), ((6, 4),), ((8, 4),), ((2, 4),))


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(1, 1, 1)


@pytest.fixture(scope="module")
def tower(mesh):
    """(jitted encoder, parameters) of the tiny model."""
    model, params = tiny_model.build()
    return jax.jit(model.encode_images, out_shardings=sharding.batch_sharding(mesh)), params


@pytest.fixture(scope="module")
def prompts():
    """Six prompts; the second has no image, the third has two."""
    rng = np.random.default_rng(0)
    return [tiny_model.prompt(rng, 5, grids) for grids in GRIDS]


def new_cache(mesh, encode, budget=2**20):
    """A cache of what `encode` returns for a batch."""
    shapes = functools.partial(jax.eval_shape, encode)
    return features.FeatureCache(budget, tiny_model.SPEC, tiny_model.IMAGE, shapes, mesh)


class Counted:
    """Encodes batches of some prompts by way of a cache, and counts how often the tower runs."""

    def __init__(self, mesh, tower, prompts, **settings):
        self.prompts, self.mesh = prompts, mesh
        self.tower, self.params = tower
        self.cache = new_cache(mesh, functools.partial(self.tower, self.params), **settings)
        self.runs = 0

    def run_tower(self, params, batch):
        self.runs += 1
        return self.tower(params, batch)

    def __call__(self, *rows, patches=48, **more):
        """Returns the features of the prompts of these numbers (None: an empty row)."""
        chosen = [None if row is None else self.prompts[row] for row in rows]
        host_batch = collate(chosen, 24, patches, tiny_model.PAD, tiny_model.SPEC)
        batch = sharding.put_batch(host_batch, self.mesh)
        found = self.cache.encode(self.run_tower, self.params, batch, host_batch, **more)
        plain = self.tower(self.params, batch)
        assert (found.shape, found.dtype, found.sharding) == (
            *(plain.shape, plain.dtype, plain.sharding),
        )
        for number, grids in enumerate(() if row is None else GRIDS[row] for row in rows):
            size = sum(a * b for a, b in grids) // 4
            assert np.array_equal(found[number, :size], plain[number, :size])
        return found

    def hits(self):
        """The share of the prompts so far whose features came from the host."""
        prompts, hits, _ = self.cache.take_counts()
        return hits / prompts


@pytest.fixture
def encode(mesh, tower, prompts):
    return Counted(mesh, tower, prompts)


def test_known_prompts_in_another_order_have_the_bits_of_the_tower(encode):
    encode(0, 1, 2, 3)
    encode(2, 3, 4, 5)
    assert encode.runs == 2
    for rows in ((3, 2, 1, 0), (5, 0, 4, 2), (1, 1, 5, 5)):
        encode(*rows)
    assert encode.runs == 2


def test_one_unknown_prompt_runs_the_tower_for_all(encode):
    encode(0, 1, 2, 3)
    encode(0, 1, 2, 4)
    assert encode.runs == 2
    assert encode.hits() == 0.0


def test_prompts_without_an_image_and_empty_rows_are_always_known(encode):
    encode(1, 1, None, None)
    assert encode.runs == 0
    encode(0, None, 1, 2)
    encode(2, 1, 0, None)
    assert encode.runs == 1
    assert encode.hits() == 8 / 12


def test_padding_from_the_host_is_zero(encode):
    encode(0, 1, 2, 3)
    found = np.asarray(encode(0, 1, 2, 3))
    assert found[0, :6].any(axis=-1).all()
    assert not found[0, 6:].any()
    assert not found[1].any()


def test_another_shape_of_batch_is_encoded_anew(encode):
    """In a wider bucket the tower's sums are made in another order, and so their last bits."""
    encode(0, 1, 2, 3)
    encode(0, 1, 2, 3, patches=64)
    encode(0, 1, 2)
    assert encode.runs == 3
    for more in ({}, {"patches": 64}):
        encode(3, 2, 1, 0, **more)
    assert encode.runs == 3


@pytest.mark.slow
def test_longer_prompts_of_the_same_images_are_known(encode):
    host_batch = collate([encode.prompts[0]], 24, 48, tiny_model.PAD, tiny_model.SPEC)
    for batch in (host_batch, pad_prompts(host_batch, 40, 48, tiny_model.PAD, tiny_model.SPEC)):
        sharded = sharding.put_batch(batch, encode.mesh)
        encode.cache.encode(encode.run_tower, encode.params, sharded, batch)
    assert encode.runs == 1


def test_a_row_is_told_by_everything_that_the_tower_reads(prompts):
    batch = collate([prompts[2]], 24, 48, tiny_model.PAD, tiny_model.SPEC)
    size = int((batch.media.image > 0).sum())

    def key(media):
        (row,) = tiny_model.SPEC.rows(media)
        return features.row_key(sharding.shape_key(media), row)

    for name, array in batch.media._asdict().items():
        changed = array.copy()
        changed[0, size - 1] += 1
        assert key(batch.media._replace(**{name: changed})) != key(batch.media), name
        if name != "image":  # this tells where the padding begins
            changed = array.copy()
            changed[0, size] += 1  # padding
            assert key(batch.media._replace(**{name: changed})) == key(batch.media), name


def test_the_first_stay_and_the_budget_holds(mesh, tower, prompts):
    """Budget for 6 + 5 image tokens: prompts 0 and 2, not 3."""
    encode = Counted(mesh, tower, prompts, budget=11 * ROW)
    encode(0, 1, 2, 3)
    assert encode.cache.take_counts()[2] == 11 * ROW / 2**30
    for _ in range(2):
        encode(3, 3, 3, 3)
    assert encode.runs == 3
    encode(0, 2, 0, 2)
    assert encode.runs == 3
    assert encode.cache.used_bytes == 11 * ROW


def test_off_it_keeps_and_counts_nothing(mesh, tower, prompts):
    encode = Counted(mesh, tower, prompts, budget=0)
    for _ in range(2):
        encode(0, 1, 2, 3)
    assert encode.runs == 2
    assert (encode.cache.take_counts(), encode.cache.used_bytes) == ((0, 0, 0.0), 0)


def test_without_a_tower_there_are_no_features(mesh, tower, prompts):
    cache = new_cache(mesh, None)
    assert (
        cache.encode(
            None, None, None, collate(prompts[:2], 24, 48, tiny_model.PAD, tiny_model.SPEC)
        )
        is None
    )
    assert cache.take_counts() == (0, 0, 0.0)


def test_counts_count_anew_and_leave_evaluation_out(encode):
    encode(0, 1, 2, 3, counted=False)
    assert encode.cache.take_counts()[:2] == (0, 0)
    encode(0, 1, 2, 3)
    encode(4, 4, 4, 4)
    gib = (6 + 5 + 6 + 8) * ROW / 2**30
    assert encode.cache.take_counts() == (8, 4, gib)
    assert encode.cache.take_counts() == (0, 0, gib)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_on_several_devices(prompts, dtype):
    """Divided over two devices like the batch; in the compute dtype."""
    mesh = sharding.make_mesh(2, 1, 1)

    def sums(batch):
        pixels = batch.media.pixels
        blocks = pixels.reshape(len(pixels), -1, 4 * pixels.shape[2])
        return blocks.sum(axis=-1, keepdims=True).astype(dtype) / 3

    cache = new_cache(mesh, sums)

    tower = jax.jit(sums, out_shardings=sharding.batch_sharding(mesh))
    host_batch = collate(prompts[:4], 24, 48, tiny_model.PAD, tiny_model.SPEC)
    batch = sharding.put_batch(host_batch, mesh)
    first, second = (
        cache.encode(lambda params, batch: tower(batch), None, batch, host_batch) for _ in range(2)
    )
    assert cache.take_counts()[:2] == (8, 4)
    assert (second.dtype, second.sharding) == (jnp.dtype(dtype), first.sharding)
    assert np.array_equal(first, second)  # padding is 0 in both


# ---- a run -----------------------------------------------------------------------------------


def session(mesh, **keys):
    c = tiny_model.settings(**keys)
    frozen = not config.trains_vision(c)
    return types.SimpleNamespace(
        config=c,
        features_frozen=frozen,
        model=tiny_model.build()[0],
        shapes=tiny_model.build()[1],
        media=tiny_model.SPEC,
        mesh=mesh,
    )


def is_on(cache):
    """Whether prompts without an image are encoded by nothing."""
    batch = tiny_model.batch()
    nothing = batch._replace(tokens=np.zeros_like(batch.tokens))
    return cache.encode(lambda *_: None, None, None, nothing) is not None


def test_it_is_off_where_the_vision_side_is_trained_or_no_memory_is_given(mesh):
    assert is_on(startup.make_feature_cache(session(mesh)))
    for part in ("vit", "connector"):
        assert not is_on(startup.make_feature_cache(session(mesh, train__parts=(part, "llm"))))
    assert not is_on(startup.make_feature_cache(session(mesh, data__feature_cache_gib=0.0)))
    assert "data.feature_cache_gib" in config.HARMLESS
