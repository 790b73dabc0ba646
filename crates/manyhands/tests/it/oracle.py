# -*- coding: utf-8 -*-
"""Pickles random calls for oracle.rs and checks what it cuts out of them. Python 2.7 and 3.6+.

Standard output: requests. Standard input: answers. Both as blocks behind a 4-byte length.
"""

from __future__ import print_function

import array
import collections
import datetime
import decimal
import io
import os
import pickle
import random
import struct
import sys

PY3 = sys.version_info[0] == 3
if PY3:
    import copyreg
    import enum
    import multiprocessing.managers  # noqa: F401, registers its reducers
    from multiprocessing.reduction import ForkingPickler

    intern = sys.intern
    long = int
    unicode = str
else:
    import copy_reg as copyreg
    import cPickle

# The pipes are ours alone; whatever prints must not disturb them.
REQUESTS = os.fdopen(os.dup(1), "wb")
ANSWERS = os.fdopen(os.dup(0), "rb")
os.dup2(2, 1)

# Interned, as names in source text are: an equal name inside an argument is the same object.
IDENT = intern("7f5576e25be0")
METHOD = intern("put")
KEYWORDS = [intern(name) for name in ("item", "obj", "block", "timeout")]
NAMES = [IDENT, METHOD, intern("get"), intern("name")] + KEYWORDS


class Plain(object):
    pass


class Slotted(object):
    __slots__ = ("put", "block")


class Reduced(object):
    def __init__(self, *args):
        self.args = args

    def __reduce__(self):
        return Reduced, self.args, {"args": self.args, "put": "put"}


class Filled(object):
    def __init__(self):
        self.items, self.pairs = [], {}

    def append(self, item):
        self.items.append(item)

    def extend(self, items):
        self.items.extend(items)

    def __setitem__(self, key, value):
        self.pairs[key] = value

    def __reduce__(self):
        return Filled, (), None, iter(self.items), iter(list(self.pairs.items()))


class NewArgs(object):
    def __new__(cls, *args):
        self = object.__new__(cls)
        self.args = args
        return self

    def __getnewargs__(self):
        return self.args


class NewArgsEx(object):
    def __new__(cls, a, block=None):
        self = object.__new__(cls)
        self.a, self.block = a, block
        return self

    def __getnewargs_ex__(self):
        return (self.a,), {"block": self.block}


class ListWithAttributes(list):
    pass


class DictWithAttributes(dict):
    pass


class TupleWithAttributes(tuple):
    pass


class Extension(object):
    pass


class Failure(Exception):
    pass


class Old:
    pass


def function():
    pass


Named = collections.namedtuple("Named", "put get")
copyreg.add_extension("__main__", "Extension", 0x7777)
if PY3:

    class Color(enum.Enum):
        put = "put"
        RED = 1


