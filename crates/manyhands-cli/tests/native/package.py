"""Does what a test says with the Python package: a line of JSON for each call and each outcome.

usage: package.py blocking|awaited PORT KEYFILE NAME READER

The language is that of face.py. A call whose outcome is asked for next is made by the main thread,
or by the main task of the event loop; others are on threads, or tasks, of their own. What only the
protocol has (tokens as bytes, credit by the number, cancel, close, configure) this client refuses.
"""

import asyncio
import base64
import json
import queue
import sys
import threading

import manyhands


class Face:
    """What both clients have in common: what is said and shown, and calls as steps."""

    def __init__(self, client):
        self.client, self.queues, self.leases, self.pushed = client, {}, {}, {}

    def steps(self, do, queue=None, **more):
        """The steps of a call: functions, of which each returns what it comes to, or awaits it."""
        call = getattr(self, "do_" + do, None)
        if call is None:
            raise NotImplementedError("this client has no {}".format(do))
        if queue is None:
            return call(**more)
        return call(queue if do == "open" else self.queues[queue], **more)

    def do_open(self, name):
        self.queues[name] = yield lambda: self.client.queue(name)

    def do_put(self, queue, items, wait, numbers):
        terms = ("key", "delay", "priority", "expires")
        is_plain = not numbers and all(item[term] is None for item in items for term in terms)
        count, code, given = 0, "ok", []
        try:
            if is_plain:
                yield lambda: queue.put_many([content(item["value"]) for item in items], True, wait)
                count = len(items)
            for item in [] if is_plain else items:
                value = content(item.pop("value"))
                number = yield lambda: queue.put(value, True, wait, id=True, **item)  # noqa: B023
                given.append(number)
                count += 1
        except Exception as error:
            count, code = getattr(error, "added", count), code_of(error)
        return {"count": count, "code": code, "numbers": given}

    def do_get(self, queue, wait, max, max_bytes, leased, informed, hold):
        assert max_bytes == 0
        if leased:
            leases = yield lambda: queue.lease_many(max, True, wait, hold)
            return [self.shown_lease(lease) for lease in leases]
        if informed:
            taken = yield lambda: queue.take(True, wait)
            return [{"item": shown(taken.item), "info": taken.info and taken.info._asdict()}]
        items = yield lambda: queue.get_many(max, True, wait)
        return [{"item": shown(item)} for item in items]

    def shown_lease(self, lease):
        token = str(len(self.leases))
        self.leases[token] = lease
        told = {"token": token, "task": lease.task, "attempt": lease.attempt}
        return dict(told, item=shown(lease.item))

    def do_leases(self, queue, ahead):
        self.pushed[queue.name] = queue.leases(ahead)
        yield from ()

    def do_next(self, queue):
        pushed = self.pushed[queue.name]
        if hasattr(pushed, "__anext__"):
            found = yield lambda: anext_of(pushed)
        else:
            found = yield lambda: next(pushed, None)
        return found and [self.shown_lease(found)]

    def do_leave(self, queue):
        yield self.pushed.pop(queue.name).close

    def do_settle(self, queue, settlements, wait):
        acks = [it for it in settlements if it["kind"] == "ack"]
        if len(acks) == len(settlements):
            # A batch has an answer for each.
            leases = [self.leases[it["token"]] for it in acks]
            answers = yield lambda: queue.ack_many(leases, timeout=wait)
            return ["ok" if answer is None else code_of(answer) for answer in answers]
        codes = []
        for it in settlements:
            try:
                yield lambda: self.settle(self.leases[it["token"]], **it)  # noqa: B023
                codes.append("ok")
            except Exception as error:
                codes.append(code_of(error))
        return codes

    def settle(self, lease, kind, token, after, reason, result):
        if kind == "ack":
            return lease.ack()
        if kind == "ack_with":
            return lease.ack(content(result))
        if kind == "extend":
            return lease.extend(after)
        if kind in ("nack", "give_up"):
            return lease.nack(after, reason, give_up=kind == "give_up")
        raise NotImplementedError("this client does not {}".format(kind))

    def do_task_done(self, queue, count):
        for _ in range(count):
            yield queue.task_done

    def do_join(self, queue):
        yield queue.join

    def do_size(self, queue):
        return [(yield queue.qsize), 0]

    def do_list(self, after):
        queues = yield self.client.queues
        return [[queue._asdict() for queue in queues if queue.name > after], False]

    def do_peek(self, queue, max, state):
        tasks = yield lambda: queue.peek(max, state)
        return [self.shown_task(**task._asdict()) for task in tasks]

    def shown_task(self, item, key, failures, **known):
        known["failures"] = [dict(zip(("attempt", "worker", "reason"), it)) for it in failures]
        return dict(known, item=shown(item), key=key and key.encode().hex())

    def do_redrive(self, queue, max, task):
        return (yield lambda: queue.redrive(max, task))

    def do_purge(self, queue):
        return (yield queue.purge)

    def do_shutdown(self, queue, immediate):
        yield lambda: queue.shutdown(immediate)

    def do_drop(self, name, forced):
        return (yield lambda: self.client.drop_queue(name, forced))

    def do_ping(self):
        yield self.client.number_of_objects


