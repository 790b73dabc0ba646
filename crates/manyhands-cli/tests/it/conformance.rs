//! A stock client sees of our server what it sees of CPython's, but for a short list of differences.
//!
//! `python/conformance.py` runs on every Python, first against that Python's own manager server, then
//! against ours. It prints one observation per step; the two lists must be equal except for
//! [`DIFFERENCES`], each of which is intended and says why.

use std::collections::BTreeMap;

use crate::support::{Python, Server, for_each_python, pythons};

const QUEUES: [&str; 10] = [
    "fifo",
    "lifo,order=lifo",
    "prio,order=priority",
    "unordered,order=priority",
    "pair,maxsize=2",
    "counted",
    "closing",
    "cut",
    "other",
    "third",
];

/// Where we mean to differ from CPython's server.
struct Difference {
    step: &'static str,
    on: fn(&Python) -> bool,
    ours: &'static str,
    #[expect(
        dead_code,
        reason = "for the reader, and for whoever meets the difference in a failure"
    )]
    because: &'static str,
}

const ALWAYS: fn(&Python) -> bool = |_| true;
const ON_2: fn(&Python) -> bool = Python::is_2;
const BEFORE_SHUT_DOWN: fn(&Python) -> bool = |python| python.version < (3, 13);

const DIFFERENCES: &[Difference] = &[
    Difference {
        step: "manager calls/a second proxy of one name",
        on: ALWAYS,
        ours: "returned 3",
        because: "every create has an ident of its own, so that a crash can be told from a clean exit",
    },
    Difference {
        step: "orders/bytes",
        on: ON_2,
        ours: "raised TypeError",
        because: "Python 2's str is a text to us if it is ASCII and bytes if not; the two have no order",
    },
    Difference {
        step: "an order that does not exist/second",
        on: ON_2,
        ours: "raised TypeError",
        because: "payloads are opaque: two dicts have no order here, though Python 2 invents one",
    },
    Difference {
        step: "an order that does not exist/qsize",
        on: ALWAYS,
        ours: "returned 1",
        because: "an item that cannot be ordered is refused before it is enqueued, not left in the heap",
    },
    Difference {
        step: "classes that only clients know/an instance",
        on: ALWAYS,
        ours: "returned ('OnlyHere', 'put', ['put'])",
        because: "payloads are opaque: the server need not import what workers exchange",
    },
    Difference {
        step: "faces of a proxy/close",
        on: ALWAYS,
        ours: "returned None",
        because: "a name stands for any queue: multiprocessing.Queue's feeder methods do nothing",
    },
    Difference {
        step: "faces of a proxy/join_thread",
        on: ALWAYS,
        ours: "returned None",
        because: "as close",
    },
    Difference {
        step: "faces of a proxy/cancel_join_thread",
        on: ALWAYS,
        ours: "returned None",
        because: "as close",
    },
    Difference {
        step: "a proxy inside a queue/works",
        on: |python| python.version < (3, 9),
        ours: "returned 'through the copy'",
        because: "old servers rebuild the proxy as the queue itself, or fail to rebuild it at all",
    },
    Difference {
        step: "sync manager/dict",
        on: ALWAYS,
        ours: "returned 'names the drop-in: True'",
        because: "queues only; the error says where the rest of SyncManager is",
    },
    Difference {
        step: "shutdown of a queue/shutdown",
        on: BEFORE_SHUT_DOWN,
        ours: "returned None",
        because: "a queue can be shut down whatever the client's version",
    },
    Difference {
        step: "shutdown of a queue/put",
        on: BEFORE_SHUT_DOWN,
        ours: "raised Full ''",
        because: "queue.ShutDown does not exist there",
    },
    Difference {
        step: "shutdown of a queue/get",
        on: BEFORE_SHUT_DOWN,
        ours: "raised Empty ''",
        because: "queue.ShutDown does not exist there",
    },
    Difference {
        step: "shutdown of a queue/immediate",
        on: BEFORE_SHUT_DOWN,
        ours: "returned None",
        because: "as shutdown",
    },
    Difference {
        step: "shutdown of a queue/immediate, positional",
        on: BEFORE_SHUT_DOWN,
        ours: "returned None",
        because: "as shutdown",
    },
];

#[test]
fn every_python_sees_of_us_what_it_sees_of_its_own_server() {
    for_each_python(pythons(), |python| {
        let oracle = observe(python, &Server::cpython(python, &QUEUES));
        let ours = observe(python, &Server::start(&QUEUES));
        let surprises = surprises(python, &oracle, &ours);
        assert!(surprises.is_empty(), "{} surprises:\n{}", surprises.len(), surprises.join("\n"));
    });
}

/// Step by step what `conformance.py` saw.
type Observations = BTreeMap<String, String>;

fn observe(python: &Python, server: &Server) -> Observations {
    let output = python.script("conformance.py").server(server).run();
    output
        .lines()
        .map(|line| {
            let seen: serde_json::Value =
                serde_json::from_str(line).expect("one JSON object per line");
            let field = |name: &str| seen[name].as_str().expect("both fields are text").to_owned();
            (field("step"), field("saw"))
        })
        .collect()
}

fn surprises(python: &Python, oracle: &Observations, ours: &Observations) -> Vec<String> {
    let mut surprises = Vec::new();
    for step in oracle.keys().chain(ours.keys().filter(|step| !oracle.contains_key(*step))) {
        let theirs = oracle.get(step).map(String::as_str);
        let intended =
            DIFFERENCES.iter().find(|d| d.step == step && (d.on)(python)).map(|d| d.ours);
        let wanted = intended.or(theirs);
        let seen = ours.get(step).map(String::as_str);
        if seen != wanted {
            surprises.push(format!("{step}: wanted {wanted:?}, saw {seen:?}"));
        }
        if intended.is_some() && intended == theirs {
            surprises
                .push(format!("{step}: CPython answers {theirs:?} as well; this is no difference"));
        }
    }
    surprises
}
