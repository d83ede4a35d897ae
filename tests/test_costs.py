# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the programs of a step cost, by counts that no clock enters: products, arrays, bytes.

FLOPs are those of the matrix products of a traced program, each scan's body times its length. (XLA
takes the body of any loop once.) A while loop's body is counted once, and so is one step of it.
Bytes and temporary memory are XLA's, of a compiled program; nothing is run but the last test.
Bounds come from `models.common.costs` or are written out.
"""

import functools
import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlvlm_jax import optim, sharding, startup, trajectory, update
from rlvlm_jax.compiled_steps import Steps, compile_steps, make_steps
from rlvlm_jax.config import trains_vision
from rlvlm_jax.models import families
from rlvlm_jax.models.common import cache as kv_cache
from rlvlm_jax.models.common import costs
from rlvlm_jax.models.qwen2_vl import config as qwen2_vl_config
from rlvlm_jax.types import Trajectory
from rlvlm_jax.update import Minibatch, Setup, init_state, train_step
from tests import tiny_model

V, D, LAYERS, KV_HEADS, HEAD = 1013, 128, 2, 2, 32  # V is prime: no other axis is as long
N, G, P, R, PATCHES, CHUNK = 2, 8, 256, 16, 64, 4


@pytest.fixture(scope="module", autouse=True)
def _short_chunks():
    """Logits of CHUNK tokens a row, so that R tokens take several chunks."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (trajectory, update):
            patch.setattr(module, "CHUNK", CHUNK)
        yield


def build(vocabulary=V):
    """A model wide enough that products with weights outweigh norms and softmax."""
    tower = {**tiny_model.hf_config()["vision_config"], "out_hidden_size": D}
    changes = {
        "vocab_size": vocabulary,
        "hidden_size": D,
        "intermediate_size": 2 * D,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": D // HEAD,
        "num_key_value_heads": KV_HEADS,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "vision_config": tower,
    }
    return families.build(qwen2_vl_config.from_hf(tiny_model.hf_config(**changes)))


class Traced:
    """A jitted function that `compile_steps` can call, and that is traced where asked for."""

    def __init__(self, jitted, arguments=()):
        self.jitted, self.arguments = jitted, arguments

    def lower(self, *arguments):
        return Traced(self.jitted, arguments)

    def compile(self):
        return self

    @functools.cached_property
    def traced(self):
        return self.jitted.trace(*self.arguments)

    @property
    def out_info(self):
        return self.traced.out_info

    @property
    def jaxpr(self):
        return self.traced.jaxpr


@functools.cache
def programs(vocabulary=V, prompt=P, **settings):
    """`Steps` of traced programs, made by `make_steps`, and the state's shapes."""
    keys = {
        "rollout__prompts": N,
        "rollout__samples": G,
        "rollout__max_tokens": R,
        "rollout__top_p": 0.9,
        "rollout__temperature": 0.8,
        "train__minibatch": N * G,
        "algorithm__old_logprobs": "trainer",  # or the passes would be empty
        **settings,
    }
    config, model = tiny_model.settings(**keys), build(vocabulary)
    mesh = sharding.make_mesh(1, 1, 1)
    session = SimpleNamespace(
        config=config,
        model=model,
        mesh=mesh,
        banned=tiny_model.BANNED,
        tokenizer=SimpleNamespace(stop_ids=(tiny_model.STOP,), pad_id=tiny_model.PAD),
        media=tiny_model.SPEC,
        features_frozen=not trains_vision(config),
    )
    session.batch_shapes = functools.partial(startup.Session.batch_shapes, session)
    optimizer, _ = optim.make_optimizer(config.train, 10, model.part)
    is_trained = optim.make_trained(config.train, model.part)
    params = startup.with_mesh_shardings(jax.eval_shape(model.init, jax.random.key(0)), model, mesh)
    state = jax.eval_shape(lambda p: init_state(p, optimizer, is_trained), params)
    shardings = jax.tree.map(lambda _: sharding.replicated(mesh), state)
    state = sharding.with_shardings(state, shardings)
    steps = make_steps(session, optimizer, state)
    steps = Steps(*(Traced(getattr(steps, name)) for name in steps.__dataclass_fields__))
    return compile_steps(steps, session, state, None, (prompt, PATCHES)), state


# ---- counting --------------------------------------------------------------------------------


