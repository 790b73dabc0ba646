"""`manyhands.connect`: the client, on our server and on the standard library's."""

import multiprocessing
import multiprocessing.managers
import os
import queue
import signal
import socket
import subprocess
import sys
import threading

import manyhands
import manyhands.managers
import pytest
from conftest import TIMEOUT, finish

KEY = b"a key of 16 bytes"


@pytest.fixture(params=["manyhands", "standard"])
def address(request, manager_class):
    """Where some queues are served, by either server."""
    originals = {name: queue.Queue(3) for name in ("tasks", "results")}
    for name, original in originals.items():
        manager_class.register(name, lambda original=original: original)
    if request.param == "standard":
        manager_class._Server = multiprocessing.managers.Server
    with manager_class(("127.0.0.1", 0), KEY, ctx=multiprocessing.get_context("fork")) as manager:
        yield manager.address


@pytest.fixture
def client(address):
    with manyhands.connect(address, KEY) as client:
        yield client


def test_a_queue_has_the_methods_of_queue_dot_queue(client):
    tasks = client.queue("tasks")
    tasks.put({"a": [1, 2, 3]})
    tasks.put(None, timeout=1)
    tasks.put_nowait(b"bytes")
    assert (tasks.qsize(), tasks.full(), tasks.empty()) == (3, True, False)
    with pytest.raises(queue.Full):
        tasks.put_nowait("one too many")
    with pytest.raises(queue.Full):
        tasks.put("one too many", timeout=0.01)
    assert [tasks.get(), tasks.get(timeout=1), tasks.get_nowait()] == [
        {"a": [1, 2, 3]},
        None,
        b"bytes",
    ]
    with pytest.raises(queue.Empty):
        tasks.get_nowait()
    with pytest.raises(queue.Empty):
        tasks.get(timeout=0.01)
    with pytest.raises(ValueError, match="non-negative"):
        tasks.get(timeout=-1)
    for _ in range(3):
        tasks.task_done()
    tasks.join()
    with pytest.raises(ValueError, match="called too many times"):
        tasks.task_done()


def test_many_items_go_in_one_call(client):
    tasks = client.queue("tasks")
    with pytest.raises(queue.Full):
        tasks.put_many(range(10), block=False)
    assert tasks.get_many(2) == [0, 1]
    assert tasks.get_many(10) == [2]
    assert tasks.get_many(0) == []
    with pytest.raises(queue.Empty):
        tasks.get_many(10, timeout=0.01)


def test_a_waiting_get_lets_other_threads_run(client):
    tasks = client.queue("tasks")
    results = []
    thread = threading.Thread(target=lambda: results.append(tasks.get(timeout=TIMEOUT)))
    thread.start()
    client.queue("tasks").put("hello")
    thread.join(TIMEOUT)
    assert results == ["hello"]


def test_a_name_that_nobody_registered_is_an_error(client):
    with pytest.raises(manyhands.ManyhandsError, match="no queue is called 'others'"):
        client.queue("others")


def test_a_wrong_key_is_an_authentication_error(address):
    with pytest.raises(multiprocessing.AuthenticationError):
        manyhands.connect(address, b"another key")


def test_a_closed_port_is_refused():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = closed.getsockname()
    with pytest.raises(ConnectionRefusedError):
        manyhands.connect(address, KEY)


def test_a_blocked_get_can_be_interrupted(address, program):
    process = program(
        "worker.py",
        """
        import sys
        import manyhands

        with manyhands.connect(("127.0.0.1", int(sys.argv[1])), b"a key of 16 bytes") as client:
            tasks = client.queue("tasks")
            try:
                print("up", flush=True)
                tasks.get()
            except KeyboardInterrupt:
                print("interrupted")
        """,
    ).start(args=[str(address[1])])
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert finish(process) == ("interrupted\n", "", 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_neither_uses_nor_releases_what_its_parent_has(client):
    tasks = client.queue("tasks")
    tasks.put("first")
    child = os.fork()
    if child == 0:
        try:
            tasks.get()
        except manyhands.ManyhandsError:
            del tasks
            os._exit(7)
        os._exit(1)
    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 7
    assert tasks.get() == "first"


def test_importing_the_package_imports_little():
    command = "import sys; import manyhands; print(*sorted(sys.modules))"
    modules = subprocess.check_output([sys.executable, "-c", command], universal_newlines=True)
    assert "manyhands._manyhands" not in modules
    assert "multiprocessing" not in modules
