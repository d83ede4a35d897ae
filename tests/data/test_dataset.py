# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Records of every kind of file, good and bad, and the prompts they become."""

import csv
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from data_cases import IMAGE_ID, k12, make_image, media_of, save_image, write_tokenizer
from PIL import Image

from rlvlm_jax.data import formats
from rlvlm_jax.data.dataset import Reader, overlap
from rlvlm_jax.data.images import ImageError
from rlvlm_jax.data.tokenizer import Tokenizer
from rlvlm_jax.errors import InputError

ONE = "<|vision_start|><|image_pad|><|vision_end|>"
GOOD = {
    "id": "g",
    "question": "<image>\nFind x.",
    "answer": "3",
    "solution": "So \\boxed{3}.",
    "image": "a.png",
}


def write_jsonl(path, *records):
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return str(path)


@pytest.fixture
def folder(tmp_path):
    save_image(tmp_path / "a.png", 56, 28)
    save_image(tmp_path / "b.png", 28, 28)
    save_image(tmp_path / "long.png", 402, 2)
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    return tmp_path


@pytest.fixture
def reader(tokenizer, model_dir):
    return Reader(tokenizer, media_of(model_dir), on_bad_record="skip")


def strict(reader, **changes):
    return replace(reader, on_bad_record="error", **changes)


# ---- a new format ---------------------------------------------------------------------------


def test_a_format_is_a_function_and_a_row(folder, reader, monkeypatch):
    def csv_rows(name, key):
        with open(name, encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), start=2):
                yield f"{name}:{number}", number, row

    monkeypatch.setitem(formats.FORMATS, "csv", formats.Format((".csv",), csv_rows))
    name = str(folder / "d.csv")
    with open(name, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, GOOD)
        writer.writeheader()
        writer.writerows([GOOD, GOOD | {"id": "h", "question": ""}])
    (example,), report = reader.read(name)
    assert (example.id, example.question, example.images) == ("g", "Find x.", (folder / "a.png",))
    assert report["dropped"] == {"missing_question": ["h"]}
    with pytest.raises(InputError, match=rf"{name}:3 \(id h\): question is missing or empty"):
        strict(reader).read(name)


# ---- good records ---------------------------------------------------------------------------


def test_maye_fields(folder, reader):
    name = write_jsonl(folder / "d.jsonl", GOOD)
    (example,), report = strict(reader).read(name)
    assert (example.id, example.question, example.answer) == ("g", "Find x.", "3")
    assert example.solution == "So \\boxed{3}."
    assert example.images == (folder / "a.png",)
    assert example.source == f"{name}:1"
    assert report == {"records": 1, "used": 1, "dropped": {}}


@pytest.mark.parametrize(
    ("turns", "more", "solution"),
    [
        (["<image>Find x.", "<answer> 3 </answer>"], {}, "\\boxed{3}"),
        (["<image>Find x.", "3"], {}, "\\boxed{3}"),
        (["<image>Find x.", "It is \\boxed{3}."], {}, "It is \\boxed{3}."),
        (["<image>Find x."], {"solution": "\\boxed{4}"}, "\\boxed{4}"),
    ],
)
def test_conversations_of_two_turns(folder, reader, turns, more, solution):
    speakers = ("human", "gpt")
    told = [{"from": who, "value": text} for who, text in zip(speakers, turns, strict=False)]
    row = {"id": 7, "image": "a.png", "conversations": told, **more}
    (example,), _ = strict(reader).read(write_jsonl(folder / "d.jsonl", row))
    assert (example.id, example.question, example.solution) == ("7", "Find x.", solution)
    assert example.images == (folder / "a.png",)


@pytest.mark.parametrize(
    "conversations",
    ["x", [1], [], [{"from": "human", "value": "a"}], [{"from": "gpt", "value": "a"}] * 2],
)
def test_other_conversations_are_refused(folder, reader, conversations):
    row = {"conversations": conversations}
    with pytest.raises(InputError, match="conversations"):
        strict(reader).read(write_jsonl(folder / "d.jsonl", row))


