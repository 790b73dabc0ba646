"""CPython's own manager server with two plain queues and a dict: what manyhands replaces.

usage: cpython_server.py KEYFILE; prints its port on one line and serves until it is killed.

Run by `python -m manyhands`, it is manyhands that serves them.
"""

import queue
import sys
from multiprocessing.managers import BaseManager, DictProxy

tasks = queue.Queue()
results = queue.Queue()
shared = {}


class Manager(BaseManager):
    pass


Manager.register("get_task_queue", callable=lambda: tasks)
Manager.register("get_result_queue", callable=lambda: results)
Manager.register("get_dict", callable=lambda: shared, proxytype=DictProxy)

if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        key = file.read()
    server = Manager(("127.0.0.1", 0), key).get_server()
    print(server.address[1], flush=True)
    server.serve_forever()
