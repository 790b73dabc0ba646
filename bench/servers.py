"""The servers under test, each a process of its own, and what the kernel knows about them."""

import json
import subprocess
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
KEY = b"manyhands-bench-key"
START_SECONDS_MAX = 20


class Server:
    """A running server; a context that kills it on leaving."""

    def __init__(self, process, port):
        self.process = process
        self.port = port

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def cpu_seconds(self):
        """User and system time so far, all threads."""
        # The process's own CPU clock counts nanoseconds; /proc/PID/stat has ticks of 10 ms.
        return time.clock_gettime(~self.process.pid << 3 | 2)

    def resident_bytes(self):
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the server has no resident memory: it has ended")


class Servers:
    """Starts servers by name: `cpython`, `manyhands`, `canned`, `echo`."""

    def __init__(self, python, manyhands, floor):
        self.python = python
        self.manyhands = manyhands
        self.floor = floor
        self.directory = tempfile.TemporaryDirectory(prefix="manyhands-bench-")
        self.key_file = Path(self.directory.name) / "key"
        self.key_file.touch(mode=0o600)
        self.key_file.write_bytes(KEY)
        self.started = 0

    def start(self, name, *options):
        """Starts the server `name`; only ours takes options."""
        if name == "manyhands":
            return self._start_manyhands(options)
        command = {
            "cpython": [self.python, HERE / "cpython_server.py", self.key_file],
            "canned": [self.floor, "canned", self.key_file],
            "echo": [self.floor, "echo"],
        }[name]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {name} server did not start")
        return Server(process, int(line))

    def _start_manyhands(self, options):
        self.started += 1
        ready = Path(self.directory.name) / f"ready-{self.started}"
        log = Path(self.directory.name) / f"log-{self.started}"
        command = [self.manyhands, "serve", "--listen", "127.0.0.1:0"]
        command += ["--authkey-file", self.key_file, "--allow-weak-key", "--ready-file", ready]
        command += options
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        give_up = time.monotonic() + START_SECONDS_MAX
        while not (ready.exists() and ready.read_text().endswith("\n")):
            if process.poll() is not None or time.monotonic() > give_up:
                process.kill()
                raise RuntimeError(f"manyhands did not start:\n{log.read_text()}")
            time.sleep(0.001)
        address = json.loads(ready.read_text())["addresses"][0]
        return Server(process, int(str(address).rpartition(":")[2]))

    def client(self, server, *arguments):
        """Starts the unmodified client in a process of its own."""
        command = [self.python, HERE / "stock_client.py", str(server.port), self.key_file]
        command += [str(argument) for argument in arguments]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def client_answer(self, server, *arguments):
        return answer(self.client(server, *arguments))


def answer(client):
    """Waits for a client's measurement and its end."""
    output, _ = client.communicate()
    if client.returncode != 0:
        raise RuntimeError(f"a client failed: {output}")
    return json.loads(output.splitlines()[-1])
