# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The strict judge, case by case: content of the response's box, of the solution's, the verdict."""

import json
import time
from pathlib import Path

import pytest

from rlvlm_jax.rewards import Verdict, check_golds, gold_problem, judge, judge_batch

RIGHT = [
    # plain numbers
    ("20", "20"),
    ("20.", "20"),
    (" 20 ", "20"),
    ("-5", "-5"),
    ("−5", "-5"),
    ("–5", "-5"),
    ("+5", "5"),
    ("２０", "20"),
    ("20.0", "20"),
    (".5", "0.5"),
    ("20.00002", "20"),
    ("1e3", "1000"),
    (r"1.2\times10^3", "1200"),
    (r"3 \times 10^{-2}", "0.03"),
    ("$20$", "20"),
    ("$$20$$", "20"),
    (r"\(20\)", "20"),
    ("{20}", "20"),
    (r"\text{20}", "20"),
    (r"\displaystyle 20", "20"),
    (r"\number{7500}", "7500"),
    # thousands
    ("1,000", "1000"),
    ("1{,}000", "1000"),
    (r"1\,000", "1000"),
    ("10,000", "10000"),
    ("1 000", "1000"),
    ("1,234,567", "1234567"),
    ("1,234.5", "1234.5"),
    # fractions
    (r"\frac12", "0.5"),
    (r"\dfrac{1}{2}", r"\frac12"),
    ("1/2", r"\tfrac{1}{2}"),
    (r"\frac{2}{4}", r"\frac{1}{2}"),
    ("-1/2", r"-\frac{1}{2}"),
    (r"\frac{-1}{2}", r"-\frac{1}{2}"),
    (r"\frac{\text{2}}{\text{3}}", "2/3"),
    (r"1\frac{1}{4}", "1.25"),
    ("1 1/4", r"\frac54"),
    ("½", "0.5"),
    ("0.3333333", "1/3"),
    # roots and pi
    (r"\sqrt{12}", r"2\sqrt{3}"),
    (r"2\sqrt3", r"2\sqrt{3}"),
    ("2√3", r"2\sqrt{3}"),
    (r"\frac{1}{\sqrt2}", r"\frac{\sqrt{2}}{2}"),
    (r"\sqrt{\frac{3}{4}}", r"\frac{\sqrt{3}}{2}"),
    (r"9+4\sqrt5", r"4\sqrt{5}+9"),
    (r"(2+\sqrt5)^2", r"9+4\sqrt{5}"),
    ("2π", r"2\pi"),
    (r"\frac{\pi}{6}", r"\frac{1}{6}\pi"),
    ("3.14159265", r"\pi"),
    ("13.41640786", r"6\sqrt5"),
    # degrees
    ("30°", "30"),
    ("30", r"30^\circ"),
    (r"30^{\circ}", "30°"),
    (r"{{30}^{\circ }}", "30"),
    (r"30{}^\circ", "30°"),
    (r"30\degree", "30°"),
    ("30 degrees", r"30^\circ"),
    (r"30\text{ degrees}", "30"),
    ("25°.", "25"),
    ("67.5", r"67.5^{\circ}"),
    (r"\sin 30^\circ", r"\frac{1}{2}"),
    # units beside a number
    ("20 cm", "20"),
    ("20cm", "20"),
    (r"20\text{ cm}", "20"),
    (r"20\,\mathrm{cm}", "20 cm"),
    ("20", "20 m"),
    ("40m", "40m."),
    ("5 cm^2", "5"),
    ("5 cm²", r"5\ \text{cm}^2"),
    ("5 square centimeters", r"5 \text{ cm}^2"),
    ("60 km/h", r"60\text{ km/h}"),
    ("14 meters", "14 m"),
    (r"\sqrt{3} cm", r"\sqrt{3}"),
    ("5 apples", "5"),
    ("360", "360 sets"),
    ("$5", "5"),
    (r"\$5", "5 dollars"),
    ("€5", "5"),
    (r"6\pi \text{ cm}^2", r"6\pi"),
    # percent
    (r"50\%", "0.5"),
    ("50%", r"50\%"),
    ("50 %", r"\frac12"),
    # names
    ("x=20", "20"),
    ("20", "x=20"),
    (r"\angle ABC = 30^\circ", "30"),
    (r"\theta=30°", "30"),
    ("x = 10/2 = 5", "5"),
    (r"\text{Area} = 5", "5"),
    ("f(x)=x^2", "x^2"),
    # expressions, equations, inequalities
    ("(x+1)^2", "x^2+2x+1"),
    ("5a^2", "5a^{2}"),
    ("2^{n+1}-2", r"2(2^n-1)"),
    (r"\frac{n}{n+1}", r"1-\frac{1}{n+1}"),
    ("y=18-3x", "y=-3x+18"),
    ("3x+y=18", "y=-3x+18"),
    ("BD=EB", "EB=BD"),
    ("1<x", "x>1"),
    ("2x>2", "x>1"),
    (r"x \geq 3", "x≥3"),
    (r"-1<x\leqslant 2", r"-1<x\le 2"),
    (">-2", ">-2"),
    ("1:2", "2:4"),
    # several parts
    ("2 or 3", "2, 3"),
    ("3, 2", r"2 \text{ or } 3"),
    ("2 and 3", "2,3"),
    (r"\pm 2", "2, -2"),
    (r"1\pm\sqrt2", r"1+\sqrt2, 1-\sqrt2"),
    (r"\{1,2\}", r"\left\{2,1\right\}"),
    (r"\{5\}", "5"),
    ("x=1, y=2", "y=2, x=1"),
    ("1, 2", "x=1, y=2"),
    (r"x_1=1, x_2=-1", "-1, 1"),
    ("7, 10", "7$$ $$10"),
    ("96\n376", "96; 376"),
    ("60°; 60°; 120°", "60, 60, 120"),
    ("(1) 3, (2) 5", r"(1)$$3$$ (2)$$5"),
    (r"\frac{\sqrt{5}}{5} or \frac{2\sqrt5}{5}", r"\frac{\sqrt{5}}{5}$ or $\frac{2\sqrt{5}}{5}"),
    ("100, 200, 300", "100,200,300"),
    # tuples and intervals
    ("(1,2)", r"\left(1,\,2\right)"),
    ("(1, 3/2)", r"\left( 1,\frac{3}{2} \right)"),
    ("(1,200)", "(1, 200)"),
    ("[0,1)", r"\left[0, 1\right)"),
    (r"(1,\infty)", "x>1"),
    (r"x\in(1,+\infty)", r"(1,\infty)"),
    ("1<x≤2", "(1,2]"),
    (r"(-\infty,1)\cup(2,\infty)", r"(2,+\infty)\cup(-\infty,1)"),
    ("x<1 or x>2", "x>2 or x<1"),
    # words and letters
    ("yes", "Yes"),
    (r"\text{Equal}", "equal"),
    ("A", "A"),
    ("(A)", "A"),
    ("A.", "A"),
    (r"\text{A}", r"\textbf{A}"),
    ("A, C", "C, A"),
    ("<", " < "),
    ("perpendicular", r"\text{perpendicular}."),
]

