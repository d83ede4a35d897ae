# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where compiled programs are kept for the next start."""

import logging

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from rlvlm_jax import config, instruments, startup
from rlvlm_jax.models import huggingface
from rlvlm_jax.validate import validate


@pytest.fixture
def kept():
    """Returns where JAX keeps programs now; nowhere at first."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], None)
    compilation_cache.reset_cache()
    yield lambda: jax.config.jax_compilation_cache_dir
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_weights_that_several_devices_hold_alike_are_read_once(monkeypatch):
    c = config.default()
    c.mesh.data, c.mesh.fsdp = 4, 2
    validate(c, 8)
    source = startup.open_source(startup.BUNDLED)
    session = startup.open_session(c, source)
    read, count = huggingface._read_part, []

    def counted(*args):
        part = read(*args)
        count.append(part.size)
        return part

    monkeypatch.setattr(huggingface, "_read_part", counted)
    params = startup.load_params(session, source)
    assert sum(count) == sum(leaf.size for leaf in jax.tree.leaves(params))
    expected, _ = huggingface.load_hf(source.directory, source.config)
    for found, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        for shard in found.addressable_shards:
            assert np.array_equal(shard.data, wanted[shard.index])


def test_a_named_directory_is_made_and_used_though_something_was_compiled_before(tmp_path, kept):
    jax.jit(lambda x: x * 19)(np.ones(2, np.float32))
    startup.keep_compiled(str(tmp_path / "a" / "b"))
    assert kept() == str(tmp_path / "a" / "b")
    function = jax.jit(lambda x: x * 23)
    expected = function(np.ones(2, np.float32))
    assert list((tmp_path / "a" / "b").iterdir())
    jax.clear_caches()
    counter = instruments.CompileCounter()
    assert np.array_equal(function(np.ones(2, np.float32)), expected)
    assert (counter.count, counter.from_disk) == (0, 1)


def test_by_itself_it_is_for_accelerators_and_for_who_has_told_jax_nothing(
    tmp_path, kept, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    startup.cache_programs("~/.cache")
    assert kept() is None  # a CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    startup.cache_programs("")
    assert kept() is None
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    startup.cache_programs("~/.cache")
    assert kept() == str(tmp_path / "mine")
    jax.config.update("jax_compilation_cache_dir", None)
    startup.cache_programs("~/.cache")
    assert kept() == str(tmp_path / ".cache" / "xla")


def test_a_directory_that_cannot_be_made_is_said(tmp_path, kept, caplog, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with caplog.at_level(logging.WARNING):
        startup.cache_programs(str(tmp_path / "file" / "below"))
    assert kept() is None
    assert "config.cache" in caplog.text
