# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From a call of the model to a matrix product there are at most four functions of the package."""

import sys
from pathlib import Path

import jax
import model_cases as cases
import numpy as np
import pytest

import rlvlm_jax
from rlvlm_jax.models import families
from rlvlm_jax.models.common import attention, exact_cpu, layers
from rlvlm_jax.models.qwen2_vl import language
from tests import tiny_model

ROOT = str(Path(rlvlm_jax.__file__).parent)
MOST = 4  # forward, block, MLP, linear layer


@pytest.fixture
def chains(monkeypatch):
    """The package's functions on the stack at each product, outermost first."""
    recorded = []

    def product(*arguments, **options):
        frame, chain = sys._getframe(1), []
        while frame:
            if frame.f_code.co_filename.startswith(ROOT):
                chain.append(frame.f_code.co_qualname)
            frame = frame.f_back
        recorded.append(tuple(reversed(chain)))
        return exact_cpu.product(*arguments, **options)

    for module in (layers, attention, language):
        monkeypatch.setattr(module, "product", product)
    jax.clear_caches()  # What another test has traced would not be traced again.
    return recorded


def deepest(chains):
    return max(chains, key=len)


def responses(batch):
    rows, steps = 2 * len(batch.tokens), 5
    return np.ones((rows, steps), np.int32), np.ones((rows, steps), bool)


@pytest.mark.parametrize("blocks", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("remat", [pytest.param("none", marks=pytest.mark.slow), "full"])
def test_a_product_of_full_sequences_is_four_functions_deep(monkeypatch, chains, remat, blocks):
    if blocks:
        monkeypatch.setitem(attention.attend.__wrapped__.__kwdefaults__, "max_scores", 1)
    model = families.build(cases.tiny_config(), remat=remat)
    params = jax.eval_shape(model.init, jax.random.key(0))
    batch = tiny_model.batch()
    features = np.zeros((len(batch.tokens), 3, model.config.width), np.float32)
    tokens, mask = responses(batch)
    chains.clear()
    jax.eval_shape(model.forward, params, batch, features, tokens, mask)
    jax.eval_shape(model.packed, params, batch, features, tokens, np.zeros((2, 40), np.int32))
    names = {chain[-1] for chain in chains}
    assert names == {"Linear.__call__", "attend_by_head"}, names
    assert len(deepest(chains)) <= MOST, deepest(chains)


def test_the_first_product_of_an_image_is_four_functions_deep(chains):
    model, params = tiny_model.build()
    jax.eval_shape(model.encode_images, params, tiny_model.batch())
    assert len(chains[0]) <= MOST, chains[0]


def test_a_product_of_the_output_layer_is_four_functions_deep(chains):
    for tied in (True, False):
        model = families.build(cases.tiny_config(tied=tied))
        params = jax.eval_shape(model.init, jax.random.key(0))
        chains.clear()
        jax.eval_shape(model.logits, params, np.zeros((2, 3, model.config.width), np.float32))
        assert len(chains) == 1
        assert len(deepest(chains)) <= MOST, deepest(chains)
