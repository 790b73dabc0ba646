"""Calls of a queue that CPython does not have: port, key file."""

import sys
from multiprocessing.connection import Client

PORT, KEY_FILE = int(sys.argv[1]), sys.argv[2]
with open(KEY_FILE, "rb") as key_file:
    KEY = key_file.read()


class Remote(Exception):
    """What the server says of a call that it does not have."""


def connect():
    return Client(("127.0.0.1", PORT), authkey=KEY)


def manager(name, *args):
    connection = connect()
    connection.send((None, name, args, {}))
    kind, value = connection.recv()
    assert kind == "#RETURN", value
    connection.close()
    return value


class Session:
    def __init__(self):
        self.connection = connect()
        self.connection.send((None, "accept_connection", ("MainProcess",), {}))
        assert self.connection.recv() == ("#RETURN", None)

    def send(self, ident, method, *args, **kwds):
        self.connection.send((ident, method, args, kwds))

    def receive(self):
        kind, value = self.connection.recv()
        if kind == "#ERROR":
            raise value
        if kind != "#RETURN":
            raise Remote(value)
        return value

    def queue(self, name):
        return Queue(self, manager("create", name)[0])


class Queue:
    def __init__(self, session, ident):
        self.session, self.ident = session, ident

    def __getattr__(self, method):
        def call(*args, **kwds):
            self.session.send(self.ident, method, *args, **kwds)
            return self.session.receive()

        return call


def raises(error, call, *args, **kwds):
    """The text of the error that this call ends with."""
    try:
        value = call(*args, **kwds)
    except error as caught:
        return str(caught)
    raise AssertionError("%r instead of %s" % (value, error.__name__))


session = Session()
tasks = session.queue("tasks")
methods = "put_many get_many take take_many lease lease_many ack nack extend".split()
methods += ["redrive", "purge", "peek"]
exposed = manager("create", "tasks")[1]
for method in methods:
    assert "KeyError: '%s'" % method in raises(Remote, getattr(tasks, method), 1)
    assert method not in exposed
for keyword in ("key", "delay", "priority", "expires", "id"):
    text = raises(TypeError, tasks.put, 1, **{keyword: 1})
    assert text.endswith("got an unexpected keyword argument '%s'" % keyword), text
assert tasks.qsize() == 0
