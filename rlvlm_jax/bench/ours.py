# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Our side: the compiled functions of `train`'s loop, timed part by part or as an iteration.

Each part blocks until its result is ready. `iteration` runs one pass of the loop in the loop's
order, without data loading, text decoding and rewards: fixed scores replace the judge's.
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from rlvlm_jax import optim, sharding, startup
from rlvlm_jax.bench.work import Workload
from rlvlm_jax.compiled_steps import Steps, compile_steps, make_steps, needs_reference
from rlvlm_jax.config import sequences
from rlvlm_jax.types import Params, Passes, Prompts, Rollout, TrainState
from rlvlm_jax.update import Minibatch, cut, minibatch_order, put_minibatches

NO_PLAN = None  # nothing is packed
UPDATES = 10_000  # length of the learning-rate schedule; large, so that the rate hardly changes


@dataclasses.dataclass
class Ours:
    """The compiled steps and their inputs. Every update replaces `state`."""

    session: startup.Session
    steps: Steps
    state: TrainState
    reference: Params | None
    batch: Prompts  # on the device
    compile_s: float  # all steps together; the times below exclude it
    key: Any
    minibatches: Minibatch  # stacked, on the device, always the same
    features: Any = None
    sampled: Rollout | None = None  # on the device
    passes: Passes | None = None

    def _encode_and_sample(self) -> Rollout:
        self.features = None
        if self.session.features_frozen:
            self.features = self.steps.encode(self.state.params, self.batch)
        self.sampled = self.steps.sample(
            *(self.state.params, self.state.step, self.batch, self.features),
            *(self.key, np.uint32(0)),
        )
        return sharding.to_host(self.sampled)

    def _score(self) -> tuple[Any, Any]:
        rows = sequences(self.session.config)
        scores = (np.arange(rows) % 2).astype(np.float32)
        return sharding.put_batch((scores, np.ones(rows, bool)), self.session.mesh)

    def _trajectory(self, scores: tuple[Any, Any]) -> tuple[Any, Any]:
        return self.steps.trajectory(self.batch, self.features, self.sampled, self.passes, *scores)

    def rollout(self) -> float:
        """Encodes the images, samples, and copies the responses to the host; returns seconds."""
        start = time.perf_counter()
        self._encode_and_sample()
        return time.perf_counter() - start

    def logprobs(self) -> float:
        """Runs the trainer's log-prob passes over the last responses; returns seconds."""
        start = time.perf_counter()
        self.passes = jax.block_until_ready(self._run_passes())
        return time.perf_counter() - start

    def _run_passes(self) -> Passes:
        inputs = (self.state.params, self.reference, self.batch, self.features, self.sampled)
        return self.steps.passes(*inputs, NO_PLAN)

    def update(self) -> float:
        """Runs all optimizer steps on the last responses; returns seconds."""
        trajectory, _ = jax.block_until_ready(self._trajectory(self._score()))
        start = time.perf_counter()
        self._update(trajectory)
        return time.perf_counter() - start

    def _update(self, trajectory: Any) -> None:
        (self.state, _), stats = self.steps.update((self.state, trajectory), self.minibatches)
        jax.block_until_ready(self.state)
        if np.all(sharding.to_host(stats["skipped"])):
            raise FloatingPointError("the update's loss is not finite, so its time means nothing")

    def responses(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (tokens int32[B, R], the sampler's log-probabilities float32[B, R])."""
        return sharding.to_host((self.sampled.tokens, self.sampled.logprobs))

    def logprob_diff(self) -> dict[str, float]:
        """Returns mean and largest |sampler - trainer| log-probability difference in nats.

        Empty if the passes do not compare them (`config.algorithm.old_logprobs`).
        """
        if self.passes.logprob_diff is None:
            return {}
        diff, mask = sharding.to_host((self.passes.logprob_diff, self.sampled.sampled))
        return {"mean": float(diff[mask].mean()), "max": float(diff[mask].max())}

    def iteration(self) -> float:
        """Runs one pass of the training loop; returns seconds."""
        start = time.perf_counter()
        self._encode_and_sample()
        self.passes = self._run_passes()
        trajectory, stats = self._trajectory(self._score())
        sharding.to_host(stats)
        self._update(trajectory)
        return time.perf_counter() - start


def start(work: Workload) -> Ours:
    """Loads the weights and compiles every step for the batch's shape; runs nothing."""
    config, session = work.config, work.session
    optimizer, _ = optim.make_optimizer(config.train, UPDATES, session.model.part)
    reference = startup.initial_params(session) if needs_reference(config) else None
    state = startup.initial_state(session, optimizer)
    bucket = work.batch.tokens.shape[1], session.media.size(work.batch.media)
    begin = time.perf_counter()
    steps = compile_steps(make_steps(session, optimizer, state), session, state, reference, bucket)
    compile_s = time.perf_counter() - begin
    batch = sharding.put_batch(work.batch, session.mesh)
    key = jax.random.key(config.seed)
    minibatches = cut(config, minibatch_order(config, key), None)
    minibatches = put_minibatches(minibatches, session.mesh)
    return Ours(session, steps, state, reference, batch, compile_s, key, minibatches)
