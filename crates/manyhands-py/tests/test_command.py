"""The command `manyhands` as pip installs it: what the binary does, in a process of Python's."""

import json
import signal
import subprocess
import sys

import pytest
from conftest import TIMEOUT, eventually, finish, free_port, kill

# What the script that pip installs says.
COMMAND = "import sys; from manyhands.__main__ import command; sys.exit(command())"
KEY = b"a key of 16 bytes"


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(KEY)
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def run(key):
    """Starts commands; kills what still runs at the end."""
    processes = []

    def run(*arguments):
        command = [sys.executable, "-c", COMMAND, *arguments, "--authkey-file", key]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(
            command, universal_newlines=True, start_new_session=True, **pipes
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            kill(process)


@pytest.fixture
def serving(run, tmp_path):
    """A server with a bounded queue that is full, and where it listens."""
    ready = tmp_path / "ready"
    address = "127.0.0.1:{}".format(free_port())
    queues = ["--queue", "tasks", "--queue", "full,maxsize=1"]
    server = run("serve", "--listen", address, "--ready-file", str(ready), *queues)
    eventually(lambda: ready.exists() and ready.read_text().endswith("\n"))
    assert finish(run("put", "full", "1", "--connect", address))[2] == 0
    return server, address


def waiting(run, address, queue):
    """How many calls wait in a queue, and how many items are there."""
    out, _, _ = finish(run("ls", "--json", "--connect", address))
    [found] = [info for info in json.loads(out) if info["name"] == queue]
    return found["waiting_get"] + found["waiting_put"], found["qsize"]


@pytest.mark.parametrize(
    "arguments, line, expected",
    [
        (["get", "tasks"], "", (1, 0)),
        (["put", "full", "2"], "", (1, 1)),
        (["put", "tasks"], "one\n", (0, 1)),
    ],
)
def test_an_interrupt_ends_a_command_that_waits(run, serving, arguments, line, expected):
    _, address = serving
    process = run(*arguments, "--connect", address)
    process.stdin.write(line)
    process.stdin.flush()
    eventually(lambda: waiting(run, address, arguments[1]) == expected)
    process.send_signal(signal.SIGINT)
    # Its standard input is still open.
    assert process.wait(TIMEOUT) in (130, -signal.SIGINT)
    assert "Traceback" not in process.stderr.read()


def test_an_interrupt_ends_a_server_well(serving):
    server, _ = serving
    server.send_signal(signal.SIGINT)
    _, err, code = finish(server)
    assert "Traceback" not in err
    assert code == 0
