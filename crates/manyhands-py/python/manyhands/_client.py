"""The client: queues of a server with the methods of ``queue.Queue``, and more.

It starts no thread: all it does, it does in the calls of its users. A call that waits lets other
threads run, and Ctrl-C interrupts it.
"""

import os
import sys
import threading
import time
import weakref
from collections import deque
from multiprocessing import util

from . import _manyhands, _net
from ._manyhands import Items, ManyhandsError, NoResult, Verb
from ._tasks import Held, Local, Puts, Taken, Task, ack_many, hold, lease_many

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


class Client(Local):
    """A connection to a server of queues. A context manager: at its end, it closes."""

    def __init__(self, address, authkey=None, reconnect=30.0, *, authkey_file=None, no_md5=False):
        self._server = _Server(address, authkey, reconnect, authkey_file, no_md5)
        self.address = self._server.address
        self._stake = _Stake(self._server)

    def queue(self, name, pipeline=False, prefetch=0):
        """Return the queue that is registered as ``name``.

        With ``pipeline``, ``put`` returns before the server has answered: what goes wrong is raised
        by a later call, ``flush()`` or ``close()``. With ``prefetch``, ``get`` takes so many items
        at once and keeps them for the next calls; ``close()`` puts the rest back at the end.
        """
        place = _Place(self._server, name, prefetch)
        return Queue._of(self._stake, place, name, pipeline)

    def flush(self):
        """Wait until everything that was put has arrived."""
        self._server.flush()

    def close(self):
        """Take leave of the server: what this client did counts as finished."""
        if not self._server.is_closed:
            self._server.leave()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        return "<manyhands.Client of {!r}>".format(self.address)


class Queue(Local):
    """A queue on a server, with the methods and exceptions of ``queue.Queue``."""

    @classmethod
    def _of(cls, stake, place, name, pipeline):
        queue = cls()
        queue.name = name
        queue._stake = stake
        queue._place = place
        queue._pipe = _Pipe(stake.server, place) if pipeline else None
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
        if self._pipe is not None and block and timeout is None:
            if key is delay is priority is expires is None and not id:
                self._pipe.put(item)
                return True
        terms = key, delay, priority, expires, bool(id)
        return self._place.ask(Verb.put(item, self._place.protocol(), block, timeout, *terms))

    def put_nowait(self, item):
        """Add an item; ``queue.Full`` if there is no room now."""
        return self.put(item, False)

    def put_many(self, items, block=True, timeout=None):
        """Add every item of an iterable, in order.

        ``queue.Full`` if there is no room for one of them in ``timeout`` seconds; those before it
        have been added then, and the exception's attribute ``added`` says how many.
        """
        self._place.put_many(Items(items, self._place.protocol()), block, timeout)

    def get(self, block=True, timeout=None):
        """Take the next item; ``queue.Empty`` if none comes in ``timeout`` seconds."""
        return self._place.get(block, timeout)

    def get_nowait(self):
        """Take the next item; ``queue.Empty`` if there is none now."""
        return self.get(False)

    def get_many(self, max, block=True, timeout=None):
        """Take what is there, at most ``max`` items; return a list.

        Waits only for the first: ``queue.Empty`` if it does not come in ``timeout`` seconds.
        """
        return self._place.get_many(max, block, timeout)

    def lease(self, block=True, timeout=None, hold=None):
        """Take the next item until it is settled, or for ``hold`` seconds; return a `Lease`."""
        return self.lease_many(1, block, timeout, hold)[0]

    def lease_many(self, max, block=True, timeout=None, hold=None):
        """Take what is there, at most ``max`` items; return a list of `Lease`."""
        verb = Verb.lease_many(max, block, timeout, hold)
        return self._place.run(lease_many(verb, self._lease))

    def leases(self, ahead):
        """Have tasks sent by the server, up to ``ahead`` before they are asked for.

        Returns an iterator of `Lease`, see `Leases`; it ends when the queue is shut down. A client
        has one of them for each queue at a time.
        """
        return Leases._of(self._place, self._lease, ahead)

    def ack_many(self, leases, results=None, timeout=None):
        """Ack leases of this queue in one call, or a few, each with its result if there are any.

        Returns a list of what became of each: ``None``, or the exception that ``ack`` would raise.
        """
        return self._place.run(ack_many(leases, results, timeout))

    def _lease(self, *lease):
        return Lease._of(self._stake, self._place, *lease)

    def take(self, block=True, timeout=None):
        """Take the next item with what is known of it: a result's task, why a dead letter is one.

        Returns a pair of ``item`` and ``info``, which is ``None`` for other items.
        """
        verb = Verb.take_with_info(block, timeout)
        self._place.need_ours("take")
        return Taken._of(*self._place.ask(verb))

    def peek(self, max=10, state=None, items=True):
        """Look at tasks and take none; return a list of what is known of each.

        Those that are ``"ready"``, as if nothing is said, come in the order of ``get``, those that
        are ``"delayed"`` or ``"leased"`` in that of their puts. Without ``items``, the items are
        left out.
        """
        return [Task(**found) for found in self._place.ask(Verb.peek(max, state, items))]

    def redrive(self, max=None, task=None):
        """Move dead letters back to the queues they came from, as new tasks; return how many.

        At most ``max``, or as many as one call can, some 16,384. With ``task``, only the one that
        ``peek()`` shows with this number.
        """
        return self._place.ask(Verb.redrive(max, task))

    def purge(self):
        """Drop all that is ready or delayed; return how much that was."""
        return self._place.ask(Verb.purge())

    def flush(self):
        """Wait until everything that was put has arrived."""
        if self._pipe is not None:
            self._pipe.flush()

    def qsize(self):
        """Count the items."""
        return self._place.ask(Verb.qsize())

    def empty(self):
        """Tell whether there is no item."""
        return self._place.ask(Verb.empty())

    def full(self):
        """Tell whether as many items are there as fit."""
        return self._place.ask(Verb.full())

    def task_done(self):
        """Count one item as done."""
        self._place.ask(Verb.task_done())

    def join(self):
        """Wait until every item is done."""
        self._place.ask(Verb.join())

    def shutdown(self, immediate=False):
        """End the queue: no more puts, and gets until it is empty; none if ``immediate``."""
        self._place.ask(Verb.shutdown(immediate))

    def __repr__(self):
        return "<manyhands.Queue {!r}>".format(self.name)


