from . import aio as aio
from . import managers as managers
from ._calls import Info as Info
from ._calls import Taken as Taken
from ._calls import Task as Task
from ._client import Client as Client
from ._client import Lease as Lease
from ._client import Queue as Queue
from ._client import connect as connect
from ._manyhands import ManyhandsError as ManyhandsError
from ._wire import NoResult as NoResult
from ._wire import StaleLease as StaleLease

__all__ = [
    "Client",
    "Info",
    "Lease",
    "ManyhandsError",
    "NoResult",
    "Queue",
    "StaleLease",
    "Taken",
    "Task",
    "connect",
    "aio",
    "managers",
]
__version__: str