WRONG = [
    # another number; nothing is rounded
    ("19", "20"),
    ("5", "-5"),
    ("20.00003", "20"),
    ("13.4", r"6\sqrt5"),
    ("13.416", r"6\sqrt5"),
    ("3.14", r"\pi"),
    ("0.333", "1/3"),
    ("0.0000002", "0.0000001"),
    ("12345679", "12345678"),
    ("1000001", "1000000"),
    (r"2\sqrt3", r"3\sqrt2"),
    ("0", "0.0000001"),
    (r"2\frac{1}{2}", "1"),
    ("007", "7"),
    ("1000", "1"),
    # hedged or padded
    ("19 or 20", "20"),
    ("20, 19", "20"),
    ("20 and 19", "20"),
    (r"\{19, 20\}", "20"),
    (r"\{" + ",".join(map(str, range(1, 101))) + r"\}", "20"),
    (r"20 \pm 1", "20"),
    ("20 or not 20", "20"),
    ("2", "2 or 3"),
    ("2, 2", "2, 3"),
    ("2, 3, 4", "2, 3"),
    ("2, 2", "2"),
    ("20 20", "20"),
    ("7 10", "710"),
    ("[19, 21]", "20"),
    ("19<x<21", "20"),
    ("x", "5"),
    ("x>4", "5"),
    ("5=5", "5"),
    ("5=4", "4"),
    ("4=5", "4"),
    ("x=4=5", "5"),
    ("2+3=5", "5"),
    ("y=20", "x=20"),
    ("EB=BD", "BD"),
    (r"\approx 20", "20"),
    (r"20\approx e", "20"),
    ("20'", "20"),
    ("20_3", "20"),
    ("the answer", "20"),
    ("n", "20"),
    ("True", "20"),
    ("20!", "20"),
    ("-", "20"),
    # units
    ("20 m", "20 cm"),
    ("20 cm^2", "20 cm"),
    ("20 cm", "20°"),
    ("2000 cm", "20 m"),
    ("5 dollars", "€5"),
    ("20x", "20"),
    ("20 thousand", "20"),
    ("20 percent", "20"),
    ("50", r"50\%"),
    (r"50\%", "50"),
    ("50", "0.5"),
    # order and brackets
    ("(2,1)", "(1,2)"),
    ("(0,1)", "[0,1]"),
    ("(1,2)", r"\{1,2\}"),
    ("1, 2", "(1,2)"),
    ("10, 7", "7$$ $$10"),
    ("2, 1", "x=1, y=2"),
    ("x=2, y=1", "x=1, y=2"),
    (r"x\ge 1", "x>1"),
    ("x<1", "x>1"),
    ("2:1", "1:2"),
    # letters and words
    ("B", "A"),
    ("a", "A"),
    ("A or B", "A"),
    ("A, B, C, D", "A"),
    ("ABCD", "A"),
    ("no", "yes"),
    ("not equal", "equal"),
    ("parallel", "perpendicular"),
    (">", "<"),
    # expressions
    ("(x+1)^2", "x^2+1"),
    ("x^2+2x+1", "4"),
    ("y=3x+18", "y=-3x+18"),
    ("2x", "2y"),
]

