from . import aio as aio
from . import managers as managers
from ._child import GiveUp as GiveUp
from ._client import Client as Client
from ._client import Lease as Lease
from ._client import Leases as Leases
from ._client import Queue as Queue
from ._client import connect as connect
from ._executor import Executor as Executor
from ._manyhands import ManyhandsError as ManyhandsError
from ._manyhands import NoResult as NoResult
from ._manyhands import StaleLease as StaleLease
from ._pool import Pool as Pool
from ._results import RemoteError as RemoteError
from ._results import RemoteTraceback as RemoteTraceback
from ._results import TaskFailed as TaskFailed
from ._tasks import Info as Info
from ._tasks import QueueInfo as QueueInfo
from ._tasks import Taken as Taken
from ._tasks import Task as Task
from ._worker import Worker as Worker

__all__ = [
    "Client",
    "Executor",
    "GiveUp",
    "Info",
    "Lease",
    "Leases",
    "ManyhandsError",
    "NoResult",
    "Pool",
    "Queue",
    "QueueInfo",
    "RemoteError",
    "RemoteTraceback",
    "StaleLease",
    "Taken",
    "Task",
    "TaskFailed",
    "Worker",
    "connect",
    "aio",
    "managers",
]
__version__: str
