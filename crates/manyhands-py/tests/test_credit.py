"""Leases that the server sends ahead, and acks in batches, by both clients."""

import asyncio
import os
import queue
import signal
import threading
from types import SimpleNamespace

import manyhands
import pytest
from conftest import KEY, TIMEOUT, eventually, finish, in_thread
from manyhands import _calls, _manyhands, _net


class Unreadable:
    """An item that cannot be unpickled."""

    def __reduce__(self):
        return int, ("no number",)


@pytest.fixture
def tasks(served):
    with served({"tasks": queue.Queue()}) as client:
        yield client.queue("tasks")


@pytest.fixture
def other(tasks):
    """The same queue, by another client."""
    with manyhands.connect(tasks._client.address, KEY) as client:
        yield client.queue("tasks")


def attempts(leases):
    return sorted((lease.item, lease.attempt) for lease in leases)


def all_leases(tasks, count):
    """So many leases, in however many calls."""
    leases = []
    while len(leases) < count:
        leases += tasks.lease_many(count - len(leases), timeout=TIMEOUT)
    return leases


# ---- the client


def test_leases_come_as_they_are_put_until_the_queue_is_shut_down(tasks, other):
    other.put_many(range(5))
    done = []
    for lease in tasks.leases(2):
        done.append(lease.item)
        lease.ack()
        if lease.item == 4:
            other.put(5)
            other.shutdown()
    assert done == list(range(6))
    assert tasks.empty()


def test_what_was_not_started_returns_without_an_attempt(tasks, other):
    other.put_many("abc")
    with tasks.leases(3) as leases:
        started = next(leases)
    assert attempts(all_leases(other, 2)) == [("b", 1), ("c", 1)]
    started.nack(delay=0)
    assert attempts(all_leases(other, 1)) == [("a", 2)]
    with pytest.raises(StopIteration):
        next(leases)


def test_leases_that_are_no_longer_used_are_closed(tasks, other):
    other.put_many("abc")
    for lease in tasks.leases(3):
        lease.ack()
        break
    assert attempts(all_leases(other, 2)) == [("b", 1), ("c", 1)]


def test_a_worker_that_is_killed_uses_up_an_attempt_of_what_it_had_started(tasks, program):
    tasks.put_many("abc")
    worker = program(
        "worker.py",
        """
        import sys, time
        import manyhands

        client = manyhands.connect(("127.0.0.1", int(sys.argv[1])), b"a key of 16 bytes")
        for lease in client.queue("tasks").leases(2):
            print(lease.item, flush=True)
            time.sleep(1000)
        """,
    ).start(args=[str(tasks._client.address[1])])
    assert worker.stdout.readline() == "a\n"
    eventually(lambda: tasks.qsize() <= 1)
    os.killpg(worker.pid, signal.SIGKILL)
    finish(worker)
    back = [("a", 2), ("b", 1), ("c", 1)]
    assert attempts(all_leases(tasks, 3)) == back


def test_an_idle_worker_is_given_what_another_one_has_not_started(tasks, other):
    tasks.put_many("abc")
    leases = tasks.leases(9)
    started = next(leases)
    thread, taken = in_thread(lambda: other.lease(timeout=TIMEOUT))
    # It is asked for, and returned with the next call.
    eventually(lambda: tasks.qsize() == 0 and taken)
    thread.join(TIMEOUT)
    assert attempts(taken) == [("c", 1)]
    started.ack()
    assert next(leases).item == "b"


def test_any_thread_ends_the_wait_for_the_next_lease(tasks, other):
    leases, taken = tasks.leases(1), []
    threads = [in_thread(lambda: taken.extend(lease.item for lease in leases)) for _ in range(3)]
    other.put("a")
    eventually(lambda: taken == ["a"])
    leases.close()
    for thread, _ in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    # The next one may be had at once.
    other.put("b")
    assert next(tasks.leases(1)).item == "b"


def test_a_handler_of_signals_may_end_the_wait(tasks, program):
    worker = program(
        "worker.py",
        """
        import signal, sys
        import manyhands

        with manyhands.connect(("127.0.0.1", int(sys.argv[1])), b"a key of 16 bytes") as client:
            leases = client.queue("tasks").leases(4)
            signal.signal(signal.SIGTERM, lambda *_: leases.close())
            print("up", flush=True)
            for lease in leases:
                pass
            print("over")
        """,
    ).start(args=[str(tasks._client.address[1])])
    worker.stdout.readline()
    worker.terminate()
    assert finish(worker) == ("over\n", "", 0)


def test_threads_share_leases(tasks, other):
    def work():
        mine = []
        for lease in leases:
            mine.append(lease.item)
            lease.ack()
        return mine

    leases = tasks.leases(4)
    threads = [in_thread(work) for _ in range(4)]
    other.put_many(range(200))
    other.join()
    leases.close()
    for thread, _ in threads:
        thread.join(TIMEOUT)
    assert sorted(sum((done[0] for _, done in threads), [])) == list(range(200))


