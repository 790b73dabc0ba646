"""Runs the tests of ``multiprocessing.Pool`` that a Python brings on ours.

    python stdlib_pool.py [NAME…]

prints what became of each, and why those are left out that do not apply.
"""

import multiprocessing
import sys
import unittest

import manyhands

try:
    from test import _test_multiprocessing as theirs
except ImportError as error:
    # Distributions pack these tests apart.
    theirs, MISSING = None, error

TESTS = ["_TestPool", "_TestPoolWorkerErrors", "_TestPoolWorkerLifetime"]
# What does not apply, and why.
_NOT_REPLACED = "maxtasksperchild= is refused: no process is replaced after so many calls"
LEFT_OUT = {
    "test_traceback": "the cause is a RemoteTraceback of ours",
    "test_unpickleable_result": "raises PicklingError, which is not MaybeEncodingError",
    "test_pool_worker_lifetime": _NOT_REPLACED,
    "test_pool_worker_lifetime_early_close": _NOT_REPLACED,
    "test_pool_maxtasksperchild_invalid": _NOT_REPLACED,
    "test_worker_finalization_via_atexit_handler_of_multiprocessing": (
        "starts the standard library's pool by name"
    ),
}


def ours(name):
    """A class of theirs, with our pool. The pool's processes find it by name."""
    body = {"Pool": manyhands.Pool, "TYPE": "processes", "__module__": __name__}
    return type("Ours" + name, (getattr(theirs, name), unittest.TestCase), body)


if theirs is not None:
    globals().update(("Ours" + name, ours(name)) for name in TESTS)


def suite(wanted):
    """The tests, and those that are left out."""
    # Some of them take the pool from there.
    multiprocessing.Pool = manyhands.Pool
    tests, left_out = unittest.TestSuite(), []
    for name in TESTS:
        case = globals()["Ours" + name]
        mine = unittest.TestSuite()
        for test in unittest.defaultTestLoader.getTestCaseNames(case):
            if test in LEFT_OUT:
                left_out.append("{}: {}".format(test, LEFT_OUT[test]))
            elif not wanted or test in wanted:
                mine.addTest(case(test))
        tests.addTest(mine)
    return tests, left_out


def main():
    if theirs is None:
        print("NOT RUN: {}".format(MISSING))
        return 0
    tests, left_out = suite(sys.argv[1:])
    outcome = unittest.TextTestRunner(verbosity=2).run(tests)
    for line in sorted(left_out):
        print("left out:", line)
    print("{} passed, {} left out".format(outcome.testsRun, len(left_out)))
    return 0 if outcome.wasSuccessful() and outcome.testsRun else 1


if __name__ == "__main__":
    sys.exit(main())
