"""Proxies that are collected on a thread of the server.

The garbage collector runs where it likes. Where the server shares its process with proxies of its
own objects, it may run on a thread of the server, and the end of a proxy is a call of the server,
which would wait for that very thread or for a lock that it holds. Such calls are made from a thread
of their own.
"""

import queue
import threading
from multiprocessing.managers import BaseProxy

_standard_decref = BaseProxy._decref
# Putting into a SimpleQueue is safe wherever the collector may run.
_released = queue.SimpleQueue()
_MARK = "_manyhands_serves"


def mark(thread):
    """Note that a thread belongs to a server, before it is started or from within."""
    setattr(thread, _MARK, True)


def start():
    """Make proxies look where they are collected."""
    if BaseProxy._decref is _standard_decref:
        BaseProxy._decref = staticmethod(_decref)
        threading.Thread(target=_run, name="manyhands-release", daemon=True).start()


def is_servers_thread():
    """Whether this thread belongs to a server, or might."""
    # One that is about to begin is not known yet, and who starts it waits: perhaps a server.
    thread = threading._active.get(threading.get_ident())
    return thread is None or getattr(thread, _MARK, False)


def _decref(*args):
    if is_servers_thread():
        _released.put(args)
    else:
        _standard_decref(*args)


def _run():
    while True:
        _standard_decref(*_released.get())
