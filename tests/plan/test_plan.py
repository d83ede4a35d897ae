# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The command: exit codes and messages; on the bundled model, compiled for chips that are not here.

Each run that compiles is a process of its own, since the command decides what JAX may see.
"""

import importlib.util
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rlvlm_jax import config as config_lib
from rlvlm_jax.errors import InputError
from rlvlm_jax.plan import __main__ as command
from rlvlm_jax.plan.topology import parse

ROOT = Path(__file__).parents[2]


RECIPE = f"--config={ROOT}/configs/tiny.py"


def run(*flags):
    words = [sys.executable, "-m", "rlvlm_jax.plan", *flags]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([RECIPE, "--topology=v9-8"], "--topology='v9-8' is not known; use one of v5e-8"),
        ([RECIPE, "--price=5"], "required: --topology; usage: python -m rlvlm_jax.plan "),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(flags, message):
    found = run(*flags)
    assert (found.returncode, found.stdout) == (2, "")
    assert message in found.stderr
    assert len(found.stderr.splitlines()) == 1


@pytest.fixture
def planned(monkeypatch):
    """The command without a compiler; the reports that it made up."""
    made = []

    def plan(config, topology, arguments):
        made.append({"fits": True, "topology": topology.name})
        return made[-1]

    monkeypatch.setattr(command, "force_cpu", lambda: None)
    monkeypatch.setattr(command, "plan", plan)
    monkeypatch.setattr(command, "table", lambda report: "the table")
    return made


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--out=/nowhere/x.json", "its directory does not exist"),
        ("--out=FOLDER", "FOLDER is a directory"),
        ("--hlo=FOLDER/file", "FOLDER/file is a file"),
        ("--hlo=FOLDER/file/below", "FOLDER/file is a file"),
        ("--config.rollout.prompt=3", "did you mean"),
        ("--confg=x", "--topology=v5p-32 [--config.key=value ...]; --help"),
        ("--price=dear", "argument --price: invalid float value: 'dear'"),
        *[
            (f"--{name}={value}", f"--{name}={float(value)} must be above 0 and at most 1")
            for name in ("mfu-train", "mfu-prefill", "decode-bandwidth", "link-bandwidth")
            for value in ("0", "1.5", "nan")
        ],
        *[(f"--{name}=-1", f"--{name}=-1") for name in ("prompt-tokens", "patches", "price")],
        *[(f"--effort={value}", "--effort=") for value in (-2, 1.5)],
    ],
)
def test_what_is_wrong_is_said_before_anything_is_compiled(planned, tmp_path, flag, message):
    (tmp_path / "file").touch()
    flags = [RECIPE, "--topology=v5e-8", flag.replace("FOLDER", str(tmp_path))]
    with pytest.raises(InputError) as found:
        command.main(flags)
    assert message.replace("FOLDER", str(tmp_path)) in str(found.value)
    assert "--workdir" not in str(found.value)
    assert planned == []


def test_without_a_configuration_the_hint_is_of_this_command(planned):
    with pytest.raises(InputError, match=r"--config is missing; usage: .* --topology=v5p-32 "):
        command.main(["--topology=v5e-8"])


def test_values_at_the_ends_of_their_ranges_are_taken(planned, tmp_path):
    flags = ["--mfu-train=1", "--effort=1", "--price=0", "--patches=0", f"--hlo={tmp_path}/a/b"]
    assert command.main([RECIPE, "--topology=v5e-8", *flags]) == 0
    assert not (tmp_path / "a").exists()


def test_the_report_has_the_permissions_of_any_new_file(planned, tmp_path):
    umask = os.umask(0o027)
    try:
        assert command.main([RECIPE, "--topology=v5e-8", f"--out={tmp_path}/plan.json"]) == 0
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "plan.json").stat().st_mode) == 0o640
    assert [json.loads((tmp_path / "plan.json").read_text())] == planned


def test_a_report_that_cannot_be_written_loses_no_table(planned, tmp_path, monkeypatch, capsys):
    def fail(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match=r"plan\.json cannot be written: No space left"):
        command.main([RECIPE, "--topology=v5e-8", f"--out={tmp_path}/plan.json"])
    assert capsys.readouterr().out == "the table\n"
    assert list(tmp_path.iterdir()) == []


class CompilerAskedError(Exception):
    """The plan got as far as the devices."""


def check_mesh(monkeypatch, topology, **axes):
    """Plans up to where the compiler is asked."""

    def devices(topology):
        raise CompilerAskedError

    monkeypatch.setattr(command, "devices", devices)
    config = config_lib.default()
    config.mesh.update({"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1, **axes})
    given, _ = command.read_flags([f"--topology={topology}"])
    command.plan(config, parse(topology), given)


@pytest.mark.parametrize("topology", ["v5e-16", "v5p-16", "16xH100"])
def test_a_mesh_that_several_hosts_would_refuse_is_refused(monkeypatch, topology):
    chips = parse(topology).chips
    with pytest.raises(InputError, match=rf"config\.mesh takes 4 of the {chips} .* -1, such as"):
        check_mesh(monkeypatch, topology, fsdp=4)


@pytest.mark.parametrize(
    ("topology", "axes", "part"),
    [
        *(("v5e-16", {"fsdp": -1}, None), ("v5e-8", {"fsdp": 4, "tensor": 2}, None)),
        *(("v5e-8", {"fsdp": 4}, "4 of the 8 chips"), ("v5e-16", {}, "1 of the 16 chips")),
        *(("8xH200", {"fsdp": 2}, "2 of the 8 chips"), ("v5e-8", {"fsdp": 0}, None)),
    ],
)
def test_a_mesh_that_leaves_chips_unused_is_said(monkeypatch, capsys, topology, axes, part):
    with pytest.raises(CompilerAskedError):
        check_mesh(monkeypatch, topology, **axes)
    said = capsys.readouterr().err
    assert said.count("\n") == (part is not None)
    assert part is None or f"the plan uses {part}" in said


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
    found = run(RECIPE, f"--topology={topology}", *flags)
    assert found.returncode == 0, found.stderr
    report = json.loads((tmp_path / "plan.json").read_text())
    steps = {"encode", "sample", "passes", "trajectory", "update", "evaluate"}
    assert set(report["steps"]) == steps
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
        RECIPE,
        "--topology=v5e-8",
        "--config.mesh.fsdp=8",
        "--config.rollout.max_tokens=16384",
        "--config.rollout.prompts=2048",
    )
    assert found.returncode == 2
    assert "error: v5e-8 is too small: step '" in found.stderr
    assert "' of the iteration needs the most; these settings save memory there: --config." in (
        found.stderr
    )
    assert found.stderr.rstrip().endswith("such as v5e-16")
