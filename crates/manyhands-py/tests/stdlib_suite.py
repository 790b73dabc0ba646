"""Runs the manager tests of a Python's own test suite, on its own managers or on ours.

    python stdlib_suite.py [--python PYTHON] [--method fork|spawn|forkserver] [-k PATTERN] [-v]

runs them on ours: every test must pass, or end as on the standard library and for the same cause,
save for the deviations listed below. With ``--run`` it is the half that runs inside of PYTHON.
"""

import argparse
import functools
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading

# Tests that may end otherwise under some start methods, and why.
DEVIATIONS = {
    # It counts the objects of a class in its own process. The server keeps the last request of a
    # session, there as here, but under these start methods it is in that process too.
    "WithManagerTestPool.test_release_task_refs": ("spawn", "forkserver"),
}

# Some of these tests measure time, and fail now and then on a busy machine, on any managers.
RETRIES = 2
# How long all tests together may take, in seconds.
LIMIT = 1200
EXIT = "the end of the run"
MODULE = "manyhands_stdlib_tests"
TEMPLATE = """
import os
import test._test_multiprocessing as tests
if {ours}:
    import manyhands.managers
    manyhands.managers.install()
tests.install_tests_in_module_dict(globals(), {method!r})
"""


def main():
    options = parse()
    if options.run:
        return run(options)
    outcomes = start(options, "ours")
    if not set(outcomes) - {EXIT}:
        print("no test was run; is there one whose name has {!r}?".format(options.pattern))
        return 1
    worse = not_as_on_standard(options, outcomes)
    for _ in range(RETRIES):
        if not worse:
            break
        outcomes.update(start(options, "ours", worse))
        worse = [test for test in worse if outcomes[test]["outcome"] != "ok"]
    for test in worse:
        print("{test}: {outcome} on manyhands alone\n{detail}".format(**outcomes[test]))
    skipped = [test for test in outcomes if outcomes[test]["outcome"] == "skipped"]
    for test in sorted(skipped):
        print("{test}: skipped, {detail}".format(**outcomes[test]))
    good = sum(outcome["outcome"] == "ok" for outcome in outcomes.values())
    print("{} tests passed, {} differ, {} skipped".format(good, len(worse), len(skipped)))
    return bool(worse)


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--method", default="fork")
    parser.add_argument("-k", dest="pattern", default="")
    parser.add_argument("-v", dest="verbose", action="store_true")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for all tests")
    parser.add_argument("--run", choices=["standard", "ours"])
    parser.add_argument("tests", nargs="*")
    return parser.parse_args()


def start(options, managers, tests=()):
    """Run the tests, or only those named, in another interpreter; return what became of each."""
    command = [options.python, os.path.abspath(__file__), "--method", options.method]
    command += ["-k", options.pattern, "--run", managers] + list(tests)
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=None if options.verbose else subprocess.DEVNULL,
        universal_newlines=True,
        start_new_session=True,
    )
    end = threading.Timer(options.limit, os.killpg, (child.pid, signal.SIGKILL))
    end.start()
    outcomes, running = {}, None
    for line in child.stdout:
        if not line.startswith("{"):
            continue
        outcome = json.loads(line)
        running = outcome["test"] if outcome["outcome"] == "running" else None
        if running is None:
            outcomes[outcome["test"]] = outcome
    end.cancel()
    code = child.wait()
    if code != 0:
        detail = "exit code {} in {}, perhaps after {} seconds".format(code, running, options.limit)
        outcomes[EXIT] = {"test": EXIT, "outcome": "failure", "detail": detail}
    return outcomes


def not_as_on_standard(options, outcomes):
    """The tests that did not pass, and that end otherwise on the standard managers."""
    bad = [
        test
        for test, outcome in sorted(outcomes.items())
        if outcome["outcome"] != "ok" and options.method not in DEVIATIONS.get(test, ())
    ]
    standard = start(options, "standard", [test for test in bad if test != EXIT]) if bad else {}
    return [test for test in bad if cause(standard.get(test)) != cause(outcomes[test])]


def cause(outcome):
    """How a test ended, and why, without the numbers that differ each time."""
    if outcome is None:
        return None
    lines = outcome["detail"].strip().splitlines() or [""]
    return outcome["outcome"], re.sub(r"0x[0-9a-f]+|[0-9]+(\.[0-9]+)?(e-?[0-9]+)?", "N", lines[-1])


# ---- inside of the Python under test


def run(options):
    import importlib
    import unittest

    directory = tempfile.mkdtemp()
    with open(os.path.join(directory, MODULE + ".py"), "w") as file:
        file.write(TEMPLATE.format(ours=options.run == "ours", method=options.method))
    # Processes that the tests start have to find it too.
    paths = [directory] + list(filter(None, [os.environ.get("PYTHONPATH")]))
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    sys.path.insert(0, directory)
    module = importlib.import_module(MODULE)
    suite = unittest.TestSuite()
    for name, case in sorted(vars(module).items()):
        if not isinstance(case, type) or not issubclass(case, unittest.TestCase):
            continue
        found = unittest.defaultTestLoader.loadTestsFromTestCase(case)
        wanted = [test for test in found if is_wanted(test.id(), options)]
        if wanted and is_about(name, case):
            suite.addTests(wanted)
    module.setUpModule()
    try:
        suite.run(result_class(unittest)())
    finally:
        module.tearDownModule()


def is_wanted(test, options):
    name = test.replace(MODULE + ".", "")
    return options.pattern in name and (not options.tests or name in options.tests)


def is_about(name, case):
    """Whether a test case has to do with managers."""
    if name.startswith("WithManager"):
        return True
    return not name.startswith("With") and any(
        names_managers(base)
        for base in case.__mro__[1:]
        if base.__module__ == "test._test_multiprocessing"
    )


@functools.lru_cache(maxsize=None)
def names_managers(case):
    source = inspect.getsource(case)
    return "Manager(" in source or "managers." in source


def result_class(unittest):
    class Result(unittest.TestResult):
        def startTest(self, test):
            super().startTest(test)
            self.note("running", "")
            self.report(test.id().replace(MODULE + ".", ""))
            self.note("ok", "")

        def note(self, outcome, detail):
            self.outcome, self.detail = outcome, detail

        def addError(self, test, error):
            self.note("error", self._exc_info_to_string(error, test))
            if not hasattr(test, "_testMethodName"):
                # A fixture of a class.
                self.report(str(test))

        def addFailure(self, test, error):
            self.note("failure", self._exc_info_to_string(error, test))

        def addSubTest(self, test, subtest, error):
            if error:
                self.note("failure", self._exc_info_to_string(error, test))

        def addSkip(self, test, reason):
            self.note("skipped", reason)

        def stopTest(self, test):
            super().stopTest(test)
            self.report(test.id().replace(MODULE + ".", ""))

        def report(self, test):
            outcome = {"test": test, "outcome": self.outcome, "detail": self.detail}
            sys.stdout.write(json.dumps(outcome) + "\n")
            sys.stdout.flush()

    return Result


if __name__ == "__main__":
    sys.exit(main())
