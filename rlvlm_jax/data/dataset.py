# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One problem, and its sources: files and tables in one of `formats`, the bundled generator.

Checks every record before the first step: its fields, the headers of its images, its solution and
the length of its prompt. Refuses a bad record with file, line and id, or drops and counts it. Also
turns a problem into a prompt. Does not decode images ahead of time and does not batch. Does not
know how solutions are judged: the caller passes a function that checks them.
"""

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from rlvlm_jax.data import formats, problems
from rlvlm_jax.data.example import Example
from rlvlm_jax.data.formats import BadRecord, StoredImage
from rlvlm_jax.data.images import ImageError, image_size, local_path
from rlvlm_jax.data.index import SizeIndex, key_of
from rlvlm_jax.data.prompts import Encoded, Media, check_placeholders, encode_prompt
from rlvlm_jax.data.tokenizer import Tokenizer
from rlvlm_jax.errors import InputError

MARKER = "<image>"  # stands for an image in a question
_HEADER_THREADS = 8  # mostly waiting for the disk
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reader:
    """Reads data sets for one model, and turns their problems into its prompts.

    Attributes:
        tokenizer: the model's tokenizer.
        media: of the model.
        instruction: added after every question, on a separate line; not added to chats.
        system: system message; "" leaves it to the chat template; not added to chats.
        max_prompt_tokens: longer prompts are dropped, never cut.
        max_solution_tokens: longer solutions are dropped; counts the end token; 0 = no limit.
        on_bad_record: "error" refuses the data set at the first bad record, "skip" drops and
            counts bad records.
        gold_check: solutions -> for each, None or the reason why it cannot serve as a reference.
        index: directory that stores prompt lengths for the next start; "" = none.
        part: (k, n): this process counts and checks every n-th record, starting at the k-th.
        together: runs a function in all n processes and returns all their results.
    """

    tokenizer: Tokenizer
    media: Media
    instruction: str = ""
    system: str = ""
    max_prompt_tokens: int = 2048
    max_solution_tokens: int = 0
    on_bad_record: str = "error"
    gold_check: Callable[[list[str]], list[str | None]] | None = None
    index: str = ""
    part: tuple[int, int] = (0, 1)
    together: Callable[[Callable[[], Any]], list[Any]] = lambda part: [part()]

    def read(
        self, name: str, key: str = "config.data.train", at_least: int = 1
    ) -> tuple[list[Example], dict[str, Any]]:
        """Reads and checks a whole data set.

        Args:
            name: a jsonl file, a parquet file, a directory or hub name for `datasets` (followed by
                ":SPLIT" if there are several splits), or "bundled:SPLIT".
            key: the configuration key that holds the name, for messages.
            at_least: fewer usable records are an error.

        Returns:
            (examples in file order, {"records": number read, "used": number returned,
            "dropped": {kind: [id or file:line, …]}}).

        Raises:
            InputError: the data set does not exist, on_bad_record="error" and a record is bad, or
                too few records are usable.
        """
        dropped: dict[str, list[str]] = {}
        total = 0

        def refuse(kind: str, where: str, record_id: str, problem: object) -> None:
            label = f"{where} (id {record_id})" if record_id else where
            if self.on_bad_record == "error":
                raise InputError(
                    f"{key}: {label}: {problem}; fix the record, or set "
                    "config.data.on_bad_record=skip to leave such records out"
                )
            dropped.setdefault(kind, []).append(record_id or where)

        examples: dict[str, Example] = {}
        for where, record in read_records(name, key):
            total += 1
            if isinstance(record, BadRecord):
                refuse(record.kind, where, record.name, record)
            elif record.id in examples:
                first = examples[record.id].source
                refuse("duplicate_id", where, record.id, f"the id is taken by {first}")
            else:
                examples[record.id] = record

        sized = []
        for example, size in zip(
            examples.values(), self._sizes(list(examples.values()), name), strict=True
        ):
            if isinstance(size, _Unreadable):
                refuse(size.kind, example.source, example.id, size.problem)
            else:
                sized.append(replace(example, tokens=size.tokens, patches=size.patches))

        check = self.gold_check or (lambda solutions: [None] * len(solutions))
        solutions = [example.solution for example in sized]
        usable = []
        for example, problem in zip(sized, self._split_work(solutions, check), strict=True):
            if problem is not None:
                refuse("unparsable_solution", example.source, example.id, problem)
            elif example.tokens > self.max_prompt_tokens:
                dropped.setdefault("prompt_too_long", []).append(example.id)
            elif self._solution_is_too_long(example):
                dropped.setdefault("solution_too_long", []).append(example.id)
            else:
                usable.append(example)

        if dropped:
            _LOG.warning("%s=%s: %s", key, name, _describe(dropped, total))
        if len(usable) < max(at_least, 1):
            raise InputError(
                f"{key}={name} has {len(usable)} usable records of {total}, but {max(at_least, 1)} "
                f"are needed; {_describe(dropped, total)}"
            )
        return usable, {"records": total, "used": len(usable), "dropped": dropped}

    def messages(self, example: Example) -> list[dict[str, Any]]:
        """Returns the chat that asks for a solution.

        The images replace the question's markers; without markers they come before its text.
        """
        if example.messages is not None:
            return list(example.messages)
        texts = [example.question]
        if example.images and MARKER in example.question:
            texts = example.question.split(MARKER)
        if self.instruction:
            texts[-1] += "\n" + self.instruction
        image = {"type": "image"}
        lead = [image] * (len(example.images) - (len(texts) - 1))
        content = [*lead, {"type": "text", "text": texts[0]}]
        for text in texts[1:]:
            content += [image, {"type": "text", "text": text}]
        content = [part for part in content if part.get("text") != ""]
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": content}]

    def text(self, example: Example) -> str:
        """Returns the rendered prompt, with one image token per image."""
        return self.tokenizer.render(self.messages(example))

    def size(self, example: Example) -> tuple[int, int]:
        """Returns (tokens, patches) of the prompt; reads only the image headers.

        Raises:
            ImageError: an image cannot be used.
            InputError: the chat template leaves images out.
        """
        counts = [self.media.count_tokens(*image_size(i)) for i in example.images]
        ids = self.tokenizer.encode(self.text(example))
        check_placeholders(ids, len(counts), self.tokenizer, self.media, _label(example))
        tokens = sum(counts)
        return len(ids) - len(counts) + tokens, tokens * self.media.patches_per_token

    def encode(self, example: Example) -> Encoded:
        """Decodes the images and returns the prompt as arrays.

        Raises:
            ImageError: an image cannot be used; the message names the record.
        """
        try:
            return encode_prompt(
                self.text(example), example.images, self.tokenizer, self.media, _label(example)
            )
        except ImageError as error:
            raise ImageError(error.kind, f"{_label(example)}: {error}") from error

    def _solution_is_too_long(self, example: Example) -> bool:
        limit = self.max_solution_tokens
        return bool(limit) and len(self.tokenizer.encode_response(example.solution)) > limit

    def _open_index(self, name: str) -> SizeIndex | None:
        if not self.index or name.startswith("bundled:"):
            return None
        try:
            directory = Path(self.index).expanduser()
        except RuntimeError as error:  # a user without a home
            _LOG.warning("config.cache=%s: %s; lengths are not stored", self.index, error)
            return None
        counted_by = f"{self.tokenizer.fingerprint()} {self.media.fingerprint()}"
        return SizeIndex(directory, name, counted_by)

    def _split_work(
        self, items: Sequence[Any], work: Callable[[list[Any]], Sequence[Any]]
    ) -> list[Any]:
        """Returns `work(items)`, computed by all processes, each for its share of the items."""
        number, count = self.part
        results: list[Any] = [None] * len(items)
        parts = self.together(lambda: list(work(list(items[number::count]))))
        for start, part in enumerate(parts):
            results[start::count] = part
        return results

    def _sizes(self, examples: list[Example], name: str) -> list["_Sized | _Unreadable"]:
        """Returns `_size` of each example, and stores it for the next start."""
        index = self._open_index(name)

        def sizes_of(part: list[Example]) -> list[_Sized | _Unreadable]:
            with ThreadPoolExecutor(_HEADER_THREADS) as threads:
                return list(threads.map(lambda example: self._size(example, index), part))

        sizes = self._split_work(examples, sizes_of)
        if index is not None:
            for size in sizes:
                if isinstance(size, _Sized) and size.key:
                    index.put(*size)
            index.save()
        return sizes

    def _size(self, example: Example, index: SizeIndex | None) -> "_Sized | _Unreadable":
        key = ""
        if index is not None:
            with contextlib.suppress(ImageError, OSError):  # `size` says what is wrong
                key = key_of(self.messages(example), example.images)
        size = index.get(key) if key else None
        if size is None:
            try:
                size = self.size(example)
            except ImageError as problem:
                return _Unreadable(problem.kind, str(problem))
        return _Sized(key, *size)


class _Sized(NamedTuple):
    """The length of a prompt, and its key in the index ("" for none)."""

    key: str
    tokens: int
    patches: int


class _Unreadable(NamedTuple):
    """What is wrong with an image."""

    kind: str
    problem: str


def _label(example: Example) -> str:
    return f"{example.source} (id {example.id})"


def _describe(dropped: dict[str, list[str]], total: int) -> str:
    """Returns the number of dropped records, with the first ids of each kind."""
    kinds = [
        f"{kind} {len(names)} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
        for kind, names in dropped.items()
    ]
    count = sum(len(names) for names in dropped.values())
    return f"{count} of {total} records dropped" + (f": {'; '.join(kinds)}" if kinds else "")


# ---- sources of records ---------------------------------------------------------------------


def read_records(name: str, key: str = "data") -> Iterator[tuple[str, Example | BadRecord]]:
    """Yields (file and line, problem or defect) for every record.

    Args:
        name: see `Reader.read`.
        key: the configuration key that holds the name, for messages.

    Raises:
        InputError: the data set does not exist.
    """
    if name.startswith("bundled:"):
        try:
            examples = problems.named(name)
        except InputError as error:
            raise InputError(f"{key}={name}: {error}") from error
        yield from ((example.source, example) for example in examples)
        return
    folder = Path(name) if Path(name).is_dir() else Path(name).parent
    for where, number, row in formats.format_of(name).rows(name, key):
        try:
            yield where, _parse(row, number, where, folder)
        except BadRecord as problem:
            yield where, problem


# ---- the same problem in two data sets -------------------------------------------------------


def overlap(
    train_examples: Sequence[Example], eval_examples: Sequence[Example]
) -> list[tuple[str, str]]:
    """Finds problems that occur in both data sets: the same question with the same images.

    Ignores white space and case of the question. Compares images by their bytes, and reads them
    only if the questions agree.

    Args:
        train_examples: the training set.
        eval_examples: an evaluation set.

    Returns:
        Pairs of ids (train, eval), in the order of `eval_examples`.
    """

    def text(example: Example) -> str:
        return " ".join(example.question.lower().split())

    by_text: dict[str, list[Example]] = {}
    for example in train_examples:
        by_text.setdefault(text(example), []).append(example)
    hashes: dict[int, list[str]] = {}

    def image_hashes(example: Example) -> list[str]:
        if id(example) not in hashes:
            hashes[id(example)] = [hashlib.sha256(_bytes_of(i)).hexdigest() for i in example.images]
        return hashes[id(example)]

    return [
        (candidate.id, example.id)
        for example in eval_examples
        for candidate in by_text.get(text(example), ())
        if len(candidate.images) == len(example.images)
        and image_hashes(candidate) == image_hashes(example)
    ]


def _bytes_of(image: Any) -> bytes:
    if isinstance(image, bytes):
        return image
    return Path(image).read_bytes() if isinstance(image, str | Path) else image.read()


# ---- parsing of records ---------------------------------------------------------------------


def _parse(row: Any, number: int, where: str, folder: Path) -> Example:
    """Turns one record into a problem.

    Args:
        row: from a format's function.
        number: of the line or row; serves as the id of a record without one.
        where: file and line.
        folder: base of relative image paths.

    Raises:
        BadRecord: something is missing or of the wrong type.
    """
    if isinstance(row, BadRecord):
        raise row
    if not isinstance(row, dict):
        raise BadRecord("not_an_object", f"the record is a {type(row).__name__}, not an object")
    name = row.get("id")
    name = str(number) if name is None else name
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise BadRecord("wrong_type", f"id is a {type(name).__name__}; expected a string")
    name = str(name)
    try:
        if row.get("message") is not None:
            return _parse_chat(row, name, where, folder)
        if row.get("conversations") is not None:
            row = _from_conversations(row)
        return _parse_question(row, name, where, folder)
    except BadRecord as problem:
        problem.name = name
        raise


def _parse_question(row: dict[str, Any], name: str, where: str, folder: Path) -> Example:
    question = _string(row, "question" if row.get("question") is not None else "problem")
    if not question.strip():
        raise BadRecord("missing_question", "question is missing or empty")
    sources = row.get("images")
    sources = row.get("image") if sources is None else sources
    sources = [] if sources is None else sources if isinstance(sources, list) else [sources]
    images = tuple(_image(source, folder) for source in sources)
    return Example(
        id=name,
        question=_strip_leading_marker(question, len(images)),
        answer=_string(row, "answer"),
        solution=_solution(row),
        images=images,
        kind=_string(row, "kind"),
        source=where,
    )


def _from_conversations(row: dict[str, Any]) -> dict[str, Any]:
    """Converts a record in VLM-R1's form, turns from "human" and "gpt", to question and answer."""
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadRecord("wrong_type", "conversations is not a list of turns")
    speakers = [_string(turn, "from") for turn in turns]
    if speakers != ["human", "gpt"] and (speakers != ["human"] or row.get("solution") is None):
        raise BadRecord(
            "wrong_type",
            f"conversations has turns from {', '.join(speakers) or 'nobody'}; expected human, gpt",
        )
    record = {**row, "question": _string(turns[0], "value")}
    if row.get("solution") is None:
        reply = _string(turns[1], "value")
        tagged = re.search(r"<answer>(.*?)</answer>", reply, re.DOTALL)
        record["answer"] = tagged[1].strip() if tagged else reply
    return record


