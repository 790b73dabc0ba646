"""What the bench measures: groups of rows. A row is one workload for several systems."""

from dataclasses import dataclass

import samples
from samples import backlog, backlog_on_disk, driven, durable, payloads, seed
from systems import SYSTEMS

# Drivers of ours that can do all of a row, beside which the others are; the first of them that was
# measured is the one that targets are about.
OURS = ("native", "classic")
# Those that acknowledge a task by its token, put and take in batches, and do not wait for the disk
# before the next request: a stock client's second request says that it gave up the first.
OURS_BY_TOKEN = ("native",)
# The library beside the protocol that it speaks.
LIBRARY = ("native", "client")
PEERS = ("redis", "redis-stream", "beanstalkd", "nats", "rabbitmq")
NO_BATCHES = {
    "redis-stream": "`XADD` adds one entry",
    "beanstalkd": "has no batches",
    "nats": "a publish is one message",
    "rabbitmq": "a publish is one message",
    "cpython": "has no batches",
    "classic": "CPython's protocol has no batches",
}


@dataclass(frozen=True)
class Target:
    """What a figure of ours should reach: a number, or a multiple of another's.

    `of` is a system, or another row, or nothing; or several systems, of which the rate of one after
    the other counts. If it is missed, `otherwise` may do.
    """

    figure: str
    bound: float
    of: "str | tuple | None" = None
    at_most: bool = False
    otherwise: "Target" = None


@dataclass(frozen=True)
class Row:
    """One workload."""

    id: str
    what: str
    systems: tuple
    sample: object
    targets: tuple = ()
    # Why a system that one would look for is not among them.
    absent: tuple = ()
    rounds_max: int = 1000


@dataclass(frozen=True)
class Group:
    """Rows that are told of together."""

    id: str
    title: str
    about: str
    # Figures that are plotted; the first that a row has is what its ratios are of.
    plots: tuple
    rows: tuple


def at_least(figure, bound, of=None, otherwise=None):
    return Target(figure, bound, of, otherwise=otherwise)


def at_most(figure, bound, of=None):
    return Target(figure, bound, of, at_most=True)


def why_not(*names):
    return tuple((name, NO_BATCHES[name]) for name in names)


def seed_rows():
    systems = ("classic", "cpython", "canned")
    for workers, ratio in ((1, 1.6), (4, 2.0), (16, 1.7)):
        what = f"{workers} worker{'s' if workers > 1 else ''}: put, get, put, get of a number"
        near_floor = at_least("rate", 0.85, "canned")
        rate = at_least("rate", ratio, "cpython", near_floor)
        targets = (rate, at_most("cpu", 0.5, "cpython"))
        yield Row(f"seed/{workers}", what, systems, seed(workers, 4_000), targets)


def start_rows():
    yield Row(
        "start/first-call",
        "connect, one proxy, first call",
        ("classic", "cpython", "canned"),
        samples.first_call(),
        (at_most("ms", 1 / 15, "cpython"),),
    )
    for kilobytes in (17, 30, 60):
        yield Row(
            f"start/{kilobytes}-kb",
            f"put + get of {kilobytes} KB by an unmodified client",
            ("classic", "cpython"),
            samples.stock_pairs(kilobytes * 1000, 300),
            (at_most("ms", 1 / 300, "cpython"),),
            rounds_max=3,
        )


def memory_rows():
    systems = (*OURS, "cpython", *PEERS, "canned", "echo")
    targets = {
        1: (at_most("p50", 1.15, "echo"),),
        64: (at_most("cpu", 6.9), at_most("cpu", 0.9, "redis")),
    }
    for connections in (1, 8, 64, 512):
        yield Row(
            f"memory/{connections}",
            f"put + get, {many(connections, 'connection')}",
            systems,
            driven("pair", connections=connections),
            targets.get(connections, ()),
        )
    yield Row(
        "memory/leases",
        "put + get, 16 connections: what leases cost",
        ("classic", "no-leases"),
        driven("pair", connections=16),
        (at_most("cpu", 1.1, "no-leases"),),
    )
    yield Row(
        "memory/idle",
        "10,000 idle connections (CPython: 500)",
        ("classic", "cpython"),
        samples.idle(10_000, {"cpython": 500}),
        (at_most("resident", 4096),),
        rounds_max=1,
    )


