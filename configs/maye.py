# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""MAYE: REINFORCE++ on one response per question, with the paper's numbers.

    python -m rlvlm_jax.main --config=configs/maye.py:geometry3k --workdir=runs/geometry3k \
        --config.data.train=DIR/geometry3k_rl_v0.jsonl \
        --config.data.val=DIR/geometry3k_validation_v0.jsonl \
        --config.data.test=DIR/geometry3k_test_v0.jsonl

Arguments: `geometry3k` (50 epochs, 100 steps), `mm_math5k` (30 epochs, 150 steps), `faithful` (the
mistakes of the released code, on geometry3k), and `smoke` (the bundled model and data), alone or
after another: `faithful,smoke`. The paper used 8 x H800, 7 of them to train, with Qwen2-VL-7B and
Qwen2.5-VL-7B. An update of 28 sequences needs 1, 2, 4, 7, 14 or 28 devices.

Source: Ma et al. 2025 (arXiv:2504.02587), section 5.1 and appendix A. If the paper and the released
script differ, this follows the main text. The mathematics is corrected (M-RoPE positions, zero-mean
advantages, token means over the whole minibatch).
"""

from rlvlm_jax import config

VARIANTS = ("geometry3k", "mm_math5k", "faithful")


def get_config(arg=None):
    """Returns the recipe of a variant; None is geometry3k."""
    variant, smoke = config.variant("configs/maye.py", arg, VARIANTS)
    name = "mm_math5k" if variant == "mm_math5k" else "geometry3k"
    c = config.default()
    c.total_steps = 150 if variant == "mm_math5k" else 100
    c.eval_every = -1
    c.checkpoint_every = -1
    c.model.path = "Qwen/Qwen2.5-VL-7B-Instruct"
    c.model.dtype = "bfloat16"
    c.model.remat = "full"
    c.data.train = f"data/{name}_rl_v0.jsonl"
    c.data.val = f"data/{name}_validation_v0.jsonl"
    c.data.max_pixels = 1_003_520
    c.data.instruction = (
        "Solve the problem. Write out the steps that the question asks for, in the question's own "
        "LaTeX style, and put the final answer inside \\boxed{}."
    )
    c.rollout.prompts, c.rollout.samples = 896, 1
    c.rollout.max_tokens = 2048
    c.algorithm.advantage = "reinforce_pp"
    c.algorithm.kl_loss_coef = 1e-3
    c.train.minibatch = 28
    c.train.lr = 5e-6
    c.train.eps = 1e-5
    c.train.logprob_batch = 112
    c.eval.settings = tuple(config.EVAL_SETTINGS)
    c.mesh.fsdp = -1
    if variant == "faithful":
        c.algorithm.flat_positions = True
        c.algorithm.whiten, c.algorithm.whiten_parts = "scale", 7
        c.algorithm.aggregate = "microbatch"
        c.train.microbatch = 4  # sequences averaged per GPU; needs 1, 2 or 4 devices
        c.rewards.judge = "maye"
        c.rewards.rules.format = 1.0
    return config.smoke(c) if smoke else c
