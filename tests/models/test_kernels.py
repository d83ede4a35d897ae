# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Attention by kernels of libraries: equal to the plain one, and chosen by device and dtype.

Splash runs here as its definition says, step by step; that it also compiles is shown by lowering
for a TPU and, where the compilers are installed, by compiling for devices that are not here.
"""

import dataclasses
import functools
import re
import types

import jax
import jax.numpy as jnp
import model_cases as cases
import numpy as np
import pytest
from jax.experimental import topologies

from rlvlm_jax import config as config_lib
from rlvlm_jax import sharding, startup
from rlvlm_jax.data.prompts import collate
from rlvlm_jax.errors import InputError
from rlvlm_jax.models.common.attention import Ids, Keys, attend
from rlvlm_jax.models.common.kernels import PLAIN, Kernel, choose
from rlvlm_jax.models.families import build
from rlvlm_jax.models.qwen2_vl.media import ImageSpec

XLA = Kernel("xla")
SPLASH = Kernel("splash", interpret=True)
E = 16


# ---- attention alone ---------------------------------------------------------------------------


def normal(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def prompts(heads, mask):
    """Prompts that attend to themselves, mask bool[N, P]: (q, ids, runs of keys, causal)."""
    rng = np.random.default_rng(0)
    n, length = mask.shape
    ids = Ids(jnp.asarray(mask, jnp.int32)[:, None], jnp.arange(length))
    k, v = (normal(rng, n, length, heads[1], E) for _ in "kv")
    return normal(rng, n, 1, length, heads[0], E), ids, [Keys(k, v, ids)], True


def responses(heads, prompt_mask, mask):
    """Responses that attend to their prompt [N, P] and to themselves, mask bool[N, G, R]."""
    rng = np.random.default_rng(0)
    n, groups, steps = mask.shape
    length = prompt_mask.shape[1]
    prompt = Ids(jnp.asarray(prompt_mask, jnp.int32)[:, None], jnp.arange(length))
    own = Ids(jnp.asarray(mask, jnp.int32), length + jnp.arange(steps))
    k, v = (normal(rng, n, length, heads[1], E) for _ in "kv")
    own_k, own_v = (normal(rng, n, groups, steps, heads[1], E) for _ in "kv")
    runs = [Keys(k, v, prompt), Keys(own_k, own_v, own)]
    return normal(rng, n, groups, steps, heads[0], E), own, runs, True


def patches(segment):
    """Patches [N, I] of several images or windows, not causal."""
    rng = np.random.default_rng(0)
    segment = np.asarray(segment, np.int32)
    ids = Ids(jnp.asarray(segment)[:, None], jnp.zeros(segment.shape[1], jnp.int32))
    q, k, v = (normal(rng, *segment.shape, 2, E) for _ in "qkv")
    return q[:, None], ids, [Keys(k, v, ids)], False


def stream(segment, branch):
    """Tokens of prompts (branch 0) and of several responses to each in one stream [N, T]."""
    rng = np.random.default_rng(0)
    segment, branch = np.asarray(segment, np.int32), np.asarray(branch, np.int32)
    n, length = segment.shape
    ids = Ids(segment[:, None], jnp.arange(length), branch[:, None])
    q, k, v = (normal(rng, n, length, 2, E) for _ in "qkv")
    return q[:, None], ids, [Keys(k, v, ids)], True


def filled(n, *shape, to):
    """Masks of `n` rows that count from column to[i][0] up to, not with, to[i][1]."""
    columns = np.arange(shape[-1])
    return np.stack([np.broadcast_to((a <= columns) & (columns < b), shape) for a, b in to])


LEFT = filled(2, 20, to=[(7, 20), (0, 20)])
HOLE = LEFT & (np.arange(20) != 12) & (np.arange(20) != 13)
ENDS = np.arange(11) < np.array([[11, 4, 0], [1, 11, 7]])[..., None]  # one response is empty
WINDOWS = [np.repeat([3, 1, 1, 2, 5, 0], 4), np.repeat([1, 2, 1, 2, 0, 0], 4)]
CASES = {
    "left padding": functools.partial(prompts, (2, 2), LEFT),
    "hole": functools.partial(prompts, (4, 2), HOLE),
    "one head": functools.partial(prompts, (1, 1), LEFT),
    "seven on one": functools.partial(prompts, (7, 1), LEFT),
    "longer than a block": functools.partial(prompts, (2, 1), filled(1, 131, to=[(3, 131)])),
    "group": functools.partial(responses, (4, 2), HOLE, ENDS),
    "group on a prompt without tokens": functools.partial(responses, (4, 2), LEFT & False, ENDS),
    "seven on one in a group": functools.partial(responses, (14, 2), LEFT, ENDS),
    "windows": functools.partial(patches, WINDOWS),
    "two images": functools.partial(patches, [np.repeat([1, 2, 0], 8), np.repeat([1, 0, 0], 8)]),
    "stream": functools.partial(
        stream, [np.repeat([1, 2, 0], 8)], [np.repeat([0, 1, 2, 0, 3, 0], 4)]
    ),
    "nothing": functools.partial(patches, np.zeros((2, 24))),
}


def value_and_gradients(case, kernel, **options):
    """(result, gradients with respect to queries, keys and values) of weighted sums."""
    q, ids, runs, causal = case
    pulled = normal(np.random.default_rng(1), *q.shape)

    def loss(q, arrays):
        keys = [Keys(*kv, run.ids) for kv, run in zip(arrays, runs, strict=True)]
        out = attend(q, ids, keys, kernel=kernel, causal=causal, **options)
        return (out * pulled).sum(), out

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, out), gradients = run(q, [(keys.k, keys.v) for keys in runs])
    return out, jax.tree.leaves(gradients)


@functools.cache
def by_plain(name):
    return value_and_gradients(CASES[name](), PLAIN)


def assert_equal_to_plain(name, kernel, **options):
    out, gradients = value_and_gradients(CASES[name](), kernel, **options)
    expected, of_plain = by_plain(name)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert (np.asarray(out == 0).all(-1) == np.asarray(expected == 0).all(-1)).all()
    for ours, theirs in zip(gradients, of_plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_xla_equals_the_plain_attention_in_value_and_gradients(name):
    assert_equal_to_plain(name, XLA)


@pytest.mark.parametrize(
    "name",
    [
        "windows",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("hole", "longer than a block", "seven on one in a group", "nothing")
        ),
    ],
)
def test_splash_equals_the_plain_attention_in_value_and_gradients(name):
    assert_equal_to_plain(name, SPLASH)


@pytest.mark.parametrize("name", ["left padding", "group", "windows"])
def test_the_cases_have_queries_that_see_nothing_and_queries_that_see_something(name):
    empty = np.asarray(by_plain(name)[0] == 0).all(-1)
    assert empty.any()
    assert not empty.all()


def test_blocks_of_queries_change_nothing_by_a_kernel_that_holds_scores():
    assert_equal_to_plain("group", XLA, max_scores=3 * 4 * (20 + 11))


@pytest.mark.parametrize(
    ("axes", "share"),
    [  # 6 sequences and 4 heads on 2 key heads: what of [B, K, h] a device computes
        (None, (6, 2, 2)),
        ((2, 1, 2), (3, 1, 2)),
        ((1, 4, 2), (6, 1, 2)),
        ((2, 1, 4), (3, 2, 2)),
    ],
)
def test_each_device_computes_its_share_where_there_are_whole_ones(axes, share):
    q, ids, runs, _ = CASES["group"]()
    kernel = SPLASH._replace(mesh=axes and sharding.make_mesh(*axes))
    trace = str(jax.make_jaxpr(lambda q: attend(q, ids, runs, kernel=kernel))(q))
    assert ("shard_map" in trace) == bool(axes)
    assert f"f32[{','.join(map(str, share))},128,16]" in trace


@pytest.mark.slow
@pytest.mark.parametrize(("axes", "sequence"), [((2, 1, 2), 1), ((2, 1, 2), 2)])
@pytest.mark.parametrize("name", ["group", "longer than a block"])
def test_devices_together_compute_what_one_does(name, axes, sequence):
    mesh = sharding.make_mesh(*axes, sequence=sequence)
    assert_equal_to_plain(name, SPLASH._replace(mesh=mesh, by_tokens=True))


def test_each_device_attends_for_its_own_tokens():
    q, ids, runs, _ = CASES["longer than a block"]()
    mesh = sharding.make_mesh(1, 1, 1, sequence=2)
    kernel = SPLASH._replace(mesh=mesh, by_tokens=True)
    trace = str(jax.make_jaxpr(lambda q: attend(q, ids, runs, kernel=kernel))(q))
    padded = -(-q.shape[2] // 256) * 256
    assert f",{padded // 2},{q.shape[-1]}]" in trace


@pytest.mark.parametrize(
    ("axes", "sequence", "share"), [(None, 1, 12), ((2, 1, 2), 1, 12), ((1, 1, 2), 2, 6)]
)
def test_cudnn_gets_even_lengths_and_gives_the_same(axes, sequence, share, monkeypatch):
    library, lengths = jax.nn.dot_product_attention, []

    def stand_in(q, k, v, *, mask, implementation):
        assert implementation == "cudnn"
        assert mask.shape == (q.shape[0], 1, q.shape[1], k.shape[1])
        lengths.append((q.shape[1], k.shape[1]))
        return library(q, k, v, mask=mask, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    mesh = axes and sharding.make_mesh(*axes, sequence=sequence)
    kernel = Kernel("cudnn", mesh, by_tokens=True)
    assert_equal_to_plain("group", kernel)
    assert set(lengths) == {(share, 32)}  # of 11 and 20 + 11


# ---- the model ---------------------------------------------------------------------------------


@functools.cache
def model_gradient(kernel, family, remat="none"):
    """(model, jitted function of what runs full sequences).

    It gives ((a sum, what `prefill` gives), the gradient of the sum).
    """
    config = cases.with_vision(cases.tiny_config(family, tied=True), depth=2)
    model = build(config, remat=remat, attention=kernel)

    def loss(params, batch, tokens, mask):
        features = model.encode_images(params, batch)
        hidden = model.forward(params, batch, features, tokens, mask)
        return jnp.where(mask[..., None], hidden, 0).sum(), model.prefill(params, batch, features)

    return model, jax.jit(jax.value_and_grad(loss, has_aux=True))


def of_model(kernel, family, remat="none"):
    model, run = model_gradient(kernel, family, remat)
    batch = cases.make_batch(model.config, [([(6, 10), (2, 2)], 2), ([], 9)])
    tokens, mask = cases.random_responses(batch, 2, 5)
    return run(cases.random_params(model), batch, tokens, mask)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("kernel", [XLA, SPLASH], ids=["xla", "splash"])
def test_the_whole_model_has_the_same_gradient_by_a_kernel(kernel, family):
    (value, prefilled), gradient = of_model(kernel, family, remat="full")
    (expected, by_plain), of_plain = of_model(PLAIN, family)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    pairs = zip(
        *(jax.tree.leaves(tree) for tree in ((prefilled, gradient), (by_plain, of_plain))),
        strict=True,
    )
    for ours, theirs in pairs:
        assert np.abs(ours - theirs).max() <= 1e-5 * max(1, np.abs(theirs).max())


def test_decoding_stays_plain():
    config, traces = cases.tiny_config(), []
    for kernel in (PLAIN, SPLASH):
        model = build(config, attention=kernel)
        params = jax.eval_shape(model.init, jax.random.key(0))
        batch, features = cases.make_batch(config, [([], 5)]), np.zeros((1, 0, config.width))
        _, prefix = jax.eval_shape(model.prefill, params, batch, features)
        blocks = jax.eval_shape(lambda prefix, of=model: of.grow_cache(prefix, (), 3, 4), prefix)
        row = jnp.zeros(3, jnp.int32)
        rotary = jax.eval_shape(model.rotary, row)
        arguments = (row, rotary, prefix, batch.mask, blocks, row[0])
        weights = jax.eval_shape(model.decoder, params)
        traces.append(str(jax.make_jaxpr(model.decode)(weights, *arguments)))
    assert "pallas_call" not in traces[1]
    assert re.sub("0x[0-9a-f]+", "", traces[0]) == re.sub("0x[0-9a-f]+", "", traces[1])


# ---- other devices -------------------------------------------------------------------------------


def full_sequences(mesh, kernel):
    """(jitted gradient, shapes) of all that runs full sequences, with heads as the models have."""
    config = cases.tiny_config(heads=4, kv_heads=2, tied=True, layers=1)
    config = dataclasses.replace(config, width=512, head_size=128, mrope_section=(16, 24, 24))
    config = cases.with_vision(
        config, width=160, out_width=512, depth=2, full_attention_blocks=(1,)
    )
    model = build(config, dtype="bfloat16", remat="full", attention=kernel)

    def loss(params, batch, tokens, mask):
        features = model.encode_images(params, batch)
        last, prefix = model.prefill(params, batch, features)
        hidden = model.forward(params, batch, features, tokens, mask)
        return sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves((hidden, last, prefix)))

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    shardings = sharding.param_shardings(shapes, model.param_rules, mesh)
    rows = sharding.batch_sharding(mesh)
    tokens, mask = (jax.ShapeDtypeStruct((8, 50), t, sharding=rows) for t in (np.int32, bool))
    batch = sharding.batch_shapes(collate([None], 90, 144, 0, ImageSpec(patch_size=4)), 4, mesh)
    return jax.jit(jax.grad(loss)), (
        sharding.with_shardings(shapes, shardings),
        batch,
        tokens,
        mask,
    )


def attention_of(mesh, kernel):
    """(jitted gradient, shapes) of the responses' attention alone: odd lengths, 4 key heads."""

    def loss(q, k, v, own_k, own_v, prompt_mask, mask):
        prompt = Ids(prompt_mask.astype(jnp.int32)[:, None], jnp.arange(k.shape[1]))
        own = Ids(mask.astype(jnp.int32), k.shape[1] + jnp.arange(q.shape[2]))
        runs = [Keys(k, v, prompt), Keys(own_k, own_v, own)]
        return attend(q, own, runs, kernel=kernel).astype(jnp.float32).sum()

    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding.batch_sharding(mesh))

    prompt, own = shape(4, 201, 4, 128), shape(4, 2, 151, 4, 128)
    masks = shape(4, 201, dtype=bool), shape(4, 2, 151, dtype=bool)
    arrays = (shape(4, 2, 151, 8, 128), prompt, prompt, own, own, *masks)
    return jax.jit(jax.grad(loss, range(5))), arrays


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(1, 1, 1), (2, 2, 2)])
def test_everything_lowers_for_a_tpu(axes):
    mesh = sharding.make_mesh(*axes)
    run, shapes = full_sequences(mesh, Kernel("splash", mesh if mesh.size > 1 else None))
    text = run.trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") >= 3 * 3  # forward, queries' and keys' gradient, thrice
    assert ("sdy.manual_computation" in text) == (mesh.size > 1)


