"""The executor: a ``concurrent.futures.Executor`` whose workers may be anywhere.

Each executor has a queue of calls and one of results for itself, which go with it. A thread with an
event loop sends calls, receives results, and is the worker of those processes that are here.
"""

import asyncio
import hashlib
import os
import pickle
import re
import secrets
import threading
import time
import weakref
from collections import Counter, deque
from concurrent.futures import BrokenExecutor, Future
from concurrent.futures import Executor as _Executor

from . import _child, _hands, _progress, _results, _worker, aio
from . import _remote_calls as _calls
from ._manyhands import Embedded, ManyhandsError, Verb

# How long a chunk of a map should take, in seconds, and most items and bytes that it has.
_CHUNK_SECONDS, _CHUNK_LEN, _CHUNK_BYTES = 0.03, 4096, 1 << 20
# Chunks of a map that are under way, unless its buffersize says otherwise.
_WINDOW = 256
# How often it is looked whether the server still has the calls, in seconds.
_WATCH_PAUSE = 5
# Calls sent ahead of their answers, and results taken at a time.
_BATCH_LEN = 64
_RUN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
# How long a put that is repeated is the same, in seconds: for a connection that was lost, or for a
# master that is started again.
_DEDUP, _DEDUP_OF_RUN = 60, 30 * 24 * 3600
# How long the tasks of a worker stay with it after a restart of the server, if it says no more.
_LEASE = 15


class Executor(_Executor):
    """Runs calls in processes: of this machine, or of the workers of a server.

    Without an ``address``, it has a server of its own, and ``workers`` processes, one for each CPU.
    With one, calls go to the workers of that server, which ``manyhands worker`` starts on any
    machine, and to ``workers`` processes here if that is given. A call whose process dies is tried
    ``attempts`` times (3; in a run 10); one that takes longer than ``max_run`` seconds in a process
    of ours is killed.

    With ``run``, a name, the results stay on the server until the executor is shut down without an
    error: a master that was killed is started again, makes the same calls, and gets what is done
    and waits for the rest.
    """

    def __init__(
        self,
        address=None,
        *,
        workers=None,
        queue="calls",
        run=None,
        attempts=None,
        max_run=None,
        authkey=None,
        authkey_file=None,
        reconnect=30.0,
    ):
        # Where a worker imports the script, this is the end of what it needs.
        _child.stop_import()
        if address is None and run is not None:
            raise ValueError("run= needs the address of a server: one of this process ends with it")
        if run is not None and (not isinstance(run, str) or not _RUN.fullmatch(run)):
            raise ValueError("run= must be a name of letters, digits, '.', '-', '_', not %r" % run)
        if workers is None:
            workers = _processors() if address is None else 0
        elif address is None or workers != 0:
            _worker._at_least_one("workers", workers)
        if attempts is None:
            attempts = 3 if run is None else 10
        _worker._at_least_one("attempts", attempts)
        self._is_far = address is not None
        self._workers = workers
        self._ids = _Ids(run is not None)
        self._master = _Master(address, queue, run, attempts)
        self._master.access = {
            "authkey": authkey,
            "authkey_file": authkey_file,
            "reconnect": reconnect,
        }
        self._master.hands = (workers, _worker._limit("max_run", max_run))
        self._master.start()
        # An executor that nobody has any more, or that outlives its program, ends what was begun.
        self._end = weakref.finalize(self, self._master.end)
        self._end.atexit = False

    def submit(self, fn, /, *args, **kwargs):
        """Have a function called; return the future of its result."""
        future = _Future()
        try:
            self._check_place(fn)
            body = _calls.dump_call(fn, args, kwargs, self._is_far)
        except Exception as error:
            self._master.check()
            future.set_exception(error)
            return future
        return self._send(future, fn, body)

    def _check_place(self, fn):
        """Raise if no worker could import a function."""
        is_here = getattr(fn, "__module__", None) == "__main__"
        if is_here and self._is_far and not self._workers and _calls.cloudpickle is None:
            text = "{} is in the script that runs, which workers elsewhere do not have: define it "
            text += "in a module, or install cloudpickle, which sends it by value"
            raise pickle.PicklingError(text.format(_calls.name(fn)))

    def _send(self, future, fn, body):
        future.begin(self._master, self._ids.next(fn, body))
        self._master.send(future, body)
        return future

    def map(self, fn, *iterables, timeout=None, chunksize="auto", buffersize=None, progress=None):
        """Return an iterator of what ``fn`` returns for each item, in order.

        At most ``buffersize`` items are taken before their results are, so that the input may be
        endless. Items travel in chunks: of ``chunksize``, or so many as take some 30 ms. Where
        there is a terminal, it shows the ``progress`` after a second.
        """
        _check_map(timeout, chunksize, buffersize)
        total = (
            min(map(len, iterables)) if all(hasattr(it, "__len__") for it in iterables) else None
        )
        mapping = _Map(self, fn, zip(*iterables), chunksize, buffersize)
        # As with other executors, work begins here.
        mapping.fill()
        deadline = None if timeout is None else time.monotonic() + timeout
        return _progress.shown(mapping.results(deadline), total, progress)

    def shutdown(self, wait=True, *, cancel_futures=False):
        """End when all calls are done; with ``cancel_futures``, when those are that have begun."""
        self._master.end(cancel_futures)
        if wait:
            self._master.join()

    def __exit__(self, error, *_):
        # What a run has done is kept for the next try. Who interrupts others wants nothing more.
        if error is not None and (self._master.keeps or not issubclass(error, Exception)):
            self._master.abandon()
        self.shutdown(wait=True)
        return False


