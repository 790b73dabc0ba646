"""The worker: leases the tasks of a queue, has hands run them, and says what became of each.

One event loop does all of it. Tasks run elsewhere (`_hands`), so that a task that takes long, or
never ends, keeps nobody from extending leases, killing it, or giving it back. Nothing is unpickled
here.
"""

import argparse
import asyncio
import os
import signal
import sys
import threading

from . import _child, _hands, aio
from . import _remote_calls as _calls
from ._client import Client
from ._loop import Line
from ._manyhands import ManyhandsError, StaleLease, Verb

try:
    from queue import ShutDown
except ImportError:
    # What the client raises in its place before Python 3.13 is an `Empty`.
    from queue import Empty as ShutDown

# How long a task stays ours after the last sign of life, in seconds, and how often there is one.
HOLD = 30.0
_BEATS = 3
# How often a worker looks for queues of executors that are new, in seconds.
_LOOK_PAUSE = 0.5
# Results that wait for room, for each hand, before no more tasks are taken.
_UNSETTLED = 2


class Worker:
    """Runs a function on each task of a queue, in processes of its own.

    ``client`` is a `manyhands.Client`, or the address of a server; ``queue`` a name; ``function``
    any function of a module, or its name, ``"module:function"``. Takes ``processes=``,
    ``threads=`` or ``interpreters=`` (Python 3.14) tasks at a time. What the function returns is
    the result, and is committed together with the task; what it raises is the reason why the
    attempt failed. A task that takes longer than ``max_run`` seconds is killed. Without a function,
    the queue is that of executors; see `manyhands.Executor`.
    """

    def __init__(
        self,
        client,
        queue,
        function=None,
        *,
        processes=None,
        threads=None,
        interpreters=None,
        max_run=None,
        hold=HOLD,
    ):
        hands = _choose(function, processes, threads, interpreters, max_run)
        self._shift = Shift(client, queue, hands, max_run, hold, is_of_executors=function is None)

    def run(self):
        """Work until `stop` or a signal says so.

        SIGTERM and Ctrl-C let the tasks that run end, and give back what was not started; a second
        one gives back all. SIGHUP starts all processes anew.
        """
        asyncio.run(self._shift.run(takes_signals=_is_main_thread()))

    def stop(self, now=False):
        """End with the tasks that run, or ``now``, without them; to be called on any thread."""
        self._shift.call(self._shift.leave if now else self._shift.drain)


class AsyncWorker:
    """Runs a coroutine function on each task of a queue, up to ``concurrency`` at a time."""

    def __init__(self, client, queue, function, *, concurrency=100, max_run=None, hold=HOLD):
        hands = _hands.Coroutines(function, _at_least_one("concurrency", concurrency))
        self._shift = Shift(client, queue, hands, _limit("max_run", max_run), hold)

    async def run(self):
        """Work until `stop` is called, or this is cancelled; see `manyhands.Worker.run`."""
        await self._shift.run(takes_signals=False)

    def stop(self, now=False):
        """Take no more tasks, and end with those that run; with ``now``, without them."""
        self._shift.call(self._shift.leave if now else self._shift.drain)


def _choose(function, processes, threads, interpreters, max_run):
    """The hands that were asked for."""
    given = {"processes": processes, "threads": threads, "interpreters": interpreters}
    given = {name: size for name, size in given.items() if size is not None}
    if len(given) > 1:
        raise TypeError("give one of {}".format(", ".join(map("{}=".format, given))))
    kind, size = (list(given.items()) or [("processes", os.cpu_count() or 1)])[0]
    _at_least_one(kind, size)
    if _limit("max_run", max_run) is not None and kind != "processes":
        raise ValueError("max_run= needs processes: nothing else can be killed")
    if kind == "processes":
        return _hands.Processes(function, size, here_main())
    return (_hands.Threads if kind == "threads" else _hands.Interpreters)(function, size)


