# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A new loss, aggregate, KL estimator, advantage, reward or metric is a function and a row alone.

A new data format is in tests/data/test_dataset.py.
"""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from rlvlm_jax import step_metrics
from rlvlm_jax.algorithms import advantages, kl, losses, masked
from rlvlm_jax.sampling.responses import Responses
from rlvlm_jax.trajectory import make_trajectory
from rlvlm_jax.types import Passes
from tests import test_masks as fake  # a model of one parameter, and one optimizer step with it
from tests import tiny_model

LOGPROBS, _ = fake.by_hand()
ADVANTAGES = np.tile(np.arange(1.0, fake.R + 1), (fake.B, 1))  # those of `fake.trajectory`


def test_a_loss(monkeypatch):
    def plain(logprobs, old_logprobs, advantages, mask, clip):
        nothing = jnp.zeros_like(mask)
        return losses.TokenLoss(-advantages * logprobs, jnp.exp(logprobs - old_logprobs), nothing)

    monkeypatch.setitem(losses.LOSSES, "plain", plain)
    _, metrics = fake.update(fake.trajectory(), algorithm__loss="plain")
    expected = -(ADVANTAGES * LOGPROBS)[fake.TRAINED].mean()
    assert metrics["update/loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["update/ratio_mean"] == 1
    assert metrics["update/clip_fraction"] == 0


def test_an_aggregate(monkeypatch):
    by_rows = losses.Aggregate(masked.sum, lambda mask, _: jnp.float32(len(mask)))
    monkeypatch.setitem(losses.AGGREGATES, "rows", by_rows)
    _, metrics = fake.update(fake.trajectory(), algorithm__aggregate="rows")
    expected = -ADVANTAGES[fake.TRAINED].sum() / fake.B  # the ratio is 1
    assert metrics["update/loss"] == pytest.approx(expected, rel=1e-6)


def test_a_kl_estimator(monkeypatch):
    monkeypatch.setitem(kl.KL, "distance", jnp.abs)
    reference = np.where(fake.SAMPLED, LOGPROBS - 0.25 * np.arange(fake.R), 0)
    t = fake.trajectory(ref_logprobs=reference.astype(np.float32))
    settings = {"algorithm__kl_loss_kind": "distance", "algorithm__kl_loss_coef": 1.0}
    _, metrics = fake.update(t, **settings)
    columns = np.flatnonzero(fake.TRAINED[0])
    assert metrics["update/kl"] == pytest.approx(0.25 * columns.mean(), rel=1e-5)


@pytest.mark.parametrize("per_token", [False, True])
def test_an_advantage(monkeypatch, per_token):
    def doubled(batch, settings):
        result = 2 * batch.returns(settings)
        return result[:, None] * jnp.arange(1, fake.R + 1) if per_token else result

    monkeypatch.setitem(advantages.ADVANTAGES, "doubled", advantages.Estimator(doubled))
    c = tiny_model.settings(
        algorithm__advantage="doubled", algorithm__old_logprobs="sampler", train__minibatch=8
    )
    scores = np.arange(fake.B, dtype=np.float32)
    passes, in_update = Passes(None, None, None, None), scores > 3
    t, _ = make_trajectory(c, None, None, fake.rollout(), passes, scores, in_update)
    expected = 2 * scores[:, None] * (np.arange(1, fake.R + 1) if per_token else 1)
    np.testing.assert_array_equal(
        t.advantages, np.where(fake.SAMPLED & in_update[:, None], expected, 0)
    )


A_REWARD = r"""
from rlvlm_jax.rewards import rules

# As if the row stood in the file: the configuration reads the table when it is imported.
rules.REWARDS["thrift"] = rules.Rule(
    lambda response, settings: 1 - response.length / response.max_tokens, 0.0, "1 less its length"
)

from rlvlm_jax import config, rewards

c = config.default()


def score():
    examples = [{"solution": r"\boxed{2}"}] * 2
    texts, truncated, lengths = [r"\boxed{2}", r"\boxed{3}"], [False, False], [3, 6]
    return rewards.score(texts, examples, truncated, lengths, c.rewards, 6)


assert "thrift" not in score().rewards
c.rewards.rules.thrift = 0.25
scores = score()
assert scores.rewards["thrift"].tolist() == [0.5, 0]
assert scores.score.tolist() == [1.125, 0]
"""


def test_a_reward():
    subprocess.run([sys.executable, "-c", A_REWARD], check=True)


def test_a_metric(monkeypatch):
    def shouting(sampled):
        return {"response/shouting": np.mean([text.isupper() for text in sampled.responses.texts])}

    for name in step_metrics.SAMPLED_METRICS:
        monkeypatch.setitem(step_metrics.SAMPLED_METRICS, name, lambda sampled: {})
    monkeypatch.setitem(step_metrics.SAMPLED_METRICS, "shouting", shouting)
    responses = Responses(["A", "b", "C", "d"], *5 * [None])
    sampled = step_metrics.Sampled(responses, *4 * [None], rounds=1)
    metrics = step_metrics.sampling_metrics(sampled, dropped=3)
    assert metrics == {"response/shouting": 0.5, "data/dropped": 3}
