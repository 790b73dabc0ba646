"""Executors: calls that run in processes here and elsewhere, on real servers."""

import concurrent.futures
import io
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import manyhands
import pytest
from conftest import TIMEOUT, eventually, finish
from manyhands import _executor, _manyhands, _progress, _worker
from manyhands import _remote_calls as _calls
from test_worker import KEY, Crew, is_alive

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes of a worker need POSIX")


def square(n):
    return n * n


def wrong(n):
    if n == 7:
        raise ValueError("no {}".format(n))
    return n


def die(n):
    if n == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def my_pid(_=None):
    return os.getpid()


def my_parent(_):
    return os.getppid()


def lock(_):
    return threading.Lock()


class Stubborn(Exception):
    def __init__(self, one, two):
        super().__init__(one)


def stubborn():
    raise Stubborn(1, 2)


class Unreadable:
    def __reduce__(self):
        return int, ("no number",)


def unreadable():
    return Unreadable()


def wait_for(path):
    with open(path + ".pids", "a") as file:
        print(os.getpid(), file=file)
    while not os.path.exists(path):
        time.sleep(0.005)
    return path


def add(a, b, c=0):
    return a + b + c


def echo(item):
    return item


@pytest.fixture(scope="module")
def executor():
    with manyhands.Executor(workers=2) as executor:
        yield executor


@pytest.fixture
def crew(tmp_path):
    crew = Crew(tmp_path)
    yield crew
    crew.close()


def names(crew):
    return {task for task in names_of(crew)}


def names_of(crew):
    import asyncio

    from manyhands import _worker, aio

    async def ask():
        async with aio.connect(crew.server.address, KEY) as client:
            return await _worker.names(client, "calls")

    return asyncio.run(ask())


def work(crew, *options, jobs=2):
    """A worker for executors, which finds this module."""
    here = os.path.dirname(os.path.abspath(__file__))
    command = [sys.executable, "-m", "manyhands", "worker", "-j", str(jobs)]
    command += ["--connect", crew.server.address, "--authkey-file", str(crew.key), *options]
    worker = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        cwd=here,
        start_new_session=True,
    )
    crew._workers.append(worker)
    return worker


# ---- calls


def test_a_call_has_a_result(executor):
    future = executor.submit(add, 1, 2, c=3)
    assert future.result(TIMEOUT) == 6 and future.done()


def test_calls_run_in_processes_of_their_own(executor):
    pids = set(executor.map(my_pid, range(50), chunksize=1))
    assert pids and os.getpid() not in pids
    assert set(executor.map(my_parent, range(5))) == {os.getpid()}


def test_an_exception_comes_with_its_traceback(executor):
    future = executor.submit(wrong, 7)
    error = future.exception(TIMEOUT)
    assert (type(error), error.args) == (ValueError, ("no 7",))
    assert isinstance(error.__cause__, manyhands.RemoteTraceback)
    assert "in wrong" in str(error.__cause__) and "_child.py" not in str(error.__cause__)


def test_an_exception_that_cannot_travel_is_told(executor):
    error = executor.submit(stubborn).exception(TIMEOUT)
    assert type(error) is manyhands.RemoteError
    assert "Stubborn: 1 (the exception itself cannot be pickled)" in str(error)
    assert "in stubborn" in str(error.__cause__)


def test_a_result_that_cannot_be_pickled_is_told(executor):
    error = executor.submit(lock, 1).exception(TIMEOUT)
    assert type(error) is pickle.PicklingError
    assert str(error).startswith(
        "the result of test_executor.lock cannot be pickled: cannot pickle"
    )


def test_a_result_that_cannot_be_unpickled_is_told(executor):
    error = executor.submit(unreadable).exception(TIMEOUT)
    assert type(error) is manyhands.RemoteError
    assert str(error).startswith("the result cannot be unpickled here: ValueError(")


def test_an_argument_that_cannot_be_pickled_is_told(executor, monkeypatch):
    monkeypatch.setattr(_calls, "cloudpickle", None)
    error = executor.submit(square, threading.Lock()).exception(TIMEOUT)
    assert type(error) is TypeError and "cannot pickle" in str(error)


