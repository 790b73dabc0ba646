"""What people write at first, and what they are told."""

import asyncio
import json
import multiprocessing
import os
import pickle
import queue
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Client
from multiprocessing.managers import BaseManager, dispatch

import manyhands
import manyhands.managers
import pytest
from conftest import eventually
from manyhands import _net, aio

KEY = b"a key of 16 bytes"


@pytest.fixture
def address(manager_class):
    """Where two queues are served, by a thread of this process."""
    originals = {"tasks": queue.Queue(), "results": queue.Queue()}
    for name, original in originals.items():
        manager_class.register(name, lambda original=original: original)
    server = manager_class(("127.0.0.1", 0), KEY).get_server()
    server.serve_aside()
    yield server.address
    server.stop()


class Awaited:
    """A client of `aio`, or a queue of it, whose coroutines are run to their ends."""

    def __init__(self, original, loop):
        self.original = original
        self.loop = loop

    def __getattr__(self, name):
        def call(*args, **kwds):
            result = self.loop.run_until_complete(getattr(self.original, name)(*args, **kwds))
            return Awaited(result, self.loop) if isinstance(result, aio.Queue) else result

        return call


@pytest.fixture(params=["blocking", "asyncio"])
def client(request, address):
    """Either client, which says the same of each mistake."""
    if request.param == "blocking":
        with manyhands.connect(address, KEY) as client:
            yield client
        return
    loop = asyncio.new_event_loop()
    client = Awaited(aio.Client(address, KEY), loop)
    yield client
    client.close()
    loop.close()


# ---- addresses


@pytest.mark.parametrize(
    "written, read",
    [
        ("127.0.0.1:5004", ("127.0.0.1", 5004)),
        ("localhost:1", ("localhost", 1)),
        ("[::1]:5004", ("::1", 5004)),
        (":5004", ("127.0.0.1", 5004)),
        (("h", 1), ("h", 1)),
        (["h", 1], ("h", 1)),
        ("unix:/run/queues", "/run/queues"),
        ("/run/queues:5", "/run/queues:5"),
        (b"/run/queues", b"/run/queues"),
        ("queues", "queues"),
    ],
)
def test_an_address_is_read_in_every_form(written, read):
    assert _net.read_address(written) == read


def test_a_client_connects_to_host_and_port_in_one_text(address):
    with manyhands.connect("{}:{}".format(*address), KEY) as client:
        assert client.queue("tasks").empty()
        assert client.address == address


@pytest.mark.parametrize("written", [5004, None, ("h",), ("h", "1"), (1, "h"), {}])
def test_what_is_no_address_is_a_type_error(written):
    with pytest.raises(TypeError, match="'HOST:PORT', a pair of host and port, or the path"):
        manyhands.connect(written, KEY)
    with pytest.raises(ValueError, match="a port is a number from 1 to 65535"):
        manyhands.connect(("h", 70000), KEY)


def connect_both_ways(address, reconnect=0):
    """The errors of both clients, as class and text."""

    async def connect():
        return await aio.connect(address, KEY, reconnect)

    for attempt in (
        lambda: manyhands.connect(address, KEY, reconnect),
        lambda: asyncio.run(connect()),
    ):
        with pytest.raises(Exception) as failed:  # noqa: PT011
            attempt()
        yield failed.type, str(failed.value)


def closed_port():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return closed.getsockname()


def test_where_nothing_listens_the_address_is_named(tmp_path):
    host, port = closed_port()
    for kind, text in connect_both_ways((host, port)):
        assert kind is ConnectionRefusedError
        assert "cannot connect to 127.0.0.1:{}: ".format(port) in text
        assert "is a manyhands server running there?" in text
    path = str(tmp_path / "nothing")
    for kind, text in connect_both_ways(path):
        assert kind is FileNotFoundError
        assert "cannot connect to {!r}: No such file".format(path) in text
        assert "HOST:PORT" not in text
    for _, text in connect_both_ways("127.0.0.1"):
        assert text.endswith("a host is followed by its port: 'HOST:PORT'")


