# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The study: the untrained model, supervised training and RL on the bundled problems.

    for method in vanilla sft rl; do
        python -m rlvlm_jax.main --config=configs/study.py:$method --workdir=runs/study/$method
    done
    python -m rlvlm_jax.report runs/study/vanilla runs/study/sft runs/study/rl --out=study.html

Arguments: `rl`, `sft`, `vanilla`, each with three seeds, and `smoke` (RL, four steps). RL and
supervised training both make six passes over the same 160 problems, in batches of 16, in the same
order; supervised training uses their worked solutions. Each evaluates on validation, test and
out-of-distribution test after every epoch, in the scheme's three settings.

Learning rates were chosen on validation. Supervised training: from 3e-5, 1e-4, 3e-4 and 1e-3
(`:sft --config.seeds=1 --config.train.lr=...`; best pass@1 at T = 0.01: 0.66, 0.665, 0.65 and
0.39, the last at step 0). RL: from 1e-4 with the cosine and 2e-4 without.
"""

from rlvlm_jax import config

METHODS = {"rl": "rl", "sft": "sft", "vanilla": "eval"}


def get_config(arg="rl"):
    """Returns the recipe of one method; None is RL."""
    c = config.default()
    c.mode, c.seeds = METHODS.get(arg, "rl"), 3
    c.epochs = 6.0
    c.eval_every = c.checkpoint_every = -1
    c.data.train = "bundled:train:160"
    c.data.val, c.data.test, c.data.test_ood = "bundled:val", "bundled:test", "bundled:test_ood"
    c.data.max_prompt_tokens = 128
    c.rollout.prompts, c.rollout.samples = 16, 8
    c.rollout.max_tokens = 32
    c.train.minibatch = 16 if arg == "sft" else 64
    c.train.lr = 1e-4
    c.train.warmup = 0.02
    c.eval.settings = tuple(config.EVAL_SETTINGS)
    c.eval.batch = 40
    if arg == "smoke":
        return config.smoke(c)
    if arg not in (None, *METHODS):
        raise ValueError(f"configs/study.py:{arg}: use one of {', '.join(METHODS)}, smoke")
    return c
