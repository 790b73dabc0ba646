//! Floods before login, reflections, and newcomers at the limit of connections.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, Scope};
use std::time::Duration;

use crate::honest::Honest;
use crate::peer::{Peer, assert_is, has, request, text};
use crate::raw::{Raw, TASKS, lease_of};
use crate::support::{KEY, Server, binary, wait_until, write_secret};

/// A server that does not know the key, with one client's connection.
struct Rogue(TcpStream);

impl Rogue {
    fn accept(listener: &TcpListener) -> Self {
        Self(listener.accept().expect("a client connects").0)
    }

    fn say(&mut self, body: &[u8]) {
        let length = u32::try_from(body.len()).expect("messages are short");
        self.0.write_all(&[&length.to_be_bytes(), body].concat()).expect("the client reads");
    }

    /// The client's next message; empty if it hung up.
    fn hear(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        if self.0.read_exact(&mut length).is_err() {
            return Vec::new();
        }
        let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).expect("64 bits")];
        self.0.read_exact(&mut body).expect("the message is whole");
        body
    }
}

/// `manyhands ls` on a server of ours, with more options.
fn ls(server: &TcpListener, key_file: &std::path::Path, options: &[&str]) -> Child {
    let address = server.local_addr().expect("it is bound").to_string();
    Command::new(binary())
        .args(["ls", "--connect", &address, "--authkey-file"])
        .arg(key_file)
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs")
}

fn error_of(client: Child) -> String {
    let output = client.wait_with_output().expect("the client ends");
    assert!(!output.status.success());
    String::from_utf8(output.stderr).expect("errors are text")
}

#[test]
fn a_server_without_the_key_cannot_have_another_process_answer_for_it() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let key_file = dir.path().join("key");
    write_secret(&key_file, KEY);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let first = ls(&listener, &key_file, &[]);
    let mut asked = Rogue::accept(&listener);
    let second = ls(&listener, &key_file, &[]);
    let mut oracle = Rogue::accept(&listener);
    asked.say(&[&b"#CHALLENGE#{sha256}"[..], &[7; 40]].concat());
    assert!(asked.hear().starts_with(b"{sha256}"));
    asked.say(b"#WELCOME#");
    let challenge = asked.hear();
    assert!(challenge.starts_with(b"#CHALLENGE#"));
    oracle.say(&challenge);
    let answer = oracle.hear();
    if !answer.is_empty() {
        asked.say(&answer);
        assert_ne!(asked.hear(), b"#WELCOME#", "the server has not proved anything");
    }
    // A client that lost its server would try again.
    drop((listener, asked, oracle));
    let error = error_of(second);
    assert!(error.contains("challenge of another client"), "{error}");
    error_of(first);
}

#[test]
fn a_server_that_knows_only_md5_is_refused_when_told() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let key_file = dir.path().join("key");
    write_secret(&key_file, KEY);
    for (options, is_answered) in [(&[][..], true), (&["--no-md5"][..], false)] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let client = ls(&listener, &key_file, options);
        let mut old = Rogue::accept(&listener);
        old.say(&[&b"#CHALLENGE#"[..], &[7; 20]].concat());
        let answer = old.hear();
        assert_eq!(answer.len() == 16, is_answered, "{}", answer.escape_ascii());
        // A client that lost its server would try again.
        drop((listener, old));
        let error = error_of(client);
        assert_eq!(error.contains("only HMAC-MD5"), !is_answered, "{error}");
    }
}

/// Connections that a flood keeps open. More than a server has places for strangers.
const FLOOD_OPEN: usize = 5000;
/// Threads that make them.
const FLOOD_THREADS: usize = 2;

/// Connects as fast as it can from 127.0.0.1, and says nothing.
#[derive(Default)]
struct Flood {
    connects: AtomicUsize,
    has_ended: AtomicBool,
}

