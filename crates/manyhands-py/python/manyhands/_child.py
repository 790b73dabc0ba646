"""A process of a worker's pool: it runs one task after the other, and ends when its parent does.

What it imports is little, so that it starts soon. Only here are tasks unpickled. `perform` is also
what threads and interpreters run.
"""

import os
import pickle
import signal
import socket
import struct
import sys
import time
import types

# Length and kind of what follows, both ways.
HEADER = struct.Struct("<QB")
# Length of the line that is in front of the traceback.
_REASON = struct.Struct("<Q")
# Kinds: set-up; items as the server has them (pickle, JSON, bytes), calls of an executor.
SETUP, PICKLE, JSON, BYTES, CALL = b"SPXBC"
# Kinds of replies: ready, cannot start, a pickled result, the result of a call, a failure.
READY, BROKEN, RESULT, ANSWER, FAILED, GIVEN_UP = b"RKPAFG"

_is_importing_main = False


class GiveUp(Exception):
    """Raised by a task that no further attempt can do: it is a dead letter at once."""


class StopImport(BaseException):
    """Ends the import of a master's script where its work begins."""


def stop_import():
    """End the import of a script in a worker, if that is what runs."""
    if _is_importing_main:
        raise StopImport


def main(descriptor):
    """Run tasks that come by a socket until it ends."""
    link = _Link(descriptor)
    setup = pickle.loads(link.recv()[1])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[:] = setup["path"]
    sys.argv[:] = setup["argv"]
    if setup["main"] is not None:
        _install_main(*setup["main"])
    try:
        function = load_function(setup["function"])
    except BaseException as error:
        text = _cannot_import(setup["function"], error)
        link.send(BROKEN, text.encode("utf-8", "backslashreplace"))
        return 1
    pid = os.getpid()
    link.send(READY, b"")
    while True:
        received = link.recv()
        if received is None:
            return 0
        reply = perform(function, *received)
        if os.getpid() != pid:
            # The task forked, and came back twice.
            os._exit(0)
        link.send(*reply)


class _Link:
    """The socket to the parent."""

    def __init__(self, descriptor):
        # What a task starts has nothing to do with it.
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=descriptor)
        self._file = self._socket.makefile("rb")

    def recv(self):
        header = self._file.read(HEADER.size)
        if len(header) < HEADER.size:
            return None
        length, kind = HEADER.unpack(header)
        body = self._file.read(length)
        return (kind, body) if len(body) == length else None

    def send(self, kind, body):
        try:
            self._socket.sendall(HEADER.pack(len(body), kind) + body)
        except OSError:
            # The parent has gone: nobody wants to know.
            os._exit(1)


# ---- functions


def load_function(spec):
    """The function that tasks are for; ``None`` if they say that themselves."""
    if spec is None:
        return None
    kind, what = spec
    if kind == "pickle":
        return pickle.loads(what)
    from importlib import import_module

    module, _, path = what.partition(":")
    found = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError("{} is a {}, not a function".format(what, type(found).__name__))
    return found


def _cannot_import(spec, error):
    what = spec[1] if spec[0] == "name" else "the function"
    return "cannot import {}: {}: {}".format(what, type(error).__name__, error)


def perform(function, kind, body):
    """Run a task; return the kind of the reply and its body."""
    if kind == CALL:
        return ANSWER, _answer(body)
    try:
        item = _load(kind, body)
    except BaseException as error:
        return GIVEN_UP, _told("cannot unpickle the task", error)
    try:
        result = _call(function, (item,), {})
    except BaseException as error:
        return _failed(error)
    return _result(result)


async def perform_async(function, kind, body):
    """The same with a coroutine function, awaited."""
    try:
        item = _load(kind, body)
    except Exception as error:
        return GIVEN_UP, _told("cannot unpickle the task", error)
    try:
        result = await function(item)
    except Exception as error:
        return _failed(error)
    return _result(result)


_functions = {}


def perform_as(spec, kind, body):
    """The same in an interpreter, which loads the function when it is first asked."""
    if spec not in _functions:
        try:
            _functions[spec] = load_function(spec)
        except Exception as error:
            return FAILED, _told(_cannot_import(spec, error), error)
    return perform(_functions[spec], kind, body)


def _failed(error):
    if isinstance(error, GiveUp):
        return GIVEN_UP, _told("", error.__cause__ or error)
    return FAILED, _told("", error)


def _result(result):
    try:
        return RESULT, pickle.dumps(result, pickle.HIGHEST_PROTOCOL)
    except BaseException as error:
        return GIVEN_UP, _told("cannot pickle the result", error)


def _load(kind, body):
    if kind == PICKLE:
        return pickle.loads(body)
    return body.decode() if kind == JSON else body


