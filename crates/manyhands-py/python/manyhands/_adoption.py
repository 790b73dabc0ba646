"""Queues of Python that move into the server, and go on working where they are.

An adopted object keeps its identity and its type as far as ``isinstance`` can tell; its class
becomes one whose methods call the queue in Rust. What it held moves there in order. Threads that
already wait in its old methods are served until they have returned.
"""

import functools
import queue
import threading
import weakref
from pickle import loads

from . import _process_queues
from ._quick import dumps

_HANDLE = "_manyhands_queue"
_PUMP = "_manyhands_pump"
_mutex = threading.Lock()
# Adopted objects and the server that has their queue.
_adopted = weakref.WeakKeyDictionary()


def _interruptible():
    return threading.current_thread() is threading.main_thread()


class RustQueue:
    """The methods of ``queue.Queue`` on a queue in Rust."""

    def __init__(self, handle):
        self.__dict__[_HANDLE] = handle

    def put(self, item, block=True, timeout=None):
        """Add an item; ``queue.Full`` if there is no room in time."""
        self.__dict__[_HANDLE].put(dumps(item), bool(block), timeout, _interruptible())

    def get(self, block=True, timeout=None):
        """Take the next item; ``queue.Empty`` if none comes in time."""
        return loads(self.__dict__[_HANDLE].get(bool(block), timeout, _interruptible()))

    def put_nowait(self, item):
        """Add an item if there is room."""
        return self.put(item, False)

    def get_nowait(self):
        """Take the next item if there is one."""
        return self.get(False)

    def qsize(self):
        """Count the items."""
        return self.__dict__[_HANDLE].qsize()

    def empty(self):
        """Tell whether there is no item."""
        return self.qsize() == 0

    def full(self):
        """Tell whether as many items are there as fit."""
        return self.__dict__[_HANDLE].full()

    def task_done(self):
        """Count one item as done."""
        self.__dict__[_HANDLE].task_done()

    def join(self):
        """Wait until every item is done."""
        self.__dict__[_HANDLE].join(_interruptible())

    def shutdown(self, immediate=False):
        """End the queue."""
        self.__dict__[_HANDLE].shutdown(bool(immediate))

    @property
    def unfinished_tasks(self):
        """Count the items that are not done."""
        return self.__dict__[_HANDLE].unfinished

    @unfinished_tasks.setter
    def unfinished_tasks(self, _):
        # Only the original `put` sets it, when a thread that waited there goes on. Rust counts.
        pass

    @property
    def is_shutdown(self):
        """Tell whether the queue was shut down."""
        return self.__dict__[_HANDLE].is_shutdown


def _class_for(base):
    """A class for adopted objects of exactly the type ``base``, with no further public names."""
    names = {name: value for name, value in vars(RustQueue).items() if name[0] != "_"}
    # The original `put` calls this when a thread that waited there goes on.
    names["_put"] = RustQueue.put
    if not hasattr(base, "shutdown"):
        del names["shutdown"]
    names.update(__module__=base.__module__, __qualname__=base.__qualname__, __doc__=base.__doc__)
    return type(base.__name__, (base,), names)


def _class_for_processes(base):
    """The same for a queue of ``multiprocessing``."""
    adopted = _class_for(base)

    def put(self, obj, block=True, timeout=None):
        RustQueue.put(self, obj, block, timeout)

    del adopted._put
    adopted.put = put
    if not hasattr(base, "task_done"):
        del adopted.task_done, adopted.join
    return adopted


# Types that are adopted. The class of a SimpleQueue cannot be changed; what is in a PriorityQueue
# may need Python to be compared; a subclass may do anything.
_ORDERS = {queue.Queue: "fifo", queue.LifoQueue: "lifo"}
_CLASSES = {base: _class_for(base) for base in _ORDERS}
_CLASSES.update((base, _class_for_processes(base)) for base in _process_queues.TYPES)


def is_adopted(kind):
    """Whether objects of exactly this type can move into the server."""
    return kind in _CLASSES or kind is queue.SimpleQueue


def adopt(native, address, obj, is_fresh):
    """Move a queue into the server at ``address``; return it, or ``None`` if it stays in Python.

    A fresh one was made for a client just now, so nobody else will use it.
    """
    if is_fresh and type(obj) is queue.SimpleQueue:
        return native.pin_new("fifo", 0, 0)
    with _mutex:
        if obj.__class__ in _CLASSES.values():
            return obj.__dict__[_HANDLE] if _adopted.get(obj) is native else None
        if type(obj) in _ORDERS:
            with obj.mutex:
                return _move(native, obj)
        base = _process_queues.kind(obj)
        if base is not None and not _process_queues.is_served(obj):
            return _move_from_pipe(native, address, obj, base)
        return None


