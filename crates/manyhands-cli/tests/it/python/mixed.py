"""Items from one version of Python to another. 2.7 and 3.x.

usage: mixed.py put|get PORT KEYFILE MINE OTHER...     (queues are called FROM_to_TO)
"""

from __future__ import print_function

import collections
import datetime
import sys

from client import PY2, connect, read_key, say, text

PORTABLE = [
    "text",
    text("unicode \\u00e9"),
    7,
    -1,
    2**80,
    1.5,
    None,
    True,
    (1, "put"),
    [1, [2, ()]],
    {"get": {"timeout": "get"}},
]
RICH = [
    b"bytes \xff",
    {1, 2},
    frozenset([3]),
    datetime.date(2020, 2, 29),
    collections.OrderedDict([("b", 1), ("a", 2)]),
    text("\\U0001f600"),
    ["x" * 300] * 2,
    b"z" * 70000,
]


def put(m, mine, others):
    for other in others:
        getattr(m, "%s_to_%s" % (mine, other))().put(PORTABLE if PY2 else PORTABLE + RICH)


def get(m, mine, others):
    for other in others:
        q = getattr(m, "%s_to_%s" % (other, mine))()
        expected = PORTABLE if other == "2.7" else PORTABLE + RICH
        try:
            got = q.get_nowait()
            saw = "equal" if got == expected else "differs: %r" % (got,)
        except Exception as error:
            saw = "raised %s: %s" % (type(error).__name__, error)
        say(sender=other, saw=saw, left=q.qsize())


if __name__ == "__main__":
    role, port, key_file, me = sys.argv[1:5]
    names = ["%s_to_%s" % pair for other in sys.argv[5:] for pair in ((me, other), (other, me))]
    globals()[role](connect(port, read_key(key_file), names), me, sys.argv[5:])
