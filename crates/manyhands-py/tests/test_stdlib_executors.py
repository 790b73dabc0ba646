"""The standard library's own tests of executors, on ours."""

import os
import subprocess
import sys

import pytest
from conftest import TIMEOUT

HERE = os.path.dirname(os.path.abspath(__file__))


@pytest.mark.skipif(os.name != "posix", reason="processes of a worker need POSIX")
def test_the_standard_librarys_tests_of_executors_pass_on_ours():
    command = [sys.executable, os.path.join(HERE, "stdlib_executors.py")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "universal_newlines": True}
    done = subprocess.run(command, timeout=10 * TIMEOUT, check=False, **pipes)
    if "NOT RUN" in done.stdout:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout
