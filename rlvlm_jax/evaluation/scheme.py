# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation inside a run: whole sets of questions, several decoding settings, on all devices.

The same sampler, judge and prompt as in training. Random keys belong to (question, sample), so two
models, or one model at two steps, are compared on the same draws. Writes nothing.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from rlvlm_jax import rewards, sharding
from rlvlm_jax.config import EVAL_SETTINGS
from rlvlm_jax.data.dataset import Example
from rlvlm_jax.data.loader import EvaluationSet
from rlvlm_jax.evaluation.scores import pass_at_k
from rlvlm_jax.sampling.responses import Responses, first, join, read_responses
from rlvlm_jax.sampling.sampler import SampleSettings, make_sample_fn, sequence_keys
from rlvlm_jax.types import Params


class Evaluation(NamedTuple):
    """What one decoding setting gave on one set of questions."""

    setting: str  # name in config.EVAL_SETTINGS
    pass_at_k: float
    examples: list[Example]  # each has k adjacent responses
    responses: Responses
    verdicts: list[rewards.Verdict]


def make_evaluate_fn(
    session: Any, config: ConfigDict
) -> Callable[[Params, EvaluationSet], Iterator[Evaluation]]:
    """Builds evaluate(params, questions), compiling one sampler for each decoding setting.

    Args:
        session: of the run, see startup.Session.
        config: the whole configuration; `eval` and `rewards` are read.
    """

    def make_sampler(samples: int, temperature: float, top_p: float) -> Callable[..., Any]:
        settings = SampleSettings(
            samples=samples,
            max_tokens=config.rollout.max_tokens,
            stop_ids=session.tokenizer.stop_ids,
            pad_id=session.tokenizer.pad_id,
            banned_ids=session.banned,
            temperature=temperature,
            top_p=top_p,
            chunk=config.rollout.chunk,
        )
        sample = make_sample_fn(session.model, settings)

        def with_ids(params: Params, batch: Any, features: Any, key: Any, ids: Any) -> Any:
            return sample(params, batch, features, sequence_keys(key, ids))

        return jax.jit(with_ids)

    samplers = {name: make_sampler(*EVAL_SETTINGS[name]) for name in config.eval.settings}
    key = jax.random.key(config.eval.samples_seed)

    def evaluate(params: Params, questions: EvaluationSet) -> Iterator[Evaluation]:
        for setting, sample in samplers.items():
            k = EVAL_SETTINGS[setting][0]
            parts, examples = [], []
            for numbers, found, host_batch in questions:
                batch = sharding.put_batch(host_batch, session.mesh)
                ids = (numbers[:, None] * k + np.arange(k)).reshape(-1).astype(np.uint32)
                ids = sharding.put_batch(ids, session.mesh)
                rollout = sample(params, batch, None, key, ids)
                responses = read_responses(rollout, session.tokenizer)
                # The last batch is filled up with empty prompts.
                parts.append(first(responses, len(found) * k))
                examples += found
            responses = join(parts)
            verdicts = rewards.judge_batch(
                responses.texts,
                [example.solution for example in examples for _ in range(k)],
                config.rewards.judge,
                config.rewards.deadline_s,
                workers=config.rewards.workers,
            )
            right = np.array([v.correct for v in verdicts]).reshape(-1, k).sum(axis=1)
            rate = float(np.mean([pass_at_k(k, int(c), k) for c in right]))
            yield Evaluation(setting, rate, examples, responses, verdicts)

    return evaluate
