# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Scores by hand-computed numbers, the user's own reward, and what may not be rewarded."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from rlvlm_jax import config as config_lib
from rlvlm_jax.errors import InputError
from rlvlm_jax.rewards import Verdict, judge, judge_batch, load_custom, scoring

HANG = r"\boxed{\sum_{n=1}^{\infty}\frac{\sin n}{n^2+7}}"

TEXTS = [
    r"<think>a</think><answer>\boxed{20}</answer>",  # right, both formats
    r"角度角度 \boxed{20}!",  # right, 4 of 16 characters Chinese
    r"\boxed{19}",  # wrong
    r"\boxed{20}",  # right, but truncated
    r"\boxed{20}",  # right, but without tokens
]
EXAMPLES = [{"id": str(i), "solution": r"\boxed{20}"} for i in range(5)]
TRUNCATED = [False, False, False, True, False]
LENGTHS = [30, 12, 9, 40, 0]


def settings(rules=(), **values):
    """The group `rewards` of the configuration, with these weights and values."""
    config = config_lib.default().rewards
    config.rules.update(dict(rules))
    config.update(values)
    return config


def score(texts, examples, truncated, lengths, config):
    return scoring.score(texts, examples, truncated, lengths, config, max_tokens=40)


def test_score_is_the_weighted_sum_then_the_penalty():
    weights = {"accuracy": 2.0, "language": 3.0, "format": 0.5}
    config = settings(weights, format_style="think_answer", penalty=-0.25)
    scores = score(TEXTS, EXAMPLES, TRUNCATED, LENGTHS, config)
    np.testing.assert_array_equal(scores.rewards["accuracy"], np.float32([1, 1, 0, 1, 1]))
    np.testing.assert_allclose(scores.rewards["language"], [0, -0.025, 0, 0, 0], atol=1e-9)
    np.testing.assert_array_equal(scores.rewards["format"], np.float32([1, 0, 0, 0, 0]))
    # 2 + 0.5; 2 - 3 * 0.1 * 4/16; 0; replaced; replaced
    np.testing.assert_allclose(scores.score, [2.5, 1.925, 0.0, -0.25, -0.25], atol=1e-6)
    np.testing.assert_array_equal(scores.correct, [True, True, False, True, True])
    np.testing.assert_array_equal(scores.penalised, [False, False, False, True, True])
    assert scores.status == ["ok"] * 5
    assert set(scores.rewards) == {"accuracy", "language", "format"}
    assert scores.custom_timeouts == 0
    for array in (*scores.rewards.values(), scores.score):
        assert (array.dtype, array.shape) == (np.float32, (5,))
    assert scores.correct.dtype == bool


def test_defaults_are_accuracy_language_and_the_penalty():
    scores = score(TEXTS, EXAMPLES, TRUNCATED, LENGTHS, settings())
    np.testing.assert_allclose(scores.score, [1.0, 0.975, 0.0, -0.1, -0.1], atol=1e-6)
    without = score(TEXTS, EXAMPLES, TRUNCATED, LENGTHS, settings(penalty=0.0))
    np.testing.assert_allclose(without.score, [1.0, 0.975, 0.0, 1.0, 1.0], atol=1e-6)
    assert not without.penalised.any()


def test_rules_are_added_up_in_order_and_recorded_if_weighted():
    """float32[1] of 0.1 + 0.2 * -0.025 + ..., where another order of additions rounds otherwise."""
    weights = {"accuracy": 0.1, "language": 0.7, "format": 0.3, "repetition": 0.9, "overlong": 1.1}
    texts = [r"<think>角角角角角角 a a a a a a</think> \boxed{20}"]
    config = settings(weights, overlong_tokens=7, penalty=0.0)
    scores = score(texts, EXAMPLES[:1], [False], [38], config)
    assert list(scores.rewards) == ["accuracy", "language", "format", "repetition", "overlong"]
    total = np.float32(0)
    for name, weight in weights.items():
        total += np.float32(weight) * scores.rewards[name][0]
    assert scores.rewards["overlong"][0] == np.float32(-5 / 7)
    assert scores.score[0] == total
    unweighted = score(texts, EXAMPLES[:1], [False], [38], settings(dict.fromkeys(weights, 0.0)))
    assert list(unweighted.rewards) == ["accuracy", "language", "format"]
    assert unweighted.score[0] == 0


