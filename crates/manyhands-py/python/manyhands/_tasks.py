"""What both clients have in common: what is known of tasks, leases, and puts in batches."""

import time
from collections import deque
from typing import Any, List, NamedTuple, Optional, Tuple

from ._manyhands import Items, StaleLease, Verb

SETTLED = "this lease was settled before"
# A batch goes out when it has so many bytes, or so many seconds after the last one.
_BATCH_LEN, _LINGER = 128 << 10, 0.001
# Bytes and batches sent ahead of their answers.
_AHEAD_LEN, _AHEAD_BATCHES = 4 << 20, 64


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

    @classmethod
    def _of(cls, item, info):
        return cls(item, None if info is None else Info(*info))


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


class Held:
    """A lease, as both clients have it."""

    @classmethod
    def _of(cls, client, place, token, task, attempt, item):
        lease = cls()
        # The client lives as long as its leases.
        lease._client = client
        lease._place = place
        lease._token = token
        lease.task = task
        lease.attempt = attempt
        lease.item = item
        lease.is_settled = False
        return lease

    def __class_getitem__(cls, _):
        # What its item is is of interest to type checkers alone.
        return cls

    def _ack(self, result, timeout):
        return self._unsettled(Verb.ack(self._token, result, timeout))

    def _nack(self, delay, reason, give_up=False):
        return self._unsettled(Verb.nack(self._token, delay, reason, give_up))

    def _extend(self, hold):
        return Verb.extend(self._token, hold)

    def _unsettled(self, verb):
        if self.is_settled:
            raise StaleLease(SETTLED)
        return verb


# ---- calls one after the other: generators of verbs, which are sent the answers


def lease_many(verb, lease):
    """Take leases."""
    return (yield from hold((yield verb), lease))


def hold(tasks, lease):
    """Take leases that have come. A task whose item cannot be read becomes a dead letter."""
    leases, failure = [], None
    for token, task, attempt, item, error in tasks:
        if error is None:
            leases.append(lease(token, task, attempt, item))
        else:
            failure = error
            yield Verb.nack(token, None, repr(error), True)
    if failure is not None and not leases:
        raise failure
    return leases


def ack_many(leases, results, timeout):
    """Ack leases, each with its result if there are any; what became of each."""
    leases = list(leases)
    answers = [StaleLease(SETTLED) if lease.is_settled else None for lease in leases]
    places = [place for place, lease in enumerate(leases) if not lease.is_settled]
    if results is not None:
        results = list(results)
        if len(results) != len(leases):
            text = "{} leases need as many results, not {}"
            raise ValueError(text.format(len(leases), len(results)))
        results = Items([results[place] for place in places])
    tokens = [leases[place]._token for place in places]
    start = 0
    while start < len(tokens):
        verb, count = Verb.ack_many(tokens, results, start, timeout)
        for place, answer in zip(places[start:], (yield verb)):
            answers[place] = answer
            leases[place].is_settled = answer is None
        start += count
    return answers


class Puts:
    """Puts that are ahead of their answers, as both clients have them."""

    def _begin(self):
        self._outbox = Items(())
        # Items, from where on, how many, and what waits for the answer.
        self._unanswered = deque()
        self._ahead_len = 0
        self._failure = None
        self._sent_at = 0
        self._user = None

    def is_used_by(self, caller):
        return self._user == caller and bool(len(self._outbox) or self._unanswered or self._failure)

    def _add(self, item, protocol, user):
        """Take an item; tell whether it is time to send."""
        self._user = user
        size = self._outbox.add(item, protocol)
        is_due = time.monotonic() > self._sent_at + _LINGER
        return size > _BATCH_LEN or is_due or self._failure is not None

    def _is_far_ahead(self):
        return self._ahead_len > _AHEAD_LEN or len(self._unanswered) > _AHEAD_BATCHES

    def _next_unanswered(self):
        items, *rest = self._unanswered.popleft()
        if not self._unanswered or self._unanswered[0][0] is not items:
            self._ahead_len -= items.size
        return (items, *rest)

    def _note(self, failure, items):
        if self._failure is None:
            self._failure = failure
            failure.items = []
        self._failure.items += items

    def _raise_failure(self):
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure


class Local:
    """What belongs to a process, or to those that it forks."""

    def __reduce__(self):
        raise TypeError(
            "a {} of manyhands cannot be passed to another process: connect() in the child".format(
                type(self).__name__
            )
        )
