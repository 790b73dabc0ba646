# Bounded queues of multiprocessing, a main guard, a key made by encode().
import random
from multiprocessing import Queue
from multiprocessing.managers import BaseManager

ROOM = 10
numbers, roots = Queue(ROOM), Queue(ROOM)


def numbers_queue():
    return numbers


def roots_queue():
    return roots


class Exchange(BaseManager):
    pass


if __name__ == "__main__":
    Exchange.register("numbers_queue", callable=numbers_queue)
    Exchange.register("roots_queue", callable=roots_queue)
    exchange = Exchange(address=("127.0.0.1", 47104), authkey="roots".encode())
    exchange.start()
    todo, done = exchange.numbers_queue(), exchange.roots_queue()
    for _ in range(ROOM):
        number = random.randint(0, 99) ** 2
        print("offered %d" % number)
        todo.put(number)
    for _ in range(ROOM):
        print("root: %s" % done.get(timeout=10))
    exchange.shutdown()
    print("closed")
