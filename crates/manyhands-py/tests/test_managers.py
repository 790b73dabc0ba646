"""The managers: queues in Rust, everything else in Python, as in the standard library."""

import _thread
import gc
import multiprocessing
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import warnings

import manyhands.managers
import pytest
from conftest import TIMEOUT, eventually, finish
from manyhands import _release
from manyhands.managers import BaseManager, BaseProxy, RemoteError, SyncManager


def is_in_rust(proxy):
    return "." in proxy._token.id


class Counter:
    """A class of a user's."""

    def __init__(self):
        self.count = 0

    def add(self, number=1):
        self.count += number
        return self.count

    def numbers(self):
        return iter(range(self.count))

    def fail(self):
        raise LookupError("no such thing")

    def _private(self):
        return "private"


def connect(manager, *names):
    """Another client of the same server."""
    other = type("Other", (BaseManager,), {})
    for name in names:
        other.register(name)
    client = other(manager.address, manager._authkey)
    client.connect()
    return client


# ---- queues


def test_an_adopted_queue_keeps_its_bound_and_what_it_holds(start):
    original = queue.Queue(3)
    original.put("first")
    original.put(("second", 2))
    proxy = start(tasks=lambda: original).tasks()
    assert is_in_rust(proxy)
    assert (proxy.qsize(), proxy.full(), proxy.empty()) == (2, False, False)
    proxy.put("third")
    with pytest.raises(queue.Full):
        proxy.put("fourth", timeout=0.01)
    assert [proxy.get() for _ in range(3)] == ["first", ("second", 2), "third"]
    with pytest.raises(queue.Empty):
        proxy.get_nowait()


def test_a_lifo_queue_stays_one(start):
    original = queue.LifoQueue()
    original.put(1)
    original.put(2)
    proxy = start(tasks=lambda: original).tasks()
    proxy.put(3)
    assert is_in_rust(proxy)
    assert [proxy.get() for _ in range(3)] == [3, 2, 1]


def test_items_taken_before_are_still_unfinished(start):
    original = queue.Queue()
    for number in range(3):
        original.put(number)
    original.get()
    proxy = start(tasks=lambda: original).tasks()
    for _ in range(3):
        proxy.task_done()
    proxy.join()
    with pytest.raises(ValueError, match="called too many times"):
        proxy.task_done()


@pytest.mark.parametrize("kind", [queue.PriorityQueue, queue.SimpleQueue])
def test_other_queues_stay_in_python(start, kind):
    original = kind()
    proxy = start(tasks=lambda: original).tasks()
    assert not is_in_rust(proxy)
    proxy.put((2, "b"))
    proxy.put((1, "a"))
    assert sorted([proxy.get(), proxy.get()]) == [(1, "a"), (2, "b")]


def test_a_simple_queue_that_is_made_for_a_client_is_in_rust(start):
    proxy = start(tasks=queue.SimpleQueue).tasks()
    assert is_in_rust(proxy)
    proxy.put(1)
    assert (proxy.get(), proxy.empty()) == (1, True)
    with pytest.raises(queue.Empty):
        proxy.get_nowait()
    with pytest.raises(AttributeError):
        proxy.task_done  # noqa: B018


def test_a_queue_registered_with_fewer_methods_has_no_others(manager_class, start):
    original = queue.Queue()
    manager_class.register("tasks", lambda: original, exposed=["put", "qsize"])
    proxy = start().tasks()
    proxy.put(1)
    assert proxy.qsize() == 1
    with pytest.raises(RemoteError):
        proxy._callmethod("get")


def test_every_client_gets_the_same_queue(start):
    original = queue.Queue()
    manager = start(tasks=lambda: original)
    ours = manager.tasks()
    theirs = connect(manager, "tasks").tasks()
    ours.put("hello")
    assert theirs.get(timeout=TIMEOUT) == "hello"
    assert manager._number_of_objects() == 1


def test_a_queue_made_for_one_client_goes_with_its_last_proxy(start):
    manager = start(fresh=queue.Queue)
    first, second = manager.fresh(), manager.fresh()
    first.put(1)
    assert second.empty()
    del first, second
    eventually(lambda: manager._number_of_objects() == 0)


def test_a_proxy_travels_through_a_queue(context):
    with SyncManager(ctx=context) as manager:
        box = manager.Queue()
        box.put(manager.list([1, 2, 3]))
        # The only proxy is in the queue now.
        assert list(box.get()) == [1, 2, 3]


def test_no_item_is_lost_when_its_getter_is_killed(start):
    original = queue.Queue()
    manager = start(tasks=lambda: original)
    proxy = manager.tasks()
    source = (
        "import sys\nfrom multiprocessing.managers import BaseManager\n"
        "BaseManager.register('tasks')\n"
        "m = BaseManager(('127.0.0.1', int(sys.argv[1])), b'secret')\n"
        "m.connect()\nq = m.tasks()\nq.qsize()\nprint('up', flush=True)\nq.get()\n"
    )
    command = [sys.executable, "-c", source, str(manager.address[1])]
    getter = subprocess.Popen(command, stdout=subprocess.PIPE)
    getter.stdout.readline()
    getter.kill()
    getter.wait()
    for number in range(5):
        proxy.put(number)
    assert [proxy.get(timeout=TIMEOUT) for _ in range(5)] == list(range(5))
    getter.stdout.close()


# ---- direct use beside the manager, in the process that serves


@pytest.fixture
def served(manager_class):
    """Serves callables from a thread of this process; gives a client."""
    servers = []

    def serve(**callables):
        for name, function in callables.items():
            manager_class.register(name, function)
        server = manager_class(("127.0.0.1", 0), b"secret").get_server()
        server.serve_aside()
        servers.append(server)
        client = manager_class(server.address, b"secret")
        client.connect()
        return client

    yield serve
    for server in servers:
        server.stop()


def test_the_process_that_serves_a_queue_uses_it_too(served):
    original = queue.Queue(2)
    proxy = served(tasks=lambda: original).tasks()
    assert isinstance(original, queue.Queue)
    original.put("direct")
    assert proxy.get(timeout=TIMEOUT) == "direct"
    proxy.put("by proxy")
    assert original.qsize() == 1
    assert original.get(timeout=TIMEOUT) == "by proxy"
    assert original.unfinished_tasks == 2
    with pytest.raises(queue.Empty):
        original.get(timeout=0.01)
    with pytest.raises(ValueError, match="non-negative"):
        original.get(timeout=-1)
    original.put(1)
    original.put(2)
    with pytest.raises(queue.Full):
        original.put_nowait(3)


def in_thread(target, *args):
    results = []
    thread = threading.Thread(target=lambda: results.append(target(*args)), daemon=True)
    thread.start()
    return thread, results


def test_a_thread_that_waits_already_gets_its_item(served):
    original = queue.Queue()
    thread, results = in_thread(original.get)
    eventually(lambda: original.not_empty._waiters)
    served(tasks=lambda: original).tasks().put("at last")
    thread.join(TIMEOUT)
    assert results == ["at last"]


def test_a_thread_that_waits_for_room_already_gets_it(served):
    original = queue.Queue(1)
    original.put("first")
    thread, _ = in_thread(original.put, "second")
    eventually(lambda: original.not_full._waiters)
    proxy = served(tasks=lambda: original).tasks()
    assert [proxy.get(timeout=TIMEOUT), proxy.get(timeout=TIMEOUT)] == ["first", "second"]
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def test_a_thread_that_joins_already_is_released(served):
    original = queue.Queue()
    original.put(1)
    thread, _ = in_thread(original.join)
    eventually(lambda: original.all_tasks_done._waiters)
    proxy = served(tasks=lambda: original).tasks()
    proxy.get()
    proxy.task_done()
    thread.join(TIMEOUT)
    assert not thread.is_alive()


@pytest.mark.parametrize("kind", [multiprocessing.Queue, multiprocessing.JoinableQueue])
def test_a_queue_of_multiprocessing_works_beside_the_manager(start, context, kind):
    original = getattr(context, kind.__name__)()
    original.put("early")
    eventually(lambda: not original.empty())
    proxy = start(tasks=lambda: original).tasks()
    assert is_in_rust(proxy)
    assert (proxy.qsize(), original.qsize(), original.empty()) == (1, 1, False)
    assert proxy.get(timeout=TIMEOUT) == "early"
    original.put("direct")
    assert proxy.get(timeout=TIMEOUT) == "direct"
    proxy.put("by proxy")
    assert original.get(timeout=TIMEOUT) == "by proxy"
    with pytest.raises(queue.Empty):
        original.get(timeout=0.01)


def test_a_thread_that_waits_at_the_pipe_gets_its_item(start, context):
    original = context.Queue()
    thread, results = in_thread(original.get)
    eventually(lambda: not original._rlock.acquire(False) or original._rlock.release())
    start(tasks=lambda: original).tasks().put("at last")
    thread.join(TIMEOUT)
    assert results == ["at last"]


def test_a_local_process_can_also_access_the_queue(start, context):
    original = context.Queue()
    manager = start(tasks=lambda: original)
    process = context.Process(target=original.put, args=("local hello",))
    process.start()
    assert manager.tasks().get(timeout=TIMEOUT) == "local hello"
    process.join()


def test_what_is_left_at_the_end_is_still_in_the_pipe(start, context):
    original = context.Queue()
    manager = start(tasks=lambda: original)
    manager.tasks().put("left")
    manager.shutdown()
    assert original.get(timeout=TIMEOUT) == "left"


def test_what_is_left_at_the_end_is_still_in_the_queue(manager_class):
    original = queue.LifoQueue()
    manager_class.register("tasks", lambda: original)
    with manager_class(ctx=multiprocessing.get_context("spawn")) as manager:
        proxy = manager.tasks()
        proxy.put(1)
        proxy.put(2)
    assert type(original) is queue.LifoQueue
    assert (original.qsize(), original.unfinished_tasks) == (2, 2)
    assert [original.get_nowait(), original.get_nowait()] == [2, 1]


# ---- objects in Python


def test_an_object_of_a_users_class_is_served(start):
    proxy = start(counter=Counter).counter()
    assert (proxy.add(), proxy.add(number=5)) == (1, 6)
    with pytest.raises(LookupError, match="no such thing"):
        proxy.fail()
    with pytest.raises(RemoteError, match="_private"):
        proxy._callmethod("_private")
    with pytest.raises(TypeError):
        proxy.add(1, 2, 3)


def test_a_result_may_stay_at_the_server(manager_class, start):
    manager_class.register(
        "Iterator", proxytype=manyhands.managers.IteratorProxy, create_method=False
    )
    manager_class.register("counter", Counter, method_to_typeid={"numbers": "Iterator"})
    proxy = start().counter()
    proxy.add(4)
    assert list(proxy.numbers()) == [0, 1, 2, 3]


def test_a_lock_belongs_to_a_thread_of_a_client(context):
    with SyncManager(ctx=context) as manager:
        lock = manager.RLock()
        with lock, lock:
            _, results = in_thread(lock.acquire, False)
            eventually(lambda: results)
            assert results == [False]
        assert lock.acquire(False)
        lock.release()


def test_large_requests_and_replies_arrive(context):
    with SyncManager(ctx=context) as manager:
        numbers = manager.list(range(200_000))
        assert numbers[:] == list(range(200_000))


def collect_and_count():
    gc.collect()
    return Counter()


def test_a_proxy_may_be_collected_by_a_thread_of_its_own_server(start):
    manager = start(counter=Counter, collector=collect_and_count)
    counter = manager.counter()
    cycle = [counter]
    cycle.append(cycle)
    gc.disable()
    try:
        del counter, cycle
        collector = manager.collector()
    finally:
        gc.enable()
    # A server in another process has not seen the garbage of this one.
    gc.collect()
    assert collector.add() == 1
    eventually(lambda: manager._number_of_objects() == 1)


def test_a_thread_that_has_hardly_begun_releases_no_proxy_itself():
    answers = queue.Queue()
    # A thread is not known by its number until it has told who started it that it runs.
    _thread.start_new_thread(lambda: answers.put(_release.is_servers_thread()), ())
    threading.Thread(target=lambda: answers.put(_release.is_servers_thread())).start()
    assert sorted([answers.get(timeout=TIMEOUT), answers.get(timeout=TIMEOUT)]) == [False, True]


def test_queues_and_objects_share_a_session(context):
    with SyncManager(ctx=context) as manager:
        tasks, seen = manager.Queue(), manager.dict()
        for number in range(50):
            tasks.put(number)
            seen[tasks.get()] = True
        assert sorted(seen.keys()) == list(range(50))


def test_a_name_that_nobody_registered_is_refused(start):
    manager = start(tasks=queue.Queue)
    with pytest.raises(RemoteError, match="KeyError: 'other'"):
        connect(manager, "other").other()


# ---- managers


def test_addresses_are_those_of_the_standard_library(start, tmp_path):
    assert start().address[0] == "127.0.0.1"
    path = str(tmp_path / "socket")
    manager = start(path, tasks=queue.Queue)
    assert manager.address == path
    assert manager.tasks().empty()
    assert os.path.exists(start(None).address)


