"""Does what a test says with client.py: a line of JSON for each call, and for each outcome.

{"start": 1, "call": {"do": "get", "queue": "tasks", …}}   a call is made; nothing is printed
{"finish": 1}                                               its outcome is printed
{"send": []}                                                all that was started leaves
"""

import base64
import json
import struct
import sys

import client as native
from client import Client, Pickle, Refused, item, payload, settlement, time


def content(value):
    """An item as a test says it: JSON, bytes or a pickle, the latter two in base64."""
    ((kind, value),) = value.items()
    kinds = {"json": lambda it: it, "bytes": raw, "pickle": lambda it: Pickle(raw(it))}
    return kinds[kind](value)


def raw(text):
    return base64.b64decode(text)


def shown(value):
    if isinstance(value, bytes):
        kind = "pickle" if isinstance(value, Pickle) else "bytes"
        return {kind: base64.b64encode(value).decode()}
    return {"json": value}


class Face:
    def __init__(self, client):
        self.client, self.handles, self.calls = client, {}, {}

    def start(self, number, call):
        self.calls[number] = call["do"], self.ask(**call)

    def ask(self, do, queue=None, wait=0, **more):
        send, handle = self.client.send, self.handles.get(queue, 0)
        if do == "open":
            handle = self.handles.setdefault(queue, len(self.handles) + 1)
            return send("open", handle, queue.encode())
        if do == "put":
            items = [self.item(**it) for it in more["items"]]
            return send("put", handle, time(wait), items, flags=int(more["numbers"]))
        if do == "get":
            flags = more["leased"] + 2 * more["informed"]
            limits = struct.pack("<II", more["max"], more["max_bytes"])
            return send("get", handle, time(wait) + time(more["hold"]) + limits, flags=flags)
        if do == "settle":
            settlements = [self.settlement(**it) for it in more["settlements"]]
            return send("settle", handle, time(wait), settlements)
        if do == "credit":
            id = more["of"] and self.calls[more["of"]][1]
            body = time(more["hold"]) + struct.pack("<I", more["credit"])
            return send("credit", handle, body, flags=int(more["ends"]), id=id)
        if do == "cancel":
            return send("cancel", 0, id=self.calls[more["of"]][1])
        if do == "task_done":
            return send("task_done", handle, count=more["count"])
        if do == "peek":
            state = ["ready", "delayed", "leased"].index(more["state"])
            return send("peek", handle, struct.pack("<IBBH", more["max"], state, 1, 0))
        if do == "redrive":
            task = 2**64 - 1 if more["task"] is None else more["task"]
            return send("redrive", handle, struct.pack("<QQ", more["max"], task))
        if do == "shutdown":
            return send("shutdown", handle, flags=int(more["immediate"]))
        if do == "list":
            return send("list", 0, more["after"].encode())
        if do == "drop":
            return send("drop", 0, more["name"].encode(), flags=int(more["forced"]))
        if do == "configure":
            name = more["name"].encode()
            return send(
                "configure", 0, struct.pack("<H", len(name)) + name + more["options"].encode()
            )
        return send(do, handle)

    def item(self, value, key, **terms):
        return item(content(value), key=key and key.encode(), **terms)

    def settlement(self, kind, token, after, reason, result):
        result = b"" if result is None else payload(content(result))
        kind = getattr(native, kind.upper())
        return settlement(kind, raw(token), after, reason.encode(), result)

    def finish(self, number):
        do, id = self.calls[number]
        try:
            return self.outcome(do, self.client.reply(id))
        except Refused as refused:
            code, text = refused.args
            return {"refused": code, "text": text}

    def outcome(self, do, said):
        if do == "open":
            order, durability, flags, maxsize, hold, results = said
            hold = None if hold == 2**64 - 1 else hold / 1e6
            return {
                "order": ["fifo", "lifo", "priority"][order],
                "durability": ["memory", "os", "disk"][durability],
                "needs_results": bool(flags & 1),
                "ordered": bool(flags & 2),
                "maxsize": maxsize,
                "hold": hold,
                "results": results,
            }
        if do == "put":
            count, code, _, numbers = said
            return {
                "count": count,
                "code": code,
                "numbers": [None if n < 0 else n for n in numbers],
            }
        if do in ("get", "credit") and isinstance(said, list):
            return [self.task(*task) for task in said]
        if do == "credit" and said is not None:
            return {"recall": said}
        if do == "peek":
            return [{**known, "item": item and shown(item)} for known, item in said]
        return said

    def task(self, item, token, info):
        told = {"item": shown(item)}
        if token is not None:
            task, lease, seal, attempt = struct.unpack("<QQQI", token)
            told.update(token=base64.b64encode(token).decode(), task=task, attempt=attempt)
        if info is not None:
            names = "queue task attempt worker waited ran history".split()
            told["info"] = dict(zip(names, info))
        return told


def main(port, key_file, name, reader):
    with open(key_file, "rb") as file:
        face = Face(Client("127.0.0.1", int(port), file.read(), name.encode(), int(reader)))
    for line in sys.stdin:
        order = json.loads(line)
        if "start" in order:
            face.start(order["start"], order["call"])
        elif "finish" in order:
            print(json.dumps(face.finish(order["finish"])))
        else:
            face.client.stream.flush()


main(*sys.argv[1:])
