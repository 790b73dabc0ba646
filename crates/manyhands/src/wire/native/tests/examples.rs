//! One frame of each kind, byte by byte, as `docs/native-protocol.md` has them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::wire::pickle::Payload;
use crate::wire::reply::QueueInfo;
use crate::wire::tasks::{Failure, Info, Peek, TaskState};
use crate::wire::token::LeaseToken;

const ROUTE: Route = Route { queue: 1, id: 7 };
const TOKEN: LeaseToken = LeaseToken { task: 5, attempt: 1, lease: 9, seal: 0x1122_3344_5566_7788 };

pub(super) fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/native-protocol.md");
    std::fs::read_to_string(path).unwrap()
}

/// The examples of the page, by their names: hexadecimal digits or a text in each line, up to `#`.
fn on_page() -> BTreeMap<String, Vec<u8>> {
    let page = page();
    let (_, examples) = page.split_once("\n## Examples\n").expect("the page has examples");
    let (_, examples) = examples.split_once("```text\n").expect("as text");
    let (examples, _) = examples.split_once("```").expect("with an end");
    let mut found = BTreeMap::<String, Vec<u8>>::new();
    let mut name = "";
    for line in examples.lines().map(|line| line.split('#').next().unwrap_or_default()) {
        match line.strip_prefix(' ').map(str::trim) {
            None if line.is_empty() => {}
            None => name = line.trim(),
            Some(bytes) => found.entry(name.into()).or_default().extend(written(bytes)),
        }
    }
    found
}

/// The bytes that a line of an example stands for.
fn written(line: &str) -> Vec<u8> {
    if let Some(text) = line.strip_prefix('"').and_then(|line| line.strip_suffix('"')) {
        return text.into();
    }
    let digits: String = line.split_whitespace().collect();
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(byte).collect()
}

fn messages() -> Vec<(&'static str, BytesMut)> {
    let message = |write: &dyn Fn(&mut BytesMut)| {
        let (mut body, mut framed) = (BytesMut::new(), BytesMut::new());
        write(&mut body);
        frame::push(&body, &mut framed);
        framed
    };
    let limits = SessionLimits {
        frame_max: 1 << 26,
        batch_max: 1 << 14,
        pending_max: 1024,
        queues_max: 1024,
        credit_max: 1 << 14,
    };
    let server = "manyhands 0.1.0".to_owned();
    let welcome = Welcome { version: 1, is_durable: true, creates: false, limits, server };
    vec![
        ("hello", message(&|out| Hello::new(5, "worker 3".into()).write(out))),
        ("welcome", message(&|out| Answer::Welcome(welcome.clone()).write(out))),
        ("refused", message(&|out| Answer::Refused("versions 1 to 1".into()).write(out))),
    ]
}

fn request(request: &Request) -> BytesMut {
    let mut out = Outbound::default();
    request.push(ROUTE, &mut out).unwrap();
    concat(out)
}

fn reply(write: impl FnOnce(&mut Outbound)) -> BytesMut {
    let mut out = Outbound::default();
    write(&mut out);
    concat(out)
}

fn pickle() -> Payload {
    Payload::from_standalone(b"\x80\x02K\x01."[..].into(), &Limits::default()).unwrap()
}

fn put() -> BytesMut {
    reply(|out| {
        let mut frame = Request::begin_put(Wait::For(Duration::from_secs(1)), true, ROUTE, out);
        frame.item(&pickle(), None);
        let terms = PutTerms {
            key: Some(b"a".to_vec()),
            delay: Some(Duration::from_secs(2)),
            priority: Some(-1),
            expires: Some(Duration::from_secs(3)),
        };
        frame.item(&Payload::json("[2]").unwrap(), Some(&terms));
        frame.item(&Payload::bytes(b"\0").unwrap(), None);
        frame.finish().unwrap();
    })
}

fn settle() -> BytesMut {
    let reason = || "no".to_owned();
    let fates = [
        Fate::Ack { result: None },
        Fate::Ack { result: Some(Payload::json("4").unwrap()) },
        Fate::Nack { delay: None, reason: reason() },
        Fate::GiveUp { reason: reason() },
        Fate::Extend { hold: Duration::from_secs(60) },
        Fate::Start,
        Fate::Return,
        Fate::Done { result: None },
        Fate::Done { result: Some(Payload::json("4").unwrap()) },
    ];
    reply(|out| {
        let mut frame = Request::begin_settle(Wait::No, ROUTE, out);
        for fate in fates {
            frame.settlement(&Settlement { token: TOKEN, fate });
        }
        frame.finish().unwrap();
    })
}

