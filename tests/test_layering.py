# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Imports go one way, and each heavy library has one home."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "rlvlm_jax"
SOURCES = sorted(ROOT.rglob("*.py"))
LAYERS = (  # lowest first: a folder, or a module of its own, imports lower ones only
    ("errors", "keys", "types", "signals", "algorithms", "instruments", "rewards.rules"),
    ("FOLDER.keys",),
    ("config", "sharding", "distributed", "packing", "run_directory", "sampling", "writers"),
    ("data",),
    ("models", "optim", "checkpoint", "features", "old_keys"),
    ("logprobs", "cli"),
    ("rewards", "trajectory", "update"),
    ("selection", "evaluation", "startup", "validate"),
    ("convert", "export", "step_metrics", "report", "run_data", "seeds", "compiled_steps", "vlm"),
    ("collector", "recorder"),
    ("run",),
    ("train", "sft", "evaluate"),
    ("plan",),
    ("main", "bench"),
)
HOMES = {  # third party -> the only places that may import it
    "flax": ("models",),
    "optax": ("optim", "update"),
    "orbax": ("checkpoint",),
    "transformers": ("data.tokenizer", "bench.peer"),
    "tokenizers": ("data.tokenizer", "data.tiny_tokenizer"),
    "PIL": ("data", "models.qwen2_vl.media", "bench.work", "report.browser"),
    "matplotlib": ("report.figures",),
    "scipy": ("evaluation.statistics",),
    "safetensors": ("models.huggingface",),
    "datasets": ("data.formats",),
    "grain": ("data.loader",),
    "math_verify": ("rewards.faithful",),
    "sympy": ("rewards.math.algebra",),
    "pylatexenc": ("rewards.math.tokens",),
    "pebble": ("rewards.pool",),
    "torch": ("bench.peer",),
}
WITHOUT_JAX = (
    *(
        "data",
        "rewards",
        "types",
        "errors",
        "packing",
        "cli",
        "run_directory",
        "report",
        "seeds",
        "writers",
    ),
    *("models.qwen2_vl.media", "models.qwen2_vl.positions", "models.qwen2_vl.config"),
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


def room_of(name):
    if name.endswith(".keys"):  # declarations of a folder's configuration keys
        return "FOLDER.keys"
    return name if name in LEVELS else name.split(".")[0]


LEVELS = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
MODULES = {name_of(path): path for path in SOURCES}


def own_imports(name):
    """Modules of the package that a module imports; `from folder import module` is the module."""
    names = set(imported(MODULES[name]))
    own = {other.removeprefix("rlvlm_jax.") for other in names if other.startswith("rlvlm_jax.")}
    modules = own & MODULES.keys()
    return {other for other in modules if not any(m.startswith(f"{other}.") for m in own & modules)}


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {""}))
def test_imports_go_one_way(name):
    room = room_of(name)
    assert room in LEVELS, f"{room} has no layer: add it to LAYERS"
    for other in own_imports(name):
        other_room = room_of(other)
        lower = other_room == room or LEVELS[other_room] < LEVELS[room]
        assert lower, f"{name} may not import {other}"


def test_no_module_is_imported_by_what_it_imports():
    graph = {name: own_imports(name) - {name} for name in MODULES}
    order = graphlib.TopologicalSorter(graph).static_order()
    assert set(order) == MODULES.keys()  # a circle raises CycleError, which names it


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
    assert LEVELS["train"] > LEVELS["update"] > LEVELS["models"] > LEVELS["sampling"]
    assert {"evaluation.scheme", "startup"} <= own_imports("train")
    assert under("models.qwen2_vl.language", HOMES["flax"])
    assert not under("train", HOMES["flax"])


def test_sampling_loads_no_flax():
    code = "import sys, rlvlm_jax.sampling.sampler; sys.exit('flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
