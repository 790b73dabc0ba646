//! What becomes of a task when something happens to the process that has it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use manyhands::blocking::Client;
use serde_json::Value;

use crate::support::{self, KEY, Python, Running, Server, announce, newest_python};

/// Workers killed for the measurement.
const MEASURED: usize = 3;

#[test]
fn a_worker_that_waits_does_the_task_of_one_that_is_killed_while_it_computes() {
    let server = Server::start(&["tasks,results=results"]);
    let longest = (0..MEASURED).map(|_| one_is_killed(&server)).max().unwrap_or_default();
    announce(&format!("a task was with the next worker at most {longest:.1?} after the kill"));
}

fn one_is_killed(server: &Server) -> Duration {
    let (python, client) = (newest_python(), client(server));
    client.queue("tasks").expect("it is there").put(&"task").expect("it has room");
    let mut killed = worker(python, server, "compute");
    assert_eq!(said(&mut killed, "took"), "task");
    let mut next = worker(python, server, "answer");
    assert_eq!(said(&mut next, "waits"), true);
    let before = now();
    drop(killed);
    assert_eq!(said(&mut next, "took"), "task");
    let took = before.elapsed();
    next.finish();
    let results = client.queue::<String>("results").expect("it is there");
    assert_eq!(results.try_get().expect("it was answered"), "in time");
    took
}

#[test]
fn a_worker_that_stands_still_past_its_time_neither_loses_nor_doubles_its_task() {
    let server = Server::start(&["tasks,results=results,max_run=1"]);
    let (python, client) = (newest_python(), client(&server));
    client.queue("tasks").expect("it is there").put(&"task").expect("it has room");
    let mut stalled = worker(python, &server, "stall");
    let pid = said(&mut stalled, "pid");
    let mut next = worker(python, &server, "answer");
    assert_eq!(said(&mut next, "took"), "task");
    let status = Command::new("kill").args(["-CONT", &pid.to_string()]).status();
    assert!(status.is_ok_and(|status| status.success()));
    assert_eq!(said(&mut stalled, "kept"), false);
    let results = client.queue::<String>("results").expect("it is there");
    assert_eq!(results.try_get().expect("it was answered"), "in time");
    assert!(results.try_get().is_err(), "there is one result");
}

fn client(server: &Server) -> Client {
    let address = format!("127.0.0.1:{}", server.port());
    Client::connect(&address, KEY).expect("the server runs")
}

fn worker(python: &Python, server: &Server, what: &str) -> Running {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/storm/python/fault.py");
    let script = python.program(&script).env("MANYHANDS_TEST_PYTHON", support::python_dir());
    script.arg(what).server(server).start()
}

fn said(worker: &mut Running, field: &str) -> Value {
    loop {
        let line = worker.line().expect("the worker says what it does");
        let said: Value = serde_json::from_str(&line).expect("scripts say JSON");
        if let Some(value) = said.get(field) {
            return value.clone();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "it measures and judges nothing")]
fn now() -> Instant {
    Instant::now()
}
