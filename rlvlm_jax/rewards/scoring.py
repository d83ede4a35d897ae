# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The functions for the training loop: verdicts for many responses, and the score of each.

Runs between sampling and trajectory: texts in, numbers out. Anything that may run for ever runs in
the pool. Does not know tokens, prompts or images.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from rlvlm_jax.rewards import custom as custom_reward
from rlvlm_jax.rewards import faithful, math, pool
from rlvlm_jax.rewards.boxes import answer_box, last_box
from rlvlm_jax.rewards.math import DEFAULT_RULES, Rules, Verdict
from rlvlm_jax.rewards.rules import REWARDS, Response, penalised

CUSTOM_MEMORY = 4 * 2**30  # bytes that one call of the user's function may use; Linux only
Style = Literal["strict", "maye", "mm_eureka"]
_TIMEOUT = Verdict(False, "timeout")
_LOG = logging.getLogger(__name__)

# --------------------------------------------------------------------------------------------------
# Verdicts
# --------------------------------------------------------------------------------------------------


def judge(response: str, solution: str, style: Style = "strict") -> Verdict:
    r"""Judges one response; see `judge_batch`.

    Strict: the last `\boxed{}` with balanced braces after the last `</think>` decides. No box, an
    empty or cut-off box, or a `<think>` without a `</think>` after it is wrong, "no_answer".
    Equivalent forms are right; `rewards.math` lists the conventions. An undecidable answer is
    wrong: "unparsable", or "timeout" past the deadline.

    Example:
        >>> judge(r"It is \boxed{\frac{1}{2}}", r"\boxed{0.5}")
        Verdict(correct=True, status='ok')
    """
    return judge_batch([response], [solution], style)[0]


def judge_batch(
    responses: Sequence[str],
    solutions: Sequence[str],
    style: Style = "strict",
    deadline_s: float = 5.0,
    *,
    rules: Rules = DEFAULT_RULES,
    workers: int | None = None,
) -> list[Verdict]:
    r"""Judges responses against their solutions.

    Decides at once if no computer algebra is needed, otherwise in the worker processes.

    Args:
        responses: texts of the model.
        solutions: one per response; the last `\boxed{}` of each is the reference answer.
        style: "strict" (see `math`), or "maye" and "mm_eureka" (see `faithful`).
        rules: how much numbers may differ, for "strict" only.
        deadline_s: seconds that one item may run. After that, its verdict is "timeout".
        workers: number of worker processes, 0 for one per core, None to keep the running ones.

    Returns:
        The verdicts, in order.

    Raises:
        ValueError: the lengths differ, or the style is unknown.
    """
    if len(responses) != len(solutions):
        raise ValueError(f"{len(responses)} responses, but {len(solutions)} solutions")
    _check_style(style)
    verdicts: list[Verdict] = [_TIMEOUT] * len(responses)
    slow: dict[tuple[Any, ...], list[int]] = {}  # equal items are judged once
    for i, (response, solution) in enumerate(zip(responses, solutions, strict=True)):
        item = _extract(response, solution, style)
        try:
            if style != "strict":
                raise math.NeedsAlgebra
            verdicts[i] = math.quick(*item, rules)
        except math.NeedsAlgebra:
            slow.setdefault((style, *item, rules), []).append(i)
    if slow:
        results = pool.shared(workers).map(_judge_item, list(slow), deadline_s)
        for rows, result in zip(slow.values(), results, strict=True):
            for i in rows:
                verdicts[i] = _TIMEOUT if result is pool.LOST else Verdict(*result)
    return verdicts


def gold_problem(solution: str, style: Style = "strict") -> str | None:
    """Returns why a solution cannot be judged, or None; `check_golds` adds a deadline."""
    _check_style(style)
    if style == "strict":
        return math.problem(last_box(solution))
    return faithful.problem(solution, style)


