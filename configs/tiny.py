# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The bundled model learns to work out its answers: GRPO on a laptop, without a network.

    python -m rlvlm_jax.main --config=configs/tiny.py --workdir=runs/tiny

Arguments: `smoke` (four steps).
"""

from rlvlm_jax import config


def get_config(arg=None):
    """Returns the recipe."""
    c = config.default()
    c.total_steps = 60
    c.eval_every = 10
    c.checkpoint_every = 20
    c.data.val = "bundled:val"
    c.data.max_prompt_tokens = 128
    c.rollout.prompts, c.rollout.samples = 16, 8
    c.rollout.max_tokens = 32
    c.train.minibatch = 64
    c.train.lr = 1e-4
    c.train.warmup = 0.02
    if arg == "smoke":
        return config.smoke(c)
    if arg is not None:
        raise ValueError(f"configs/tiny.py:{arg}: use smoke, or no argument")
    return c
