"""The behaviour of a served queue as a stock client sees it, one observation per line.

usage: conformance.py PORT KEYFILE        (2.7 and 3.x; run against two servers and compared)

Nothing here knows which server it talks to. Class names are always part of an observation; texts
only where programs rely on them.
"""

from __future__ import print_function

import array
import collections
import datetime
import decimal
import fractions
import functools
import gc
import multiprocessing
import re
import sys
import threading
import uuid
from multiprocessing.managers import AutoProxy, RemoteError, SyncManager

from client import PY2, connect, queue, read_key, say, text

NAMES = [
    "fifo",
    "lifo",
    "prio",
    "unordered",
    "pair",
    "counted",
    "closing",
    "cut",
    "other",
    "third",
    "nosuch",
]
WITH_TEXT = (ValueError, multiprocessing.AuthenticationError, queue.Empty, queue.Full)
SECTIONS = []


def section(function):
    SECTIONS.append(function)
    return function


def described(value):
    return re.sub("0x[0-9a-fA-F]+", "0x0", repr(value))


def outcome(call):
    try:
        return "returned " + described(call())
    except Exception as error:
        text = " %r" % str(error) if isinstance(error, WITH_TEXT) else ""
        return "raised " + type(error).__name__ + text


class Steps(object):
    """The observations of one section."""

    def __init__(self, name):
        self._name = name

    def __call__(self, step, call, *args, **kwds):
        say(step=self._name + "/" + step, saw=outcome(lambda: call(*args, **kwds)))


class Later(object):
    """A call in a thread of its own."""

    def __init__(self, call, *args, **kwds):
        self._saw = None
        self._thread = threading.Thread(target=self._run, args=(lambda: call(*args, **kwds),))
        self._thread.start()

    def _run(self, call):
        self._saw = outcome(call)

    def saw(self):
        self._thread.join(30)
        return self._saw


@section
def forms_of_put(see, m):
    q = m.fifo()
    see("positional", q.put, 1)
    see("block", q.put, 2, True)
    see("block and timeout", q.put, 3, True, 1)
    see("item keyword", q.put, item=4)
    see("block keyword", q.put, 5, block=False)
    see("timeout keyword", q.put, 6, timeout=1)
    see("all keywords", q.put, item=7, block=True, timeout=None)
    see("integer block, float timeout", q.put, 8, 1, 0.5)
    see("text block", q.put, 9, "yes")
    see("no block, negative timeout", q.put, 10, False, -1)
    see("negative timeout without bound", q.put, 11, True, -1)
    see("nowait", q.put_nowait, 12)
    see("nowait keyword", q.put_nowait, item=13)
    see("qsize", q.qsize)
    see("empty", q.empty)
    see("full", q.full)
    see("order", lambda: [q.get() for _ in range(q.qsize())])


@section
def forms_of_get(see, m):
    q = m.fifo()
    for n in range(18):
        q.put(n)
    see("plain", q.get)
    see("block", q.get, True)
    see("block and timeout", q.get, True, 1)
    see("no block", q.get, False)
    see("block keyword", q.get, block=False)
    see("timeout keyword", q.get, timeout=1)
    see("both keywords", q.get, block=True, timeout=None)
    see("integer block, float timeout", q.get, 1, 0.5)
    see("zero block", q.get, 0)
    see("none block", q.get, None)
    see("empty text block", q.get, "")
    see("zero timeout", q.get, timeout=0)
    see("true timeout", q.get, timeout=True)
    see("endless timeout", q.get, timeout=float("inf"))
    see("no block, negative timeout", q.get, False, -1)
    see("nowait", q.get_nowait)
    see("negative timeout", q.get, timeout=-1)
    see("negative timeout, positional", q.get, True, -0.5)
    see("text timeout", q.get, True, "soon")
    see("left", lambda: [q.get() for _ in range(q.qsize())])


