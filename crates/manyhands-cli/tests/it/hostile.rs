//! Bad input: whoever sends it gets a clear error or is cut off, everybody else goes on, memory stays bounded.

use std::sync::mpsc;
use std::thread;

use crate::peer::{Peer, assert_is, blob, has, request, request_of, text};
use crate::support::{KEY, Server};

/// What all the hostility of one test may cost the server, in KiB.
const MEMORY_KIB_MAX: u64 = 48 * 1024;

/// A client in the middle of work: it waits in `get` while others misbehave.
struct Bystander<'a> {
    server: &'a Server,
    session: Peer,
    ident: String,
    resident_kib: Option<u64>,
}

impl<'a> Bystander<'a> {
    fn of(server: &'a Server) -> Self {
        let ident = Peer::create(server, "bystander");
        let mut session = Peer::session(server);
        session.send_frame(&request(Some(&ident), "get", &[]));
        Self { server, session, ident, resident_kib: server.resident_kib() }
    }

    /// Gets what it waited for, waits again; and the server has not swollen.
    fn goes_on(&mut self) {
        let mut other = Peer::session(self.server);
        assert_is(&other.ask(&request(Some(&self.ident), "put", &[text("still here")])), "#RETURN");
        let got = self.session.frame().expect("the waiting session lives");
        assert!(has(&got, "#RETURN") && has(&got, "still here"), "{}", got.escape_ascii());
        self.session.send_frame(&request(Some(&self.ident), "get", &[]));
        if let (Some(before), Some(now)) = (self.resident_kib, self.server.resident_kib()) {
            assert!(now < before + MEMORY_KIB_MAX, "memory grew from {before} to {now} KiB");
        }
    }
}

fn server() -> Server {
    Server::with_options(&[
        "--queue",
        "tasks",
        "--queue",
        "bystander",
        "--queue",
        "small,maxsize=1",
    ])
}

/// Fails unless the answer is an error or a hang-up.
fn assert_refused(reply: Option<&[u8]>, what: &str) {
    if let Some(reply) = reply {
        let refused = has(reply, "#TRACEBACK") || has(reply, "#ERROR");
        assert!(refused, "{what} was not refused: {}", reply.escape_ascii());
        assert!(
            !has(reply, "/src/") && !has(reply, ".rs"),
            "a path of the server: {}",
            reply.escape_ascii()
        );
    }
}

#[test]
fn nothing_but_the_challenge_is_said_before_login() {
    let server = server();
    let mut peer = Peer::connect(&server);
    let challenge = peer.frame().expect("the server speaks first");
    assert!(challenge.starts_with(b"#CHALLENGE#{sha256}"), "{}", challenge.escape_ascii());
    assert_eq!(challenge.len(), 11 + 8 + 40);
    assert_eq!(peer.last_words().escape_ascii().to_string(), "");
}

#[test]
fn a_wrong_key_gets_the_word_failure_and_nothing_more() {
    let server = server();
    let mut bystander = Bystander::of(&server);
    for key in [&b"wrong"[..], b"", &KEY[1..], &[KEY, b"!"].concat()] {
        let mut peer = Peer::connect(&server);
        peer.answer_challenge(key);
        assert_eq!(peer.rest(), b"\0\0\0\x09#FAILURE#");
    }
    bystander.goes_on();
}

#[test]
fn foreign_protocols_are_cut_off_in_silence() {
    let server = server();
    let mut bystander = Bystander::of(&server);
    let greetings: [&[u8]; 7] = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        &[0xff; 64],
        &[0x80; 300],
        b"\r\n\r\n\r\n",
    ];
    for greeting in greetings {
        let mut peer = Peer::connect(&server);
        peer.frame().expect("the server speaks first");
        peer.send(greeting);
        assert_eq!(peer.rest().escape_ascii().to_string(), "", "after {}", greeting.escape_ascii());
    }
    bystander.goes_on();
}

#[test]
fn a_frame_of_257_bytes_before_login_is_refused() {
    let server = server();
    let mut bystander = Bystander::of(&server);
    let mut peer = Peer::connect(&server);
    peer.frame().expect("the server speaks first");
    peer.send(&257_u32.to_be_bytes());
    assert_eq!(peer.rest(), b"");
    bystander.goes_on();
}

