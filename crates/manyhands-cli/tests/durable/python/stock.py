"""A stock client of a server with a data directory. Runs on 2.7 and 3.x.

    stock.py PORT KEYFILE VERB QUEUE ARGUMENT...

It says each thing that it was answered, once it was answered."""

from __future__ import print_function

import os
import sys
import time

sys.path.insert(0, os.environ["MANYHANDS_TEST_PYTHON"])

from client import connect, queue, read_key, say  # noqa: E402

FOR_EVER = 3600


def put(items, first, last):
    """Puts numbers until it is cut off."""
    for number in range(int(first), int(last)):
        items.put(number)
        say(put=number)


def get(items):
    """Takes all that is there."""
    while True:
        try:
            say(got=items.get(block=False))
        except queue.Empty:
            return


def hold(items):
    """Takes one and does not come back."""
    say(got=items.get())
    time.sleep(FOR_EVER)


def refused(items):
    """Puts until there is no room, at once and with a time-out, and says why."""
    for terms in ({"block": False}, {"timeout": 0.2}):
        try:
            while True:
                items.put("x" * 4000, **terms)
        except queue.Full as error:
            say(refused=str(error))


def done(items, times):
    for _ in range(int(times)):
        items.task_done()
    say(done=int(times))


def join(items):
    say(joining=True)
    items.join()
    say(joined=True)


def main(port, key_file, verb, name, *arguments):
    manager = connect(port, read_key(key_file), [name])
    try:
        globals()[verb](getattr(manager, name)(), *arguments)
    except (EOFError, IOError) as error:
        say(cut=type(error).__name__)


if __name__ == "__main__":
    main(*sys.argv[1:])
