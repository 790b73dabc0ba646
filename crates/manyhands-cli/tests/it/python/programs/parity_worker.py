# Looks for numbers for ever, says of each whether it is odd or even.
import time
from multiprocessing.managers import BaseManager


class Office(BaseManager):
    pass


Office.register("get_numbers")
Office.register("get_verdicts")
office = Office(address=("127.0.0.1", 47101), authkey=b"parity")
office.connect()
todo, done = office.get_numbers(), office.get_verdicts()

while True:
    if todo.empty():
        time.sleep(5)
        continue
    number = todo.get(timeout=5)
    time.sleep(1)
    done.put("%d is %s" % (number, "odd" if number % 2 else "even"))