class Lease(Held, Local):
    """An item that is in our hand until we say what became of it.

    A context manager: at its end the item is done, or has failed if there was an exception.
    """

    def ack(self, *result, timeout=None):
        """The item is done; its result goes to the queue's queue of results, if it has one.

        `StaleLease` if the lease had run out and somebody else has the item since;
        `ConnectionResetError` if it is over after a lost connection, so that nobody knows which ack
        came first.
        """
        self._place.ask(self._ack(result, timeout))
        self.is_settled = True

    def nack(self, delay=None, reason="", give_up=False):
        """It failed, for a ``reason``; it comes back after ``delay`` seconds, or the queue's pause.

        With ``give_up`` no retry would mend it, and it is a dead letter at once.
        """
        self._place.ask(self._nack(delay, reason, give_up))
        self.is_settled = True

    def extend(self, hold):
        """Keep it for ``hold`` seconds from now."""
        self._place.ask(self._extend(hold))

    def __enter__(self):
        return self

    def __exit__(self, _, error, __):
        if self.is_settled:
            return
        if error is not None:
            self.nack(reason=repr(error))
            return
        try:
            self.ack()
        except NoResult as missing:
            # Nobody will find out what it was: the worker has to be mended.
            self.nack(reason=str(missing))
            raise

    def __repr__(self):
        return "<manyhands.Lease of {!r}>".format(self.item)


class Leases(Local):
    """Leases of a queue's tasks, which the server sends ahead of the program's asking: an iterator.

    A task is started when it is handed out here. Those that were sent and not started go back, and
    have used up no attempt, at ``close()``, at the end of a ``with`` block, when this is no longer
    used, when the process or the connection ends, and when another worker has nothing to do; that
    one waits until this client makes its next call. Several threads may share one.
    """

    @classmethod
    def _of(cls, place, lease, ahead):
        leases = cls()
        leases._place = place
        leases._lease = lease
        # A thread at a time waits for the next one.
        leases._turn = threading.Lock()
        place.make_way()
        leases._pushed = place.queue().leases(ahead)
        return leases

    def __class_getitem__(cls, _):
        # What its items are is of interest to type checkers alone.
        return cls

    def __iter__(self):
        return self

    def __next__(self):
        self._pushed.check()
        self._place.make_way()
        with self._turn:
            task = self._pushed.next()
        if task is None:
            raise StopIteration
        [lease] = self._place.run(hold([task], self._lease))
        return lease

    def close(self):
        """Take no more tasks: those that were not started go back. Any thread may call this."""
        self._pushed.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        return "<manyhands.Leases of {!r}>".format(self._place.name)


# ---- a server, and its queues


class _Server:
    """A server as its client knows it: the connection, and what has to be said before it ends."""

    def __init__(self, address, authkey, reconnect, authkey_file, no_md5):
        self.address = _net.read_address(address)
        self._remote = _net.remote(self.address, authkey, authkey_file, reconnect, no_md5)
        _net.look_up(self.address)
        self.is_closed = False
        self.places = []
        self.pipes = []
        self._lock = threading.Lock()
        self._client = _manyhands.Client(self._remote)

    def client(self):
        """The connection; a forked child makes one of its own."""
        if self.is_closed:
            raise ManyhandsError("this client is closed")
        with self._lock:
            if self._client is None:
                self._client = _manyhands.Client(self._remote)
            return self._client

    def flush(self, caller=None):
        """Have everything arrive that was put ahead of its answer, or only what ``caller`` put.

        What others put must not be waited for: it may wait for the very call that comes next.
        """
        for pipe in self.pipes:
            if caller is None or pipe.is_used_by(caller):
                pipe.flush()

    def leave(self):
        """Say what has to be said, and end the connection: what was done here is finished."""
        client, failure = self._client, None
        if client is not None:
            client.leave()
        for part in self.pipes + self.places:
            try:
                part.leave()
            except Exception as error:
                failure = failure or error
        self.is_closed = True
        try:
            if client is not None:
                client.close()
        except Exception as error:
            failure = failure or error
        if failure is not None:
            raise failure

    def forget(self):
        """In a forked child: all this is the parent's."""
        self._lock = threading.Lock()
        if self._client is not None:
            self._client.forget()
            self._client = None
        for part in self.places + self.pipes:
            part.forget()


