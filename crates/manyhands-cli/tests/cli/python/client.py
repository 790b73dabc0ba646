"""A stock client: client.py HOST:PORT KEY_FILE QUEUE put EXPRESSION… | get COUNT"""

import ast
import sys
from multiprocessing.managers import BaseManager


class Manager(BaseManager):
    pass


address, key_file, name, verb = sys.argv[1:5]
host, _, port = address.rpartition(":")
with open(key_file, "rb") as file:
    key = file.read()
Manager.register(name)
manager = Manager(address=(host, int(port)), authkey=key)
manager.connect()
queue = getattr(manager, name)()
if verb == "put":
    for expression in sys.argv[5:]:
        queue.put(ast.literal_eval(expression))
else:
    for _ in range(int(sys.argv[5])):
        print(repr(queue.get(timeout=60)))
