# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""MM-EUREKA's Qwen recipe: GRPO, 8 samples per prompt, accuracy filter 0.1-0.9, no KL.

    python -m rlvlm_jax.main --config=configs/mm_eureka.py --workdir=runs/mm_eureka \
        --config.data.train=mmk12.jsonl

Arguments: `dapo` (clip-higher, dynamic sampling, loss per token, soft overlong penalty), `adora`
(ADORA's weights), `rloo` (RLOO normalised over the batch, as in the paper's first version),
`faithful` (the released judge, which accepts some wrong answers), and `smoke` (the bundled model
and data), alone or after another: `dapo,smoke`. The authors used 8 to 16 GPUs of 80 GB with
Qwen2.5-VL-7B; not run here. DAPO, ADORA and RLOO are options of the same project.

Source: Meng et al. 2025 (arXiv:2503.07365) and the hyper-parameters of its released Qwen script:
128 prompts x 8, 128 sequences per update, lr 1e-6 decaying to a tenth, 3 % warm-up, no weight
decay, vision tower and connector frozen.
"""

from rlvlm_jax import config

VARIANTS = ("", "dapo", "adora", "rloo", "faithful")


def get_config(arg=None):
    """Returns the recipe of a variant."""
    variant, smoke = config.variant("configs/mm_eureka.py", arg, VARIANTS)
    c = config.default()
    c.epochs = 10.0
    c.checkpoint_every = 50
    c.model.path = "Qwen/Qwen2.5-VL-7B-Instruct"
    c.model.dtype = "bfloat16"
    c.model.remat = "full"
    c.data.train = "data/mmk12.jsonl"
    c.data.min_pixels, c.data.max_pixels = 3136, 501_760
    c.data.max_prompt_tokens = 3000
    c.data.system = (
        "Solve the question. First think about it inside <think> </think>, then give the answer "
        "inside <answer> </answer>, in LaTeX between dollar signs with the final result in "
        "\\boxed{}. For example: <think> 1 and 1 make 2. </think><answer> $\\boxed{2}$ </answer>"
    )
    c.rollout.prompts, c.rollout.samples = 128, 8
    c.rollout.max_tokens = 4096
    c.rewards.rules.format = 0.5
    c.rewards.format_style = "think_answer"
    c.rewards.rules.language = 0.0
    c.rewards.penalty = 0.0
    c.algorithm.advantage = "grpo"
    c.algorithm.eps = 1e-9
    c.algorithm.dual_clip = 3.0
    c.algorithm.aggregate = "sequence"
    c.algorithm.filter_low, c.algorithm.filter_high = 0.1, 0.9
    c.train.minibatch = 128
    c.train.microbatch = 16
    c.train.logprob_batch = 128
    c.train.lr = 1e-6
    c.train.warmup = 0.03
    c.train.final_lr = 0.1
    c.train.weight_decay = 0.0
    c.mesh.fsdp = -1
    if variant == "dapo":
        c.algorithm.clip_high = 0.28
        c.algorithm.dual_clip = 0.0
        c.algorithm.aggregate = "token"
        c.algorithm.filter_low, c.algorithm.filter_high = 0.01, 0.99
        c.algorithm.filter_refills = 3
        c.rewards.rules.overlong = 1.0
        c.rewards.overlong_tokens = 1024
    elif variant == "adora":
        c.algorithm.adora_weight = 0.1
    elif variant == "rloo":
        c.algorithm.advantage = "rloo"
        c.algorithm.whiten = "scale"
        c.train.minibatch = 64
        c.train.lr = 3e-7
    elif variant == "faithful":
        c.rewards.judge = "mm_eureka"
    return config.smoke(c) if smoke else c