def test_problems_that_two_sets_share(folder, reader):
    (folder / "same.png").write_bytes((folder / "a.png").read_bytes())
    bare = {**GOOD, "id": "text", "question": "Find x.", "image": None}
    ours = write_jsonl(folder / "ours.jsonl", GOOD, bare)
    theirs = write_jsonl(
        folder / "theirs.jsonl",
        {**GOOD, "id": "copy", "question": "<image> find  X.", "image": "same.png"},
        {**GOOD, "id": "other image", "image": "b.png"},
        {**GOOD, "id": "other question", "question": "<image>Find y."},
        {**bare, "id": "no image"},
    )
    sets = [strict(reader).read(name)[0] for name in (ours, theirs)]
    assert overlap(*sets) == [("g", "copy"), ("text", "no image")]


def test_prompt_is_images_question_instruction(folder, reader):
    reader = strict(reader, instruction="Answer in \\boxed{}.", system="Be brief.")
    (example,), _ = reader.read(write_jsonl(folder / "d.jsonl", GOOD))
    assert reader.text(example) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\n{ONE}Find x.\nAnswer in \\boxed{{}}.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    without = strict(reader, instruction="", system="").text(example)
    assert without == f"<|im_start|>user\n{ONE}Find x.<|im_end|>\n<|im_start|>assistant\n"


def test_size_from_headers_is_the_size_of_the_encoded_prompt(folder, reader):
    records = [
        GOOD,
        GOOD | {"id": "two", "image": None, "images": ["a.png", "b.png"]},
        GOOD | {"id": "none", "image": None, "question": "What is 1 + 1?"},
    ]
    examples, _ = strict(reader).read(write_jsonl(folder / "d.jsonl", *records))
    assert [example.patches for example in examples] == [8, 12, 0]
    for example in examples:
        encoded = reader.encode(example)
        assert (example.tokens, example.patches) == (len(encoded.tokens), encoded.patches)


@pytest.mark.parametrize(
    ("question", "images", "expected"),
    [
        ("<image>Find x.", ["a.png"], f"{ONE}Find x."),
        ("Find x.", ["a.png"], f"{ONE}Find x."),
        (" <image>\n Find x.", "a.png", f"{ONE}Find x."),
        ("Find x.", ["a.png", "b.png"], f"{ONE}{ONE}Find x."),
        ("<image>Find x.", ["a.png", "b.png"], f"{ONE}{ONE}Find x."),
        ("See <image> and find x.", ["a.png"], f"See {ONE} and find x."),
        ("<image>1 <image>2", ["a.png", "b.png"], f"{ONE}1 {ONE}2"),
        ("Find x.", None, "Find x."),
        ("Find <|image_pad|>.", None, "Find < |image_pad|>."),
    ],
)
def test_where_images_stand(folder, reader, question, images, expected):
    record = GOOD | {"question": question, "image": images}
    (example,), _ = strict(reader).read(write_jsonl(folder / "d.jsonl", record))
    text = reader.text(example)
    assert text == f"<|im_start|>user\n{expected}<|im_end|>\n<|im_start|>assistant\n"
    num_images = sum(token == IMAGE_ID for token in reader.tokenizer.encode(text))
    assert num_images == len(example.images)


def test_ids_default_to_line_numbers_and_numbers_are_text(folder, reader):
    bare = {"question": "1 + 1", "answer": 2, "solution": "\\boxed{2}"}
    name = write_jsonl(folder / "d.jsonl", bare, b"", bare | {"id": 77})
    examples, _ = strict(reader).read(name)
    assert [example.id for example in examples] == ["1", "77"]
    assert examples[0].answer == "2"
    assert examples[1].source.endswith(":3")


@pytest.mark.parametrize(
    ("answer", "solution"),
    [
        ("3", "\\boxed{3}"),
        ("$$3$$", "\\boxed{3}"),
        ("$3$", "\\boxed{3}"),
        ("$1$ and $2$", "\\boxed{$1$ and $2$}"),
        ("so \\boxed{3}", "so \\boxed{3}"),
        (0.5, "\\boxed{0.5}"),
    ],
)
def test_without_solution_the_answer_is_boxed(folder, reader, answer, solution):
    record = {"problem": "1 + 1", "answer": answer}
    (example,), _ = strict(reader).read(write_jsonl(folder / "d.jsonl", record))
    assert (example.question, example.solution) == ("1 + 1", solution)


