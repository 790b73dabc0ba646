"""What a client says to a server: the calls of queues, sessions, and what becomes of both when a
connection breaks. Generators, as ``_wire`` explains; ``_client`` and ``aio`` drive them.

Invariant: an answer belongs to the call that waits for it. A call that is interrupted gives up its
session, and nothing that might have been done is done again unless that changes nothing.
"""

import math
import numbers
import os
import pickle
import queue
import random
import re
import sys
import time
from collections import deque
from multiprocessing import AuthenticationError
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from . import _net, _wire
from ._manyhands import Handshake, ManyhandsError
from ._wire import SILENCE_TIMEOUT, NoResult, StaleLease

# The first and the longest pause between two attempts to connect, in seconds.
_PAUSE_FIRST, _PAUSE_MAX = 0.05, 2.0
# After so many seconds without a connection, a user is told what is waited for.
_TOLD_AFTER = 2.0
# A batch goes out when it has so many bytes, or so many seconds after the last one.
_BATCH_LEN, _LINGER = 128 << 10, 0.001
# What an item takes beside its pickle, in bytes.
_ITEM_LEN = 32
# Bytes and batches sent ahead of their answers.
_AHEAD_LEN, _AHEAD_BATCHES = 4 << 20, 64
# What a server raises that is away, or goes away.
_LOST = (ConnectionError, FileNotFoundError)
# Most items that one call takes or adds.
_MANY_MAX = 16_384


class Server:
    """A server as its client knows it: how to connect, and the sessions that are at rest."""

    def __init__(self, net, address, authkey, reconnect, authkey_file=None, no_md5=False):
        self.net = net
        self.address = _net.read_address(address)
        self.authkey = _net.read_authkey(authkey, authkey_file)
        self.reconnect = reconnect
        self.no_md5 = no_md5
        self.is_closed = False
        self.is_told_of = False
        self.references = []
        self.pipes = []

    def control(self, method, *args):
        """One call of the server itself, on a connection of its own; returns the reply's body.

        As long as the server cannot be reached it is made again, so it must be one that may be.
        """
        first = _wire.request(None, method, args, protocol=2)
        patience = _Patience(self)
        while True:
            try:
                line, body = yield from self._open(first)
            except _LOST:
                yield self.net.pause, patience.pause_or_raise()
            else:
                line.close()
                return body

    def session(self):
        """A new session."""
        name = "manyhands/1 python pid={}".format(os.getpid())
        line, body = yield from self._open(
            _wire.request(None, "accept_connection", (name,), protocol=2)
        )
        try:
            _wire.value(body)
        except BaseException:
            line.close()
            raise
        return line

    def _open(self, first):
        """A new connection, and the body of the reply to its first request."""
        line = yield self.net.connect, self.address, SILENCE_TIMEOUT
        try:
            handshake = Handshake(self.authkey, self.no_md5)
            body = yield from _wire.greet(line, handshake, first)
            self.is_told_of = False
            return line, body
        except BaseException as error:
            line.close()
            raise self._explained(error) from None

    def _explained(self, error):
        """What went wrong before the first reply, with the address and what to look after."""
        place = _net.place(self.address)
        if isinstance(error, AuthenticationError):
            return AuthenticationError("{}: {}{}".format(place, error, self.authkey.hint))
        if isinstance(error, _wire.NoFrame):
            text = "{} does not answer as a server of queues; {}".format(place, _net.HINT)
            return ManyhandsError(text)
        if isinstance(error, ConnectionRefusedError):
            # By the server itself, which has no place for us.
            return ConnectionRefusedError("{}: {}".format(place, error))
        if isinstance(error, ConnectionError):
            return type(error)("{}: {}; {}".format(place, error, _net.HINT))
        return error

    def tell(self, seconds):
        """Say, once until it is connected, what is waited for: the exception being handled."""
        if self.is_told_of or sys.stderr is None:
            return
        self.is_told_of = True
        error = sys.exc_info()[1]
        reason = getattr(error, "strerror", None) or error
        text = "manyhands: still trying, for up to {:.0f} s more: {}".format(seconds, reason)
        try:
            print(text, file=sys.stderr)
        except (OSError, ValueError):
            # It is closed: nobody wants to know.
            pass

    def rested(self):
        """A session at rest that still stands, or ``None``."""
        line = self.net.take()
        while line is not None and not line.is_quiet():
            line.close()
            line = self.net.take()
        return line

    def patient_session(self):
        """A new session, as soon as the server can be reached."""
        patience = _Patience(self)
        while True:
            try:
                return (yield from self.session())
            except _LOST:
                yield self.net.pause, patience.pause_or_raise()

    def exchange(self, outbound, timeout, is_repeatable):
        """Send a request, on a new connection if need be.

        Returns the body of its reply, and whether an earlier attempt may have arrived.
        """
        patience = _Patience(self)
        attempts = 0
        while True:
            line = self.rested()
            is_sent = False
            try:
                if line is None:
                    line = yield from self.session()
                attempts += 1
                yield line.send, outbound
                is_sent = True
                body = yield line.receive, timeout
            except BaseException as error:
                if line is not None:
                    line.close()
                if not isinstance(error, _LOST) or (is_sent and not is_repeatable):
                    raise
                pause = patience.pause_or_raise()
            else:
                self.net.give(line)
                return body, attempts > 1
            yield self.net.pause, pause

    def flush(self, caller=None):
        """Have everything arrive that was put ahead of its answer, or only what ``caller`` put.

        What others put must not be waited for: it may wait for the very call that comes next.
        """
        for pipe in self.pipes:
            if caller is None or pipe.is_used_by(caller):
                yield from pipe.flush()

    def leave(self):
        """Give all references back and end all sessions: what was done here counts as finished."""
        self.reconnect = 0
        failure = None
        for step in [pipe.flush for pipe in self.pipes] + [self._give_back]:
            try:
                yield from step()
            except Exception as error:
                failure = failure or error
        self.is_closed = True
        self.net.end()
        if failure is not None:
            raise failure

    def _give_back(self):
        for calls in self.references:
            yield from calls.give_back()
        while self.references:
            ident = self.references.pop().ident
            if ident is not None:
                yield from self.control("decref", ident)

    def forget(self):
        """In a forked child: all this is the parent's."""
        self.net.forget()
        for part in self.references + self.pipes:
            part.forget()


