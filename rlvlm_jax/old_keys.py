# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Unknown configuration keys: what an old one is today, and which one a misspelt one may mean."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from rlvlm_jax.config import KEYS

PARTS = ("vit", "connector", "llm", "head")
RULES = ("accuracy", "language", "format", "repetition", "overlong")
RENAMED = {  # old key -> new key
    "compile_cache": "cache",
    "data.index": "cache",
    "data.limit_eval": "eval.limit",
    **{f"rewards.{rule}": f"rewards.rules.{rule}" for rule in RULES},
    **{f"algorithm.{name}": "algorithm.adora_weight" for name in ("adora", "adora_lambda")},
    **{f"train.train_{part}": "train.parts" for part in PARTS},
    "train.lr_vit": "train.lr_vision",
    "train.lr_connector": "train.lr_vision",
    **{f"log.{name}": "log.writers" for name in ("tensorboard", "prometheus", "progress")},
}
GONE = {  # old key -> what became of it
    "rollout.chunk": "is fixed at 16",
    "rewards.tolerance": "is fixed at 1e-6",
    "rewards.custom_memory_gib": "is fixed at 4",
    "rewards.no_eos_penalty": "is gone; config.rewards.penalty=0 turns the penalty off",
    "rewards.min_tokens": "is gone; config.rewards.penalty is for truncated and empty responses",
    "algorithm.normalise": "is gone; it is config.algorithm.whiten='scale'",
    "algorithm.length_norm": "is fixed at config.rollout.max_tokens",
    "algorithm.kl_reward_kind": "is fixed at k1",
    "algorithm.filter": "is gone; set config.algorithm.filter_low and config.algorithm.filter_high",
    "train.logprob_chunk": "is fixed at 64",
    "train.max_bad_steps": "is fixed at 5",
    "train.schedule": "is gone; config.train.final_lr=1 is a constant rate",
    "train.only": "is gone; config.train.parts selects whole parts",
    "train.lr_head": "is gone; the head has the rate config.train.lr",
    "sft.style": "is gone; config.sft.direct_share=0 is worked solutions only",
    "eval.samples_seed": "is fixed at 1234",
    "log.rollouts": "is gone; rollouts are always written",
    "log.token_prompts": "is fixed at 4",
    "log.wandb": "is gone; add wandb to config.log.writers and set WANDB_PROJECT",
}
FIXED = {  # dropped key -> the value that every run has today
    "rewards.tolerance": 1e-6,
    "rewards.custom_memory_gib": 4.0,
    "algorithm.length_norm": 0,
    "algorithm.kl_reward_kind": "k1",
    "train.max_bad_steps": 5,
    "train.only": "",
    "train.lr_head": 0.0,
    "eval.samples_seed": 1234,
}
WITHOUT_EFFECT = (  # on what a run does
    *("compile_cache", "data.index", "rollout.chunk", "train.logprob_chunk", "log.rollouts"),
    *("log.token_prompts", "log.tensorboard", "log.prometheus", "log.progress", "log.wandb"),
)


def _in_train(key: str) -> str:
    """Returns a key of the old group `update` in its new group, others as they are."""
    return "train." + key.removeprefix("update.") if key.startswith("update.") else key


def explain(key: str) -> str:
    """Returns a sentence about a dotted key that does not exist: what it is now, or the nearest."""
    now = _in_train(key)
    if now in GONE:
        return f"config.{key} {GONE[now]}"
    now = RENAMED.get(now, now)
    if now in KEYS:
        return f"config.{key} is now config.{now}"
    return f"there is no key config.{key}; did you mean config.{_nearest(key)}?"


def explain_attribute(message: str) -> str | None:
    """Returns a sentence about the old key that a recipe sets, None if it is none.

    Args:
        message: of the error of a locked ConfigDict, which names the last part of the key only.
    """
    if message.startswith("'method' object has no attribute"):  # the method ConfigDict.update
        return "the group config.update is now config.train"
    name = re.search(r'Key "(\w+)"', message) or re.match(r"""["'\\]+(\w+)""", message)
    leaf = name and name[1]
    return next((explain(key) for key in (*RENAMED, *GONE) if key.split(".")[-1] == leaf), None)


def _nearest(key: str) -> str:
    """Returns the key of today whose name, today's or an old one, is most similar to `key`."""
    names = {name.replace("train.", "update.", 1): name for name in KEYS if "train." in name}
    names |= RENAMED | {name: name for name in KEYS}
    by_leaf = {name.rsplit(".", 1)[-1]: name for name in KEYS}
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.0)
    leaf = difflib.get_close_matches(key.rsplit(".", 1)[-1], by_leaf, n=1, cutoff=0.85)
    return by_leaf[leaf[0]] if leaf and "." not in key else names[close[0]]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        )
    return leaves


def is_old(config: Mapping[str, Any]) -> bool:
    """Returns whether a saved configuration, a nested dict, has keys of an older version."""
    return any(key in RENAMED or key in GONE or _in_train(key) != key for key in _flat(config))


def translate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a saved configuration, a nested dict, with today's keys and values.

    A key without a counterpart stays if its value is not what every run has today, so that the run
    is not taken for one of today's.
    """
    if not is_old(config):
        return dict(config)
    leaves = {_in_train(key): value for key, value in _flat(config).items()}
    fixed = {key for key, value in FIXED.items() if leaves.get(key) == value}
    for key in fixed.union(WITHOUT_EFFECT):
        leaves.pop(key, None)
    for old in ("data.limit_eval", *(f"rewards.{rule}" for rule in RULES)):
        if old in leaves:
            leaves[RENAMED[old]] = leaves.pop(old)
    if leaves.pop("train.schedule", None) == "constant":
        leaves["train.final_lr"] = 1.0
    if leaves.pop("sft.style", None) == "worked":
        leaves["sft.direct_share"] = 0.0
    if leaves.pop("algorithm.filter", None) is False:
        leaves["algorithm.filter_low"], leaves["algorithm.filter_high"] = 0.0, 1.0
    if "train.train_vit" in leaves:
        trained = {part: leaves.pop(f"train.train_{part}", True) for part in PARTS}
        leaves["train.parts"] = [part for part in PARTS if trained[part]]
    if "algorithm.adora" in leaves:
        weight = leaves.pop("algorithm.adora_lambda", 0.1)
        leaves["algorithm.adora_weight"] = weight if leaves.pop("algorithm.adora") else 1.0
    normalise = leaves.pop("algorithm.normalise", False)
    if leaves.get("algorithm.advantage") != "reinforce_pp":
        leaves["algorithm.whiten"] = "scale" if normalise else "auto"
    elif leaves.get("algorithm.whiten") == "center":
        leaves["algorithm.whiten"] = "auto"
    rule = leaves.get("rewards.no_eos_penalty", True), leaves.get("rewards.min_tokens", 1)
    if rule in ((True, 1), (False, 0)):
        leaves.pop("rewards.no_eos_penalty", None)
        leaves.pop("rewards.min_tokens", None)
        leaves["rewards.penalty"] = leaves.get("rewards.penalty", -0.1) if rule[0] else 0.0
    if leaves.get("train.lr_vit", 0.0) == leaves.get("train.lr_connector", 0.0):
        leaves.pop("train.lr_connector", None)
        leaves["train.lr_vision"] = leaves.pop("train.lr_vit", 0.0)
    nested: dict[str, Any] = {}
    for key, value in leaves.items():
        *groups, name = key.split(".")
        group = nested
        for part in groups:
            group = group.setdefault(part, {})
        group[name] = value
    return nested