def _move_from_pipe(native, address, obj, base):
    is_bounded = obj._maxsize < _process_queues.SEM_VALUE_MAX
    handle = native.pin_new("fifo", obj._maxsize if is_bounded else 0, 0)
    obj.__dict__[_HANDLE] = handle
    obj.__dict__[_PUMP] = _process_queues.Pump(obj, handle)
    obj.__dict__[_PUMP].start()
    obj.__class__ = _CLASSES[base]
    _process_queues.announce(obj, address, handle.refer())
    _adopted[obj] = native
    return handle


def _move(native, obj):
    base = type(obj)
    try:
        pickles = [_pickle(item) for item in obj.queue]
    except Exception:
        # What cannot be pickled is useless to a client, but not to this process.
        return None
    debt = max(0, obj.unfinished_tasks - len(pickles))
    handle = native.pin_new(_ORDERS[base], max(0, obj.maxsize), debt)
    for pickled in pickles:
        handle.put(pickled, False, None, False)
    if getattr(obj, "is_shutdown", False):
        handle.shutdown(False)
    obj.queue.clear()
    for name in ("unfinished_tasks", "is_shutdown", "_get"):
        obj.__dict__.pop(name, None)
    obj.__dict__[_HANDLE] = handle
    obj.__class__ = _CLASSES[base]
    _adopted[obj] = native
    _serve_earlier_waiters(obj, handle)
    return handle


class _Pickled:
    """An item that is unpickled by who takes it, if anybody does."""

    def __init__(self, pickled):
        self.pickled = pickled

    def __reduce__(self):
        return loads, (self.pickled,)


def _pickle(item):
    return item.pickled if type(item) is _Pickled else dumps(item)


def give_back(native, pipes_only=False):
    """Return what a server that has stopped held to the objects it came from, as pickles.

    A process that ends needs to do so only for pipes, which others have too.
    """
    with _mutex:
        for obj in [obj for obj, server in _adopted.items() if server is native]:
            if pipes_only and _PUMP not in obj.__dict__:
                continue
            del _adopted[obj]
            handle = obj.__dict__.pop(_HANDLE)
            obj.__class__ = type(obj).__base__
            if _PUMP in obj.__dict__:
                _refill_pipe(obj, handle)
            else:
                _refill(obj, handle)


def _refill(obj, handle):
    items = list(_items(handle))
    if isinstance(obj, queue.LifoQueue):
        items.reverse()
    obj.queue.extend(items)
    # `get` of the original takes its items here.
    obj._get = functools.partial(_get_unpickled, type(obj)._get, obj)
    obj.unfinished_tasks = handle.unfinished
    if hasattr(obj, "shutdown"):
        obj.is_shutdown = handle.is_shutdown


def _get_unpickled(get, obj):
    item = get(obj)
    return loads(item.pickled) if type(item) is _Pickled else item


def _refill_pipe(obj, handle):
    obj.__dict__.pop(_PUMP).stop()
    _process_queues.withdraw(obj)
    for item in _items(handle):
        obj.put(item, False)


def _items(handle):
    while handle.qsize():
        yield _Pickled(handle.get(False, None, False))


# ---- threads that were waiting in the methods of the original


def _serve_earlier_waiters(obj, handle):
    """Start what threads that wait in methods of the original need. Its lock is held."""
    # To a thread that waits in `put`, the queue looks empty now; it goes on into `_put`.
    obj.not_full.notify_all()
    if obj.not_empty._waiters:
        _start(_serve_getters, obj, handle)
    if obj.all_tasks_done._waiters:
        _start(_serve_joiners, obj, handle)


def _start(target, *args):
    threading.Thread(
        target=target, args=args, name="manyhands-" + target.__name__, daemon=True
    ).start()


def _serve_getters(obj, handle):
    while obj.not_empty._waiters:
        try:
            pickled = handle.get(True, 0.1, False)
        except queue.Empty:
            continue
        with obj.mutex:
            if obj.not_empty._waiters:
                obj.queue.append(loads(pickled))
                obj.not_empty.notify()
                pickled = None
        if pickled is not None:
            # The last of them has given up meanwhile.
            handle.put(pickled, True, None, False)


def _serve_joiners(obj, handle):
    handle.join(False)
    with obj.all_tasks_done:
        obj.all_tasks_done.notify_all()
