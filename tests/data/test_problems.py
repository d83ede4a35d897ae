# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The bundled problems and the small tokenizer: what is promised about them, for every split."""

import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

import rlvlm_jax
from rlvlm_jax.data import problems, tiny_tokenizer
from rlvlm_jax.data.drawing import COLOURS, SIZE, UNSEEN_COLOURS
from rlvlm_jax.errors import InputError

ASSETS = Path(rlvlm_jax.__file__).parent / "assets" / "tiny"
MAX_PROMPT_TOKENS = 44  # with the chat template and the nine image tokens
MAX_SOLUTION_TOKENS = 28  # with the end of turn


@pytest.fixture(scope="module")
def splits():
    return {split: problems.examples(split, count=240) for split in problems.COUNTS}


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(ASSETS)


def pixels(item):
    return np.asarray(Image.open(io.BytesIO(item.images[0])))


def evaluate(expression):
    """The value of a chain such as 20-3*4, of numbers and operators only."""
    assert re.fullmatch(r"\d+[-+*]\d+", expression)
    return eval(expression)


def test_the_texts_never_change(splits):
    lines = [
        [item.id, item.question, item.answer, item.solution]
        for items in splits.values()
        for item in items[:48]
    ]
    digest = hashlib.sha256(json.dumps(lines).encode()).hexdigest()
    assert digest[:16] == "e01b00f47ec0bad8"


def test_the_images_never_change(splits):
    digest = hashlib.sha256()
    for items in splits.values():
        for item in items[:48]:
            digest.update(pixels(item).tobytes())
    assert digest.hexdigest()[:16] == "00bc6f4494f8836a"


