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

from . import _wire
from ._calls import Calls, Pipe, Server

# Seconds of silence before the system asks whether the other side is still there, and between that.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
_RECEIVED_LEN = 64 << 10
_stakes = weakref.WeakSet()


def connect(address, authkey, reconnect=30.0, *, no_md5=False):
    """Connect to a server of queues: manyhands, or a manager of the standard library.

    ``address`` is a pair of host and port, or the path of a Unix socket, as for a manager;
    ``authkey`` is bytes. A connection that breaks later is made anew for up to ``reconnect``
    seconds. With ``no_md5``, servers that know only HMAC-MD5 (Python 3.11 and earlier) are refused.
    Raises what a manager would: ``ConnectionRefusedError`` and other ``OSError`` where
    nobody answers, ``multiprocessing.AuthenticationError`` for a wrong key, ``TimeoutError`` after
    10 s of silence.
    """
    return Client(address, authkey, reconnect, no_md5=no_md5)


class Client:
    """A connection to a server of queues. A context manager: at its end, it closes."""

    def __init__(self, address, authkey, reconnect=30.0, *, no_md5=False):
        self.address = address
        self._server = Server(_Net(), address, authkey, reconnect, no_md5)
        # What the server answers is of no interest, but that it does.
        run(self._server.control("dummy"))
        self._stake = _Stake(self._server)

    def queue(self, name, pipeline=False, prefetch=0):
        """Return the queue that is registered as ``name``.

        With ``pipeline``, ``put`` returns before the server has answered: what goes wrong is raised
        by a later call, ``flush()`` or ``close()``. With ``prefetch``, ``get`` takes so many items
        at once and keeps them for the next calls; ``close()`` puts the rest back at the end.
        """
        calls = Calls(self._server, name, prefetch)
        run(calls.refer())
        self._server.references.append(calls)
        return Queue(self._stake, calls, name, pipeline)

    def flush(self):
        """Wait until everything that was put has arrived."""
        run(self._server.flush())

    def close(self):
        """Take leave of the server: what this client did counts as finished."""
        if not self._server.is_closed:
            run(self._server.leave())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        return "<manyhands.Client of {!r}>".format(self.address)


class Queue:
    """A queue on a server, with the methods and exceptions of ``queue.Queue``."""

    def __init__(self, stake, calls, name, pipeline):
        self.name = name
        self._stake = stake
        self._calls = calls
        self._pipe = _Pipe(stake.server, calls) if pipeline else None

    def put(
        self, item, block=True, timeout=None, *, key=None, delay=None, priority=None, expires=None
    ):
        """Add an item; ``queue.Full`` if there is no room in ``timeout`` seconds.

        Of items with the same ``key`` (str or bytes), only the first is added; returns whether this
        was. It becomes visible after ``delay`` seconds and vanishes after ``expires`` seconds;
        ``priority`` (int) is its place in a priority queue.
        """
        if (
            self._pipe is not None
            and block
            and timeout is key is delay is priority is expires is None
        ):
            self._pipe.put(pickle.dumps(item))
            return True
        options = {"key": key, "delay": delay, "priority": priority, "expires": expires}
        options = {name: value for name, value in options.items() if value is not None}
        return run(self._calls.put(item, block, timeout, options))

    def put_nowait(self, item):
        """Add an item; ``queue.Full`` if there is no room now."""
        return self.put(item, False)

    def put_many(self, items, block=True, timeout=None):
        """Add every item of an iterable, in order.

        ``queue.Full`` if there is no room for one of them in ``timeout`` seconds; those before it
        have been added then, and the exception's attribute ``added`` says how many.
        """
        run(self._calls.put_many([pickle.dumps(item) for item in items], block, timeout))

    def get(self, block=True, timeout=None):
        """Take the next item; ``queue.Empty`` if none comes in ``timeout`` seconds."""
        return run(self._calls.get(block, timeout))

    def get_nowait(self):
        """Take the next item; ``queue.Empty`` if there is none now."""
        return self.get(False)

    def get_many(self, max, block=True, timeout=None):
        """Take what is there, at most ``max`` items; return a list.

        Waits only for the first: ``queue.Empty`` if it does not come in ``timeout`` seconds.
        """
        return run(self._calls.get_many(max, block, timeout))

    def lease(self, block=True, timeout=None, hold=None):
        """Take the next item until it is settled, or for ``hold`` seconds; return a `Lease`."""
        return self.lease_many(1, block, timeout, hold)[0]

    def lease_many(self, max, block=True, timeout=None, hold=None):
        """Take what is there, at most ``max`` items; return a list of `Lease`."""
        taken = run(self._calls.lease_many(max, block, timeout, hold))
        return [Lease(self._stake, self._calls, *lease) for lease in taken]

    def flush(self):
        """Wait until everything that was put has arrived."""
        if self._pipe is not None:
            run(self._pipe.flush())

    def qsize(self):
        """Count the items."""
        return run(self._calls.call("qsize"))

    def empty(self):
        """Tell whether there is no item."""
        return run(self._calls.call("empty"))

    def full(self):
        """Tell whether as many items are there as fit."""
        return run(self._calls.call("full"))

    def task_done(self):
        """Count one item as done."""
        run(self._calls.call("task_done", is_repeatable=False))

    def join(self):
        """Wait until every item is done."""
        run(self._calls.call("join", wait=None))

    def shutdown(self, immediate=False):
        """End the queue: no more puts, and gets until it is empty; none if ``immediate``."""
        run(self._calls.call("shutdown", (immediate,)))

    def __repr__(self):
        return "<manyhands.Queue {!r}>".format(self.name)


