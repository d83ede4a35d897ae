# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Text and ids, stop ids of three files, chat templates of three files, literal special tokens."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from data_cases import (
    IMAGE_ID,
    SPECIALS,
    TEMPLATE,
    byte_letters,
    write_json,
    write_tokenizer,
)

from rlvlm_jax.data.tokenizer import Tokenizer
from rlvlm_jax.errors import InputError

END, STOP = 256, 258  # <|endoftext|>, <|im_end|>


def user(content):
    return [{"role": "user", "content": content}]


def test_encode_is_bytes_and_special_tokens(tokenizer):
    assert tokenizer.encode("ab") == [97, 98]
    assert tokenizer.encode("a<|image_pad|>b") == [97, IMAGE_ID, 98]
    assert tokenizer.encode("é") == [0xC3, 0xA9]


def test_decode_inverts_encode_and_drops_what_is_no_text(tokenizer):
    text = "∠ABC = 65°, \\frac{1}{2}\n三角形 🙂 x"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([97, STOP, 98]) == "ab"
    assert tokenizer.decode([97, STOP, 98], skip_special=False) == "a<|im_end|>b"
    assert tokenizer.decode([97, 264, 151_999, 98]) == "ab"
    assert tokenizer.decode_batch([[97], [], [98, 99]]) == ["a", "", "bc"]


@pytest.mark.parametrize("text", ["", "a b", "半径是5，½→🎉", "🎉🎉🎉🎉🎉🎉", "\ufffd end"])
def test_pieces_hold_whole_characters(tokenizer, text):
    ids = tokenizer.encode(text)
    pieces = tokenizer.pieces([*ids, STOP])
    assert len(pieces) == len(ids) + 1
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_pieces_of_half_a_character(tokenizer):
    (half,) = tokenizer.encode("½")[:1]
    assert tokenizer.pieces([97, half]) == ["a", "\ufffd"]


def test_spaces_before_punctuation_survive(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a , b .")) == "a , b ."


def test_token_id(tokenizer):
    assert [tokenizer.token_id(name) for name in SPECIALS] == list(range(256, 264))
    assert tokenizer.token_id("<|no_such_token|>") is None


def test_render_puts_images_in_order(tokenizer):
    content = [
        {"type": "image", "image": "a.png"},
        {"type": "text", "text": "Look."},
        {"type": "image_url", "image_url": {"url": "file:///b.png"}},
    ]
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    expected = f"<|im_start|>user\n{image}Look.{image}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.render(user(content)) == expected


def test_text_parts_alone_are_the_same_as_a_string(tokenizer):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert tokenizer.render(user(parts)) == tokenizer.render(user("ab"))


@pytest.mark.parametrize("special", SPECIALS)
def test_no_special_token_comes_from_a_users_text(tokenizer, special):
    quoted = f"What is {special}{special} or <{special}>?"
    for content in (quoted, [{"type": "image"}, {"type": "text", "text": quoted}]):
        ids = tokenizer.encode(tokenizer.render(user(content)))
        plain = "x" if isinstance(content, str) else [content[0], {"type": "text", "text": "x"}]
        reference = tokenizer.encode(tokenizer.render(user(plain)))
        assert [i for i in ids if i >= 256] == [i for i in reference if i >= 256]
        assert special.replace("<", "< ") in tokenizer.decode(ids)


def test_escape_leaves_other_text_alone(tokenizer):
    text = "if a <| b |> c then <image> |im_end| < |im_end|>"
    assert tokenizer.escape(text) == text


@pytest.mark.parametrize("part", [{"type": "video"}, {"text": "x"}, "x", {"type": "text"}])
def test_unknown_part_is_refused(tokenizer, part):
    with pytest.raises(InputError, match="part of a message"):
        tokenizer.render(user([part]))


@pytest.mark.parametrize("content", [None, 3])
def test_content_of_another_type_is_refused(tokenizer, content):
    with pytest.raises(InputError, match="content is of type"):
        tokenizer.render(user(content))


@pytest.mark.parametrize("place", ["chat_template.jinja", "chat_template.json"])
def test_template_beside_tokenizer_config(tmp_path, tokenizer, place):
    write_tokenizer(tmp_path, chat_template=None)
    text = json.dumps({"chat_template": TEMPLATE}) if place.endswith("json") else TEMPLATE
    (tmp_path / place).write_text(text, encoding="utf-8")
    assert Tokenizer.load(tmp_path).render(user("hi")) == tokenizer.render(user("hi"))


def test_no_template_is_refused_when_one_is_needed(tmp_path):
    plain = Tokenizer.load(write_tokenizer(tmp_path, chat_template=None))
    assert plain.encode("a") == [97]
    with pytest.raises(InputError, match="no chat template"):
        plain.render(user("hi"))


def test_failing_template_is_refused(tmp_path):
    broken = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match="roles must alternate"):
        Tokenizer.load(write_tokenizer(tmp_path, chat_template=broken)).render(user("hi"))


