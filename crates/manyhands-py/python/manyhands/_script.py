"""Runs an unmodified script with the managers of manyhands in place."""

import builtins
import importlib.machinery
import io
import os
import sys
import types

from ._server import StartError
from .managers import install


def run(arguments):
    """Run the script ``arguments[0]`` as ``python`` would."""
    install()
    sys.argv[:] = arguments
    # From 3.9 on, __file__ of a script is absolute.
    path = os.path.abspath(arguments[0]) if sys.version_info >= (3, 9) else arguments[0]
    sys.path[0] = os.path.dirname(os.path.realpath(path))
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        print("manyhands: can't open file {!r}: {}".format(path, error), file=sys.stderr)
        return 2
    main = types.ModuleType("__main__")
    main.__dict__.update(
        __file__=path,
        __builtins__=builtins,
        __loader__=importlib.machinery.SourceFileLoader("__main__", path),
    )
    # Pickles name classes of the script as __main__'s, and new processes look up its __file__.
    sys.modules["__main__"] = main
    try:
        exec(compile(source, path, "exec"), main.__dict__)
    except SystemExit:
        raise
    except StartError as error:
        # What it says is all that there is to know.
        traceback = _inside(error.__traceback__)
        line = traceback.tb_lineno if traceback is not None else 0
        print("{}:{}: {}".format(arguments[0], line, error.strerror), file=sys.stderr)
        return 1
    except BaseException as error:
        # A script's traceback begins in the script.
        error.__traceback__ = _inside(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            # The interpreter turns this into the exit status of an interrupted process.
            sys.excepthook = _silent
            raise
        return 1
    return 0


def _silent(*_):
    """Say nothing about an exception that was shown already."""


def _inside(traceback):
    """The part of a traceback that is not ours."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
        traceback = traceback.tb_next
    return traceback
