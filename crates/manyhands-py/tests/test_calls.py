"""What a client asks of a server as a whole, by both clients."""

import asyncio

import manyhands
import pytest
from conftest import KEY, TIMEOUT


@pytest.fixture(params=["blocking", "awaited"])
def ask(request):
    """Makes calls of a client, or of one of its queues, by either client."""

    def ask(address, method, *args, queue=None):
        if request.param == "blocking":
            with manyhands.connect(address, KEY) as client:
                return getattr(client if queue is None else client.queue(queue), method)(*args)

        async def main():
            async with manyhands.aio.connect(address, KEY) as client:
                asked = client if queue is None else await client.queue(queue)
                return await asyncio.wait_for(getattr(asked, method)(*args), TIMEOUT)

        return asyncio.run(main())

    return ask


def test_queues_are_listed_and_dropped(server, ask):
    address = server()
    with manyhands.connect(address, KEY) as client:
        client.queue("b").put_many("xy")
        client.queue("a").put(1)
        first, second = ask(address, "queues")
        assert isinstance(first, manyhands.QueueInfo)
        assert (first.name, first.qsize, first.order, first.declared) == ("a", 1, "fifo", False)
        assert (second.name, second.qsize, second.maxsize, second.oldest >= 0) == ("b", 2, 0, True)
        with pytest.raises(manyhands.ManyhandsError, match="RuntimeError"):
            ask(address, "drop_queue", "b")
        assert ask(address, "drop_queue", "b", True) == 2
        assert [queue.name for queue in ask(address, "queues")] == ["a"]
    declared = server("tasks")
    with pytest.raises(ValueError, match="declared"):
        ask(declared, "drop_queue", "tasks", True)


def test_a_server_tells_of_its_objects(server, ask):
    address = server("tasks")
    assert isinstance(ask(address, "debug_info"), str)
    assert isinstance(ask(address, "number_of_objects"), int)


def test_a_server_of_the_standard_library_lists_nothing(address, ask):
    with manyhands.connect(address, KEY) as client:
        is_ours = client.queue("many")._place.is_native
    if is_ours:
        assert "many" in [queue.name for queue in ask(address, "queues")]
        return
    with pytest.raises(manyhands.ManyhandsError, match="this is not a manyhands server"):
        ask(address, "queues")
    assert ask(address, "number_of_objects") == 0


def test_a_queue_that_is_closed_puts_back_what_it_fetched_ahead(address):
    with manyhands.connect(address, KEY) as client:
        many = client.queue("many", pipeline=True)
        for item in range(5):
            many.put(item)
        many.close()
        ahead = client.queue("many", prefetch=5)
        assert ahead.get() == 0
        ahead.close()
        ahead.close()
        with pytest.raises(manyhands.ManyhandsError, match="this queue is closed"):
            ahead.get()
        assert sorted(client.queue("many").get_many(10)) == [1, 2, 3, 4]


def test_a_queue_is_closed_by_a_coroutine(address):
    async def main():
        async with manyhands.aio.connect(address, KEY) as client:
            many = await client.queue("many")
            await many.put(1)
            await many.close()
            await many.close()
            with pytest.raises(manyhands.ManyhandsError, match="this queue is closed"):
                await many.get()
            return await (await client.queue("many")).get()

    assert asyncio.run(main()) == 1


def test_as_many_queues_are_opened_one_after_the_other_as_a_program_likes(server):
    with manyhands.connect(server("tasks"), KEY) as client:
        for _ in range(5000):
            client.queue("tasks").close()
        client.queue("tasks").put(1)
