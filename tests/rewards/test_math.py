# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The strict judge by rule: the conventions, every letter and macro, every kind at fault."""

import json
import re
import string
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlvlm_jax.rewards import Verdict, check_golds, judge, judge_batch, math
from rlvlm_jax.rewards.boxes import answer_box
from rlvlm_jax.rewards.math import Tree, explain, quick, readings, tokens
from tests.rewards.test_strict import boxed

CONVENTIONS = re.findall(r"`([^`]+)` ([~!]) `([^`]+)`", math.__doc__)


def judged(pairs):
    """The verdict for each reference and answer."""
    return judge_batch([boxed(answer) for _, answer in pairs], [boxed(ref) for ref, _ in pairs])


def test_the_table_of_conventions_holds():
    assert len(CONVENTIONS) > 60
    verdicts = judged([(reference, answer) for reference, _, answer in CONVENTIONS])
    for case, verdict in zip(CONVENTIONS, verdicts, strict=True):
        assert verdict.correct is (case[1] == "~"), case
        assert verdict.status == "ok", case


# --------------------------------------------------------------------------------------------------
# Every letter and macro that is admitted: x is not x + 1, and equal things stay equal
# --------------------------------------------------------------------------------------------------

NO_NUMBERS = {"infty", "emptyset", "reals", "partial", "nabla"}
ATOMS = [
    *string.ascii_letters,
    *(rf"\{name}" for name in sorted(tokens.SYMBOLS - NO_NUMBERS)),
    *(rf"\{accent}{{w}}" for accent in ("vec", "bar", "hat", "dot", "tilde", "overline")),
    *("x_1", "x_{12}", "x'", "x''", r"\angle A", r"\angle ABC", "AB", "ABC", r"\triangle ABC"),
    *(r"\frac{dy}{dx}", r"\overline{AB}", r"\widehat{AB}", "f(x)", r"\odot O"),
]
CALLS = [
    *(rf"\{name} x" for name in sorted(tokens.FUNCTIONS - {"max", "min", "gcd", "lcm", "sqrt"})),
    *(rf"\{name}(x, 2)" for name in ("max", "min", "gcd", "lcm")),
    *(r"\sqrt{x}", r"\sqrt[3]{x}", r"\frac{x}{3}", r"|x|", "x!", r"\binom{x}{2}", r"\log_2 x"),
    *(r"\lfloor x\rfloor", r"\lceil x\rceil", "x^2", "2^x", "e^x", r"\sin^2 x", "x^{-1}"),
    *(r"\sum_{k=1}^{x} k", r"\int_0^x t\,dt", r"\vec a\cdot\vec b", r"\vec a\times\vec b"),
]


@pytest.mark.parametrize("atom", [*ATOMS, *CALLS])
def test_one_more_is_another_value_and_another_order_is_the_same(atom):
    same = [
        (f"{atom}+7", f"7+{atom}"),
        (f"2({atom})", f"{atom}+{atom}"),
        (atom, rf"\left({atom}\right)"),
    ]
    other = [(f"{atom}+7", f"{atom}+8"), (f"({atom})^2-1", f"({atom})^2-2"), (f"{atom}+1", "1")]
    other += [(f"2({atom})-1", f"2({atom})-5"), (f"5({atom})", f"{atom}")]
    verdicts = judged(same + other)
    assert [verdict.correct for verdict in verdicts] == [True] * len(same) + [False] * len(other)


@pytest.mark.parametrize("letter", string.ascii_lowercase)
def test_letters_keep_their_case(letter):
    pairs = [(f"{letter}-{letter.upper()}", "0"), (rf"\frac{{{letter}}}{{{letter.upper()}}}", "1")]
    pairs += [(f"3+2{letter}", f"3+2{letter.upper()}"), (f"{letter}^2", f"{letter.upper()}^2")]
    assert not any(verdict.correct for verdict in judged(pairs))


# --------------------------------------------------------------------------------------------------
# Kinds
# --------------------------------------------------------------------------------------------------

