//! Whole programs, master and worker, as people write them: served unmodified.
//!
//! Five pairs of our own in `python/programs/`, in the manner of the tutorials, each run first with its
//! own CPython server and then with ours. With `MANYHANDS_SEEDS` (default: `../shared/seeds` beside the
//! repository) the programs in the tutorial texts of that directory run too, cut out of their code blocks.
//!
//! A worker is never changed. Of a master, `start()` becomes `connect()` and `shutdown()` goes, because
//! the server is already there. A port that is taken is replaced on both sides. `time.sleep` is
//! shortened by `python/quick/sitecustomize.py`, unless `MANYHANDS_FULL_SPEED` is set.

use std::net::TcpListener;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU16, Ordering};
use std::{env, fs};

use crate::example_programs::example;
use crate::support::{
    Key, Python, Running, Server, announce, for_each_python, is_free, python_dir, pythons,
    repository, write_secret,
};

/// Part of a second that a second's sleep takes.
const SLEEP_SCALE: &str = "0.02";

/// What is known of a pair of programs.
struct Pair {
    /// Start of the names of its files.
    name: &'static str,
    runs_on: fn(&Python) -> bool,
    key: Key<'static>,
    queues: &'static [&'static str],
    /// Lines that the master prints, by a part of them: one per task, one per result.
    task_line: &'static str,
    result_line: &'static str,
    /// Whether the master (or the worker) ends by itself.
    master_ends: bool,
    worker_ends: bool,
    /// How many tasks there are, and whether the lines of the results are right.
    tasks: usize,
    is_right: fn(&[String]) -> bool,
}

const ON_3: fn(&Python) -> bool = |python| !python.is_2();
const ON_2: fn(&Python) -> bool = Python::is_2;

const OURS: [Pair; 5] = [
    Pair {
        name: "parity",
        runs_on: |_| true,
        key: Key::Bytes(b"parity"),
        queues: &["get_numbers", "get_verdicts"],
        task_line: "handed out",
        result_line: "verdict:",
        master_ends: true,
        worker_ends: false,
        tasks: 6,
        is_right: |lines| holds(lines, "is odd", 3) && holds(lines, "is even", 3),
    },
    Pair {
        name: "cubes",
        runs_on: ON_2,
        key: Key::Bytes(b"cubes"),
        queues: &["questions", "answers"],
        task_line: "asked for",
        result_line: "answer:",
        master_ends: true,
        worker_ends: true,
        tasks: 10,
        is_right: |lines| {
            lines.iter().all(|line| matches!(numbers(line)[..], [n, 3, c] if n * n * n == c))
        },
    },
    Pair {
        name: "fetch",
        runs_on: ON_3,
        key: Key::Int(40960),
        queues: &["wanted", "fetched"],
        task_line: "wanted:",
        result_line: "fetched:",
        master_ends: true,
        worker_ends: true,
        tasks: 10,
        is_right: |lines| (0..10).all(|n| holds(lines, &format!("page-{n}.html, 200 OK"), 1)),
    },
    Pair {
        name: "roots",
        runs_on: ON_3,
        key: Key::Bytes(b"roots"),
        queues: &["numbers_queue,maxsize=10", "roots_queue,maxsize=10"],
        task_line: "offered",
        result_line: "root:",
        master_ends: true,
        worker_ends: true,
        tasks: 10,
        is_right: |lines| {
            lines.iter().all(|line| matches!(numbers(line)[..], [root, n] if root * root == n))
        },
    },
    Pair {
        name: "naps",
        runs_on: ON_3,
        key: Key::Bytes(b"nap"),
        queues: &["take_orders,maxsize=10", "take_reports,maxsize=10"],
        task_line: "ordered nap",
        result_line: "took",
        master_ends: true,
        worker_ends: true,
        tasks: 10,
        is_right: |lines| (0..10).all(|n| holds(lines, &format!("nap {n} took"), 1)),
    },
];

const SEEDS: [Pair; 5] = [
    Pair {
        name: "000",
        runs_on: ON_3,
        key: Key::Bytes(b"python3"),
        queues: &["get_task_queue", "get_result_queue"],
        task_line: "put data into tasks",
        result_line: "get result from queues",
        master_ends: false,
        worker_ends: false,
        tasks: 6,
        is_right: |lines| holds(lines, "passed", 3) && holds(lines, "faild", 3),
    },
    Pair {
        name: "001",
        runs_on: ON_2,
        key: Key::Bytes(b"abc"),
        queues: &["get_task_queue", "get_result_queue"],
        task_line: "Put task",
        result_line: "Result:",
        master_ends: true,
        worker_ends: true,
        tasks: 10,
        is_right: are_squares,
    },
    Pair {
        name: "002",
        runs_on: ON_3,
        key: Key::Int(510_210),
        queues: &["get_task_queue", "get_result_queue"],
        task_line: "put task",
        result_line: "result is",
        master_ends: true,
        worker_ends: true,
        tasks: 10,
        is_right: |lines| (0..10).all(|n| holds(lines, &format!("ImageUrl_{n} --->>>success"), 1)),
    },
    Pair {
        name: "003",
        runs_on: ON_3,
        key: Key::Bytes(b"bin"),
        queues: &["get_task_queue,maxsize=10", "get_result_queue,maxsize=10"],
        task_line: "Put task",
        result_line: "Result:",
        master_ends: true,
        worker_ends: true,
        tasks: 10,
        is_right: are_squares,
    },
    Pair {
        name: "004",
        runs_on: ON_3,
        key: Key::Bytes(b"123"),
        queues: &["get_task,maxsize=10", "get_result,maxsize=10"],
        task_line: "Put task",
        result_line: "is finish",
        master_ends: true,
        worker_ends: true,
        tasks: 10,
        is_right: |lines| (0..10).all(|n| holds(lines, &format!("task {n} is finish"), 1)),
    },
];

