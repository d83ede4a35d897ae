# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: the only module that uses orbax.

A step directory holds four items: `params` (all parameters), `optimizer` (its state and counters),
`run` (JSON: configuration, data cursor, running sums) and `model_files` (JSON: the text of
config.json, tokenizer and processor files, so that export needs nothing else).
`rlvlm_jax.convert` writes only the first and the last. A step directory gets its final name (in a
bucket: a marker file) only once it is complete, so one that a crash cut off is never read.

Directories may be in Google Cloud Storage, gs://BUCKET/..., which needs the package gcsfs.
"""

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from rlvlm_jax import distributed
from rlvlm_jax.errors import InputError
from rlvlm_jax.types import Params, TrainState

PARAMS, OPTIMIZER, RUN, FILES = "params", "optimizer", "run", "model_files"


def open_manager(directory: str | Path, keep: int) -> ocp.CheckpointManager:
    """Opens a run's checkpoints for writing in the background; deletes unfinished ones.

    Args:
        directory: is created if it is missing.
        keep: how many of the newest steps to keep.

    Raises:
        InputError: the directory cannot be written.
    """
    path = absolute(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(directory, error) from error
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs every save
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(path, options=options)


def check_bucket(directory: str | Path) -> None:
    """Checks that a directory can be written if it is in a bucket; leaves nothing behind.

    Raises:
        InputError: it cannot be written.
    """
    if not is_url(directory):
        return
    probe = absolute(directory) / f".writable-{jax.process_index()}"
    try:
        probe.write_bytes(b"?")  # creating a directory would not contact the bucket
        probe.unlink()
    except Exception as error:  # bucket access raises many kinds of errors
        raise _not_writable(directory, error) from error


def check_shared(directory: str | Path, patience_s: float) -> None:
    """Creates a directory and checks that all processes share it; all processes must call it.

    Args:
        directory: of checkpoints.
        patience_s: seconds that the storage may take to show one host's files to another.

    Raises:
        InputError: a process does not see what the first process writes there.
    """
    if jax.process_count() == 1 or is_url(directory):
        return
    path = absolute(directory)
    mark = path / f".seen-by-all-{distributed.gather(uuid.uuid4().hex)[0]}"

    def leave() -> None:
        if distributed.is_first():
            try:
                path.mkdir(parents=True, exist_ok=True)
                mark.write_text("?")
            except OSError as error:
                raise _not_writable(directory, error) from error

    def find() -> None:
        end = time.monotonic() + patience_s
        while True:
            for folder in (*reversed(path.parents), path):
                with contextlib.suppress(OSError):
                    os.listdir(folder)  # makes NFS ask its server for the contents again
            if mark.exists():
                return
            if time.monotonic() > end:
                break
            time.sleep(1)
        raise InputError(
            f"process {jax.process_index()} does not see what the first one writes to {directory}; "
            "use storage that all hosts share"
        )

    distributed.together(leave)
    try:
        distributed.together(find)
    finally:
        if distributed.is_first():
            mark.unlink(missing_ok=True)


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: TrainState,
    about: Mapping[str, Any],
    model_files: Mapping[str, str],
) -> None:
    """Starts writing a step; the caller may donate the state once this returns.

    Args:
        manager: from `open_manager`.
        step: of the loop.
        state: to write.
        about: JSON values: configuration, data cursor, running sums.
        model_files: name -> text.
    """
    manager.save(
        step,
        args=ocp.args.Composite(
            **{
                PARAMS: ocp.args.StandardSave(state.params),
                OPTIMIZER: ocp.args.StandardSave(_optimizer_item(state)),
                RUN: ocp.args.JsonSave(dict(about)),
                FILES: ocp.args.JsonSave(dict(model_files)),
            }
        ),
    )


def write_params(directory: str | Path, params: Params, model_files: Mapping[str, str]) -> None:
    """Writes only parameters and model files, atomically.

    Raises:
        InputError: the directory exists already.
    """
    path = absolute(directory)
    if path.exists():
        raise InputError(f"{directory} exists already; name a directory that does not")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{directory} cannot be written ({error.strerror}); name another directory"
        ) from error
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
        writer.save(
            path,
            args=ocp.args.Composite(
                **{
                    PARAMS: ocp.args.StandardSave(params),
                    FILES: ocp.args.JsonSave(dict(model_files)),
                }
            ),
        )


def latest_step(directory: str | Path) -> int | None:
    """Returns the newest complete step of a run's checkpoints, None if there is none.

    Raises:
        InputError: the bucket cannot be read.
    """
    path = absolute(directory)
    try:
        if not path.is_dir():
            return None
        step_dirs = [entry for entry in path.iterdir() if entry.name.isdecimal() and entry.is_dir()]
        steps = [int(entry.name) for entry in step_dirs if ocp.utils.is_checkpoint_finalized(entry)]
    except FileNotFoundError:  # in a bucket, a directory disappears with its last file
        return None
    except Exception as error:  # bucket access raises many kinds of errors
        if not is_url(directory):
            raise
        raise InputError(
            f"{directory} cannot be read ({_reason(error)}); name another, or fix the access to it"
        ) from error
    return max(steps, default=None)


def is_checkpoint(path: str | Path) -> bool:
    """Returns whether this is a run's checkpoints, one step of them, or a converted model."""
    return latest_step(path) is not None or (absolute(path) / PARAMS).is_dir()


def read_model_files(path: str | Path) -> dict[str, str]:
    """Returns name -> text of config.json, tokenizer and processor files.

    Raises:
        InputError: the checkpoint is incomplete or damaged.
    """
    return _read_json(path, FILES)


