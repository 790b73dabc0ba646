"""``python -m manyhands script.py args…`` and the command ``manyhands``."""

import os
import sys

from . import _manyhands

USAGE = """\
usage: python -m manyhands SCRIPT.py [ARGUMENT...]

Runs a script with the managers of manyhands in place of multiprocessing.managers. The script stays
as it is, and so do its workers. To see what will behave differently, without running it:
  python -m manyhands doctor SCRIPT.py

A word in place of the script is a command of the command line:
  python -m manyhands --help
"""


def command():
    """Run the command line as the binary does, and ``doctor``; return the exit code."""
    if sys.argv[1:2] == ["doctor"] and not {"-h", "--help"}.intersection(sys.argv[2:]):
        from ._doctor import main

        return main(sys.argv[2:])
    if sys.argv[1:2] == ["worker"]:
        from ._worker import main

        return main(sys.argv[2:])
    return _manyhands.run(["manyhands"] + sys.argv[1:])


def main():
    """Run a script with the managers of manyhands, or the command line."""
    if not sys.argv[1:]:
        sys.stderr.write(USAGE)
        return 2
    if is_script(sys.argv[1]):
        from ._script import run

        return run(sys.argv[1:])
    return command()


def is_script(argument):
    """Tell a script from a word of the command line."""
    return argument.endswith((".py", ".pyw")) or os.sep in argument


if __name__ == "__main__":
    sys.exit(main())
