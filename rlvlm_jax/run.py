# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A run and its directory: all side effects of the programs.

Creating a `Run` checks everything a user can get wrong (directory, model, data, configuration). It
writes only the index of prompt lengths and, with several processes, a file that shows whether they
share one directory. Entering the `Run` starts the records. It hides from the loops: records,
checkpoints, signals, progress, and the number of processes (one of them writes the records).
"""

import faulthandler
import importlib.metadata
import logging
import math
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rlvlm_jax import (
    __version__,
    checkpoint,
    collection,
    distributed,
    metrics,
    old_keys,
    optim,
    records,
    rewards,
    run_data,
    sharding,
    signals,
    startup,
)
from rlvlm_jax import config as config_lib
from rlvlm_jax.collection import Round
from rlvlm_jax.data.example import Example
from rlvlm_jax.errors import InputError
from rlvlm_jax.evaluation.scheme import Evaluation
from rlvlm_jax.evaluation.scores import is_reflective
from rlvlm_jax.sampling.responses import Responses, join, read_responses, take
from rlvlm_jax.sampling.sampler import rows_of
from rlvlm_jax.types import Params, Prompts, Rollout, TrainState

VISIBLE_WITHIN_S = 60  # for the other hosts; NFS may cache for this long that a file is missing
MAX_BAD_STEPS = 5  # consecutive updates with a non-finite gradient before the run stops
TOKEN_PROMPTS = 4  # prompts per step whose responses are also written token by token
# Keys or groups of keys that may change when a run is resumed.
MAY_CHANGE = (*config_lib.HARMLESS, "total_steps", "epochs", "eval_every", "eval.")


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


def _changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns the dotted keys whose values differ, except those that may change."""
    changed = []
    for key in sorted({*old, *new}):
        name, a, b = prefix + key, old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            changed += _changed_keys(a, b, f"{name}.")
        elif a != b and not name.startswith(MAY_CHANGE):
            changed.append(name)
    return changed


