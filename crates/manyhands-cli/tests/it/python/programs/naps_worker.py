# Sleeps as ordered and reports a tuple.
import random
import sys
import time
from multiprocessing.managers import BaseManager

BaseManager.register("take_orders")
BaseManager.register("take_reports")
manager = BaseManager(address=("127.0.0.1", 47105), authkey=b"nap")
try:
    manager.connect()
except ConnectionError:
    sys.exit("nobody there")
todo = manager.take_orders()
done = manager.take_reports()
while not todo.empty():
    nap = todo.get(timeout=1)
    seconds = random.randint(0, 3)
    time.sleep(seconds)
    done.put((nap, seconds))
