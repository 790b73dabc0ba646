# Square roots, until nothing is left.
import time
from multiprocessing.managers import BaseManager


class Exchange(BaseManager):
    pass


if __name__ == "__main__":
    Exchange.register("numbers_queue")
    Exchange.register("roots_queue")
    exchange = Exchange(address=("127.0.0.1", 47104), authkey="roots".encode())
    exchange.connect()
    todo, done = exchange.numbers_queue(), exchange.roots_queue()
    while not todo.empty():
        number = todo.get(timeout=1)
        time.sleep(1)
        done.put("%d from %d" % (int(number**0.5), number))
