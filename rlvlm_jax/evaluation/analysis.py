# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The evaluation scheme's tables: accuracy with intervals, and the paper's three findings.

Computes numbers from the records of runs; the report draws and prints them. Undefined numbers are
absent.

Source: MAYE (arXiv:2504.02587), sections 4 and 5.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from rlvlm_jax.evaluation.runs import Group, Question, RunRecord, read_rows
from rlvlm_jax.evaluation.statistics import correlations, interval, spread

# The setting whose validation accuracy chooses the step to report; otherwise the first available.
SELECT_BY = "pass@1_t0.01"
_SELECT_BY_ELSE = ("pass@1_t0.6", "pass@8_t1.0")


def selected_step(run: RunRecord, among: Collection[int] | None = None) -> int | None:
    """Returns the evaluated step with the best validation accuracy, the earliest of equals.

    Includes step 0: a training run that never improves is reported as its initial model.

    Args:
        run: with validation.
        among: the steps to choose from; None for all.

    Returns:
        The step, or None if the run has no validation at any of them.
    """
    for setting in (SELECT_BY, *_SELECT_BY_ELSE):
        steps, values = run.curve(f"eval/val/{setting}")
        allowed = np.isin(steps, steps if among is None else list(among))
        if allowed.any():
            return int(steps[allowed][np.argmax(values[allowed])])
    return None


def accuracy_row(group: Group, split: str, setting: str) -> dict[str, Any] | None:
    """Describes one cell of the accuracy table.

    Args:
        group: runs of one method.
        split: "val", "test" or "test_ood".
        setting: decoding setting, such as "pass@8_t1.0".

    Returns:
        None if nothing was evaluated. Otherwise, over the n runs,
        initial: accuracy before training;
        mean: over all later evaluations and all runs, the paper's "Mean";
        max: mean over runs of each run's best evaluation, the paper's "Max". It is chosen on the
            reported numbers, so it is biased upwards;
        selected: see `selected_accuracy`.
    """
    curves = [run.curve(f"eval/{split}/{setting}") for run in group.runs]
    curves = [(steps, values) for steps, values in curves if len(steps)]
    if not curves:
        return None
    row: dict[str, Any] = {"n": len(curves)}
    initial = [values[0] for steps, values in curves if steps[0] == 0]
    if initial:
        row["initial"] = float(np.mean(initial))
    later = [after_start for steps, values in curves if len(after_start := values[steps > 0])]
    if later:
        row["mean"] = float(np.concatenate(later).mean())
        row["max"] = float(np.mean([values.max() for values in later]))
    selected = selected_accuracy(group, split, setting)
    if selected is not None:
        row["selected"] = selected
    return row


def selected_accuracy(
    group: Group, split: str, setting: str, kind: str = ""
) -> dict[str, Any] | None:
    """Describes the accuracy at the steps chosen by validation; without one, at the last steps.

    Args:
        group: runs of one method.
        split: of one of their evaluations.
        setting: of that evaluation.
        kind: of question, see `RunRecord.kinds`; "" for all.

    Returns:
        steps; mean, std_population and std_sample over the runs; low and high, the 95 % interval
        over runs and questions; questions, their number. None if a run was not evaluated, or on the
        validation questions if they chose between several steps.
    """
    if not _is_reportable(group, split, setting):
        return None
    chosen = chosen_steps(group.runs, split, setting)
    table, questions = solved_table(group.runs, split, setting, chosen, kind)
    if not questions:
        return None
    summary = spread(table.mean(axis=1))
    del summary["n"]
    low, high = interval(table)
    return {"steps": chosen, **summary, "low": low, "high": high, "questions": len(questions)}


def _is_reportable(group: Group, split: str, setting: str) -> bool:
    if (split, setting) not in group.evaluated:
        return False
    several = any(len(run.evaluations[split, setting]) > 1 for run in group.runs)
    return split != "val" or not several


