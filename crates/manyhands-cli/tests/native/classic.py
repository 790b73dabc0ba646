"""A stock client that does what a test says: lines of `put QUEUE VALUE` and `get QUEUE VALUE`.

A value is an expression; a get prints whether the item is that, and of its type.
"""

import sys
from multiprocessing.managers import BaseManager

port, key_file = sys.argv[1:]
queues = {}


class Manager(BaseManager):
    pass


with open(key_file, "rb") as file:
    manager = Manager(("127.0.0.1", int(port)), file.read())
manager.connect()
while True:
    line = sys.stdin.readline()
    if not line:
        break
    do, name, expression = line.rstrip("\n").split(" ", 2)
    if name not in queues:
        Manager.register(name)
        queues[name] = getattr(manager, name)()
    expected = eval(expression)
    if do == "put":
        queues[name].put(expected)
        print("done")
    else:
        found = queues[name].get(timeout=30)
        is_same = found == expected and type(found) is type(expected)
        print("same" if is_same else "%r and not %r" % (found, expected))
    sys.stdout.flush()