def check_golds(
    solutions: Sequence[str],
    style: Style = "strict",
    deadline_s: float = 5.0,
    *,
    workers: int | None = None,
) -> list[str | None]:
    r"""Returns for every solution of a data set why it cannot be judged, or None.

    Returns:
        In order: None, or a phrase such as "its \boxed{} is empty" to follow "the solution cannot
        be judged: ".
    """
    _check_style(style)
    if style == "strict":
        return [gold_problem(solution) for solution in solutions]
    items = list(dict.fromkeys((solution, style) for solution in solutions))
    results = pool.shared(workers).map(_check_item, items, deadline_s)
    late = f"reading it took more than {deadline_s:g} s"
    problems = {
        solution: late if result is pool.LOST else result or None
        for (solution, _), result in zip(items, results, strict=True)
    }
    return [problems[solution] for solution in solutions]


def _extract(response: str, solution: str, style: Style) -> tuple[str | None, str | None]:
    """Returns the parts to compare, so that little has to be sent to the workers."""
    if style == "strict":
        return answer_box(response), last_box(solution)
    if style == "maye":
        return faithful.maye_fragment(response), faithful.maye_fragment(solution)
    return faithful.mm_eureka_content(response), faithful.mm_eureka_reference(solution)


JUDGES = {
    "strict": math.strict,
    "maye": faithful.maye,
    "mm_eureka": faithful.mm_eureka,
}


def _judge_item(
    style: Style, answer: str | None, reference: str | None, rules: Rules
) -> tuple[bool, str]:
    options = (rules,) if style == "strict" else ()
    with pool.limited_memory():
        try:
            return tuple(JUDGES[style](answer, reference, *options))
        except (MemoryError, RecursionError):  # too big to finish: treated like a timeout
            return tuple(_TIMEOUT)


def _check_item(solution: str, style: Style) -> str:
    with pool.limited_memory():
        try:
            return gold_problem(solution, style) or ""
        except (MemoryError, RecursionError):
            return "reading it takes too much memory"


def _check_style(style: str) -> None:
    if style not in JUDGES:
        raise ValueError(f"style={style!r} is none of {', '.join(JUDGES)}")


# --------------------------------------------------------------------------------------------------
# Scores
# --------------------------------------------------------------------------------------------------


class Scores(NamedTuple):
    """Scores of B responses.

    Attributes:
        rewards: name -> float32[B], before weighting: the rows of `rules.REWARDS` that have a
            weight or are always recorded, and "custom" if one is configured.
        score: float32[B], the weighted sum, or the penalty for `penalised` responses.
        correct: bool[B], the judge's verdict, independent of the score.
        status: the judge's status of each response.
        penalised: bool[B], truncated or empty, if there is a penalty.
        custom_timeouts: calls of the user's function that ran out of time or killed their worker.
        custom_errors: calls that raised, or did not return a finite number.
    """

    rewards: dict[str, np.ndarray]
    score: np.ndarray
    correct: np.ndarray
    status: list[str]
    penalised: np.ndarray
    custom_timeouts: int
    custom_errors: int


def join(parts: Sequence[Scores]) -> Scores:
    """Concatenates the scores of several batches."""
    return Scores(
        rewards={
            name: np.concatenate([part.rewards[name] for part in parts])
            for name in parts[0].rewards
        },
        score=np.concatenate([part.score for part in parts]),
        correct=np.concatenate([part.correct for part in parts]),
        status=[status for part in parts for status in part.status],
        penalised=np.concatenate([part.penalised for part in parts]),
        custom_timeouts=sum(part.custom_timeouts for part in parts),
        custom_errors=sum(part.custom_errors for part in parts),
    )


def take(scores: Scores, rows: Sequence[int] | np.ndarray) -> Scores:
    """Returns the scores of `rows`, in that order; the counts stay those of all."""
    rows = np.asarray(rows, int)
    return scores._replace(
        rewards={name: values[rows] for name, values in scores.rewards.items()},
        score=scores.score[rows],
        correct=scores.correct[rows],
        status=[scores.status[row] for row in rows],
        penalised=scores.penalised[rows],
    )


