# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Weights go in and out bit for bit; what is missing, left over or damaged is named."""

import dataclasses
import json
import math
import re
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from rlvlm_jax.errors import InputError
from rlvlm_jax.models import huggingface
from rlvlm_jax.models.families import build
from rlvlm_jax.models.qwen2_vl.config import QwenVLConfig, VisionConfig, to_hf
from rlvlm_jax.models.qwen2_vl.published import PUBLISHED

FAMILIES = ("qwen2_vl", "qwen2_5_vl")
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def tiny(family="qwen2_5_vl", tied=False, **changes):
    windowed = family == "qwen2_5_vl"
    tower = VisionConfig(
        family=family,
        depth=2,
        width=8,
        heads=2,
        mlp_width=16,
        out_width=12,
        patch_size=3,
        window_size=12 if windowed else 0,
        full_attention_blocks=(1,) if windowed else (0, 1),
        act="silu" if windowed else "quick_gelu",
    )
    sizes = {
        "vocab_size": 20,
        "width": 12,
        "layers": 3,
        "heads": 3,
        "kv_heads": 1,
        "head_size": 4,
        "mlp_width": 10,
    }
    return QwenVLConfig(
        family=family,
        **sizes | changes,
        rope_theta=1e4,
        mrope_section=(1, 1, 0),
        norm_eps=1e-6,
        tie_embeddings=tied,
        image_token_id=10,
        video_token_id=11,
        vision_start_token_id=12,
        vision_end_token_id=13,
        vision_token_id=None,
        vision=tower,
    )


def random_tensors(config, dtype=ml_dtypes.bfloat16, seed=0):
    """{first-generation name: random array in the shape of the Hugging Face tensor}."""
    random = np.random.default_rng(seed)
    return {
        name: random.standard_normal(rule.shape).astype(dtype)
        for rule in huggingface.hf_table(config)
        for name in rule.names()
    }


def second_generation(tensors):
    def rename(name):
        if name.startswith("visual."):
            return "model." + name
        return re.sub("^model[.]", "model.language_model.", name)

    return {rename(name): tensor for name, tensor in tensors.items()}