def test_an_argument_that_cannot_be_unpickled_is_told(executor):
    error = executor.submit(square, Unreadable()).exception(TIMEOUT)
    assert type(error) is manyhands.RemoteError
    assert "cannot unpickle the call: ValueError" in str(error)


def test_a_function_without_a_name_needs_cloudpickle(executor, monkeypatch):
    if _calls.cloudpickle is not None:
        assert executor.submit(lambda n: n + 1, 1).result(TIMEOUT) == 2
    monkeypatch.setattr(_calls, "cloudpickle", None)
    error = executor.submit(lambda n: n + 1, 1).exception(TIMEOUT)
    assert type(error) is pickle.PicklingError
    assert "has no name that workers could import it by" in str(error)
    assert "install cloudpickle" in str(error)


def test_a_call_whose_process_dies_fails_alone(executor):
    futures = [executor.submit(die, n) for n in range(10)]
    error = futures[7].exception(TIMEOUT)
    assert type(error) is manyhands.TaskFailed and len(error.reasons) == 3
    assert str(error).startswith("given up after 3 attempts: its process was killed by SIGKILL")
    del futures[7]
    assert [it.result(TIMEOUT) for it in futures] == [n for n in range(10) if n != 7]


def test_futures_are_those_of_the_standard_library(executor):
    futures = [executor.submit(square, n) for n in range(20)]
    done = concurrent.futures.as_completed(futures, TIMEOUT)
    assert sorted(it.result() for it in done) == [n * n for n in range(20)]
    done, waiting = concurrent.futures.wait(futures, TIMEOUT)
    assert (len(done), len(waiting)) == (20, 0)


# ---- map


@pytest.mark.parametrize("chunksize", ["auto", 1, 7, 1000])
@pytest.mark.parametrize("buffersize", [None, 1, 10])
def test_map_returns_results_in_order(executor, chunksize, buffersize):
    found = executor.map(square, range(100), chunksize=chunksize, buffersize=buffersize)
    assert list(found) == [n * n for n in range(100)]


def test_map_takes_several_inputs(executor):
    assert list(executor.map(add, [1, 2, 3], (10, 20, 30), [5, 5])) == [16, 27]
    assert list(executor.map(square, [])) == []


@pytest.mark.parametrize("chunksize", ["auto", 1, 8])
@pytest.mark.parametrize("function, kind", [(wrong, ValueError), (die, manyhands.TaskFailed)])
def test_map_names_the_item_that_failed(executor, chunksize, function, kind):
    found, results = [], executor.map(function, range(12), chunksize=chunksize)
    with pytest.raises(kind) as caught:
        for result in results:
            found.append(result)
    assert found == list(range(7))
    if sys.version_info >= (3, 11):
        assert caught.value.__notes__ == ["raised for item 7 of map, counted from 0"]


def test_map_names_an_item_that_cannot_be_pickled(executor, monkeypatch):
    monkeypatch.setattr(_calls, "cloudpickle", None)
    results = executor.map(echo, [0, 1, threading.Lock(), 3], chunksize=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(TypeError, match="cannot pickle"):
        next(results)


@pytest.mark.parametrize("chunksize", ["auto", 1, 3])
def test_map_takes_no_more_items_than_its_buffer_has_room_for(executor, chunksize):
    taken = itertools.count()
    results = executor.map(square, taken, chunksize=chunksize, buffersize=10)
    for n in range(100):
        assert next(results) == n * n
        # `count` says what it would return next.
        assert n + 1 <= int(repr(taken)[6:-1]) <= n + 11
    results.close()


def test_map_of_an_endless_input_ends_when_it_is_left(executor):
    results = executor.map(square, itertools.count())
    assert list(itertools.islice(results, 1000)) == [n * n for n in range(1000)]
    results.close()
    eventually(lambda: not executor._master._futures)


def test_map_ends_in_time(executor, tmp_path):
    path = str(tmp_path / "never")
    results = executor.map(wait_for, [path], timeout=0.2)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)
    open(path, "w").close()


def test_short_calls_travel_in_chunks(executor):
    list(executor.map(square, range(3000)))
    mapping = _executor._Map(executor, square, zip(range(20_000)), "auto", None)
    mapping.fill()
    for _ in mapping.results(None):
        pass
    assert mapping._size() > 10


