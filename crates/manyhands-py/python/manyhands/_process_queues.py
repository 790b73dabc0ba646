"""Queues of ``multiprocessing`` that a manager serves, as other processes see them.

When a server adopts such a queue, its items leave the pipe for Rust. A process that goes on using
the queue itself would not find them there. So a process that is about to fork a server marks its
queues: each gets a page of memory shared with the child, where the server notes the address and the
ident under which the queue is served, and a class whose methods look there first. Puts of processes
that know nothing of this still go into the pipe, which the server empties.
"""

import json
import mmap
import threading
import time
from multiprocessing import managers, queues, util
from queue import Empty

try:
    from multiprocessing.synchronize import SEM_VALUE_MAX
except ImportError:
    # Without semaphores there are no queues of this kind.
    SEM_VALUE_MAX = 0

TYPES = (queues.Queue, queues.JoinableQueue)
_PAGE_LEN = 4096
# How long a `get` from the pipe waits before it looks whether the queue has moved, in seconds.
_LOOK_UP = 0.1
_PAGE = "_manyhands_page"
_PROXY = "_manyhands_proxy"
# Address of a server to the authkey of its manager.
_authkeys = {}


def prepare_fork():
    """Mark the queues of this process, which is about to fork a server."""
    for obj in list(util._afterfork_registry.values()):
        if type(obj) in _BESIDE:
            obj.__dict__[_PAGE] = mmap.mmap(-1, _PAGE_LEN)
            obj.__class__ = _BESIDE[type(obj)]


def remember(address, authkey):
    """Note the key of a server that this process has started."""
    _authkeys[json.dumps(address)] = bytes(authkey)


def kind(obj):
    """The type of a queue that can be adopted, marked or not."""
    return next((base for base, beside in _BESIDE.items() if type(obj) in (base, beside)), None)


def is_served(obj):
    """Whether some server has the queue already."""
    page = obj.__dict__.get(_PAGE)
    return page is not None and page[:1] != b"\0"


def announce(obj, address, ident):
    """Tell the processes that share this queue where it is served from now on."""
    page = obj.__dict__.get(_PAGE)
    if page is not None:
        note = json.dumps([address, ident]).encode().ljust(_PAGE_LEN - 1)
        page[1:] = note
        # The first byte makes the rest valid.
        page[:1] = b"\1"


def withdraw(obj):
    """Tell them that it is not served any more."""
    page = obj.__dict__.get(_PAGE)
    if page is not None:
        page[:1] = b"\0"


class Pump:
    """Moves what processes put into the pipe of a queue to Rust, until it is stopped.

    Where a process waits at the pipe in the original ``get``, which holds the lock of the readers
    as long as it waits, an item goes the other way.
    """

    def __init__(self, obj, handle):
        self._obj = obj
        self._handle = handle
        self._goes_on = True

    def start(self):
        """Move what is there now, then go on aside."""
        while True:
            pickled = self._take(0)
            if pickled is None:
                break
            self._handle.put(pickled, True, None, False)
        threading.Thread(target=self._run, name="manyhands-pump", daemon=True).start()

    def stop(self):
        """Leave what comes from now on in the pipe."""
        is_ours = self._obj._rlock.acquire(True, _LOOK_UP)
        self._goes_on = False
        if is_ours:
            self._obj._rlock.release()

    def _run(self):
        try:
            while self._goes_on:
                if self._obj._poll(_LOOK_UP):
                    pickled = self._take(_LOOK_UP)
                    if pickled is not None:
                        self._handle.put(pickled, True, None, False)
                elif self._obj._rlock.acquire(False):
                    self._obj._rlock.release()
                else:
                    self._feed_reader()
        except Exception as error:
            # The queue was closed, or the server has stopped.
            util.debug("a queue is served no more: %r", error)

    def _feed_reader(self):
        try:
            pickled = self._handle.get(True, _LOOK_UP, False)
        except Empty:
            return
        self._obj._sem.acquire(False)
        with self._obj._wlock:
            self._obj._writer.send_bytes(pickled)

    def _take(self, timeout):
        """A pickle out of the pipe; ``None`` if there is none or somebody else takes it."""
        if not self._obj._rlock.acquire(True, timeout):
            return None
        try:
            return _receive(self._obj) if self._goes_on and self._obj._poll() else None
        finally:
            self._obj._rlock.release()


def _receive(obj):
    pickled = obj._recv_bytes()
    obj._sem.release()
    if hasattr(obj, "_unfinished_tasks"):
        # From now on it counts in Rust.
        obj._unfinished_tasks.acquire(False)
    return pickled


def _proxy(obj):
    """A proxy of the queue if it is served, else ``None``."""
    if not is_served(obj):
        return None
    proxy = obj.__dict__.get(_PROXY)
    if proxy is None:
        address, ident = json.loads(obj.__dict__[_PAGE][1:].decode())
        authkey = _authkeys.get(json.dumps(address))
        address = tuple(address) if isinstance(address, list) else address
        token = managers.Token(type(obj).__name__, address, ident)
        proxy = obj.__dict__[_PROXY] = managers.BaseProxy(token, "pickle", authkey=authkey)
    return proxy


def _call(obj, method, *args):
    """Call the queue where it is served; ``NotImplemented`` if that is nowhere."""
    try:
        proxy = _proxy(obj)
        if proxy is not None:
            return proxy._callmethod(method, args)
    except (ConnectionError, EOFError, FileNotFoundError):
        # The server is gone. What is in the pipe is all that is left.
        withdraw(obj)
        obj.__dict__.pop(_PROXY, None)
    return NotImplemented


def _beside(base):
    """A class for queues of exactly the type ``base`` that may be served by a manager."""

    def put(self, obj, block=True, timeout=None):
        if _call(self, "put", obj, block, timeout) is NotImplemented:
            base.put(self, obj, block, timeout)

    def get(self, block=True, timeout=None):
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            rest = None if deadline is None else max(0, deadline - time.monotonic())
            item = _call(self, "get", block, rest)
            if item is not NotImplemented:
                return item
            try:
                return base.get(self, block, _LOOK_UP if rest is None else min(rest, _LOOK_UP))
            except Empty:
                # The queue may have moved meanwhile.
                if not block or rest == 0:
                    raise

    def falling_back(name):
        def method(self):
            result = _call(self, name)
            return getattr(base, name)(self) if result is NotImplemented else result

        method.__name__ = name
        return method

    def reduce(self):
        return _rebuild, (base, self.__getstate__())

    names = {"put": put, "get": get, "__reduce__": reduce}
    for name in ("qsize", "empty", "full", "task_done", "join"):
        if hasattr(base, name):
            names[name] = falling_back(name)
    names.update(__module__=base.__module__, __qualname__=base.__qualname__, __doc__=base.__doc__)
    return type(base.__name__, (base,), names)


def _rebuild(base, state):
    obj = base.__new__(base)
    obj.__setstate__(state)
    return obj


_BESIDE = {base: _beside(base) for base in TYPES}