class _Place:
    """A queue on the server."""

    def __init__(self, server, name, prefetch):
        if not isinstance(name, str):
            text = "a queue's name must be a str, not {}".format(type(name).__name__)
            raise TypeError(text)
        self._server = server
        self.name = name
        self._prefetch = prefetch
        self.forget()
        self.queue()
        server.places.append(self)

    def forget(self):
        self._queue = None
        self._taken = deque()

    def queue(self):
        if self._queue is None:
            self._queue = self._server.client().queue(self.name)
        return self._queue

    def make_way(self):
        """Before a call: what this thread has put ahead of its answer arrives first."""
        if self._server.is_closed:
            raise ManyhandsError("this client is closed")
        if self._server.pipes:
            self._server.flush(threading.get_ident())

    def ask(self, verb):
        """Make a call."""
        self.make_way()
        return self.queue().ask(verb)

    def run(self, calls):
        """Make calls one after the other: those of a generator, which is sent their answers."""
        try:
            verb = next(calls)
            while True:
                try:
                    answer = self.ask(verb)
                except BaseException as error:
                    verb = calls.throw(error)
                else:
                    verb = calls.send(answer)
        except StopIteration as end:
            return end.value

    def protocol(self):
        """The newest pickle protocol that is read there, or ``None`` for any."""
        return self.queue().protocol

    def need_ours(self, what):
        if not self.queue().is_native:
            raise ManyhandsError("{} needs a queue of manyhands".format(what))

    def put_many(self, items, block, timeout):
        """Put all; an exception has the attribute ``added``, how many there was room for."""
        until, added = _net.Until(block, timeout), 0
        most = _net.PIECE_ITEMS if self.queue().is_native else 1
        refusal = None
        try:
            while added < len(items) and refusal is None:
                verb, _ = items.put_from(added, *until.left(), most)
                count, refusal = self.ask(verb)
                added += count
            if refusal is not None:
                raise refusal
        except Exception as error:
            error.added = added
            raise

    def get(self, block, timeout):
        if not self._taken and not self._prefetch:
            return self.ask(Verb.get(block, timeout))
        if not self._taken:
            self._taken.extend(self.ask(Verb.get_many(self._prefetch, block, timeout, True)))
        return self._taken.popleft().load()

    def get_many(self, most, block, timeout):
        verb = Verb.get_many(most, block, timeout, False)
        if not self._taken:
            return self.ask(verb)
        return [self._taken.popleft().load() for _ in range(min(most, len(self._taken)))]

    def leave(self):
        """Put back what was fetched ahead and nobody asked for."""
        if self._taken:
            taken, self._taken = self._taken, deque()
            self.put_many(Items(taken), False, None)


class _Pipe(Puts):
    """Puts that go ahead of their answers."""

    def __init__(self, server, place):
        self._server = server
        self._place = place
        self.forget()
        server.pipes.append(self)

    def forget(self):
        # Threads put one after the other.
        self._lock = threading.RLock()
        self._begin()

    def put(self, item):
        if self._server.is_closed:
            raise ManyhandsError("this client is closed")
        protocol = self._place.protocol()
        with self._lock:
            if self._add(item, protocol, threading.get_ident()):
                self._send()

    def flush(self):
        """Wait until everything has arrived; raise what went wrong with any of it."""
        with self._lock:
            if len(self._outbox):
                self._send()
            while self._unanswered:
                self._answer()
            self._raise_failure()

    leave = flush

    def _send(self):
        """Send what was taken, without waiting for answers as long as there are not too many."""
        self._raise_failure()
        items, self._outbox = self._outbox, Items(())
        start = 0
        while start < len(items):
            verb, count = items.put_from(start, True, None)
            try:
                answer = self._place.queue().ask_ahead(verb)
            except BaseException as error:
                error.items = items.load(start)
                raise
            self._unanswered.append((items, start, count, answer))
            start += count
        self._ahead_len += items.size
        self._sent_at = time.monotonic()
        while self._is_far_ahead():
            self._answer()

    def _answer(self):
        items, start, count, answer = self._next_unanswered()
        added = 0
        try:
            added, failure = answer.result()
        except Exception as error:
            failure = error
        except BaseException as error:
            error.items = items.load(start)[:count]
            raise
        if failure is not None:
            self._note(failure, items.load(start)[added:count])


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
