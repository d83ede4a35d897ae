# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Lengths of prompts that are counted once: what is found again, and what never must be."""

from dataclasses import replace
from pathlib import Path

import pytest
from data_cases import as_processes, media_of
from PIL import Image

from rlvlm_jax.data.dataset import Reader
from rlvlm_jax.errors import InputError
from rlvlm_jax.models.qwen2_vl.media import ImageSpec
from tests.run_cases import write_problems, write_records


@pytest.fixture
def data(tmp_path):
    return write_problems(tmp_path / "data", count=6)


@pytest.fixture
def reader(tokenizer, model_dir, tmp_path):
    return Reader(tokenizer, media_of(model_dir), index=str(tmp_path / "index"))


@pytest.fixture
def counted(monkeypatch):
    """The ids of the examples that are counted rather than found."""
    ids, size = [], Reader.size

    def noted(self, example):
        ids.append(example.id)
        return size(self, example)

    monkeypatch.setattr(Reader, "size", noted)
    return ids


def sizes(reader, data):
    return [(e.id, e.tokens, e.patches) for e in reader.read(str(data))[0]]


def test_what_was_counted_is_found_again(reader, data, counted):
    first = sizes(reader, data)
    assert first == sizes(replace(reader, index=""), data)
    counted.clear()
    assert sizes(reader, data) == first
    assert counted == []


@pytest.mark.parametrize(
    "change",
    [
        {"instruction": "Answer."},
        {"system": "You are brief."},
        {"media": ImageSpec(max_pixels=40 * 784, min_pixels=8 * 784)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_prompt_or_pixel_limit_is_counted_anew(reader, data, counted, change):
    sizes(reader, data)
    counted.clear()
    other = replace(reader, **change)
    found = sizes(other, data)
    assert len(counted) == 6
    assert found == sizes(replace(other, index=""), data)


def test_a_changed_image_or_question_is_counted_anew(reader, data, counted):
    before = sizes(reader, data)
    Image.new("RGB", (300, 200)).save(data.parent / "2.png")
    lines = data.read_text().splitlines()
    lines[4] = lines[4].replace("What is", "What, please, is")
    write_records(data, lines)
    counted.clear()
    after = sizes(reader, data)
    assert sorted(counted) == ["p2", "p4"]
    assert [one == other for one, other in zip(before, after, strict=True)] == [
        *(True, True, False, True, False, True)
    ]


def test_an_image_that_is_gone_or_broken_is_still_refused(reader, data):
    sizes(reader, data)
    (data.parent / "1.png").unlink()
    (data.parent / "3.png").write_bytes(b"no image")
    lenient = replace(reader, on_bad_record="skip")
    _, report = lenient.read(str(data))
    assert report["dropped"] == {"missing_image": ["p1"], "unreadable_image": ["p3"]}


@pytest.mark.parametrize("content", ["", "no index", "{}", "a 1 2 3", "a b c"])
def test_a_damaged_index_is_made_anew(reader, data, counted, content, tmp_path, caplog):
    first = sizes(reader, data)
    (file,) = (tmp_path / "index").iterdir()
    whole = file.read_text()
    file.write_text(content)
    counted.clear()
    assert sizes(reader, data) == first
    assert len(counted) == 6
    assert file.read_text() == whole
    assert ("cannot be read" in caplog.text) == bool(content)


def test_an_index_that_cannot_be_written_is_said_and_harms_nothing(reader, data, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    blocked = replace(reader, index=str(tmp_path / "file" / "index"))
    assert sizes(blocked, data) == sizes(replace(reader, index=""), data)
    assert "config.cache" in caplog.text


def test_a_user_without_a_home_keeps_nothing(reader, data, monkeypatch, caplog):
    def nobody(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nobody)
    assert sizes(replace(reader, index="~/x"), data) == sizes(replace(reader, index=""), data)
    assert "config.cache=~/x" in caplog.text


def test_several_processes_count_their_part_and_keep_the_whole(reader, data, counted, tmp_path):
    expected = sizes(replace(reader, index=""), data)
    counted.clear()

    def program(number, together):
        return sizes(replace(reader, part=(number, 3), together=together), data)

    assert as_processes(3, program) == [expected] * 3
    assert sorted(counted) == sorted(name for name, *_ in expected)  # each once
    counted.clear()
    assert sizes(reader, data) == expected
    assert counted == []


def test_a_bad_record_of_another_process_is_refused_by_all(reader, data, tmp_path):
    (tmp_path / "data" / "4.png").write_text("no image")
    expected = pytest.raises(InputError, reader.read, str(data)).value

    def program(number, together):
        shared = replace(reader, part=(number, 3), together=together)
        return str(pytest.raises(InputError, shared.read, str(data)).value)

    assert as_processes(3, program) == [str(expected)] * 3
