"""What travels between an executor and its workers: calls, and results and exceptions.

A call is an item of bytes, ``ID + BODY``, and so is its result: whoever passes it on, the worker's
own process too, unpickles nothing. A length of one byte is in front of the ID.
"""

import pickle
import traceback

try:
    import cloudpickle
except ImportError:
    cloudpickle = None

# The first byte of a body.
ONE, MANY, VALUE, ERROR, VALUES = b"1", b"m", b"v", b"e", b"s"
ID_LEN_MAX = 255


class Failure(tuple):
    """How a call failed: the pickle of the exception or ``None``, its text, the traceback."""

    __slots__ = ()


# ---- calls


def pack(call, body):
    """A call or its result, with the ID in front."""
    return bytes((len(call),)) + call + body


def unpack(item):
    """The ID and the body of a call or its result."""
    length = item[0]
    return item[1 : 1 + length], item[1 + length :]


def dump_call(function, args, kwargs, is_far):
    """The body of one call. ``is_far`` says that workers do not have the master's script."""
    return ONE + dump((function, args, kwargs), function, is_far)


def dump_chunk(function, chunk, is_far):
    """The body of a call for each tuple of arguments of a chunk."""
    return MANY + dump((function, chunk), function, is_far)


def dump(call, function, is_far):
    """Pickle a call: functions by name, or by value where that does not do."""
    try:
        pickled = pickle.dumps(call, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        if cloudpickle is not None and not isinstance(error, RecursionError):
            return cloudpickle.dumps(call)
        if is_by_name(function):
            raise
        raise pickle.PicklingError(
            "{} has no name that workers could import it by: define it at the top of a module, or "
            "install cloudpickle, which sends it by value".format(name(function))
        ) from error
    if is_far and cloudpickle is not None and b"__main__" in pickled:
        return cloudpickle.dumps(call)
    return pickled


def is_by_name(function):
    """Whether a function can be pickled at all."""
    try:
        pickle.dumps(function)
    except Exception:
        return False
    return True


def name(function):
    """What a function is called."""
    module = getattr(function, "__module__", None)
    called = getattr(function, "__qualname__", None) or repr(function)
    return "{}.{}".format(module, called) if module else called


# ---- results


def dump_value(value):
    """The body of a result."""
    return VALUE + pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


def dump_failure(failure):
    """The body of an exception."""
    return ERROR + pickle.dumps(tuple(failure), pickle.HIGHEST_PROTOCOL)


def dump_values(seconds, outcomes):
    """The body of what became of a chunk: pairs of whether it is a value, and what it is."""
    return VALUES + pickle.dumps((seconds, outcomes), pickle.HIGHEST_PROTOCOL)


def failure_of(error):
    """An exception, as far as it can travel."""
    shown = traceback.TracebackException.from_exception(error)
    lines = "".join(shown.format())
    text = "".join(shown.format_exception_only()).strip()
    try:
        pickled = pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
        is_itself = type(pickle.loads(pickled)) is type(error)
    except Exception:
        is_itself = False
    return Failure((pickled if is_itself else None, text, lines))
