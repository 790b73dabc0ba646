"""`python -m manyhands script.py`: unmodified programs, under every start method."""

import signal
import socket
import sys

import pytest
from conftest import METHODS, finish

MANYHANDS = ("-m", "manyhands")
MASTER = """
    import queue, sys
    from multiprocessing.managers import BaseManager

    squares, cubes = queue.Queue(), queue.Queue()

    class Numbers(BaseManager):
        pass

    Numbers.register("tasks", callable=lambda: squares)
    Numbers.register("results", callable=lambda: cubes)
    manager = Numbers(address=("127.0.0.1", 0), authkey=b"numbers")
    manager.start()
    print(manager.address[1])
    tasks, results = manager.tasks(), manager.results()
    for number in range(20):
        tasks.put(number)
    print(sum(results.get(timeout=60) for _ in range(20)))
    manager.shutdown()
"""
WORKER = """
    import sys
    from multiprocessing.managers import BaseManager

    BaseManager.register("tasks")
    BaseManager.register("results")
    manager = BaseManager(("127.0.0.1", int(sys.argv[1])), b"numbers")
    manager.connect()
    tasks, results = manager.tasks(), manager.results()
    for _ in range(20):
        results.put(tasks.get(timeout=60) ** 2)
"""


def work(program, master, method):
    """Run a master on manyhands with a worker on plain Python."""
    master = program("master.py", master).start(*MANYHANDS, method=method)
    port = master.stdout.readline().strip()
    worker = program("worker.py", WORKER).start(args=[port])
    assert finish(worker) == ("", "", 0)
    return finish(master)


@pytest.mark.parametrize("method", METHODS)
def test_a_master_with_lambdas_and_without_a_guard_runs(program, method):
    assert work(program, MASTER, method) == ("2470\n", "", 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_master_with_queues_of_multiprocessing_runs(program, method):
    source = MASTER.replace("import queue, sys", "import multiprocessing as queue")
    assert work(program, source, method) == ("2470\n", "", 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_master_may_use_its_queues_beside_the_manager(program, method):
    source = MASTER.replace("import queue, sys", "import multiprocessing as queue")
    source = source.replace("tasks, results = manager.tasks(), manager.results()", "")
    source = source.replace("tasks.put", "squares.put").replace("results.get", "cubes.get")
    assert work(program, source, method) == ("2470\n", "", 0)


@pytest.mark.parametrize("method", METHODS)
def test_processes_that_a_script_starts_have_the_managers_too(program, method):
    process = program(
        "script.py",
        """
        import multiprocessing
        from multiprocessing.managers import BaseManager

        def child(queue):
            queue.put(BaseManager._Server.__module__)

        if __name__ == "__main__":
            queue = multiprocessing.Queue()
            process = multiprocessing.Process(target=child, args=(queue,))
            process.start()
            print(queue.get())
            process.join()
        """,
    ).start(*MANYHANDS, method=method)
    assert finish(process) == ("manyhands._server\n", "", 0)


def test_a_script_sees_itself_as_in_plain_python(program, tmp_path):
    script = program(
        "script.py",
        """
        import sys
        print(__name__, sys.argv, __file__, __doc__, __package__, __spec__, sys.path[0])
        print(sys.modules["__main__"].sys is sys)
        raise SystemExit(7)
        """,
    )
    ours = finish(script.start(*MANYHANDS, args=["-x", "1"]))
    assert ours == finish(script.start(args=["-x", "1"]))
    assert ours[2] == 7


def test_a_traceback_begins_in_the_script(program):
    script = program("script.py", "def fail():\n    return 1 / 0\n\nfail()\n")
    ours = finish(script.start(*MANYHANDS))
    assert ours == finish(script.start())
    assert "ZeroDivisionError" in ours[1]


@pytest.mark.parametrize("method", METHODS)
def test_a_port_in_use_is_told_in_one_sentence(program, method):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        source = MASTER.replace('("127.0.0.1", 0)', '("127.0.0.1", {})'.format(port))
        script = program("master.py", source)
        out, err, code = finish(script.start(*MANYHANDS, method=method))
    assert (out, code) == ("", 1)
    assert err == (
        "{}:13: cannot listen at 127.0.0.1:{}: Address already in use; if a server runs there "
        "already, connect() instead of start()?\n".format(script.path, port)
    )


@pytest.mark.skipif(sys.platform == "win32", reason="has no signals")
def test_an_interrupted_script_ends_as_in_plain_python(program):
    script = program("script.py", "import os\n\nos.kill(os.getpid(), 2)\nprint('not here')\n")
    ours = finish(script.start(*MANYHANDS))
    assert ours == finish(script.start())
    assert ours[2] == -signal.SIGINT


def test_a_missing_script_is_named(program, tmp_path):
    script = program("script.py", "")
    script.path = str(tmp_path / "other.py")
    out, err, code = finish(script.start(*MANYHANDS))
    assert (out, code) == ("", 2)
    assert "other.py" in err


def test_other_words_are_the_command_line(program):
    script = program("script.py", "")
    script.path = "--version"
    out, err, code = finish(script.start(*MANYHANDS))
    assert (out.split()[0], err, code) == ("manyhands", "", 0)
