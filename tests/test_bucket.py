# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in Google Cloud Storage: the same runs as on a disk."""

import os
import subprocess
import sys

import pytest

from tests import bucket
from tests.processes import ROOT, assert_same_run, finish, records, settings, start, until
from tests.run_cases import arguments, write_problems

pytest.importorskip("gcsfs", reason="gs:// needs the package gcsfs: pip install -e '.[gcs]'")
pytestmark = pytest.mark.slow


@pytest.fixture
def served(monkeypatch):
    with bucket.serve() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


def said_by(program, argv):
    """Runs a program to its end; returns (status, what it wrote to stderr)."""
    command = [sys.executable, "-m", program, *map(str, argv)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


def test_a_run_goes_on_from_a_bucket_on_other_hosts(tmp_path, served, compiled):
    data = write_problems(tmp_path / "data", count=24)
    keys = {"eval_every": 0, "checkpoint_every": 1, "compile_cache": compiled, "total_steps": 2}
    there = f"gs://{bucket.NAME}/some/run"
    on_disk, one, two = tmp_path / "disk", tmp_path / "one", tmp_path / "two"
    argv = arguments(on_disk, **settings(data, **keys | {"total_steps": 3}))
    assert finish(start(1, 1, argv)) == [0]

    argv = arguments(one, **settings(data, mesh__fsdp=2, log__checkpoints=there, **keys))
    assert finish(start(2, 1, argv, tmp_path / "log")) == [0, 0]
    assert not (one / "checkpoints").exists()
    steps = {name.split("/")[2] for name in served.objects if name.startswith("some/run/")}
    assert steps == {"1", "2"}
    # What a process that was killed while it wrote would have left.
    unfinished = [n for n in served.objects if n.startswith("some/run/2/") and "commit" not in n]
    for name in unfinished:
        served.put(name.replace("/2/", "/3/", 1), served.objects[name][1])

    argv = arguments(two, **settings(data, log__checkpoints=there, **keys | {"total_steps": 3}))
    status, said = said_by("rlvlm_jax.main", argv)
    assert status == 0, said
    assert f"{two} holds no records of the steps up to 2" in said
    lines, files = records(on_disk)
    assert_same_run(records(one), until((lines, files), 2))
    last = "rollouts/3.jsonl"
    assert_same_run(records(two), (lines[2:], {last: files[last]}))

    out = tmp_path / "exported"
    status, said = said_by("rlvlm_jax.export", [f"--checkpoint={there}", f"--out={out}"])
    assert status == 0, said
    assert (out / "model.safetensors").exists() or (out / "model.safetensors.index.json").exists()


def test_a_bucket_that_cannot_be_written_is_named_before_anything_is_lost(tmp_path, served):
    data = write_problems(tmp_path / "data", count=24)
    run = tmp_path / "run"
    argv = arguments(run, **settings(data, total_steps=1, log__checkpoints="gs://another/run"))
    status, said = said_by("rlvlm_jax.main", argv)
    assert status == 2, said
    assert "gs://another/run" in said.splitlines()[-1]
    assert not run.exists()


def test_conditions_of_the_bucket_hold(served):
    """What tensorstore relies on, so that the first test means something."""
    import urllib.error
    import urllib.request

    def ask(path, method="GET", data=None):
        request = urllib.request.Request(served.url + path, method=method, data=data)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, b""

    place = f"/storage/v1/b/{bucket.NAME}/o"
    write = f"/upload{place}?uploadType=media&name=a%2Fb&ifGenerationMatch=0"
    assert ask(write, "POST", b"first")[0] == 200
    assert ask(write, "POST", b"second")[0] == 412
    generation, content = served.objects["a/b"]
    assert content == b"first"
    assert ask(f"{place}/a%2Fb?alt=media") == (200, b"first")
    assert ask(f"{place}/a%2Fb?alt=media&ifGenerationNotMatch={generation}")[0] == 304
    assert ask(f"{place}/a%2Fc?alt=media")[0] == 404
    assert b'"prefixes": ["a/"]' in ask(f"{place}?delimiter=/")[1]
