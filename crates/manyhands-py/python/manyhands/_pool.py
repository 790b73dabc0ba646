"""The interface of ``multiprocessing.Pool``, over an executor.

What a pool makes of its methods' arguments, and its results, are the standard library's. Its calls
go to the executor, where that has a few threads and pipes.
"""

import multiprocessing
import os
import pickle
import queue
import secrets
import threading
import weakref
from multiprocessing import pool as _standard

from . import _executor, _worker
from . import _remote_calls as _calls

# Calls under way before no more input is taken.
_WINDOW = 1024


class Pool(_standard.Pool):
    """A ``multiprocessing.Pool`` whose processes may be anywhere.

    Without an ``address`` it has ``processes`` of its own; with one, the workers of that server,
    which ``manyhands worker`` starts on any machine, and ``processes`` here if that is given. Other
    options are those of `manyhands.Executor`. A call whose process dies is tried again.
    """

    def __init__(
        self,
        processes=None,
        initializer=None,
        initargs=(),
        maxtasksperchild=None,
        *,
        address=None,
        **options,
    ):
        self._state = _standard.INIT
        if processes is not None:
            _worker._at_least_one("processes", processes)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer= must be callable, not {!r}".format(initializer))
        if maxtasksperchild is not None:
            text = "maxtasksperchild= is not supported: a process stays as long as its pool"
            raise NotImplementedError(text)
        executor = _executor.Executor(address, workers=processes, **options)
        first = None
        if initializer is not None:
            body = _calls.dump_call(initializer, tuple(initargs), {}, address is not None)
            first = secrets.token_bytes(8), body
        # The standard pool splits the input of `map` by how many there are.
        self._pool = [None] * (executor._workers or os.cpu_count() or 1)
        self._cache = {}
        self._feeder = _Feeder(executor, self._cache, first)
        self._taskqueue = self._feeder.inbox
        self._feeder.start()
        self._end = weakref.finalize(self, self._feeder.terminate)
        self._end.atexit = False
        self._state = _standard.RUN

    def close(self):
        """Take no more calls; those that were made are done."""
        if self._state == _standard.RUN:
            self._state = _standard.CLOSE
            self._feeder.close()

    def terminate(self):
        """End at once. Whoever waits for a result has a `multiprocessing.ProcessError`."""
        self._state = _standard.TERMINATE
        self._feeder.terminate()
        self._feeder.wait()

    def join(self):
        """Wait until all is done, after `close` or `terminate`."""
        if self._state == _standard.RUN:
            raise ValueError("Pool is still running")
        self._feeder.join()


class _Feeder(threading.Thread):
    """Has the executor make calls, and sets results in the order in which these come."""

    def __init__(self, executor, cache, first):
        super().__init__(name="manyhands-pool", daemon=True)
        self.inbox = queue.SimpleQueue()
        self._executor = executor
        # By its number, each result that is not complete.
        self._cache = cache
        self._first = first
        self._lock = threading.RLock()
        self._room = threading.Semaphore(_WINDOW)
        self._is_terminated = False
        _running.add(self)

    def close(self):
        self.inbox.put(None)

    def terminate(self):
        self._is_terminated = True
        self.close()
        self._fail(multiprocessing.ProcessError("the pool was terminated"))
        # No call is added, then none is left, and then it finds that out.
        self._executor.shutdown(wait=False)
        self._executor._master.abandon()
        self._executor.shutdown(wait=False)

    def wait(self):
        """Wait until the processes have ended, unless a callback of ours asks for it."""
        if threading.current_thread() not in (self, self._executor._master):
            self._executor.shutdown()

    def join(self, timeout=None):
        super().join(timeout)
        self._executor.shutdown()

    def run(self):
        for calls, set_length in iter(self.inbox.get, None):
            count = 0
            # What the input raises is the last of the calls.
            for call in calls:
                self._room.acquire()
                if self._is_terminated:
                    self._room.release()
                    break
                self._send(*call)
                count += 1
                # Nothing here holds what was sent.
                del call
            else:
                if set_length is not None:
                    with self._lock:
                        set_length(count)
            calls = set_length = None
        self._executor.shutdown(wait=False)

    def _send(self, job, place, function, args, kwargs):
        if function is _standard._helper_reraises_exception:
            self._room.release()
            return self._set(job, place, (False, args[0]))
        if self._first is not None:
            args, kwargs = (self._first, function, args, kwargs), {}
            function = _initialized
        try:
            future = self._executor.submit(function, *args, **kwargs)
        except Exception as error:
            # The executor has ended.
            self._room.release()
            return self._fail(error)
        future.add_done_callback(lambda future: self._done(future, job, place))

    def _done(self, future, job, place):
        self._room.release()
        if future.cancelled():
            return
        error = future.exception()
        outcome = (True, future.result()) if error is None else (False, error)
        self._set(job, place, outcome)

    def _set(self, job, place, outcome):
        with self._lock:
            result = self._cache.get(job)
            if result is not None:
                result._set(place, outcome)

    def _fail(self, error):
        """Tell all who wait."""
        with self._lock:
            for result in list(self._cache.values()):
                if isinstance(result, _standard.IMapIterator):
                    # What has come out of order never gets its turn.
                    result._unsorted.clear()
                    result._length = result._index + 1
                if isinstance(result, _standard.MapResult):
                    result._number_left = 1
                result._set(getattr(result, "_index", 0), (False, error))


# ---- in a worker's process

_initializers = set()


def _initialized(first, function, args, kwargs):
    """Make a call, after that of the pool's initializer if it is the first here."""
    token, body = first
    if token not in _initializers:
        initializer, initargs, _ = pickle.loads(memoryview(body)[1:])
        initializer(*initargs)
        _initializers.add(token)
    return function(*args, **kwargs)


# ---- the end of the program

_running = weakref.WeakSet()


def _end_all():
    """As others do, a pool that nobody has closed ends with its program."""
    for feeder in list(_running):
        feeder.terminate()


# Before the executors, which do what they were told to.
_executor.at_exit(_end_all)
