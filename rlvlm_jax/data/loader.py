# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Problems in shuffled order, encoded ahead in threads, as batches of a few static shapes.

The end of step I. The order is a function of (seed, place in the stream), so a cursor of a few
numbers restores it exactly; how many threads work ahead does not matter. Prompts wait as uint8
patches, at most two batches of them, so host memory stays bounded. Knows nothing of devices, files
or configuration. Each place in the stream stands for itself, so that hosts could share it out by
taking every n-th.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from rlvlm_jax.data.dataset import Example
from rlvlm_jax.data.processor import Encoded, ImageError, collate
from rlvlm_jax.errors import InputError
from rlvlm_jax.types import Batch

Bucket = tuple[int, int]  # (P tokens, I patches)

MULTIPLE = 16  # P and I are multiples of it, as accelerators like it; also whole merge blocks
EVALUATION_BUCKETS = 2  # shapes at most, each compiled for every decoding setting
_TRIALS = 512  # batches drawn to estimate how often a bucket would serve
_MIN_SAVING = 0.05  # a further bucket must save this share of the work: each is compiled


def choose_buckets(sizes: Sequence[Bucket], count: int, prompts: int) -> tuple[Bucket, ...]:
    """Chooses the static shapes that batches of these prompts are padded to.

    A batch takes the smallest shape that fits all its prompts, so what counts is the largest
    prompt of a batch, not the typical prompt. Batches are drawn at random; the shape of the
    largest prompt is always there, and those among the drawn batches' own shapes are added, one
    at a time, that reduce the padded sizes most. Shapes that would save little are left out.

    Args:
        sizes: (tokens, patches) of every prompt of the data set.
        count: shapes at most.
        prompts: N, prompts in a batch.

    Returns:
        Up to `count` pairs (P, I), from the smallest to the one that fits everything.
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


def fit_bucket(encoded: Iterable[Encoded], buckets: Sequence[Bucket]) -> Bucket:
    """Returns the smallest of the buckets, which are sorted by size, that fits all prompts.

    Raises:
        ValueError: none does.
    """
    sizes = [(len(one.tokens), len(one.patches)) for one in encoded]
    p, i = np.max(sizes, axis=0)
    fitting = [bucket for bucket in buckets if p <= bucket[0] and i <= bucket[1]]
    if not fitting:
        raise ValueError(f"prompts of {p} tokens and {i} patches fit into none of {list(buckets)}")
    return min(fitting, key=sum)


def pad_batch(batch: Batch, p: int, i: int, pad_id: int) -> Batch:
    """Returns the same prompts in a larger shape: P tokens, I patches. Host arrays."""
    left, right = p - batch.tokens.shape[1], i - batch.patches.shape[1]

    def pad(name: str, array: np.ndarray) -> np.ndarray:
        widths = [(0, 0)] * array.ndim
        if name in ("tokens", "mask", "positions"):
            widths[-1] = (left, 0)
        else:
            widths[1] = (0, right)
        return np.pad(array, widths, constant_values=pad_id if name == "tokens" else 0)

    return Batch(**{name: pad(name, array) for name, array in batch._asdict().items()})


class _Source:
    """Encodes examples by their place in a stream; what grain's threads call."""

    def __init__(
        self,
        examples: Sequence[Example],
        encode: Callable[[Example], Encoded],
        largest: Bucket,
        on_bad_record: str,
    ):
        self.examples = examples
        self._encode = encode
        self._largest = largest
        self._on_bad_record = on_bad_record

    def __call__(self, number: int) -> tuple[int, Encoded | ImageError]:
        example = self.examples[number]
        try:
            encoded = self._encode(example)
            if len(encoded.tokens) > self._largest[0] or len(encoded.patches) > self._largest[1]:
                raise ImageError(
                    "unreadable_image",
                    f"{example.source} (id {example.id}): an image is larger than its header said",
                )
        except ImageError as problem:
            if self._on_bad_record == "error":
                raise
            return number, problem
        return number, encoded


