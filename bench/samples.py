"""How one system is measured once. Every function here makes a sampler for rows.py.

A sampler is called with the bench, the name of a system, and the samples of the systems before it
in the same round; it returns figures by name. Each sample has a server of its own.
"""

import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import raw_client
from disk import disk_bytes, written
from servers import HERE, KEY
from systems import SYSTEMS

QUEUE = "get_task_queue"
# What our journal writes for one task of 100 bytes.
ONE_PUT_BYTES = 184
# What goes through a queue of large payloads.
PAYLOADS_BYTES = 256 << 20
FILL_SECONDS_MAX = 180
CLIENT_SIDES = {"cpython": [], "package": ["-m", "manyhands"]}


class Bench:
    """What samples are taken with, and how much of it."""

    def __init__(self, servers, load, python, seconds, is_quick):
        self.servers = servers
        self.load = load
        self.python = python
        self.seconds = seconds
        self.is_quick = is_quick

    def few(self, count, least=200):
        """A count of the full bench, or a small one that only shows that all works."""
        return max(least, count // 100) if self.is_quick else count

    def start(self, system, **how):
        system = SYSTEMS[system]
        how["options"] = [*system.options, *how.get("options", ())]
        return self.servers.start(system.server, **how)

    def drive(self, system, server, work, **options):
        """Gives `server` work; returns what was measured, and its CPU for each item in µs."""
        process = self.start_driving(system, server.port, work, **options)
        process.stdout.readline()  # connected
        cpu = server.cpu_seconds()
        run = answer(process, FILL_SECONDS_MAX if "count" in options else 10 * self.seconds + 20)
        if not run["done_in_all"]:
            raise RuntimeError("nothing was done in all the time")
        run["cpu_us"] = (server.cpu_seconds() - cpu) / run["done_in_all"] * 1e6
        return run

    def start_driving(self, system, port, work, **options):
        command = [self.load, "drive", "--driver", SYSTEMS[system].driver]
        command += ["--address", f"127.0.0.1:{port}", "--work", work]
        command += ["--key-file", self.servers.key_file]
        for option, value in options.items():
            command += [f"--{option}"] if value is True else [f"--{option}", str(value)]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ, RUST_BACKTRACE="0"),
        )

    def timed(self):
        """How long the load works, and how long of that is not measured."""
        return {"seconds": self.seconds, "warm": self.seconds / 4}

    def append(self, bytes_):
        """What the disk alone does, appending and syncing so many bytes at a time."""
        command = [self.load, "floor", "--directory", self.servers.directory]
        command += ["--bytes", str(bytes_), "--seconds", str(self.seconds / 2)]
        return answer(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))


def answer(process, seconds_max=FILL_SECONDS_MAX):
    """Waits for a client's measurement and its end."""
    try:
        output, errors = process.communicate(timeout=seconds_max)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise RuntimeError(f"a client was not through after {seconds_max:.0f} s") from None
    if process.returncode != 0:
        raise RuntimeError(f"a client failed: {errors or output}")
    return json.loads(output.splitlines()[-1])


def figures(run):
    """What is told of a run of the load."""
    seen = {"rate": run["done"] / run["seconds"], "cpu": run["cpu_us"]}
    for kind, prefix in (("put_us", ""), ("take_us", "take_")):
        if run[kind]["max"]:
            seen.update({f"{prefix}{name}": run[kind][name] for name in ("p50", "p99")})
    return seen


def driven(work, away_ms=0, **load):
    """`work` on queues in memory; with `away_ms`, through a network that takes so long each way."""

    def sample(bench, system, _):
        with bench.start(system) as server, away(bench, server, away_ms) as reached:
            return figures(bench.drive(system, reached, work, **load, **bench.timed()))

    return sample


class Reached:
    """A server at another port."""

    def __init__(self, server, port):
        self.cpu_seconds = server.cpu_seconds
        self.port = port


@contextmanager
def away(bench, server, ms):
    """The server, behind a proxy of ours that delays what it passes on."""
    if not ms:
        yield server
        return
    command = [bench.load, "delay", "--to", f"127.0.0.1:{server.port}", "--ms", str(ms)]
    proxy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield Reached(server, int(proxy.stdout.readline()))
    finally:
        proxy.kill()
        proxy.communicate()


def durable(work, **load):
    """`work` on queues on a disk. The floor appends as many bytes at a time as ours wrote."""

    def sample(bench, system, before):
        if system == "disk":
            return appended(bench, before)
        with bench.start(system, durable=True) as server:
            run = bench.drive(system, server, work, durable=True, **load, **bench.timed())
        seen = figures(run)
        if SYSTEMS[system].server == "manyhands":
            frames, bytes_ = written(bench.servers.data("manyhands"))
            seen["per_sync"] = run["done_in_all"] / frames
            seen["frame_bytes"] = bytes_ / frames
        return seen

    return sample


