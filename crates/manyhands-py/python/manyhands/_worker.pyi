from collections.abc import Awaitable, Callable
from typing import Any

from . import aio
from ._client import Client, _Address

class Worker:
    def __init__(
        self,
        client: Client | _Address,
        queue: str,
        function: Callable[[Any], Any] | str | None = None,
        *,
        processes: int | None = None,
        threads: int | None = None,
        interpreters: int | None = None,
        max_run: float | None = None,
        hold: float = 30.0,
    ) -> None: ...
    def run(self) -> None: ...
    def stop(self, now: bool = False) -> None: ...

class AsyncWorker:
    def __init__(
        self,
        client: Client | aio.Client | _Address,
        queue: str,
        function: Callable[[Any], Awaitable[Any]] | str,
        *,
        concurrency: int = 100,
        max_run: float | None = None,
        hold: float = 30.0,
    ) -> None: ...
    async def run(self) -> None: ...
    def stop(self, now: bool = False) -> None: ...
