# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Supervised training: what the targets are, and that the loss is their mean surprise."""

import functools
import importlib.resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvlm_jax import main, optim, sharding
from rlvlm_jax.data.tokenizer import Tokenizer
from rlvlm_jax.instruments import CompileCounter
from rlvlm_jax.logprobs import logprobs
from rlvlm_jax.sampling.logits import Policy
from rlvlm_jax.sft import encode_solutions, sft_step
from rlvlm_jax.types import TrainState
from rlvlm_jax.update import Setup, init_state
from tests import tiny_model
from tests.run_cases import arguments, read_lines, write_problems
from tests.tiny_model import PAD, STOP

ROWS, LENGTH, EPS = 8, 6, 1e-3
BASE = {"train__microbatch": 2}


class Letters:
    """A tokenizer of letters: a is 1, b is 2."""

    pad_id, end_id = 99, 50

    def encode_response(self, text):
        return [*(ord(letter) - ord("a") + 1 for letter in text), self.end_id]


# ---------------------------------------------------------------- targets


def test_solutions_end_with_the_end_token_and_are_padded_on_the_right():
    tokens, mask = encode_solutions(["ab", "", "abc"], Letters(), 4)
    assert (tokens.dtype, mask.dtype) == (np.int32, bool)
    assert tokens.tolist() == [[1, 2, 50, 99], [50, 99, 99, 99], [1, 2, 3, 50]]
    assert mask.tolist() == [[True, True, True, False], [True] + [False] * 3, [True] * 4]


def test_a_solution_over_the_limit_is_never_cut():
    with pytest.raises(ValueError, match=r"4.*3|3.*4"):
        encode_solutions(["a", "abc"], Letters(), 3)


def test_the_bundled_tokenizer_reads_its_own_targets_back():
    directory = importlib.resources.files("rlvlm_jax") / "assets" / "tiny"
    tokenizer = Tokenizer.load(str(directory))
    solution = "3*4=12\n\\boxed{12}"
    tokens, mask = encode_solutions([solution, "<|image_pad|><|im_end|>"], tokenizer, 64)
    ids = tokens[0][mask[0]].tolist()
    assert ids[-1] == tokenizer.token_id("<|im_end|>")
    assert ids[-1] in tokenizer.stop_ids
    assert tokenizer.decode(ids) == solution
    assert (tokens[~mask] == tokenizer.pad_id).all()
    # what a solution quotes is text: it neither ends the response early nor asks for an image
    special = {*tokenizer.stop_ids, tokenizer.token_id("<|image_pad|>")}
    assert not special & set(tokens[1][mask[1]][:-1].tolist())


# ---------------------------------------------------------------- steps


@pytest.fixture(scope="module")
def tiny():
    return tiny_model.build()


@pytest.fixture(scope="module")
def problems():
    """Prompts with none, one and two images, and targets of very different lengths."""
    rng = np.random.default_rng(7)
    tokens = rng.integers(0, 57, (ROWS, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH) < np.array([[6], [1], [2], [6], [1], [3], [1], [5]])
    tokens[np.arange(ROWS), mask.sum(axis=1) - 1] = STOP
    return tiny_model.batch(ROWS), np.where(mask, tokens, PAD), mask


@pytest.fixture(scope="module")
def build(tiny):
    """Returns a function of settings that gives (compiled step, state, mesh), each made once.

    Adam divides by |gradient| + eps: the eps keeps gradients that are rounding noise, such as
    those of the keys' biases, from becoming whole steps in a random direction.
    """
    made = {}

    def get(mesh=(1, 1, 1), **settings):
        key = (mesh, *sorted(settings.items()))
        if key not in made:
            model, params = tiny
            devices = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), mesh, strict=True))
            fixed = {"mode": "sft", "train__minibatch": ROWS, "train__eps": EPS}
            fixed |= {"train__final_lr": 1.0, "train__warmup": 0.0}
            c = tiny_model.settings(**fixed, **devices, **settings)
            optimizer, _ = optim.make_optimizer(c.train, 10, model.part)
            device_mesh, is_trained = (
                sharding.make_mesh(*mesh),
                optim.make_trained(c.train, model.part),
            )
            shapes = jax.eval_shape(lambda: params)
            shardings = sharding.param_shardings(shapes, model.param_rules, device_mesh)
            trained, _ = optim.split(shapes, is_trained)
            trained_shardings, _ = optim.split(shardings, is_trained)
            scalar = sharding.replicated(device_mesh)
            moments = optim.state_shardings(optimizer, trained, trained_shardings, scalar)
            whole = TrainState(shardings, moments, scalar, scalar)
            state = jax.jit(lambda p: init_state(p, optimizer, is_trained), out_shardings=whole)(
                params
            )
            setup = Setup(model, c, Policy(), optimizer, device_mesh)
            step = jax.jit(functools.partial(sft_step, setup), out_shardings=(whole, scalar))
            made[key] = step, state, device_mesh
        return made[key]

    return get


def run(built, problems):
    step, state, mesh = built
    return step(state, *sharding.put_batch(problems, mesh))


