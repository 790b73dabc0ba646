//! Floods before login, reflections, and newcomers at the limit of connections.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use crate::support::{KEY, write_secret};

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
    Command::new(env!("CARGO_BIN_EXE_manyhands"))
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
    drop((asked, oracle));
    let error = error_of(second);
    assert!(error.contains("challenge of another client"), "{error}");
    error_of(first);
}

#[test]
fn a_server_that_knows_only_md5_is_refused_when_told() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let key_file = dir.path().join("key");
    write_secret(&key_file, KEY);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    for (options, is_answered) in [(&[][..], true), (&["--no-md5"][..], false)] {
        let client = ls(&listener, &key_file, options);
        let mut old = Rogue::accept(&listener);
        old.say(&[&b"#CHALLENGE#"[..], &[7; 20]].concat());
        let answer = old.hear();
        assert_eq!(answer.len() == 16, is_answered, "{}", answer.escape_ascii());
        drop(old);
        let error = error_of(client);
        assert_eq!(error.contains("only HMAC-MD5"), !is_answered, "{error}");
    }
}