def score(
    texts: Sequence[str],
    examples: Sequence[Mapping[str, Any]],
    truncated: Sequence[bool],
    lengths: Sequence[int],
    settings: ConfigDict,
    max_tokens: int,
    gather: Callable[[list[float]], list[list[float]]] = lambda numbers: [numbers],
) -> Scores:
    """Scores responses by rule.

    score = sum over the rules of weight * reward, then + custom weight * custom, replaced by the
    penalty if the response is truncated or empty. The penalty does not change the accuracy: a
    truncated right answer counts as right and is trained with the penalty. If the user's function
    returns no number for a response, it gets the smallest of 0 and the numbers of this batch (the
    greatest if the weight is negative), so that a failure never pays.

    Args:
        texts: B responses, special tokens removed.
        examples: one per response, with the key "solution"; passed to the user's function, so each
            must be picklable (file names rather than images).
        truncated: for each response, whether it has no stop token.
        lengths: tokens of each response, without the stop token.
        settings: the configuration's group `rewards`.
        max_tokens: limit of a response, tokens.
        gather: this part's numbers of the user's function -> those of all parts; for a batch that
            is scored in several parts, one call each.

    Raises:
        ValueError: the lengths of the arguments differ.
        RuntimeError: the user's function returned no number at all and raised; with its traceback.

    Source: MAYE (arXiv:2504.02587) and its released code.
    """
    if not len(texts) == len(examples) == len(truncated) == len(lengths):
        raise ValueError(
            f"{len(texts)} texts, {len(examples)} examples, {len(truncated)} truncation flags and "
            f"{len(lengths)} lengths"
        )
    verdicts = judge_batch(
        texts,
        [example["solution"] for example in examples],
        settings.judge,
        settings.deadline_s,
        rules=Rules(rounding=settings.rounding),
        workers=settings.workers,
    )
    correct = [verdict.correct for verdict in verdicts]
    responses = [
        Response(*fields, max_tokens, example)
        for *fields, example in zip(texts, correct, lengths, truncated, examples, strict=True)
    ]
    weights = dict(settings.rules)
    rewards = {
        name: [rule.reward(response, settings) for response in responses]
        for name, rule in REWARDS.items()
        if rule.always or weights[name]
    }
    custom_timeouts = custom_errors = 0
    if settings.custom:
        weights["custom"] = settings.custom_weight
        values, custom_timeouts, custom_errors = _custom(texts, examples, settings, gather)
        rewards["custom"] = values
    rewards = {name: np.asarray(values, np.float32) for name, values in rewards.items()}
    total = np.zeros(len(texts), np.float32)
    for name, values in rewards.items():
        total += np.float32(weights[name]) * values
    replaced = [penalised(r.truncated, r.length, settings) for r in responses]
    return Scores(
        rewards=rewards,
        score=np.where(replaced, np.float32(settings.penalty), total),
        correct=np.asarray(correct, bool),
        status=[verdict.status for verdict in verdicts],
        penalised=np.asarray(replaced, bool),
        custom_timeouts=custom_timeouts,
        custom_errors=custom_errors,
    )


def _custom(
    texts: Sequence[str],
    examples: Sequence[Mapping[str, Any]],
    settings: ConfigDict,
    gather: Callable[[list[float]], list[list[float]]],
) -> tuple[list[float], int, int]:
    function = custom_reward.load_custom(settings.custom)
    items = [
        (function, text, dict(example), CUSTOM_MEMORY)
        for text, example in zip(texts, examples, strict=True)
    ]
    results = pool.shared(settings.workers).map(custom_reward.call, items, settings.deadline_s)
    numbers = [result for result in results if isinstance(result, float)]
    all_numbers = [number for part in gather(numbers) for number in part]
    errors = [i for i, result in enumerate(results) if isinstance(result, str)]
    if errors:
        name = examples[errors[0]].get("id", "without id")
        message = (
            f"the reward function {settings.custom} failed on {len(errors)} of {len(texts)} "
            f"responses, first on {errors[0]} (example {name}):\n{results[errors[0]]}"
        )
        if not all_numbers:
            raise RuntimeError(message)
        _LOG.warning("%s", message)
    worst = min if settings.custom_weight >= 0 else max
    stand_in = worst([0.0, *all_numbers])
    values = [result if isinstance(result, float) else stand_in for result in results]
    return values, len(texts) - len(numbers) - len(errors), len(errors)
