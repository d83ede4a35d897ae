# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where a run's numbers are shown."""

import importlib.util
import sys
import types

import pytest
from ml_collections import ConfigDict

from rlvlm_jax.errors import InputError
from rlvlm_jax.writers import Writers, check_writers, exposition

SILENT = {"writers": ()}


def test_numbers_in_the_text_format_of_prometheus():
    text = exposition({"step": 3, "reward/score": 0.5, "eval/val/pass@1_t0.01": 1})
    assert text == "rlvlm_step 3.0\nrlvlm_reward_score 0.5\nrlvlm_eval_val_pass_1_t0_01 1.0\n"


def test_tensorboard_gets_every_number(tmp_path):
    writers = Writers(ConfigDict({"writers": ("tensorboard",)}), str(tmp_path), 10, {})
    for step in (1, 2):
        writers.write(step, {"update/loss": 0.5 * step, "reward/score": -1.0}, note="")
    writers.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    assert content.count(b"update/loss") == content.count(b"reward/score") == 2


def test_prometheus_finds_the_newest_of_every_number(tmp_path):
    writers = Writers(ConfigDict({"writers": ("prometheus",)}), str(tmp_path), 10, {})
    writers.write(1, {"goodput/run": 0.5, "update/loss": 2.0}, note="")
    writers.write(1, {"eval/val/pass@1": 0.25}, note="")
    writers.write(2, {"goodput/run": 0.75}, note="")
    lines = (tmp_path / "metrics.prom").read_text().splitlines()
    assert sorted(lines) == [
        *("rlvlm_eval_val_pass_1 0.25", "rlvlm_goodput_run 0.75", "rlvlm_step 2.0"),
        "rlvlm_update_loss 2.0",
    ]


def test_what_is_off_writes_nothing(tmp_path, capsys):
    writers = Writers(ConfigDict({"writers": ("progress",)}), str(tmp_path), 10, {})
    writers.write(1, {"update/loss": 0.5}, note="x")  # and no bar where there is no terminal
    writers.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_wandb_that_is_asked_for_but_not_there_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_writers(ConfigDict(SILENT))
    with pytest.raises(InputError, match="config.log.writers has 'wandb', which needs the package"):
        check_writers(ConfigDict({"writers": ("wandb",)}))


def test_wandb_gets_project_configuration_and_numbers(tmp_path, monkeypatch):
    calls = []
    session = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )

    def init(**arguments):
        calls.append(arguments)
        return session

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    log = ConfigDict({"writers": ("wandb",)})
    writers = Writers(log, str(tmp_path), 10, {"seed": 3})
    writers.write(4, {"update/loss": 0.5}, note="")
    writers.close()
    assert calls == [
        {"project": "mine", "dir": str(tmp_path), "config": {"seed": 3}},
        (4, {"update/loss": 0.5}),
        "end",
    ]