def _parse_chat(row: dict[str, Any], name: str, where: str, folder: Path) -> Example:
    chat = row["message"]
    if isinstance(chat, str):
        try:
            chat = json.loads(chat)
        except (ValueError, RecursionError) as error:
            raise BadRecord("malformed_json", f"message is malformed JSON: {error}") from error
    if not isinstance(chat, list) or not chat:
        raise BadRecord("wrong_type", "message is not a list of chat turns")
    messages, images, texts = [], [], []
    for turn in chat:
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise BadRecord("wrong_type", "a turn of message is not an object with a role")
        content = turn.get("content")
        content = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(content, list):
            raise BadRecord("wrong_type", "a turn's content is neither a string nor a list")
        parts = []
        for part in content:
            image, text = _chat_part(part)
            if text is None:
                images.append(_image(image, folder))
                parts.append({"type": "image"})
            else:
                parts.append({"type": "text", "text": text})
                if turn["role"] == "user":
                    texts.append(text)
        messages.append({"role": turn["role"], "content": parts})
    if messages[-1]["role"] != "user":
        raise BadRecord("wrong_type", "the last turn of message is not the user's")
    if not "".join(texts).strip():
        raise BadRecord("missing_question", "message holds no text of the user")
    return Example(
        id=name,
        question="\n".join(texts),
        answer=_string(row, "answer"),
        solution=_solution(row),
        images=tuple(images),
        messages=tuple(messages),
        kind=_string(row, "kind"),
        source=where,
    )