def _with_defaults(saved: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Fills keys that a saved configuration does not have yet with their defaults."""
    return {
        **saved,
        **{
            key: _with_defaults(saved[key], value) if isinstance(value, Mapping) else saved[key]
            for key, value in defaults.items()
            if key in saved
        },
        **{key: value for key, value in defaults.items() if key not in saved},
    }


class Run:
    """One run: `with run:` writes its directory and restores signal handlers at the end."""

    def __init__(self, config: ConfigDict, workdir: str):
        self._clock = metrics.ProgramClock()
        self.stopped = False  # a signal asked any process to stop, and all know
        self._profiled = range(0)  # the steps of the profile being recorded
        signals.catch()
        self.config = config
        self.workdir = Path(workdir)
        self._writes = distributed.is_first()
        self._checkpoints = checkpoint.absolute(
            config.log.checkpoints or self.workdir / "checkpoints"
        )
        distributed.together(lambda: self._check_writable(workdir))
        fingerprints = distributed.together(self._set_up)
        if any(fingerprint != fingerprints[0] for fingerprint in fingerprints):
            raise InputError(
                f"the processes do not see the same files: {fingerprints}; put --workdir={workdir} "
                "and the data on storage that all hosts share"
            )
        if config.mode != "eval":
            patience_s = min(config.hosts.start_s, VISIBLE_WITHIN_S)
            checkpoint.check_shared(self._checkpoints, patience_s)

    def _check_writable(self, workdir: str) -> None:
        """Checks that everything the run will write can be written."""
        if self._writes:
            records.check_writable(workdir)
        metrics.check_writers(self.config.log)
        checkpoint.check_bucket(self._checkpoints)

    def _set_up(self) -> dict[str, Any]:
        """Opens checkpoint, model and data; returns what must be the same in every process."""
        config = self.config
        self._compiles = metrics.CompileCounter()
        self.first_step = checkpoint.latest_step(self._checkpoints) or 0
        self.resumed = self.first_step > 0 or checkpoint.is_checkpoint(self._checkpoints)
        saved = self._read_saved() if self.resumed else {}
        self.session = startup.open_session(config, startup.open_source(config.model.path))
        if config.rewards.custom:
            rewards.load_custom(config.rewards.custom)
        data = run_data.open_data(self.session)
        self.loader, self.total_steps, self.evaluation_sets, self.reports, digests = data
        profiled = config_lib.profiled_steps(config)
        if config.mode != "eval" and profiled and profiled[0] > self.total_steps:
            raise InputError(
                f"config.log.profile={config.log.profile} starts after the last step "
                f"({self.total_steps})"
            )
        if saved:
            self.loader.restore(saved["cursor"])
        self.step = self.first_step
        self._epoch = self.loader.epoch if self.loader else 0.0
        self._epoch_ended = saved.get("epoch_ended", False)  # at the last step
        self._epoch_correct, self._epoch_count = saved.get("epoch_accuracy", (0, 0))
        self._saved_step = self.first_step if self.resumed else -1
        self._cursor = self.loader.state() if self.loader else {}
        self._sizes: dict[str, int] = {}
        return {
            "step of the newest checkpoint": self.first_step if self.resumed else None,
            "records": {split: report["used"] for split, report in self.reports.items()},
            "digest of their content": digests,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.session.shapes)),
        }

    # ---- before anything is written -----------------------------------------------------------

    def _read_saved(self) -> dict[str, Any]:
        """Returns the run item of the newest checkpoint; checks that this run may resume it."""
        saved = checkpoint.read_run(self._checkpoints / str(self.first_step))
        if old_keys.is_old(saved["config"]):
            raise InputError(
                f"{self.workdir} holds a run of an older version, which cannot be resumed; use "
                "another --workdir, or evaluate or export its checkpoint"
            )
        defaults = startup.resolved_config(config_lib.default())
        old = _with_defaults(saved["config"], defaults)
        new = startup.resolved_config(self.config)
        changed = _changed_keys(old, new)
        microbatches = [config["train"]["microbatch"] for config in (old, new)]
        if new["algorithm"]["aggregate"] == "microbatch" and microbatches[0] != microbatches[1]:
            changed.append("train.microbatch")  # here it is part of the loss
        if changed:
            raise InputError(
                f"{self.workdir} holds a run with another configuration (config."
                f"{', config.'.join(changed[:5])} differ{'s' if len(changed) == 1 else ''}); "
                "restore the old values, or use another --workdir"
            )
        return saved

    # ---- work that is split over the processes ------------------------------------------------

    def put(self, batch: Prompts) -> Prompts:
        """Moves the rows that this process encoded onto the mesh; see `Loader`."""
        prompts = self.config.train.minibatch
        if self.config.mode == "rl":
            prompts = self.config.rollout.prompts
        mesh = self.session.mesh
        return sharding.put_rows(batch, sharding.rows_here(mesh, prompts), prompts, mesh)

    def _own_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns this process's prompts of an RL batch, and their response rows."""
        own = sharding.rows_owned(self.session.mesh, self.config.rollout.prompts)
        return own, rows_of(own, self.config.rollout.samples)

    def read(self, rollout: Rollout) -> Responses:
        """Returns all responses of a rollout; each process decodes its own."""
        _, rows = self._own_rows()
        rollout = rollout._replace(sampled=None, version=None)  # not needed on the host
        own_responses = read_responses(sharding.take_here(rollout, rows), self.session.tokenizer)
        return distributed.gather_rows(rows, own_responses, join, take)

    def score(self, responses: Responses, examples: Sequence[Example]) -> rewards.Scores:
        """Returns the scores of all responses; each process scores its own."""
        own, rows = self._own_rows()
        own_scores = score_responses(
            take(responses, rows),
            [examples[number] for number in own],
            self.config.rewards,
            self.config.rollout.max_tokens,
        )
        return distributed.gather_rows(rows, own_scores, rewards.join, rewards.take)

    def stopping(self) -> bool:
        """Returns whether a signal asked any process to stop; all processes must call it."""
        self.stopped = self.stopped or any(distributed.gather(signals.stop_requested()))
        return self.stopped

    # ---- start and end ------------------------------------------------------------------------

    def __enter__(self) -> "Run":
        """Creates or trims the run's directory; from now on the run writes to it."""
        self._watch()
        keep = self.config.log.keep_checkpoints
        self._manager = checkpoint.open_manager(self._checkpoints, keep)
        distributed.together(self._open_records)
        return self

    def _open_records(self) -> None:
        """Starts or continues the records, in the process that writes them."""
        if not self._writes:
            return
        c = self.config
        self._records = records.RunDirectory(self.workdir, self._clock.start)
        old_config = self._records.read_config().get("config", {})
        old_value = old_config.get("log", {}).get("checkpoints", "")
        if not self.resumed and old_config and old_value != c.log.checkpoints:
            raise InputError(
                f"{self.workdir} holds a run with checkpoints at config.log.checkpoints="
                f"{old_value!r}, but {c.log.checkpoints!r} has none; use the old value to resume "
                "that run, or another --workdir"
            )
        self._records.trim(self.first_step if self.resumed else None)
        phase = "sft" if c.mode == "sft" else "train"
        if self.first_step and not self._records.has(phase, self.first_step):
            logging.warning(
                "%s holds no records of the steps up to %d, but %s resumes after them; it will "
                "only hold the later steps",
                *(self.workdir, self.first_step, self._checkpoints),
            )
        self._records.write_config(
            {
                "config": startup.resolved_config(c),
                **environment(),
                "judge_version": rewards.JUDGE_VERSION,
                "attention": self.session.attention,
                "data": self.reports,
                "sizes": self._sizes,
            }
        )
        self._writers = metrics.Writers(
            c.log, str(self.workdir), self.total_steps, startup.resolved_config(c)
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.loader is not None:
            self.loader.close()
        self._manager.close()
        if self._writes:
            self._writers.close()
        rewards.close()
        faulthandler.cancel_dump_traceback_later()
        if self._profiled:
            self._end_profile()
        if jax.process_count() == 1:  # with several, dying here would look like a lost peer
            signals.release()

    # ---- time ---------------------------------------------------------------------------------

    def begin_step(self, step: int) -> metrics.Stopwatch:
        """Returns the step's timer; starts the configured profile and deadline."""
        self._watch()
        profiled = config_lib.profiled_steps(self.config)
        if step in profiled and not self._profiled:
            self._profiled = profiled
            jax.profiler.start_trace(str(self.workdir / "profile"))
        return metrics.Stopwatch()

    def _watch(self) -> None:
        """Starts the deadline of a step or an evaluation; see `config.hosts.deadline_s`."""
        if self.config.hosts.deadline_s:
            faulthandler.dump_traceback_later(self.config.hosts.deadline_s, repeat=True)

    def _end_profile(self) -> None:
        self._profiled = range(0)
        jax.profiler.stop_trace()

    # ---- state --------------------------------------------------------------------------------

    def restore_or_init(self, optimizer: optim.Optimizer) -> TrainState:
        """Returns the state of the newest checkpoint, or the initial state.

        Args:
            optimizer: its state is sharded like the parameters.
        """
        shapes = startup.state_shapes(self.session, optimizer)
        is_trained = optim.make_trained(self.config.train, self.session.model.part)
        trained, _ = optim.split(shapes.params, is_trained)
        self._sizes = {
            "parameters": sum(x.size for x in jax.tree.leaves(shapes.params)),
            "trained_parameters": sum(x.size for x in jax.tree.leaves(trained)),
            "optimizer_bytes": sum(
                x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes.opt_state)
            ),
        }
        if self.resumed:
            return checkpoint.restore(self._checkpoints / str(self.first_step), shapes)
        return startup.initial_state(self.session, optimizer)

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint of the last finished step, in the background."""
        if self._saved_step == self.step:
            return
        about = {
            "config": startup.resolved_config(self.config),
            "cursor": self._cursor,
            "epoch_accuracy": (self._epoch_correct, self._epoch_count),
            "epoch_ended": self._epoch_ended,
        }
        checkpoint.save(self._manager, self.step, state, about, dict(self.session.source.files))
        self._saved_step = self.step

    def finish(self, state: TrainState) -> None:
        """Saves the last step and waits until it is written."""
        self.save(state)
        self._manager.wait_until_finished()

    def is_due(self, every: int) -> bool:
        """Returns whether something done every `every` steps (-1: every epoch) is due now."""
        if every == -1:
            return self._epoch_ended
        return every > 0 and self.step % every == 0

    def check_gradients(self, bad_steps: int) -> None:
        """Stops a run whose gradients stay non-finite.

        Raises:
            FloatingPointError: `MAX_BAD_STEPS` consecutive updates were skipped.
        """
        if bad_steps >= MAX_BAD_STEPS:
            raise FloatingPointError(
                f"{bad_steps} updates in a row had a non-finite gradient at step {self.step}; "
                "the last checkpoint is older; lower config.train.lr"
            )

    # ---- records ------------------------------------------------------------------------------

    def _record(self, phase: str, values: Mapping[str, Any], note: str = "") -> None:
        values = {name: float(value) for name, value in values.items() if value is not None}
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        self._records.append(phase, self.step, self._epoch, values)
        self._writers.write(self.step, values, note)

    def _image_names(self, example: Example) -> str | list[str] | None:
        """Returns the paths of the example's images; writes images that have no file, once."""
        names = []
        for image in example.images:
            if isinstance(image, str | Path):
                names.append(str(Path(image).absolute()))
                continue
            encoded = image if isinstance(image, bytes) else image.read()
            names.append(self._records.write_image(encoded))
        return names[0] if len(names) == 1 else names or None

    def _response_rows(
        self,
        examples: Sequence[Example],
        responses: Responses,
        correct: np.ndarray,
        statuses: Sequence[str],
        parts: Mapping[str, np.ndarray],
        logprob_diffs: np.ndarray | None,
    ) -> list[dict[str, Any]]:
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
            if logprob_diffs is not None and math.isfinite(logprob_diffs[b]):
                row["logprob_gap"] = float(logprob_diffs[b])
            rows.append(row)
        return rows

    def record_step(
        self,
        step: int,
        rounds: Sequence[Round],
        chosen: np.ndarray,
        advantages: np.ndarray,
        logprob_diffs: np.ndarray | None,
        device_stats: Mapping[str, Any],
        watch: metrics.Stopwatch,
    ) -> None:
        """Writes everything about one RL step.

        Args:
            step: from 1.
            rounds: everything that was sampled, including groups that are not trained on.
            chosen: int[N], the groups in the update's batch; see `collection.choose`.
            advantages: float32[B, R], of each token in the update's batch.
            logprob_diffs: float32[B], the largest difference between sampler and trainer per
                sequence of the update's batch, in nats, NaN if there is none; None if the passes
                have it.
            device_stats: name -> number, from steps III and IV.
            watch: the step's timer.
        """
        self._finish_step(step)
        memory = metrics.memory_metrics(distributed.gather)
        if logprob_diffs is None:
            per_round = [sharding.to_host(r.passes.logprob_diff).max(axis=1) for r in rounds]
        if not self._writes:
            return
        examples = [example for r in rounds for example in r.examples]
        responses = join([r.responses for r in rounds])
        scores = rewards.join([r.scores for r in rounds])
        samples = self.config.rollout.samples
        of_batch = collection.rows_of(chosen, samples)  # rows of the update's batch
        if logprob_diffs is None:
            response_diffs = np.concatenate(per_round)
        else:
            response_diffs = np.full(len(responses.texts), np.nan, np.float32)
            response_diffs[of_batch] = logprob_diffs
        rows = self._response_rows(
            examples, responses, scores.correct, scores.status, scores.rewards, response_diffs
        )
        in_filter = np.repeat(np.concatenate([r.keep for r in rounds]), samples)
        in_batch = np.isin(np.arange(len(rows)), of_batch)
        for row, trained in zip(rows, in_batch & in_filter, strict=True):
            row["trained"] = bool(trained)
        for number, b in enumerate(of_batch[: TOKEN_PROMPTS * samples].tolist()):
            rows[b] |= self._token_fields(responses, advantages[number], b)
        self._records.write_rollouts(step, rows)
        self._epoch_correct += int(scores.correct.sum())
        self._epoch_count += len(responses.texts)
        values = {
            "reward/score": scores.score.mean(),
            **{f"reward/{name}": value.mean() for name, value in scores.rewards.items()},
            **metrics.response_metrics(
                responses.texts, responses.lengths, scores.correct, responses.truncated
            ),
            **collection.metrics(self.config, rounds, chosen),
            "judge/timeouts": scores.status.count("timeout") + scores.custom_timeouts,
            "judge/custom_errors": scores.custom_errors,
            "judge/unparsable": scores.status.count("unparsable"),
            "judge/no_answer": scores.status.count("no_answer"),
            "judge/several_answers": sum(map(rewards.has_several_answers, responses.texts)),
            "data/dropped": self.loader.dropped.count,
            **device_stats,
            **watch.metrics(),
            **memory,
            **self._compiles.metrics(),
            **self._wait(),
        }
        sampled, updated = responses.tokens.sum(), responses.tokens[in_batch & in_filter].sum()
        values |= self._records.goodput(values["time/step_s"])
        values["throughput/rollout_tokens_per_s"] = sampled / values["time/rollout_s"]
        values["throughput/update_tokens_per_s"] = (
            updated * self.config.train.epochs / values["time/update_s"]
        )
        if not in_filter.any():
            logging.warning(
                "step %d: none of %d groups has an accuracy between config.algorithm.filter_low "
                "and filter_high; nothing was trained",
                *(step, len(examples)),
            )
        if self._epoch_ended:
            values["epoch/train_accuracy"] = self._epoch_correct / self._epoch_count
            self._epoch_correct = self._epoch_count = 0
        note = (
            f"reward {values['reward/score']:.3f}  "
            f"{values['throughput/rollout_tokens_per_s']:,.0f} tokens/s"
        )
        self._record("train", values, note)

    def _finish_step(self, step: int) -> None:
        """Updates step, epoch and data cursor."""
        before = int(self._epoch + 1e-9)
        self.step, self._epoch = step, self.loader.epoch
        if self._profiled and step >= self._profiled.stop - 1:
            self._end_profile()
        self._cursor = self.loader.state()
        self._epoch_ended = int(self._epoch + 1e-9) > before

    def _wait(self) -> dict[str, float]:
        """Returns the time to the first step since this start; {} after later steps."""
        return self._clock.metrics() if self.step == self.first_step + 1 else {}

    def _token_fields(
        self, responses: Responses, advantages: np.ndarray, b: int
    ) -> dict[str, list[Any]]:
        """Returns text, log-probability (nats) and advantage of each token of response b."""
        ids = responses.ids[b]

        def numbers(values: np.ndarray) -> list[float | None]:
            return [round(x, 4) if math.isfinite(x) else None for x in values.tolist()]

        return {
            "pieces": self.session.tokenizer.pieces(ids),
            "logprobs": numbers(responses.logprobs[b]),
            "advantages": numbers(advantages[: len(ids)]),
        }

    def record_supervised(
        self, step: int, device_stats: Mapping[str, Any], tokens: int, watch: metrics.Stopwatch
    ) -> None:
        """Writes everything about one supervised step."""
        self._finish_step(step)
        memory = metrics.memory_metrics(distributed.gather)
        if not self._writes:
            return
        values = {
            **device_stats,
            **watch.metrics(),
            **memory,
            **self._compiles.metrics(),
            **self._wait(),
        }
        values |= self._records.goodput(values["time/step_s"])
        values["throughput/update_tokens_per_s"] = tokens / values["time/update_s"]
        self._record("sft", values, f"loss {values['update/loss']:.3f}")

    def evaluation_is_missing(self) -> bool:
        """Returns whether the run's current step is due for evaluation but not evaluated yet."""
        due = self.config.eval_every and (self.step == 0 or self.is_due(self.config.eval_every))
        if not due:
            return False
        return distributed.gather(self._writes and not self._records.has("eval", self.step))[0]

    def record_evaluations(
        self, evaluate: Callable[..., Iterable[Evaluation]], params: Params
    ) -> None:
        """Evaluates all evaluation sets; writes the accuracies and the responses.

        If a signal cuts it off, it writes no line to the metrics, and the next start repeats it.

        Args:
            evaluate: from `scheme.make_evaluate_fn`.
            params: the model's current parameters.
        """
        values: dict[str, Any] = {}
        watch = metrics.Stopwatch()
        self._watch()
        for split, questions in self.evaluation_sets.items():
            for evaluation in evaluate(params, questions, self.stopping):
                for name, accuracy in evaluation.accuracies.items():
                    values[f"eval/{split}/{name}"] = accuracy
                if not self._writes:
                    continue
                correct = np.array([verdict.correct for verdict in evaluation.verdicts])
                statuses = [verdict.status for verdict in evaluation.verdicts]
                parts = {"accuracy": correct.astype(np.float32)}
                rows = self._response_rows(
                    evaluation.examples, evaluation.responses, correct, statuses, parts, None
                )
                rows = [{**row, "judge_version": rewards.JUDGE_VERSION} for row in rows]
                self._records.write_evaluation(self.step, split, evaluation.setting, rows)
            if self.stopping():
                return
            values[f"eval/{split}/dropped"] = questions.dropped.count
        values["time/eval_s"] = watch.metrics()["time/step_s"]
        values |= self._compiles.metrics()
        if self._writes:
            self._record("eval", values)


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
    cut, lengths = responses.truncated.tolist(), responses.lengths.tolist()
    return rewards.score(
        responses.texts, fields, cut, lengths, settings, max_tokens, distributed.gather
    )
