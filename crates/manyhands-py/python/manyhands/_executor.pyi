import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from types import TracebackType
from typing import Any, Literal, TypeVar

from ._client import _Address

_T = TypeVar("_T")

class Executor(concurrent.futures.Executor):
    def __init__(
        self,
        address: _Address | None = None,
        *,
        workers: int | None = None,
        queue: str = "calls",
        run: str | None = None,
        attempts: int | None = None,
        max_run: float | None = None,
        authkey: bytes | None = None,
        authkey_file: str | PathLike[str] | None = None,
        reconnect: float = 30.0,
    ) -> None: ...
    def submit(
        self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[_T]: ...
    def map(  # type: ignore[override]
        self,
        fn: Callable[..., _T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | Literal["auto"] = "auto",
        buffersize: int | None = None,
        progress: bool | None = None,
    ) -> Iterator[_T]: ...
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None: ...
    def __exit__(
        self,
        error: type[BaseException] | None,
        *_: BaseException | TracebackType | None,
    ) -> bool: ...
