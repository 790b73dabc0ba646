//! What the log of the server says of tasks that would otherwise disappear without a word.

use std::process::Command;

use manyhands::PutOptions;
use manyhands::blocking::Client;

use super::*;

/// The lines about this that a server has written by its end.
fn lines_about(server: Server, what: &str) -> Vec<String> {
    let process = server.process.into_inner().expect("no test has panicked with it");
    let id = process.child.id().to_string();
    let asked = Command::new("kill").args(["-TERM", &id]).status();
    assert!(asked.is_ok_and(|status| status.success()));
    process.errors.iter().filter(|line| line.contains(what)).collect()
}

/// The one line about this, which has all of these words.
#[track_caller]
fn one_line(server: Server, what: &str, words: &[&str]) -> String {
    let lines = lines_about(server, what);
    let [line] = &lines[..] else { panic!("not one line about {what:?}: {lines:#?}") };
    for word in words {
        assert!(line.contains(word), "no {word:?} in {line}");
    }
    line.clone()
}

fn client(server: &Server) -> Client {
    let address = format!("127.0.0.1:{}", server.port());
    Client::connect(&address, support::KEY).expect("the server runs")
}

/// A command that must succeed; says what it prints.
fn command(server: &Server, words: &[&str]) -> String {
    let (verb, words) = words.split_first().expect("a command");
    let mut command = Command::new(support::binary());
    command.args([verb, "--connect"]).arg(format!("127.0.0.1:{}", server.port()));
    let output = command.arg("--authkey-file").arg(server.key_file()).args(words).output();
    let output = output.expect("it can be started");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{errors}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn workers_that_end_with_a_task_in_hand_are_warned_of_once_with_the_remedy() {
    for_each_python(pythons(), |python| {
        let server = filled(python, PLAIN);
        left(worker(python, &server, "end"));
        wait_for_verdicts(&server);
        left(worker(python, &server, "fail"));
        assert_eq!(settled(python, &server), json!([2]));
        let words = [" WARN ", "'tasks'", "MainProcess", "127.0.0.1", "results=NAME"];
        one_line(server, "clients left with tasks in hand, which count as done", &words);
    });
}

#[test]
fn nothing_is_warned_of_where_workers_answer_and_masters_collect() {
    let python = newest_python();
    let server = Server::start(STRICT);
    fill(python, &server, "2");
    took(worker(python, &server, "answer_and_work_on"), json!(1)).kill();
    let collected = client(&server).queue::<u64>("results").expect("it is there");
    assert_eq!(collected.get().ok(), Some(0));
    drop(collected);
    wait_for_verdicts(&server);
    assert_eq!(lines_about(server, " WARN "), [""; 0]);
}

#[test]
fn a_command_that_takes_an_item_is_no_reason_to_warn() {
    let python = newest_python();
    let server = filled(python, PLAIN);
    assert_eq!(command(&server, &["get", "tasks", "--count", "2"]), "0\n1\n");
    assert_eq!(command(&server, &["get", "--info", "tasks"]), "2\n");
    assert_eq!(settled(python, &server), json!([]));
    let lines = lines_about(server, "");
    assert!(!lines.iter().any(|line| line.contains(" WARN ")), "{lines:#?}");
    // It settles what it took, so nobody has left with tasks in hand.
    assert!(!lines.iter().any(|line| line.contains("clients left")), "{lines:#?}");
}

#[test]
fn leases_that_run_out_are_logged_once_with_their_queue_and_its_limit() {
    for_each_python(pythons(), |python| {
        let server = Server::start(&["tasks,max_run=0.2,backoff=0,attempts=0", "results"]);
        fill(python, &server, "1");
        let slow = took(worker(python, &server, "work_for_ever"), json!(0));
        let next = took(worker(python, &server, "work_for_ever"), json!(0));
        assert_eq!(settled(python, &server), json!([0]));
        drop((slow, next));
        let words = [" INFO ", "'tasks'", "max_run", "200ms"];
        one_line(server, "leases ran out; their tasks go back", &words);
    });
}

#[test]
fn puts_whose_key_is_known_are_logged_once_and_answered_so() {
    let server = Server::start(&["tasks,dedup=300"]);
    let connected = client(&server);
    let tasks = connected.queue::<u64>("tasks").expect("it is there");
    let put = |key: &str| tasks.put_with(&7, &PutOptions::keyed(key)).expect("it is answered");
    assert_eq!(["a", "b", "a", "b", "a"].map(put), [true, true, false, false, false]);
    let words = [" INFO ", "'tasks'", "puts=1", "window=300s"];
    one_line(server, "puts with a key that was used a short while ago added nothing", &words);
}

#[test]
fn a_dead_letter_is_warned_of_with_its_last_reason_cut_short() {
    let server = Server::start(&["tasks,attempts=2,backoff=0"]);
    let connected = client(&server);
    let tasks = connected.queue::<u64>("tasks").expect("it is there");
    tasks.put(&7).expect("there is room");
    let long = format!("the page has no title, {}", "x".repeat(5000));
    for reason in ["the first reason", &long] {
        let lease = tasks.lease(None).expect("the task is there");
        lease.nack(None, reason).expect("it is ours");
    }
    let words = [" WARN ", "tasks.dead", "the page has no title", "...", "attempts=2"];
    let line = one_line(server, "task given up", &words);
    assert!(line.len() < 500 && !line.contains("the first reason"), "{line}");
}

#[test]
fn a_task_that_killed_its_workers_is_warned_of_with_that_for_a_reason() {
    for_each_python(pythons(), |python| {
        let server = Server::start(&["tasks,attempts=1", "results"]);
        fill(python, &server, "1");
        took(worker(python, &server, "work_for_ever"), json!(0)).kill();
        wait_for_verdicts(&server);
        let words = [" WARN ", "tasks.dead", "attempts=1", "last=\"its worker crashed"];
        one_line(server, "task given up", &words);
    });
}
