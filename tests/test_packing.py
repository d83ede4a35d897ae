# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Packed streams: what a plan must keep, and that nothing but the time of a step depends on it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvlm_jax import packing, sharding
from rlvlm_jax.errors import InputError
from rlvlm_jax.logprobs import logprobs
from rlvlm_jax.types import Rollout, Trajectory
from rlvlm_jax.update import computed_tokens, encode_present_images, minibatch_order
from tests import tiny_model, tiny_steps
from tests.tiny_steps import ONE, POLICY

P, R, G = 24, 6, 4  # of tiny_model.batch() and tiny_model.settings()


# ---- plans -----------------------------------------------------------------------------------


def draw_lengths(prompts, samples=8, seed=0):
    """Prompts of 64 to 1300 tokens; responses log-normal with mean 300, at most 2048."""
    rng = np.random.default_rng(seed)
    responses = rng.lognormal(np.log(300) - 0.8**2 / 2, 0.8, prompts * samples)
    return rng.integers(64, 1301, prompts), np.clip(responses, 1, 2048).astype(int)


def check(plan, prompts, responses, rows, p, r, samples):
    """Goes through a plan of one minibatch token by token; returns the prompts of each stream."""
    seen, held = [], []
    flat = plan.source.reshape(-1, plan.source.shape[-1])
    for stream, before in zip(flat, plan.previous.reshape(flat.shape), strict=True):
        groups, ends = [], {}
        for column, place in enumerate(stream.tolist()):
            if place < 0:
                assert before[column] == 0
                continue
            if place < len(prompts) * p:
                group, offset = divmod(place, p)
                assert offset >= p - prompts[group]  # padding is on the left
                assert before[column] == 0
                if offset == p - prompts[group]:
                    groups.append(group)
                else:
                    assert stream[column - 1] == place - 1
                ends[group] = column
                continue
            row, offset = divmod(place - len(prompts) * p, r)
            seen.append((row, offset))
            before_it = stream[before[column]]
            if offset:
                assert before_it == place - 1
                assert before[column] == column - 1
            else:
                assert before_it == (row // samples + 1) * p - 1
                assert before[column] == ends[row // samples]
        assert len(groups) == len(set(groups))
        held.append(groups)
    assert sorted(seen) == [(b, t) for b in sorted(rows) for t in range(responses[b])]
    used = (flat >= 0).any(axis=1)
    streams = plan.source.shape[1]
    assert plan.count == -(-used.sum() // streams)
    assert not used[plan.count * streams :].any()
    return held


@pytest.mark.parametrize("seed", range(20))
def test_every_token_is_placed_once_behind_its_prompt(seed):
    rng = np.random.default_rng(seed)
    samples, p, r = 4, 12, 9
    prompts, responses = rng.integers(1, p + 1, 6), rng.integers(0, r + 1, 24)
    rows = rng.permutation(24)[:16]
    sizes = {"tokens": int(rng.integers(21, 80)), "streams": 1 + seed % 3}
    plan = packing.plan(
        prompts,
        responses,
        rows,
        **sizes,
        prompt_size=p,
        response_size=r,
        limit_prompts=seed % 2 == 0,
    )
    held = check(plan, prompts, responses, rows, p, r, samples)
    assert plan.source.shape[1:] == (sizes["streams"], sizes["tokens"])
    if seed % 2 == 0:
        assert max(map(len, held)) <= packing.max_prompts(sizes["tokens"], p)


@pytest.mark.parametrize("limit_prompts", [False, True])
@pytest.mark.parametrize("tokens", [21, 41, 42, 70, 150])
def test_the_most_micro_batches_are_enough_for_any_lengths(tokens, limit_prompts):
    p, r = 12, 9
    sizes = {"tokens": tokens, "streams": 2, "prompt_size": p, "response_size": r}
    for seed in range(30):
        rng = np.random.default_rng(seed)
        prompts = rng.integers(1, p + 1, 8) if seed else np.full(8, p)
        responses = rng.integers(1, r + 1, 32) if seed else np.full(32, r)
        rows = rng.permutation(32)
        plan = packing.plan(prompts, responses, rows, **sizes, limit_prompts=limit_prompts)
        check(plan, prompts, responses, rows, p, r, 4)
        assert len(plan.source) == packing.max_microbatches(32, tokens, 2, p, r)


def test_minibatches_are_packed_each_by_itself():
    prompts, responses = draw_lengths(8, samples=2)
    order = np.random.default_rng(1).permutation(16).reshape(1, 2, 8)
    sizes = {"tokens": 4096, "streams": 1, "prompt_size": 1312, "response_size": 2048}
    plan = packing.plan(prompts, responses, order, **sizes)
    assert plan.source.shape[:2] == plan.count.shape == (1, 2)
    for number, rows in enumerate(order[0]):
        one = jax.tree.map(lambda x, number=number: x[0, number], plan)
        check(one, prompts, responses, rows, 1312, 2048, 2)


def test_nothing_to_place_is_no_micro_batch():
    plan = packing.plan([3], [0, 0], [0, 1], tokens=9, streams=1, prompt_size=4, response_size=5)
    assert (plan.count, plan.source.max()) == (0, -1)


def test_what_cannot_be_packed_is_refused():
    sizes = {"streams": 1, "prompt_size": 4, "response_size": 5}
    with pytest.raises(ValueError, match="4 [+] 5 tokens do not fit into 8"):
        packing.plan([3], [1], [0], tokens=8, **sizes)
    with pytest.raises(ValueError, match="empty prompt"):
        packing.plan([0], [1], [0], tokens=9, **sizes)


def test_the_useful_share_by_hand():
    # Group 0 is there in both minibatches, group 1 in the second, the rest in none.
    prompts = np.arange(9) < np.array([[5], [7], [9]])
    responses = np.array([1, 2, 3, 4, 0, 0])
    order = np.array([[[0, 4], [1, 2], [3, 5]]])
    useful = (5 + 1) + (5 + 2 + 7 + 3) + (7 + 4)
    assert packing.useful_fraction(prompts, responses, order, 100) == useful / 100
    assert packing.useful_fraction(prompts, 0 * responses, order, 0) == 0


@pytest.mark.parametrize(("tokens", "least"), [(8192, 0.94), (4096, 0.89)])
def test_long_tails_waste_little(tokens, least):
    """A minibatch of 64 groups of eight; unpacked, a tenth to a fifth of the tokens is useful."""
    for seed in range(5):
        prompts, responses = draw_lengths(64, seed=seed)
        assert 250 < responses.mean() < 350
        order = np.arange(512)[None]
        plan = packing.plan(
            *(prompts, responses, order),
            tokens=tokens,
            streams=1,
            prompt_size=1312,
            response_size=2048,
        )
        mask = np.arange(1312) < prompts[:, None]
        packed, padded = int(plan.count.sum()) * tokens, 64 * 1312 + 512 * 2048
        assert packing.useful_fraction(mask, responses, order, packed) > least
        assert packing.useful_fraction(mask, responses, order, padded) < 0.2


def test_computed_tokens_by_hand():
    c = tiny_model.settings(train__microbatch=2, train__epochs=3)
    prompts = np.ones((4, 24), bool)
    # Two samples of a prompt share it.
    assert computed_tokens(c, prompts, None) == 3 * (8 * 24 + 16 * 6)
    order = np.arange(16).reshape(1, 2, 8)
    planner = packing.Planner(tokens=64, streams=2, response_size=6, limit_prompts=False)
    plans = planner.for_update(prompts, np.full(16, 6), order)
    # A minibatch is two groups of 24 + 4 * 6 tokens: one stream each, so one micro-batch of two.
    assert plans.count.tolist() == [[1, 1]]
    assert computed_tokens(c, prompts, plans) == 2 * 2 * 64


# ---- log-probabilities -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    return tiny_model.build()


@pytest.fixture(scope="module")
def responses():
    """(tokens, mask): 16 responses of lengths 0 to 6."""
    rng = np.random.default_rng(3)
    mask = np.arange(R) < (np.arange(16) * 5 % 7)[:, None]
    return rng.integers(0, 57, (16, R)).astype(np.int32), mask


def plan_of(batch, mask, order, tokens=40, streams=1, **more):
    sizes = {"tokens": tokens, "streams": streams, "prompt_size": P, "response_size": R}
    return packing.plan(batch.mask.sum(axis=1), mask.sum(axis=1), order, **sizes, **more)


@pytest.mark.parametrize(
    ("tokens", "flat_positions"),
    [
        (90, False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((33, False), (33, True), (90, True))
        ),
    ],
)
def test_packed_logprobs_are_those_of_rows(tiny, responses, tokens, flat_positions):
    """Prompts with none, one and two images of mixed sizes; two streams at a time."""
    model, params = tiny
    batch = tiny_model.batch()
    features = jax.jit(model.encode_images)(params, batch)
    how = {"flat_positions": True} if flat_positions else {}
    arrays = (params, batch, features, *responses, responses[1])
    expected = tiny_steps.logprobs(**how)(*arrays)
    packed = jax.jit(functools.partial(logprobs, model, POLICY, 7, **how))
    plan = plan_of(batch, responses[1], np.arange(16), tokens, streams=2)
    assert plan.count > 1 or tokens > 60
    found = [packed(*arrays, (plan.source[k], plan.previous[k])) for k in range(plan.count)]
    assert packed._cache_size() == 1  # whatever the lengths
    for number in range(2):
        total = sum(np.asarray(one[number]) for one in found)
        np.testing.assert_allclose(total, expected[number], atol=1e-5)
    held = sum(np.asarray(one[2]).astype(int) for one in found)
    assert np.array_equal(held, responses[1])  # each token in one micro-batch


@pytest.mark.slow
@pytest.mark.parametrize("given", [False, True])
def test_gradients_reach_the_tower_through_streams(tiny, responses, given):
    model, params = tiny
    batch = tiny_model.batch()
    weights = np.random.default_rng(4).normal(size=(16, R)).astype(np.float32)
    plan = plan_of(batch, responses[1], np.arange(16), 250, limit_prompts=given)
    assert plan.count == 1
    streams = plan.source[0], plan.previous[0]
    compute = functools.partial(logprobs, model, POLICY, 4)
    arrays = (*responses, responses[1])
    mesh = sharding.make_mesh(1, 1, 1)

    def of_rows(params):
        return jnp.sum(weights * compute(params, batch, None, *arrays)[0])

    def of_streams(params):
        features = encode_present_images(model, params, batch, streams[0], mesh) if given else None
        return jnp.sum(weights * compute(params, batch, features, *arrays, streams)[0])

    expected, found = (jax.jit(jax.grad(f))(params) for f in (of_rows, of_streams))
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected["vision"])) > 1e-2
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * float(jnp.abs(one).max()))


