"""Event loops of Python's that move the bytes of a client, and threads for what has to wait."""

import asyncio
import os
import select
import socket
import threading
import weakref
from itertools import count
from queue import SimpleQueue

from . import _net
from ._manyhands import Core

# Threads at rest, each by the queue of what it is to do.
_at_rest = []
if hasattr(os, "register_at_fork"):
    # A forked child has none of them.
    os.register_at_fork(after_in_child=_at_rest.clear)


async def in_thread(function, *args):
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


class Line:
    """Moves the bytes of a client's calls, in the event loop of whoever calls."""

    def __init__(self, remote, address):
        self.core = Core(remote)
        self._remote = remote
        self._address = address
        self._loop = None
        self._connection = None
        self._connecting = None
        self._alarm = None
        # The tasks of the loop that have made calls, by numbers that are not used again.
        self._callers = weakref.WeakKeyDictionary()
        self._numbers = count(1)
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
        call = self.core.ask(self._caller(), handle, verb)
        self._expect(call)
        self._move()
        return lambda: self._wait(call, verb)

    def _caller(self):
        """The number of the task that calls, by which what it takes is its own."""
        # What drives a coroutine without a task is one caller.
        task = asyncio.current_task() or self
        # Not its id: that of a task which has ended is another one's.
        if task not in self._callers:
            self._callers[task] = next(self._numbers)
        return self._callers[task]

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
            probe = Line(self._remote.hurried(), self._address)
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


async def look_up(address):
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
    for family, *_, resolved in await look_up(address):
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