def chosen_steps(runs: Sequence[RunRecord], split: str, setting: str) -> list[int]:
    """Returns each run's selected step among those of an evaluation, or its last one."""
    chosen = []
    for run in runs:
        evaluated = run.evaluations[split, setting]
        step = selected_step(run, evaluated)
        chosen.append(max(evaluated) if step is None else step)
    return chosen


def solved_table(
    runs: Sequence[RunRecord], split: str, setting: str, steps: Sequence[int], kind: str = ""
) -> tuple[np.ndarray, list[Question]]:
    """Returns (float64[runs, questions], questions): which questions each run solved.

    Includes only the questions that all runs were asked.
    """
    solved = [run.solved(split, setting, step, kind) for run, step in zip(runs, steps, strict=True)]
    questions = sorted(set.intersection(*map(set, solved)))
    table = [[by_question[question] for question in questions] for by_question in solved]
    return np.array(table, np.float64), questions


def length_sensitivity(group: Group) -> dict[str, float]:
    """Finding 1: how much response length depends on the seed.

    Returns:
        n; length_first and length_last, the means over the first and the last fifth of the steps,
        in tokens; change, the last relative to the first. For several runs also std_first and
        std_last, the population deviation over runs, averaged over the same steps, and
        relative_std_last = std_last / length_last.
    """
    steps, lengths = group.curves("response/length")
    if len(steps) < 5:
        return {}
    fifth = max(1, len(steps) // 5)
    first, last = lengths[:, :fifth], lengths[:, -fifth:]
    statistics = {
        "n": len(group.runs),
        "length_first": first.mean(),
        "length_last": last.mean(),
        "change": last.mean() / first.mean() - 1,
    }
    if len(group.runs) > 1:
        statistics["std_first"] = first.std(axis=0).mean()
        statistics["std_last"] = last.std(axis=0).mean()
        statistics["relative_std_last"] = statistics["std_last"] / statistics["length_last"]
    return {name: float(value) for name, value in statistics.items()}


def reflection_and_length(group: Group) -> dict[str, Any]:
    """Finding 2: how strongly reflection correlates with length.

    Returns:
        curves: `correlations` of the mean curves over the steps; runs: [the same for each run];
        responses: Pearson over single responses of all runs and steps, between length and being
        reflective; absent if no response is reflective, or all are.
    """
    (x, lengths), (z, ratios) = (
        group.curves(name) for name in ("response/length", "reflection/ratio")
    )
    shared = np.intersect1d(x, z)
    lengths, ratios = lengths[:, np.isin(x, shared)], ratios[:, np.isin(z, shared)]
    coefficients: dict[str, Any] = {
        "curves": correlations(lengths.mean(axis=0), ratios.mean(axis=0)),
        "runs": [correlations(a, b) for a, b in zip(lengths, ratios, strict=True)],
    }
    pairs = [
        (row["length"], float(row["reflective"]))
        for run in group.runs
        for file in run.rollouts.values()
        for row in read_rows(file)
    ]
    table = np.asarray(pairs, np.float64).reshape(-1, 2)
    single = correlations(table[:, 0], table[:, 1])
    if "pearson" in single:
        coefficients["responses"] = single["pearson"]
    return coefficients


def compare(
    method: Group, baseline: Group, split: str, setting: str = SELECT_BY, kind: str = ""
) -> dict[str, float] | None:
    """Finding 3: the difference of two methods on one test set, each at its selected steps.

    Returns:
        difference (method - baseline), low and high of its 95 % interval, and questions. None if
        one of them was not evaluated, if they share no question, or on the validation questions
        that chose a step.
    """
    if not all(_is_reportable(group, split, setting) for group in (method, baseline)):
        return None
    both = (*method.runs, *baseline.runs)
    steps = chosen_steps(both, split, setting)
    table, questions = solved_table(both, split, setting, steps, kind)
    if not questions:
        return None
    a, b = table[: len(method.runs)], table[len(method.runs) :]
    low, high = interval(a, b)
    return {
        "difference": float(a.mean() - b.mean()),
        "low": low,
        "high": high,
        "questions": len(questions),
    }
