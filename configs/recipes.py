# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Every recipe on the bundled model and problems: 30 steps, evaluated every 5 steps.

    for recipe in maye maye_faithful mm_eureka mm_eureka_faithful dapo adora rloo dr_grpo \
        reinforce_baseline gspo cispo sft
    do python -m rlvlm_jax.main --config=configs/recipes.py:$recipe --workdir=runs/recipes/$recipe
    done
    python -m rlvlm_jax.report runs/recipes/* --over=step --out=recipes.html

Each is the `:smoke` of its recipe in this directory, with the changes in `RECIPES`. One seed: this
shows that each recipe trains and what it costs, not which is better.
"""

import runpy
from pathlib import Path

GSPO = {"loss": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, "dual_clip": 0.0}
CISPO = {"loss": "cispo", "clip_low": 1.0, "clip_high": 4.0, "dual_clip": 0.0}
RECIPES = {  # argument -> (file, its argument, changes to config.algorithm)
    "maye": ("maye.py", "smoke", {}),
    "maye_faithful": ("maye.py", "faithful,smoke", {}),
    "mm_eureka": ("mm_eureka.py", "smoke", {}),
    "mm_eureka_faithful": ("mm_eureka.py", "faithful,smoke", {}),
    "dapo": ("mm_eureka.py", "dapo,smoke", {}),
    "adora": ("mm_eureka.py", "adora,smoke", {}),
    "rloo": ("mm_eureka.py", "rloo,smoke", {}),
    "dr_grpo": ("mm_eureka.py", "smoke", {"scale": "none", "aggregate": "constant"}),
    "reinforce_baseline": (
        *("mm_eureka.py", "smoke"),
        {"advantage": "reinforce_baseline", "whiten": "scale"},
    ),
    "gspo": ("mm_eureka.py", "smoke", GSPO),
    "cispo": ("mm_eureka.py", "smoke", CISPO),
    "sft": ("sft.py", "smoke", {}),
}


def get_config(arg="mm_eureka"):
    """Returns one recipe; None is MM-EUREKA's."""
    if arg not in (None, *RECIPES):
        raise ValueError(f"configs/recipes.py:{arg}: use one of {', '.join(RECIPES)}")
    file, variant, changes = RECIPES[arg or "mm_eureka"]
    c = runpy.run_path(str(Path(__file__).with_name(file)))["get_config"](variant)
    c.algorithm.update(changes)
    c.total_steps, c.eval_every = 30, 5
    c.checkpoint_every = 0
    c.eval.limit = 200
    return c
