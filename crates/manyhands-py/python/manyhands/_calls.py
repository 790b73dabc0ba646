"""What both clients do, written once: `_client` makes calls at once, and `aio` awaits them.

A method here that returns what ``ask`` or ``run`` returns gives the answer itself in `_client`, and
a coroutine of it in `aio`. ``run`` takes *steps*: a generator that yields functions, of which each
makes a call, and that is sent what the call came to.
"""

import time
from collections import deque
from functools import partial

from . import _net
from ._manyhands import Items, ManyhandsError, NoResult, StaleLease, Verb
from ._tasks import QueueInfo, Taken, Task

# A batch goes out when it has so many bytes, or so many seconds after the last one.
_BATCH_LEN, _LINGER = 128 << 10, 0.001
# Bytes and batches sent ahead of their answers.
_AHEAD_LEN, _AHEAD_BATCHES = 4 << 20, 64


class Local:
    """What belongs to a process, or to those that it forks."""

    def __reduce__(self):
        raise TypeError(
            "a {} of manyhands cannot be passed to another process: connect() in the child".format(
                type(self).__name__
            )
        )


class Typed(Local):
    """Something of items whose type is of interest to type checkers alone."""

    def __class_getitem__(cls, _):
        return cls


# ---- what users have


class AnyClient(Local):
    """A client; subclasses have the classes of its server and its queues."""

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
        self._server = self._Server(address, authkey, authkey_file, reconnect, no_md5, session_name)
        self.address = self._server.address

    def queue(self, name, pipeline=False, prefetch=0):
        """Return the queue that is registered as ``name``.

        With ``pipeline``, ``put`` returns before the server has answered: what goes wrong is raised
        by a later call, ``flush()`` or ``close()``. With ``prefetch``, ``get`` takes so many items
        at once and keeps them for the next calls; ``close()`` puts the rest back at the end.
        """
        return self._server.run(self._open(name, pipeline, prefetch))

    def _open(self, name, pipeline, prefetch):
        place = self._server.place(name, prefetch)
        yield place.open
        return self._Queue._of(self, place, pipeline)

    def queues(self):
        """Return what is known of each queue of the server, used or not: a list of `QueueInfo`."""
        return self._server.run(self._queues())

    def _queues(self):
        queues, more = [], True
        while more:
            after = queues[-1].name if queues else ""
            found, more = yield partial(self._server.ask, Verb.list(after))
            queues += [QueueInfo(**fields) for fields in found]
            more = more and bool(found)
        return queues

    def drop_queue(self, name, force=False):
        """Have the server forget a queue and the tasks in it; return how many those were.

        One that is declared stays. One that somebody uses goes only by ``force``, and then its
        users are told that it is shut down.
        """
        return self._server.ask(Verb.drop(name, force))

    def debug_info(self):
        """Return the server's own text about its objects."""
        return self._server.tell("debug_info")

    def number_of_objects(self):
        """Count the objects that clients hold references to."""
        return self._server.tell("number_of_objects")

    def flush(self):
        """Wait until everything that was put has arrived."""
        return self._server.flush()

    def close(self):
        """Take leave of the server: what this client did counts as finished."""
        return self._server.leave()

    def __repr__(self):
        return "<{}.Client of {!r}>".format(self._shown, self.address)


