# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Predictions from sizes, against numbers computed by hand."""

import pytest

from rlvlm_jax.models.qwen2_vl.published import PUBLISHED
from rlvlm_jax.plan import advice, predict
from rlvlm_jax.plan.topology import parse
from tests import tiny_model

MODEL = PUBLISHED["qwen2.5-vl-7b"]
TRAINED = 7_615_616_512


def sizes(**changes):
    keys = {
        "model__dtype": "bfloat16",
        "model__remat": "full",
        "rollout__prompts": 128,
        "rollout__samples": 8,
        "rollout__max_tokens": 4096,
        "train__minibatch": 128,
        "train__microbatch": 16,
        "train__logprob_batch": 128,
        "mesh__fsdp": 8,
    }
    config = tiny_model.settings(**{**keys, **changes})
    return predict.Sizes(
        config=config,
        model=MODEL,
        bucket=(3008, 2560),
        trained=TRAINED,
        reference=False,
        frozen=True,
    )


def test_decoding_reads_weights_once_a_token_and_the_cache_by_blocks():
    s = sizes()
    assert predict.blocks(s) == (512, 512, 1024, 2048)
    a_token = 2 * 28 * 4 * 128 * 2
    met = 512 * 512 + 512 * 1024 + 1024 * 2048 + 2048 * 4096
    weights = 2 * (28 * 3584 * (2 * 3584 + 2 * 512 + 3 * 18944) + 3584 * 152064) / 8
    expected = 4096 * weights + a_token * (4096 * 16 * 3008 + 128 * met)
    assert predict.decode_bytes(s) == expected
    gathered = sizes(rollout__layout="train")
    assert predict.decode_bytes(gathered) - expected == pytest.approx(4096 * weights * 7)


def test_seconds_are_work_over_rates():
    s, topology = sizes(), parse("8xH200")
    assumed = predict.Assumed(train=0.5, prefill=0.25, decode=1.0, link=0.5)
    found = predict.seconds(s, topology, {"update": 450e9}, assumed)
    work = predict.count_work(s)
    assert found["update"] == work["update"].executed / (8 * 989e12 * 0.5)
    assert found["prefill"] == work["prefill"].executed / (8 * 989e12 * 0.25)
    assert found["collectives"] == 2.0
    over_network = predict.seconds(s, parse("16xH200"), {"update": 50e9}, assumed)
    assert over_network["collectives"] == 2.0
    total = predict.summary(s, topology, {"all": 36.0}, dollars=2.0)
    assert total["iteration_s"] == 36
    assert total["tokens_per_s"] == 1024 * 4096 / 36
    assert total["dollars_per_1000"] == 10 * 8 * 2.0  # hours, chips, dollars


def test_advice_names_what_saves_memory_in_the_step():
    sentence = advice.advise(sizes(), parse("v5e-8"), "sample")
    assert sentence == (
        "step 'sample' of the iteration needs the most; these settings save memory there: "
        "--config.rollout.cache=int8, --config.train.lora_rank=64, --config.rollout.prompts=64; "
        "or take a larger slice, such as v5e-16"
    )


def test_advice_for_the_backward_pass():
    sentence = advice.advise(sizes(model__remat="none"), parse("8xH100"), "update")
    assert "--config.model.remat=full, --config.train.microbatch=8" in sentence
    assert "cache" not in sentence
    assert sentence.endswith("such as 16xH100")
    smallest = sizes(train__microbatch=8)
    assert list(advice.changes(smallest, "update"))[0] == (
        "--config.mesh.fsdp=4 --config.mesh.sequence=2 --config.train.microbatch=4"
    )


def test_the_largest_slice_has_no_larger():
    assert advice.next_larger(parse("v5e-256")) is None
    assert advice.next_larger(parse("1xA100")).name == "8xA100"