def distance(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


@pytest.fixture(scope="module")
def base(build, problems):
    """One step in micro-batches of two rows."""
    return run(build(**BASE), problems)


@pytest.fixture(scope="module")
def by_hand(tiny, problems):
    """(mean surprise, mean entropy, its gradient) over the whole batch at once."""
    model, params = tiny
    batch, tokens, mask = problems
    assert mask.sum() == 25

    def surprise(language):
        whole = {"vision": params["vision"], "language": language}
        arrays = (whole, batch, None, tokens, mask, mask)
        lps, entropies, _ = logprobs(model, Policy(), 64, *arrays)
        return -lps.sum() / 25, entropies.sum() / 25

    gradient = jax.jit(jax.value_and_grad(surprise, has_aux=True))
    (loss, entropy), grads = gradient(params["language"])
    return float(loss), float(entropy), jax.tree.map(np.asarray, grads)


def test_the_loss_is_the_mean_surprise_of_all_targets(by_hand, base):
    """Targets are of one to six tokens, so a mean over the micro-batches' means would differ."""
    loss, entropy, grads = by_hand
    state, stats = base
    norm = np.sqrt(sum(np.square(g.astype(np.float64)).sum() for g in jax.tree.leaves(grads)))
    assert loss > 1.0
    assert float(stats["update/loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(stats["update/entropy"]) == pytest.approx(entropy, rel=1e-5)
    assert float(stats["update/grad_norm"]) == pytest.approx(norm, rel=1e-5)
    assert float(stats["update/skipped"]) == 0
    assert (int(state.step), int(state.bad_steps)) == (1, 0)


def test_parameters_follow_the_gradient_of_the_mean_surprise(tiny, by_hand, base):
    """The first step of Adam is lr * g / (|g| + eps), g clipped to norm 1; lr is 1e-3."""
    grads = by_hand[2]
    norm = np.sqrt(sum(np.square(g.astype(np.float64)).sum() for g in jax.tree.leaves(grads)))
    assert norm > 1
    expected = jax.tree.map(
        lambda p, g: np.asarray(p) - 1e-3 * (g / norm) / (np.abs(g / norm) + EPS),
        tiny[1]["language"],
        grads,
    )
    assert distance(tiny[1]["language"], expected) > 5e-4
    assert distance(base[0].params["language"], expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("micro", [1, 0])
def test_micro_batches_change_nothing(build, problems, base, micro):
    state, stats = run(build(train__microbatch=micro), problems)
    assert distance(state.params, base[0].params) < 1e-5
    assert stats.keys() == base[1].keys()
    for name, value in base[1].items():
        assert float(stats[name]) == pytest.approx(float(value), abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 2, 1), (1, 4, 2)])
def test_devices_change_nothing(build, problems, base, mesh):
    state, stats = run(build(mesh), problems)
    assert len(jax.tree.leaves(state.params)[0].sharding.device_set) == np.prod(mesh)
    assert distance(state.params, base[0].params) < 1e-5
    assert float(stats["update/loss"]) == pytest.approx(float(base[1]["update/loss"]), abs=1e-5)


def test_what_stands_outside_the_mask_changes_nothing(build, problems, base):
    batch, tokens, mask = problems
    state, stats = run(build(**BASE), (batch, np.where(mask, tokens, 5), mask))
    assert float(stats["update/loss"]) == float(base[1]["update/loss"])
    assert distance(state.params, base[0].params) == 0


def test_frozen_parts_keep_their_bytes(tiny, base):
    before, after = tiny[1], base[0].params
    assert distance(before["vision"], after["vision"]) == 0
    assert distance(before["language"], after["language"]) > 5e-4


@pytest.mark.slow
def test_the_gradient_reaches_the_vision_tower_where_that_is_trained(tiny, build, problems):
    state, _ = run(build(train__parts=("vit",)), problems)
    before, after = tiny[1], state.params
    assert distance(before["language"], after["language"]) == 0
    assert distance(before["vision"]["merger"], after["vision"]["merger"]) == 0
    assert distance(before["vision"]["blocks"], after["vision"]["blocks"]) > 5e-4


def test_a_batch_is_learnt_by_heart_without_compiling_again(build, problems, base):
    step, state, mesh = build(**BASE)
    arrays = sharding.put_batch(problems, mesh)
    losses, counter = [], CompileCounter()
    for _ in range(30):
        state, stats = step(state, *arrays)
        losses.append(float(stats["update/loss"]))
    assert (np.diff(losses[:6]) < 0).all()
    assert losses[-1] < 0.5 * losses[0]
    assert int(state.step) == 30
    assert counter.count == 0


def test_a_non_finite_loss_moves_nothing_and_is_counted(build, problems):
    step, state, mesh = build(**BASE)
    broken = jax.tree.map(lambda x: x, state.params)
    broken["language"]["norm"]["scale"] = jnp.full_like(broken["language"]["norm"]["scale"], np.nan)
    after, stats = step(state._replace(params=broken), *sharding.put_batch(problems, mesh))
    assert float(stats["update/skipped"]) == 1
    assert np.isnan(stats["update/loss"])
    assert (int(after.step), int(after.bad_steps)) == (0, 1)
    embedding = after.params["language"]["embed"]["embedding"]
    np.testing.assert_array_equal(embedding, state.params["language"]["embed"]["embedding"])


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_compiles_nothing_after_its_first_step(tmp_path, devices):
    data = write_problems(tmp_path / "data")
    keys = {"mode": "sft", "total_steps": 3, "eval_every": 0, "checkpoint_every": 0}
    keys |= {"data__buckets": 1, "mesh__fsdp": devices, "rollout__max_tokens": 16}
    assert main.main(arguments(tmp_path / "run", data, **keys)) == 0
    counts = [
        line["compile/count"] + line.get("compile/from_disk", 0)
        for line in read_lines(tmp_path / "run" / "metrics.jsonl")
    ]
    assert len(counts) == 3
    assert counts[0] == counts[1] == counts[2]
