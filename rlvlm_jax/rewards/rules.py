# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The rules that a score is made of: a rule is a function of one response and its row in `REWARDS`.

Linear in the text. They do not know the right answer, only the judge's verdict.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

FORMAT_STYLES = ("think", "think_answer")

_IDEOGRAPH = re.compile("[\u4e00-\u9fff]")
_THINK_THEN_ANSWER = re.compile(r"<think>.+?</think>\s*<answer>.+?</answer>", re.DOTALL)

_PIECES = re.compile(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+|[^\w\s]")  # words


class Response(NamedTuple):
    """What a rule sees."""

    text: str  # special tokens removed
    correct: bool  # the judge's verdict
    length: int  # tokens, without the stop token
    truncated: bool  # it has no stop token
    max_tokens: int  # the limit of its length
    example: Mapping[str, Any]  # the record's fields, `solution` among them


class Rule(NamedTuple):
    """A row of `REWARDS`."""

    reward: Callable[[Response, ConfigDict], float]  # of the configuration's group `rewards` too
    weight: float  # the default of config.rewards.rules.NAME
    meaning: str
    always: bool = False  # recorded even if its weight is 0


def accuracy(response: Response, _: ConfigDict) -> float:
    """Rewards a right answer with 1, anything else with 0."""
    return float(response.correct)


def language(response: Response, _: ConfigDict) -> float:
    """Penalises Chinese characters: -0.1 * (their share of all characters), 0 for an empty text.

    Only the block U+4E00-U+9FFF counts; other scripts do not.

    Source: MAYE (arXiv:2504.02587), released code; the paper gives no formula.
    """
    text = response.text
    return -0.1 * len(_IDEOGRAPH.findall(text)) / len(text) if text else 0.0


def format_tags(response: Response, settings: ConfigDict) -> float:
    """Rewards the tags of `settings.format_style` with 1, anything else with 0.

    "think" requires exactly one `<think>...</think>` block (MAYE). "think_answer" requires each of
    the four tags once: a think block, then an answer block, neither empty, with only white space
    between (MM-EUREKA, with weight 0.5). Other text may surround them.
    """
    text = response.text
    once = [text.count(tag) == 1 for tag in ("<think>", "</think>", "<answer>", "</answer>")]
    if settings.format_style == "think":
        return float(once[0] and once[1] and text.index("<think>") < text.index("</think>"))
    return float(all(once) and _THINK_THEN_ANSWER.search(text) is not None)


def repetition(response: Response, _: ConfigDict) -> float:
    """Penalises repeated text: -`repeated_share`."""
    return -repeated_share(response.text)


def overlong(response: Response, settings: ConfigDict) -> float:
    """Softly penalises a response in the last stretch before the limit.

    0 up to max_tokens - `settings.overlong_tokens`, then falling linearly to -1 at max_tokens; the
    scalar version of `algorithms.filtering.overlong_penalty`.

    Source: DAPO (arXiv:2503.14476), eq. 13.
    """
    stretch = settings.overlong_tokens
    return min(0.0, max(-1.0, (response.max_tokens - stretch - response.length) / stretch))


REWARDS = {  # in the order in which a score adds them up
    "accuracy": Rule(accuracy, 1.0, "1 for a right answer, else 0", always=True),
    "language": Rule(language, 1.0, "-0.1 * share of CJK characters", always=True),
    "format": Rule(format_tags, 0.0, "1 for the tags of format_style, else 0", always=True),
    "repetition": Rule(repetition, 0.0, "-(share of repeated 4-grams)"),
    "overlong": Rule(overlong, 0.0, "from 0 to -1 over the last overlong_tokens"),
}


def penalised(truncated: bool, length: int, settings: ConfigDict) -> bool:
    """Tells whether `settings.penalty` replaces the score: if truncated or empty; 0 = never.

    Args:
        truncated: whether the response has no stop token.
        length: tokens of the response, without the stop token.
        settings: the configuration's group `rewards`.

    Source: MAYE's released code; its paper does not mention the rule.
    """
    return settings.penalty != 0 and (truncated or length == 0)


def repeated_share(text: str, n: int = 4) -> float:
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
        threshold: A response loops if its `repeated_share` exceeds this.
    """
    return repeated_share(text, n) > threshold
