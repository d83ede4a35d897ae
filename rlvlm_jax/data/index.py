# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""An index of prompt lengths on disk, so that the next start need not count them again.

Counting renders and tokenises every prompt and reads every image header: minutes for a large data
set, at every start. An entry is valid as long as the prompt, its images, the tokenizer and the
pixel limits stay the same. Knows no records; used by `dataset.Reader`.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlvlm_jax.data.images import local_path

_LOG = logging.getLogger(__name__)


class SizeIndex:
    """(tokens, patches) of the prompts of one data set. Safe to use from several threads.

    Args:
        directory: of all indexes; created by `save`.
        name: of the data set.
        counted_by: everything else that a prompt's length depends on, such as the tokenizer.
    """

    def __init__(self, directory: Path, name: str, counted_by: str):
        about = f"{Path(name).absolute()}\n{counted_by}"
        self.path = directory / f"{_digest(about.encode())}.txt"
        self._known: dict[str, tuple[int, int]] = {}
        self._used: dict[str, tuple[int, int]] = {}
        try:
            for line in self.path.read_text(encoding="utf-8").splitlines():
                key, tokens, patches = line.split()
                self._known[key] = int(tokens), int(patches)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            self._known = {}
            _LOG.warning("the index %s cannot be read (%s); rebuilding it", self.path, error)

    def get(self, key: str) -> tuple[int, int] | None:
        """Returns (tokens, patches), or None if the prompt has not been counted yet."""
        size = self._known.get(key)
        if size is not None:
            self._used[key] = size
        return size

    def put(self, key: str, tokens: int, patches: int) -> None:
        """Records the length of a prompt."""
        self._used[key] = tokens, patches

    def save(self) -> None:
        """Atomically writes the entries that were read or put; writes nothing if none changed."""
        if self._used == self._known:
            return
        temporary = self.path.with_suffix(f".{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            entries = sorted(self._used.items())
            lines = (f"{key} {tokens} {patches}\n" for key, (tokens, patches) in entries)
            temporary.write_text("".join(lines), encoding="utf-8")
            temporary.replace(self.path)
        except OSError as error:
            _LOG.warning(
                "the lengths of prompts cannot be stored for the next start: %s; name another "
                "directory in config.cache, or none",
                error,
            )


def key_of(messages: Sequence[dict[str, Any]], images: Sequence[Any]) -> str:
    """Returns the key of a prompt: a digest of its chat and of its images as they are now.

    A file is identified by path, size and modification time, encoded bytes by their digest.

    Raises:
        ImageError: an image is not a local file.
        OSError: the file does not exist.
    """
    identities = [_identity(image) for image in images]
    return _digest(json.dumps([list(messages), identities], default=str).encode())


def _identity(image: Any) -> str:
    if isinstance(image, str | Path):
        path = local_path(image)
        stat = path.stat()
        return f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns}"
    return _digest(image if isinstance(image, bytes) else image.read())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
