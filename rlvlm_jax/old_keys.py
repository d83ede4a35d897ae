# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Configuration keys of older versions: what each is called now, and what a saved value means."""

OLD_GROUP, NEW_GROUP = "update.", "train."
OLD = {  # old key -> its new name, or what became of it
    "rewards.accuracy": "rewards.rules.accuracy",
    "rewards.language": "rewards.rules.language",
    "rewards.format": "rewards.rules.format",
    "rewards.repetition": "rewards.rules.repetition",
    "rewards.overlong": "rewards.rules.overlong",
    "rewards.tolerance": "is fixed at 1e-6",
    "rewards.custom_memory_gib": "is fixed at 4",
    "rewards.no_eos_penalty": "is gone: config.rewards.penalty=0 is off",
    "rewards.min_tokens": "is gone: config.rewards.penalty is for truncated and empty responses",
}


def now(key: str) -> str | None:
    """Returns what an old key is today, a key or "is ...", or None if it never was one."""
    if key.startswith(OLD_GROUP):
        key = NEW_GROUP + key.removeprefix(OLD_GROUP)
        return OLD.get(key, key)
    return OLD.get(key)
