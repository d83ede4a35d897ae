# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Eight fake devices for the whole suite, quick compilation, and the switch for slow tests."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
if "--xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    # Programs that take less time to compile and more to run: most tests run little. `.ci/run` sets
    # a level for what has to be exact with optimization too. Only jax 0.10 knows the second flag.
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    if version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


# Files that take long, the longest first: a worker that begins one last leaves the others idle.
LONG = (
    *(
        "test_several",
        "test_update",
        "test_activation_sharding",
        "test_main",
        "test_model",
        "test_kernels",
    ),
    *("test_packing", "test_distributed"),
    *("test_every_key", "test_sampler", "test_costs", "test_vlm", "test_bench", "test_sft"),
    *("test_qwen_vl", "test_qwen_vision", "test_failures", "test_tpu"),
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    places = {f"{name}.py": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps():
    """Drops compiled programs before a process has as many memory maps as Linux allows it.

    A program of XLA on CPU takes tens of them, and it crashes where it gets no more.
    """
    yield
    limit, held = Path("/proc/sys/vm/max_map_count"), Path("/proc/self/maps")
    if limit.exists() and 2 * held.read_bytes().count(b"\n") > int(limit.read_text()):
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory):
    """The directory where this worker keeps compiled programs: no test compiles another's again.

    Each worker has its own, as JAX may read what another process has written by half.
    """
    directory = str(tmp_path_factory.mktemp("compiled"))
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], directory)
    jax.config.update(names[1], 0.0)
    compilation_cache.reset_cache()
    yield directory
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
