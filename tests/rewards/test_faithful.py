# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The two published judges: what they are known to accept and refuse, faults included."""

import pytest

from rlvlm_jax.rewards import check_golds, judge_batch

# response, solution, verdict: the measured table of MAYE's judge
MAYE = [
    (r"\boxed{20}", r"\boxed{20}", True),
    (r"$\boxed{120^\circ}$", r"\boxed{120^\circ}", True),
    (r"\boxed{120}", r"\boxed{120^\circ}", True),
    (r"\boxed{x=20}", r"\boxed{20}", True),
    (r"\boxed{20\text{ cm}}", r"\boxed{20}", True),
    (r"\boxed{50\%}", r"\boxed{0.5}", True),
    (r"\boxed{1,000}", r"\boxed{1000}", True),
    (r"\boxed{\frac12}", r"\boxed{0.5}", True),
    (r"\boxed{6\sqrt5}", r"\boxed{13.4}", False),  # nothing is rounded
    (r"\boxed{13.416}", r"\boxed{6\sqrt5}", False),
    ("the answer is 20", r"\boxed{20}", False),
    ("<answer>20</answer>", r"\boxed{20}", False),
    (r"\boxed{19} or \boxed{20}", r"\boxed{20}", False),
    (r"\boxed{19} wait. \boxed{20}", r"\boxed{20}", True),  # the last sentence wins
    (r"\boxed{20}. I boxed it!", r"\boxed{20}", False),  # and it need not hold the box
    (r"\boxed{120", r"\boxed{120^\circ}", True),  # fault: cut off
    (r"\boxed{120^", r"\boxed{120^\circ}", True),  # fault: cut off
    (r"\boxed{121", r"\boxed{120^\circ}", False),
    ("I do not know", "20", True),  # fault: two texts without a box
    ("", "", True),  # the same
    (r"\boxed{yes!}", r"\boxed{yes}", False),  # fault: the sentence ends inside the box
    (r"\boxed{120^\text{o}}", r"\boxed{120^\circ}", True),
    (r"\boxed{19}", r"\boxed{20}", False),
]

# response, solution, verdict of MM-EUREKA's judge
MM_EUREKA = [
    ("<think>a</think><answer>20</answer>", r"\boxed{20}", True),
    ("<answer>20</answer>", "20", True),
    (r"<answer>$\frac{1}{2}$</answer>", r"\boxed{0.5}", True),
    (r"<answer>\boxed{20}</answer>", r"\boxed{20}", True),
    ("<answer>19</answer>", r"\boxed{20}", False),
    ("<answer>19</answer> <answer>20</answer>", r"\boxed{20}", False),  # the first span counts
    ("<answer>\n20\n</answer>", r"\boxed{20}", True),  # no one-line span: what follows the tag
    ("<answer>19 <answer>20", r"\boxed{20}", True),  # what follows the last tag
    ("the answer is $20$", r"\boxed{20}", True),  # no tag at all: the whole text
    ("", r"\boxed{20}", False),
    ("<answer></answer>", r"\boxed{20}", False),
    ("<answer>A</answer>", r"\boxed{A}", True),
    ("<answer>B</answer>", r"\boxed{A}", False),
    ("<answer>(C)</answer>", r"\boxed{C}", True),
    ("<answer>It is C</answer>", r"\boxed{C}", True),
    ("<answer>option C, surely</answer>", r"\boxed{C}", True),
    ("<answer>it's optionC, decidedly</answer>", r"\boxed{C}", False),  # fault: letters in words
    ("<answer>moon or dune, who knows</answer>", r"\boxed{D}", True),  # fault, the other way
    ("<answer>A or B</answer>", r"\boxed{E}", False),
    ("<answer>anything</answer>", "", True),  # fault: a reference that cannot be read
    ("<answer></answer>", "", False),
]


def check(table, style):
    found = judge_batch([r for r, _, _ in table], [s for _, s, _ in table], style)
    return {(r, s): v.correct for (r, s, _), v in zip(table, found, strict=True)}


@pytest.fixture(scope="module")
def maye():
    return check(MAYE, "maye")


@pytest.fixture(scope="module")
def mm_eureka():
    return check(MM_EUREKA, "mm_eureka")


@pytest.mark.parametrize(("response", "solution", "correct"), MAYE)
def test_maye_judges_as_documented(maye, response, solution, correct):
    assert maye[response, solution] == correct


@pytest.mark.parametrize(("response", "solution", "correct"), MM_EUREKA)
def test_mm_eureka_judges_as_documented(mm_eureka, response, solution, correct):
    assert mm_eureka[response, solution] == correct


@pytest.mark.parametrize("style", ["maye", "mm_eureka"])
def test_solutions_that_would_reward_anything_are_found(style):
    good, empty = r"\boxed{20}", ""
    assert check_golds([good, empty], style)[0] is None
    assert check_golds([good, empty], style)[1] is not None


def test_maye_solution_without_a_box_is_found():
    assert check_golds(["20", r"\boxed{20"], "maye") == [r"it has no complete \boxed{}"] * 2


def test_status_of_responses_without_an_answer():
    assert judge_batch(["none"], [r"\boxed{20}"], "maye")[0].status == "no_answer"
    assert judge_batch(["<answer></answer>"], [r"\boxed{20}"], "mm_eureka")[0].status == "no_answer"
    assert judge_batch([r"\boxed{19}"], [r"\boxed{20}"], "maye")[0].status == "ok"
