# Python 2: takes ten turns; a turn without work is no mistake.
import time
from multiprocessing.managers import BaseManager

import Queue


class Desk(BaseManager):
    pass


Desk.register("questions")
Desk.register("answers")
desk = Desk(address=("127.0.0.1", 47102), authkey="cubes")
desk.connect()
questions, answers = desk.questions(), desk.answers()
for _ in range(10):
    try:
        number = questions.get(timeout=1)
        time.sleep(1)
        answers.put("%d ** 3 = %d" % (number, number**3))
    except Queue.Empty:
        print("nothing to do")
