"""A client of our own, written by hand from docs/protocol.md: port, key file, scenario."""

import pickle
import queue
import struct
import sys
import threading
import time
from multiprocessing.connection import Client

PORT, KEY_FILE, SCENARIO = int(sys.argv[1]), sys.argv[2], sys.argv[3]
with open(KEY_FILE, "rb") as key_file:
    KEY = key_file.read()

OURS = "manyhands/1 hand-written"
# A wait that is longer than this has failed.
LONG = 60


class Remote(Exception):
    """What the server says of a call that it does not have."""


def connect():
    return Client(("127.0.0.1", PORT), authkey=KEY)


def manager(name, *args):
    connection = connect()
    connection.send((None, name, args, {}))
    kind, value = connection.recv()
    assert kind == "#RETURN", value
    connection.close()
    return value


class Session:
    def __init__(self, name=OURS):
        self.connection = connect()
        self.connection.send((None, "accept_connection", (name,), {}))
        assert self.connection.recv() == ("#RETURN", None)

    def send(self, ident, method, *args, **kwds):
        self.connection.send((ident, method, args, kwds))

    def receive(self):
        kind, value = self.connection.recv()
        if kind == "#ERROR":
            raise value
        if kind != "#RETURN":
            raise Remote(value)
        return value

    def queue(self, name):
        return Queue(self, manager("create", name)[0])


class Queue:
    def __init__(self, session, ident):
        self.session, self.ident = session, ident

    def __getattr__(self, method):
        def call(*args, **kwds):
            self.session.send(self.ident, method, *args, **kwds)
            return self.session.receive()

        return call


def raises(error, call, *args, **kwds):
    """The text of the error that this call ends with."""
    try:
        value = call(*args, **kwds)
    except error as caught:
        return str(caught)
    raise AssertionError("%r instead of %s" % (value, error.__name__))


def until(condition):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def dumps(*items):
    return [pickle.dumps(item) for item in items]


def loads(pickles):
    return [pickle.loads(one) for one in pickles]


def batches():
    tasks = Session().queue("tasks")
    assert tasks.put_many(dumps("a", {"b": 1}, [2])) == 3
    assert loads(tasks.get_many(2)) == ["a", {"b": 1}]
    assert loads(tasks.get_many(10**12, timeout=LONG)) == [[2]]
    raises(queue.Empty, tasks.get_many, 5, False)
    raises(queue.Empty, tasks.get_many, 5, timeout=0.01)
    assert tasks.put_many([]) == 0
    assert tasks.put_many(()) == 0
    one = pickle.dumps("one")
    assert tasks.put_many((one, one, one)) == 3
    assert [tasks.get() for _ in range(3)] == ["one"] * 3


def batches_of_bounded_queues():
    small = Session().queue("small")
    assert small.put_many(dumps(*range(5)), False) == 2
    raises(queue.Full, small.put_many, dumps(2, 3), False)
    assert loads(small.get_many(1)) == [0]
    # One slot is free now; the rest waits until another client makes room.
    other = Session().queue("small")
    adder = threading.Thread(target=small.put_many, args=(dumps(*range(2, 12)),))
    adder.start()
    taken = []
    while len(taken) < 11:
        taken.extend(loads(other.get_many(4, timeout=LONG)))
    adder.join()
    assert taken == list(range(1, 12)), taken


def batches_end_in_bytes():
    tasks = Session().queue("tasks")
    assert tasks.put_many(dumps(*(letter * (5 << 20) for letter in "abc"))) == 3
    assert len(tasks.get_many(100)) == 2
    assert len(tasks.get_many(100)) == 1


def bad_batches():
    tasks = Session().queue("tasks")
    good = pickle.dumps(1)
    for wrong in (b"no pickle", b"", "text", None, [good]):
        assert "items" in raises(ValueError, tasks.put_many, [good, wrong]), wrong
    for items in (7, "x", None, {}):
        assert "items" in raises(ValueError, tasks.put_many, items), items
    assert "limit of 16384" in raises(ValueError, tasks.put_many, [good] * 16385)
    assert "too often" in raises(ValueError, tasks.put_many, [pickle.dumps("x" * 100000)] * 1000)
    assert tasks.put_many([good] * 16384) == 16384
    assert tasks.qsize() == 16384


