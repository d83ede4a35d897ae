# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities and entropies do not depend on how many logits exist at a time."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from rlvlm_jax.logprobs import logprobs
from rlvlm_jax.sampling.logits import Policy

B, R, V, D = 4, 7, 11, 5
MODEL = types.SimpleNamespace(
    forward=lambda params, prompts, features, tokens, valid: jnp.sin(params[tokens]),
    spread=lambda params: params,
    logits=lambda params, hidden: hidden @ params.T,
)


def test_the_size_of_a_chunk_changes_nothing():
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.standard_normal((V, D)), jnp.float32)
    tokens = rng.integers(0, V, (B, R)).astype(np.int32)
    valid = np.arange(R) < np.array([[7], [1], [5], [4]])

    def total(params, chunk):
        lps, entropies, present = logprobs(
            *(MODEL, Policy(0.7), chunk, params, None, (), tokens, valid, valid),
            entropy_gradient=True,
        )
        return lps.sum() + entropies.sum(), (lps, entropies, present)

    compute = jax.grad(total, has_aux=True)
    gradient, whole = compute(params, 64)
    logits = jnp.sin(params[tokens]) @ params.T / 0.7
    expected = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(whole[0], np.where(valid, expected, 0), rtol=1e-5, atol=1e-6)
    for chunk in (1, 3):
        other_gradient, other = compute(params, chunk)
        for a, b in zip(whole, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
        np.testing.assert_allclose(gradient, other_gradient, atol=1e-5)