def test_large_items_travel_in_small_chunks(executor):
    mapping = _executor._Map(executor, len, iter([(bytes(1 << 19),)] * 3), "auto", 1)
    mapping.fill()
    assert list(mapping.results(None)) == [1 << 19] * 3
    mapping._pace, mapping._buffersize = 0, None
    assert mapping._size() == 1


@pytest.mark.parametrize(
    "wrong", [{"chunksize": 0}, {"chunksize": "some"}, {"buffersize": 0}, {"buffersize": True}]
)
def test_what_map_cannot_use_is_named(executor, wrong):
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        executor.map(square, [1], **wrong)


# ---- shutdown


def test_shutdown_waits_for_what_was_begun_and_leaves_no_process():
    executor = manyhands.Executor(workers=1)
    pid = executor.submit(my_pid).result(TIMEOUT)
    futures = [executor.submit(square, n) for n in range(10)]
    executor.shutdown()
    assert all(it.done() for it in futures) and not is_alive(pid)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 1)
    executor.shutdown()


def test_shutdown_cancels_what_was_not_begun(tmp_path):
    path = str(tmp_path / "path")
    executor = manyhands.Executor(workers=1)
    first = executor.submit(wait_for, path)
    others = [executor.submit(square, n) for n in range(20)]
    eventually(lambda: os.path.exists(path + ".pids"))
    executor.shutdown(wait=False, cancel_futures=True)
    eventually(lambda: sum(it.cancelled() for it in others) >= 19)
    open(path, "w").close()
    assert first.result(TIMEOUT) == path
    # One may have been with the worker already.
    assert not concurrent.futures.wait(others, TIMEOUT).not_done
    executor.shutdown()


def test_an_executor_that_nobody_has_any_more_ends():
    executor = manyhands.Executor(workers=1)
    pid = executor.submit(my_pid).result(TIMEOUT)
    master = executor._master
    del executor
    master.join(TIMEOUT)
    assert not master.is_alive() and not is_alive(pid)


SCRIPT = """
    import os, sys
    import manyhands

    def square(n):
        return n * n

    class Point:
        def __init__(self, x):
            self.x = x

    def double(point):
        return Point(2 * point.x)

    ex = manyhands.Executor(workers=2)
    print("one line", flush=True)
    print(*ex.map(square, range(5)))
    print(ex.submit(double, Point(4)).result().x)
    {}
"""


@pytest.mark.parametrize("end", ["ex.shutdown()", "pass", "sys.exit(0)", "del ex"])
def test_a_script_needs_no_guard(program, end):
    out, err, code = finish(program("script.py", SCRIPT.format(end)).start())
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "one line" and lines.count("one line") == 1
    assert lines[1:] == ["0 1 4 9 16", "8"]


def test_processes_find_modules_where_their_program_does(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "struct.py").write_text("raise SystemExit('not this one')")
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT.format("pass")))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=str(elsewhere), timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0


def test_a_program_may_ignore_the_end_of_its_processes(program):
    ignores = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    script = (
        textwrap.dedent(SCRIPT)
        .format("pass")
        .replace("import os, sys", "import os, sys\n" + ignores)
    )
    _, err, code = finish(program("script.py", script).start())
    assert (code, err) == (0, "")


def test_ctrl_c_ends_a_script_and_its_processes(program, tmp_path):
    path = str(tmp_path / "path")
    script = program(
        "script.py",
        """
        import os, sys, time
        import manyhands

        def wait(path):
            with open(path, "w") as file:
                print(os.getpid(), file=file)
            while True:
                time.sleep(1)

        with manyhands.Executor(workers=1) as ex:
            for result in ex.map(wait, [sys.argv[1]]):
                pass
        """,
    ).start(args=[path])
    eventually(lambda: os.path.exists(path) and open(path).read().endswith("\n"))
    script.send_signal(signal.SIGINT)
    _, err, code = finish(script)
    assert code == -signal.SIGINT and err.rstrip().endswith("KeyboardInterrupt")
    assert not is_alive(int(open(path).read()))


