# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Scores of judged responses: pass@k, reflection.

Pure functions of texts and counts, for training steps and evaluations. Knows nothing of sampling,
judging or writing.
"""

import math
import operator
import re
from collections.abc import Sequence
from typing import Any

# The list of MAYE's evaluation (arXiv:2504.02587, table 2), in its order.
REFLECTION_WORDS = (
    "re-check",
    "re-evaluate",
    "re-examine",
    "re-think",
    "recheck",
    "reevaluate",
    "reexamine",
    "reevaluation",
    "rethink",
    "check again",
    "think again",
    "try again",
    "verify",
    "wait",
    "yet",
)
_WHOLE_WORDS = {word: re.compile(rf"(?<!\w){re.escape(word)}(?!\w)") for word in REFLECTION_WORDS}


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Estimates the chance that at least one of k samples is correct, without bias.

    1 - C(n - c, k) / C(n, k), the share of k-subsets of the n samples with a correct one.

    Args:
        num_samples: n >= 1, samples drawn per question.
        num_correct: c, how many of them are correct, 0 to n.
        k: Size of the subset, 1 to n. k = n gives "any of k", 1 or 0.

    Returns:
        A probability in [0, 1].

    Raises:
        ValueError: A number is out of its range.
        TypeError: A number is not an integer.

    Source: Chen et al. 2021 (arXiv:2107.03374), eq. 1. MAYE uses k = n = 8.
    """
    n, c, k = (operator.index(number) for number in (num_samples, num_correct, k))
    if n < 1 or not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(
            f"num_samples={n}, num_correct={c}, k={k}: expected num_samples >= 1, "
            "0 <= num_correct <= num_samples and 1 <= k <= num_samples"
        )
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def count_reflection(text: str, match: str = "substring") -> dict[str, int]:
    """Counts the occurrences of the fifteen reflection words in a response.

    Args:
        text: A response; case does not matter.
        match: "substring" as MAYE counts ("await" contains "wait"), "word" for whole words only.

    Returns:
        {word: non-overlapping occurrences}, zeros included, in the order of the list.

    Raises:
        ValueError: An unknown match.
    """
    text = text.lower()
    if match == "substring":
        return {word: text.count(word) for word in REFLECTION_WORDS}
    if match == "word":
        return {word: len(pattern.findall(text)) for word, pattern in _WHOLE_WORDS.items()}
    raise ValueError(f"match={match!r} is unknown; use 'substring' or 'word'")


def is_reflective(text: str, match: str = "substring") -> bool:
    """Tells whether a response contains a reflection word; see `count_reflection`."""
    return any(count_reflection(text, match).values())


def reflection(
    texts: Sequence[str], correct: Sequence[bool], *, match: str = "substring"
) -> dict[str, Any]:
    """Measures how often responses reflect, and how that relates to being correct.

    For N responses, of which R are reflective, C correct and RC both:

    ratio                R / N
    ratio_in_correct     RC / C
    ratio_in_incorrect   (R - RC) / (N - C)
    accuracy_with        RC / R
    accuracy_without     (C - RC) / (N - R)

    Divides counts over all texts, so pass a batch whole.
    # Deviates from MAYE: its code averages per-device ratios and takes 0/0 as 0.

    Args:
        texts: N responses.
        correct: N booleans, the judge's.
        match: As in `count_reflection`.

    Returns:
        The five ratios by these names, without those whose denominator is 0, and under "words" the
        fifteen counts {word: occurrences over all texts}.

    Raises:
        ValueError: The lengths differ, or an unknown match.

    Source: MAYE (arXiv:2504.02587), section 4.3 and table 2.
    """
    if len(texts) != len(correct):
        raise ValueError(f"{len(texts)} texts but {len(correct)} judgements")
    counts = [count_reflection(text, match) for text in texts]
    reflective = [any(text_counts.values()) for text_counts in counts]
    n, r, c = len(texts), sum(reflective), sum(map(bool, correct))
    both = sum(a and bool(b) for a, b in zip(reflective, correct, strict=True))
    quotients = {
        "ratio": (r, n),
        "ratio_in_correct": (both, c),
        "ratio_in_incorrect": (r - both, n - c),
        "accuracy_with": (both, r),
        "accuracy_without": (c - both, n - r),
    }
    result: dict[str, Any] = {name: a / b for name, (a, b) in quotients.items() if b}
    result["words"] = {
        word: sum(text_counts[word] for text_counts in counts) for word in REFLECTION_WORDS
    }
    return result
