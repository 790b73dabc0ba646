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