@section
def empty_and_full(see, m):
    q = m.pair()
    see("get nowait", q.get_nowait)
    see("get without block", q.get, False)
    see("get with timeout", q.get, timeout=0.02)
    see("get with zero timeout", q.get, True, 0)
    see("empty", q.empty)
    see("fill", lambda: [q.put("a"), q.put("b")])
    see("full", q.full)
    see("qsize", q.qsize)
    see("put nowait", q.put_nowait, "c")
    see("put without block", q.put, "c", False)
    see("put with timeout", q.put, "c", timeout=0.02)
    see("put with zero timeout", q.put, "c", True, 0)
    see("put with negative timeout", q.put, "c", True, -1)
    see("put without block, negative timeout", q.put, "c", False, -1)
    see("get", q.get)
    see("not full", q.full)
    see("put with negative timeout and room", q.put, "c", timeout=-1)
    see("last", q.get)
    see("empty again", q.get_nowait)


def caught(call, kind):
    try:
        call()
    except kind as error:
        return isinstance(error, Exception), error.args
    return None


@section
def classes_of_exceptions(see, m):
    q = m.pair()
    see("Empty is queue.Empty", caught, q.get_nowait, queue.Empty)
    q.put(1), q.put(2)
    see("Full is queue.Full", caught, lambda: q.put_nowait(3), queue.Full)
    q.get(), q.get()


@section
def waiting(see, m):
    q, pair = m.fifo(), m.pair()
    getter = Later(q.get)
    q.put("awaited")
    see("a blocked get", getter.saw)
    getter = Later(q.get, timeout=30)
    q.put("awaited with timeout")
    see("a blocked get with timeout", getter.saw)
    pair.put(1), pair.put(2)
    putter = Later(pair.put, 3)
    see("make room", pair.get)
    see("a blocked put", putter.saw)
    see("the rest", lambda: [pair.get(), pair.get()])


@section
def orders(see, m):
    def through(q, items):
        try:
            for item in items:
                q.put(item)
            return [q.get() for _ in items]
        finally:
            while not q.empty():
                q.get()

    lifo, prio = m.lifo(), m.prio()
    see("lifo", through, lifo, [1, 2, 3])
    see(
        "lifo interleaved",
        lambda: [lifo.put(1), lifo.put(2), lifo.get(), lifo.put(3), lifo.get(), lifo.get()],
    )
    see("ints", through, prio, [5, -1, 3, 2**70, 0, -(2**70)])
    see("floats and ints", through, prio, [1.5, 1, 0.25, -7, float("inf")])
    see("bools", through, prio, [True, False, 0.5])
    see("texts", through, prio, ["b", "a", "aa", ""])
    see(
        "unicode", through, prio, [text("\\u00e9"), text("e"), text("\\U0001f600"), text("\\uffff")]
    )
    see("bytes", through, prio, [b"b", b"\xff", b""])
    see("tuples", through, prio, [(2, "b"), (1, "z"), (2, "a"), (1,), ()])
    see("lists", through, prio, [[2, [1]], [2, [0, 5]], [1]])
    see("opaque after a differing priority", through, prio, [(2, {}), (1, {"a": 1}), (0, None)])
    see("equal priorities", through, prio, [(1, "a"), (0, "x"), (1, "a")])
    see("shared priority object", through, prio, [("put", "put"), ("get", "prio")])


@section
def an_order_that_does_not_exist(see, m):
    q = m.unordered()
    see("first", q.put, (1, {}))
    see("second", q.put, (1, {"a": 1}))
    see("qsize", q.qsize)


@section
def counting(see, m):
    q = m.counted()
    see("too many", q.task_done)
    see("join nothing", q.join)
    q.put(1), q.put(2)
    q.get(), q.get()
    joiner = Later(q.join)
    see("done once", q.task_done)
    see("done twice", q.task_done)
    see("joined", joiner.saw)
    see("too many again", q.task_done)


@section
def wrong_arguments(see, m):
    q = m.other()
    see("get three", q.get, 1, 2, 3)
    see("get unknown keyword", q.get, blocking=True)
    see("get twice the same", lambda: q._callmethod("get", (True,), {"block": True}))
    see("put nothing", q.put)
    see("put four", q.put, 1, True, 1, 1)
    see("put unknown keyword", q.put, 1, wait=True)
    see("put twice the same", lambda: q._callmethod("put", (1,), {"item": 1}))
    see("put_nowait two", q.put_nowait, 1, 2)
    see("get_nowait one", q.get_nowait, 1)
    see("qsize one", q.qsize, 1)
    see("empty one", q.empty, None)
    see("task_done keyword", q.task_done, n=1)
    see("join one", q.join, 5)
    see("nothing was put", q.qsize)


@section
def names_that_are_not_served(see, m):
    q = m.other()
    see("unexposed method", q._callmethod, "nosuch")
    see("private method", q._callmethod, "_init", (5,))
    see("attribute", q._callmethod, "queue")
    see("len", q._callmethod, "__len__")
    see("unknown name", m.nosuch)
    see("arguments to a named queue", m.other, 5)
    see("session goes on", q.qsize)


@section
def faces_of_a_proxy(see, m):
    q = m.other()
    see("str", lambda: (type(str(q)).__name__, str(q)[:1], str(q)[-1:]))
    see("repr", repr, q)
    see("value", q._getvalue)
    see(
        "exposed",
        lambda: sorted(
            name
            for name in q._exposed_
            if name in "empty full get get_nowait join put put_nowait qsize task_done".split()
        ),
    )
    see(
        "methods asked by hand",
        lambda: sorted(
            name
            for name in AutoProxy(q._token, "pickle", authkey=q._authkey)._exposed_
            if name in "empty full get get_nowait join put put_nowait qsize task_done".split()
        ),
    )
    for name in ("close", "join_thread", "cancel_join_thread"):
        see(name, q._callmethod, name)


@section
def manager_calls(see, m):
    def more_than(count):
        gc.collect()
        return m._number_of_objects() - count

    gc.collect()
    before = m._number_of_objects()
    see("type of number_of_objects", lambda: type(before).__name__)
    one, two = m.other(), m.third()
    see("two objects", more_than, before)
    again = m.other()
    see("a second proxy of one name", more_than, before)
    see(
        "debug_info",
        lambda: len(re.findall(r"^ +\S+: +refcount=[12]\n    \S", m._debug_info(), re.M)) >= 2,
    )
    del one, two, again
    see("all gone", more_than, before)


@section
def deletion_of_proxies(see, m):
    q = m.other()
    q.put("kept")
    del q
    gc.collect()
    q = m.other()
    see("items outlive proxies", q.get_nowait)
    copy = m.other()
    del copy
    gc.collect()
    see("the other proxy lives on", q.qsize)


def interned_names():
    words = ["put", "get", "item", "block", "timeout", "fifo", "None"]
    return {word: [word, (word, word)] for word in words}


def shared():
    one = ["shared", {}]
    return [one, one, (one, "shared")]


def recursive_list():
    value = [1]
    value.append(value)
    return value


def recursive_dict():
    value = {}
    value["self"] = (value, [value])
    return value


def recursive_tuple():
    inner = []
    value = (inner, "tail")
    inner.append(value)
    return value


def payloads():
    texts = ["word%d" % n for n in range(400)]
    values = [
        None,
        True,
        False,
        0,
        1,
        -1,
        255,
        256,
        65535,
        65536,
        2**31 - 1,
        2**31,
        -(2**31),
        2**63,
        -(2**63) - 1,
        2**100,
        -(2**2100),
        0.0,
        -0.0,
        1.5,
        1e300,
        float("inf"),
        float("nan"),
        3 + 4j,
        "",
        "text",
        text(""),
        text("gr\\u00fc\\u00df dich"),
        text("\\u4f60\\u597d"),
        text("\\U0001f600"),
        b"",
        b"bytes",
        bytes(bytearray(range(256))),
        bytearray(b"ba"),
        (),
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 3, 4),
        [],
        [1],
        list(range(1200)),
        {},
        {"a": 1},
        dict((n, str(n)) for n in range(1200)),
        set(),
        set([1, "a"]),
        frozenset([1, (2,)]),
        [[[[[]]]]],
        [(), [], {}, None],
        range(3),
        Ellipsis if not PY2 else None,
        int,
        len,
        ValueError("text", 5),
        KeyError("key"),
        datetime.datetime(2020, 1, 2, 3),
        datetime.timedelta(1),
        decimal.Decimal("1.10"),
        fractions.Fraction(1, 3),
        collections.OrderedDict([("b", 1), ("a", 2)]),
        collections.deque([1, 2], 5),
        collections.Counter("hello"),
        collections.defaultdict(list, a=[1]),
        array.array("i", [1, 2, 3]),
        uuid.UUID(int=5),
        functools.partial(int, base=2),
        interned_names(),
        texts + texts,
        "x" * 255,
        "x" * 256,
        "x" * 17000,
        b"y" * 66000,
        text("\\u00e9") * 66000,
        ["z" * 70000, "z" * 70000],
        b"\x00" * 1000000,
        "m" * 1000000,
        [b"k" * 1000] * 3,
        [str(n) for n in range(30000)],
    ]
    return [("%03d %s" % (n, type(value).__name__), value) for n, value in enumerate(values)]


def alike(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, functools.partial):
        return (a.func, a.args, a.keywords) == (b.func, b.args, b.keywords)
    return repr(a) == repr(b) if isinstance(a, (float, complex, Exception)) else a == b


@section
def payloads_return_as_they_were(see, m):
    q = m.fifo()

    def there_and_back(value):
        q.put(value)
        got = q.get_nowait()
        return type(got).__name__, alike(value, got)

    def by_keyword(value):
        q.put(timeout=5, item=value, block=True)
        got = q.get_nowait()
        return alike(value, got)

    for name, value in payloads():
        see(name, there_and_back, value)
        see(name + ", by keyword", by_keyword, value)


@section
def identity_inside_payloads(see, m):
    q = m.fifo()

    def back(value):
        q.put(value)
        return q.get_nowait()

    def of_shared():
        got = back(shared())
        return got[0] is got[1] and got[2][0] is got[0]

    def of_list():
        got = back(recursive_list())
        return got[1] is got and got[0] == 1

    def of_dict():
        got = back(recursive_dict())
        return got["self"][0] is got and got["self"][1][0] is got

    def of_tuple():
        got = back(recursive_tuple())
        return got[0][0] is got and got[1] == "tail"

    see("shared", of_shared)
    see("recursive list", of_list)
    see("recursive dict", of_dict)
    see("recursive tuple", of_tuple)


@section
def names_shared_with_the_envelope(see, m):
    q = m.fifo()
    see("method", lambda: (q.put("put"), q.get()))
    see("method in a dict", lambda: (q.put({"put": ["put"]}), q.get()))
    see("ident", lambda: (q.put([q._id]), q.get() == [q._id]))
    see("keyword after", lambda: (q.put({"timeout": 1}, timeout=5), q.get()))
    see("keywords both ways", lambda: (q.put({"block": "item"}, block=True, timeout=5), q.get()))
    see("item in item", lambda: (q.put(item={"item": "put"}), q.get()))
    see("one object twice", lambda: (lambda t: (q.put(t, t, None), q.get()))("truth"))


class OnlyHere(object):
    """A class that no server can import."""

    def __init__(self, value):
        self.value = value
        self.put = [value]


@section
def classes_that_only_clients_know(see, m):
    q = m.cut()

    def there_and_back():
        q.put(OnlyHere("put"))
        got = q.get_nowait()
        return type(got).__name__, got.value, got.put

    see("an instance", there_and_back)
    see("the session goes on", q.qsize)


