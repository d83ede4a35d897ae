# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Predictions from sizes, against numbers computed by hand."""

import pytest

from rlvlm_jax.models.qwen2_vl.config import PUBLISHED
from rlvlm_jax.plan import advice, predict
from rlvlm_jax.plan.topology import GIB, parse
from tests import tiny_model

MODEL = PUBLISHED["qwen2.5-vl-7b"]
PARAMETERS, TRAINED = 8_292_166_656, 7_615_616_512


def sizes(**changes):
    keys = {
        "model__dtype": "bfloat16",
        "model__remat": "full",
        "rollout__prompts": 128,
        "rollout__samples": 8,
        "rollout__max_tokens": 4096,
        "update__minibatch": 128,
        "update__microbatch": 16,
        "update__logprob_batch": 128,
        "mesh__fsdp": 8,
    }
    config = tiny_model.settings(**{**keys, **changes})
    return predict.Sizes(
        config=config,
        model=MODEL,
        bucket=(3008, 2560),
        parameters=PARAMETERS,
        trained=TRAINED,
        reference=False,
        frozen=True,
        kernel="splash",
        on_tpu=True,
    )


def test_the_state_is_float32_and_divided():
    found = predict.resident(sizes())
    assert found["parameters"] == 4 * PARAMETERS / 8
    assert found["optimizer"] == 2 * 4 * TRAINED / 8
    assert found["reference"] == 0
    assert predict.resident(sizes()._replace(reference=True))["reference"] == 4 * PARAMETERS / 8


def test_keys_and_values_of_all_rows_of_a_device():
    found = predict.temporaries(sizes())["sample"]
    a_token = 2 * 28 * 4 * 128 * 2  # k and v, layers, heads, size, bytes
    assert found["responses' keys and values"] == 128 * 4096 * a_token == 28 * GIB
    assert found["prompts' keys and values"] == 16 * 3008 * a_token
    small = predict.temporaries(sizes(rollout__cache="int8"))["sample"]
    assert small["responses' keys and values"] / found["responses' keys and values"] == (
        pytest.approx((1 + 4 / 128) / 2)
    )


def test_weights_for_decoding_lie_as_the_layout_says():
    weights = 2 * (28 * 3584 * (2 * 3584 + 2 * 512 + 3 * 18944) + 3584 * 152064)
    for layout, parts in (("tensor", 8), ("train", 8), ("replicated", 1), ("auto", 8)):
        found = predict.temporaries(sizes(rollout__layout=layout))["sample"]
        assert found["weights for decoding"] == weights / parts, layout


def test_decoding_reads_weights_once_a_token_and_the_cache_by_blocks():
    s = sizes()
    assert predict.blocks(s) == (512, 512, 1024, 2048)
    a_token = 2 * 28 * 4 * 128 * 2
    met = 512 * 512 + 512 * 1024 + 1024 * 2048 + 2048 * 4096
    weights = predict.temporaries(s)["sample"]["weights for decoding"]
    expected = 4096 * weights + a_token * (4096 * 16 * 3008 + 128 * met)
    assert predict.decode_bytes(s) == expected
    gathered = sizes(rollout__layout="train")
    assert predict.decode_bytes(gathered) - expected == pytest.approx(4096 * weights * 7)


def test_seconds_are_work_over_rates():
    s, topology = sizes(), parse("8xH200")
    assumed = predict.Assumed(train=0.5, prefill=0.25, decode=1.0, link=0.5)
    found = predict.seconds(s, topology, {"update": 450e9}, assumed)
    work = predict.work(s)
    assert found["update"] == work["update"].executed / (8 * 989e12 * 0.5)
    assert found["prefill"] == work["prefill"].executed / (8 * 989e12 * 0.25)
    assert found["collectives"] == 2.0
    over_network = predict.seconds(s, parse("16xH200"), {"update": 50e9}, assumed)
    assert over_network["collectives"] == 2.0
    total = predict.summary(s, topology, {"all": 36.0}, dollars=2.0)
    assert total["iteration_s"] == 36
    assert total["tokens_per_s"] == 1024 * 4096 / 36
    assert total["dollars_per_1000"] == 10 * 8 * 2.0  # hours, chips, dollars


def test_advice_names_what_is_enough():
    s, v5e = sizes(), parse("v5e-8")
    found = advice.advise(s, v5e, "sample", short=5 * GIB)
    assert "step 'sample'" in found
    assert "any of these is enough" in found
    assert "--config.rollout.cache=int8" in found
    assert "--config.model.remat" not in found  # it is full already
    assert found.endswith("such as v5e-16")
    assert "no single change is enough" in advice.advise(s, v5e, "sample", short=100 * GIB)


def test_advice_for_the_backward_pass():
    s = sizes(model__remat="none")
    found = advice.advise(s, parse("8xH100"), "update", short=1)
    assert "--config.model.remat=full" in found
    assert "--config.update.microbatch=8" in found
    assert "--config.update.lora_rank=64" in found
    assert found.endswith("such as 16xH100")


def test_the_largest_slice_has_no_larger():
    assert advice.next_larger(parse("v5e-256")) is None
    assert advice.next_larger(parse("1xA100")).name == "8xA100"