# content of the response's box -> status, against \boxed{20}
STATUS = [
    ("", "no_answer"),
    (" ", "no_answer"),
    ("$$", "no_answer"),
    ("21", "ok"),
    (r"\frac{}{}", "unparsable"),
    (r"\sqrt{}", "unparsable"),
    ("@@@", "unparsable"),
    ("2" * 3000, "unparsable"),
    ("{" * 200 + "20x" + "}" * 200, "ok"),
]

# whole responses against \boxed{20}
RESPONSES = [
    (r"so $\boxed{20}$.", True, "ok"),
    (r"\boxed {20}", True, "ok"),
    ("\\boxed\n{20}", True, "ok"),
    (r"\boxed{19} wait. \boxed{20}", True, "ok"),
    (r"\boxed{20} or \boxed{19}", False, "ok"),
    (r"\boxed{\boxed{20}}", True, "ok"),
    (r"\boxed{20}, written with \boxed.", True, "ok"),
    ("the answer is 20", False, "no_answer"),
    ("<answer>20</answer>", False, "no_answer"),
    ("", False, "no_answer"),
    (r"\boxed{20", False, "no_answer"),
    (r"\boxed{20^", False, "no_answer"),
    (r"\boxed{20} and again \boxed{2", False, "no_answer"),
    (r"\boxed{20} and again \boxed", False, "no_answer"),
    (r"\boxed{20\}", False, "no_answer"),
    (r"\boxedx{20}", False, "no_answer"),
    (r"\boxed 20", False, "no_answer"),
    ("boxed{20}", False, "no_answer"),
]


def boxed(content):
    return rf"Thus the answer is \boxed{{{content}}}."


@pytest.fixture(scope="module")
def verdicts():
    table = [(given, wanted, True) for given, wanted in RIGHT]
    table += [(given, wanted, False) for given, wanted in WRONG]
    found = judge_batch([boxed(g) for g, _, _ in table], [boxed(w) for _, w, _ in table])
    return {(g, w): v for (g, w, _), v in zip(table, found, strict=True)}


@pytest.mark.parametrize(("given", "wanted"), RIGHT)
def test_equal_answers_are_right(verdicts, given, wanted):
    assert verdicts[given, wanted] == Verdict(True, "ok")


@pytest.mark.parametrize(("given", "wanted"), WRONG)
def test_other_answers_are_wrong(verdicts, given, wanted):
    assert not verdicts[given, wanted].correct
    assert verdicts[given, wanted].status in ("ok", "unparsable")


@pytest.mark.parametrize(("given", "status"), STATUS)
def test_status_says_what_was_wrong(given, status):
    assert judge(boxed(given), r"\boxed{20}") == Verdict(False, status)


@pytest.mark.parametrize(("response", "correct", "status"), RESPONSES)
def test_last_complete_box_decides(response, correct, status):
    assert judge(response, r"\boxed{20}") == Verdict(correct, status)


def test_every_reference_is_right_as_an_answer():
    wanted = [boxed(w) for _, w in RIGHT + WRONG]
    assert [v for v in judge_batch(wanted, wanted) if v != Verdict(True, "ok")] == []


