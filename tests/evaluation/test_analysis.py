# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reading runs back, and the tables made of them, on directories with chosen numbers."""

import json

import numpy as np
import pytest

from rlvlm_jax import config, seeds
from rlvlm_jax.errors import InputError
from rlvlm_jax.evaluation import analysis, runs
from tests.run_directories import SETTING, response, write_run

STEP = ({"response/length": 10.0}, [response("a", True)])


@pytest.fixture
def sweep(tmp_path):
    """Two seeds; validation chooses step 2 of the first and step 1 of the second."""
    write_run(
        tmp_path / "rl" / "seed_0",
        seed=0,
        evaluations=[
            (0, "val", [0, 0, 1, 0]),
            (1, "val", [1, 0, 1, 0]),
            (2, "val", [1, 1, 1, 0]),
            (0, "test", [0, 0, 0, 1]),
            (1, "test", [1, 1, 1, 1]),
            (2, "test", [1, 1, 0, 0]),
        ],
        steps=[STEP, STEP],
    )
    write_run(
        tmp_path / "rl" / "seed_1",
        seed=1,
        evaluations=[
            (0, "val", [0, 0, 1, 0]),
            (1, "val", [1, 1, 1, 1]),
            (2, "val", [1, 0, 0, 0]),
            (0, "test", [0, 0, 0, 1]),
            (1, "test", [1, 1, 1, 0]),
            (2, "test", [1, 1, 0, 0]),
        ],
        steps=[STEP, STEP],
    )
    return tmp_path / "rl"


def test_the_step_is_chosen_on_validation_and_reported_on_test(sweep):
    (group,) = runs.read_groups([sweep])
    assert [run.seed for run in group.runs] == [0, 1]
    row = analysis.accuracy_row(group, "test", SETTING)
    assert row["n"] == 2
    assert row["initial"] == 0.25
    assert row["mean"] == pytest.approx((1.0 + 0.5 + 0.75 + 0.5) / 4)
    assert row["max"] == pytest.approx((1.0 + 0.75) / 2)  # the optimistic column
    selected = row["selected"]
    assert selected["steps"] == [2, 1]
    assert selected["mean"] == pytest.approx((0.5 + 0.75) / 2)
    assert selected["std_population"] == pytest.approx(0.125)
    assert selected["std_sample"] == pytest.approx(0.125 * 2**0.5)
    assert 0 <= selected["low"] < selected["mean"] < selected["high"] <= 1
    assert analysis.accuracy_row(group, "test_ood", SETTING) is None


def test_equal_validation_takes_the_earliest_step(tmp_path):
    values = [(step, "val", [1, 0]) for step in (0, 1, 2)]
    run = runs.read_run(write_run(tmp_path, evaluations=values))
    assert analysis.selected_step(run) == 0
    assert analysis.selected_step(runs.read_run(write_run(tmp_path / "none"))) is None


def test_any_of_the_samples_of_a_question_solves_it(tmp_path):
    path = write_run(tmp_path, mode="eval", evaluations=[(0, "val", [[0, 1, 0], [0, 0, 0]])])
    run = runs.read_run(path)
    assert list(run.solved("val", "pass@8_t1.0", 0).values()) == [1.0, 0.0]


def test_untrained_is_what_the_trainings_started_from(tmp_path):
    one = write_run(tmp_path / "one", mode="eval", model={"path": "base"})
    other = write_run(tmp_path / "other", mode="eval", model={"path": "rl/checkpoints"})
    rl = write_run(tmp_path / "rl", model={"path": "base"})
    assert [g.label for g in runs.read_groups([one, other, rl])] == ["Vanilla", "Evaluated", "RL"]
    assert [group.label for group in runs.read_groups([one])] == ["Evaluated"]


def test_methods_are_compared_question_by_question(tmp_path, sweep):
    right = [(0, "test", [0, 0, 0, 1]), (1, "val", [1, 1]), (1, "test", [0, 1, 0, 0])]
    write_run(tmp_path / "sft", mode="sft", evaluations=right)
    rl, sft = runs.read_groups([sweep, tmp_path / "sft"])
    assert (rl.label, sft.label) == ("RL", "SFT")
    found = analysis.compare(rl, sft, "test")
    assert found["questions"] == 4
    assert found["difference"] == pytest.approx(0.625 - 0.25)
    assert found["low"] <= found["difference"] <= found["high"]
    assert analysis.compare(rl, sft, "test_ood") is None


def test_sensitivity_of_the_length_by_hand(tmp_path):
    for seed, slope in ((0, 1.0), (1, 3.0)):
        steps = [({"response/length": 20.0 + slope * step}, []) for step in range(10)]
        write_run(tmp_path / f"seed_{seed}", seed=seed, steps=steps)
    (group,) = runs.read_groups([tmp_path])
    found = analysis.length_sensitivity(group)
    # fifths are two steps: slopes 1 and 3 give means 2 s, deviations s, s = 0.5 and 8.5
    assert found["n"] == 2
    assert found["length_first"] == pytest.approx(21.0)
    assert found["length_last"] == pytest.approx(37.0)
    assert found["std_first"] == pytest.approx(0.5)
    assert found["std_last"] == pytest.approx(8.5)
    assert found["change"] == pytest.approx(37 / 21 - 1)
    assert found["relative_std_last"] == pytest.approx(8.5 / 37)