def appended(bench, before):
    ours = [seen for seen in before.values() if "frame_bytes" in seen]
    shape = ours[-1] if ours else {"frame_bytes": ONE_PUT_BYTES, "per_sync": 1}
    run = bench.append(round(shape["frame_bytes"]))
    seen = {"rate": run["appends"] / run["seconds"] * shape["per_sync"]}
    seen.update(p50=run["append_us"]["p50"], p99=run["append_us"]["p99"])
    return seen


def syncs(count):
    """Syncs by one producer for each of its puts, counted by strace."""

    def sample(bench, system, _):
        puts = bench.few(count)
        with bench.start(system, durable=True) as server, tempfile.NamedTemporaryFile() as trace:
            command = ["strace", "-f", "-e", "trace=fdatasync,fsync", "-o", trace.name]
            tracer = subprocess.Popen(
                [*command, "-p", str(server.process.pid)], stderr=subprocess.PIPE, text=True
            )
            if "attached" not in tracer.stderr.readline():
                raise RuntimeError("strace is not allowed to attach")
            bench.drive(system, server, "put", count=puts)
            tracer.terminate()
            tracer.communicate()
            lines = Path(trace.name).read_text().splitlines()
        return {"syncs": sum("sync(" in line for line in lines) / puts}

    return sample