def test_format_style_and_judge_style_change_the_score():
    one = score(TEXTS[:1], EXAMPLES[:1], [False], [9], settings({"format": 1.0}))
    assert one.score == 2.0
    cut = [r"\boxed{120"]
    example = [{"solution": r"\boxed{120^\circ}"}]
    assert score(cut, example, [False], [9], settings()).score == 0.0
    assert score(cut, example, [False], [9], settings(judge="maye")).score == 1.0


@pytest.mark.slow
def test_hung_item_is_a_timeout_never_rewarded_and_its_neighbours_are_judged():
    # the reference hangs as well: equal texts, yet nobody could compare them
    responses = [
        r"\boxed{x+x}",
        HANG,
        r"\boxed{1}",
        r"\boxed{x+\prod_{n=1}^{10^9}(1+n^{-2})}",
        r"\boxed{2}",
    ]
    solutions = [r"\boxed{2x}", r"\boxed{\sqrt{7}+1}", r"\boxed{1}", r"\boxed{x}", r"\boxed{1}"]
    judge(r"\boxed{x+x}", r"\boxed{2x}")  # the workers are up
    start = time.monotonic()
    verdicts = judge_batch(responses, solutions, deadline_s=2.0)
    assert time.monotonic() - start < 8.0
    assert verdicts[::2] == [Verdict(True, "ok"), Verdict(True, "ok"), Verdict(False, "ok")]
    assert verdicts[1] == Verdict(False, "timeout")
    assert not verdicts[3].correct
    assert judge(r"\boxed{x+x}", r"\boxed{2x}") == Verdict(True, "ok")


def test_timeout_counts_in_the_scores():
    example = [{"solution": r"\boxed{\sqrt{7}+1}"}]
    scores = score([HANG], example, [False], [9], settings(deadline_s=1.0))
    assert scores.status == ["timeout"]
    assert scores.score == 0.0
    assert not scores.correct[0]


def test_judge_is_the_batch_of_one():
    pairs = [(r"\boxed{1}", r"\boxed{1}"), (r"\boxed{x+x}", r"\boxed{2x}"), ("", r"\boxed{1}")]
    batch = judge_batch([r for r, _ in pairs], [s for _, s in pairs])
    assert [judge(r, s) for r, s in pairs] == batch
    assert judge_batch([], []) == []


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="1 texts, 1 examples, 2 truncation flags and 1 lengths"):
        score(["a"], EXAMPLES[:1], [False, True], [1], settings())


# --------------------------------------------------------------------------------------------------
# The user's own reward
# --------------------------------------------------------------------------------------------------