def test_only_the_images_of_held_prompts_are_encoded(tiny):
    model, params = tiny
    batch = tiny_model.batch()
    everything = jax.jit(model.encode_images)(params, batch)
    held = np.full((2, 50), -1)
    held[0, :3], held[1, 7] = 2 * P + np.arange(3), P + 5  # of prompts 2 and 1
    held[1, 8] = 4 * P + 3  # a response
    mesh = sharding.make_mesh(1, 1, 1)
    found = jax.jit(lambda *arrays: encode_present_images(model, *arrays, mesh))(
        params, batch, held
    )
    np.testing.assert_allclose(found[1:3], everything[1:3], atol=1e-5)
    assert not np.asarray(found)[[0, 3]].any()


# ---- steps III and IV --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trajectory(tiny, responses):
    """A trajectory with plausible numbers, on the host."""
    model, params = tiny
    batch = tiny_model.batch()
    tokens, mask = responses
    rng = np.random.default_rng(5)
    seen = jax.jit(model.encode_images)(params, batch)
    old = np.asarray(tiny_steps.logprobs()(params, batch, seen, *responses, mask)[0])
    old = np.where(mask, old + 0.2 * rng.normal(size=old.shape), 0).astype(np.float32)
    near = [old + 0.1 * rng.normal(size=old.shape).astype(np.float32) for _ in range(2)]
    advantages = np.where(mask, rng.normal(size=(16, 1)), 0).astype(np.float32)
    return Trajectory(
        *(batch, np.asarray(seen), tokens, mask, mask, mask),
        *(near[0], old, near[1], advantages),
    )


