"""The servers that keep tasks on a disk, each in a directory of its own."""

import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

from servers import START_SECONDS_MAX, Server, answer

PACKAGES = {"redis-server": "redis-server", "beanstalkd": "beanstalkd", "strace": "strace"}
FRAME_HEADER_BYTES = 48
SEGMENT_HEADER_BYTES = 64


def install_missing():
    """Installs what Debian has of the peers; names those that are not to be had."""
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    if missing:
        # Without a run level no service is started.
        environment = dict(os.environ, RUNLEVEL="1", DEBIAN_FRONTEND="noninteractive")
        sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
        for command in (["update", "-q"], ["install", "-qy", "--no-install-recommends", *missing]):
            try:
                subprocess.run(
                    [*sudo, "apt-get", *command],
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    check=True,
                )
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"cannot install {', '.join(missing)}: {error}")
                break
    return [program for program in PACKAGES if not shutil.which(program)]


class Peers:
    """Starts servers by name, each with nothing on its disk: `manyhands`, `redis`, `beanstalkd`."""

    def __init__(self, servers, load, directory):
        self.servers = servers
        self.load = load
        self.directory = directory
        self.names = ["manyhands"]
        self.names += ["redis"] if shutil.which("redis-server") else []
        self.names += ["beanstalkd"] if shutil.which("beanstalkd") else []

    def empty(self, name):
        """The directory of the server `name`, with nothing in it."""
        directory = self.directory / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        return directory

    def start(self, name):
        if name == "canned":
            return self.servers.start(name)
        directory = self.empty(name)
        if name == "manyhands":
            return self.ours("--data", directory)
        port = free_port()
        command = {
            # A rewrite of the log in the middle would cost Redis something.
            "redis": f"redis-server --port {port} --bind 127.0.0.1 --dir {directory} --save  "
            "--appendonly yes --appendfsync always --auto-aof-rewrite-percentage 0".split(" "),
            "beanstalkd": f"beanstalkd -l 127.0.0.1 -p {port} -f 0 -b {directory}".split(" "),
        }[name]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(process, port)
        return Server(process, port)

    def ours(self, *options):
        """Our server with other options, on what is already in its directory."""
        return self.servers.start("manyhands", *options)

    def drive(self, name, server, work, **options):
        """Gives `server` work, and returns what was measured."""
        return answer(self.start_driving(name, server, work, **options))

    def start_driving(self, name, server, work, **options):
        command = [self.load, "drive", "--peer", name, "--address", f"127.0.0.1:{server.port}"]
        command += ["--work", work, "--key-file", self.servers.key_file]
        for option, value in options.items():
            command += [f"--{option}", str(value)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def floor(self, bytes_, seconds):
        """What the disk alone does, appending and syncing so many bytes at a time."""
        command = [self.load, "floor", "--directory", self.directory, "--bytes", str(bytes_)]
        command += ["--seconds", str(seconds)]
        return answer(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for_port(process, port):
    give_up = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > give_up:
                process.kill()
                raise RuntimeError(f"{process.args[0]} did not start") from None
            time.sleep(0.01)


def kill(server):
    """Ends a server as a crash does."""
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()


def written(directory):
    """Number of frames in a journal, and their bytes. `docs/journal-format.md` has the format."""
    frames = bytes_ = 0
    for segment in sorted(Path(directory).glob("*.seg")):
        with segment.open("rb") as file:
            count, length = frames_in(file)
        frames += count
        bytes_ += length
    return frames, bytes_


def frames_in(file):
    count, position, expected = 0, SEGMENT_HEADER_BYTES, None
    while True:
        file.seek(position)
        header = file.read(FRAME_HEADER_BYTES)
        if len(header) < FRAME_HEADER_BYTES or header[:4] != b"MHFR":
            break
        length, _, number = struct.unpack_from("<QQQ", header, 16)
        if expected not in (None, number):
            break  # What a segment held before it was used again.
        position += (FRAME_HEADER_BYTES + length + 7) // 8 * 8
        count, expected = count + 1, number + 1
    return count, position - SEGMENT_HEADER_BYTES


def disk_bytes(directory):
    """What a directory takes of the disk."""
    total = 0
    for path in Path(directory).iterdir():
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            pass  # Let go since.
    return total


def file_system(directory):
    """Kind and device of the file system that holds `directory`."""
    best = ("", "", "")
    for line in Path("/proc/mounts").read_text().splitlines():
        device, mount, kind = line.split(" ")[:3]
        inside = mount == "/" or f"{directory}/".startswith(f"{mount}/")
        if inside and len(mount) >= len(best[1]):
            best = (device, mount, kind)
    return best[2], best[0]