def leases():
    tasks = Session().queue("tasks")
    tasks.put_many(dumps("a", "b"))
    token, task, attempt, item = tasks.lease()
    assert (task, attempt, pickle.loads(item)) == (0, 1, "a")
    # Neither of these settles it.
    assert tasks.get() == "b"
    tasks.put("c")
    assert tasks.get() == "c"
    assert tasks.nack(token, 0, "no") is None
    (again,) = tasks.lease_many(10)
    assert again[1:3] == (0, 2) and again[0] != token
    assert raises(ValueError, tasks.ack, token).startswith("stale: ")
    assert raises(ValueError, tasks.nack, token).startswith("stale: ")
    assert raises(ValueError, tasks.extend, token, 1).startswith("stale: ")
    assert tasks.ack(again[0]) is None
    for call in (tasks.ack, tasks.nack, lambda token: tasks.extend(token, 1)):
        assert raises(ValueError, call, again[0]).startswith("duplicate: ")
    raises(queue.Empty, tasks.lease, False)
    raises(queue.Empty, tasks.lease_many, 3, timeout=0.01)


def late_acks():
    tasks = Session().queue("tasks")
    tasks.put("a")
    first = tasks.lease(hold=0.01)[0]
    until(lambda: tasks.qsize() == 1)
    assert tasks.ack(first) is None
    assert tasks.qsize() == 0
    assert raises(ValueError, tasks.ack, first).startswith("duplicate: ")
    tasks.put("b")
    second = tasks.lease(hold=0.01)[0]
    until(lambda: tasks.qsize() == 1)
    third = Session().queue("tasks").lease()[0]
    assert raises(ValueError, tasks.ack, second).startswith("stale: ")
    assert tasks.ack(third) is None


def delays():
    tasks = Session().queue("tasks")
    tasks.put("later", delay=3600)
    assert tasks.qsize() == 0
    tasks.put("a", delay=0.05)
    token = tasks.lease(timeout=LONG)[0]
    tasks.nack(token, delay=3600)
    raises(queue.Empty, tasks.lease, timeout=0.2)
    tasks.put("b", True, None, None, None, None, 0.01)
    until(lambda: tasks.qsize() == 0)


def extensions():
    tasks = Session().queue("limited")
    tasks.put("a")
    while True:
        token, _, attempt, _ = tasks.lease(hold=3600)
        try:
            tasks.extend(token, 3600)
            break
        except ValueError:
            # This machine took longer than max_run.
            until(lambda: tasks.qsize() == 1)
    # No longer than max_run, whatever was asked for.
    until(lambda: tasks.qsize() == 1)
    assert raises(ValueError, tasks.extend, token, 1).startswith("stale: ")
    assert tasks.lease()[2] == attempt + 1


def results():
    session = Session()
    tasks, answers = session.queue("answered"), session.queue("answers")
    tasks.put_many(dumps(6, 7))
    token, _, _, item = tasks.lease()
    assert tasks.ack(token, {"square": pickle.loads(item) ** 2}) is None
    assert raises(ValueError, tasks.ack, token, None).startswith("duplicate: ")
    item, info = answers.take()
    assert pickle.loads(item) == {"square": 36}
    assert info[:3] == ("answered", 0, 1)
    assert info[3].startswith("manyhands/1 hand-written at 127.0.0.1:"), info
    assert 0 <= info[4] < LONG and 0 <= info[5] < LONG and info[6] == []
    # None is a result, too.
    tasks.ack(tasks.lease()[0], result=None)
    ((item, info),) = answers.take_many(5)
    assert pickle.loads(item) is None and info[1] == 1
    answers.put("by hand")
    assert answers.take()[1] is None
    other = session.queue("tasks")
    other.put(1)
    token = other.lease()[0]
    assert raises(ValueError, other.ack, token, 1).startswith("no results: ")
    assert other.ack(token) is None


