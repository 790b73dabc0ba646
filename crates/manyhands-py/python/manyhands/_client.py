"""The client: queues of a server with the methods of ``queue.Queue``, and more.

It starts no thread: all it does, it does in the calls of its users. A call that waits lets other
threads run, and Ctrl-C interrupts it.
"""

import os
import pickle
import socket
import sys
import threading
import time
import weakref
from multiprocessing import util

from . import _net, _wire
from ._calls import Calls, Held, Pipe, Server, ack_arguments, put_options

_RECEIVED_LEN = 64 << 10
_stakes = weakref.WeakSet()


def connect(address, authkey=None, reconnect=30.0, *, authkey_file=None, no_md5=False):
    """Connect to a server of queues: manyhands, or a manager of the standard library.

    ``address`` is ``"HOST:PORT"``, a pair of host and port, or the path of a Unix socket;
    ``authkey`` is bytes, or else the key is that in ``authkey_file``, by default the one that the
    command ``manyhands`` keeps. A server that cannot be reached, now or later, is tried again for
    up to ``reconnect`` seconds. With ``no_md5``, servers that know only HMAC-MD5 (Python 3.11 and
    earlier) are refused. Raises what a manager would: ``ConnectionRefusedError`` and other
    ``OSError`` where nobody answers, ``multiprocessing.AuthenticationError`` for a wrong key,
    ``TimeoutError`` after 10 s of silence.
    """
    return Client(address, authkey, reconnect, authkey_file=authkey_file, no_md5=no_md5)


class _Local:
    """What belongs to a process, or to those that it forks."""

    def __reduce__(self):
        raise TypeError(
            "a {} of manyhands cannot be passed to another process: connect() in the child".format(
                type(self).__name__
            )
        )


class Client(_Local):
    """A connection to a server of queues. A context manager: at its end, it closes."""

    def __init__(self, address, authkey=None, reconnect=30.0, *, authkey_file=None, no_md5=False):
        self._server = Server(_Net(), address, authkey, reconnect, authkey_file, no_md5)
        self.address = self._server.address
        # What the server answers is of no interest, but that it does.
        _run(self._server.control("dummy"))
        self._stake = _Stake(self._server)

    def queue(self, name, pipeline=False, prefetch=0):
        """Return the queue that is registered as ``name``.

        With ``pipeline``, ``put`` returns before the server has answered: what goes wrong is raised
        by a later call, ``flush()`` or ``close()``. With ``prefetch``, ``get`` takes so many items
        at once and keeps them for the next calls; ``close()`` puts the rest back at the end.
        """
        calls = Calls(self._server, name, prefetch)
        _run(calls.refer())
        self._server.references.append(calls)
        return Queue._of(self._stake, calls, name, pipeline)

    def flush(self):
        """Wait until everything that was put has arrived."""
        _run(self._server.flush())

    def close(self):
        """Take leave of the server: what this client did counts as finished."""
        if not self._server.is_closed:
            _run(self._server.leave())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        return "<manyhands.Client of {!r}>".format(self.address)


