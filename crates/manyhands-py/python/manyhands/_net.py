"""Where a server is, who we are to it, and what an error says about both."""

import os
import re
import socket

from ._manyhands import AuthKey

# Seconds of silence before the system asks whether the other side is still there, and between that.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
_HOST_AND_PORT = re.compile(r"(\[[^\[\]/]+\]|[^:\[\]/]*):([0-9]+)")
HINT = "is it a manyhands server?"


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


def place(address):
    """An address as people write it."""
    if not isinstance(address, tuple):
        return repr(address)
    return ("[{}]:{}" if ":" in address[0] else "{}:{}").format(*address)


def unreachable(error, address):
    """What became of an attempt to connect, with the address."""
    reason = error.strerror or str(error)
    text = "cannot connect to {}: {}; is a manyhands server running there?"
    text = text.format(place(address), reason)
    if isinstance(address, str) and isinstance(error, FileNotFoundError) and "/" not in address:
        text += " This is the path of a socket; a host is followed by its port: 'HOST:PORT'"
    return OSError(text) if error.errno is None else type(error)(error.errno, text)


def silent(address, timeout):
    """Nothing comes."""
    text = "no answer from {} within {} seconds; {}".format(place(address), timeout, HINT)
    return TimeoutError(text)


def tune(connection):
    """Set what every TCP connection of ours has."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