def _at_least_one(name, size):
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError("{}= must be an int, not {!r}".format(name, size))
    if size < 1:
        raise ValueError("{}= must be at least 1, not {}".format(name, size))
    return size


def _limit(name, seconds):
    if seconds is None:
        return None
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        raise TypeError("{}= must be a number of seconds, not {!r}".format(name, seconds))
    if not seconds > 0:
        raise ValueError("{}= must be more than 0 seconds, not {}".format(name, seconds))
    return seconds


def here_main():
    """Path and module of the script that runs here, for tasks that name what is in it."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name.partition(".")[0] != "manyhands":
        # The module __main__ of a package has its name, and one that was run by -m its own.
        return None, spec.name
    path = getattr(main, "__file__", None)
    if spec is None and path is not None and os.path.isfile(path):
        return os.path.abspath(path), None
    return None


def _is_main_thread():
    return threading.current_thread() is threading.main_thread()


class _Task:
    """A task in our hands."""

    def __init__(self, source, token, number, attempt):
        self.source = source
        self.token = token
        self.number = number
        self.attempt = attempt
        # Ends it from outside, while it runs and if that can be, and why it is to end.
        self._stop = None
        self._end_for = None
        self._alarm = None
        self.max_run = None
        # The beginning of an executor's call, which has its ID.
        self.call = b""
        # Whether somebody else says what becomes of it.
        self.is_lost = False

    def started(self, stop):
        """It runs from now on; ``stop`` ends it, for a reason."""
        self._stop = stop
        if self._end_for is not None:
            stop(self._end_for)
        elif self.max_run is not None:
            reason = "it ran for longer than max_run, {:g} s".format(self.max_run)
            self._alarm = asyncio.get_event_loop().call_later(self.max_run, self.end, reason)

    def ended(self):
        """It does not run any more."""
        self._stop = None
        if self._alarm is not None:
            self._alarm.cancel()

    def end(self, reason):
        """End it, at once or as soon as it has started."""
        self._end_for = self._end_for or reason
        if self._stop is not None:
            self._stop(reason)


class _Source:
    """A queue that tasks come from."""

    def __init__(self, queue):
        self.name = queue.name
        self.keeps_results = True
        self._place = queue._place
        self.ask = self._place.ask

    async def tasks(self, ahead, until_free):
        """Start tasks as there are hands for them. `ahead` more are sent by the server already."""
        line, call = self._place.server.line, self._place.subscribe(ahead)
        try:
            while True:
                await until_free()
                try:
                    task = line.next_task(call, True)
                except StopIteration:
                    call = None
                    return
                except BaseException:
                    call = None
                    raise
                if task is None:
                    await line.news(call)
                else:
                    token, number, attempt, item, _ = task
                    yield _Task(self, token, number, attempt), item
        finally:
            if call is not None:
                line.unsubscribe(call)


class Shift:
    """The work of a worker from its start to its end.

    Tasks may be the calls of executors: of one, which has this queue, or of all that have one whose
    name begins with its name (`is_of_executors`).
    """

    def __init__(
        self, client, queue, hands, max_run=None, hold=HOLD, calls=False, is_of_executors=False
    ):
        self._client = client
        self._queue = queue if isinstance(queue, str) else queue.name
        self._looks = is_of_executors
        self._serves_executors = calls or is_of_executors
        self._hands = hands
        self._max_run = max_run
        self._hold = _limit("hold", hold)
        self.is_quiet = False
        self._loop = None
        # What runs it, until it has connected and all has started.
        self._starting = None
        self._held = set()
        self._free = hands.size
        self._working = set()
        # Those of them that only wait for the server.
        self._settling = set()
        self._serving = {}
        self._is_draining = self._is_leaving = False
        self._failure = None

    async def run(self, takes_signals=False):
        self._loop = asyncio.get_event_loop()
        self._changed = asyncio.Event()
        handlers = self._take_signals() if takes_signals else []
        self._starting = asyncio.current_task()
        try:
            await self._run_shift()
        except asyncio.CancelledError:
            if self._starting is None or not self._is_draining:
                raise
        finally:
            for number in handlers:
                self._loop.remove_signal_handler(number)
        if self._failure is not None:
            raise self._failure

    async def _run_shift(self):
        async with _own_client(self._client) as client:
            self._own = client
            if not self._looks:
                queue = await client.queue(self._queue)
            await self._hands.start()
            self._starting = None
            chores = [asyncio.ensure_future(self._beat())]
            # Without signs of life, others would be given what we have.
            chores[0].add_done_callback(self._ended)
            try:
                if self._looks:
                    chores.append(asyncio.ensure_future(self._look()))
                else:
                    self._serve(queue)
                await self._until_drained()
            finally:
                for chore in chores + list(self._serving.values()):
                    chore.cancel()
                self.leave()
                await asyncio.gather(*chores, *self._working, return_exceptions=True)
                await self._hands.close()

    async def _until_drained(self):
        while not (self._is_draining and not self._working):
            self._changed.clear()
            await self._changed.wait()

    # ---- what happens from outside

    def call(self, function):
        """Call a method from any thread."""
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(function)
            except RuntimeError:
                # The loop is closed: it has ended.
                pass

    def _take_signals(self):
        taken = {signal.SIGTERM: self._told_to_end, signal.SIGINT: self._told_to_end}
        if hasattr(signal, "SIGHUP"):
            taken[signal.SIGHUP] = self._told_to_reload
        try:
            for number, handler in taken.items():
                self._loop.add_signal_handler(number, handler)
        except NotImplementedError:
            # The event loops of Windows know no signals.
            return []
        return list(taken)

    def _told_to_end(self):
        if self._starting is not None:
            # It has nothing yet that would have to be ended.
            self._is_draining = True
            self._starting.cancel()
        elif self._is_draining:
            self._tell("gives back all tasks")
            self.leave()
        else:
            running = self._hands.size - self._free
            if running:
                text = "ends after {} tasks that run; a second signal gives them back"
                self._tell(text.format(running))
            self.drain()

    def _told_to_reload(self):
        self._tell("starts its processes anew")
        self._hands.reload()

    def drain(self):
        """Take no more tasks."""
        self._is_draining = True
        for serving in self._serving.values():
            serving.cancel()
        self._changed.set()

    def leave(self):
        """Give back all tasks."""
        self.drain()
        self._is_leaving = True
        for task in list(self._held):
            task.end("the worker was stopped")
        # A process is killed. A result may wait for room that nobody makes.
        is_killed = isinstance(self._hands, _hands.Processes)
        for working in self._settling if is_killed else self._working:
            working.cancel()

    def _fail(self, error):
        """End because this cannot go on."""
        self._failure = self._failure or error
        self.leave()

    def _tell(self, text):
        if not self.is_quiet and sys.stderr is not None:
            try:
                print("manyhands worker: {}".format(text), file=sys.stderr, flush=True)
            except (OSError, ValueError):
                # It is closed: nobody wants to know.
                pass

    # ---- queues

    async def _look(self):
        """Serve the queues of executors, as they come and go."""
        prefix = self._queue + "/"
        while not self._is_draining:
            try:
                for name in await names(self._own, prefix):
                    if name not in self._serving and not name.endswith((".results", ".dead")):
                        queue = await self._own.queue(name)
                        if self._is_draining:
                            return
                        self._serve(queue)
            except Exception as error:
                return self._fail(error)
            await asyncio.sleep(_LOOK_PAUSE)

    def _serve(self, queue):
        source = _Source(queue)
        serving = asyncio.ensure_future(self._take(queue, source))
        serving.add_done_callback(lambda _: self._serving.pop(source.name, None))
        self._serving[source.name] = serving

    async def _take(self, queue, source):
        """Take tasks as long as there are hands for them."""
        try:
            async for task, item in source.tasks(self._hands.size, self._until_free):
                self._begin(task, item)
            if not self._serves_executors:
                self._tell("ends: the queue {} was shut down".format(source.name))
                return self.drain()
        except Exception as error:
            # An executor has taken its queue with it.
            if not (self._serves_executors and isinstance(error, ManyhandsError)):
                return self._fail(error)
        try:
            # A server that comes back would be asked for it again.
            await queue.close()
        except ManyhandsError:
            pass

    async def _until_free(self):
        while not (self._free > 0 and len(self._held) < self._hands.size * _UNSETTLED):
            self._changed.clear()
            await self._changed.wait()

    # ---- tasks

    def _begin(self, task, item):
        self._free -= 1
        self._held.add(task)
        working = asyncio.ensure_future(self._work(task, item))
        self._working.add(working)
        working.add_done_callback(self._ended)

    def _ended(self, working):
        self._working.discard(working)
        self._changed.set()
        if not working.cancelled() and working.exception() is not None:
            self._fail(working.exception())

    async def _work(self, task, item):
        try:
            try:
                outcome = await self._run(task, item)
            except asyncio.CancelledError:
                outcome = _hands.Failed("the worker was stopped", delay=0)
            finally:
                self._free += 1
                self._changed.set()
            if not task.is_lost:
                self._settling.add(asyncio.current_task())
                await self._tell_server(task, outcome)
        finally:
            self._settling.discard(asyncio.current_task())
            self._held.discard(task)

    def revoke(self, start):
        """End the call of an executor that begins with these bytes."""
        for task in list(self._held):
            if task.call.startswith(start):
                task.is_lost = True
                task.end("it was cancelled")

    async def _run(self, task, item):
        kind, body = _hands.wire(item)
        if self._serves_executors:
            if kind != _child.BYTES:
                return _hands.Failed("it is no call of an executor", give_up=True)
            kind, task.call = _child.CALL, body[: 1 + _calls.ID_LEN_MAX]
        task.max_run = self._max_run
        outcome = await self._hands.run(task, kind, body)
        if self._is_leaving and isinstance(outcome, _hands.Failed):
            outcome.delay = 0
        return outcome

    async def _tell_server(self, task, outcome):
        if isinstance(outcome, _hands.Failed):
            text = "task {} of {} failed (attempt {}): {}"
            text = text.format(task.number, task.source.name, task.attempt, outcome.detail.rstrip())
            if not self._serves_executors:
                self._tell(text)
            how = outcome.delay, outcome.reason, outcome.give_up
            return await self._settle(task, Verb.nack(task.token, *how))
        source = task.source
        if not source.keeps_results:
            return await self._settle(task, Verb.ack(task.token, [], None))
        try:
            await source.ask(Verb.ack(task.token, [outcome.result], None))
        except StaleLease as error:
            if not self._serves_executors:
                self._tell("task {} of {}: {}".format(task.number, task.source.name, error))
        except ManyhandsError as error:
            if not str(error).startswith("no results:"):
                await self._refused(task, error)
                return
            if source.keeps_results and not (outcome.is_none() or self._serves_executors):
                text = "the queue {} declares no results=, so that what tasks return goes nowhere"
                self._tell(text.format(source.name))
            source.keeps_results = False
            await self._settle(task, Verb.ack(task.token, [], None))
        except (TypeError, ValueError) as error:
            await self._refused(task, error)

    async def _refused(self, task, error):
        """The server does not take a result: it never will."""
        reason = "the server refuses the result: {}".format(error)
        self._tell("task {} of {}: {}".format(task.number, task.source.name, reason))
        await self._settle(task, Verb.nack(task.token, None, reason, True))

    async def _settle(self, task, verb):
        try:
            await task.source.ask(verb)
        except (StaleLease, ShutDown) as error:
            if not self._serves_executors:
                self._tell("task {} of {}: {}".format(task.number, task.source.name, error))
        except ManyhandsError:
            # An executor has taken its queue with it.
            if not self._serves_executors:
                raise

    async def _beat(self):
        """Keep what we have for longer, and end what is ours no more."""
        while True:
            await asyncio.sleep(self._hold / _BEATS)
            await asyncio.gather(*[self._extend(task) for task in list(self._held)])

    async def _extend(self, task):
        try:
            await task.source.ask(Verb.extend(task.token, self._hold))
        except ManyhandsError:
            if task in self._held:
                task.is_lost = True
                task.end("its lease was lost")
        except OSError as error:
            self._fail(error)


def control(client, verb):
    """Ask the server something that is about no open queue."""
    return client._server.ask(verb)


async def names(client, prefix):
    """The names of the queues with this prefix."""
    found, more, after = [], True, prefix
    while more:
        some, more = await control(client, Verb.list(after))
        some = [queue["name"] for queue in some]
        found += [name for name in some if name.startswith(prefix)]
        more = more and bool(some) and some[-1].startswith(prefix)
        after = some[-1] if some else after
    return found


def _own_client(client):
    """A client for our event loop, out of whatever names a server."""
    if isinstance(client, aio.Client):
        return _Borrowed(client)
    if isinstance(client, aio.connect):
        return client
    if isinstance(client, Client):
        return _beside(client)
    return aio.connect(client)


def _beside(client):
    """A client of the same server, with the same key."""
    own = aio.Client.__new__(aio.Client)
    own.address, remote = client.address, client._server._remote
    own._server = aio._Server.__new__(aio._Server)
    vars(own._server).update(
        address=own.address,
        _remote=remote,
        line=Line(remote, own.address),
        is_closed=False,
        places=[],
        pipes=[],
        _is_ours=None,
        _classic=None,
    )
    return own


class _Borrowed:
    """A client that somebody else closes."""

    def __init__(self, client):
        self._client = client

    async def __aenter__(self):
        return self._client

    async def __aexit__(self, *_):
        pass


# ---- the command line


def main(arguments):
    """Run ``manyhands worker``; return the exit code."""
    options = _parse(arguments)
    kinds = {"threads": options.threads, "interpreters": options.interpreters}
    if options.threads is None and options.interpreters is None:
        kinds = {"processes": options.jobs or os.cpu_count() or 1}
    # As for a script, modules are looked for where the command runs.
    sys.path.insert(0, os.getcwd())
    try:
        client = aio.connect(options.connect, authkey_file=options.authkey_file)
        worker = Worker(
            client,
            options.queue or "calls",
            options.function,
            max_run=options.max_run,
            hold=options.hold,
            **kinds,
        )
        worker.run()
    except (_hands.CannotStart, ManyhandsError, OSError, ValueError, NotImplementedError) as error:
        print("manyhands worker: {}".format(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parse(arguments):
    parser = argparse.ArgumentParser(
        prog="manyhands worker",
        description="Runs a function on each task of a queue, in processes of its own. Without a "
        "function, runs the calls of executors (manyhands.Executor).",
    )
    parser.add_argument("function", nargs="?", metavar="MODULE:FUNCTION")
    parser.add_argument("--queue", metavar="NAME", help="the queue; of executors: calls")
    parser.add_argument("-j", "--jobs", type=int, metavar="N", help="processes; one for each CPU")
    parser.add_argument("--threads", type=int, metavar="N", help="threads instead of processes")
    parser.add_argument("--interpreters", type=int, metavar="N", help="or interpreters (3.14)")
    parser.add_argument(
        "--connect", default="127.0.0.1:5000", metavar="HOST:PORT", help="the server"
    )
    parser.add_argument("--authkey-file", metavar="FILE", help="the file with the server's key")
    parser.add_argument("--max-run", type=float, metavar="S", help="kill what takes longer")
    parser.add_argument(
        "--hold", type=float, default=HOLD, metavar="S", help="a lost worker's tasks return after"
    )
    options = parser.parse_args(arguments)
    if options.function is not None and options.queue is None:
        parser.error("--queue says which tasks {} is for".format(options.function))
    return options
