"""A worker on the standard library alone: worker.py KIND KEY_FILE HOST:PORT"""

import time
from multiprocessing.managers import BaseManager

import kinds


class Manager(BaseManager):
    pass


name, kind, authkey, address = kinds.chosen()
Manager.register(kind.names[0])
Manager.register(kind.names[1])
manager = Manager(address=address, authkey=authkey)
manager.connect()
tasks = getattr(manager, kind.names[0])()
results = getattr(manager, kind.names[1])()

if name == "squares":
    for _ in range(10):
        try:
            results.put(kind.work(tasks.get(timeout=1)))
        except kinds.queue.Empty:
            pass
elif name == "pass_fail":
    while True:
        if tasks.empty():
            time.sleep(0.05)
        else:
            results.put(kind.work(tasks.get(timeout=5)))
else:
    while not tasks.empty():
        results.put(kind.work(tasks.get(timeout=1)))