# reference, answers that are right
RIGHT = [
    (r"\begin{pmatrix}2&5\\1&3\end{pmatrix}", [r"\begin{bmatrix}2&5\\1&3\end{bmatrix}"]),
    (
        r"\begin{pmatrix}1&0&0\\0&2&0\\0&0&3\end{pmatrix}",
        [r"\left[\begin{array}{ccc}1&0&0\\0&2&0\\0&0&3\end{array}\right]"],
    ),
    (
        r"\begin{pmatrix}3\\8\end{pmatrix}",
        [r"\langle 3,8\rangle", r"\begin{bmatrix}3\\8\end{bmatrix}"],
    ),
    ("312_5", ["312_{5}", "(312)_5", r"312_{\text{five}}"]),
    ("(4,-1)", ["(x,y)=(4,-1)", "P(4,-1)", "P=(4,-1)", r"\begin{cases}x=4\\y=-1\end{cases}"]),
    ("x=4,y=-1", ["(x,y)=(4,-1)", "(4,-1)", "y=-1, x=4"]),
    (
        r"\frac25",
        [r"\frac{AD}{DB}=\frac25", "AD:DB=2:5", "2:5", "0.4", r"\nicefrac25", r"{2 \over 5}"],
    ),
    (
        "7",
        [
            "|PQ|=7",
            "PQ=7",
            r"\overline{PQ}=7",
            r"\text{Area of }\triangle ABC=7",
            "= 7",
            r"\therefore 7",
        ],
    ),
    (
        r"35^\circ",
        [r"m\angle A=35^\circ", r"\angle 1=35^\circ", "35 degrees", r"35\text{ deg}", "35度"],
    ),
    (r"50^\circ", [r"\widehat{AB}=50^\circ", r"m\widehat{AB}=50"]),
    (
        "12",
        ["AB=BC=12", "12.0", r"\text{twelve}", r"3\cdot 4=12", r"\$12", r"12\tag{1}", r"{\bf 12}"],
    ),
    ("x=9", [r"\(x=9\)", r"\[x=9\]", "9=x", "9"]),
    (r"\frac{\pi}{5}", [r"\frac\pi5", "pi/5", r"36^\circ", r"0.2\pi"]),
    (r"28^\circ15'", ["28°15′", r"28.25^\circ"]),
    (r"4\sqrt6", [r"4\sqrt6\approx 9.8", r"\sqrt{96}", "4*sqrt(6)"]),
    (r"45\%", [r"45\text{ percent}", "45 per cent", "45", "0.45"]),
    (r"\textbf{(C)}\ 15", ["C", "c", "(C)", "C. 15", "15"]),
    ("C", ["C. 15", "c", "(c)", "C 15", "Option C"]),
    ("①④", ["①, ④", "④①"]),
    (r"x\ge7", ["x>=7", "7<=x", "x≥7"]),
    (r"x\ne4", ["x != 4", r"(-\infty,4)\cup(4,\infty)"]),
    (r"\frac{\sqrt3}{2}", ["sqrt(3)/2", r"\sqrt{3}/2", r"\sin 60^\circ"]),
    (r"2\pi r", ["2*pi*r", r"2r\pi"]),
    (r"(-\infty,\infty)", [r"\mathbb{R}", r"\text{all real numbers}"]),
    ("(-2,2)", ["|x|<2", "-2<x<2"]),
    ("4或6", [r"4\text{ or }6", "6，4", "{4,6}"]),
    ("7个", ["7"]),
    (r"2\text{ billion}", [r"2\times10^9", "2,000,000,000"]),
    (r"\text{thirty-five}", ["35", "thirty five"]),
    (r"\frac12", [r"\text{one half}", "½", r"\tfrac12", "50%"]),
    (r"75\text{ cents}", ["75¢", "75"]),
    (r"\text{no solution}", [r"\text{No solutions exist}", r"\varnothing", "{}" and r"\{\}"]),
    (r"\text{DNE}", [r"\text{does not exist}"]),
    (r"\{4,9\}", [r"\{9,4,4\}", "9, 4"]),
    ("a=6,b=6", ["a=b=6", "b=6, a=6"]),
    ("x>-5", [">-5", r"(-5,\infty)", "-5<x"]),
    ("y=3x-4", ["f(x)=3x-4", "3x-4", "3x-y=4"]),
    (
        r"33\text{ cm}^2",
        ["33", r"33\text{ cm squared}", r"33\ (\text{cm}^2)", "33 square centimeters"],
    ),
    (r"1\text{ hour }20\text{ minutes}", [r"80\text{ min}", "1 hour and 20 minutes"]),
    (r"12\frac{m}{s}", ["12 m/s", r"12\text{ m/s}", "12"]),
    ("i^2", ["-1"]),
    (r"\alpha+\gamma", [r"\gamma+\alpha"]),
    (r"\frac{1}{3\sqrt[3]{x^2}}", [r"\frac13 x^{-2/3}"]),
    (r"\sum_{k=1}^{n}k", [r"\frac{n(n+1)}{2}"]),
    (r"\lim_{x\to0}\frac{\sin x}{x}", ["1"]),
    (r"\int_0^1 x^2\,dx", [r"\frac13"]),
    (r"\text{June 3}", [r"\text{3 June}"]),
]
# reference, answers that are wrong
WRONG = [
    (r"\pi(R^2-r^2)", ["0", r"\pi(r^2-R^2)"]),
    ("V=U+2v", ["v=U+2V"]),
    (r"\text{AAS}", [r"\text{ASA}", "SAA"]),
    (r"\angle PQR", [r"\angle PRQ"]),
    (r"AB\cdot CD", [r"AC\cdot BD"]),
    (r"15-8=7", ["15-7=8", "1=1", "7"]),
    (r"\sin 30^\circ=\frac12", [r"\sin 30^\circ=3"]),
    ("x^2+1=0", ["x=x+1", "x^2+4=0"]),
    ("x^2<-1", ["x^2<-6"]),
    (r"1-\frac{1}{2^{120}}", ["1"]),
    (r"\frac{3^{1008}-1}{3^{1009}}", [r"\frac13"]),
    ("12:00", ["4:00", "1:00"]),
    ("3-1", ["2", "4-2", "1-3"]),
    (r"\text{2024-06-03}", ["2015", r"\text{2024-03-06}"]),
    (r"2\gamma-1", [r"2\gamma-5"]),
    (r"\Gamma+1", ["1"]),
    (r"\frac{dy}{dx}=3x", [r"5\frac{dy}{dx}=3x"]),
    (r"\vec a\times\vec b", [r"\vec b\times\vec a", r"\vec a\cdot\vec b"]),
    (r"|\vec a||\vec b|", [r"|\vec a\cdot\vec b|"]),
    ("5", [r"5\text{ billionths}", "5'", "5_7", "5!", "5?4", r"5\text{ or }6"]),
    (r"20", [r"20+0\cdot\frac{1}{x-x}", r"\frac{20x}{x}\cdot\frac{0}{0}"]),
    (r"\sqrt{x^2}", ["x"]),
    (r"\ln x^2", [r"2\ln x"]),
    (r"x\in[-2,7]", [r"q\in[-2,7]"]),
    ("312_5", ["312_6", "312", "82"]),
    (
        r"\begin{pmatrix}2&5\\1&3\end{pmatrix}",
        [r"\begin{pmatrix}2&1\\5&3\end{pmatrix}", r"\begin{vmatrix}2&5\\1&3\end{vmatrix}"],
    ),
    ("x=13", ["x-6=7", "13=13=x+0"]),
    (r"5\pi", [r"5\pi\approx15.6", r"5\pi=15.7"]),
    ("f(x)=x+1", ["g(x)=x+1"]),
    ("{1,2}" and r"\{1,2\}", ["(1,2)", "[1,2]"]),
]


