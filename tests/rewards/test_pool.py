# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The worker pool: deadlines, deaths, signals, and what it leaves behind.

`eval` is the function mapped, so that an item can be any expression.
"""

import contextlib
import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from rlvlm_jax.rewards import pool as pool_module
from rlvlm_jax.rewards.pool import LOST, Pool

GETPID = "__import__('os').getpid()"
HANG_IN_C = "len(range(9 ** (9 ** 9)))"  # one bytecode that never ends: no signal handler runs


def sleep(seconds, result):
    return f"__import__('time').sleep({seconds}) or {result!r}"


def evaluate(pool, expressions, deadline_s=10.0):
    return pool.map(eval, [(e,) for e in expressions], deadline_s)


def pids(pool):
    return set(evaluate(pool, [sleep(0.1, 0) + f" or {GETPID}"] * 3 * pool.workers))


@pytest.fixture(scope="module")
def pool():
    pool = Pool(workers=2)
    yield pool
    pool.close()


def test_results_keep_the_order_of_the_items(pool):
    expressions = [sleep(0.05 * (i % 3), i) for i in range(12)]
    assert evaluate(pool, expressions) == list(range(12))
    assert pool.map(eval, [], 1.0) == []


def test_waiting_in_the_queue_does_not_count(pool):
    evaluate(pool, ["1", "1"])
    start = time.monotonic()
    assert evaluate(pool, [sleep(0.1, i) for i in range(30)], deadline_s=1.0) == list(range(30))
    assert time.monotonic() - start > 1.0


@pytest.mark.parametrize("hang", [sleep(600, 0), HANG_IN_C], ids=["asleep", "in C"])
def test_hung_item_is_lost_at_its_deadline_and_delays_no_other(pool, hang):
    evaluate(pool, ["1", "1"])
    start = time.monotonic()
    assert evaluate(pool, [hang, *"12345"], deadline_s=1.0) == [LOST, 1, 2, 3, 4, 5]
    assert 1.0 <= time.monotonic() - start < 60.0
    assert evaluate(pool, ["6"]) == [6]


@pytest.mark.slow
def test_more_hangs_than_workers(pool):
    found = evaluate(pool, [sleep(600, 0), "1"] * 4, deadline_s=0.5)
    assert found == [LOST, 1] * 4


def test_item_that_kills_its_worker_is_lost_alone(pool):
    kill = "__import__('os').kill(__import__('os').getpid(), 9)"
    assert evaluate(pool, ["1", kill, "2", "3"], deadline_s=3.0) == [1, LOST, 2, 3]
    assert evaluate(pool, ["4"]) == [4]


def test_item_whose_worker_died_once_is_tried_again(pool, tmp_path):
    flag = str(tmp_path / "flag")
    die_once = (
        f"7 if __import__('os').path.exists({flag!r}) else "
        f"(open({flag!r}, 'w').close(), __import__('time').sleep(0.5), __import__('os')._exit(1))"
    )
    assert evaluate(pool, ["1", die_once], deadline_s=20.0) == [1, 7]


def test_pool_recovers_when_all_idle_workers_are_killed(pool):
    killed = pids(pool)
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    assert evaluate(pool, ["1", "2", "3"]) == [1, 2, 3]
    assert not pids(pool) & killed


def test_workers_ignore_signals_to_the_group(pool):
    before = pids(pool)
    items = threading.Thread(target=lambda: found.extend(evaluate(pool, [sleep(1, 5)] * 2)))
    found = []
    items.start()
    time.sleep(0.4)
    for pid in before:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    items.join()
    assert found == [5, 5]
    assert pids(pool) == before


def test_workers_outlive_the_thread_that_started_them():
    pool = Pool(workers=1)
    found = []
    thread = threading.Thread(target=lambda: found.extend(pids(pool)))
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert psutil.pid_exists(found[0])
    assert pids(pool) == set(found)
    pool.close()
    assert not psutil.pid_exists(found[0])


def test_workers_are_replaced_after_a_number_of_items():
    pool = Pool(workers=1, tasks_per_worker=4)
    found = evaluate(pool, [GETPID] * 10)  # after the one that waits for the first worker
    assert [found.count(pid) for pid in dict.fromkeys(found)] == [3, 4, 3]
    pool.close()


def test_several_threads_share_one_pool(pool):
    found = {}

    def work(name):
        found[name] = evaluate(pool, [sleep(0.02, (name, i)) for i in range(10)])

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: [(name, i) for i in range(10)] for name in "abc"}


def test_exception_of_a_function_of_ours_is_raised(pool):
    with pytest.raises(ZeroDivisionError):
        evaluate(pool, ["1", "1/0"])


def test_interrupted_map_leaves_no_work_in_the_queue(pool):
    evaluate(pool, ["1", "1"])

    class Interrupt(Exception):
        pass

    def interrupt(signum, frame):
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    gc.disable()  # JAX has a callback there, and what a handler raises in a callback is dropped
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(Interrupt):
            evaluate(pool, [sleep(30, 0)] * 4, deadline_s=60.0)
    finally:
        gc.enable()
        signal.signal(signal.SIGALRM, before)
    start = time.monotonic()
    assert evaluate(pool, ["1"]) == [1]
    assert time.monotonic() - start < 20.0


@pytest.mark.slow
@pytest.mark.parametrize("every_s", [0.02, 0.5])  # while items are submitted; while they run
def test_close_while_busy_ends_the_map_at_once_and_a_later_one_starts_anew(every_s):
    pool = Pool(workers=2)
    before = pids(pool)
    ended = threading.Event()

    def close_until_ended():  # on a busy machine the first may come before the map has begun
        while not ended.wait(every_s):
            pool.close()

    closing = threading.Thread(target=close_until_ended)
    closing.start()
    start = time.monotonic()
    try:
        with pytest.raises(RuntimeError, match="was closed while it was working"):
            evaluate(pool, [sleep(600, 0)] * 5000, deadline_s=700.0)
    finally:
        ended.set()
        closing.join()
    assert time.monotonic() - start < 60.0
    assert gone(before, within_s=10.0)
    assert evaluate(pool, ["1"]) == [1]
    pool.close()


@pytest.mark.slow
def test_workers_that_cannot_start_are_an_error():
    pool = Pool(workers=2, warm_up=os.abort)
    with pytest.raises(RuntimeError, match="do not start"):
        evaluate(pool, ["1"] * 10, deadline_s=2.0)
    pool.close()


def test_workers_killed_while_they_start_are_started_again(tmp_path):
    pool = Pool(workers=1, warm_up=functools.partial(die_once, str(tmp_path / "died")))
    assert evaluate(pool, ["1"]) == [1]
    assert (tmp_path / "died").exists()
    pool.close()


def die_once(path):
    if not os.path.exists(path):
        open(path, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)


def test_memory_limit_turns_a_runaway_allocation_into_an_error():
    if sys.platform != "linux":
        pytest.skip("the limit exists on Linux only")
    with pool_module.limited_memory(), pytest.raises(MemoryError):
        bytearray(2 * pool_module.MEMORY_BYTES)


# --------------------------------------------------------------------------------------------------
# Whole programs
# --------------------------------------------------------------------------------------------------

PROGRAM = r"""
print("main runs", flush=True)
import sys, time
from rlvlm_jax.rewards import judge, pool
pool.shared(1)
print(judge(r"\boxed{x+x}", r"\boxed{2x}"), flush=True)
print(pool.shared().map(eval, [("'jax' in __import__('sys').modules",)], 9.0), flush=True)
print("jax" in sys.modules, flush=True)
"""
EXPECTED = "main runs\nVerdict(correct=True, status='ok')\n[False]\nFalse\n"


@pytest.mark.parametrize(
    "how",
    ["script", *(pytest.param(how, marks=pytest.mark.slow) for how in ("stdin", "module", "-c"))],
)
def test_workers_do_not_run_the_users_script_nor_load_jax(tmp_path, how):
    script = tmp_path / "unguarded_script.py"
    script.write_text(PROGRAM)
    command = {
        "script": [str(script)],
        "stdin": ["-"],
        "module": ["-m", "unguarded_script"],
        "-c": ["-c", PROGRAM],
    }[how]
    done = subprocess.run(
        [sys.executable, *command],
        input=PROGRAM if how == "stdin" else "",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == (EXPECTED, "", 0)


HANGING = rf"""
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from rlvlm_jax.rewards.pool import Pool
pool = Pool(workers=2)
print(*set(pool.map(eval, [("__import__('time').sleep(0.2) or {GETPID}",)] * 6, 9.0)), flush=True)
pool.map(eval, [({HANG_IN_C!r},), ("__import__('time').sleep(600)",)], 600.0)
"""


@contextlib.contextmanager
def started(program):
    """Yields (process, pids of its two workers); whatever happens, none of them stays."""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:
        try:
            workers = [int(pid) for pid in process.stdout.readline().split()]
            assert len(workers) == 2
            time.sleep(0.5)  # until they hang
            yield process, workers
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def gone(pids, within_s):
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not any(psutil.pid_exists(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_no_orphan_is_left_when_the_parent_is_killed():
    with started(HANGING) as (process, workers):
        process.kill()
        process.communicate()
        assert gone(workers, within_s=10.0)


@pytest.mark.slow
@pytest.mark.parametrize("again", [1, 3])
def test_ctrl_c_ends_the_group_with_the_parents_traceback_alone(again):
    with started(HANGING) as (process, workers):
        for _ in range(again):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.02)
        _, errors = process.communicate(timeout=30)
        assert process.returncode != 0
        assert gone(workers, within_s=10.0)
    if again == 1:
        assert errors.count("Traceback") == 1
        assert errors.rstrip().endswith("KeyboardInterrupt")


STARTING = """
import signal, sys, threading, time
signal.signal(signal.SIGINT, lambda *_: None)
signal.signal(signal.SIGTERM, lambda *_: None)
from rlvlm_jax.rewards.pool import Pool
print("0 0", flush=True)
print(Pool(workers=4).map(eval, [("6*7",)] * 8, 9.0), flush=True)
"""


@pytest.mark.slow
def test_signals_while_workers_start_hurt_nobody():
    process = subprocess.Popen(
        [sys.executable, "-c", STARTING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    process.stdout.readline()
    for _ in range(40):
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.02)
    output, errors = process.communicate(timeout=60)
    assert (output, errors) == (f"{[42] * 8}\n", "")


FORKING = """
import os, sys, warnings
warnings.simplefilter("ignore")
from rlvlm_jax.rewards import judge, pool
before = pool.shared(1).map(os.getpid, [()], 9.0)
child = os.fork()
if child == 0:
    print(judge(r"\\\\boxed{x+x}", r"\\\\boxed{2x}").correct, flush=True)
    sys.exit(0)
os.waitpid(child, 0)
print(before == pool.shared().map(os.getpid, [()], 9.0), flush=True)
""".replace("\\\\\\\\", "\\")


@pytest.mark.slow
def test_forked_child_gets_workers_of_its_own_and_leaves_its_parents():
    done = subprocess.run(
        [sys.executable, "-c", FORKING],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("True\nTrue\n", "")
