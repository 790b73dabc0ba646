"""Sessions of proxies that do the same with less: a request in one write, a reply in one read.

The standard ``Connection`` makes a new pickler for each request, writes a long one in two parts,
of which the second waits for an acknowledgement, and reads each reply in two. Nothing that a caller
can notice is different: who waits still waits in a call of the system on its own thread, interrupts
and all, and pickles are made by the standard library's pickler.
"""

import io
import os
import sys
from multiprocessing import connection
from multiprocessing.managers import BaseProxy
from multiprocessing.reduction import ForkingPickler
from pickle import loads

_standard_connect = BaseProxy._connect
# Longest pickle whose pickler is kept, and most that is read at one time, in bytes.
_KEPT_LEN, _READ_LEN = 64 << 10, 64 << 10
_HEADER_LEN = 4
# Protocol to picklers at rest. What is pickled while something else is gets one of its own.
_picklers = {}


def install():
    """Give proxies that connect from now on such sessions."""
    if BaseProxy._connect is _standard_connect and sys.platform != "win32":
        BaseProxy._connect = _connect


def _connect(self):
    _standard_connect(self)
    session = self._tls.connection
    if type(session) is connection.Connection:
        session.__class__ = _Session


class _Session(connection.Connection):
    """A connection on which one message follows the other."""

    # What was read beyond the last message.
    _surplus = b""

    def send(self, obj):
        descriptor = self.fileno()
        message = frame(dumps(obj))
        written = os.write(descriptor, message)
        while written < len(message):
            message = memoryview(message)[written:]
            written = os.write(descriptor, message)

    def recv(self):
        message = self._surplus or os.read(self.fileno(), _READ_LEN)
        length = int.from_bytes(message[:_HEADER_LEN], "big", signed=True) + _HEADER_LEN
        if len(message) == length > _HEADER_LEN:
            self._surplus = b""
            return loads(memoryview(message)[_HEADER_LEN:])
        self._surplus = message
        return loads(self._rest())

    def _rest(self):
        """The next message, of which a part is there, or more than that."""
        size = int.from_bytes(self._read(_HEADER_LEN), "big", signed=True)
        if size == -1:
            size = int.from_bytes(self._read(8), "big")
        return self._read(size)

    def _read(self, size):
        parts, missing = [], size
        while missing > 0:
            part = self._surplus or os.read(self.fileno(), min(missing, 1 << 20))
            self._surplus = part[missing:]
            part = part[:missing]
            if not part and not parts and size == _HEADER_LEN:
                raise EOFError
            if not part:
                raise OSError("got end of file during message")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


def frame(body):
    """A body with its length in front."""
    if len(body) > 0x7FFFFFFF:
        return b"\xff\xff\xff\xff" + len(body).to_bytes(8, "big") + body
    return len(body).to_bytes(4, "big") + body


def dumps(obj, protocol=None):
    """Pickle as the standard library does between processes."""
    picklers = _picklers.setdefault(protocol, [])
    try:
        pickler, buffer = picklers.pop()
    except IndexError:
        buffer = io.BytesIO()
        pickler = ForkingPickler(buffer, protocol)
    pickler.dump(obj)
    # What was pickled is not kept alive.
    pickler.clear_memo()
    pickled = buffer.getvalue()
    if len(pickled) <= _KEPT_LEN:
        buffer.seek(0)
        buffer.truncate()
        picklers.append((pickler, buffer))
    return pickled
