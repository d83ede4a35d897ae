# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Builds the tokenizer of the bundled small model: `python -m rlvlm_jax.data.tiny_tokenizer DIR`.

A byte-level byte-pair encoding of 512 tokens in Qwen's format. It encodes any text; each digit is
one token, and so are most words of the bundled problems. Plain Python learns the merges, so that
the files do not depend on the installed libraries.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from rlvlm_jax.data.problems import examples

VOCAB_SIZE = 512
SPECIAL_TOKENS = (  # the last ids, in this order
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# How to split a text before merging: Qwen's rule, and its equivalent for ASCII text.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ASCII_SPLIT = re.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]"
    r"| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Words that occur in prompts and longer answers but not in the problems.
_PROSE = """
Please think step by step, and put your final answer in \\boxed{}.
The answer is the number of the problem. First we look at the picture, then we read what it shows.
Wait, let me check this again. We need to add these two, so that the result is right, however.
Let us verify: there are more than one, which means that it would be wrong. Hmm, that is not it.
What is the value of the other side? Which one is larger? How much is it in total, if you count all?
"""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_letters() -> list[str]:
    """Returns the letter for each byte: the byte itself if printable, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters, spare = [], 0x100
    for byte in range(256):
        letters.append(chr(byte if byte in printable else spare))
        spare += byte not in printable
    return letters


def learn_merges(texts: Iterable[str], count: int) -> list[tuple[str, str]]:
    """Learns byte-pair merges: repeatedly the most frequent pair, ties in text order.

    Args:
        texts: ASCII texts.
        count: number of merges.

    Returns:
        The pairs to merge, in order, as letters of `byte_letters`.

    Raises:
        ValueError: the texts contain too few pairs.
    """
    letters = byte_letters()
    pieces = Counter(piece for text in texts for piece in _ASCII_SPLIT.findall(text))
    words = {
        tuple(letters[byte] for byte in piece.encode("ascii")): n for piece, n in pieces.items()
    }
    merges: list[tuple[str, str]] = []
    for _ in range(count):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, n in words.items():
            for pair in pairwise(word):
                pairs[pair] += n
        if not pairs:
            raise ValueError(f"the texts give {len(merges)} merges, but {count} are required")
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged: Counter[tuple[str, ...]] = Counter()
        for word, n in words.items():
            merged[_merge(word, best)] += n
        words = merged
    return merges


def build() -> dict[str, str]:
    """Makes the tokenizer's files, as file name -> JSON text."""
    texts = [
        f"user\n{item.question}\nassistant\n{item.solution}\n"
        for item in examples("train", count=3000)
    ]
    merges = learn_merges([*texts, *[_PROSE] * 10], VOCAB_SIZE - 256 - len(SPECIAL_TOKENS))
    tokens = [*sorted(byte_letters()), *("".join(pair) for pair in merges)]
    special = [
        {
            "id": len(tokens) + index,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, content in enumerate(SPECIAL_TOKENS)
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": SPLIT},
        "behavior": "Isolated",
        "invert": False,
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": merges,
        },
    }
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    files = {"tokenizer.json": tokenizer, "tokenizer_config.json": config}
    return {
        name: json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        for name, content in files.items()
    }


def main(directory: str) -> None:
    """Writes the tokenizer's files into the directory."""
    for name, text in build().items():
        Path(directory, name).write_text(text, encoding="utf-8")


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for letter in word:
        if merged and (merged[-1], letter) == pair:
            merged[-1] += letter
        else:
            merged.append(letter)
    return tuple(merged)


if __name__ == "__main__":
    main(sys.argv[1])
