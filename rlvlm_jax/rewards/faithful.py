# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
r"""The judges of two published projects, faults included, for faithful reruns of their recipes.

Both are written from descriptions of their behaviour. Each lists its known faults, and tests pin
them. To train a model, use the strict judge. Everything that calls math-verify may run for ever and
belongs in a worker.
"""

import re
from typing import Any

from rlvlm_jax.rewards.boxes import last_box
from rlvlm_jax.rewards.math import Verdict

# --------------------------------------------------------------------------------------------------
# MAYE
# --------------------------------------------------------------------------------------------------

_SENTENCE_END = re.compile(r"(?<!\d)[.!?](?!\d)")
_MAYE_BOXED_DIGITS = re.compile(r"\\boxed\{(\d+)(?:\^|$)")
_MAYE_SPELLINGS = (
    *(
        (spelling, r"\circ")
        for spelling in (
            r"\text{circ}",
            r"\text{\circ}",
            r"\text{degrees}",
            r"\text{degree}",
            r"\text{o}",
            r"\textdegree",
            r"\degree",
            r"\bigcirc",
            r"\bullet",
        )
    ),
    ("^°", r"^\circ"),
    ("°", r"^\circ"),
    ("√", r"\sqrt"),
    (r"\text{sqrt}", r"\sqrt"),
    (r"\,\text{cm}", "cm"),
)


def maye_fragment(text: str) -> str:
    r"""Keeps the last sentence with the word "boxed" and unifies degree and root signs in it.

    A sentence ends at `.`, `!` or `?` with no digit next to it. The result is empty if no sentence
    has the word.
    """
    sentences = [part for part in _SENTENCE_END.split(text) if "boxed" in part]
    fragment = sentences[-1].strip() if sentences else ""
    for spelling, replacement in _MAYE_SPELLINGS:
        fragment = fragment.replace(spelling, replacement)
    return fragment


def maye(fragment: str, reference: str) -> Verdict:
    r"""Judges two fragments as MAYE's code does: right if one of three tests passes.

    A. math-verify finds them equal, with answer and reference swapped.
    B. The texts are identical. (The original calls a longer comparison here, but on the raw
       fragment including the box, where little else can succeed.)
    C. Both have the same digits directly after `\boxed{`, followed by `^` or by the end.

    Its faults: a box cut off after its digits is right (C); two texts without any box are right
    (B); a full stop, `!` or `?` inside a box cuts it. The format of degrees is forgiven, rounding
    is not.

    Args:
        fragment: `maye_fragment` of the response.
        reference: `maye_fragment` of the solution.

    Source: MAYE (arXiv:2504.02587), behaviour of the released code.
    """
    correct = (
        _verify(_parse(fragment), _parse(reference))
        or fragment == reference
        or _same_boxed_digits(fragment, reference)
    )
    return Verdict(correct, "ok" if fragment or correct else "no_answer")


def _same_boxed_digits(fragment: str, reference: str) -> bool:
    matches = [_MAYE_BOXED_DIGITS.search(text) for text in (fragment, reference)]
    return all(matches) and matches[0].group(1) == matches[1].group(1)


# --------------------------------------------------------------------------------------------------
# MM-EUREKA
# --------------------------------------------------------------------------------------------------

_ANSWER_SPAN = re.compile(r"<answer>(.*?)</answer>")  # no line breaks inside, as in their code


def mm_eureka_content(text: str) -> str:
    """Returns the first one-line `<answer>` span, or else the text after the last `<answer>`."""
    span = _ANSWER_SPAN.search(text)
    return (span.group(1) if span else text.rpartition("<answer>")[2]).strip()


def mm_eureka_reference(solution: str) -> str:
    r"""Returns the bare answer: the content of the last `\boxed{}` if the solution has one."""
    boxed = last_box(solution)
    return (solution if boxed is None else boxed).strip()


def mm_eureka(content: str, reference: str) -> Verdict:
    """Judges as MM-EUREKA's instruct reward function does.

    Math-verify with string, LaTeX and expression extraction, arguments swapped. Failing that, for a
    reference a, b, c or d the answer is right if that letter occurs in the content and none of the
    other three does, even inside a word.

    Its faults: if the reference cannot be read, everything except an empty content is right.

    Args:
        content: `mm_eureka_content` of the response.
        reference: `mm_eureka_reference` of the solution.

    Source: MM-EUREKA (arXiv:2503.07365), behaviour of the released code.
    """
    if not content:
        return Verdict(False, "no_answer")
    parsed_reference = _parse(f"${reference}$", strings=True)
    if not parsed_reference:
        return Verdict(True, "ok")
    correct = _verify(_parse(content, strings=True), parsed_reference)
    letter = reference.lower()
    if not correct and letter in ("a", "b", "c", "d"):
        correct = {c for c in content.lower() if c in "abcd"} == {letter}
    return Verdict(correct, "ok")


# --------------------------------------------------------------------------------------------------
# Both
# --------------------------------------------------------------------------------------------------


def problem(solution: str, style: str) -> str | None:
    """Returns why a solution must not be judged in one of these styles, or None.

    For such a solution, the judges would reward every response, or every empty one.
    """
    if style == "maye":
        if last_box(solution) is None:
            return r"it has no complete \boxed{}"
        readable = bool(_parse(maye_fragment(solution)))
    else:
        if not mm_eureka_reference(solution):
            return "it is empty"
        readable = bool(_parse(f"${mm_eureka_reference(solution)}$", strings=True))
    return None if readable else "math-verify cannot read it"


def _parse(text: str, *, strings: bool = False) -> list[Any]:
    import math_verify

    config = [math_verify.LatexExtractionConfig(), math_verify.ExprExtractionConfig()]
    if strings:
        config.insert(0, math_verify.StringExtractionConfig())
    return math_verify.parse(text, extraction_config=config, parsing_timeout=None)


def _verify(answer: list[Any], reference: list[Any]) -> bool:
    import math_verify

    return math_verify.verify(answer, reference, timeout_seconds=None)  # swapped, as they do
