# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Order, epochs, cursors, damaged images and static shapes."""

import itertools
import json
import threading
import time
from collections import Counter

import numpy as np
import pytest
from data_cases import as_processes

from rlvlm_jax.data.example import Example
from rlvlm_jax.data.images import ImageError
from rlvlm_jax.data.loader import EvaluationSet, Loader, Share, choose_buckets, fit_bucket
from rlvlm_jax.data.prompts import Encoded
from rlvlm_jax.errors import InputError
from rlvlm_jax.models.qwen2_vl.media import ImageSpec, Patches

MEDIA = ImageSpec(patch_size=2)  # 12 bytes a patch


def example(number, tokens=5, patches=4):
    return Example(str(number), "Q", "", "\\boxed{1}", tokens=tokens, patches=patches)


def encode(problem):
    """A prompt whose every token is the example's number."""
    number = int(problem.id)
    return Encoded(
        tokens=np.full(problem.tokens, number, np.int32),
        positions=np.tile(np.arange(problem.tokens, dtype=np.int32), (3, 1)),
        media=Patches(
            pixels=np.full((problem.patches, 12), number, np.uint8),
            coords=np.zeros((problem.patches, 2), np.int32),
            image=np.ones(problem.patches, np.int32),
            window=np.ones(problem.patches, np.int32),
        ),
        patches=problem.patches,
    )


def arrays(batch):
    return [*batch[:3], *batch.media]


def breaking(*numbers):
    """An `encode` to which the images of these examples are damaged."""

    def encode_or_raise(problem):
        if int(problem.id) in numbers:
            raise ImageError("unreadable_image", f"d.jsonl:{problem.id}: cannot be decoded")
        return encode(problem)

    return encode_or_raise


EXAMPLES = [example(n, tokens=3 + n % 4, patches=4 * (n % 3)) for n in range(10)]


@pytest.fixture
def opened():
    """Makes loaders and closes them."""
    made = []

    def make(examples=EXAMPLES, encode=encode, **settings):
        made.append(Loader(examples, encode, media=MEDIA, **({"prompts": 4} | settings)))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def ids(loader, batches):
    return [[int(e.id) for e in loader.next()[0]] for _ in range(batches)]


def flat(batches):
    return list(itertools.chain.from_iterable(batches))


# ---- order ----------------------------------------------------------------------------------


