"""CPython's own manager server, with queues for the Rust client to use.

Runs on Python 2.7 and 3; prints its address, then serves until it is
killed. Arguments: authkey, and host:port (0 for any) or the path of a socket.
"""

import binascii
import pickle
import sys
import threading
from multiprocessing.managers import BaseManager

try:
    import queue
except ImportError:
    import Queue as queue


class Task(object):
    """An object that only this program can build."""

    def __init__(self, number):
        self.number = number

    def __eq__(self, other):
        return type(self) is type(other) and self.number == other.number


# A formatter for Python 3 would take the u away.
# fmt: off
VALUES = {
    'none': None,
    'true': True,
    'false': False,
    'zero': 0,
    'byte': 255,
    'short': 65535,
    'negative': -1,
    'int': 2 ** 31 - 1,
    'long': 2 ** 31,
    'lowest': -2 ** 63,
    'large': 2 ** 64,
    'larger': -2 ** 70,
    'float': -1.5,
    'infinity': float('inf'),
    'text': u'\xe4\u20ac\U0001f600 \'\\n\\',
    'empty text': u'',
    'bytes': b'\x00\xff',
    'many bytes': b'\xff' * 70000,
    'bytearray': bytearray(b'\x01\xff'),
    'list': [1, [2, []]],
    'many items': list(range(2500)),
    'shared items': [[u'a', u'b']] * 3,
    'no tuple': (),
    'tuple of 1': (1,),
    'tuple of 2': (1, u'b'),
    'tuple of 3': (1, 2, 3),
    'tuple of 4': (1, 2, 3, (4,)),
    'dict': {u'a': 1},
    'dict by number': {2: {u'x': None}},
    'set': set([1]),
    'frozenset': frozenset([u'a']),
}
# fmt: on

queues = {
    "tasks": queue.Queue(),
    "small": queue.Queue(1),
    "ending": queue.Queue(),
    "to_check": queue.Queue(),
    "verdicts": queue.Queue(),
    "values": queue.Queue(),
    "pickles": queue.Queue(),
    "objects": queue.Queue(),
}


def judge():
    """Compares what comes with what should."""
    while True:
        name, value = queues["to_check"].get()
        expected = Task(5) if name == "object" else VALUES[name]
        same = value == expected and (type(value) is type(expected) or type(expected) is int)
        queues["verdicts"].put((name, same, repr(value)[:200]))


def fill():
    """Puts every value, as itself and as a pickle of every protocol."""
    for name, value in VALUES.items():
        queues["values"].put((name, value))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            written = binascii.hexlify(pickle.dumps(value, protocol)).decode("ascii")
            queues["pickles"].put((name, protocol, written))
    queues["objects"].put(Task(5))


class Manager(BaseManager):
    pass


def register(name):
    Manager.register(name, callable=lambda: queues[name])


def main():
    for name in queues:
        register(name)
    fill()
    judging = threading.Thread(target=judge)
    judging.daemon = True
    judging.start()
    host, _, port = sys.argv[2].partition(":")
    address = (host, int(port)) if port else host
    server = Manager(address, authkey=sys.argv[1].encode("ascii")).get_server()
    print("%s:%d" % server.address if port else server.address)
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
