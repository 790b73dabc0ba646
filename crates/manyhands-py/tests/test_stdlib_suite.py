"""The runner of the standard library's own tests: what it takes for a difference."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import stdlib_suite


def run(*options):
    command = [sys.executable, stdlib_suite.__file__, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, universal_newlines=True, check=False)
    return done.returncode, done.stdout


def outcome(kind, detail=""):
    return {"test": "test", "outcome": kind, "detail": detail}


def test_a_run_without_tests_fails():
    code, out = run("-k", "no test has this name")
    assert code == 1 and "no test was run" in out


def test_a_run_that_does_not_end_fails():
    code, out = run("--limit", "0.01")
    assert code == 1, out


def test_skipped_tests_are_told(monkeypatch, capsys):
    found = {"one": dict(outcome("skipped", "not here"), test="one"), "two": outcome("ok")}
    monkeypatch.setattr(stdlib_suite, "start", lambda *_: found)
    monkeypatch.setattr(sys, "argv", ["stdlib_suite.py"])
    assert not stdlib_suite.main()
    lines = ["one: skipped, not here", "1 tests passed, 0 differ, 1 skipped"]
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize(
    "ours, standard, differs",
    [
        (outcome("ok"), outcome("ok"), False),
        (outcome("failure", "E: 0.31 > 0.25"), outcome("failure", "E: 0.5 > 0.25"), False),
        (outcome("failure", "E: one"), outcome("failure", "E: another"), True),
        (outcome("failure", "E: one"), outcome("error", "E: one"), True),
        (outcome("error", "E: one"), None, True),
        (outcome("skipped", "not here"), outcome("skipped", "not here"), False),
        (outcome("skipped", "not here"), outcome("ok"), True),
    ],
)
def test_a_test_must_end_for_the_same_cause(monkeypatch, ours, standard, differs):
    found = {"test": standard} if standard else {}
    monkeypatch.setattr(stdlib_suite, "start", lambda *_: found)
    options = SimpleNamespace(method="fork")
    worse = stdlib_suite.not_as_on_standard(options, {"test": ours})
    assert worse == (["test"] if differs else [])
