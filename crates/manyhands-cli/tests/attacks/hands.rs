//! Clients that take thousands of tasks at a time, or never stop asking: others still have their turn.

#![expect(clippy::disallowed_methods, reason = "measures the time that users wait")]

use std::time::{Duration, Instant};

use crate::honest::Honest;
use crate::peer::{Peer, assert_is, blob, has, request, text};
use crate::raw::{ADDED, DONE, PING, PUT, Raw, TASKS, frame, item, lease_of, put_of};
use crate::support::{Server, announce, wait_until};

/// The longest that an honest client may wait for one with a large hand, on a machine that is busy.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Most items of one request.
pub(crate) const BATCH: u32 = 16_384;
const BATCHES: usize = 4;
const PURGE: u8 = 0x0e;
/// The reply that says how many.
pub(crate) const COUNT: u8 = 0x81;

fn fill(raw: &mut Raw) {
    put_batches(raw, BATCHES);
}

pub(crate) fn put_batches(raw: &mut Raw, count: usize) {
    let batch = put_of(&item(b"x").repeat(BATCH as usize));
    let batch = frame(PUT, 1, 2, BATCH, &batch);
    (0..count).for_each(|_| assert_eq!(raw.ask(&batch).op, ADDED));
}

/// Drops what is ready in the queue.
pub(crate) fn purge(raw: &mut Raw) {
    assert_eq!(raw.ask(&frame(PURGE, 1, 3, 0, b"")).op, COUNT);
}

/// What an honest client waited while `attack` went on.
fn beside(what: &str, server: &Server, attack: impl FnOnce()) {
    beside_some(what, server, |_| attack());
}

/// The same for an attack that looks at the honest client.
pub(crate) fn beside_some(what: &str, server: &Server, attack: impl FnOnce(&Honest)) {
    let honest = Honest::beside(server);
    let begin = Instant::now();
    attack(&honest);
    announce(&format!("{what} took {:.1?}", begin.elapsed()));
    let waited = honest.told(what);
    // A round that the attack held up may just be over.
    let last = wait_until(|| Some(honest.measured()).filter(|last| last.rounds > 0));
    let longest = last.map_or(Duration::MAX, |last| last.longest.max(waited.longest));
    assert!(longest < WAIT_MAX, "somebody else waited {longest:?}");
}

#[test]
fn batches_keep_nobody_waiting() {
    let server = Server::start(&["tasks", "honest"]);
    let mut greedy = Raw::with(&server, "tasks");
    beside("putting and getting batches", &server, || {
        fill(&mut greedy);
        for id in 10..14 {
            assert_eq!(greedy.ask(&lease_of(id, [0; 8], BATCH)).op, TASKS);
        }
        // All that it has goes back.
        drop(greedy);
    });
}

#[test]
fn a_session_that_settles_a_large_hand_keeps_nobody_waiting() {
    let server = Server::start(&["tasks,results=results", "results", "honest"]);
    let (tasks, results) = (Peer::create(&server, "tasks"), Peer::create(&server, "results"));
    fill(&mut Raw::with(&server, "tasks"));
    let mut hoarder = Peer::session(&server);
    let get = request(Some(&tasks), "get", &[]);
    let put = request(Some(&results), "put", &[text("a result")]);
    let done = request(Some(&tasks), "task_done", &[]);
    beside("a session with a large hand", &server, || {
        for _ in 0..20_000 {
            assert_is(&hoarder.ask(&get), "#RETURN");
        }
        for _ in 0..1000 {
            assert_is(&hoarder.ask(&put), "#RETURN");
            assert_is(&hoarder.ask(&done), "#RETURN");
        }
        // All the rest goes back.
        drop(hoarder);
        let mut other = Raw::with(&server, "tasks");
        let all = (BATCHES * BATCH as usize - 2000) as u64;
        let begin = Instant::now();
        while other.qsize() != all {
            assert!(begin.elapsed() < Duration::from_secs(30), "the tasks are not back");
        }
    });
}

#[test]
fn requests_that_are_sent_ahead_without_end_keep_nobody_waiting() {
    const AHEAD: usize = 20_000;
    let server = Server::start(&["tasks", "honest"]);
    let ident = Peer::create(&server, "tasks");
    let mut hasty = Peer::session(&server);
    let mut native = Raw::connect(&server);
    let pings: Vec<_> = (0..1000).flat_map(|id| frame(PING, 0, id, 0, b"")).collect();
    let size = request(Some(&ident), "qsize", &[]);
    let length = u32::try_from(size.len()).expect("a short request").to_be_bytes();
    let all = [&length[..], &size].concat().repeat(1000);
    beside("requests that are sent ahead", &server, || {
        for _ in 0..AHEAD / 1000 {
            hasty.send(&all);
            for _ in 0..1000 {
                assert!(has(&hasty.frame().expect("a reply"), "#RETURN"));
            }
            native.peer.send(&pings);
            (0..1000).for_each(|_| assert_eq!(native.reply().op, DONE));
        }
    });
}

#[test]
fn a_purge_of_many_tasks_keeps_nobody_waiting() {
    let server = Server::start(&["tasks,results=results", "results", "honest"]);
    let mut raw = Raw::with(&server, "tasks");
    (0..4).for_each(|_| fill(&mut raw));
    beside("a purge", &server, || purge(&mut raw));
}

#[test]
fn a_large_item_keeps_nobody_waiting() {
    let server = Server::start(&["tasks", "sorted,order=priority", "honest"]);
    let item = blob(&vec![b'x'; 60 << 20]);
    let mut session = Peer::session(&server);
    for queue in ["tasks", "sorted"] {
        let ident = Peer::create(&server, queue);
        let put = request(Some(&ident), "put", std::slice::from_ref(&item));
        beside(&format!("a put of 60 MiB to {queue}"), &server, || {
            for _ in 0..3 {
                assert_is(&session.ask(&put), "#RETURN");
            }
        });
    }
}