def updated(trajectory, *, tokens=0, mesh=ONE, **settings):
    """Returns (parameters, stats) after step IV, packed into streams or, with 0 tokens, not."""
    devices = tiny_steps.make_mesh(mesh)
    order = np.asarray(minibatch_order(tiny_model.settings(**settings), jax.random.key(5)))
    plans = None
    if tokens:
        plans = plan_of(
            *(trajectory.prompts, trajectory.sampled, order, tokens, mesh[0] * mesh[1]),
            limit_prompts=trajectory.features is None,
        )
        plans = sharding.put_plan(plans, devices)
    sharded = sharding.put_batch(trajectory, devices)
    update = tiny_steps.update(mesh, **settings)
    state, stats = update(tiny_steps.state(mesh, **settings), sharded, order, plans)
    return jax.device_get((state.params, stats))


def assert_same_update(one, other):
    for x, y in zip(jax.tree.leaves(one[0]), jax.tree.leaves(other[0]), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    assert one[1].keys() == other[1].keys()
    for name, value in one[1].items():
        assert float(other[1][name]) == pytest.approx(float(value), abs=1e-5, rel=1e-5), name


CASES = [  # each loss and each aggregation once; the loss itself is the same code for both paths
    ("ppo", "token"),
    ("gspo", "sequence"),
    ("cispo", "constant"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "aggregate"), CASES)
def test_a_packed_update_is_that_of_rows(trajectory, loss, aggregate):
    settings = {"algorithm__loss": loss, "algorithm__aggregate": aggregate}
    rows = updated(trajectory, **settings)
    assert rows[1]["update/grad_norm"] > 0.1
    assert_same_update(rows, updated(trajectory, tokens=40, **settings))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "aggregate", "mesh"),
    [
        ("ppo", "token", (2, 2, 1, 2)),
        ("ppo", "token", (2, 1, 2, 2)),
        ("gspo", "sequence", (1, 2, 2, 2)),
        ("cispo", "constant", (2, 2, 1, 2)),
    ],
)
def test_a_packed_update_on_eight_devices_is_that_of_rows_on_one(trajectory, loss, aggregate, mesh):
    settings = {"algorithm__loss": loss, "algorithm__aggregate": aggregate}
    rows = updated(trajectory, **settings)
    packed = updated(trajectory, tokens=40, mesh=mesh, **settings)
    assert_same_update(rows, packed)


