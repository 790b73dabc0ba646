"""`manyhands.connect`: the client, on our server and on the standard library's."""

import multiprocessing
import multiprocessing.managers
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection

import manyhands
import manyhands.managers
import pytest
from conftest import KEY, TIMEOUT, eventually, finish, free_port, in_thread
from manyhands import _net


@pytest.fixture
def client(address):
    with manyhands.connect(address, KEY) as client:
        yield client


def test_a_queue_has_the_methods_of_queue_dot_queue(client):
    tasks = client.queue("tasks")
    tasks.put({"a": [1, 2, 3]})
    tasks.put(None, timeout=1)
    tasks.put_nowait(b"bytes")
    assert (tasks.qsize(), tasks.full(), tasks.empty()) == (3, True, False)
    with pytest.raises(queue.Full):
        tasks.put_nowait("one too many")
    with pytest.raises(queue.Full):
        tasks.put("one too many", timeout=0.01)
    assert [tasks.get(), tasks.get(timeout=1), tasks.get_nowait()] == [
        {"a": [1, 2, 3]},
        None,
        b"bytes",
    ]
    with pytest.raises(queue.Empty):
        tasks.get_nowait()
    with pytest.raises(queue.Empty):
        tasks.get(timeout=0.01)
    with pytest.raises(ValueError, match="non-negative"):
        tasks.get(timeout=-1)
    for _ in range(3):
        tasks.task_done()
    tasks.join()
    with pytest.raises(ValueError, match="called too many times"):
        tasks.task_done()


def test_many_items_go_in_one_call(client):
    tasks = client.queue("tasks")
    with pytest.raises(queue.Full):
        tasks.put_many(range(10), block=False)
    assert tasks.get_many(2) == [0, 1]
    assert tasks.get_many(10) == [2]
    with pytest.raises(queue.Empty):
        tasks.get_many(10, timeout=0.01)


def test_a_waiting_get_lets_other_threads_run(client):
    tasks = client.queue("tasks")
    results = []
    thread = threading.Thread(target=lambda: results.append(tasks.get(timeout=TIMEOUT)))
    thread.start()
    client.queue("tasks").put("hello")
    thread.join(TIMEOUT)
    assert results == ["hello"]


def test_a_name_that_nobody_registered_is_an_error(client):
    with pytest.raises(manyhands.ManyhandsError, match="no queue is called 'others'"):
        client.queue("others")


def test_a_wrong_key_is_an_authentication_error(address):
    with pytest.raises(multiprocessing.AuthenticationError):
        manyhands.connect(address, b"another key")


def test_a_server_that_knows_only_md5_is_refused_when_told(address):
    with socket.create_connection(address) as connection:
        is_old = len(connection.recv(100)) == 4 + len(b"#CHALLENGE#") + 20
    if is_old:
        with pytest.raises(multiprocessing.AuthenticationError, match="only HMAC-MD5"):
            manyhands.connect(address, KEY, no_md5=True)
    else:
        manyhands.connect(address, KEY, no_md5=True).close()


def test_a_server_without_the_key_cannot_have_another_connection_answer_for_it():
    errors = []

    def connect(address):
        try:
            manyhands.connect(address, KEY)
        except Exception as error:
            errors.append(str(error))

    with socket.create_server(("127.0.0.1", 0)) as rogue:
        clients = [threading.Thread(target=connect, args=(rogue.getsockname(),)) for _ in range(2)]
        for client in clients:
            client.start()
        asked, oracle = (Connection(rogue.accept()[0].detach()) for _ in range(2))
        with asked, oracle:
            asked.send_bytes(b"#CHALLENGE#{sha256}" + bytes(40))
            asked.recv_bytes()
            asked.send_bytes(b"#WELCOME#")
            oracle.send_bytes(asked.recv_bytes())
            with pytest.raises(EOFError):
                oracle.recv_bytes()
        for client in clients:
            client.join(TIMEOUT)
    assert any("challenge of another client" in error for error in errors)


def test_a_key_that_is_no_bytes_is_named(address):
    with pytest.raises(TypeError, match="authkey must be bytes, not str"):
        manyhands.connect(address, "a key")


