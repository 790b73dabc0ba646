"""Puts numbers to be squared, and prints each square, or why there is none.

To run it:

    manyhands serve --queue numbers,results=squares,failures=results,attempts=3 --queue squares
    python master.py
    python worker.py    # one or many, before the master or after it, on any machine
"""

import os

import manyhands

SERVER = os.environ.get("SERVER", "127.0.0.1:5000")
NUMBERS = [*range(10), "ten"]  # one of these has no square

with manyhands.connect(SERVER) as client:
    numbers, squares = client.queue("numbers"), client.queue("squares")
    tasks = {numbers.put(number, id=True): number for number in NUMBERS}
    for _ in tasks:
        result = squares.get()
        if "given_up" in result:
            print(repr(tasks[result["task"]]), "was given up:", *result["reasons"])
        else:
            print(result)
