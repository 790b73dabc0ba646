//! What stock clients once said to their own servers is answered by ours in the same way.
//!
//! `tests/fixtures/wire/VERSION.jsonl` holds conversations that `python/record.py` wrote down: so every
//! version is tested even where its Python is not installed.

use std::collections::HashMap;
use std::fs;

use bytes::Bytes;
use manyhands::wire::auth::{AuthKey, Handshake, NONCE_LEN, Step};
use manyhands::wire::pickle::{Call, Limits};
use serde_json::Value;

use crate::peer::{Peer, created_ident, has};
use crate::support::{Key, Server, repository};

/// One version's conversations.
struct Recording {
    version: String,
    key: Vec<u8>,
    queues: Vec<String>,
    lines: Vec<Line>,
}

/// A message, or the end of one direction.
struct Line {
    run: String,
    conn: u64,
    is_from_client: bool,
    /// Without its length prefix; `None` at the end.
    body: Option<Vec<u8>>,
}

/// Messages of a handshake: challenge, answer, welcome, both ways.
const HANDSHAKE_LEN: usize = 6;

#[test]
fn recorded_handshakes_are_answered_with_the_recorded_bytes() {
    for recording in recordings() {
        let mut handshakes = 0;
        for messages in recording.connections().filter(|messages| messages.len() >= HANDSHAKE_LEN) {
            for (challenge, answer) in [(messages[0], messages[1]), (messages[3], messages[4])] {
                assert_eq!(answer_to(challenge, &recording.key), answer, "{}", recording.version);
            }
            handshakes += 1;
        }
        assert!(handshakes > 10, "{} has {handshakes} handshakes", recording.version);
    }
}

#[test]
fn recorded_wrong_keys_are_not_ours() {
    for recording in recordings() {
        let refused =
            recording.connections_of("wrongkey").next().expect("the run is in the recording");
        assert_ne!(answer_to(refused[0], &recording.key), refused[1]);
        assert_eq!(refused[2], b"#FAILURE#");
    }
}

#[test]
fn recorded_requests_are_read() {
    for recording in recordings() {
        for messages in recording.connections() {
            // After the handshake, client and server take turns.
            for request in messages.iter().skip(HANDSHAKE_LEN).step_by(2) {
                let call = Call::parse(Bytes::copy_from_slice(request), &Limits::default())
                    .unwrap_or_else(|e| {
                        panic!("{}: {e}: {}", recording.version, request.escape_ascii())
                    });
                for argument in
                    call.args().iter().copied().chain(call.kwargs().map(|(_, value)| value))
                {
                    call.payload(&argument, &Limits::default())
                        .expect("every argument can be cut out");
                }
            }
        }
    }
}

#[test]
fn recorded_conversations_go_the_same_way_with_us() {
    for recording in recordings() {
        let options: Vec<_> =
            recording.queues.iter().flat_map(|queue| ["--queue", queue]).collect();
        let key = Key::Bytes(&recording.key);
        let server = Server::at("127.0.0.1:0", key, &options).expect("the server starts");
        let replies = replay(&recording, "calls", &server) + replay(&recording, "crash", &server);
        assert!(replies > 60, "{} has {replies} replies", recording.version);
    }
}

/// Says what the client said, in the order of the recording, and compares the kinds of the replies;
/// returns how many there were.
fn replay(recording: &Recording, run: &str, server: &Server) -> usize {
    let mut peers = HashMap::new();
    let mut said = HashMap::new();
    let mut idents = HashMap::new();
    let mut replies = 0;
    for line in recording.lines.iter().filter(|line| line.run == run) {
        let spoken: &mut usize = said.entry(line.conn).or_default();
        *spoken += 1;
        if *spoken <= HANDSHAKE_LEN {
            continue;
        }
        let Some(body) = &line.body else {
            if line.is_from_client {
                peers.remove(&line.conn);
            }
            continue;
        };
        let peer =
            peers.entry(line.conn).or_insert_with(|| Peer::login_with(server, &recording.key));
        if line.is_from_client {
            peer.send_frame(&with_our_idents(body, &idents));
            continue;
        }
        let reply = peer.frame().expect("the server replies");
        let context = || format!("{}: {}", recording.version, body.escape_ascii());
        assert_eq!(kind(&reply), kind(body), "{}", context());
        if let (Some(theirs), Some(ours)) = (ident_in(body), created_ident(&reply)) {
            idents.insert(theirs, ours);
        }
        replies += 1;
    }
    replies
}

