# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Language, format and length by hand-computed values."""

import numpy as np
import pytest

from rlvlm_jax.algorithms import filtering
from rlvlm_jax.config import default
from rlvlm_jax.rewards import has_several_answers, rules
from rlvlm_jax.rewards.rules import REWARDS, Response, penalised


def reward(name, text="", length=9, correct=False, max_tokens=10, **settings):
    """What the rule `name` gives a response."""
    config = default().rewards
    config.update(settings)
    response = Response(text, correct, length, False, max_tokens, {"solution": ""})
    return REWARDS[name].reward(response, config)


def test_accuracy_is_the_verdict():
    assert (reward("accuracy", correct=True), reward("accuracy", correct=False)) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0.0),
        ("abcd", 0.0),
        ("角", -0.1),
        ("ab角度", -0.05),
        ("\u4e00\u9fff..", -0.05),  # both ends of the block
        ("\u3400\ua000あア한Жé", 0.0),  # neighbours and other scripts do not count
    ],
)
def test_language_counts_the_share_of_ideographs(text, expected):
    assert reward("language", text) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "think", "think_answer"),
    [
        ("", 0, 0),
        ("plain", 0, 0),
        ("<think>a</think>", 1, 0),
        ("<think>\na\n</think>\nb", 1, 0),
        ("<think></think>", 1, 0),
        ("</think>a<think>", 0, 0),
        ("<think>a", 0, 0),
        ("<think>a</think><think>b</think>", 0, 0),
        ("<think>a</think><answer>b</answer>", 1, 1),
        ("x <think>a\nb</think> \n <answer>c\nd</answer> y", 1, 1),
        ("<think>a</think> so <answer>b</answer>", 1, 0),
        ("<think></think><answer>b</answer>", 1, 0),
        ("<think>a</think><answer></answer>", 1, 0),
        ("<answer>b</answer><think>a</think>", 1, 0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 1, 0),
        ("<think>a<think>b</think><answer>c</answer>", 0, 0),
    ],
)
def test_format_demands_its_tags_once_and_in_order(text, think, think_answer):
    assert reward("format", text, format_style="think") == think
    assert reward("format", text, format_style="think_answer") == think_answer


@pytest.mark.parametrize(
    ("truncated", "length", "penalty", "expected"),
    [
        (True, 9, -0.1, True),
        (True, 9, 0.0, False),
        (False, 9, -0.1, False),
        (False, 0, -0.1, True),
        (False, 1, -0.1, False),
        (True, 0, 0.5, True),
        (False, 0, 0.0, False),
    ],
)
def test_truncated_and_empty_responses_are_penalised(truncated, length, penalty, expected):
    settings = default().rewards
    settings.penalty = penalty
    assert penalised(truncated, length, settings) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False),
        ("\\boxed{2}", False),
        ("\\boxed{2} so \\boxed{2}", False),
        ("\\boxed{A} or \\boxed{B}", True),
        ("\\boxed{2}, \\boxed{3", False),  # cut off
        ("\\boxed{\\frac{1}{2}} \\boxed{0.5}", True),
        ("\\boxed{1}" * 10_000, False),
    ],
)
def test_several_answers(text, expected):
    assert has_several_answers(text) is expected


@pytest.mark.parametrize("length", range(12))
def test_overlong_equals_the_formula_of_arrays(length):
    expected = float(filtering.overlong_penalty(np.array([length]), 10, 4)[0])
    assert reward("overlong", length=length, overlong_tokens=4) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("one two three", 0.0),
        ("one two three four five", 0.0),
        ("a b c d a b c d", 1 / 5),  # abcd bcda cdab dabc abcd
        ("A b, c! " * 3, 1 - 5 / 12),  # 15 pieces, 12 four-grams in a cycle of 5
        ("等等等等等等", 2 / 3),  # six ideographs: three equal four-grams
    ],
)
def test_repetition_by_hand(text, share):
    assert rules.repeated_share(text) == pytest.approx(share)
    assert reward("repetition", text) == pytest.approx(-share)


def test_a_loop_is_repetitive_and_a_worked_solution_is_not():
    assert rules.is_repetitive("so x is 5. " * 20)
    assert rules.is_repetitive("The area is half the base. Hence " + "12 = 12 = " * 10)
    solution = (
        "The two angles add up to 180, so 2x + 30 = 180. Subtract 30: 2x = 150. Divide by 2: "
        "x = 75. Check: 2 * 75 + 30 = 180. The answer is \\boxed{75}."
    )
    assert not rules.is_repetitive(solution)
    assert not rules.is_repetitive("")
