"""The managers of ``multiprocessing.managers``, served by manyhands.

All public names of the standard module are here and behave as there. What differs is the server:
queues live in Rust, every other object stays in Python behind the same port. Only the start method
fork has a server process; under spawn and forkserver, which would have to pickle the registry and
to import the main module once more, the server runs on threads of the process that starts it. So
lambdas are fine as callables, and a script needs no ``__main__`` guard.
"""

import itertools
import os
import signal
import sys
import threading
from multiprocessing import connection, process, spawn
from multiprocessing import managers as _standard
from multiprocessing.managers import *  # noqa: F403
from multiprocessing.managers import State

from . import _process_queues, _quick
from ._server import Server, StartError, is_ours

__all__ = list(_standard.__all__)

_standard_start = _standard.BaseManager.start
_standard_run_server = _standard.BaseManager._run_server.__func__
_standard_get_server = _standard.BaseManager.get_server
_standard_connect = _standard.BaseManager.connect
# How long `connect` waits for a word of the server, in seconds. The standard library waits for
# ever.
_SILENCE_TIMEOUT = 20


def __getattr__(name):
    return getattr(_standard, name)


def _start(self, initializer=None, initargs=()):
    """Start the server for this manager."""
    _quick.install()
    if self._Server is not Server or not is_ours(self._address, self._serializer):
        return _standard_start(self, initializer, initargs)
    if self._ctx.get_start_method() == "fork":
        _process_queues.prepare_fork()
        try:
            _standard_start(self, initializer, initargs)
        except StartError:
            self._process.join()
            raise
        _process_queues.remember(self._address, self._authkey)
        return None
    if getattr(process.current_process(), "_inheriting", False):
        # A child that imports the main module must not run its master part, here as there.
        spawn._check_not_importing_main()
    context, self._ctx = self._ctx, _ResidentContext
    try:
        return _standard_start(self, initializer, initargs)
    finally:
        self._ctx = context


def _run_server(cls, registry, address, authkey, serializer, writer, *args):
    """Run a server in a child process; if it cannot listen, `start` raises that there."""
    try:
        _standard_run_server(cls, registry, address, authkey, serializer, writer, *args)
    except StartError as error:
        writer.send(_Raised(error))
        sys.exit(1)


class _Raised:
    """An exception that is raised where it is received."""

    def __init__(self, error):
        self._error = error

    def __reduce__(self):
        return _raise, (self._error.errno, self._error.strerror)


def _raise(number, text):
    raise StartError(number, text)


def _get_server(self):
    """Return a server with a ``serve_forever()`` method and an ``address``."""
    if self._Server is not Server or self._state.value != State.INITIAL:
        return _standard_get_server(self)
    return Server(self._registry, self._address, self._authkey, self._serializer)


def _connect(self):
    """Connect to the server; ``TimeoutError`` if what listens there never says a word."""
    if not is_ours(self._address, self._serializer):
        return _standard_connect(self)
    _quick.install()
    conn = connection.Client(self._address)
    with conn:
        conn.__class__ = _ImpatientConnection
        connection.answer_challenge(conn, self._authkey)
        connection.deliver_challenge(conn, self._authkey)
        _standard.dispatch(conn, None, "dummy")
    self._state.value = State.STARTED
    return None


class _ImpatientConnection(connection.Connection):
    """A connection to somebody who may not be a server at all."""

    def poll_or_fail(self):
        if not self.poll(_SILENCE_TIMEOUT):
            raise TimeoutError("no word from the server in {} seconds".format(_SILENCE_TIMEOUT))

    def recv_bytes(self, maxlength=None):
        self.poll_or_fail()
        return super().recv_bytes(maxlength)

    def recv(self):
        self.poll_or_fail()
        return super().recv()


class BaseManager(_standard.BaseManager):
    """A manager whose server keeps queues in Rust."""

    _Server = Server
    _run_server = classmethod(_run_server)
    start = _start
    get_server = _get_server
    connect = _connect


class SyncManager(BaseManager, _standard.SyncManager):
    """A manager of queues, dictionaries, locks and the other types of the standard one."""


class _Resident:
    """A server on threads of this process, with the face of the process that it would have had."""

    _counter = itertools.count(1)

    def __init__(self, target, args):
        del target
        (*self._server_args, self._writer, self._initializer, self._initargs) = args
        self._identity = process.current_process()._identity + (next(self._counter),)
        self.name = None
        self.daemon = False
        self.pid = self.ident = os.getpid()
        self.exitcode = None
        self._server = None

    def start(self):
        if self._initializer is not None:
            with _keeping_signals():
                self._initializer(*self._initargs)
        self._server = Server(*self._server_args)
        self._writer.send(self._server.address)
        self._server.serve_aside()

    def is_alive(self):
        return self.exitcode is None and not self._server.stop_event.is_set()

    def join(self, timeout=None):
        if self._server.stop_event.wait(timeout):
            self._server.stop()
            self._server.give_back()
            self.exitcode = 0

    def terminate(self):
        self._server.stop_event.set()
        self.join()

    kill = terminate

    def close(self):
        if self.is_alive():
            raise ValueError("Cannot close a process while it is still running.")


class _ResidentContext:
    """Stands in for a multiprocessing context while a manager starts."""

    Process = _Resident


class _keeping_signals:
    """Undoes what an initializer does to signals, which was meant for a process of its own."""

    def __enter__(self):
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {
                name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)
            }

    def __exit__(self, *_):
        for name, handler in self._before.items():
            if handler is not None:
                signal.signal(name, handler)


class _Installer:
    """Travels with what a new process is told, and installs the managers there too."""

    def __reduce__(self):
        return install, ()


def install():
    """Put manyhands in place of the server of the standard library's managers.

    Holds for this process and for the processes that it starts. Managers that have a server class
    of their own, as ``SharedMemoryManager`` does, keep it.
    """
    if _standard.BaseManager._Server is Server:
        return
    _quick.install()
    _standard.BaseManager._Server = Server
    _standard.BaseManager._run_server = classmethod(_run_server)
    _standard.BaseManager.start = _start
    _standard.BaseManager.get_server = _get_server
    _standard.BaseManager.connect = _connect
    preparation_data = spawn.get_preparation_data

    def get_preparation_data(name):
        return dict(preparation_data(name), manyhands=_Installer())

    spawn.get_preparation_data = get_preparation_data
