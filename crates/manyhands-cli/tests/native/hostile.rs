//! Bytes that no client would send, with an honest client of the other protocol beside them: whoever
//! sent them is told what is wrong, and nobody else is disturbed.

use std::time::Duration;

use crate::honest::Honest;
use crate::peer::Peer;
use crate::raw::{
    ADDED, DONE, GET, NEVER, OPEN, PING, PUT, Raw, SETTLE, SETTLED, SIZE, TASKS, frame, get_of,
    header, hello, item,
};
use crate::support::{Server, announce, wait_until};

const CREDIT: u8 = 0x06;
const ERROR: u8 = 0xff;

const NO_TASK_CAME: u16 = 1;
const STALE: u16 = 5;
const MALFORMED: u16 = 14;
const UNKNOWN_OP: u16 = 15;
const TOO_LONG: u16 = 16;
const ID_IN_USE: u16 = 17;
const NO_SUCH_HANDLE: u16 = 18;
const HANDLE_IN_USE: u16 = 19;
const TOO_MUCH_CREDIT: u16 = 20;
const TOO_MANY_PENDING: u16 = 22;

impl Raw {
    /// Sends what must be refused, in this way, and sees that the session goes on. What was said.
    fn refused(&mut self, bytes: &[u8], code: u16, id: u32) -> String {
        let reply = self.ask(bytes);
        let text = String::from_utf8_lossy(&reply.body[4..]).into_owned();
        assert_eq!(
            (reply.op, reply.id, &reply.body[..2]),
            (ERROR, id, &code.to_le_bytes()[..]),
            "{text}"
        );
        self.goes_on();
        text
    }
}

#[test]
fn who_speaks_no_version_of_ours_is_told_so() {
    let server = Server::start(&[]);
    for (oldest, newest) in [(2, 9), (0, 0), (9, 2)] {
        let mut peer = Peer::login(&server);
        let answer = peer.ask(&hello(oldest, newest));
        assert!(answer.starts_with(b"\0mnative\0\0"), "{}", answer.escape_ascii());
        let text = String::from_utf8(answer[10..].to_vec()).unwrap();
        assert!(text.contains("version"), "{text}");
        assert_eq!(peer.frame(), None, "the connection ends");
    }
    for bad in [
        &b"\0mnative"[..],
        b"\0mnative\x01\0\x01\0\x09\0\0\0",
        b"\0mnative\x01\0\x01\0\x05\0\xff\xff",
    ] {
        let mut peer = Peer::login(&server);
        let answer = peer.ask(bad);
        assert!(answer.starts_with(b"\0mnative\0\0"), "{}", answer.escape_ascii());
        assert_eq!(peer.frame(), None, "the connection ends");
    }
    Raw::connect(&server).goes_on();
}

#[test]
fn what_is_no_request_is_refused_and_the_session_goes_on() {
    let server = Server::start(&[]);
    let honest = Honest::beside(&server);
    let mut raw = Raw::with(&server, "tasks");
    for op in [0, 0x14, 0x7f, DONE, TASKS, ERROR] {
        let text = raw.refused(&frame(op, 1, 7, 0, b"anything"), UNKNOWN_OP, 7);
        assert!(text.contains(&format!("{op:02x}")), "{text}");
    }
    let text = raw.refused(&frame(GET, 1, 8, 0, &[0; 23]), MALFORMED, 8);
    assert!(text.contains("max_bytes needs 4 bytes at byte 20"), "{text}");
    raw.refused(&frame(GET, 1, 9, 0, &[0; 25]), MALFORMED, 9);
    raw.refused(&frame(PING, 0, 10, 1, b""), MALFORMED, 10);
    raw.refused(&frame(OPEN, 2, 11, 0, b"\xff"), MALFORMED, 11);
    raw.refused(&frame(OPEN, 1, 12, 0, b"others"), HANDLE_IN_USE, 12);
    let beyond = u16::try_from(raw.limits[3]).unwrap();
    raw.refused(&frame(OPEN, beyond, 13, 0, b"tasks"), HANDLE_IN_USE, 13);
    raw.refused(&frame(SIZE, 9, 14, 0, b""), NO_SUCH_HANDLE, 14);
    // One bad item keeps out those before it.
    let items = [&[0; 8][..], &item(b"a"), &item(b"b"), &[0, 0, 0, b'?', 0, 0, 0, 0]].concat();
    let text = raw.refused(&frame(PUT, 1, 15, 3, &items), MALFORMED, 15);
    assert!(text.starts_with("item 2: codec"), "{text}");
    let fewer = [&[0; 8][..], &item(b"a")].concat();
    raw.refused(&frame(PUT, 1, 16, 2, &fewer), MALFORMED, 16);
    raw.refused(&frame(PUT, 1, 17, 0, &fewer), MALFORMED, 17);
    let pickle = [&[0; 8][..], &[0, 0, 0, b'P', 3, 0, 0, 0], b"\x80\x02."].concat();
    let text = raw.refused(&frame(PUT, 1, 18, 1, &pickle), MALFORMED, 18);
    assert!(text.contains("item 0: the pickle at byte 16"), "{text}");
    assert_eq!(raw.qsize(), 0);
    honest.goes_on(10);
}

