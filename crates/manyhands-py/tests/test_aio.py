"""`manyhands.aio`: the client for event loops, on our server and on the standard library's."""

import asyncio
import multiprocessing
import os
import queue
import threading

import manyhands
import manyhands.managers
import pytest
from conftest import KEY, TIMEOUT, eventually
from manyhands import _loop


def with_client(address, use):
    """Run a coroutine function with a client."""

    async def main():
        async with manyhands.aio.connect(address, KEY) as client:
            return await asyncio.wait_for(use(client), TIMEOUT)

    return asyncio.run(main())


def test_a_queue_has_the_methods_of_queue_dot_queue_awaited(address):
    async def use(client):
        tasks = await client.queue("tasks")
        await tasks.put({"a": 1})
        await tasks.put_nowait(2)
        assert (await tasks.qsize(), await tasks.full(), await tasks.empty()) == (2, False, False)
        await tasks.put(3, timeout=1)
        with pytest.raises(queue.Full):
            await tasks.put_nowait(4)
        assert [await tasks.get(), await tasks.get(timeout=1), await tasks.get_nowait()] == [
            {"a": 1},
            2,
            3,
        ]
        with pytest.raises(queue.Empty):
            await tasks.get(timeout=0.01)
        for _ in range(3):
            await tasks.task_done()
        await tasks.join()

    with_client(address, use)


def test_a_get_that_waits_lets_other_coroutines_run(address):
    async def use(client):
        tasks = await client.queue("tasks")
        getters = [asyncio.ensure_future(tasks.get()) for _ in range(3)]
        await tasks.put_many([1, 2, 3])
        assert sorted(await asyncio.gather(*getters)) == [1, 2, 3]

    with_client(address, use)


def test_a_get_that_is_cancelled_leaves_the_client_usable(address):
    async def use(client):
        tasks = await client.queue("tasks")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(tasks.get(), 0.05)
        assert await tasks.empty()

    with_client(address, use)


def test_batches_and_pipelines_are_awaited(address):
    async def use(client):
        many = await client.queue("many", pipeline=True)
        for number in range(3000):
            await many.put(number)
        await many.flush()
        plain = await client.queue("many", prefetch=10)
        await plain.put_many(range(3000, 3010))
        assert await plain.get() == 0
        assert await plain.get_many(4000) == list(range(1, 10))
        assert await many.get_many(1) == [10]

    with_client(address, use)


def test_wrong_keys_and_closed_ports_raise_what_they_do_elsewhere(address):
    async def connect(where, key):
        return await manyhands.aio.connect(where, key, reconnect=0)

    with pytest.raises(multiprocessing.AuthenticationError):
        asyncio.run(connect(address, b"another key"))
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(connect(("127.0.0.1", 1), KEY))


def test_leases_are_awaited(manager_class):
    manager_class.register("tasks", queue.Queue)
    server = manager_class(("127.0.0.1", 0), KEY).get_server()
    server.serve_aside()

    async def use(client):
        tasks = await client.queue("tasks")
        await tasks.put("a", key="k")
        assert not await tasks.put("b", key="k")
        with pytest.raises(ZeroDivisionError):
            async with await tasks.lease() as lease:
                1 / 0  # noqa: B018
        async with await tasks.lease() as lease:
            assert (lease.item, lease.attempt) == ("a", 2)
            await lease.extend(30)
        with pytest.raises(manyhands.StaleLease):
            await lease.ack()
        assert await tasks.empty()
        await tasks.put("c")
        lease = await tasks.lease()
        with pytest.raises(TypeError, match="`async with`, not `with`"), lease:
            pytest.fail("the block is not entered")
        await lease.nack(delay=0, reason="again")
        [found] = await tasks.peek()
        assert (found.item, found.attempt) == ("c", 2)
        assert [failure[2] for failure in found.failures] == ["again"]
        assert await tasks.take() == ("c", None)
        assert await tasks.purge() == await tasks.redrive() == 0

    with_client(server.address, use)
    server.stop()


def test_what_a_coroutine_took_is_not_settled_by_others_that_come_after_it(manager_class):
    manager_class.register("tasks", queue.Queue)
    server = manager_class(("127.0.0.1", 0), KEY).get_server()
    server.serve_aside()

    async def use(client):
        tasks = await client.queue("tasks")
        await tasks.put_many(range(20))
        for _ in range(20):
            await asyncio.ensure_future(tasks.get())
        return await tasks.peek(100, state="leased")

    assert len(with_client(server.address, use)) == 20
    server.stop()


def test_a_client_survives_a_restart_of_the_program_that_has_its_queue(manager_class):
    manager_class.register("tasks", queue.Queue)

    def start(port):
        server = manager_class(("127.0.0.1", port), KEY).get_server()
        server.serve_aside()
        return server

    servers = [start(0)]

    async def use(client):
        tasks = await client.queue("tasks")
        for item in range(2):
            await tasks.put(item)
            assert await tasks.get() == item
            servers[-1].stop()
            servers.append(start(servers[-1].address[1]))
        assert await tasks.empty()

    with_client(servers[0].address, use)
    servers[-1].stop()


def test_no_thread_is_started(address):
    before = threading.active_count()

    async def use(client):
        tasks = await client.queue("tasks")
        await tasks.put(1)
        return threading.active_count()

    with manyhands.connect(address, KEY) as client:
        client.queue("many", pipeline=True).put(1)
        assert threading.active_count() == before
    # An event loop may resolve names on a thread of its own.
    assert with_client(address, use) <= before + 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_wait_for_threads_of_its_parent():
    assert asyncio.run(_loop.in_thread(os.getpid)) == os.getpid()
    eventually(lambda: _loop._at_rest)
    child = multiprocessing.get_context("fork").Process(target=_has_a_thread)
    child.start()
    child.join(TIMEOUT)
    code = child.exitcode
    child.kill()
    assert code == 0


def _has_a_thread():
    assert asyncio.run(asyncio.wait_for(_loop.in_thread(os.getpid), 10)) == os.getpid()


def test_a_coroutine_that_no_task_drives_may_call(address):
    async def use(client):
        tasks = await client.queue("tasks")
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(drive, tasks.put(1), future)
        await future
        assert await tasks.get() == 1

    def drive(coroutine, future, _=None):
        try:
            awaited = coroutine.send(None)
        except StopIteration:
            future.set_result(None)
        except Exception as error:
            future.set_exception(error)
        else:
            awaited._asyncio_future_blocking = False
            awaited.add_done_callback(lambda _: drive(coroutine, future))

    with_client(address, use)