def chat(folder, **changes):
    content = [
        {"type": "image", "image": f"file://{folder}/a.png"},
        {"type": "text", "text": "Find y."},
    ]
    turns = [{"role": "system", "content": "Solve."}, {"role": "user", "content": content}]
    return {"id": "m", "message": json.dumps(turns), "answer": "$4$"} | changes


def test_chat_records(folder, reader):
    reader = strict(reader, instruction="Not for chats.", system="Nor this.")
    (example,), _ = reader.read(write_jsonl(folder / "d.jsonl", chat(folder)))
    assert (example.question, example.solution) == ("Find y.", "\\boxed{4}")
    assert reader.text(example) == (
        "<|im_start|>system\nSolve.<|im_end|>\n"
        f"<|im_start|>user\n{ONE}Find y.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert reader.encode(example).patches == example.patches == 8


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.png"},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image_url", "image_url": "a.png"},
    ],
)
def test_chat_as_a_list_with_relative_paths(folder, reader, part):
    turns = [{"role": "user", "content": [{"type": "text", "text": "Find y."}, part]}]
    name = write_jsonl(folder / "d.jsonl", chat(folder, message=turns))
    (example,), _ = strict(reader).read(name)
    assert example.images == (folder / "a.png",)
    assert f"Find y.{ONE}" in reader.text(example)


def test_bundled_problems(reader):
    examples, report = strict(reader).read("bundled:test/vision")
    assert report["used"] == len(examples) > 10
    assert all(len(example.images) == 1 for example in examples)
    assert example_text_is_in_prompt(reader, examples)


def example_text_is_in_prompt(reader, examples):
    return all(example.question in reader.text(example) for example in examples)


def test_byte_order_mark_and_other_languages(folder, reader):
    record = GOOD | {"question": "求三角形的面积。"}
    line = b"\xef\xbb\xbf" + json.dumps(record, ensure_ascii=False).encode()
    (example,), _ = strict(reader).read(write_jsonl(folder / "d.jsonl", line))
    assert example.question == "求三角形的面积。"


# ---- bad records ----------------------------------------------------------------------------

BAD = {
    "malformed_json": [b'{"id": "bad"', b"not json", b"[" * 100_000],
    "not_an_object": [b"[1, 2]", b'"text"', b"3"],
    "not_utf8": [b'{"id": "bad", "question": "\xff"}'],
    "missing_question": [
        {"question": ""},
        {"question": None},
        {"question": " \n"},
        {"message": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]},
    ],
    "missing_solution": [
        {"solution": ""},
        {"solution": " "},
        {"solution": None, "answer": None},
        {"solution": None, "answer": ""},
    ],
    "no_box": [{"solution": "It is 3."}],
    "wrong_type": [
        {"question": ["a"]},
        {"solution": {"a": 1}},
        {"solution": True},
        {"answer": ["3"]},
        {"id": {"a": 1}},
        {"id": True},
        {"image": 3},
        {"image": ["a.png", None]},
        {"image": {"path": "a.png"}},
        {"message": []},
        {"message": {"role": "user"}},
        {"message": ["hi"]},
        {"message": [{"role": "user"}]},
        {"message": [{"role": "user", "content": [{"type": "video", "video": "a"}]}]},
        {"message": [{"role": "user", "content": [{"type": "image"}]}]},
        {"message": [{"role": "assistant", "content": "x"}]},
    ],
    "image_markers": [
        {"question": "<image><image>Find x."},
        {"question": "<image>Find x.", "image": None},
        {"question": "Find <image> x.", "image": ["a.png", "b.png"]},
    ],
    "missing_image": [
        {"image": "nowhere.png"},
        {"image": "https://example.org/a.png"},
        {"images": ["a.png", "nowhere.png"]},
    ],
    "unreadable_image": [{"image": "text.png"}],
    "image_too_long": [{"image": "long.png"}],
    "duplicate_id": [{"id": "g"}],
    "unparsable_solution": [{"solution": "\\boxed{?}"}],
}
CASES = [(kind, case) for kind, cases in BAD.items() for case in cases]


