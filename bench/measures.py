"""What is measured: every function returns rows, each with one figure per server and round.

Servers take turns within a round (A B C A B C ...), so that a noisy neighbour meets all of them;
ratios are taken round by round.
"""

import json
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass

import raw_client
from servers import KEY
from table import Row, Target

PAYLOAD_BYTES = 100
CALLS_PER_TASK = 4


@dataclass
class Size:
    """How much is measured."""

    connect_rounds: int = 15
    payload_bytes: tuple = (17_000, 30_000, 60_000)
    payload_rounds: int = 5
    stalled_pairs: int = 6
    pairs: int = 300
    task_rounds: int = 7
    tasks: int = 8_000
    raw_rounds: int = 40
    raw_pairs: int = 500
    idle_connections: int = 10_000
    idle_connections_cpython: int = 500
    depths: tuple = (1_000_000, 5_000_000)
    depth_cpython: int = 1_000_000
    depth_rounds: int = 30


QUICK = Size(
    connect_rounds=3,
    payload_rounds=1,
    task_rounds=2,
    tasks=3_000,
    raw_rounds=10,
    depths=(1_000_000,),
    depth_cpython=100_000,
    depth_rounds=10,
)


def connect_and_first_call(servers, size):
    """From nothing to the first answer, in a fresh client process each time."""
    names = ("cpython", "manyhands", "canned")
    figures = {name: [] for name in names}
    with ExitStack() as stack:
        running = {name: stack.enter_context(servers.start(name)) for name in names}
        for _ in range(size.connect_rounds):
            for name in names:
                seconds = servers.client_answer(running[name], "start")["seconds"]
                figures[name].append(seconds * 1e3)
    return [Row("connect, one proxy, first call", "ms", figures, Target(ratio_max=1 / 15))]


def large_payloads(servers, size):
    """One put and one get of a payload that takes two writes, by one client."""
    names = ("cpython", "manyhands")
    figures = {bytes_: {name: [] for name in names} for bytes_ in size.payload_bytes}
    with ExitStack() as stack:
        running = {name: stack.enter_context(servers.start(name)) for name in names}
        for _ in range(size.payload_rounds):
            for bytes_ in size.payload_bytes:
                for name in names:
                    # CPython stalls for 90 ms per pair; a few tell.
                    count = size.stalled_pairs if name == "cpython" else size.pairs
                    pairs = servers.client_answer(running[name], "pairs", count, bytes_)
                    figures[bytes_][name].append(statistics.median(pairs["seconds"]) * 1e3)
    return [
        Row(f"put + get of {bytes_ // 1000} KB", "ms", figures[bytes_], Target(ratio_max=1 / 300))
        for bytes_ in size.payload_bytes
    ]


def tasks_end_to_end(servers, size):
    """A master puts numbers, workers square them, the master collects; all of them unmodified."""
    names = ("cpython", "manyhands", "canned")
    at_least = {1: 1.6, 4: 2.0, 16: 1.7}
    rows = []
    for workers, ratio in at_least.items():
        rate, server_cpu, client_cpu = ({name: [] for name in names} for _ in range(3))
        with ExitStack() as stack:
            running = {name: stack.enter_context(servers.start(name)) for name in names}
            for _ in range(size.task_rounds):
                for name in names:
                    run = run_tasks(servers, running[name], workers, size.tasks)
                    rate[name].append(run["rate"])
                    server_cpu[name].append(run["server_cpu"])
                    client_cpu[name].append(run["client_cpu"])
        label = f"{workers} worker" + ("s" if workers > 1 else "")
        rows += [
            Row(f"tasks, {label}", "/s", rate, Target(ratio_min=ratio, or_floor_ratio_min=0.85)),
            Row(f"server CPU per call, {label}", "µs", server_cpu, Target(ratio_max=0.5)),
            Row(f"clients' CPU per call, {label}", "µs", client_cpu),
        ]
    return rows


def run_tasks(servers, server, workers, tasks):
    """One run from the first put to the last result; each worker does an equal share."""
    share = tasks // workers
    clients = [servers.client(server, "master", share * workers)]
    clients += [servers.client(server, "worker", share) for _ in range(workers)]
    for client in clients:
        if client.stdout.readline() != "ready\n":
            raise RuntimeError("a client did not get ready")
    server_cpu, begun = server.cpu_seconds(), time.monotonic()
    for client in clients:
        client.stdin.write("go\n")
    # Leaving costs handshakes, so nobody leaves before all have answered.
    answers = [json.loads(client.stdout.readline()) for client in clients]
    server_cpu = server.cpu_seconds() - server_cpu
    for client in clients:
        client.communicate()
    calls = CALLS_PER_TASK * share * workers
    return {
        "rate": share * workers / (max(one["ended"] for one in answers) - begun),
        "server_cpu": server_cpu / calls * 1e6,
        "client_cpu": sum(one["cpu"] for one in answers) / calls * 1e6,
    }


