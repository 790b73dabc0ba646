"""Where a server is, who we are to it, and what an error says about both."""

import os
import re
import socket
import sys
import time

from ._manyhands import AuthKey, Remote

# Seconds of silence before the system asks whether the other side is still there, and between that.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
_HOST_AND_PORT = re.compile(r"(\[[^\[\]/]+\]|[^:\[\]/]*):([0-9]+)")
# How long a server may take over what needs no waiting, in seconds.
SILENCE_TIMEOUT = 10
# After so many seconds without a connection, a user is told what is waited for.
TOLD_AFTER = 2.0
# Most items that one call adds.
PIECE_ITEMS = 16_384


def read_address(address):
    """A pair of host and port, or the path of a Unix socket, out of any form that is in use."""
    if isinstance(address, os.PathLike):
        address = os.fspath(address)
    if isinstance(address, str):
        found = _HOST_AND_PORT.fullmatch(address)
        if found:
            address = (found.group(1).strip("[]") or "127.0.0.1", int(found.group(2)))
        elif address.startswith("unix:"):
            return address[len("unix:") :]
    if isinstance(address, (str, bytes)):
        return address
    try:
        host, port = address
    except (TypeError, ValueError):
        host = port = None
    if not isinstance(host, str) or not isinstance(port, int):
        raise TypeError(
            "a server's address is 'HOST:PORT', a pair of host and port, or the path of a socket; "
            "not {!r}".format(address)
        )
    if not 0 < port < 1 << 16:
        raise ValueError("a port is a number from 1 to 65535, not {}".format(port))
    return host, port


def read_authkey(authkey, path):
    """The key itself, that in a file, or the one that the command ``manyhands`` keeps."""
    if authkey is None:
        return AuthKey.read(path)
    if path is not None:
        raise TypeError("give authkey or authkey_file, not both")
    if isinstance(authkey, int):
        raise TypeError(
            "authkey must be bytes, not int: a script's authkey={0} stands for {0} NUL bytes, "
            "which is bytes({0}), and which anybody can guess".format(authkey)
        )
    if not isinstance(authkey, (bytes, bytearray, memoryview)):
        raise TypeError("authkey must be bytes, not {}".format(type(authkey).__name__))
    return AuthKey(bytes(authkey))


def remote(address, authkey, authkey_file, reconnect, no_md5, session_name):
    """How to talk to the server."""
    place = address if isinstance(address, tuple) else os.fsdecode(address)
    key = read_authkey(authkey, authkey_file)
    return Remote(place, key, reconnect, no_md5, SILENCE_TIMEOUT, TOLD_AFTER, session_name)


def look_up(address):
    """Raise if a host has no address: that is not tried again, as a server is that is away."""
    if isinstance(address, tuple):
        try:
            socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise unresolved(error, address) from None


def unresolved(error, address):
    """What became of the look-up of a host, with the address."""
    text = "cannot connect to {}:{}: {}; is a manyhands server running there?"
    return type(error)(error.errno, text.format(*address, error.strerror))


def no_queue(name, place, declared):
    """What to say of a name that the server does not know; ``declared`` are those that it knows."""
    text = "no queue is called {!r} at {}".format(name, place)
    names = re.findall(r"'([^']*)'", declared or "")
    if not names:
        return text
    from difflib import get_close_matches

    near = get_close_matches(name, names, len(names), 0)
    near += [name for name in names if name not in near]
    return "{}; there are {}".format(text, ", ".join(map(repr, near)))


def tell(seconds, error):
    """Say what is waited for."""
    if sys.stderr is None:
        return
    reason = getattr(error, "strerror", None) or error
    text = "manyhands: still trying, for up to {:.0f} s more: {}".format(seconds, reason)
    try:
        print(text, file=sys.stderr)
    except (OSError, ValueError):
        # It is closed: nobody wants to know.
        pass


def tune(connection):
    """Set what every TCP connection of ours has."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)


class Until:
    """A time-out that several calls share."""

    def __init__(self, block, timeout):
        self._block = block
        self._timeout = timeout
        self._end = None

    def left(self):
        """The arguments ``block`` and ``timeout`` of the next call."""
        if not self._block or self._timeout is None:
            return self._block, self._timeout
        if self._end is not None:
            return True, max(0, self._end - time.monotonic())
        # What is no time-out is refused by the first call.
        if isinstance(self._timeout, (int, float)):
            self._end = time.monotonic() + self._timeout
        return True, self._timeout
