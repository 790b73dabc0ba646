"""Records what a stock client and its own stock server say to each other.

usage: record.py PYTHON OUTFILE        (run by any Python 3; PYTHON is the interpreter to record)

Writes JSON lines: one with what is needed to check the handshakes, then one per message or event,
in order: {"run", "conn", "dir": "c2s" or "s2c", "hex"} (the length prefix included) or
{"run", "conn", "event": "open", "c2s_end" or "s2c_end"}. Directories of the machine are masked.
"""

import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
KEY = b"recorded-key"
QUEUES = ["tasks", "results,maxsize=2"]
RUNS = ["calls", "crash", "wrongkey"]


class Recorder:
    """A relay between clients and one server that writes down every message."""

    def __init__(self, target, out):
        self._target = target
        self._out = out
        self._lock = threading.Lock()
        self._threads = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.run = None
        self._connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def start_run(self, run):
        self.run = run
        self._connections = 0

    def finish_run(self):
        """Waits until all connections of the run have ended."""
        while self._threads:
            self._threads.pop().join(5)

    def _accept(self):
        while True:
            client, _ = self._listener.accept()
            self._connections += 1
            conn = self._connections
            self._write(conn, event="open")
            server = socket.create_connection(("127.0.0.1", self._target))
            for ends in ((client, server, "c2s"), (server, client, "s2c")):
                thread = threading.Thread(target=self._relay, args=(conn,) + ends, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _relay(self, conn, source, sink, direction):
        try:
            while True:
                message = read_message(source)
                self._write(conn, dir=direction, hex=masked(message).hex())
                sink.sendall(message)
        except (EOFError, OSError):
            self._write(conn, event=direction + "_end")
        try:
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def _write(self, conn, **fields):
        with self._lock:
            line = dict(run=self.run, conn=conn, **fields)
            self._out.write(json.dumps(line) + "\n")


def read_message(source):
    header = read_exactly(source, 4)
    return header + read_exactly(source, struct.unpack(">I", header)[0])


def read_exactly(source, count):
    data = b""
    while len(data) < count:
        chunk = source.recv(count - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data


def masked(message):
    """The message with the directories of this machine replaced by filler of the same length."""
    return re.sub(rb'(File ")([^"]*)(/[^/"]*")', lambda m: m[1] + b"x" * len(m[2]) + m[3], message)


def start_server(python, directory):
    key_file = os.path.join(directory, "key")
    with open(key_file, "wb") as out:
        out.write(KEY)
    command = [python, os.path.join(HERE, "oracle_server.py"), "--authkey-file", key_file]
    command += ["--ready-file", os.path.join(directory, "ready")]
    for queue in QUEUES:
        command += ["--queue", queue]
    return subprocess.Popen(command)


def port_of_server(directory):
    ready_file = os.path.join(directory, "ready")
    while not os.path.exists(ready_file):
        time.sleep(0.01)
    with open(ready_file) as ready:
        return int(json.load(ready)["addresses"][0].rsplit(":", 1)[1])


def main(python, outfile):
    version = subprocess.check_output(
        [python, "-c", "import sys; print(sys.version.split()[0])"], text=True
    ).strip()
    with tempfile.TemporaryDirectory() as directory, open(outfile, "w") as out:
        meta = {"python": version, "authkey": KEY.decode(), "queues": QUEUES}
        out.write(json.dumps(meta) + "\n")
        server = start_server(python, directory)
        try:
            recorder = Recorder(port_of_server(directory), out)
            for run in RUNS:
                recorder.start_run(run)
                client = [python, os.path.join(HERE, "recorded_client.py"), run]
                client += [str(recorder.port), os.path.join(directory, "key")]
                subprocess.run(client, check=run != "crash")
                recorder.finish_run()
        finally:
            server.kill()


if __name__ == "__main__":
    main(*sys.argv[1:])
