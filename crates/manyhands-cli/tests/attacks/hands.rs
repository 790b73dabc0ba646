//! Clients that take thousands of tasks at a time, or never stop asking: others still have their turn.

#![expect(clippy::disallowed_methods, reason = "measures the time that users wait")]

use std::time::{Duration, Instant};

use crate::honest::Honest;
use crate::peer::{Peer, assert_is, blob, has, request, text};
use crate::support::{Server, announce, wait_until};

/// The longest that an honest client may wait for one with a large hand, on a machine that is busy.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Most items of one call.
pub(crate) const BATCH: u16 = 16_384;
const BATCHES: usize = 4;

/// A session of a client of our own.
pub(crate) fn ours(server: &Server) -> Peer {
    let mut peer = Peer::login(server);
    let name = text("manyhands/1 attack");
    assert_is(&peer.ask(&request(None, "accept_connection", &[name])), "#RETURN");
    peer
}

/// The opcodes for a list of so many small pickles, as `put_many` takes them.
fn items(count: usize) -> Vec<u8> {
    let item = b"\x80\x02K\x01.";
    let one = [&[b'U', 5], &item[..]].concat();
    [b"](", &one.repeat(count)[..], b"e"].concat()
}

fn number(number: u16) -> Vec<u8> {
    [&b"M"[..], &number.to_le_bytes()].concat()
}

fn fill(peer: &mut Peer, ident: &str) {
    put_batches(peer, ident, BATCHES);
}

pub(crate) fn put_batches(peer: &mut Peer, ident: &str, count: usize) {
    let batch = request(Some(ident), "put_many", &[items(BATCH.into())]);
    (0..count).for_each(|_| assert_is(&peer.ask(&batch), "#RETURN"));
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
fn batches_of_our_own_clients_keep_nobody_waiting() {
    let server = Server::start(&["tasks", "honest"]);
    let ident = Peer::create(&server, "tasks");
    let mut greedy = ours(&server);
    beside("putting and getting batches", &server, || {
        fill(&mut greedy, &ident);
        let get = request(Some(&ident), "get_many", &[number(BATCH)]);
        (0..BATCHES).for_each(|_| assert_is(&greedy.ask(&get), "#RETURN"));
        // What the last batch brought is shown to be through by a put.
        let put = request(Some(&Peer::create(&server, "honest")), "qsize", &[]);
        assert_is(&greedy.ask(&put), "#RETURN");
    });
}

#[test]
fn a_session_that_settles_a_large_hand_keeps_nobody_waiting() {
    let server = Server::start(&["tasks,results=results", "results", "honest"]);
    let (tasks, results) = (Peer::create(&server, "tasks"), Peer::create(&server, "results"));
    fill(&mut ours(&server), &tasks);
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
        let mut other = ours(&server);
        let back = request(Some(&tasks), "qsize", &[]);
        let all = BATCHES * usize::from(BATCH) - 2000;
        let all = u32::try_from(all).expect("a small number").to_le_bytes();
        let is_all = |reply: Vec<u8>| reply[reply.len() - 6..reply.len() - 2] == all;
        let begin = Instant::now();
        while !is_all(other.ask(&back)) {
            assert!(begin.elapsed() < Duration::from_secs(30), "the tasks are not back");
        }
    });
}

#[test]
fn requests_that_are_sent_ahead_without_end_keep_nobody_waiting() {
    const AHEAD: usize = 20_000;
    let server = Server::start(&["tasks", "honest"]);
    let ident = Peer::create(&server, "tasks");
    let mut hasty = ours(&server);
    let size = request(Some(&ident), "qsize", &[]);
    let length = u32::try_from(size.len()).expect("a short request").to_be_bytes();
    let all = [&length[..], &size].concat().repeat(1000);
    beside("requests that are sent ahead", &server, || {
        for _ in 0..AHEAD / 1000 {
            hasty.send(&all);
            for _ in 0..1000 {
                assert!(has(&hasty.frame().expect("a reply"), "#RETURN"));
            }
        }
    });
}

#[test]
fn a_purge_of_many_tasks_keeps_nobody_waiting() {
    let server = Server::start(&["tasks,results=results", "results", "honest"]);
    let ident = Peer::create(&server, "tasks");
    let mut ours = ours(&server);
    (0..4).for_each(|_| fill(&mut ours, &ident));
    beside("a purge", &server, || {
        assert_is(&ours.ask(&request(Some(&ident), "purge", &[])), "#RETURN");
    });
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