fn requests() -> Vec<(&'static str, BytesMut)> {
    let name = || "tasks".to_owned();
    let hold = Some(Duration::from_secs(60));
    let wait = Wait::Forever;
    let get = Get { wait, leased: true, hold, informed: true, max: 100, bytes_max: None };
    let peek = Peek { max: 10, state: TaskState::Leased, items: true };
    vec![
        ("open", request(&Request::Open { name: name() })),
        ("close", request(&Request::Close)),
        ("put", put()),
        ("get", request(&Request::Get(get))),
        ("settle", settle()),
        ("credit", request(&Request::Credit { hold: None, credit: 32, ends: false })),
        ("cancel", request(&Request::Cancel)),
        ("task_done", request(&Request::TaskDone { count: 2 })),
        ("join", request(&Request::Join)),
        ("size", request(&Request::Size)),
        ("list", request(&Request::List { after: name() })),
        ("peek", request(&Request::Peek(peek))),
        ("redrive", request(&Request::Redrive { max: 10, task: None })),
        ("purge", request(&Request::Purge)),
        ("shutdown", request(&Request::Shutdown { immediate: true })),
        ("drop", request(&Request::Drop { name: name(), forced: false })),
        ("configure", request(&Request::Configure { name: name(), options: "maxsize=9".into() })),
        ("ping", request(&Request::Ping)),
        ("revoke", request(&Request::Revoke { task: 5 })),
    ]
}

fn tasks(out: &mut Outbound) {
    let info = Info {
        queue: "tasks".into(),
        task: 4,
        attempt: 2,
        worker: "w".into(),
        waited: Duration::from_micros(10),
        ran: Duration::from_micros(20),
        history: vec!["no".into()],
    };
    let mut frame = reply::begin_tasks(false, ROUTE, out);
    frame.task(&Payload::bytes(b"\0").unwrap(), None, None);
    frame.task(&pickle(), Some(&TOKEN), Some(&info));
    frame.finish().unwrap();
}

fn peeked(out: &mut Outbound) {
    let task = Peeked {
        task: 5,
        state: TaskState::Leased,
        item: Some(Payload::json("1").unwrap()),
        attempt: 2,
        age: Some(Duration::from_millis(1500)),
        key: Some(b"a\xff".to_vec()),
        failures: vec![Failure { attempt: 1, worker: "w".into(), reason: "no".into() }],
        ..Peeked::default()
    };
    let mut frame = reply::begin_peeked(ROUTE, out);
    frame.peeked(&task);
    frame.finish().unwrap();
}

fn replies() -> Vec<(&'static str, BytesMut)> {
    let properties = Properties {
        order: QueueOrder::Priority,
        durability: QueueDurability::Disk,
        needs_results: true,
        is_ordered: false,
        maxsize: 100,
        hold: None,
        delivery_cpython: false,
        results: Some("done".into()),
    };
    let queue = QueueInfo { name: "a".into(), order: "fifo".into(), ..QueueInfo::default() };
    let full = Some((Code::Full, "no room"));
    let codes = [None, Some(Code::Stale)];
    vec![
        ("done", reply(|out| reply::push_done(ROUTE, out))),
        ("count", reply(|out| reply::push_count(3, ROUTE, out))),
        ("opened", reply(|out| reply::push_opened(&properties, ROUTE, out))),
        ("added, all", reply(|out| reply::push_added(3, None, [], ROUTE, out))),
        ("added", reply(|out| reply::push_added(2, full, [Some(5), None], ROUTE, out))),
        ("tasks", reply(tasks)),
        ("settled, all", reply(|out| reply::push_settled([None; 2], ROUTE, out))),
        ("settled", reply(|out| reply::push_settled(codes, ROUTE, out))),
        ("size, the reply", reply(|out| reply::push_size(3, 100, ROUTE, out))),
        ("text", reply(|out| reply::push_list(&[queue], true, ROUTE, out).unwrap())),
        ("peeked", reply(peeked)),
        ("recall", reply(|out| reply::push_recall(2, ROUTE, out))),
        ("error", reply(|out| reply::push_error(Code::UnknownQueue, "no queue", ROUTE, out))),
    ]
}