# Name, label, load, and which systems do it.
PIPELINES = (
    (
        "8x128",
        "8 connections, 128 in flight each",
        dict(connections=8, outstanding=128),
        (*OURS, "cpython", *PEERS, "canned", "echo"),
    ),
    (
        "64x16",
        "64 connections, 16 in flight each",
        dict(connections=64, outstanding=16),
        (*OURS, "client", "cpython", *PEERS, "canned", "echo"),
    ),
    (
        "batches",
        "batches of 256, 8 connections, 16 in flight each",
        dict(connections=8, outstanding=16, batch=256),
        (*LIBRARY, "redis", "echo"),
    ),
)
DEEP_PIPELINE = (
    "64x256",
    "64 connections, 256 in flight each",
    dict(connections=64, outstanding=256),
    (*OURS, "redis", "echo"),
)


def pipeline_rows():
    targets = {
        "8x128": at_most("cpu", 0.3),
        "64x16": at_most("cpu", 0.6),
        "batches": at_least("rate", 10_000_000),
    }
    for name, label, load, systems in PIPELINES:
        sample = driven("pair", **load)
        targets_ = (targets[name],)
        absent = without_batches(load)
        yield Row(f"pipeline/{name}", f"put + get, {label}", systems, sample, targets_, absent)


def away_rows():
    # What is in flight limits the rest: so much in a round trip.
    targets = {
        "64x256": (at_least("rate", 0.7, "pipeline/64x16"),),
        "batches": (at_least("rate", 0.7, "pipeline/batches"),),
    }
    for name, label, load, systems in (*PIPELINES[:2], DEEP_PIPELINE, PIPELINES[2]):
        sample = driven("pair", away_ms=2, **load)
        absent = without_batches(load)
        targets_ = targets.get(name, ())
        yield Row(f"away/{name}", f"put + get, {label}", systems, sample, targets_, absent)


def without_batches(load):
    return why_not("classic", "cpython", *PEERS[1:]) if "batch" in load else ()


def durable_rows():
    loads = (
        ("1", "1 producer", dict(connections=1), "1 worker"),
        ("64", "64 producers", dict(connections=64), "64 workers"),
        (
            "64x16",
            "64 producers, 16 in flight each",
            dict(connections=64, outstanding=16),
            "64 connections, 16 workers each",
        ),
        ("batches", "64 producers, batches of 64", dict(connections=64, batch=64), None),
    )
    targets = {
        "1": (at_least("rate", 0.9, ("canned", "disk")), at_least("rate", 1, "beanstalkd")),
        "64": (at_least("rate", 1.5, "redis"),),
        "64x16": (at_least("rate", 2.5, "redis"),),
        "batches": (at_least("rate", 2, "redis"),),
    }
    for name, label, load, _ in loads:
        in_batches = name == "batches"
        ours = OURS if "outstanding" not in load and not in_batches else OURS_BY_TOKEN
        floors = ("disk",) if in_batches else ("canned", "disk")
        yield Row(
            f"durable/put-{name}",
            f"durable put, {label}",
            (*ours, "redis", *floors) if in_batches else (*ours, *PEERS, *floors),
            durable("put", **load),
            targets[name],
            why_not("classic", *PEERS[1:]) if in_batches else (),
        )
    ratios = {"64": 2.5, "64x16": 4}
    for name, _, load, label in loads[:3]:
        yield Row(
            f"durable/cycle-{name}",
            f"durable put + get + ack, {label}",
            (*OURS_BY_TOKEN, *PEERS),
            durable("cycle", **load),
            (at_least("rate", ratios[name], "redis"),) if name in ratios else (),
        )
    yield Row(
        "durable/syncs",
        "durable put, 1 producer: syncs",
        OURS,
        samples.syncs(5_000),
        (at_most("syncs", 1.05),),
        rounds_max=1,
    )
    yield Row(
        "durable/churn",
        "durable put + get + ack for 20 s on 100,000 tasks, 64 workers",
        OURS_BY_TOKEN,
        samples.churn(20, 100_000),
        rounds_max=1,
    )


