# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The evaluation scheme's tables: accuracy with intervals, and the paper's three findings.

From the records of runs to numbers; how they are drawn or printed is the report's. Every number
that can be undefined is absent instead.

Source: MAYE (arXiv:2504.02587), sections 4 and 5.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlvlm_jax.evaluation.runs import Group, RunRecord, read_rows
from rlvlm_jax.evaluation.statistics import correlations, interval, spread

SELECT_BY = "pass@1_t0.01"  # the setting whose validation accuracy chooses the step to report


def selected_step(run: RunRecord, setting: str = SELECT_BY) -> int | None:
    """Returns the evaluated step of the best validation accuracy, the earliest of equals.

    Step 0 takes part: a training that never improves is reported as the model it started from.
    None where the run has no validation in this setting.
    """
    steps, values = run.curve(f"eval/val/{setting}")
    return int(steps[np.argmax(values)]) if len(steps) else None


def accuracy_row(group: Group, split: str, setting: str) -> dict[str, Any] | None:
    """Describes one cell of the accuracy table.

    Args:
        group: runs of one method.
        split: "val", "test" or "test_ood".
        setting: decoding setting, such as "pass@8_t1.0".

    Returns:
        None where nothing was evaluated. Otherwise, over the n runs,
        initial: accuracy before training;
        mean: over all evaluations after it and all runs, as the paper's "Mean";
        max: mean over runs of each run's best evaluation, as the paper's "Max". Chosen on the
            numbers it reports, it is biased upwards;
        selected: accuracy at the step that validation chose (`selected_step`), with steps,
            std_population, std_sample and its 95 % interval over runs and questions.
    """
    steps, values = group.curves(f"eval/{split}/{setting}")
    if not len(steps):
        return None
    row: dict[str, Any] = {"n": len(group.runs)}
    if steps[0] == 0:
        row["initial"] = float(values[:, 0].mean())
    later = values[:, steps > 0]
    if later.size:
        row["mean"], row["max"] = float(later.mean()), float(later.max(axis=1).mean())
    if (split, setting) in group.evaluated:
        row["selected"] = selected_accuracy(group, split, setting)
    return row


def selected_accuracy(group: Group, split: str, setting: str, kind: str = "") -> dict[str, Any]:
    """Describes the accuracy at the steps that validation chose.

    Args:
        group: runs of one method.
        split: of an evaluation of theirs.
        setting: of that evaluation.
        kind: of question, see `RunRecord.kinds`; "" for all.

    Returns:
        steps; mean, std_population and std_sample over the runs; low and high, the 95 % interval
        over runs and questions; questions, how many there are.
    """
    chosen = chosen_steps(group.runs, split, setting)
    table, ids = solved_table(group.runs, split, setting, chosen, kind)
    found = spread(table.mean(axis=1))
    del found["n"]
    low, high = interval(table)
    return {"steps": chosen, **found, "low": low, "high": high, "questions": len(ids)}


def chosen_steps(runs: Sequence[RunRecord], split: str, setting: str) -> list[int]:
    """Returns each run's selected step, or its last evaluation where it has no validation."""
    chosen = [selected_step(run) for run in runs]
    return [
        max(run.evaluations[split, setting]) if step is None else step
        for run, step in zip(runs, chosen, strict=True)
    ]


def solved_table(
    runs: Sequence[RunRecord], split: str, setting: str, steps: Sequence[int], kind: str = ""
) -> tuple[np.ndarray, list[str]]:
    """Returns (float64[runs, questions], question ids): which questions each run solved."""
    solved = [run.solved(split, setting, step, kind) for run, step in zip(runs, steps, strict=True)]
    ids = sorted(set.intersection(*map(set, solved)))
    return np.array([[one[name] for name in ids] for one in solved], np.float64), ids


def length_sensitivity(group: Group) -> dict[str, float]:
    """Finding 1: how far response length depends on the seed.

    Returns:
        n; std_first and std_last, the population deviation over runs in the first and the last
        fifth of the steps, averaged, in tokens; length_first and length_last, the means there;
        change, the last relative to the first; relative_std_last, std_last / length_last.
    """
    steps, lengths = group.curves("response/length")
    if len(steps) < 5:
        return {}
    fifth = max(1, len(steps) // 5)
    first, last = lengths[:, :fifth], lengths[:, -fifth:]
    found = {
        "n": len(group.runs),
        "length_first": first.mean(),
        "length_last": last.mean(),
        "std_first": first.std(axis=0).mean(),
        "std_last": last.std(axis=0).mean(),
    }
    found["change"] = found["length_last"] / found["length_first"] - 1
    found["relative_std_last"] = found["std_last"] / found["length_last"]
    return {name: float(value) for name, value in found.items()}


def reflection_and_length(group: Group, *, per_response: bool = True) -> dict[str, Any]:
    """Finding 2: how far reflection goes with length.

    Returns:
        curves: `correlations` of the mean curves over the steps; runs: [those of each run];
        responses: Pearson over single responses of all runs and steps, between length and being
        reflective, absent where no response, or every one, is.
    """
    (x, lengths), (z, ratios) = (
        group.curves(name) for name in ("response/length", "reflection/ratio")
    )
    shared = np.intersect1d(x, z)
    lengths, ratios = lengths[:, np.isin(x, shared)], ratios[:, np.isin(z, shared)]
    found: dict[str, Any] = {
        "curves": correlations(lengths.mean(axis=0), ratios.mean(axis=0)),
        "runs": [correlations(a, b) for a, b in zip(lengths, ratios, strict=True)],
    }
    if per_response:
        pairs = [
            (row["length"], float(row["reflective"]))
            for run in group.runs
            for file in run.rollouts.values()
            for row in read_rows(file)
        ]
        table = np.asarray(pairs, np.float64).reshape(-1, 2)
        single = correlations(table[:, 0], table[:, 1])
        if "pearson" in single:
            found["responses"] = single["pearson"]
    return found


def compare(
    ours: Group, theirs: Group, split: str, setting: str = SELECT_BY, kind: str = ""
) -> dict[str, float] | None:
    """Finding 3: the difference of two methods on one test set, each at its selected steps.

    Returns:
        difference (ours - theirs), low and high of its 95 % interval, and questions; None where
        one of them was not evaluated.
    """
    if (split, setting) not in ours.evaluated & theirs.evaluated:
        return None
    both = (*ours.runs, *theirs.runs)
    table, ids = solved_table(both, split, setting, chosen_steps(both, split, setting), kind)
    a, b = table[: len(ours.runs)], table[len(ours.runs) :]
    low, high = interval(a, b)
    return {
        "difference": float(a.mean() - b.mean()),
        "low": low,
        "high": high,
        "questions": len(ids),
    }