def compiled_text(run, shapes):
    return run.lower(*shapes).compile().as_text()


@pytest.mark.slow
def test_splash_compiles_for_tpus(monkeypatch):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed (pip: libtpu)")
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        monkeypatch.setenv(name, value)
    found = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    mesh = sharding.make_mesh(2, 2, 2, devices=found)
    kernel = choose("auto", dtype="bfloat16", head_sizes=(128,), mesh=mesh)
    text = compiled_text(*attention_of(mesh, kernel))
    assert kernel.name == "splash"
    assert text.count('custom_call_target="tpu_custom_call"') == 3


# ---- remat ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_elementwise_keeps_what_kernels_give():
    calls = {}
    for remat in ("none", "elementwise", "full"):
        model, run = model_gradient(SPLASH, "qwen2_5_vl", remat)
        batch = cases.make_batch(model.config, [([(6, 10)], 2), ([], 9)])
        tokens, mask = cases.random_responses(batch, 2, 5)
        params = jax.eval_shape(model.init, jax.random.key(0))
        calls[remat] = str(jax.make_jaxpr(run)(params, batch, tokens, mask)).count("pallas_call[")
    assert 0 < calls["none"] == calls["elementwise"] < calls["full"]


@pytest.mark.slow
def test_each_remat_policy_takes_less_memory_and_gives_the_same_gradient():
    config = cases.tiny_config(tied=True, layers=4)
    held, gradients = [], []
    for remat in ("full", "dots", "elementwise", "none"):
        model = build(config, remat=remat)
        batch = cases.make_batch(config, [([], 60)] * 2)
        tokens, mask = cases.random_responses(batch, 4, 30)
        features = np.zeros((2, 0, config.width), np.float32)

        def loss(params, model=model, inputs=(batch, features, tokens, mask)):
            return (model.forward(params, *inputs) ** 2).sum()

        params = cases.random_params(model)
        run = jax.jit(jax.grad(loss)).lower(params).compile()
        held.append(run.memory_analysis().temp_size_in_bytes)
        gradients.append(run(params))
    assert held[0] < held[1] < held[2] < held[3]
    for gradient in gradients[:3]:
        for ours, theirs in zip(
            jax.tree.leaves(gradient), jax.tree.leaves(gradients[3]), strict=True
        ):
            assert np.abs(ours - theirs).max() <= 1e-5 * max(1, np.abs(theirs).max())