/// The header and body of an example.
pub(super) fn frame(name: &str) -> (Header, Bytes) {
    let mut frames = requests().into_iter().chain(replies());
    let (_, bytes) = frames.find(|(found, _)| *found == name).expect("there is such an example");
    let header = Header::from(*bytes.first_chunk().unwrap());
    (header, bytes.freeze().slice(HEADER_LEN..))
}

#[test]
fn the_page_has_every_frame_as_it_is_written() {
    let mut on_page = on_page();
    for (name, bytes) in [messages(), requests(), replies()].concat() {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let found = on_page.remove(name);
        assert!(found.as_deref() == Some(&*bytes), "{name}: {digits} and not {found:02x?}");
    }
    assert!(on_page.is_empty(), "nobody writes {:?}", on_page.keys());
}

#[test]
fn every_example_is_read() {
    for (name, _) in requests() {
        let (header, body) = frame(name);
        read_request(&header, body).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for (name, _) in replies() {
        let (header, body) = frame(name);
        read_reply(&header, body).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn an_example_without_its_end_or_with_more_is_refused() {
    let ends_with_text = ["open", "list", "drop", "configure", "opened", "text", "error"];
    for (name, bytes) in [requests(), replies()].concat() {
        let (header, body) = frame(name);
        assert_eq!(bytes.len(), HEADER_LEN + body.len());
        let read = if header.op < 0x80 { read_request } else { read_reply };
        for len in 0..body.len() {
            match read(&header, body.slice(..len)) {
                Err(error) => assert_eq!(error.code(), Code::Malformed),
                Ok(_) => {
                    let is_whole = ends_with_text.contains(&name);
                    let is_without = len == 0 && matches!(name, "added" | "settled");
                    let is_without_numbers = name == "added" && len == body.len() - 16;
                    assert!(is_whole || is_without || is_without_numbers, "{name} of {len} bytes");
                }
            }
        }
        if !ends_with_text.contains(&name) {
            let more = [&body, &b"\0"[..]].concat().into();
            let error = read(&header, more).unwrap_err();
            assert!(
                matches!(error.what, What::Rest { .. } | What::Truncated { .. }),
                "{name}: {error}"
            );
        }
    }
}

#[test]
fn flags_and_counts_that_an_op_does_not_have_are_refused() {
    for (name, _) in [requests(), replies()].concat() {
        let (header, body) = frame(name);
        let read = if header.op < 0x80 { read_request } else { read_reply };
        let flagged = Header { flags: header.flags | 64, ..header };
        let error = read(&flagged, body.clone()).unwrap_err();
        let expected = format!("01000000 are flags that op {:02x} does not have", header.op);
        assert_eq!((error.code(), error.to_string()), (Code::Malformed, expected));
        if header.count == 0 {
            let error = read(&Header { count: 1, ..header }, body).unwrap_err();
            let expected = "count at byte 0 of the body is 1; expected 0, as this op has no items";
            assert_eq!((error.code(), &*error.to_string()), (Code::Malformed, expected), "{name}");
        }
    }
}

#[test]
fn hello_and_its_answer_are_read() {
    let body = |name| {
        let messages = messages();
        let (_, bytes) = messages.iter().find(|(found, _)| *found == name).unwrap();
        Bytes::copy_from_slice(&bytes[4..])
    };
    let hello = Hello::decode(&body("hello")).unwrap();
    assert_eq!(hello, Hello::new(5, "worker 3".into()));
    assert_eq!(hello.version(), Some(1));
    assert_eq!(Hello { versions: 2..=3, ..hello }.version(), None);
    let Answer::Welcome(welcome) = Answer::decode(&body("welcome")).unwrap() else { panic!() };
    assert_eq!((welcome.is_durable, welcome.creates), (true, false));
    assert_eq!((welcome.limits.credit_max, &*welcome.server), (1 << 14, "manyhands 0.1.0"));
    let refused = Answer::Refused("versions 1 to 1".into());
    assert_eq!(Answer::decode(&body("refused")), Ok(refused));
    for pickle in [&b"\x80\x04N."[..], b"", b"\0mnativ"] {
        let message = Bytes::from_static(pickle);
        assert_eq!(Hello::decode(&message), Err(HelloError::OtherProtocol));
        assert_eq!(Answer::decode(&message), Err(HelloError::OtherProtocol));
    }
    for len in MAGIC.len()..body("hello").len() {
        let cut = Hello::decode(&body("hello").slice(..len));
        assert!(matches!(cut, Err(HelloError::Malformed(What::Truncated { .. }))), "{cut:?}");
    }
}