class _Patience:
    """How often and how long one call tries to reach a server that is away."""

    def __init__(self, server):
        self._server = server
        self._until = None
        self._pause = _PAUSE_FIRST

    def pause_or_raise(self):
        """Seconds until the next attempt; raises what is being handled if it was the last."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._server.reconnect
        pause, self._pause = self._pause, min(2 * self._pause, _PAUSE_MAX)
        if self._server.is_closed or now + pause > self._until:
            raise  # noqa: PLE0704
        if now >= self._until - self._server.reconnect + _TOLD_AFTER:
            self._server.tell(self._until - now)
        return pause * random.uniform(0.5, 1)


class Info(NamedTuple):
    """Where a result or a dead letter comes from."""

    queue: str
    task: int
    attempt: int
    worker: str
    waited: float
    ran: float
    history: List[str]


class Taken(NamedTuple):
    """An item that was taken, with what is known of it."""

    item: Any
    info: Optional[Info]


class Task(NamedTuple):
    """A task that was looked at; what is not known of it is ``None``. Times are in seconds."""

    task: int
    state: str
    attempt: int
    item: Any = None
    age: Optional[float] = None
    due_in: Optional[float] = None
    key: Any = None
    worker: Optional[str] = None
    peer: Optional[str] = None
    since: Optional[float] = None
    failures: Tuple[Tuple[int, str, str], ...] = ()
    queue: Optional[str] = None
    origin: Optional[int] = None


def _task(found: Dict[str, Any]):
    # A newer server may know more.
    known = {name: value for name, value in found.items() if name in Task._fields}
    if "item" in known:
        known["item"] = pickle.loads(known["item"])
    known["failures"] = tuple(known.get("failures", ()))
    return Task(**known)


class Calls:
    """The calls of one queue."""

    def __init__(self, server, name, prefetch):
        if not isinstance(name, str):
            text = "a queue's name must be a str, not {}".format(type(name).__name__)
            raise TypeError(text)
        self._server = server
        self._name = name
        self._prefetch = prefetch
        self.forget()

    def forget(self):
        self.ident = None
        self._protocol = None
        self.taken = deque()

    def refer(self):
        """Get a reference to the queue from the server."""
        body = yield from self._server.control("create", self._name)
        try:
            self.ident, _ = _wire.value(body)
        except ManyhandsError as error:
            if "KeyError" in str(error) or "there is no queue named" in str(error):
                raise ManyhandsError(self._unknown(body)) from None
            raise
        # An older Python, or a Python 2, reads no newer protocol than it writes.
        self._protocol = None if self.is_ours() else min(body[1], pickle.DEFAULT_PROTOCOL)

    def _unknown(self, body):
        """What to say of a name that the server does not know: the names that it has, too."""
        text = "no queue is called {!r} at {}".format(self._name, _net.place(self._server.address))
        _, _, names = pickle.loads(body)[1].partition("declared are: ")
        names = re.findall(r"'([^']*)'", names.splitlines()[0] if names else "")
        if not names:
            return text
        from difflib import get_close_matches

        near = get_close_matches(self._name, names, len(names), 0)
        near += [name for name in names if name not in near]
        return "{}; there are {}".format(text, ", ".join(map(repr, near)))

    def is_ours(self):
        """Whether the queue is in Rust, and so knows the calls that CPython's do not."""
        return "." in self.ident

    def need_ours(self, what):
        if self.ident is None:
            yield from self.refer()
        if not self.is_ours():
            raise ManyhandsError("{} needs a queue of manyhands".format(what))

    def call(self, method, args=(), kwds={}, wait=0, is_repeatable=True):  # noqa: B006
        """Make a call that may wait for ``wait`` seconds, or for ever if ``None``."""
        if self._server.is_closed:
            raise ManyhandsError("this client is closed")
        if self._server.pipes:
            yield from self._server.flush(self._server.net.caller())
        patience = None if wait is None else wait + SILENCE_TIMEOUT
        was_repeated = False
        while True:
            if self.ident is None:
                yield from self.refer()
            ident = self.ident
            outbound = _wire.request(ident, method, args, kwds, self._protocol)
            body, again = yield from self._server.exchange(outbound, patience, is_repeatable)
            was_repeated = was_repeated or again
            if not is_unknown(ident, body):
                try:
                    return _wire.value(body)
                except StaleLease as error:
                    error.was_repeated = was_repeated
                    raise
            # The server was started anew, and another thread may have noticed before.
            if self.ident == ident:
                yield from self.refer()

    # ---- puts

    def put(self, item, block, timeout, options):
        kwds = {"block": block, "timeout": timeout} if not block or timeout is not None else {}
        if options:
            yield from self.need_ours("an option of put")
            kwds.update(options)
        # A put with a key is not added twice.
        is_repeatable = "key" in options
        added = yield from self.call("put", (item,), kwds, _wait(block, timeout), is_repeatable)
        return True if added is None and "id" not in options else added

    def put_many(self, pickles, block, timeout):
        """Put pickles; an exception has the attribute ``added``, how many there was room for."""
        if self.ident is None:
            yield from self.refer()
        until = _Until(block, timeout)
        added = 0
        try:
            while added < len(pickles):
                if not self.is_ours():
                    item = pickle.loads(pickles[added])
                    yield from self.put(item, *until.left(), {})
                    added += 1
                    continue
                batch = pickles[added : added + _batch_items(pickles, added)]
                block, left = until.left()
                kwds = {"block": block, "timeout": left}
                wait = _wait(block, left)
                added += yield from self.call("put_many", (batch,), kwds, wait, False)
        except Exception as error:
            error.added = added
            raise

    # ---- gets

    def get(self, block, timeout):
        if self.taken:
            return pickle.loads(self.taken.popleft())
        if self._prefetch:
            self.taken.extend((yield from self._pickles(self._prefetch, block, timeout)))
            return pickle.loads(self.taken.popleft())
        return (yield from self._get(block, timeout))

    def _get(self, block, timeout):
        kwds = _waiting(block, timeout)
        return (yield from self.call("get", (), kwds, _wait(block, timeout)))

    def get_many(self, most, block, timeout):
        check_int("max", most)
        if most < 1:
            raise ValueError("'max' must be at least 1")
        pickles = [self.taken.popleft() for _ in range(min(most, len(self.taken)))]
        if not pickles:
            pickles = yield from self._pickles(most, block, timeout)
        return [pickle.loads(pickled) for pickled in pickles]

    def _pickles(self, most, block, timeout):
        if self.ident is None:
            yield from self.refer()
        if self.is_ours():
            kwds = _waiting(block, timeout)
            most = min(most, _MANY_MAX)
            return (yield from self.call("get_many", (most,), kwds, _wait(block, timeout)))
        pickles = [pickle.dumps((yield from self._get(block, timeout)))]
        while len(pickles) < most:
            try:
                pickles.append(pickle.dumps((yield from self._get(False, None))))
            except queue.Empty:
                break
        return pickles

    def give_back(self):
        """Put back what was fetched ahead and nobody asked for."""
        if self.taken:
            pickles, self.taken = list(self.taken), deque()
            yield from self.put_many(pickles, False, None)

    # ---- leases

    def lease_many(self, most, block, timeout, hold):
        check_int("max", most)
        yield from self.need_ours("a lease")
        kwds = dict(_waiting(block, timeout), hold=hold)
        return (yield from self.call("lease_many", (most,), kwds, _wait(block, timeout)))

    # ---- looking at tasks, and moving many

    def peek(self, most, state, items):
        check_int("max", most)
        yield from self.need_ours("peek")
        kwds = {"max": most, "state": state, "items": items}
        return [_task(found) for found in (yield from self.call("peek", (), kwds))]

    def take(self, block, timeout):
        yield from self.need_ours("take")
        kwds = _waiting(block, timeout)
        item, info = yield from self.call("take", (), kwds, _wait(block, timeout))
        return Taken(pickle.loads(item), None if info is None else Info(*info))

    def redrive(self, most, task):
        given = {"max": most, "task": task}
        kwds = {name: value for name, value in given.items() if value is not None}
        for name, value in kwds.items():
            check_int(name, value)
        yield from self.need_ours("redrive")
        return (yield from self.call("redrive", (), kwds, is_repeatable=False))

    def purge(self):
        yield from self.need_ours("purge")
        return (yield from self.call("purge", is_repeatable=False))

    def settle(self, method, args, kwds, wait=0):
        """Say what became of a lease; a second time it changes nothing."""
        try:
            yield from self.call(method, args, kwds, wait)
        except StaleLease as error:
            if method == "ack" and str(error).startswith("duplicate:"):
                return
            if not error.was_repeated or method == "extend":
                raise
            # The first attempt may have done it; a task that was to go back is back either way.
            if method == "ack":
                text = "the connection was lost before the answer, so it may be done or not: {}"
                raise ConnectionResetError(text.format(error)) from error


