"""Calls of a function that does nothing, by an executor of two processes.

usage: executors.py executor|processes COUNT CHUNKSIZE

Ours chooses its chunks itself if they may be more than one. Prints its measurement as one line of
JSON; CPU, in µs for each call, is that of all processes.
"""

import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

WORKERS = 2


def nothing(number):
    return number


def cpu_seconds():
    return sum(os.times()[:4])


def measured(name, count, chunksize):
    before = cpu_seconds()
    with executor(name) as ex:
        if name == "executor" and chunksize > 1:
            chunksize = "auto"
        # Its processes have started then.
        list(ex.map(nothing, range(100)))
        begun = time.perf_counter()
        for _ in ex.map(nothing, range(count), chunksize=chunksize):
            pass
        seconds = time.perf_counter() - begun
    return {"rate": count / seconds, "cpu": (cpu_seconds() - before) / count * 1e6}


def executor(name):
    if name == "processes":
        return ProcessPoolExecutor(WORKERS)
    import manyhands

    return manyhands.Executor(workers=WORKERS)


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))), flush=True)
