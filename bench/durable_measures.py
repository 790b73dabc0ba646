"""What is measured of queues on a disk; every function returns rows, each with a figure per round.

The systems take turns within a round, each on a fresh server and an empty directory. What the disk
alone does is measured right behind ours, with as many bytes at a time as ours wrote.
"""

import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import raw_client
from durable_table import Row
from peers import disk_bytes, kill, written
from servers import KEY, answer

QUEUE = "get_task_queue"


@dataclass
class Size:
    """How much is measured."""

    rounds: int = 5
    seconds: float = 2.0
    warm: float = 0.5
    payloads: tuple = (100, 200)
    backlog: int = 5_000_000
    starts: int = 3
    churn_seconds: float = 60
    churn_backlog: int = 100_000
    lease_rounds: int = 15
    traced_puts: int = 5_000


QUICK = Size(
    rounds=2, seconds=1.0, warm=0.3, payloads=(100,), starts=1, churn_seconds=10, lease_rounds=5
)


@dataclass
class Load:
    """How producers work: the same for every system that can."""

    label: str
    connections: int = 1
    outstanding: int = 1
    batch: int = 1

    def options(self):
        return dict(connections=self.connections, outstanding=self.outstanding, batch=self.batch)


PUTS = (
    (Load("1 producer"), None, 0.9),
    (Load("64 producers, 1 put in flight each", 64), 2.0, 0.8),
    (Load("64 producers, 16 puts in flight each", 64, 16), 2.0, 0.8),
    (Load("64 producers, 64 items a put", 64, 1, 64), 2.0, 0.8),
)
CYCLES = (
    (Load("1 worker"), None),
    (Load("64 workers", 64), 2.5),
    (Load("64 connections, 16 workers each", 64, 16), 2.5),
)


def puts(peers, size):
    """Durable puts by producers that do nothing else."""
    rows = []
    for payload in size.payloads:
        for load, peer_min, floor_min in PUTS:
            rows += put_rows(peers, size, payload, load, peer_min, floor_min)
    return rows


def put_rows(peers, size, payload, load, peer_min, floor_min):
    names = [name for name in peers.names if name != "beanstalkd" or load.batch == 1]
    # It answers each request by itself, which is all that one in flight allows.
    names += ["canned"] if load.outstanding == load.batch == 1 else []
    rates = {name: [] for name in [*names, "floor"]}
    latencies, shares = [], []
    options = dict(load.options(), payload=payload, warm=size.warm, seconds=size.seconds)
    for _ in range(size.rounds):
        for name in names:
            with peers.start(name) as server:
                speaks = "classic" if name == "canned" else name
                run = peers.drive(speaks, server, "put", **options)
            rates[name].append(run["done"] / run["seconds"])
            if name == "manyhands":
                frames, bytes_ = written(peers.directory / name)
                share = run["done_in_all"] / frames
                floor = peers.floor(round(bytes_ / frames), size.seconds / 2)
                rates["floor"].append(floor["appends"] / floor["seconds"] * share)
                latencies.append(run["put_us"]["p99"] / 1e3)
                shares.append(share)
    label = f"put of {payload} bytes, {load.label}"
    rows = [Row(label, "/s", rates, peer_min, floor_min)]
    if load.connections > 1:
        rows.append(Row("… of these in one sync", "tasks", {"manyhands": shares}))
    rows.append(Row("… p99 of a put", "ms", {"manyhands": latencies}))
    return rows


def cycles(peers, size):
    """Put a task, take it, settle it: each step durable before the next one."""
    rows = []
    for load, peer_min in CYCLES:
        rates = {name: [] for name in peers.names}
        options = dict(load.options(), payload=100, warm=size.warm, seconds=size.seconds)
        for _ in range(size.rounds):
            for name in peers.names:
                with peers.start(name) as server:
                    run = peers.drive(name, server, "cycle", **options)
                rates[name].append(run["done"] / run["seconds"])
        rows.append(Row(f"put + get + ack, {load.label}", "/s", rates, peer_min, peers=("redis",)))
    return rows


def syncs(peers, size):
    """Syncs by one producer for each of its puts."""
    calls = []
    with peers.start("manyhands") as server, tempfile.NamedTemporaryFile() as trace:
        command = ["strace", "-f", "-e", "trace=fdatasync,fsync", "-o", trace.name]
        tracer = subprocess.Popen(
            [*command, "-p", str(server.process.pid)], stderr=subprocess.PIPE, text=True
        )
        if "attached" not in tracer.stderr.readline():
            print("strace is not allowed to attach; syncs are not counted")
            return []
        peers.drive("manyhands", server, "put", count=size.traced_puts)
        tracer.terminate()
        tracer.communicate()
        lines = Path(trace.name).read_text().splitlines()
        calls.append(sum("sync(" in line for line in lines) / size.traced_puts)
    return [Row("syncs per put, 1 producer", "calls", {"manyhands": calls}, value_max=1.05)]


