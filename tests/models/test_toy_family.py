# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A new family needs its folder and its row: it trains, samples, exports and loads again."""

import ast
import json

import numpy as np
import pytest

from rlvlm_jax import VLM, checkpoint, export, startup
from rlvlm_jax.bench import work
from rlvlm_jax.models import families, huggingface
from tests import run_cases
from tests.models import toy_family
from tests.test_layering import SOURCES, name_of

SIZES = {"vocab_size": 512, "width": 32, "layers": 2, "heads": 2, "mlp_width": 48}
CONFIG = toy_family.ToyConfig(**SIZES, image_token_id=510, vision_width=16)
TEXT = "a<|vision_start|><|image_pad|><|vision_end|>b"


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A model directory of the family, with the bundled tokenizer."""
    monkeypatch.setitem(families.FAMILIES, "toy_vl", toy_family.TOY)
    bundled = startup.open_source(startup.BUNDLED).files
    files = {name: bundled[name] for name in ("tokenizer.json", "tokenizer_config.json")}
    files["config.json"] = json.dumps(toy_family.write_config(CONFIG) | {"eos_token_id": 506})
    params = work.random_weights(CONFIG, seed=0)
    huggingface.save_hf(params, tmp_path / "toy", files=files, dtypes="float32")
    return tmp_path / "toy"


def leaves(directory, config=CONFIG):
    params, _ = huggingface.load_hf(directory, config)
    return dict(huggingface._flatten(params))


@pytest.mark.slow
def test_it_trains_samples_exports_and_loads_again(directory, tmp_path, monkeypatch):
    data = run_cases.write_problems(tmp_path / "data", count=4)
    settings = {"data__val": "", "eval_every": 0, "total_steps": 2, "checkpoint_every": 2}
    settings |= {"model__path": directory, "algorithm__entropy_coef": 0.1}  # so there is a gradient
    argv = run_cases.arguments(tmp_path / "run", data, **settings)
    assert run_cases.execute(argv, monkeypatch) == 0

    first, second = (
        line
        for line in run_cases.read_lines(tmp_path / "run/metrics.jsonl")
        if line["phase"] == "train"
    )
    assert np.isfinite([first["update/loss"], second["update/loss"]]).all()
    assert first["update/grad_norm"] > 0
    assert first["rollout/logprob_gap_max"] < 1e-4
    assert second["memory/feature_cache_hits"] == 1.0, "the same four problems again"
    responses = run_cases.read_lines(tmp_path / "run/rollouts/1.jsonl")
    assert len(responses) == 8
    assert all(0 < response["length"] <= 8 for response in responses)

    out = tmp_path / "exported"
    flags = [f"--checkpoint={tmp_path / 'run/checkpoints'}", f"--out={out}"]
    assert run_cases.execute(flags, monkeypatch, export.main, "rlvlm_jax.export") == 0
    trained = dict(huggingface._flatten(checkpoint.restore_params(tmp_path / "run/checkpoints")))
    before, after = leaves(directory), leaves(out)
    assert before.keys() == after.keys() == trained.keys()
    for path, value in after.items():
        assert np.array_equal(value, trained[path]), path
        assert np.array_equal(value, before[path]) == path.startswith("vision/"), path
    assert json.loads((out / "config.json").read_text())["model_type"] == "toy_vl"

    vlm = VLM.from_pretrained(out)
    prompt = {"text": TEXT, "images": [tmp_path / "data/0.png"]}
    ((completion,),) = vlm.generate([prompt], max_tokens=4)
    (logprobs,) = vlm.logprobs([prompt], [completion.tokens])
    np.testing.assert_allclose(logprobs, completion.logprobs, atol=1e-5)


def test_an_image_changes_what_the_model_reads(directory, tmp_path):
    run_cases.write_problems(tmp_path / "data", count=2)
    vlm = VLM.from_pretrained(directory)
    prompts = [{"text": TEXT, "images": [tmp_path / f"data/{number}.png"]} for number in (0, 1, 0)]
    first, other, again = vlm.logprobs(prompts, [[5, 6, 7]] * 3)
    assert np.array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def code_of(path):
    """Yields every name and text in a file but docstrings and comments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docs:
            yield node.value
        for field in ("id", "attr", "arg", "name", "module", "asname"):
            if isinstance(getattr(node, field, None), str):
                yield getattr(node, field)


def test_no_family_is_named_outside_its_folder_and_the_table():
    named = {name_of(path) for path in SOURCES if any("qwen" in x.lower() for x in code_of(path))}
    # The bundled model's tokenizer is written in Qwen's format, with its class's name in the file.
    others = {name for name in named if not name.startswith("models.qwen2_vl")}
    assert others == {"models.families", "data.tiny_tokenizer"}
