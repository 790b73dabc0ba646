"""The client for ``asyncio``: the same queues, awaited.

    async with manyhands.aio.connect(("10.0.0.7", 5000), authkey) as client:
        tasks = await client.queue("tasks")
        item = await tasks.get(timeout=5)

It starts no thread: bytes move in the event loop. Only where the server does not have a queue of
its own under a name, but an object of Python's, calls wait on threads.
"""

import asyncio

from ._calls import AnyClient, AnyLease, AnyPipe, AnyPlace, AnyQueue, AnyServer, Typed
from ._loop import Line, in_thread, look_up
from ._manyhands import Client as BlockingClient
from ._manyhands import ManyhandsError, Verb

# A worker is imported when it is asked for.
__all__ = ["Client", "Lease", "Leases", "Queue", "Worker", "connect"]  # noqa: F822


def __getattr__(name):
    if name == "Worker":
        from ._worker import AsyncWorker

        return AsyncWorker
    raise AttributeError("module {!r} has no attribute {!r}".format(__name__, name))


class connect:
    """Connect to a server: to be awaited, or used by ``async with``; see `manyhands.connect`."""

    def __init__(
        self,
        address,
        authkey=None,
        reconnect=30.0,
        *,
        authkey_file=None,
        no_md5=False,
        session_name=None,
    ):
        self._client = Client(
            address,
            authkey,
            reconnect,
            authkey_file=authkey_file,
            no_md5=no_md5,
            session_name=session_name,
        )

    def __await__(self):
        return self._client._connected().__await__()

    async def __aenter__(self):
        return await self._client._connected()

    async def __aexit__(self, *_):
        await self._client.close()


class Client(AnyClient):
    """A connection to a server of queues. Calls at the same time have a session each."""

    _shown = "manyhands.aio"

    async def _connected(self):
        await self._server.connect()
        return self

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.close()


class Queue(AnyQueue):
    """A queue on a server, with the methods and exceptions of ``queue.Queue``, awaited."""


class Lease(AnyLease):
    """An item that is in our hand until we say what became of it.

    An asynchronous context manager: at its end the item is done, or has failed if there was an
    exception.
    """

    async def __aenter__(self):
        return self

    async def __aexit__(self, _, error, __):
        await self._queue._place.run(self._end_block(error))

    def __enter__(self):
        raise TypeError("what becomes of this lease is awaited: write `async with`, not `with`")

    def __exit__(self, *_):
        pass


class Leases(Typed):
    """Leases of a queue's tasks, which the server sends ahead of the program's asking.

    An asynchronous iterator; see `manyhands.Leases`. Several tasks of the loop may share one, and
    one that is cancelled while it waits for the next lease takes none.
    """

    # The connection, until there are no more.
    _line = None

    @classmethod
    def _of(cls, queue, ahead):
        leases = cls()
        leases._queue = queue
        leases._call = queue._place.subscribe(ahead)
        leases._line = queue._place.server.line
        return leases

    def __aiter__(self):
        return self

    async def __anext__(self):
        place = self._queue._place
        await place.make_way()
        while self._line is not None:
            try:
                task = self._line.next_task(self._call)
            except BaseException as error:
                self._line = None
                if isinstance(error, StopIteration):
                    break
                raise
            if task is not None:
                [lease] = await place.run(self._queue._hold([task]))
                return lease
            await self._line.news(self._call)
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
        return "<manyhands.aio.Leases of {!r}>".format(self._queue.name)


# ---- a server, and its queues


