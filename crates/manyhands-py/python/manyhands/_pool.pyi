import multiprocessing.pool
from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any

from ._client import _Address

class Pool(multiprocessing.pool.Pool):
    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: None = None,
        *,
        address: _Address | None = None,
        queue: str = "calls",
        run: str | None = None,
        attempts: int | None = None,
        max_run: float | None = None,
        authkey: bytes | None = None,
        authkey_file: str | PathLike[str] | None = None,
        reconnect: float = 30.0,
    ) -> None: ...
    def close(self) -> None: ...
    def terminate(self) -> None: ...
    def join(self) -> None: ...