#[test]
fn what_is_too_long_is_passed_over() {
    let server = Server::with_options(&["--frame-bytes-max", "65536"]);
    let honest = Honest::beside(&server);
    let mut raw = Raw::with(&server, "tasks");
    assert_eq!(raw.limits[0], 65536);
    let long = [&[0; 8][..], &item(&[7; 1 << 20])].concat();
    raw.refused(&frame(PUT, 1, 7, 1, &long), TOO_LONG, 7);
    let text = raw.refused(&frame(PUT, 1, 8, raw.limits[1] + 1, &[0; 8]), TOO_LONG, 8);
    assert!(text.contains(&raw.limits[1].to_string()), "{text}");
    let announced = frame(PUT, 1, 9, raw.limits[1], &[0; 8]);
    raw.refused(&announced, MALFORMED, 9);
    assert_eq!(raw.qsize(), 0);
    // Four gigabytes are announced, and do not come.
    raw.peer.send(&header(u32::MAX, PUT, 1, 10, 1));
    raw.peer.send(&[0; 1 << 16]);
    honest.goes_on(10);
    assert!(server.resident_kib().is_none_or(|kib| kib < 100 << 10));
}

#[test]
fn ids_and_credit_are_bounded() {
    let server = Server::start(&[]);
    let mut raw = Raw::with(&server, "tasks");
    let [_, _, pending_max, _, credit_max] = raw.limits;
    raw.peer.send(&frame(GET, 1, 7, 0, &get_of(NEVER, 1)));
    raw.refused(&frame(GET, 1, 7, 0, &get_of(NEVER, 1)), ID_IN_USE, 7);
    for id in 100..99 + pending_max {
        raw.peer.send(&frame(GET, 1, id, 0, &get_of(NEVER, 1)));
    }
    let text = raw.refused(&frame(GET, 1, 8, 0, &get_of(NEVER, 1)), TOO_MANY_PENDING, 8);
    assert!(text.contains(&pending_max.to_string()), "{text}");
    drop(raw);

    let mut raw = Raw::with(&server, "tasks");
    let credit = |credit: u32| [&NEVER[..], &credit.to_le_bytes()].concat();
    raw.refused(&frame(CREDIT, 1, 8, 0, &credit(credit_max + 1)), TOO_MUCH_CREDIT, 8);
    raw.peer.send(&frame(CREDIT, 1, 9, 0, &credit(credit_max - 1)));
    raw.goes_on();
    // An error ends it.
    raw.refused(&frame(CREDIT, 1, 9, 0, &credit(2)), TOO_MUCH_CREDIT, 9);
    let put = [&[0; 8][..], &item(b"a")].concat();
    assert_eq!(raw.ask(&frame(PUT, 1, 10, 1, &put)).op, ADDED);
    // Once it has been noticed that the one before has left.
    assert!(wait_until(|| (raw.qsize() == 1).then_some(())).is_some());
}

