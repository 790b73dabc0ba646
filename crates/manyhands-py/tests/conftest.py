"""What the tests share: managers under every start method, and programs run as users run them."""

import multiprocessing
import os
import subprocess
import sys
import textwrap
import time

import manyhands.managers
import pytest

METHODS = multiprocessing.get_all_start_methods()
TIMEOUT = 30


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


def eventually(condition):
    """Wait until a condition holds."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


class Program:
    """A Python program in a directory of its own."""

    def __init__(self, directory, name, source):
        self.path = os.path.join(str(directory), name)
        with open(self.path, "w") as file:
            file.write(textwrap.dedent(source))

    def start(self, *options, method=None, **kwargs):
        """Run it: ``options`` stand before the path, ``kwargs`` are Popen's."""
        environment = dict(os.environ, PYTHONUNBUFFERED="1")
        if method is not None:
            customize = os.path.join(os.path.dirname(self.path), method)
            os.makedirs(customize, exist_ok=True)
            Program(
                customize,
                "sitecustomize.py",
                "import multiprocessing\nmultiprocessing.set_start_method({!r})\n".format(method),
            )
            paths = [customize, environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        kwargs.setdefault("args", [])
        return subprocess.Popen(
            [sys.executable, *options, self.path, *kwargs.pop("args")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            env=environment,
            **kwargs,
        )


@pytest.fixture
def program(tmp_path):
    """Makes programs."""
    return lambda name, source: Program(tmp_path, name, source)


def finish(process):
    """What a process printed and its exit code."""
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail("still running after\n{}\n{}".format(out, err))
    return out, err, process.returncode