class _Server(AnyServer):
    """A server as its client knows it: the connection, and what has to be said before it ends."""

    def __init__(self, *options):
        super().__init__(*options)
        self.line = Line(self._remote, self.address)
        # Whether it speaks the native protocol, as soon as that is known.
        self._is_ours = None
        self._classic = None

    async def connect(self):
        if self._is_ours is None:
            if isinstance(self.address, tuple):
                await look_up(self.address)
            await self.line.connect()
            self._is_ours = self.line.core.is_python2 is None

    async def is_ours(self):
        """Whether the server speaks the native protocol."""
        await self.connect()
        return self._is_ours

    def classic(self):
        """The client for objects of Python's."""
        if self._classic is None:
            self._classic = BlockingClient.classic(self._remote, bool(self.line.core.is_python2))
        return self._classic

    def place(self, name, prefetch):
        return _Place(self, name, prefetch)

    async def ask(self, verb):
        """Make a call of the server, not of a queue."""
        self.check_open()
        if await self.is_ours():
            return await self.line.begin(0, verb)()
        return await in_thread(self.classic().ask, verb)

    async def tell(self, method):
        """Have the server tell something that it tells every manager."""
        self.check_open()
        await self.connect()
        return await in_thread(getattr(self.classic(), method))

    @staticmethod
    async def run(steps):
        """Take steps, one after the other."""
        try:
            step = next(steps)
            while True:
                try:
                    answer = await step()
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            return end.value

    def hurry(self):
        """From now on a server that is away is not waited for."""
        self.line.core.leave()

    async def end(self):
        if self._is_ours:
            await self.line.close()
        if self._classic is not None:
            await in_thread(self._classic.close)


class _Place(AnyPlace):
    """A queue on the server, or an object of Python's there."""

    def __init__(self, server, name, prefetch):
        super().__init__(server, name, prefetch)
        self._handle = None
        # Whether the server knows it by a reference of its program's.
        self._is_guest = False
        # What is called on threads instead.
        self._object = None

    async def open(self):
        if not await self.server.is_ours():
            self._object = await in_thread(self.server.classic().queue, self.name)
        else:
            self._handle = await self.server.line.open(self.name)
            if self._handle is None:
                await self._open_guest()
        self.server.places.append(self)

    async def _open_guest(self):
        """Open what the program knows by this name that embeds the server."""
        classic = self.server.classic()
        # This reference goes back when the client closes.
        ident = await in_thread(classic.refer, self.name)
        self._handle = await self.server.line.open(ident)
        self._is_guest = self._handle is not None
        if not self._is_guest:
            self._object = classic.queue_of(self.name, ident)

    async def make_way(self):
        """Before a call: what this task of the loop has put ahead of its answer arrives first."""
        self.check_open()
        if self.server.pipes:
            await self.server.flush(asyncio.current_task())

    async def ask(self, verb, then=None):
        """Make a call; return what it comes to, or what ``then`` makes of that."""
        await self.make_way()
        answer = await self._ask(verb)
        return answer if then is None else then(answer)

    async def _ask(self, verb):
        if not self._is_guest:
            return await self.ask_ahead(verb)()
        try:
            return await self.ask_ahead(verb.copy())()
        except ManyhandsError:
            if not self.server.line.core.is_missing(self._handle):
                raise
        # The program was started anew, and gives the queue another reference.
        await self._open_guest()
        return await self.ask_ahead(verb)()

    def ask_ahead(self, verb):
        """Make a call; returns a coroutine function that waits for what it comes to."""
        if self._object is not None:
            return lambda: in_thread(self._object.ask, verb)
        return self.server.line.begin(self._handle, verb)

    def subscribe(self, ahead):
        """Have tasks pushed; returns the id of the credit."""
        self.check_open()
        if not self.is_native:
            raise ManyhandsError("lease needs a queue of manyhands")
        return self.server.line.subscribe(self._handle, ahead)

    async def give_back(self):
        if self._object is None:
            await self._ask(Verb.close())
        else:
            await in_thread(self._object.close)

    def protocol(self):
        """The newest pickle protocol that is read there, or ``None`` for any."""
        return None if self._object is None else self._object.protocol

    @property
    def is_native(self):
        """Whether it is a queue of manyhands, and not an object of a Python program."""
        return self._object is None


class _Pipe(AnyPipe):
    """Puts that go ahead of their answers."""

    # Tasks of the loop put one after the other.
    _new_lock = staticmethod(asyncio.Lock)

    async def put(self, item):
        self._place.check_open()
        if self._add(item, asyncio.current_task()):
            async with self._lock:
                await self._place.run(self._send())
        return True

    async def flush(self):
        async with self._lock:
            await self._place.run(self._flush())


Client._Server, Client._Queue = _Server, Queue
Queue._Pipe, Queue._Lease, Queue._Leases = _Pipe, Lease, Leases