#[test]
fn tokens_that_nobody_gave_out_settle_nothing() {
    let server = Server::start(&[]);
    let mut raw = Raw::with(&server, "tasks");
    let put = [&[0; 8][..], &item(b"a"), &item(b"b")].concat();
    assert_eq!(raw.ask(&frame(PUT, 1, 7, 2, &put)).op, ADDED);
    let mut leasing = frame(GET, 1, 8, 0, &get_of([0; 8], 1));
    leasing[5] = 1;
    let tasks = raw.ask(&leasing);
    assert_eq!((tasks.op, tasks.count, tasks.body[0]), (TASKS, 1, 1));
    let token = &tasks.body[3..31];
    let ack = |token: &[u8]| [&[0; 4][..], token, &[0; 8]].concat();
    let mut forged = token.to_vec();
    forged[20] ^= 1;
    let zeros = [0; 28];
    let acks = [&[0; 8][..], &ack(&forged), &ack(&zeros), &ack(token), &ack(&[0xff; 28])].concat();
    let settled = raw.ask(&frame(SETTLE, 1, 9, 4, &acks));
    let stale = STALE.to_le_bytes();
    let codes = [stale, stale, [0; 2], stale].concat();
    assert_eq!((settled.op, settled.count, settled.body), (SETTLED, 4, codes));
    assert_eq!(raw.qsize(), 1);
    let nothing = raw.ask(&frame(GET, 9, 10, 0, &get_of([0; 8], 1)));
    assert_eq!((nothing.op, &nothing.body[..2]), (ERROR, &NO_SUCH_HANDLE.to_le_bytes()[..]));
}

#[test]
fn half_a_frame_and_then_silence_ends_the_session_alone() {
    let server = Server::with_options(&["--frame-timeout", "1"]);
    let honest = Honest::beside(&server);
    let mut other = Raw::with(&server, "tasks");
    let put = [&[0; 8][..], &item(b"a")].concat();
    assert_eq!(other.ask(&frame(PUT, 1, 7, 1, &put)).op, ADDED);
    let mut stalled = Raw::with(&server, "tasks");
    let mut leasing = frame(GET, 1, 8, 0, &get_of([0; 8], 1));
    leasing[5] = 1;
    assert_eq!(stalled.ask(&leasing).op, TASKS);
    let whole = frame(PUT, 1, 9, 1, &put);
    stalled.peer.send(&whole[..whole.len() - 1]);
    assert_eq!(stalled.peer.rest(), b"", "it is cut off");
    // What it had is another's.
    let mut leasing = frame(GET, 1, 10, 0, &get_of(NEVER, 1));
    leasing[5] = 1;
    assert_eq!(other.ask(&leasing).op, TASKS);
    let empty = other.ask(&frame(GET, 1, 11, 0, &get_of([0; 8], 1)));
    assert_eq!((empty.op, &empty.body[..2]), (ERROR, &NO_TASK_CAME.to_le_bytes()[..]));
    honest.goes_on(10);
}

#[test]
fn a_client_that_never_reads_takes_no_memory_and_loses_nothing() {
    const MEMORY: u64 = 64 << 20;
    let memory = MEMORY.to_string();
    let options =
        ["--memory-bytes-max", &memory, "--frame-timeout", "2", "--queue", "tasks,backoff=0"];
    let options = [&options[..], &["--queue", "honest"]].concat();
    let server = Server::with_options(&options);
    let honest = Honest::beside(&server);
    let mut other = Raw::with(&server, "tasks");
    let items = item(&[7; 100_000]).repeat(50);
    for id in [7, 8] {
        assert_eq!(other.ask(&frame(PUT, 1, id, 50, &[&[0; 8][..], &items].concat())).op, ADDED);
    }
    let before = server.resident_kib();
    // It asks for all of them, and looks at none.
    let silent: Vec<_> = (0..5)
        .map(|_| {
            let mut silent = Raw::with(&server, "tasks");
            for id in 10..30 {
                let mut leasing = frame(GET, 1, id, 0, &get_of(NEVER, 1));
                leasing[5] = 1;
                silent.peer.send(&leasing);
                silent.peer.send(&frame(CREDIT, 1, 9, 0, &[&NEVER[..], &[1, 0, 0, 0]].concat()));
                silent.peer.send(&frame(SIZE, 1, 100 + id, 0, b""));
            }
            silent
        })
        .collect();
    let waited = honest.told("native clients that never read");
    assert!(waited.longest < Duration::from_secs(5), "{waited:?}");
    announce(&format!("{before:?} KiB before, {:?} KiB after", server.resident_kib()));
    assert!(server.resident_kib().is_none_or(|kib| kib * 1024 < MEMORY * 5 / 4 + (32 << 20)));
    drop(silent);
    let all = wait_until(|| (other.qsize() == 100).then_some(()));
    assert!(all.is_some(), "what they had comes back");
    honest.goes_on(10);
}