def test_another_process_makes_the_same(splits):
    code = (
        "import hashlib; from rlvlm_jax.data.problems import examples;"
        "print(hashlib.sha256(repr(examples('val', count=24)).encode()).hexdigest())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(rlvlm_jax.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    here = hashlib.sha256(repr(splits["val"][:24]).encode()).hexdigest()
    assert run.stdout.strip() == here


def test_standard_sizes_hold_both_kinds_in_halves():
    for split in ("val", "test", "test_ood"):
        items = problems.examples(split)
        assert len(items) == problems.COUNTS[split] == 200
        assert len({item.id for item in items}) == 200
        for kind in problems.KINDS:
            half = problems.examples(split, kind)
            assert half == [item for item in items if f"-{kind}-" in item.id]
            assert len(half) == 100


def test_a_longer_request_begins_with_the_shorter():
    assert problems.examples("train", count=60)[:25] == problems.examples("train", count=25)


def test_no_problem_of_val_or_test_repeats_within_its_kind():
    for split in ("val", "test", "test_ood"):
        for kind in problems.KINDS:
            items = problems.examples(split, kind)
            assert len({(item.id.split("-")[2], facts_of(item)) for item in items}) == 100


def facts_of(item):
    """The facts, from where examples() took them."""
    split, _, name, index = item.id.split("-")
    family = next(family for family in problems.FAMILIES if family.name == name)
    space = problems._facts(family, split)
    return space[int(index) // len(problems.FAMILIES) % len(space)]


@pytest.mark.parametrize("family", problems.FAMILIES, ids=lambda family: family.name)
def test_splits_share_no_facts_in_any_order(family):
    keys = {
        split: {family.key(facts) for facts in problems._facts(family, split)}
        for split in problems.COUNTS
    }
    names = list(keys)
    for index, one in enumerate(names):
        assert keys[one]
        for other in names[index + 1 :]:
            assert not keys[one] & keys[other]
    assert sum(len(problems._facts(family, split)) for split in names) == len(family.space)


def test_equal_facts_of_the_two_kinds_are_in_the_same_split(splits):
    """The image of a vision problem must not give away the answer of a text problem."""
    solutions = {}
    for split, items in splits.items():
        for item in items:
            solutions.setdefault((item.id.split("-")[2], item.solution), set()).add(split)
    assert all(len(found) == 1 for found in solutions.values())


def test_out_of_distribution_problems_are_special_figures_and_the_others_are_not(splits):
    special = {
        "hole": lambda a, b, c: a == b,
        "sides": lambda a, b, c: a in (b, c) or b == c,
        "angles": lambda a, b: a == 90 or b == 90,
        "bars": lambda a, b, c: a == b,
        "line": lambda a, b, c: a > 20,
        "grid": lambda a, b, c: a == b,
    }
    for split, items in splits.items():
        for item in items:
            facts = [int(number) for number in re.findall(r"\d+", item.question)]
            if facts:  # of text-dominant problems, as stated
                assert special[item.id.split("-")[2]](*facts) == (split == "test_ood")


@pytest.mark.slow
def test_out_of_distribution_colours_are_unseen(splits):
    for split, items in splits.items():
        for item in items:
            colours = set(map(tuple, np.unique(pixels(item).reshape(-1, 3), axis=0).tolist()))
            coloured = {colour for colour in colours if len(set(colour)) > 1}
            expected = UNSEEN_COLOURS if split == "test_ood" else COLOURS
            assert coloured <= set(expected)
            assert len(coloured) == (0 if item.id.split("-")[1:3] == ["text", "grid"] else 1)


def test_every_worked_solution_is_right_and_ends_with_the_answer(splits):
    for items in splits.values():
        for item in items:
            *steps, box = item.solution.split("\n")
            assert len(steps) == 2
            for step in steps:
                expression, _, value = step.partition("=")
                assert evaluate(expression) == int(value) > 0
            assert steps[1].partition("=")[0].startswith(("180-", steps[0].rpartition("=")[2]))
            assert box == f"\\boxed{{{int(value)}}}"
            assert item.answer == value


def test_a_text_problem_states_the_numbers_that_its_solution_uses(splits):
    for items in splits.values():
        for item in items:
            stated = re.findall(r"\d+", item.question)
            if "-vision-" in item.id:
                assert not stated
            else:
                used = set(re.findall(r"\d+", item.solution))
                assert set(stated) <= used


@pytest.mark.parametrize("family", problems.FAMILIES, ids=lambda family: family.name)
def test_the_labelled_image_tells_all_facts_apart(family):
    facts = family.space[::7]
    made = {family.draw(each, True, Random(3), COLOURS[0]) for each in facts}
    assert len(made) == len(facts)


@pytest.mark.parametrize("family", problems.FAMILIES, ids=lambda family: family.name)
def test_the_image_without_labels_does_not_tell_the_facts(family):
    facts = family.space[::7]
    made = {family.draw(each, False, Random(3), COLOURS[0]) for each in facts}
    if family.name == "bars":
        assert len(made) == len(facts)  # the heights show; their scale does not
    else:
        known = {"line": lambda f: f[2], "grid": lambda f: f[:2]}.get(family.name, lambda f: None)
        assert len(made) == len({known(each) for each in facts})


def test_images_are_small_rgb_png_files(splits):
    for items in splits.values():
        for item in items:
            image = Image.open(io.BytesIO(item.images[0]))
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (SIZE, SIZE))


def test_mixed_styles_keep_the_answer_and_the_share():
    items = problems.examples("train", count=600)
    mixed = list(problems.in_mixed_styles(items, 0.6))
    direct = [item.solution == f"\\boxed{{{item.answer}}}" for item in mixed]
    assert 0.54 < np.mean(direct) < 0.66
    assert [item.solution for item, bare in zip(mixed, direct, strict=True) if not bare] == [
        item.solution for item, bare in zip(items, direct, strict=True) if not bare
    ]
    assert [(item.id, item.answer) for item in mixed] == [(i.id, i.answer) for i in items]
    assert list(problems.in_mixed_styles(items, 0.0)) == items


def test_names():
    assert problems.named("bundled:val/vision") == problems.examples("val", "vision")
    assert problems.named("bundled:train:7") == problems.examples("train", count=7)
    assert problems.named("bundled:test/text:5") == problems.examples("test", "text", 5)


@pytest.mark.parametrize(
    "name", ["train", "bundled:", "bundled:dev", "bundled:val/both", "bundled:val:0", "bundled:v/"]
)
def test_other_names_are_refused(name):
    with pytest.raises(InputError, match="expected"):
        problems.named(name)


# The tokenizer.


@pytest.mark.slow
def test_the_committed_tokenizer_is_what_the_builder_makes():
    for name, text in tiny_tokenizer.build().items():
        assert (ASSETS / name).read_text(encoding="utf-8") == text


def test_merges_of_a_hand_computed_text():
    # Pieces: "aab" three times, " b" twice. Pairs: aa 3, ab 3, "Ġb" 2; aa first, as a < b.
    texts = ["aab", "aab", "aab b b"]
    assert tiny_tokenizer.learn_merges(texts, 3) == [("a", "a"), ("aa", "b"), ("Ġ", "b")]
    with pytest.raises(ValueError, match="3 merges, but 4 are required"):
        tiny_tokenizer.learn_merges(texts, 4)


def test_special_tokens_are_the_last_ids_and_agree_with_the_config(tokenizer):
    config = json.loads((ASSETS / "config.json").read_text())
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tiny_tokenizer.SPECIAL_TOKENS}
    assert list(ids.values()) == list(range(504, 512))
    assert len(tokenizer) == config["text_config"]["vocab_size"] == 512
    assert tokenizer.pad_token_id == config["pad_token_id"] == ids["<|endoftext|>"]
    assert tokenizer.eos_token_id == config["eos_token_id"] == ids["<|im_end|>"]
    for key in ("vision_start", "vision_end"):
        assert config[f"{key}_token_id"] == ids[f"<|{key}|>"]
    for key, token in (("vision", "vision"), ("image", "image"), ("video", "video")):
        assert config[f"{key}_token_id"] == ids[f"<|{token}_pad|>"]
    generation = json.loads((ASSETS / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [ids["<|im_end|>"], ids["<|endoftext|>"]]


@pytest.mark.parametrize(
    "text", ["", "2*7=14\n\\boxed{14}", " a  b\t\n\n c ", "Größe 5 µm ≈ ½ ☃ 𝛑", "<|im_end|>x\r\n"]
)
def test_every_text_survives_the_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_each_digit_is_one_token(tokenizer):
    assert tokenizer.tokenize("1234567890") == list("1234567890")
    assert not [token for token in tokenizer.get_vocab() if re.search(r"\d.|.\d", token)]


def test_problems_stay_within_the_stated_lengths(tokenizer, splits):
    prompts, solutions = [], []
    for items in splits.values():
        for item in items:
            content = [{"type": "image"}, {"type": "text", "text": item.question}]
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            prompts.append(len(tokenizer.encode(text)) + SIZE**2 // 28**2 - 1)
            solutions.append(len(tokenizer.encode(item.solution)) + 1)
            assert tokenizer.decode(tokenizer.encode(item.solution)) == item.solution
    assert max(prompts) == MAX_PROMPT_TOKENS
    assert max(solutions) == MAX_SOLUTION_TOKENS


def test_the_chat_template_takes_text_and_parts_and_has_no_default_system_message(tokenizer):
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": "A"},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>system\nS<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Q<|im_end|>\n"
        "<|im_start|>assistant\nA<|im_end|>\n"
    )
    assert tokenizer.apply_chat_template(
        [{"role": "user", "content": "Q"}], tokenize=False, add_generation_prompt=True
    ) == ("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n")