class Queue(_Local):
    """A queue on a server, with the methods and exceptions of ``queue.Queue``."""

    @classmethod
    def _of(cls, stake, calls, name, pipeline):
        queue = cls()
        queue.name = name
        queue._stake = stake
        queue._calls = calls
        queue._pipe = _Pipe(stake.server, calls) if pipeline else None
        return queue

    def __class_getitem__(cls, _):
        # What its items are is of interest to type checkers alone.
        return cls

    def put(
        self,
        item,
        block=True,
        timeout=None,
        *,
        key=None,
        delay=None,
        priority=None,
        expires=None,
        id=False,
    ):
        """Add an item; ``queue.Full`` if there is no room in ``timeout`` seconds.

        Of items with the same ``key`` (str or bytes), only the first is added; returns whether this
        was. It becomes visible after ``delay`` seconds and vanishes after ``expires`` seconds;
        ``priority`` (int) is its place in a priority queue. With ``id``, returns the number of the
        task, which leases and what is known of results carry too, or ``None`` if it was not added.
        """
        options = put_options(key, delay, priority, expires, id)
        if self._pipe is not None and block and timeout is None and not options:
            self._pipe.put(pickle.dumps(item))
            return True
        return _run(self._calls.put(item, block, timeout, options))

    def put_nowait(self, item):
        """Add an item; ``queue.Full`` if there is no room now."""
        return self.put(item, False)

    def put_many(self, items, block=True, timeout=None):
        """Add every item of an iterable, in order.

        ``queue.Full`` if there is no room for one of them in ``timeout`` seconds; those before it
        have been added then, and the exception's attribute ``added`` says how many.
        """
        _run(self._calls.put_many([pickle.dumps(item) for item in items], block, timeout))

    def get(self, block=True, timeout=None):
        """Take the next item; ``queue.Empty`` if none comes in ``timeout`` seconds."""
        return _run(self._calls.get(block, timeout))

    def get_nowait(self):
        """Take the next item; ``queue.Empty`` if there is none now."""
        return self.get(False)

    def get_many(self, max, block=True, timeout=None):
        """Take what is there, at most ``max`` items; return a list.

        Waits only for the first: ``queue.Empty`` if it does not come in ``timeout`` seconds.
        """
        return _run(self._calls.get_many(max, block, timeout))

    def lease(self, block=True, timeout=None, hold=None):
        """Take the next item until it is settled, or for ``hold`` seconds; return a `Lease`."""
        return self.lease_many(1, block, timeout, hold)[0]

    def lease_many(self, max, block=True, timeout=None, hold=None):
        """Take what is there, at most ``max`` items; return a list of `Lease`."""
        taken = _run(self._calls.lease_many(max, block, timeout, hold))
        return [Lease._of(self._stake, self._calls, *lease) for lease in taken]

    def take(self, block=True, timeout=None):
        """Take the next item with what is known of it: a result's task, why a dead letter is one.

        Returns a pair of ``item`` and ``info``, which is ``None`` for other items.
        """
        return _run(self._calls.take(block, timeout))

    def peek(self, max=10, state=None, items=True):
        """Look at tasks and take none; return a list of what is known of each.

        Those that are ``"ready"``, as if nothing is said, come in the order of ``get``, those that
        are ``"delayed"`` or ``"leased"`` in that of their puts. Without ``items``, the items are
        left out.
        """
        return _run(self._calls.peek(max, state, items))

    def redrive(self, max=None, task=None):
        """Move dead letters back to the queues they came from, as new tasks; return how many.

        At most ``max``, or as many as one call can, some 16,384. With ``task``, only the one that
        ``peek()`` shows with this number.
        """
        return _run(self._calls.redrive(max, task))

    def purge(self):
        """Drop all that is ready or delayed; return how much that was."""
        return _run(self._calls.purge())

    def flush(self):
        """Wait until everything that was put has arrived."""
        if self._pipe is not None:
            _run(self._pipe.flush())

    def qsize(self):
        """Count the items."""
        return _run(self._calls.call("qsize"))

    def empty(self):
        """Tell whether there is no item."""
        return _run(self._calls.call("empty"))

    def full(self):
        """Tell whether as many items are there as fit."""
        return _run(self._calls.call("full"))

    def task_done(self):
        """Count one item as done."""
        _run(self._calls.call("task_done", is_repeatable=False))

    def join(self):
        """Wait until every item is done."""
        _run(self._calls.call("join", wait=None))

    def shutdown(self, immediate=False):
        """End the queue: no more puts, and gets until it is empty; none if ``immediate``."""
        _run(self._calls.call("shutdown", (immediate,)))

    def __repr__(self):
        return "<manyhands.Queue {!r}>".format(self.name)


class Lease(Held, _Local):
    """An item that is in our hand until we say what became of it.

    A context manager: at its end the item is done, or has failed if there was an exception.
    """

    def ack(self, *result, timeout=None):
        """The item is done; its result goes to the queue's queue of results, if it has one.

        `StaleLease` if the lease had run out and somebody else has the item since;
        `ConnectionResetError` if it is over after a lost connection, so that nobody knows which ack
        came first.
        """
        _run(self._settle("ack", *ack_arguments(result, timeout)))

    def nack(self, delay=None, reason="", give_up=False):
        """It failed, for a ``reason``; it comes back after ``delay`` seconds, or the queue's pause.

        With ``give_up`` no retry would mend it, and it is a dead letter at once.
        """
        _run(self._nack(delay, reason, give_up))

    def extend(self, hold):
        """Keep it for ``hold`` seconds from now."""
        _run(self._extend(hold))

    def __enter__(self):
        return self

    def __exit__(self, _, error, __):
        _run(self._end(error))

    def __repr__(self):
        return "<manyhands.Lease of {!r}>".format(self.item)


