//! Very many tasks that go at one time, and very many queues that are listed: nobody waits for it.

#![expect(clippy::disallowed_methods, reason = "measures the time that users wait")]

use std::time::Instant;

use crate::ends::{crowd, host};
use crate::hands::{BATCH, COUNT, beside_some, purge, put_batches};
use crate::honest::is_long;
use crate::peer::{Peer, assert_is, has};
use crate::raw::{Raw, frame};
use crate::support::{Server, announce};

const LIST: u8 = 0x0b;
const DROP: u8 = 0x10;
/// The reply that is a text.
const TEXT: u8 = 0x87;
/// Rounds of the honest client in which the server gives back what the tasks took.
const AFTERWARDS: usize = 1000;

/// Fills a queue twice, and has its tasks purged and then dropped with it.
fn go(server: &Server, kind: &str) {
    let batches = if is_long() { 64 } else { 4 };
    let tasks = batches * BATCH as usize;
    let mut raw = Raw::with(server, "tasks");
    put_batches(&mut raw, batches);
    beside_some(&format!("a purge of {tasks} tasks {kind}"), server, |honest| {
        let begin = Instant::now();
        purge(&mut raw);
        announce(&format!("it was answered after {:.1?}", begin.elapsed()));
        honest.goes_on(AFTERWARDS);
    });
    put_batches(&mut raw, batches);
    beside_some(&format!("a drop of {tasks} tasks {kind}"), server, |honest| {
        let begin = Instant::now();
        let mut drop = frame(DROP, 0, 4, 0, b"tasks");
        drop[5] = 1;
        assert_eq!(raw.ask(&drop).op, COUNT);
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
    beside_some(&format!("list of {queues} queues"), &server, |_| {
        let mut raw = Raw::connect(&server);
        for _ in 0..LISTS {
            let (mut listed, mut last) = (0, String::new());
            loop {
                let page = raw.ask(&frame(LIST, 0, 5, 0, last.as_bytes()));
                assert_eq!(page.op, TEXT);
                let infos: Vec<serde_json::Value> = serde_json::from_slice(&page.body).unwrap();
                listed += infos.len();
                let Some(info) = infos.last() else { break };
                last = info["name"].as_str().unwrap().to_owned();
            }
            assert!(listed >= queues, "{listed}");
        }
    });
    for method in ["debug_info", "number_of_objects", "dummy"] {
        beside_some(&format!("{method} of {queues} queues"), &server, |_| {
            for _ in 0..LISTS {
                let reply = Peer::control(&server, method, &[]);
                assert_is(&reply, "#RETURN");
                assert!(method != "debug_info" || has(&reply, "queue 0"), "{}", reply.len());
            }
        });
    }
}