def test_a_closed_port_is_refused():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = closed.getsockname()
    with pytest.raises(ConnectionRefusedError):
        manyhands.connect(address, KEY, reconnect=0)


def test_a_blocked_get_can_be_interrupted(address, program):
    process = program(
        "worker.py",
        """
        import sys
        import manyhands

        with manyhands.connect(("127.0.0.1", int(sys.argv[1])), b"a key of 16 bytes") as client:
            tasks = client.queue("tasks")
            try:
                print("up", flush=True)
                tasks.get()
            except KeyboardInterrupt:
                print("interrupted")
        """,
    ).start(args=[str(address[1])])
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert finish(process) == ("interrupted\n", "", 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_connections_of_its_own(client):
    tasks = client.queue("tasks")
    tasks.put("first")
    child = os.fork()
    if child == 0:
        try:
            is_first = tasks.get(timeout=TIMEOUT) == "first"
            # What a process has in hand that just ends goes to others.
            client.close()
            os._exit(7 if is_first else 1)
        finally:
            os._exit(2)
    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 7
    tasks.put("second")
    assert tasks.get(timeout=TIMEOUT) == "second"


# ---- puts ahead of their answers, gets ahead of their calls


def test_puts_in_a_pipeline_arrive_in_order(client):
    tasks = client.queue("many", pipeline=True)
    for number in range(5000):
        tasks.put(number)
    tasks.flush()
    assert client.queue("many").qsize() == 5000
    assert tasks.get_many(1) + [tasks.get() for _ in range(10)] == list(range(11))


def test_any_other_call_sees_what_went_ahead(client):
    tasks, others = client.queue("many", pipeline=True), client.queue("many")
    for number in range(100):
        tasks.put(number)
    assert others.qsize() == 100


def test_a_pipeline_waits_for_room_as_a_put_does(client):
    tasks = client.queue("tasks", pipeline=True)
    taken = []
    other = threading.Thread(
        target=lambda: taken.extend(client.queue("tasks").get(timeout=TIMEOUT) for _ in range(50))
    )
    other.start()
    for number in range(50):
        tasks.put(number)
    tasks.flush()
    other.join(TIMEOUT)
    assert taken == list(range(50))


def test_what_a_pipeline_could_not_put_is_told(served):
    with served({"tasks": queue.Queue()}) as client:
        tasks = client.queue("tasks", pipeline=True)
        client.queue("tasks").shutdown()
        with pytest.raises(getattr(queue, "ShutDown", queue.Full)) as refused:
            tasks.put("late")
            tasks.flush()
        assert refused.value.items == ["late"]
        tasks.flush()


@pytest.mark.parametrize("context", ["", "multiprocessing.get_context('fork')", "spawn"])
def test_what_is_in_a_pipeline_arrives_when_its_process_ends(client, program, context):
    process = program(
        "master.py",
        """
        import multiprocessing, sys
        import manyhands

        def put():
            client = manyhands.connect(("127.0.0.1", int(sys.argv[1])), b"a key of 16 bytes")
            tasks = client.queue("many", pipeline=True)
            for number in range(100):
                tasks.put(number)

        if __name__ == "__main__":
            if sys.argv[2]:
                process = multiprocessing.get_context(sys.argv[2]).Process(target=put)
                process.start()
                process.join()
            else:
                put()
        """,
    ).start(args=[str(client.address[1]), "fork" if "fork" in context else context])
    assert finish(process) == ("", "", 0)
    assert client.queue("many").get_many(100, timeout=TIMEOUT) == list(range(100))


def test_items_fetched_ahead_go_back_when_nobody_asked_for_them(client):
    many = client.queue("many")
    many.put_many(range(10))
    with manyhands.connect(client.address, KEY) as other:
        tasks = other.queue("many", prefetch=5)
        assert [tasks.get(), tasks.get()] == [0, 1]
        assert many.qsize() == 5
    assert sorted(many.get_many(10)) == list(range(2, 10))


def test_a_put_that_finds_no_room_says_how_many_were_added(client):
    with pytest.raises(queue.Full) as full:
        client.queue("tasks").put_many(range(10), timeout=0.01)
    assert full.value.added == 3


# ---- what only a queue of manyhands can do


def test_a_lease_ends_as_its_holder_says(served):
    with served({"tasks": queue.Queue()}) as client:
        tasks = client.queue("tasks")
        tasks.put_many(["a", "b", "c"])
        first, second, third = tasks.lease_many(3)
        assert (first.item, first.attempt, tasks.qsize()) == ("a", 1, 0)
        first.ack()
        second.nack(delay=0, reason="not today")
        third.extend(30)
        again = tasks.lease(timeout=TIMEOUT)
        assert (again.item, again.attempt) == ("b", 2)
        with pytest.raises(manyhands.StaleLease):
            first.ack()
        again.ack()
        third.ack()
        assert tasks.empty()


def test_a_lease_fails_with_the_exception_that_ends_its_block(served):
    with served({"tasks": queue.Queue()}) as client:
        tasks = client.queue("tasks")
        tasks.put(1)
        with pytest.raises(ZeroDivisionError), tasks.lease() as lease:
            assert lease.item / 0
        with tasks.lease(timeout=TIMEOUT) as lease:
            assert lease.attempt == 2


def test_a_task_that_failed_comes_back_within_a_second_but_not_at_once(served):
    with served({"tasks": queue.Queue()}) as client:
        tasks = client.queue("tasks")
        tasks.put(1)
        tasks.lease().nack()
        [task] = tasks.peek(state="delayed")
        assert 0 < task.due_in <= 1
        assert tasks.lease(timeout=TIMEOUT).attempt == 2


def test_a_bad_task_does_not_kill_all_workers_at_once(server):
    failed_at = []

    def work(tasks):
        with pytest.raises(ZeroDivisionError), tasks.lease(timeout=TIMEOUT) as lease:
            failed_at.append(time.monotonic())
            lease.item / 0  # noqa: B018

    with manyhands.connect(server("tasks,attempts=3"), KEY) as client:
        tasks = client.queue("tasks")
        workers = [in_thread(lambda: work(tasks))[0] for _ in range(3)]
        tasks.put(1)
        for worker in workers:
            worker.join(TIMEOUT)
    first, second, third = failed_at
    assert second - first > 0.3
    assert third - second > 0.6, "the pause doubles"


def test_a_task_can_be_given_up_and_looked_at(server):
    address = server("tasks,dead=letters,attempts=5", "letters")
    with manyhands.connect(address, KEY) as client:
        tasks, letters = client.queue("tasks"), client.queue("letters")
        numbers = [tasks.put(item, id=True) for item in ("bad", "good")]
        assert [found.task for found in tasks.peek()] == numbers
        lease = tasks.lease()
        assert lease.task == numbers[0]
        [held] = tasks.peek(state="leased")
        assert (held.task, held.item, held.attempt) == (numbers[0], "bad", 1)
        assert "python pid={}".format(os.getpid()) in held.worker
        lease.nack(reason="no retry mends it", give_up=True)
        [letter] = letters.peek(5)
        assert (letter.item, letter.queue, letter.origin) == ("bad", "tasks", numbers[0])
        [(attempt, worker, reason)] = letter.failures
        assert (attempt, reason) == (1, "no retry mends it")
        assert "python pid={} at ".format(os.getpid()) in worker, "who had it"
        assert letters.peek(items=False)[0].item is None
        assert letters.qsize() == 1, "a look takes nothing"
        assert letters.redrive(task=letter.task + 1) == 0, "there is no such letter"
        assert letters.redrive(task=letter.task) == 1
        assert [found.item for found in tasks.peek()] == ["good", "bad"]
        assert tasks.take() == ("good", None)
        tasks.lease().nack(reason="again", give_up=True)
        taken = letters.take(timeout=TIMEOUT)
        assert (taken.item, taken.info.queue) == ("bad", "tasks")
        assert any("again" in cause for cause in taken.info.history)
        tasks.put_many(range(3))
        assert tasks.purge() == 3


def test_a_first_connection_waits_for_its_server(server):
    port = free_port()
    server.port = port
    thread, connected = in_thread(lambda: manyhands.connect(("127.0.0.1", port), KEY))
    server("tasks")
    thread.join(TIMEOUT)
    with connected[0] as client:
        assert client.queue("tasks").empty()


def test_a_lease_that_ran_out_is_stale_once_somebody_else_has_the_item(served):
    with served({"tasks": queue.Queue()}) as client:
        tasks = client.queue("tasks")
        tasks.put("a")
        late = tasks.lease(hold=0.01)
        tasks.lease(timeout=TIMEOUT).ack()
        with pytest.raises(manyhands.StaleLease):
            late.ack()


def test_a_put_has_options(served):
    with served({"tasks": queue.Queue()}) as client:
        tasks = client.queue("tasks")
        assert tasks.put("a", key="k")
        assert not tasks.put("b", key="k")
        tasks.put("later", delay=0.05)
        tasks.put("soon gone", expires=0.001)
        assert [tasks.get(timeout=TIMEOUT), tasks.get(timeout=TIMEOUT)] in (
            ["a", "later"],
            ["a", "soon gone"],
        )


def test_a_queue_of_the_standard_library_says_what_it_cannot(served):
    with served({"tasks": NoQueue()}) as client:
        tasks = client.queue("tasks")
        for refused in (tasks.lease, lambda: tasks.put(1, key="k")):
            with pytest.raises(manyhands.ManyhandsError, match="needs a queue of manyhands"):
                refused()
        tasks.put_many([1, 2])
        assert tasks.get_many(2) == [1, 2]


class NoQueue(queue.Queue):
    """A class of a user's stays in Python."""


# ---- connections that break


def test_a_result_goes_where_the_server_says(server):
    address = server("tasks,results=answers", "answers")
    with manyhands.connect(address, KEY) as client:
        tasks, answers = client.queue("tasks"), client.queue("answers")
        tasks.put(7)
        with tasks.lease() as lease:
            lease.ack(lease.item**2)
        assert answers.get(timeout=TIMEOUT) == 49


def test_a_task_whose_queue_declares_results_needs_one(server):
    address = server("tasks,results=answers,backoff=0", "answers")
    with manyhands.connect(address, KEY) as client:
        tasks, answers = client.queue("tasks"), client.queue("answers")
        tasks.put("a")
        lease = tasks.lease()
        with pytest.raises(manyhands.NoResult, match=r"write ack\(result\), or ack\(None\)"):
            lease.ack()
        lease.ack(None)
        assert answers.get(timeout=TIMEOUT) is None
        tasks.put("b")
        with pytest.raises(manyhands.NoResult, match=r"write ack\(result\)"):
            with tasks.lease():
                pass
        # It is not done, and everybody can see why.
        eventually(lambda: tasks.peek())
        [again] = tasks.peek()
        assert again.attempt == 2
        assert "no result" in again.failures[0][2]


def test_a_server_tells_the_names_of_its_queues(server):
    with manyhands.connect(server("tasks", "results"), KEY) as client:
        with pytest.raises(manyhands.ManyhandsError, match="there are 'results', 'tasks'$"):
            client.queue("result")


def test_a_client_survives_a_restart_of_its_server(server):
    with manyhands.connect(server("tasks"), KEY) as client:
        tasks = client.queue("tasks")
        assert tasks.empty()
        server("tasks")
        assert tasks.empty()
        thread, taken = in_thread(tasks.get)
        server("tasks")
        client.queue("tasks").put("hello")
        thread.join(TIMEOUT)
        assert taken == ["hello"]


def test_threads_that_share_a_queue_survive_a_restart_of_its_server(server):
    with manyhands.connect(server("tasks"), KEY) as client:
        tasks = client.queue("tasks")
        server("tasks")
        calls = [in_thread(tasks.qsize) for _ in range(8)]
        for thread, counted in calls:
            thread.join(TIMEOUT)
            assert counted == [0]


class Breaking:
    """A way to a server that breaks when it is told to, and is mended when it is told to."""

    def __init__(self, address):
        self._server = address
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        # What of the next bytes of the client, and of the answer to them, gets lost.
        self.loses = None
        self.is_broken, self.is_mended = threading.Event(), threading.Event()
        self.is_mended.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            client = self._listener.accept()[0]
            self.is_mended.wait(TIMEOUT)
            server = socket.create_connection(self._server)
            for pair in ((client, server, "request"), (server, client, "answer")):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source, target, what):
        while True:
            data = source.recv(1 << 16)
            if not data or self.loses == what:
                break
            target.sendall(data)
        if data:
            self.loses = None
            self.is_mended.clear()
            self.is_broken.set()
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                # The other direction was faster.
                pass