def put_options(key, delay, priority, expires, id):
    """The arguments of ``put`` that only a queue of manyhands knows, as far as they are given."""
    options = {"key": key, "delay": delay, "priority": priority, "expires": expires}
    options = {name: value for name, value in options.items() if value is not None}
    return dict(options, id=True) if id else options


class Held:
    """A lease, as both clients have it."""

    @classmethod
    def _of(cls, stake, calls, token, task, attempt, pickled):
        lease = cls()
        lease._stake = stake
        lease._calls = calls
        lease._token = token
        lease.task = task
        lease.attempt = attempt
        lease.item = pickle.loads(pickled)
        lease.is_settled = False
        return lease

    def __class_getitem__(cls, _):
        # What its item is is of interest to type checkers alone.
        return cls

    def _settle(self, method, args, kwds, wait=0):
        if self.is_settled:
            raise StaleLease("this lease was settled before")
        yield from self._calls.settle(method, (self._token,) + args, kwds, wait)
        self.is_settled = True

    def _nack(self, delay, reason, give_up=False):
        kwds = {"delay": delay, "reason": reason}
        if give_up:
            kwds["give_up"] = True
        yield from self._settle("nack", (), kwds)

    def _extend(self, hold):
        yield from self._calls.settle("extend", (self._token, hold), {})

    def _end(self, error):
        """The end of a block: done, or failed if there was an exception."""
        if self.is_settled:
            return
        if error is not None:
            yield from self._nack(None, repr(error))
            return
        try:
            yield from self._settle("ack", (), {})
        except NoResult as missing:
            # Nobody will find out what it was: the worker has to be mended.
            yield from self._nack(None, str(missing))
            raise


