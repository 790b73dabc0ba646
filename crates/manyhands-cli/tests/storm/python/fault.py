"""A stock worker that something happens to, as the first argument says."""

import os
import signal
import sys
import time

sys.path.insert(0, os.environ["MANYHANDS_TEST_PYTHON"])

from client import connect, read_key, say  # noqa: E402


def compute(tasks, results):
    """Takes a task and computes until it is killed."""
    say(took=tasks.get())
    time.sleep(3600)


def answer(tasks, results):
    """Answers one task."""
    say(waits=True)
    task = tasks.get()
    results.put("in time")
    say(took=task)


def stall(tasks, results):
    """Takes a task and stands still until somebody sets it going again; then answers."""
    task = tasks.get()
    say(took=task, pid=os.getpid())
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        results.put("too late")
        say(kept=True)
    except ValueError:
        say(kept=False)


def main():
    what, port, key_file = sys.argv[1:4]
    manager = connect(port, read_key(key_file), ["tasks", "results"])
    globals()[what](manager.tasks(), manager.results())


main()
