# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One record of a data set; every format is read into it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Example:
    """One problem with its reference solution.

    Attributes:
        id: unique within its data set.
        question: the text of the problem; `<image>` inside it marks the place of an image.
        answer: the bare answer, for reading; may be empty.
        solution: the reference for judging responses; its answer is in a box.
        images: paths, encoded bytes, or objects whose `read()` gives encoded bytes.
        messages: a whole chat, if the record has one instead of a question.
        kind: the kind of problem within its data set, such as "vision"; may be empty.
        source: file and line, for messages.
        tokens: length of its prompt, computed from the image headers; 0 before `Reader`.
        patches: number of patches of all its images; 0 before `Reader`.
    """

    id: str
    question: str
    answer: str
    solution: str
    images: tuple[Any, ...] = ()
    messages: tuple[dict[str, Any], ...] | None = None
    kind: str = ""
    source: str = ""
    tokens: int = 0
    patches: int = 0
