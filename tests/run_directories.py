# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Run directories with numbers chosen by hand, written by the same code as real ones."""

from rlvlm_jax.run_directory import RunDirectory

SETTING = "pass@1_t0.01"


def response(name, correct, *, length=10, text="2", reflective=False, **more):
    """One line of a rollouts or evaluation file."""
    return {
        "id": name,
        "question": f"What is {name}?",
        "image": None,
        "solution": "\\boxed{2}",
        "response": text,
        "tokens": length + 1,
        "length": length,
        "truncated": False,
        "correct": bool(correct),
        "judge": "ok",
        "rewards": {"accuracy": float(correct)},
        "reflective": reflective,
        **more,
    }


def write_run(path, *, mode="rl", seed=0, evaluations=(), steps=(), judge=None, **config):
    """Writes a run.

    Args:
        path: of the directory.
        mode: "rl", "sft" or "eval".
        seed: of the run.
        evaluations: (step, split, correct of each question: a list, or a list of lists of the
            samples of a question); the setting is pass@1 or, for lists, pass@8. Questions are of
            kind "text" and "vision" in turn.
        steps: (metrics, rows of responses) of steps 1, 2, ...
        judge: version of the judge; None for a run from before it was written down.
        config: further keys.
    """
    run = RunDirectory(path)
    judged = {} if judge is None else {"judge_version": judge}
    about = {"config": {"mode": mode, "seed": seed, **config}, "versions": {}}
    run.write_config({**about, **judged})
    lines = {}
    for step, split, correct in evaluations:
        setting = SETTING if isinstance(correct[0], int) else "pass@8_t1.0"
        samples = [[c] if isinstance(c, int) else c for c in correct]
        rows = [
            response(f"{split}-{n}", sample, kind=("text", "vision")[n % 2], **judged)
            for n, one in enumerate(samples)
            for sample in one
        ]
        run.write_evaluation(step, split, setting, rows)
        rate = sum(any(one) for one in samples) / len(samples)
        lines.setdefault(step, {})[f"eval/{split}/{setting}"] = rate
    run.append("eval", 0, 0.0, lines.pop(0, {}))
    for step, (metrics, rows) in enumerate(steps, 1):
        run.append("sft" if mode == "sft" else "train", step, step / 2, metrics)
        run.write_rollouts(step, rows)
        if step in lines:
            run.append("eval", step, step / 2, lines.pop(step))
    for step, values in sorted(lines.items()):
        run.append("eval", step, step / 2, values)
    return path