#[test]
fn our_own_challenge_must_make_sense() {
    let server = server();
    let mut bystander = Bystander::of(&server);
    let nonsense: [&[u8]; 5] = [
        b"#CHALLENGE#",
        b"#CHALLENGE#short",
        b"#CHALLENGE#{crc32}0123456789012345678901234567890123456789",
        b"hello",
        b"",
    ];
    for challenge in nonsense {
        let mut peer = Peer::connect(&server);
        peer.answer_challenge(KEY);
        assert_eq!(peer.frame().as_deref(), Some(&b"#WELCOME#"[..]));
        peer.send_frame(challenge);
        let words = peer.rest();
        assert!(!has(&words, "#RETURN"), "{}", words.escape_ascii());
    }
    bystander.goes_on();
}

#[test]
fn impossible_lengths_end_the_session() {
    let server = Server::with_options(&["--frame-timeout", "1"]);
    let mut bystander = Bystander::of(&server);
    let long = |length: u64| [&[0xff; 4][..], &length.to_be_bytes()].concat();
    for header in [
        vec![0xff, 0xff, 0xff, 0xfe],
        vec![0x80, 0, 0, 0],
        long(u64::MAX),
        long(1 << 63),
        long(1 << 40),
    ] {
        let mut peer = Peer::session(&server);
        peer.send(&header);
        let words = peer.rest();
        assert!(!has(&words, "#RETURN"), "{}", words.escape_ascii());
    }
    bystander.goes_on();
}

#[test]
fn announced_bytes_are_not_allocated() {
    let server = server();
    let mut bystander = Bystander::of(&server);
    let mut peers: Vec<_> = (0..20).map(|_| Peer::session(&server)).collect();
    for peer in &mut peers {
        peer.send(&0x7fff_ffff_u32.to_be_bytes());
        peer.send(b"\x80\x02(");
    }
    bystander.goes_on();
}

#[test]
fn the_long_form_of_a_length_is_read() {
    let server = server();
    let ident = Peer::create(&server, "tasks");
    let body = request(Some(&ident), "qsize", &[]);
    let mut peer = Peer::session(&server);
    peer.send(&[&[0xff; 4], &(body.len() as u64).to_be_bytes()[..], &body].concat());
    assert_is(&peer.frame().expect("the server replies"), "#RETURN");
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let server = server();
    let mut bystander = Bystander::of(&server);
    let mut peer = Peer::login(&server);
    let body = request(None, "dummy", &[]);
    let length = u32::try_from(body.len()).expect("short").to_be_bytes();
    for byte in length.iter().chain(&body) {
        peer.send(&[*byte]);
    }
    assert_is(&peer.frame().expect("the server replies"), "#RETURN");
    bystander.goes_on();
}

#[test]
fn hostile_pickles_are_refused() {
    let server = server();
    let mut bystander = Bystander::of(&server);
    let ident = Peer::create(&server, "tasks");
    for (what, body) in hostile_pickles(&ident) {
        let mut session = Peer::session(&server);
        session.send_frame(&body);
        assert_refused(session.frame().as_deref(), what);
        let mut control = Peer::login(&server);
        control.send_frame(&body);
        assert_refused(control.frame().as_deref(), what);
        bystander.goes_on();
    }
    let mut session = Peer::session(&server);
    assert!(
        has(&session.ask(&request(Some(&ident), "qsize", &[])), "K\0"),
        "nothing of it was put"
    );
}

