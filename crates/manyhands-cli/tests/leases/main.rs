//! What becomes of the task that an unmodified worker has in hand, however it leaves.
//!
//! Every worker is stock CPython, of every version that is found; the server is `manyhands serve`.

#![cfg(unix)]
#![expect(clippy::indexing_slicing, reason = "a helper that panics fails its test, as it should")]
#![expect(dead_code, reason = "shares what the other behaviour tests need")]

mod cut_off;
#[path = "../it/support.rs"]
mod support;
mod told;

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{
    Python, Running, Server, for_each_python, newest_python, python_dir, pythons,
};

/// Tasks in the queue at first.
const TASKS: &str = "3";

/// A queue whose tasks are settled by what a worker does next.
const PLAIN: &[&str] = &["tasks", "results"];
/// A queue whose tasks are settled by their result alone.
const STRICT: &[&str] = &["tasks,results=results"];

#[test]
fn another_worker_that_waits_gets_the_task_of_one_that_was_killed() {
    for_each_python(pythons(), |python| {
        for queues in [PLAIN, STRICT] {
            let server = Server::start(queues);
            fill(python, &server, "1");
            let killed = took(worker(python, &server, "work_for_ever"), json!(0));
            let waiting = worker(python, &server, "work_for_ever");
            killed.kill();
            took(waiting, json!(0));
        }
    });
}

#[test]
fn a_task_goes_back_however_a_worker_is_killed() {
    for_each_python(pythons(), |python| {
        let server = Server::start(PLAIN);
        fill(python, &server, "1");
        for way in ["os_exit", "abort", "terminate"] {
            let mut dying = worker(python, &server, way);
            dying.wait_for(1, |line| line == "{\"took\": 0}");
            drop(dying);
        }
        took(worker(python, &server, "work_for_ever"), json!(0));
    });
}

#[test]
fn the_task_of_a_worker_that_ended_counts_as_done() {
    for_each_python(pythons(), |python| {
        for way in ["end", "sys_exit", "fail"] {
            let server = filled(python, PLAIN);
            left(worker(python, &server, way));
            assert_eq!(settled(python, &server), json!([1, 2]), "{way}");
        }
    });
}

#[test]
fn a_worker_that_is_interrupted_while_it_waits_ends_of_its_own_accord() {
    for_each_python(pythons(), |python| {
        let server = Server::start(PLAIN);
        fill(python, &server, "1");
        left(worker(python, &server, "interrupted"));
        assert_eq!(settled(python, &server), json!([]));
    });
}

#[test]
fn a_task_without_its_result_goes_back_even_if_the_worker_ended_of_its_own_accord() {
    for_each_python(pythons(), |python| {
        for way in ["end", "fail"] {
            let server = filled(python, STRICT);
            left(worker(python, &server, way));
            assert_eq!(settled(python, &server), json!([0, 1, 2]), "{way}");
        }
    });
}

#[test]
fn what_was_answered_or_called_done_is_not_given_back() {
    for_each_python(pythons(), |python| {
        for queues in [PLAIN, STRICT] {
            let server = filled(python, queues);
            took(worker(python, &server, "answer_and_work_on"), json!(1)).kill();
            assert_eq!(settled(python, &server), json!([1, 2]));
            assert_eq!(drain(python, &server, "results"), json!([0]));
            let server = filled(python, queues);
            took(worker(python, &server, "done_and_sleep"), json!(0)).kill();
            assert_eq!(settled(python, &server), json!([1, 2]));
        }
    });
}

#[test]
fn a_worker_killed_while_it_waits_takes_nothing() {
    for_each_python(pythons(), |python| {
        let server = Server::start(PLAIN);
        fill(python, &server, "1");
        let waiting = took(worker(python, &server, "work"), json!(0));
        while drain(python, &server, "results") != json!([0]) {}
        waiting.kill();
        fill(python, &server, TASKS);
        assert_eq!(settled(python, &server), json!([0, 1, 2]));
    });
}

#[test]
fn a_thread_that_ends_is_done_while_its_process_goes_on() {
    for_each_python(pythons(), |python| {
        let server = filled(python, PLAIN);
        let living = took(worker(python, &server, "thread_ends"), json!(0));
        assert_eq!(settled(python, &server), json!([1, 2]));
        drop(living);
    });
}

#[test]
fn the_tasks_of_all_threads_of_a_killed_process_go_back() {
    for_each_python(pythons(), |python| {
        let server = filled(python, PLAIN);
        let mut killed = worker(python, &server, "threads_killed");
        killed.wait_for(2, |line| line.contains("took"));
        killed.kill();
        assert_eq!(settled(python, &server), json!([0, 1, 2]));
    });
}

