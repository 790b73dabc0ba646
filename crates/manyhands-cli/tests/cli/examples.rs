//! The examples: a master and a worker of each kind, in Rust and in Python, in every combination
//! but Python with Python.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::example_programs::example;
use crate::support::{Home, Process, python, script};

/// Which program plays a role.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Program {
    /// The example.
    Rust,
    /// A script on the standard library alone.
    Python,
}

use Program::{Python, Rust};

impl Program {
    fn command(self, kind: &str, role: &str, address: &str, key: &Path) -> Command {
        match self {
            Rust => {
                let mut command = Command::new(example(&format!("{kind}_{role}")));
                command.arg(address).arg(key).stdin(Stdio::null()).stdout(Stdio::piped());
                command
            }
            Python => script(&format!("{role}.py"), [Path::new(kind), key, Path::new(address)]),
        }
    }
}

/// What a master of one kind prints, Rust or Python.
struct Kind {
    name: &'static str,
    /// Part of the line from which on there are tasks.
    ready: &'static str,
    /// How the lines with results begin.
    result: &'static str,
}

impl Kind {
    /// Runs a master and its workers; returns the results that the master printed, sorted, without
    /// the time that a task took.
    fn run(&self, key: &[u8], master: Program, workers: &[Program]) -> Vec<String> {
        let home = Home::new();
        let key = home.file("key", key);
        let spawn = |mut command: Command| Process::spawn(&mut command);
        let mut master = spawn(master.command(self.name, "master", "127.0.0.1:0", &key));
        let stdout = BufReader::new(master.0.stdout.take().unwrap());
        let mut lines = stdout.lines().map(Result::unwrap);
        let mut line = lines.next().unwrap();
        let address = line.rsplit(' ').next().unwrap().to_owned();
        while !line.contains(self.ready) {
            line = lines.next().unwrap();
        }
        let start = |program: &Program| {
            let mut command = program.command(self.name, "worker", &address, &key);
            // What a stock worker says when its master has gone is of no interest.
            command.stdout(Stdio::null()).stderr(Stdio::null());
            spawn(command)
        };
        let mut started: Vec<_> = workers.iter().map(start).collect();
        let mut results: Vec<_> = lines
            .filter_map(|line| line.strip_prefix(self.result).map(str::to_owned))
            .map(|result| result.split(" , runtime").next().unwrap().to_owned())
            .collect();
        results.sort();
        assert_eq!(master.wait(), Some(0), "{results:?}");
        // One of several may come when all is over.
        if workers == [Rust] {
            started.iter_mut().for_each(|worker| assert_eq!(worker.wait(), Some(0)));
        }
        results
    }

    fn check(&self, key: &[u8], mut expected: Vec<String>) {
        expected.sort();
        assert_eq!(self.run(key, Rust, &[Rust]), expected, "Rust and Rust");
        assert_eq!(self.run(key, Rust, &[Rust, Python, Rust]), expected, "several workers");
        let python = python().display();
        assert_eq!(self.run(key, Rust, &[Python]), expected, "Rust master, {python} worker");
        assert_eq!(self.run(key, Python, &[Rust]), expected, "{python} master, Rust worker");
    }
}

fn square(n: u64) -> String {
    format!("{n} * {n} = {}", n * n)
}

#[test]
fn numbers_are_squared() {
    let kind = Kind { name: "squares", ready: "Try get results...", result: "Result: " };
    kind.check(b"abc", (0..10).map(|i| square(i * 7919 % 10_000)).collect());
}

#[test]
fn numbers_are_squared_through_bounded_queues() {
    let kind = Kind { name: "bounded_squares", ready: "Try get results...", result: "Result: " };
    kind.check(b"bin", (1..=10).map(|i| square(i * 7919 % 10_000)).collect());
}

#[test]
fn numbers_pass_or_fail_by_polling() {
    let result = "[Master] - get result from queues: ";
    let kind = Kind { name: "pass_fail", ready: "put data into tasks", result };
    kind.check(b"python3", ["passed", "faild"].repeat(3).into_iter().map(str::to_owned).collect());
}

#[test]
fn images_are_fetched_with_an_int_for_a_key() {
    let kind = Kind { name: "images", ready: "try get result...", result: "result is " };
    let expected = (0..10).map(|i| format!("ImageUrl_{i} --->>>success"));
    kind.check(&[0; 510_210], expected.collect());
}

#[test]
fn tasks_are_timed_until_the_results_are_all_there() {
    let kind = Kind { name: "timed_tasks", ready: "Put task 9...", result: "task " };
    kind.check(b"123", (0..10).map(|i| format!("{i} is finish")).collect());
}

#[test]
fn a_map_is_worked_on_by_workers() {
    let kind = Kind { name: "map", ready: "erving on", result: "Result: " };
    let sum: u64 = (1..=1000).map(|n| n * n).sum();
    for workers in [&[Rust][..], &[Rust, Rust]] {
        assert_eq!(kind.run(b"regina", Rust, workers), [sum.to_string()]);
    }
}

#[test]
fn queens_are_counted() {
    let kind = Kind { name: "queens", ready: "erving on", result: "" };
    let totals = [(8, 92), (9, 352), (10, 724), (11, 2680), (12, 14_200)];
    let expected = totals.iter().map(|(size, total)| format!("{size} queens: {total} ways"));
    kind.check(b"regina", expected.collect());
}