class _Drops(dict):
    """Kind of defect -> ids of the records it cost, each id once."""

    def add(self, kind: str, name: str) -> None:
        names = self.setdefault(kind, [])
        if name not in names:
            names.append(name)

    @property
    def count(self) -> int:
        return sum(map(len, self.values()))


def _open_stream(places: Any, source: _Source, prompts: int, workers: int) -> Any:
    """Returns grain's iterator over encoded examples, `workers` threads and two batches ahead."""
    import grain  # seconds to import: only where it is used

    ahead = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=max(2 * prompts, workers))
    return iter(places.map(source).to_iter_dataset(ahead))


class Loader:
    """An endless iterator of (examples, batch) for training.

    Every epoch is shuffled anew; a batch that an epoch's tail does not fill goes on with the next
    epoch, so nothing is left out.

    Attributes:
        buckets: the shapes (P, I) that batches have.
        epoch: passes over the data so far; 2.5 is in the middle of the third.
        dropped: kind -> ids of examples whose pictures turned out to be damaged.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        encode: Callable[[Example], Encoded],
        *,
        prompts: int,
        buckets: int | Sequence[Bucket] = 2,
        seed: int = 0,
        workers: int = 2,
        pad_id: int = 0,
        on_bad_record: str = "error",
    ):
        """Opens the stream at its beginning; nothing is read before the first batch.

        Args:
            examples: sized by `dataset.Reader.read`.
            encode: problem -> prompt, called from threads; raises ImageError.
            prompts: N, of each batch.
            buckets: how many shapes to choose from the data, or the shapes.
            seed: of the order.
            workers: threads that encode ahead.
            pad_id: fills the padding of the tokens.
            on_bad_record: "error" lets an ImageError through; "skip" counts the example in
                `dropped` and takes the next.
        """
        import grain

        self._prompts = prompts
        self._seed = seed
        self._pad_id = pad_id
        self.buckets = _given_or_chosen(examples, buckets, prompts)
        self.dropped = _Drops()
        self._source = _Source(examples, encode, self.buckets[-1], on_bad_record)
        places = grain.MapDataset.range(len(examples)).seed(seed % 2**32).shuffle().repeat()
        self._stream = _open_stream(places, self._source, prompts, workers)

    @property
    def epoch(self) -> float:
        """Passes over the data that the batches so far amount to."""
        return self._stream.get_state()["next_index"] / len(self._source.examples)

    def next(self) -> tuple[list[Example], Batch]:
        """Returns the next N examples and their batch.

        Raises:
            InputError: a damaged picture with on_bad_record="error", or too few examples are left.
        """
        examples, encoded = [], []
        while len(encoded) < self._prompts:
            number, found = next(self._stream)
            example = self._source.examples[number]
            if isinstance(found, ImageError):
                self.dropped.add(found.kind, example.id)
                self._check_enough_left()
            else:
                examples.append(example)
                encoded.append(found)
        return examples, collate(encoded, *fit_bucket(encoded, self.buckets), self._pad_id)

    def __iter__(self) -> Iterator[tuple[list[Example], Batch]]:
        return self

    def __next__(self) -> tuple[list[Example], Batch]:
        return self.next()

    def _check_enough_left(self) -> None:
        left = len(self._source.examples) - self.dropped.count
        if left < self._prompts:
            raise InputError(
                f"{left} of {len(self._source.examples)} training records are left after dropping "
                f"damaged ones ({dict(self.dropped)}), but a batch takes {self._prompts}"
            )

    def state(self) -> dict[str, Any]:
        """Returns the cursor behind the last batch, of plain numbers and strings."""
        return {
            "examples": len(self._source.examples),
            "seed": self._seed,
            "stream": self._stream.get_state(),
            "dropped": {kind: list(names) for kind, names in self.dropped.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on behind the batch after which `state` was taken.

        Raises:
            InputError: the cursor belongs to other data or another seed.
        """
        ours = {"examples": len(self._source.examples), "seed": self._seed}
        theirs = {key: state.get(key) for key in ours}
        if ours != theirs:
            raise InputError(
                f"the checkpoint's data cursor is of {theirs}, but this run has {ours}; restore "
                "config.data.train and config.seed, or start a new --workdir"
            )
        self._stream.set_state(state["stream"])
        self.dropped = _Drops({kind: list(names) for kind, names in state["dropped"].items()})

    def close(self) -> None:
        """Ends the threads."""
        self._stream.close()