def backlog_rows():
    fewer = {"cpython": 100_000, "rabbitmq": 100_000}
    for count, peers in ((1_000_000, ("cpython", *PEERS)), (5_000_000, PEERS[:-1])):
        million = count // 1_000_000
        yield Row(
            f"backlog/{million}m",
            f"{million} M tasks of 100 bytes in memory",
            (*OURS, *peers),
            backlog(count, fewer),
            (at_most("resident", 150),),
            rounds_max=1,
        )
        for name, label, options in (
            ("disk", "on disk", ()),
            ("disk-log", "on disk, no checkpoint", ("--segment-bytes", str(1 << 28))),
        ):
            ours_alone = name == "disk-log"
            yield Row(
                f"backlog/{million}m-{name}",
                f"{million} M tasks of 100 bytes {label}",
                OURS_BY_TOKEN if ours_alone else (*OURS_BY_TOKEN, "redis"),
                backlog_on_disk(count, options),
                (at_most("resident", 40), at_most("start", 1.5)) if ours_alone else (),
                () if ours_alone else SLOW_TO_FILL,
                rounds_max=1,
            )


SLOW_TO_FILL = (
    ("redis-stream", "the same log as Redis lists"),
    ("beanstalkd", "syncs every task by itself: minutes to fill"),
    ("nats", "syncs every task by itself: minutes to fill"),
    ("rabbitmq", "minutes to fill"),
)


def payload_rows():
    for mebibytes in (1, 64):
        yield Row(
            f"payloads/{mebibytes}-mib",
            f"put + get of {mebibytes} MiB, 1 connection",
            (*OURS, "cpython", *PEERS, "echo"),
            payloads(mebibytes << 20),
            (at_least("mb_per_second", 0.9, "echo"),) if mebibytes == 1 else (),
            rounds_max=3,
        )


def package_rows():
    both = ("package", "cpython")
    for name, what, theirs, ours, ratio in (
        ("proxy", "put + get by a proxy", ("pairs", 3000), ("pairs", 3000), 1.8),
        ("pipeline", "puts, ours in a pipeline", ("puts", 3000), ("pipeline", 60_000), 30),
        ("batches", "gets, ours in batches of 256", ("gets", 3000), ("batches", 60_000), 15),
        ("connect", "put + get, ours by manyhands.connect", ("pairs", 3000), ("connect", 3000), 1),
        ("dict", "calls of a dict, which lives in Python", ("dict", 3000), ("dict", 3000), 0.8),
    ):
        target = at_least("rate", ratio, "cpython")
        sample = samples.package_calls(theirs, ours)
        yield Row(f"package/{name}", what, both, sample, (target,))
    yield Row(
        "package/bytes",
        "put + get of bytes, batches of 256, by manyhands.connect",
        ("package",),
        samples.package_calls(None, ("through", 400_000)),
        (at_least("rate", 2_000_000),),
    )
    yield Row(
        "package/512",
        "put + get, 512 clients",
        both,
        driven("pair", connections=512),
        (at_least("rate", 5, "cpython"),),
    )
    yield Row(
        "package/start",
        "start() to the first result",
        both,
        samples.package_start(),
        (at_most("ms", 1 / 5, "cpython"),),
    )
    yield Row(
        "package/import",
        "import manyhands, beyond bare Python",
        ("package",),
        samples.package_import(None, "manyhands"),
        (at_most("ms", 30),),
        rounds_max=3,
    )
    yield Row(
        "package/import-managers",
        "import of the managers, beyond bare Python",
        both,
        samples.package_import("multiprocessing.managers", "manyhands.managers"),
        rounds_max=3,
    )


