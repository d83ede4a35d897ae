# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The optimizer against numbers computed by hand: schedule, clipping, AdamW, frozen parts."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rlvlm_jax import config, optim, sharding

PARTS = ("vit", "connector", "llm")


def update_keys(**changes):
    """The group `update` of a configuration: a learning rate of 1 that stays, nothing else on."""
    keys = config.default().train
    keys.update({"lr": 1.0, "final_lr": 1.0, "warmup": 0.0, "weight_decay": 0.0, "grad_clip": 0.0})
    keys.update(changes)
    return keys


def part_of(path):
    return path.split("/")[0]


def params():
    return {
        "vit": {"weight": jnp.array([[1.0, 2.0]]), "bias": jnp.array([3.0])},
        "connector": {"weight": jnp.array([[4.0]])},
        "llm": {"embedding": jnp.array([[5.0], [6.0]]), "scale": jnp.array([[7.0]])},
    }


# ---------------------------------------------------------------- learning rate


@pytest.mark.parametrize(
    ("total", "changes", "expected"),
    [
        # two updates of warm-up (0.2 * 11, rounded), then half a cosine over eight steps
        (
            11,
            {"warmup": 0.2, "final_lr": 0.1},
            {0: 0.5, 1: 1.0, 2: 1.0, 4: 0.1 + 0.9 * (2 + 2**0.5) / 4, 6: 0.55, 10: 0.1},
        ),
        # down to nothing, and it stays there when more updates come than were planned
        (11, {"final_lr": 0.0, "warmup": 0.2}, {6: 0.5, 10: 0.0, 15: 0.0}),
        # no warm-up at all: the first update has the full rate already
        (6, {"final_lr": 0.0}, {0: 1.0, 1: 1.0, 3: 0.5, 5: 0.0}),
        (20, {"warmup": 0.2}, {0: 0.25, 1: 0.5, 2: 0.75, 3: 1.0, 4: 1.0, 19: 1.0, 50: 1.0}),
        (4, {}, {0: 1.0, 3: 1.0}),
        # nothing but warm-up
        (4, {"final_lr": 0.0, "warmup": 1.0}, {0: 0.25, 1: 0.5, 2: 0.75, 3: 1.0}),
        (1, {"final_lr": 0.0, "warmup": 0.1}, {0: 1.0}),
    ],
)
def test_learning_rate_at_steps_computed_by_hand(total, changes, expected):
    for lr in (1.0, 2e-6):
        schedule = optim.make_schedule(update_keys(**changes, lr=lr), total)
        found = {step: float(schedule(step)) / lr for step in expected}
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("final_lr", [1.0, 0.0])
def test_the_rate_is_never_zero_before_the_end_and_never_over_lr(final_lr):
    keys = update_keys(final_lr=final_lr, warmup=0.3)
    rates = np.array([float(optim.make_schedule(keys, 30)(step)) for step in range(29)])
    assert (rates > 0).all()
    assert rates.max() == 1.0
    turn = rates.argmax()
    assert (np.diff(rates[: turn + 1]) > 0).all()
    assert (np.diff(rates[turn:]) <= 0).all()


# ---------------------------------------------------------------- AdamW


def step(keys, weights, *gradients, total=10):
    """The updates of the last of several steps."""
    optimizer, _ = optim.make_optimizer(keys, total, part_of)
    state = optimizer.init(weights)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, weights)
    return updates


def test_the_first_step_is_the_sign_of_the_gradient_and_the_decay():
    weights = {"weight": jnp.array([[2.0, -4.0]]), "bias": jnp.array([8.0])}
    gradient = {"weight": jnp.array([[3.0, -0.01]]), "bias": jnp.array([-5.0])}
    got = step(update_keys(lr=0.1, weight_decay=0.5), weights, gradient)
    # g / |g| - for the matrix - half the weight, all times -0.1
    np.testing.assert_allclose(got["weight"], [[-0.1 * (1 + 1), -0.1 * (-1 - 2)]], rtol=1e-5)
    np.testing.assert_allclose(got["bias"], [0.1], rtol=1e-5)


def test_the_second_step_by_hand():
    """Gradients 1 and 0: the moments are b1 (1 - b1) and b2 (1 - b2), each over 1 - b**2."""
    weights = {"weight": jnp.zeros((1, 1))}
    one, zero = ({"weight": jnp.full((1, 1), value)} for value in (1.0, 0.0))
    got = step(update_keys(b1=0.5, b2=0.75), weights, one, zero)
    first, second = 0.25 / 0.75, 0.1875 / 0.4375
    assert float(got["weight"][0, 0]) == pytest.approx(-first / second**0.5, rel=1e-5)


def test_the_schedule_drives_the_steps():
    weights = {"weight": jnp.zeros((1, 1))}
    one = {"weight": jnp.ones((1, 1))}
    keys = update_keys(lr=0.5, final_lr=0.0, warmup=0.2)
    found = [float(step(keys, weights, *[one] * n, total=11)["weight"][0, 0]) for n in (1, 2, 7)]
    assert found == pytest.approx([-0.25, -0.5, -0.25], rel=1e-5)


def test_decay_acts_on_weights_and_embeddings_whatever_their_rank():
    """Layers are stacked, so a bias or a scale may have two axes; only names tell."""
    names = ("weight", "embedding", "bias", "scale")
    weights = {name: {name: jnp.full((2, 3), 2.0)} for name in names}
    nothing = jax.tree.map(jnp.zeros_like, weights)
    got = step(update_keys(weight_decay=0.25), weights, nothing)
    found = {name: float(got[name][name].mean()) for name in names}
    assert found == {"weight": -0.5, "embedding": -0.5, "bias": 0.0, "scale": 0.0}


