# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The names of all numbers that the host computes about a step or an evaluation.

Names are GROUP/NAME with the unit as suffix. An undefined value (a mean over nothing) is None or
absent, never 0. What the device computes is named where it is computed, in trajectory.py and
update.py. A metric of the sampled responses is a function and its row in `SAMPLED_METRICS`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlvlm_jax import rewards
from rlvlm_jax.evaluation.scores import count_reflection, reflection
from rlvlm_jax.instruments import CompileCounter, Stopwatch
from rlvlm_jax.rewards.rules import is_repetitive
from rlvlm_jax.sampling.responses import Responses

Metrics = dict[str, Any]  # name -> number or None


class Sampled(NamedTuple):
    """All groups that a step sampled, on the host: M groups of G responses."""

    responses: Responses  # M * G
    scores: rewards.Scores  # M * G
    keep: np.ndarray  # bool[M], the groups that pass the filter
    chosen: np.ndarray  # int[N], the groups of the update's batch
    trained: np.ndarray  # bool[M * G], the responses that are trained on
    rounds: int  # batches of prompts


def score_metrics(sampled: Sampled) -> Metrics:
    """Returns the means of the score and of each reward, before weighting."""
    scores = sampled.scores
    return {
        "reward/score": scores.score.mean(),
        **{f"reward/{name}": value.mean() for name, value in scores.rewards.items()},
    }


def mean_where(values: np.ndarray, chosen: np.ndarray) -> float | None:
    """Returns the mean of the chosen values, None if none is chosen."""
    return float(np.mean(values[chosen])) if chosen.any() else None


def response_metrics(
    texts: Sequence[str],
    lengths: Sequence[int],
    correct: Sequence[bool],
    truncated: Sequence[bool],
) -> Metrics:
    """Returns the metrics of B responses that need no model.

    Args:
        texts: of the responses.
        lengths: content tokens per response.
        correct: the judge's verdicts.
        truncated: whether the limit ended the response, not a stop token.

    Returns:
        response/*: lengths in tokens without the stop token, fractions, and the accuracy of
        responses that were not truncated;
        reflection/*: the five ratios of `scores.reflection`;
        reflection_words/WORD: occurrences as MAYE counts them, also inside other words;
        reflection_whole_words/WORD: occurrences as a whole word;
        reflection_responses/WORD: responses that contain it as a whole word.
    """
    tokens, right = np.asarray(lengths, np.float64), np.asarray(correct, bool)
    ratios = reflection(texts, right.tolist())
    words = ratios.pop("words")
    whole = [count_reflection(text, "word") for text in texts]
    return {
        "response/length": float(np.mean(tokens)),
        "response/length_correct": mean_where(tokens, right),
        "response/length_incorrect": mean_where(tokens, ~right),
        "response/truncated_fraction": float(np.mean(truncated)),
        "response/repetition_fraction": float(np.mean([is_repetitive(text) for text in texts])),
        "response/accuracy_untruncated": mean_where(right, ~np.asarray(truncated, bool)),
        **{f"reflection/{name}": value for name, value in ratios.items()},
        **{f"reflection_words/{word}": count for word, count in words.items()},
        **{f"reflection_whole_words/{word}": sum(c[word] for c in whole) for word in words},
        **{f"reflection_responses/{word}": sum(c[word] > 0 for c in whole) for word in words},
    }


def filter_metrics(sampled: Sampled) -> Metrics:
    """Returns filter/*, over all sampled groups; {} for groups of one response.

    kept_fraction, all_correct, all_wrong: shares of the groups; rounds: batches sampled; trained:
    kept groups in the update's batch; surplus: kept groups beyond that batch.
    """
    keep, chosen = sampled.keep, sampled.chosen
    correct = sampled.scores.correct.reshape(len(keep), -1)
    if correct.shape[1] == 1:
        return {}
    trained = int(keep[chosen].sum())
    return {
        "filter/kept_fraction": float(keep.mean()),
        "filter/all_correct": float(correct.all(axis=1).mean()),
        "filter/all_wrong": float((~correct).all(axis=1).mean()),
        "filter/rounds": sampled.rounds,
        "filter/trained": trained,
        "filter/surplus": int(keep.sum()) - trained,
    }


def judge_metrics(sampled: Sampled) -> Metrics:
    """Returns judge/*: responses without a verdict, by reason, and failed custom rewards."""
    scores = sampled.scores
    return {
        "judge/timeouts": scores.status.count("timeout") + scores.custom_timeouts,
        "judge/custom_errors": scores.custom_errors,
        "judge/unparsable": scores.status.count("unparsable"),
        "judge/no_answer": scores.status.count("no_answer"),
        "judge/several_answers": sum(map(rewards.has_several_answers, sampled.responses.texts)),
    }


