# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The command: what it writes, what it refuses, and that both sides do the same work."""

import argparse
import json

import bench_cases
import jax
import numpy as np
import pytest

from rlvlm_jax.bench import __main__ as command
from rlvlm_jax.bench import limit, ours, work
from tests import run_cases

PARTS = ["rollout", "logprobs", "update", "iteration"]


@pytest.fixture
def tiny(compiled, monkeypatch):
    """The built-in cases are one that takes a moment, and rates are not measured."""
    monkeypatch.setattr(work, "CASES", {"tiny": bench_cases.TINY})
    monkeypatch.setattr(limit, "measure", lambda dtype: limit.Limit(1e9, 1e8, 1e8, 5e7))


def run(monkeypatch, *argv):
    return run_cases.execute(argv, monkeypatch, command.main, "rlvlm_jax.bench")


def test_a_report_says_where_it_was_measured():
    report = command.about(argparse.Namespace(peer=None, repeats=2))
    assert report["cores"] >= 1
    assert {"jax", "jaxlib", "transformers", "python"} <= set(report["versions"])


@pytest.mark.slow
def test_a_case_without_a_peer(tiny, tmp_path, monkeypatch, capsys):
    out = tmp_path / "bench.json"
    assert run(monkeypatch, f"--out={out}", "--case=tiny", "--repeats=2") == 0
    report = json.loads(out.read_text())
    case = report["cases"]["tiny"]
    assert case["limit"]["flops_per_s"] == 1e9
    assert case["compile_s"] > 0
    assert case["sizes"]["image_tokens"] == 16
    assert list(case["parts"]) == PARTS
    for name, part in case["parts"].items():
        assert len(part["seconds"]) == 2
        assert part["median_s"] == pytest.approx(np.median(part["seconds"]))
        assert part["tokens"] == (4 * 5 if name in ("rollout", "iteration") else 4 * (24 + 5))
        assert part["tokens_per_s"] == pytest.approx(part["tokens"] / part["median_s"])
        assert part["share_of_limit"] == pytest.approx(part["bound_s"] / part["median_s"])
        assert "peer" not in part, "what was not measured is absent"
        assert "ratio" not in part
    bounds = [case["parts"][name]["bound_s"] for name in PARTS]
    assert bounds[3] == pytest.approx(sum(bounds[:3]))
    shown = capsys.readouterr().out
    assert all(name in shown for name in PARTS)


@pytest.mark.slow
def test_a_run_s_own_configuration(tmp_path, monkeypatch):
    monkeypatch.setattr(limit, "measure", lambda dtype: limit.Limit(1e9, 1e8, 1e8, 5e7))
    data = run_cases.write_problems(tmp_path / "data")
    argv = [a for a in run_cases.arguments("", data) if not a.startswith("--workdir")]
    out = tmp_path / "bench.json"
    assert run(monkeypatch, *argv, f"--out={out}", "--repeats=1") == 0
    case = json.loads(out.read_text())["cases"]["tiny"]
    assert case["sizes"]["prompts"] == 4
    assert case["sizes"]["new_tokens"] == 8
    assert list(case["parts"]) == PARTS


def test_bad_flags_are_refused(tmp_path, monkeypatch, capsys):
    out = f"--out={tmp_path / 'bench.json'}"
    refused = {
        ("--case=4m-64",): "--out",
        (out, "--peer=tensorflow"): "tensorflow",
        (out, "--case=4m-65"): "4m-65",
        (out, "--repeats=0"): "--repeats=0",
        (out, "--cases=4m-64"): "--cases",
        (f"--out={tmp_path}",): "is a directory",
        (f"--out={tmp_path / 'no' / 'bench.json'}",): "not a writable directory",
        (out, "--config=configs/none.py"): "configs/none.py",
        (out, f"--config={run_cases.CONFIGS / 'tiny.py'}", "--case=4m-64"): "--case",
    }
    for argv, words in refused.items():
        assert run(monkeypatch, *argv) == 2, argv
        assert words in capsys.readouterr().err


def test_the_sizes_of_the_rows():
    assert {name: round(work.parameters(c.model) / 1e6, 1) for name, c in work.CASES.items()} == {
        "4m-64": 4.4,
        "4m-320": 4.4,
        "84m-64": 84.3,
        "84m-320": 84.3,
        "3b": 3754.6,
        "7b": 8292.2,
    }


@pytest.mark.slow
def test_every_response_has_the_full_length_and_an_update_moves_the_weights(compiled, tmp_path):
    side = ours.start(work.built_in(bench_cases.TINY, tmp_path, 1))
    side.rollout()
    side.logprobs()
    assert np.asarray(side.sampled.valid).all()
    before = jax.device_get(side.state.params["language"]["norm"]["scale"])
    side.update()
    side.iteration()
    assert int(side.state.step) == 2 * 2, "two optimizer steps each"
    assert np.any(jax.device_get(side.state.params["language"]["norm"]["scale"]) != before)


def test_the_best_of_several_limits_counts():
    one, other = limit.Limit(2.0, 3.0, 3.0, 1.0), limit.Limit(1.0, 4.0, 2.0, 4.0)
    assert limit.fastest(one, other) == (2.0, 4.0, 3.0, 4.0)


@pytest.mark.parity
def test_the_peer_starts_from_the_same_weights(tiny, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    out = tmp_path / "bench.json"
    argv = ("--peer=torch", f"--out={out}", "--case=tiny", "--repeats=1")
    assert run(monkeypatch, *argv) == 0
    case = json.loads(out.read_text())["cases"]["tiny"]
    assert case["largest_difference_to_peer_nats"] < 1e-4
    for part in case["parts"].values():
        assert part["ratio"] == pytest.approx(part["peer"]["seconds"][0] / part["seconds"][0])
    times = [case["parts"][name]["peer"]["median_s"] for name in PARTS]
    assert times[3] == pytest.approx(sum(times[:3]))


@pytest.mark.parity
def test_the_peer_samples_full_responses_and_trains_only_the_language_model(tmp_path):
    pytest.importorskip("torch")
    from rlvlm_jax.bench import peer

    side = peer.start(work.built_in(bench_cases.TINY, tmp_path, 1))
    before = {name: value.detach().clone() for name, value in side.model.named_parameters()}
    side.rollout()
    assert tuple(side.tokens.shape) == (4, 5)
    assert not np.isin(side.tokens.numpy(), side.work.session.banned).any()
    side.logprobs()
    assert float((side.old - side.ref).abs().max()) == 0.0
    side.update()
    moved = {name for name, value in side.model.named_parameters() if (value != before[name]).any()}
    assert moved
    assert not any("visual" in name for name in moved)
    assert "model.language_model.norm.weight" in moved
