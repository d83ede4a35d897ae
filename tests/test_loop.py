# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The training loop stays short: its statements, and the functions that it calls."""

import ast
import io
import tokenize
from pathlib import Path

import jax
import pytest

import rlvlm_jax
from rlvlm_jax import train
from rlvlm_jax.collector import Collector
from tests.test_frames import tiny

PACKAGE = Path(rlvlm_jax.__file__).parent
MOST_STATEMENTS, MOST_LINES = 15, 40
CALLED = {  # what the loop calls directly, by file
    "train.py": ("generate_trajectory", "plan_update", "describe_step"),
    "collector.py": ("collect",),
    "run.py": ("steps", "begin_step", "stopping", "record_step", "end_step"),
    "instruments.py": ("measure",),
    "update.py": ("train_step",),
    "compiled_steps.py": ("compile_order",),
    "sharding.py": ("to_host",),
}


def function(file, name):
    """Returns the source of a function of the package and its syntax tree."""
    text = (PACKAGE / file).read_text()
    (node,) = (
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    return text, node


def loop():
    _, node = function("train.py", "train")
    return next(part for part in ast.walk(node) if isinstance(part, ast.For))


def test_the_loop_has_few_statements():
    statements = [part for part in ast.walk(loop()) if isinstance(part, ast.stmt)][1:]
    assert 10 <= len(statements) <= MOST_STATEMENTS


def test_the_table_names_what_the_loop_calls():
    calls = {
        part.func.attr if isinstance(part.func, ast.Attribute) else part.func.id
        for part in ast.walk(loop())
        if isinstance(part, ast.Call)
    }
    tabled = {name for names in CALLED.values() for name in names}
    # `draw_order` is what `compile_order` returns, `update` is a scan of `train_step`, compiled.
    others = {"draw_order", "update", "schedule", "int"}
    assert calls - others == tabled - {"train_step", "compile_order", "stopping"}


def code_lines(text, node):
    """Counts the lines of a function with code on them: no docstring, comment or blank line."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped and node.lineno <= token.start[0] <= node.end_lineno:
            lines |= set(range(token.start[0], token.end[0] + 1))
    docstring = node.body[0]
    if ast.get_docstring(node) is not None:
        lines -= set(range(docstring.lineno, docstring.end_lineno + 1))
    return len(lines)


def test_what_the_loop_calls_is_short():
    for file, names in CALLED.items():
        for name in names:
            lines = code_lines(*function(file, name))
            assert lines <= MOST_LINES, f"{file}: {name} has {lines} lines of code"


@pytest.mark.slow
def test_a_step_leaves_nothing_on_the_device(monkeypatch, tmp_path):
    """At the start of later steps there is the state, as at that of the first, and few numbers."""
    collect, left = Collector.collect, []

    def counted(self, step, state, *rest):
        state_bytes = sum(x.nbytes for x in jax.tree.leaves(state))
        left.append(sum(x.nbytes for x in jax.live_arrays()) - state_bytes)
        return collect(self, step, state, *rest)

    monkeypatch.setattr(Collector, "collect", counted)
    config = tiny()
    config.total_steps = 3
    assert train.train(config, str(tmp_path / "run"))
    assert len(left) == 3
    assert max(left) - left[0] < 1000
