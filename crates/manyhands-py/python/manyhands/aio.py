"""The client for ``asyncio``: the same queues, awaited.

    async with manyhands.aio.connect(("10.0.0.7", 5000), authkey) as client:
        tasks = await client.queue("tasks")
        item = await tasks.get(timeout=5)

It starts no thread: bytes move in the event loop. Only where the server does not have a queue of
its own under a name, but an object of Python's, calls wait on threads.
"""

import asyncio
import select
import socket
import threading
import time
from collections import deque
from queue import SimpleQueue

from . import _net
from ._manyhands import Client as BlockingClient
from ._manyhands import Core, Items, ManyhandsError, NoResult, Verb
from ._tasks import Held, Local, Puts, Taken, Task, ack_many, hold, lease_many

# A worker is imported when it is asked for.
__all__ = ["Client", "Lease", "Leases", "Queue", "Worker", "connect"]  # noqa: F822


def __getattr__(name):
    if name == "Worker":
        from ._worker import AsyncWorker

        return AsyncWorker
    raise AttributeError("module {!r} has no attribute {!r}".format(__name__, name))


class connect:
    """Connect to a server: to be awaited, or used by ``async with``; see `manyhands.connect`."""

    def __init__(self, address, authkey=None, reconnect=30.0, *, authkey_file=None, no_md5=False):
        self._client = Client(address, authkey, reconnect, authkey_file=authkey_file, no_md5=no_md5)

    def __await__(self):
        return self._client._connected().__await__()

    async def __aenter__(self):
        return await self._client._connected()

    async def __aexit__(self, *_):
        await self._client.close()


class Client(Local):
    """A connection to a server of queues. Calls at the same time have a session each."""

    def __init__(self, address, authkey=None, reconnect=30.0, *, authkey_file=None, no_md5=False):
        self._server = _Server(address, authkey, reconnect, authkey_file, no_md5)
        self.address = self._server.address

    async def _connected(self):
        await self._server.connect()
        return self

    async def queue(self, name, pipeline=False, prefetch=0):
        """Return the queue that is registered as ``name``; see `manyhands.Client.queue`."""
        place = _Place(self._server, name, prefetch)
        await place.open()
        return Queue._of(self, place, name, pipeline)

    async def flush(self):
        """Wait until everything that was put has arrived."""
        await self._server.flush()

    async def close(self):
        """Take leave of the server: what this client did counts as finished."""
        if not self._server.is_closed:
            await self._server.leave()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.close()

    def __repr__(self):
        return "<manyhands.aio.Client of {!r}>".format(self.address)