def _call(function, args, kwargs):
    result = function(*args, **kwargs)
    if isinstance(result, types.CoroutineType):
        import asyncio

        return asyncio.run(result)
    return result


def _told(what, error):
    """Why a task failed: a line, and the traceback."""
    import traceback

    text = "".join(traceback.format_exception_only(type(error), error)).strip()
    trace = error.__traceback__
    # The first frames are ours.
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    frames = traceback.extract_tb(trace)
    if frames:
        last = frames[-1]
        text += " ({}:{} in {})".format(os.path.basename(last.filename), last.lineno, last.name)
    if what:
        text = "{}: {}".format(what, text)
    lines = "".join(traceback.format_exception(type(error), error, trace))
    return pack_reason(text, lines)


def pack_reason(text, lines):
    """Why a task failed, in a line and in full, for a parent that unpickles nothing."""
    # A name of a file may have what is no Unicode, and no text may have on its way.
    text, lines = (it.encode("utf-8", "backslashreplace") for it in (text, lines))
    return _REASON.pack(len(text)) + text + lines


def unpack_reason(body):
    """The line, and all of it."""
    (length,) = _REASON.unpack_from(body)
    body = body[_REASON.size :]
    return body[:length].decode(errors="replace"), body[length:].decode(errors="replace")


# ---- calls of an executor


def _answer(item):
    from . import _remote_calls as _calls

    call, body = _calls.unpack(item)
    try:
        found = pickle.loads(memoryview(body)[1:])
    except BaseException as error:
        return _calls.pack(call, _calls.dump_failure(_unreadable(_calls, error)))
    answer = _answer_one if body[:1] == _calls.ONE else _answer_many
    return _calls.pack(call, answer(_calls, *found))


def _unreadable(calls, error):
    failure = calls.failure_of(error)
    text = "a worker (process {} of {}) cannot unpickle the call: {}".format(
        os.getpid(), socket.gethostname(), failure[1]
    )
    if isinstance(error, (AttributeError, ImportError)):
        text += "; does it have the same version of the code?"
    return calls.Failure((None, text, failure[2]))


def _answer_one(calls, function, args, kwargs):
    try:
        value = _call(function, args, kwargs)
    except BaseException as error:
        return calls.dump_failure(_failure(calls, error))
    try:
        return calls.dump_value(value)
    except BaseException as error:
        return calls.dump_failure(_unpicklable(calls, function, error))


def _answer_many(calls, function, chunk):
    outcomes, began = [], time.perf_counter()
    for args in chunk:
        try:
            outcomes.append((True, _call(function, args, {})))
        except BaseException as error:
            outcomes.append((False, tuple(_failure(calls, error))))
    seconds = time.perf_counter() - began
    try:
        return calls.dump_values(seconds, outcomes)
    except BaseException:
        outcomes = [_checked(calls, function, *outcome) for outcome in outcomes]
        return calls.dump_values(seconds, outcomes)


def _checked(calls, function, is_value, found):
    """The outcome, or why it cannot be pickled."""
    if is_value:
        try:
            pickle.dumps(found, pickle.HIGHEST_PROTOCOL)
        except BaseException as error:
            return False, tuple(_unpicklable(calls, function, error))
    return is_value, found


def _failure(calls, error):
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return calls.failure_of(error.with_traceback(trace))


def _unpicklable(calls, function, error):
    text = "the result of {} cannot be pickled: {}".format(calls.name(function), error)
    return calls.failure_of(pickle.PicklingError(text))


# ---- the master's script, for tasks that name what is in it


def _install_main(path, module):
    main = _Main("__mp_main__")
    main.__dict__.update(__file__=path, __spec__=None, _manyhands_main=(path, module))
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main


class _Main(types.ModuleType):
    """The master's script, which is run when something in it is needed."""

    def __getattr__(self, name):
        todo = self.__dict__.get("_manyhands_main")
        if todo is None or (name.startswith("__") and name.endswith("__")):
            raise AttributeError("the master's script has no {!r}".format(name))
        self._manyhands_main = None
        _run_main(self, *todo)
        return getattr(self, name)


def _run_main(main, path, module):
    global _is_importing_main
    if module is not None:
        from importlib.util import find_spec

        spec = find_spec(module)
        code = spec.loader.get_code(module)
        main.__dict__.update(__package__=spec.parent)
    else:
        import io

        with io.open_code(path) as file:
            code = compile(file.read(), path, "exec")
    _is_importing_main = True
    try:
        exec(code, main.__dict__)
    except StopImport:
        # What comes after is the master's work. What is above is there.
        pass
    finally:
        _is_importing_main = False