def test_an_open_address_with_a_weak_key_is_served_with_a_warning(manager_class, context, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with manager_class(("", 0), b"secret", ctx=context) as manager:
            assert manager.address[0] == "0.0.0.0"
    assert "0.0.0.0:0 can be reached from other machines" in capfd.readouterr().err


def test_a_warning_that_nobody_can_read_ends_nothing(manager_class, monkeypatch):
    for nowhere in (None, open(os.devnull)):
        monkeypatch.setattr(sys, "stderr", nowhere)
        manager_class(("", 0), b"secret").get_server().stop()
        if nowhere is not None:
            nowhere.close()


# What belongs to nobody: it is for documentation.
FOREIGN = "192.0.2.1"


@pytest.mark.parametrize("address", ["taken", FOREIGN])
def test_an_address_where_nobody_can_listen_is_named(start, address, capfd):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        host, port = taken.getsockname() if address == "taken" else (FOREIGN, 5000)
        # Scripts for the standard managers may expect EOFError.
        for expected in (OSError, EOFError):
            with pytest.raises(expected, match="connect.. instead of start") as refused:
                start((host, port), b"a key of 16 bytes")
            assert "cannot listen at {}:{}: ".format(host, port) in str(refused.value)
    assert capfd.readouterr() == ("", "")
    assert not multiprocessing.active_children()


def test_a_wrong_key_is_refused(start):
    manager = start(tasks=queue.Queue)
    with pytest.raises(multiprocessing.AuthenticationError):
        BaseManager(manager.address, b"another").connect()


def test_a_silent_peer_is_given_up(monkeypatch):
    monkeypatch.setattr(manyhands.managers, "_SILENCE_TIMEOUT", 0.01)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        with pytest.raises(TimeoutError, match="no word from the server"):
            BaseManager(silent.getsockname(), b"secret").connect()


def test_a_closed_port_is_refused():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = closed.getsockname()
    with pytest.raises(ConnectionRefusedError):
        BaseManager(address, b"secret").connect()


def test_any_client_may_stop_the_server(start):
    manager = start(tasks=queue.Queue)
    client = connect(manager)
    stop(client)
    manager.join(TIMEOUT)
    with pytest.raises(OSError):
        client.connect()


def stop(client):
    with client._Client(client._address, authkey=client._authkey) as connection:
        manyhands.managers.dispatch(connection, None, "shutdown")


def test_a_port_is_free_after_shutdown(start):
    first = start()
    first.shutdown()
    assert start(first.address).address == first.address


def test_an_initializer_runs_and_leaves_signals_alone(context):
    before = signal.getsignal(signal.SIGINT)
    with SyncManager() as outer:
        seen = outer.list()
        manager = SyncManager(ctx=context)
        manager.start(ignore_interrupts, (seen,))
        manager.shutdown()
        assert list(seen) == ["initialized"]
    assert signal.getsignal(signal.SIGINT) is before


def ignore_interrupts(seen):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    seen.append("initialized")


def test_xml_is_left_to_the_standard_server(manager_class):
    manager_class.register("tasks", queue.Queue)
    manager = manager_class(serializer="xmlrpclib", ctx=multiprocessing.get_context("fork"))
    with manager:
        tasks = manager.tasks()
        tasks.put("hello")
        assert tasks.get() == "hello"
        assert not is_in_rust(tasks)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_keep_the_port(served):
    client = served(tasks=queue.Queue)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        stop(client)
        eventually(lambda: is_refused(client))
    finally:
        os.close(writer)
        os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_server_that_has_stopped_takes_no_descriptor_from_a_forked_child(manager_class):
    server = manager_class(("127.0.0.1", 0), b"secret").get_server()
    server.serve_aside()
    server.stop()
    # These reuse the numbers of its sockets.
    pipes = [os.pipe() for _ in range(10)]
    child = os.fork()
    if child == 0:
        for reader, writer in pipes:
            os.write(writer, b"x")
            os.read(reader, 1)
        os._exit(7)
    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 7
    for descriptor in sum(pipes, ()):
        os.close(descriptor)


def is_refused(client):
    try:
        client.connect()
    except ConnectionRefusedError:
        return True
    except (ConnectionError, EOFError):
        pass
    return False


def test_a_blocked_get_can_be_interrupted(program):
    process = program(
        "server.py",
        """
        import queue, threading
        from manyhands.managers import BaseManager

        tasks = queue.Queue()
        BaseManager.register("tasks", lambda: tasks)
        server = BaseManager(("127.0.0.1", 0), b"secret").get_server()
        server.serve_aside()
        client = BaseManager(server.address, b"secret")
        client.connect()
        client.tasks()
        try:
            print("up", flush=True)
            tasks.get()
        except KeyboardInterrupt:
            print("interrupted")
        """,
    ).start()
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert finish(process) == ("interrupted\n", "", 0)


def test_serving_for_ever_ends_with_an_interrupt(program):
    process = program(
        "server.py",
        """
        import queue
        from manyhands.managers import BaseManager

        tasks = queue.Queue()
        BaseManager.register("tasks", lambda: tasks)
        server = BaseManager(("127.0.0.1", 0), b"secret").get_server()
        print(server.address[1], flush=True)
        server.serve_forever()
        """,
    ).start()
    port = int(process.stdout.readline())
    BaseManager(("127.0.0.1", port), b"secret").connect()
    process.send_signal(signal.SIGINT)
    assert finish(process) == ("", "", 0)


def test_the_names_are_those_of_the_standard_module():
    for name in manyhands.managers._standard.__all__:
        assert hasattr(manyhands.managers, name)
    assert issubclass(BaseManager, manyhands.managers._standard.BaseManager)
    assert issubclass(SyncManager, manyhands.managers._standard.SyncManager)
    assert BaseProxy is manyhands.managers._standard.BaseProxy
