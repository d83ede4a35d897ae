# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Rewrites that keep the meaning are right, mutations that change it are wrong: 50 of each kind."""

import random

import pytest

from rlvlm_jax.rewards import math
from tests.rewards import fuzz, fuzz_shapes

TABLES = pytest.mark.parametrize("table", [fuzz.REWRITES, fuzz.MUTATIONS], ids=["keep", "change"])
DRAWS = 50


def test_no_mutation_is_accepted():
    found = fuzz.judged(fuzz.MUTATIONS, seed=0, draws=DRAWS)
    assert "".join(fuzz.listing(some, accepted=True) for some in found) == ""


def test_rewrites_are_accepted():
    found = fuzz.judged(fuzz.REWRITES, seed=0, draws=DRAWS)
    low = fuzz.low_rates(found)
    assert not low, "".join(
        fuzz.listing(some, accepted=False) for some in found if some.kind in low
    )


@TABLES
def test_full_run_is_large_and_balanced(table):
    draws = fuzz.full_draws(table)
    assert len(table) >= 12
    assert draws >= 300
    assert draws * len(table) >= 10_000
    assert draws <= 0.15 * draws * len(table)


@TABLES
def test_seed_fixes_the_draws(table):
    for kind, function in table.items():
        first = fuzz.draw(kind, function, 0, DRAWS)
        assert first == fuzz.draw(kind, function, 0, DRAWS)
        assert first != fuzz.draw(kind, function, 1, DRAWS)


@TABLES
def test_draws_of_a_kind_differ(table):
    for kind, function in table.items():
        assert len(set(fuzz.draw(kind, function, 0, 300))) >= 100, kind


def test_mutations_change_the_text():
    for kind, function in fuzz.MUTATIONS.items():
        pairs = fuzz.draw(kind, function, 0, 300)
        assert [pair for pair in pairs if pair[0] == pair[1]] == [], kind


def test_kinds_draw_without_the_k12_data(monkeypatch, tmp_path):
    caches = (fuzz_shapes.k12, fuzz_shapes.k12_matching)
    monkeypatch.setattr(fuzz_shapes, "K12", tmp_path / "none.jsonl")
    for cache in caches:
        cache.cache_clear()
    try:
        for table in (fuzz.REWRITES, fuzz.MUTATIONS):
            for kind, function in table.items():
                assert len(fuzz.draw(kind, function, 0, DRAWS)) == DRAWS
    finally:
        for cache in caches:
            cache.cache_clear()


PIECES = (
    *(
        r"\frac",
        r"\sqrt",
        r"\text{",
        r"\begin{cases}",
        r"\end{cases}",
        r"\\",
        "&",
        r"\overset",
        r"\{",
    ),
    *(
        r"\sum_{n=1}^{2}",
        r"\int_0^1",
        "dx",
        r"\log_",
        r"\pm",
        r"\vec",
        r"\cup",
        r"\ ",
        "½",
        "中",
        "²",
    ),
    *(
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "|",
        "^",
        "_",
        "!",
        "%",
        "°",
        "=",
        "<",
        ",",
        ";",
        ":",
        "-",
        "/",
    ),
    *("'", ".", "?", "$", "①", "\n", " or ", "12:30", "km", "5", "A", "x", "abc", "❶", "\u0663"),
)


def broken(rng, answers):
    """An answer with pieces put in, taken out, and taken from another answer."""
    text = rng.choice(answers)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(text))
        other = rng.choice(answers)
        text = text[:at] + rng.choice(
            (rng.choice(PIECES) + text[at:], text[at + rng.randint(1, 4) :], other[at:])
        )
    return text


def test_broken_answers_raise_nothing_in_the_parent():
    rng = random.Random(0)
    tables = (fuzz.REWRITES, fuzz.MUTATIONS)
    kinds = [(kind, function) for table in tables for kind, function in table.items()]
    pairs = [pair for kind, function in kinds for pair in fuzz.draw(kind, function, 1, 5)]
    answers = [text for pair in pairs for text in pair]
    for _ in range(4000):
        answer, reference = broken(rng, answers), broken(rng, answers)
        for pair in ((answer, reference), (answer, answer)):
            try:
                assert math.quick(*pair).status in ("ok", "unparsable", "no_answer")
            except math.NeedsAlgebra:
                continue
