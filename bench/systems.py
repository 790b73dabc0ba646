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

    def is_ours(self):
        return self.server in ("manyhands", "package")


SYSTEMS = {
    # A driver of ours is a line here, and a line in `OURS` of rows.py.
    "classic": System("manyhands, classic", "manyhands", "classic"),
    "extension": System("manyhands, manyhands/1", "manyhands", "extension"),
    "no-leases": System(
        "manyhands, classic, delivery=cpython",
        "manyhands",
        "classic",
        ("--queue", "get_task_queue,delivery=cpython"),
    ),
    "package": System("manyhands, Python package", "package", "classic"),
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


def add_build_before():
    """Adds an earlier build beside each driver of ours."""
    for name, system in list(SYSTEMS.items()):
        if system.server == "manyhands":
            label = f"the build before: {system.label.partition(', ')[2]}"
            SYSTEMS[f"before-{name}"] = replace(system, label=label, server="before")