def is_unknown(ident, body):
    """Whether a reply says that the server does not know this reference."""
    if b"KeyError" not in body or b"#TRACEBACK" not in body:
        return False
    _, text = pickle.loads(body)
    return text.strip().endswith("KeyError: {!r}".format(ident))


def _waiting(block, timeout):
    return {"block": block, "timeout": timeout} if not block or timeout is not None else {}


def _wait(block, timeout):
    """How long the server may wait by itself, in seconds; ``None`` for ever."""
    check_timeout(timeout)
    return timeout if block else 0


def check_timeout(timeout):
    text = "'timeout' must be a number of seconds, not {!r}"
    if timeout is not None and not isinstance(timeout, numbers.Real):
        raise TypeError(text.format(timeout))
    if isinstance(timeout, float) and math.isnan(timeout):
        raise ValueError(text.format(timeout))


def check_int(name, value):
    if not isinstance(value, int):
        raise TypeError("{!r} must be an int, not {!r}".format(name, value))


def ack_arguments(result, timeout):
    """Arguments of the call ``ack``, and how long it may wait."""
    check_timeout(timeout)
    if not result:
        return (), {}
    (only,) = result
    return (only,), {} if timeout is None else {"timeout": timeout}, timeout


def _batch_items(pickles, start):
    """How many pickles fit into one call."""
    size = 0
    for number in range(start, min(len(pickles), start + _MANY_MAX)):
        size += len(pickles[number])
        if size > _AHEAD_LEN and number > start:
            return number - start
    return _MANY_MAX