/// The two programs of a pair.
#[derive(Clone)]
struct Sources {
    master: String,
    worker: String,
}

#[test]
fn programs_run_with_their_own_server() {
    // The oracle: what our server is asked to do is what these programs do without it.
    for_each_python(pythons(), |python| {
        for pair in OURS.iter().filter(|pair| (pair.runs_on)(python)) {
            run(python, pair, &our_sources(pair).on_port(any_free_port()));
        }
    });
}

#[test]
fn programs_run_with_our_server() {
    for_each_python(pythons(), |python| {
        for pair in OURS.iter().filter(|pair| (pair.runs_on)(python)) {
            run_with_our_server(python, pair, &our_sources(pair));
        }
    });
}

/// Which of our examples is the worker to a tutorial's master.
const RUST_WORKERS: [(&str, &str); 5] = [
    ("000", "pass_fail_worker"),
    ("001", "squares_worker"),
    ("002", "images_worker"),
    ("003", "bounded_squares_worker"),
    ("004", "timed_tasks_worker"),
];

/// The folder with the tutorials' texts, if it is there.
fn tutorials() -> Option<PathBuf> {
    let dir = env::var_os("MANYHANDS_SEEDS")
        .map_or_else(|| repository().join("../shared/seeds"), PathBuf::from);
    if dir.is_dir() {
        return Some(dir);
    }
    announce(&format!("NOT RUN: the tutorials' programs, {} is not there", dir.display()));
    None
}

#[test]
fn unmodified_tutorial_masters_are_served_by_rust_workers() {
    let Some(dir) = tutorials() else { return };
    // They may have to be built, which takes longer than some masters wait for their first result.
    let workers = RUST_WORKERS.map(|(name, worker)| (name, example(worker)));
    for_each_python(pythons(), |python| {
        for (pair, (name, worker)) in SEEDS.iter().zip(&workers) {
            assert_eq!(pair.name, *name);
            if (pair.runs_on)(python) {
                let sources = tutorial_sources(&dir, pair).on_port(any_free_port());
                run_with(python, pair, &sources.master, |folder| {
                    let key = folder.join("key");
                    write_secret(&key, &pair.key.bytes());
                    let address = format!("127.0.0.1:{}", sources.port());
                    let program = Command::new(worker).arg(address).arg(key).spawn();
                    Worker::Rust(program.expect("the example runs"))
                });
            }
        }
    });
}

#[test]
fn unmodified_tutorial_workers_run_with_our_server() {
    let Some(dir) = tutorials() else { return };
    for_each_python(pythons(), |python| {
        for pair in SEEDS.iter().filter(|pair| (pair.runs_on)(python)) {
            run_with_our_server(python, pair, &tutorial_sources(&dir, pair));
        }
    });
}

fn run_with_our_server(python: &Python, pair: &Pair, sources: &Sources) {
    let options: Vec<_> = pair.queues.iter().flat_map(|queue| ["--queue", queue]).collect();
    let sources = Sources { master: as_client(&sources.master), ..sources.clone() };
    let wanted = sources.port();
    let on_wanted = Some(wanted)
        .filter(|port| is_free(*port))
        .and_then(|port| Server::at(&format!("127.0.0.1:{port}"), pair.key, &options).ok());
    let server = on_wanted.unwrap_or_else(|| {
        Server::at("127.0.0.1:0", pair.key, &options).expect("the server starts")
    });
    run(python, pair, &sources.on_port(server.port()));
}

/// A worker in one language or the other.
enum Worker {
    Python(Running),
    Rust(Child),
}

impl Worker {
    /// Waits for its end, if it comes to one by itself.
    fn finish(self, ends: bool) {
        match self {
            Self::Python(worker) if ends => drop(worker.finish()),
            Self::Python(worker) => drop(worker.kill()),
            Self::Rust(mut worker) => {
                if !ends {
                    worker.kill().expect("the worker can be killed");
                }
                let status = worker.wait().expect("the worker ends");
                assert!(!ends || status.success(), "the Rust worker failed: {status}");
            }
        }
    }
}

fn run(python: &Python, pair: &Pair, sources: &Sources) {
    run_with(python, pair, &sources.master, |folder| {
        Worker::Python(start(python, &folder.join("task_worker.py"), &sources.worker))
    });
}

