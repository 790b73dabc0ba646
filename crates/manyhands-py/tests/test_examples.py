"""The programs of `examples/python`, as their texts say to run them: on a real server, a web site
some of whose pages fail, and a mail server that refuses some mails."""

import ast
import asyncio
import gzip
import http.server
import json
import os
import shlex
import subprocess
import sys
import threading

import manyhands
import pytest
from conftest import TIMEOUT, eventually, finish, free_port, kill

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..")
EXAMPLES = os.path.join(ROOT, "examples", "python")


class Example:
    """The commands of a text: a server, and what is run beside it."""

    def __init__(self, directory, commands):
        self.directory = str(directory)
        self.commands = [command.split("  #")[0].strip() for command in commands]
        self.environment = dict(os.environ, PYTHONUNBUFFERED="1", XDG_CONFIG_HOME=self.directory)
        self.processes = []

    def serve(self, short=()):
        """Run the text's server. The pauses of its queues become as ``short``, so that we need not
        wait."""
        (line,) = [command for command in self.commands if command.startswith("manyhands serve")]
        for pause in short:
            name = pause.split("=")[0]
            line = ",".join(
                pause if part.startswith(name + "=") else part for part in line.split(",")
            )
        ready = os.path.join(self.directory, "ready")
        options = ["--listen", "127.0.0.1:0", "--ready-file", ready]
        self.start([sys.executable, "-m", *shlex.split(line), *options])
        eventually(lambda: os.path.exists(ready))
        with open(ready) as file:
            self.environment["SERVER"] = json.load(file)["addresses"][0]

    def start(self, command, **more):
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            env=self.environment,
            cwd=self.directory,
            start_new_session=True,
            **more,
        )
        self.processes.append(process)
        return process

    def python(self, name, *args, **more):
        """Start a program of the examples."""
        return self.start([sys.executable, os.path.join(EXAMPLES, name), *args], **more)

    def shell(self, command):
        """Run a command of the text; return what it printed."""
        assert command in self.commands
        words = shlex.split(command)[1:]
        where = ["--connect", self.environment["SERVER"]]
        out, err, code = finish(self.start([sys.executable, "-m", "manyhands", *words, *where]))
        assert (err, code) == ("", 0)
        return out


@pytest.fixture
def run(tmp_path):
    """Makes an `Example` of a list of commands."""
    examples = []

    def make(commands):
        examples.append(Example(tmp_path, commands))
        return examples[-1]

    yield make
    for process in [process for example in examples for process in example.processes]:
        if process.poll() is None:
            kill(process)


@pytest.fixture
def example(run):
    """Makes an `Example` of a program's text."""

    def make(name):
        with open(os.path.join(EXAMPLES, name)) as file:
            lines = ast.get_docstring(ast.parse(file.read()), clean=False).splitlines()
        return run([line for line in lines if line.startswith("    ")])

    return make


@pytest.mark.parametrize("name", sorted(os.listdir(EXAMPLES)))
def test_an_example_is_short(name):
    with open(os.path.join(EXAMPLES, name)) as file:
        assert len(file.readlines()) <= 60


def blocks_of(page, start, end):
    """The blocks of code between two headings of a page."""
    with open(os.path.join(ROOT, page)) as file:
        text = file.read()
    section = text[text.index("# " + start) :]
    return section[: section.index("# " + end)].split("\n```")[1::2]


def programs(blocks):
    """Those of the blocks that are Python."""
    return [block[len("python") :] for block in blocks if block.startswith("python\n")]


def test_an_unchanged_master_has_its_answers_from_the_worker_of_the_readme(example, program):
    squares = example("unchanged_master.py")
    (worker,) = programs(blocks_of("README.md", "A server of its own, and workers", "New Python"))
    with open(os.path.join(EXAMPLES, "unchanged_master.py")) as file:
        master = file.read()
    port = str(free_port())
    master, worker = [
        program(name, source.replace("5000", port)).path
        for name, source in (("master.py", master), ("worker.py", worker))
    ]
    master = squares.start([sys.executable, "-m", "manyhands", master])
    assert master.stdout.readline().split()[-1:] == [port]
    squares.start([sys.executable, worker])
    out, err, code = finish(master)
    assert (err, code) == ("", 0)
    assert out.splitlines() == [str((number, number * number)) for number in range(10)]


