# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The data of the rollout browser: the responses in the page, with their images.

Plain JSON values. A model's output is only data here; the page's script shows it as text.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rlvlm_jax.evaluation.runs import RunRecord, read_rows
from rlvlm_jax.evaluation.scores import REFLECTION_WORDS
from rlvlm_jax.report.curves import Method

LARGEST = 60_000  # bytes; larger images are scaled down, others embedded unchanged
SIDE = 512  # longest side of a scaled image, pixels
MAX_IMAGE_BYTES = 32_000_000  # of all images together; further ones are left out
_MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}


def collect(methods: Sequence[Method], limit: int) -> dict[str, Any]:
    """Chooses responses evenly over runs and steps, in whole groups.

    Args:
        methods: those without runs are ignored.
        limit: maximum number of responses.

    Returns:
        {"words", "images": [data URI], "groups": [{"run", "kind", "step", "id", "question",
        "solution", "images": [index or null], "responses": [...]}], "shown", "total"}.
    """
    sources = [
        (f"{method.label} seed {run.seed}", run, kind, step, file)
        for method in methods
        if method.group is not None
        for run in method.group.runs
        for kind, step, file in _files(run)
    ]
    share = limit / max(1, len(sources))
    images = _Images()
    groups: list[dict[str, Any]] = []
    shown = total = 0
    for number, (label, run, kind, step, file) in enumerate(sources, 1):
        for rows in _grouped(read_rows(file)):
            total += len(rows)
            if shown + len(rows) <= share * number:
                shown += len(rows)
                about = {"run": label, "kind": kind, "step": step}
                groups.append({**about, **_group(run, rows, images)})
    return {
        "words": list(REFLECTION_WORDS),
        "images": images.uris,
        "groups": groups,
        "shown": shown,
        "total": total,
    }


def _files(run: RunRecord) -> Iterator[tuple[str, int, Path]]:
    """Yields (kind, step, file): training first, then evaluations."""
    for step, file in run.rollouts.items():
        yield "training", step, file
    for (split, setting), files in run.evaluations.items():
        for step, file in files.items():
            yield f"{split}, {setting}", step, file


def _grouped(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yields the adjacent responses to one question."""
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end]["id"] != rows[start]["id"]:
            yield list(rows[start:end])
            start = end


def _group(run: RunRecord, rows: list[dict[str, Any]], images: "_Images") -> dict[str, Any]:
    first = rows[0]
    names = first.get("image") or []
    names = [names] if isinstance(names, str) else names
    return {
        "id": first["id"],
        "question": first["question"],
        "solution": first["solution"],
        "images": [images.add(run.path / name) for name in names],
        "responses": [_response(row) for row in rows],
    }


def _response(row: dict[str, Any]) -> dict[str, Any]:
    required = ("response", "length", "truncated", "correct", "judge", "rewards", "reflective")
    response = {name: row[name] for name in required}
    for name in ("logprob_gap", "pieces", "logprobs", "advantages"):
        if name in row:
            response[name] = row[name]
    return response


class _Images:
    """Image files as data URIs, each once, up to a total number of bytes."""

    def __init__(self) -> None:
        self.uris: list[str] = []
        self._bytes_left = MAX_IMAGE_BYTES
        self._numbers: dict[Path, int | None] = {}

    def add(self, file: Path) -> int | None:
        """Returns the image's number; None if it is missing, broken, or over the limit."""
        if file not in self._numbers:
            self._numbers[file] = None
            uri = _data_uri(file) if self._bytes_left > 0 else None
            if uri is not None:
                self._bytes_left -= len(uri)
                self._numbers[file] = len(self.uris)
                self.uris.append(uri)
        return self._numbers[file]


def _data_uri(file: Path) -> str | None:
    try:
        with Image.open(file) as image:
            kind = image.format
            data = file.read_bytes()
            if len(data) > LARGEST or kind not in _MIME:
                image.thumbnail((SIDE, SIDE))
                target = io.BytesIO()
                rgba = image.convert("RGBA")
                white = Image.new("RGBA", rgba.size, "white")
                Image.alpha_composite(white, rgba).convert("RGB").save(target, "JPEG", quality=80)
                data, kind = target.getvalue(), "JPEG"
    except (OSError, ValueError, Image.DecompressionBombError):
        return None  # the page says that the image is missing
    return f"data:{_MIME[kind]};base64,{base64.b64encode(data).decode()}"