def _processors():
    """How many CPUs this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _check_map(timeout, chunksize, buffersize):
    if chunksize != "auto":
        _worker._at_least_one("chunksize", chunksize)
    if buffersize is not None:
        _worker._at_least_one("buffersize", buffersize)


class _Future(Future):
    """The result of a call, which may be cancelled also while it runs."""

    _master = id = number = None

    def begin(self, master, id):
        self._master = master
        self.id = id

    def cancel(self):
        """Cancel the call: if it runs, its process is killed. False if its result is there."""
        if not super().cancel():
            return False
        if self._master is not None:
            self._master.cancelled(self)
        return True


class _Ids:
    """IDs of calls: numbers, or what the call is, so that the same calls of a run have the same."""

    def __init__(self, is_run):
        self._is_run = is_run
        self._lock = threading.Lock()
        self._count = 0
        self._seen = Counter()

    def next(self, function, body):
        with self._lock:
            if not self._is_run:
                self._count += 1
                return b"%d" % self._count
            # A function that travels by value is another one each time.
            what = hashlib.sha256(_calls.name(function).encode() + b"\0" + body).hexdigest()
            self._seen[what] += 1
            return "{}-{}".format(what, self._seen[what]).encode()


# ---- map


class _Map:
    """The calls of one map, of which so many are under way as fit."""

    def __init__(self, executor, function, items, chunksize, buffersize):
        self._executor = executor
        self._function = function
        self._items = items
        self._chunksize = chunksize
        self._buffersize = buffersize
        self._chunks = deque()
        self._len = 0
        self._first = 0
        # Seconds that an item takes, once that is known.
        self._pace = None
        # Bytes that an item has, in the chunk that was sent last.
        self._weight = 1
        self._has_more = True

    def fill(self):
        """Take as many items as there is room for."""
        while self._has_more:
            size = self._size()
            if size < 1:
                return
            chunk = []
            for item in self._items:
                chunk.append(item)
                if len(chunk) == size:
                    break
            else:
                self._has_more = False
            if chunk:
                self._chunks.append(self._send(chunk, self._first))
                self._first += len(chunk)
                self._len += len(chunk)

    def _size(self):
        """How many items the next chunk should have; none if there is no room."""
        room = _CHUNK_LEN
        if self._buffersize is not None:
            room = self._buffersize - self._len
        elif len(self._chunks) >= _WINDOW:
            return 0
        if self._chunksize != "auto":
            return min(self._chunksize, room)
        if self._pace is None or self._executor._ids._is_run:
            # The chunks of a run must be the same each time.
            return min(1, room)
        size = int(_CHUNK_SECONDS / max(self._pace, 1e-9))
        if self._buffersize is not None:
            # One for each hand, and one that waits.
            size = min(size, self._buffersize // (2 * max(self._executor._workers, 1)))
        size = min(size, int(_CHUNK_BYTES / self._weight))
        return min(max(1, size), _CHUNK_LEN, room)

    def _send(self, chunk, first):
        future = _Future()
        executor = self._executor
        try:
            executor._check_place(self._function)
            body = _calls.dump_chunk(self._function, chunk, executor._is_far)
        except Exception as error:
            executor._master.check()
            future.set_exception(error)
        else:
            self._weight = len(body) / len(chunk)
            executor._send(future, self._function, body)
        return chunk, first, future

    def results(self, deadline):
        """What becomes of the items, in order."""
        try:
            while self._chunks:
                chunk, first, future = self._chunks[0]
                outcomes = self._outcomes(chunk, future, deadline)
                if outcomes is None:
                    # What is wrong with a chunk is found out item by item.
                    self._chunks.popleft()
                    parts = [self._send([item], first + n) for n, item in enumerate(chunk)]
                    self._chunks.extendleft(reversed(parts))
                    continue
                self._chunks.popleft()
                # Nothing holds a result that was taken.
                del future
                outcomes.reverse()
                while outcomes:
                    # One result is taken: there is room for an item.
                    self._len -= 1
                    self.fill()
                    if not outcomes[-1][0]:
                        raise _noted(outcomes[-1][1], first + len(chunk) - len(outcomes))
                    yield outcomes.pop()[1]
        finally:
            self._has_more = False
            while self._chunks:
                self._chunks.pop()[2].cancel()

    def _outcomes(self, chunk, future, deadline):
        left = None if deadline is None else max(0, deadline - time.monotonic())
        try:
            seconds, outcomes = future.result(left)
        except Exception as error:
            if not future.done() or future.cancelled() or isinstance(error, BrokenExecutor):
                raise
            return None if len(chunk) > 1 else [(False, error)]
        if seconds is not None:
            pace = seconds / len(chunk)
            self._pace = pace if self._pace is None else (self._pace + pace) / 2
        return outcomes


def _noted(error, place):
    """The exception, which says for which item it was raised."""
    if hasattr(error, "add_note"):
        error.add_note("raised for item {} of map, counted from 0".format(place))
    return error


# ---- the thread


class _Master(threading.Thread):
    """Sends calls, and receives their results."""

    def __init__(self, address, queue, run, attempts):
        super().__init__(name="manyhands-executor", daemon=True)
        self._address = address
        self.keeps = run is not None
        self._name = "{}/{}".format(queue, run or secrets.token_hex(8))
        self._attempts = attempts
        # How to log in, and the processes here: how many, and how long a call may take.
        self.access = None
        self.hands = None
        # The collector may run `end` on a thread that has it.
        self._lock = threading.RLock()
        # By ID, each call whose result is not there.
        self._futures = {}
        self._outbox = deque()
        # Results of a run that nobody has asked for yet.
        self._early = {}
        self._is_awake = False
        # No result has come, and nobody was told that there are no workers.
        self._is_alone = True
        self._is_closing = self._cancels = False
        self._is_abandoned = False
        self._failure = None
        self._ready = Future()
        self._loop = None

    # ---- on any thread

    def start(self):
        _register(self)
        super().start()
        try:
            self._ready.result()
        except BaseException:
            self.end()
            raise

    def check(self):
        """Raise if no call is taken any more."""
        if self._failure is not None:
            raise BrokenExecutor(str(self._failure)) from self._failure
        if self._is_closing:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def send(self, future, body):
        item = _calls.pack(future.id, body)
        with self._lock:
            self.check()
            self._futures[future.id] = future
            self._outbox.append((future.id, item))
            self._wake()

    def _wake(self):
        if not self._is_awake:
            self._is_awake = True
            self._call(self._news.set)

    def _call(self, function, *args):
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            # It has ended.
            pass

    def cancelled(self, future):
        """A future was cancelled, which whoever takes it out of the list tells its waiters."""
        with self._lock:
            mine = self._futures.pop(future.id, None)
        if mine is not None:
            future.set_running_or_notify_cancel()
            self._call(self._revoke, future)

    def end(self, cancel_futures=False):
        """Take no more calls, and end when all are done."""
        with self._lock:
            self._is_closing = True
            self._cancels = cancel_futures
            if self._loop is not None:
                self._is_awake = False
                self._wake()

    def abandon(self):
        """Leave what is not done to the next master of the run."""
        with self._lock:
            futures, self._futures = self._futures, {}
            self._outbox.clear()
            self._is_abandoned = True
        for future in futures.values():
            if Future.cancel(future):
                future.set_running_or_notify_cancel()

    # ---- on the thread

    def run(self):
        try:
            asyncio.run(self._work())
        except BaseException as error:
            self._fail(error)
        finally:
            _unregister(self)

    def _fail(self, error):
        with self._lock:
            self._failure = error
            futures, self._futures = self._futures, {}
        if not self._ready.done():
            self._ready.set_exception(error)
        for future in futures.values():
            broken = BrokenExecutor("the executor is broken: {}".format(error))
            broken.__cause__ = error
            if future.set_running_or_notify_cancel():
                future.set_exception(broken)

    async def _work(self):
        self._news = asyncio.Event()
        server = None
        if self._address is None:
            key = secrets.token_bytes(32)
            server = Embedded("127.0.0.1:0", key)
            self._address, self.access = server.address, {"authkey": key}
        try:
            async with aio.connect(self._address, **self.access) as client:
                try:
                    await self._declare(client)
                except ValueError as error:
                    text = "{}; an executor needs a server that makes queues on use"
                    raise ManyhandsError(text.format(error)) from None
                tasks = await client.queue(self._name)
                results = await client.queue(self._name + ".results")
                self._place, self._client = tasks._place, client
                self._loop = asyncio.get_event_loop()
                self._ready.set_result(None)
                await self._until_done(client, tasks, results)
                if not (self.keeps and self._is_abandoned):
                    await self._drop(client)
        finally:
            if server is not None:
                server.stop()

    async def _until_done(self, client, tasks, results):
        chores = [self._send_all(tasks), self._receive(results), self._watch(client)]
        chores = [asyncio.ensure_future(chore) for chore in chores]
        size, max_run = self.hands
        self._shift = shift = None
        if size:
            hands = _hands.Processes(None, size, _worker.here_main())
            self._shift = shift = _worker.Shift(client, self._name, hands, max_run, calls=True)
            shift.is_quiet = True
            chores.append(asyncio.ensure_future(shift.run()))
        try:
            done, _ = await asyncio.wait(chores, return_when=asyncio.FIRST_COMPLETED)
            for chore in done:
                chore.result()
        finally:
            if shift is not None:
                shift.drain()
                if self._is_abandoned:
                    shift.leave()
                await asyncio.wait(chores[3:])
            for chore in chores:
                chore.cancel()
            await asyncio.gather(*chores, return_exceptions=True)

    async def _declare(self, client):
        results, options = self._name + ".results", "attempts=0,backoff=0"
        common = "dedup={}".format(_DEDUP_OF_RUN if self.keeps else _DEDUP)
        await _worker.control(client, Verb.configure(results, options))
        options = "results={0},failures=results,dead={1}.dead,attempts={2},backoff=0,lease={4},{3}"
        options = options.format(results, self._name, self._attempts, common, _LEASE)
        await _worker.control(client, Verb.configure(self._name, options))

    async def _drop(self, client):
        """Nothing stays on the server."""
        for suffix in ("", ".results", ".dead"):
            try:
                await _worker.control(client, Verb.drop(self._name + suffix, True))
            except ManyhandsError:
                # Somebody was faster.
                pass
            except ValueError as error:
                _progress.tell("a queue of the executor stays on the server: {}".format(error))

    async def _watch(self, client):
        """Fail once a server has come back without the calls: nobody would do them."""
        while True:
            await asyncio.sleep(_WATCH_PAUSE)
            try:
                await self._declare(client)
            except ValueError as error:
                text = "the server was started again without the calls that it had: {}"
                raise ManyhandsError(text.format(error)) from None
            if self._is_alone and self._futures and not self.hands[0]:
                await self._tell_if_nobody_comes(client)

    async def _tell_if_nobody_comes(self, client):
        """Say once that calls wait for workers."""
        for queue in await client.queues():
            if queue.name == self._name and queue.qsize and not queue.leased:
                self._is_alone = False
                text = "no worker has taken a call yet: `manyhands worker --connect {}` starts one"
                _progress.tell(text.format(self._address))

    async def _send_all(self, tasks):
        """Send calls until there will be no more, and none is under way."""
        while True:
            with self._lock:
                count = min(len(self._outbox), _BATCH_LEN)
                batch = [self._outbox.popleft() for _ in range(count)]
                if not batch:
                    self._is_awake = False
                    if self._is_closing and not self._futures:
                        return
                    self._news.clear()
            if self._is_closing and self._cancels:
                self._cancels = False
                await self._cancel_waiting(tasks)
            elif batch:
                await self._send(batch)
            else:
                await self._news.wait()

    async def _send(self, batch):
        answers = []
        for id, item in batch:
            future = self._futures.get(id)
            if future is not None:
                terms = id, None, None, None, True
                verb = Verb.put(item, None, True, None, *terms)
                answers.append((future, self._place.ask_ahead(verb)))
        for future, answer in answers:
            try:
                future.number = await answer()
            except OSError:
                raise
            except Exception as error:
                self._deliver(future.id, lambda future, error=error: future.set_exception(error))
            if future.cancelled():
                self._revoke(future)
            if future.number is None and future.id in self._early:
                self._received(self._early.pop(future.id))

    async def _cancel_waiting(self, tasks):
        """Cancel the calls that no worker has begun."""
        with self._lock:
            self._outbox.clear()
        if not self.keeps:
            await tasks.purge()
        running = {task.key for task in await tasks.peek(16_384, "leased", False)}
        for id, future in list(self._futures.items()):
            if id.decode() not in running:
                future.cancel()

    async def _receive(self, results):
        """Take results. Those of a run are only leased: they stay until it has ended."""
        while True:
            if self.keeps:
                found = await results.lease_many(_BATCH_LEN)
                items = [lease.item for lease in found]
            else:
                items = await results.get_many(_BATCH_LEN)
            for item in items:
                self._received(item)

    def _received(self, item):
        self._is_alone = False
        if isinstance(item, dict):
            id, deliver = str(item["key"]).encode(), lambda future: _give_up(future, item)
        else:
            id, body = _calls.unpack(item)
            deliver = lambda future: _set(future, body)  # noqa: E731
        if not self._deliver(id, deliver) and self.keeps:
            self._early[id] = item

    def _deliver(self, id, deliver):
        """Tell a future; return whether there was one."""
        with self._lock:
            future = self._futures.pop(id, None)
            if self._is_closing and not self._futures:
                self._is_awake = True
                self._news.set()
        if future is None:
            return False
        if future.set_running_or_notify_cancel():
            deliver(future)
        return True

    def _revoke(self, future):
        """Nobody wants the result of a call any more, except perhaps the next master of a run."""
        if self._shift is not None:
            self._shift.revoke(_calls.pack(future.id, b""))
        if future.number is not None and not self.keeps:
            revoking = asyncio.ensure_future(self._place.ask(Verb.revoke(future.number)))
            # An error would be that of others too.
            revoking.add_done_callback(lambda it: it.cancelled() or it.exception())
        if self._is_closing and not self._futures:
            self._news.set()


def _set(future, body):
    try:
        seconds, outcomes = _results.load_result(body)
    except Exception as error:
        text = "the result cannot be unpickled here: {!r}".format(error)
        future.set_exception(_results.RemoteError(text))
        return
    if body[:1] == _calls.VALUES:
        future.set_result((seconds, outcomes))
        return
    [(is_value, found)] = outcomes
    if is_value:
        future.set_result(found)
    else:
        future.set_exception(found)


def _give_up(future, notice):
    reasons = notice["reasons"]
    last = reasons[-1] if reasons else "no reason is known"
    text = "given up after {} attempts: {}".format(notice["attempts"], last)
    future.set_exception(_results.TaskFailed(text, reasons))


# ---- the end of the program

_running = weakref.WeakSet()


def _register(master):
    _running.add(master)


def _unregister(master):
    _running.discard(master)


def _end_all():
    """Before the interpreter ends, so do executors: what they were told to do is done."""
    masters = list(_running)
    for master in masters:
        master.end()
    for master in masters:
        master.join()


def at_exit(function):
    """Call this before the interpreter ends; what was registered last is called first."""
    if hasattr(threading, "_register_atexit"):
        # Later, no thread can be started any more.
        threading._register_atexit(function)
    else:
        import atexit

        atexit.register(function)


at_exit(_end_all)
