"""The client: queues of a server with the methods of ``queue.Queue``, and more.

It starts no thread: all it does, it does in the calls of its users. A call that waits lets other
threads run, and Ctrl-C interrupts it.
"""

import os
import sys
import threading
import weakref
from multiprocessing import util

from . import _manyhands, _net
from ._calls import AnyClient, AnyLease, AnyPipe, AnyPlace, AnyQueue, AnyServer, Typed

_stakes = weakref.WeakSet()


def connect(
    address, authkey=None, reconnect=30.0, *, authkey_file=None, no_md5=False, session_name=None
):
    """Connect to a server of queues: manyhands, or a manager of the standard library.

    ``address`` is ``"HOST:PORT"``, a pair of host and port, or the path of a Unix socket;
    ``authkey`` is bytes, or else the key is that in ``authkey_file``, by default the one that the
    command ``manyhands`` keeps. A server that cannot be reached, now or later, is tried again for
    up to ``reconnect`` seconds. With ``no_md5``, servers that know only HMAC-MD5 (Python 3.11 and
    earlier) are refused. Where the server tells who has a task, ``session_name`` says what it calls
    this client. Raises what a manager would: ``ConnectionRefusedError`` and other
    ``OSError`` where nobody answers, ``multiprocessing.AuthenticationError`` for a wrong key,
    ``TimeoutError`` after 10 s of silence.
    """
    return Client(
        address,
        authkey,
        reconnect,
        authkey_file=authkey_file,
        no_md5=no_md5,
        session_name=session_name,
    )


class Client(AnyClient):
    """A connection to a server of queues. A context manager: at its end, it closes."""

    _shown = "manyhands"

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._stake = _Stake(self._server)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Queue(AnyQueue):
    """A queue on a server, with the methods and exceptions of ``queue.Queue``."""


class Lease(AnyLease):
    """An item that is in our hand until we say what became of it.

    A context manager: at its end the item is done, or has failed if there was an exception.
    """

    def __enter__(self):
        return self

    def __exit__(self, _, error, __):
        self._queue._place.run(self._end_block(error))


class Leases(Typed):
    """Leases of a queue's tasks, which the server sends ahead of the program's asking: an iterator.

    A task is started when it is handed out here. Those that were sent and not started go back, and
    have used up no attempt, at ``close()``, at the end of a ``with`` block, when this is no longer
    used, when the process or the connection ends, and when another worker has nothing to do; that
    one waits until this client makes its next call. Several threads may share one.
    """

    @classmethod
    def _of(cls, queue, ahead):
        leases = cls()
        leases._queue = queue
        # A thread at a time waits for the next one.
        leases._turn = threading.Lock()
        leases._pushed = queue._place.leases(ahead)
        return leases

    def __iter__(self):
        return self

    def __next__(self):
        self._pushed.check()
        self._queue._place.make_way()
        with self._turn:
            task = self._pushed.next()
        if task is None:
            raise StopIteration
        [lease] = self._queue._place.run(self._queue._hold([task]))
        return lease

    def close(self):
        """Take no more tasks: those that were not started go back. Any thread may call this."""
        self._pushed.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        return "<manyhands.Leases of {!r}>".format(self._queue.name)


# ---- a server, and its queues


class _Server(AnyServer):
    """A server as its client knows it: the connection, and what has to be said before it ends."""

    def __init__(self, *options):
        super().__init__(*options)
        _net.look_up(self.address)
        self._lock = threading.Lock()
        self._client = _manyhands.Client(self._remote)

    def client(self):
        """The connection; a forked child makes one of its own."""
        self.check_open()
        with self._lock:
            if self._client is None:
                self._client = _manyhands.Client(self._remote)
            return self._client

    def place(self, name, prefetch):
        return _Place(self, name, prefetch)

    def ask(self, verb):
        """Make a call of the server, not of a queue."""
        return self.client().ask(verb)

    def tell(self, method):
        """Have the server tell something that it tells every manager."""
        return getattr(self.client(), method)()

    @staticmethod
    def run(steps):
        """Take steps, one after the other."""
        try:
            step = next(steps)
            while True:
                try:
                    answer = step()
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            return end.value

    def hurry(self):
        """From now on a server that is away is not waited for."""
        if self._client is not None:
            self._client.leave()

    def end(self):
        if self._client is not None:
            self._client.close()

    def forget(self):
        """In a forked child: all this is the parent's."""
        self._lock = threading.Lock()
        if self._client is not None:
            self._client.forget()
            self._client = None
        for part in self.places + self.pipes:
            part.forget()


class _Place(AnyPlace):
    """A queue on the server."""

    def forget(self):
        super().forget()
        self._queue = None

    def open(self):
        self.queue()
        self.server.places.append(self)

    def queue(self):
        if self._queue is None:
            self._queue = self.server.client().queue(self.name)
        return self._queue

    def make_way(self):
        """Before a call: what this thread has put ahead of its answer arrives first."""
        self.check_open()
        if self.server.pipes:
            self.server.flush(threading.get_ident())

    def ask(self, verb, then=None):
        """Make a call; return what it comes to, or what ``then`` makes of that."""
        self.make_way()
        answer = self.queue().ask(verb)
        return answer if then is None else then(answer)

    def ask_ahead(self, verb):
        """Make a call; returns a function that waits for what it comes to."""
        return self.queue().ask_ahead(verb).result

    def leases(self, ahead):
        """Have tasks pushed."""
        self.make_way()
        return self.queue().leases(ahead)

    def give_back(self):
        self.queue().close()

    def protocol(self):
        """The newest pickle protocol that is read there, or ``None`` for any."""
        return self.queue().protocol

    @property
    def is_native(self):
        """Whether it is a queue of manyhands, and not an object of a Python program."""
        return self.queue().is_native


class _Pipe(AnyPipe):
    """Puts that go ahead of their answers."""

    # Threads put one after the other.
    _new_lock = staticmethod(threading.RLock)

    def put(self, item):
        self._place.check_open()
        with self._lock:
            if self._add(item, threading.get_ident()):
                self._place.run(self._send())
        return True

    def flush(self):
        with self._lock:
            self._place.run(self._flush())


Client._Server, Client._Queue = _Server, Queue
Queue._Pipe, Queue._Lease, Queue._Leases = _Pipe, Lease, Leases


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
        server.leave()
    except Exception as error:
        if isinstance(error, ConnectionError) and not getattr(error, "items", ()):
            util.debug("a client leaves without its server: %r", error)
        else:
            sys.excepthook(type(error), error, error.__traceback__)


def _forget_all():
    _manyhands.forked()
    for stake in list(_stakes):
        stake.server.forget()
        stake.plan_end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
