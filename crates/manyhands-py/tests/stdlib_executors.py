"""Runs the tests of ``concurrent.futures`` that a Python brings on our executor.

    python stdlib_executors.py [NAME…]

prints what became of each, and why those are left out that do not apply.
"""

import importlib
import sys
import unittest

import manyhands

PACKAGE = "test.test_concurrent_futures"
# Modules, and what of them is about executors that run processes.
TESTS = {
    "executor": ["ExecutorTest"],
    "test_as_completed": ["AsCompletedTests"],
    "test_deadlock": ["ExecutorDeadlockTest"],
    "test_process_pool": ["ProcessPoolExecutorTest"],
    "test_shutdown": ["ExecutorShutdownTest"],
    "test_wait": ["WaitTests"],
}
# What does not apply, and why.
_OWN_PROCESSES = "looks at the processes of the standard library's pool"
_FAILS_ALONE = (
    "a process that dies breaks the standard pool; of ours it fails one call, after retries"
)
_OTHER_SCRIPT = "starts the standard library's executors by name"
_NO_NUMBERS = "max_workers= is ours `workers`, with a text of its own"
LEFT_OUT = {
    "test_max_workers_negative": _NO_NUMBERS,
    "test_max_workers_too_large": _NO_NUMBERS,
    "test_idle_process_reuse_one": _OWN_PROCESSES,
    "test_idle_process_reuse_multiple": _OWN_PROCESSES,
    "test_saturation": _OWN_PROCESSES,
    "test_max_tasks_per_child": "no process is replaced after so many calls",
    "test_max_tasks_per_child_defaults_to_spawn_context": "as above",
    "test_max_tasks_early_shutdown": "as above",
    "test_killed_child": _FAILS_ALONE,
    "test_exit_at_task_unpickle": "SystemExit is an exception of the call, not the end of a pool",
    "test_exit_during_func_exec_on_worker": "as above",
    "test_exit_during_result_pickle_on_worker": "as above",
    "test_error_at_task_unpickle": "fails that call alone, with RemoteError",
    "test_crash_at_task_unpickle": _FAILS_ALONE,
    "test_crash_during_func_exec_on_worker": _FAILS_ALONE,
    "test_crash_during_result_pickle_on_worker": _FAILS_ALONE,
    "test_crash_big_data": _FAILS_ALONE,
    "test_error_during_result_unpickle_in_result_handler": "fails that call alone",
    "test_exit_during_result_unpickle_in_result_handler": "fails that call alone",
    "test_shutdown_deadlock": _FAILS_ALONE,
    "test_shutdown_deadlock_pickle": _OWN_PROCESSES,
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": _OWN_PROCESSES,
    "test_ressources_gced_in_workers": "counts what a manager of the same context was told",
    "test_python_finalization_error": "has the standard library fail to start a process",
    "test_interpreter_shutdown": _OTHER_SCRIPT,
    "test_submit_after_interpreter_shutdown": _OTHER_SCRIPT,
    "test_hang_gh83386": _OTHER_SCRIPT,
    "test_hang_gh94440": _OTHER_SCRIPT,
    "test_cancel_futures": "none of the calls may have begun, as processes take a moment to start",
    "test_traceback": "the cause is a RemoteTraceback of ours",
}


class Executor(manyhands.Executor):
    """Ours, by the words of the standard library."""

    def __init__(self, max_workers=None, mp_context=None):
        super().__init__(workers=max_workers)


def suite(wanted):
    """The tests, as classes of their own; and those that are left out."""
    util = importlib.import_module(PACKAGE + ".util")
    mixin = type("Ours", (util.ExecutorMixin,), {"executor_type": Executor})
    mixin.worker_count, mixin.ctx = 2, "spawn"
    tests, left_out = unittest.TestSuite(), []
    for module, classes in TESTS.items():
        found = importlib.import_module("{}.{}".format(PACKAGE, module))
        for name in classes:
            case = getattr(found, name)
            case = type("Ours" + name, (case, mixin, util.BaseTestCase), {"__module__": __name__})
            for test in unittest.defaultTestLoader.getTestCaseNames(case):
                if test in LEFT_OUT:
                    left_out.append("{}: {}".format(test, LEFT_OUT[test]))
                elif not wanted or test in wanted:
                    tests.addTest(case(test))
    return tests, left_out


def main():
    try:
        tests, left_out = suite(sys.argv[1:])
    except ImportError as error:
        print("NOT RUN: {}".format(error))
        return 0
    outcome = unittest.TextTestRunner(verbosity=2).run(tests)
    for line in sorted(set(left_out)):
        print("left out:", line)
    print("{} passed, {} left out".format(outcome.testsRun, len(set(left_out))))
    return 0 if outcome.wasSuccessful() and outcome.testsRun else 1


if __name__ == "__main__":
    sys.exit(main())