class AnyQueue(Typed):
    """A queue; subclasses have the classes of its pipeline and its leases."""

    @classmethod
    def _of(cls, client, place, pipeline):
        queue = cls()
        queue.name = place.name
        # The client lives as long as its queues.
        queue._client = client
        queue._place = place
        queue._pipe = queue._Pipe(place) if pipeline else None
        return queue

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
                return self._pipe.put(item)
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
        items = Items(items, self._place.protocol())
        return self._place.run(self._place.put_many(items, block, timeout))

    def get(self, block=True, timeout=None):
        """Take the next item; ``queue.Empty`` if none comes in ``timeout`` seconds."""
        if self._place.prefetch:
            return self._place.run(self._place.get_ahead(block, timeout))
        return self._place.ask(Verb.get(block, timeout))

    def get_nowait(self):
        """Take the next item; ``queue.Empty`` if there is none now."""
        return self.get(False)

    def get_many(self, max, block=True, timeout=None):
        """Take what is there, at most ``max`` items; return a list.

        Waits only for the first: ``queue.Empty`` if it does not come in ``timeout`` seconds.
        """
        verb = Verb.get_many(max, block, timeout, False)
        if self._place.prefetch:
            return self._place.run(self._place.get_many_ahead(max, verb))
        return self._place.ask(verb)

    def lease(self, block=True, timeout=None, hold=None):
        """Take the next item until it is settled, or for ``hold`` seconds; return a `Lease`."""
        return self._place.run(self._first_of(self._leased(1, block, timeout, hold)))

    def lease_many(self, max, block=True, timeout=None, hold=None):
        """Take what is there, at most ``max`` items; return a list of `Lease`."""
        return self._place.run(self._leased(max, block, timeout, hold))

    def _leased(self, *terms):
        tasks = yield partial(self._place.ask, Verb.lease_many(*terms))
        return (yield from self._hold(tasks))

    def _hold(self, tasks):
        """Make leases. A task whose item cannot be read becomes a dead letter."""
        leases, failure = [], None
        for token, task, attempt, item, error in tasks:
            if error is None:
                leases.append(self._Lease._of(self, token, task, attempt, item))
            else:
                failure = error
                yield partial(self._place.ask, Verb.nack(token, None, repr(error), True))
        if failure is not None and not leases:
            raise failure
        return leases

    @staticmethod
    def _first_of(steps):
        return (yield from steps)[0]

    def leases(self, ahead):
        """Have tasks sent by the server, up to ``ahead`` before they are asked for.

        Returns an iterator of `Lease`, see `Leases`; it ends when the queue is shut down. A client
        has one of them for each queue at a time.
        """
        return self._Leases._of(self, ahead)

    def ack_many(self, leases, results=None, timeout=None):
        """Ack leases of this queue in one call, or a few, each with its result if there are any.

        Returns a list of what became of each: ``None``, or the exception that ``ack`` would raise.
        """
        leases = list(leases)
        if results is not None:
            results = list(results)
            if len(results) != len(leases):
                text = "{} leases need as many results, not {}"
                raise ValueError(text.format(len(leases), len(results)))
        return self._place.run(self._ack_many(leases, results, timeout))

    def _ack_many(self, leases, results, timeout):
        answers = [_settled_before() if lease.is_settled else None for lease in leases]
        places = [place for place, answer in enumerate(answers) if answer is None]
        tokens = [leases[place]._token for place in places]
        if results is not None:
            results = Items([results[place] for place in places])
        start, until = 0, _net.Until(True, timeout)
        while start < len(tokens):
            verb, count = Verb.ack_many(tokens, results, start, until.left()[1])
            acked = yield partial(self._place.ask, verb)
            for place, answer in zip(places[start:], acked):
                answers[place] = answer
                leases[place].is_settled = answer is None
            start += count
        return answers

    def take(self, block=True, timeout=None):
        """Take the next item with what is known of it: a result's task, why a dead letter is one.

        Returns a pair of ``item`` and ``info``, which is ``None`` for other items.
        """
        verb = Verb.take_with_info(block, timeout)
        if not self._place.is_native:
            raise ManyhandsError("take needs a queue of manyhands")
        return self._place.ask(verb, lambda taken: Taken._of(*taken))

    def peek(self, max=10, state=None, items=True):
        """Look at tasks and take none; return a list of what is known of each.

        Those that are ``"ready"``, as if nothing is said, come in the order of ``get``, those that
        are ``"delayed"`` or ``"leased"`` in that of their puts. Without ``items``, the items are
        left out.
        """
        verb = Verb.peek(max, state, items)
        return self._place.ask(verb, lambda found: [Task(**fields) for fields in found])

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
        return self._place.run(self._flush())

    def _flush(self):
        if self._pipe is not None:
            yield self._pipe.flush

    def close(self):
        """Give the reference to the queue back. What ``get`` took counts as at the client's end."""
        return self._place.run(self._close())

    def _close(self):
        yield from self._flush()
        yield from self._place.close()

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
        return self._place.ask(Verb.task_done())

    def join(self):
        """Wait until every item is done."""
        return self._place.ask(Verb.join())

    def shutdown(self, immediate=False):
        """End the queue: no more puts, and gets until it is empty; none if ``immediate``."""
        return self._place.ask(Verb.shutdown(immediate))

    def __repr__(self):
        return "<{}.Queue {!r}>".format(self._client._shown, self.name)