def _connected(address):
    return manyhands.connect(address, KEY)


def settle_twice(server, settle, loses, then=lambda tasks: None):
    """Settle a lease over a connection that breaks; what is done before it is mended."""
    address = server("tasks,backoff=0")
    breaking = Breaking(address)
    with manyhands.connect(breaking.address, KEY) as client, manyhands.connect(
        address, KEY
    ) as other:
        client.queue("tasks").put("a")
        lease = client.queue("tasks").lease()
        breaking.loses = loses
        errors = []

        def attempt():
            try:
                settle(lease)
            except Exception as error:
                errors.append(error)

        thread, _ = in_thread(attempt)
        assert breaking.is_broken.wait(TIMEOUT)
        then(other.queue("tasks"))
        breaking.is_mended.set()
        thread.join(TIMEOUT)
        return errors


def done_by_another(tasks):
    tasks.lease(timeout=TIMEOUT).ack()


def test_an_ack_whose_answer_was_lost_is_in_doubt_if_the_lease_is_over_by_then(server):
    [doubt] = settle_twice(server, lambda lease: lease.ack(), "request", done_by_another)
    assert isinstance(doubt, ConnectionResetError)
    assert "it may be done or not: " in str(doubt)
    assert settle_twice(server, lambda lease: lease.ack(), "answer") == []
    assert settle_twice(server, lambda lease: lease.nack(), "request", done_by_another) == []
    [stale] = settle_twice(server, lambda lease: lease.extend(9), "request", done_by_another)
    assert isinstance(stale, manyhands.StaleLease)


