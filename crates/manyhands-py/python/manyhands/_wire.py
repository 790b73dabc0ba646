"""Bytes of the protocol, without sockets: frames, requests, replies, the handshake.

Whoever owns a socket drives the generators here and in ``_calls``: each yields a function and its
arguments, to be called or awaited, and is sent the result. So clients with and without an event
loop are the same program.
"""

import io
import pickle
import queue
import select

from ._manyhands import ManyhandsError

# How long a server may take over what needs no waiting, in seconds.
SILENCE_TIMEOUT = 10
# Longest reply that is read, in bytes.
_REPLY_LEN_MAX = 1 << 30
# Before Python 3.13 there is no queue.ShutDown; older programs expect Empty or Full.
_ShutDown = getattr(queue, "ShutDown", None) or type("ShutDown", (queue.Empty, queue.Full), {})


class StaleLease(ManyhandsError):
    """Somebody else has the task of a lease, or it was settled otherwise: nothing was done."""

    # Whether the call was made again after a lost connection, so that the first may have done it.
    was_repeated = False


class NoResult(ManyhandsError):
    """A lease of a queue that declares results was to be done without one."""


class NoFrame(ConnectionResetError):
    """What came is no reply of a server that we know."""


class Frames:
    """Splits received bytes into the bodies of frames."""

    def __init__(self):
        self._inbound = bytearray()

    def feed(self, data):
        self._inbound += data

    def split(self):
        """The next body, or ``None`` if it is not all there."""
        inbound, start = self._inbound, 4
        length = int.from_bytes(inbound[:4], "big", signed=True)
        if length == -1:
            start = 12
            length = int.from_bytes(inbound[4:12], "big")
        if not 0 <= length <= _REPLY_LEN_MAX:
            raise NoFrame("a reply of {} bytes is refused".format(length))
        if len(inbound) < start + length:
            return None
        body = bytes(memoryview(inbound)[start : start + length])
        del inbound[: start + length]
        return body


class Silence:
    """Tells whether nothing has come on a socket, not even its end."""

    def __init__(self, connection):
        self._poll = select.poll() if hasattr(select, "poll") else _Select()
        self._poll.register(connection, 1)

    def lasts(self):
        try:
            return not self._poll.poll(0)
        except OSError:
            return False


class _Select:
    """What stands in for ``select.poll`` where there is none."""

    def register(self, connection, _):
        self._connection = connection

    def poll(self, timeout):
        return select.select([self._connection], [], [], timeout)[0]


def frame(body):
    """A body with its length in front."""
    if len(body) > 0x7FFFFFFF:
        return b"\xff\xff\xff\xff" + len(body).to_bytes(8, "big") + body
    return len(body).to_bytes(4, "big") + body


def request(ident, method, args=(), kwds={}, protocol=None):  # noqa: B006
    """A framed request; ``ident`` is ``None`` for the server itself."""
    return frame(pickle.dumps((ident, method, args, kwds), protocol))


def greet(line, handshake, first):
    """Authenticate on a new line and send the first request; return the body of its reply."""
    is_done = False
    while not is_done:
        answer, is_done = handshake.receive((yield line.receive, SILENCE_TIMEOUT))
        outbound = b"" if answer is None else frame(answer)
        # Apart, the last answer and the request would wait for an acknowledgement in between.
        yield line.send, outbound + first if is_done else outbound
    return (yield line.receive, SILENCE_TIMEOUT)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) == ("queue", "ShutDown"):
            return _ShutDown
        return super().find_class(module, name)


def value(body):
    """What a call returned. Raises what it raised."""
    if b"ShutDown" in body and len(body) < 100:
        kind, result = _Unpickler(io.BytesIO(body)).load()
    else:
        kind, result = pickle.loads(body)
    if kind == "#RETURN":
        return result
    if kind == "#ERROR":
        raise _told_apart(result)
    if kind in ("#TRACEBACK", "#UNSERIALIZABLE"):
        raise ManyhandsError(str(result).strip().rpartition("\n")[2])
    raise ManyhandsError("the server answered with {}, which only a manager reads".format(kind))


def _told_apart(error):
    text = str(error)
    if isinstance(error, ValueError) and text.startswith(("stale:", "duplicate:")):
        return StaleLease(text)
    if isinstance(error, ValueError) and text.startswith("no results:"):
        return ManyhandsError(text)
    if isinstance(error, ValueError) and text.startswith("no result:"):
        return NoResult(text)
    return error
