# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The life cycle of a run: opening, resuming, signals, what is due, checkpoints, the end.

Creating a `Run` checks everything a user can get wrong (directory, model, data, configuration). It
writes only the index of prompt lengths and, with several processes, a file that shows whether they
share one directory. Entering the `Run` starts its records, which one of the processes writes.
"""

import faulthandler
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from ml_collections import ConfigDict

from rlvlm_jax import (
    checkpoint,
    distributed,
    instruments,
    old_keys,
    optim,
    rewards,
    run_data,
    run_directory,
    signals,
    startup,
    step_metrics,
    writers,
)
from rlvlm_jax import config as config_lib
from rlvlm_jax.errors import InputError
from rlvlm_jax.evaluation.scheme import Evaluation
from rlvlm_jax.instruments import Stopwatch
from rlvlm_jax.recorder import Machine, Position, Recorder, TrainedStep
from rlvlm_jax.types import Params, TrainState

VISIBLE_WITHIN_S = 60  # for the other hosts; NFS may cache for this long that a file is missing
MAX_BAD_STEPS = 5  # consecutive updates with a non-finite gradient before the run stops
# Keys or groups of keys that may change when a run is resumed.
MAY_CHANGE = (*config_lib.HARMLESS, "total_steps", "epochs", "eval_every", "eval.")
EvaluateFn = Callable[..., Iterable[Evaluation]]  # from `scheme.make_evaluate_fn`


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
        self._clock = instruments.ProgramClock()
        self.stopped = False  # a signal asked any process to stop, and all know
        self._profiled = range(0)  # the steps of the profile being recorded
        signals.catch()
        self.config = config
        self.workdir = Path(workdir)
        self._checkpoints = checkpoint.absolute(
            config.log.checkpoints or self.workdir / "checkpoints"
        )
        self._recorder: Recorder | None = None  # only in the process that writes
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

    # ---- before anything is written -----------------------------------------------------------

    def _check_writable(self, workdir: str) -> None:
        """Checks that everything the run will write can be written."""
        if distributed.is_first():
            run_directory.check_writable(workdir)
        writers.check_writers(self.config.log)
        checkpoint.check_bucket(self._checkpoints)

    def _set_up(self) -> dict[str, Any]:
        """Opens checkpoint, model and data; returns what must be the same in every process."""
        config = self.config
        self._compiles = instruments.CompileCounter()
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
        epoch = self.loader.epoch if self.loader else 0.0
        self._position = Position(self.first_step, epoch, saved.get("epoch_ended", False))
        self._epoch_accuracy = saved.get("epoch_accuracy", (0, 0))
        self._saved_step = self.first_step if self.resumed else -1
        self._cursor = self.loader.state() if self.loader else {}
        self._sizes: dict[str, int] = {}
        return {
            "step of the newest checkpoint": self.first_step if self.resumed else None,
            "records": {split: report["used"] for split, report in self.reports.items()},
            "digest of their content": digests,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.session.shapes)),
        }

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

    # ---- start and end ------------------------------------------------------------------------

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

    def __enter__(self) -> "Run":
        """Creates or trims the run's directory; from now on the run writes to it."""
        self._start_deadline()
        keep = self.config.log.keep_checkpoints
        self._manager = checkpoint.open_manager(self._checkpoints, keep)
        distributed.together(self._open_records)
        return self

    def _open_records(self) -> None:
        """Starts or continues the records, in the process that writes them."""
        if not distributed.is_first():
            return
        recorder = Recorder(
            self.session, self.workdir, self._clock.start, self.reports, self._epoch_accuracy
        )
        recorder.begin(self.first_step, self.resumed, self.total_steps, self._sizes)
        self._recorder = recorder

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.loader is not None:
            self.loader.close()
        self._manager.close()
        if self._recorder:
            self._recorder.close()
        rewards.close()
        faulthandler.cancel_dump_traceback_later()
        if self._profiled:
            self._end_profile()
        if jax.process_count() == 1:  # with several, dying here would look like a lost peer
            signals.release()

    # ---- steps --------------------------------------------------------------------------------

    def steps(self) -> Iterator[int]:
        """Yields the steps that are left."""
        yield from range(self.first_step + 1, self.total_steps + 1)

    def stopping(self) -> bool:
        """Returns whether a signal asked any process to stop; all processes must call it."""
        self.stopped = self.stopped or any(distributed.gather(signals.stop_requested()))
        return self.stopped

    def begin_step(self, step: int) -> Stopwatch:
        """Returns the step's timer; starts the configured profile and deadline."""
        self._start_deadline()
        profiled = config_lib.profiled_steps(self.config)
        if step in profiled and not self._profiled:
            self._profiled = profiled
            jax.profiler.start_trace(str(self.workdir / "profile"))
        return Stopwatch()

    def _start_deadline(self) -> None:
        """Starts the deadline of a step or an evaluation; see `config.hosts.deadline_s`."""
        if self.config.hosts.deadline_s:
            faulthandler.dump_traceback_later(self.config.hosts.deadline_s, repeat=True)

    def _end_profile(self) -> None:
        self._profiled = range(0)
        jax.profiler.stop_trace()

    def _finish_step(self, step: int) -> None:
        """Updates position and data cursor; ends a profile."""
        if self._profiled and step >= self._profiled.stop - 1:
            self._end_profile()
        ended = int(self.loader.epoch + 1e-9) > int(self._position.epoch + 1e-9)
        self._position = Position(step, self.loader.epoch, ended)
        self._cursor = self.loader.state()

    def _machine(self, watch: Stopwatch) -> Machine:
        """Returns what was measured in a step; all processes must call it together."""
        is_first_step = self._position.step == self.first_step + 1
        return Machine(
            watch,
            distributed.gather(instruments.memory()),
            self._compiles,
            self._clock.elapsed() if is_first_step else None,
        )

    def record_step(self, step: int, trained: TrainedStep, watch: Stopwatch) -> None:
        """Writes everything about one RL step; all processes must call it together."""
        self._finish_step(step)
        machine, dropped = self._machine(watch), self.loader.dropped.count
        if self._recorder:
            self._recorder.record_step(self._position, trained, dropped, machine)

    def record_supervised(
        self, step: int, stats: Mapping[str, Any], tokens: int, watch: Stopwatch
    ) -> None:
        """Writes everything about one supervised step; all processes must call it together.

        Args:
            step: from 1.
            stats: name -> number, from the device.
            tokens: of the solutions.
            watch: the step's timer.
        """
        self._finish_step(step)
        machine = self._machine(watch)
        if self._recorder:
            self._recorder.record_supervised(self._position, stats, tokens, machine)

    def end_step(self, evaluate: EvaluateFn, state: TrainState) -> None:
        """Evaluates and saves what the recorded step has made, if that is due.

        Raises:
            FloatingPointError: `MAX_BAD_STEPS` consecutive updates were skipped.
        """
        bad_steps = int(state.bad_steps)
        if bad_steps >= MAX_BAD_STEPS:
            raise FloatingPointError(
                f"{bad_steps} updates in a row had a non-finite gradient at step "
                f"{self._position.step}; the last checkpoint is older; lower config.train.lr"
            )
        if self._is_due(self.config.eval_every):
            self.record_evaluations(evaluate, state.params)
        if self._is_due(self.config.checkpoint_every):
            self._save(state)

    def _is_due(self, every: int) -> bool:
        """Returns whether something done every `every` steps (-1: every epoch) is due now."""
        if every == -1:
            return self._position.epoch_ended
        return every > 0 and self._position.step % every == 0

    # ---- evaluations --------------------------------------------------------------------------

    def evaluate_if_missing(self, evaluate: EvaluateFn, params: Params) -> None:
        """Evaluates the model that the run starts from, if that is due and not recorded yet."""
        every, step = self.config.eval_every, self._position.step
        if not every or not (step == 0 or self._is_due(every)):
            return
        missing = self._recorder is not None and not self._recorder.directory.has("eval", step)
        if distributed.gather(missing)[0]:
            self.record_evaluations(evaluate, params)

    def record_evaluations(self, evaluate: EvaluateFn, params: Params) -> None:
        """Evaluates all evaluation sets; writes the accuracies and the responses.

        If a signal cuts it off, it writes no line to the metrics, and the next start repeats it.

        Args:
            evaluate: from `scheme.make_evaluate_fn`.
            params: the model's current parameters.
        """
        values: dict[str, Any] = {}
        watch = Stopwatch()
        self._start_deadline()
        for split, questions in self.evaluation_sets.items():
            for evaluation in evaluate(params, questions, self.stopping):
                values |= step_metrics.evaluation_metrics(split, evaluation.accuracies)
                if self._recorder:
                    self._recorder.record_evaluation(self._position.step, split, evaluation)
            if self.stopping():
                return
            values |= step_metrics.dropped_metrics(split, questions.dropped.count)
        values |= step_metrics.evaluation_end_metrics(watch.elapsed(), self._compiles)
        if self._recorder:
            self._recorder.record_accuracies(self._position, values)

    # ---- checkpoints --------------------------------------------------------------------------

    def _save(self, state: TrainState) -> None:
        """Writes a checkpoint of the last finished step, in the background."""
        if self._saved_step == self._position.step:
            return
        if self._recorder:
            self._epoch_accuracy = self._recorder.epoch_accuracy
        about = {
            "config": startup.resolved_config(self.config),
            "cursor": self._cursor,
            "epoch_accuracy": self._epoch_accuracy,
            "epoch_ended": self._position.epoch_ended,
        }
        files = dict(self.session.source.files)
        checkpoint.save(self._manager, self._position.step, state, about, files)
        self._saved_step = self._position.step

    def finish(self, state: TrainState) -> None:
        """Saves the last step and waits until it is written."""
        self._save(state)
        self._manager.wait_until_finished()