def backlog(peers, size):
    """A deep queue on the disk: its memory, and how long a start takes after a kill."""
    rows = []
    count = f"{size.backlog:,} tasks of 100 bytes"
    # With large segments no checkpoint is due before the end.
    segments = {"no checkpoint": 1 << 28, "checkpoints as they come": 64 << 20}
    for label, segment_bytes in segments.items():
        options = ("--data", peers.empty("manyhands"), "--segment-bytes", str(segment_bytes))
        resident, seconds = fill_and_crash(peers, size, options)
        rows.append(
            Row(f"resident per task, {count}", "bytes", {"manyhands": [resident]}, value_max=40)
        )
        limit = 1.5 if label == "no checkpoint" else None
        rows.append(
            Row(
                f"start after kill -9, {count}, {label}",
                "s",
                {"manyhands": seconds},
                value_max=limit,
            )
        )
    return rows


def fill_and_crash(peers, size, options):
    """Resident bytes for each task, and the seconds of some starts with all of them."""
    with peers.ours(*options) as server:
        peers.drive("manyhands", server, "put", count=64)
        before = server.resident_bytes()
        load = dict(connections=4, outstanding=4, batch=64)
        done = peers.drive("manyhands", server, "put", count=size.backlog, **load)["done_in_all"]
        resident = (server.resident_bytes() - before) / done
        kill(server)
    seconds = []
    for _ in range(size.starts):
        begun = time.monotonic()
        with peers.ours(*options) as server:
            seconds.append(time.monotonic() - begun)
            there = qsize(server)
            if there != done + 64:
                raise RuntimeError(f"{there} tasks are there of {done + 64}")
            kill(server)
    return resident, seconds


def qsize(server):
    ident = raw_client.create(server.port, KEY, QUEUE)
    with raw_client.session(server.port, KEY) as session:
        request = raw_client.frame((ident, "qsize", (), {}))
        return raw_client.value(raw_client.exchange(session, request))


def churn(peers, size):
    """Put, get and ack for a long time on top of a backlog."""
    directory = peers.directory / "manyhands"
    with peers.start("manyhands") as server:
        peers.drive("manyhands", server, "put", count=size.churn_backlog, outstanding=64)
        seconds = size.churn_seconds
        driving = peers.start_driving("manyhands", server, "cycle", connections=64, seconds=seconds)
        disk = []
        while driving.poll() is None:
            disk.append(disk_bytes(directory) / 1e6)
            time.sleep(0.25)
        run = answer(driving)
    each = run["each_second"]
    quarter = max(1, len(each) // 4)
    trend = statistics.mean(each[-quarter:]) / statistics.mean(each[:quarter])
    label = f"churn of {seconds:.0f} s on {size.churn_backlog:,} tasks"
    live = size.churn_backlog * 100 / 1e6
    return [
        Row(f"{label}: put + get + ack, 64 workers", "/s", {"manyhands": each}),
        Row("… last quarter to the first", "×", {"manyhands": [trend]}),
        Row("… p99 of a put", "ms", {"manyhands": [run["put_us"]["p99"] / 1e3]}),
        Row("… longest put", "ms", {"manyhands": [run["put_us"]["max"] / 1e3]}),
        Row(f"… on the disk at most; {live:.0f} MB are live", "MB", {"manyhands": [max(disk)]}),
    ]


def leases(peers, size):
    """What leases cost a stock client in memory: put and get, with them and without."""
    kinds = {"leased": (), "cpython": ("--queue", f"{QUEUE},delivery=cpython")}
    rate, cpu = [], []
    with ExitStack() as stack:
        running = {
            kind: stack.enter_context(peers.ours(*options)) for kind, options in kinds.items()
        }
        for _ in range(size.lease_rounds):
            rates, costs = {}, {}
            for kind, server in running.items():
                before = server.cpu_seconds()
                run = peers.drive("classic", server, "cycle", connections=16, seconds=1)
                rates[kind] = run["done"] / run["seconds"]
                costs[kind] = (server.cpu_seconds() - before) / run["done_in_all"]
            rate.append(rates["cpython"] / rates["leased"])
            cpu.append(costs["leased"] / costs["cpython"])
    return [
        Row(
            "leases in memory: time of put + get, to that without",
            "×",
            {"manyhands": rate},
            value_max=1.1,
        ),
        Row("… server's CPU of put + get, to that without", "×", {"manyhands": cpu}, value_max=1.1),
    ]