def text_metrics(sampled: Sampled) -> Metrics:
    """Returns `response_metrics` of all responses."""
    responses = sampled.responses
    return response_metrics(
        responses.texts, responses.lengths, sampled.scores.correct, responses.truncated
    )


SAMPLED_METRICS: dict[str, Callable[[Sampled], Metrics]] = {  # what they measure -> function
    "reward": score_metrics,
    "response": text_metrics,
    "filter": filter_metrics,
    "judge": judge_metrics,
}


def sampling_metrics(sampled: Sampled, dropped: int) -> Metrics:
    """Returns what steps I and II and the rewards gave.

    Args:
        sampled: of the step.
        dropped: training records that were left out so far.
    """
    metrics: Metrics = {}
    for function in SAMPLED_METRICS.values():
        metrics |= function(sampled)
    return {**metrics, "data/dropped": dropped}


def update_metrics(useful_fraction: float, learning_rate: float | None) -> Metrics:
    """Returns what the host knows about step IV.

    Args:
        useful_fraction: share of the computed tokens that were necessary, see `packing`.
        learning_rate: of the last optimizer step; None if no step was taken.
    """
    return {"update/useful_token_fraction": useful_fraction, "update/lr": learning_rate}


def cache_metrics(prompts: int, hits: int, gib: float) -> Metrics:
    """Returns how the cache of image features was used; {} if no prompt asked it.

    Args:
        prompts: looked up in this step. Those without an image never cause a miss.
        hits: prompts whose features came from the host.
        gib: memory of the cache.
    """
    if not prompts:
        return {}
    return {"memory/feature_cache_hits": hits / prompts, "memory/feature_cache_gib": gib}


def machine_metrics(
    watch: Stopwatch,
    memory: Sequence[Mapping[str, float]],
    compiles: CompileCounter,
    first_step_s: float | None,
) -> Metrics:
    """Returns time/*, memory/* and compile/*.

    Args:
        watch: of the step; its time ends here.
        memory: of each process, from `instruments.memory`. Without a number it is the largest;
            with several processes, NAME_N is that of process N.
        compiles: of this process.
        first_step_s: seconds from the start of the program to its first step; None after it.
    """
    numbers = {
        **{f"time/{name}_s": seconds for name, seconds in watch.seconds.items()},
        "time/step_s": watch.elapsed(),
    }
    numbers |= {
        f"memory/{name}": max(process.get(name, 0.0) for process in memory) for name in memory[0]
    }
    if len(memory) > 1:
        numbers |= {
            f"memory/{name}_{number}": gib
            for number, process in enumerate(memory)
            for name, gib in process.items()
        }
    return {
        **numbers,
        **compile_metrics(compiles),
        "time/to_first_step_s": first_step_s,
    }


def compile_metrics(compiles: CompileCounter) -> Metrics:
    """Returns how many programs were compiled, and read from disk instead if any was."""
    return {"compile/count": compiles.count, "compile/from_disk": compiles.from_disk or None}


def goodput_metrics(goodput: float) -> Metrics:
    """Returns the fraction of the run's time spent in steps that count."""
    return {"goodput/run": goodput}


def throughput_metrics(watch: Stopwatch, rollout_tokens: int | None, update_tokens: int) -> Metrics:
    """Returns tokens per second.

    Args:
        watch: of the step.
        rollout_tokens: sampled; None if nothing is sampled.
        update_tokens: response tokens in all optimizer steps.
    """
    rates = {"throughput/update_tokens_per_s": update_tokens / watch.seconds["update"]}
    if rollout_tokens is None:
        return rates
    return {"throughput/rollout_tokens_per_s": rollout_tokens / watch.seconds["rollout"], **rates}


def epoch_metrics(correct: int, count: int) -> Metrics:
    """Returns the accuracy of all responses sampled in an epoch."""
    return {"epoch/train_accuracy": correct / count}


def evaluation_metrics(split: str, accuracies: Mapping[str, float]) -> Metrics:
    """Returns the accuracies of one decoding setting on one set of questions."""
    return {f"eval/{split}/{name}": accuracy for name, accuracy in accuracies.items()}


def dropped_metrics(split: str, dropped: int) -> Metrics:
    """Returns how many questions of an evaluation set were left out."""
    return {f"eval/{split}/dropped": dropped}


def evaluation_end_metrics(seconds: float, compiles: CompileCounter) -> Metrics:
    """Returns what is known after all evaluations of a step, which took this long."""
    return {"time/eval_s": seconds, **compile_metrics(compiles)}
