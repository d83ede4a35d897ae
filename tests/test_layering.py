# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Imports go one way, and each heavy library has one home."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "rlvlm_jax"
SOURCES = sorted(ROOT.rglob("*.py"))
LAYERS = (  # lowest first; a module may import lower layers, and its own package
    ("errors", "types", "signals"),
    ("config", "sharding", "distributed", "packing", "evaluation.scores"),
    (
        *("data", "models", "rewards", "algorithms", "optim", "checkpoint"),
        *(f"evaluation.{name}" for name in ("statistics", "runs", "analysis")),
    ),
    ("records", "metrics", "features"),
    ("sampling",),
    ("logprobs",),
    ("trajectory", "update"),
    ("startup",),
    ("evaluation.scheme", "vlm"),
    ("collection", "run_data"),
    ("run",),
    ("train", "sft", "evaluate", "seeds"),
    ("cli",),
    ("main", "convert", "export", "report", "bench", "plan", "rewards.__main__"),
)
HOMES = {  # third party -> the only places that may import it
    "flax": ("models",),
    "optax": ("optim", "update"),
    "orbax": ("checkpoint",),
    "transformers": ("data.tokenizer", "bench.peer"),
    "tokenizers": ("data.tokenizer", "data.tiny_tokenizer"),
    "PIL": ("data", "report.browser"),
    "matplotlib": ("report.figures", "bench.growth"),
    "scipy": ("evaluation.statistics",),
    "safetensors": ("models.convert",),
    "datasets": ("data.dataset",),
    "grain": ("data.loader",),
    "math_verify": ("rewards.faithful",),
    "sympy": ("rewards.math.algebra",),
    "pylatexenc": ("rewards.math.tokens",),
    "pebble": ("rewards.pool",),
    "torch": ("bench.peer",),
}
WITHOUT_JAX = (
    *("data", "rewards", "types", "errors", "packing", "cli", "records", "report", "seeds"),
    *(f"evaluation.{name}" for name in ("scores", "statistics", "runs", "analysis")),
)


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path):
    """Every module that a file names in an import, wherever in the file that stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def under(name, prefixes):
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def layer_of(name):
    places = {prefix: level for level, prefixes in enumerate(LAYERS) for prefix in prefixes}
    found = [prefix for prefix in places if under(name, [prefix])]
    return places[max(found, key=len)] if found else None


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_one_way(path):
    name = name_of(path)
    if name in ("", "evaluation"):  # packages that only pass names on
        return
    level = layer_of(name)
    assert level is not None, f"{name} has no layer: add it to LAYERS"
    for module in imported(path):
        other = module.removeprefix("rlvlm_jax").lstrip(".")
        if not module.startswith("rlvlm_jax") or layer_of(other) is None:
            continue
        same_package = other.split(".")[0] == name.split(".")[0]
        assert same_package or layer_of(other) < level, f"{name} may not import {other}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_heavy_libraries_have_one_home(path):
    name = name_of(path)
    for module in imported(path):
        top = module.split(".")[0]
        if top in HOMES:
            assert under(name, HOMES[top]), f"{name} may not import {top}"
        if top in ("jax", "jaxlib"):
            assert not under(name, WITHOUT_JAX), f"{name} may not import jax"


def test_layering_would_catch_a_wrong_import():
    assert layer_of("train") > layer_of("update") > layer_of("models.qwen_vl")
    assert under("models.qwen_vl", HOMES["flax"])
    assert not under("train", HOMES["flax"])
