"""Takes a JSON text and bytes that a Rust program put, and answers. Runs on 2.7 and 3.x."""

import json
import sys

import client

manager = client.connect(sys.argv[1], client.read_key(sys.argv[2]), ["tasks", "sorted", "results"])
tasks, by_value = manager.tasks(), manager.sorted()


def check(item, kind, value):
    assert type(item) is kind, type(item)
    assert item == value, repr(item)[:100]


text = tasks.get()
check(text, type(client.text("")), client.text('{"name": "\\u00e4", "n": 7}'))
for value in [b"\x00\xff", b"", b"\x00\xff" * 100000]:
    check(tasks.get(), bytes, value)
for value in [b"a", b"b"]:
    check(by_value.get(), bytes, value)
manager.results().put(json.loads(text)["n"] ** 2)
