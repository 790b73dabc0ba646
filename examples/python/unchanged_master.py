"""Puts numbers to be squared, and prints each square: a master that knows nothing of manyhands.

To run it, with the worker of the README ("A server of its own, and workers") in worker.py:

    python -m manyhands unchanged_master.py
    python worker.py    # one or many, once the master waits for them

Like any worker of such a master, these end with EOFError when it is done.
"""

from multiprocessing.managers import BaseManager
from queue import Queue

waiting, squared = Queue(), Queue()
BaseManager.register("tasks", callable=lambda: waiting)
BaseManager.register("answers", callable=lambda: squared)
manager = BaseManager(address=("127.0.0.1", 5000), authkey=b"abc")
manager.start()
tasks, answers = manager.tasks(), manager.answers()
for n in range(10):
    tasks.put(n)
print("waiting for workers on port", manager.address[1])
for _ in range(10):
    print(answers.get())
manager.shutdown()
