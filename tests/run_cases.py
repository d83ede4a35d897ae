# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Small problems with images of many sizes, and the command in this process."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from rlvlm_jax import cli, main

CONFIGS = Path(__file__).parents[1] / "configs"


def write_problems(folder, count=12, seed=0):
    """Writes `count` problems, each with an image of another size; returns the jsonl file."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(count):
        width, height = (int(size) for size in rng.integers(20, 120, 2))
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        a, b = (int(value) for value in rng.integers(1, 9, 2))
        records.append(
            {
                "id": f"p{number}",
                "question": f"What is {a} + {b}?",
                "image": f"{number}.png",
                "solution": f"{a} + {b} = \\boxed{{{a + b}}}",
            }
        )
    return write_records(folder / "problems.jsonl", records)


def write_records(file, records):
    """Writes one record a line; a string is written as it is."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def read_lines(file):
    """Returns the objects of a jsonl file."""
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def arguments(workdir, data, config="tiny.py", **keys):
    """Returns the command line of a run of four prompts a step; "__" in a key is a dot."""
    settings = {
        "data__train": data,
        "data__val": data,
        "data__max_prompt_tokens": 256,
        "cache": "",
        "rollout__prompts": 4,
        "rollout__samples": 2,
        "rollout__max_tokens": 8,
        "train__minibatch": 4,
        "train__final_lr": 1.0,  # so that total_steps changes nothing before the end
        "total_steps": 4,
        "eval_every": 2,
        "checkpoint_every": 2,
        **keys,
    }
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in settings.items()]
    return [f"--config={CONFIGS / config}", f"--workdir={workdir}", *flags]


def execute(argv, monkeypatch, program=main.main, name="rlvlm_jax.main"):
    """Runs a command as `python -m` does; returns its exit status."""
    monkeypatch.setattr("sys.argv", [name, *map(str, argv)])
    try:
        cli.exit_with(program)
    except SystemExit as ended:
        return ended.code
    raise AssertionError("cli.exit_with must exit")


def accuracy_by_reflection(line):
    """Returns a line's accuracy as its reflective and its other responses make it up."""
    ratio = line["reflection/ratio"]
    parts = (
        (ratio, line.get("reflection/accuracy_with")),
        (
            1 - ratio,
            line.get("reflection/accuracy_without"),
        ),
    )
    return sum(share * accuracy for share, accuracy in parts if share)