/// What our side answers to a challenge.
fn answer_to(challenge: &[u8], key: &[u8]) -> Vec<u8> {
    let mut handshake = Handshake::client(AuthKey::new(key), true, [0; NONCE_LEN]);
    match handshake.receive(challenge) {
        Ok(Step::Send(answer)) => answer,
        other => panic!("no answer to {}: {other:?}", challenge.escape_ascii()),
    }
}

fn kind(reply: &[u8]) -> &'static str {
    let kinds = ["#RETURN", "#ERROR", "#TRACEBACK", "#UNSERIALIZABLE"];
    kinds.into_iter().find(|kind| has(reply, kind)).unwrap_or("no reply")
}

/// The ident in a reply of CPython to `create`: an address in hexadecimal.
fn ident_in(reply: &[u8]) -> Option<String> {
    if !has(reply, "task_done") {
        return None; // no exposed names: not a reply to create
    }
    let words = reply.split(|byte| !matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let ident = words.filter(|word| word.len() > 8).max_by_key(|word| word.len())?;
    Some(String::from_utf8_lossy(ident).into_owned())
}

/// The request with the recorded server's idents replaced by ours, lengths included.
fn with_our_idents(request: &[u8], idents: &HashMap<String, String>) -> Vec<u8> {
    let mut request = request.to_vec();
    for (theirs, ours) in idents {
        let (their_len, our_len) = (short(theirs), short(ours));
        for opcode in [&[b'U', their_len][..], &[0x8c, their_len], &[b'X', their_len, 0, 0, 0]] {
            let recorded = [opcode, theirs.as_bytes()].concat();
            let Some(at) = request.windows(recorded.len()).position(|part| part == recorded) else {
                continue;
            };
            request[at + 1] = our_len;
            let text = at + opcode.len();
            request.splice(text..text + theirs.len(), ours.bytes());
            stretch_frame(&mut request, i64::from(our_len) - i64::from(their_len));
        }
    }
    request
}

fn short(ident: &str) -> u8 {
    u8::try_from(ident.len()).expect("idents are short")
}

/// Corrects the length of the pickle's first FRAME, if it has one.
fn stretch_frame(pickle: &mut [u8], by: i64) {
    if pickle.get(2) == Some(&0x95) {
        let len = i64::from_le_bytes(pickle[3..11].try_into().expect("eight bytes")) + by;
        pickle[3..11].copy_from_slice(&len.to_le_bytes());
    }
}

impl Recording {
    /// The messages of each connection of each run, ends left out.
    fn connections(&self) -> impl Iterator<Item = Vec<&[u8]>> {
        ["calls", "crash"].into_iter().flat_map(|run| self.connections_of(run))
    }

    fn connections_of(&self, run: &'static str) -> impl Iterator<Item = Vec<&[u8]>> {
        let lines = move || self.lines.iter().filter(move |line| line.run == run);
        let count = lines().map(|line| line.conn).max().unwrap_or_default();
        (1..=count).map(move |conn| {
            lines()
                .filter(|line| line.conn == conn)
                .filter_map(|line| line.body.as_deref())
                .collect()
        })
    }

    fn read(text: &str) -> Self {
        let mut lines =
            text.lines().map(|line| -> Value { serde_json::from_str(line).expect("JSON") });
        let meta = lines.next().expect("the first line describes the recording");
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        Self {
            version: text(&meta["python"]),
            key: text(&meta["authkey"]).into_bytes(),
            queues: meta["queues"].as_array().expect("a list").iter().map(text).collect(),
            lines: lines.filter_map(|line| Line::read(&line)).collect(),
        }
    }
}

impl Line {
    /// `None` for an event that is no end.
    fn read(line: &Value) -> Option<Self> {
        let body = line["hex"].as_str().map(|hex| unhex(hex)[4..].to_vec());
        let direction = line["dir"].as_str().or(line["event"].as_str())?;
        (direction != "open").then(|| Self {
            run: line["run"].as_str().expect("a name").to_owned(),
            conn: line["conn"].as_u64().expect("a number"),
            is_from_client: direction.starts_with("c2s"),
            body,
        })
    }
}

fn unhex(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(&String::from_utf8_lossy(pair), 16).expect("hexadecimal"))
        .collect()
}

fn recordings() -> Vec<Recording> {
    let dir = repository().join("tests/fixtures/wire");
    let files = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())).flatten();
    let recordings: Vec<_> = files
        .map(|file| Recording::read(&fs::read_to_string(file.path()).expect("a text file")))
        .collect();
    assert!(!recordings.is_empty(), "no recordings in {}", dir.display());
    recordings
}
