# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Rewards for the text alone: its language and its tags; and the rules that replace a score.

Pure string functions, linear in their input. They do not know the right answer.
"""

import re
from typing import Literal

FormatStyle = Literal["think", "think_answer"]

_IDEOGRAPH = re.compile("[\u4e00-\u9fff]")
_THINK_THEN_ANSWER = re.compile(r"<think>.+?</think>\s*<answer>.+?</answer>", re.DOTALL)

_PIECES = re.compile(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+|[^\w\s]")  # words


def language(text: str) -> float:
    """Penalises Chinese characters: -0.1 * (their share of all characters), 0 for an empty text.

    Only the block U+4E00-U+9FFF counts; other scripts do not.

    Source: MAYE (arXiv:2504.02587), released code; the paper gives no formula.
    """
    return -0.1 * len(_IDEOGRAPH.findall(text)) / len(text) if text else 0.0


def format_tags(text: str, style: FormatStyle) -> float:
    """Rewards the required tags with 1, anything else with 0.

    Args:
        text: the response.
        style: "think" requires exactly one `<think>...</think>` block (MAYE). "think_answer"
            requires each of the four tags once: a think block, then an answer block, neither empty,
            with only white space between (MM-EUREKA, with weight 0.5). Other text may surround
            them.
    """
    once = [text.count(tag) == 1 for tag in ("<think>", "</think>", "<answer>", "</answer>")]
    if style == "think":
        return float(once[0] and once[1] and text.index("<think>") < text.index("</think>"))
    return float(all(once) and _THINK_THEN_ANSWER.search(text) is not None)


def penalised(truncated: bool, length: int, *, no_eos_penalty: bool, min_tokens: int) -> bool:
    """Tells whether the penalty replaces the score.

    Args:
        truncated: whether the response has no stop token.
        length: tokens of the response, without the stop token.
        no_eos_penalty: whether truncation alone is penalised.
        min_tokens: responses with fewer tokens are penalised; 1 catches an immediate stop.

    Source: MAYE's released code; its paper does not mention the rule.
    """
    return (truncated and no_eos_penalty) or length < min_tokens


def overlong(length: int, max_tokens: int, stretch: int) -> float:
    """Softly penalises a response in the last stretch before the limit.

    0 up to max_tokens - stretch, then falling linearly to -1 at max_tokens; the scalar version of
    `algorithms.filtering.overlong_penalty`.

    Args:
        length: tokens of the response (not characters), without the stop token.
        max_tokens: length with the full penalty.
        stretch: tokens, 1 to max_tokens.

    Source: DAPO (arXiv:2503.14476), eq. 13.
    """
    return min(0.0, max(-1.0, (max_tokens - stretch - length) / stretch))


def repetition(text: str, n: int = 4) -> float:
    """Measures how much of a response repeats earlier parts of it.

    1 - distinct / all, over the n-grams of its words.

    Args:
        text: A response; case does not matter. Words are runs of letters and digits; any other
            character, and any CJK ideograph, is a word by itself.
        n: Words per n-gram.

    Returns:
        The share of n-grams that occurred earlier in the text, in [0, 1); 0 for a text of fewer
        than n words. A loop is near 1; ordinary worked solutions stay well below 0.5.
    """
    words = _PIECES.findall(text.lower())
    grams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def is_repetitive(text: str, *, n: int = 4, threshold: float = 0.5) -> bool:
    """Tells whether a response loops; response/repetition_fraction is the share that does.

    Args:
        text: A response.
        n: Words per n-gram.
        threshold: A response loops if its `repetition` exceeds this.
    """
    return repetition(text, n) > threshold
