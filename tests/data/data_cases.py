# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the tests of data share: a byte tokenizer, small images, the real problems."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from rlvlm_jax.errors import InputError
from rlvlm_jax.models.qwen2_vl.media import ImageSpec

SHARED = Path(__file__).parents[2] / "../shared"
SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
IMAGE_ID = 256 + SPECIALS.index("<|image_pad|>")
TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n"
    "{% if turn['content'] is string %}{{ turn['content'] }}{% else %}"
    "{% for part in turn['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_letters() -> list[str]:
    """The letters by which byte-level tokenizers write the bytes 0 to 255."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in plain else next(spare)) for byte in range(256)]


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def write_tokenizer(directory: Path, **config: object) -> Path:
    """Writes a tokenizer of 256 bytes and eight special tokens; ids 0 to 263."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    directory.mkdir(parents=True, exist_ok=True)
    write_json(
        directory / "tokenizer.json",
        {
            "version": "1.0",
            "added_tokens": [
                {"id": 256 + k, "content": token, "special": True, **flags}
                for k, token in enumerate(SPECIALS)
            ],
            "pre_tokenizer": {**byte_level, "use_regex": False},
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "vocab": {letter: byte for byte, letter in enumerate(byte_letters())},
                "merges": [],
            },
        },
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": TEMPLATE,
        **config,
    }
    settings = {key: value for key, value in settings.items() if value is not None}
    write_json(directory / "tokenizer_config.json", settings)
    return directory


def media_of(directory: Path) -> ImageSpec:
    """How the model of a directory takes images."""
    return ImageSpec.from_files({path.name: path.read_text() for path in directory.glob("*.json")})


def k12() -> Path:
    """The folder of 298 school problems; skips the test where it is absent."""
    folder = SHARED / "data/k12"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


def make_image(width: int = 28, height: int = 28, colour: str = "red") -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def save_image(path: Path, *args, **kwargs) -> Path:
    make_image(*args, **kwargs).save(path)
    return path


def as_processes(count, program):
    """Runs program(number, together) in `count` threads that stand for processes."""
    given, barrier = [None] * count, threading.Barrier(count, timeout=60)

    def run(number):
        def together(part):
            try:
                given[number] = part()
            except InputError as error:
                given[number] = error
            barrier.wait()
            everything = list(given)
            barrier.wait()
            for one in everything:
                if isinstance(one, InputError):
                    raise one
            return everything

        return program(number, together)

    with ThreadPoolExecutor(count) as threads:
        return [found.result() for found in [threads.submit(run, k) for k in range(count)]]
