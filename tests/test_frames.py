# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The path from the training loop to a matrix product is short enough to follow."""

import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import rlvlm_jax
from rlvlm_jax import config as config_lib
from rlvlm_jax import train
from rlvlm_jax.compiled_steps import Steps
from rlvlm_jax.models.common import attention, exact_cpu, layers

PACKAGE = str(Path(rlvlm_jax.__file__).parent)
MOST = 9
MOST_BEFORE_THE_MODEL = 5  # train, train_step, add_piece, rl_loss, logprobs
MODELS = str(Path(PACKAGE, "models"))


class ProductError(Exception):
    """Raised by the first matrix product in the gradient of a piece."""


def tiny():
    config = config_lib.default()
    config.model.path, config.data.train, config.data.val = "bundled", "bundled:train", ""
    config.total_steps, config.eval_every, config.cache = 1, 0, ""
    config.rollout.prompts = config.rollout.samples = 2
    config.rollout.max_tokens = 4
    config.train.minibatch = 4
    config.data.max_prompt_tokens, config.data.buckets = 128, 1
    return config


def zeros_of(step):
    """Returns a function whose results have the shapes of the step's; it compiles nothing."""
    return lambda *arguments: jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(step, *arguments)
    )


@pytest.fixture
def frames(monkeypatch, tmp_path):
    """The frames of the package from the loop to the update's first product, outermost first."""

    def product(*arguments, **options):
        # Shapes are traced before the loop over pieces, with a frame less.
        if any(frame.name == "add_piece" for frame in traceback.extract_stack()):
            raise ProductError
        return exact_cpu.product(*arguments, **options)

    def jitted(steps, *_):
        def traced(*arguments):
            for module in (attention, layers):
                monkeypatch.setattr(module, "product", product)
            return steps.update(*arguments)

        return Steps(
            **{name: zeros_of(step) for name, step in vars(steps).items()} | {"update": traced}
        )

    monkeypatch.setattr(train, "compile_steps", jitted)
    with pytest.raises(ProductError) as raised:
        train.train(tiny(), str(tmp_path / "run"))
    stack = [
        frame
        for frame, _ in traceback.walk_tb(raised.value.__traceback__)
        if frame.f_code.co_filename.startswith(PACKAGE)
    ]
    names = [(frame.f_code.co_filename, frame.f_code.co_qualname) for frame in stack]
    return names[[name for _, name in names].index("train") :]


def test_few_frames_lie_between_the_loop_and_a_product(frames):
    names = " -> ".join(name for _, name in frames)
    assert frames[0][1] == "train"
    assert len(frames) <= MOST, f"{len(frames)} frames: {names}"
    before = [name for file, name in frames if not file.startswith(MODELS)]
    assert len(before) <= MOST_BEFORE_THE_MODEL, f"{len(before)} frames: {' -> '.join(before)}"