# ---- the choice ----------------------------------------------------------------------------------


def devices(platform):
    """Stands for a mesh of one device."""
    return types.SimpleNamespace(
        devices=np.array([types.SimpleNamespace(platform=platform)]), size=1
    )


def chosen(attention, dtype, platform, head_sizes=(128, 80)):
    return choose(attention, dtype=dtype, head_sizes=head_sizes, mesh=devices(platform)).name


@pytest.mark.parametrize(
    ("dtype", "platform", "expected"),
    [
        ("float32", "cpu", "plain"),
        ("bfloat16", "cpu", "plain"),
        ("bfloat16", "gpu", "cudnn"),
        ("bfloat16", "cuda", "cudnn"),
        ("float32", "gpu", "plain"),
        ("bfloat16", "rocm", "plain"),
        ("bfloat16", "tpu", "splash"),
        ("float32", "tpu", "splash"),
    ],
)
def test_auto_takes_the_kernel_of_the_device(dtype, platform, expected):
    assert chosen("auto", dtype, platform) == expected


@pytest.mark.parametrize("sizes", [(128, 20), (192, 80)])
def test_auto_stays_plain_where_cudnn_cannot_serve_a_head_size(sizes):
    assert chosen("auto", "bfloat16", "gpu", sizes) == "plain"


