//! A client that dies, or gives up, while it waits takes nothing with it and leaves nothing behind.
//!
//! CPython's own server fails all of these: its thread goes on waiting for a client that is gone.

use serde_json::{Value, json};

use crate::support::{Python, Running, Server, for_each_python, newest_python, pythons};

/// Clients killed per Python around the moment of a put.
const ROUNDS: &str = "15";

#[test]
fn a_client_killed_while_it_waits_in_get_takes_nothing() {
    for_each_python(pythons(), |python| {
        let server = Server::start(&["tasks", "results"]);
        kill_when_sent(client(python, &server, "getter", &[]));
        assert_eq!(fill_and_drain(python, &server), json!([0, 1, 2, 3, 4]));
    });
}

#[test]
fn cpythons_own_server_gives_an_item_to_the_dead() {
    // Known defect of the original: shows that the test above can tell.
    let python = newest_python();
    let server = Server::cpython(python, &["tasks", "results"]);
    kill_when_sent(client(python, &server, "getter", &[]));
    assert_eq!(fill_and_drain(python, &server), json!([1, 2, 3, 4]));
}

#[test]
fn a_daemon_thread_that_waits_in_get_at_exit_takes_nothing() {
    for_each_python(pythons(), |python| {
        let server = Server::start(&["tasks", "results"]);
        client(python, &server, "daemon", &[]).finish();
        assert_eq!(fill_and_drain(python, &server), json!([0, 1, 2, 3, 4]));
    });
}

#[test]
fn a_client_killed_while_it_waits_in_put_leaves_no_ghost() {
    for_each_python(pythons(), |python| {
        let server = Server::start(&["tasks,maxsize=1", "results"]);
        client(python, &server, "fill", &["0", "1"]).finish();
        kill_when_sent(client(python, &server, "putter", &["ghost"]));
        assert_eq!(drain(python, &server), json!([0]));
    });
}

#[test]
fn answers_are_not_shifted_after_a_get_was_given_up() {
    for_each_python(pythons(), |python| {
        let server = Server::start(&["tasks", "results"]);
        let output = client(python, &server, "interrupted_get", &[]).finish();
        for answers in answers(&output) {
            assert_eq!(answers, json!([0, null, "r", null, 1, "t"]));
        }
    });
}

#[test]
fn a_put_given_up_on_a_full_queue_leaves_no_ghost() {
    for_each_python(pythons(), |python| {
        let server = Server::start(&["tasks,maxsize=1", "results"]);
        let output = client(python, &server, "interrupted_put", &[]).finish();
        for answers in answers(&output) {
            assert_eq!(answers, json!([1, null, "r", "real", "empty"]));
        }
    });
}

#[test]
fn no_item_is_lost_when_getters_are_killed_around_a_put() {
    for_each_python(pythons(), |python| {
        let server = Server::start(&["tasks", "results"]);
        let seed = python.version.1.to_string();
        let output = client(python, &server, "shaken", &[ROUNDS, &seed]).finish();
        assert_eq!(last_field(&output, "missing"), json!([]), "seed {seed}");
    });
}

fn client(python: &Python, server: &Server, role: &str, arguments: &[&str]) -> Running {
    let script = python.script("loss.py").arg(role).server(server);
    arguments.iter().fold(script, |script, argument| script.arg(argument)).start()
}

fn kill_when_sent(mut client: Running) {
    client.wait_for(1, |line| line.contains("sent"));
    client.kill();
}

fn fill_and_drain(python: &Python, server: &Server) -> Value {
    client(python, server, "fill", &["0", "5"]).finish();
    drain(python, server)
}

fn drain(python: &Python, server: &Server) -> Value {
    last_field(&client(python, server, "drain", &[]).finish(), "items")
}

fn last_field(output: &str, field: &str) -> Value {
    let last = output.lines().last().expect("the script says something");
    let mut said: Value = serde_json::from_str(last).expect("scripts say JSON");
    said[field].take()
}

fn answers(output: &str) -> Vec<Value> {
    let answers: Vec<_> = output.lines().map(|line| last_field(line, "answers")).collect();
    assert_eq!(answers.len(), 2, "one line for each way to give up");
    answers
}
