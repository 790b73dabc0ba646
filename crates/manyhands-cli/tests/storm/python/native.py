"""A worker by lease, with the plain client of the native protocol, until it is killed."""

import os
import pickle
import socket
import struct
import sys
import time as clock

sys.path.insert(0, os.environ["MANYHANDS_TEST_NATIVE"])

from client import ACK_WITH, Client, Pickle, payload, settlement, time  # noqa: E402
from log import ADDRESS, KEY_FILE, NAME, note  # noqa: E402

LEASED = 1  # a flag of get


def connect():
    with open(KEY_FILE, "rb") as key_file:
        client = Client(ADDRESS, 0, key_file.read(), NAME.encode())
    client.call("open", 1, b"tasks")
    return client


def to_unix_socket(address):
    """The storm's server listens on one; the client knows hosts and ports alone."""
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(address[0])
    return stream


def work(client, session):
    calls = 0
    while True:
        calls += 1
        lease, ack = "%s.%d" % (session, calls), "%s.%d.ack" % (session, calls)
        note("lease", session, lease, "tasks")
        limits = struct.pack("<II", 1, 0)
        ((item, token, _),) = client.call("get", 1, time(None) * 2 + limits, flags=LEASED)
        number, _, _, attempt = struct.unpack("<QQQI", token)
        task, name = pickle.loads(item), "%d.%d" % (number, attempt)
        note("yes", lease, task, str(attempt), name)
        result = "%s#%s" % (task, lease)
        note("ack", session, ack, "tasks", task, name, "results", result)
        done = settlement(ACK_WITH, token, result=payload(Pickle(pickle.dumps(result, 2))))
        (code,) = client.call("settle", 1, time(None), [done])
        note(*(["yes", ack] if code == "ok" else ["no", ack, code.capitalize()]))


def main():
    socket.create_connection = to_unix_socket
    number = 0
    while True:
        number += 1
        session = "%s.%d" % (NAME, number)
        try:
            client = connect()
            note("session", NAME, session)
            work(client, session)
        except OSError:
            clock.sleep(0.01)


main()
