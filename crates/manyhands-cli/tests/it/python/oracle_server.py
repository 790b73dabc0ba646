"""CPython's own manager server, the oracle, with options of `manyhands serve`. 2.7 and 3.x.

usage: oracle_server.py --authkey-file F --ready-file F [--queue NAME[,order=O][,maxsize=N]]...
"""

import argparse
import json
import os
from multiprocessing.managers import SyncManager

try:
    import queue
except ImportError:
    import Queue as queue

ORDERS = {"fifo": queue.Queue, "lifo": queue.LifoQueue, "priority": queue.PriorityQueue}


class Oracle(SyncManager):
    """A manager that serves queues by name beside SyncManager's own types."""


def register(spec):
    name, _, rest = spec.partition(",")
    options = dict(option.split("=") for option in rest.split(",") if option)
    served = ORDERS[options.get("order", "fifo")](int(options.get("maxsize", 0)))
    Oracle.register(name, callable=lambda: served)


def announce(path, address):
    with open(path + ".new", "w") as ready:
        ready.write(json.dumps({"addresses": ["%s:%d" % address]}) + "\n")
    os.rename(path + ".new", path)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--authkey-file", required=True)
    parser.add_argument("--ready-file", required=True)
    parser.add_argument("--queue", action="append", default=[])
    options = parser.parse_args()
    with open(options.authkey_file, "rb") as key_file:
        key = key_file.read()
    for spec in options.queue:
        register(spec)
    server = Oracle(address=("127.0.0.1", 0), authkey=key).get_server()
    announce(options.ready_file, server.address)
    server.serve_forever()


if __name__ == "__main__":
    main()
