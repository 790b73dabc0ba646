from collections.abc import Iterable

from ._manyhands import ManyhandsError

class RemoteError(ManyhandsError): ...

class TaskFailed(ManyhandsError):
    reasons: list[str]
    def __init__(self, text: str, reasons: Iterable[str] = ()) -> None: ...

class RemoteTraceback(Exception):
    text: str
    def __init__(self, text: str) -> None: ...
