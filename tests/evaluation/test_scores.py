# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""pass@k against counting subsets; reflection by hand."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from rlvlm_jax.evaluation import pass_at_k, reflection, scores


def test_pass_at_k_equals_counting_every_subset():
    for n in range(1, 8):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            samples = [True] * c + [False] * (n - c)
            hits = [any(subset) for subset in itertools.combinations(samples, k)]
            assert pass_at_k(n, c, k) == pytest.approx(sum(hits) / len(hits), abs=1e-12)


def test_pass_at_k_of_all_samples_is_any_and_of_one_is_the_mean():
    assert [pass_at_k(8, c, 8) for c in (0, 1, 8)] == [0.0, 1.0, 1.0]
    assert pass_at_k(8, 3, 1) == pytest.approx(3 / 8)
    assert pass_at_k(np.int64(10), np.int32(1), np.int64(5)) == pytest.approx(0.5)
    assert 0.0 < pass_at_k(10_000, 1, 100) < 1.0  # no overflow


@pytest.mark.parametrize("numbers", [(0, 0, 1), (4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses_impossible_counts(numbers):
    with pytest.raises(ValueError, match=f"k={numbers[2]}"):
        pass_at_k(*numbers)


def test_pass_at_k_refuses_fractions():
    with pytest.raises(TypeError):
        pass_at_k(4, 0.5, 1)


TEXTS = ["Wait, let me verify. Wait!", "the answer is 3", "I await the result", "so x = 2", "Yet 5"]
CORRECT = [True, True, False, False, False]


def test_reflection_by_hand_substring():
    result = reflection(TEXTS, CORRECT)
    words = result.pop("words")
    assert result == pytest.approx(
        {
            "ratio": 3 / 5,
            "ratio_in_correct": 1 / 2,
            "ratio_in_incorrect": 2 / 3,
            "accuracy_with": 1 / 3,
            "accuracy_without": 1 / 2,
        }
    )
    assert len(words) == 15
    assert {word: count for word, count in words.items() if count} == {
        "verify": 1,
        "wait": 3,
        "yet": 1,
    }


def test_reflection_by_hand_whole_words():
    result = reflection(TEXTS, CORRECT, match="word")
    assert result["ratio"] == pytest.approx(2 / 5)
    assert result["accuracy_with"] == pytest.approx(1 / 2)
    assert result["words"]["wait"] == 2


@pytest.mark.parametrize("match", ["substring", "word"])
@pytest.mark.parametrize("word", scores.REFLECTION_WORDS)
def test_every_listed_word_is_found_in_any_case(word, match):
    text = f"Hm, {word.upper()}: 3."
    assert scores.is_reflective(text, match)
    assert reflection([text], [True], match=match)["words"][word] == 1


def test_whole_words_are_not_found_inside_others():
    for text in ("await", "verifying it", "yeti", "unverify", "rethinking", "waiter"):
        assert not scores.is_reflective(text, "word")
        assert not scores.is_reflective("a plain text", "substring")


def test_undefined_ratios_are_absent():
    assert set(reflection([], [])) == {"words"}
    assert set(reflection(["wait"], [True])) == {
        "ratio",
        "ratio_in_correct",
        "accuracy_with",
        "words",
    }
    assert set(reflection(["no"], [False])) == {
        "ratio",
        "ratio_in_incorrect",
        "accuracy_without",
        "words",
    }


def test_the_ratios_make_up_the_accuracy():
    rng = np.random.default_rng(0)
    texts = rng.choice(["wait 3", "plain"], 200).tolist()
    correct = rng.random(200) < 0.3
    r = reflection(texts, correct)
    accuracy = r["ratio"] * r["accuracy_with"] + (1 - r["ratio"]) * r["accuracy_without"]
    assert accuracy == pytest.approx(correct.mean())
    share = r["ratio_in_correct"] * correct.mean() + r["ratio_in_incorrect"] * (1 - correct.mean())
    assert share == pytest.approx(r["ratio"])


def test_reflection_refuses_misuse():
    with pytest.raises(ValueError, match="2 texts but 1"):
        reflection(["a", "b"], [True])
    with pytest.raises(ValueError, match="match='regex'"):
        reflection(["a"], [True], match="regex")


def test_importing_the_scores_loads_no_jax():
    code = "import sys, rlvlm_jax.evaluation; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