def check_golds(solutions):
    return ["nothing can be parsed" if "?" in solution else None for solution in solutions]


def bad_line(case):
    return case if isinstance(case, bytes) else GOOD | {"id": "bad"} | case


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_bad_record_stops_the_run_with_file_line_and_id(folder, reader, kind, case):
    name = write_jsonl(folder / "d.jsonl", GOOD, bad_line(case))
    with pytest.raises(InputError) as caught:
        strict(reader, gold_check=check_golds).read(name, "config.data.val")
    message = str(caught.value)
    assert message.startswith(f"config.data.val: {name}:2")
    assert "config.data.on_bad_record=skip" in message
    assert "\n" not in message
    if not isinstance(case, bytes) and "id" not in case:
        assert "(id bad)" in message


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_bad_record_is_dropped_and_counted_by_kind(folder, reader, kind, case, caplog):
    name = write_jsonl(folder / "d.jsonl", GOOD, bad_line(case))
    caplog.set_level(logging.WARNING)
    examples, report = replace(reader, gold_check=check_golds).read(name)
    assert [example.id for example in examples] == ["g"]
    (label,) = report["dropped"].pop(kind)
    assert label in ("bad", "g", f"{name}:2")
    assert report == {"records": 2, "used": 1, "dropped": {}}
    assert f"1 of 2 records dropped: {kind} 1" in caplog.text


def test_too_few_records_left(folder, reader):
    name = write_jsonl(folder / "d.jsonl", GOOD, b"{", b"{")
    assert len(reader.read(name, at_least=1)[0]) == 1
    with pytest.raises(InputError, match=r"1 usable records of 3, but 2 are needed; 2 of 3 rec"):
        reader.read(name, at_least=2)


def test_empty_and_missing_files(folder, reader):
    with pytest.raises(InputError, match="0 usable records of 0"):
        reader.read(write_jsonl(folder / "d.jsonl"))
    with pytest.raises(InputError, match=r"config.data.train=.*e\.jsonl: there is no such file"):
        reader.read(str(folder / "e.jsonl"))
    with pytest.raises(InputError, match="nonsense"):
        reader.read("bundled:nonsense")


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_long_prompts_are_dropped_never_cut(folder, reader, policy):
    long = GOOD | {"id": "long", "question": "x" * 100}
    name = write_jsonl(folder / "d.jsonl", GOOD, long)
    (short, full), _ = reader.read(name)
    limited = replace(reader, on_bad_record=policy, max_prompt_tokens=full.tokens - 1)
    examples, report = limited.read(name)
    assert examples == [short]
    assert report["dropped"] == {"prompt_too_long": ["long"]}
    assert len(replace(limited, max_prompt_tokens=full.tokens).read(name)[0]) == 2


def test_template_without_images_is_named(folder, reader, tmp_path):
    blind = (
        "{% for m in messages %}{{ m['content'] if m['content'] is string else '' }}{% endfor %}"
    )
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path / "model", chat_template=blind))
    name = write_jsonl(folder / "d.jsonl", GOOD)
    with pytest.raises(InputError, match=r"d.jsonl:1 \(id g\): 1 images, but 0 <.image_pad"):
        replace(reader, tokenizer=tokenizer).read(name)


def test_broken_body_is_found_when_encoding(folder, reader):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(folder / "cut.png")
    whole = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    name = write_jsonl(folder / "d.jsonl", GOOD | {"image": "cut.png"})
    (example,), _ = strict(reader).read(name)
    with pytest.raises(ImageError, match=r"d.jsonl:1 \(id g\): image .*cut.png cannot be decoded"):
        reader.encode(example)


# ---- the library `datasets` -----------------------------------------------------------------


