# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which groups a step trains on, over several rounds of sampling."""

import numpy as np
import pytest

from rlvlm_jax import rewards, selection, step_metrics
from rlvlm_jax.models.qwen2_vl.media import ImageSpec, Patches
from rlvlm_jax.rewards import Scores
from rlvlm_jax.selection import Round
from rlvlm_jax.types import Passes, Prompts, Rollout
from tests import tiny_model

SAMPLES, LENGTH = 4, 6  # of `tiny_model.settings`: four prompts of four samples


def settings(**more):
    return tiny_model.settings(algorithm__filter_low=0.1, algorithm__filter_high=0.9, **more)


def scores_of(correct):
    correct = np.asarray(correct, bool)
    score = correct.astype(np.float32)
    nobody = np.zeros(len(correct), bool)
    return Scores({"accuracy": score}, score, correct, ["ok"] * len(correct), nobody, 0, 0)


def round_of(config, right, *, first=0, tokens=5, patches=8):
    """A round of four groups with so many right answers each; prompts are numbered from `first`."""
    names = first + np.arange(len(right), dtype=np.int32)
    correct = np.concatenate([np.arange(SAMPLES) < count for count in right])
    rows = np.repeat(names, SAMPLES)[:, None] * np.ones((1, LENGTH), np.int32)
    values = rows.astype(np.float32)
    n = len(right)
    batch = Prompts(
        tokens=names[:, None] * np.ones((1, tokens), np.int32),
        mask=np.ones((n, tokens), bool),
        positions=np.ones((n, 3, tokens), np.int32),
        media=Patches(
            pixels=np.full((n, patches, 3), 9, np.uint8),
            coords=np.ones((n, patches, 2), np.int32),
            image=np.ones((n, patches), np.int32),
            window=np.ones((n, patches), np.int32),
        ),
    )
    mask = np.ones((len(rows), LENGTH), bool)
    rollout = Rollout(
        rows, mask, mask, values, np.zeros(len(rows), bool), np.zeros(len(rows), np.int32)
    )
    passes = Passes(values + 0.5, None, values, values)
    scores = scores_of(correct)
    kept = selection.kept_groups(config, scores.rewards["accuracy"])
    return Round(names.tolist(), batch, rollout, passes, None, scores, kept)


def test_groups_inside_the_limits_are_kept():
    config = settings()
    assert round_of(config, [0, 1, 3, 4]).keep.tolist() == [False, True, True, False]
    config = tiny_model.settings()
    assert round_of(config, [0, 1, 3, 4]).keep.all()


@pytest.mark.parametrize("refills", [0, 1, 2])
def test_rounds_end_when_the_batch_is_full_or_the_budget_spent(refills):
    config = settings(algorithm__filter_refills=refills)
    poor, rich = round_of(config, [0, 1, 4, 4]), round_of(config, [1, 1, 1, 2])
    assert not selection.is_enough(config, [])
    assert selection.is_enough(config, [rich])
    assert selection.is_enough(config, [poor] * (refills + 1))
    if refills:
        assert not selection.is_enough(config, [poor] * refills)
        assert selection.is_enough(config, [poor, rich])


def test_kept_groups_come_first_and_the_surplus_is_dropped():
    config = settings(algorithm__filter_refills=3)
    rounds = [round_of(config, right) for right in ([0, 2, 4, 1], [4, 3, 1, 2])]
    chosen = selection.choose(config, rounds)
    assert chosen.tolist() == [1, 3, 5, 6]
    scores, kept = selection.scores_of(config, rounds, chosen)
    assert kept.all()
    assert scores.reshape(4, SAMPLES).sum(axis=1).tolist() == [2, 1, 3, 1]
    sampled = step_metrics.Sampled(
        responses=None,
        scores=rewards.join([r.scores for r in rounds]),
        keep=np.concatenate([r.keep for r in rounds]),
        chosen=chosen,
        trained=None,
        rounds=len(rounds),
    )
    assert step_metrics.filter_metrics(sampled) == {
        "filter/kept_fraction": 5 / 8,
        "filter/all_correct": 2 / 8,
        "filter/all_wrong": 1 / 8,
        "filter/rounds": 2,
        "filter/trained": 4,
        "filter/surplus": 1,
    }


def test_others_fill_the_batch_up_without_being_trained_on():
    config = settings(algorithm__filter_refills=1)
    rounds = [round_of(config, right) for right in ([0, 2, 4, 4], [4, 4, 4, 1])]
    chosen = selection.choose(config, rounds)
    assert chosen.tolist() == [1, 7, 0, 2]
    _, kept = selection.scores_of(config, rounds, chosen)
    assert kept.reshape(4, SAMPLES).all(axis=1).tolist() == [True, True, False, False]


def test_one_round_stays_as_it_is():
    config = settings()
    one = round_of(config, [0, 2, 4, 1])
    assert selection.choose(config, [one]).tolist() == [0, 1, 2, 3]


def test_rounds_of_different_shapes_become_one_batch():
    config = settings(algorithm__filter_refills=1)
    small = round_of(config, [0, 2, 4, 1])
    large = round_of(config, [1, 4, 4, 2], first=4, tokens=7, patches=12)
    chosen = selection.choose(config, [small, large])
    batch, rollout, passes = selection.merge(
        config,
        [small, large],
        chosen,
        [(5, 8), (7, 8), (9, 12)],
        pad_id=-1,
        media=ImageSpec(patch_size=1),
    )
    assert (batch.tokens.shape, batch.media.pixels.shape[:2]) == ((4, 9), (4, 12))
    assert batch.tokens[:, -5:].tolist() == [[n] * 5 for n in (1, 3, 4, 7)]
    assert batch.tokens[:2, :4].tolist() == [[-1] * 4] * 2
    assert batch.mask.sum(axis=1).tolist() == [5, 5, 7, 7]
    assert batch.positions.sum(axis=(1, 2)).tolist() == [15, 15, 21, 21]
    assert (batch.media.image > 0).sum(axis=1).tolist() == [8, 8, 12, 12]
    assert not batch.media.image[:2, 8:].any()
    owners = np.repeat([1, 3, 4, 7], SAMPLES)
    assert (rollout.tokens == owners[:, None]).all()
    assert (passes.old == owners[:, None] + 0.5).all()
    assert passes.ref is None