/// What no honest client sends, each as it would be put.
fn hostile_pickles(ident: &str) -> Vec<(&'static str, Vec<u8>)> {
    let ident = text(ident);
    let put = |payload: &[u8]| request_of(&ident, &text("put"), payload, b"}");
    let many = |opcode: &[u8]| opcode.repeat(2_000_000);
    vec![
        ("an empty pickle", b"".to_vec()),
        ("a lone STOP", b".".to_vec()),
        ("no STOP", b"\x80\x02N".to_vec()),
        ("text", b"hello, server".to_vec()),
        ("a number", b"\x80\x02K\x01.".to_vec()),
        ("three values", b"\x80\x02(NU\x05dummy)t.".to_vec()),
        ("five values", b"\x80\x02(NU\x05dummy)}Nt.".to_vec()),
        ("a list for a request", b"\x80\x02](NU\x05dummy)}e.".to_vec()),
        ("a method that is a number", request_of(&ident, b"K\x05", b"", b"}")),
        ("arguments that are a number", [b"\x80\x02(", &ident[..], b"U\x03putK\x05}t."].concat()),
        ("keywords that are a number", request_of(&ident, &text("put"), b"K\x01", b"K\x01")),
        ("a keyword that is a number", request_of(&ident, &text("put"), b"K\x01", b"}K\x01K\x02s")),
        ("an unknown opcode", put(b"\xff")),
        ("a truncated text", b"\x80\x02(U\xffabc".to_vec()),
        ("bytes after STOP", [put(b"K\x01"), b"N.".to_vec()].concat()),
        ("two values at STOP", b"\x80\x02N(NU\x05dummy)}t.".to_vec()),
        ("an unknown protocol", b"\x80\x06(NU\x05dummy)}t.".to_vec()),
        ("a second PROTO", put(b"\x80\x02K\x01")),
        ("a stack underflow", put(b"0000000000")),
        ("a mark that is not there", b"\x80\x02ttt.".to_vec()),
        ("marks without end", put(&many(b"("))),
        ("nested tuples on nothing", many(b"\x85")),
        ("a LONG4 of 2 GiB", put(b"\x8b\xff\xff\xff\x7f\x01")),
        ("a LONG4 of -1", put(b"\x8b\xff\xff\xff\xff\x01")),
        ("BINBYTES of 4 GiB", put(b"B\xff\xff\xff\xffx")),
        ("BINBYTES8 of 2**63", put(b"\x8e\0\0\0\0\0\0\0\x80x")),
        ("BINUNICODE8 of 2**64 - 1", put(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffx")),
        ("BINSTRING of -1", put(b"T\xff\xff\xff\xffx")),
        ("a FRAME of 2**64 - 1", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff(N.".to_vec()),
        ("a GET of nothing", put(b"h\x05")),
        ("a GET of a number without end", put(&[b"g", &b"9".repeat(100_000)[..], b"\n"].concat())),
        ("a GET that is no number", put(b"gabc\n")),
        ("a persistent id", put(b"Pfile:///etc/passwd\n")),
        ("a binary persistent id", put(b"K\x01Q")),
        ("an out-of-band buffer", put(b"\x97")),
        ("an ident that is an object", request_of(b"cos\nsystem\n", &text("put"), b"K\x01", b"}")),
    ]
}

#[test]
fn costly_pickles_are_kept_as_they_are_or_refused() {
    // None of these is illegal, and none may cost more than its own length.
    let server = server();
    let mut bystander = Bystander::of(&server);
    // Not a bounded queue: what a session takes along comes back a second later, on a slow machine
    // before the next put.
    let ident = Peer::create(&server, "tasks");
    let deep = [b"]".repeat(500_000), b"a".repeat(499_999)].concat();
    let doubling = [b"]q\0".to_vec(), b"(h\0h\0h\0h\0h\0h\0h\0h\0le".repeat(1_000)].concat();
    let memos: Vec<u8> =
        (0..200_000_u32).flat_map(|n| [&b"r"[..], &(n + 9).to_le_bytes()].concat()).collect();
    let far_memo = b"K\x01r\xff\xff\xff\xff".to_vec();
    let duplicates = [b"(N".to_vec(), b"2".repeat(1_000_000), b"t".to_vec()].concat();
    for payload in [deep, [b"N".to_vec(), memos].concat(), far_memo, duplicates, doubling] {
        let mut session = Peer::session(&server);
        let body = request_of(&text(&ident), &text("put"), &payload, b"}");
        session.send_frame(&body);
        if session.frame().is_some_and(|reply| has(&reply, "#RETURN")) {
            assert_is(&session.ask(&request(Some(&ident), "get", &[])), "#RETURN");
        }
        bystander.goes_on();
    }
}

#[test]
fn nothing_that_a_client_sends_is_executed() {
    let server = server();
    let ident = Peer::create(&server, "tasks");
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let trace = dir.path().join("trace");
    let command =
        format!("cos\nsystem\n(U{}touch {}tR", char::from(6 + path_len(&trace)), trace.display());
    let mut session = Peer::session(&server);
    for method in ["put", "put_nowait", "get", "qsize", "__repr__", "#GETVALUE"] {
        session.ask(&request_of(&text(&ident), &text(method), command.as_bytes(), b"}"));
    }
    Peer::login(&server).ask(&request_of(b"N", &text("create"), command.as_bytes(), b"}"));
    assert!(!trace.exists());
}

fn path_len(path: &std::path::Path) -> u8 {
    u8::try_from(path.as_os_str().len()).expect("temporary paths are short")
}

#[test]
fn calls_that_make_no_sense_get_their_error_and_the_session_goes_on() {
    let server = server();
    let mut bystander = Bystander::of(&server);
    let ident = Peer::create(&server, "tasks");
    let id = Some(ident.as_str());
    let mut session = Peer::session(&server);
    let one = || b"K\x01".to_vec();
    assert_is(&session.ask(&request(Some("nobody"), "get", &[])), "#TRACEBACK");
    assert_is(&session.ask(&request(None, "get", &[])), "#TRACEBACK");
    assert_is(&session.ask(&request(Some("0"), "get", &[])), "#TRACEBACK");
    assert_is(&session.ask(&request(id, "nosuch", &[])), "#TRACEBACK");
    assert_is(&session.ask(&request(id, "__class__", &[])), "#TRACEBACK");
    for (method, args) in
        [("get", vec![one(), one(), one()]), ("put", vec![]), ("qsize", vec![one()])]
    {
        let reply = session.ask(&request(id, method, &args));
        assert!(has(&reply, "#ERROR") && has(&reply, "TypeError"), "{}", reply.escape_ascii());
    }
    assert_is(&session.ask(&request(id, "qsize", &[])), "#RETURN");
    bystander.goes_on();
}

#[test]
fn control_calls_that_make_no_sense_get_a_traceback() {
    let server = server();
    let mut bystander = Bystander::of(&server);
    for (name, args) in [
        ("nosuch", vec![]),
        ("create", vec![]),
        ("create", vec![text("nosuch")]),
        ("create", vec![text("")]),
        ("create", vec![b"K\x01".to_vec()]),
        ("incref", vec![text("nobody")]),
        ("decref", vec![text("nobody")]),
        ("incref", vec![]),
        ("accept_connection", vec![]),
        ("get_methods", vec![]),
        ("get_methods", vec![b"K\x01".to_vec()]),
        ("dummy", vec![b"K\x01".to_vec()]),
    ] {
        let reply = Peer::control(&server, name, &args);
        assert_is(&reply, "#TRACEBACK");
        assert_refused(Some(&reply), name);
    }
    bystander.goes_on();
}

#[test]
fn names_made_at_first_use_are_bounded() {
    let server = Server::with_options(&[]);
    let mut bystander = Bystander::of(&server);
    for name in ["", "a\nb", "\u{7f}", "../etc", &"n".repeat(250)] {
        assert_refused_or_made(&Peer::control(&server, "create", &[text(name)]));
    }
    bystander.goes_on();
}

fn assert_refused_or_made(reply: &[u8]) {
    assert!(has(reply, "#RETURN") || has(reply, "#TRACEBACK"), "{}", reply.escape_ascii());
}

#[test]
fn a_body_over_the_limit_is_refused_with_both_numbers_and_the_session_goes_on() {
    let server = Server::with_options(&["--frame-bytes-max", "100000"]);
    let mut bystander = Bystander::of(&server);
    let ident = Peer::create(&server, "tasks");
    let mut session = Peer::session(&server);
    let body = request(Some(&ident), "put", &[blob(&[b'x'; 300_000])]);
    let reply = session.ask(&body);
    assert!(has(&reply, "#ERROR") && has(&reply, "ValueError"), "{}", reply.escape_ascii());
    assert!(has(&reply, "100000"), "the limit: {}", reply.escape_ascii());
    assert!(has(&reply, &body.len().to_string()), "the size: {}", reply.escape_ascii());
    assert!(has(&session.ask(&request(Some(&ident), "qsize", &[])), "K\0"), "nothing was put");
    assert_is(&session.ask(&request(Some(&ident), "put", &[blob(&[b'x'; 90_000])])), "#RETURN");
    bystander.goes_on();
}

#[test]
fn half_a_frame_and_then_silence_is_cut_off() {
    let server = Server::with_options(&["--frame-timeout", "1", "--handshake-timeout", "1"]);
    let mut bystander = Bystander::of(&server);
    let mut silent = Peer::connect(&server);
    silent.frame().expect("the server speaks first");
    let mut before_login = Peer::connect(&server);
    before_login.frame().expect("the server speaks first");
    before_login.send(b"\0\0\0\x20half");
    let mut without_request = Peer::login(&server);
    let mut in_session = Peer::session(&server);
    in_session.send(b"\0\0\x10\0\x80\x02(");
    for peer in [&mut silent, &mut before_login, &mut without_request, &mut in_session] {
        assert_eq!(peer.rest().escape_ascii().to_string(), "");
    }
    bystander.goes_on();
}

#[test]
fn many_idle_connections_keep_nobody_from_work() {
    let server = server();
    let mut bystander = Bystander::of(&server);
    let mut idle: Vec<_> = (0..100).map(|_| Peer::connect(&server)).collect();
    idle.extend((0..50).map(|_| Peer::session(&server)));
    bystander.goes_on();
    assert_eq!(idle.len(), 150);
}

#[test]
fn silent_strangers_do_not_keep_others_out() {
    let server = Server::with_options(&["--connections-max", "40", "--queue", "tasks"]);
    let strangers: Vec<_> = (0..60).map(|_| Peer::connect(&server)).collect();
    // Far sooner than the strangers' time for the handshake is up, or the peer's patience ends.
    let ident = Peer::create(&server, "tasks");
    assert_is(&Peer::session(&server).ask(&request(Some(&ident), "qsize", &[])), "#RETURN");
    drop(strangers);
}

#[test]
fn references_of_others_cannot_be_named() {
    let server = server();
    let mut bystander = Bystander::of(&server);
    let ident = Peer::create(&server, "tasks");
    let parts: Vec<_> = ident.split('.').collect();
    let [queue, serial, seal] = parts[..] else { panic!("an ident has three parts: {ident}") };
    let serial = u64::from_str_radix(serial, 16).expect("a serial is hexadecimal");
    let guesses = [0, serial - 1, serial + 1].map(|serial| format!("{queue}.{serial:x}.{seal}"));
    for guess in guesses.iter().map(String::as_str).chain(["", "1", "1.2", "zz.1.1", "-1.1.1"]) {
        for call in ["incref", "decref"] {
            let reply = Peer::control(&server, call, &[text(guess)]);
            assert_is(&reply, "#TRACEBACK");
            assert!(has(&reply, "does not know this object"), "{guess}: {}", reply.escape_ascii());
        }
    }
    bystander.goes_on();
}

#[test]
fn puts_that_wait_leave_memory_for_the_requests_of_others() {
    let options = ["--memory-bytes-max", "64000000", "--frame-bytes-max", "8000000"];
    let queues = ["--queue", "small,maxsize=1", "--queue", "bystander"];
    let server = Server::with_options(&[&options[..], &queues[..]].concat());
    let (small, other) = (Peer::create(&server, "small"), Peer::create(&server, "bystander"));
    Peer::session(&server).ask(&request(Some(&small), "put", &[text("the one that fits")]));
    // Two of them are all that may wait at one time; which two, is chance.
    let large = &request(Some(&small), "put", &[blob(&[7; 6_000_000])]);
    let (said, answers) = mpsc::channel();
    thread::scope(|scope| {
        for mut peer in (0..4).map(|_| Peer::session(&server)) {
            let said = said.clone();
            scope.spawn(move || said.send(peer.ask(large)));
        }
        let answer = || answers.recv().expect("every call is answered");
        for _ in 0..2 {
            assert!(has(&answer(), "Full"));
        }
        let mut worker = Peer::session(&server);
        for _ in 0..3 {
            let result = request(Some(&other), "put", &[blob(&[1; 1_000_000])]);
            assert_is(&worker.ask(&result), "#RETURN");
        }
        for _ in 0..2 {
            worker.ask(&request(Some(&small), "get", &[]));
            assert_is(&answer(), "#RETURN");
        }
    });
}

#[test]
fn a_long_name_of_a_session_is_not_kept() {
    let server = server();
    let before = server.resident_kib();
    let name = [&b"T"[..], &60_000_i32.to_le_bytes(), &[b'x'; 60_000]].concat();
    let sessions: Vec<_> = (0..200)
        .map(|_| {
            let mut peer = Peer::login(&server);
            peer.send_frame(&request(None, "accept_connection", std::slice::from_ref(&name)));
            assert_is(&peer.frame().expect("the session begins"), "#RETURN");
            peer
        })
        .collect();
    if let (Some(before), Some(now)) = (before, server.resident_kib()) {
        let each = (now - before) / sessions.len() as u64;
        assert!(each < 24, "{each} KiB for each session");
    }
}
