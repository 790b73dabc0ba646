"""The server of a manager: the standard library's own, with its sockets and its queues in Rust.

Rust accepts, authenticates and serves the queues. Whatever else a client asks comes here as a
pickle in a conversation and is answered by the code of the standard ``Server``, on one thread for
each session, started at that session's first call. So locks, thread-locals, exposed names and
fallbacks are the standard library's by construction.
"""

import functools
import io
import os
import pickle
import socket
import threading
import time
import warnings
import weakref
from multiprocessing import connection, managers, process, util
from traceback import format_exc

from . import _adoption, _manyhands, _quick, _release

# Shortest key that is fit for an open network, in bytes.
_STRONG_KEY_LEN = 16
# How long the threads of a server that stops may take to notice it, in seconds.
_STOP_TIMEOUT = 1


class Server(managers.Server):
    """The server of one manager."""

    def __new__(cls, registry, address, authkey, serializer):
        if not is_ours(address, serializer):
            return managers.Server(registry, address, authkey, serializer)
        return super().__new__(cls)

    def __init__(self, registry, address, authkey, serializer):
        if not isinstance(authkey, bytes):
            raise TypeError("Authkey {0!r} is type {1!s}, not bytes".format(authkey, type(authkey)))
        self.registry = registry
        self.authkey = process.AuthenticationString(authkey)
        self.mutex = threading.Lock()
        self.stop_event = threading.Event()
        self._native, self.address = _listen(address, self.authkey)
        self._listening = self._native.listening
        self.id_to_obj = _Objects(self._native)
        self.id_to_refcount = {}
        self.id_to_local_proxy_obj = {}
        self._threads = weakref.WeakSet()
        _live.add(self)

    # ---- life

    def serve_forever(self):
        """Serve in this thread until the server is told to stop, then exit."""
        try:
            super().serve_forever()
        finally:
            self.stop()
            self.give_back(pipes_only=True)

    def serve_aside(self):
        """Serve on threads of this process."""
        _release.start()
        threading.Thread(target=self.accepter, name="manyhands-accepter", daemon=True).start()

    def give_back(self, pipes_only=False):
        """Return what is in adopted queues to the objects that they came from."""
        _adoption.give_back(self._native, pipes_only)

    def stop(self):
        """Stop serving; replies under way go out."""
        self.stop_event.set()
        # Its descriptors may belong to somebody else from now on.
        _live.discard(self)
        self._native.stop()
        deadline = time.monotonic() + _STOP_TIMEOUT
        for thread in list(self._threads):
            # Those that wait for requests end at once. Others are in a call that nobody can end.
            if thread is not threading.current_thread() and thread.is_alive():
                thread.join(max(0, deadline - time.monotonic()))

    # ---- conversations

    def accepter(self):
        """Begin conversations until the server stops."""
        _release.mark(threading.current_thread())
        self._threads.add(threading.current_thread())
        while True:
            conversation = self._native.accept()
            if conversation is None:
                return
            thread = threading.Thread(
                target=self._converse, args=(conversation,), name=conversation.session, daemon=True
            )
            _release.mark(thread)
            self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError:
                # The interpreter is about to exit; what comes now is the call that stops us.
                self._converse(conversation)
            # The conversation ends when nobody holds it.
            del thread, conversation

    def _converse(self, conversation):
        channel = _Channel(self, conversation)
        try:
            if conversation.session is None:
                self._answer(channel)
            else:
                self.serve_client(channel)
        except SystemExit:
            # So the standard server ends a session.
            pass
        finally:
            channel.close()

    def _answer(self, channel):
        """Answer one call of the manager itself."""
        try:
            _, name, args, kwds = channel.recv()
            if name not in self.public:
                raise AssertionError("{!r} unrecognized".format(name))
            reply = ("#RETURN", getattr(self, name)(channel, *args, **kwds))
        except Exception:
            reply = ("#TRACEBACK", format_exc())
        try:
            channel.send(reply)
        except BrokenPipeError:
            util.info("a client left before its reply")
        except Exception:
            channel.send(("#TRACEBACK", format_exc()))

    # ---- calls of the manager, beside those of the standard server

    def create(self, c, typeid, /, *args, **kwds):
        """Create an object; queues go to Rust."""
        ident, exposed = super().create(c, typeid, *args, **kwds)
        function, restricted, method_to_typeid, _ = self.registry[typeid]
        if restricted is not None or method_to_typeid is not None:
            return ident, exposed
        obj = self.id_to_obj[ident][0]
        queue = _adoption.adopt(self._native, self.address, obj, function is type(obj))
        if queue is None:
            return ident, exposed
        self.decref(c, ident)
        return queue.refer(typeid), exposed

    def shutdown(self, c):
        """Stop because a client says so."""
        super().shutdown(c)
        self.stop()

    def debug_info(self, c):
        """Describe the objects and their reference counts."""
        return "\n".join(filter(None, [super().debug_info(c), self._native.debug_info()]))

    def number_of_objects(self, c):
        """Count the objects that clients refer to."""
        return super().number_of_objects(c) + self._native.number_of_queues()