def results_wait_for_room():
    session = Session()
    tasks, answers = session.queue("answered_slowly"), session.queue("one")
    tasks.put_many(dumps(1, 2))
    answers.put("full")
    first, second = (lease[0] for lease in tasks.lease_many(2))
    raises(queue.Full, tasks.ack, first, "x", False)
    raises(queue.Full, tasks.ack, first, "x", timeout=0.01)
    session.send(tasks.ident, "ack", first, "x")
    other = Session().queue("one")
    assert other.get() == "full"
    assert session.receive() is None
    assert other.get() == "x"
    assert tasks.ack(second, "y") is None


def dead_letters():
    session = Session()
    tasks, dead = session.queue("fragile"), session.queue("fragile.dead")
    tasks.put("a")
    for reason in ("first", "second"):
        tasks.nack(tasks.lease()[0], 0, reason)
    until(lambda: dead.qsize() == 1)
    dead.put("no dead letter")
    assert dead.redrive() == 1
    assert (tasks.qsize(), dead.qsize()) == (1, 1)
    token, _, attempt, _ = tasks.lease()
    assert attempt == 1
    tasks.nack(token, 0, "third")
    tasks.nack(tasks.lease()[0], 0, "fourth")
    assert dead.redrive(1) == 0 and dead.redrive(5) == 1
    assert dead.purge() == 1
    assert tasks.purge() == 1
    assert tasks.purge() == 0
    tasks.put("b")
    for reason in ("fifth", None):
        tasks.nack(tasks.lease()[0], 0, reason)
    item, info = dead.take()
    assert pickle.loads(item) == "b"
    assert info[0] == "fragile" and info[2] == 2 and info[6] == ["fifth", ""], info


def keys():
    session = Session()
    tasks = session.queue("tasks")
    assert tasks.put("a", key="k") is True
    assert tasks.put("b", key=b"k") is False
    assert tasks.put("c", key="other", id=True) == 1
    assert tasks.put("d", key="other", id=True) is None
    assert "order=priority" in raises(ValueError, tasks.put, "d", priority=3)
    assert [tasks.get(), tasks.get()] == ["a", "c"]
    sorted_tasks = session.queue("sorted")
    for item, priority in (("low", 9), ("high", -1), ("middle", 4)):
        sorted_tasks.put(item, priority=priority)
    assert [sorted_tasks.get() for _ in range(3)] == ["high", "middle", "low"]


def ends_of_sessions():
    session = Session()
    tasks = session.queue("tasks")
    tasks.put_many(dumps("a", "b"))
    leased = tasks.lease()[0]
    # Another session of the same client goes on with it.
    second = Session()
    heir = Queue(second, tasks.ident)
    heir.qsize()
    session.connection.close()
    assert heir.extend(leased, 3600) is None
    assert heir.ack(leased) is None
    other = Session().queue("tasks")
    heir.lease()
    second.connection.close()
    assert other.lease(timeout=LONG)[1:3] == (1, 2)


def bursts():
    """All replies come in order, however many requests were sent ahead."""
    session = Session()
    tasks = session.queue("tasks")
    count = 10000

    def frame(*request):
        body = pickle.dumps(request, 2)
        return struct.pack("!i", len(body)) + body

    puts = b"".join(frame(tasks.ident, "put", (n,), {}) for n in range(count))
    gets = b"".join(frame(tasks.ident, "get", (), {}) for n in range(count))
    sizes = frame(tasks.ident, "qsize", (), {})
    burst = puts + sizes + gets + sizes
    writer = threading.Thread(target=write_all, args=(session.connection.fileno(), burst))
    writer.start()
    assert all(session.receive() is None for _ in range(count))
    assert session.receive() == count
    assert [session.receive() for _ in range(count)] == list(range(count))
    assert session.receive() == 0
    writer.join()


def write_all(descriptor, data):
    import os

    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view[: 1 << 16]) :]


