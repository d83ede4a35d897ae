# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Configuration keys of the algorithm: advantage, loss, KL and filter."""

from rlvlm_jax.keys import Key

ALGORITHM = (
    Key("advantage", "grpo", "estimator of the advantage"),
    Key(
        "whiten",
        "center",
        "reinforce_pp: what whitening does; scale is MAYE's code",
        choices=("center", "scale", "none"),
    ),
    Key("gamma", 1.0, "reinforce_pp: discount per token", least=0, most=1),
    Key("scale", "group", "grpo: divisor of a centred score", choices=("group", "batch", "none")),
    Key("eps", 1e-6, "grpo: added to the deviation", least=0),
    Key("normalise", False, "group estimators: also whiten over all tokens of the batch"),
    Key("whiten_parts", 1, "whiten within this many equal parts of the batch (MAYE: 7)", above=0),
    Key("adora", False, "down-weight groups whose correct responses are not the longer ones"),
    Key("adora_lambda", 0.1, "their weight", least=0, most=1),
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
    Key("length_norm", 0, "constant: divisor per sequence; 0 = R", least=0, unit="tokens"),
    Key("kl_loss_coef", 0.0, "weight of the KL in the loss; 0 = no reference pass", least=0),
    Key("kl_loss_kind", "k3", "its estimator"),
    Key(
        "kl_reward_coef",
        0.0,
        "KL penalty in the return; group estimators: in the score",
        least=0,
    ),
    Key("kl_reward_kind", "k1", "its estimator"),
    Key("entropy_coef", 0.0, "bonus for entropy, mean over tokens", least=0, unit="1/nats"),
    Key("mask_truncated", False, "leave truncated responses out of the loss"),
    Key("flat_positions", False, "train (not sample) on 1-D positions, like MAYE's code"),
    Key("filter", False, "leave out groups with accuracy outside [low, high]"),
    Key("filter_refills", 0, "extra batches per step that replace left-out groups", least=0),
    Key("filter_low", 0.1, "groups below this accuracy are left out", least=0, most=1),
    Key("filter_high", 0.9, "groups above this accuracy are left out", least=0, most=1),
)
