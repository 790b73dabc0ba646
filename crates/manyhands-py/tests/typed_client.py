"""A program as a type checker sees it: read by mypy, never run.

Each ``type: ignore`` is a mistake that has to be found.
"""

import manyhands
from manyhands import aio


def work(client: manyhands.Client) -> int:
    tasks: manyhands.Queue[int] = client.queue("tasks")
    tasks.put(1, key="k")
    tasks.put("one")  # type: ignore[arg-type]
    tasks.put_many(["one"])  # type: ignore[list-item]
    for task in tasks.peek(state="leased"):
        print(task.worker, task.since, [reason for _, _, reason in task.failures])
    with tasks.lease(timeout=5) as lease:
        try:
            lease.ack()
        except manyhands.NoResult as missing:
            print(missing.was_repeated)  # type: ignore[attr-defined]
        lease.ack(lease.item + 1)
        lease.item.upper()  # type: ignore[attr-defined]
    for lease in tasks.leases(16):
        lease.item.upper()  # type: ignore[attr-defined]
    for refused in tasks.ack_many(tasks.lease_many(10), results=[1]):
        print(refused is None)
    item, info = tasks.take()
    if info is not None:
        print(item, info.history)
    tasks.get_many(10).append("two")  # type: ignore[arg-type]
    return tasks.get()


async def work_awaited(client: aio.Client) -> str:
    texts: aio.Queue[str] = await client.queue("texts")
    async with await texts.lease() as lease:
        await lease.nack(reason="no", give_up=True)
    async for lease in texts.leases(16):
        await lease.ack(lease.item.upper())
    print(texts._place)  # type: ignore[attr-defined]
    return await texts.get()


def connected() -> list[manyhands.Client]:
    return [
        manyhands.connect("127.0.0.1:5000"),
        manyhands.connect(("127.0.0.1", 5000), b"key", reconnect=0),
        manyhands.connect("unix:/run/queues", authkey_file="key"),
        manyhands.connect("127.0.0.1:5000", "key"),  # type: ignore[arg-type]
    ]