MODULE = """
import os, sys, time
import numpy as np

def share_of_a(response, example):
    return response.count("a") / len(response) + example["bonus"]

def array(response, example):
    return np.float32(0.5)

def fails(response, example):
    raise KeyError("no such field")

def leaves(response, example):
    sys.exit(0)

def dies(response, example):
    os._exit(3)

def hangs(response, example):
    time.sleep(600 if response == "slow" else 0)
    return 1

def text(response, example):
    return "0.5"

def nothing(response, example):
    pass

def infinite(response, example):
    return float("inf")

def pair(response, example):
    return np.ones(2)

def process(response, example):
    return os.getpid()

def picky(response, example):
    return float(len(bytearray(2 << 30)) if response == "eats" else response)

class Nested:
    @staticmethod
    def one(response, example):
        return True

NUMBER = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(MODULE)
    (tmp_path / "broken_rewards.py").write_text("import there_is_no_such_module\n")
    monkeypatch.chdir(tmp_path)  # found in the current directory, without PYTHONPATH
    yield "my_rewards"
    sys.modules.pop("my_rewards", None)
    sys.path.remove(str(tmp_path)) if str(tmp_path) in sys.path else None


def custom(function, texts=("aabb",), bonus=0.0, **config):
    examples = [
        {"id": f"q{i}", "solution": r"\boxed{1}", "bonus": bonus} for i in range(len(texts))
    ]
    config = settings(custom=f"my_rewards:{function}", **{"custom_weight": 2.0, **config})
    return score(texts, examples, [False] * len(texts), [9] * len(texts), config)


def test_custom_reward_is_weighted_and_added(module):
    scores = custom("share_of_a", ["aabb", r"a \boxed{1}aaa"], bonus=0.25)
    np.testing.assert_allclose(scores.rewards["custom"], [0.75, 4 / 14 + 0.25], rtol=1e-6)
    np.testing.assert_allclose(scores.score, [1.5, 1 + 8 / 14 + 0.5], rtol=1e-6)
    assert custom("array").score == 1.0
    assert custom("Nested.one").score == 2.0


def test_custom_reward_runs_in_a_worker(module):
    assert custom("process").rewards["custom"] != np.float32(os.getpid())


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("fails", "KeyError: 'no such field'"),
        ("leaves", "SystemExit"),
        ("text", "returned '0.5', not a number"),
        ("nothing", "returned None, not a number"),
        ("infinite", "returned inf, which is not finite"),
        ("pair", "TypeError"),
    ],
)
def test_a_custom_reward_that_always_fails_stops_the_run_with_its_cause(module, function, words):
    with pytest.raises(RuntimeError) as caught:
        custom(function, ["a", "b"])
    message = str(caught.value)
    assert f"my_rewards:{function} failed on 2 of 2 responses, first on 0 (example q0)" in message
    assert words in message
    if function == "fails":
        assert "my_rewards.py" in message
        assert "in fails" in message


@pytest.mark.slow
def test_custom_reward_that_hangs_or_dies_scores_nothing_and_is_counted(module):
    scores = custom("hangs", ["a", "slow", "b"], deadline_s=2.0)
    np.testing.assert_array_equal(scores.rewards["custom"], np.float32([1, 0, 1]))
    assert scores.custom_timeouts == 1
    scores = custom("dies", ["a"], deadline_s=3.0)
    assert (scores.score, scores.custom_timeouts) == (0.0, 1)


def test_a_custom_reward_that_fails_on_some_is_counted_and_never_the_better_choice(
    module, caplog, monkeypatch
):
    monkeypatch.setattr(scoring, "CUSTOM_MEMORY", 2**30)
    scores = custom("picky", ["-3", "x", "-1", "eats", "2"])
    np.testing.assert_array_equal(scores.rewards["custom"], np.float32([-3, -3, -1, -3, 2]))
    assert (scores.custom_timeouts, scores.custom_errors) == (0, 2)
    assert "failed on 2 of 5 responses, first on 1 (example q1)" in caplog.text
    assert "could not convert string to float: 'x'" in caplog.text
    positive = custom("picky", ["3", "x"])
    np.testing.assert_array_equal(positive.rewards["custom"], np.float32([3, 0]))
    unwanted = custom("picky", ["3", "x"], custom_weight=-1.0)
    np.testing.assert_array_equal(unwanted.rewards["custom"], np.float32([3, 3]))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_rewards", "must name a function as 'module:function'"),
        (":f", "must name a function as 'module:function'"),
        ("my_rewards:", "must name a function as 'module:function'"),
        ("no_such_module:f", "'no_such_module' cannot be imported"),
        ("broken_rewards:f", "No module named 'there_is_no_such_module'"),
        ("my_rewards:missing", "has no 'missing'"),
        ("my_rewards:NUMBER", "'NUMBER' is a int, not a function"),
        ("__main__:f", "is in the running script"),
    ],
)
def test_custom_reward_is_checked_before_the_run(module, name, words):
    with pytest.raises(InputError, match=r"^config\.rewards\.custom=") as caught:
        load_custom(name)
    assert words in str(caught.value)


def test_importing_rewards_loads_neither_jax_nor_algebra():
    code = "import sys, rlvlm_jax.rewards; print({'jax', 'flax', 'sympy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