@pytest.mark.parametrize("name", ["plain", "xla"])
@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_plain_and_xla_go_everywhere(name, platform):
    assert chosen(name, "float32", platform, (20, 300)) == name


@pytest.mark.parametrize(
    ("attention", "dtype", "platform", "sizes", "message"),
    [
        ("cudnn", "float32", "gpu", (128,), "config.model.dtype='bfloat16', not 'float32'"),
        ("cudnn", "bfloat16", "cpu", (128,), "NVIDIA GPUs, not 'cpu' devices"),
        ("cudnn", "bfloat16", "tpu", (128,), "NVIDIA GPUs, not 'tpu' devices"),
        ("cudnn", "bfloat16", "gpu", (128, 20), "multiples of 8 up to 128, not 20"),
        ("cudnn", "bfloat16", "gpu", (136,), "multiples of 8 up to 128, not 136"),
        ("splash", "bfloat16", "gpu", (128,), "needs TPUs, not 'gpu' devices"),
        ("splash", "float32", "cpu", (128,), "needs TPUs, not 'cpu' devices"),
    ],
)
def test_a_kernel_that_cannot_serve_is_refused(attention, dtype, platform, sizes, message):
    with pytest.raises(InputError, match=message) as refused:
        chosen(attention, dtype, platform, sizes)
    assert f"config.model.attention='{attention}'" in str(refused.value)


def test_a_run_is_refused_before_it_reads_anything():
    c = config_lib.default()
    c.model.attention = "splash"
    with pytest.raises(InputError, match="needs TPUs"):
        startup.open_session(c, startup.open_source("bundled"))


def test_only_several_devices_make_the_kernel_divide_its_work():
    for axes, several in (((1, 1, 1), False), ((1, 2, 1), True)):
        mesh = sharding.make_mesh(*axes)
        kernel = choose("xla", dtype="float32", head_sizes=(16,), mesh=mesh)
        assert kernel.mesh is (mesh if several else None)