def test_a_client_that_waits_for_a_server_says_so_after_a_while(monkeypatch, capsys):
    address = closed_port()
    for _ in connect_both_ways(address, reconnect=0.2):
        assert capsys.readouterr().err == "", "nobody has waited for long"
    monkeypatch.setattr(_net, "TOLD_AFTER", 0)
    for _ in connect_both_ways(address, reconnect=0.2):
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("manyhands: still trying, for up to 0 s more: cannot connect to ")
        assert "{}:{}: ".format(*address) in line
        assert line.endswith("is a manyhands server running there?")


@pytest.fixture
def other():
    """Another server than ours: it says something, or nothing, and perhaps hangs up."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(5)
    accepted = []

    def start(says, hangs_up=False):
        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.sendall(says)
                connection.close() if hangs_up else accepted.append(connection)

        threading.Thread(target=serve, daemon=True).start()
        return listener.getsockname()

    yield start
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for connection in accepted:
        connection.close()


@pytest.mark.parametrize(
    "says, hangs_up, kind",
    [
        (b"", False, TimeoutError),
        (b"SSH-2.0-OpenSSH_9.2\r\n", False, manyhands.ManyhandsError),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False, manyhands.ManyhandsError),
        (b"\0\0\0\x05hello", False, multiprocessing.AuthenticationError),
        (b"", True, ConnectionResetError),
    ],
)
def test_what_is_no_server_is_asked_after(other, monkeypatch, says, hangs_up, kind):
    monkeypatch.setattr(_net, "SILENCE_TIMEOUT", 0.2)
    address = other(says, hangs_up)
    for found, text in connect_both_ways(address):
        assert found is kind, text
        assert "127.0.0.1:{}".format(address[1]) in text
        if kind is not multiprocessing.AuthenticationError:
            assert text.endswith("is it a manyhands server?")


@pytest.fixture
def full_server(tmp_path):
    """The address of a server whose two connections are in use."""
    key, ready = tmp_path / "key", tmp_path / "ready"
    key.write_bytes(KEY)
    key.chmod(0o600)
    serve = ["serve", "--listen", "127.0.0.1:0", "--connections-max", "2", "--queue", "tasks"]
    files = ["--authkey-file", str(key), "--ready-file", str(ready)]
    server = subprocess.Popen(
        [sys.executable, "-m", "manyhands", *serve, *files],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    eventually(lambda: ready.exists() and ready.read_text().endswith("\n"))
    address = _net.read_address(json.loads(ready.read_text())["addresses"][0])
    sessions = [Client(address, authkey=KEY) for _ in range(2)]
    for session in sessions:
        dispatch(session, None, "accept_connection", ("MainProcess",))
    yield address
    for session in sessions:
        session.close()
    server.kill()
    server.wait()


def test_a_server_whose_connections_are_all_in_use_says_so(full_server):
    says = "all 2 connections of this server are in use (--connections-max)"
    for kind, text in connect_both_ways(full_server):
        assert kind is ConnectionRefusedError, text
        assert text == "127.0.0.1:{}: {}".format(full_server[1], says)
    unmodified = BaseManager(full_server, KEY)
    with pytest.raises((AssertionError, multiprocessing.AuthenticationError)) as failed:
        unmodified.connect()
    assert says in str(failed.value)


# ---- keys


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(KEY + b"\n")
    path.chmod(0o600)
    return path


def test_a_key_may_be_in_a_file(address, key_file):
    for path in (key_file, str(key_file)):
        with manyhands.connect(address, authkey_file=path) as client:
            assert client.queue("tasks").empty()
    with pytest.raises(TypeError, match="not both"):
        manyhands.connect(address, KEY, authkey_file=key_file)
    os.chmod(str(key_file), 0o644)
    with pytest.raises(PermissionError, match="run: chmod 600"):
        manyhands.connect(address, authkey_file=key_file)


def test_without_a_key_that_of_the_command_is_taken(address, key_file, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no authkey: give one, or name its file"):
        manyhands.connect(address)
    (tmp_path / "manyhands").mkdir()
    key_file.rename(tmp_path / "manyhands" / "authkey")
    with manyhands.connect(address) as client:
        assert client.queue("tasks").empty()


def test_a_newline_at_the_end_of_a_key_is_pointed_out(address):
    with pytest.raises(multiprocessing.AuthenticationError, match="the key ends in a newline"):
        manyhands.connect(address, KEY + b"\n")
    with pytest.raises(multiprocessing.AuthenticationError) as refused:
        manyhands.connect(address, b"another")
    assert "newline" not in str(refused.value)
    assert "{}:{}".format(*address) in str(refused.value)


@pytest.mark.parametrize(
    "key, text",
    [
        (510210, "510210 NUL bytes, which is bytes.510210., and which anybody can guess"),
        ("a key", "authkey must be bytes, not str"),
        (["a key"], "authkey must be bytes, not list"),
    ],
)
def test_what_is_no_key_is_a_type_error(address, key, text):
    with pytest.raises(TypeError, match=text):
        manyhands.connect(address, key)


# ---- queues


def calls_with_a_timeout(tasks, timeout):
    """Every call of a queue that may wait."""
    return [
        lambda: tasks.get(timeout=timeout),
        lambda: tasks.put(1, timeout=timeout),
        lambda: tasks.get_many(1, timeout=timeout),
        lambda: tasks.put_many([1], timeout=timeout),
        lambda: tasks.lease(timeout=timeout),
        lambda: tasks.lease_many(1, timeout=timeout),
        lambda: tasks.take(timeout=timeout),
    ]


@pytest.mark.parametrize(
    "timeout, kind", [("5", TypeError), ([5], TypeError), (float("nan"), ValueError)]
)
def test_a_timeout_is_a_number_of_seconds(client, timeout, kind):
    tasks = client.queue("tasks")
    for call in calls_with_a_timeout(tasks, timeout):
        with pytest.raises(kind, match="'timeout' must be a number of seconds, not"):
            call()
    assert tasks.empty()


@pytest.mark.parametrize("most", ["3", 3.0, None, [3]])
def test_how_many_is_an_int(client, most):
    tasks = client.queue("tasks")
    calls = [tasks.get_many, tasks.lease_many, tasks.peek]
    for call in calls if most is None else [*calls, tasks.redrive]:
        with pytest.raises(TypeError) as refused:
            call(most)
        assert str(refused.value) == "'max' must be an int, not {!r}".format(most)
    if most is not None:
        with pytest.raises(TypeError, match="'task' must be an int, not"):
            tasks.redrive(task=most)
    assert tasks.empty()


def test_a_queue_has_a_name_that_is_text(client):
    for name in (5, None, b"tasks"):
        with pytest.raises(TypeError, match="a queue's name must be a str, not"):
            client.queue(name)


def test_an_unknown_queue_is_told_with_the_nearest_names_first(client):
    for name, names in (("task", "'tasks', 'results'"), ("result", "'results', 'tasks'")):
        with pytest.raises(manyhands.ManyhandsError) as refused:
            client.queue(name)
        assert "no queue is called {!r} at 127.0.0.1:".format(name) in str(refused.value)
        assert str(refused.value).endswith("; there are " + names)


def test_at_least_one_item_is_asked_for(client):
    for most in (0, -1):
        with pytest.raises(ValueError, match="'max' must be at least 1"):
            client.queue("tasks").get_many(most)


def test_nothing_of_a_client_goes_to_another_process(client):
    tasks = client.queue("tasks")
    tasks.put(1)
    things = [client, tasks, tasks.lease()]
    for thing in (getattr(thing, "original", thing) for thing in things):
        with pytest.raises(TypeError, match="passed to another process: connect.. in the child"):
            pickle.dumps(thing)
    context = multiprocessing.get_context("spawn")
    with pytest.raises(TypeError, match="connect.. in the child"):
        context.Process(target=print, args=(getattr(tasks, "original", tasks),)).start()


def test_queues_and_leases_can_be_named_with_the_type_of_their_items():
    assert manyhands.Queue[int] is manyhands.Queue
    assert aio.Lease[int] is aio.Lease