/// Writes a program into a file and starts it.
fn start(python: &Python, path: &Path, source: &str) -> Running {
    fs::write(path, source).expect("the temporary directory can be written");
    let is_full_speed = env::var_os("MANYHANDS_FULL_SPEED").is_some();
    python
        .program(path)
        .env("PYTHONPATH", python_dir().join("quick"))
        .env("MANYHANDS_SLEEP_SCALE", if is_full_speed { "1" } else { SLEEP_SCALE })
        .start()
}

/// Runs master and worker to their ends, or until all results are there, and checks the results.
fn run_with(
    python: &Python,
    pair: &Pair,
    master: &str,
    start_worker: impl FnOnce(&Path) -> Worker,
) {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let mut master = start(python, &dir.path().join("task_master.py"), master);
    master.wait_for(pair.tasks, |line| line.contains(pair.task_line));
    let worker = start_worker(dir.path());
    let said = if pair.master_ends {
        master.finish()
    } else {
        master.wait_for(pair.tasks, |line| line.contains(pair.result_line));
        master.kill()
    };
    worker.finish(pair.worker_ends);
    let results: Vec<_> =
        said.lines().filter(|line| line.contains(pair.result_line)).map(str::to_owned).collect();
    assert!(
        results.len() == pair.tasks && (pair.is_right)(&results),
        "{} on Python {}: wrong results: {results:#?}",
        pair.name,
        python.name()
    );
}

/// A master that connects to a server instead of starting one.
fn as_client(master: &str) -> String {
    let line = |line: &str| {
        let indent = &line[..line.len() - line.trim_start().len()];
        match line.trim() {
            call if call.ends_with(".start()") => line.replace(".start()", ".connect()"),
            call if call.ends_with(".shutdown()") => format!("{indent}pass"),
            _ => line.to_owned(),
        }
    };
    master.lines().map(line).collect::<Vec<_>>().join("\n")
}

impl Sources {
    fn port(&self) -> u16 {
        self.worker[port_in(&self.worker)].parse().expect("the port is a number")
    }

    /// The same programs on another port.
    fn on_port(&self, port: u16) -> Self {
        let rewrite = |source: &str| {
            let mut source = source.to_owned();
            source.replace_range(port_in(&source), &port.to_string());
            source
        };
        Self { master: rewrite(&self.master), worker: rewrite(&self.worker) }
    }
}

/// Where the port stands in `address=(host, port)`.
fn port_in(source: &str) -> Range<usize> {
    let is_argument =
        |at: &usize| source[*at..].trim_start_matches("address").trim_start().starts_with('=');
    let mut addresses = source.match_indices("address").map(|(at, _)| at).filter(is_argument);
    let start = addresses.next().expect("the program has an address");
    let end = start + source[start..].find(')').expect("the address is a tuple");
    let comma = start + source[start..end].rfind(',').expect("the address is a pair");
    let blanks = source[comma + 1..end].len() - source[comma + 1..end].trim_start().len();
    comma + 1 + blanks..end
}

fn our_sources(pair: &Pair) -> Sources {
    let read = |role: &str| {
        let path = python_dir().join("programs").join(format!("{}_{role}.py", pair.name));
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    Sources { master: read("master"), worker: read("worker") }
}

/// The two programs among the code blocks of a tutorial.
fn tutorial_sources(dir: &std::path::Path, pair: &Pair) -> Sources {
    let files = fs::read_dir(dir).expect("the directory is there").flatten();
    let path = files
        .map(|file| file.path())
        .find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(pair.name))
        })
        .unwrap_or_else(|| panic!("no text {} in {}", pair.name, dir.display()));
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let blocks: Vec<_> = code_blocks(&text).filter(|code| code.contains("BaseManager")).collect();
    let with = |call: &str| {
        let found = blocks.iter().find(|code| code.contains(call));
        found.unwrap_or_else(|| panic!("{}: no program calls {call}", path.display())).to_string()
    };
    Sources { master: with(".start()"), worker: with(".connect()") }
}

/// The fenced code blocks of a text in Markdown.
fn code_blocks(text: &str) -> impl Iterator<Item = &str> {
    text.split("```").skip(1).step_by(2).filter_map(|block| Some(block.split_once('\n')?.1))
}

fn holds(lines: &[String], part: &str, count: usize) -> bool {
    lines.iter().filter(|line| line.contains(part)).count() == count
}

/// Lines like `12 * 12 = 144`.
fn are_squares(lines: &[String]) -> bool {
    lines
        .iter()
        .all(|line| matches!(numbers(line)[..], [a, b, square] if a == b && a * b == square))
}

fn numbers(line: &str) -> Vec<u64> {
    line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

/// A port that nobody listens on, and that the system gives to no connection meanwhile: it takes those
/// from 32768 on.
fn any_free_port() -> u16 {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    loop {
        let tried = u32::from(TRIED.fetch_add(1, Ordering::Relaxed));
        let port = 20_000 + (std::process::id() + tried) % 10_000;
        let port = u16::try_from(port).expect("it is below 30,000");
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}
