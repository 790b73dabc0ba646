"""What somebody who knows the key cannot do: run code where only queues are served."""

import multiprocessing
import os
import pickle
import queue
from multiprocessing.connection import Client
from multiprocessing.managers import RebuildProxy, Token

import manyhands
import manyhands.managers
import pytest
from conftest import TIMEOUT
from manyhands.managers import RemoteError, dispatch

KEY = b"a key of 16 bytes"


class Touch:
    """What leaves a file behind where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def touch(tmp_path):
    """Something that must not be unpickled, and is not at the end."""
    yield Touch(tmp_path / "touched")
    assert not os.path.exists(str(tmp_path / "touched"))


@pytest.fixture
def served(manager_class, context):
    """A server of queues alone, with its manager."""
    tasks, pipe = queue.Queue(), context.Queue()
    manager_class.register("tasks", lambda: tasks)
    manager_class.register("made", queue.Queue)
    manager_class.register("sized", lambda maxsize: queue.Queue(maxsize))
    manager_class.register("pipe", lambda: pipe)
    with manager_class(("127.0.0.1", 0), KEY, ctx=context) as manager:
        yield manager


def ask(manager, request, session=None):
    """The reply to a request that is sent as it is, of the manager or in a session."""
    with Client(manager.address, authkey=KEY) as connection:
        if session is not None:
            dispatch(connection, None, "accept_connection", (session,))
        connection.send_bytes(request)
        return connection.recv()


def ident_of(proxy):
    return proxy._token.id


def test_a_control_request_is_read_and_not_unpickled(served, touch):
    requests = [
        (None, "create", ("tasks", touch), {}),
        (None, "create", ("made", touch), {}),
        (None, "create", ("made",), {"maxsize": touch}),
        (None, "create", ("sized", touch), {}),
        (None, "create", (touch,), {}),
        (None, "get_methods", (touch,), {}),
        (None, "decref", (touch,), {}),
        (None, "shut" + "up", (touch,), {}),
        (None, touch, (), {}),
        (touch, "create", (), {}),
        touch,
        [touch],
    ]
    for request in requests:
        kind, text = ask(served, pickle.dumps(request))
        assert kind == "#TRACEBACK", (request, text)
    served.sized(3).put("the server goes on")


def test_junk_is_refused(served, touch):
    for request in (b"", b"junk", pickle.dumps(touch)[:-1], pickle.dumps(touch) + b"..", b"N."):
        for session in (None, "MainProcess"):
            kind, _ = ask(served, request or b"\0", session)
            assert kind == "#TRACEBACK"


def test_a_call_of_an_object_that_is_not_there_is_not_unpickled(served, touch):
    for ident in ("7f3a20", "0", "", touch, None):
        kind, text = ask(served, pickle.dumps((ident, "put", (touch,), {})), "MainProcess")
        assert kind == "#TRACEBACK", text
    many = pickle.dumps(("7f3a20", "put", (touch,) * 200, {}))
    assert ask(served, many, "MainProcess")[0] == "#TRACEBACK"


def test_an_item_is_not_unpickled_whatever_it_holds(served, touch):
    proxy = served.tasks()
    for item in (touch, ("RebuildProxy", touch), Proxy(touch), Proxy(ident_of(proxy))):
        for method, args in (("put", (item,)), ("put", ([item, touch], True, 1))):
            request = pickle.dumps((ident_of(proxy), method, args, {}))
            assert ask(served, request, "MainProcess") == ("#RETURN", None)
    with manyhands.connect(served.address, KEY) as client:
        client.queue("tasks").put_many([("RebuildProxy", touch)])
        assert client.queue("tasks").qsize() == 9


class Proxy:
    """What is pickled like a proxy, with this in the place of an ident."""

    def __init__(self, ident):
        self._ident = ident

    def __reduce__(self):
        address = ("127.0.0.1", 1)
        return RebuildProxy, (open, Token("tasks", address, self._ident), "pickle", {})


def test_what_is_left_when_a_server_stops_is_not_unpickled(served, touch):
    for proxy in (served.tasks(), served.pipe()):
        proxy.put(touch)
    served.shutdown()


def test_what_was_left_is_unpickled_by_who_takes_it(manager_class):
    tasks = queue.Queue()
    manager_class.register("tasks", lambda: tasks)
    for number in range(2):
        with manager_class(ctx=multiprocessing.get_context("spawn")) as manager:
            manager.tasks().put(("left", number))
    assert [tasks.get(timeout=TIMEOUT), tasks.get(timeout=TIMEOUT)] == [("left", 0), ("left", 1)]


def test_a_reply_names_no_path_of_the_server(manager_class, context):
    def fail():
        raise LookupError("no such thing")

    manager_class.register("fail", fail)
    manager_class.register("counter", Counter)
    with manager_class(("127.0.0.1", 0), KEY, ctx=context) as manager:
        for call in (manager.fail, lambda: manager.counter()._callmethod("_private")):
            with pytest.raises(RemoteError) as refused:
                call()
            assert 'File "' in str(refused.value)
            assert os.sep not in str(refused.value).replace("</", "")
        with pytest.raises(RemoteError, match="LookupError: no such thing"):
            manager.fail()


class Counter:
    """A class of a user's."""

    def take(self, thing):
        return thing


# ---- what goes on working


def test_objects_in_python_take_any_argument(manager_class, context):
    manager_class.register("counter", Counter)
    manager_class.register("made", lambda *_: Counter())
    with manager_class(("127.0.0.1", 0), KEY, ctx=context) as manager:
        assert manager.counter().take({1, 2.5, ("a", b"b")}) == {1, 2.5, ("a", b"b")}
        assert manager.counter().take(LookupError("anything")).args == ("anything",)
        manager.made(1, [2.5, None, {"a": (True, b"b")}], 10**30)
        # Now it is known what that name makes.
        manager.made(ValueError("anything"))


def test_a_factory_of_unknown_things_says_why_it_takes_no_objects(manager_class, context):
    manager_class.register("made", lambda *_: Counter())
    with manager_class(("127.0.0.1", 0), KEY, ctx=context) as manager:
        with pytest.raises(RemoteError, match="the arguments for 'made' are more than plain data"):
            manager.made(ValueError("anything"))


def test_a_factory_gets_plain_arguments_as_they_were(manager_class, context):
    made = queue.Queue()

    def make(*args, **kwds):
        made.put((args, kwds))
        return made

    manager_class.register("made", make)
    args = (1, -1, 2**70, -(2**70), 1.5, "é", b"\xff", bytearray(b"x"), None, True, False)
    args += ([1, [2]], (), (1,), {"a": {1: 2}}, {1, 2}, frozenset([3]))
    with manager_class(("127.0.0.1", 0), KEY, ctx=context) as manager:
        assert manager.made(*args, key={"k": args}).get() == (args, {"key": {"k": args}})


def test_a_proxy_in_an_item_keeps_its_object(manager_class, context):
    manager_class.register("box", queue.Queue)
    manager_class.register("inner", queue.Queue)
    manager_class.register("counter", Counter)
    # Who finds a proxy in an item knows no other key than that of its process.
    with manager_class(ctx=context) as manager:
        box = manager.box()
        inner, counter = manager.inner(), manager.counter()
        inner.put("inside")
        box.put({"text": "RebuildProxy", "proxies": [inner, (counter,)]})
        del inner, counter
        # Control calls are answered in order: the references are given back by now.
        manager._number_of_objects()
        found = box.get(timeout=TIMEOUT)["proxies"]
        assert found[0].get(timeout=TIMEOUT) == "inside"
        assert found[1][0].take(1) == 1