def test_a_master_finds_out_which_tasks_have_no_result(example):
    squares = example("master.py")
    squares.serve()
    workers = [squares.python("worker.py") for _ in range(2)]
    out, err, code = finish(squares.python("master.py"))
    assert (err, code) == ("", 0)
    lines = sorted(out.splitlines())
    assert [line for line in lines if line.startswith("{")] == [
        str({"number": number, "square": number * number}) for number in range(10)
    ]
    (failure,) = [line for line in lines if not line.startswith("{")]
    assert failure.startswith("'ten' was given up: ") and failure.count("TypeError") == 3
    assert all(worker.poll() is None for worker in workers)


SITE = "http://localhost:8000/"


class Site(http.server.BaseHTTPRequestHandler):
    """A web site; it remembers what it was asked for."""

    PAGES = {
        "/": ["a", "b", "gone", "flaky", "broken", "http://other.example/"],
        "/a": ["/", "b#top"],
        "/b": ["a", "c"],
        "/c": [],
        "/flaky": ["c"],
        "/broken": [],
    }
    asked = []

    def do_GET(self):  # noqa: N802
        count = self.asked.count(self.path)
        self.asked.append(self.path)
        if self.path == "/broken" or (self.path == "/flaky" and count < 2):
            self.send_error(503)
        elif self.path not in self.PAGES:
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            links = ('<a class="l" href="{}">'.format(link) for link in self.PAGES[self.path])
            self.wfile.write("".join(links).encode())

    def log_message(self, *_):
        """Print nothing."""


@pytest.fixture
def site():
    """The address of a running `Site`."""
    Site.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever).start()
        yield "http://127.0.0.1:{}/".format(server.server_port)
        server.shutdown()


def test_a_crawler_has_each_page_once_and_says_why_some_failed(example, site):
    crawler = example("crawler.py")
    crawler.serve()
    workers = [crawler.python("crawler.py", "work") for _ in range(2)]
    out, err, code = finish(crawler.python("crawler.py", "crawl", site))
    assert (err, code) == ("", 0)
    found = {"": 5, "a": 2, "b": 2, "c": 0, "flaky": 1}
    assert sorted(out.splitlines()) == ["{}{} {}".format(site, *page) for page in found.items()]
    counts = {path: Site.asked.count(path) for path in Site.asked}
    once = {"/": 1, "/a": 1, "/b": 1, "/c": 1, "/gone": 1}
    assert counts == dict(once, **{"/flaky": 3, "/broken": 4})
    dead = crawler.shell("manyhands peek pages.dead")
    assert dead.count("HTTPError 404") == 1 and site + "gone" in dead
    assert dead.count("HTTPError 503") == 4 and site + "broken" in dead
    assert all(worker.poll() is None for worker in workers)


class MailServer:
    """As much of SMTP as a client needs. Some recipients are busy at first, some unknown."""

    def __init__(self):
        self.mails, self.refused, self.is_unknown = [], [], True
        self.loop = asyncio.new_event_loop()
        listening = asyncio.start_server(self.talk, "127.0.0.1", 0)
        self.server = self.loop.run_until_complete(listening)
        self.address = "127.0.0.1:{}".format(self.server.sockets[0].getsockname()[1])
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    async def talk(self, reader, writer):
        writer.write(b"220 here\r\n")
        async for line in reader:
            writer.write("{} so it is\r\n".format(self.answer(line)).encode())
            if line.lower().startswith(b"data"):
                mail = await reader.readuntil(b"\r\n.\r\n")
                self.mails.append(mail.decode())
                writer.write(b"250 taken\r\n")
            if line.lower().startswith(b"quit"):
                break
        writer.close()

    def answer(self, line):
        """The code for a command."""
        word = line[:4].lower().decode()
        code = self.code(line) if word == "rcpt" else {"data": 354, "quit": 221}.get(word, 250)
        if code >= 400:
            self.refused.append((code, line.decode().strip()))
        return code

    def code(self, recipient):
        if b"unknown@" in recipient and self.is_unknown:
            return 550
        return 450 if b"busy@" in recipient and len(self.codes(450)) < 2 else 250

    def codes(self, code):
        return [line for refused, line in self.refused if refused == code]

    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.server.close()


@pytest.fixture
def mail_server():
    server = MailServer()
    yield server
    server.stop()