def test_every_epoch_is_a_permutation_and_the_tail_is_carried(opened):
    order = flat(ids(opened(), 15))  # 6 epochs of 10 in batches of 4
    epochs = [order[k : k + 10] for k in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert epochs[0] != list(range(10))


def test_order_depends_on_the_seed_alone(opened):
    first = ids(opened(seed=3), 6)
    assert ids(opened(seed=3, workers=1), 6) == first
    assert ids(opened(seed=3, workers=7), 6) == first
    assert ids(opened(seed=4), 6) != first


@pytest.mark.parametrize("seed", [-1, 2**40])
def test_any_whole_number_is_a_seed(opened, seed):
    assert len(ids(opened(seed=seed), 1)[0]) == 4


def test_slow_threads_do_not_change_the_order(opened):
    def uneven(problem):
        time.sleep(0.01 * (int(problem.id) % 3))
        return encode(problem)

    assert ids(opened(encode=uneven, workers=5), 5) == ids(opened(workers=1), 5)


def test_batch_holds_its_examples(opened):
    for examples, batch in itertools.islice(opened(), 5):
        for row, problem in enumerate(examples):
            assert set(batch.tokens[row][batch.mask[row]]) == {int(problem.id)}
            assert batch.mask[row].sum() == problem.tokens
            assert (batch.media.image[row] > 0).sum() == problem.patches


def test_epoch_counts_passes(opened):
    loader = opened()
    assert loader.epoch == 0.0
    ids(loader, 5)
    assert loader.epoch == 2.0


def test_fewer_examples_than_prompts(opened):
    order = flat(ids(opened(EXAMPLES[:3]), 3))
    assert [sorted(order[k : k + 3]) for k in range(0, 12, 3)] == [[0, 1, 2]] * 4


# ---- cursor ---------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 1, 4, 9])
@pytest.mark.parametrize("broken", [(), (2, 5)])
def test_restored_loader_goes_on_bit_for_bit(opened, before, broken):
    settings = {"encode": breaking(*broken), "on_bad_record": "skip", "seed": 1}
    whole = opened(**settings)
    for _ in range(before):
        whole.next()
    state = json.loads(json.dumps(whole.state()))
    resumed = opened(**settings, workers=5)
    resumed.next()  # a cursor replaces whatever was read before
    resumed.restore(state)
    for _ in range(8):
        (examples, batch), (examples2, batch2) = whole.next(), resumed.next()
        assert examples == examples2
        for ours, theirs in zip(arrays(batch), arrays(batch2), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert whole.state() == resumed.state()
        assert whole.epoch == resumed.epoch


def test_state_does_not_move_the_loader(opened):
    watched, plain = opened(), opened()
    for _ in range(4):
        watched.state()
        assert ids(watched, 1) == ids(plain, 1)


@pytest.mark.parametrize("changed", [{"seed": 9}, {"examples": EXAMPLES[:9]}])
def test_cursor_of_other_data_is_refused(opened, changed):
    state = opened().state()
    with pytest.raises(InputError, match="data cursor"):
        opened(**changed).restore(state)


# ---- damaged images -----------------------------------------------------------------------


def test_damaged_image_stops_the_run(opened):
    with pytest.raises(InputError, match=r"d\.jsonl:7: cannot be decoded"):
        ids(opened(encode=breaking(7)), 3)


def test_damaged_images_are_skipped_counted_once_and_replaced(opened):
    loader = opened(encode=breaking(7, 2), on_bad_record="skip")
    order = flat(ids(loader, 8))  # four epochs of the eight that are left
    assert {kind: sorted(names) for kind, names in loader.dropped.items()} == {
        "unreadable_image": ["2", "7"]
    }
    assert Counter(order) == {n: 4 for n in range(10) if n not in (2, 7)}
    undamaged = flat(ids(opened(), 10))
    assert order == [n for n in undamaged if n not in (2, 7)][:32]


def test_nothing_left_is_an_error_not_a_hang(opened):
    loader = opened(encode=breaking(*range(8)), on_bad_record="skip")
    with pytest.raises(InputError, match="3 of 10 training records are left"):
        ids(loader, 3)


def test_body_larger_than_its_header_is_a_damaged_image(opened):
    def growing(problem):
        return encode(example(problem.id, patches=64 if problem.id == "4" else 4))

    with pytest.raises(InputError, match="larger than its header"):
        ids(opened(encode=growing), 3)
    loader = opened(encode=growing, on_bad_record="skip")
    assert 4 not in flat(ids(loader, 6))


def test_other_exceptions_are_not_taken_for_damaged_images(opened):
    def failing(problem):
        raise ZeroDivisionError(problem.id)

    with pytest.raises(ZeroDivisionError):
        opened(encode=failing, on_bad_record="skip").next()


# ---- memory ---------------------------------------------------------------------------------


def test_reading_ahead_is_bounded(opened):
    lock, count = threading.Lock(), Counter()

    def counting(problem):
        with lock:
            count["encoded"] += 1
        return encode(problem)

    loader = opened(encode=counting, prompts=4, workers=3)
    for step in range(1, 6):
        loader.next()
        time.sleep(0.05)  # let the threads go as far as they may
        assert count["encoded"] <= 4 * step + 8


# ---- several processes ----------------------------------------------------------------------


def in_processes(rows_of_each, program):
    """Runs program(share) in one thread for each process; returns their results."""
    rows = [np.array(rows) for rows in rows_of_each]
    return as_processes(len(rows), lambda k, together: program(Share(rows[k], together)))


def rows_of(batches, rows_of_each):
    """Puts the rows of every process's batches together again."""
    whole = []
    for parts in zip(*batches, strict=True):
        fields = []
        for of_field in zip(*map(arrays, parts), strict=True):
            joined = np.concatenate(of_field)
            order = np.argsort(np.concatenate(rows_of_each), kind="stable")
            fields.append(joined[order])
        whole.append(fields)
    return whole


@pytest.mark.slow
@pytest.mark.parametrize("rows", [[[0, 1], [2, 3]], [[1, 3], [0, 2]], [[0], [1], [2], [3]]])
@pytest.mark.parametrize("broken", [(), (2, 5), (0, 1, 2, 3, 9)])
def test_batches_do_not_depend_on_how_many_processes_share_them(opened, rows, broken):
    settings = {"encode": breaking(*broken), "on_bad_record": "skip", "seed": 1}
    alone = opened(**settings)
    expected = [alone.next() for _ in range(9)]

    def program(share):
        loader = opened(**settings, share=share)
        first = [loader.next() for _ in range(4)]
        resumed = opened(**settings, share=share)
        resumed.restore(json.loads(json.dumps(loader.state())))
        return [*first, *(resumed.next() for _ in range(5))], resumed.state()

    results = in_processes(rows, program)
    assert all(state == alone.state() for _, state in results)
    for found, _ in results:
        assert [examples for examples, _ in found] == [examples for examples, _ in expected]
    batches = rows_of([[batch for _, batch in found] for found, _ in results], rows)
    for whole, (_, batch) in zip(batches, expected, strict=True):
        for ours, theirs in zip(whole, arrays(batch), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_process_encodes_its_own_rows_only(opened):
    seen = [Counter(), Counter()]

    def program(share):
        def counting(problem):
            seen[int(share.rows[0]) // 2][problem.id] += 1
            return encode(problem)

        loader = opened(encode=counting, share=share)
        return [examples for examples, _ in (loader.next() for _ in range(5))]

    whole, _ = in_processes([[0, 1], [2, 3]], program)
    for half in range(2):
        needed = Counter(e.id for batch in whole for e in batch[2 * half : 2 * half + 2])
        assert not needed - seen[half]
        assert (seen[half] - needed).total() <= 4  # two batches ahead


def test_a_damaged_image_of_one_process_stops_all(opened):
    def program(share):
        loader = opened(encode=breaking(7), share=share)
        with pytest.raises(InputError, match=r"d\.jsonl:7: cannot be decoded"):
            ids(loader, 3)
        return True

    assert in_processes([[0, 1], [2, 3]], program) == [True, True]


@pytest.mark.parametrize("broken", [(), (5,), (8, 9)])
def test_shared_evaluation_is_the_same(broken):
    settings = {"prompts": 4, "on_bad_record": "skip", "media": MEDIA}
    expected = list(EvaluationSet(EXAMPLES, breaking(*broken), **settings))
    rows = [[0, 1], [2, 3]]  # the last batch has no example for the second process

    def program(share):
        return list(EvaluationSet(EXAMPLES, breaking(*broken), **settings, share=share))

    results = in_processes(rows, program)
    for found in results:
        for (numbers, examples, _), (numbers2, examples2, _) in zip(found, expected, strict=True):
            assert numbers.tolist() == numbers2.tolist()
            assert examples == examples2
    batches = rows_of([[batch for *_, batch in found] for found in results], rows)
    for whole, (*_, batch) in zip(batches, expected, strict=True):
        for ours, theirs in zip(whole, arrays(batch), strict=True):
            np.testing.assert_array_equal(ours, theirs)


# ---- evaluation -----------------------------------------------------------------------------


def test_evaluation_covers_every_example_once_in_order():
    questions = EvaluationSet(EXAMPLES, encode, media=MEDIA, prompts=4)
    for _ in range(2):  # it can be gone through again
        numbers, examples, batches = zip(*questions, strict=True)
        assert [e.id for e in itertools.chain(*examples)] == [str(n) for n in range(10)]
        assert [n.tolist() for n in numbers] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
        assert [len(e) for e in examples] == [4, 4, 2]
        assert {batch.tokens.shape[0] for batch in batches} == {4}
        assert batches[-1].mask.any(axis=1).tolist() == [True, True, False, False]
        assert not batches[-1].media.image[2:].any()


def test_evaluation_of_fewer_questions_than_rows():
    ((numbers, examples, batch),) = EvaluationSet(EXAMPLES[:2], encode, media=MEDIA, prompts=4)
    assert numbers.tolist() == [0, 1, 2, 3]
    assert len(examples) == 2
    assert batch.mask.any(axis=1).tolist() == [True, True, False, False]


def test_evaluation_of_damaged_images():
    with pytest.raises(InputError, match=r"d\.jsonl:5"):
        list(EvaluationSet(EXAMPLES, breaking(5), media=MEDIA, prompts=4))
    questions = EvaluationSet(EXAMPLES, breaking(5), media=MEDIA, prompts=4, on_bad_record="skip")
    numbers, examples, _ = zip(*questions, strict=True)
    assert [int(e.id) for e in itertools.chain(*examples)] == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert [n.tolist() for n in numbers] == [[0, 1, 2, 3], [4, 6, 7, 8], [9, 10, 11, 12]]
    assert questions.dropped == {"unreadable_image": ["5"]}
    questions = EvaluationSet(
        EXAMPLES[:2], breaking(0, 1), media=MEDIA, prompts=2, on_bad_record="skip"
    )
    with pytest.raises(InputError, match="all 2 records of an evaluation set, the first from "):
        list(questions)


def test_evaluation_can_be_left_early():
    before = threading.active_count()
    for _ in EvaluationSet(EXAMPLES, encode, media=MEDIA, prompts=2, workers=3):
        break
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.02)
    assert threading.active_count() <= before


# ---- shapes ---------------------------------------------------------------------------------


def test_one_bucket_is_the_largest_prompt_rounded_up():
    assert choose_buckets([(17, 4), (5, 40)], 1, 2) == ((32, 48),)
    assert choose_buckets([(16, 32)], 1, 2) == ((16, 32),)


def test_text_alone_gets_the_least_patches():
    assert choose_buckets([(5, 0), (9, 0)], 2, 2) == ((16, 16),)


def test_a_rare_giant_does_not_set_the_shape_of_every_batch():
    sizes = [(100, 400)] * 95 + [(900, 3000)] * 5
    assert choose_buckets(sizes, 2, 2) == ((112, 400), (912, 3008))


def test_a_bucket_that_would_hardly_ever_serve_is_left_out():
    sizes = [(100, 400)] * 80 + [(900, 3000)] * 20  # 0.8 ** 32: no batch is without a giant
    assert choose_buckets(sizes, 2, 32) == ((912, 3008),)
    assert choose_buckets([(100, 400), (101, 402)], 3, 1) == ((112, 416),)


def test_more_buckets_never_make_more_work():
    rng = np.random.default_rng(0)
    sizes = [tuple(map(int, s)) for s in rng.lognormal([4, 6], 1.0, (500, 2)).astype(int) + 1]
    works = []
    for count in (1, 2, 3, 4):
        buckets = choose_buckets(sizes, count, 4)
        assert len(buckets) <= count
        assert all(p % 16 == 0 and i % 16 == 0 for p, i in buckets)
        groups = np.array(sizes)[rng.permutation(500)].reshape(125, 4, 2).max(axis=1)
        fitting = [[sum(b) for b in buckets if (group <= b).all()] for group in groups]
        works.append(sum(map(min, fitting)))
    assert works[1] < 0.8 * works[0]
    assert works[3] <= works[2] * 1.05


def test_batches_take_the_smallest_bucket_that_fits(opened):
    examples = [example(n, *((5, 4) if n else (40, 100))) for n in range(8)]
    loader = opened(examples, prompts=1, buckets=2)
    assert loader.buckets == ((16, 16), (48, 112))
    for _ in range(8):
        (problem,), batch = loader.next()
        shape = (batch.tokens.shape[1], batch.media.image.shape[1])
        assert shape == ((16, 16) if problem.id != "0" else (48, 112))


def test_given_buckets(opened):
    loader = opened(buckets=[(64, 64), (8, 8)])
    assert loader.buckets == ((8, 8), (64, 64))
    assert loader.next()[1].tokens.shape == (4, 8)
    with pytest.raises(InputError, match="enlarge the last bucket"):
        opened(buckets=[(8, 4)])


def test_fit_bucket():
    buckets = ((16, 64), (32, 32), (64, 64))
    assert fit_bucket((16, 4), buckets) == (32, 32)  # 64 in all, against 80
    assert fit_bucket((17, 4), buckets) == (32, 32)
    assert fit_bucket((17, 40), buckets) == (64, 64)
    with pytest.raises(ValueError, match="fit into none"):
        fit_bucket((65, 1), buckets)


def test_no_data_and_unsized_data_are_refused(opened):
    with pytest.raises(InputError, match="without records"):
        opened([])
    with pytest.raises(ValueError, match="without sizes"):
        opened([example(1, tokens=0)])
