"""A client as its users write it: the standard library's manager and proxies, unmodified.

usage: stock_client.py PORT KEYFILE start
       stock_client.py PORT KEYFILE pairs COUNT BYTES
       stock_client.py PORT KEYFILE master|worker COUNT

Prints its measurement as one line of JSON and leaves when its standard input ends. Masters and
workers first connect, say "ready", and wait for a line.
"""

import json
import os
import sys
import time
from multiprocessing.managers import BaseManager


class Manager(BaseManager):
    pass


Manager.register("get_task_queue")
Manager.register("get_result_queue")


def start(manager):
    """Times what a worker does before its first task: connect, one proxy, one call."""
    begun = time.perf_counter()
    manager.connect()
    tasks = manager.get_task_queue()
    tasks.qsize()
    return {"seconds": time.perf_counter() - begun}


def pairs(manager, count, size):
    """Times `count` pairs of put and get of `size` bytes, one by one."""
    manager.connect()
    tasks = manager.get_task_queue()
    payload = os.urandom(size)
    seconds = []
    tasks.put(payload), tasks.get()
    for _ in range(count):
        begun = time.perf_counter()
        tasks.put(payload)
        tasks.get()
        seconds.append(time.perf_counter() - begun)
    return {"seconds": seconds}


def master(tasks, results, count):
    for number in range(count):
        tasks.put(number)
    for _ in range(count):
        results.get()


def worker(tasks, results, count):
    for _ in range(count):
        number = tasks.get()
        results.put(number * number)


def take_part(manager, role, count):
    """Plays `role` once everyone is connected; reports when it ended and the CPU it took."""
    manager.connect()
    tasks, results = manager.get_task_queue(), manager.get_result_queue()
    tasks.qsize()
    print("ready", flush=True)
    sys.stdin.readline()
    cpu = time.process_time()
    role(tasks, results, count)
    return {"ended": time.monotonic(), "cpu": time.process_time() - cpu}


def main(port, key_file, role, *numbers):
    with open(key_file, "rb") as file:
        manager = Manager(("127.0.0.1", int(port)), file.read())
    numbers = [int(number) for number in numbers]
    if role == "start":
        return start(manager)
    if role == "pairs":
        return pairs(manager, *numbers)
    return take_part(manager, {"master": master, "worker": worker}[role], *numbers)


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])), flush=True)
    sys.stdin.read()
