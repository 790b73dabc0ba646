"""What a master and a worker of each kind agree on."""

import multiprocessing
import queue
import sys
import time

TASKS, RESULTS = "get_task_queue", "get_result_queue"


def pass_or_fail(number):
    return "passed" if number % 2 == 0 else "faild"


def square(number):
    return "%d * %d = %d" % (number, number, number * number)


def download(url):
    return "%s --->>>success" % url


def wait(number):
    seconds = number % 2
    time.sleep(seconds / 10.0)
    return number, seconds


def count_queens(task):
    size, first = task
    every = (1 << size) - 1

    def count(columns, left, right):
        free, ways = every & ~(columns | left | right), int(columns == every)
        while free:
            queen = free & -free
            free -= queen
            ways += count(columns | queen, (left | queen) << 1, (right | queen) >> 1)
        return ways

    queen = 1 << first
    return size, count(queen, queen << 1, queen >> 1)


class Kind:
    def __init__(self, tasks, make_queue, work, ready, show, names=(TASKS, RESULTS)):
        self.tasks = tasks
        self.make_queue = make_queue
        self.work = work
        self.ready = ready
        self.show = show
        self.names = names


SQUARES = [i * 7919 % 10000 for i in range(11)]
KINDS = {
    "pass_fail": Kind(
        range(1, 7),
        multiprocessing.Queue,
        pass_or_fail,
        "put data into tasks",
        "[Master] - get result from queues: %s",
    ),
    "squares": Kind(
        SQUARES[:10],
        queue.Queue,
        square,
        "Try get results...",
        "Result: %s",
    ),
    "images": Kind(
        ["ImageUrl_%d" % i for i in range(10)],
        queue.Queue,
        download,
        "try get result...",
        "result is %s",
    ),
    "bounded_squares": Kind(
        SQUARES[1:],
        lambda: multiprocessing.Queue(10),
        square,
        "Try get results...",
        "Result: %s",
    ),
    "timed_tasks": Kind(
        range(10),
        lambda: queue.Queue(10),
        wait,
        "Put task 9...",
        "task %d is finish , runtime:%d s",
        ("get_task", "get_result"),
    ),
    "queens": Kind(
        [(size, column) for size in range(8, 13) for column in range(size)],
        queue.Queue,
        count_queens,
        "",
        "%d queens: %d ways",
    ),
}


def chosen():
    """The kind, the key and the address (or None) on the command line."""
    name, key_file = sys.argv[1:3]
    with open(key_file, "rb") as file:
        key = file.read()
    # What a script with an int authkey really has.
    authkey = len(key) if key.count(b"\0") == len(key) else key
    host, _, port = sys.argv[3].rpartition(":")
    return name, KINDS[name], authkey, (host, int(port))
