"""What is known of tasks and queues."""

from typing import Any, List, NamedTuple, Optional, Tuple


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


class QueueInfo(NamedTuple):
    """What is known of a queue."""

    name: str
    # "fifo", "lifo" or "priority".
    order: str
    # 0 is no bound.
    maxsize: int
    qsize: int
    # Put and not done, for `join`.
    unfinished: int
    # Whether anybody has called `join` or `task_done`.
    is_joined: bool
    leased: int
    delayed: int
    # Given up so far.
    dead: int
    # Whether it stays when nobody uses it.
    declared: bool
    # Seconds since the oldest item that is there was put.
    oldest: Optional[float]
    waiting_get: int
    waiting_put: int
    waiting_join: int
    references: int
    # Items since the server was started.
    put: int
    taken: int
    done: int
    # Memory that it takes.
    bytes: int