def test_a_master_that_is_killed_leaves_no_process(program, tmp_path):
    script = program(
        "script.py",
        """
        import os, sys, time
        import manyhands

        def wait(path):
            with open(path, "w") as file:
                print(os.getpid(), file=file)
            while True:
                time.sleep(1)

        with manyhands.Executor(workers=2) as ex:
            list(ex.map(wait, sys.argv[1:]))
        """,
    )
    paths = [str(tmp_path / name) for name in "ab"]
    process = script.start(args=paths)
    eventually(lambda: all(os.path.exists(it) and open(it).read().strip() for it in paths))
    process.kill()
    finish(process)
    eventually(lambda: not any(is_alive(int(open(path).read())) for path in paths))


# ---- workers elsewhere


def test_workers_of_a_server_run_the_calls_and_nothing_is_left_there(crew):
    work(crew)
    work(crew)
    with manyhands.Executor(crew.server.address, authkey_file=str(crew.key)) as one:
        with manyhands.Executor(crew.server.address, authkey=KEY) as two:
            found = one.map(square, range(50)), two.map(add, range(50), range(50))
            assert list(found[0]) == [n * n for n in range(50)]
            assert list(found[1]) == [n + n for n in range(50)]
            assert one.submit(my_pid).result(TIMEOUT) != os.getpid()
            assert names(crew)
    assert not names(crew)


def test_a_worker_that_is_told_to_end_begins_no_more_calls(crew, tmp_path):
    path = tmp_path / "go"
    worker = work(crew, jobs=1)
    executor = manyhands.Executor(crew.server.address, authkey=KEY)
    try:
        first = executor.submit(wait_for, str(path))
        eventually(lambda: os.path.exists(str(path) + ".pids"))
        worker.send_signal(signal.SIGTERM)
        assert "ends after 1 tasks" in worker.stderr.readline()
        second = executor.submit(square, 3)
        # So long it takes to look for queues that are new.
        time.sleep(3 * _worker._LOOK_PAUSE)
        path.touch()
        assert first.result(TIMEOUT) == str(path)
        assert finish(worker)[2] == 0
        assert not second.done()
    finally:
        executor.shutdown(cancel_futures=True)


def test_a_worker_without_the_code_says_so(crew):
    work(crew)
    crew.write("def new(): pass", "newer.py")
    sys.path.insert(0, str(crew.directory))
    try:
        import newer

        with manyhands.Executor(crew.server.address, authkey=KEY) as executor:
            error = executor.submit(newer.new).exception(TIMEOUT)
    finally:
        sys.path.remove(str(crew.directory))
    assert type(error) is manyhands.RemoteError
    assert "ModuleNotFoundError: No module named 'newer'; does it have the same version" in str(
        error
    )


def test_a_worker_that_is_killed_costs_an_attempt(crew, tmp_path):
    worker = work(crew, jobs=1)
    path = str(tmp_path / "path")
    with manyhands.Executor(crew.server.address, authkey=KEY) as executor:
        future = executor.submit(wait_for, path)
        eventually(lambda: os.path.exists(path + ".pids"))
        worker.kill()
        open(path, "w").close()
        work(crew, jobs=1)
        assert future.result(TIMEOUT) == path


def test_a_server_that_is_not_there_is_an_error_at_once():
    with pytest.raises(ConnectionRefusedError):
        manyhands.Executor("127.0.0.1:1", authkey=KEY, reconnect=0)


def test_a_server_that_goes_breaks_the_executor(crew):
    executor = manyhands.Executor(crew.server.address, authkey=KEY, reconnect=0)
    future = executor.submit(square, 1)
    crew.server.stop()
    assert isinstance(future.exception(TIMEOUT), concurrent.futures.BrokenExecutor)
    with pytest.raises(concurrent.futures.BrokenExecutor):
        executor.submit(square, 1)
    executor.shutdown()


def test_a_server_whose_queues_are_fixed_says_so(crew, tmp_path):
    ready = tmp_path / "ready"
    serve = [sys.executable, "-m", "manyhands", "serve", "--listen", "127.0.0.1:0"]
    serve += ["--ready-file", str(ready), "--authkey-file", str(crew.key), "--queue", "tasks"]
    server = subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: ready.exists() and ready.read_text().endswith("\n"))

        address = json.loads(ready.read_text())["addresses"][0]
        with pytest.raises(manyhands.ManyhandsError, match="are declared in its options"):
            manyhands.Executor(address, authkey=KEY)
    finally:
        server.kill()
        server.wait()


