# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Packs prompts and responses of any length into streams without padding between them.

A stream is one row of T tokens. It holds parts of groups in sequence: the group's prompt, once,
then complete responses to it. A response only sees its prompt and itself. A micro-batch is S
streams, one per device. The host decides all of this here from the lengths. Shapes are static; only
the number of micro-batches in use depends on the lengths. This module does not know what is
computed from streams.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlvlm_jax.errors import InputError
from rlvlm_jax.types import Array


class Plan(NamedTuple):
    """The streams of one minibatch, or of several stacked on leading axes.

    `source` indexes all prompt tokens, N * P with padding, followed by all response tokens, B * R
    with padding.
    """

    source: Array  # int32[K, S, T], the index of each token of a stream; -1 at padding
    previous: Array  # int32[K, S, T], column of the token that predicts it; 0 for prompt tokens
    count: Array  # int32[], micro-batches in use; those after it are empty


def max_microbatches(
    rows: int, tokens: int, streams: int, prompt_size: int, response_size: int
) -> int:
    """Returns K, a number of micro-batches that is enough for any lengths.

    A stream with fewer than T // (P + R) responses has room for a prompt and a response of any
    length, so only the last stream holds fewer.

    Args:
        rows: responses of a minibatch.
        tokens: T, at least P + R.
        streams: S.
        prompt_size: P.
        response_size: R.
    """
    return -(-rows // (tokens // (prompt_size + response_size) * streams))


def max_prompts(tokens: int, prompt_size: int) -> int:
    """Returns how many prompts a stream may hold if its images are encoded with it."""
    return tokens // prompt_size


def plan(
    prompt_lengths: np.ndarray,
    response_lengths: np.ndarray,
    order: np.ndarray,
    *,
    tokens: int,
    streams: int,
    prompt_size: int,
    response_size: int,
    limit_prompts: bool = False,
) -> Plan:
    """Packs the responses of each minibatch and their prompts.

    Streams are filled in sequence: with the largest remaining group, then with the set of other
    groups that fills the stream best, then with parts of groups. The prompt of a split group occurs
    again with the rest of its responses.

    Args:
        prompt_lengths: int[N], of prompts padded on the left.
        response_lengths: int[B], 0 for an unused response; B = N * G.
        order: int[..., b], the responses of each minibatch.
        tokens: T, at least P + R.
        streams: S.
        prompt_size: P.
        response_size: R.
        limit_prompts: limit a stream to `max_prompts`.

    Returns:
        A plan with the leading axes of `order`.

    Raises:
        ValueError: P + R is above T, or a response's prompt is empty.
    """
    if prompt_size + response_size > tokens:
        raise ValueError(f"{prompt_size} + {response_size} tokens do not fit into {tokens}")
    prompt_lengths, response_lengths = np.asarray(prompt_lengths), np.asarray(response_lengths)
    samples = len(response_lengths) // len(prompt_lengths)
    if response_lengths.reshape(-1, samples)[prompt_lengths == 0].any():
        raise ValueError("a response to an empty prompt cannot be packed")
    minibatches = np.asarray(order).reshape(-1, np.shape(order)[-1])
    num_microbatches = max_microbatches(
        minibatches.shape[1], tokens, streams, prompt_size, response_size
    )
    shape = (len(minibatches), num_microbatches * streams, tokens)
    source, previous = np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
    count = np.zeros(len(minibatches), np.int32)
    limit = max_prompts(tokens, prompt_size) if limit_prompts else None
    starts = np.concatenate(  # the index of the first token of each prompt and of each response
        [
            (1 + np.arange(len(prompt_lengths))) * prompt_size - prompt_lengths,
            len(prompt_lengths) * prompt_size + np.arange(len(response_lengths)) * response_size,
        ]
    )
    for number, rows in enumerate(minibatches):
        rows = rows[response_lengths[rows] > 0].tolist()
        packed = _pack(prompt_lengths.tolist(), response_lengths.tolist(), rows, tokens, limit)
        count[number] = -(-len(packed) // streams)
        for stream, groups in enumerate(packed):
            indices, predictors = source[number, stream], previous[number, stream]
            column = 0
            for group, members in groups.items():
                length = prompt_lengths[group]
                indices[column : column + length] = starts[group] + np.arange(length)
                column += length
                last = column - 1  # it predicts the first token of every response
                for row in members:
                    length = response_lengths[row]
                    start = starts[len(prompt_lengths) + row]
                    indices[column : column + length] = start + np.arange(length)
                    predictors[column : column + length] = column - 1 + np.arange(length)
                    predictors[column] = last
                    column += length
    leading, inner = np.shape(order)[:-1], (num_microbatches, streams, tokens)
    source, previous = (x.reshape(*leading, *inner) for x in (source, previous))
    return Plan(source, previous, count.reshape(leading))


@dataclasses.dataclass(frozen=True)
class Planner:
    """Packs the batches of a run.

    Attributes:
        tokens: T; 0 makes no plans, i.e. packs nothing.
        streams: S.
        response_size: R.
        limit_prompts: whether the update limits a stream to `max_prompts`.
    """

    tokens: int
    streams: int
    response_size: int
    limit_prompts: bool

    def check(self, buckets: Sequence[tuple[int, int]]) -> None:
        """Checks that a stream has room for any prompt and a response to it.

        Args:
            buckets: shapes (P tokens, I patches) of a prompt.

        Raises:
            InputError: there is not enough room.
        """
        longest = max(p for p, _ in buckets)
        needed = longest + self.response_size
        if 0 < self.tokens < needed:
            raise InputError(
                f"config.train.pack_tokens={self.tokens} has no room for the longest prompts "
                f"({longest} tokens) and config.rollout.max_tokens={self.response_size}; use at "
                f"least {needed}, or 0"
            )

    def for_passes(self, prompts: np.ndarray, lengths: np.ndarray) -> Plan | None:
        """Packs the responses of a batch for the log-prob passes of step III.

        Args:
            prompts: bool[N, P], the prompts' mask.
            lengths: int[B], tokens of each response, 0 if unused.
        """
        return self._plan(prompts, lengths, np.arange(len(lengths)), limit_prompts=False)

    def for_update(
        self, prompts: np.ndarray, lengths: np.ndarray, order: np.ndarray
    ) -> Plan | None:
        """Packs the responses of each minibatch for step IV.

        Args:
            prompts: bool[N, P], the prompts' mask.
            lengths: int[B], tokens of each response, 0 if unused.
            order: int32[epochs, minibatches, sequences], from `update.minibatch_order`.
        """
        return self._plan(prompts, lengths, order, limit_prompts=self.limit_prompts)

    def _plan(
        self, prompts: np.ndarray, lengths: np.ndarray, order: np.ndarray, *, limit_prompts: bool
    ) -> Plan | None:
        if not self.tokens:
            return None
        return plan(
            prompts.sum(axis=1),
            lengths,
            order,
            tokens=self.tokens,
            streams=self.streams,
            prompt_size=prompts.shape[1],
            response_size=self.response_size,
            limit_prompts=limit_prompts,
        )


def useful_fraction(
    prompts: np.ndarray, response_lengths: np.ndarray, order: np.ndarray, computed: int
) -> float:
    """Returns the share of computed tokens that were necessary.

    Those are, in each minibatch, the tokens of its responses, and those of their prompts once.

    Args:
        prompts: bool[N, P], the prompts' mask.
        response_lengths: int[B], 0 for an unused response; B = N * G.
        order: int[..., b], the responses of each minibatch.
        computed: tokens that ran through the model, prompts and padding included.
    """
    prompt_lengths = prompts.sum(axis=1)
    samples = len(response_lengths) // len(prompt_lengths)
    useful = 0
    for rows in np.asarray(order).reshape(-1, np.shape(order)[-1]):
        rows = rows[response_lengths[rows] > 0]
        groups = np.unique(rows // samples)
        useful += int(response_lengths[rows].sum() + prompt_lengths[groups].sum())
    return useful / max(computed, 1)


def _pack(
    prompts: Sequence[int],
    responses: Sequence[int],
    rows: Sequence[int],
    tokens: int,
    limit: int | None,
) -> list[dict[int, list[int]]]:
    """Returns, for each stream, {group: its responses in the stream}; see `plan`."""
    samples = len(responses) // len(prompts)
    left: dict[int, list[int]] = {}  # group -> responses not packed yet
    for row in rows:
        left.setdefault(row // samples, []).append(row)

    def size(group: int) -> int:
        return prompts[group] + sum(responses[row] for row in left[group])

    def choose(group: int, room: int) -> list[int]:
        """Returns the responses of a group that best fill the room after its prompt."""
        lengths = [responses[row] for row in left[group]]
        return [left[group][number] for number in _fill(lengths, room - prompts[group])]

    streams = []
    while left:
        stream: dict[int, list[int]] = {}
        room = tokens
        todo = [max(left, key=size)]
        while todo:
            for group in todo:
                stream[group] = choose(group, room)
                room -= prompts[group] + sum(responses[row] for row in stream[group])
                left[group] = [row for row in left[group] if row not in stream[group]]
                if not left[group]:
                    del left[group]
            others = [group for group in left if group not in stream]
            if limit is not None and len(stream) == limit:
                break
            todo = [others[number] for number in _fill([size(group) for group in others], room)]
            todo = todo[: None if limit is None else limit - len(stream)]
            if not todo:  # no whole group fits: take the part that leaves least room
                parts = {group: choose(group, room) for group in others}
                gains = {g: sum(responses[row] for row in part) for g, part in parts.items()}
                best = max(gains, key=gains.__getitem__, default=None)
                todo = [best] if best is not None and gains[best] else []
        streams.append(stream)
    return streams


def _fill(sizes: Sequence[int], room: int) -> list[int]:
    """Returns the indices of a subset of `sizes` with the largest sum up to `room`."""
    if room < 0:
        return []
    sums = [1]  # after each size, bit n says whether a subset of the sizes so far adds up to n
    for size in sizes:
        sums.append((sums[-1] | sums[-1] << size) & ((2 << room) - 1))
    total, chosen = sums[-1].bit_length() - 1, []
    for number in reversed(range(len(sizes))):
        if not sums[number] >> total & 1:
            chosen.append(number)
            total -= sizes[number]
    return chosen