def write(directory, tensors, config, shards=1, **more):
    """Makes a Hugging Face directory by the library's own writer."""
    directory.mkdir(exist_ok=True)
    content = to_hf(config) | {"torch_dtype": "bfloat16"} | more
    (directory / "config.json").write_text(json.dumps(content))
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        return directory
    names = sorted(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number::shards]  # layers of one parameter end up in different files
        save_file({name: tensors[name] for name in part}, directory / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def flat(params):
    return {
        "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def same_bits(one, other):
    return (
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    )


def assert_same_tensors(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not same_bits(one[name], other[name])] == []


def load_all(directory):
    """Every tensor of a directory, through its index where there is one."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return load_file(directory / "model.safetensors")
    tensors = {}
    for name, file in json.loads(index.read_text())["weight_map"].items():
        with safe_open(directory / file, "numpy") as shard:
            tensors[name] = shard.get_tensor(name)
    return tensors


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_table_fills_every_parameter_of_the_model(name):
    config = PUBLISHED[name]
    params = flat(jax.eval_shape(build(config).init, jax.random.key(0)))
    assert {path: leaf.shape for path, leaf in params.items()} == huggingface.param_shapes(config)


@pytest.mark.parametrize(
    ("name", "count"),
    [  # the sizes of the files on the hub, halved
        ("qwen2-vl-2b", 2_208_985_600),
        ("qwen2-vl-7b", 8_291_375_616),
        ("qwen2.5-vl-3b", 3_754_622_976),
        ("qwen2.5-vl-7b", 8_292_166_656),
    ],
)
def test_published_sizes(name, count):
    config = PUBLISHED[name]
    assert sum(map(math.prod, huggingface.param_shapes(config).values())) == count
    tensors = [n for rule in huggingface.hf_table(config) for n in rule.names()]
    assert len(tensors) == len(set(tensors))


def test_where_the_numbers_go(tmp_path):
    tensors = random_tensors(tiny(), np.float32)
    patch = tensors["visual.patch_embed.proj.weight"]
    write(tmp_path, tensors, tiny())
    params, dtypes = huggingface.load_hf(tmp_path, tiny())
    leaves = flat(params)
    assert leaves["language/embed/embedding"][7, 5] == tensors["model.embed_tokens.weight"][7, 5]
    assert leaves["language/layers/attn/q/weight"].shape == (3, 12, 12)
    assert leaves["language/layers/attn/q/weight"][1, 11, 2] == tensors[Q_PROJ][11, 2]
    k_bias = tensors["model.layers.2.self_attn.k_proj.bias"]
    assert leaves["language/layers/attn/k/bias"][2, 3] == k_bias[3]
    assert leaves["language/head/weight"][19, 4] == tensors["lm_head.weight"][19, 4]
    # Patches are flattened channel, frame, row, column: sizes 3, 2, 3, 3 here.
    place = ((2 * 2 + 1) * 3 + 0) * 3 + 2
    assert leaves["vision/patch_embed/weight"].shape == (8, 54)
    assert leaves["vision/patch_embed/weight"][6, place] == patch[6, 2, 1, 0, 2]
    assert {leaf.dtype for leaf in leaves.values()} == {np.dtype(np.float32)}
    assert set(dtypes.values()) == {"float32"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shards", [1, 4])
def test_both_generations_of_names_give_the_same(tmp_path, family, tied, shards):
    config = tiny(family, tied)
    tensors = random_tensors(config)
    first = write(tmp_path / "first", tensors, config)
    second = write(tmp_path / "second", second_generation(tensors), config, shards)
    (one, one_dtypes), (other, other_dtypes) = (
        huggingface.load_hf(d, config) for d in (first, second)
    )
    assert_same_tensors(flat(one), flat(other))
    assert one_dtypes == other_dtypes == dict.fromkeys(tensors, "bfloat16")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 1500, 1])
def test_what_was_read_is_written_bit_for_bit(tmp_path, family, shard_bytes):
    config = tiny(family)
    tensors = random_tensors(config)
    types = (np.float32, np.float16, ml_dtypes.bfloat16)
    for i, name in enumerate(sorted(tensors)):  # a directory of mixed types
        tensors[name] = tensors[name].astype(types[i % 3])
    source = write(tmp_path / "in", tensors, config, shards=2)
    (source / "merges.txt").write_bytes(b"a b\r\nc d\n")
    params, dtypes = huggingface.load_hf(source, config)
    files = huggingface.read_side_files(source)
    target = tmp_path / "made" / "out"
    huggingface.save_hf(params, target, files=files, dtypes=dtypes, max_shard_bytes=shard_bytes)

    assert_same_tensors(load_all(target), tensors)
    assert (target / "merges.txt").read_bytes() == b"a b\r\nc d\n"
    assert (target / "config.json").read_bytes() == (source / "config.json").read_bytes()
    shards = sorted(target.glob("*.safetensors"))
    for shard in shards:
        with safe_open(shard, "numpy") as file:
            assert file.metadata() == {"format": "pt"}
        assert len(load_file(shard)) == 1 or shard.stat().st_size < shard_bytes + 10_000
    if shard_bytes == 5_000_000_000:
        assert [shard.name for shard in shards] == ["model.safetensors"]
    else:
        index = json.loads((target / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
        assert {shard.name for shard in shards} == set(index["weight_map"].values())
        assert len(shards) == len(tensors) if shard_bytes == 1 else 2 < len(shards) < len(tensors)


def test_shards_are_filled_up_to_their_limit():
    names = [f"model.layers.{i}.mlp.gate_proj.weight" for i in range(3)]
    rule = next(
        r for r in huggingface.hf_table(tiny()) if r.path.endswith("layers/mlp/gate/weight")
    )
    planned = [huggingface._Planned(name, rule, i, "float32") for i, name in enumerate(names)]
    assert planned[0].nbytes == 10 * 12 * 4
    sizes = [[t.nbytes for t in shard] for shard in huggingface._split(planned, 2 * 480)]
    assert sizes == [[480, 480], [480]]
    assert [len(shard) for shard in huggingface._split(planned, 2 * 480 - 1)] == [1, 1, 1]


def test_each_parameter_is_placed_once_when_complete(tmp_path):
    config = tiny()
    write(tmp_path, random_tensors(config), config, shards=3)
    expected, _ = huggingface.load_hf(tmp_path, config)
    placed = []

    def place(path, shape, read):
        placed.append(path)
        whole = flat(expected)[path]
        assert shape == whole.shape
        assert same_bits(read(tuple(map(slice, shape))), whole)
        return path

    params, _ = huggingface.load_hf(tmp_path, config, place=place)
    assert flat(params) == {path: path for path in flat(expected)}
    assert len(placed) == len(set(placed))


def test_parts_of_a_parameter_are_read_alone(tmp_path):
    config = tiny()
    write(tmp_path, random_tensors(config), config, shards=3)
    expected, _ = huggingface.load_hf(tmp_path, config)

    def place(path, shape, read):
        whole = flat(expected)[path]
        for axis, size in enumerate(shape):
            for half in (slice(0, size // 2), slice(size // 2, size)):
                if half.start == half.stop:
                    continue
                index = [slice(None)] * len(shape)
                index[axis] = half
                assert same_bits(read(tuple(index)), np.ascontiguousarray(whole[tuple(index)]))
        assert same_bits(read((slice(None),) * len(shape)), whole)

    huggingface.load_hf(tmp_path, config, place=place)


def test_a_part_takes_no_more_memory_than_it_has(tmp_path):
    config = tiny(vocab_size=4000, width=192, heads=48)
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, out_width=192))
    source = write(tmp_path, random_tensors(config, np.float32), config)
    huggingface.load_hf(source, config)  # imports and caches
    whole = 4 * 4000 * 192

    def place(path, shape, read):
        if path == "language/embed/embedding":
            read((slice(0, 400), slice(0, 192)))

    assert peak_memory(lambda: huggingface.load_hf(source, config, place=place)) < whole / 4


def peak_memory(function):
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_of_reading_and_writing_is_bounded(tmp_path):
    config = tiny(vocab_size=2000, width=192, heads=48, mlp_width=500, layers=6)
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, out_width=192))
    shapes = huggingface.param_shapes(config)
    model = 4 * sum(map(math.prod, shapes.values()))
    parameter = 4 * max(map(math.prod, shapes.values()))
    tensor = 4 * max(math.prod(rule.shape) for rule in huggingface.hf_table(config))
    assert tensor < parameter < model / 4  # else the bounds below would say nothing
    source = write(tmp_path / "in", random_tensors(config, np.float32), config, shards=2)
    slack = 400_000  # headers, names, JSON
    huggingface.load_hf(source, config)  # imports and caches

    assert peak_memory(lambda: huggingface.load_hf(source, config)) < model + tensor + slack
    streamed = peak_memory(
        lambda: huggingface.load_hf(
            source, config, place=lambda path, shape, read: read(tuple(map(slice, shape))).shape
        )
    )
    assert streamed < parameter + tensor + slack
    params, dtypes = huggingface.load_hf(source, config)
    files = huggingface.read_side_files(source)
    written = peak_memory(
        lambda: huggingface.save_hf(params, tmp_path / "out", files=files, dtypes=dtypes)
    )
    assert written < 4 * tensor + slack


def test_head_equal_to_a_tied_embedding_is_dropped(tmp_path):
    config = tiny(tied=True)
    tensors = random_tensors(config)
    with_head = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
    write(tmp_path, with_head, config)
    params, dtypes = huggingface.load_hf(tmp_path, config)
    assert "head" not in params["language"]
    assert "lm_head.weight" not in dtypes
    with_head["lm_head.weight"][3, 1] += 1
    write(tmp_path, with_head, config)
    with pytest.raises(InputError, match="tie_word_embeddings, but lm_head.weight in .* differs"):
        huggingface.load_hf(tmp_path, config)


def test_rotary_frequencies_of_old_files_are_no_parameters(tmp_path):
    config = tiny()
    derived = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32),
        "visual.rotary_pos_emb.inv_freq": np.ones(2, np.float32),
    }
    write(tmp_path, random_tensors(config) | derived, config)
    _, dtypes = huggingface.load_hf(tmp_path, config)
    assert not derived.keys() & dtypes.keys()


def damaged(change):
    """Reads a directory whose tensors were changed by `change(tensors)`; gives the message."""

    def run(tmp_path):
        tensors = random_tensors(tiny())
        change(tensors)
        huggingface.load_hf(write(tmp_path, tensors, tiny()), tiny())

    return run


def sharded(change):
    def run(tmp_path):
        change(write(tmp_path, random_tensors(tiny()), tiny(), shards=3))
        huggingface.load_hf(tmp_path, tiny())

    return run


def edit_index(change):
    def edit(directory):
        path = directory / "model.safetensors.index.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return sharded(edit)


def keep_bytes(start, stop):
    def edit(directory):
        path = directory / "model-00002-of-00003.safetensors"
        path.write_bytes(path.read_bytes()[start:stop])

    return sharded(edit)


def set_tensor(name, value):
    return damaged(lambda tensors: tensors.update({name: value}))


def drop_layer(tensors):
    for name in [name for name in tensors if ".layers.1." in name]:
        del tensors[name]


def put_nan(tensors):
    tensors["visual.blocks.1.attn.proj.weight"][0, 0] = np.nan


def put_infinity(tensors):
    tensors["model.norm.weight"][-1] = -np.inf


def with_pickle(directory):
    for path in directory.glob("*.safetensors*"):
        path.unlink()
    (directory / "pytorch_model.bin").write_bytes(b"")


def both_kinds(directory):
    (directory / "model.safetensors").write_bytes(b"")


NARROW = np.zeros((12, 11), np.float32)
BAD_WEIGHTS = {
    "missing": (damaged(lambda t: t.pop(Q_PROJ)), f"missing: {Q_PROJ}"),
    "layer missing": (drop_layer, r"missing: model.layers.1.\S+, \S+, \S+ and 9 more"),
    "unexpected": (set_tensor("model.layers.3.x", NARROW), "unexpected: model.layers.3.x"),
    "misshapen": (set_tensor(Q_PROJ, NARROW), r"has shape \[12, 11\], expected \[12, 12\]"),
    "integers": (set_tensor(Q_PROJ, np.zeros((12, 12), np.int8)), r"q_proj.weight \(I8\); quanti"),
    "float64": (set_tensor(Q_PROJ, np.zeros((12, 12))), r"q_proj.weight \(F64\)"),
    "nan": (put_nan, "visual.blocks.1.attn.proj.weight in .* not finite"),
    "infinite": (put_infinity, "model.norm.weight in .* has values that are not finite"),
    "twice": (
        set_tensor("model.visual.blocks.0.norm1.weight", np.zeros(8, np.float32)),
        "holds the tensor visual.blocks.0.norm1.weight twice",
    ),
    "cut off": (keep_bytes(0, -1), "model-00002-of-00003.safetensors is truncated or damaged"),
    "empty file": (keep_bytes(0, 0), "model-00002-of-00003.safetensors is truncated or damaged"),
    "no header": (keep_bytes(9, None), "model-00002-of-00003.safetensors is truncated or damag"),
    "no file": (
        sharded(lambda d: (d / "model-00003-of-00003.safetensors").unlink()),
        "names files that do not exist: model-00003-of-00003.safetensors",
    ),
    "not in the file": (
        edit_index(lambda c: c["weight_map"].update(more="model-00001-of-00003.safetensors")),
        "index.json disagree: more not in the file",
    ),
    "not in the index": (
        edit_index(lambda c: c["weight_map"].pop(Q_PROJ)),
        f"disagree: {Q_PROJ} not in the index",
    ),
    "elsewhere": (
        edit_index(lambda c: c["weight_map"].update({Q_PROJ: "../model.safetensors"})),
        "expected a file next to it",
    ),
    "no map": (edit_index(dict.clear), "has no weight_map"),
    "index no JSON": (
        sharded(lambda d: (d / "model.safetensors.index.json").write_bytes(b"\xff{")),
        "index.json is not valid JSON",
    ),
    "both": (sharded(both_kinds), "holds both model.safetensors and model.safetensors.index.json"),
    "pickle": (sharded(with_pickle), r"holds neither .* \(found pytorch_model.bin: save it again"),
    "nothing": (lambda tmp_path: huggingface.load_hf(tmp_path, tiny()), "holds neither"),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_names_what_does_not_fit(tmp_path, case):
    run, message = BAD_WEIGHTS[case]
    if run in (drop_layer, put_nan, put_infinity):
        run = damaged(run)
    with pytest.raises(InputError, match=message) as refusal:
        run(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_fault_in_every_respect_is_told_at_once(tmp_path):
    tensors = random_tensors(tiny())
    tensors["extra"] = tensors.pop("model.norm.weight")
    tensors[Q_PROJ] = NARROW
    write(tmp_path, tensors, tiny())
    pattern = "missing: model.norm.weight; unexpected: extra; misshapen: .*q_proj"
    with pytest.raises(InputError, match=pattern):
        huggingface.load_hf(tmp_path, tiny())


@pytest.fixture
def loaded(tmp_path):
    """(params, dtypes, files) of a tiny directory, and nothing else in `tmp_path`."""
    config = tiny()
    source = write(tmp_path / "in", random_tensors(config), config)
    return *huggingface.load_hf(source, config), huggingface.read_side_files(source)


def test_a_named_type_is_written_and_stated(tmp_path, loaded):
    params, dtypes, files = loaded
    huggingface.save_hf(params, tmp_path / "out", files=files, dtypes="float32")
    tensors = load_all(tmp_path / "out")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    assert json.loads((tmp_path / "out/config.json").read_text()) == {
        **json.loads(files["config.json"]),
        "torch_dtype": "float32",
    }


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"dtype": "bfloat16"}, {"dtype": "float16"}),
        ({"torch_dtype": "float16"}, {"torch_dtype": "float16"}),
        ({}, {"torch_dtype": "float16"}),
        (
            {"dtype": "float32", "vision_config": {"torch_dtype": "bfloat16"}},
            {"dtype": "float16", "vision_config": {"torch_dtype": "float16"}},
        ),
        (
            {"dtype": "float16", "text_config": {"dtype": None}},
            {"dtype": "float16", "text_config": {"dtype": None}},
        ),
    ],
)
def test_stated_type_follows_the_weights(stated, expected):
    rule = huggingface.hf_table(tiny())[0]
    tensors = [huggingface._Planned(rule.name, rule, None, "float16")]
    assert json.loads(huggingface._state_dtype(json.dumps(stated), tensors)) == expected


def test_jax_arrays_are_written_like_numpy_arrays(tmp_path, loaded):
    params, dtypes, files = loaded
    on_device = jax.tree.map(jax.numpy.asarray, params)
    huggingface.save_hf(on_device, tmp_path / "out", files=files, dtypes=dtypes)
    assert_same_tensors(load_all(tmp_path / "out"), load_all(tmp_path / "in"))


def broken(path, change):
    def apply(params):
        *levels, last = path.split("/")
        for level in levels:
            params = params[level]
        params[last] = change(params[last])

    return apply


@pytest.mark.parametrize(
    ("change", "dtypes", "message"),
    [
        (broken("language/norm/scale", lambda x: x[1:]), "float32", r"language/norm/scale is \(11"),
        (broken("language/norm", lambda x: {}), "float32", "language/norm/scale is missing, expe"),
        (broken("vision/more", lambda x: x), "float32", r"vision/more is \(2,\), expected none"),
        (
            broken("language/norm/scale", lambda x: x * np.nan),
            "float32",
            "model.norm.weight is not",
        ),
        (broken("language/norm/scale", lambda x: x + 1e5), "float16", "is not finite as float16"),
        (broken("language/norm/scale", lambda x: x), "int8", "cannot write .* as 'int8', expected"),
        (broken("language/norm/scale", lambda x: x), {}, "cannot write .* as '', expected one of"),
    ],
)
def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, loaded, change, dtypes, message):
    params, _, files = loaded
    params["vision"]["more"] = np.zeros(2, np.float32)
    if "more" not in message:
        del params["vision"]["more"]
    change(params)
    with pytest.raises(InputError, match=message):
        huggingface.save_hf(params, tmp_path / "out", files=files, dtypes=dtypes)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_model_is_never_overwritten(tmp_path, loaded):
    params, dtypes, files = loaded
    before = {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    with pytest.raises(InputError, match=r"already holds a model \(config.json, model.safetensors"):
        huggingface.save_hf(params, tmp_path / "in", files=files, dtypes=dtypes)
    assert {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before
    with pytest.raises(InputError, match="is a file, expected a directory"):
        huggingface.save_hf(params, tmp_path / "in/config.json", files=files, dtypes=dtypes)


@pytest.mark.parametrize("content", [{}, {"notes.txt": "mine", "merges.txt": "old"}])
def test_writes_into_a_directory_that_is_there(tmp_path, loaded, content):
    params, dtypes, files = loaded
    target = tmp_path / "out"
    target.mkdir()
    for name, text in content.items():
        (target / name).write_text(text)
    huggingface.save_hf(params, target, files=files | {"merges.txt": "new"}, dtypes=dtypes)
    assert_same_tensors(load_all(target), load_all(tmp_path / "in"))
    assert (target / "merges.txt").read_text() == "new"
    expected = {"config.json", "merges.txt", "model.safetensors", *content}
    assert {path.name for path in target.iterdir()} == expected
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_configuration_from_side_files(tmp_path):
    config = tiny("qwen2_vl")
    write(tmp_path, {}, config)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    (tmp_path / "README.md").write_text("not part of the model")
    files = huggingface.read_side_files(tmp_path)
    assert set(files) == {"config.json", "preprocessor_config.json"}
    vision = dataclasses.replace(config.vision, image_mean=(0.5, 0.5, 0.5))
    assert huggingface.read_config(files) == dataclasses.replace(config, vision=vision)


def test_unreadable_side_files(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path} has no config.json"):
        huggingface.read_side_files(tmp_path)
    with pytest.raises(InputError, match="config.json is not valid JSON"):
        huggingface.read_config({"config.json": "{"})
    (tmp_path / "vocab.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="vocab.json is not UTF-8"):
        huggingface.read_side_files(tmp_path)


def test_resolves_directories_and_repositories(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    assert huggingface.resolve(tmp_path) == tmp_path
    assert huggingface.resolve(str(tmp_path)) == tmp_path
    asked = []

    def download(repository, allow_patterns):
        asked.append((repository, "*.safetensors" in allow_patterns))
        if repository == "absent/model":
            raise LocalEntryNotFoundError("no connection\nand a second line")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert huggingface.resolve("some/model") == tmp_path
    with pytest.raises(InputError, match=r"absent/model is neither .* \(no connection\); give the"):
        huggingface.resolve("absent/model")
    assert asked == [("some/model", True), ("absent/model", True)]
    for path in ("/no/such/directory", "./relative", "a/b/c", "word"):
        with pytest.raises(InputError, match=f"there is no directory {path}"):
            huggingface.resolve(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file, expected a model directory"):
        huggingface.resolve(tmp_path / "file")
    assert len(asked) == 2


def transformers_model(config, dtype="bfloat16"):
    """A random model made by transformers in the sizes of `config`."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    names = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}
    prefix = names[config.family]
    hf_config = getattr(transformers, prefix + "Config").from_dict(
        to_hf(config) | {"bos_token_id": 1, "eos_token_id": 2}
    )
    model_class = getattr(transformers, prefix + "ForConditionalGeneration")
    return model_class(hf_config).to(getattr(torch, dtype)), model_class


@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("dtype", "generation", "shard_size"),
    [("bfloat16", 1, "5GB"), ("float32", 1, "3KB"), ("bfloat16", 2, "3KB")],
)
def test_round_trip_with_transformers(tmp_path, family, tied, dtype, generation, shard_size):
    config = tiny(family, tied)
    model, model_class = transformers_model(config, dtype)
    source, target = tmp_path / "in", tmp_path / "out"
    model.save_pretrained(source, max_shard_size=shard_size)
    assert (source / "model.safetensors.index.json").exists() == (shard_size != "5GB")
    written = load_all(source)
    if generation == 2:
        for path in source.glob("*.safetensors*"):
            path.unlink()
        save_file(second_generation(written), source / "model.safetensors", {"format": "pt"})

    files = huggingface.read_side_files(source)
    config = huggingface.read_config(files)
    assert config.tie_embeddings == tied
    params, dtypes = huggingface.load_hf(source, config)
    assert set(dtypes.values()) == {dtype}
    huggingface.save_hf(params, target, files=files, dtypes=dtypes, max_shard_bytes=3000)
    assert_same_tensors(load_all(target), written)

    again, report = model_class.from_pretrained(target, output_loading_info=True)
    assert not any(report.values()), report
    wanted, found = model.state_dict(), again.state_dict()
    assert wanted.keys() == found.keys()
    assert again.dtype == model.dtype
    assert [name for name in wanted if not wanted[name].equal(found[name])] == []