def test_reflection_and_length_per_step_and_per_response(tmp_path):
    steps = []
    for step in range(8):
        rows = [response("a", True, length=30 + step, reflective=True), response("b", False)]
        numbers = {"response/length": 20.0 + step, "reflection/ratio": 0.1 * step}
        steps.append((numbers, rows))
    write_run(tmp_path, steps=steps)
    (group,) = runs.read_groups([tmp_path])
    found = analysis.reflection_and_length(group)
    assert found["curves"]["pearson"] == pytest.approx(1.0)
    assert found["responses"] == pytest.approx(np.corrcoef(
        [30 + s for s in range(8)] + [10] * 8, [1] * 8 + [0] * 8)[0, 1])  # fmt: skip
    assert "detrended" not in found["curves"]  # nothing is left beside the trend


def test_summary_of_the_seeds_is_written_when_all_are_done(tmp_path):
    c = config.default()
    c.seed, c.seeds = 3, 2
    c.log.checkpoints = "gs://bucket/runs"
    done = []

    def program(c, directory):
        done.append((c.seed, c.seeds, c.log.checkpoints))
        evaluations = [(s, split, [s % 2, 1]) for split in ("val", "test") for s in (0, 1)]
        write_run(directory, seed=c.seed, evaluations=evaluations, steps=[STEP])
        return c.seed != stop_at

    write_run(tmp_path / "seed_0", update={"lr": 2.0})  # left over from another sweep
    stop_at = 4
    assert not seeds.run_seeds(program, c, str(tmp_path))
    assert not (tmp_path / "summary.json").exists()
    stop_at = None
    assert seeds.run_seeds(program, c, str(tmp_path))
    assert done == [(seed, 1, f"gs://bucket/runs/seed_{seed}") for seed in (3, 4)] * 2
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["seeds"] == [3, 4]
    assert found["accuracy"][f"test/{SETTING}"]["selected"]["mean"] == 1.0
    assert found["accuracy"][f"val/{SETTING}"]["max"] == 1.0


def test_one_kind_of_question(sweep):
    (group,) = runs.read_groups([sweep])
    assert group.runs[0].kinds("test") == ["text", "vision"]
    assert group.runs[0].kinds("test_ood") == []
    found = [
        analysis.selected_accuracy(group, "test", SETTING, kind) for kind in ("text", "vision")
    ]
    assert [one["steps"] for one in found] == [[2, 1]] * 2
    assert [one["mean"] for one in found] == [(0.5 + 1.0) / 2, (0.5 + 0.5) / 2]
    assert [one["questions"] for one in found] == [2, 2]


def test_any_of_the_first_eight_samples(tmp_path):
    late = [0] * 8 + [1]
    write_run(tmp_path, evaluations=[(0, "val", [late, [1] + [0] * 8])])
    solved = runs.read_run(tmp_path).solved("val", "pass@8_t1.0", 0)
    assert list(solved.values()) == [0.0, 1.0]


def test_the_questions_that_chose_are_not_reported_at_the_chosen_step(sweep):
    (group,) = runs.read_groups([sweep])
    assert "selected" not in analysis.accuracy_row(group, "val", SETTING)
    assert analysis.compare(group, group, "val") is None


def test_other_settings_choose_where_the_usual_one_is_missing(tmp_path):
    wrong, right = [[0] * 8, [0] * 8], [[1] * 8, [0] * 8]
    values = [(0, "val", wrong), (1, "val", right), (2, "val", wrong)]
    tests = [(step, "test", [[0] * 8, [step % 2] * 8]) for step in range(3)]
    (group,) = runs.read_groups([write_run(tmp_path, evaluations=values + tests)])
    assert analysis.accuracy_row(group, "test", "pass@8_t1.0")["selected"]["steps"] == [1]


def test_a_step_without_the_evaluation_is_not_chosen(sweep):
    (sweep / "seed_0" / "eval" / f"2.test.{SETTING}.jsonl").unlink()
    (group,) = runs.read_groups([sweep])
    assert analysis.accuracy_row(group, "test", SETTING)["selected"]["steps"] == [1, 1]


def test_runs_of_different_lengths(tmp_path, sweep):
    write_run(tmp_path / "rl" / "seed_2", seed=2, evaluations=[(0, "test", [0, 0, 1, 1])])
    (group,) = runs.read_groups([sweep])
    row = analysis.accuracy_row(group, "test", SETTING)
    assert (row["n"], row["initial"]) == (3, pytest.approx((0.25 + 0.25 + 0.5) / 3))
    assert row["max"] == pytest.approx((1.0 + 0.75) / 2)
    steps, values = group.all_curves(f"eval/test/{SETTING}")
    assert steps.tolist() == [0, 1, 2]
    assert np.isnan(values).sum() == 2
    assert group.curves(f"eval/test/{SETTING}")[0].tolist() == [0]


