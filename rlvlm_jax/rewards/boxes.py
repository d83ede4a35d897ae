# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""Finds the answer in a response: the content of the last `\boxed{}` after any thinking.

Linear in the length of the text and without recursion, so it needs no deadline. `math` reads the
content.
"""

import itertools
import re

MANY_BOXES = 16
_BOX = re.compile(r"\\boxed(?![A-Za-z])\s*(\{|$)")
_THINK, _END_THINK = "<think>", "</think>"


def answer_box(response: str) -> str | None:
    r"""Finds the content of a response's last `\boxed{}`, ignoring the thinking.

    Reads only the text after the last `</think>`. A `<think>` without a `</think>` after it hides
    the rest: the response ended while thinking.

    Returns:
        The text between the braces; None if there is no box or the last one is cut off.
    """
    after_thinking = response.rpartition(_END_THINK)[2]
    return None if _THINK in after_thinking else last_box(after_thinking)


def last_box(text: str) -> str | None:
    r"""Finds the content of the last `\boxed{}`; None if there is none or it is cut off.

    A backslash escapes the next character, so `\{` and `\}` do not count as braces.
    """
    last = None
    for last in _BOX.finditer(text):  # noqa: B007 (only the last one matters)
        pass
    return None if last is None else _content(text, last)


def has_several_answers(text: str) -> bool:
    """Tells whether a text boxes different contents, as a guess at several answers would.

    Looks only at the first `MANY_BOXES` boxes.
    """
    boxes = itertools.islice(_BOX.finditer(text), MANY_BOXES)
    return len({content for box in boxes if (content := _content(text, box)) is not None}) > 1


def _content(text: str, box: re.Match[str]) -> str | None:
    """Returns the text between the braces of a box; None if they do not close."""
    if not box.group(1):
        return None
    start = box.end()
    depth = 1
    for token in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        if token.group() == "{":
            depth += 1
        elif token.group() == "}":
            depth -= 1
            if depth == 0:
                return text[start : start + token.start()]
    return None
