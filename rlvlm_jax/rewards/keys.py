# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Configuration keys of the rewards."""

from rlvlm_jax.keys import Key
from rlvlm_jax.rewards.rules import FORMAT_STYLES
from rlvlm_jax.rewards.rules import REWARDS as TABLE

RULES = tuple(Key(name, rule.weight, f"weight of: {rule.meaning}") for name, rule in TABLE.items())

REWARDS = (
    Key("judge", "strict", "decides whether an answer is right"),
    Key(
        "rounding",
        "none",
        "reference: 6√5 is 13.4; both: 13.42 is also 6√5",
        choices=("none", "reference", "both"),
    ),
    Key("format_style", "think", "tags that the rule format requires", choices=FORMAT_STYLES),
    Key(
        "overlong_tokens",
        0,
        "the rule overlong falls over so many before rollout.max_tokens",
        least=0,
        unit="tokens",
    ),
    Key("custom", "", "module:function, called as f(response, example) -> float"),
    Key("custom_weight", 1.0, "weight of the custom reward"),
    Key("penalty", -0.1, "the score of a truncated or empty response; 0 = off"),
    Key("deadline_s", 5.0, "the most per judged item", above=0, unit="s"),
    Key("workers", 2, "0 = one per core", least=0, unit="processes", harmless=True, per_host=True),
)