def equations(jaxpr, times=1):
    """Yields (equation, how often it runs) of a traced program; what a while loop holds: once."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation, times
        length = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                    yield from equations(inner, times * length)


def products(jaxpr):
    """FLOPs of the matrix products of a traced program, two a multiplication."""
    total = 0
    for equation, times in equations(jaxpr):
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            terms = math.prod(left[axis] for axis in contracted)
            total += 2 * times * math.prod(equation.outvars[0].aval.shape) * terms
    return total


def loops(jaxpr):
    """Bodies of the while loops of a traced program that hold products, in their order."""
    found = [e.params["body_jaxpr"] for e, _ in equations(jaxpr) if e.primitive.name == "while"]
    return [body for body in found if products(body)]


def rows_of_logits(jaxpr):
    """The most rows of V that an array of a traced program has, the embedding's left out."""
    shapes = [v.aval.shape for e, _ in equations(jaxpr) for v in e.outvars]
    return max(math.prod(s) // V for s in shapes if V in s and D not in s)


def size_of(tree):
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


# ---- decoding --------------------------------------------------------------------------------


@functools.cache
def bytes_of_a_token(samples, length, slots):
    """(Bytes that a compiled step of decoding accesses, those of the weights, of the cache)."""
    model = build()
    weights = jax.eval_shape(lambda key: model.decoder(model.init(key)), jax.random.key(0))
    keys = shape(N, KV_HEADS, length, HEAD)
    prefix = (jax.eval_shape(lambda k, v: kv_cache.stored(k, v, "model"), keys, keys),) * LAYERS
    cache = jax.eval_shape(lambda prefix: model.grow_cache(prefix, (), samples, slots), prefix)

    def step(weights, tokens, positions, prefix, mask, cache, number):
        rotary = model.rotary(positions)
        hidden, cache = model.decode(weights, tokens, rotary, prefix, mask, cache, number)
        return model.logits(weights, hidden), cache

    row, number = shape(N * samples, dtype=np.int32), shape(dtype=np.int32)
    arguments = (weights, row, row, prefix, shape(N, length, dtype=bool), cache, number)
    compiled = jax.jit(step, donate_argnums=5).lower(*arguments).compile()
    accessed = compiled.cost_analysis()["bytes accessed"]
    return accessed, size_of(weights), size_of((prefix, cache))


def shape(*sizes, dtype=np.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def test_a_token_reads_the_weights_and_the_cache_and_little_else():
    accessed, weights, cache = bytes_of_a_token(4, 64, 64)
    factor = accessed / (weights + cache)
    assert factor < 1.7, f"a token moves {factor:.2f} times the bytes of weights and cache"


@pytest.mark.slow
def test_samples_read_the_prompt_together():
    """Bytes grow with G * P by the scores alone, not by another copy of the keys."""
    (a, *_), (b, *_), (c, *_), (d, *_) = (
        bytes_of_a_token(samples, length, 64) for samples in (4, 12) for length in (64, 192)
    )
    grown = (d - c) - (b - a)
    copies = 4 * LAYERS * N * 8 * 128 * 2 * KV_HEADS * HEAD
    assert grown < copies, f"{grown:.0f} bytes more for 8 more samples of 128 more prompt tokens"


@pytest.mark.slow
def test_a_token_costs_its_products():
    steps, _ = programs()
    (body,) = loops(steps.sample.jaxpr)  # a chunk of R tokens
    factor = products(body) / costs.decode(build().config, N, G, P, R, 4).executed
    assert factor < 1.15, f"a token costs {factor:.3f} times the products that it needs"


@pytest.mark.slow
def test_a_token_does_not_cost_more_for_room_that_is_not_used_yet():
    (short,), (first, *others) = (
        loops(programs(rollout__max_tokens=most)[0].sample.jaxpr) for most in (128, 512)
    )
    assert len(others) == 2
    assert products(first) == products(short), "tokens of the first block pay for later blocks"


# ---- sampling --------------------------------------------------------------------------------


def test_a_draw_neither_sorts_the_vocabulary_nor_draws_a_number_a_token_of_it():
    steps, _ = programs()
    bits = 0
    for equation, _ in equations(steps.sample.jaxpr):
        name = equation.primitive.name
        if name in ("sort", "top_k", "approx_top_k"):
            sizes = equation.invars[0].aval.shape
            assert max(sizes) < V, f"{name} over {sizes}: the vocabulary is sorted for each token"
        if name == "random_bits":
            bits += math.prod(equation.outvars[0].aval.shape)
    assert 0 < bits <= 2 * N * G, f"{bits} random numbers for a token of {N * G} rows"


def test_sampling_never_holds_the_logits_of_more_than_one_token_a_row():
    steps, _ = programs()
    rows = rows_of_logits(steps.sample.jaxpr)
    assert rows <= N * G, f"{rows} rows of logits are held, for a batch of {N * G}"


@pytest.mark.slow
def test_sampling_needs_no_more_memory_than_weights_cache_and_a_few_rows_of_logits():
    vocabulary = 16384
    steps, state = programs(vocabulary)
    compiled = steps.sample.traced.lower().compile()
    assert not re.search(r"\bsort\(", compiled.as_text()), "XLA makes a sort of it"
    layers = size_of(state.params["language"]["layers"])  # laid out once more for decoding
    cache = 2 * LAYERS * KV_HEADS * HEAD * 4 * (N * P + N * G * R)
    most = layers + 3 * cache + 4 * (N * G * vocabulary * 4)
    used = compiled.memory_analysis().temp_size_in_bytes
    assert used < most, f"sampling needs {used / 2**20:.1f} MiB, not {most / 2**20:.1f}"


# ---- images ----------------------------------------------------------------------------------


def has_tower(traced):
    stacks = (str(e.source_info.name_stack) for e, _ in equations(traced.jaxpr))
    return any("vision" in stack for stack in stacks)


def test_a_frozen_tower_runs_once():
    steps, _ = programs()
    assert has_tower(steps.encode)
    for name in ("sample", "passes", "update"):
        assert not has_tower(getattr(steps, name)), f"{name} runs the frozen tower again"


@pytest.mark.slow
@pytest.mark.parametrize("part", ["vit", "connector"])
def test_a_trained_tower_runs_wherever_its_features_are_used(part):
    steps, _ = programs(train__parts=(part, "llm", "head"))
    assert steps.encode is None
    for name in ("sample", "passes", "update"):
        assert has_tower(getattr(steps, name)), f"{name} uses features that are out of date"


# ---- log-probs and update --------------------------------------------------------------------


def counted_gradient(copies):
    config = build().config
    passed = costs.forward(config, N, G, P, R, 4, copies=copies)
    return costs.gradient(config, passed, N * G * R, 1, False, 4).executed


@pytest.mark.slow
def test_samples_share_the_gradient_of_their_prompt():
    shared, separate = (
        products(programs(train__microbatch=rows)[0].update.jaxpr) for rows in (N * G, 1)
    )
    share, expected = shared / separate, counted_gradient(1) / counted_gradient(G)
    assert expected < 0.25
    assert share < 1.05 * expected, (
        f"sharing leaves {share:.3f} of the products, not {expected:.3f}"
    )
    factor = shared / counted_gradient(1)
    assert factor < 1.15, f"the update costs {factor:.3f} times the products that it needs"


def test_passes_share_their_prompt():
    steps, _ = programs()
    counted = costs.forward(build().config, N, G, P, R, 4).executed
    factor = products(steps.passes.jaxpr) / counted
    assert factor < 1.15, f"a pass costs {factor:.3f} times the products that it needs"


@pytest.mark.parametrize("name", ["passes", "update"])
def test_logits_exist_for_a_chunk_at_a_time(name):
    steps, _ = programs()
    rows = rows_of_logits(getattr(steps, name).jaxpr)
    assert rows <= N * G * CHUNK, f"{name} holds {rows} rows of logits, not {N * G * CHUNK}"


@pytest.mark.slow
def test_the_update_gives_its_state_back_in_place_and_holds_no_whole_logits():
    vocabulary, length = 16384, 128
    steps, state = programs(vocabulary, 32, rollout__max_tokens=length)
    memory = steps.update.traced.lower().compile().memory_analysis()
    held = size_of(state)
    assert memory.alias_size_in_bytes >= held, (
        f"of {held} bytes of state {memory.alias_size_in_bytes} are updated in place"
    )
    whole = N * G * length * vocabulary * 4
    used = memory.temp_size_in_bytes
    assert used < whole, f"the update needs {used / 2**20:.1f} MiB; logits: {whole / 2**20:.1f}"


def test_only_the_micro_batches_that_are_in_use_run():
    ran, mask = [], np.ones((1, 1), bool)

    def loss(setup, trajectory, counts, frozen, trained, piece):
        jax.debug.callback(lambda piece: ran.append(int(piece[0])), piece)
        return trained["w"].sum() * piece[0], {}

    model = SimpleNamespace(part=lambda path: "llm")
    setup = Setup(model, tiny_model.settings(), None, optax.sgd(0.1), None)
    trajectory = Trajectory(*3 * [None], *3 * [mask], *4 * [None])
    state = init_state({"w": jnp.ones(3)}, setup.optimizer, lambda path: True)
    step = jax.jit(functools.partial(train_step, setup, loss))
    pieces = (jnp.arange(5.0), jnp.arange(5.0))
    jax.block_until_ready(step((state, trajectory), Minibatch(np.zeros(1, int), pieces, 2)))
    jax.effects_barrier()
    assert sorted(ran) == [0, 1], f"of five micro-batches, {sorted(ran)} ran where two are in use"
