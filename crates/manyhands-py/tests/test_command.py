"""The command ``manyhands`` as the package installs it."""

import asyncio
import json
import signal
import subprocess
import sys

import manyhands
import pytest
from conftest import TIMEOUT, eventually
from manyhands import aio

KEY = b"a key of more than sixteen bytes"
COMMAND = [sys.executable, "-m", "manyhands"]


@pytest.fixture
def run(tmp_path):
    """Runs commands against a server with a full queue."""
    key, ready = tmp_path / "key", tmp_path / "ready"
    key.write_bytes(KEY)
    key.chmod(0o600)
    options = ["--authkey-file", str(key)]
    serve = ["serve", "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
    serve += ["--queue", "full,maxsize=1", "--frame-bytes-max", "100000", *options]
    server = subprocess.Popen(COMMAND + serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    eventually(lambda: ready.exists() and ready.read_text().endswith("\n"))
    options += ["--connect", json.loads(ready.read_text())["addresses"][0]]

    def run(verb, *args, **kwargs):
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "universal_newlines": True}
        return subprocess.Popen([*COMMAND, verb, *options, *args], **pipes, **kwargs)

    run.server = server
    run.address = options[-1]
    yield run
    server.kill()
    server.wait()


def told(process):
    """What a command prints; it must succeed."""
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, err) == (0, "")
    return out


def queue_of(run):
    return json.loads(told(run("ls", "--json")))[0]


def test_ctrl_c_ends_whatever_waits_without_a_traceback(run):
    told(run("put", "full", "a"))
    for_room, for_input = run("put", "full", "b"), run("put", "full", stdin=subprocess.PIPE)
    eventually(lambda: queue_of(run)["waiting_put"] == 1 and queue_of(run)["references"] == 2)
    for process in for_room, for_input:
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == -signal.SIGINT
        assert process.stderr.read() == ""
    told(run("get", "full"))
    for_item = run("get", "full")
    eventually(lambda: queue_of(run)["waiting_get"] == 1)
    for_item.send_signal(signal.SIGINT)
    assert for_item.wait(TIMEOUT) == 130
    assert for_item.stderr.read() == ""
    run.server.send_signal(signal.SIGINT)
    assert run.server.wait(TIMEOUT) == 0


def test_without_arguments_scripts_are_explained_first():
    done = subprocess.run(COMMAND, stderr=subprocess.PIPE, universal_newlines=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m manyhands SCRIPT.py [ARGUMENT...]\n")


def test_the_demo_starts_workers_of_the_package():
    demo = subprocess.run(
        [*COMMAND, "demo"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (demo.returncode, demo.stderr) == (0, "")
    assert "20 tasks put, 20 results, none lost" in demo.stdout


def test_doctor_has_a_help():
    out = told(
        subprocess.Popen(
            [*COMMAND, "doctor", "--help"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
        )
    )
    assert "doctor <SCRIPT>..." in out


def test_ls_lists_the_names_that_a_script_has_registered(tmp_path, start):
    import queue

    tasks = queue.Queue()
    manager = start(get_task_queue=lambda: tasks)
    manager.get_task_queue().put("a")
    host, port = manager.address
    key = tmp_path / "key"
    key.write_bytes(bytes(manager._authkey))
    key.chmod(0o600)
    ls = [*COMMAND, "ls", "--json", "--authkey-file", str(key)]
    ls += ["--connect", "{}:{}".format(host, port)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "universal_newlines": True}
    queues = json.loads(told(subprocess.Popen(ls, **pipes)))
    assert [(it["name"], it["qsize"], it["declared"]) for it in queues] == [
        ("get_task_queue", 1, False)
    ]


def test_an_item_that_is_too_large_is_refused_with_both_sizes_and_the_option(run):
    item = b"x" * 300_000
    message = r"300\d\d\d bytes .* 100000 bytes .*--frame-bytes-max"

    async def put_async():
        async with await aio.connect(run.address, KEY) as client:
            full = await client.queue("full")
            await full.put(item)

    with pytest.raises(ValueError, match=message):
        asyncio.run(put_async())
    with manyhands.connect(run.address, KEY) as client:
        full = client.queue("full")
        for put in (full.put, full.put_nowait, lambda item: full.put_many([item])):
            with pytest.raises(ValueError, match=message):
                put(item)
        full.put(b"small")
        assert full.qsize() == 1