class AnyLease(Typed):
    """An item that is in our hand until we say what became of it."""

    @classmethod
    def _of(cls, queue, token, task, attempt, item):
        lease = cls()
        # The client lives as long as its leases.
        lease._queue = queue
        lease._token = token
        lease.task = task
        lease.attempt = attempt
        lease.item = item
        lease.is_settled = False
        return lease

    def ack(self, *result, timeout=None):
        """The item is done; its result goes to the queue's queue of results, if it has one.

        `StaleLease` if the lease had run out and somebody else has the item since;
        `ConnectionResetError` if it is over after a lost connection, so that nobody knows which ack
        came first.
        """
        return self._settle(Verb.ack(self._token, result, timeout))

    def nack(self, delay=None, reason="", give_up=False):
        """It failed, for a ``reason``; it comes back after ``delay`` seconds, or the queue's pause.

        With ``give_up`` no retry would mend it, and it is a dead letter at once.
        """
        return self._settle(Verb.nack(self._token, delay, reason, give_up))

    def extend(self, hold):
        """Keep it for ``hold`` seconds from now."""
        return self._queue._place.ask(Verb.extend(self._token, hold))

    def _settle(self, verb):
        if self.is_settled:
            raise _settled_before()
        return self._queue._place.ask(verb, self._settled)

    def _settled(self, _):
        self.is_settled = True

    def _end_block(self, error):
        """At the end of its block it is done, or has failed if there was an exception."""
        if self.is_settled:
            return
        if error is not None:
            yield partial(self.nack, reason=repr(error))
            return
        try:
            yield self.ack
        except NoResult as missing:
            # Nobody will find out what it was: the worker has to be mended.
            yield partial(self.nack, reason=str(missing))
            raise

    def __repr__(self):
        return "<{}.Lease of {!r}>".format(self._queue._client._shown, self.item)


def _settled_before():
    return StaleLease("this lease was settled before")


# ---- a server, its queues, and puts ahead of their answers


class AnyServer:
    """A server as its client knows it; subclasses make the calls, and move the bytes."""

    def __init__(self, address, *options):
        self.address = _net.read_address(address)
        self._remote = _net.remote(self.address, *options)
        self.is_closed = False
        self.places = []
        self.pipes = []

    def check_open(self):
        if self.is_closed:
            raise ManyhandsError("this client is closed")

    def flush(self, caller=None):
        """Have everything arrive that was put ahead of its answer, or only what ``caller`` put.

        What others put must not be waited for: it may wait for the very call that comes next.
        """
        return self.run(self._flush(caller))

    def _flush(self, caller):
        for pipe in self.pipes:
            if caller is None or pipe.is_used_by(caller):
                yield pipe.flush

    def leave(self):
        """Say what has to be said, and end the connection: what was done here is finished."""
        return self.run(self._leave())

    def _leave(self):
        if self.is_closed:
            return
        self.hurry()
        failure = None
        for part in self.pipes + self.places:
            try:
                yield part.leave
            except Exception as error:
                failure = failure or error
        self.is_closed = True
        try:
            yield self.end
        except Exception as error:
            failure = failure or error
        if failure is not None:
            raise failure


