# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Configuration keys of the data."""

from rlvlm_jax.keys import Key

DATA = (
    Key("train", "bundled:train", "jsonl file, `datasets` name or directory, or bundled:SPLIT"),
    Key("val", "", "the same, for evaluation; empty = none"),
    Key("test", "", "the same"),
    Key("test_ood", "", "the same, from another distribution"),
    Key(
        "max_prompt_tokens",
        2048,
        "with image tokens; longer prompts are dropped and counted",
        above=0,
        unit="tokens",
    ),
    Key(
        "on_bad_record",
        "error",
        "skip = drop and count",
        choices=("error", "skip"),
    ),
    Key("min_pixels", 0, "per image; 0 = the limit in the model directory", least=0, unit="pixels"),
    Key("max_pixels", 0, "per image; 0 = the limit in the model directory", least=0, unit="pixels"),
    Key("instruction", "", "appended to every question on a new line"),
    Key("system", "", "system message; empty = the chat template's default"),
    Key("buckets", 2, "static (prompt, patch) shapes, chosen from the data", above=0),
    Key(
        "workers",
        2,
        "read, decode and tokenise ahead of time",
        above=0,
        unit="threads",
        harmless=True,
        per_host=True,
    ),
    Key(
        "feature_cache_gib",
        1.0,
        "host memory for features of frozen vision parts; 0 = none",
        least=0,
        unit="GiB",
        harmless=True,
    ),
)