def requests_ahead():
    """A call that waits holds those behind it up, and is not given up for them."""
    session = Session()
    tasks, other = session.queue("tasks"), Session().queue("tasks")
    session.send(tasks.ident, "get")
    session.send(tasks.ident, "put", "mine")
    session.send(tasks.ident, "qsize")
    for _ in range(3000):
        session.send(tasks.ident, "full")
    other.put("theirs")
    assert session.receive() == "theirs"
    assert session.receive() is None
    assert session.receive() == 1
    assert not any(session.receive() for _ in range(3000))


def hostile():
    session = Session()
    tasks, other = session.queue("tasks"), session.queue("answered")
    tasks.put("a")
    other.put("b")
    token, foreign = tasks.lease()[0], other.lease()[0]
    for call in (tasks.ack, tasks.nack, lambda token: tasks.extend(token, 1)):
        assert raises(ValueError, call, foreign).startswith("stale: ")
        for wrong in ("", "x", "1.2.3", "f" * 1000, token + ".1", "-" + token, "\xe9"):
            raises(ValueError, call, wrong)
        for wrong in (None, 7, b"\xff", (), [token], {}, 1.5):
            raises(TypeError, call, wrong)
        raises(TypeError, call)
    for wrong in (0, -1, -(10**30)):
        for call in (tasks.get_many, tasks.take_many, tasks.lease_many, tasks.redrive):
            raises(ValueError, call, wrong)
    for wrong in ("1", 1.5, [], True):
        for call in (tasks.get_many, tasks.take_many, tasks.lease_many, tasks.redrive):
            raises(TypeError, call, wrong)
    for seconds in (-1, float("nan"), -float("inf")):
        raises(ValueError, tasks.extend, token, seconds)
        raises(ValueError, tasks.nack, token, seconds)
        raises(ValueError, tasks.put, "x", delay=seconds)
        raises(ValueError, tasks.put, "x", expires=seconds)
        raises(ValueError, tasks.lease, hold=seconds)
    for wrong in ("1", [], None):
        raises(TypeError, tasks.extend, token, wrong)
    raises(TypeError, tasks.nack, token, 0, 7)
    raises(TypeError, tasks.nack, token, 0, "x", True, 1)
    raises(ValueError, tasks.put, "x", key="k" * 257)
    raises(TypeError, tasks.put, "x", key=7)
    raises(TypeError, tasks.put, "x", priority="first")
    raises(TypeError, tasks.put, "x", True, None, None, None, None, None, False, None)
    raises(ValueError, tasks.peek, 0)
    raises(TypeError, tasks.peek, "1")
    for wrong in ("gone", 1):
        raises(ValueError, tasks.peek, 1, wrong)
    raises(TypeError, tasks.put, "x", colour="red")
    raises(TypeError, tasks.put_many)
    raises(TypeError, tasks.purge, 1)
    raises(ValueError, tasks.lease, timeout=-1)
    raises(Remote, tasks.put_all, [])
    assert tasks.extend(token, 1e300) is None
    assert tasks.extend(token, 10**400) is None
    assert tasks.nack(token, 10**400, "x" * 100000) is None
    assert tasks.qsize() == 0


def unmodified():
    """Other clients have none of this."""
    session = Session("MainProcess")
    tasks = session.queue("tasks")
    methods = "put_many get_many take take_many lease lease_many ack nack extend".split()
    methods += ["redrive", "purge", "peek"]
    exposed = manager("create", "tasks")[1]
    for method in methods:
        assert "KeyError: '%s'" % method in raises(Remote, getattr(tasks, method), 1)
        assert method not in exposed
    for keyword in ("key", "delay", "priority", "expires", "id"):
        text = raises(TypeError, tasks.put, 1, **{keyword: 1})
        assert text.endswith("got an unexpected keyword argument '%s'" % keyword), text
    # An older client of ours, which does not say what it knows, is served like them.
    old = Session("manyhands/0.1.0 pid=7").queue("tasks")
    raises(Remote, old.lease)
    assert tasks.qsize() == 0


globals()[SCENARIO]()
