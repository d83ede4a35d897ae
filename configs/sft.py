# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The supervised baseline: worked solutions, with the questions, prompt and evaluation of RL.

    python -m rlvlm_jax.main --config=configs/sft.py --workdir=runs/sft \
        --config.data.train=DIR/mm_math5k_rl_v0.jsonl \
        --config.data.val=DIR/mm_math5k_validation_v0.jsonl \
        --config.data.test=DIR/mm_math5k_test_v0.jsonl

Argument: `smoke` (the bundled model and data).

Source: Ma et al. 2025 (arXiv:2504.02587), section 5.1: 5,000 mm_math5k questions with their own
solutions, learning rate 1e-5, warm-up and cosine, batches of 16, 30 epochs. The paper does not
state the rest; chosen here: train only the language model, warm-up over a tenth of the updates,
loss on the solution and its end token, solutions up to 2,048 tokens. Thirty epochs at this rate
over-fit; sweep the rate, and run `--config.seeds=3`, before calling supervised training weak.
"""

from rlvlm_jax import config


def get_config(arg=None):
    """Returns the recipe."""
    c = config.default()
    c.mode = "sft"
    c.epochs = 30.0
    c.eval_every = -1
    c.checkpoint_every = -1
    c.model.path = "Qwen/Qwen2.5-VL-7B-Instruct"
    c.model.dtype = "bfloat16"
    c.model.remat = "full"
    c.data.train = "data/mm_math5k_rl_v0.jsonl"
    c.data.val = "data/mm_math5k_validation_v0.jsonl"
    c.data.test = "data/mm_math5k_test_v0.jsonl"
    c.data.max_pixels = 1_003_520
    c.data.instruction = (
        "Solve the problem. Write out the steps that the question asks for, in the question's own "
        "LaTeX style, and put the final answer inside \\boxed{}."
    )
    c.rollout.max_tokens = 2048
    c.train.minibatch = 16
    c.train.lr = 1e-5
    c.train.warmup = 0.1
    c.eval.settings = tuple(config.EVAL_SETTINGS)
    c.mesh.fsdp = -1
    if arg == "smoke":
        return config.smoke(c)
    if arg is not None:
        raise ValueError(f"configs/sft.py:{arg}: use smoke, or no argument")
    return c
