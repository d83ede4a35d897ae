# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What is read from a program's text; the text is written by hand after the compiler's."""

import dataclasses

import jax
import pytest

from rlvlm_jax import trajectory, update
from rlvlm_jax.models.families import FAMILIES
from rlvlm_jax.models.qwen2_vl.config import from_hf
from rlvlm_jax.plan import compiled, work
from tests import tiny_model

PROGRAM = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %x = f32[4,8]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %kernel = f32[4,8]{1,0} custom-call(%x), frontend_attributes={kernel_metadata={
"metadata":"{}"
}}, metadata={op_name="jit(step)/kernel"}
  %gathered = f32[16,8]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=1, \
replica_groups=mesh['axis_0'=1,'axis_1'=4] {'axis_1'}, dimensions={0}, \
metadata={op_name="jit(step)/layer/dot_general"}
  ROOT %next = (s32[], f32[4,8]{1,0}) tuple(%i, %y)
}

%condition (p: (s32[], f32[4,8])) -> pred[] {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %limit = s32[]{:T(128)} constant(28)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%until_done (p: (s32[], f32[4,8])) -> pred[] {
  %limit = s32[] constant(64)
  %less = pred[] compare(%i, %limit), direction=LT
  ROOT %both = pred[] and(%less, %left)
}

%outer (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %loop = (s32[], f32[4,8]{1,0}) while(%t), condition=%condition, body=%body
  ROOT %out = (s32[], f32[4,8]{1,0}) tuple(%i, %y)
}

%few (x: bf16[2]) -> bf16[2] {
  ROOT %small = bf16[2]{0} all-reduce(%x), replica_groups=[1,4]<=[4], to_apply=%add
}

%many (x: bf16[1024]) -> bf16[1024] {
  ROOT %large = bf16[1024]{0} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add
}

ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %decode = (s32[], f32[4,8]{1,0}) while(%t), condition=%until_done, body=%outer
  %known = (s32[], f32[4,8]{1,0}) while(%t), condition=%until_done, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %either = bf16[1024]{0} conditional(%c, %a, %b), branch_computations={%few, %many}
  %start = (f32[2,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%x), dimensions={0}
  %done = f32[8,8]{1,0} all-gather-done(%start)
  ROOT %y = f32[512,1024]{1,0} fusion(%x), kind=kLoop, calls=%fused, \
metadata={op_name="jit(step)/z"}
}
"""


def found(*unstated):
    parsed = compiled.computations(PROGRAM)
    return list(compiled.collectives(parsed, 4, unstated))


def test_bytes_of_shapes():
    assert compiled.shape_bytes("f32[2,3]{1,0:T(8,128)}") == 24
    assert compiled.shape_bytes("(bf16[8]{0}, pred[], u32[]{:S(2)})") == 16 + 1 + 4
    assert compiled.shape_bytes("s4[3]") == 2


def test_collectives_are_counted_as_often_as_their_loops_run():
    inner, known, branch, started = found(5)
    assert (inner.kind, inner.bytes, inner.devices) == ("all-gather", 16 * 8 * 4, 4)
    assert (inner.depth, inner.times) == (2, 5 * 28)  # 5 was told, 28 stands in the condition
    assert inner.where == "jit(step)/layer/dot_general"
    assert (known.depth, known.times) == (1, 3)
    assert (branch.kind, branch.bytes, branch.devices) == ("all-reduce", 2048, 2)
    assert (started.kind, started.bytes, started.depth) == ("all-gather", 8 * 8 * 4, 0)


def test_a_collective_that_is_spread_over_fusions_counts_once():
    said = 'use_global_device_ids=true, frontend_attributes={chain_id="0"}'
    text = PROGRAM.replace("dimensions={0}, metadata", f"dimensions={{0}}, {said}, metadata")
    assert text != PROGRAM
    kinds = [one.kind for one in compiled.collectives(compiled.computations(text), 4)]
    assert kinds == ["all-gather", "all-reduce", "all-gather"]


def test_a_loop_of_unstated_length_counts_once():
    assert found()[0].times == 28


def test_bytes_sent_are_those_of_a_ring():
    inner, _, branch, _ = found()
    assert inner.sent == 512 * 3 / 4
    assert branch.sent == 2 * 2048 / 2
    one = branch._replace(kind="collective-permute")
    assert one.sent == 2048
    assert compiled.sent_bytes([inner, branch]) == 28 * 384 + 2048


def test_the_largest_arrays_are_not_parameters_nor_tuples():
    (size, shape, where), second, *_ = compiled.largest(compiled.computations(PROGRAM))
    assert (size, shape, where) == (512 * 1024 * 4, "f32[512,1024]", "jit(step)/z")
    assert second[1] == "bf16[1024]"


@pytest.mark.parametrize(
    ("problem", "gib"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory. Used 28.18G of 15.75G hbm.", 28.18),
        ("HLO temporaries (512.0M) exceeds available HBM (15.75G)", 0.5),
        ("something else", 0),
    ],
)
def test_what_the_compiler_would_need_is_read(problem, gib):
    assert compiled.needed_bytes(problem) == pytest.approx(gib * 2**30)


def test_the_largest_gather_is_found_in_loops_too():
    found = [
        compiled.Collective("all-gather", 8, 4, 0, 1, "f32[2]", "a"),
        compiled.Collective("all-gather", 16, 4, 2, 9, "f32[4]", "b"),
        compiled.Collective("all-reduce", 64, 4, 0, 1, "f32[16]", "c"),
    ]
    assert compiled.largest_gather(found) == (16, "f32[4]", "b")
    assert compiled.largest_gather(found[2:]) == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh", [{"mesh__fsdp": 4, "mesh__tensor": 2}, {"mesh__fsdp": 4, "mesh__sequence": 2}], ids=str
)
def test_neither_weights_nor_logits_are_whole_anywhere(monkeypatch, mesh):
    layers, width, mlp, vocabulary = 16, 64, 256, 4096
    model = dataclasses.replace(
        from_hf(tiny_model.hf_config()),
        layers=layers,
        width=width,
        mlp_width=mlp,
        vocab_size=vocabulary,
        heads=8,
        tie_embeddings=False,
    )
    model = dataclasses.replace(model, vision=dataclasses.replace(model.vision, out_width=width))
    monkeypatch.setitem(FAMILIES[model.family].published, "deep", model)
    for module in (trajectory, update):
        monkeypatch.setattr(module, "CHUNK", 8)  # of 64 tokens
    config = tiny_model.settings(
        model__path="deep",
        rollout__prompts=8,
        rollout__max_tokens=64,
        train__minibatch=16,
        train__microbatch=8,
        **mesh,
    )
    planned = work.lower(config, jax.devices(), prompt_tokens=32, patches=32)
    stack, table = 4 * layers * mlp * width, 4 * vocabulary * width
    for name in ("passes", "update"):
        step = compiled.compile_step(name, planned.steps[name], 8)
        size, shape, where = compiled.largest_gather(step.collectives)
        assert 0 < size <= min(stack, table) / 4, (name, shape, where)
        assert not any(str(vocabulary) in shape for _, shape, _ in step.largest)
