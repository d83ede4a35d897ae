# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Names say what their value is: no placeholders such as `found` or `one`."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((*ROOT.glob("rlvlm_jax/**/*.py"), *ROOT.glob("configs/*.py")))
PLACEHOLDERS = {
    *("found", "one", "given", "wanted", "asked", "seen", "held", "some", "of", "this", "kept"),
    *("mine", "theirs"),
}


def names(tree):
    """Yields (line, name) of every name that the code defines, attributes included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.lineno, node.name


def placeholders(source):
    """Returns "line: name" of every placeholder in Python source."""
    return [
        f"{line}: {name}"
        for line, name in names(ast.parse(source))
        if name in PLACEHOLDERS or name.startswith("found_")
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_is_a_placeholder(path):
    assert placeholders(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "found = 1",
        "found_rows: int = 1",
        "a, (one, *b) = c",
        "for one in rows: pass",
        "[0 for one in rows]",
        "with x as held: pass",
        "try: pass\nexcept ValueError as found: pass",
        "if (found := 1): pass",
        "def f(*, given): pass",
        "lambda mine: 0",
        "self.kept = 1",
        "self.kept: int = 1",
        "class Row:\n    kept: int",
        "def found(): pass",
        "class this: pass",
        "import sys as this",
        "match x:\n    case [one]: pass",
    ],
)
def test_every_kind_of_name_is_read(source):
    assert len(placeholders(source)) == 1


def test_reading_an_attribute_or_a_word_in_text_is_no_definition():
    assert placeholders('"""The one found."""\nprint(row.kept, this)') == []
