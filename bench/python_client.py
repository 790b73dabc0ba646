"""Clients of the Python package's bench: the same proxies on either side, and what ours adds.

usage: python_client.py KEYFILE pairs|puts|gets|dict|connect|pipeline|batches|through PORT COUNT
       python_client.py KEYFILE start 0

Prints its measurement as one line of JSON.
"""

import json
import queue
import sys
import time
from multiprocessing.managers import BaseManager, DictProxy

ITEM = b"x" * 100
BATCH = 256
tasks = queue.Queue()


class Manager(BaseManager):
    pass


Manager.register("get_task_queue", callable=lambda: tasks)
Manager.register("get_dict", proxytype=DictProxy)


def rate(count, act):
    begun = time.perf_counter()
    act()
    return {"rate": count / (time.perf_counter() - begun)}


def connected(port, key):
    manager = Manager(("127.0.0.1", port), key)
    manager.connect()
    return manager


def pairs(port, key, count):
    return rate(count, lambda: put_and_get(connected(port, key).get_task_queue(), count))


def put_and_get(proxy, count):
    for _ in range(count):
        proxy.put(ITEM)
        proxy.get()


def puts(port, key, count):
    proxy = connected(port, key).get_task_queue()
    result = rate(count, lambda: [proxy.put(ITEM) for _ in range(count)])
    for _ in range(count):
        proxy.get()
    return result


def gets(port, key, count):
    proxy = connected(port, key).get_task_queue()
    for _ in range(count):
        proxy.put(ITEM)
    return rate(count, lambda: [proxy.get() for _ in range(count)])


def dictionary(port, key, count):
    shared = connected(port, key).get_dict()

    def act():
        for number in range(count):
            shared["key"] = number
            shared["key"]

    return rate(2 * count, act)


def connect(port, key, count):
    import manyhands

    with manyhands.connect(("127.0.0.1", port), key) as client:
        return rate(count, lambda: put_and_get(client.queue("get_task_queue"), count))


def pipeline(port, key, count):
    import manyhands

    with manyhands.connect(("127.0.0.1", port), key) as client:
        proxy = client.queue("get_task_queue", pipeline=True)

        def act():
            for _ in range(count):
                proxy.put(ITEM)
            proxy.flush()

        result = rate(count, act)
        empty(proxy, count)
    return result


def batches(port, key, count):
    import manyhands

    with manyhands.connect(("127.0.0.1", port), key) as client:
        proxy = client.queue("get_task_queue")
        proxy.put_many([ITEM] * count)
        return rate(count, lambda: empty(proxy, count))


def through(port, key, count):
    """Batches in and out, one after the other."""
    import manyhands

    items = [ITEM] * BATCH
    count -= count % BATCH
    with manyhands.connect(("127.0.0.1", port), key) as client:
        proxy = client.queue("get_task_queue")

        def act():
            for _ in range(count // BATCH):
                proxy.put_many(items)
                empty(proxy, BATCH)

        return rate(count, act)


def empty(proxy, count):
    while count:
        count -= len(proxy.get_many(min(count, BATCH)))


def start(_, key):
    """From `start()` to the first item out of the queue."""
    begun = time.perf_counter()
    with Manager(("127.0.0.1", 0), key) as manager:
        proxy = manager.get_task_queue()
        proxy.put(1)
        proxy.get()
        return {"seconds": time.perf_counter() - begun}


ROLES = {
    "pairs": pairs,
    "puts": puts,
    "gets": gets,
    "dict": dictionary,
    "connect": connect,
    "pipeline": pipeline,
    "batches": batches,
    "through": through,
    "start": start,
}


def main(key_file, role, port, *counts):
    with open(key_file, "rb") as file:
        key = file.read()
    return ROLES[role](int(port), key, *map(int, counts))


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])), flush=True)
