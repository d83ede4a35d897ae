# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back, and the chat template: the only file that uses `transformers`.

Serves step I (prompts) and step III (texts of responses). Does not know images: a rendered prompt
has one image token per image, and `Media.encode` repeats it.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rlvlm_jax.errors import InputError

# What a directory needs besides tokenizer_config.json. Without it, transformers would silently
# build a tokenizer with an empty vocabulary.
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_LONGEST_WAIT = 16  # within this many tokens their bytes must form whole characters
_TEMPLATE_FILES = ("tokenizer_config.json", "chat_template.jinja", "chat_template.json")


class Tokenizer:
    """A byte-pair tokenizer with its chat template. Safe to use from several threads.

    Attributes:
        directory: of the files.
        pad_id: fills masked positions; any token would do.
        stop_ids: ids that end a response, each once.
        end_id: the first of them: the tokenizer's own end token, if it has one, which ends a turn
            of the chat template.
    """

    def __init__(self, backend: Any, directory: Path):
        self.directory = directory
        self.stop_ids = _stop_ids(directory, backend.eos_token_id)
        self.end_id = self.stop_ids[0]
        self.pad_id = self.end_id if backend.pad_token_id is None else backend.pad_token_id
        self._chat = backend
        # The Rust object itself: the Python layer above it keeps settings between calls, so it is
        # not safe to use from several threads.
        self._fast = backend.backend_tokenizer
        self._template = backend.chat_template or _template_of_processor(directory)
        added = backend.added_tokens_decoder.values()
        special = sorted((t.content for t in added if t.special), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    @classmethod
    def load(cls, directory: str | Path) -> "Tokenizer":
        """Reads a tokenizer from a Hugging Face directory on disk.

        The chat template may be in tokenizer_config.json, chat_template.jinja or
        chat_template.json. The stop ids are those of tokenizer_config.json, generation_config.json
        and config.json together.

        Raises:
            InputError: a file is missing or unreadable, or no stop id is known.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise InputError(f"no tokenizer directory {directory}; check config.model.path")
        if not any(all((directory / n).is_file() for n in names) for names in _VOCABULARIES):
            raise InputError(
                f"{directory} has neither tokenizer.json nor vocab.json with merges.txt; "
                "copy the tokenizer files next to the weights"
            )
        # Hides its notice that PyTorch is missing.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        from transformers import AutoTokenizer  # takes seconds to import, so only here

        try:
            backend = AutoTokenizer.from_pretrained(
                str(directory), local_files_only=True, use_fast=True
            )
        except Exception as error:  # tokenizers raises bare Exception for a broken file
            raise InputError(f"the tokenizer in {directory} cannot be read: {error}") from error
        if not getattr(backend, "is_fast", False):
            raise InputError(f"{directory} has no tokenizer that the library `tokenizers` reads")
        return cls(backend, directory)

    def fingerprint(self) -> str:
        """Returns a digest of vocabulary, merges and chat template: equal if prompts are equal."""
        return hashlib.sha256(f"{self._fast.to_str()}{self._template}".encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`; special tokens in it become their ids."""
        return self._fast.encode(text, add_special_tokens=False).ids

    def encode_response(self, text: str) -> list[int]:
        """Returns the ids of a whole response: `text`, escaped, and the end token."""
        return [*self.encode(self.escape(text)), self.end_id]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Returns the text of `ids`; an id outside the vocabulary decodes to nothing."""
        return self._fast.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def decode_batch(self, rows: Iterable[Iterable[int]], skip_special: bool = True) -> list[str]:
        """Returns one text per list of ids."""
        rows = [[int(i) for i in row] for row in rows]
        return self._fast.decode_batch(rows, skip_special_tokens=skip_special)

    def token_id(self, text: str) -> int | None:
        """Returns the id of the token with this text, or None if there is none."""
        return self._fast.token_to_id(text)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Returns the text that each token adds; joined, they give the whole text.

        A character that spans several tokens belongs to the one that completes it.

        Args:
            ids: of a response; special tokens add nothing.
        """
        texts, start = [], 0
        for end in range(1, len(ids) + 1):
            (text,) = self.decode_batch([ids[start:end]])
            complete = not text.endswith("\ufffd") or end - start >= _LONGEST_WAIT
            texts.append(text if complete else "")
            if complete:
                start = end
        if start < len(ids):
            (texts[-1],) = self.decode_batch([ids[start:]])
        return texts

    def escape(self, text: str) -> str:
        """Returns `text` with a space inside each special token, which makes it ordinary text.

        So a question that quotes "<|im_end|>" does not end its turn, and "<|image_pad|>" in a
        question does not ask for a missing image: "< |im_end|>" reads the same.
        """
        return self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def render(self, messages: Sequence[dict[str, Any]]) -> str:
        """Applies the chat template and opens the assistant's turn.

        Args:
            messages: dicts with `role` and `content`, the latter a string or a list of parts
                {"type": "text", "text": …} and {"type": "image" or "image_url", …}. Texts are
                escaped (see `escape`).

        Returns:
            A text with one image token per image.

        Raises:
            InputError: there is no template, or it does not accept these messages.
        """
        if not self._template:
            raise InputError(
                f"{self.directory} has no chat template: none in {', '.join(_TEMPLATE_FILES)}; "
                "copy the model's own"
            )
        if isinstance(messages, str) or not all(isinstance(m, dict) for m in messages):
            raise InputError("messages must be a list of dicts with role and content")
        plain = [
            {**message, "content": self._plain_content(message.get("content"))}
            for message in messages
        ]
        try:
            return self._chat.apply_chat_template(
                plain, chat_template=self._template, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise InputError(
                f"the chat template of {self.directory} fails on these messages: {error}"
            ) from error

    def _plain_content(self, content: Any) -> Any:
        if isinstance(content, str):
            return self.escape(content)
        if not isinstance(content, list | tuple):
            raise InputError(
                f"a message's content is of type {type(content).__name__}; "
                "expected a string or a list of parts"
            )
        parts = [self._plain_part(part) for part in content]
        if all(part["type"] == "text" for part in parts):
            return "".join(part["text"] for part in parts)  # templates of text models want this
        return parts

    def _plain_part(self, part: Any) -> dict[str, str]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("image", "image_url"):
            return {"type": "image"}
        if kind == "text" and isinstance(part.get("text"), str):
            return {"type": "text", "text": self.escape(part["text"])}
        raise InputError(
            f'a part of a message has type {kind!r}; expected "text" with a string, "image" or '
            '"image_url"'
        )


def _read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file, or an empty one if there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; expected an object")
    return content


def _stop_ids(directory: Path, own: int | None) -> tuple[int, ...]:
    config = _read_json(directory / "config.json")
    text_config = config.get("text_config")
    ids = [] if own is None else [own]
    for name, group in (
        ("generation_config.json", _read_json(directory / "generation_config.json")),
        ("config.json", config),
        ("config.json text_config", text_config if isinstance(text_config, dict) else {}),
    ):
        eos = group.get("eos_token_id")
        for value in eos if isinstance(eos, list) else [eos]:
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise InputError(f"{directory}: eos_token_id of {name} is {eos!r}; expected ids")
            if value is not None:
                ids.append(value)
    if not ids:
        raise InputError(
            f"{directory} names no end token: set eos_token in tokenizer_config.json or "
            "eos_token_id in generation_config.json"
        )
    return tuple(dict.fromkeys(ids))


def _template_of_processor(directory: Path) -> str | None:
    """Returns the template from chat_template.json, the file of transformers 4's processors."""
    template = _read_json(directory / "chat_template.json").get("chat_template")
    return template if isinstance(template, str) else None
