# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What is lowered for a configuration."""

import jax
import pytest

from rlvlm_jax import config as config_lib
from rlvlm_jax.errors import InputError
from rlvlm_jax.plan import predict, work
from rlvlm_jax.plan.topology import parse


def settings(mode):
    config = config_lib.default()
    config.mode, config.mesh.fsdp = mode, 8
    config.train.minibatch = 16
    return config


@pytest.mark.slow
def test_supervised_training_is_its_update():
    planned = work.lower(settings("sft"), jax.devices(), prompt_tokens=32, patches=16)
    assert set(planned.steps) == {"update"}
    tokens = planned.steps["update"].args_info[0][2]
    assert tokens.shape == (16, 64)
    phases = predict.seconds(planned.sizes, parse("v5e-8"), {"update": 0.0}, predict.Assumed())
    assert set(phases) == {"vision", "update", "optimizer", "collectives"}
    assert phases["update"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("samples", [8, 256])
def test_an_evaluation_has_the_rows_of_its_largest_setting(samples):
    config = settings("rl")
    config.eval_every, config.eval.samples = 1, samples
    config.data.val = "bundled:val"
    config.eval.settings = tuple(config_lib.EVAL_SETTINGS)
    config.rollout.prompts, config.rollout.samples = 16, 4
    planned = work.lower(config, jax.devices(), prompt_tokens=32, patches=16)
    prompts = config_lib.eval_batch(config)
    assert prompts == 8  # as many as the mesh has devices
    _, batch, features, _, ids = planned.steps["evaluate"].args_info[0]
    assert batch.tokens.shape == (prompts, 32)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(features)} == {prompts}
    assert ids.shape == (prompts * samples,)


def test_an_evaluation_alone_is_refused():
    with pytest.raises(InputError, match=r"config\.mode='eval' is not planned"):
        work.lower(settings("eval"), jax.devices())
