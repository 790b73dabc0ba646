"""What is known of tasks, for the clients with and without an event loop."""

from typing import Any, List, NamedTuple, Optional, Tuple

from ._manyhands import StaleLease, Verb


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
            raise StaleLease("this lease was settled before")
        return verb


class Local:
    """What belongs to a process, or to those that it forks."""

    def __reduce__(self):
        raise TypeError(
            "a {} of manyhands cannot be passed to another process: connect() in the child".format(
                type(self).__name__
            )
        )
