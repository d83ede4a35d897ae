# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Configuration keys of the algorithm: advantage, loss, KL and filter."""

from rlvlm_jax.keys import Key

ALGORITHM = (
    Key("advantage", "grpo", "estimator of the advantage"),
    Key(
        "whiten",
        "auto",
        "over all tokens of the batch: center = zero mean and unit variance; scale = for "
        "reinforce_pp unit variance alone (MAYE's code), for group estimators both; auto = center "
        "for reinforce_pp, none for group estimators",
        choices=("auto", "center", "scale", "none"),
    ),
    Key("gamma", 1.0, "reinforce_pp: discount per token", least=0, most=1),
    Key("scale", "group", "grpo: divisor of a centred score", choices=("group", "batch", "none")),
    Key("eps", 1e-6, "grpo: added to the deviation", least=0),
    Key("whiten_parts", 1, "whiten within this many equal parts of the batch (MAYE: 7)", above=0),
    Key(
        "adora_weight",
        1.0,
        "weight of groups whose correct responses are not the longer ones; 1 = off",
        least=0,
        most=1,
    ),
    Key("loss", "ppo", "of the policy"),
    Key("clip_low", 0.2, "ratios below 1 - clip_low are clipped", least=0),
    Key("clip_high", 0.2, "ratios above 1 + clip_high are clipped", least=0),
    Key("dual_clip", 0.0, "bound of the loss at negative advantages; 0 = off", least=0),
    Key("is_cap", 0.0, "cap of the sampler-to-trainer importance weight; 0 = off", least=0),
    Key(
        "old_logprobs",
        "auto",
        "source of the ratio's old log-probs: trainer = a pass before the update; sampler = no "
        "pass, equal to the trainer's in float32 on CPU; update = no pass, for an update of one "
        "optimizer step; auto = update if possible, else trainer; without a pass, the gap between "
        "sampler and trainer is measured on the first optimizer step's sequences",
        choices=("auto", "trainer", "sampler", "update"),
    ),
    Key("aggregate", "token", "how the losses of tokens are averaged"),
    Key("kl_loss_coef", 0.0, "weight of the KL in the loss; 0 = no reference pass", least=0),
    Key("kl_loss_kind", "k3", "its estimator"),
    Key(
        "kl_reward_coef",
        0.0,
        "KL penalty in the return; group estimators: in the score",
        least=0,
    ),
    Key("entropy_coef", 0.0, "bonus for entropy, mean over tokens", least=0, unit="1/nats"),
    Key("mask_truncated", False, "leave truncated responses out of the loss"),
    Key("flat_positions", False, "train (not sample) on 1-D positions, like MAYE's code"),
    Key("filter_refills", 0, "extra batches per step that replace left-out groups", least=0),
    Key("filter_low", 0.0, "groups below this accuracy are left out", least=0, most=1),
    Key("filter_high", 1.0, "groups above this accuracy are left out", least=0, most=1),
)
