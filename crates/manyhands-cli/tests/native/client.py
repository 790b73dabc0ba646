"""A client of the native protocol (docs/native-protocol.md): an example for other languages.

`send` returns the id of a request, and `reply` waits for what comes back to it. An item is bytes, a
Pickle or JSON; times are seconds, and None is for ever or not said. This puts two items:
`client.send("put", queue, time(0), [item(b"x", key=b"k"), item([1, 2], delay=5)])`.
"""

import hmac
import io
import json
import os
import socket
import struct

OPS = """open close put get settle credit cancel task_done join size list peek redrive purge
shutdown drop configure ping revoke""".split()
DONE, COUNT, OPENED, ADDED, TASKS, SETTLED, SIZE, TEXT, PEEKED, RECALL = *range(128, 137), 144
ACK, ACK_WITH, NACK, GIVE_UP, EXTEND, START, RETURN, FINISH, FINISH_WITH = range(9)  # settlements
CODES = """ok empty full shut_down unknown_queue stale settled_before no_result no_results unasked
no_order unreadable too_many cancelled malformed unknown_op too_long id_in_use no_such_handle
handle_in_use too_much_credit refused too_many_pending differs bad_options waits started
in_use""".split()


class Pickle(bytes): ...  # one that stands alone; to load it is to execute it


class Refused(Exception): ...  # a request had no effect: the name of the code, and a text


class Client:
    def __init__(self, host, port, key, name=b"client.py", reader=5):
        self.stream = socket.create_connection((host, port)).makefile("rwb")
        self.ids, self.frames = iter(range(1, 2**32)), {}
        self.say(mac(key, self.hear()[len("#CHALLENGE#") :]))
        if self.hear() != b"#WELCOME#":
            raise ConnectionError("the server has another key")
        challenge = b"{sha256}" + os.urandom(40)
        self.say(b"#CHALLENGE#" + challenge)
        if self.hear() != mac(key, challenge):
            raise ConnectionError("the server does not have the key")
        self.say(b"#WELCOME#")
        self.say(struct.pack("<8sHHBxH", b"\0mnative", 1, 1, reader, len(name)) + name)
        answer = self.hear()
        if answer[:10] != b"\0mnative\1\0":
            raise ConnectionError(f"not version 1 of the native protocol: {answer[10:]}")
        self.flags, *self.limits = struct.unpack_from("<HIIIII", answer, 10)

    def say(self, message):
        self.stream.write(struct.pack(">I", len(message)) + message)
        self.stream.flush()

    def hear(self):
        return self.exactly(*struct.unpack(">I", self.exactly(4)))

    def exactly(self, length):
        data = self.stream.read(length)
        if len(data) < length:
            raise ConnectionError("the server hung up")
        return data

    def send(self, op, queue=0, body=b"", items=(), flags=0, count=0, id=None):
        id, body = id or next(self.ids), b"".join([body, *items])
        header = len(body), OPS.index(op) + 1, flags, queue, id, count or len(items)
        self.stream.write(struct.pack("<IBBHII", *header) + body)
        return id

    def reply(self, id):  # a credit has many: tasks, recalls and an end
        self.stream.flush()
        while not self.frames.get(id):
            length, op, flags, _, found, count = struct.unpack("<IBBHII", self.exactly(16))
            self.frames.setdefault(found, []).append((Body(self.exactly(length)), op, flags, count))
        return Body.value(*self.frames[id].pop(0))

    def call(self, *args, **kwargs):
        return self.reply(self.send(*args, **kwargs))


def mac(key, message):
    return b"{sha256}" + hmac.digest(key, message, "sha256")


def time(seconds):
    return struct.pack("<Q", 2**64 - 1 if seconds is None else round(seconds * 1_000_000))


def payload(item):
    codec = b"P" if isinstance(item, Pickle) else b"B" if isinstance(item, bytes) else b"X"
    content = json.dumps(item).encode() if codec == b"X" else item
    return struct.pack("<cI", codec, len(content)) + content


def item(value, delay=None, priority=None, expires=None, key=None):
    terms = b"" if delay is None else b"\1" + time(delay)
    terms += b"" if priority is None else struct.pack("<Bq", 2, priority)
    terms += b"" if expires is None else b"\3" + time(expires)
    terms += b"" if key is None else struct.pack("<BH", 4, len(key)) + key
    return struct.pack("<Hx", len(terms)) + terms + payload(value)


def settlement(kind, token, wait=0, reason=b"", result=b""):
    return struct.pack("<BxH28s", kind, len(reason), token) + time(wait) + reason + result


class Body(io.BytesIO):  # of a reply
    def value(self, op, flags, count):
        if op == 0xFF:
            raise Refused(CODES[self.take("H2x")[0]], self.read().decode())
        return {
            DONE: lambda: None,
            COUNT: lambda: self.numbers("Q")[0],
            OPENED: lambda: (*self.take("BBB5xQQ"), self.read().decode()),
            ADDED: lambda: self.added(count),
            TASKS: lambda: [self.task() for _ in range(count)],
            SETTLED: lambda: [CODES[code] for code in self.numbers("H") or [0] * count],
            SIZE: lambda: self.numbers("Q"),
            TEXT: lambda: (json.loads(self.read()), flags == 1),
            PEEKED: lambda: [self.peeked() for _ in range(count)],
            RECALL: lambda: count,
        }[op]()

    def take(self, layout):
        return struct.unpack("<" + layout, self.read(struct.calcsize("<" + layout)))

    def numbers(self, kind):
        return [number for (number,) in struct.iter_unpack("<" + kind, self.read())]

    def payload(self):
        codec, length = self.take("cI")
        return {b"P": Pickle, b"X": json.loads, b"B": bytes}[codec](self.read(length))

    def added(self, count):
        code, length = self.take("H2xI") if self.getvalue() else (0, 0)
        return count, CODES[code], self.read(length).decode(), self.numbers("q")

    def task(self):
        (flags,) = self.take("B2x")
        token = self.read(28) if flags & 1 else None
        info = self.info() if flags & 2 else None
        return self.payload(), token, info

    def info(self):
        task, attempt, waited, ran, queue, worker, history = self.take("QI4xQQHHH")
        queue, worker = self.read(queue).decode(), self.read(worker).decode()
        history = [self.read(*self.take("I")).decode() for _ in range(history)]
        return queue, task, attempt, worker, waited / 1e6, ran / 1e6, history

    def peeked(self):
        length, has_item = self.take("IB")
        return json.loads(self.read(length)), self.payload() if has_item else None
