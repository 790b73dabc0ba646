//! A standard error that nobody reads, and failed logins without end.

use std::io::{PipeReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{io, thread};

use crate::honest::Honest;
use crate::peer::{Peer, assert_is, request};
use crate::support::{KEY, Key, Server, binary, wait_until};

const WRONG_KEY: &[u8] = b"not the key of this server";
/// More lines than fit into a pipe of 64 KiB.
const LOGINS: usize = 2000;

fn fail_logins(server: &Server) {
    for _ in 0..LOGINS {
        let mut peer = Peer::connect(server);
        peer.answer_challenge(WRONG_KEY);
        assert_eq!(peer.rest(), b"\0\0\0\x09#FAILURE#");
    }
}

fn terminate(server: &Server) {
    let id = server.process.lock().expect("no test has panicked").child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().expect("kill runs").success());
}

/// Waits for the end of the server; whether it succeeded.
fn has_ended_well(server: &Server) -> Option<bool> {
    wait_until(|| {
        let mut process = server.process.lock().expect("no test has panicked");
        process.child.try_wait().expect("it is our child")
    })
    .map(|status| status.success())
}

/// An output that is full and stays so as long as the reader lives.
fn full_pipe() -> (PipeReader, Stdio) {
    let (reader, mut writer) = io::pipe().expect("there are pipes");
    let output = writer.try_clone().expect("there are descriptors");
    // It goes on until the reader is dropped.
    thread::spawn(move || while writer.write_all(&[b'.'; 64 << 10]).is_ok() {});
    (reader, output.into())
}

#[test]
fn outputs_that_nobody_reads_stop_nobody() {
    let ((out, stdout), (err, stderr)) = (full_pipe(), full_pipe());
    let options = ["--log", "trace"];
    let server = Server::with_outputs("127.0.0.1:0", Key::Bytes(KEY), &options, stdout, stderr)
        .unwrap_or_else(|why| panic!("{why}"));
    let honest = Honest::beside(&server);
    fail_logins(&server);
    let waited = honest.told("failed logins, and nobody reads the log");
    assert!(waited.longest < Duration::from_secs(5));
    drop(honest);
    terminate(&server);
    assert_eq!(has_ended_well(&server), Some(true));
    drop((out, err));
}

#[test]
fn names_that_turn_text_around_are_escaped_in_tables_and_in_the_log() {
    let server = Server::with_options(&["--log", "debug", "--log-json"]);
    let name = "a\u{202e}b\u{2028}c".as_bytes();
    let name = [&b"X"[..], &[9, 0, 0, 0], name].concat();
    assert_is(&Peer::control(&server, "create", std::slice::from_ref(&name)), "#RETURN");
    let mut session = Peer::login(&server);
    assert_is(&session.ask(&request(None, "accept_connection", &[name])), "#RETURN");
    let address = format!("127.0.0.1:{}", server.port());
    let table = Command::new(binary())
        .args(["ls", "--connect", &address, "--authkey-file"])
        .arg(server.key_file())
        .output()
        .expect("the command runs");
    let table = String::from_utf8(table.stdout).expect("it is text");
    assert!(table.contains(r"a\u202eb\u2028c"), "{table}");
    drop(session);
    let process = server.process.lock().expect("no test has panicked");
    let line = process.errors.iter().find(|line| line.contains("\"session\":"));
    assert!(line.as_ref().is_some_and(|line| line.contains(r"a\u202eb\u2028c")), "{line:?}");
}

#[test]
fn failed_logins_are_logged_at_a_limited_rate_and_counted() {
    let server = Server::with_options(&[]);
    fail_logins(&server);
    terminate(&server);
    assert_eq!(has_ended_well(&server), Some(true));
    let process = server.process.lock().expect("no test has panicked");
    let lines: Vec<_> = process.errors.iter().collect();
    assert!(lines.len() < 50, "{} lines", lines.len());
    let single = lines.iter().filter(|line| line.contains("handshake failed")).count();
    let left_out = lines.iter().filter_map(|line| {
        line.split_once("more=").and_then(|(_, rest)| rest.split(' ').next()?.parse::<usize>().ok())
    });
    assert_eq!(single + left_out.sum::<usize>(), LOGINS, "{}", lines.join("\n"));
}
