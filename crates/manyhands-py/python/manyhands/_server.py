"""The server of a manager: the standard library's own, with its sockets and its queues in Rust.

Rust accepts, authenticates and serves the queues. Whatever else a client asks comes here in a
conversation and is answered by the code of the standard ``Server``, on one thread for each session,
started at that session's first call. So locks, thread-locals, exposed names and fallbacks are the
standard library's by construction.

Invariant: a request is unpickled, which runs what its sender says, only if it calls an object that
lives in Python, or makes one by a name that is known to make such objects. All else is plain data,
which Rust reads.
"""

import errno
import functools
import io
import os
import pickle
import re
import socket
import sys
import threading
import time
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
        # The idents of objects that stay in Python, and the names that have made some.
        self._hosted = set()
        self._hosting = set()
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
            name, args, kwds = channel.recv_control()
            if name not in self.public:
                raise AssertionError("{!r} unrecognized".format(name))
            reply = ("#RETURN", getattr(self, name)(channel, *args, **kwds))
        except _UnknownName as error:
            reply = ("#TRACEBACK", error.text)
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
        if typeid not in self.registry:
            raise _UnknownName(typeid, sorted(map(repr, self.registry)))
        ident, exposed = super().create(c, typeid, *args, **kwds)
        function, restricted, method_to_typeid, _ = self.registry[typeid]
        queue = None
        if restricted is None and method_to_typeid is None:
            obj = self.id_to_obj[ident][0]
            queue = _adoption.adopt(self._native, self.address, obj, function is type(obj))
        if queue is None:
            self._hosted.add(ident)
            self._hosting.add(typeid)
            return ident, exposed
        self.decref(c, ident)
        return queue.refer(typeid), exposed

    def decref(self, c, ident):
        """Drop a reference to an object."""
        super().decref(c, ident)
        if ident not in self.id_to_obj:
            self._hosted.discard(ident)

    def is_hosted(self, ident):
        """Whether an object that lives in Python is known to clients by this ident."""
        return ident in self._hosted or ident in self.id_to_local_proxy_obj

    def makes_objects(self, typeid):
        """Whether what a name makes is known to stay in Python."""
        if typeid not in self.registry:
            return False
        function, restricted, method_to_typeid, _ = self.registry[typeid]
        is_kept = restricted is not None or method_to_typeid is not None
        is_other_class = isinstance(function, type) and not _adoption.is_adopted(function)
        return is_kept or is_other_class or typeid in self._hosting

    def stash(self, idents):
        """Keep objects whose proxies are on their way in a queue, as the standard server does."""
        for ident in set(idents).difference(self.id_to_local_proxy_obj):
            try:
                self.id_to_local_proxy_obj[ident] = self.id_to_obj[ident]
            except KeyError:
                # It is another server's, or has gone.
                util.debug("an item carries a proxy of %r, which is not here", ident)

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


class _UnknownName(KeyError):
    """No object is registered by a name."""

    def __init__(self, name, names):
        super().__init__(name)
        self.text = "there is no queue named {0!r}; declared are: {1}\nKeyError: {0!r}\n".format(
            name, ", ".join(names)
        )


class _Objects(dict):
    """Ident to (object, exposed, method_to_typeid); queues in Rust are found too."""

    def __init__(self, native):
        super().__init__({"0": (None, ())})
        self._native = native

    def __missing__(self, ident):
        queue = self._native.pin(ident)
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
        """The next call of a session."""
        request = self._recv()
        while request.carried is not None:
            self._server.stash(request.carried)
            self._conversation.send(b"")
            request = self._recv()
        if not self._server.is_hosted(request.ident):
            # It is answered as one of an unknown object, whatever else it says.
            return request.ident, "", (), {}
        return self._unpickle(request.body)

    def recv_control(self):
        """Method, positional and keyword arguments of a call of the manager itself."""
        request = self._recv()
        name, subject, arguments = request.control()
        if name == "get_methods":
            return name, (managers.Token(None, None, subject),), {}
        if name == "create" and self._server.makes_objects(subject):
            _, _, args, kwds = self._unpickle(request.body)
            return name, args, kwds
        if arguments is None:
            raise TypeError(
                "the arguments for {!r} are more than plain data, which only names that are known "
                "to make objects in Python get: register a class, or give exposed=".format(subject)
            )
        return (name, *arguments)

    def _recv(self):
        request = self._conversation.recv()
        if request is None:
            raise EOFError
        if request.protocol is not None:
            # An older Python reads no newer protocol than it writes.
            self._protocol = min(request.protocol, pickle.DEFAULT_PROTOCOL)
        return request

    def _unpickle(self, body):
        if b"RebuildProxy" in body:
            return _ProxyUnpickler(self._server, io.BytesIO(body)).load()
        return pickle.loads(body)

    def send(self, reply):
        kind, result = reply
        if kind in ("#TRACEBACK", "#UNSERIALIZABLE"):
            reply = kind, _PATH.sub('File "', str(result))
        if not self._conversation.send(_quick.dumps(reply, self._protocol)):
            raise BrokenPipeError("the client has left")

    def close(self):
        self._conversation = None


# What a traceback says of the place of a file, which clients need not know.
_PATH = re.compile(r'File "[^"\n]*[/\\]')


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


class StartError(OSError, EOFError):
    """No server can listen at an address. `EOFError` is what the standard managers raise then."""


def _listen(address, authkey):
    """Start the native server; return it and its address in the form of the standard library."""
    if address is None:
        address = connection.arbitrary_address(connection.default_family)
    try:
        if isinstance(address, (str, bytes)):
            return _listen_at_path(address, authkey)
        return _listen_at_port(*address, authkey)
    except OSError as error:
        where = address if isinstance(address, (str, bytes)) else "{}:{}".format(*address)
        text = "cannot listen at {}: {}{}".format(where, error.strerror, _hint(error))
        raise StartError(error.errno, text) from None


def _hint(error):
    if error.errno == errno.EADDRINUSE:
        return "; if a server runs there already, connect() instead of start()?"
    if error.errno == errno.EADDRNOTAVAIL:
        return "; if another machine has this address, connect() instead of start()?"
    return ""


def _listen_at_path(path, authkey):
    native = _manyhands.Server("unix:" + os.fsdecode(path), authkey)
    is_abstract = os.fsencode(path)[:1] == b"\0"
    return native, os.fsencode(path) if is_abstract else os.fsdecode(path)


def _listen_at_port(host, port, authkey):
    # As in the standard library, names are resolved to IPv4.
    found = socket.getaddrinfo(host or "0.0.0.0", port, socket.AF_INET, socket.SOCK_STREAM)
    host, port = found[0][4]
    key_len = len(authkey.strip(b"\0"))
    if not host.startswith("127.") and key_len < _STRONG_KEY_LEN:
        _warn(
            "{}:{} can be reached from other machines by whoever guesses its authkey of {} bytes; "
            "take 16 or more".format(host, port, key_len)
        )
    native = _manyhands.Server("{}:{}".format(host, port), authkey)
    host, _, port = native.address.rpartition(":")
    return native, (host, int(port))


def _warn(text):
    """Print a warning. One of the module `warnings` may be an exception, and end the start."""
    if sys.stderr is not None:
        try:
            print("manyhands: warning: " + text, file=sys.stderr)
        except (OSError, ValueError):
            # It is closed: nobody wants to know.
            pass


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
