"""Who is measured: a server, and the driver that speaks its protocol to it."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class System:
    """One column of a comparison."""

    label: str
    # What `Servers.start` starts, and what a server of ours is told besides.
    server: str = None
    # The load's name for the protocol.
    driver: str = None
    options: tuple = ()

    @property
    def kind(self):
        """How it is drawn."""
        if self.label.startswith("manyhands"):
            return "ours"
        return "floor" if self.label.startswith("floor") else "peer"


SYSTEMS = {
    # A driver of ours is a line here, and a line in `OURS` of rows.py.
    "native": System("manyhands, native", "manyhands", "native"),
    "classic": System("manyhands, classic", "manyhands", "classic"),
    "client": System("manyhands, Rust client", "manyhands", "client"),
    "no-leases": System(
        "manyhands, no leases",
        "manyhands",
        "classic",
        ("--queue", "get_task_queue,delivery=cpython"),
    ),
    "package": System("manyhands, Python package", "package", "classic"),
    "map": System("manyhands map", "manyhands"),
    "parallel": System("GNU parallel", "parallel"),
    "executor": System("manyhands.Executor", "package"),
    "processes": System("ProcessPoolExecutor", "package"),
    "cpython": System("CPython managers", "cpython", "classic"),
    "redis": System("Redis lists", "redis", "redis"),
    "redis-stream": System("Redis streams", "redis", "redis-stream"),
    "beanstalkd": System("beanstalkd", "beanstalkd", "beanstalkd"),
    "nats": System("NATS JetStream", "nats", "nats"),
    "rabbitmq": System("RabbitMQ quorum queue", "rabbitmq", "amqp"),
    "canned": System("floor: replies alone", "canned", "classic"),
    "echo": System("floor: raw echo", "echo", "echo"),
    "disk": System("floor: append + fdatasync"),
}


# An earlier build, with each driver of ours.
SYSTEMS.update(
    {
        f"before-{name}": replace(
            system, label=system.label.replace("manyhands", "the build before"), server="before"
        )
        for name, system in SYSTEMS.items()
        if system.server == "manyhands"
    }
)