class Queue(Local):
    """A queue on a server, with the methods and exceptions of ``queue.Queue``, awaited."""

    @classmethod
    def _of(cls, client, place, name, pipeline):
        queue = cls()
        queue.name = name
        queue._client = client
        queue._place = place
        queue._pipe = _Pipe(client._server, place) if pipeline else None
        return queue

    def __class_getitem__(cls, _):
        # What its items are is of interest to type checkers alone.
        return cls

    async def put(
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
        """Add an item; see `manyhands.Queue.put`."""
        if self._pipe is not None and block and timeout is None:
            if key is delay is priority is expires is None and not id:
                await self._pipe.put(item)
                return True
        terms = key, delay, priority, expires, bool(id)
        verb = Verb.put(item, self._place.protocol(), block, timeout, *terms)
        return await self._place.ask(verb)

    async def put_nowait(self, item):
        """Add an item; ``queue.Full`` if there is no room now."""
        return await self.put(item, False)

    async def put_many(self, items, block=True, timeout=None):
        """Add every item of an iterable, in order; see `manyhands.Queue.put_many`."""
        await self._place.put_many(Items(items, self._place.protocol()), block, timeout)

    async def get(self, block=True, timeout=None):
        """Take the next item; ``queue.Empty`` if none comes in ``timeout`` seconds."""
        return await self._place.get(block, timeout)

    async def get_nowait(self):
        """Take the next item; ``queue.Empty`` if there is none now."""
        return await self.get(False)

    async def get_many(self, max, block=True, timeout=None):
        """Take what is there, at most ``max`` items; return a list."""
        return await self._place.get_many(max, block, timeout)

    async def lease(self, block=True, timeout=None, hold=None):
        """Take the next item until it is settled, or for ``hold`` seconds; return a `Lease`."""
        [lease] = await self.lease_many(1, block, timeout, hold)
        return lease

    async def lease_many(self, max, block=True, timeout=None, hold=None):
        """Take what is there, at most ``max`` items; return a list of `Lease`."""
        verb = Verb.lease_many(max, block, timeout, hold)
        return await self._place.run(lease_many(verb, self._lease))

    def leases(self, ahead):
        """Have tasks sent by the server, up to ``ahead`` before they are asked for.

        Returns an asynchronous iterator of `Lease`, see `Leases`; it ends when the queue is shut
        down. A client has one of them for each queue at a time.
        """
        return Leases._of(self._place, self._lease, ahead)

    async def ack_many(self, leases, results=None, timeout=None):
        """Ack leases of this queue in one call, or a few; see `manyhands.Queue.ack_many`."""
        return await self._place.run(ack_many(leases, results, timeout))

    def _lease(self, *lease):
        return Lease._of(self._client, self._place, *lease)

    async def take(self, block=True, timeout=None):
        """Take the next item with what is known of it; see `manyhands.Queue.take`."""
        verb = Verb.take_with_info(block, timeout)
        self._place.need_ours("take")
        return Taken._of(*await self._place.ask(verb))

    async def peek(self, max=10, state=None, items=True):
        """Look at tasks and take none; see `manyhands.Queue.peek`."""
        found = await self._place.ask(Verb.peek(max, state, items))
        return [Task(**task) for task in found]

    async def redrive(self, max=None, task=None):
        """Move dead letters back to the queues they came from; return how many."""
        return await self._place.ask(Verb.redrive(max, task))

    async def purge(self):
        """Drop all that is ready or delayed; return how much that was."""
        return await self._place.ask(Verb.purge())

    async def flush(self):
        """Wait until everything that was put has arrived."""
        if self._pipe is not None:
            await self._pipe.flush()

    async def qsize(self):
        """Count the items."""
        return await self._place.ask(Verb.qsize())

    async def empty(self):
        """Tell whether there is no item."""
        return await self._place.ask(Verb.empty())

    async def full(self):
        """Tell whether as many items are there as fit."""
        return await self._place.ask(Verb.full())

    async def task_done(self):
        """Count one item as done."""
        await self._place.ask(Verb.task_done())

    async def join(self):
        """Wait until every item is done."""
        await self._place.ask(Verb.join())

    async def shutdown(self, immediate=False):
        """End the queue: no more puts, and gets until it is empty; none if ``immediate``."""
        await self._place.ask(Verb.shutdown(immediate))

    def __repr__(self):
        return "<manyhands.aio.Queue {!r}>".format(self.name)


class Lease(Held, Local):
    """An item that is in our hand until we say what became of it."""

    async def ack(self, *result, timeout=None):
        """The item is done; see `manyhands.Lease.ack`."""
        await self._place.ask(self._ack(result, timeout))
        self.is_settled = True

    async def nack(self, delay=None, reason="", give_up=False):
        """It failed, for a ``reason``; see `manyhands.Lease.nack`."""
        await self._place.ask(self._nack(delay, reason, give_up))
        self.is_settled = True

    async def extend(self, hold):
        """Keep it for ``hold`` seconds from now."""
        await self._place.ask(self._extend(hold))

    async def __aenter__(self):
        return self

    async def __aexit__(self, _, error, __):
        if self.is_settled:
            return
        if error is not None:
            await self.nack(reason=repr(error))
            return
        try:
            await self.ack()
        except NoResult as missing:
            # Nobody will find out what it was: the worker has to be mended.
            await self.nack(reason=str(missing))
            raise

    def __enter__(self):
        raise TypeError("what becomes of this lease is awaited: write `async with`, not `with`")

    def __exit__(self, *_):
        pass

    def __repr__(self):
        return "<manyhands.aio.Lease of {!r}>".format(self.item)


class Leases(Local):
    """Leases of a queue's tasks, which the server sends ahead of the program's asking.

    An asynchronous iterator; see `manyhands.Leases`. Several tasks of the loop may share one, and
    one that is cancelled while it waits for the next lease takes none.
    """

    # The connection, until there are no more.
    _line = None

    @classmethod
    def _of(cls, place, lease, ahead):
        leases = cls()
        leases._place = place
        leases._lease = lease
        leases._call = place.subscribe(ahead)
        leases._line = place.line
        return leases

    def __class_getitem__(cls, _):
        # What its items are is of interest to type checkers alone.
        return cls

    def __aiter__(self):
        return self

    async def __anext__(self):
        await self._place.make_way()
        while self._line is not None:
            try:
                task = self._line.next_task(self._call)
            except BaseException as error:
                self._line = None
                if isinstance(error, StopIteration):
                    break
                raise
            if task is None:
                await self._line.news(self._call)
                continue
            [lease] = await self._place.run(hold([task], self._lease))
            return lease
        raise StopAsyncIteration

    async def close(self):
        """Take no more tasks: those that were not started go back."""
        line, self._line = self._line, None
        if line is not None:
            line.unsubscribe(self._call)

    def __del__(self):
        line, self._line = self._line, None
        if line is not None:
            line.drop(self._call)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.close()

    def __repr__(self):
        return "<manyhands.aio.Leases of {!r}>".format(self._place.name)


# ---- a server, and its queues


class _Server:
    """A server as its client knows it: the connection, and what has to be said before it ends."""

    def __init__(self, address, authkey, reconnect, authkey_file, no_md5):
        self.address = _net.read_address(address)
        self.remote = _net.remote(self.address, authkey, authkey_file, reconnect, no_md5)
        self.line = _Line(self.remote, self.address)
        self.is_closed = False
        self.places = []
        self.pipes = []
        # Whether it speaks the native protocol, as soon as that is known.
        self._is_ours = None
        self._classic = None

    async def connect(self):
        if self._is_ours is None:
            if isinstance(self.address, tuple):
                await _look_up(self.address)
            await self.line.connect()
            self._is_ours = self.line.core.is_python2 is None

    async def is_ours(self):
        """Whether the server speaks the native protocol."""
        await self.connect()
        return self._is_ours

    def classic(self):
        """The client for objects of Python's."""
        if self._classic is None:
            self._classic = BlockingClient.classic(self.remote, bool(self.line.core.is_python2))
        return self._classic

    async def flush(self, caller=None):
        """Have everything arrive that was put ahead of its answer, or only what ``caller`` put.

        What others put must not be waited for: it may wait for the very call that comes next.
        """
        for pipe in self.pipes:
            if caller is None or pipe.is_used_by(caller):
                await pipe.flush()

    async def leave(self):
        """Say what has to be said, and end the connection: what was done here is finished."""
        self.line.core.leave()
        failure = None
        for part in self.pipes + self.places:
            try:
                await part.leave()
            except Exception as error:
                failure = failure or error
        self.is_closed = True
        try:
            if self._is_ours:
                await self.line.close()
            if self._classic is not None:
                await _in_thread(self._classic.close)
        except Exception as error:
            failure = failure or error
        if failure is not None:
            raise failure


class _Place:
    """A queue on the server, or an object of Python's there."""

    def __init__(self, server, name, prefetch):
        if not isinstance(name, str):
            text = "a queue's name must be a str, not {}".format(type(name).__name__)
            raise TypeError(text)
        self._server = server
        self.name = name
        self._prefetch = prefetch
        self._taken = deque()
        self._handle = None
        # Whether the server knows it by a reference of its program's.
        self._is_guest = False
        # What is called on threads instead.
        self._object = None

    async def open(self):
        if not await self._server.is_ours():
            classic = self._server.classic()
            self._object = await _in_thread(classic.queue, self.name)
        else:
            self._handle = await self._server.line.open(self.name)
            if self._handle is None:
                await self._open_guest()
        self._server.places.append(self)

    async def _open_guest(self):
        """Open what the program knows by this name that embeds the server."""
        classic = self._server.classic()
        # This reference goes back when the client closes.
        ident = await _in_thread(classic.refer, self.name)
        self._handle = await self._server.line.open(ident)
        self._is_guest = self._handle is not None
        if not self._is_guest:
            self._object = classic.queue_of(self.name, ident)

    async def make_way(self):
        """Before a call: what this task of the loop has put ahead of its answer arrives first."""
        if self._server.is_closed:
            raise ManyhandsError("this client is closed")
        if self._server.pipes:
            await self._server.flush(asyncio.current_task())

    async def run(self, calls):
        """Make calls one after the other: those of a generator, which is sent their answers."""
        try:
            verb = next(calls)
            while True:
                try:
                    answer = await self.ask(verb)
                except BaseException as error:
                    verb = calls.throw(error)
                else:
                    verb = calls.send(answer)
        except StopIteration as end:
            return end.value

    def subscribe(self, ahead):
        """Have tasks pushed; returns the id of the credit."""
        if self._server.is_closed:
            raise ManyhandsError("this client is closed")
        self.need_ours("lease")
        return self.line.subscribe(self._handle, ahead)

    @property
    def line(self):
        return self._server.line

    async def ask(self, verb):
        """Make a call."""
        await self.make_way()
        if not self._is_guest:
            return await self.begin(verb)()
        try:
            return await self.begin(verb.copy())()
        except ManyhandsError:
            if not self._server.line.core.is_missing(self._handle):
                raise
        # The program was started anew, and gives the queue another reference.
        await self._open_guest()
        return await self.begin(verb)()

    def begin(self, verb):
        """Begin a call; returns a coroutine function that waits for what it comes to."""
        if self._object is not None:
            return lambda: _in_thread(self._object.ask, verb)
        return self._server.line.begin(self._handle, verb)

    def protocol(self):
        """The newest pickle protocol that is read there, or ``None`` for any."""
        return None if self._object is None else self._object.protocol

    def need_ours(self, what):
        if self._object is not None:
            raise ManyhandsError("{} needs a queue of manyhands".format(what))

    async def put_many(self, items, block, timeout):
        """Put all; an exception has the attribute ``added``, how many there was room for."""
        until, added = _net.Until(block, timeout), 0
        most = _net.PIECE_ITEMS if self._object is None else 1
        refusal = None
        try:
            while added < len(items) and refusal is None:
                verb, _ = items.put_from(added, *until.left(), most)
                count, refusal = await self.ask(verb)
                added += count
            if refusal is not None:
                raise refusal
        except Exception as error:
            error.added = added
            raise

    async def get(self, block, timeout):
        if not self._taken and not self._prefetch:
            return await self.ask(Verb.get(block, timeout))
        if not self._taken:
            self._taken.extend(await self.ask(Verb.get_many(self._prefetch, block, timeout, True)))
        return self._taken.popleft().load()

    async def get_many(self, most, block, timeout):
        verb = Verb.get_many(most, block, timeout, False)
        if not self._taken:
            return await self.ask(verb)
        return [self._taken.popleft().load() for _ in range(min(most, len(self._taken)))]

    async def leave(self):
        """Put back what was fetched ahead and nobody asked for."""
        if self._taken:
            taken, self._taken = self._taken, deque()
            await self.put_many(Items(taken), False, None)


class _Pipe(Puts):
    """Puts that go ahead of their answers."""

    def __init__(self, server, place):
        self._server = server
        self._place = place
        # Coroutines put one after the other.
        self._lock = asyncio.Lock()
        self._begin()
        server.pipes.append(self)

    async def put(self, item):
        if self._server.is_closed:
            raise ManyhandsError("this client is closed")
        if self._add(item, self._place.protocol(), asyncio.current_task()):
            async with self._lock:
                await self._send()

    async def flush(self):
        """Wait until everything has arrived; raise what went wrong with any of it."""
        async with self._lock:
            await self._send()
            while self._unanswered:
                await self._answer()
            self._raise_failure()

    leave = flush

    async def _send(self):
        """Send what was taken, without waiting for answers as long as there are not too many."""
        self._raise_failure()
        items, self._outbox = self._outbox, Items(())
        start = 0
        while start < len(items):
            verb, count = items.put_from(start, True, None)
            self._unanswered.append((items, start, count, self._place.begin(verb)))
            start += count
        if start:
            self._ahead_len += items.size
            self._sent_at = time.monotonic()
        while self._is_far_ahead():
            await self._answer()

    async def _answer(self):
        items, start, count, answer = self._next_unanswered()
        added = 0
        try:
            added, failure = await answer()
        except Exception as error:
            failure = error
        except BaseException as error:
            error.items = items.load(start)[:count]
            raise
        if failure is not None:
            self._note(failure, items.load(start)[added:count])


# Threads at rest, each by the queue of what it is to do.
_at_rest = []


async def _in_thread(function, *args):
    """Call what waits on its thread. Threads are used again, so that there are few."""
    loop = asyncio.get_event_loop()
    future = loop.create_future()
    if _at_rest:
        inbox = _at_rest.pop()
    else:
        inbox = SimpleQueue()
        threading.Thread(target=_work, args=(inbox,), name="manyhands-aio", daemon=True).start()
    inbox.put((loop, future, function, args))
    return await future


def _work(inbox):
    while True:
        loop, future, function, args = inbox.get()
        result = error = None
        try:
            result = function(*args)
        except BaseException as raised:
            error = raised
        # Whoever is told may need a thread at once.
        _at_rest.append(inbox)
        try:
            loop.call_soon_threadsafe(_tell, future, result, error)
        except RuntimeError:
            # The loop is closed: nobody waits for it.
            pass
        del loop, future, function, args, result, error


def _tell(future, result, error):
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


# ---- the connection


class _Line:
    """Moves the bytes of a client's calls, in the event loop of whoever calls."""

    def __init__(self, remote, address):
        self.core = Core(remote)
        self._remote = remote
        self._address = address
        self._loop = None
        self._connection = None
        self._connecting = None
        self._alarm = None
        # Who waits for which call.
        self._waiting = {}
        # Credits that are no longer used.
        self._dropped = []

    # ---- calls

    async def connect(self):
        self._enter()
        await self._wait(self.core.connect())

    async def open(self, name):
        """Open a queue; returns its handle, or ``None`` if there is no such queue."""
        self._enter()
        handle, call = self.core.open(name)
        await self._decided(call)
        return handle if self.core.is_opened(call) else None

    def begin(self, handle, verb):
        """Begin a call; returns a coroutine function that waits for what it comes to."""
        self._enter()
        call = self.core.ask(id(asyncio.current_task()), handle, verb)
        self._expect(call)
        self._move()
        return lambda: self._wait(call, verb)

    def subscribe(self, handle, ahead):
        """Have tasks pushed; returns the id of the credit."""
        self._enter()
        call = self.core.subscribe(handle, ahead)
        self._move()
        return call

    def next_task(self, call, stored=False):
        """Start the next task of a credit; returns ``None`` if none has come yet."""
        self._enter()
        try:
            task = self.core.next_task(call, stored)
        except BaseException:
            self._forget(call)
            raise
        if task is not None:
            # A task that kills its worker must have been started.
            self._move()
        return task

    async def news(self, call):
        """Wait until something has come for a credit. Several tasks of the loop may."""
        future = self._expect(call)
        self._move()
        await asyncio.shield(future)
        if self._waiting.get(call) is future:
            del self._waiting[call]

    def unsubscribe(self, call):
        """End a credit."""
        self._enter()
        self.core.unsubscribe(call)
        self._forget(call)

    def _forget(self, call):
        """A credit is over: its id may be another call's from now on."""
        future = self._waiting.pop(call, None)
        if future is not None and not future.done():
            future.set_result(None)
        self._move()

    def drop(self, call):
        """Have a credit ended that is no longer used. Any thread may call this, at any time."""
        self._dropped.append(call)
        try:
            self._loop.call_soon_threadsafe(self._enter)
        except RuntimeError:
            # The loop is closed, and the connection with it.
            pass

    async def close(self):
        """End all calls, and the connection. Raises if the server cannot be reached now."""
        self._enter()
        is_lost = not self.core.is_connected
        calls = self.core.close()
        for call in calls:
            self._expect(call)
        for call in calls:
            try:
                await self._wait(call)
            except Exception:
                is_lost = True
        self.core.end()
        self._move()
        if is_lost:
            # It is fine if the server was only started anew.
            probe = _Line(self._remote.hurried(), self._address)
            await probe.connect()
            await probe.close()

    def _expect(self, call):
        if call not in self._waiting:
            self._waiting[call] = self._loop.create_future()
        return self._waiting[call]

    async def _wait(self, call, verb=None):
        await self._decided(call)
        return self.core.answer(call, verb)

    async def _decided(self, call):
        future = self._expect(call)
        self._move()
        try:
            await future
        except BaseException:
            self.core.cancel(call)
            self._move()
            raise
        finally:
            self._waiting.pop(call, None)

    # ---- bytes

    def _enter(self):
        """The loop of whoever calls is the one that moves the bytes."""
        loop = asyncio.get_event_loop()
        if loop is not self._loop:
            self._loop = loop
            self._alarm = self._connecting = None
            if self._connection is not None:
                self._connection.end()
                self._connection = None
                self.core.lost()
        while self._dropped:
            call = self._dropped.pop()
            self.core.unsubscribe(call)
            self._forget(call)

    def _move(self):
        """Do what there is to do."""
        core = self.core
        if self._connection is not None and not core.is_connected:
            self._connection.end()
            self._connection = None
        what, limit = core.next()
        if what != "talk" and self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if what == "connect":
            core.connecting()
            self._connecting = self._loop.create_task(self._connect())
            what, limit = core.next()
        # What has come on a connection at rest, such as its end, is read before more is written.
        if self._connection is not None and not (core.is_at_rest and self._connection.has_news()):
            data = core.outbound()
            if data:
                self._connection.write(data)
            what, limit = core.next()
            if what == "end":
                self._connection.end()
                self._connection = None
        if not core.is_connected:
            core.report()
        self._set_alarm(limit)
        for call in core.decided():
            future = self._waiting.get(call)
            if future is not None and not future.done():
                future.set_result(None)

    def _set_alarm(self, limit):
        """Have time looked at, perhaps too early but not too late."""
        if limit is None:
            return
        at = self._loop.time() + limit
        if self._alarm is not None:
            if self._alarm.when() <= at:
                return
            self._alarm.cancel()
        self._alarm = self._loop.call_at(at, self._ring)

    def _ring(self):
        self._alarm = None
        self.core.tick()
        self._move()

    async def _connect(self):
        try:
            connection = await _connected(self._address)
            make = self._loop.create_connection
            if not isinstance(self._address, tuple):
                make = self._loop.create_unix_connection
            await make(lambda: _Connection(self), sock=connection)
        except OSError as error:
            self._connecting = None
            self.core.unreachable(error)
            self._move()

    def connected(self, connection):
        self._connecting = None
        self._connection = connection
        self.core.connected()
        self._move()

    def received(self, connection, data):
        if connection is self._connection:
            self.core.received(data)
            self._move()

    def lost(self, connection, error):
        if connection is self._connection:
            self._connection = None
            self.core.lost(error)
            self._move()


class _Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self, line):
        self._line = line

    def connection_made(self, transport):
        self._transport = transport
        self.write = transport.write
        self._socket = transport.get_extra_info("socket")
        self._poll = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN)
        self._line.connected(self)

    def has_news(self):
        """Whether the loop has something to read here."""
        if self._poll is not None:
            return bool(self._poll.poll(0))
        return bool(select.select([self._socket], [], [], 0)[0])

    def data_received(self, data):
        self._line.received(self, data)

    def connection_lost(self, error):
        self._line.lost(self, error)

    def end(self):
        try:
            self._transport.close()
        except RuntimeError:
            # Its loop is closed.
            pass


async def _look_up(address):
    """The addresses of a host. Raises if it has none: that is not tried again, as a server is."""
    try:
        # A number needs no thread.
        kind = {"type": socket.SOCK_STREAM, "flags": socket.AI_NUMERICHOST}
        return socket.getaddrinfo(*address, **kind)
    except socket.gaierror:
        pass
    try:
        loop = asyncio.get_event_loop()
        return await loop.getaddrinfo(*address, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise _net.unresolved(error, address) from None


async def _connected(address):
    if not isinstance(address, tuple):
        return await _attempt(socket.AF_UNIX, address)
    failure = OSError("{} has no address".format(address[0]))
    for family, *_, resolved in await _look_up(address):
        try:
            connection = await _attempt(family, resolved)
        except OSError as error:
            failure = error
        else:
            _net.tune(connection)
            return connection
    raise failure


async def _attempt(family, address):
    connection = socket.socket(family)
    connection.setblocking(False)
    try:
        await asyncio.get_event_loop().sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection
