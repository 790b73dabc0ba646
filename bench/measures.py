"""What is measured: every function returns rows, each with one figure per server and round.

Servers take turns within a round (A B C A B C ...), so that a noisy neighbour meets all of them; ratios are taken
round by round.
"""

import json
import statistics
import time
from contextlib import ExitStack

import raw_client
from servers import KEY
from table import Row, Target


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
                    seconds = servers.client_answer(running[name], "pairs", count, bytes_)["seconds"]
                    figures[bytes_][name].append(statistics.median(seconds) * 1e3)
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


CALLS_PER_TASK = 4


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
    put = raw_client.frame((ident, "put", (bytes(100),), {}))
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
            for session in (sessions[-1], sessions[0]):
                raw_client.value(raw_client.exchange(session, raw_client.frame((ident, "qsize", (), {}))))
    label = "resident per idle connection, {manyhands:,} held (CPython: {cpython:,})"
    return [Row(label.format(**counts), "bytes", figures, Target(value_max=4096))]


def queued_tasks(servers, size):
    """Resident memory of queued tasks of 100 bytes, and how long a get takes on top of them."""
    depths = {"cpython": size.depths_cpython, "manyhands": size.depths}
    resident = {depth: {} for depth in size.depths}
    get = {"deep": {}, "shallow": {}}
    for name in depths:
        with ExitStack() as stack:
            server = stack.enter_context(servers.start(name))
            session = stack.enter_context(raw_client.session(server.port, KEY))
            deep = raw_client.create(server.port, KEY, "get_task_queue")
            shallow = raw_client.create(server.port, KEY, "get_result_queue")
            for ident in (deep, shallow):
                raw_client.fill(session, ident, 10, 100)
            before, filled = server.resident_bytes(), 0
            for depth in depths[name]:
                raw_client.fill(session, deep, depth - filled, 100)
                filled = depth
                resident[depth][name] = [(server.resident_bytes() - before) / depth]
            for _ in range(size.depth_rounds):
                for place, ident in (("deep", deep), ("shallow", shallow)):
                    get[place].setdefault(name, []).append(get_latency(session, ident))
    rows = [
        Row(f"resident per queued task of 100 bytes, {depth:,} queued", "bytes", resident[depth], Target(value_max=150))
        for depth in size.depths
    ]
    deepest = depths["manyhands"][-1]
    figures = {"cpython": get["deep"].get("cpython"), "manyhands": get["deep"]["manyhands"], "shallow": get["shallow"]["manyhands"]}
    rows.append(Row(f"get with {deepest:,} queued; floor: with 10", "µs", figures, Target(floor_ratio_max=1.1), floor="shallow"))
    return rows


def get_latency(session, ident, count=200):
    """Mean latency of a get in µs; puts back as many as it takes."""
    raw_client.fill(session, ident, count, 100)
    get = raw_client.frame((ident, "get", (), {}))
    begun = time.perf_counter()
    for _ in range(count):
        raw_client.exchange(session, get)
    return (time.perf_counter() - begun) / count * 1e6