class _Pipe(Pipe):
    """Puts of several threads, one after the other."""

    def __init__(self, server, calls):
        self._lock = threading.RLock()
        super().__init__(server, calls)
        server.pipes.append(self)

    def forget(self):
        self._lock = threading.RLock()
        super().forget()

    def put(self, pickled):
        with self._lock:
            if self.add(pickled, threading.get_ident(), time.monotonic()):
                _run(self.send())

    def flush(self):
        with self._lock:
            yield from super().flush()


# ---- blocking sockets


def _run(generator):
    """Do what a generator says; return what it returns."""
    try:
        function, *args = next(generator)
        while True:
            try:
                result = function(*args)
            except BaseException as error:
                function, *args = generator.throw(error)
            else:
                function, *args = generator.send(result)
    except StopIteration as end:
        return end.value


class _Net:
    """Connections; each thread has a session of its own."""

    caller = staticmethod(threading.get_ident)

    def __init__(self):
        self._lines = weakref.WeakSet()
        self._rest = threading.local()

    def connect(self, address, timeout):
        line = _Line(address, timeout)
        self._lines.add(line)
        return line

    def pause(self, seconds):
        time.sleep(seconds)

    def take(self):
        return self._rest.__dict__.pop("line", None)

    def give(self, line):
        self._rest.line = line

    def end(self):
        for line in list(self._lines):
            line.end()

    def forget(self):
        self._rest = threading.local()
        for line in list(self._lines):
            line.close()


class _Line:
    """One connection."""

    def __init__(self, address, timeout):
        self._socket = _connected(address, timeout)
        self._address = address
        self._timeout = timeout
        self._frames = _wire.Frames()
        self._silence = _wire.Silence(self._socket)

    def send(self, data):
        if len(data) > _RECEIVED_LEN:
            # That may take its time.
            self._limit(None)
        self._socket.sendall(data)

    def receive(self, timeout):
        body = self._frames.split()
        while body is None:
            self._limit(timeout)
            try:
                data = self._socket.recv(_RECEIVED_LEN)
            except socket.timeout:
                raise _net.silent(self._address, timeout) from None
            if not data:
                raise ConnectionResetError("the server has closed the connection")
            self._frames.feed(data)
            body = self._frames.split()
        return body

    def is_quiet(self):
        """Whether nothing has come since the last reply, not even the end."""
        return self._silence.lasts()

    def end(self):
        """Close it, also for a thread that waits here."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            # The other side was faster.
            pass
        self._socket.close()

    def close(self):
        self._socket.close()

    def __del__(self):
        if hasattr(self, "_socket"):
            self._socket.close()

    def _limit(self, timeout):
        if timeout != self._timeout:
            self._socket.settimeout(timeout)
            self._timeout = timeout


def _connected(address, timeout):
    try:
        if isinstance(address, tuple):
            connection = socket.create_connection(address, timeout)
            _net.tune(connection)
            return connection
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(timeout)
            connection.connect(address)
        except BaseException:
            connection.close()
            raise
        return connection
    except socket.timeout:
        raise _net.silent(address, timeout) from None
    except OSError as error:
        raise _net.unreachable(error, address) from None


# ---- the end of a process, and the beginning of a forked one


class _Stake:
    """What a client, its queues and leases have in common. Without it, the client takes leave."""

    def __init__(self, server):
        self.server = server
        _stakes.add(self)
        self.plan_end()
        # Processes of multiprocessing forget what their parent has planned.
        util.register_after_fork(self, _Stake.plan_end)

    def plan_end(self):
        # At the latest when the process exits.
        util.Finalize(self, _take_leave, (self.server,), exitpriority=0)


def _take_leave(server):
    if server.is_closed:
        return
    try:
        _run(server.leave())
    except Exception as error:
        if isinstance(error, ConnectionError) and not getattr(error, "items", ()):
            util.debug("a client leaves without its server: %r", error)
        else:
            sys.excepthook(type(error), error, error.__traceback__)


def _forget_all():
    for stake in list(_stakes):
        stake.server.forget()
        stake.plan_end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
