"""Results and exceptions as they reach the master, out of what `_remote_calls` made of them."""

import io
import pickle

from ._manyhands import ManyhandsError
from ._remote_calls import ERROR, VALUE


class RemoteError(ManyhandsError):
    """An exception that could not travel itself; the text says what it was."""


class TaskFailed(ManyhandsError):
    """A task that was given up, with the ``reasons`` why each attempt failed."""

    def __init__(self, text, reasons=()):
        super().__init__(text, list(reasons))
        self.reasons = list(reasons)

    def __str__(self):
        return self.args[0]


class RemoteTraceback(Exception):
    """Where an exception was raised: the ``__cause__`` of one that comes from a worker."""

    def __init__(self, text):
        super().__init__(text)
        self.text = text

    def __str__(self):
        return '\n"""\n{}"""'.format(self.text)

    def __reduce__(self):
        return RemoteTraceback, (self.text,)


def error_of(failure):
    """The exception that a failure is, with its traceback as the cause."""
    pickled, text, lines = failure
    error = None
    if pickled is not None:
        try:
            error = pickle.loads(pickled)
        except Exception as unreadable:
            text = "{} (it cannot be unpickled here: {!r})".format(text, unreadable)
    elif text:
        text += " (the exception itself cannot be pickled)"
    if not isinstance(error, BaseException):
        error = RemoteError(text)
    error.__cause__ = RemoteTraceback(lines)
    return error


def load_result(body):
    """The seconds it took, and pairs of whether it is a value and the value or exception."""
    kind, pickled = body[:1], io.BytesIO(body)
    pickled.seek(1)
    found = pickle.load(pickled)
    if kind == VALUE:
        return None, [(True, found)]
    if kind == ERROR:
        return None, [(False, error_of(found))]
    seconds, outcomes = found
    return seconds, [(fine, it if fine else error_of(it)) for fine, it in outcomes]
