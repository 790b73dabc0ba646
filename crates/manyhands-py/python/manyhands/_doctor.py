"""``manyhands doctor script.py…``: says what of a script will behave differently, before it is run.

It reads the script and does not run it. So it knows what stands in the text only: a queue that
comes out of another module is one of which it can say nothing.
"""

import ast
import sys

# Where a name of the modules `queue` and `multiprocessing` is served.
_ADOPTED = {"Queue", "LifoQueue", "JoinableQueue"}
_KEPT = {"PriorityQueue", "SimpleQueue"}
_QUEUE_MODULES = {"queue", "Queue", "multiprocessing", "multiprocessing.queues"}
_QUEUE_METHODS = {"put", "get", "put_nowait", "get_nowait", "qsize", "empty", "full"}
_STRONG_KEY_LEN = 16


def main(paths):
    """Examine scripts; return 1 if one of them cannot run as it is."""
    if not paths:
        print("usage: manyhands doctor SCRIPT...", file=sys.stderr)
        return 2
    examined = [examine(path) for path in paths]
    for path, findings in zip(paths, examined):
        for finding in findings:
            print("{}:{}".format(path, finding))
    return int(any(finding.kind == "error" for findings in examined for finding in findings))


class Finding:
    """Something to know about a line: it is an ``error``, ``differs``, or is ``fine``."""

    def __init__(self, line, kind, text):
        self.line = line
        self.kind = kind
        self.text = text

    def __str__(self):
        return "{}: {}: {}".format(self.line, self.kind, self.text)


def examine(path):
    """What there is to say about the script at ``path``, by line."""
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read(), path)
    except OSError as error:
        return [Finding(0, "error", "cannot be read: {}".format(error.strerror))]
    except (SyntaxError, ValueError) as error:
        here = "{}.{}".format(*sys.version_info)
        text = "this is no Python {}: {}; if it is Python 2, port it first".format(
            here, error.args[0]
        )
        return [Finding(getattr(error, "lineno", None) or 0, "error", text)]
    examiner = _Examiner(tree)
    examiner.visit(tree)
    return sorted(examiner.findings, key=lambda finding: finding.line)