def test_an_item_that_cannot_be_read_is_a_dead_letter(server):
    with manyhands.connect(server("tasks"), KEY) as client:
        tasks = client.queue("tasks")
        tasks.put_many([Unreadable(), 1, Unreadable()])
        leases = tasks.leases(3)
        with pytest.raises(ValueError, match="no number"):
            next(leases)
        next(leases).ack()
        leases.close()
        with pytest.raises(ValueError, match="no number"):
            tasks.lease(timeout=TIMEOUT)
        tasks.put_many([2, Unreadable()])
        [lease] = tasks.lease_many(2, timeout=TIMEOUT)
        lease.ack()
        letters = client.queue("tasks.dead").peek(items=False)
        assert ["no number" in letter.failures[0][2] for letter in letters] == [True] * 3
        assert tasks.empty()


def test_leases_go_on_when_their_server_was_away(server):
    with manyhands.connect(server("tasks"), KEY) as client:
        tasks = client.queue("tasks")
        tasks.put("a")
        leases = tasks.leases(2)
        next(leases).ack()
        server("tasks")
        thread, taken = in_thread(lambda: next(leases))
        eventually(lambda: client.queue("tasks").put("b", key="b") is not None)
        thread.join(TIMEOUT)
        assert attempts(taken) == [("b", 1)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_leases_belong_to_the_process_that_has_them(tasks):
    tasks.put(1)
    leases = tasks.leases(1)
    child = os.fork()
    if child == 0:
        try:
            with pytest.raises(RuntimeError, match="belongs to the parent"):
                next(leases)
            os._exit(7)
        finally:
            os._exit(1)
    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 7
    assert next(leases).item == 1


def test_leases_are_acked_in_batches_with_an_answer_for_each(tasks, other):
    tasks.put_many(range(6))
    leases = tasks.lease_many(6)
    leases[1].ack()
    leases[2].nack(delay=0)
    stolen = other.lease(timeout=TIMEOUT)
    answers = tasks.ack_many(leases)
    refused = [number for number, answer in enumerate(answers) if answer is not None]
    assert refused == [1, 2]
    assert all(isinstance(answers[number], manyhands.StaleLease) for number in refused)
    assert leases[0].is_settled
    assert other.ack_many([stolen]) == [None]
    assert tasks.ack_many([]) == []
    with pytest.raises(ValueError, match="2 leases need as many results, not 1"):
        tasks.ack_many(leases[:2], [0])
    tasks.join()


def test_more_leases_are_acked_than_one_call_takes(tasks):
    count = 20_000
    tasks.put_many(range(count))
    leases = all_leases(tasks, count)
    assert tasks.ack_many(leases) == [None] * count
    tasks.join()


def test_leases_are_acked_with_their_results(server):
    with manyhands.connect(server("tasks,results=answers", "answers"), KEY) as client:
        tasks, answers = client.queue("tasks"), client.queue("answers")
        tasks.put_many(range(3))
        leases = tasks.lease_many(3)
        missing = tasks.ack_many(leases)
        assert [type(answer) for answer in missing] == [manyhands.NoResult] * 3
        assert tasks.ack_many(leases, (lease.item**2 for lease in leases)) == [None] * 3
        assert answers.get_many(3) == [0, 1, 4]


def test_what_is_said_of_a_lease_that_ran_out_is_refused(tasks, other):
    tasks.put("a")
    late = tasks.lease(hold=0.01)
    other.lease(timeout=TIMEOUT)
    for say in (late.nack, lambda: late.extend(1), late.ack):
        with pytest.raises(manyhands.StaleLease, match="somebody else has had this task since"):
            say()


def test_a_client_has_leases_of_a_queue_once_at_a_time(server):
    with manyhands.connect(server("tasks"), KEY) as client:
        tasks, twin = client.queue("tasks"), client.queue("tasks")
        tasks.put_many("abc")
        leases = tasks.leases(2)
        assert next(leases).item == "a"
        with pytest.raises(ValueError, match="leases of this queue are being taken; close those"):
            next(twin.leases(1))
        for expected in "bc":
            leases.close()
            leases = twin.leases(1)
            assert next(leases).item == expected


class NoQueue(queue.Queue):
    """A class of a user's stays in Python."""


def test_a_queue_that_lives_in_python_has_no_leases(served):
    with served({"tasks": NoQueue()}) as client:
        tasks = client.queue("tasks")
        with pytest.raises(manyhands.ManyhandsError, match="lease needs a queue of manyhands"):
            tasks.leases(4)
        address = client.address

        async def use(client):
            tasks = await client.queue("tasks")
            with pytest.raises(manyhands.ManyhandsError, match="lease needs a queue of manyhands"):
                tasks.leases(4)

        awaited(address, use)


@pytest.mark.parametrize("ahead, error", [(0, ValueError), ("a", TypeError), (None, TypeError)])
def test_what_is_no_number_of_leases_is_named(tasks, ahead, error):
    with pytest.raises(error, match="'ahead' must be"):
        tasks.leases(ahead)


# ---- that for event loops


def awaited(address, use):
    """What a coroutine function comes to that uses a client."""

    async def main():
        async with manyhands.aio.connect(address, KEY) as client:
            return await asyncio.wait_for(use(client), TIMEOUT)

    return asyncio.run(main())


@pytest.fixture
def with_tasks(tasks):
    """Runs a coroutine function that uses the queue by a client of its own."""

    def with_tasks(use):
        async def main(client):
            return await use(await client.queue("tasks"))

        return awaited(tasks._client.address, main)

    return with_tasks


def test_leases_are_iterated_by_coroutines(tasks, with_tasks):
    tasks.put_many(range(5))

    async def use(mine):
        done = []
        async for lease in mine.leases(2):
            done.append(lease.item)
            await lease.ack()
            if lease.item == 4:
                await mine.shutdown()
        return done

    assert with_tasks(use) == list(range(5))


def test_leases_that_a_coroutine_no_longer_uses_are_closed(tasks, with_tasks):
    tasks.put_many("abcd")

    async def use(mine):
        async for lease in mine.leases(2):
            await lease.ack()
            break
        async with mine.leases(2) as leases:
            await (await leases.__anext__()).ack()
        with pytest.raises(StopAsyncIteration):
            await leases.__anext__()
        return await mine.lease_many(1, timeout=TIMEOUT)

    assert attempts(with_tasks(use)) == [("c", 1)]


def test_a_coroutine_that_leaves_takes_no_lease(tasks, with_tasks):
    async def use(mine):
        leases = mine.leases(2)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(leases.__anext__(), 0.05)
        waiting = [asyncio.ensure_future(leases.__anext__()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await mine.put_many("ab")
        taken = await asyncio.gather(*waiting[1:])
        end = asyncio.ensure_future(leases.__anext__())
        await asyncio.sleep(0)
        await leases.close()
        with pytest.raises(StopAsyncIteration):
            await end
        return attempts(taken)

    assert with_tasks(use) == [("a", 1), ("b", 1)]


def test_an_event_loop_returns_what_it_has_not_started(tasks, with_tasks):
    tasks.put_many("abc")

    async def use(mine):
        leases = mine.leases(9)
        await leases.__anext__()
        loop = asyncio.get_event_loop()
        return await loop.run_in_executor(None, lambda: tasks.lease(timeout=TIMEOUT))

    assert attempts([with_tasks(use)]) == [("c", 1)]


def test_coroutines_ack_in_batches(tasks, with_tasks):
    tasks.put_many([0, Unreadable(), 2])

    async def use(mine):
        leases = await mine.lease_many(3)
        await leases[0].ack()
        return await mine.ack_many(leases)

    [first, second] = with_tasks(use)
    assert isinstance(first, manyhands.StaleLease)
    assert second is None
    tasks.join()


def test_closing_a_client_ends_the_wait_for_leases(tasks):
    async def use(client):
        leases = (await client.queue("tasks")).leases(2)
        waiting = asyncio.ensure_future(leases.__anext__())
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(manyhands.ManyhandsError, match="this client is closed"):
            await waiting

    awaited(tasks._client.address, use)


def test_a_thread_that_waits_for_leases_ends_with_its_client(tasks):
    client = manyhands.connect(tasks._client.address, KEY)
    leases = client.queue("tasks").leases(2)
    errors = []

    def wait():
        try:
            next(leases)
        except manyhands.ManyhandsError as error:
            errors.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    client.close()
    thread.join(TIMEOUT)
    assert errors == ["this client is closed"]


def test_a_timeout_of_many_acks_is_for_all_of_them(tasks, monkeypatch):
    tasks.put_many(range(3))
    leases, said, now = tasks.lease_many(3), [], [100.0]

    def ack_many(tokens, results, start, timeout):
        said.append(timeout)
        now[0] += 2
        verb, _ = _manyhands.Verb.ack_many(tokens[: start + 1], results, start, timeout)
        return verb, 1

    monkeypatch.setattr(_calls, "Verb", SimpleNamespace(ack_many=ack_many))
    monkeypatch.setattr(_net, "time", SimpleNamespace(monotonic=lambda: now[0]))
    assert tasks.ack_many(leases, timeout=3) == [None] * 3
    assert said == [3, 1, 0]
