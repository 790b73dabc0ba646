"""The client for ``asyncio``: the same queues, awaited.

    async with manyhands.aio.connect(("10.0.0.7", 5000), authkey) as client:
        tasks = await client.queue("tasks")
        item = await tasks.get(timeout=5)

It starts no thread and no task: all it does, it does in the coroutines of its users.
"""

import asyncio
import pickle
import socket
import time

from . import _net, _wire
from ._calls import Calls, Held, Pipe, Server, ack_arguments, put_options
from ._client import _Local

__all__ = ["Client", "Lease", "Queue", "connect"]

_RECEIVED_LEN = 64 << 10


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


class Client(_Local):
    """A connection to a server of queues. Calls at the same time have a session each."""

    def __init__(self, address, authkey=None, reconnect=30.0, *, authkey_file=None, no_md5=False):
        self._server = Server(_Net(), address, authkey, reconnect, authkey_file, no_md5)
        self.address = self._server.address

    async def _connected(self):
        await _run(self._server.control("dummy"))
        return self

    async def queue(self, name, pipeline=False, prefetch=0):
        """Return the queue that is registered as ``name``; see `manyhands.Client.queue`."""
        calls = Calls(self._server, name, prefetch)
        await _run(calls.refer())
        self._server.references.append(calls)
        return Queue._of(self, calls, name, pipeline)

    async def flush(self):
        """Wait until everything that was put has arrived."""
        await _run(self._server.flush())

    async def close(self):
        """Take leave of the server: what this client did counts as finished."""
        if not self._server.is_closed:
            await _run(self._server.leave())

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.close()

    def __repr__(self):
        return "<manyhands.aio.Client of {!r}>".format(self.address)


class Queue(_Local):
    """A queue on a server, with the methods and exceptions of ``queue.Queue``, awaited."""

    @classmethod
    def _of(cls, client, calls, name, pipeline):
        queue = cls()
        queue.name = name
        queue._client = client
        queue._calls = calls
        queue._pipe = _Pipe(client._server, calls) if pipeline else None
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
        options = put_options(key, delay, priority, expires, id)
        if self._pipe is not None and block and timeout is None and not options:
            await self._pipe.put(pickle.dumps(item))
            return True
        return await _run(self._calls.put(item, block, timeout, options))

    async def put_nowait(self, item):
        """Add an item; ``queue.Full`` if there is no room now."""
        return await self.put(item, False)

    async def put_many(self, items, block=True, timeout=None):
        """Add every item of an iterable, in order; see `manyhands.Queue.put_many`."""
        pickles = [pickle.dumps(item) for item in items]
        await _run(self._calls.put_many(pickles, block, timeout))

    async def get(self, block=True, timeout=None):
        """Take the next item; ``queue.Empty`` if none comes in ``timeout`` seconds."""
        return await _run(self._calls.get(block, timeout))

    async def get_nowait(self):
        """Take the next item; ``queue.Empty`` if there is none now."""
        return await self.get(False)

    async def get_many(self, max, block=True, timeout=None):
        """Take what is there, at most ``max`` items; return a list."""
        return await _run(self._calls.get_many(max, block, timeout))

    async def lease(self, block=True, timeout=None, hold=None):
        """Take the next item until it is settled, or for ``hold`` seconds; return a `Lease`."""
        [lease] = await self.lease_many(1, block, timeout, hold)
        return lease

    async def lease_many(self, max, block=True, timeout=None, hold=None):
        """Take what is there, at most ``max`` items; return a list of `Lease`."""
        taken = await _run(self._calls.lease_many(max, block, timeout, hold))
        return [Lease._of(self._client, self._calls, *lease) for lease in taken]

    async def take(self, block=True, timeout=None):
        """Take the next item with what is known of it; see `manyhands.Queue.take`."""
        return await _run(self._calls.take(block, timeout))

    async def peek(self, max=10, state=None, items=True):
        """Look at tasks and take none; see `manyhands.Queue.peek`."""
        return await _run(self._calls.peek(max, state, items))

    async def redrive(self, max=None, task=None):
        """Move dead letters back to the queues they came from; return how many."""
        return await _run(self._calls.redrive(max, task))

    async def purge(self):
        """Drop all that is ready or delayed; return how much that was."""
        return await _run(self._calls.purge())

    async def flush(self):
        """Wait until everything that was put has arrived."""
        if self._pipe is not None:
            await _run(self._pipe.flush())

    async def qsize(self):
        """Count the items."""
        return await _run(self._calls.call("qsize"))

    async def empty(self):
        """Tell whether there is no item."""
        return await _run(self._calls.call("empty"))

    async def full(self):
        """Tell whether as many items are there as fit."""
        return await _run(self._calls.call("full"))

    async def task_done(self):
        """Count one item as done."""
        await _run(self._calls.call("task_done", is_repeatable=False))

    async def join(self):
        """Wait until every item is done."""
        await _run(self._calls.call("join", wait=None))

    async def shutdown(self, immediate=False):
        """End the queue: no more puts, and gets until it is empty; none if ``immediate``."""
        await _run(self._calls.call("shutdown", (immediate,)))

    def __repr__(self):
        return "<manyhands.aio.Queue {!r}>".format(self.name)


