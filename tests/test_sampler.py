# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Step II: choices of tokens, keys of sequences, stopping."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvlm_jax.models.common.exact_cpu import row_sum
from rlvlm_jax.sampling import logits as choices
from rlvlm_jax.sampling import sampler
from rlvlm_jax.sampling.logits import Policy, keep_top_k
from rlvlm_jax.sampling.sampler import SampleSettings, block_sizes, make_sample_fn, sequence_keys
from tests import tiny_model
from tests.tiny_model import BANNED, PAD, STOP

# As the sampler runs them: in a program. One by one their operations take longer to compile.
choose = jax.jit(partial(choices.choose, row_sum=row_sum))
draw = jax.jit(choices.draw, static_argnames=("temperature", "top_k", "top_p", "row_sum"))
keep_top_p = jax.jit(choices.keep_top_p, static_argnums=1)


def probabilities(*values):
    return jnp.log(jnp.array([values], jnp.float32))


@pytest.mark.parametrize(
    ("p", "kept"),
    [(1.0, 4), (0.95, 4), (0.85, 3), (0.75, 2), (0.5, 1), (0.001, 1)],
)
def test_top_p_keeps_the_fewest_that_reach_p(p, kept):
    logits = probabilities(0.1, 0.5, 0.1 + 1e-3, 0.299)
    found = np.isfinite(np.asarray(keep_top_p(logits, p)))[0]
    assert found.sum() == kept
    assert found[1]


def test_top_k_keeps_the_k_largest():
    logits = probabilities(0.1, 0.5, 0.15, 0.25)
    assert np.isfinite(np.asarray(keep_top_k(logits, 2)))[0].tolist() == [False, True, False, True]
    assert np.isfinite(np.asarray(keep_top_k(logits, 0))).all()


def test_policy_divides_by_temperature_and_bans():
    scaled = Policy(0.5, (1,)).scale(jnp.array([1.0, 9.0, 2.0]))
    assert np.asarray(scaled).tolist() == [2.0, -np.inf, 4.0]


def test_draws_follow_the_distribution():
    keys = jax.random.split(jax.random.key(0), 4000)
    logits = jnp.tile(probabilities(0.2, 0.5, 0.3), (4000, 1))
    drawn = np.asarray(draw(keys, logits, temperature=1.0, top_k=0, top_p=1.0, row_sum=row_sum))
    np.testing.assert_allclose(np.bincount(drawn) / 4000, [0.2, 0.5, 0.3], atol=0.03)
    greedy = draw(keys, logits, temperature=0, top_k=0, top_p=1.0, row_sum=row_sum)
    assert set(np.asarray(greedy)) == {1}


@pytest.fixture(scope="module")
def sampled():
    model, params = tiny_model.build()
    settings = SampleSettings(
        samples=4,
        max_tokens=10,
        stop_ids=(STOP, 7),
        pad_id=PAD,
        banned_ids=BANNED,
        chunk=4,
        policy=Policy(1.0, BANNED),
    )
    traces = []

    def traced(*arguments):
        traces.append(1)
        return make_sample_fn(model, settings)(*arguments)

    return params, jax.jit(traced), traces


def ids_of(prompts):
    return (np.asarray(prompts)[:, None] * 4 + np.arange(4)).reshape(-1).astype(np.uint32)


@pytest.mark.slow
def test_permuting_the_batch_permutes_the_samples(sampled):
    params, sample, traces = sampled
    batch, order, key = tiny_model.batch(), np.array([2, 0, 3, 1]), jax.random.key(3)
    one = sample(params, batch, None, sequence_keys(key, ids_of(np.arange(4))))
    shuffled = jax.tree.map(lambda x: x[order], batch)
    two = sample(params, shuffled, None, sequence_keys(key, ids_of(order)))
    rows = ids_of(order)
    np.testing.assert_array_equal(np.asarray(one.tokens)[rows], two.tokens)
    np.testing.assert_allclose(np.asarray(one.logprobs)[rows], two.logprobs, atol=1e-5)
    assert len(np.unique(np.asarray(one.tokens), axis=0)) > 8  # samples differ
    sample(params, batch, None, sequence_keys(jax.random.key(4), ids_of(np.arange(4))))
    assert len(traces) == 1


def test_a_rollout_records_its_version_and_all_that_it_holds_was_drawn(sampled):
    params, sample, _ = sampled
    keys = sequence_keys(jax.random.key(4), ids_of(np.arange(4)))
    rollout = jax.device_get(sample(params, tiny_model.batch(), None, keys, np.int32(7)))
    assert rollout.version.tolist() == [7] * 16
    assert np.array_equal(rollout.sampled, rollout.valid)