def test_mails_are_sent_again_until_they_are_taken_or_refused_for_good(example, mail_server):
    queue = example("email_queue.py")
    queue.serve(["backoff=0.1"])

    def send(recipient):
        words = ("send", "me@here.example", recipient, "A subject")
        sending = queue.python("email_queue.py", *words, stdin=subprocess.PIPE)
        out, err = sending.communicate("Dear " + recipient, timeout=TIMEOUT)
        assert (out, err, sending.returncode) == ("", "", 0)

    for name in ("you", "busy", "unknown"):
        send(name + "@there.example")
    worker = queue.python("email_queue.py", "work", mail_server.address)
    eventually(lambda: len(mail_server.mails) == 2 and mail_server.codes(550))
    eventually(lambda: "550" in queue.shell("manyhands peek mails.dead"))
    assert "unknown@there.example" in queue.shell("manyhands peek mails.dead")
    assert len(mail_server.codes(450)) == 2 and len(mail_server.codes(550)) == 1
    mail_server.is_unknown = False
    assert queue.shell("manyhands redrive mails.dead") == "1\n"
    eventually(lambda: len(mail_server.mails) == 3)
    for name in ("you", "busy", "unknown"):
        (mail,) = [mail for mail in mail_server.mails if "Dear " + name in mail]
        assert "Subject: A subject" in mail and "Message-ID: <" in mail
    assert worker.poll() is None


def work(example):
    """Start the worker of a text."""
    (line,) = [command for command in example.commands if command.startswith("manyhands worker")]
    example.environment["PYTHONPATH"] = EXAMPLES
    words = [sys.executable, "-m", *shlex.split(line)]
    return example.start([*words, "--connect", example.environment["SERVER"]])


LOG = """\
10.0.0.1 - - [29/Nov/2026:10:00:00 +0000] "GET /a HTTP/1.1" 200 100
10.0.0.1 - - [29/Nov/2026:10:00:00 +0000] "POST /b HTTP/1.1" 503 -
10.0.0.1 - - [29/Nov/2026:10:00:00 +0000] "GET /c HTTP/1.1" 500 7
nothing of the kind
"""


@pytest.mark.skipif(os.name != "posix", reason="processes of a worker need POSIX")
def test_log_files_have_one_answer_also_if_one_is_bad(example, tmp_path):
    logs = example("log_files.py")
    logs.serve()
    worker = work(logs)
    (tmp_path / "1.log").write_text(LOG)
    (tmp_path / "2.log").write_text(LOG.replace("/c", "/b"))
    (tmp_path / "3.log.gz").write_bytes(gzip.compress(LOG.encode()))
    out, err, code = finish(logs.python("log_files.py", "1.log", "2.log", "3.log.gz", "no.log"))
    assert out.splitlines() == [
        "321 bytes; 200: 3 500: 3 503: 3 unreadable: 3",
        "failed 4 times: /b",
        "failed 2 times: /c",
    ]
    assert err.startswith(str(tmp_path / "no.log") + " was left out: FileNotFoundError")
    assert err.count("\n") == 1 and code == 0
    assert worker.poll() is None


@pytest.mark.skipif(os.name != "posix", reason="processes of a worker need POSIX")
def test_queens_are_counted_also_by_a_master_that_was_killed(example, monkeypatch):
    queens = example("queens.py")
    monkeypatch.setenv("XDG_CONFIG_HOME", queens.directory)
    queens.serve()
    first = queens.python("queens.py", "9")
    eventually(lambda: "calls/queens-9" in listed(queens))
    kill(first)
    worker = work(queens)
    out, err, code = finish(queens.python("queens.py", "9"))
    assert (out, err, code) == ("352\n", "", 0)
    assert "queens" not in listed(queens)
    assert worker.poll() is None


def listed(example):
    """The names of the server's queues."""
    with manyhands.connect(example.environment["SERVER"]) as client:
        return " ".join(queue.name for queue in client.queues())


def test_the_crawler_of_the_page_says_why_pages_failed(run, program, site):
    blocks = blocks_of(
        "docs/python.md", "A worker that goes on when a task fails", "What a worker can say"
    )
    shell = blocks_of("README.md", "Shell", "What it promises")
    lines = [line for block in blocks + shell for line in block.splitlines()]
    crawler = run([line[2:] for line in lines if line.startswith("$ ")])
    crawler.serve()

    def start(name, source):
        for old, new in (("127.0.0.1:5000", crawler.environment["SERVER"]), (SITE, site)):
            source = source.replace(old, new)
        return crawler.start([sys.executable, program(name, source).path])

    worker, master = programs(blocks)
    worker = start("worker.py", worker)
    out, err, code = finish(start("master.py", master))
    assert (err, code) == ("", 0)
    assert ast.literal_eval(out)[0] == site
    dead = crawler.shell("manyhands peek pages.dead")
    assert dead.count("HTTPError 404") == 1 and site + "gone" in dead
    assert dead.count("Connection refused") == 4
    assert crawler.shell("manyhands redrive pages.dead") == "2\n"
    assert worker.poll() is None
