"""Clients that die or give up at the worst moment, and those that look what was lost. 2.7 and 3.x.

usage: loss.py ROLE PORT KEYFILE [ARGUMENT]...
"""

from __future__ import print_function

import os
import random
import signal
import subprocess
import sys
import threading
import time

from client import connect, queue, read_key, say, watch


class Interrupted(Exception):
    pass


def at_once(action):
    """An action that runs the first time only."""
    left = [action]
    return lambda: left.pop()() if left else None


def getter(m):
    """Gets for ever and says what it gets before it reads it; says `sent` when a get has left."""
    q = m.tasks()
    watch(q, lambda: say(event="sent"), lambda reply: say(got=reply[1]))
    while True:
        q.get()


def putter(m, item):
    """Says `sent` when its put has left."""
    q = m.tasks()
    watch(q, lambda: say(event="sent"))
    q.put(item)
    say(event="done")


def fill(m, first, after):
    q = m.tasks()
    for n in range(int(first), int(after)):
        q.put(n)


def drain(m):
    """Says everything that can still be had."""
    q = m.tasks()
    items = []
    try:
        while True:
            items.append(q.get(timeout=0.3))
    except queue.Empty:
        say(items=items)


def daemon(m):
    """Ends cleanly while a daemon thread of it waits in get."""
    q = m.tasks()
    q.qsize()
    waiting = threading.Event()

    def wait():
        watch(q, waiting.set)
        q.get()

    thread = threading.Thread(target=wait)
    thread.daemon = True
    thread.start()
    waiting.wait()


def interrupt(proxy, call, how):
    """Abandons `call`, either as soon as its request has left or while it waits for the answer."""

    def stop(*_):
        raise Interrupted()

    signal.signal(signal.SIGALRM, stop)
    if how == "sent":
        watch(proxy, at_once(lambda: os.kill(os.getpid(), signal.SIGALRM)))
    else:
        watch(proxy, at_once(lambda: signal.setitimer(signal.ITIMER_REAL, 0.02)))
    try:
        call()
    except Interrupted:
        return True
    return False


def interrupted_get(m):
    """Gives up a get, then makes other calls: each must have its own answer."""
    tasks, results = m.tasks(), m.results()
    for how in ("sent", "waiting"):
        assert interrupt(tasks, tasks.get, how)
        answers = [
            tasks.qsize(),
            results.put("r"),
            results.get(),
            tasks.put("t"),
            tasks.qsize(),
            tasks.get(),
        ]
        say(how=how, answers=answers)


def interrupted_put(m):
    """Gives up a put on a full queue: the item must not appear later."""
    tasks, results = m.tasks(), m.results()
    for how in ("sent", "waiting"):
        tasks.put("real")
        assert interrupt(tasks, lambda: tasks.put("ghost"), how)
        answers = [tasks.qsize(), results.put("r"), results.get(), tasks.get()]
        try:
            answers.append(tasks.get(timeout=0.05))
        except queue.Empty:
            answers.append("empty")
        say(how=how, answers=answers)


def shaken(m, rounds, seed):
    """Kills waiting getters at random moments around a put; says what nobody saw in the end."""
    chance = random.Random(int(seed))
    q = m.tasks()
    seen = set()
    for n in range(int(rounds)):
        client = subprocess.Popen(
            [sys.executable, __file__, "getter"] + sys.argv[2:4],
            stdout=subprocess.PIPE,
            universal_newlines=True,
        )
        client.stdout.readline()
        killer = threading.Thread(target=kill_after, args=(chance.uniform(0, 0.005), client))
        killer.start()
        time.sleep(chance.uniform(0, 0.005))
        q.put(n)
        killer.join()
        seen.update(got_in(client.communicate()[0]))
    missing = set(range(int(rounds))) - seen
    try:
        while missing:
            missing.discard(q.get(timeout=5))
    except queue.Empty:
        pass
    say(missing=sorted(missing))


def kill_after(seconds, client):
    time.sleep(seconds)
    client.kill()


def got_in(output):
    return [
        int(line.split(":")[1].strip(" }"))
        for line in output.splitlines()
        if '"got"' in line and "}" in line
    ]


if __name__ == "__main__":
    manager = connect(sys.argv[2], read_key(sys.argv[3]), ["tasks", "results"])
    globals()[sys.argv[1]](manager, *sys.argv[4:])
