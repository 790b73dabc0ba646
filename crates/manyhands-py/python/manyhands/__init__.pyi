from . import managers as managers
from ._client import Client as Client
from ._client import Queue as Queue
from ._client import connect as connect
from ._manyhands import ManyhandsError as ManyhandsError

__all__ = ["Client", "ManyhandsError", "Queue", "connect", "managers"]
__version__: str