@pytest.mark.parametrize(
    ("own", "generation", "config", "expected"),
    [
        ("<|im_end|>", None, None, (STOP,)),
        ("<|im_end|>", {"eos_token_id": [STOP, END]}, None, (STOP, END)),
        (None, {"eos_token_id": END}, {"eos_token_id": STOP}, (END, STOP)),
        (None, None, {"text_config": {"eos_token_id": [7]}}, (7,)),
        ("<|im_end|>", {"eos_token_id": None}, {"eos_token_id": END}, (STOP, END)),
    ],
)
def test_stop_ids_are_the_union_of_three_files(tmp_path, own, generation, config, expected):
    write_tokenizer(tmp_path, eos_token=own)
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            content |= {"model_type": "qwen2_vl"} if name == "config.json" else {}
            write_json(tmp_path / name, content)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.stop_ids == expected
    assert loaded.end_id == expected[0]


def test_pad_id(tmp_path, tokenizer):
    assert tokenizer.pad_id == END
    assert Tokenizer.load(write_tokenizer(tmp_path, pad_token=None)).pad_id == STOP


def test_no_stop_id_at_all_is_refused(tmp_path):
    with pytest.raises(InputError, match="no end token"):
        Tokenizer.load(write_tokenizer(tmp_path, eos_token=None))


@pytest.mark.parametrize("value", ["<|im_end|>", [True], 1.5])
def test_stop_id_of_another_type_is_refused(tmp_path, value):
    write_tokenizer(tmp_path)
    write_json(tmp_path / "generation_config.json", {"eos_token_id": value})
    with pytest.raises(InputError, match="eos_token_id"):
        Tokenizer.load(tmp_path)


def test_vocabulary_and_merges_in_two_files(tmp_path, tokenizer):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = {str(256 + k): {"content": t, "special": True, **flags} for k, t in enumerate(SPECIALS)}
    write_tokenizer(tmp_path, tokenizer_class="Qwen2Tokenizer", added_tokens_decoder=added)
    (tmp_path / "tokenizer.json").unlink()
    write_json(tmp_path / "vocab.json", {letter: b for b, letter in enumerate(byte_letters())})
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    text = "Find x.<|im_end|>\n<|image_pad|>é"
    assert Tokenizer.load(tmp_path).encode(text) == tokenizer.encode(text)


def test_missing_directory_and_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no tokenizer directory"):
        Tokenizer.load(tmp_path / "nowhere")
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()  # transformers alone would go on with no vocabulary
    with pytest.raises(InputError, match="neither tokenizer.json nor vocab.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", '{"model": 3}'])
def test_broken_tokenizer_file_is_refused(tmp_path, text):
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read"):
        Tokenizer.load(tmp_path)


def test_broken_generation_config_is_refused(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="not valid JSON"):
        Tokenizer.load(tmp_path)


def test_threads_share_one_tokenizer(tokenizer):
    texts = [f"{n} <|image_pad|> " * 50 for n in range(64)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(tokenizer.encode, texts)) == [tokenizer.encode(t) for t in texts]


def test_real_tokenizer(qwen_dir):
    real = Tokenizer.load(qwen_dir)  # has no generation_config.json
    assert real.encode("Hello world\n") == [9707, 1879, 198]
    assert (real.stop_ids, real.pad_id) == ((151645,), 151643)
    content = [{"type": "image"}, {"type": "text", "text": "Find <|image_pad|> x."}]
    ids = real.encode(real.render(user(content)))
    assert ids[:9] == [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13]
    assert ids.count(151655) == 1
    assert real.decode([9707, 151_665, 152_063, 151645]) == "Hello"