#[test]
fn a_terminated_pool_and_the_exit_of_its_parent_give_nothing_back_that_was_done() {
    for_each_python(pythons(), |python| {
        for queues in [PLAIN, STRICT] {
            let server = Server::start(queues);
            fill(python, &server, "5");
            left(worker(python, &server, "pool"));
            assert_eq!(settled(python, &server), json!([4]));
        }
    });
}

#[test]
fn the_task_of_a_killed_child_goes_back_while_its_parent_lives() {
    for_each_python(pythons(), |python| {
        let server = filled(python, PLAIN);
        let mut parent = worker(python, &server, "pool_terminated_at_work");
        let child = said(&mut parent, "child").as_u64().expect("a process id");
        parent.wait_for(1, |line| line.contains("took"));
        let status = std::process::Command::new("kill").arg("-9").arg(child.to_string()).status();
        assert!(status.is_ok_and(|status| status.success()));
        assert_eq!(settled(python, &server), json!([0, 1, 2]));
    });
}

#[test]
fn a_task_that_kills_every_worker_becomes_a_dead_letter() {
    let python = newest_python();
    let server = Server::start(&["tasks,attempts=2", "results"]);
    fill(python, &server, "2");
    for _ in 0..2 {
        took(worker(python, &server, "work_for_ever"), json!(0)).kill();
        wait_for_verdicts(&server);
    }
    assert_eq!(settled(python, &server), json!([1]));
    assert_eq!(drain(python, &server, "dead"), json!([0]));
}

#[test]
fn with_delivery_as_in_cpython_the_task_of_a_killed_worker_is_lost() {
    let python = newest_python();
    let server = filled(python, &["tasks,delivery=cpython", "results"]);
    took(worker(python, &server, "work_for_ever"), json!(0)).kill();
    assert_eq!(settled(python, &server), json!([1, 2]));
}

#[test]
fn a_configuration_file_declares_the_same_queues() {
    let python = newest_python();
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let config = dir.path().join("queues.toml");
    std::fs::write(&config, "[queue.tasks]\nresults = 'results'\n").expect("it can be written");
    let server = Server::with_options(&["--config", config.to_str().expect("a plain path")]);
    fill(python, &server, TASKS);
    left(worker(python, &server, "end"));
    assert_eq!(settled(python, &server), json!([0, 1, 2]));
}

fn worker(python: &Python, server: &Server, way: &str) -> Running {
    script(python, server, way, &[])
}

fn script(python: &Python, server: &Server, way: &str, arguments: &[&str]) -> Running {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/leases/python/worker.py");
    let script = python.program(&path).env("MANYHANDS_TEST_PYTHON", python_dir());
    let script = script.arg(way).server(server);
    arguments.iter().fold(script, |script, argument| script.arg(argument)).start()
}

/// A server with tasks 0, 1 and 2.
fn filled(python: &Python, queues: &[&str]) -> Server {
    let server = Server::start(queues);
    fill(python, &server, TASKS);
    server
}

fn fill(python: &Python, server: &Server, count: &str) {
    script(python, server, "fill", &[count]).finish();
}

fn drain(python: &Python, server: &Server, queue: &str) -> Value {
    let output = script(python, server, "drain", &[queue]).finish();
    let last = output.lines().last().expect("the script says something");
    let mut said: Value = serde_json::from_str(last).expect("scripts say JSON");
    said["items"].take()
}

/// What is ready once nothing is in anybody's hand any more.
fn settled(python: &Python, server: &Server) -> Value {
    wait_for_verdicts(server);
    drain(python, server, "tasks")
}

fn wait_for_verdicts(server: &Server) {
    let (address, key) = (format!("127.0.0.1:{}", server.port()), support::KEY);
    let client = manyhands::blocking::Client::connect(&address, key).expect("the server runs");
    support::wait_until(|| {
        let queues = client.queues().expect("our server tells");
        queues.iter().all(|queue| queue.leased == 0).then_some(())
    })
    .expect("leases end");
}

/// Waits until the worker says that it took this task.
fn took(mut worker: Running, task: Value) -> Running {
    assert_eq!(said(&mut worker, "took"), task);
    worker
}

fn said(worker: &mut Running, field: &str) -> Value {
    loop {
        let line = worker.line().expect("the worker says what it does");
        let mut said: Value = serde_json::from_str(&line).expect("scripts say JSON");
        if !said[field].is_null() {
            return said[field].take();
        }
    }
}

/// Waits until the worker is gone, however it left.
fn left(mut worker: Running) {
    while worker.line().is_some() {}
}
