# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reads a Hugging Face config.json: every field is read, known to be harmless, or refused by name.

Shared by the families, so that no model runs as something else. Knows no model.
"""

import math
from collections.abc import Mapping
from typing import Any

from rlvlm_jax.errors import InputError

# Fields that do not affect the computation: bookkeeping, generation settings (the sampler has its
# own), settings for other training code (dropout, initialisation), and settings that another field
# disables (the sliding window: only `use_sliding_window: false` is accepted).
_IGNORED = """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path architectures
    attention_dropout attn_implementation begin_suppress_tokens bad_words_ids bos_token_id
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label initializer_range
    is_composition label2id length_penalty max_length max_position_embeddings max_window_layers
    min_length name_or_path no_repeat_ngram_size num_beam_groups num_beams num_labels
    num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix
    problem_type processor_class remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id sliding_window suppress_tokens task_specific_params
    temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16 use_cache
"""
# Fields of transformers' base class that would change the computation if they were set.
_UNSET = {
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
    "tie_encoder_decoder": False,
}
_REQUIRED = object()


class Fields:
    """One JSON object of a file; records which fields were read.

    `where` is the prefix of a field's name in messages, e.g. "text_config.".
    """

    def __init__(self, fields: Any, where: str = "", file: str = "config.json"):
        if not isinstance(fields, Mapping):
            name = where.rstrip(".") or "the content"
            raise InputError(f"{file}: {name} is {fields!r}, expected an object with fields")
        self.fields, self.where, self.file, self.read = fields, where, file, set()

    def get(self, key: str, default: Any = _REQUIRED) -> Any:
        """Returns a field's value, or the default if it is absent; without one it is required."""
        self.read.add(key)
        if key in self.fields:
            return self.fields[key]
        if default is _REQUIRED:
            raise InputError(f"{self.file}: the field {self.where}{key} is missing")
        return default

    def refuse(self, key: str, expected: str):
        """Raises InputError: the field has a value other than what is expected."""
        value = self.fields.get(key)
        raise InputError(f"{self.file}: {self.where}{key} is {value!r}, expected {expected}")

    def integer(self, key: str, default: Any = _REQUIRED, minimum: int = 1) -> int:
        """Returns an integer of at least `minimum`."""
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            self.refuse(key, f"an integer of at least {minimum}")
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """Returns a positive number."""
        value = self.get(key, default)
        if not is_number(value) or value <= 0:
            self.refuse(key, "a positive number")
        return float(value)

    def integers(self, key: str, default: Any) -> list[int]:
        """Returns a list of integers."""
        value = self.get(key, default)
        if not isinstance(value, list | tuple) or any(type(i) is not int for i in value):
            self.refuse(key, "a list of integers")
        return list(value)

    def boolean(self, key: str, default: bool) -> bool:
        """Returns true or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def only(self, key: str, *supported: Any):
        """Accepts an absent field or one of the supported values."""
        if self.get(key, supported[0]) not in supported:
            self.refuse(key, " or ".join(map(repr, supported)) + " (nothing else is supported)")

    def unknown(self) -> list[str]:
        """Returns the full names of fields that were not read and are not known to be harmless."""
        for key, value in _UNSET.items():
            self.only(key, value, None)
        ignored = set(_IGNORED.split())
        return sorted(
            self.where + key for key in self.fields if key not in self.read and key not in ignored
        )


def is_number(value: Any) -> bool:
    """Returns whether a value of a JSON file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
