"""Puts numbers to be squared, and prints each square, or why there is none.

To run it:

    manyhands serve --queue numbers,results=squares,attempts=3 --queue squares
    python master.py
    python worker.py    # one or many, before the master or after it, on any machine
"""

import os

import manyhands

SERVER = os.environ.get("SERVER", "127.0.0.1:5000")
NUMBERS = [*range(10), "ten"]  # one of these has no square

with manyhands.connect(SERVER) as client:
    numbers, squares = client.queue("numbers"), client.queue("squares")
    numbers.put_many(NUMBERS)
    numbers.join()  # until each is done or given up
    while not squares.empty():
        print(squares.get())
    for task in client.queue("numbers.dead").peek():
        print(repr(task.item), "was given up:", *task.failures)