def test_a_client_survives_a_restart_of_the_program_that_has_its_queue(manager_class):
    manager_class.register("tasks", queue.Queue)

    def start(port):
        server = manager_class(("127.0.0.1", port), KEY).get_server()
        server.serve_aside()
        return server

    server = start(0)
    with manyhands.connect(server.address, KEY) as client:
        tasks = client.queue("tasks")
        for item in range(2):
            tasks.put(item)
            assert tasks.get() == item
            server.stop()
            server = start(server.address[1])
        assert tasks.empty()
    server.stop()


def test_a_pipeline_survives_a_restart_of_its_server(server):
    with manyhands.connect(server("tasks"), KEY) as client:
        tasks = client.queue("tasks", pipeline=True)
        tasks.put("lost with its server")
        tasks.flush()
        server.stop()
        thread, _ = in_thread(lambda: [tasks.put(1), tasks.put(2), tasks.flush()])
        server("tasks")
        thread.join(TIMEOUT)
        assert tasks.get_many(3) == [1, 2]


def test_without_a_server_a_call_fails_when_its_patience_ends(server):
    client = manyhands.connect(server("tasks"), KEY, reconnect=0)
    tasks = client.queue("tasks")
    server.stop()
    with pytest.raises(ConnectionError):
        tasks.qsize()
    with pytest.raises(ConnectionError):
        client.close()


def test_a_client_that_waits_says_so_each_time_that_its_server_is_away(server, monkeypatch, capsys):
    monkeypatch.setattr(_net, "TOLD_AFTER", 0)
    told = []

    def is_told(times):
        told.extend(line for line in capsys.readouterr().err.splitlines() if "still" in line)
        return len(told) == times

    with manyhands.connect(server("tasks"), KEY) as client:
        tasks = client.queue("tasks")
        for times in (1, 2):
            server.stop()
            calls = [in_thread(tasks.qsize) for _ in range(2)]
            eventually(lambda times=times: is_told(times))
            server("tasks")
            for thread, counted in calls:
                thread.join(TIMEOUT)
                assert counted == [0]
            assert is_told(times), "once for all threads"


def test_importing_the_package_imports_little():
    command = "import sys; import manyhands; print(*sorted(sys.modules))"
    modules = subprocess.check_output([sys.executable, "-c", command], universal_newlines=True)
    assert "manyhands._manyhands" not in modules
    assert "multiprocessing" not in modules
