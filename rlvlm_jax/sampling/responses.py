# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A rollout on the host: texts and lengths."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from rlvlm_jax.types import Rollout


class Responses(NamedTuple):
    """The responses of a step, B of them, on the host."""

    texts: list[str]  # without special tokens
    tokens: np.ndarray  # int32[B], number of generated tokens, with the stop token
    lengths: np.ndarray  # int32[B], number of content tokens, without the stop token
    truncated: np.ndarray  # bool[B]
    ids: list[list[int]]  # the generated tokens
    logprobs: list[np.ndarray]  # float32 each, the sampler's, in nats


class Detokenizer(Protocol):
    """What turns ids into text; see `data.tokenizer.Tokenizer`."""

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Returns a text for each list of ids."""


def read_responses(rollout: Rollout, tokenizer: Detokenizer) -> Responses:
    """Fetches a rollout and decodes it.

    Args:
        rollout: on the device.
        tokenizer: of the model.
    """
    tokens, valid, logprobs, truncated = jax.device_get(
        (rollout.tokens, rollout.valid, rollout.logprobs, rollout.truncated)
    )
    counts = valid.sum(axis=1).astype(np.int32)
    ids = [row[:count].tolist() for row, count in zip(tokens, counts, strict=True)]
    return Responses(
        texts=tokenizer.decode_batch(ids),
        tokens=counts,
        lengths=np.maximum(counts - ~truncated, 0),
        truncated=truncated,
        ids=ids,
        logprobs=[row[:count] for row, count in zip(logprobs, counts, strict=True)],
    )


def take(responses: Responses, rows: Sequence[int] | np.ndarray) -> Responses:
    """Returns the responses of `rows`, in that order."""
    rows = np.asarray(rows, int)
    return Responses(
        *(f[rows] if isinstance(f, np.ndarray) else [f[row] for row in rows] for f in responses)
    )


def join(parts: Sequence[Responses]) -> Responses:
    """Concatenates the responses of several batches."""
    fields = []
    for field in zip(*parts, strict=True):
        arrays = isinstance(field[0], np.ndarray)
        fields.append(np.concatenate(field) if arrays else list(itertools.chain(*field)))
    return Responses(*fields)