# ---- wrong use


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": 0},
        {"workers": "two"},
        {"attempts": 0},
        {"max_run": -1},
        {"run": "night"},
        {"address": "127.0.0.1:1", "run": "a/b"},
        {"address": 4},
    ],
)
def test_what_an_executor_cannot_use_is_named(wrong):
    name = "run" if "run" in wrong else next(iter(wrong))
    with pytest.raises((TypeError, ValueError), match=name):
        manyhands.Executor(**wrong)


def test_the_embedded_server_is_a_server():
    server = _manyhands.Embedded("127.0.0.1:0", KEY)
    with manyhands.connect(server.address, KEY) as client:
        client.queue("any").put(1)
        assert client.queue("any").get() == 1
    server.stop()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        manyhands.connect(server.address, KEY, reconnect=0)


# ---- runs


def test_a_cancelled_call_is_killed(executor, tmp_path):
    path = str(tmp_path / "path")
    future = executor.submit(wait_for, path)
    eventually(lambda: os.path.exists(path + ".pids"))
    assert future.cancel() and future.cancelled()
    eventually(lambda: not is_alive(int(open(path + ".pids").read().split()[0])))
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    assert executor.submit(square, 3).result(TIMEOUT) == 9


def test_a_call_that_was_cancelled_is_killed_on_other_machines_too(crew, tmp_path):
    work(crew, "--hold", "1", jobs=1)
    running, waiting = str(tmp_path / "running"), [str(tmp_path / str(n)) for n in range(3)]
    with manyhands.Executor(crew.server.address, authkey=KEY) as executor:
        first = executor.submit(wait_for, running)
        others = [executor.submit(wait_for, path) for path in waiting]
        eventually(lambda: os.path.exists(running + ".pids"))
        assert all(it.cancel() for it in [first, *others])
        assert executor.submit(square, 3).result(TIMEOUT) == 9
        assert not is_alive(int(open(running + ".pids").read().split()[0]))
    assert not any(os.path.exists(path + ".pids") for path in waiting[1:])


def note_and_square(path, n):
    with open(path, "a") as file:
        file.write("{}\n".format(n))
    return n * n


def test_the_next_master_of_a_run_gets_what_is_done(crew, tmp_path):
    path = str(tmp_path / "calls")
    work(crew)

    def run(inputs):
        return manyhands.Executor(crew.server.address, authkey=KEY, run="night-42")

    with pytest.raises(ZeroDivisionError):
        with run(10) as executor:
            for n, result in enumerate(executor.map(note_and_square, [path] * 10, range(10))):
                assert result == n * n
                if n == 5:
                    raise ZeroDivisionError
    assert names(crew)
    with run(20) as executor:
        found = list(executor.map(note_and_square, [path] * 20, range(20)))
        assert found == [n * n for n in range(20)]
        # A call that is the same is another one all the same.
        assert executor.submit(note_and_square, path, 3).result(TIMEOUT) == 9
    with open(path) as file:
        made = sorted(map(int, file.read().split()))
    assert made == sorted([*range(20), 3])
    assert not names(crew)


MASTER = """
    import sys
    import manyhands
    from test_executor import note_and_square

    address, key, path, count = sys.argv[1:]
    count = int(count)
    with manyhands.Executor(address, authkey_file=key, run="storm") as ex:
        for n, result in enumerate(ex.map(note_and_square, [path] * count, range(count))):
            assert result == n * n
            print(n, flush=True)
"""


def test_a_master_of_a_run_that_is_killed_goes_on_where_it_was(crew, program, tmp_path):
    work(crew)
    path, count = str(tmp_path / "calls"), 200
    master = program("master.py", MASTER)
    args = [crew.server.address, str(crew.key), path, str(count)]
    environment = os.path.dirname(os.path.abspath(__file__))
    os.environ["PYTHONPATH"] = environment
    try:
        for _ in range(3):
            process = master.start(args=args)
            for n in range(20):
                assert process.stdout.readline() == "{}\n".format(n)
            process.kill()
            finish(process)
        out, err, code = finish(master.start(args=args))
    finally:
        del os.environ["PYTHONPATH"]
    assert (code, err) == (0, "")
    assert out.split() == [str(n) for n in range(count)]
    with open(path) as file:
        # Nobody killed a worker: each call was made once.
        assert sorted(map(int, file.read().split())) == list(range(count))
    assert not names(crew)


