"""Squares numbers until it is interrupted; a task that fails does not end it. See master.py."""

import os

import manyhands

SERVER = os.environ.get("SERVER", "127.0.0.1:5000")


def square(number):
    return {"number": number, "square": number * number}


with manyhands.connect(SERVER) as client:
    numbers = client.queue("numbers")
    while True:
        with numbers.lease() as lease:
            try:
                result = square(lease.item)
            except Exception as error:  # the task is bad, not the worker
                lease.nack(reason=repr(error))
            else:
                lease.ack(result)
