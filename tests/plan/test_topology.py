# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Names of slices and nodes."""

import importlib.util

import pytest

from rlvlm_jax.errors import InputError
from rlvlm_jax.plan import topology


@pytest.mark.parametrize(
    ("name", "chips", "shape", "nodes", "hosts"),
    [
        ("v5e-8", 8, "v5e:2x4", 1, 1),
        ("v5e-256", 256, "v5e:16x16", 1, 32),
        ("v5p-8", 4, "v5p:2x2x1", 1, 1),  # cores are counted, two a chip
        ("v5p-32", 16, "v5p:2x2x4", 1, 4),
        ("v5p-128", 64, "v5p:4x4x4", 1, 16),
        ("v6e-64", 64, "v6e:8x8", 1, 8),
        ("1xH100", 1, "1x1x1", 1, 1),
        ("8xH200", 8, "1x1x8", 1, 1),
        ("16xH100", 16, "1x2x8", 2, 2),
    ],
)
def test_names(name, chips, shape, nodes, hosts):
    found = topology.parse(name)
    assert (found.chips, found.shape, found.nodes) == (chips, shape, nodes)
    assert found.hosts == hosts
    assert found.is_tpu == name.startswith("v")


@pytest.mark.parametrize("name", ["v5p-30", "v9-8", "H100", "12xH100", "0xH100", "8xV100", ""])
def test_an_unknown_name_is_answered_with_those_there_are(name):
    with pytest.raises(InputError, match=r"v5e-8, .*v5p-128.*v6e-64.*8xH200"):
        topology.parse(name)


def test_every_name_that_is_listed_is_known():
    for name in topology.NAMES:
        assert topology.parse(name).chip.memory > 0


@pytest.mark.parametrize(
    ("name", "package"), [("v5e-8", "libtpu"), ("8xH200", "jax-cuda13-plugin jax-cuda13-pjrt")]
)
def test_a_missing_compiler_is_named(monkeypatch, name, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"pip install --no-deps {package} "):
        topology.devices(topology.parse(name))