@pytest.mark.parametrize(("reference", "answers"), RIGHT, ids=[ref for ref, _ in RIGHT])
def test_right_answers_of_every_kind(reference, answers):
    verdicts = judged([(reference, answer) for answer in (reference, *answers)])
    rejected = [a for a, v in zip((reference, *answers), verdicts, strict=True) if not v.correct]
    assert rejected == []


@pytest.mark.parametrize(("reference", "answers"), WRONG, ids=[ref for ref, _ in WRONG])
def test_wrong_answers_of_every_kind(reference, answers):
    assert judge(boxed(reference), boxed(reference)) == Verdict(True, "ok")
    verdicts = judged([(reference, answer) for answer in answers])
    assert [a for a, v in zip(answers, verdicts, strict=True) if v.correct] == []


def test_what_once_deceived_the_judge_does_so_no_more():
    path = Path(__file__).with_name("adversarial_cases.jsonl")
    cases = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(cases) > 300
    solutions = [case["solution"] for case in cases]
    verdicts = judge_batch([case["response"] for case in cases], solutions)
    pairs = zip(cases, verdicts, strict=True)
    assert [case for case, verdict in pairs if verdict.correct is not case["correct"]] == []


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (r"\int_0^1 e^{-x^4}\sin(x^3)dx", "20"),  # sympy has no closed form
        (r"\infty-\infty", "0"),
        (r"\frac{0}{0}", "20"),
        ("9^{9^{9^9}}", "20"),
        ("100000!", "20"),
    ],
)
def test_what_cannot_be_decided_is_wrong_and_says_so(answer, reference):
    assert judge(boxed(answer), boxed(reference)).status in ("unparsable", "timeout")