def test_equal_ids_of_different_questions_are_not_paired(tmp_path):
    ours = write_run(tmp_path / "rl", evaluations=[(0, "test", [1, 0])])
    theirs = write_run(tmp_path / "sft", mode="sft", evaluations=[(0, "test", [1, 0])])
    file = theirs / "eval" / f"0.test.{SETTING}.jsonl"
    file.write_text(file.read_text().replace("What is", "How much is"))
    rl, sft = runs.read_groups([ours, theirs])
    assert analysis.compare(rl, sft, "test") is None
    assert analysis.compare(rl, rl, "test")["questions"] == 2
    assert analysis.selected_accuracy(rl, "test", SETTING, "neither") is None


def test_of_one_run_no_deviation_is_known(tmp_path):
    steps = [({"response/length": 20.0 + step}, []) for step in range(10)]
    (group,) = runs.read_groups([write_run(tmp_path, steps=steps)])
    assert not {"std_first", "std_last", "relative_std_last"} & set(
        analysis.length_sensitivity(group)
    )


@pytest.mark.parametrize(
    ("change", "together"),
    [
        ({"rewards": {"workers": 8}}, True),
        ({"mesh": {"fsdp": 8}}, True),
        ({"train": {"microbatch": 4}}, True),
        ({"train": {"lr": 2.0}}, False),
        ({"eval_every": 3}, False),
    ],
)
def test_runs_belong_together_if_they_do_the_same(tmp_path, change, together):
    write_run(tmp_path / "a", seed=1, **{name: dict.fromkeys(v, 1) if isinstance(v, dict) else 1
                                         for name, v in change.items()})  # fmt: skip
    write_run(tmp_path / "b", seed=2, **change)
    groups = runs.read_groups([tmp_path / "a", tmp_path / "b"])
    assert len(groups) == (1 if together else 2)


def test_a_run_that_has_just_begun_or_was_cut_off(tmp_path):
    path = write_run(tmp_path / "run", evaluations=[(0, "val", [1]), (1, "val", [0])])
    metrics = path / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes() + b'{"phase": "tr')
    assert [line["step"] for line in runs.read_run(path).lines] == [0, 1]
    metrics.unlink()
    assert runs.read_run(path).lines == ()


@pytest.mark.parametrize(
    ("before", "after", "versions"),
    [(None, None, (1,)), (2, 2, (2,)), (None, 2, (1, 2)), (3, 2, (2, 3))],
)
def test_the_lines_of_an_evaluation_say_by_which_judge(tmp_path, before, after, versions):
    """As a resumed run leaves them: config.json is of the last start, early lines are not."""
    write_run(tmp_path, evaluations=[(0, "val", [1, 0])], judge=before)
    write_run(tmp_path, evaluations=[(2, "val", [1, 0])], judge=after)
    assert runs.read_run(tmp_path).judge_versions == versions


@pytest.mark.parametrize(("judge", "versions"), [(None, (1,)), (2, (2,))])
def test_without_evaluations_the_configuration_says_by_which_judge(tmp_path, judge, versions):
    assert runs.read_run(write_run(tmp_path, judge=judge)).judge_versions == versions


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda path: (path / "config.json").unlink(), "holds no config.json"),
        (lambda path: (path / "config.json").write_text("{"), "^[^ ]*config.json is not JSON"),
        (lambda path: (path / "config.json").write_text("[]"), "holds no configuration"),
        (lambda path: (path / "config.json").write_text('{"config": {}}'), "holds no configurat"),
        (
            lambda path: (path / "metrics.jsonl").write_text('{"epoch": 1}\n'),
            "^[^ ]*metrics.jsonl, line 1: has no step and epoch",
        ),
        (
            lambda path: (path / "metrics.jsonl").write_text("[]\n"),
            "^[^ ]*metrics.jsonl, line 1: expected a JSON object",
        ),
        (
            lambda path: (path / "metrics.jsonl").write_text("{\n"),
            "^[^ ]*metrics.jsonl, line 1: is not JSON",
        ),
    ],
)
def test_damaged_run_directories_are_named(tmp_path, break_it, message):
    path = write_run(tmp_path / "run", evaluations=[(0, "val", [1])])
    break_it(path)
    with pytest.raises(InputError, match=message):
        runs.read_groups([path])


def test_the_same_recipe_and_seed_twice_is_refused(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, seed=1)
    with pytest.raises(InputError, match="same recipe with the same seed 1"):
        runs.read_groups([tmp_path / "a", tmp_path / "b"])
    other = write_run(tmp_path / "c", seed=1, update={"lr": 2.0})
    groups = runs.read_groups([tmp_path / "a", other])
    assert [group.label for group in groups] == ["RL a", "RL c"]
