//! Many clients that leave at one time: the verdicts on them take neither the stack nor the engine.

#![expect(clippy::disallowed_methods, reason = "measures the time that users wait")]

use std::thread;
use std::time::{Duration, Instant};

use crate::honest::{Honest, is_long};
use crate::peer::{Peer, assert_is, has, request, text};
use crate::support::{Server, announce, wait_until};

/// How long the last verdict may take once all are gone, with the grace period of 1.2 seconds, and
/// on a machine that is busy.
const DECIDED: Duration = Duration::from_secs(8);
/// The longest that an honest client may wait for others that leave, on such a machine.
const WAIT_MAX: Duration = Duration::from_secs(3);
/// Clients that come at one time.
const AT_ONCE: usize = 8;

/// As many clients as `connect` makes, several at a time.
pub(crate) fn crowd<T: Send>(count: usize, connect: impl Fn(usize) -> T + Sync) -> Vec<T> {
    rlimit::increase_nofile_limit(u64::MAX).expect("a process may raise its own limit");
    thread::scope(|scope| {
        let connect = &connect;
        let threads: Vec<_> = (0..AT_ONCE)
            .map(|first| {
                let some = (first..count).step_by(AT_ONCE);
                scope.spawn(move || some.map(connect).collect::<Vec<T>>())
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("all are let in")).collect()
    })
}

/// A session of this thread of a Python.
fn session(server: &Server, name: &str) -> Peer {
    opened(Peer::login(server), name)
}

fn opened(mut peer: Peer, name: &str) -> Peer {
    assert_is(&peer.ask(&request(None, "accept_connection", &[text(name)])), "#RETURN");
    peer
}

/// One of several addresses of this machine: a single one has fewer ports than a cluster of
/// thousands of workers uses within a minute.
pub(crate) fn host(number: usize) -> String {
    const HOSTS: usize = 20;
    // Only Linux has all of 127.0.0.0/8.
    let last = if cfg!(target_os = "linux") { 1 + number % HOSTS } else { 1 };
    format!("127.0.0.{last}")
}

fn size(peer: &mut Peer, ident: &str) -> u64 {
    let reply = peer.ask(&request(Some(ident), "qsize", &[]));
    match reply[reply.len() - 7..] {
        [.., b'K', size, b'\x86', b'.'] => u64::from(size),
        [b'J', a, b, c, d, b'\x86', b'.'] => u64::from(u32::from_le_bytes([a, b, c, d])),
        _ => panic!("no number: {}", reply.escape_ascii()),
    }
}

fn take_one(peer: &mut Peer, ident: &str) {
    assert!(has(&peer.ask(&request(Some(ident), "get", &[])), "a task"));
}

/// Lets them leave at once; all their tasks are back in time, and the honest client hardly waits.
fn leave(what: &str, honest: &Honest, watcher: &mut Peer, ident: &str, crowd: Vec<Peer>) {
    let count = crowd.len() as u64;
    honest.measured();
    let begin = Instant::now();
    drop(crowd);
    let gone = begin.elapsed();
    let back = wait_until(|| (size(watcher, ident) == count).then_some(()));
    let decided = begin.elapsed();
    announce(&format!("{count} left in {gone:.1?}, and all were judged after {decided:.1?}"));
    let waited = honest.told(what);
    assert!(back.is_some(), "the tasks of those who left are not back");
    assert!(decided < DECIDED, "the last verdict took {decided:?}");
    assert!(waited.longest < WAIT_MAX, "somebody else waited {:?}", waited.longest);
}

fn put_tasks(peer: &mut Peer, ident: &str, count: usize) {
    for _ in 0..count {
        assert_is(&peer.ask(&request(Some(ident), "put", &[text("a task")])), "#RETURN");
    }
}

#[test]
fn children_of_one_parent_that_are_killed_together_do_not_end_the_server() {
    let count = if is_long() { 12_000 } else { 3000 };
    let server = Server::start(&["tasks", "honest"]);
    let ident = Peer::create(&server, "tasks");
    let mut watcher = session(&server, "Watcher");
    put_tasks(&mut watcher, &ident, count);
    let children = crowd(count, |_| {
        let mut child = session(&server, "MainProcess");
        take_one(&mut child, &ident);
        child
    });
    let honest = Honest::beside(&server);
    leave("children with one ident die", &honest, &mut watcher, &ident, children);
}

#[test]
fn workers_with_references_of_their_own_that_are_killed_together_keep_nobody_waiting() {
    let (count, references) = if is_long() { (10_000, 10) } else { (1500, 3) };
    let server = Server::start(&["tasks", "honest"]);
    let ident = Peer::create(&server, "tasks");
    let mut watcher = session(&server, "Watcher");
    put_tasks(&mut watcher, &ident, count);
    let workers = crowd(count, |number| {
        let host = host(number);
        let login = || Peer::login_from(&server, &host);
        let mut worker = opened(login(), &format!("Process-{number}"));
        for _ in 1..references {
            let ident = login().into_proxy("tasks");
            worker.ask(&request(Some(&ident), "qsize", &[]));
        }
        take_one(&mut worker, &login().into_proxy("tasks"));
        worker
    });
    let honest = Honest::beside(&server);
    leave("workers of a cluster die", &honest, &mut watcher, &ident, workers);
}

#[test]
fn sessions_that_use_hundreds_of_references_together_are_judged_in_time() {
    const REFERENCES: usize = 300;
    let count = if is_long() { 300 } else { 100 };
    let server = Server::start(&["tasks", "honest"]);
    let ident = Peer::create(&server, "tasks");
    let mut watcher = session(&server, "Watcher");
    put_tasks(&mut watcher, &ident, count);
    let idents = crowd(REFERENCES, |_| Peer::create(&server, "tasks"));
    let sessions = crowd(count, |number| {
        let mut one = session(&server, &format!("Process-{number}"));
        for ident in &idents {
            one.ask(&request(Some(ident), "qsize", &[]));
        }
        take_one(&mut one, &ident);
        one
    });
    let honest = Honest::beside(&server);
    leave("sessions with 300 idents die", &honest, &mut watcher, &ident, sessions);
}