class _Examiner(ast.NodeVisitor):
    def __init__(self, tree):
        self.findings = []
        self._modules = {}
        self._imported = {}
        self._queues = {}
        self._returned = {}
        for node in ast.walk(tree):
            self._learn(node)

    # ---- what the names of the script are

    def _learn(self, node):
        if isinstance(node, ast.Import):
            for alias in node.names:
                self._modules[alias.asname or alias.name] = alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                self._imported[alias.asname or alias.name] = (node.module, alias.name)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self._learn_value(target, node.value)
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)):
            self._learn_value(node.target, node.value)
        elif isinstance(node, ast.FunctionDef):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return) and inner.value is not None:
                    self._returned[node.name] = inner.value

    def _learn_value(self, target, value):
        if isinstance(target, ast.Name) and isinstance(value, ast.Call):
            self._queues[target.id] = value.func
        elif isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, (ast.Tuple, ast.List)):
            for one, its_value in zip(target.elts, value.elts):
                self._learn_value(one, its_value)

    def _queue_class(self, node):
        """Module and name of the class of queues that an expression names, or ``None``."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found = (self._modules.get(node.value.id), node.attr)
        elif isinstance(node, ast.Name):
            found = self._imported.get(node.id, (None, None))
        else:
            return None
        is_queue = found[0] in _QUEUE_MODULES and found[1] in _ADOPTED | _KEPT
        return found if is_queue else None

    def _made_by(self, node):
        """The class of queues whose instance an expression is, or ``None``."""
        if isinstance(node, ast.Name):
            return self._queue_class(self._queues.get(node.id))
        return self._queue_class(node.func) if isinstance(node, ast.Call) else None

    def _served_by(self, function):
        """The class of queues that a registered callable returns, or ``None``."""
        if isinstance(function, ast.Lambda):
            return self._made_by(function.body)
        if isinstance(function, ast.Name) and function.id in self._returned:
            return self._made_by(self._returned[function.id])
        return self._queue_class(function)

    def _makes_simple_queues(self, function):
        """Whether a registered callable makes a simple queue for each client, which moves."""
        found = self._queue_class(function)
        return found is not None and found[1] == "SimpleQueue"

    # ---- what there is to say

    def _note(self, node, kind, text, *args):
        self.findings.append(Finding(node.lineno, kind, text.format(*args)))

    def visit_Import(self, node):
        if any(alias.name == "Queue" for alias in node.names):
            self._note(node, "error", "the module Queue is called queue in Python 3")

    def visit_While(self, node):
        polled = [inner for inner in ast.walk(node.test) if _is_call_of(inner, "empty")]
        if polled:
            self._note(
                node,
                "differs",
                "empty() may be true before the first put arrives, and then this loop ends; it is "
                "as in CPython, only that everything is faster here: get(timeout=...) waits",
            )
        self.generic_visit(node)

    def visit_Call(self, node):
        if _is_call_of(node, "register"):
            self._examine_registration(node)
        elif _is_manager(node):
            self._examine_manager(node)
        elif isinstance(node.func, ast.Attribute) and node.func.attr in _QUEUE_METHODS:
            self._examine_direct_use(node)
        self.generic_visit(node)

    def _examine_registration(self, node):
        arguments = _arguments(node, "typeid", "callable", "proxytype", "exposed")
        name = getattr(arguments.get("typeid"), "value", "?")
        function = arguments.get("callable")
        if function is None:
            return
        served = self._served_by(function)
        if "exposed" in arguments or "method_to_typeid" in arguments:
            self._note(node, "differs", "{} stays in Python, because its methods are named", name)
        elif served is None:
            self._note(node, "fine", "{} is served in Python, unless it is a queue", name)
        elif served[1] in _KEPT and not self._makes_simple_queues(function):
            self._note(node, "differs", "{} is a {} and stays in Python", name, served[1])
        else:
            self._note(node, "fine", "{} is a {}.{} and moves to Rust", name, *served)
        if isinstance(function, ast.Lambda):
            self._note(node, "fine", "a lambda works under every start method here")

    def _examine_manager(self, node):
        arguments = _arguments(node, "address", "authkey")
        key = getattr(arguments.get("authkey"), "value", None)
        if isinstance(key, str):
            self._note(node, "error", "authkey must be bytes in Python 3: b{!r}", key)
        elif isinstance(key, int):
            self._note(
                node, "differs", "authkey={} is {} NUL bytes, which anybody can guess", key, key
            )
        host = getattr(arguments.get("address"), "elts", [None])[0]
        is_weak = isinstance(key, int) or isinstance(key, bytes) and len(key) < _STRONG_KEY_LEN
        if is_weak and getattr(host, "value", None) in ("", "0.0.0.0"):
            self._note(
                node, "differs", "other machines can reach this with a weak authkey: it warns"
            )

    def _examine_direct_use(self, node):
        made = self._made_by(node.func.value)
        if made is not None and made[0].startswith("multiprocessing") and made[1] in _ADOPTED:
            self._note(
                node,
                "fine",
                "{}() beside the manager finds the items in Rust; in a process that got the queue "
                "as an argument under spawn, empty() and get_nowait() do not",
                node.func.attr,
            )


def _is_call_of(node, name):
    return isinstance(node, ast.Call) and _name_of(node.func) == name


def _is_manager(call):
    has_key = any(keyword.arg == "authkey" for keyword in call.keywords)
    return has_key or _name_of(call.func).lower().endswith("manager")


def _name_of(function):
    return getattr(function, "attr", getattr(function, "id", ""))


def _arguments(call, *names):
    """The arguments of a call by name."""
    arguments = dict(zip(names, call.args))
    arguments.update((keyword.arg, keyword.value) for keyword in call.keywords if keyword.arg)
    return arguments