def serving(crew, tmp_path, listen, *options):
    """A server that may be killed."""
    ready = tmp_path / "ready"
    if ready.exists():
        ready.unlink()
    command = [sys.executable, "-m", "manyhands", "serve", "--listen", listen, *options]
    command += ["--ready-file", str(ready), "--authkey-file", str(crew.key)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    crew._workers.append(server)
    eventually(lambda: ready.exists() and ready.read_text().endswith("\n"))
    return server, json.loads(ready.read_text())["addresses"][0]


def test_a_run_outlives_its_workers_and_its_server(crew, program, tmp_path):
    data = "--data", str(tmp_path / "data")
    crew.server.stop()
    server, address = serving(crew, tmp_path, "127.0.0.1:0", *data)
    crew.server = SimpleNamespace(address=address, stop=lambda: None)
    workers = [work(crew, "--hold", "1", jobs=1) for _ in range(2)]
    path, count = str(tmp_path / "calls"), 300
    with manyhands.Executor(address, authkey=KEY, run="storm", attempts=50) as executor:
        results = executor.map(note_and_square, [path] * count, range(count))
        for n in range(count):
            if n in (50, 150):
                server.kill()
                server.wait()
                server, _ = serving(crew, tmp_path, address, *data)
            if n in (75, 200):
                workers[0].kill()
                workers[0] = work(crew, "--hold", "1", jobs=1)
            assert next(results) == n * n
        assert not list(results)
    with open(path) as file:
        assert set(map(int, file.read().split())) == set(range(count))
    assert not names(crew), "nothing of it stays"
    server.kill()
    server.wait()


def test_an_executor_fails_once_its_server_has_come_back_without_the_calls(crew, tmp_path):
    crew.server.stop()
    server, address = serving(crew, tmp_path, "127.0.0.1:0")
    crew.server = SimpleNamespace(address=address, stop=lambda: None)
    with pytest.raises(concurrent.futures.BrokenExecutor, match="without the calls"):
        with manyhands.Executor(address, authkey=KEY) as executor:
            call = executor.submit(add, 1, 2)
            eventually(lambda: call.number is not None)
            server.kill()
            server.wait()
            server, _ = serving(crew, tmp_path, address)
            call.result(TIMEOUT)
    server.kill()
    server.wait()


def test_a_master_learns_that_there_are_no_workers(crew, monkeypatch):
    told = io.StringIO()
    monkeypatch.setattr(_executor, "_WATCH_PAUSE", 0.01)
    monkeypatch.setattr(sys, "stderr", told)
    with manyhands.Executor(crew.server.address, authkey=KEY) as executor:
        call = executor.submit(add, 1, 2)
        eventually(lambda: "no worker has taken a call" in told.getvalue())
        work(crew, jobs=1)
        assert call.result(TIMEOUT) == 3
    assert told.getvalue().count("\n") == 1, "it is said once"


# ---- progress


def test_progress_is_a_line_that_goes_when_it_is_done(monkeypatch):
    told = io.StringIO()
    monkeypatch.setattr(_progress, "_DELAY", 0)
    monkeypatch.setattr(_progress, "_PAUSE", 0)
    monkeypatch.setattr(sys, "stderr", told)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert list(_progress.shown((n for n in range(3)), 3, True)) == [0, 1, 2]
    lines = told.getvalue().split("\r")[1:]
    assert [line.partition(",")[0] for line in lines] == ["1 of 3", "2 of 3", "3 of 3", "\x1b[K"]


def test_progress_tells_rate_and_time_left():
    assert _progress.text(30, 120, 60.0) == "30 of 120, 0.5/s, 0:03:00 left"
    assert _progress.text(3000, None, 2.0) == "3,000 done, 1.5e+03/s"


def test_without_a_terminal_there_is_no_progress(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    results = iter(())
    assert _progress.shown(results, 3, None) is results
