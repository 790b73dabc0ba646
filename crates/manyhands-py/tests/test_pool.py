"""`manyhands.Pool`: what it has beside the standard library's pool, and that one's own tests."""

import itertools
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import manyhands
import pytest
from conftest import TIMEOUT, eventually, finish
from manyhands import _pool
from test_worker import KEY, Crew

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes of a worker need POSIX")
HERE = os.path.dirname(os.path.abspath(__file__))
state = []


def begin(*what):
    state.append(what)


def begin_wrongly():
    raise OSError("no disk")


def state_of(n):
    return n, state


def square(n):
    return n * n


@pytest.fixture
def crew(tmp_path):
    crew = Crew(tmp_path)
    yield crew
    crew.close()


def test_the_standard_librarys_tests_of_pools_pass_on_ours():
    command = [sys.executable, os.path.join(HERE, "stdlib_pool.py")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "universal_newlines": True}
    done = subprocess.run(command, timeout=10 * TIMEOUT, check=False, **pipes)
    if "NOT RUN" in done.stdout:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout


def test_an_initializer_is_called_once_in_each_process():
    with manyhands.Pool(2, begin, ("a", 1)) as pool:
        assert pool.map(state_of, range(20)) == [(n, [("a", 1)]) for n in range(20)]
        assert pool.apply(state_of, (5,)) == (5, [("a", 1)])


def test_what_an_initializer_raises_fails_the_call():
    with manyhands.Pool(1, begin_wrongly) as pool, pytest.raises(OSError, match="no disk"):
        pool.apply(square, (3,))


def test_what_is_not_supported_is_refused():
    with pytest.raises(NotImplementedError, match="maxtasksperchild= is not supported"):
        manyhands.Pool(1, maxtasksperchild=10)
    with pytest.raises(ValueError, match="processes= must be at least 1, not 0"):
        manyhands.Pool(0)
    with pytest.raises(TypeError, match="initializer= must be callable, not 3"):
        manyhands.Pool(1, 3)
    with pytest.raises(RuntimeError, match="should only be shared between processes"):
        manyhands.Pool(1, begin, (multiprocessing.Lock(),))


def test_calls_go_to_the_server_that_is_named(crew):
    with manyhands.Pool(2, address=crew.server.address, authkey=KEY) as pool:
        assert pool.starmap(pow, [(2, 3), (3, 2)]) == [8, 9]
        assert [queue for queue in crew.client.queues() if queue.name.startswith("calls/")]


def test_an_endless_input_is_taken_as_it_is_needed():
    with manyhands.Pool(1) as pool:
        results = pool.imap(square, itertools.count())
        assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]


def test_who_waits_is_told_when_the_pool_is_terminated():
    pool = manyhands.Pool(1)
    begun = pool.apply_async(time.sleep, (1000,))
    mapped = pool.map_async(time.sleep, [1000] * 10, chunksize=3)
    lazy = pool.imap(time.sleep, itertools.repeat(1000))
    threading.Timer(0.2, pool.terminate).start()
    for wait in (begun.get, mapped.get, lambda _: next(lazy)):
        with pytest.raises(multiprocessing.ProcessError, match="the pool was terminated"):
            wait(TIMEOUT)
    pool.join()
    assert next(lazy, None) is None


def test_a_callback_may_terminate_its_pool():
    pool = manyhands.Pool(1)
    pool.apply_async(square, (3,), callback=lambda _: pool.terminate()).wait(TIMEOUT)
    pool.join()


def test_a_pool_that_nobody_has_any_more_ends():
    pool = manyhands.Pool(1)
    feeder = pool._feeder
    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):
        del pool
    # The warning had it.
    eventually(lambda: not feeder.is_alive())


def test_a_pool_that_is_not_closed_ends_with_its_program(program):
    script = program(
        "script.py",
        """
        import itertools, time, manyhands
        pool = manyhands.Pool(1)
        print(pool.apply(pow, (2, 3)))
        pool.imap(time.sleep, itertools.repeat(1000))
        """,
    )
    began = time.monotonic()
    out, err, code = finish(script.start())
    assert (out, err, code) == ("8\n", "", 0)
    assert time.monotonic() - began < TIMEOUT


def test_so_many_calls_are_under_way_as_fit():
    taken = []
    with manyhands.Pool(1) as pool:
        pool.imap(time.sleep, (taken.append(n) or 1000 for n in itertools.count()))
        eventually(lambda: len(taken) == _pool._WINDOW + 1)


def test_a_pool_ends_whatever_was_asked_of_it():
    pool = manyhands.Pool(1)
    for _ in range(3 * _pool._WINDOW):
        pool.apply_async(time.sleep, (0.01,))
    pool.terminate()
    pool._feeder.join(TIMEOUT)
    assert not pool._feeder.is_alive()
