# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the README and the launch script promise is there."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def first_block(section):
    found = re.search(rf"^## {section}\n.*?^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return found[1].splitlines()


def test_two_set_up_commands_of_one_line_each():
    (start,) = first_block("Quick start")
    assert "rlvlm_jax.main --config=configs/tiny.py" in start
    (tests,) = first_block("Run the tests")
    assert tests.endswith("python -m pytest -q")
    assert README.count("python3 -m venv") == 2


def test_every_file_has_its_line():
    names = {
        str(path.relative_to(ROOT / "rlvlm_jax")) for path in (ROOT / "rlvlm_jax").rglob("*.py")
    }
    names = {name for name in names if not name.endswith("__init__.py")}
    block = (ROOT / "docs" / "files.md").read_text().split("```")[1]
    listed = {line.split()[0] for line in block.splitlines() if line.strip()}
    assert names <= listed, sorted(names - listed)
    listed_modules = {name for name in listed if name.endswith(".py") and "__init__" not in name}
    configs = {path.name for path in (ROOT / "configs").glob("*.py")}
    assert listed_modules == names | configs


def test_every_file_that_is_named_exists():
    docs = "".join(path.read_text() for path in sorted(ROOT.glob("docs/*.md")))
    names = re.findall(r"`((?:[\w-]+/)*[\w-]+(?:/|\.py|\.sh))`", README)
    names += re.findall(r"`((?:[\w-]+/)*[\w-]+(?:\.py|\.sh))`", docs)
    names += re.findall(r"\]\(([\w./-]+)\)", README)
    assert len(names) > 8
    for name in names:
        assert any((base / name).exists() for base in (ROOT, ROOT / "rlvlm_jax")), name


@pytest.mark.parametrize("arguments", [[], ["cpu"], ["npu", "configs/tiny.py"]])
def test_launch_script_explains_itself(arguments):
    ran = subprocess.run(
        ["bash", str(ROOT / "launch" / "run.sh"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert "cpu" in ran.stderr
    assert "tpu" in ran.stderr