def read_run(path: str | Path) -> dict[str, Any]:
    """Returns the `about` that `save` wrote.

    Raises:
        InputError: the checkpoint is incomplete or damaged.
    """
    return _read_json(path, RUN)


def restore_params(path: str | Path, shapes: Params | None = None) -> Params:
    """Reads parameters, each shard directly to its device.

    Args:
        path: a run's checkpoints (newest step), one step, or a converted model.
        shapes: ShapeDtypeStructs with shardings; None reads into host memory.

    Raises:
        InputError: the checkpoint is damaged, or holds another model.
    """
    return _restore(path, PARAMS, shapes)


def param_shapes(path: str | Path) -> Params:
    """Returns a checkpoint's parameter shapes as a nested dict; reads no arrays.

    Raises:
        InputError: the checkpoint is incomplete or damaged.
    """
    item_dir = _item(path, PARAMS)
    try:
        with ocp.StandardCheckpointer() as reader:
            stored = reader.metadata(item_dir).item_metadata.tree
    except Exception as error:  # as in `_restore`
        _raise_damaged(item_dir, error)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), stored)


def restore(path: str | Path, shapes: TrainState) -> TrainState:
    """Reads a whole state, on the same or on another mesh.

    Args:
        path: a run's checkpoints (newest step), or one step.
        shapes: ShapeDtypeStructs with shardings.

    Raises:
        InputError: the checkpoint is damaged, or of another model or optimizer.
    """
    rest = _restore(path, OPTIMIZER, _optimizer_item(shapes))
    return TrainState(_restore(path, PARAMS, shapes.params), **rest)


def _optimizer_item(state: TrainState) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != "params"}


def is_url(path: str | Path) -> bool:
    """Returns whether this is a URL such as gs://BUCKET/DIRECTORY, not a file system path."""
    return "://" in str(path)


def absolute(path: str | Path) -> epath.Path:
    """Returns the absolute path; URLs stay as they are."""
    return epath.Path(path) if is_url(path) else epath.Path(path).expanduser().absolute()


def _reason(error: Exception) -> str:
    """Returns the first line of an error's message."""
    if isinstance(error, ImportError):
        return "gs:// needs the package gcsfs: pip install 'rlvlm_jax[gcs]'"
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    said = getattr(error, "strerror", None) or str(error).strip()
    return said.splitlines()[0][:200] if said else type(error).__name__


def _step_directory(path: str | Path) -> epath.Path:
    """Returns the directory that holds the items: `path` or its newest step."""
    directory = absolute(path)
    step = None if (directory / PARAMS).is_dir() else latest_step(directory)
    return directory if step is None else directory / str(step)


def _item(path: str | Path, item: str) -> epath.Path:
    item_dir = _step_directory(path) / item
    if not item_dir.is_dir():
        raise InputError(
            f"{path} is no complete checkpoint: {item_dir} is missing; name RUN/checkpoints, "
            "RUN/checkpoints/STEP, or what rlvlm_jax.convert wrote"
        )
    return item_dir


def _read_json(path: str | Path, item: str) -> dict[str, Any]:
    item_dir = _item(path, item)
    try:
        # Not with a Checkpointer: it would wait for processes that may already have failed.
        return ocp.JsonCheckpointHandler().restore(item_dir, ocp.args.JsonRestore())
    except (ValueError, OSError) as error:
        _raise_damaged(item_dir, error)


def _not_writable(directory: str | Path, error: Exception) -> InputError:
    return InputError(
        f"checkpoints cannot be written to {directory} ({_reason(error)}); name a directory that "
        "can be written"
    )


def _raise_damaged(path: epath.Path, error: Exception) -> NoReturn:
    """Reports a damaged checkpoint; re-raises the error if another process was lost instead."""
    if distributed.lost_contact(error):
        raise error
    raise InputError(
        f"the checkpoint {path} is damaged ({_reason(error)}); remove its step directory to resume "
        "from an older one"
    ) from error


def _leaves(tree: Any) -> dict[str, Any]:
    return {_path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _path_name(path: Any) -> str:
    names = (getattr(e, "key", getattr(e, "name", getattr(e, "idx", e))) for e in path)
    return "/".join(map(str, names))


def _restore(path: str | Path, item: str, shapes: Any) -> Any:
    item_dir = _item(path, item)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns if an item is read alone
    try:
        with ocp.StandardCheckpointer() as reader:
            stored = reader.metadata(item_dir).item_metadata.tree
            if shapes is None:
                return reader.restore(
                    item_dir, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), stored)
                )
            _check_same(item_dir, stored, shapes)
            return reader.restore(item_dir, shapes)
    except (InputError, MemoryError, jax.errors.JaxRuntimeError):
        raise  # another model, or out of memory: the file is not damaged
    except Exception as error:  # orbax and tensorstore raise many kinds of errors here
        _raise_damaged(item_dir, error)


def _check_same(path: epath.Path, stored: Any, shapes: Any) -> None:
    """Compares names and shapes; the error names what differs."""
    have = {name: tuple(leaf.shape) for name, leaf in _leaves(stored).items()}
    want = {name: tuple(leaf.shape) for name, leaf in _leaves(shapes).items()}
    problems = [f"{name} is missing" for name in want if name not in have]
    problems += [f"{name} is not expected" for name in have if name not in want]
    problems += [
        f"{name} has shape {have[name]}, expected {want[name]}"
        for name in want
        if name in have and have[name] != want[name]
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(
            f"the checkpoint {path} is of another model or optimizer: "
            f"{'; '.join(problems[:3])}{more}; name a checkpoint of this model"
        )