impl Flood {
    fn begin<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, server: &'scope Server) {
        rlimit::increase_nofile_limit(u64::MAX).expect("the limit can be read");
        for _ in 0..FLOOD_THREADS {
            scope.spawn(move || {
                let mut open = VecDeque::new();
                while !self.has_ended.load(Ordering::Relaxed) {
                    let stream = TcpStream::connect(("127.0.0.1", server.port()));
                    if stream.is_err() || open.len() >= FLOOD_OPEN / FLOOD_THREADS {
                        open.pop_front();
                    }
                    if let Ok(stream) = stream {
                        open.push_back(stream);
                        self.connects.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    }

    /// Waits until it has connected so many times more.
    fn goes_on(&self, count: usize) {
        let until = self.connects.load(Ordering::Relaxed) + count;
        wait_until(|| (self.connects.load(Ordering::Relaxed) >= until).then_some(()))
            .expect("the flood goes on");
    }
}

/// Ends a flood also when its test fails.
struct Ending<'a>(&'a Flood);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.has_ended.store(true, Ordering::Relaxed);
    }
}

/// Ten clients log in from `host` while others flood, and answer the server only after `late` more
/// connections of the flood; at the usual 24,000 a second, 30 ms are 720 of them.
fn log_in_during_a_flood(what: &str, host: &str, late: usize) {
    let server = Server::with_options(&["--queue", "honest"]);
    let honest = Honest::beside(&server);
    let flood = Flood::default();
    thread::scope(|scope| {
        let _ending = Ending(&flood);
        flood.begin(scope, &server);
        flood.goes_on(FLOOD_OPEN);
        honest.measured();
        let logins: Vec<_> = (0..10)
            .map(|_| {
                scope.spawn(|| {
                    let mut peer = Peer::connect_from(&server, host);
                    flood.goes_on(late);
                    peer.answer_challenge(KEY);
                    peer.frame().is_some_and(|verdict| verdict == b"#WELCOME#")
                })
            })
            .collect();
        let logins = logins.into_iter().map(thread::ScopedJoinHandle::join);
        let successes = logins.filter(|login| matches!(login, Ok(true))).count();
        let waited = honest.told(what);
        assert_eq!(successes, 10, "logins in ten");
        assert!(waited.p99 < Duration::from_secs(1));
    });
}

#[test]
fn a_flood_of_strangers_keeps_nobody_of_another_address_out() {
    log_in_during_a_flood("flood before login from another address", "127.0.0.2", FLOOD_OPEN);
}

#[test]
fn a_flood_of_strangers_leaves_time_to_log_in_from_the_same_address() {
    log_in_during_a_flood("flood before login from the same address", "127.0.0.1", 2000);
}

#[test]
fn newcomers_are_turned_away_when_members_have_all_places_and_the_log_says_so_once() {
    let server = Server::with_options(&["--connections-max", "4", "--queue", "tasks"]);
    let ident = Peer::create(&server, "tasks");
    let mut sessions: Vec<_> = (0..4).map(|_| Peer::session(&server)).collect();
    let said = b"#FAILURE#: all 4 connections of this server are in use (--connections-max)";
    for _ in 0..100 {
        let mut newcomer = Peer::connect(&server);
        assert_eq!(newcomer.frame().as_deref(), Some(&said[..]), "it is told, and at once");
        assert_eq!(newcomer.rest(), b"", "it is closed");
    }
    for session in &mut sessions {
        assert_is(&session.ask(&request(Some(&ident), "qsize", &[])), "#RETURN");
    }
    sessions.pop();
    let newcomer = wait_until(|| {
        let mut peer = Peer::connect(&server);
        peer.frame().filter(|said| said.starts_with(b"#CHALLENGE#")).map(|_| peer)
    });
    assert!(newcomer.is_some(), "who left has made room");
    let errors = server.process.lock().expect("no test has panicked").errors.try_iter().collect();
    let lines: Vec<String> = errors;
    assert_eq!(lines.iter().filter(|line| line.contains("turned away")).count(), 1, "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("connections_max=4")), "{lines:?}");
}

#[test]
fn a_silent_session_is_closed_when_told_unless_it_holds_something() {
    let server = Server::with_options(&["--idle-timeout", "0.5", "--queue", "tasks"]);
    let ident = Peer::create(&server, "tasks");
    let ask = |peer: &mut Peer, method, args: &[_]| peer.ask(&request(Some(&ident), method, args));
    let [mut idle, mut holds, mut waits] = [(); 3].map(|()| Peer::session(&server));
    assert_is(&ask(&mut idle, "put", &[text("a task")]), "#RETURN");
    assert!(has(&ask(&mut holds, "get", &[]), "a task"));
    waits.send_frame(&request(Some(&ident), "get", &[]));
    let mut leases = Raw::with(&server, "tasks");
    assert_is(&ask(&mut idle, "put", &[text("waited for")]), "#RETURN");
    assert!(has(&waits.frame().expect("it is served"), "waited for"));
    assert_is(&ask(&mut idle, "put", &[text("leased")]), "#RETURN");
    assert_eq!(leases.ask(&lease_of(8, [0; 8], 1)).op, TASKS);
    waits.send_frame(&request(Some(&ident), "get", &[]));
    assert_eq!(idle.rest(), b"");
    // Far later, as all of these began before it.
    assert_eq!(Peer::session(&server).rest(), b"");
    assert_is(&ask(&mut holds, "qsize", &[]), "#RETURN");
    leases.goes_on();
    assert_is(&ask(&mut holds, "put", &[text("for the one that waits")]), "#RETURN");
    assert!(has(&waits.frame().expect("it is served"), "for the one that waits"));
}