class EvaluationSet:
    """Every example once and in order, as (numbers, examples, batch); each `iter` starts anew.

    The last batch is filled up with empty rows.

    Attributes:
        examples: all of them.
        buckets: the shapes (P, I) that batches have.
        dropped: kind -> ids of examples whose pictures turned out to be damaged.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        encode: Callable[[Example], Encoded],
        *,
        prompts: int,
        buckets: int | Sequence[Bucket] = EVALUATION_BUCKETS,
        workers: int = 2,
        pad_id: int = 0,
        on_bad_record: str = "error",
    ):
        """Chooses the shapes; arguments as of `Loader`."""
        self.examples = list(examples)
        self.buckets = _given_or_chosen(self.examples, buckets, prompts)
        self.dropped = _Drops()
        self._source = _Source(self.examples, encode, self.buckets[-1], on_bad_record)
        self._prompts = prompts
        self._workers = workers
        self._pad_id = pad_id

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[tuple[np.ndarray, list[Example], Batch]]:
        """Yields (numbers int32[N], examples, batch).

        `numbers` are places in the set; those of empty rows go on counting behind the set's end.
        `examples` are those of the real rows only, at most N.

        Raises:
            InputError: a damaged picture with on_bad_record="error", or none that is not.
        """
        import grain

        places = grain.MapDataset.range(len(self.examples))
        stream = _open_stream(places, self._source, self._prompts, self._workers)
        try:
            rows: list[tuple[int, Encoded]] = []
            for number, found in stream:
                if isinstance(found, ImageError):
                    self.dropped.add(found.kind, self.examples[number].id)
                    continue
                rows.append((number, found))
                if len(rows) == self._prompts:
                    yield self._batch(rows)
                    rows = []
            if self.dropped.count == len(self.examples):
                raise InputError(
                    f"all {len(self.examples)} records of an evaluation set, the first from "
                    f"{self.examples[0].source}, have damaged pictures ({dict(self.dropped)})"
                )
            if rows:
                yield self._batch(rows)
        finally:
            stream.close()

    def _batch(self, rows: list[tuple[int, Encoded]]) -> tuple[np.ndarray, list[Example], Batch]:
        empty = self._prompts - len(rows)
        numbers = [number for number, _ in rows]
        encoded = [one for _, one in rows]
        bucket = fit_bucket(encoded, self.buckets)
        return (
            np.array(numbers + [len(self.examples) + k for k in range(empty)], np.int32),
            [self.examples[number] for number in numbers],
            collate([*encoded, *[None] * empty], *bucket, self._pad_id),
        )


def _given_or_chosen(
    examples: Sequence[Example], buckets: int | Sequence[Bucket], prompts: int
) -> tuple[Bucket, ...]:
    """Returns the shapes, checked when they were given.

    Raises:
        InputError: the largest given shape does not fit every prompt.
    """
    sizes = [(example.tokens, example.patches) for example in examples]
    if not sizes:
        raise InputError("a data set without records cannot be batched; check config.data")
    if not all(tokens for tokens, _ in sizes):
        raise ValueError("examples without sizes; read them with dataset.Reader.read")
    if isinstance(buckets, int):
        return choose_buckets(sizes, buckets, prompts)
    given = tuple(sorted((int(p), int(i)) for p, i in buckets))
    p, i = np.max(sizes, axis=0)
    if p > given[-1][0] or i > given[-1][1]:
        raise InputError(
            f"config.data.buckets={given}: the largest prompt has {p} tokens and {i} patches; "
            "enlarge the last bucket"
        )
    return given
