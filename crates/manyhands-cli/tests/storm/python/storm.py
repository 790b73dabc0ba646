"""A stock client that writes down what it asks and what it is answered, until it is killed.

When the server is gone it connects again, as soon as there is one. Runs on 3.6 and later; the lines
are described in `history.rs` of the server's simulation."""

import os
import random
import sys
import time

sys.path.insert(0, os.environ["MANYHANDS_TEST_PYTHON"])

from client import connect, queue, read_key  # noqa: E402
from log import ADDRESS, KEY_FILE, NAME, ROLE, STOP, note  # noqa: E402

# What a server that is killed does to its clients.
GONE = (EOFError, OSError)

chance = random.Random(NAME)


class Session(object):
    """Calls with a line before and after each."""

    def __init__(self, number):
        self.name = "%s.%d" % (NAME, number)
        self.calls = 0
        manager = connect(ADDRESS, read_key(KEY_FILE), ["tasks", "results"])
        self.queues = {"tasks": manager.tasks(), "results": manager.results()}
        note("session", NAME, self.name)

    def ask(self, verb, *words):
        self.calls += 1
        call = "%s.%d" % (self.name, self.calls)
        note(verb, self.name, call, *words)
        return call

    def put(self, to, item, *words):
        call = self.ask("put", to, item, *words)
        try:
            self.queues[to].put(item)
        except ValueError:
            return note("no", call, "Stale")
        note("yes", call)

    def get(self, source, timeout=None):
        call = self.ask("get", source)
        try:
            item = self.queues[source].get(True, timeout)
        except queue.Empty:
            return note("no", call, "Empty")
        note("yes", call, item)
        return item


class Producer(object):
    """Puts tasks until it is told to stop."""

    def __init__(self):
        self.put = 0

    def work(self, session):
        while not os.path.exists(STOP):
            self.put += 1
            # One that was not answered is in doubt, and not put again.
            session.put("tasks", "%s-%d" % (NAME, self.put))
            if chance.random() < 0.2:
                time.sleep(chance.random() / 50)
        sys.exit(0)


class Worker(object):
    """Answers tasks, some of them two at a time."""

    def work(self, session):
        while True:
            taken = [session.get("tasks")]
            if chance.random() < 0.3:
                more = session.get("tasks", 0.05)
                taken.extend([more] if more else [])
            if chance.random() < 0.5:
                time.sleep(chance.random() / 50)
            for task in taken:
                result = "%s#%s.%d" % (task, session.name, session.calls)
                session.put("results", result, "of=" + task)


class Collector(object):
    """Collects results."""

    def work(self, session):
        while True:
            session.get("results")


def main():
    role = {"producer": Producer, "worker": Worker, "collector": Collector}[ROLE]()
    number = 0
    while True:
        number += 1
        try:
            role.work(Session(number))
        except GONE:
            time.sleep(0.01)


main()
