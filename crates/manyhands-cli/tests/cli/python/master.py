"""A master on CPython's own manager server: master.py KIND KEY_FILE HOST:0

Prints its address, a line when there are tasks, and what its workers answered.
"""

import time
from multiprocessing.managers import BaseManager

import kinds

name, kind, authkey, address = kinds.chosen()
task_queue, result_queue = kind.make_queue(), kind.make_queue()


def get_tasks():
    return task_queue


def get_results():
    return result_queue


class Manager(BaseManager):
    pass


def totals(answers):
    sizes = sorted(set(size for size, _ in answers))
    return [(size, sum(ways for other, ways in answers if other == size)) for size in sizes]


def main():
    Manager.register(kind.names[0], callable=get_tasks)
    Manager.register(kind.names[1], callable=get_results)
    manager = Manager(address=address, authkey=authkey)
    manager.start()
    print("serving on %s:%d" % manager.address, flush=True)
    tasks = getattr(manager, kind.names[0])()
    results = getattr(manager, kind.names[1])()
    for task in kind.tasks:
        tasks.put(task)
    while tasks.empty():  # the feeder thread of a multiprocessing.Queue takes a moment
        time.sleep(0.01)
    if kind.ready:
        print(kind.ready, flush=True)
    if name == "timed_tasks":
        while not results.full():
            time.sleep(0.05)
    answers = []
    for _ in kind.tasks:
        while name == "pass_fail" and results.empty():
            time.sleep(0.05)
        answers.append(results.get(timeout=60))
    for answer in totals(answers) if name == "queens" else answers:
        print(kind.show % answer, flush=True)
    manager.shutdown()


if __name__ == "__main__":
    main()
