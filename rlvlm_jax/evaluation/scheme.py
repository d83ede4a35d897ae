# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation inside a run: whole sets of questions, several decoding settings, on all devices.

Uses the same sampler, judge and prompt as training, but the setting's temperature and top-p, and no
top-k. Random keys belong to (seed, question, sample), so that one model at two steps, or two models
under one seed, are compared on the same draws. Writes nothing.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from rlvlm_jax import distributed, rewards, sharding
from rlvlm_jax.config import EVAL_SETTINGS, eval_samples, shards
from rlvlm_jax.data.example import Example
from rlvlm_jax.data.loader import EvaluationSet
from rlvlm_jax.evaluation.scores import pass_at_k
from rlvlm_jax.features import FeatureCache
from rlvlm_jax.sampling.responses import Responses, join, read_responses, take
from rlvlm_jax.sampling.sampler import SampleSettings, make_sample_fn, rows_of, sequence_keys
from rlvlm_jax.types import Params, Prompts, Rollout

SAMPLES_SEED = 1234  # with config.seed: sampling keys, the same at every evaluation


class Evaluation(NamedTuple):
    """The results of one decoding setting on one set of questions."""

    setting: str  # name in config.EVAL_SETTINGS
    accuracies: dict[str, float]  # see `accuracies`
    examples: list[Example]  # each has k adjacent responses
    responses: Responses
    verdicts: list[rewards.Verdict]


def accuracies(setting: str, correct: np.ndarray) -> dict[str, float]:
    """Returns the accuracies of one decoding setting.

    Args:
        setting: name in config.EVAL_SETTINGS, with k samples per question.
        correct: bool[questions, n], n >= k.

    Returns:
        setting: share of the questions that any of the first k samples solves, as MAYE plots;
        and for K = 1, 2, 4, ... < n, pass@K_T_unbiased: `scores.pass_at_k` of all n samples.
    """
    k = EVAL_SETTINGS[setting][0]
    n = correct.shape[1]
    scores = {setting: float(correct[:, :k].any(axis=1).mean())}
    temperature = setting.partition("_")[2]
    smaller = 1
    while smaller < n:
        rates = [pass_at_k(n, int(c), smaller) for c in correct.sum(axis=1)]
        scores[f"pass@{smaller}_{temperature}_unbiased"] = float(np.mean(rates))
        smaller *= 2
    return scores


def sample_ids(questions: np.ndarray, samples: int) -> np.ndarray:
    """Returns uint32[N * samples], an id per (question, sample); a question's ids are adjacent.

    More samples do not change the existing ids, as long as a set has at most 2^24 questions.
    """
    ids = questions.astype(np.uint32)[:, None] + (np.arange(samples, dtype=np.uint32) << 24)
    return ids.reshape(-1)


def _join_lists(parts: list[list[Any]]) -> list[Any]:
    return [item for part in parts for item in part]


def _take_list(items: list[Any], rows: np.ndarray) -> list[Any]:
    return [items[row] for row in rows]


def make_sampler(session: Any, config: ConfigDict, setting: str) -> Callable[..., Rollout]:
    """Returns the jitted (params, prompts, features, key, ids) -> rollout of a decoding setting.

    Args:
        session: of the run, see startup.Session.
        config: the whole configuration.
        setting: name in config.EVAL_SETTINGS.
    """
    _, temperature, top_p = EVAL_SETTINGS[setting]
    settings = SampleSettings(
        samples=eval_samples(config, setting),
        max_tokens=config.rollout.max_tokens,
        stop_ids=session.tokenizer.stop_ids,
        pad_id=session.tokenizer.pad_id,
        banned_ids=session.banned,
        temperature=temperature,
        top_p=top_p,
        shards=shards(config),
    )
    sample = make_sample_fn(session.model, settings)

    def with_ids(params: Params, batch: Prompts, features: Any, key: Any, ids: Any) -> Rollout:
        return sample(params, batch, features, sequence_keys(key, ids))

    return jax.jit(with_ids, out_shardings=sharding.batch_sharding(session.mesh))


def make_evaluate_fn(
    session: Any, config: ConfigDict, cache: FeatureCache | None = None
) -> Callable[[Params, EvaluationSet, Callable[[], bool]], Iterator[Evaluation]]:
    """Builds evaluate(params, questions, stop), with one compiled sampler per decoding setting.

    It calls `stop` before every batch; if that returns True, it ends without yielding anything.

    Args:
        session: of the run, see startup.Session.
        config: the whole configuration; reads `seed`, `eval`, `rollout` and `rewards`.
        cache: image features for the next evaluation; None for no cache, or if the vision side is
            trained.
    """
    by_rows = sharding.batch_sharding(session.mesh)
    samples = {name: eval_samples(config, name) for name in config.eval.settings}
    samplers = {name: make_sampler(session, config, name) for name in config.eval.settings}
    encode = jax.jit(session.model.encode_images, out_shardings=by_rows)
    key = jax.random.fold_in(jax.random.key(SAMPLES_SEED), config.seed)

    def evaluate(
        params: Params, questions: EvaluationSet, stop: Callable[[], bool]
    ) -> Iterator[Evaluation]:
        collected: dict[str, list[Responses]] = {name: [] for name in samplers}
        row_numbers: dict[str, list[np.ndarray]] = {name: [] for name in samplers}
        examples: list[Example] = []
        for numbers, batch_examples, host_batch in questions:
            if stop():
                return
            prompts = len(numbers)
            batch = sharding.put_rows(host_batch, prompts, session.mesh)
            own = sharding.rows_owned(session.mesh, prompts)
            own = own[own < len(batch_examples)]  # empty prompts fill up the last batch
            if cache is None:
                features = encode(params, batch)  # once for all settings
            else:
                features = cache.encode(encode, params, batch, host_batch, counted=False)
            for name, sample in samplers.items():
                ids = sharding.put_batch(sample_ids(numbers, samples[name]), session.mesh)
                rollout = sample(params, batch, features, key, ids)
                rows = rows_of(own, samples[name])
                own_rollout = sharding.take_here(rollout, rows)
                collected[name].append(read_responses(own_rollout, session.tokenizer))
                row_numbers[name].append(rows + len(examples) * samples[name])
            examples += batch_examples
        for name, parts in collected.items():
            rows, own_responses = np.concatenate(row_numbers[name]), join(parts)
            verdicts = rewards.judge_batch(
                own_responses.texts,
                [examples[row // samples[name]].solution for row in rows],
                config.rewards.judge,
                config.rewards.deadline_s,
                rules=rewards.Rules(rounding=config.rewards.rounding),
                workers=config.rewards.workers,
            )
            responses = distributed.gather_rows(rows, own_responses, join, take)
            verdicts = distributed.gather_rows(rows, verdicts, _join_lists, _take_list)
            correct = np.array([v.correct for v in verdicts]).reshape(-1, samples[name])
            yield Evaluation(name, accuracies(name, correct), examples, responses, verdicts)

    return evaluate
