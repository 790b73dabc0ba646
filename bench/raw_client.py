"""Sessions below the proxies: ready-made frames on a bare socket, for a client that costs little.

The handshake is the standard library's. Frames are what an unmodified client would send.
"""

import os
import pickle
import socket
import struct
from multiprocessing.connection import Client

RECEIVE_BYTES = 1 << 16


def frame(request):
    body = pickle.dumps(request)
    return struct.pack("!i", len(body)) + body


def without_nagle(descriptor):
    """A socket of its own on `descriptor`, which sends each small write at once."""
    bare = socket.socket(fileno=os.dup(descriptor))
    bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bare


def authenticated(port, key):
    with Client(("127.0.0.1", port), authkey=key) as connection:
        return without_nagle(connection.fileno())


def exchange(connection, request):
    """Sends one frame and returns the frame that answers it."""
    connection.sendall(request)
    reply = connection.recv(RECEIVE_BYTES)
    while len(reply) < 4 or len(reply) < 4 + int.from_bytes(reply[:4], "big"):
        more = connection.recv(RECEIVE_BYTES)
        if not more:
            raise EOFError("the server closed the connection")
        reply += more
    return reply


def value(reply):
    kind, content = pickle.loads(reply[4:])
    if kind != "#RETURN":
        raise RuntimeError(f"the server answers {kind} {content}")
    return content


def control(port, key, name, *arguments):
    """Makes one call of the manager itself, on a connection of its own."""
    with authenticated(port, key) as connection:
        return value(exchange(connection, frame((None, name, arguments, {}))))


def create(port, key, queue):
    """The ident of `queue`."""
    return control(port, key, "create", queue)[0]


def session(port, key):
    connection = authenticated(port, key)
    value(exchange(connection, frame((None, "accept_connection", ("bench",), {}))))
    return connection