@section
def threads(see, m):
    tasks, results = m.fifo(), m.other()

    def worker():
        while True:
            n = tasks.get(timeout=30)
            if n is None:
                return
            results.put(n * n)

    workers = [Later(worker) for _ in range(4)]
    feeders = [
        Later(lambda first: [tasks.put(n) for n in range(first, first + 20)], k * 20)
        for k in range(3)
    ]
    [feeder.saw() for feeder in feeders]
    see("squares", lambda: sorted(results.get(timeout=30) for _ in range(60)))
    for _ in workers:
        tasks.put(None)
    see("workers end", lambda: [worker.saw() for worker in workers])


def in_child(tasks, results):
    results.put(["child", tasks.get(timeout=30)])


def in_pool(job):
    results, n = job
    results.put(n * 10)
    return n


@section
def processes(see, m):
    tasks, results = m.fifo(), m.other()
    methods = ["fork"] if PY2 else ["fork", "spawn"]
    for method in methods:
        context = multiprocessing if PY2 else multiprocessing.get_context(method)
        child = context.Process(target=in_child, args=(tasks, results))
        child.start()
        tasks.put("for " + method)
        see(method, results.get, timeout=30)
        child.join(30)
        see(method + " ends", getattr, child, "exitcode")
    pool = (multiprocessing if PY2 else multiprocessing.get_context("fork")).Pool(2)
    see("pool", pool.map, in_pool, [(results, n) for n in range(6)])
    pool.close()
    pool.join()
    see("pool results", lambda: sorted(results.get(timeout=30) for _ in range(6)))
    see("the parent goes on", lambda: (tasks.put(1), tasks.get()))


@section
def a_proxy_inside_a_queue(see, m):
    carrier, carried = m.other(), m.third()

    def pass_on():
        carrier.put(carried)
        got = carrier.get(timeout=5)
        got.put("through the copy")
        return carried.get_nowait()

    see("works", pass_on)


@section
def sync_manager(see, m):
    sync = connect(PORT, KEY, [], SyncManager)
    q = sync.Queue(2)
    see("fill", lambda: [q.put(1), q.put(2), q.full()])
    see("over", q.put_nowait, 3)
    fresh = sync.Queue()
    see("a fresh one", lambda: (fresh.qsize(), fresh.full()))
    bounded = sync.Queue(maxsize=1)
    see("maxsize keyword", lambda: [bounded.put(1), bounded.full()])
    joinable = sync.JoinableQueue(1)
    see(
        "joinable",
        lambda: [
            joinable.put(1),
            joinable.full(),
            joinable.get(),
            joinable.task_done(),
            joinable.join(),
        ],
    )
    see("two arguments", sync.Queue, 1, 2)
    see("unknown argument", sync.Queue, size=1)
    see("negative maxsize", lambda: sync.Queue(-1).full())

    def refusal():
        try:
            return len(sync.dict())
        except RemoteError as error:
            return "names the drop-in: %s" % ("drop-in" in str(error) and "manyhands" in str(error))

    see("dict", refusal)


@section
def shutdown_of_a_queue(see, m):
    q = m.closing()
    q.put("left")
    see("shutdown", q._callmethod, "shutdown")
    see("put", q.put_nowait, 1)
    see("get what is left", q.get_nowait)
    see("get", q.get_nowait)
    see("blocking get", q.get, timeout=0.02)
    see("immediate", q._callmethod, "shutdown", (), {"immediate": True})
    see("immediate, positional", q._callmethod, "shutdown", (True,))


@section
def a_wrong_key(see, m):
    see("is refused", connect, PORT, KEY + b"!", [])
    multiprocessing.current_process().authkey = KEY
    see("the right one goes on", lambda: m.other().qsize())


if __name__ == "__main__":
    PORT, KEY = sys.argv[1], read_key(sys.argv[2])
    manager = connect(PORT, KEY, NAMES)
    for function in SECTIONS:
        function(Steps(function.__name__.replace("_", " ")), manager)
        # CPython <= 3.13.0 closes a session when it collects one of two proxies of a queue.
        gc.collect()
