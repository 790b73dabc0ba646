"""What the tests share: managers under every start method, and programs run as users run them."""

import multiprocessing
import multiprocessing.managers
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

import manyhands.managers
import pytest

# A shell that runs this in the background has its children ignore interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

METHODS = multiprocessing.get_all_start_methods()
TIMEOUT = 60
KEY = b"a key of 16 bytes"
QUICK = "import time; _sleep = time.sleep; time.sleep = lambda seconds: _sleep(seconds * 0.02)"


@pytest.fixture(params=METHODS)
def context(request):
    """A multiprocessing context of each start method."""
    return multiprocessing.get_context(request.param)


@pytest.fixture
def manager_class():
    """A class of managers of its own, so that tests do not see each other's names."""
    return type("Manager", (manyhands.managers.BaseManager,), {})


@pytest.fixture
def start(context, manager_class):
    """Starts managers that serve the given callables."""
    managers = []

    def start(address=("127.0.0.1", 0), authkey=b"secret", **callables):
        for name, function in callables.items():
            manager_class.register(name, function)
        manager = manager_class(address, authkey, ctx=context)
        manager.start()
        managers.append(manager)
        return manager

    yield start
    for manager in managers:
        manager.shutdown()


@pytest.fixture(params=["manyhands", "standard"])
def address(request, manager_class):
    """Where some queues are served, by either server."""
    originals = {"tasks": queue.Queue(3), "many": queue.Queue()}
    for name, original in originals.items():
        manager_class.register(name, lambda original=original: original)
    if request.param == "standard":
        manager_class._Server = multiprocessing.managers.Server
    with manager_class(("127.0.0.1", 0), KEY, ctx=multiprocessing.get_context("fork")) as manager:
        yield manager.address


@pytest.fixture
def served(manager_class):
    """Serves queues from a thread of this process; gives a client."""
    servers = []

    def serve(queues):
        for name, original in queues.items():
            manager_class.register(name, lambda original=original: original)
        server = manager_class(("127.0.0.1", 0), KEY).get_server()
        server.serve_aside()
        servers.append(server)
        return manyhands.connect(server.address, KEY)

    yield serve
    for server in servers:
        server.stop()


@pytest.fixture
def server(tmp_path):
    """Starts servers that are programs of their own, all at the same port."""
    key = tmp_path / "key"
    key.write_bytes(KEY)
    key.chmod(0o600)
    processes = []

    def start(*queues):
        port = start.port
        if processes:
            start.stop()
        ready = tmp_path / "ready{}".format(len(processes))
        command = [sys.executable, "-m", "manyhands", "serve", "--ready-file", str(ready)]
        command += ["--listen", "127.0.0.1:{}".format(port), "--authkey-file", str(key)]
        for options in queues:
            command += ["--queue", options]
        processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, **SESSION))
        eventually(lambda: ready.exists() and ready.read_text().endswith("\n"))
        return ("127.0.0.1", port)

    start.port = free_port()
    start.stop = lambda: kill(processes[-1])
    yield start
    start.stop()


SESSION = {"start_new_session": True, "stdout": subprocess.DEVNULL}


def in_thread(target):
    results = []
    thread = threading.Thread(target=lambda: results.append(target()), daemon=True)
    thread.start()
    return thread, results


def eventually(condition):
    """Wait until a condition holds."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def free_port():
    """A port that is free, and that nobody gets by asking for any."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) != 0:
                return port


class Program:
    """A Python program in a directory of its own."""

    def __init__(self, directory, name, source):
        self._directory = str(directory)
        self.path = os.path.join(str(directory), name)
        with open(self.path, "w") as file:
            file.write(textwrap.dedent(source))

    def start(self, *options, method=None, quick=False, python=sys.executable, args=()):
        """Run it: ``options`` stand before the path. If ``quick``, it sleeps hardly at all."""
        customs = ["import multiprocessing; multiprocessing.set_start_method({!r})".format(method)]
        environment = dict(os.environ, PYTHONUNBUFFERED="1")
        customs = customs * (method is not None) + [QUICK] * quick
        if customs:
            self._customize(environment, customs)
        return subprocess.Popen(
            [python, *options, self.path, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            env=environment,
            start_new_session=True,
        )

    def _customize(self, environment, lines):
        """Have every Python of this environment run these lines before anything else."""
        directory = tempfile.mkdtemp(dir=self._directory)
        Program(directory, "sitecustomize.py", "\n".join(lines))
        paths = [directory, environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


@pytest.fixture
def program(tmp_path):
    """Makes programs."""
    return lambda name, source: Program(tmp_path, name, source)


def finish(process):
    """What a process printed and its exit code."""
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        pytest.fail("still running after\n{}\n{}".format(*kill(process)))
    return out, err, process.returncode


def kill(process):
    """Kill a program and the processes that it has started; return what it printed."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        # Nobody is left.
        pass
    return process.communicate()