# --------------------------------------------------------------------------------------------------
# Boxes, limits, explanations
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "box"),
    [
        (r"<think>\boxed{1}</think> \boxed{2}", "2"),
        (r"<think>\boxed{1}</think> 2", None),
        (r"<think>\boxed{1}", None),
        (r"\boxed{1} <think> hm", None),
        (r"\boxed{1}</think>\boxed{2}", "2"),
        (r"<think>a</think>\boxed{1}<think>b</think>\boxed{2}", "2"),
        (r"<think>a</think>\boxed{1}<think>b", None),
        (r"\boxed{1}", "1"),
    ],
)
def test_only_what_follows_the_thinking_is_read(response, box):
    assert answer_box(response) == box
    assert judge(response, r"\boxed{2}").status == ("ok" if box else "no_answer")


NESTED = [
    rf"{opening * 900}5{closing * 900}"
    for opening, closing in (
        ("(", ")"),
        ("{", "}"),
        ("[", "]"),
        (r"\sqrt{", "}"),
        (r"\frac{1}{", "}"),
    )
]
HOSTILE = [
    *NESTED,
    *(
        piece * (1990 // len(piece))
        for piece in ("(", "{", "}", r"\sqrt", r"\frac", "^", "_", "|", "1/")
    ),
    *(
        piece * (1990 // len(piece))
        for piece in ("1<", "1=", "x=", ",", r"\pm", r"\sin", "!", "°", "'", "**2")
    ),
    *(
        piece * (1990 // len(piece))
        for piece in (r"\text{", r"\begin{", r"\begin{array}", r"\left(", "a b ")
    ),
    *(
        piece * (1990 // len(piece))
        for piece in ("1,234,", "1;", ":1", "(1,", r"\cup", r"\{", "$", "`", "~", "%")
    ),
    *(
        "x" * 100_000,
        "(" * 100_000,
        "1+" * 50_000,
        r"\frac{1}{" * 10_000,
        "9" * 1900,
        "7" * 999 + "!",
    ),
    *(
        "__import__('os').system('true')",
        r"\input{/etc/passwd}",
        r"\write18{ls}",
        "lambda: 0",
        "\x00",
    ),
    *("\ud800", "В", "\u202e02", "20\u20dd", r"\def\x{20}\x", "{" * 5 + "}" * 6, r"\end{array}"),
]


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_boxes_are_wrong_at_once_in_the_parent(answer):
    for reference in ("20", "x^2+1"):
        seconds = []
        for _ in range(3):  # the least of three: a garbage collection may fall into one
            start = time.process_time()
            try:
                verdict = quick(answer, reference)
            except math.NeedsAlgebra:
                verdict = Verdict(False, "ok")
            seconds.append(time.process_time() - start)
            assert not verdict.correct
        assert min(seconds) < 0.6  # 0.3 s on a machine that does nothing else


def test_nesting_is_limited_before_anything_is_parsed(monkeypatch):
    monkeypatch.setattr(tokens, "LatexWalker", None)  # calling it would raise
    for answer in NESTED[:2]:
        with pytest.raises(tokens.Unreadable, match="levels"):
            readings(answer)


@pytest.mark.parametrize(
    ("reference", "construct"),
    [
        (r"3\phantom{2}", r"\phantom"),
        (r"\begin{tikzpicture}x\end{tikzpicture}", "tikzpicture"),
        (r"\frac{1}{}", "empty"),
        ("3 ⊕ 4", "⊕"),
    ],
)
def test_an_unreadable_reference_is_named_with_its_construct(reference, construct):
    problem = check_golds([boxed(reference)])[0]
    assert construct in problem
    assert "cannot be read" in problem


@pytest.mark.parametrize(
    ("answer", "reference", "reason"),
    [
        ("5 cm", "5 m", "units"),
        ("2, 3, 4", "2, 3", "3 parts, not 2"),
        ("B", "C", "choice B, not C"),
        ("y=3", "x=3", "another name"),
        ("3", "4", "another value"),
        ("5 red balls", "5", "red ball says more"),
        (r"\foo", "4", r"\foo in the answer cannot be read"),
    ],
)
def test_a_wrong_answer_is_explained(answer, reference, reason):
    verdict, said = explain(answer, reference)
    assert not verdict.correct
    assert reason in said


def test_trees_keep_what_is_text_and_what_is_mathematics():
    assert readings(r"\text{PTT}")[0].tree == Tree("run", ("PTT",), "text")
    assert readings("PTT")[0].tree == Tree("run", ("PTT",))
    assert readings(r"3\mathrm{m}")[0].tree.kind == readings("3m")[0].tree.kind == "quantity"
    assert readings(r"y=3\mathrm{m}")[0].tree.parts[1].kind == "quantity"
    assert readings("y=3m")[0].tree.parts[1].kind == "product"
    assert readings("") == ()


# --------------------------------------------------------------------------------------------------
# python -m rlvlm_jax.rewards
# --------------------------------------------------------------------------------------------------


def run(*arguments):
    """The status and the text that the command gives."""
    command = [sys.executable, "-m", "rlvlm_jax.rewards", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in ran.stderr
    return ran.returncode, ran.stdout + ran.stderr


def test_the_command_prints_both_trees_and_the_verdict_with_its_reason():
    status, said = run(r"\boxed{x=\frac12}", r"So \boxed{y=\frac12}.")
    assert status == 0
    assert "relation [=]" in said
    assert "symbol y" in said
    assert said.splitlines()[-1] == "wrong (ok): the value of another name"
    assert run("20", "20")[1].splitlines()[-1] == "right (ok): they are equal"
    assert run(r"3\phantom{2}", "3")[1].count(r"\phantom") == 3


def test_the_command_lists_the_references_that_cannot_be_read(tmp_path):
    data = tmp_path / "train.jsonl"
    rows = [("a", r"\foo{3}"), ("b", "3"), ("c", "")]
    lines = [{"id": name, "question": "q", "solution": rf"\boxed{{{box}}}"} for name, box in rows]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, said = run("--references", str(data))
    assert status == 2
    assert r"(a): \foo cannot be read" in said
    assert "(c): its" in said
    assert said.splitlines()[-1] == "2 of 3 solutions cannot be judged"


@pytest.mark.slow
def test_the_command_refuses_other_arguments():
    assert run("1")[0] == 2
    assert "a reference and an answer" in run("1")[1]
    assert run("--references", "nowhere.jsonl")[0] == 2