def test_stop_tokens_end_a_response_and_belong_to_it(sampled):
    params, sample, _ = sampled
    keys = sequence_keys(jax.random.key(8), ids_of(np.arange(4)))
    found = jax.device_get(sample(params, tiny_model.batch(), None, keys))
    stops = np.isin(found.tokens, (STOP, 7)) & found.valid
    assert stops.any(axis=1).tolist() == (~found.truncated).tolist()
    assert (~found.truncated).any()
    for tokens, mask, stop, cut in zip(
        found.tokens, found.valid, stops, found.truncated, strict=True
    ):
        length = mask.sum()
        assert mask[:length].all()
        assert length == 10 if cut else stop[length - 1]
        assert (tokens[length:] == PAD).all()
    assert not np.isin(found.tokens[found.valid], BANNED).any()


def test_a_dummy_prompt_gives_no_response(sampled):
    params, sample, _ = sampled
    batch = tiny_model.batch()
    batch = batch._replace(mask=batch.mask & (np.arange(4) != 1)[:, None])
    keys = sequence_keys(jax.random.key(8), ids_of(np.arange(4)))
    found = jax.device_get(sample(params, batch, None, keys))
    assert not found.valid[4:8].any()
    assert not found.truncated[4:8].any()
    assert np.isfinite(found.logprobs).all()


def long_sampler(*, stops):
    """Returns seed -> responses of up to 80 tokens of 16 rows; any of so many tokens ends one."""
    model, params = tiny_model.build()
    settings = SampleSettings(
        samples=4,
        max_tokens=80,
        stop_ids=tuple(range(stops)),
        pad_id=PAD,
        banned_ids=BANNED,
        chunk=8,
        policy=Policy(1.0, BANNED),
        shards=2,
    )
    sample = jax.jit(make_sample_fn(model, settings))
    return lambda seed: jax.device_get(
        sample(
            params,
            tiny_model.batch(),
            None,
            sequence_keys(jax.random.key(seed), ids_of(np.arange(4))),
        )
    )


def assert_same(one, other):
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.truncated, other.truncated)
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


def shrinks(found):
    """Whether of a shard's eight rows first more than half go on behind token 16, later fewer."""
    lengths = found.valid.sum(axis=1)
    left = [(lengths > t).reshape(2, -1).sum(axis=1).max() for t in range(16, 80, 8)]
    return left[0] > 4 and any(0 < rows <= 4 for rows in left)


@pytest.mark.slow
@pytest.mark.parametrize("stops", [1, 2])
def test_blocks_and_a_smaller_batch_change_no_sample(monkeypatch, stops):
    # Which responses a seed gives is the machine's: the first whose lengths are of use is taken.
    sample = long_sampler(stops=stops)
    seed, expected = next((s, found) for s in range(100) if shrinks(found := sample(s)))
    monkeypatch.setattr(sampler, "FIRST_BLOCK", 16)
    monkeypatch.setattr(sampler, "SHRINK", 2)
    asked = []
    unfinished = sampler.unfinished
    monkeypatch.setattr(sampler, "unfinished", lambda *x: asked.append(x[1:]) or unfinished(*x))
    in_small_batch = long_sampler(stops=stops)(seed)
    assert set(asked) == {(2, 4)}
    assert_same(in_small_batch, expected)


@pytest.mark.slow
def test_blocks_alone_change_no_sample(monkeypatch):
    expected = long_sampler(stops=2)(8)
    monkeypatch.setattr(sampler, "FIRST_BLOCK", 16)
    monkeypatch.setattr(sampler, "SHRINK", 10**6)
    assert_same(long_sampler(stops=2)(8), expected)


class Recurrent:
    """A model without keys and values: its cache is a number per row, which hashes its tokens."""

    row_sum = staticmethod(row_sum)
    grown = ()

    def encode_images(self, params, batch):
        return {"none": jnp.zeros((len(batch.tokens), 0))}

    def prefill(self, params, batch, features):
        prefix = {"number": jnp.sum(jnp.where(batch.mask, batch.tokens, 0), axis=1)}
        return self.hidden(prefix["number"]), prefix

    def decoder(self, params):
        return params

    def grow_cache(self, prefix, cache, samples, slots):
        self.grown += (slots,)
        return cache or {"number": jnp.repeat(prefix["number"], samples)}

    def take_rows(self, cache, rows):
        return {"number": cache["number"][rows]}

    def put_rows(self, cache, rows, part):
        return {"number": cache["number"].at[rows].set(part["number"])}

    def response_positions(self, batch, steps):
        return batch.mask.sum(axis=1)[:, None] + steps

    def rotary(self, positions):
        return positions

    def decode(self, weights, tokens, rotary, prefix, mask, cache, step):
        groups = len(tokens) // len(mask)
        start = jnp.repeat(prefix["number"], groups)
        number = (31 * cache["number"] + tokens + rotary + start) % 1009
        return self.hidden(number), {"number": number}

    def hidden(self, number):
        return jnp.sin(number[:, None] * jnp.arange(1.0, 65.0))

    def next_logits(self, weights, hidden):
        return 2 * hidden


