# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One problem, and where problems come from: jsonl files, `datasets`, the bundled generator."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Example:
    """One problem with its reference solution."""

    id: str
    question: str
    answer: str
    solution: str
    images: tuple[Any, ...] = ()
    messages: tuple[dict[str, Any], ...] | None = None
    source: str = ""
    sizes: tuple[tuple[int, int], ...] = ()
