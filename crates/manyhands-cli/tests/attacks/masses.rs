//! Very many tasks that go at one time, and very many queues that are listed: nobody waits for it.

#![expect(clippy::disallowed_methods, reason = "measures the time that users wait")]

use std::time::Instant;

use crate::ends::{crowd, host};
use crate::hands::{BATCH, beside_some, ours, put_batches};
use crate::honest::is_long;
use crate::peer::{Peer, assert_is, has, request, text};
use crate::support::{Server, announce};

/// Rounds of the honest client in which the server gives back what the tasks took.
const AFTERWARDS: usize = 1000;

/// Fills a queue twice, and has its tasks purged and then dropped with it.
fn go(server: &Server, kind: &str) {
    let batches = if is_long() { 64 } else { 4 };
    let tasks = batches * usize::from(BATCH);
    let ident = Peer::create(server, "tasks");
    let mut ours = ours(server);
    put_batches(&mut ours, &ident, batches);
    beside_some(&format!("a purge of {tasks} tasks {kind}"), server, |honest| {
        let begin = Instant::now();
        assert_is(&ours.ask(&request(Some(&ident), "purge", &[])), "#RETURN");
        announce(&format!("it was answered after {:.1?}", begin.elapsed()));
        honest.goes_on(AFTERWARDS);
    });
    put_batches(&mut ours, &ident, batches);
    beside_some(&format!("a drop of {tasks} tasks {kind}"), server, |honest| {
        let begin = Instant::now();
        let dropped = Peer::control(server, "drop_queue", &[text("tasks"), b"\x88".to_vec()]);
        assert_is(&dropped, "#RETURN");
        announce(&format!("it was answered after {:.1?}", begin.elapsed()));
        honest.goes_on(AFTERWARDS);
    });
}

#[test]
fn a_million_tasks_in_memory_go_at_once_and_nobody_waits() {
    go(&Server::with_options(&[]), "in memory");
}

#[test]
fn a_million_tasks_on_disk_go_at_once_and_nobody_waits() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let data = dir.path().to_str().expect("its name is text");
    go(&Server::with_options(&["--data", data]), "on disk");
}

#[test]
fn nine_thousand_queues_are_listed_and_nobody_waits() {
    const LISTS: usize = 10;
    let queues = if is_long() { 9000 } else { 1000 };
    let server = Server::with_options(&[]);
    crowd(queues, |number| {
        Peer::login_from(&server, &host(number)).into_proxy(&format!("queue {number}"))
    });
    for method in ["queues", "debug_info", "number_of_objects", "dummy"] {
        beside_some(&format!("{method} of {queues} queues"), &server, |_| {
            for _ in 0..LISTS {
                let reply = Peer::control(&server, method, &[]);
                assert_is(&reply, "#RETURN");
                let is_list = ["queues", "debug_info"].contains(&method);
                assert!(!is_list || has(&reply, "queue 0"), "{}", reply.len());
            }
        });
    }
}
