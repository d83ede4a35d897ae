# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A rollout as the host sees it: texts and lengths."""

from typing import Any, NamedTuple

import jax
import numpy as np

from rlvlm_jax.types import Rollout


class Responses(NamedTuple):
    """The responses of a step, B of them, on the host."""

    texts: list[str]  # special tokens left out
    tokens: np.ndarray  # int32[B], generated tokens, the stop token included
    lengths: np.ndarray  # int32[B], content tokens, the stop token not counted
    truncated: np.ndarray  # bool[B]


def read_responses(rollout: Rollout, tokenizer: Any) -> Responses:
    """Fetches a rollout and decodes it.

    Args:
        rollout: on the device.
        tokenizer: with `decode_batch(list of ids) -> list[str]`.
    """
    tokens, mask, truncated = jax.device_get((rollout.tokens, rollout.mask, rollout.truncated))
    counts = mask.sum(axis=1).astype(np.int32)
    rows = [row[:count].tolist() for row, count in zip(tokens, counts, strict=True)]
    lengths = np.maximum(counts - ~truncated, 0)
    return Responses(tokenizer.decode_batch(rows), counts, lengths, truncated)
