# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Steps I and II: collects the groups of a step, each a prompt with its scored responses.

A round is one batch of prompts: read, sampled, scored, and compared with the trainer's and the
reference model's log-probabilities, which the device computes while the host scores the texts. If
the filter leaves too few groups, more rounds follow. The collector knows shape buckets, the cache
of image features, and which rows belong to this process; the loop knows none of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from rlvlm_jax import distributed, rewards, selection, sharding, startup
from rlvlm_jax.compiled_steps import Steps, make_planner, step_keys
from rlvlm_jax.data.example import Example
from rlvlm_jax.data.loader import Loader
from rlvlm_jax.features import Features
from rlvlm_jax.instruments import Stopwatch
from rlvlm_jax.sampling.responses import Responses, join, read_responses, take
from rlvlm_jax.sampling.sampler import rows_of
from rlvlm_jax.selection import Round
from rlvlm_jax.types import Array, Params, Passes, Prompts, Rollout, TrainState


class Batch(NamedTuple):
    """N prompts on the device, and what else their shape decides."""

    steps: Steps  # compiled for this shape
    prompts: Prompts
    prompt_mask: np.ndarray  # bool[N, P], the prompts' mask on the host
    features: Features | None


class Groups(NamedTuple):
    """The finished groups of one step: N of them make the update's batch."""

    rounds: list[Round]  # everything that was sampled
    chosen: np.ndarray  # int[N], the groups of the batch; see `selection.choose`
    batch: Batch
    rollout: Rollout  # B responses
    passes: Passes
    cache_counts: tuple[int, int, float]  # of this step; see `FeatureCache.take_counts`


class Collector:
    """Collects groups with the current parameters, from the loader's prompts."""

    def __init__(
        self,
        session: startup.Session,
        loader: Loader,
        steps: Mapping[tuple, Steps],
        reference: Params | None,
    ):
        """Starts with an empty cache of image features.

        Args:
            session: of the run.
            loader: of the training batches.
            steps: by `sharding.shape_key` of a batch of prompts, for every bucket of the loader.
            reference: parameters of the reference model, None if none is needed.
        """
        self._session, self._loader, self._reference = session, loader, reference
        self._steps = steps
        self._planner = make_planner(session)
        self.cache = startup.make_feature_cache(session)

    def collect(
        self, step: int, state: TrainState, watch: Stopwatch, stopping: Callable[[], bool]
    ) -> Groups | None:
        """Samples rounds until the filter keeps enough groups.

        Args:
            step: of the loop; random keys belong to it.
            state: its parameters draw the responses.
            watch: the step's timer.
            stopping: whether a signal asks to stop; all processes call it together.

        Returns:
            The groups; None if a signal asks to stop: the next start repeats the step.
        """
        config, rounds = self._session.config, []
        key, _ = step_keys(config.seed, step)
        while not (selection.is_enough(config, rounds) or stopping()):
            with watch.measure("data"):
                examples, host_prompts = self._loader.next()
                prompts = sharding.put_rows(
                    host_prompts, config.rollout.prompts, self._session.mesh
                )
            with watch.measure("rollout"):
                batch = self._batch(state.params, prompts, host_prompts)
            rounds.append(self._round(state, examples, batch, key, len(rounds), watch))
        if stopping():
            return None
        chosen, responses = (
            selection.choose(config, rounds),
            (rounds[-1].rollout, rounds[-1].passes),
        )
        if len(rounds) > 1:
            with watch.measure("trajectory"):
                batch, responses = self._merge(state.params, rounds, chosen)
        return Groups(rounds, chosen, batch, *responses, self.cache.take_counts())

    def _batch(self, params: Params, prompts: Prompts, host_prompts: Prompts) -> Batch:
        """Encodes the images of prompts that are on the device."""
        steps = self._steps[sharding.shape_key(prompts)]
        features = self.cache.encode(steps.encode, params, prompts, host_prompts)
        return Batch(steps, prompts, sharding.to_host(prompts.mask), features)

    def _round(
        self,
        state: TrainState,
        examples: list[Example],
        batch: Batch,
        key: Array,
        number: int,
        watch: Stopwatch,
    ) -> Round:
        """Samples, scores and compares the responses to one batch of prompts."""
        inputs = batch.prompts, batch.features
        with watch.measure("rollout"):
            rollout = batch.steps.sample(state.params, state.step, *inputs, key, np.uint32(number))
            responses = self._read(rollout)
        with watch.measure("trajectory"):
            plan = self._planner.for_passes(batch.prompt_mask, responses.tokens)
            plan = sharding.put_plan(plan, self._session.mesh)
        passes = batch.steps.passes(state.params, self._reference, *inputs, rollout, plan)
        with watch.measure("score"):  # while the device makes the passes
            scores = self._score(responses, examples)
        keep = selection.kept_groups(self._session.config, scores.rewards["accuracy"])
        return Round(examples, batch.prompts, rollout, passes, responses, scores, keep)

    def _merge(
        self, params: Params, rounds: Sequence[Round], chosen: np.ndarray
    ) -> tuple[Batch, tuple[Rollout, Passes]]:
        """Makes one batch of the chosen groups of several rounds."""
        session = self._session
        host_prompts, *responses = selection.merge(
            session.config,
            rounds,
            chosen,
            self._loader.buckets,
            session.tokenizer.pad_id,
            session.media,
        )
        prompts, *responses = sharding.put_batch((host_prompts, *responses), session.mesh)
        return self._batch(params, prompts, host_prompts), responses

    # ---- work that is split over the processes ------------------------------------------------

    def _own_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns this process's prompts of a batch, and their response rows."""
        rollout = self._session.config.rollout
        own = sharding.rows_owned(self._session.mesh, rollout.prompts)
        return own, rows_of(own, rollout.samples)

    def _read(self, rollout: Rollout) -> Responses:
        """Returns all responses of a rollout; each process decodes its own."""
        _, rows = self._own_rows()
        rollout = rollout._replace(sampled=None, version=None)  # not needed on the host
        own = read_responses(sharding.take_here(rollout, rows), self._session.tokenizer)
        return distributed.gather_rows(rows, own, join, take)

    def _score(self, responses: Responses, examples: Sequence[Example]) -> rewards.Scores:
        """Returns the scores of all responses; each process scores its own."""
        own, rows = self._own_rows()
        config = self._session.config
        own_scores = score_responses(
            take(responses, rows),
            [examples[number] for number in own],
            config.rewards,
            config.rollout.max_tokens,
        )
        return distributed.gather_rows(rows, own_scores, rewards.join, rewards.take)


def score_responses(
    responses: Responses, examples: Sequence[Example], settings: ConfigDict, max_tokens: int
) -> rewards.Scores:
    """Scores the G adjacent responses of each example; see `rewards.score`."""
    samples = len(responses.texts) // max(len(examples), 1)
    fields = [
        {
            "id": example.id,
            "question": example.question,
            "answer": example.answer,
            "solution": example.solution,
            "images": [str(image) for image in example.images if not isinstance(image, bytes)],
        }
        for example in examples
        for _ in range(samples)
    ]
    truncated, lengths = responses.truncated.tolist(), responses.lengths.tolist()
    return rewards.score(
        responses.texts, fields, truncated, lengths, settings, max_tokens, distributed.gather
    )
