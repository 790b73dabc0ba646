# Hands out numbers, looks every few seconds whether verdicts have come in.
import time
from multiprocessing import Queue
from multiprocessing.managers import BaseManager

numbers, verdicts = Queue(), Queue()


def get_numbers():
    return numbers


def get_verdicts():
    return verdicts


class Office(BaseManager):
    pass


Office.register("get_numbers", callable=get_numbers)
Office.register("get_verdicts", callable=get_verdicts)

office = Office(address=("127.0.0.1", 47101), authkey=b"parity")
office.start()
todo, done = office.get_numbers(), office.get_verdicts()

for number in range(1, 7):
    todo.put(number)
    print("handed out %d" % number)

seen = 0
while seen < 6:
    if done.empty():
        time.sleep(5)
    else:
        print("verdict: %s" % done.get(timeout=10))
        seen += 1
