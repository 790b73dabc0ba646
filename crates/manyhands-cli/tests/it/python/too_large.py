"""Puts an item that is too large for the server, and then one that is not. Runs on 2.7 and 3.x."""

from __future__ import print_function

import sys

from client import connect, read_key

tasks = connect(sys.argv[1], read_key(sys.argv[2]), ["tasks"]).tasks()
try:
    tasks.put("x" * int(sys.argv[3]))
except ValueError as error:
    print(error)
tasks.put("small")
assert tasks.qsize() == 1
