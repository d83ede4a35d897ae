# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Problems in shuffled order, encoded ahead by threads, as batches of a few static shapes.

The end of step I. The order is a function of (seed, place in the stream), so a cursor of a few
numbers restores it exactly, with any number of threads. At most two batches of prompts wait, so
host memory stays bounded. Knows nothing of devices, files or configuration. Several processes share
a batch: each encodes the rows of its own devices.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlvlm_jax.data.example import Example
from rlvlm_jax.data.images import ImageError
from rlvlm_jax.data.prompts import Encoded, Media, collate
from rlvlm_jax.errors import InputError
from rlvlm_jax.types import Prompts

Bucket = tuple[int, int]  # (P tokens, I patches)

MULTIPLE = 16  # P and I are multiples of it: fast on accelerators, and whole merge blocks
EVALUATION_BUCKETS = 2  # maximum number of shapes; each is compiled for every decoding setting
_TRIALS = 512  # batches drawn to estimate how often a bucket would be used
_MIN_SAVING = 0.05  # another bucket must save this share of the work, for it costs a compile


def choose_buckets(sizes: Sequence[Bucket], count: int, prompts: int) -> tuple[Bucket, ...]:
    """Chooses the static shapes to which batches of these prompts are padded.

    A batch takes the smallest shape that fits all its prompts, so the largest prompt of a batch
    counts, not the typical prompt. The shape of the largest prompt of all is always chosen. Further
    shapes come from batches drawn at random: greedily, the one that reduces the padded sizes most,
    until another would save little.

    Args:
        sizes: (tokens, patches) of every prompt of the data set.
        count: maximum number of shapes.
        prompts: N, prompts per batch.

    Returns:
        Up to `count` pairs (P, I), from the smallest to the one that fits every prompt.
    """
    needed = np.asarray(sizes, np.int64).reshape(-1, 2)
    needed = np.maximum(-(-needed // MULTIPLE), 1) * MULTIPLE
    chosen = [needed.max(axis=0)]
    rows = np.random.default_rng(0).integers(len(needed), size=(_TRIALS, prompts))
    batches = needed[rows].max(axis=1)  # [_TRIALS, 2]
    shapes = np.unique(batches, axis=0)
    fits = (batches[:, None] <= shapes).all(-1)  # [_TRIALS, shapes]
    costs = np.where(fits, shapes.sum(-1), np.iinfo(np.int64).max)
    cost = np.full(_TRIALS, chosen[0].sum())
    for _ in range(count - 1):
        totals = np.minimum(cost[:, None], costs).sum(axis=0)
        best = int(totals.argmin())
        if totals[best] > (1 - _MIN_SAVING) * cost.sum():
            break
        chosen.append(shapes[best])
        cost = np.minimum(cost, costs[:, best])
    return tuple(sorted((int(p), int(i)) for p, i in chosen))


def fit_bucket(needed: Bucket, buckets: Sequence[Bucket]) -> Bucket:
    """Returns the smallest bucket that fits prompts of this size.

    Raises:
        ValueError: no bucket does.
    """
    p, i = needed
    fitting = [bucket for bucket in buckets if p <= bucket[0] and i <= bucket[1]]
    if not fitting:
        raise ValueError(f"prompts of {p} tokens and {i} patches fit into none of {list(buckets)}")
    return min(fitting, key=sum)


class _Drops(dict):
    """Kind of defect -> ids of the dropped records, each id once."""

    def add(self, kind: str, name: str) -> None:
        names = self.setdefault(kind, [])
        if name not in names:
            names.append(name)

    @property
    def count(self) -> int:
        return sum(map(len, self.values()))


@dataclass(frozen=True)
class Share:
    """Which rows of every batch this process encodes, and how it talks to the others.

    Attributes:
        rows: int[], in order.
        together: runs a function in every process and returns all their results; if one process
            raises an InputError, all raise it.
    """

    rows: np.ndarray
    together: Callable[[Callable[[], Any]], list[Any]] = lambda part: [part()]


class _Stream:
    """Batches of encoded examples: each takes the next N examples with undamaged images.

    Examples have places 0, 1, 2, ... in the stream. A process encodes the places that would fall
    into its rows if no image were damaged. Damaged images shift later places to other rows; the
    process of the new row then encodes the example again. So the batches do not depend on the
    number of processes.

    Attributes:
        position: number of places used so far.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        encode: Callable[[Example], Encoded],
        places: Any,
        end: int,
        *,
        largest: Bucket,
        prompts: int,
        workers: int,
        on_bad_record: str,
        drop: Callable[[str, str], None],
        share: Share,
    ):
        """Reads nothing before the first batch.

        Args:
            examples: the whole data set.
            encode: problem -> prompt, called from threads; raises ImageError.
            places: places[k] is the number of the example at place k.
            end: number of places.
            largest: shape that must fit every prompt.
            prompts: N.
            workers: threads that encode ahead, at most two batches.
            on_bad_record: see `Loader`.
            drop: called with (kind, id) of each damaged image, in the order of places.
            share: this process's part of a batch.
        """
        self.position = 0
        self._examples, self._encode, self._places, self._end = examples, encode, places, end
        self._largest, self._prompts, self._workers = largest, prompts, workers
        self._on_bad_record, self._drop, self._share = on_bad_record, drop, share
        self._threads: Any = None
        self._opened_at = self._num_taken = 0  # first place of the threads; prompts taken from them

    def number(self, place: int) -> int:
        """Returns the number of the example at a place."""
        return int(self._places[place])

    def take(self) -> tuple[list[int], list[Encoded], Bucket]:
        """Returns the next batch; at the end it may have fewer than N examples, or none.

        Returns:
            (numbers of its examples, prompts in this process's rows, (maximum tokens, maximum
            patches) of its prompts).
        """
        start, sizes, encoded_by_place = self.position, {}, {}
        good: list[int] = []
        while len(good) < self._prompts and self.position < self._end:
            missing = self._prompts - len(good)
            places = range(self.position, min(self.position + missing, self._end))
            self.position = places.stop
            for part in self._share.together(
                lambda places=places: self._read(places, start, encoded_by_place)
            ):
                sizes |= part
            for place in places:
                if isinstance(sizes[place], str):
                    self._drop(sizes[place], self._examples[self.number(place)].id)
            good = [k for k in range(start, self.position) if not isinstance(sizes[k], str)]
        here = [good[row] for row in self._share.rows.tolist() if row < len(good)]
        encoded = [
            encoded_by_place[k] if k in encoded_by_place else self._encoded_now(k) for k in here
        ]
        numbers = [self.number(place) for place in good]
        needed = tuple(map(int, np.max([sizes[k] for k in good], axis=0))) if good else (0, 0)
        return numbers, encoded, needed

    def _read(
        self, places: range, start: int, encoded_by_place: dict[int, Encoded]
    ) -> dict[int, Any]:
        """Encodes this process's share of `places`; place -> (tokens, patches) or defect."""
        rows = set(self._share.rows.tolist())
        sizes: dict[int, Any] = {}
        for place in places:
            if (place - start) % self._prompts not in rows:
                continue
            encoded = self._next(place, start)
            if isinstance(encoded, ImageError):
                sizes[place] = encoded.kind
            else:
                sizes[place] = len(encoded.tokens), encoded.patches
                encoded_by_place[place] = encoded
        return sizes

    def _next(self, place: int, start: int) -> Encoded | ImageError:
        """Returns the threads' result for a place; restarts them if they work on other places."""
        if place < start + self._prompts and self._ahead() != place:
            self.close()
        if self._threads is None:
            self._opened_at, self._num_taken = start, 0
            self._threads = self._open()
        if self._ahead() != place:
            return self._encode_at(place)
        self._num_taken += 1
        return next(self._threads)

    def _ahead(self, index: int | None = None) -> int:
        """Returns the place of the threads' result number `index`; by default of the next one."""
        index = self._num_taken if index is None else index
        batch, row = divmod(index, len(self._share.rows))
        return self._opened_at + batch * self._prompts + int(self._share.rows[row])

    def _open(self) -> Any:
        """Returns grain's iterator over this process's share of the remaining places."""
        import grain  # takes seconds to import, so only here

        count = len(self._share.rows)
        whole, rest = divmod(self._end - self._opened_at, self._prompts)
        count = whole * count + int((self._share.rows < rest).sum())
        ahead = max(2 * len(self._share.rows), self._workers)
        options = grain.ReadOptions(num_threads=self._workers, prefetch_buffer_size=ahead)
        numbered = grain.MapDataset.range(min(count, sys.maxsize))
        return iter(
            numbered.map(lambda n: self._encode_at(self._ahead(n))).to_iter_dataset(options)
        )

    def _encoded_now(self, place: int) -> Encoded:
        """Encodes a place whose image another process has found undamaged."""
        encoded = self._encode_at(place)
        if isinstance(encoded, ImageError):
            raise encoded
        return encoded

    def _encode_at(self, place: int) -> Encoded | ImageError:
        """Encodes a place, in a thread; returns the ImageError of a damaged image.

        Raises:
            ImageError: the image is damaged and on_bad_record="error".
        """
        example = self._examples[self.number(place)]
        try:
            encoded = self._encode(example)
            if len(encoded.tokens) > self._largest[0] or encoded.patches > self._largest[1]:
                raise ImageError(
                    "unreadable_image",
                    f"{example.source} (id {example.id}): an image is larger than its header said",
                )
        except ImageError as problem:
            if self._on_bad_record == "error":
                raise
            return problem
        return encoded

    def close(self) -> None:
        """Ends the threads."""
        if self._threads is not None:
            self._threads.close()
        self._threads = None


class Loader:
    """An endless iterator of (examples, batch) for training.

    Every epoch has its own order. A batch that the end of an epoch does not fill continues with the
    next epoch, so no example is left out.

    Attributes:
        buckets: the possible shapes (P, I) of batches.
        epoch: passes over the data so far; 2.5 is in the middle of the third.
        dropped: kind -> ids of examples whose images turned out to be damaged.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        encode: Callable[[Example], Encoded],
        *,
        media: Media,
        prompts: int,
        buckets: int | Sequence[Bucket] = 2,
        seed: int = 0,
        workers: int = 2,
        pad_id: int = 0,
        on_bad_record: str = "error",
        share: Share | None = None,
    ):
        """Opens the stream at its beginning; reads nothing before the first batch.

        Args:
            examples: with sizes, as `dataset.Reader.read` returns them.
            encode: problem -> prompt, called from threads; raises ImageError.
            media: of the model; pads the prompts' images.
            prompts: N, prompts per batch.
            buckets: the shapes, or how many to choose from the data.
            seed: of the order.
            workers: threads that encode ahead.
            pad_id: fills the padding of the tokens.
            on_bad_record: "error" raises the ImageError; "skip" counts the example in `dropped`
                and takes the next.
            share: the rows of a batch to encode here; None for all.
        """
        import grain

        self._prompts = prompts
        self._seed = seed
        self._pad_id, self._media = pad_id, media
        self._examples = examples
        self.buckets = _resolve_buckets(examples, buckets, prompts)
        self.dropped = _Drops()
        self._stream = _Stream(
            examples,
            encode,
            grain.MapDataset.range(len(examples)).seed(seed % 2**32).shuffle().repeat(),
            sys.maxsize,
            largest=self.buckets[-1],
            prompts=prompts,
            workers=workers,
            on_bad_record=on_bad_record,
            drop=self._drop,
            share=share or Share(np.arange(prompts)),
        )

    @property
    def epoch(self) -> float:
        """Number of passes over the data so far."""
        return self._stream.position / len(self._examples)

    def next(self) -> tuple[list[Example], Prompts]:
        """Returns the next N examples, and this process's rows of their batch.

        Raises:
            InputError: a damaged image with on_bad_record="error", or too few examples are left.
        """
        numbers, encoded, needed = self._stream.take()
        batch = collate(encoded, *fit_bucket(needed, self.buckets), self._pad_id, self._media)
        return [self._examples[number] for number in numbers], batch

    def __iter__(self) -> Iterator[tuple[list[Example], Prompts]]:
        return self

    def __next__(self) -> tuple[list[Example], Prompts]:
        return self.next()

    def _drop(self, kind: str, name: str) -> None:
        self.dropped.add(kind, name)
        left = len(self._examples) - self.dropped.count
        if left < self._prompts:
            raise InputError(
                f"{left} of {len(self._examples)} training records are left after dropping "
                f"damaged ones ({dict(self.dropped)}), but a batch takes {self._prompts}"
            )

    def state(self) -> dict[str, Any]:
        """Returns the cursor after the last batch, as plain numbers and strings."""
        return {
            "examples": len(self._examples),
            "seed": self._seed,
            "stream": {"next_index": self._stream.position},
            "dropped": {kind: list(names) for kind, names in self.dropped.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues after the batch after which `state` was called.

        Raises:
            InputError: the cursor belongs to other data or another seed.
        """
        expected = {"examples": len(self._examples), "seed": self._seed}
        saved = {key: state.get(key) for key in expected}
        if expected != saved:
            raise InputError(
                f"the checkpoint's data cursor has {saved}, but this run has {expected}; restore "
                "config.data.train and config.seed, or start a new --workdir"
            )
        self._stream.close()
        self._stream.position = state["stream"]["next_index"]
        self.dropped = _Drops({kind: list(names) for kind, names in state["dropped"].items()})

    def close(self) -> None:
        """Ends the threads."""
        self._stream.close()


class EvaluationSet:
    """Every example once and in order, as (numbers, examples, batch); each `iter` starts again.

    Empty rows fill up the last batch.

    Attributes:
        examples: the whole set.
        buckets: the possible shapes (P, I) of batches.
        dropped: kind -> ids of examples whose images turned out to be damaged.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        encode: Callable[[Example], Encoded],
        *,
        media: Media,
        prompts: int,
        buckets: int | Sequence[Bucket] = EVALUATION_BUCKETS,
        workers: int = 2,
        pad_id: int = 0,
        on_bad_record: str = "error",
        share: Share | None = None,
    ):
        """Chooses the shapes; see `Loader` and `collate` for the arguments."""
        self.examples = list(examples)
        self.buckets = _resolve_buckets(self.examples, buckets, prompts)
        self.dropped = _Drops()
        self._encode = encode
        self._prompts = prompts
        self._pad_id, self._media = pad_id, media
        self._share = share or Share(np.arange(prompts))
        self._settings = {"workers": workers, "on_bad_record": on_bad_record}

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[tuple[np.ndarray, list[Example], Prompts]]:
        """Yields (numbers int32[N], examples, this process's rows of the batch).

        `numbers` index the set; empty rows continue the count past its end. `examples` holds only
        those of the real rows, at most N; the real rows come first.

        Raises:
            InputError: a damaged image with on_bad_record="error", or all images are damaged.
        """
        count, rows = len(self.examples), self._share.rows
        stream = _Stream(
            self.examples,
            self._encode,
            range(count),
            count,
            largest=self.buckets[-1],
            prompts=self._prompts,
            drop=self.dropped.add,
            share=self._share,
            **self._settings,
        )
        try:
            while stream.position < count:
                numbers, encoded, needed = stream.take()
                if not numbers:
                    break
                bucket = fit_bucket(needed, self.buckets)
                encoded += [None] * (len(rows) - len(encoded))
                empty = range(count, count + self._prompts - len(numbers))
                yield (
                    np.array([*numbers, *empty], np.int32),
                    [self.examples[number] for number in numbers],
                    collate(encoded, *bucket, self._pad_id, self._media),
                )
            if self.dropped.count == count:
                raise InputError(
                    f"all {count} records of an evaluation set, the first from "
                    f"{self.examples[0].source}, have damaged images ({dict(self.dropped)})"
                )
        finally:
            stream.close()


def _resolve_buckets(
    examples: Sequence[Example], buckets: int | Sequence[Bucket], prompts: int
) -> tuple[Bucket, ...]:
    """Returns the configured shapes, checked, or chooses that many.

    Raises:
        InputError: the largest configured shape does not fit every prompt.
    """
    sizes = [(example.tokens, example.patches) for example in examples]
    if not sizes:
        raise InputError("a data set without records cannot be batched; check config.data")
    if not all(tokens for tokens, _ in sizes):
        raise ValueError("examples without sizes; read them with dataset.Reader.read")
    if isinstance(buckets, int):
        return choose_buckets(sizes, buckets, prompts)
    shapes = tuple(sorted((int(p), int(i)) for p, i in buckets))
    p, i = np.max(sizes, axis=0)
    if p > shapes[-1][0] or i > shapes[-1][1]:
        raise InputError(
            f"config.data.buckets={shapes}: the largest prompt has {p} tokens and {i} patches; "
            "enlarge the last bucket"
        )
    return shapes