def test_last_box_of_the_solution_is_the_reference():
    solution = r"First \boxed{19}, then \boxed{\frac{40}{2}}."
    assert judge(r"\boxed{20}", solution).correct
    assert not judge(r"\boxed{19}", solution).correct


@pytest.mark.parametrize(
    ("solution", "reason"),
    [
        ("", "no complete"),
        ("20", "no complete"),
        (r"\boxed{20", "no complete"),
        (r"\boxed{}", "empty"),
        (r"\boxed{ $ $ }", "empty"),
        (r"\boxed{???}", "empty"),
        (r"\boxed{@@@}", "cannot be read"),
        (r"\boxed{\frac{1}{}}", "cannot be read"),
        (r"\boxed{1, \sqrt{}}", "cannot be read"),
        (r"\boxed{" + "1" * 3000 + "}", "more than 2000 characters"),
    ],
)
def test_unusable_solution_is_named_and_never_rewarded(solution, reason):
    assert reason in gold_problem(solution)
    assert check_golds([solution]) == [gold_problem(solution)]
    for response in (solution, r"\boxed{20}", r"\boxed{}", ""):
        verdict = judge(response, solution)
        assert not verdict.correct
        assert verdict.status in ("unparsable", "no_answer")


def test_usable_solutions_have_no_problem():
    solutions = [boxed(w) for _, w in RIGHT]
    assert check_golds(solutions) == [None] * len(solutions)
    assert gold_problem(r"\boxed{2\sqrt{x}}") is None


def test_check_golds_keeps_order_and_survives_a_hang():
    solutions = [r"\boxed{1}", r"\boxed{}", r"\boxed{x^{2}}", r"\boxed{9^{9^{9^{9}}}}"]
    assert check_golds(solutions, deadline_s=3.0)[:3] == [None, r"its \boxed{} is empty", None]


@pytest.mark.parametrize(
    "response",
    [
        "x" * 1_000_000,
        r"\boxed{" + "{" * 100_000 + "20" + "}" * 100_000 + "}",
        r"\boxed{" * 100_000,
        r"\boxed{20}" * 50_000 + r"\boxed{" + "1" * 1_000_000 + "}",
        "\\" * 1_000_000 + r"\boxed{20",
        r"\boxed{" + "1" * 1_000_000 + "}",
        r"\boxed{" + "(" * 1999 + "}",
        r"\boxed{" + "$ " * 999 + "}",
        r"\boxed{" + "1," * 999 + "}",
        r"\boxed{" + " " * 1990 + "a}",
        r"\boxed{" + r"\text{" * 300 + "}" * 300 + "}",
    ],
    ids=range(11),
)
def test_hostile_text_is_wrong_and_takes_no_time(response):
    start = time.process_time()
    verdict = judge(response, r"\boxed{20}")
    assert not verdict.correct
    assert verdict.status != "timeout"
    assert time.process_time() - start < 2.0


def test_ordinary_verdicts_are_fast():
    n = 1500
    responses = [boxed(rf"\frac{{{i}}}{{7}}" if i % 2 else str(i)) for i in range(n)]
    solutions = [boxed(f"{i}/7" if i % 2 else f"{i}.0") for i in range(n)]
    start = time.process_time()  # decided in this process; wall time would measure the neighbours
    verdicts = judge_batch(responses, solutions)
    assert n / (time.process_time() - start) > 300
    assert all(v.correct for v in verdicts)


def test_lengths_must_agree_and_style_must_exist():
    with pytest.raises(ValueError, match="1 responses, but 2 solutions"):
        judge_batch(["a"], ["b", "c"])
    with pytest.raises(ValueError, match="style='lenient' is none of strict, maye, mm_eureka"):
        judge("a", "b", "lenient")


def test_all_k12_solutions_can_be_judged_and_equal_themselves():
    path = Path(__file__).parents[3] / "shared/data/k12/k12.jsonl"
    if not path.exists():
        pytest.skip("the K12 data is not beside this repository")
    solutions = [json.loads(line)["solution"] for line in path.read_text("utf-8").splitlines()]
    assert len(solutions) == 298
    problems = check_golds(solutions)
    assert [(s, p) for s, p in zip(solutions, problems, strict=True) if p] == []
    verdicts = judge_batch(solutions, solutions)
    assert [s for s, v in zip(solutions, verdicts, strict=True) if not v.correct] == []
