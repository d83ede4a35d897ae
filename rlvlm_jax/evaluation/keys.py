# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Configuration keys of the evaluation, and its settings."""

from rlvlm_jax.keys import Key

EVAL_SETTINGS = {  # name -> (samples k, temperature, top-p); the MAYE scheme
    "pass@1_t0.01": (1, 0.01, 0.001),
    "pass@1_t0.6": (1, 0.6, 1.0),
    "pass@8_t1.0": (8, 1.0, 1.0),
}

EVAL = (
    Key("settings", ("pass@1_t0.01",), "how it samples", choices=tuple(EVAL_SETTINGS)),
    Key("limit", 0, "use only the first N questions; 0 = all", least=0),
    Key("batch", 0, "prompts per evaluation batch; 0 = rollout.prompts", least=0),
    Key(
        "samples",
        8,
        "responses per question for pass@8; more give unbiased estimates",
        least=8,
        most=256,
    ),
)
