"""`manyhands doctor`: what it says about a script."""

import textwrap

import pytest
from conftest import finish
from manyhands._doctor import examine


@pytest.fixture
def findings(tmp_path):
    """Examines a text; gives its findings as lines, kinds and texts."""

    def findings(source):
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(source))
        return [(found.line, found.kind, found.text) for found in examine(str(path))]

    return findings


def only(findings, kind):
    return [text for _, found, text in findings if found == kind]


def test_queues_are_traced_through_lambdas_and_functions(findings):
    found = findings(
        """
        import queue
        from multiprocessing import Queue
        from multiprocessing.managers import BaseManager

        tasks = queue.Queue(10)
        results = Queue()

        def get_results():
            return results

        BaseManager.register("tasks", callable=lambda: tasks)
        BaseManager.register("results", callable=get_results)
        BaseManager.register("urgent", queue.PriorityQueue)
        BaseManager.register("seen", dict)
        """
    )
    assert only(found, "fine") == [
        "tasks is a queue.Queue and moves to Rust",
        "a lambda works under every start method here",
        "results is a multiprocessing.Queue and moves to Rust",
        "seen is served in Python, unless it is a queue",
    ]
    assert only(found, "differs") == ["urgent is a PriorityQueue and stays in Python"]


@pytest.mark.parametrize(
    "assignment",
    [
        "a, b = queue.Queue(), queue.Queue()",
        "[a, (b, c)] = (queue.Queue(), [queue.Queue(), 1])",
        "a: queue.Queue = queue.Queue()\nb: object = queue.Queue()",
        "(a := queue.Queue())\nb = d = queue.Queue()",
    ],
)
def test_queues_are_found_however_they_are_assigned(findings, assignment):
    registrations = "M.register('a', callable=lambda: a)\nM.register('b', callable=lambda: b)"
    found = only(findings("import queue\n" + assignment + "\n" + registrations), "fine")
    assert "a is a queue.Queue and moves to Rust" in found
    assert "b is a queue.Queue and moves to Rust" in found


@pytest.mark.parametrize(
    "source, kind, expected",
    [
        ("print 'hello'", "error", "this is no Python 3"),
        ("import Queue", "error", "is called queue in Python 3"),
        ("BaseManager(('h', 1), 'abc')", "error", "authkey must be bytes in Python 3: b'abc'"),
        ("BaseManager(('h', 1), authkey=510210)", "differs", "510210 NUL bytes"),
        ("BaseManager(('', 1), authkey=b'abc')", "differs", "a weak authkey"),
        ("while not tasks.empty(): pass", "differs", "get(timeout=...) waits"),
        ("M.register('q', f, exposed=['get'])", "differs", "q stays in Python"),
        ("import queue\nM.register('q', queue.SimpleQueue)", "fine", "moves to Rust"),
        ("import queue\nM.register('q', lambda: q)\nq = queue.SimpleQueue()", "differs", "q is a"),
        ("import multiprocessing as m\nq = m.Queue()\nq.get()", "fine", "items in Rust"),
    ],
)
def test_what_behaves_differently_is_named_with_its_line(findings, source, kind, expected):
    found = findings(source)
    assert any(kind == found_kind and expected in text for _, found_kind, text in found), found
    assert all(line > 0 for line, _, _ in found)


def test_a_script_without_anything_to_say_gets_nothing_said(findings):
    source = "BaseManager.register('tasks')\nBaseManager(('h', 1), b'a key of 16 bytes').connect()"
    assert findings(source) == []


def test_the_exit_code_tells_whether_a_script_can_run(program):
    script = program("script.py", "import Queue\n")
    path, script.path = script.path, "doctor"
    out, err, code = finish(script.start("-m", "manyhands", args=[path]))
    assert (err, code) == ("", 1)
    assert out == path + ":1: error: the module Queue is called queue in Python 3\n"
