# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The evaluation scheme: its numbers from chosen verdicts, and what a model's samples give."""

import itertools

import numpy as np
import pytest

from rlvlm_jax import main
from rlvlm_jax.evaluation import runs
from rlvlm_jax.evaluation.scheme import accuracies, sample_ids
from tests.run_cases import arguments, read_lines, write_problems

SETTING = "pass@8_t1.0"


def by_every_subset(correct, k):
    """Share of the k-subsets of the samples that hold a correct one, mean over questions."""
    shares = [
        np.mean([any(subset) for subset in itertools.combinations(row, k)]) for row in correct
    ]
    return np.mean(shares)


@pytest.mark.parametrize("samples", [8, 10])
def test_any_of_eight_and_the_unbiased_estimates(samples):
    correct = np.random.default_rng(0).random((6, samples)) < 0.2
    found = accuracies(SETTING, correct)
    assert found.pop(SETTING) == correct[:, :8].any(axis=1).mean()
    ks = [1, 2, 4] if samples == 8 else [1, 2, 4, 8]
    assert list(found) == [f"pass@{k}_t1.0_unbiased" for k in ks]
    for k in ks:
        value = found[f"pass@{k}_t1.0_unbiased"]
        assert value == pytest.approx(by_every_subset(correct, k), abs=1e-12)


def test_one_sample_has_one_number():
    assert accuracies("pass@1_t0.6", np.array([[True], [False]])) == {"pass@1_t0.6": 0.5}


def test_more_samples_leave_the_first_as_they_are():
    few, many = (sample_ids(np.array([0, 5, 70_000], np.int32), n).reshape(3, n) for n in (8, 256))
    assert few.dtype == np.uint32
    assert (many[:, :8] == few).all()
    assert len(np.unique(many)) == many.size


def evaluated(folder, data, *, samples=8, seed=0, batch=0):
    """Evaluates in pass@8; returns (line of metrics, rows of responses)."""
    workdir = folder / f"{samples}-{seed}-{batch}"
    keys = {"mode": "eval", "eval__samples": samples, "seed": seed, "eval__batch": batch}
    settings = "--config.eval.settings=('pass@8_t1.0','pass@1_t0.6')"
    assert main.main([*arguments(workdir, data, **keys), settings]) == 0
    (line,) = read_lines(workdir / "metrics.jsonl")
    return line, read_lines(workdir / "eval" / f"0.val.{SETTING}.jsonl")


@pytest.mark.slow
def test_evaluations_of_one_model(tmp_path):
    data = write_problems(tmp_path / "data", count=6)
    line, rows = evaluated(tmp_path, data)
    correct = np.array([row["correct"] for row in rows]).reshape(6, 8)
    assert line[f"eval/val/{SETTING}"] == correct.any(axis=1).mean()
    # on the same samples: eight find at least what one finds
    assert line[f"eval/val/{SETTING}"] >= line["eval/val/pass@1_t1.0_unbiased"] == correct.mean()
    assert line["time/eval_s"] <= line["wall_s"]

    same, rows_of_larger_batches = evaluated(tmp_path, data, batch=4)  # by default 1 question
    assert rows_of_larger_batches == rows
    names = [name for name in line if name.startswith("eval/")]
    assert {name: same[name] for name in names} == {name: line[name] for name in names}

    line, more = evaluated(tmp_path, data, samples=12)
    texts = np.array([row["response"] for row in more]).reshape(6, 12)
    assert (texts[:, :8] == np.array([row["response"] for row in rows]).reshape(6, 8)).all()
    assert line[f"eval/val/{SETTING}"] == correct.any(axis=1).mean()
    right = np.array([row["correct"] for row in more]).reshape(6, 12)
    unbiased = line["eval/val/pass@8_t1.0_unbiased"]
    assert unbiased == pytest.approx(by_every_subset(right, 8))
    solved = runs.read_run(tmp_path / "12-0-0").solved("val", SETTING, 0)
    assert list(solved.values()) == correct.any(axis=1).tolist()

    _, other = evaluated(tmp_path, data, seed=1)
    assert [row["id"] for row in other] == [row["id"] for row in rows]
    assert [row["response"] for row in other] != [row["response"] for row in rows]
