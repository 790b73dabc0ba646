"""Whole masters and workers as people write them: the masters on manyhands, the workers as ever.

The pairs are those that the server's own tests use, and, with ``MANYHANDS_SEEDS`` (default:
``../shared/seeds`` beside the repository), the programs in the tutorial texts of that directory.
Nothing in them is changed but the port; of masters for Python 2, what Python 3 calls otherwise.
"""

import glob
import os
import re
import shutil
import sys

import pytest
from conftest import METHODS, Program, finish, free_port, kill

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), *[os.pardir] * 3)
PROGRAMS = os.path.join(ROOT, "crates", "manyhands-cli", "tests", "it", "python", "programs")
SEEDS = os.environ.get("MANYHANDS_SEEDS", os.path.join(ROOT, os.pardir, "shared", "seeds"))

# Of each pair: how many tasks, how the master's lines about a task and about a result look.
OURS = {
    "parity": (6, r"handed out", r"verdict: (?P<key>\d+ is (odd|even))"),
    "cubes": (10, r"asked for", r"answer: (?P<key>\d+) \*\* 3 = \d+"),
    "fetch": (10, r"wanted:", r"fetched: (?P<key>page-\d.html), 200 OK"),
    "roots": (10, r"offered", r"root: \d+"),
    "naps": (10, r"ordered nap", r"nap (?P<key>\d) took"),
}
TUTORIALS = {
    "000": (6, r"put data into tasks", r"get result from queues: (passed|faild)"),
    "001": (10, r"Put task", r"Result: (\d+) \* \1 = \d+"),
    "002": (10, r"put task", r"result is (?P<key>ImageUrl_\d) --->>>success"),
    "003": (10, r"Put task", r"Result: (\d+) \* \1 = \d+"),
    "004": (10, r"Put task", r"task (?P<key>\d) is finish"),
}
FOR_PYTHON_2 = ("cubes", "001")
# Its master goes on for ever.
ENDLESS = "000"


def our_sources(name):
    for role in ("master", "worker"):
        with open(os.path.join(PROGRAMS, "{}_{}.py".format(name, role))) as file:
            yield file.read()


def tutorial_sources(name):
    """The two programs among the code blocks of a tutorial."""
    [path] = glob.glob(os.path.join(SEEDS, name + "*"))
    with open(path, encoding="utf-8") as file:
        blocks = [code.partition("\n")[2] for code in file.read().split("```")[1::2]]
    for call in (".start()", ".connect()"):
        yield next(code for code in blocks if "BaseManager" in code and call in code)


def on_port(source, port):
    """The same program on another port."""
    return re.sub(r"(address\s*=\s*\([^,]*,\s*)\d+", r"\g<1>{}".format(port), source)


def ported(source):
    """A master for Python 2 as one for Python 3."""
    source = re.sub(r"^import (.*\b)?Queue\b", r"import \1queue", source, flags=re.MULTILINE)
    source = source.replace("Queue.Queue()", "queue.Queue()")
    return re.sub(r"authkey=(['\"])", r"authkey=b\1", source)


def python_2():
    places = glob.glob(os.path.expanduser("~/.pyenv/versions/2.7*/bin/python2.7"))
    return next(iter(places), None) or shutil.which("python2.7")


def lines_until(process, pattern, count):
    """What a process prints until ``count`` of its lines match."""
    lines = []
    while count:
        line = process.stdout.readline()
        assert line, kill(process)[1]
        lines.append(line)
        count -= bool(re.search(pattern, line))
    return lines


def run(tmp_path, name, sources, expected, method, worker_python):
    """Run a pair to its end, or until all results are there; return the lines about results."""
    port = free_port()
    master, worker = [on_port(source, port) for source in sources]
    count, task, result = expected
    master = Program(tmp_path, "task_master.py", master)
    master = master.start("-m", "manyhands", method=method, quick=True)
    lines_until(master, task, count)
    worker = Program(tmp_path, "task_worker.py", worker).start(python=worker_python, quick=True)
    try:
        if name == ENDLESS:
            lines = lines_until(master, result, count)
        else:
            out, err, code = finish(master)
            assert (without_warning(err), code) == ("", 0)
            lines = out.splitlines()
    finally:
        # A worker that looks for another task just when its master leaves ends with an error.
        kill(master)
        kill(worker)
    return [found for found in (re.search(result, line) for line in lines) if found]


def without_warning(err):
    """Standard error, but for the warning that a weak key is open to other machines."""
    return re.sub(r"manyhands: warning: 0\.0\.0\.0:.*\n", "", err)


PAIRS = [(name, our_sources, expected) for name, expected in OURS.items()]
if os.path.isdir(SEEDS):
    PAIRS += [(name, tutorial_sources, expected) for name, expected in TUTORIALS.items()]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name, sources, expected", PAIRS, ids=[pair[0] for pair in PAIRS])
def test_an_unmodified_master_serves_its_plain_worker(tmp_path, name, sources, expected, method):
    worker_python, sources = sys.executable, list(sources(name))
    if name in FOR_PYTHON_2:
        worker_python = python_2()
        sources[0] = ported(sources[0])
        if worker_python is None:
            pytest.skip("there is no Python 2.7 for the worker")
    results = run(tmp_path, name, sources, expected, method, worker_python)
    count, _, pattern = expected
    assert len(results) == count
    if "(?P<key>" in pattern and name != "cubes":
        assert len({found.group("key") for found in results}) == count