def _chat_part(part: Any) -> tuple[Any, str | None]:
    """Returns (image, None) or (None, text) for a part of a turn."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return None, part["text"]
    if kind == "image":
        return part.get("image", part.get("path")), None
    if kind == "image_url":
        address = part.get("image_url")
        return (address.get("url") if isinstance(address, dict) else address), None
    raise BadRecord("wrong_type", f"a part of message has type {kind!r}; expected text or image")


def _string(row: dict[str, Any], field: str) -> str:
    """Returns a field as text: "" if it is absent, numbers as written."""
    value = row.get(field)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRecord("wrong_type", f"{field} is a {type(value).__name__}; expected a string")
    return str(value)


def _solution(row: dict[str, Any]) -> str:
    r"""Returns the solution; for a record without that field, its answer in a box."""
    solution = _string(row, "solution")
    if row.get("solution") is None:
        answer = _string(row, "answer").strip()
        if "\\boxed" in answer:
            solution = answer
        elif answer:
            bare = re.fullmatch(r"(\$\$?)([^$]*)\1", answer)
            solution = f"\\boxed{{{bare[2].strip() if bare else answer}}}"
    if not solution.strip():
        raise BadRecord("missing_solution", "solution is missing or empty")
    if "\\boxed" not in solution:
        raise BadRecord("no_box", "solution has no \\boxed{…} to judge by")
    return solution


def _image(image: Any, folder: Path) -> Any:
    """Returns the path of an image; `folder` is the base of a relative path."""
    if isinstance(image, StoredImage):
        return image
    if not isinstance(image, str) or not image:
        raise BadRecord("wrong_type", f"an image is a {type(image).__name__}; expected a path")
    try:
        return folder / local_path(image)
    except ImageError as problem:
        raise BadRecord(problem.kind, str(problem)) from problem


def _strip_leading_marker(question: str, images: int) -> str:
    """Returns the question without a single leading marker, which only says that images come first.

    Keeps the markers if there is one per image: they say where each image belongs.
    """
    markers = question.count(MARKER)
    if markers == 1 and images and question.lstrip().startswith(MARKER):
        return question.lstrip().removeprefix(MARKER).lstrip()
    if markers not in (0, images):
        raise BadRecord(
            "image_markers",
            f"question has {markers} {MARKER} markers, but there are {images} images",
        )
    return question
