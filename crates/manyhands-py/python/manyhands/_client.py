"""The client: queues of a server with the methods of ``queue.Queue``, and a few more.

It starts no thread. A call that waits lets other threads run, and Ctrl-C interrupts it.
"""

import pickle
import queue
import threading
import time

from . import _manyhands


def connect(address, authkey):
    """Connect to a server of queues: manyhands, or a manager of the standard library.

    ``address`` is a pair of host and port, or the path of a Unix socket, as for a manager;
    ``authkey`` is bytes. Raises what a manager would: ``ConnectionRefusedError`` and other
    ``OSError`` where nobody answers, ``multiprocessing.AuthenticationError`` for a wrong key,
    ``TimeoutError`` after 10 s of silence.
    """
    return Client(address, authkey)


class Client:
    """A connection to a server of queues. A context manager: at its end, it closes."""

    def __init__(self, address, authkey):
        self._native = _manyhands.Client(_text(address), bytes(authkey), _interruptible())
        self.address = address

    def queue(self, name):
        """Return the queue that is registered as ``name``."""
        return Queue(self._native.queue(name, _interruptible()), name)

    def close(self):
        """Take leave of the server: what this client did counts as finished."""
        self._native.close(_interruptible())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        return "<manyhands.Client of {!r}>".format(self.address)


class Queue:
    """A queue on a server, with the methods and exceptions of ``queue.Queue``."""

    def __init__(self, native, name):
        self._native = native
        self.name = name

    def put(self, item, block=True, timeout=None):
        """Add an item; ``queue.Full`` if there is no room in ``timeout`` seconds."""
        self._put(pickle.dumps(item), timeout if block else 0)

    def put_nowait(self, item):
        """Add an item; ``queue.Full`` if there is no room now."""
        self.put(item, False)

    def put_many(self, items, block=True, timeout=None):
        """Add every item of an iterable, in order.

        ``queue.Full`` if there is no room for one of them in ``timeout`` seconds; those before it
        have been added then.
        """
        deadline = _Deadline(timeout if block else 0)
        for item in items:
            self._put(pickle.dumps(item), deadline.left())

    def get(self, block=True, timeout=None):
        """Take the next item; ``queue.Empty`` if none comes in ``timeout`` seconds."""
        return pickle.loads(self._native.get(timeout if block else 0, _interruptible()))

    def get_nowait(self):
        """Take the next item; ``queue.Empty`` if there is none now."""
        return self.get(False)

    def get_many(self, max, block=True, timeout=None):
        """Take what is there, at most ``max`` items; return a list.

        Waits only for the first: ``queue.Empty`` if it does not come in ``timeout`` seconds.
        """
        items = [self.get(block, timeout)] if max > 0 else []
        while len(items) < max:
            try:
                items.append(self.get_nowait())
            except queue.Empty:
                break
        return items

    def flush(self):
        """Wait until everything that was put has arrived."""

    def qsize(self):
        """Count the items."""
        return self._native.qsize(_interruptible())

    def empty(self):
        """Tell whether there is no item."""
        return self.qsize() == 0

    def full(self):
        """Tell whether as many items are there as fit."""
        return self._native.full(_interruptible())

    def task_done(self):
        """Count one item as done."""
        self._native.task_done(_interruptible())

    def join(self):
        """Wait until every item is done."""
        self._native.join(_interruptible())

    def shutdown(self, immediate=False):
        """End the queue: no more puts, and gets until it is empty; none if ``immediate``."""
        self._native.shutdown(bool(immediate), _interruptible())

    def __repr__(self):
        return "<manyhands.Queue {!r}>".format(self.name)

    def _put(self, pickled, timeout):
        self._native.put(pickled, timeout, _interruptible())


class _Deadline:
    """A time-out that several calls share."""

    def __init__(self, timeout):
        self._end = None if timeout is None else time.monotonic() + timeout

    def left(self):
        """Return the seconds that are left, or ``None`` for ever."""
        return None if self._end is None else max(0, self._end - time.monotonic())


def _interruptible():
    return threading.current_thread() is threading.main_thread()


def _text(address):
    if isinstance(address, str):
        return "unix:" + address
    host, port = address
    return "{}:{}".format("[{}]".format(host) if ":" in host else host, port)
