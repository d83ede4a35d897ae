# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How often the judges agree with a careful human marker, on the cases of `judge_cases`."""

from collections import Counter

import pytest

from rlvlm_jax.rewards import Verdict
from rlvlm_jax.rewards.boxes import last_box
from tests.rewards.judge_cases import (
    STYLES,
    Case,
    Tally,
    as_asked,
    held_out,
    table,
    tally,
    verdicts,
)

# Of 686 cases: verdicts that agree, wrong ones accepted, right ones rejected. The last two styles
# are those of math-verify 0.9.
AGREEMENT = {
    "strict": Tally(686, 0, 0),
    "maye": Tally(488, 69, 129),
    "mm_eureka": Tally(481, 76, 129),
}
# Of 160 cases that another marker wrote
HELD_OUT = {
    "strict": Tally(159, 0, 1),
    "maye": Tally(125, 8, 27),
    "mm_eureka": Tally(122, 12, 26),
}

# Where the strict judge is at fault: content of the last box, of the solution's -> why.
WRONGLY_ACCEPTED: dict[tuple[str, str], str] = {}
WRONGLY_REJECTED: dict[tuple[str, str], str] = {}

# Math-verify needs half a minute for the two published styles.
EVERY_STYLE = [
    style if style == "strict" else pytest.param(style, marks=pytest.mark.slow) for style in STYLES
]


def boxes(case):
    return last_box(case.response), last_box(case.solution)


@pytest.fixture(scope="module")
def cases():
    return table()


@pytest.fixture(scope="module")
def judged(cases, request):
    """A style, by indirect parametrisation, and its verdicts."""
    return request.param, verdicts(cases, request.param)


by_strict = pytest.mark.parametrize("judged", ["strict"], indirect=True)
by_every_style = pytest.mark.parametrize("judged", EVERY_STYLE, indirect=True)


def test_table_is_large_and_two_sided(cases):
    assert len(cases) == 686
    assert len({(case.response, case.solution) for case in cases}) == len(cases)
    for kind, rows in Counter(case.kind for case in cases).items():
        truths = {case.correct for case in cases if case.kind == kind}
        assert rows >= 12
        assert truths == {True, False} or kind.startswith("pair: ")


@by_strict
def test_strict_never_accepts_a_wrong_answer_but_for_known_faults(cases, judged):
    pairs = zip(cases, judged[1], strict=True)
    accepted = [boxes(case) for case, verdict in pairs if verdict.correct and not case.correct]
    assert sorted(accepted) == sorted(WRONGLY_ACCEPTED)


@by_strict
def test_strict_never_rejects_a_right_answer_but_for_known_faults(cases, judged):
    pairs = zip(cases, judged[1], strict=True)
    rejected = [boxes(case) for case, verdict in pairs if case.correct and not verdict.correct]
    assert sorted(rejected) == sorted(WRONGLY_REJECTED)


@by_every_style
def test_agreement_is_as_published(cases, judged):
    style, found = judged
    assert tally(cases, found) == AGREEMENT[style]


@pytest.mark.parametrize("style", EVERY_STYLE)
def test_agreement_on_held_out_cases_is_as_published(style):
    cases = held_out()
    assert (len(cases), sum(case.correct for case in cases)) == (160, 80)
    assert tally(cases, verdicts(cases, style)) == HELD_OUT[style]


@by_every_style
def test_only_a_finished_comparison_can_be_right(judged):
    assert {verdict.status for verdict in judged[1] if verdict.correct} == {"ok"}


def test_tally_counts_both_errors():
    cases = [Case("", "", truth, "") for truth in (True, True, False, False, False)]
    said = [Verdict(correct, "ok") for correct in (True, False, True, True, False)]
    assert tally(cases, said) == Tally(agree=2, wrongly_accepted=2, wrongly_rejected=1)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (
            r"First \boxed{1}, so \boxed{2}.",
            r"<think>First \boxed{1}, so \boxed{2}.</think><answer>\boxed{2}</answer>",
        ),
        (r"\boxed{1}, so \boxed{2", None),
        ("it is 2", None),
        (r"<answer>\boxed{2}</answer>", None),
        (r"<think>so</think>\boxed{2}", None),
    ],
)
def test_responses_are_written_as_the_prompt_asks(response, expected):
    assert as_asked(response, "mm_eureka") == (expected or response)
    assert as_asked(response, "strict") == as_asked(response, "maye") == response
