from typing import Any, NamedTuple

class Info(NamedTuple):
    queue: str
    task: int
    attempt: int
    worker: str
    waited: float
    ran: float
    history: list[str]

class Taken(NamedTuple):
    item: Any
    info: Info | None

class QueueInfo(NamedTuple):
    name: str
    order: str
    maxsize: int
    qsize: int
    unfinished: int
    is_joined: bool
    leased: int
    delayed: int
    dead: int
    declared: bool
    oldest: float | None
    waiting_get: int
    waiting_put: int
    waiting_join: int
    references: int
    put: int
    taken: int
    done: int
    bytes: int

class Task(NamedTuple):
    task: int
    state: str
    attempt: int
    item: Any = None
    age: float | None = None
    due_in: float | None = None
    key: str | bytes | None = None
    worker: str | None = None
    peer: str | None = None
    since: float | None = None
    failures: tuple[tuple[int, str, str], ...] = ()
    queue: str | None = None
    origin: int | None = None
