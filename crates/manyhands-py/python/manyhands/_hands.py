"""How a worker runs its tasks: in processes of its own, in threads, interpreters or coroutines.

Each of these *hands* takes one task at a time. They are driven by the event loop of `_worker`; what
came of a task is one of the classes below.
"""

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from multiprocessing import util

from . import _child
from ._manyhands import Stored

# How long a process may take to end when it has nothing to do, in seconds.
_GRACE = 5.0
# How much of what a process says on standard error is kept, in bytes and lines.
_TAIL_LEN, _TAIL_LINES = 8192, 20
_NONE = pickle.dumps(None, pickle.HIGHEST_PROTOCOL)
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Done:
    """A result, as it is to be acked."""

    def __init__(self, result):
        self.result = result

    def is_none(self):
        """Whether a function returned nothing."""
        return isinstance(self.result, Stored) and self.result.content() == _NONE


class Failed:
    """A failed attempt: why, in a line and in full."""

    def __init__(self, reason, detail=None, give_up=False, delay=None):
        self.reason = reason
        self.detail = detail or reason
        self.give_up = give_up
        self.delay = delay


class CannotStart(Exception):
    """The function cannot be loaded where tasks run."""


def function_spec(function):
    """What tells a child which function it runs: a name such as ``module:function``, or itself."""
    if function is None:
        return None
    if isinstance(function, str):
        module, colon, name = function.partition(":")
        if not (module and colon and name):
            raise ValueError("a function is named MODULE:FUNCTION, not {!r}".format(function))
        return "name", function
    from . import _remote_calls as _calls

    if not callable(function):
        text = "a worker's function must be callable, or its name, not {}"
        raise TypeError(text.format(type(function).__name__))
    return "pickle", _calls.dump(function, function, False)


def wire(stored):
    """An item of the server's as its kind and bytes."""
    return ord(stored.codec), stored.content()


def outcome(kind, body):
    """What a reply of `_child.perform` says."""
    if kind == _child.RESULT:
        return Done(Stored(body))
    if kind == _child.ANSWER:
        return Done(body)
    reason, detail = _child.unpack_reason(body)
    return Failed(reason, detail, give_up=kind == _child.GIVEN_UP)


# ---- processes


class Processes:
    """A pool of processes, of which each runs one task at a time."""

    def __init__(self, function, size, main=None):
        if os.name != "posix":
            raise NotImplementedError("processes of a worker need a POSIX system; take threads=")
        self.size = size
        self._setup = {
            "function": function_spec(function),
            "path": list(sys.path),
            "argv": list(sys.argv),
            "main": main,
        }
        self._idle = []
        self._all = set()
        self._guard = None
        self._generation = 0

    async def start(self):
        """Start the first processes. Raises `CannotStart`."""
        self._guard = _Guard()
        started = [self._start_one() for _ in range(self.size)]
        try:
            for child in started:
                await child.started()
        except BaseException:
            await self.close()
            raise
        self._idle += started

    def _start_one(self):
        child = _Process(self._guard, self._setup, self._generation)
        self._all.add(child)
        return child

    async def run(self, task, kind, body):
        """Run a task; return what came of it."""
        child = await self._take()
        task.started(child.kill)
        try:
            return await child.run(kind, body)
        finally:
            task.ended()
            if child.is_alive and child.generation == self._generation:
                self._idle.append(child)
            else:
                self._end_soon(child)

    async def _take(self):
        """A process that has nothing to do; a new one in place of one that died."""
        while self._idle:
            child = self._idle.pop()
            if child.is_alive and child.generation == self._generation:
                return child
            self._end_soon(child)
        child = self._start_one()
        await child.started()
        return child

    def _end_soon(self, child):
        child.ending = asyncio.ensure_future(self._end(child))

    async def _end(self, child):
        await child.end()
        self._all.discard(child)

    def reload(self):
        """Have every process replaced by a new one, once it has done what it does."""
        self._generation += 1
        idle, self._idle = self._idle, []
        for child in idle:
            self._end_soon(child)

    async def close(self):
        """End all processes."""
        await asyncio.gather(*[self._end(child) for child in list(self._all)])
        if self._guard is not None:
            self._guard.close()


