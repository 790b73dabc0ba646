# Python 2: cubes of random numbers, through lambdas and a text for a key.
import random
from multiprocessing.managers import BaseManager

import Queue

questions = Queue.Queue()
answers = Queue.Queue()


class Desk(BaseManager):
    pass


Desk.register("questions", callable=lambda: questions)
Desk.register("answers", callable=lambda: answers)
desk = Desk(address=("", 47102), authkey="cubes")
desk.start()
ask, hear = desk.questions(), desk.answers()
for _ in range(10):
    number = random.randint(0, 999)
    print("asked for %d" % number)
    ask.put(number)
for _ in range(10):
    print("answer: %s" % hear.get(timeout=10))
desk.shutdown()
