# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Writes what a run did: its configuration, metrics, responses and evaluations.

One process of a run has a recorder. It turns steps into rows of responses and into metrics, and
hands them to the run's directory and to the writers.
"""

import importlib.metadata
import logging
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rlvlm_jax import __version__, rewards, step_metrics
from rlvlm_jax.data.example import Example
from rlvlm_jax.errors import InputError
from rlvlm_jax.evaluation.scheme import Evaluation
from rlvlm_jax.evaluation.scores import is_reflective
from rlvlm_jax.instruments import CompileCounter, Stopwatch
from rlvlm_jax.run_directory import RunDirectory
from rlvlm_jax.sampling.responses import Responses, join
from rlvlm_jax.sampling.sampler import rows_of
from rlvlm_jax.selection import Round
from rlvlm_jax.startup import Session, resolved_config
from rlvlm_jax.step_metrics import Metrics, Sampled
from rlvlm_jax.writers import Writers

TOKEN_PROMPTS = 4  # prompts per step whose responses are also written token by token


class Position(NamedTuple):
    """How far a run has come."""

    step: int  # the last finished one
    epoch: float  # passes over the training data
    epoch_ended: bool  # an epoch ended in this step


class Machine(NamedTuple):
    """What was measured about the machine in a step."""

    watch: Stopwatch
    memory: list[dict[str, float]]  # of each process
    compiles: CompileCounter
    first_step_s: float | None  # seconds from the program's start to its first step; None after it

    def metrics(self) -> Metrics:
        """Returns its numbers; the step ends here."""
        return step_metrics.machine_metrics(*self)


class TrainedStep(NamedTuple):
    """What one RL step did, on the host."""

    rounds: Sequence[Round]  # everything that was sampled
    chosen: np.ndarray  # int[N], the groups of the update's batch
    advantages: np.ndarray  # float32[B, R], of each token of that batch
    logprob_diffs: np.ndarray  # float32[responses], largest per response, nats; NaN if unknown
    device_stats: Mapping[str, Any]  # from steps III and IV
    useful_fraction: float  # share of the tokens computed in step IV that were necessary
    learning_rate: float | None  # of the last optimizer step, None if none was taken
    cache_counts: tuple[int, int, float]  # see `FeatureCache.take_counts`


def _git_revision() -> str | None:
    """Returns the commit of this code, None if it is no git checkout or git is missing."""
    command = ["git", "rev-parse", "HEAD"]
    here = Path(__file__).parent
    try:
        completed = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return completed.stdout.strip() or None


def environment() -> dict[str, Any]:
    """Returns what a run's numbers depend on besides its configuration."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
    devices = jax.devices()
    return {
        "versions": {
            "rlvlm_jax": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "git_revision": _git_revision(),
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
    }


class Recorder:
    """Writes to a run's directory and shows its metrics."""

    def __init__(
        self,
        session: Session,
        workdir: Path,
        started: float,
        reports: Mapping[str, Any],
        epoch_accuracy: Sequence[int],
    ):
        """Creates the directory.

        Args:
            session: of the run.
            workdir: of the run.
            started: when the program started, in seconds since 1970.
            reports: split -> how many records were read, used and dropped.
            epoch_accuracy: (correct responses, responses) so far in the epoch.

        Raises:
            InputError: the directory cannot be written.
        """
        self.directory = RunDirectory(workdir, started)
        self._session, self._config, self._reports = session, session.config, reports
        self._epoch_correct, self._epoch_count = epoch_accuracy

    def begin(self, first_step: int, resumed: bool, total_steps: int, sizes: Any) -> None:
        """Starts or continues the records.

        Args:
            first_step: of the checkpoint that the run resumes from, else 0.
            resumed: whether there is one.
            total_steps: of the run.
            sizes: written to config.json.

        Raises:
            InputError: the directory holds another run.
        """
        c, directory = self._config, self.directory
        old_config = directory.read_config().get("config", {})
        old_value = old_config.get("log", {}).get("checkpoints", "")
        if not resumed and old_config and old_value != c.log.checkpoints:
            raise InputError(
                f"{directory.path} holds a run with checkpoints at config.log.checkpoints="
                f"{old_value!r}, but {c.log.checkpoints!r} has none; use the old value to resume "
                "that run, or another --workdir"
            )
        directory.trim(first_step if resumed else None)
        phase = "sft" if c.mode == "sft" else "train"
        if first_step and not directory.has(phase, first_step):
            logging.warning(
                "%s holds no records of the steps up to %d, but %s resumes after them; it will "
                "only hold the later steps",
                *(directory.path, first_step, c.log.checkpoints or directory.path / "checkpoints"),
            )
        about = {
            "config": resolved_config(c),
            **environment(),
            "judge_version": rewards.JUDGE_VERSION,
            "attention": self._session.attention,
            "data": self._reports,
            "sizes": sizes,
        }
        directory.write_config(about)
        self._writers = Writers(c.log, str(directory.path), total_steps, about["config"])

    def close(self) -> None:
        """Closes the writers."""
        self._writers.close()

    @property
    def epoch_accuracy(self) -> tuple[int, int]:
        """(correct responses, responses) so far in the epoch."""
        return self._epoch_correct, self._epoch_count

    # ---- steps --------------------------------------------------------------------------------

    def record_step(
        self, position: Position, trained: TrainedStep, dropped: int, machine: Machine
    ) -> None:
        """Writes everything about one RL step: the responses, then the metrics.

        Args:
            position: after the step.
            trained: what it did.
            dropped: training records left out so far.
            machine: of the step.
        """
        sampled = self._sampled(trained)
        self.directory.write_rollouts(position.step, self._rollout_rows(trained, sampled))
        self._epoch_correct += int(sampled.scores.correct.sum())
        self._epoch_count += len(sampled.scores.correct)
        if not sampled.keep.any():
            logging.warning(
                "step %d: none of %d groups has an accuracy between config.algorithm.filter_low "
                "and filter_high; nothing was trained",
                *(position.step, len(sampled.keep)),
            )
        tokens, watch = sampled.responses.tokens, machine.watch
        values = {
            **step_metrics.sampling_metrics(sampled, dropped),
            **trained.device_stats,
            **step_metrics.update_metrics(trained.useful_fraction, trained.learning_rate),
            **step_metrics.cache_metrics(*trained.cache_counts),
            **machine.metrics(),
        }
        values |= step_metrics.goodput_metrics(self.directory.goodput(values["time/step_s"]))
        update_tokens = tokens[sampled.trained].sum() * self._config.train.epochs
        values |= step_metrics.throughput_metrics(watch, tokens.sum(), update_tokens)
        if position.epoch_ended:
            values |= step_metrics.epoch_metrics(*self.epoch_accuracy)
            self._epoch_correct = self._epoch_count = 0
        note = (
            f"reward {values['reward/score']:.3f}  "
            f"{values['throughput/rollout_tokens_per_s']:,.0f} tokens/s"
        )
        self._append("train", position, values, note)

    def record_supervised(
        self, position: Position, device_stats: Mapping[str, Any], tokens: int, machine: Machine
    ) -> None:
        """Writes everything about one supervised step of this many response tokens."""
        values = {**device_stats, **machine.metrics()}
        values |= step_metrics.goodput_metrics(self.directory.goodput(values["time/step_s"]))
        values |= step_metrics.throughput_metrics(machine.watch, None, tokens)
        self._append("sft", position, values, f"loss {values['update/loss']:.3f}")

    def record_evaluation(self, step: int, split: str, evaluation: Evaluation) -> None:
        """Writes the responses of one decoding setting on one set of questions."""
        correct = np.array([verdict.correct for verdict in evaluation.verdicts])
        statuses = [verdict.status for verdict in evaluation.verdicts]
        parts = {"accuracy": correct.astype(np.float32)}
        unknown = np.full(len(correct), np.nan, np.float32)
        rows = self._response_rows(
            evaluation.examples, evaluation.responses, correct, statuses, parts, unknown
        )
        rows = [{**row, "judge_version": rewards.JUDGE_VERSION} for row in rows]
        self.directory.write_evaluation(step, split, evaluation.setting, rows)

    def record_accuracies(self, position: Position, values: Metrics) -> None:
        """Writes the metrics of all evaluations at a step."""
        self._append("eval", position, values)

    def _append(self, phase: str, position: Position, values: Metrics, note: str = "") -> None:
        values = {name: float(value) for name, value in values.items() if value is not None}
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        self.directory.append(phase, position.step, position.epoch, values)
        self._writers.write(position.step, values, note)

    # ---- responses ----------------------------------------------------------------------------

    def _sampled(self, trained: TrainedStep) -> Sampled:
        """Joins the rounds of a step."""
        rounds, samples = trained.rounds, self._config.rollout.samples
        responses = join([r.responses for r in rounds])
        keep = np.concatenate([r.keep for r in rounds])
        in_batch = np.isin(np.arange(len(responses.texts)), rows_of(trained.chosen, samples))
        return Sampled(
            responses=responses,
            scores=rewards.join([r.scores for r in rounds]),
            keep=keep,
            chosen=trained.chosen,
            trained=in_batch & np.repeat(keep, samples),
            rounds=len(rounds),
        )

    def _rollout_rows(self, trained: TrainedStep, sampled: Sampled) -> list[dict[str, Any]]:
        """Returns a row per response of an RL step; the first ones also have their tokens."""
        scores, samples = sampled.scores, self._config.rollout.samples
        rows = self._response_rows(
            [example for r in trained.rounds for example in r.examples],
            sampled.responses,
            scores.correct,
            scores.status,
            scores.rewards,
            trained.logprob_diffs,
        )
        for row, is_trained in zip(rows, sampled.trained, strict=True):
            row["trained"] = bool(is_trained)
        in_full = rows_of(trained.chosen, samples)[: TOKEN_PROMPTS * samples]
        for number, b in enumerate(in_full.tolist()):
            rows[b] |= self._token_fields(sampled.responses, trained.advantages[number], b)
        return rows

    def _response_rows(
        self,
        examples: Sequence[Example],
        responses: Responses,
        correct: np.ndarray,
        statuses: Sequence[str],
        parts: Mapping[str, np.ndarray],
        logprob_diffs: np.ndarray,
    ) -> list[dict[str, Any]]:
        """Returns a row per response: its record, text, lengths, verdict and rewards."""
        rows = []
        samples = len(responses.texts) // len(examples)
        image_names = [self._image_names(example) for example in examples]
        for b in range(len(responses.texts)):
            example = examples[b // samples]
            row = {
                "id": example.id,
                "question": example.question,
                "image": image_names[b // samples],
                "solution": example.solution,
                "response": responses.texts[b],
                "tokens": int(responses.tokens[b]),
                "length": int(responses.lengths[b]),
                "truncated": bool(responses.truncated[b]),
                "correct": bool(correct[b]),
                "judge": statuses[b],
                "rewards": {name: float(values[b]) for name, values in parts.items()},
                "reflective": is_reflective(responses.texts[b]),
            }
            if example.kind:
                row["kind"] = example.kind
            if math.isfinite(logprob_diffs[b]):
                row["logprob_gap"] = float(logprob_diffs[b])
            rows.append(row)
        return rows

    def _image_names(self, example: Example) -> str | list[str] | None:
        """Returns the paths of the example's images; writes images that have no file, once."""
        names = []
        for image in example.images:
            if isinstance(image, str | Path):
                names.append(str(Path(image).absolute()))
                continue
            encoded = image if isinstance(image, bytes) else image.read()
            names.append(self.directory.write_image(encoded))
        return names[0] if len(names) == 1 else names or None

    def _token_fields(
        self, responses: Responses, advantages: np.ndarray, b: int
    ) -> dict[str, list[Any]]:
        """Returns text, log-probability (nats) and advantage of each token of response b."""
        ids = responses.ids[b]

        def numbers(values: np.ndarray) -> list[float | None]:
            return [round(x, 4) if math.isfinite(x) else None for x in values.tolist()]

        return {
            "pieces": self._session.tokenizer.pieces(ids),
            "logprobs": numbers(responses.logprobs[b]),
            "advantages": numbers(advantages[: len(ids)]),
        }
