"""A work queue for multiprocessing.managers: another server for unmodified scripts, and more.

``python -m manyhands script.py`` runs a script with the managers of manyhands in place of those of
the standard library. ``manyhands.managers`` has these managers. ``manyhands.connect`` is a client.
"""

# What a script might not need is not imported here: `import manyhands` stays fast.
_PLACES = {
    "Client": "_client",
    "Executor": "_executor",
    "GiveUp": "_child",
    "Info": "_tasks",
    "Lease": "_client",
    "Leases": "_client",
    "ManyhandsError": "_manyhands",
    "NoResult": "_manyhands",
    "Pool": "_pool",
    "Queue": "_client",
    "QueueInfo": "_tasks",
    "RemoteError": "_results",
    "RemoteTraceback": "_results",
    "StaleLease": "_manyhands",
    "Taken": "_tasks",
    "Task": "_tasks",
    "TaskFailed": "_results",
    "Worker": "_worker",
    "connect": "_client",
}
_MODULES = ("aio", "managers")

__all__ = [*_PLACES, *_MODULES]


def __getattr__(name):
    from importlib import import_module

    if name in _MODULES:
        return import_module("manyhands." + name)
    if name == "__version__":
        from importlib.metadata import version

        return version("manyhands")
    if name in _PLACES:
        return getattr(import_module("manyhands." + _PLACES[name]), name)
    raise AttributeError("module {!r} has no attribute {!r}".format(__name__, name))
