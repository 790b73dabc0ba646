"""What the test programs share: a stock client, connected. Runs on 2.7 and 3.x."""

from __future__ import print_function

import json
import multiprocessing
import os
import pickle
import socket
import sys
from multiprocessing.managers import BaseManager

try:
    import queue
except ImportError:
    import Queue as queue

__all__ = ["PY2", "connect", "queue", "read_key", "say", "text", "watch"]

PY2 = sys.version_info[0] == 2


def text(escaped):
    """A unicode text in every version; formatters take away the prefix that says so in 2.7."""
    return escaped.encode("ascii").decode("unicode-escape")


def read_key(path):
    with open(path, "rb") as key_file:
        return key_file.read()


def connect(port, key, names, base=BaseManager):
    """A connected manager of the standard library with `names` registered.

    `port` is a port of the loopback interface or the path of a socket."""

    class Manager(base):
        pass

    for name in names:
        Manager.register(name)
    multiprocessing.current_process().authkey = key
    address = port if "/" in port else ("127.0.0.1", int(port))
    manager = Manager(address=address, authkey=key)
    manager.connect()
    return manager


def say(**fields):
    """One line of JSON for the test that reads us, whole whoever else of us speaks."""
    line = json.dumps(fields, sort_keys=True) + "\n"
    os.write(sys.stdout.fileno(), line.encode("ascii"))


class Watched(object):
    """A connection that calls `sent` after a request and `arrived` before a reply is read."""

    def __init__(self, connection, sent, arrived):
        self._connection = connection
        self._sent = sent
        self._arrived = arrived
        self._peek = socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM)

    def send(self, request):
        self._connection.send(request)
        self._sent()

    def recv(self):
        if self._arrived:
            # Looking is not reading: for the server, the reply is still under way.
            self._arrived(pickle.loads(self._peek.recv(1 << 16, socket.MSG_PEEK)[4:]))
        return self._connection.recv()

    def __getattr__(self, name):
        return getattr(self._connection, name)


def watch(proxy, sent, arrived=None):
    """Watches the later requests of this thread; a first call opens the session."""
    proxy.qsize()
    proxy._tls.connection = Watched(proxy._tls.connection, sent, arrived)