class _Until:
    """A time-out that several calls share."""

    def __init__(self, block, timeout):
        check_timeout(timeout)
        self._block = block
        self._end = None if timeout is None else time.monotonic() + timeout

    def left(self):
        """The arguments ``block`` and ``timeout`` of the next call."""
        if not self._block or self._end is None:
            return self._block, None
        return True, max(0, self._end - time.monotonic())


class Pipe:
    """Puts that go ahead of their answers, on a session of their own."""

    def __init__(self, server, calls):
        self._server = server
        self._calls = calls
        self.forget()

    def forget(self):
        self._line = None
        self._outbox, self._outbox_len = [], 0
        self._unanswered, self._ahead_len = deque(), 0
        self._failure = None
        self._sent_at = 0
        self._user = None

    def is_used_by(self, caller):
        return self._user == caller and bool(self._outbox or self._unanswered or self._failure)

    def add(self, pickled, user, now):
        """Take an item; tell whether it is time to send."""
        self._user = user
        self._outbox.append(pickled)
        self._outbox_len += len(pickled) + _ITEM_LEN
        return (
            self._outbox_len > _BATCH_LEN
            or now > self._sent_at + _LINGER
            or self._failure is not None
        )

    def send(self):
        """Send what was taken, without waiting for answers as long as there are not too many."""
        self._raise_failure()
        if self._calls.ident is None:
            yield from self._calls.refer()
        if not self._calls.is_ours():
            yield from self._put_plainly()
            return
        yield from self._send_batch(*self._take_outbox())
        while self._ahead_len > _AHEAD_LEN or len(self._unanswered) > _AHEAD_BATCHES:
            yield from self._answer()

    def flush(self):
        """Wait until everything has arrived; raise what went wrong with any of it."""
        if self._outbox:
            yield from self.send()
        while self._unanswered:
            yield from self._answer()
        self._raise_failure()

    def _send_batch(self, batch, size):
        if self._line is not None and not self._unanswered and not self._line.is_quiet():
            self._line.close()
            self._line = None
        ident = self._calls.ident
        self._unanswered.append((batch, size, ident))
        self._ahead_len += size
        try:
            if self._line is None:
                self._line = yield from self._server.patient_session()
            yield self._line.send, _wire.request(ident, "put_many", (batch,))
        except BaseException as error:
            self._break_off(error)
            raise
        self._sent_at = time.monotonic()

    def _answer(self):
        try:
            body = yield self._line.receive, None
        except OSError as error:
            self._break_off(error)
            raise
        batch, size, ident = self._unanswered.popleft()
        self._ahead_len -= size
        if is_unknown(ident, body):
            # The server was started anew.
            if self._calls.ident == ident:
                yield from self._calls.refer()
            rest = batch
        else:
            try:
                rest = batch[_wire.value(body) :]
            except Exception as error:
                self._note(error, batch)
                return
        if rest:
            # A batch is refused with a reason only if its first item is.
            yield from self._send_batch(rest, 0)

    def _take_outbox(self):
        outbox = self._outbox, self._outbox_len
        self._outbox, self._outbox_len = [], 0
        return outbox

    def _put_plainly(self):
        """Against a server that knows no batches."""
        batch, _ = self._take_outbox()
        for number, pickled in enumerate(batch):
            item = pickle.loads(pickled)
            outbound = _wire.request(self._calls.ident, "put", (item,), {}, self._calls._protocol)
            try:
                body, _ = yield from self._server.exchange(outbound, None, False)
                _wire.value(body)
            except Exception as error:
                self._note(error, batch[number:])
                break
        self._raise_failure()

    def _break_off(self, error):
        """The session is lost; of what was not answered, nobody knows whether it arrived."""
        if self._line is not None:
            self._line.close()
            self._line = None
        unanswered = [pickled for batch, *_ in self._unanswered for pickled in batch]
        self._unanswered, self._ahead_len = deque(), 0
        error.items = [pickle.loads(pickled) for pickled in unanswered]

    def _note(self, error, pickles):
        items = [pickle.loads(pickled) for pickled in pickles]
        if self._failure is None:
            self._failure = error
            error.items = []
        self._failure.items += items

    def _raise_failure(self):
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