@pytest.mark.parametrize(
    ("clip", "norm"), [(1.0, 1.0), (2.5, 2.5), (5.0, 5.0), (7.0, 5.0), (0.0, 5.0)]
)
def test_gradients_are_clipped_by_their_global_norm(clip, norm):
    """(3, 4) over two parameters has norm 5; eps = 1 makes the step g / (|g| + 1)."""
    weights = {"llm": {"weight": jnp.zeros((1, 1))}, "vit": {"bias": jnp.zeros(1)}}
    gradient = {"llm": {"weight": jnp.full((1, 1), 3.0)}, "vit": {"bias": jnp.full(1, -4.0)}}
    got = step(update_keys(grad_clip=clip, eps=1.0), weights, gradient)
    a, b = 3 * norm / 5, 4 * norm / 5
    assert float(got["llm"]["weight"][0, 0]) == pytest.approx(-a / (a + 1), rel=1e-5)
    assert float(got["vit"]["bias"][0]) == pytest.approx(b / (b + 1), rel=1e-5)


# ---------------------------------------------------------------- what is trained


def only(*parts):
    """The function that says of a path whether its part is one of these."""
    return lambda path: part_of(path) in parts


def test_trained_parts_are_the_named_ones():
    for choice in itertools.product((False, True), repeat=3):
        parts = tuple(itertools.compress(PARTS, choice))
        trained = optim.make_trained(update_keys(parts=parts), part_of)
        assert [trained(f"{name}/weight") for name in PARTS] == list(choice)
    trained = optim.make_trained(config.default().train, part_of)
    assert [trained(f"{part}/x") for part in ("vit", "connector", "llm", "head")] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("changes", "path", "expected"),
    [
        ({"parts": ("llm",)}, "head/weight", False),
        ({"parts": ("vit", "head")}, "head/weight", False),
        ({"lora_rank": 2}, "llm/attn/weight", False),
        ({"lora_rank": 2}, "llm/attn/lora_a", True),
        ({"lora_rank": 2}, "llm/attn/lora_b", True),
        ({"lora_rank": 2}, "llm/attn/lora_scale", False),
        ({"lora_rank": 2}, "vit/attn/lora_a", False),
        ({"lora_rank": 2, "parts": ("vit", "llm")}, "vit/attn/lora_a", True),
    ],
)
def test_what_is_trained_of_a_part(changes, path, expected):
    assert optim.make_trained(update_keys(**changes), part_of)(path) is expected


def test_the_vision_side_may_have_a_rate_of_its_own():
    keys = update_keys(lr=0.5, lr_vision=0.125)
    weights = {"vit": {"weight": jnp.ones((1, 1))}, "llm": {"weight": jnp.ones((1, 1))}}
    updates = step(keys, weights, jax.tree.map(jnp.ones_like, weights))
    assert float(updates["llm"]["weight"][0, 0]) == pytest.approx(-0.5, rel=1e-5)
    assert float(updates["vit"]["weight"][0, 0]) == pytest.approx(-0.125, rel=1e-5)


@pytest.mark.parametrize(
    "parts", [set(), {"vit"}, {"llm"}, {"connector", "llm"}, {"vit", "connector", "llm"}]
)
def test_split_takes_each_leaf_once_and_merge_puts_it_back(parts):
    whole = params()
    trained, frozen = optim.split(whole, only(*parts))
    for name in PARTS:
        mine, others = (trained, frozen) if name in parts else (frozen, trained)
        assert jax.tree.leaves(mine[name]) == jax.tree.leaves(whole[name])
        assert jax.tree.leaves(others[name]) == []
    merged = optim.merge(trained, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(whole)
    assert all(a is b for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(whole), strict=True))


def test_what_is_frozen_has_no_optimizer_state_and_no_share_in_the_norm():
    optimizer, _ = optim.make_optimizer(update_keys(), 10, part_of)
    trained, _ = optim.split(params(), only("connector"))
    state = optimizer.init(trained)
    assert sorted(x.shape for x in jax.tree.leaves(state) if x.ndim) == [(1, 1), (1, 1)]
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, trained), state, trained)
    assert len(jax.tree.leaves(updates)) == 1


def test_moments_are_sharded_like_their_parameters():
    mesh = sharding.make_mesh(1, 2, 1)
    rules = (("embedding", PartitionSpec("fsdp")), ("weight|bias|scale", PartitionSpec()))
    shapes = jax.eval_shape(params)
    shardings = sharding.param_shardings(shapes, rules, mesh)
    optimizer, _ = optim.make_optimizer(update_keys(grad_clip=1.0), 10, part_of)
    (trained, _), (trained_shardings, _) = (
        optim.split(x, only("llm")) for x in (shapes, shardings)
    )
    scalar = sharding.replicated(mesh)
    got = optim.state_shardings(optimizer, trained, trained_shardings, scalar)
    state = jax.eval_shape(optimizer.init, trained)
    assert jax.tree.structure(got) == jax.tree.structure(state)
    moments = 0
    for path, leaf_sharding in jax.tree_util.tree_leaves_with_path(got):
        name = str(getattr(path[-1], "key", ""))
        expected = {"embedding": shardings["llm"]["embedding"], "scale": shardings["llm"]["scale"]}
        assert leaf_sharding == expected.get(name, scalar)
        moments += name == "embedding"
    assert moments == 2