class _Process:
    """One process of a pool."""

    def __init__(self, guard, setup, generation):
        self.generation = generation
        self.is_alive = True
        self.ending = None
        self._guard = guard
        self._loop = asyncio.get_event_loop()
        self._inbound = bytearray()
        self._tail = b""
        self._killed_for = None
        self._reply = None
        self._is_ready = self._expect()
        self._gone = self._loop.create_future()
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        # Modules are found where they are here: by itself, -c looks in the current directory first.
        code = "import sys; sys.path[:] = {!r}; from manyhands._child import main; "
        code += "sys.exit(main({}))"
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, *util._args_from_interpreter_flags(), "-c"]
                + [code.format([*map(str, setup["path"]), _PACKAGE], theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.pid = self._popen.pid
        guard.add(self.pid)
        self._listener = threading.Thread(target=self._listen, name="manyhands-stderr", daemon=True)
        self._listener.start()
        threading.Thread(target=self._wait, name="manyhands-wait", daemon=True).start()
        self._loop.add_reader(self._socket, self._read)
        self._sending = asyncio.ensure_future(self._send(_child.SETUP, pickle.dumps(setup)))

    def _expect(self):
        self._reply = self._loop.create_future()
        # Nobody may wait for it any more when it fails.
        self._reply.add_done_callback(lambda reply: reply.cancelled() or reply.exception())
        return self._reply

    async def started(self):
        """Wait until it can run tasks. Raises `CannotStart`."""
        try:
            await self._is_ready
        except _Died as death:
            raise CannotStart("a process did not start: {}".format(death)) from None

    async def run(self, kind, body):
        """Run a task; return what came of it."""
        self._tail = b""
        reply = self._expect()
        try:
            if not self.is_alive:
                return Failed(self._death)
            await self._send(kind, body)
            kind, body = await reply
        except _Died as death:
            return Failed(str(death), death.detail)
        return outcome(kind, body)

    async def _send(self, kind, body):
        data = memoryview(_child.HEADER.pack(len(body), kind) + body)
        try:
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            if sent < len(data):
                await self._loop.sock_sendall(self._socket, data[sent:])
        except OSError:
            # It has died, and the reply says how.
            pass

    def _read(self):
        try:
            data = self._socket.recv(1 << 18)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._socket)
            # It is about to end, or has closed what is not its own.
            self._loop.call_later(_GRACE, self.kill, "its process closed the connection")
            return
        self._inbound += data
        size = _child.HEADER.size
        while len(self._inbound) >= size:
            length, kind = _child.HEADER.unpack_from(self._inbound)
            if len(self._inbound) < size + length:
                return
            body = bytes(memoryview(self._inbound)[size : size + length])
            del self._inbound[: size + length]
            self._received(kind, body)

    def _received(self, kind, body):
        if self._reply.done():
            return
        if kind == _child.BROKEN:
            self._reply.set_exception(CannotStart(body.decode(errors="replace")))
        else:
            self._reply.set_result((kind, body))

    def kill(self, reason):
        """Kill it and the processes that it started."""
        if self.is_alive:
            self._killed_for = self._killed_for or reason
            _kill_group(self.pid)

    async def end(self):
        """End it; it has nothing to do."""
        if self._socket.fileno() != -1:
            self._loop.remove_reader(self._socket)
            self._socket.close()
        try:
            await asyncio.wait_for(asyncio.shield(self._gone), _GRACE)
        except asyncio.TimeoutError:
            self.kill("it did not end")
            await self._gone

    # ---- on threads of its own

    def _listen(self):
        """Pass on what it says on standard error, and remember the end."""
        pipe = self._popen.stderr
        while True:
            data = pipe.read1(1 << 16)
            if not data:
                return pipe.close()
            self._tail = (self._tail + data)[-_TAIL_LEN:]
            try:
                os.write(2, data)
            except OSError:
                # There is nobody to tell.
                pass

    def _wait(self):
        """Wait until it has ended, and see to it that nothing of it is left."""
        try:
            if hasattr(os, "waitid"):
                # Until it is waited for, the number of its group is nobody else's.
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
                _kill_group(self.pid)
            _, status, usage = os.wait4(self.pid, 0)
            peak = usage.ru_maxrss
            if not hasattr(os, "waitid"):
                _kill_group(self.pid)
        except ChildProcessError:
            # The program waits for every process, or ignores SIGCHLD: how it ended is not known.
            status = peak = 0
        self._popen.returncode = 0
        self._guard.remove(self.pid)
        # What it has said is there; somebody else may still hold the pipe.
        self._listener.join(1.0)
        try:
            self._loop.call_soon_threadsafe(self._died, status, peak)
        except RuntimeError:
            # The loop is closed: nobody waits for it.
            pass

    def _died(self, status, peak):
        self.is_alive = False
        self._gone.set_result(None)
        death = _Died(self._killed_for or _ending(status), peak, self._tail)
        self._death = str(death)
        if not self._reply.done():
            self._reply.set_exception(death)


class _Died(Exception):
    """A process has ended in the midst of a task."""

    def __init__(self, how, peak, tail):
        # Bytes on macOS, KiB elsewhere.
        peak = peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
        lines = tail.decode(errors="replace").splitlines()[-_TAIL_LINES:]
        text = "{}; peak memory {:.0f} MB".format(how, peak)
        if lines:
            # The end says most.
            said = "\n".join(lines)
            text += "; last lines on standard error:\n" + said[-(900 - len(text)) :]
        super().__init__(text)
        self.detail = text


def _ending(status):
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = "a signal"
        text = "its process was killed by {} ({})".format(name, number)
        if number == signal.SIGKILL:
            text += ", perhaps by the system because memory ran out"
        return text
    return "its process ended with exit code {}".format(os.WEXITSTATUS(status))


def _kill_group(group):
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # It has ended. (macOS says so of one that is not waited for yet.)
        pass


class _Guard:
    """A process that does nothing but kill those of the pool if this process is killed.

    It is a shell: it is small, and a reader of its own end tells it.
    """

    _SCRIPT = """
    while read -r sign group; do
        case $sign in
        +) groups="$groups $group" ;;
        -) rest=; for it in $groups; do [ "$it" = "$group" ] || rest="$rest $it"; done
           groups=$rest ;;
        esac
    done
    for group in $groups; do kill -s KILL -- "-$group"; done
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._popen = subprocess.Popen(
            ["/bin/sh", "-c", self._SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def add(self, group):
        self._tell("+", group)

    def remove(self, group):
        self._tell("-", group)

    def _tell(self, sign, group):
        with self._lock:
            try:
                os.write(self._popen.stdin.fileno(), "{} {}\n".format(sign, group).encode())
            except (OSError, ValueError):
                # It was killed, or has ended.
                pass

    def close(self):
        with self._lock:
            self._popen.stdin.close()
        self._popen.wait()


# ---- threads, interpreters, coroutines


class Threads:
    """Threads of this process."""

    def __init__(self, function, size):
        self.size = size
        self._function = function
        self._pool = None

    async def start(self):
        self._pool = self._make_pool()

    def _make_pool(self):
        from concurrent.futures import ThreadPoolExecutor

        self._function = _load_here(self._function)
        return ThreadPoolExecutor(self.size, "manyhands-worker")

    async def run(self, task, kind, body):
        """Run a task; nobody can end it from outside."""
        loop = asyncio.get_event_loop()
        return outcome(*await loop.run_in_executor(self._pool, *self._call(kind, body)))

    def _call(self, kind, body):
        return _child.perform, self._function, kind, body

    def reload(self):
        """Nothing that was imported can be imported anew here."""

    async def close(self):
        if self._pool is not None:
            self._pool.shutdown()


class Interpreters(Threads):
    """Interpreters of this process, each with a lock of its own."""

    def __init__(self, function, size):
        if sys.version_info < (3, 14):
            text = "interpreters= needs Python 3.14 or later; this is {}.{}"
            raise NotImplementedError(text.format(*sys.version_info))
        super().__init__(function_spec(function), size)

    def _make_pool(self):
        from concurrent.futures import InterpreterPoolExecutor

        return InterpreterPoolExecutor(self.size, "manyhands-worker")

    def _call(self, kind, body):
        return _child.perform_as, self._function, kind, body


class Coroutines:
    """Coroutines of the event loop."""

    def __init__(self, function, size):
        self.size = size
        self._function = function

    async def start(self):
        self._function = _load_here(self._function)

    async def run(self, task, kind, body):
        """Run a task; to end it is to cancel it."""
        running = asyncio.ensure_future(_child.perform_async(self._function, kind, body))
        stopped_for = []
        task.started(lambda reason: (stopped_for.append(reason), running.cancel()))
        try:
            return outcome(*await running)
        except asyncio.CancelledError:
            if not stopped_for:
                running.cancel()
                raise
            return Failed(stopped_for[0])
        finally:
            task.ended()

    def reload(self):
        """Nothing that was imported can be imported anew here."""

    async def close(self):
        """There is nothing left to end."""


def _load_here(function):
    if function is None or callable(function):
        return function
    try:
        return _child.load_function(function_spec(function))
    except ValueError:
        raise
    except Exception as error:
        text = "cannot import {}: {}: {}".format(function, type(error).__name__, error)
        raise CannotStart(text) from None
