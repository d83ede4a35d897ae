# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The command: exit codes and messages; on the bundled model, compiled for chips that are not here.

Each run is a process of its own, since the command decides what JAX may see.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*flags, config="tiny.py"):
    command = [sys.executable, "-m", "rlvlm_jax.plan", f"--config={ROOT}/configs/{config}", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v9-8"], "--topology='v9-8' is not known; use one of v5e-8"),
        (["--topology=v5e-8", "--out=/nowhere/x.json"], "there is no directory for it"),
        (["--topology=v5e-8", "--config.rollout.prompt=3"], "did you mean"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(flags, message):
    found = run(*flags)
    assert found.returncode == 2
    assert message in found.stderr
    assert "Traceback" not in found.stderr


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None
    or importlib.util.find_spec("jax_plugins.xla_cuda13") is None,
    reason="jax-cuda13-plugin is not installed",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "topology",
    [
        pytest.param("v5e-8", marks=needs_libtpu),
        pytest.param("8xH200", marks=needs_cuda),
    ],
)
def test_the_bundled_model_fits(tmp_path, topology):
    flags = [
        "--config.mesh.fsdp=8",
        f"--out={tmp_path}/plan.json",
        "--config.rollout.layout=tensor",
    ]
    found = run(f"--topology={topology}", *flags)
    assert found.returncode == 0, found.stderr
    report = json.loads((tmp_path / "plan.json").read_text())
    assert set(report["steps"]) == {"encode", "sample", "passes", "trajectory", "update"}
    assert report["fits"]
    for step in report["steps"].values():
        assert 0 < step["total"] < report["memory"]
    # Decoding moves rows of a token, no weights: the largest is the MLP's.
    assert report["steps"]["sample"]["collectives"]
    assert "it fits" in found.stdout


@needs_libtpu
@pytest.mark.slow
def test_what_does_not_fit_is_exit_2_with_advice():
    found = run(
        "--topology=v5e-8",
        "--config.mesh.fsdp=8",
        "--config.rollout.max_tokens=16384",
        "--config.rollout.prompts=2048",
    )
    assert found.returncode == 2
    assert "error: v5e-8 is too small: the most is needed in step 'sample'" in found.stderr
    assert "--config.rollout.cache=int8" in found.stderr