@pytest.mark.slow
def test_a_packed_update_with_everything_that_a_loss_can_have(tiny, trajectory):
    """On four devices; the rows, with which it is compared, on one."""
    settings = {
        "algorithm__kl_loss_coef": 0.1,
        "algorithm__entropy_coef": 0.01,
        "algorithm__is_cap": 2.0,
        "algorithm__dual_clip": 3.0,
        "algorithm__flat_positions": True,
        "train__epochs": 2,
        "train__parts": ("vit", "connector", "llm", "head"),
    }
    trajectory = trajectory._replace(features=None)
    rows = updated(trajectory, **settings)
    packed = updated(trajectory, tokens=40, mesh=(1, 4, 1, 1), **settings)
    assert_same_update(rows, packed)
    before = tiny[1]["vision"]["merger"]
    assert any(
        np.abs(np.asarray(x) - y).max() > 1e-4
        for x, y in zip(
            jax.tree.leaves(before), jax.tree.leaves(packed[0]["vision"]["merger"]), strict=True
        )
    )


@pytest.mark.slow
def test_one_program_for_all_lengths(trajectory):
    mask = trajectory.sampled & (np.arange(16) < 5)[:, None]
    few = trajectory._replace(sampled=mask, trained=mask)
    sizes = []
    for one in (trajectory, few):
        assert_same_update(updated(one), updated(one, tokens=40))
        sizes.append(tiny_steps.step()._cache_size())
    assert sizes[0] == sizes[1]


@pytest.mark.slow
def test_an_update_without_tokens_moves_nothing(tiny, trajectory):
    none = np.zeros_like(trajectory.sampled)
    nothing = trajectory._replace(sampled=none, trained=none)
    params, stats = updated(nothing, tokens=40)
    assert stats["update/skipped"] == 2
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(tiny[1]), strict=True):
        assert np.array_equal(x, y)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [ONE, (2, 2, 1, 2), (1, 2, 2, 2)])
def test_packed_passes_are_those_of_rows(tiny, responses, mesh):
    model, _ = tiny
    tokens, mask = responses
    devices = tiny_steps.make_mesh(mesh)
    params = tiny_steps.sharded_params(mesh)
    reference = jax.tree.map(lambda x: 1.1 * x, params)
    logprobs = np.zeros(mask.shape, np.float32)
    batch = tiny_model.batch()
    plan = plan_of(batch, mask, np.arange(16), streams=mesh[0] * mesh[1])
    plan = sharding.put_plan(plan, devices)
    rollout = Rollout(tokens, mask, mask, logprobs, np.zeros(16, bool), np.zeros(16, np.int32))
    batch, rollout = sharding.put_batch((batch, rollout), devices)
    passes = tiny_steps.passes()
    for features in (None, jax.jit(model.encode_images)(params, batch)):
        arrays = (params, reference, batch, features, rollout)
        for x, y in zip(passes(*arrays), passes(*arrays, plan), strict=True):
            np.testing.assert_allclose(y, x, atol=1e-5)


def test_the_order_of_minibatches_is_drawn_from_the_key():
    c = tiny_model.settings(train__epochs=2)
    order = np.asarray(minibatch_order(c, jax.random.key(1)))
    assert order.shape == (2, 2, 8)
    assert sorted(order[0].reshape(-1)) == sorted(order[1].reshape(-1)) == list(range(16))
    assert (order.reshape(2, 2, 2, 4) // 4 == order.reshape(2, 2, 2, 4)[..., :1] // 4).all()
    assert not np.array_equal(order[0], order[1])
    assert not np.array_equal(order, minibatch_order(c, jax.random.key(2)))
    first = jax.random.split(jax.random.key(1), 2)[0]
    expected = np.asarray(jax.random.permutation(first, 4))
    assert np.array_equal(order[0].reshape(4, 4)[:, 0] // 4, expected)


def test_streams_must_hold_the_longest_prompt_and_a_response():
    planner = packing.Planner(tokens=40, streams=1, response_size=6, limit_prompts=False)
    planner.check([(16, 0), (34, 8)])
    with pytest.raises(InputError, match="pack_tokens=40 has no room.*35 tokens.*least 41"):
        planner.check([(16, 0), (35, 8)])
    dataclasses.replace(planner, tokens=0).check([(16, 0), (35, 8)])