class AnyPlace:
    """A queue on the server; subclasses open it and ask it."""

    def __init__(self, server, name, prefetch):
        if not isinstance(name, str):
            text = "a queue's name must be a str, not {}".format(type(name).__name__)
            raise TypeError(text)
        self.server = server
        self.name = name
        self.prefetch = prefetch
        self.is_closed = False
        self.forget()

    def forget(self):
        """In a forked child: all this is the parent's."""
        self._taken = deque()

    def run(self, steps):
        return self.server.run(steps)

    def check_open(self):
        self.server.check_open()
        if self.is_closed:
            raise ManyhandsError("this queue is closed")

    def put_many(self, items, block, timeout):
        """Put all; an exception has the attribute ``added``, how many there was room for."""
        until, added = _net.Until(block, timeout), 0
        most = _net.PIECE_ITEMS if self.is_native else 1
        refusal = None
        try:
            while len(items) and refusal is None:
                verb = items.put_first(*until.left(), most)
                count, refusal = yield partial(self.ask, verb)
                added += count
            if refusal is not None:
                raise refusal
        except Exception as error:
            error.added = added
            raise

    def get_ahead(self, block, timeout):
        """Take the next item, and some more for the calls that come."""
        if not self._taken:
            verb = Verb.get_many(self.prefetch, block, timeout, True)
            self._taken.extend((yield partial(self.ask, verb)))
        return self._taken.popleft().load()

    def get_many_ahead(self, most, verb):
        """Take what was fetched ahead, or else ask for more."""
        if not self._taken:
            return (yield partial(self.ask, verb))
        return [self._taken.popleft().load() for _ in range(min(most, len(self._taken)))]

    def leave(self):
        """Put back what was fetched ahead and nobody asked for."""
        return self.run(self._put_back())

    def _put_back(self):
        if self._taken:
            taken, self._taken = self._taken, deque()
            yield from self.put_many(Items(taken), False, None)

    def close(self):
        """Put that back, and give the reference to the queue back."""
        if not self.is_closed:
            yield from self._put_back()
            yield self.give_back
            self.is_closed = True
            self.server.places.remove(self)


class AnyPipe:
    """Puts that go ahead of their answers; subclasses put one after the other."""

    def __init__(self, place):
        self._place = place
        self.forget()
        place.server.pipes.append(self)

    def forget(self):
        """In a forked child: what was put is the parent's."""
        self._lock = self._new_lock()
        self._outbox = Items(())
        # Items, from where on, how many, and what waits for the answer.
        self._unanswered = deque()
        self._ahead_len = 0
        self._failure = None
        self._sent_at = 0
        self._user = None

    def is_used_by(self, caller):
        return self._user == caller and bool(len(self._outbox) or self._unanswered or self._failure)

    def leave(self):
        return self.flush()

    def _add(self, item, user):
        """Take an item; tell whether it is time to send."""
        self._user = user
        size = self._outbox.add(item, self._place.protocol())
        is_due = time.monotonic() > self._sent_at + _LINGER
        return size > _BATCH_LEN or is_due or self._failure is not None

    def _flush(self):
        """Wait until everything has arrived; raise what went wrong with any of it."""
        yield from self._send()
        while self._unanswered:
            yield from self._answer()
        self._raise_failure()

    def _send(self):
        """Send what was taken, without waiting for answers as long as there are not too many."""
        self._raise_failure()
        items, self._outbox = self._outbox, Items(())
        start = 0
        while start < len(items):
            verb, count = items.put_from(start, True, None)
            try:
                answer = self._place.ask_ahead(verb)
            except BaseException as error:
                error.items = items.load(start)
                raise
            self._unanswered.append((items, start, count, answer))
            start += count
        if start:
            self._ahead_len += items.size
            self._sent_at = time.monotonic()
        while self._ahead_len > _AHEAD_LEN or len(self._unanswered) > _AHEAD_BATCHES:
            yield from self._answer()

    def _answer(self):
        items, start, count, answer = self._unanswered.popleft()
        if not self._unanswered or self._unanswered[0][0] is not items:
            self._ahead_len -= items.size
        added = 0
        try:
            added, failure = yield answer
        except Exception as error:
            failure = error
        except BaseException as error:
            error.items = items.load(start)[:count]
            raise
        if failure is not None:
            self._note(failure, items.load(start)[added:count])

    def _note(self, failure, items):
        if self._failure is None:
            self._failure = failure
            failure.items = []
        self._failure.items += items

    def _raise_failure(self):
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
