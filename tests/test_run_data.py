# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The digest by which hosts notice that they do not read the same records."""

import dataclasses

import pytest

from rlvlm_jax import distributed
from rlvlm_jax.data.example import Example
from rlvlm_jax.errors import InputError
from rlvlm_jax.run_data import digest
from tests.run_cases import arguments, execute, write_problems

ONE = Example("a", "1 + 1?", "2", "\\boxed{2}", images=("x.png",), tokens=9, patches=16)


@pytest.mark.parametrize(
    "change",
    [
        *({"id": "b"}, {"question": "1 + 2?"}, {"solution": "\\boxed{3}"}),
        *({"messages": ({"role": "user", "content": "?"},)}, {"tokens": 8}, {"patches": 64}),
    ],
)
def test_digest_tells_records_apart(change):
    assert digest([ONE]) != digest([dataclasses.replace(ONE, **change)])


def test_digest_is_that_of_what_is_read_in_its_order():
    other = dataclasses.replace(ONE, id="b")
    assert digest([ONE, other]) == digest([dataclasses.replace(ONE, source="line 7"), other])
    assert digest([ONE, other]) != digest([other, ONE])
    assert len(digest([])) == 12


def test_hosts_with_other_texts_of_the_same_number_are_refused(tmp_path, monkeypatch, capfd):
    """As if a second host had found another text of one problem, in another run of this process."""
    data = write_problems(tmp_path / "data")
    argv = arguments(tmp_path / "run", data)
    found = []

    def together(work):
        """The first run ends with what it has found; the second is told of it beside its own."""
        mine = work()
        if isinstance(mine, dict) and "parameters" in mine:
            found.append(mine)
            if len(found) == 1:
                raise InputError("far enough")
            return found
        return [mine]

    monkeypatch.setattr(distributed, "together", together)
    assert execute(argv, monkeypatch) == 2
    assert "far enough" in capfd.readouterr().err
    data.write_text(data.read_text().replace("What is", "Compute", 1))
    assert execute(argv, monkeypatch) == 2
    assert "the processes do not see the same files" in capfd.readouterr().err
