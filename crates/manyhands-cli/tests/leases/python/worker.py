"""A stock worker that takes a task and leaves, in the way that the first argument says.

It says "took N" for each task that it took. Runs on 2.7 and 3.x."""

from __future__ import print_function

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time

sys.path.insert(0, os.environ["MANYHANDS_TEST_PYTHON"])

import client  # noqa: E402
from client import connect, queue, read_key  # noqa: E402

FOR_EVER = 3600
speaking = threading.Lock()


def say(**said):
    """Says a line; threads take turns."""
    with speaking:
        client.say(**said)


def work_for_ever(tasks, results):
    """Computes until it is killed."""
    say(took=tasks.get())
    time.sleep(FOR_EVER)


def work(tasks, results):
    """Does what there is, and says when it waits."""
    while True:
        task = tasks.get()
        say(took=task)
        results.put(task)


def answer_and_work_on(tasks, results):
    """Answers one task, and is killed over the second."""
    results.put(tasks.get())
    say(took=tasks.get())
    time.sleep(FOR_EVER)


def done_and_sleep(tasks, results):
    """Calls one task done, and is killed afterwards."""
    task = tasks.get()
    tasks.task_done()
    say(took=task)
    time.sleep(FOR_EVER)


def end(tasks, results):
    say(took=tasks.get())


def sys_exit(tasks, results):
    say(took=tasks.get())
    sys.exit(0)


def os_exit(tasks, results):
    say(took=tasks.get())
    os._exit(0)


def abort(tasks, results):
    say(took=tasks.get())
    os.abort()


def terminate(tasks, results):
    say(took=tasks.get())
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(FOR_EVER)


def fail(tasks, results):
    say(took=tasks.get())
    raise SystemExit("an exception that nobody catches")


def thread_ends(tasks, results):
    """A thread takes a task and ends; the process goes on with another thread."""

    def take():
        say(took=tasks.get())

    other = threading.Thread(target=lambda: say(seen=tasks.qsize()) or time.sleep(FOR_EVER))
    other.daemon = True
    other.start()
    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    time.sleep(FOR_EVER)


def threads_killed(tasks, results):
    """Two threads take a task each, after the main thread used the queue."""
    say(seen=tasks.qsize())

    def take():
        say(took=tasks.get())
        time.sleep(FOR_EVER)

    for _ in range(2):
        thread = threading.Thread(target=take)
        thread.daemon = True
        thread.start()
    time.sleep(FOR_EVER)


def child_does(shared):
    tasks, results = shared
    task = tasks.get()
    results.put(task)
    return task


def child_hangs(tasks):
    say(took=tasks.get())
    time.sleep(FOR_EVER)


def pool(tasks, results):
    """Two children do all, then the pool is terminated, which kills them, and the parent ends."""
    children = multiprocessing.Pool(2)
    for task in children.map(child_does, [(tasks, results)] * 4, 1):
        say(took=task)
    children.terminate()
    children.join()


def pool_terminated_at_work(tasks, results):
    """A child is killed over its task; its parent lives on."""
    child = multiprocessing.Process(target=child_hangs, args=(tasks,))
    child.start()
    say(child=child.pid)
    sys.stdin.readline()
    time.sleep(FOR_EVER)


def interrupted(tasks, results):
    """Ctrl-C while it waits for a second task."""
    # Whoever started the tests may ignore the signal, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    say(took=tasks.get())
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        tasks.get()
    except KeyboardInterrupt:
        pass


def wait_for(name):
    """Waits until the test has made this file in the directory of the fourth argument."""
    while not os.path.exists(os.path.join(sys.argv[4], name)):
        time.sleep(0.01)


def cut(proxy):
    """Ends this thread's connection without a word; the next call opens another one."""
    connection = proxy._tls.connection
    sock = socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM)
    sock.shutdown(socket.SHUT_RDWR)
    sock.close()
    try:
        proxy.qsize()
    except (EOFError, IOError) as error:
        say(cut=type(error).__name__)
    del proxy._tls.connection


def answer_late(results, task):
    try:
        results.put(task)
        say(answered=task)
    except ValueError as error:
        say(refused=str(error))


def take_second(tasks, results):
    """Does one task, so that it is known to use both queues, and takes another."""
    results.put(tasks.get())
    task = tasks.get()
    say(took=task)
    return task


def cut_off(tasks, results):
    """Is cut off with its second task, and puts that result on a new session."""
    task = take_second(tasks, results)
    cut(tasks)
    wait_for("go")
    answer_late(results, task)
    wait_for("end")


def cut_off_thread(tasks, results):
    """The same in a thread that ends, and another one of that name."""
    taken = []

    def take():
        taken.append(take_second(tasks, results))
        cut(tasks)

    def answer():
        answer_late(results, taken[0])
        wait_for("end")

    for target in (take, answer):
        thread = threading.Thread(target=target, name="worker")
        thread.start()
        if target is take:
            thread.join()
            wait_for("go")
    thread.join()


def cut_off_manager(tasks, results):
    """The same with proxies of a new manager, which nothing connects with the earlier ones."""
    task = take_second(tasks, results)
    cut(tasks)
    wait_for("go")
    again = connect(sys.argv[2], read_key(sys.argv[3]), ["tasks", "results"])
    answer_late(again.results(), task)
    wait_for("end")


def restarted(tasks, results):
    """Puts the result of its second task after the server was started anew, in every way it can."""
    key = read_key(sys.argv[3])
    task = take_second(tasks, results)
    wait_for("go")
    # At first its session is lost, which Python keeps for the thread until somebody removes it.
    for is_last_on_session in (False, True, True):
        try:
            results.put(task)
            say(answered_by_old_proxies=task)
        except Exception as error:
            say(failed=type(error).__name__)
        if is_last_on_session:
            del results._tls.connection
    again = connect(sys.argv[2], key, ["tasks", "results"])
    answer_late(again.results(), task)
    wait_for("end")


def fill(tasks, results):
    for task in range(int(sys.argv[4])):
        tasks.put(task)


def drain(tasks, results):
    items = []
    source = {"tasks": tasks, "results": results}.get(sys.argv[4])
    source = source or connect(sys.argv[2], read_key(sys.argv[3]), ["tasks.dead"])
    if sys.argv[4] == "dead":
        source = getattr(source, "tasks.dead")()
    try:
        while True:
            items.append(source.get_nowait())
    except queue.Empty:
        say(items=items)


if __name__ == "__main__":
    manager = connect(sys.argv[2], read_key(sys.argv[3]), ["tasks", "results"])
    globals()[sys.argv[1]](manager.tasks(), manager.results())
