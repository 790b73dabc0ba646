"""The servers under test, each a process of its own, and what the kernel knows about them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
KEY = b"manyhands-bench-key"
START_SECONDS_MAX = 60
# 64 MiB and what is around it; NATS takes no more than 64 MiB.
ITEM_BYTES_MAX = 64 << 20
NATS = """
listen: "127.0.0.1:{port}"
max_payload: {item_max}
max_pending: 1GB
ping_interval: "1h"
jetstream {{ store_dir: "{directory}", sync_interval: always, max_mem: 16GB, max_file: 64GB }}
"""


class Server:
    """A running server; a context that kills it on leaving."""

    def __init__(self, process, port):
        self.process = process
        self.port = port

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        """Ends it as a crash does."""
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


class SlowToStart(Server):
    """A server that goes on for the whole bench, and stands still while others are measured."""

    def __enter__(self):
        self.process.send_signal(signal.SIGCONT)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGSTOP)


class Servers:
    """Starts servers by name; a context that ends those which go on."""

    def __init__(self, python, programs, directory):
        self.python = python
        self.programs = programs
        self.directory = directory
        self.key_file = directory / "key"
        self.key_file.touch(mode=0o600)
        self.key_file.write_bytes(KEY)
        self.started = 0
        self.rabbitmq = None
        self.epmd = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for server in (self.rabbitmq, self.epmd):
            if server:
                server.kill()

    def start(self, name, durable=False, options=(), keep=False):
        """Starts the server `name`, with nothing on its disk unless it is to `keep` that.

        Only ours takes options.
        """
        if name == "rabbitmq":
            self.rabbitmq = self.rabbitmq or self._start_rabbitmq()
            return self.rabbitmq
        directory = self.data(name)
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
        if name in ("manyhands", "before"):
            data = ["--data", directory] if durable else []
            return self._start_manyhands(self.programs[name], [*data, *options])
        if name in ("redis", "beanstalkd", "nats"):
            port = free_port()
            return self._start_at(port, self._peer(name, port, directory, durable))
        return self._start_on_its_own_port(name)

    def _start_on_its_own_port(self, name):
        """Starts one that says which port it has."""
        script = [HERE / "cpython_server.py", self.key_file]
        if name == "cpython":
            command = [self.python, *script]
        elif name == "package":
            command = [self.programs["package"], "-m", "manyhands", *script]
        else:
            command = [self.programs["floor"], name]
            command += [self.key_file] if name == "canned" else []
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {name} server did not start")
        return Server(process, int(line))

    def data(self, name):
        """The directory of the server `name`."""
        return self.directory / name

    def _start_manyhands(self, program, options):
        self.started += 1
        ready = self.directory / f"ready-{self.started}"
        log = self.directory / f"log-{self.started}"
        command = [program, "serve", "--listen", "127.0.0.1:0"]
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

    def _peer(self, name, port, directory, durable):
        """The command that starts a peer."""
        program = self.programs[name]
        if name == "redis":
            # A rewrite of the log in the middle would cost Redis something.
            options = f"--port {port} --bind 127.0.0.1 --dir {directory} --appendfsync always "
            options += f"--auto-aof-rewrite-percentage 0 --appendonly {'yes' if durable else 'no'}"
            return [program, *options.split(" "), "--save", ""]
        if name == "beanstalkd":
            command = [program, "-l", "127.0.0.1", "-p", str(port), "-z", str(ITEM_BYTES_MAX)]
            return command + (["-f", "0", "-b", directory] if durable else [])
        config = directory / "nats.conf"
        config.write_text(NATS.format(port=port, directory=directory, item_max=ITEM_BYTES_MAX))
        return [program, "-c", config]

    def _start_at(self, port, command, environment=None, kind=Server):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        give_up = time.monotonic() + START_SECONDS_MAX
        while not is_ready(port, "redis-server" in str(command[0])):
            if process.poll() is not None or time.monotonic() > give_up:
                process.kill()
                raise RuntimeError(f"{command[0]} did not start")
            time.sleep(0.005)
        return kind(process, port)

    def _start_rabbitmq(self):
        """RabbitMQ takes seconds to start, and keeps its queues on disk always."""
        directory = self.data("rabbitmq")
        directory.mkdir()
        names_port, port = free_port(), free_port()
        self.epmd = self._start_at(names_port, ["epmd", "-port", str(names_port)])
        environment = dict(
            os.environ,
            HOME=str(directory),
            ERL_EPMD_PORT=str(names_port),
            RABBITMQ_NODENAME="bench@localhost",
            RABBITMQ_NODE_IP_ADDRESS="127.0.0.1",
            RABBITMQ_NODE_PORT=str(port),
            RABBITMQ_DIST_PORT=str(free_port()),
            RABBITMQ_MNESIA_BASE=str(directory),
            RABBITMQ_LOG_BASE=str(directory),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(directory / "plugins"),
            RABBITMQ_CONFIG_FILE=str(directory / "none"),
            # So that its process is this one, without a shell around it.
            RABBITMQ_ALLOW_INPUT="1",
        )
        command = [self.programs["rabbitmq"], "-noinput"]
        return self._start_at(port, command, environment, SlowToStart)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def is_ready(port, is_redis):
    """Whether a server accepts connections; Redis does so before it has read its log."""
    try:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            if not is_redis:
                return True
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False
