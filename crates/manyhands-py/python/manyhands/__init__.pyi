from . import aio as aio
from . import managers as managers
from ._client import Client as Client
from ._client import Lease as Lease
from ._client import Leases as Leases
from ._client import Queue as Queue
from ._client import connect as connect
from ._manyhands import ManyhandsError as ManyhandsError
from ._manyhands import NoResult as NoResult
from ._manyhands import StaleLease as StaleLease
from ._tasks import Info as Info
from ._tasks import QueueInfo as QueueInfo
from ._tasks import Taken as Taken
from ._tasks import Task as Task

__all__ = [
    "Client",
    "Info",
    "Lease",
    "Leases",
    "ManyhandsError",
    "NoResult",
    "Queue",
    "QueueInfo",
    "StaleLease",
    "Taken",
    "Task",
    "connect",
    "aio",
    "managers",
]
__version__: str
