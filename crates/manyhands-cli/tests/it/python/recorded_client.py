"""The client that record.py records. Runs on 2.7 and 3.x.

usage: recorded_client.py RUN PORT KEYFILE
"""

from __future__ import print_function

import os
import signal
import sys
import threading
from multiprocessing import AuthenticationError
from multiprocessing.managers import RemoteError

from client import connect, queue, read_key

ITEMS = [
    None,
    True,
    7,
    -(2**40),
    1.5,
    "text",
    b"\xc3\xa9".decode("utf-8"),
    b"bytes \xff",
    (1, 2, 3, 4),
    [1, [2]],
    {"put": ["put", "get"]},
    {"timeout": 1},
    "x" * 300,
    b"y" * 17000,
]


def refused(call, kind):
    try:
        call()
    except kind:
        return
    raise AssertionError("no %s" % kind.__name__)


def calls(port, key):
    m = connect(port, key, ["tasks", "results", "nosuch"])
    tasks, results = m.tasks(), m.results()
    for item in ITEMS:
        tasks.put(item)
        assert tasks.get() == item
    shared = ["shared"]
    tasks.put([shared, shared, "put"], timeout=5)
    tasks.put(item="keyword", block=True, timeout=None)
    tasks.put("positional", True, 1)
    tasks.put_nowait("nowait")
    tasks.get(True, 1), tasks.get(block=False), tasks.get(timeout=0.5), tasks.get_nowait()
    refused(tasks.get_nowait, queue.Empty)
    refused(lambda: tasks.get(timeout=0.01), queue.Empty)
    results.put(1), results.put(2)
    refused(lambda: results.put(3, timeout=0.01), queue.Full)
    results.qsize(), results.empty(), results.full(), str(results)
    results.get(), results.get()
    results.task_done(), results.task_done(), results.join()
    refused(results.task_done, ValueError)
    refused(lambda: results.get(timeout=-1), ValueError)
    refused(lambda: results.get(1, 2, 3), TypeError)
    refused(lambda: results._callmethod("nosuch"), RemoteError)
    refused(m.nosuch, RemoteError)
    m._number_of_objects(), m._debug_info()
    thread = threading.Thread(target=lambda: results.put(tasks.get()))
    thread.start()
    tasks.put("for a thread")
    thread.join()
    results.get()


def crash(port, key):
    m = connect(port, key, ["tasks"])
    tasks = m.tasks()
    tasks.put("left behind")
    tasks.get()
    os.kill(os.getpid(), signal.SIGKILL)


def wrongkey(port, key):
    refused(lambda: connect(port, b"another-key", []), AuthenticationError)


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2], read_key(sys.argv[3]))
