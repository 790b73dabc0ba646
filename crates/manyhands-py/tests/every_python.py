"""Tests the wheel on every Python there is: our own tests, then the standard library's.

    python every_python.py [--quick] [VERSION…]

builds the wheel once, installs it in an environment for each Python from 3.8 on (all that PATH or
pyenv know, or only those of the given versions, such as 3.8 or newest or oldest), prints what ran.
With --quick, the standard library's tests run for one start method on each, in turn.
"""

import glob
import os
import re
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(HERE)))
WORK = os.path.join(ROOT, "target", "python")
METHODS = ("fork", "spawn", "forkserver")
# What adapters are tested with, on the newest Python.
PEERS = ["joblib", "scikit-learn"]
# What every client of the native protocol can do: one list for all of them.
LIST = ["cargo", "test", "--quiet", "--manifest-path", os.path.join(ROOT, "Cargo.toml")]
LIST += ["--workspace", "--test", "native", "--", "--ignored", "packaged"]


def main():
    wanted = [argument for argument in sys.argv[1:] if argument != "--quick"]
    pythons = choose(find(), wanted)
    if not pythons:
        sys.exit("there is no Python {}".format(" or ".join(wanted) or "from 3.8 on"))
    wheel = build()
    failures = []
    for number, (version, python) in enumerate(pythons.items()):
        turn = METHODS[number % len(METHODS)]
        methods = [turn] if "--quick" in sys.argv else METHODS
        peers = PEERS if version == list(pythons)[-1] else []
        failures += test(version, python, wheel, methods, peers)
    print("ran on Python", ", ".join(pythons))
    sys.exit("\n".join(failures) if failures else 0)


def choose(found, wanted):
    """Those of the versions found that are wanted; all of them if none is named."""
    words = {"oldest": found[:1], "newest": found[-1:]}
    named = [pair for word in wanted for pair in words.get(word, ())]
    return dict(pair for pair in found if not wanted or pair in named or pair[0] in wanted)


def find():
    """Pairs of version and interpreter, oldest first."""
    places = os.environ.get("PATH", "").split(os.pathsep)
    places += glob.glob(os.path.expanduser("~/.pyenv/versions/*/bin"))
    names = (name for place in places for name in glob.glob(os.path.join(place, "python3.*")))
    found = {}
    for name in names:
        match = re.search(r"python3\.(\d+)$", name)
        if match and int(match.group(1)) >= 8 and works(name):
            found.setdefault(int(match.group(1)), name)
    return [("3.{}".format(minor), name) for minor, name in sorted(found.items())]


def works(python, modules="venv, ensurepip"):
    """Whether an interpreter runs and has these modules of its standard library."""
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.call([python, "-c", "import " + modules], **silent) == 0


def build():
    wheels = os.path.join(WORK, "wheels")
    shutil.rmtree(wheels, ignore_errors=True)
    subprocess.check_call(
        [environment("build", sys.executable, []), "-m", "pip", "wheel", "--quiet", "--no-deps"]
        + ["--config-settings=build-args=--profile=dev", "--wheel-dir", wheels, ROOT]
    )
    return glob.glob(os.path.join(wheels, "*.whl"))[0]


def environment(name, python, packages):
    """The interpreter of a virtual environment with these packages."""
    directory = os.path.join(WORK, name)
    inside = os.path.join(directory, "bin", "python")
    if not os.path.exists(inside):
        subprocess.check_call([python, "-m", "venv", directory])
    if packages:
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.check_call([inside] + install + packages)
    return inside


def test(version, python, wheel, methods, peers):
    """Run everything on one Python, beside these packages; yield a line for each failure."""
    # mypy needs a Python that is still maintained.
    has_mypy = int(version.split(".")[1]) >= 10
    tools = ["pytest", "mypy"] if has_mypy else ["pytest"]
    inside = environment(version, python, tools + peers)
    force = ["--force-reinstall", "--no-deps", wheel]
    environment(version, python, force)
    runs = {"own tests": [inside, "-m", "pytest", "-q", HERE]}
    if has_mypy:
        modules = ["manyhands." + module for module in ("_manyhands", "_client", "aio")]
        runs["stubs"] = [inside, "-m", "mypy.stubtest"] + modules
        strictly = ["--strict", "--cache-dir", os.devnull]
        runs["types"] = [inside, "-m", "mypy"] + strictly + [os.path.join(HERE, "typed_client.py")]
    # Distributions pack the standard library's own tests apart.
    if not works(python, "test._test_multiprocessing"):
        print("NOT RUN: Python {} is here without its own tests".format(version), flush=True)
        methods = ()
    for method in methods:
        suite = [inside, os.path.join(HERE, "stdlib_suite.py"), "--method", method]
        runs["standard library's tests, " + method] = suite
    runs["conformance list"] = LIST
    environ = dict(os.environ, MANYHANDS_PACKAGE_PYTHON=inside)
    if peers:
        environ["MANYHANDS_PEERS"] = " ".join(peers)
    for name, command in runs.items():
        print("== Python {}: {}".format(version, name), flush=True)
        if subprocess.call(command, cwd=WORK, env=environ) != 0:
            yield "Python {}: {} failed".format(version, name)


if __name__ == "__main__":
    main()
