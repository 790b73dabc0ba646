# Waits until the queue of results is full, then reads as many as there are.
# Registers on BaseManager itself.
import queue
import time
from multiprocessing import freeze_support
from multiprocessing.managers import BaseManager

NAPS = 10
orders = queue.Queue(NAPS)
reports = queue.Queue(NAPS)


def take_orders():
    return orders


def take_reports():
    return reports


def main():
    BaseManager.register("take_orders", callable=take_orders)
    BaseManager.register("take_reports", callable=take_reports)
    manager = BaseManager(address=("127.0.0.1", 47105), authkey=b"nap")
    manager.start()
    try:
        todo, done = manager.take_orders(), manager.take_reports()
        for nap in range(NAPS):
            print("ordered nap %d" % nap)
            todo.put(nap)
        while not done.full():
            time.sleep(1)
        for _ in range(done.qsize()):
            print("nap %d took %d s" % done.get())
    finally:
        manager.shutdown()


if __name__ == "__main__":
    freeze_support()
    main()
