"""Workers: real processes, on a real server, that run functions and die in every way."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap

import manyhands
import pytest
from conftest import TIMEOUT, eventually, finish, kill
from manyhands import _manyhands, _worker, aio

KEY = b"a key of more than sixteen bytes"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes of a worker need POSIX")

FUNCTIONS = """
    import os, resource, signal, subprocess, sys, time
    from manyhands import GiveUp

    def square(n): return n * n

    def wrong(n): raise KeyError("no " + str(n))

    def hopeless(n): raise GiveUp("never")

    def segfault(n):
        if n == 3:
            print("about to fail", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        return n

    def leave(n): os._exit(7)

    def go(n): sys.exit(5)

    def lock(n): return open(__file__)

    def exhaust(n):
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        return len(bytearray(1 << 34))

    def note(path):
        with open(path, "a") as file:
            print(os.getpid(), file=file)

    def wait(path):
        note(path + ".pids")
        while not os.path.exists(path):
            time.sleep(0.005)
        return path

    def hang(path):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note(path)
        while True:
            time.sleep(1)

    def hang_once(path):
        if not os.path.exists(path):
            hang(path)
        return "the second time"

    def breed(path):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        with open(path, "w") as file:
            print(child.pid, file=file)
        return wait(path + ".end")

    def breed_and_die(path):
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(1)
        with open(path, "w") as file:
            print(pid, file=file)
        os._exit(1)

    def come_back_twice(n): return os.fork() == 0 and "the child" or "the parent"

    def chatter(n):
        for _ in range(20_000):
            print("no end of it", file=sys.stderr)
        return n

    def linger(seconds):
        time.sleep(seconds)
        return seconds

    async def later(n): return n + 1

    constant = 1
"""


class Crew:
    """A server, and workers of it."""

    def __init__(self, directory):
        self.directory = directory
        self.server = _manyhands.Embedded("127.0.0.1:0", KEY)
        self.key = directory / "key"
        self.key.write_bytes(KEY)
        self.key.chmod(0o600)
        self.client = manyhands.connect(self.server.address, KEY)
        self.write(FUNCTIONS)
        self._workers = []

    def write(self, source, name="work.py"):
        (self.directory / name).write_text(textwrap.dedent(source))

    def configure(self, name, options):
        async def configure():
            async with aio.connect(self.server.address, KEY) as client:
                await _worker.control(client, _manyhands.Verb.configure(name, options))

        asyncio.run(configure())
        return self.client.queue(name)

    def tasks(self, options="attempts=2,backoff=0"):
        """A queue of tasks and that of its results."""
        tasks = self.configure("tasks", "results=done,failures=done," + options)
        return tasks, self.client.queue("done")

    def work(self, function, *options, jobs=1):
        command = [sys.executable, "-m", "manyhands", "worker", function, "--queue", "tasks"]
        command += ["-j", str(jobs)] * (jobs is not None)
        command += ["--connect", self.server.address, "--authkey-file", str(self.key), *options]
        worker = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            cwd=str(self.directory),
            start_new_session=True,
        )
        self._workers.append(worker)
        return worker

    def path(self, name):
        return str(self.directory / name)

    def pids(self, name):
        path = self.directory / name
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def close(self):
        for worker in self._workers:
            if worker.returncode is None:
                kill(worker)
        with contextlib.suppress(ConnectionRefusedError):
            self.client.close()
        self.server.stop()


@pytest.fixture
def crew(tmp_path):
    crew = Crew(tmp_path)
    yield crew
    crew.close()


def end(worker):
    """End a worker, which must do so well; return what it said."""
    worker.send_signal(signal.SIGTERM)
    _, err, code = finish(worker)
    assert code == 0, err
    return err


def is_alive(pid):
    """Whether a process runs; one that nobody has waited for yet has ended."""
    try:
        with open("/proc/{}/stat".format(pid)) as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        if os.path.exists("/proc/self"):
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def reasons_of(crew, function, item=1, *options, **kwargs):
    """Why a task was given up that a function was to do."""
    tasks, done = crew.tasks(**kwargs)
    worker = crew.work(function, *options)
    tasks.put(item)
    notice = done.get(timeout=TIMEOUT)
    assert isinstance(notice, dict), notice
    return notice["reasons"], end(worker)


@pytest.mark.parametrize("options", [["-j", "2"], ["--threads", "2"]])
def test_what_a_function_returns_is_committed_with_its_task(crew, options):
    tasks, done = crew.tasks()
    worker = crew.work("work:square", *options, jobs=None)
    tasks.put_many(range(20))
    assert sorted(done.get(timeout=TIMEOUT) for _ in range(20)) == [n * n for n in range(20)]
    assert end(worker) == ""
    assert tasks.peek(state="leased") == tasks.peek() == []


def test_a_coroutine_function_is_run_to_its_end(crew):
    tasks, done = crew.tasks()
    crew.work("work:later")
    tasks.put(1)
    assert done.get(timeout=TIMEOUT) == 2


def test_bytes_and_text_reach_the_function_as_they_are(crew):
    tasks, done = crew.tasks()
    crew.work("builtins:repr")
    tasks.put_many([b"bytes", "text", (1, None)])
    found = {done.get(timeout=TIMEOUT) for _ in range(3)}
    assert found == {"b'bytes'", "'text'", "(1, None)"}


def test_an_exception_is_the_reason_of_an_attempt(crew):
    reasons, said = reasons_of(crew, "work:wrong")
    assert len(reasons) == 2
    assert all(reason.startswith("KeyError: 'no 1' (work.py:") for reason in reasons)
    assert said.count("Traceback") == 2 and "_child.py" not in said


def test_a_task_that_nobody_can_do_is_given_up_at_once(crew):
    [reason], _ = reasons_of(crew, "work:hopeless")
    assert "never" in reason


def test_a_task_that_exits_has_failed(crew):
    reasons, _ = reasons_of(crew, "work:go")
    assert all(reason.startswith("SystemExit: 5") for reason in reasons)


def test_a_process_that_dies_is_the_reason_and_the_pool_goes_on(crew):
    tasks, done = crew.tasks()
    worker = crew.work("work:segfault", jobs=2)
    tasks.put_many(range(8))
    found = [done.get(timeout=TIMEOUT) for _ in range(8)]
    [notice] = [it for it in found if isinstance(it, dict)]
    assert sorted(it for it in found if it != notice) == [0, 1, 2, 4, 5, 6, 7]
    for reason in notice["reasons"]:
        assert reason.startswith("its process was killed by SIGSEGV (11); peak memory ")
        assert "last lines on standard error:\nabout to fail" in reason
    end(worker)


def test_the_exit_code_of_a_process_is_told(crew):
    reasons, _ = reasons_of(crew, "work:leave")
    assert all(reason.startswith("its process ended with exit code 7; peak") for reason in reasons)


def test_a_task_that_exhausts_its_memory_has_failed(crew):
    reasons, _ = reasons_of(crew, "work:exhaust")
    assert all(reason.startswith("MemoryError") for reason in reasons)


def test_a_result_that_cannot_be_pickled_is_told_once(crew):
    [reason], said = reasons_of(crew, "work:lock")
    assert reason.startswith("cannot pickle the result: TypeError: ")
    assert said.count("failed (attempt") == 1


def test_a_task_that_cannot_be_unpickled_is_told_once(crew, monkeypatch):
    crew.write("class Thing: pass", "things.py")
    monkeypatch.syspath_prepend(str(crew.directory))
    import things

    tasks, done = crew.tasks()
    tasks.put(things.Thing())
    os.remove(crew.path("things.py"))
    end_of = crew.work("work:square")
    [reason] = done.get(timeout=TIMEOUT)["reasons"]
    assert reason.startswith("cannot unpickle the task: ModuleNotFoundError: No module named")
    end(end_of)


class Trap:
    """Notes which process unpickles it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, ("import os; open({!r}, 'a').write(str(os.getpid()))".format(self.path),)


def test_only_the_process_of_a_task_unpickles_it(crew):
    tasks, done = crew.tasks()
    path = crew.path("trap")
    worker = crew.work("work:note")
    tasks.put(Trap(path))
    notice = done.get(timeout=TIMEOUT)
    assert len(notice["reasons"]) == 2, "exec returns None, which is no path"
    with open(path) as file:
        assert str(worker.pid) not in file.read()


@pytest.mark.parametrize(
    "function, told",
    [
        ("nowhere:square", "cannot import nowhere:square: ModuleNotFoundError: No module named"),
        ("work:cube", "cannot import work:cube: AttributeError: module 'work' has no attribute"),
        ("work:constant", "cannot import work:constant: TypeError: work:constant is a int"),
        ("work", "a function is named MODULE:FUNCTION, not 'work'"),
    ],
)
@pytest.mark.parametrize("kind", [["-j", "2"], ["--threads", "2"]])
def test_a_function_that_cannot_be_imported_is_named(crew, function, told, kind):
    _, err, code = finish(crew.work(function, *kind, jobs=None))
    assert code == 1
    assert err.startswith("manyhands worker: " + told) and err.count("\n") == 1


def test_interpreters_need_a_python_that_has_them(crew):
    if sys.version_info >= (3, 14):
        pytest.skip("this one has them")
    _, err, code = finish(crew.work("work:square", "--interpreters", "2", jobs=None))
    assert (code, err.startswith("manyhands worker: interpreters= needs Python 3.14")) == (1, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_task_that_runs_end(crew, number):
    tasks, done = crew.tasks()
    worker = crew.work("work:wait")
    paths = [crew.path("one"), crew.path("two")]
    tasks.put_many(paths)
    eventually(lambda: crew.pids("one.pids"))
    worker.send_signal(number)
    line = worker.stderr.readline()
    assert "ends after 1 tasks that run" in line
    open(paths[0], "w").close()
    assert done.get(timeout=TIMEOUT) == paths[0]
    assert finish(worker)[1:] == ("", 0)
    [left] = tasks.peek()
    assert (left.item, left.attempt, left.failures) == (paths[1], 1, ())


def test_a_second_signal_gives_all_back_and_leaves_no_process(crew):
    tasks, _ = crew.tasks()
    worker = crew.work("work:hang", jobs=2)
    tasks.put_many([crew.path("one"), crew.path("two")])
    eventually(lambda: crew.pids("one") and crew.pids("two"))
    worker.send_signal(signal.SIGTERM)
    assert "ends after 2 tasks" in worker.stderr.readline()
    worker.send_signal(signal.SIGTERM)
    assert finish(worker)[2] == 0
    assert not any(is_alive(pid) for pid in crew.pids("one") + crew.pids("two"))
    left = tasks.peek()
    assert len(left) == 2
    assert all("the worker was stopped" in task.failures[0][2] for task in left)


def test_hangup_loads_the_code_anew_and_disturbs_no_task(crew):
    tasks, done = crew.tasks()
    crew.write("from work import wait\ndef step(path): return wait(path) and 'old'", "steps.py")
    worker = crew.work("steps:step")
    first = crew.path("first")
    tasks.put(first)
    eventually(lambda: crew.pids("first.pids"))
    crew.write("def step(path): return 'the new one'", "steps.py")
    worker.send_signal(signal.SIGHUP)
    assert "starts its processes anew" in worker.stderr.readline()
    open(first, "w").close()
    tasks.put("second")
    assert [done.get(timeout=TIMEOUT) for _ in range(2)] == ["old", "the new one"]
    end(worker)


def test_a_task_that_takes_too_long_is_killed(crew):
    path = crew.path("pids")
    reasons, _ = reasons_of(crew, "work:hang", path, "--max-run", "0.3")
    assert all("it ran for longer than max_run, 0.3 s" in reason for reason in reasons)
    pids = crew.pids("pids")
    assert len(set(pids)) == 2 and not any(map(is_alive, pids))


def test_max_run_needs_processes():
    with pytest.raises(ValueError, match="max_run= needs processes"):
        manyhands.Worker("127.0.0.1:1", "tasks", len, threads=1, max_run=1)


def test_a_task_longer_than_its_lease_is_kept(crew):
    tasks, done = crew.tasks()
    crew.work("work:linger", "--hold", "0.3")
    tasks.put(1.5)
    taken = done.take(timeout=TIMEOUT)
    assert (taken.item, taken.info.attempt) == (1.5, 1)


def test_a_task_that_is_somebody_elses_now_is_killed(crew):
    tasks, done = crew.tasks("max_run=0.5,attempts=3,backoff=0")
    crew.work("work:hang_once", "--hold", "0.3")
    tasks.put(crew.path("once"))
    assert done.get(timeout=TIMEOUT) == "the second time"
    assert not any(map(is_alive, crew.pids("once")))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_worker_that_is_killed_leaves_no_process(crew, jobs):
    tasks, _ = crew.tasks()
    worker = crew.work("work:breed", jobs=jobs)
    names = ["child{}".format(n) for n in range(jobs)]
    tasks.put_many(map(crew.path, names))
    eventually(lambda: all(crew.pids(name) and crew.pids(name + ".end.pids") for name in names))
    pids = [pid for name in names for pid in crew.pids(name) + crew.pids(name + ".end.pids")]
    assert all(map(is_alive, pids))
    worker.send_signal(signal.SIGKILL)
    eventually(lambda: not any(map(is_alive, pids)))
    eventually(lambda: len(tasks.peek()) == jobs)


def test_what_a_task_has_started_ends_with_its_process(crew):
    reasons, _ = reasons_of(crew, "work:breed_and_die", crew.path("pid"))
    assert all("exit code 1" in reason for reason in reasons)
    eventually(lambda: not any(map(is_alive, crew.pids("pid"))))


def test_a_task_that_forks_and_returns_twice_has_one_result(crew):
    tasks, done = crew.tasks()
    worker = crew.work("work:come_back_twice")
    tasks.put_many(range(3))
    assert [done.get(timeout=TIMEOUT) for _ in range(3)] == ["the parent"] * 3
    end(worker)
    assert done.empty()


def test_a_task_that_never_stops_talking_stops_nobody(crew):
    tasks, done = crew.tasks()
    worker = crew.work("work:chatter", "--hold", "0.5")
    tasks.put(1)
    eventually(lambda: worker.stderr.readline() == "no end of it\n")
    worker.send_signal(signal.SIGTERM)
    assert finish(worker)[2] == 0
    assert done.get(timeout=TIMEOUT) == 1


def test_results_that_nobody_takes_stop_the_worker_and_lose_nothing(crew):
    crew.configure("done", "maxsize=1")
    tasks, done = crew.tasks()
    worker = crew.work("work:square", "--hold", "0.3", jobs=1)
    tasks.put_many(range(50))
    eventually(done.full)
    # Two results that wait for room, and a task that was sent ahead.
    eventually(lambda: len(tasks.peek(50, "leased")) == 3)
    found = [done.take(timeout=TIMEOUT) for _ in range(50)]
    assert sorted(it.item for it in found) == [n * n for n in range(50)]
    assert {it.info.attempt for it in found} == {1}
    end(worker)


def test_a_queue_without_results_is_told_once(crew):
    tasks = crew.configure("tasks", "attempts=2")
    worker = crew.work("work:square", jobs=2)
    tasks.put_many(range(4))
    tasks.join()
    said = end(worker)
    assert said.count("declares no results=") == 1 and said.count("\n") == 1


def test_a_worker_ends_with_its_queue(crew):
    tasks, _ = crew.tasks()
    worker = crew.work("work:square")
    eventually(lambda: is_waiting(tasks))
    tasks.shutdown()
    assert finish(worker)[1:] == ("manyhands worker: ends: the queue tasks was shut down\n", 0)


async def double(n):
    await asyncio.sleep(0)
    if n == 3:
        raise ValueError(n)
    return 2 * n


@pytest.mark.parametrize("given", ["an address", "a client"])
def test_coroutines_share_a_loop_with_others(crew, given):
    tasks, done = crew.tasks()
    tasks.put_many(range(50))

    async def work():
        async with aio.connect(crew.server.address, KEY) as client:
            if given == "a client":
                worker = aio.Worker(client, "tasks", double, concurrency=20)
            else:
                worker = aio.Worker(crew.client, "tasks", double, concurrency=20)
            running = asyncio.ensure_future(worker.run())
            results = await client.queue("done")
            found = [await results.get(timeout=TIMEOUT) for _ in range(50)]
            worker.stop()
            await asyncio.wait_for(running, TIMEOUT)
            return found

    found = asyncio.run(work())
    [notice] = [it for it in found if isinstance(it, dict)]
    assert all(reason.startswith("ValueError: 3") for reason in notice["reasons"])
    assert sorted(it for it in found if it is not notice) == [2 * n for n in range(50) if n != 3]
    assert done.empty()


def is_waiting(tasks):
    """Whether somebody takes tasks of a queue, by giving it one."""
    tasks.put(1)
    return not tasks.peek()


def test_no_server_is_one_line(crew):
    tasks, _ = crew.tasks()
    del tasks
    crew.server.stop()
    worker = crew.work("work:square")
    line = worker.stderr.readline()
    assert line.startswith("manyhands: still trying")
    worker.send_signal(signal.SIGINT)
    assert "Traceback" not in finish(worker)[1]


def test_functions_of_a_running_program_are_run_too(crew):
    tasks, done = crew.tasks()
    worker = manyhands.Worker(crew.client, "tasks", len, processes=1)
    import threading

    thread = threading.Thread(target=worker.run)
    thread.start()
    tasks.put("four")
    assert done.get(timeout=TIMEOUT) == 4
    worker.stop()
    thread.join(TIMEOUT)
    assert not thread.is_alive()


@pytest.mark.parametrize("given", [{"processes": 0}, {"threads": True}, {"processes": "two"}])
def test_a_wrong_number_of_processes_is_named(given):
    with pytest.raises((TypeError, ValueError), match=next(iter(given)) + "= must be"):
        manyhands.Worker("127.0.0.1:1", "tasks", len, **given)


def test_a_task_that_is_to_end_before_it_has_started_ends_then():
    class Source:
        pass

    reasons, task = [], _worker._Task(Source(), None, 1, 1)
    task.end("too late")
    task.started(reasons.append)
    assert reasons == ["too late"]