async def anext_of(leases):
    async for lease in leases:
        return lease


def content(value):
    """An item as a test says it: JSON, or bytes in base64."""
    ((kind, value),) = value.items()
    return {"json": lambda it: it, "bytes": base64.b64decode}[kind](value)


def shown(value):
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    return {"json": value}


# What exceptions say of which there are several.
CODES = {
    "no queue is called": "unknown_queue",
    "this lease was settled before": "settled_before",
    "somebody else has had": "stale",
    "called too many times": "too_many",
    "needs a queue that has an order": "no_order",
}


def code_of(error):
    """The code that an exception stands for, or its text."""
    classes = {queue.Empty: "empty", queue.Full: "full"}
    if type(error).__name__ == "ShutDown":
        return "shut_down"
    found = (code for text, code in CODES.items() if text in str(error))
    return classes.get(type(error)) or next(found, repr(error))


def told(outcome, error):
    if error is None:
        return outcome
    if not isinstance(error, Exception) or isinstance(error, NotImplementedError):
        raise error
    return {"refused": code_of(error), "text": str(error)}


def orders():
    """What a test says, and with each call whether its outcome is what is asked for next."""
    held = None
    for line in sys.stdin:
        order = json.loads(line)
        if held is not None:
            yield held, order.get("finish") == held["start"]
        held = order if "start" in order else None
        if held is None:
            yield order, False
    if held is not None:
        yield held, False


# ---- the blocking client


def blocking(client):
    face, calls = Face(client), {}

    def make(steps):
        try:
            return client._server.run(steps), None
        except BaseException as error:
            return None, error

    def in_thread(steps):
        made = []
        thread = threading.Thread(target=lambda: made.append(make(steps)), daemon=True)
        thread.start()
        return lambda: (thread.join(), made[0])[1]

    for order, is_next in orders():
        if "start" in order:
            steps = face.steps(**order["call"])
            if is_next:
                made = make(steps)
                calls[order["start"]] = lambda made=made: made
            else:
                calls[order["start"]] = in_thread(steps)
        elif "finish" in order:
            print(json.dumps(told(*calls.pop(order["finish"])())))


# ---- that for event loops


async def awaited(connecting):
    client = await connecting
    face, calls = Face(client), {}
    loop = asyncio.get_event_loop()

    async def make(steps):
        try:
            return await client._server.run(steps), None
        except Exception as error:
            return None, error

    said = orders()
    while True:
        order, is_next = await loop.run_in_executor(None, next, said, (None, False))
        if order is None:
            return
        if "start" in order:
            made = make(face.steps(**order["call"]))
            calls[order["start"]] = made if is_next else loop.create_task(made)
        elif "finish" in order:
            print(json.dumps(told(*await calls.pop(order["finish"]))))


def main(mode, port, key_file, name, _reader):
    connect = {"blocking": manyhands.connect, "awaited": manyhands.aio.connect}[mode]
    client = connect(("127.0.0.1", int(port)), authkey_file=key_file, session_name=name)
    if mode == "blocking":
        blocking(client)
    else:
        asyncio.run(awaited(client))


main(*sys.argv[1:])