def payloads(bytes_):
    """Put and get of large items by one client."""

    def sample(bench, system, _):
        options = ("--frame-bytes-max", str(2 * bytes_)) if is_serve(system) else ()
        with bench.start(system, options=options) as server:
            load = dict(payload=bytes_, count=bench.few(PAYLOADS_BYTES // bytes_, 4))
            run = bench.drive(system, server, "pair", **load)
        seen = figures(run)
        seen["mb_per_second"] = seen["rate"] * bytes_ / 1e6
        return seen

    return sample


def is_serve(system):
    return SYSTEMS[system].server in ("manyhands", "before")


def backlog(count, fewer):
    """A deep queue in memory: what a task takes there, and a get on top of it all."""

    def sample(bench, system, _):
        tasks = bench.few(fewer.get(system, count), 5_000)
        with bench.start(system) as server:
            seen = filled(bench, system, server, tasks)
            got = bench.drive(system, server, "pair", **keeping(system), count=bench.few(2_000))
        seen["take_p50"], seen["take_p99"] = got["take_us"]["p50"], got["take_us"]["p99"]
        return seen

    return sample


def filled(bench, system, server, tasks, **load):
    """Fills a queue with `tasks`: the rate of that, and the memory of each."""
    bench.drive(system, server, "put", count=64, **load)
    before = server.resident_bytes()
    load.update(connections=4, outstanding=128, count=tasks, **keeping(system))
    run = bench.drive(system, server, "put", **load)
    resident = (server.resident_bytes() - before) / run["done_in_all"]
    return {"rate": run["done"] / run["seconds"], "cpu": run["cpu_us"], "resident": resident}


def keeping(system):
    """A server that is not started anew has its queue made anew, unless it is to be kept."""
    return {"keep": True} if SYSTEMS[system].server == "rabbitmq" else {}


def backlog_on_disk(count, options=()):
    """A deep queue on disk: its memory, and how long a start takes after a kill."""

    def sample(bench, system, _):
        tasks = bench.few(count, 5_000)
        ours = options if is_serve(system) else ()
        with bench.start(system, durable=True, options=ours) as server:
            seen = filled(bench, system, server, tasks, durable=True)
            server.kill()
        begun = time.monotonic()
        with bench.start(system, durable=True, options=ours, keep=True) as server:
            seen["start"] = time.monotonic() - begun
            if is_serve(system) and qsize(server) < tasks:
                raise RuntimeError(f"{qsize(server)} tasks are there of {tasks}")
        return seen

    return sample


def qsize(server):
    ident = raw_client.create(server.port, KEY, QUEUE)
    with raw_client.session(server.port, KEY) as session:
        request = raw_client.frame((ident, "qsize", (), {}))
        return raw_client.value(raw_client.exchange(session, request))


def churn(seconds, backlog):
    """Put, get and ack for a long time on top of a backlog."""

    def sample(bench, system, _):
        lasting = 2 if bench.is_quick else seconds
        with bench.start(system, durable=True) as server:
            bench.drive(system, server, "put", count=bench.few(backlog), outstanding=64)
            driving = bench.start_driving(
                system, server.port, "cycle", connections=64, seconds=lasting
            )
            disk, cpu = [], server.cpu_seconds()
            while driving.poll() is None:
                disk.append(disk_bytes(bench.servers.data(SYSTEMS[system].server)) / 1e6)
                time.sleep(0.25)
            run = answer(driving)
            run["cpu_us"] = (server.cpu_seconds() - cpu) / run["done_in_all"] * 1e6
        each = run["each_second"]
        quarter = max(1, len(each) // 4)
        seen = figures(run)
        seen["trend"] = statistics.mean(each[-quarter:]) / statistics.mean(each[:quarter])
        seen["max"] = run["put_us"]["max"]
        seen["disk_mb"] = max(disk)
        return seen

    return sample


def idle(count, fewer):
    """Resident memory of sessions that are open and silent."""

    def sample(bench, system, _):
        sessions = bench.few(fewer.get(system, count))
        with ExitStack() as stack:
            server = stack.enter_context(bench.start(system))
            stack.enter_context(raw_client.session(server.port, KEY))
            before = server.resident_bytes()
            for _ in range(sessions):
                stack.enter_context(raw_client.session(server.port, KEY))
            resident = (server.resident_bytes() - before) / sessions
            qsize(server)  # It still answers.
        return {"resident": resident}

    return sample


def stock_client(bench, server, *arguments):
    """Starts the unmodified client in a process of its own."""
    command = [bench.python, HERE / "stock_client.py", str(server.port), bench.servers.key_file]
    command += [str(argument) for argument in arguments]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def seed(workers, tasks):
    """A master puts numbers, workers square them, the master collects; all of them unmodified."""

    def sample(bench, system, _):
        share = bench.few(tasks) // workers
        count = share * workers
        with bench.start(system) as server:
            clients = [stock_client(bench, server, "master", count)]
            clients += [stock_client(bench, server, "worker", share) for _ in range(workers)]
            for client in clients:
                if client.stdout.readline() != "ready\n":
                    raise RuntimeError("a client did not get ready")
            cpu, begun = server.cpu_seconds(), time.monotonic()
            for client in clients:
                client.stdin.write("go\n")
            # Leaving costs handshakes, so nobody leaves before all have answered.
            answers = [json.loads(client.stdout.readline()) for client in clients]
            cpu = server.cpu_seconds() - cpu
            for client in clients:
                client.communicate()
        return {
            "rate": count / (max(one["ended"] for one in answers) - begun),
            "cpu": cpu / count * 1e6,
            "client_cpu": sum(one["cpu"] for one in answers) / count * 1e6,
        }

    return sample


def first_call():
    """From nothing to the first answer, in a fresh client process."""

    def sample(bench, system, _):
        with bench.start(system) as server:
            return {"ms": answer(stock_client(bench, server, "start"))["seconds"] * 1e3}

    return sample


def stock_pairs(bytes_, count):
    """Put and get of a payload that takes two writes, by one unmodified client."""

    def sample(bench, system, _):
        # CPython stalls for 90 ms per pair; a few tell.
        pairs = 6 if system == "cpython" else bench.few(count, 6)
        with bench.start(system) as server:
            seconds = answer(stock_client(bench, server, "pairs", pairs, bytes_))["seconds"]
        return {"ms": statistics.median(seconds) * 1e3}

    return sample


def package_client(bench, system, role, *arguments):
    """Runs a client by plain Python, or by the package's."""
    command = [bench.servers.programs["package"], *CLIENT_SIDES[system]]
    command += [HERE / "python_client.py", bench.servers.key_file, role]
    command += [str(argument) for argument in arguments]
    return answer(
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    )


def package_calls(theirs, ours):
    """A role of python_client.py and its count, on either side."""

    def sample(bench, system, _):
        role, count = theirs if system == "cpython" else ours
        with bench.start(system) as server:
            run = package_client(bench, system, role, server.port, bench.few(count))
        return {"rate": run["rate"]}

    return sample


def commands(count):
    """Commands that do nothing, two at a time; CPU is that of all processes."""

    def sample(bench, system, _):
        jobs = bench.few(count)
        words = [bench.servers.programs[SYSTEMS[system].server]]
        words += ["map"] if SYSTEMS[system].server == "manyhands" else []
        words += ["-j2", "true", ":::", *map(str, range(jobs))]
        cpu, begun = children_cpu(), time.monotonic()
        subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        seconds, cpu = time.monotonic() - begun, children_cpu() - cpu
        return {"rate": jobs / seconds, "cpu": cpu / jobs * 1e6}

    return sample


def children_cpu():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def calls(count, chunksize):
    """`map` of a function that does nothing, two processes; CPU is that of all processes."""

    def sample(bench, system, _):
        command = [bench.servers.programs["package"], HERE / "executors.py", system]
        command += [str(bench.few(count)), str(chunksize)]
        return answer(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))

    return sample


def package_start():
    """`BaseManager.start()` to the first item out of the queue, in one process."""

    def sample(bench, system, _):
        return {"ms": package_client(bench, system, "start", 0)["seconds"] * 1e3}

    return sample


def package_import(theirs, ours):
    """How long an import takes beyond the start of a bare interpreter."""

    def sample(bench, system, _):
        module = theirs if system == "cpython" else ours
        bare, whole = (python_seconds(bench, code) for code in ("pass", f"import {module}"))
        return {"ms": (whole - bare) * 1e3}

    return sample


def python_seconds(bench, code):
    """How long a Python takes for it, the median of a few."""
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        command = [bench.servers.programs["package"], "-c", code]
        subprocess.run(command, check=True, env=dict(os.environ, PYTHONSTARTUP=""))
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)