@pytest.fixture
def table(folder):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = {
        "problem": ["<image>Find x.", "<image><image>Find y.", "Find z."],
        "answer": ["1", "2", "3"],
        "images": [[make_image(56, 28)], [make_image(28, 28), make_image(28, 56, "blue")], []],
    }
    features = {
        "problem": datasets.Value("string"),
        "answer": datasets.Value("string"),
        "images": datasets.List(datasets.Image()),
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def check_table(reader, name):
    examples, _ = strict(reader).read(name)
    assert [example.id for example in examples] == ["0", "1", "2"]
    assert [example.solution for example in examples] == [f"\\boxed{{{k}}}" for k in "123"]
    assert [example.patches for example in examples] == [8, 12, 0]
    blue = reader.encode(examples[1]).media.pixels[4:].reshape(8, 3, 14 * 14)
    assert (blue == np.array([0, 0, 255])[:, None]).all()
    return examples


def test_saved_table(folder, reader, table):
    table.save_to_disk(folder / "saved")
    first = check_table(reader, str(folder / "saved"))[0]
    assert str(first.images[0]) == f"{folder / 'saved'}:0:images[0]"
    assert not any(isinstance(value, bytes) for value in vars(first.images[0]).values())


def test_parquet_file(folder, reader, table, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
    table.to_parquet(str(folder / "t.parquet"))
    check_table(reader, str(folder / "t.parquet"))


def test_saved_splits(folder, reader, table):
    from datasets import DatasetDict

    DatasetDict(train=table, test=table.select([0])).save_to_disk(folder / "saved")
    name = str(folder / "saved")
    assert len(reader.read(name)[0]) == 3
    assert len(reader.read(f"{name}:train")[0]) == 3
    assert len(reader.read(f"{name}:test")[0]) == 1
    with pytest.raises(InputError, match=r"no split 'val'.*\['test', 'train'\]"):
        reader.read(f"{name}:val")


def test_one_image_a_row_and_paths(folder, reader):
    datasets = pytest.importorskip("datasets")
    rows = {
        "id": ["a", "b"],
        "question": ["Q", "Q"],
        "solution": ["\\boxed{1}"] * 2,
        "image": [str(folder / "a.png"), str(folder / "b.png")],
    }
    paths = datasets.Dataset.from_dict(rows)
    paths.save_to_disk(folder / "paths")
    images = paths.cast_column("image", datasets.Image())
    images.save_to_disk(folder / "images")
    for name in ("paths", "images"):
        examples, _ = strict(reader).read(str(folder / name))
        assert [example.patches for example in examples] == [8, 4]
        assert [reader.encode(example).patches for example in examples] == [8, 4]


def test_bad_rows_of_a_table(folder, reader):
    datasets = pytest.importorskip("datasets")
    cells = [{"bytes": b"no image", "path": None}, {"bytes": None, "path": "nowhere.png"}, None]
    rows = {"question": ["Q"] * 3, "answer": ["1"] * 3, "image": cells}
    table = datasets.Dataset.from_dict(rows)
    table.save_to_disk(folder / "saved")
    examples, report = reader.read(str(folder / "saved"))
    assert [example.images for example in examples] == [()]
    assert report["dropped"] == {"unreadable_image": ["0"], "missing_image": ["1"]}


@pytest.mark.parametrize("name", ["folder-without-data", "not a name: at all"])
def test_what_datasets_cannot_open(tmp_path, reader, name, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "folder-without-data").mkdir()
    with pytest.raises(InputError, match="neither a jsonl file nor a data set"):
        reader.read(str(tmp_path / name))


# ---- real problems --------------------------------------------------------------------------


def test_real_problems_with_the_real_tokenizer(qwen_dir):
    reader = Reader(Tokenizer.load(qwen_dir), media_of(qwen_dir))
    examples, report = replace(reader, max_prompt_tokens=4096).read(str(k12() / "k12.jsonl"))
    assert report == {"records": 298, "used": 298, "dropped": {}}
    counts = [example.patches // 4 for example in examples]
    assert (min(counts), int(np.median(counts)), max(counts)) == (4, 35, 3302)
    assert example_text_is_in_prompt(reader, examples)
    limited, report = replace(reader, max_prompt_tokens=1024).read(str(k12() / "k12.jsonl"))
    too_long = {example.id for example in examples if example.tokens > 1024}
    assert set(report["dropped"]["prompt_too_long"]) == too_long
    assert len(limited) == 298 - len(too_long) < 298