@pytest.mark.slow
def test_a_cache_may_be_any_pytree_of_rows(monkeypatch):
    def sample(model):
        settings = SampleSettings(
            samples=4, max_tokens=60, stop_ids=(0, 1, 2), pad_id=PAD, chunk=4, shards=2
        )
        keys = sequence_keys(jax.random.key(1), ids_of(np.arange(4)))
        return jax.jit(make_sample_fn(model, settings))({}, tiny_model.batch(), None, keys)

    expected = sample(Recurrent())
    monkeypatch.setattr(sampler, "FIRST_BLOCK", 8)
    monkeypatch.setattr(sampler, "SHRINK", 2)
    model, shards = Recurrent(), []
    unfinished = sampler.unfinished
    monkeypatch.setattr(sampler, "unfinished", lambda *x: shards.append(x[1:]) or unfinished(*x))
    assert_same(sample(model), expected)
    assert model.grown == (8, 8, 16, 28)
    assert set(shards) == {(2, 4)}
    lengths = expected.valid.sum(axis=1)
    assert lengths.min() < 16 < lengths.max(), "the smaller batch was not used"


@pytest.mark.parametrize(
    ("length", "chunk", "sizes"),
    [
        *(
            (64, 16, (64,)),
            (128, 16, (128,)),
            (144, 16, (128, 16)),
            (1000, 8, (128, 128, 256, 488)),
        ),
        (4096, 16, (512, 512, 1024, 2048)),
    ],
)
def test_blocks_double_the_cache(length, chunk, sizes):
    assert block_sizes(length, chunk) == sizes


@pytest.mark.parametrize("vocabulary", [1, 2, 7, 64, 150])
def test_draws_are_right_for_every_size_of_vocabulary(vocabulary):
    rng = np.random.default_rng(vocabulary)
    count = 20000
    expected = rng.dirichlet(np.full(vocabulary, 0.3)).astype(np.float32)
    expected[vocabulary // 3] = 0 if vocabulary > 2 else expected[vocabulary // 3]
    expected /= expected.sum()
    logits = jnp.tile(jnp.log(expected) + 100.0, (count, 1))
    drawn = np.asarray(choose(jax.random.split(jax.random.key(1), count), logits))
    counts = np.bincount(drawn, minlength=vocabulary)
    assert len(counts) == vocabulary
    assert not counts[expected == 0].any()
    error = np.abs(counts / count - expected)
    assert (error < 5 * np.sqrt(expected * (1 - expected) / count) + 1e-9).all()


def test_a_draw_never_takes_a_token_of_probability_zero(monkeypatch):
    """The largest random number there is, and a rounding error at every zero behind the mass."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 152_000)).astype(np.float32)
    logits[:, 70_000:] = -np.inf  # whole runs of 390, and the tail of one
    logits[:, 1::2] = -np.inf

    def largest(key, shape):
        return jnp.full(shape, 1 - 2**-23, jnp.float32)

    def cumsum(x, axis):
        return jnp.asarray(np.cumsum(x, axis=axis)) * (1 + 1e-7 * jnp.arange(x.shape[axis]))

    monkeypatch.setattr(jax.random, "uniform", largest)
    monkeypatch.setattr(jnp, "cumsum", cumsum)
    drawn = choices.choose(jax.random.split(jax.random.key(1), 8), jnp.asarray(logits), row_sum)
    assert np.isfinite(logits[np.arange(8), drawn]).all()


def test_a_draw_takes_the_only_token_there_is():
    logits = jnp.full((3, 1000), -jnp.inf).at[jnp.arange(3), jnp.array([0, 567, 999])].set(-80.0)
    keys = jax.random.split(jax.random.key(1), 3)
    assert np.asarray(choose(keys, logits)).tolist() == [0, 567, 999]


def test_a_top_p_next_to_one_keeps_everything_that_counts():
    logits = np.random.default_rng(5).normal(size=(4, 5000)).astype(np.float32)
    logits[:, ::3] = -np.inf
    kept = np.isfinite(np.asarray(keep_top_p(jnp.asarray(logits), 1 - 1e-9)))
    assert not kept[:, ::3].any()
    assert kept.sum() > 0.999 * np.isfinite(logits).sum()


@pytest.mark.parametrize("p", [0.001, 0.3, 0.9, 0.999])
def test_top_p_without_a_sort_keeps_what_a_sort_keeps(p):
    logits = np.random.default_rng(5).normal(size=(40, 300), scale=3).astype(np.float32)
    logits[:20] = np.round(logits[:20])  # ties
    logits[::3, ::2] = -np.inf
    kept = np.isfinite(np.asarray(keep_top_p(jnp.asarray(logits), p)))
    for row, found in zip(logits.astype(np.float64), kept, strict=True):
        weights = np.exp(row - row.max())
        weights /= weights.sum()
        ordered = np.sort(weights)[::-1]
        smallest = ordered[np.flatnonzero(np.cumsum(ordered) >= p)[0]]
        np.testing.assert_array_equal(found, weights >= smallest)
