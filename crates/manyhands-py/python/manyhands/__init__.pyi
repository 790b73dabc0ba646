from . import aio as aio
from . import managers as managers
from ._client import Client as Client
from ._client import Lease as Lease
from ._client import Queue as Queue
from ._client import connect as connect
from ._manyhands import ManyhandsError as ManyhandsError
from ._wire import StaleLease as StaleLease

__all__ = [
    "Client",
    "Lease",
    "ManyhandsError",
    "Queue",
    "StaleLease",
    "connect",
    "aio",
    "managers",
]
__version__: str