def program_rows():
    cpu = "CPU of all processes, µs each"
    yield Row(
        "programs/commands",
        "a command that does nothing, two at a time: " + cpu,
        ("map", "parallel"),
        samples.commands(2_000),
        (at_least("rate", 3, "parallel"),),
        rounds_max=3,
    )
    for name, what, chunksize, count, bound in (
        ("calls", "one by one", 1, 5_000, 60),
        ("chunks", "in chunks (those of others: 500)", 500, 200_000, 8),
    ):
        yield Row(
            f"programs/{name}",
            f"map of a function that does nothing, two processes, {what}: " + cpu,
            ("executor", "processes"),
            samples.calls(count, chunksize),
            (at_most("cpu", bound),),
            rounds_max=3,
        )


def many(count, noun):
    return f"{count} {noun}{'' if count == 1 else 's'}"


GROUPS = (
    Group(
        "seed",
        "Unmodified scripts",
        "A master puts numbers, workers square them and put the results, the master collects: four "
        "calls for each task, by the standard library's proxies. CPU is that of one task.",
        ("rate", "cpu"),
        tuple(seed_rows()),
    ),
    Group(
        "start",
        "First call and large payloads of unmodified scripts",
        "A payload of this size takes two writes; CPython's server leaves the second one waiting "
        "for a delayed acknowledgement.",
        ("ms",),
        tuple(start_rows()),
    ),
    Group(
        "memory",
        "In memory, one request in flight",
        "Put + get of 100 bytes, the reply to each before the next. RabbitMQ's quorum queues are "
        "always on disk.",
        ("rate", "cpu", "resident"),
        tuple(memory_rows()),
    ),
    Group(
        "pipeline",
        "In memory, many in flight",
        "Put + get of 100 bytes, without waiting for earlier replies.",
        ("rate", "cpu"),
        tuple(pipeline_rows()),
    ),
    Group(
        "away",
        "The same, 2 ms away",
        "Through a proxy that delays each direction by 2 ms: no more than what is in flight can be "
        "done in a round trip. Targets are ratios to the rate without it.",
        ("rate", "cpu"),
        tuple(away_rows()),
    ),
    Group(
        "durable",
        "On disk",
        "No system replies before the task is on disk. The disk's floor appends and syncs as many "
        "bytes at a time as our journal did in the same round.",
        ("rate", "p99", "syncs"),
        tuple(durable_rows()),
    ),
    Group(
        "backlog",
        "Deep queues",
        "Filled by 4 connections, 128 puts in flight each; CPython and RabbitMQ with 100,000. Then "
        "a get on top of them by one client, or a kill -9 and a start until it accepts "
        "connections, page cache warm.",
        ("resident", "start", "take_p50"),
        tuple(backlog_rows()),
    ),
    Group(
        "payloads",
        "Large payloads",
        "One client puts and gets; an MB goes in and comes out.",
        ("mb_per_second", "cpu"),
        tuple(payload_rows()),
    ),
    Group(
        "package",
        "The Python package",
        "Both ends are CPython's in one line and ours in the other.",
        ("rate", "ms"),
        tuple(package_rows()),
    ),
    Group(
        "programs",
        "Functions and commands",
        "From the start of the program to its end, or of the first call to the last result.",
        ("rate", "cpu"),
        tuple(program_rows()),
    ),
)


def selected(only, systems, has_before):
    """The groups with the rows and systems that were asked for; all of them by default."""
    for group in GROUPS:
        rows = []
        for row in group.rows:
            if only and group.id not in only and row.id not in only:
                continue
            names = list(with_build_before(row.systems)) if has_before else row.systems
            names = [name for name in names if name in (systems or names)]
            if names:
                rows.append((row, names))
        if rows:
            yield group, rows


def with_build_before(names):
    """Each driver of ours is followed by that of the earlier build."""
    for name in names:
        yield name
        if f"before-{name}" in SYSTEMS:
            yield f"before-{name}"