class Lease:
    """An item that is in our hand until we say what became of it.

    A context manager: at its end the item is done, or has failed if there was an exception.
    """

    def __init__(self, stake, calls, token, task, attempt, pickled):
        self._stake = stake
        self._calls = calls
        self._token = token
        self.task = task
        self.attempt = attempt
        self.item = pickle.loads(pickled)
        self.is_settled = False

    def ack(self, *result, timeout=None):
        """The item is done; its result, if given, goes to the queue's queue of results.

        `StaleLease` if the lease had run out and somebody else has the item since;
        `ConnectionResetError` if it is over after a lost connection, so that nobody knows which ack
        came first.
        """
        run(self._settle("ack", *ack_arguments(result, timeout)))

    def nack(self, delay=None, reason=""):
        """It failed, for a ``reason``; it comes back after ``delay`` seconds."""
        run(self._settle("nack", (), {"delay": delay, "reason": reason}))

    def extend(self, hold):
        """Keep it for ``hold`` seconds from now."""
        run(self._calls.settle("extend", (self._token, hold), {}))

    def _settle(self, method, args, kwds, wait=0):
        if self.is_settled:
            raise _wire.StaleLease("this lease was settled before")
        yield from self._calls.settle(method, (self._token,) + args, kwds, wait)
        self.is_settled = True

    def __enter__(self):
        return self

    def __exit__(self, _, error, __):
        if self.is_settled:
            return
        if error is None:
            self.ack()
        else:
            self.nack(reason=repr(error))

    def __repr__(self):
        return "<manyhands.Lease of {!r}>".format(self.item)


def ack_arguments(result, timeout):
    """Arguments of the call ``ack``, and how long it may wait."""
    if not result:
        return (), {}
    (only,) = result
    return (only,), {} if timeout is None else {"timeout": timeout}, timeout


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
                run(self.send())

    def flush(self):
        with self._lock:
            yield from super().flush()


# ---- blocking sockets


def run(generator):
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
                text = "no answer within {} seconds".format(timeout)
                raise TimeoutError(text) from None
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
    if isinstance(address, (str, bytes)):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        try:
            connection.connect(address)
        except BaseException:
            connection.close()
            raise
        return connection
    try:
        connection = socket.create_connection(address, timeout)
    except socket.timeout:
        raise TimeoutError("no answer from {} within {} seconds".format(address, timeout)) from None
    tune(connection)
    return connection


def tune(connection):
    """Set what every TCP connection of ours has."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)


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
        run(server.leave())
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