class _Objects(dict):
    """Ident to (object, exposed, method_to_typeid); queues in Rust are found too."""

    def __init__(self, native):
        super().__init__({"0": (None, ())})
        self._native = native

    def __missing__(self, ident):
        queue = self._native.held(ident)
        if queue is None:
            raise KeyError(ident)
        queue = _adoption.RustQueue(queue)
        return queue, set(managers.public_methods(queue)), None


class _Channel:
    """A conversation with the face of a ``multiprocessing.connection.Connection``."""

    def __init__(self, server, conversation):
        self._server = server
        self._conversation = conversation
        self._protocol = pickle.DEFAULT_PROTOCOL

    def recv(self):
        request = self._conversation.recv()
        if request is None:
            raise EOFError
        if request[:1] == pickle.PROTO:
            # An older Python reads no newer protocol than it writes.
            self._protocol = min(request[1], pickle.DEFAULT_PROTOCOL)
        if b"RebuildProxy" in request:
            return _ProxyUnpickler(self._server, io.BytesIO(request)).load()
        return pickle.loads(request)

    def send(self, reply):
        if not self._conversation.send(_quick.dumps(reply, self._protocol)):
            raise BrokenPipeError("the client has left")

    def close(self):
        self._conversation = None


class _ProxyUnpickler(pickle.Unpickler):
    """Makes proxies of the server's own objects known to it, whichever process it runs in."""

    def __init__(self, server, file):
        super().__init__(file)
        self._server = server

    def find_class(self, module, name):
        if name == "RebuildProxy" and module == "multiprocessing.managers":
            return functools.partial(_rebuild_proxy, self._server)
        return super().find_class(module, name)


def _rebuild_proxy(server, func, token, serializer, kwds):
    if server.address != token.address:
        return managers.RebuildProxy(func, token, serializer, kwds)
    if token.id not in server.id_to_local_proxy_obj:
        # While the server holds the proxy, its object must not go.
        server.id_to_local_proxy_obj[token.id] = server.id_to_obj[token.id]
    return func(token, serializer, **dict(kwds, incref=False, **_manager_owned))


# Before 3.10 or so proxies did not know who owns them.
_manager_owned = (
    {"manager_owned": True}
    if "manager_owned" in managers.BaseProxy.__init__.__code__.co_varnames
    else {}
)


def is_ours(address, serializer):
    """Whether we can serve this: not as XML, nor on a pipe of Windows."""
    is_pipe = isinstance(address, str) and address.startswith("\\\\")
    return serializer == "pickle" and not is_pipe


def _listen(address, authkey):
    """Start the native server; return it and its address in the form of the standard library."""
    if address is None:
        address = connection.arbitrary_address(connection.default_family)
    if isinstance(address, (str, bytes)):
        native = _manyhands.Server("unix:" + os.fsdecode(address), authkey)
        is_abstract = os.fsencode(address)[:1] == b"\0"
        return native, os.fsencode(address) if is_abstract else os.fsdecode(address)
    host, port = address
    # As in the standard library, names are resolved to IPv4.
    found = socket.getaddrinfo(host or "0.0.0.0", port, socket.AF_INET, socket.SOCK_STREAM)
    host, port = found[0][4]
    if not host.startswith("127.") and len(authkey.strip(b"\0")) < _STRONG_KEY_LEN:
        warnings.warn(
            "{}:{} can be reached from other machines, and whoever guesses its authkey of {} bytes "
            "can run code here; take 16 or more".format(host, port, len(authkey.strip(b"\0"))),
            RuntimeWarning,
            stacklevel=2,
        )
    native = _manyhands.Server("{}:{}".format(host, port), authkey)
    host, _, port = native.address.rpartition(":")
    return native, (host, int(port))


# Servers whose listening sockets a forked child inherits.
_live = weakref.WeakSet()


def _close_inherited():
    for server in list(_live):
        for descriptor in server._listening:
            os.close(descriptor)
        server._native.stop()
    _live.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