def one_call_at_a_time(servers, size):
    """Put and get of 100 bytes in turn by a bare socket, beside an echo of the very same frames."""
    names = ("cpython", "manyhands", "echo")
    latency, cpu = ({name: [] for name in names} for _ in range(2))
    with ExitStack() as stack:
        running = {name: stack.enter_context(servers.start(name)) for name in names}
        callers = {name: caller(stack, name, running[name].port) for name in names}
        for _ in range(size.raw_rounds):
            for name in names:
                connection, put, get = callers[name]
                server_cpu, begun = running[name].cpu_seconds(), time.perf_counter()
                for _ in range(size.raw_pairs):
                    raw_client.exchange(connection, put)
                    raw_client.exchange(connection, get)
                calls = 2 * size.raw_pairs
                latency[name].append((time.perf_counter() - begun) / calls * 1e6)
                cpu[name].append((running[name].cpu_seconds() - server_cpu) / calls * 1e6)
    return [
        Row("one call by a bare socket", "µs", latency, floor="echo"),
        Row("server CPU of that call", "µs", cpu, floor="echo"),
    ]


def caller(stack, name, port):
    """A connection with its put and its get frame."""
    if name == "echo":
        connection, ident = raw_client.echo_connection(port), "7f0123456789"
    else:
        connection = raw_client.session(port, KEY)
        ident = raw_client.create(port, KEY, "get_task_queue")
    stack.enter_context(connection)
    put = raw_client.frame((ident, "put", (bytes(PAYLOAD_BYTES),), {}))
    return connection, put, raw_client.frame((ident, "get", (), {}))


def idle_connections(servers, size):
    """Resident memory of sessions that are open and silent."""
    counts = {"cpython": size.idle_connections_cpython, "manyhands": size.idle_connections}
    figures = {}
    for name, count in counts.items():
        with ExitStack() as stack:
            server = stack.enter_context(servers.start(name))
            stack.enter_context(raw_client.session(server.port, KEY))
            before = server.resident_bytes()
            sessions = []
            for _ in range(count):
                sessions.append(stack.enter_context(raw_client.session(server.port, KEY)))
            figures[name] = [(server.resident_bytes() - before) / count]
            # The last one and the first still answer.
            ident = raw_client.create(server.port, KEY, "get_task_queue")
            qsize = raw_client.frame((ident, "qsize", (), {}))
            for session in (sessions[-1], sessions[0]):
                raw_client.value(raw_client.exchange(session, qsize))
    label = "resident per idle connection, {manyhands:,} held (CPython: {cpython:,})"
    return [Row(label.format(**counts), "bytes", figures, Target(value_max=4096))]


def queued_tasks(servers, size):
    """Resident memory of queued tasks of 100 bytes, and how long a get takes on top of them."""
    rounds, original_depth = size.depth_rounds, size.depth_cpython
    [original], _, original_get = deep_queue(servers, "cpython", [original_depth], rounds)
    ours, shallow_get, deep_get = deep_queue(servers, "manyhands", size.depths, rounds)
    rows = []
    for depth, resident in zip(size.depths, ours):
        label = f"resident per queued task of 100 bytes, {depth:,} queued"
        label += f" (CPython: {original_depth:,})"
        figures = {"cpython": [original], "manyhands": [resident]}
        rows.append(Row(label, "bytes", figures, Target(value_max=150)))
    figures = {"cpython": original_get, "manyhands": deep_get, "shallow": shallow_get}
    label = f"get with {size.depths[-1]:,} queued"
    label += f" (CPython: {original_depth:,}; floor: ours with 10)"
    rows.append(Row(label, "µs", figures, Target(floor_ratio_max=1.1), floor="shallow"))
    return rows


def deep_queue(servers, name, depths, rounds):
    """Fills a queue to each of `depths` in turn.

    Returns the resident bytes per task at each, and the latencies of `get` on a short queue and on
    this one, round by round.
    """
    with servers.start(name) as server, raw_client.session(server.port, KEY) as session:
        short = raw_client.create(server.port, KEY, "get_result_queue")
        deep = raw_client.create(server.port, KEY, "get_task_queue")
        for ident in (short, deep):
            raw_client.fill(session, ident, 10, PAYLOAD_BYTES)
        before, filled, resident = server.resident_bytes(), 0, []
        for depth in depths:
            raw_client.fill(session, deep, depth - filled, PAYLOAD_BYTES)
            filled = depth
            resident.append((server.resident_bytes() - before) / depth)
        gets = [(get_latency(session, short), get_latency(session, deep)) for _ in range(rounds)]
        return (resident, *zip(*gets))


def get_latency(session, ident, count=200):
    """Mean latency of a get in µs; puts back as many as it takes."""
    raw_client.fill(session, ident, count, PAYLOAD_BYTES)
    get = raw_client.frame((ident, "get", (), {}))
    begun = time.perf_counter()
    for _ in range(count):
        raw_client.exchange(session, get)
    return (time.perf_counter() - begun) / count * 1e6
