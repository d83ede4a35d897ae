# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The formats of data: a function from a file or table to rows is a row of `FORMATS`.

Does not know what the fields of a row mean; `dataset` turns rows into problems.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rlvlm_jax.errors import InputError

Row = tuple[str, int, Any]  # (file and line, number of the line, its fields or a `BadRecord`)


class Format(NamedTuple):
    """A row of `FORMATS`."""

    suffixes: tuple[str, ...]  # of the names in this format
    rows: Callable[[str, str], Iterator[Row]]  # (name, configuration key that holds it) -> rows


class BadRecord(Exception):
    """Says what is wrong with a record, and which kind of defect it is."""

    def __init__(self, kind: str, message: str, name: str = ""):
        super().__init__(message)
        self.kind = kind
        self.name = name  # the record's id, if it has one


@dataclass(frozen=True, eq=False)
class StoredImage:
    """An image inside a `datasets` table, read each time it is needed."""

    table: Any
    row: int
    column: str
    number: int | None  # position in the column's list; None if the column holds one image
    label: str

    def read(self) -> bytes:
        """Returns the encoded bytes."""
        cell = self.table[self.row][self.column]
        return (cell if self.number is None else cell[self.number])["bytes"]

    def __str__(self) -> str:
        return self.label


# ---- jsonl ---------------------------------------------------------------------------------------


def jsonl_rows(name: str, key: str) -> Iterator[Row]:
    """Yields the records of a file with one JSON object a line; empty lines do not count.

    Raises:
        InputError: there is no such file.
    """
    path = Path(name)
    if not path.is_file():
        raise InputError(f"{key}={name}: there is no such file")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}:{number}", number, _parse_line(line)


def _parse_line(line: bytes) -> Any:
    """Returns what the line says, or what is wrong with it."""
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return BadRecord("not_utf8", f"the line is not UTF-8: {error}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadRecord("malformed_json", f"malformed JSON: {error}")


# ---- tables --------------------------------------------------------------------------------------


def table_rows(name: str, key: str) -> Iterator[Row]:
    """Yields the rows of a parquet file, a directory or a hub name that `datasets` opens.

    Images stay encoded: a cell becomes a `StoredImage`, or its path.

    Raises:
        InputError: `datasets` cannot open it, or it has no such split.
    """
    table, label = _open_table(name, key)
    for number in range(len(table)):
        where = f"{label}:{number}"
        row = dict(table[number])
        for column, cell in row.items():
            if _is_stored(cell):
                row[column] = _reference(cell, table, number, column, None, where)
            elif isinstance(cell, list) and cell and all(map(_is_stored, cell)):
                row[column] = [
                    _reference(stored, table, number, column, k, where)
                    for k, stored in enumerate(cell)
                ]
        yield where, number, row


def _is_stored(cell: Any) -> bool:
    return isinstance(cell, dict) and cell.keys() == {"bytes", "path"}


def _reference(
    cell: dict[str, Any], table: Any, row: int, column: str, number: int | None, where: str
) -> StoredImage | str | None:
    """Returns the image's path, or a reference to its bytes in the table."""
    if cell["bytes"] is None:
        return cell["path"]
    place = "" if number is None else f"[{number}]"
    return StoredImage(table, row, column, number, f"{where}:{column}{place}")


def _open_table(name: str, key: str) -> tuple[Any, str]:
    """Opens a data set with `datasets`; returns (table with undecoded images, its label)."""
    import datasets  # takes a second to import, so only here

    path, split = name, ""
    if not Path(name).exists() and (match := re.fullmatch(r"(.+):([\w.-]+)", name)):
        path, split = match.groups()
    local = Path(path)
    try:
        if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
            opened = datasets.load_from_disk(path)
        elif local.is_file():
            opened = datasets.load_dataset("parquet", data_files=path)
        else:
            opened = datasets.load_dataset(path)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"{key}={name} is neither a jsonl file nor a data set that `datasets` can open: {error}"
        ) from error
    if isinstance(opened, dict):
        splits = sorted(opened)
        split = split or ("train" if len(splits) > 1 else splits[0])
        if split not in opened:
            raise InputError(
                f"{key}={name}: no split {split!r}; write {path}:SPLIT with one of {splits}"
            )
        opened = opened[split]
    elif split:
        raise InputError(f"{key}={name}: {path} has no splits; leave out :{split}")
    stored = datasets.Image(decode=False)
    for column, feature in opened.features.items():
        if isinstance(feature, datasets.Image):
            opened = opened.cast_column(column, stored)
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            opened = opened.cast_column(column, datasets.List(stored))
    return opened, f"{path}:{split}" if split else path


# ---- the table -----------------------------------------------------------------------------------

FORMATS = {
    "jsonl": Format((".jsonl", ".json", ".ndjson"), jsonl_rows),
    "table": Format((".parquet",), table_rows),
}


def format_of(name: str) -> Format:
    """Returns the format of a data set, by its suffix.

    Any other file is jsonl; a directory or a name that is no file is a table.

    Args:
        name: a file, a directory or a hub name.
    """
    path = Path(name)
    for format in FORMATS.values():
        if path.suffix in format.suffixes:
            return format
    return FORMATS["jsonl" if path.is_file() else "table"]
