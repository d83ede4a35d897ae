# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What responses are measured by: pass@k, reflection, repetition. Pure functions of texts.

Imports neither JAX nor anything of the run.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

WORDS = (  # the fifteen of MAYE (arXiv:2504.02587), table 2
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
Match = Literal["substring", "word"]


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Estimates without bias how often at least one of k samples is right.

    1 - C(n - c, k) / C(n, k); with k = n it is "any of k".

    Args:
        num_samples: n, samples of one question.
        num_correct: c, right ones among them.
        k: 1 to n.

    Returns:
        A probability.

    Raises:
        ValueError: not 0 <= c <= n, or not 1 <= k <= n.

    Source: Chen et al. 2021 (arXiv:2107.03374), eq. 1.
    """
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"num_correct={num_correct} is not between 0 and {num_samples}")
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k} is not between 1 and num_samples={num_samples}")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def count_words(text: str, match: Match = "substring") -> dict[str, int]:
    """Counts the fifteen words in one text, in lower case and without overlap.

    Args:
        text: of a response.
        match: "substring" as in the paper ("wait" is in "await"), or "word" between word
            boundaries.

    Raises:
        ValueError: an unknown kind of match.
    """
    lowered = text.lower()
    if match == "substring":
        return {word: lowered.count(word) for word in WORDS}
    if match == "word":
        return {word: len(re.findall(rf"(?<!\w){word}(?!\w)", lowered)) for word in WORDS}
    raise ValueError(f"match={match!r} is neither 'substring' nor 'word'")


def is_reflective(text: str, match: Match = "substring") -> bool:
    """Returns whether a response contains any of the fifteen words."""
    return any(count_words(text, match).values())


def reflection(
    texts: Sequence[str], correct: Sequence[bool], *, match: Match = "substring"
) -> dict[str, Any]:
    """Measures how often responses reflect, and whether that goes with being right.

    With N responses, N_ref reflective, N+ right, N_ref+ both:
    ratio = N_ref / N, ratio_in_correct = N_ref+ / N+,
    ratio_in_incorrect = (N_ref - N_ref+) / (N - N+), accuracy_with = N_ref+ / N_ref,
    accuracy_without = (N+ - N_ref+) / (N - N_ref).

    Args:
        texts: N responses.
        correct: N verdicts.
        match: see `count_words`.

    Returns:
        The five ratios by name, those over nothing left out, and "words": {word: occurrences}.

    Raises:
        ValueError: the lengths differ.

    Source: MAYE (arXiv:2504.02587), section 4.3; counts are pooled before dividing.
    """
    if len(texts) != len(correct):
        raise ValueError(f"{len(texts)} texts, but {len(correct)} verdicts")
    counts = [count_words(text, match) for text in texts]
    reflective = np.array([any(found.values()) for found in counts], bool)
    right = np.asarray(correct, bool)
    parts = {
        "ratio": (reflective, np.ones_like(right)),
        "ratio_in_correct": (reflective, right),
        "ratio_in_incorrect": (reflective, ~right),
        "accuracy_with": (right, reflective),
        "accuracy_without": (right, ~reflective),
    }
    ratios = {name: float(hit[among].mean()) for name, (hit, among) in parts.items() if among.any()}
    words = {word: sum(found[word] for found in counts) for word in WORDS}
    return {**ratios, "words": words}


def repetition(text: str, size: int = 4) -> float:
    """Returns the share of runs of `size` words that stood in the text before; 0 for short texts.

    A response caught in a loop comes near 1.
    """
    words = text.split()
    runs = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0


def is_repetitive(text: str) -> bool:
    """Returns whether more than half of the runs of four words stood in the text before."""
    return repetition(text) > 0.5