class Lease(Held, _Local):
    """An item that is in our hand until we say what became of it."""

    async def ack(self, *result, timeout=None):
        """The item is done; see `manyhands.Lease.ack`."""
        await _run(self._settle("ack", *ack_arguments(result, timeout)))

    async def nack(self, delay=None, reason="", give_up=False):
        """It failed, for a ``reason``; see `manyhands.Lease.nack`."""
        await _run(self._nack(delay, reason, give_up))

    async def extend(self, hold):
        """Keep it for ``hold`` seconds from now."""
        await _run(self._extend(hold))

    async def __aenter__(self):
        return self

    async def __aexit__(self, _, error, __):
        await _run(self._end(error))

    def __enter__(self):
        raise TypeError("what becomes of this lease is awaited: write `async with`, not `with`")

    def __exit__(self, *_):
        pass

    def __repr__(self):
        return "<manyhands.aio.Lease of {!r}>".format(self.item)


class _Pipe(Pipe):
    """Puts of several coroutines, one after the other."""

    def __init__(self, server, calls):
        self._lock = asyncio.Lock()
        super().__init__(server, calls)
        server.pipes.append(self)

    async def put(self, pickled):
        if self.add(pickled, asyncio.current_task(), time.monotonic()):
            async with self._lock:
                if self._outbox or self._failure:
                    await _run(self.send())

    def flush(self):
        yield (self._lock.acquire,)
        try:
            yield from super().flush()
        finally:
            self._lock.release()


# ---- sockets of an event loop


async def _run(generator):
    """Do what a generator says; return what it returns."""
    try:
        function, *args = next(generator)
        while True:
            try:
                result = await function(*args)
            except BaseException as error:
                function, *args = generator.throw(error)
            else:
                function, *args = generator.send(result)
    except StopIteration as end:
        return end.value


class _Net:
    """Connections, and those at rest: the last one used is the first to be used again."""

    caller = staticmethod(asyncio.current_task)

    def __init__(self):
        self._lines = []
        self._rest = []

    async def connect(self, address, timeout):
        line = _Line(await _connected(address, timeout), address)
        self._lines = [other for other in self._lines if not other.is_closed()] + [line]
        return line

    async def pause(self, seconds):
        await asyncio.sleep(seconds)

    def take(self):
        return self._rest.pop() if self._rest else None

    def give(self, line):
        self._rest.append(line)

    def end(self):
        for line in self._lines:
            line.close()


class _Line:
    """One connection."""

    def __init__(self, connection, address):
        self._socket = connection
        self._address = address
        self._loop = asyncio.get_event_loop()
        self._frames = _wire.Frames()
        self._silence = _wire.Silence(self._socket)

    async def send(self, data):
        await self._loop.sock_sendall(self._socket, data)

    async def receive(self, timeout):
        body = self._frames.split()
        while body is None:
            try:
                received = self._loop.sock_recv(self._socket, _RECEIVED_LEN)
                data = await asyncio.wait_for(received, timeout)
            except asyncio.TimeoutError:
                raise _net.silent(self._address, timeout) from None
            if not data:
                raise ConnectionResetError("the server has closed the connection")
            self._frames.feed(data)
            body = self._frames.split()
        return body

    def is_quiet(self):
        """Whether nothing has come since the last reply, not even the end."""
        return self._silence.lasts()

    def is_closed(self):
        return self._socket.fileno() < 0

    def close(self):
        # Somebody may wait here; the loop must not look at a descriptor that is another's by now.
        try:
            self._loop.remove_reader(self._socket)
            self._socket.shutdown(socket.SHUT_RDWR)
        except (OSError, ValueError, NotImplementedError, RuntimeError):
            # It is closed already, or so is the loop.
            pass
        self._socket.close()


async def _connected(address, timeout):
    try:
        if not isinstance(address, tuple):
            return await _attempt(socket.AF_UNIX, address, timeout)
        failure = OSError("{} has no address".format(address[0]))
        loop = asyncio.get_event_loop()
        for family, *_, resolved in await loop.getaddrinfo(*address, type=socket.SOCK_STREAM):
            try:
                connection = await _attempt(family, resolved, timeout)
            except (OSError, asyncio.TimeoutError) as error:
                failure = error
            else:
                _net.tune(connection)
                return connection
        raise failure
    except asyncio.TimeoutError:
        raise _net.silent(address, timeout) from None
    except OSError as error:
        raise _net.unreachable(error, address) from None


async def _attempt(family, address, timeout):
    connection = socket.socket(family)
    connection.setblocking(False)
    try:
        loop = asyncio.get_event_loop()
        await asyncio.wait_for(loop.sock_connect(connection, address), timeout)
    except BaseException:
        connection.close()
        raise
    return connection