class Values(object):
    """Random values. Those made before, finished or not, turn up again inside later ones."""

    def __init__(self, chance, protocol):
        self.chance, self.protocol, self.made = chance, protocol, []

    def atom(self):
        chance = self.chance
        return chance.choice(
            [
                lambda: None,
                lambda: chance.choice([True, False]),
                lambda: chance.choice([0, 1, 255, 256, 65535, 65536, -1, 2**31 - 1, -(2**31)]),
                lambda: chance.choice([1, -1])
                * chance.getrandbits(chance.choice([40, 63, 64, 2100])),
                lambda: chance.choice([0.0, -1.5, 1e300, float("inf"), chance.random()]),
                lambda: chance.choice(NAMES),
                lambda: "\u4f60\\u\n\xe9\x00\U0001f600"[: chance.randrange(8)],
                lambda: "x" * chance.choice([0, 1, 10, 255, 256, 300]),
                lambda: b"\x00\xff\n'\"\\"[: chance.randrange(7)],
                lambda: b"\x02" * chance.choice([1, 255, 256]),
            ]
        )()

    def key(self):
        return self.chance.choice([self.chance.choice(NAMES), self.chance.randrange(9), (1, "put")])

    def list(self, depth, kind=list):
        made = kind()
        self.made.append(made)
        made.extend(self.value(depth) for _ in range(self.chance.randrange(5)))
        return made

    def dict(self, depth, kind=dict):
        made = kind()
        self.made.append(made)
        for _ in range(self.chance.randrange(5)):
            made[self.key()] = self.value(depth)
        return made

    def tuple(self, depth, kind=tuple):
        made = kind(self.value(depth) for _ in range(self.chance.randrange(6)))
        self.made.append(made)
        return made

    def recursive_tuple(self, depth):
        inner = [self.value(depth)]
        made = tuple([inner] + [1] * self.chance.randrange(5))
        inner.append(made)
        self.made.append(made)
        return made

    def set(self, depth):
        kind = self.chance.choice([set, frozenset])
        if self.chance.random() < 0.3:
            element = Plain()
            made = kind([element])
            element.inside = made
        else:
            made = kind(self.key() for _ in range(self.chance.randrange(4)))
        self.made.append(made)
        return made

    def attributes(self, depth, made):
        self.made.append(made)
        for name in self.chance.sample(["put", "block", "other"], self.chance.randrange(3)):
            if not isinstance(made, Slotted) or name != "other":
                setattr(made, name, self.value(depth))
        return made

    def instance(self, depth):
        kinds = [Plain, ListWithAttributes, DictWithAttributes, TupleWithAttributes, Failure]
        if self.protocol >= 2:
            kinds.append(Slotted)
        if not PY3:
            kinds.append(Old)
        return self.attributes(depth, self.chance.choice(kinds)())

    def made_by_call(self, depth):
        kinds = [
            lambda: Reduced(self.value(depth), "put"),
            self.filled,
            lambda: Named(self.value(depth), self.value(depth)),
            lambda: collections.OrderedDict([("put", self.value(depth))]),
            lambda: collections.deque([self.value(depth), "put"], 5),
            lambda: collections.defaultdict(list, {"put": self.value(depth)}),
            lambda: decimal.Decimal("1.50"),
            lambda: complex(1, 2),
            lambda: datetime.datetime(2020, 1, 2, 3, 4, 5, 6),
            lambda: array.array("i", [1, 2, 3]),
            lambda: bytearray(b"ab\xff" * self.chance.choice([0, 1, 200])),
        ]
        if self.protocol >= 2:
            kinds.append(lambda: NewArgs(self.value(depth), "put"))
            kinds.append(Extension)
            if PY3:
                kinds.append(lambda: NewArgsEx(self.value(depth), block="put"))
        if PY3:
            kinds.append(lambda: Color.put)
        made = self.chance.choice(kinds)()
        self.made.append(made)
        return made

    def filled(self):
        made = Filled()
        made.items = [self.atom(), "put"]
        made.pairs = {"block": self.atom()}
        return made

    def named(self, depth):
        return self.chance.choice([Plain, function, len, dict, collections.OrderedDict])

    def huge(self):
        return self.chance.choice(
            [
                lambda: b"z" * 70000,
                lambda: "y" * 70000,
                lambda: [b"z" * 70000, "y" * 70000, NAMES],
                lambda: [("row%d" % i, i * 1.5, b"v" * (i % 50)) for i in range(2600)],
                lambda: [["k%d" % i for i in range(600)], ["k%d" % i for i in range(600)]],
                lambda: list(range(2500)),
                lambda: tuple(range(300)),
                lambda: dict((str(i), [i]) for i in range(1200)),
            ]
        )()

    def again(self):
        return self.chance.choice(self.made) if self.made else self.atom()

    def value(self, depth=4):
        dice = self.chance.random()
        if depth == 0 or dice < 0.3:
            return self.atom()
        if dice < 0.45:
            return self.again()
        if dice < 0.46:
            return self.huge()
        kinds = [
            self.list,
            self.dict,
            self.tuple,
            self.recursive_tuple,
            self.set,
            self.instance,
            self.made_by_call,
            self.named,
        ]
        return self.chance.choice(kinds)(depth - 1)


def random_call(chance, protocol):
    values = Values(chance, protocol)
    args = [values.value() for _ in range(chance.choice([0, 1, 1, 1, 2, 3, 4, 6]))]
    kwargs = dict(
        (name, values.value()) for name in chance.sample(KEYWORDS, chance.choice([0, 0, 1, 2]))
    )
    if not args and not kwargs:
        args = [values.huge()]
    method = chance.choice([METHOD, METHOD, IDENT, "m" * chance.choice([1, 300])])
    return chance.choice([IDENT, IDENT, None]), method, tuple(args), kwargs


def dump_in_python(value, protocol):
    if not PY3:
        return pickle.dumps(value, protocol)
    out = io.BytesIO()
    pickle._Pickler(out, protocol).dump(value)
    return out.getvalue()


def fork_dump(value, protocol):
    return bytes(ForkingPickler.dumps(value, protocol))


if PY3:
    DUMPERS = [pickle.dumps, pickle.dumps, dump_in_python, fork_dump]
    LOADERS = [pickle.loads, pickle._loads]
else:
    DUMPERS = [cPickle.dumps, cPickle.dumps, dump_in_python]
    LOADERS = [cPickle.loads, pickle.loads]

PLAIN_TYPES = (
    type(None),
    bool,
    int,
    long,
    float,
    complex,
    str,
    unicode,
    bytes,
    bytearray,
    datetime.datetime,
    decimal.Decimal,
    array.array,
)


class Difference(Exception):
    pass


def compare(one, other, twins, path="value"):
    """Both graphs have the same shape: equal values, and the same objects at the same places."""
    if type(one) is not type(other):
        raise Difference("%s: %s is not %s" % (path, type(one), type(other)))
    if isinstance(one, type) or callable(one):
        if one is not other:
            raise Difference("%s: another global" % path)
        return
    if isinstance(one, PLAIN_TYPES):
        if one != other:
            raise Difference("%s: %.80r is not %.80r" % (path, one, other))
        return
    if isinstance(one, (tuple, frozenset)) and not one:
        if other:
            raise Difference("%s: not empty" % path)
        if type(one) in (tuple, frozenset):
            return
    if id(one) in twins or id(other) in twins:
        if twins.get(id(one)) != id(other) or twins.get(id(other)) != id(one):
            raise Difference("%s: shared otherwise" % path)
        return
    twins[id(one)], twins[id(other)] = id(other), id(one)
    compare_contents(one, other, twins, path)


def compare_contents(one, other, twins, path):
    if isinstance(one, (list, tuple, collections.deque)):
        compare_items(list(one), list(other), twins, path + "[%d]")
    elif isinstance(one, dict):
        compare_mappings(one, other, twins, path)
    elif isinstance(one, (set, frozenset)):
        if any(isinstance(element, Plain) for element in one):
            compare_items(list(one), list(other), twins, path + ".set[%d]")
        elif one != other:
            raise Difference("%s: another set" % path)
    elif isinstance(one, BaseException):
        compare(one.args, other.args, twins, path + ".args")
    if hasattr(one, "__dict__") and not (PY3 and isinstance(one, enum.Enum)):
        compare_mappings(vars(one), vars(other), twins, path + ".dict")
    for name in getattr(type(one), "__slots__", ()):
        compare(getattr(one, name, None), getattr(other, name, None), twins, path + "." + name)


def compare_mappings(one, other, twins, path):
    keys, others = sorted(one, key=repr), sorted(other, key=repr)
    compare_items(keys, others, twins, path + ".keys[%d]")
    compare_items(
        [one[key] for key in keys], [other[key] for key in others], twins, path + ".values[%d]"
    )


def compare_items(one, other, twins, path):
    if len(one) != len(other):
        raise Difference(path % -1 + ": %d items are not %d" % (len(one), len(other)))
    for index, (mine, theirs) in enumerate(zip(one, other)):
        compare(mine, theirs, twins, path % index)


def rendered(value, pickled_bytes_are_opaque):
    """What oracle.rs says of a simple value; empty if it is none."""
    if value is None:
        return b"None"
    if isinstance(value, bool):
        return b"bool %d" % value if PY3 else "bool %d" % value
    if type(value) in (int, long):
        return ("int %d" % max(min(value, 2**63 - 1), -(2**63))).encode("ascii")
    if type(value) is float:
        return b"float " + ("%016x" % struct.unpack(">Q", struct.pack(">d", value))).encode("ascii")
    if type(value) is unicode:
        return b"text " + value.encode("utf-8")
    if type(value) is bytes and not PY3:
        ascii_only = all(byte < "\x80" for byte in value)
        return (b"text " if ascii_only else b"bytes ") + value
    if type(value) is bytes:
        return b"" if pickled_bytes_are_opaque else b"bytes " + value
    return b""


def send(block):
    REQUESTS.write(struct.pack(">I", len(block)) + block)
    REQUESTS.flush()


def receive():
    (length,) = struct.unpack(">I", ANSWERS.read(4))
    return ANSWERS.read(length)


def check(call, protocol, dump):
    try:
        # The pickler of 2.7 numbers by reference counts; a copy of the call gets other pickles.
        references = [loads_of(dump, value, protocol) for value in expected_arguments(call)]
        request = dump(call, protocol)
    except Exception:
        return False
    send(request)
    count = receive()
    if count.startswith(b"error"):
        raise Difference(count.decode())
    answer = [receive() for _ in range(int(count))]
    assert answer[0] == (call[0] or "").encode("ascii"), answer[0]
    assert answer[1] == call[1].encode("ascii"), answer[1]
    blocks = [answer[start : start + 4] for start in range(2, len(answer), 4)]
    names = [block[0].decode("ascii") for block in blocks]
    assert names == [""] * len(call[2]) + list(call[3]), names
    for value, reference, block in zip(expected_arguments(call), references, blocks):
        check_argument(value, reference, block, protocol)
    return True


def expected_arguments(call):
    return list(call[2]) + [call[3][name] for name in call[3]]


def loads_of(dump, value, protocol):
    return pickle.loads(dump(value, protocol))


def check_argument(value, reference, block, protocol):
    name, standalone, reply, atom = block
    for loads in LOADERS:
        loaded = loads(standalone)
        compare(reference, loaded, {})
        kind, loaded = loads(reply)
        assert kind == "#RETURN", kind
        compare(reference, loaded, {})
    expected = rendered(value, protocol < 3)
    assert atom == expected, (atom[:80], expected[:80])


def main():
    calls, seed = int(sys.argv[1]), int(sys.argv[2])
    checked = 0
    for number in range(calls):
        chance = random.Random(seed * 1000003 + number)
        protocol = chance.randrange(pickle.HIGHEST_PROTOCOL + 1)
        dump = chance.choice(DUMPERS)
        call = random_call(chance, protocol)
        try:
            checked += check(call, protocol, dump)
        except Exception:
            print("call %d, protocol %d, %s" % (number, protocol, dump.__name__))
            print("%.2000r" % (call,))
            raise
    print("checked %d" % checked)
    assert checked > calls // 2, "most calls could not be pickled"


main()
