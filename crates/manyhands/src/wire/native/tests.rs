//! What one side writes, the other reads; what nobody writes is refused by its place.

mod examples;
mod round_trips;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::*;
use crate::wire::frame::{self, Decoder, Frame, Outbound};
use crate::wire::tasks::Peeked;

fn bounds() -> Bounds {
    Bounds { batch_max: 1000, pickle: Limits::default() }
}

fn concat(out: Outbound) -> BytesMut {
    BytesMut::from(&*out.into_parts().collect::<Vec<_>>().concat())
}

/// The frames of a stream.
fn frames(out: Outbound) -> Vec<(Header, Bytes)> {
    let mut stream = concat(out);
    let mut decoder = Decoder::<Header>::new(1 << 30);
    let frames = std::iter::from_fn(|| decoder.next_with_header(&mut stream).unwrap());
    let bodies = frames.map(|(header, frame)| match frame {
        Frame::Body(body) => (header, body),
        other => panic!("{other:?}"),
    });
    let bodies = bodies.collect();
    assert!(stream.is_empty());
    bodies
}

/// The one frame that `write` appends.
fn frame(write: impl FnOnce(&mut Outbound)) -> (Header, Bytes) {
    let mut out = Outbound::default();
    write(&mut out);
    let mut frames = frames(out);
    assert_eq!(frames.len(), 1);
    frames.remove(0)
}

/// Reads a request with all that is in it; says what.
fn read_request(header: &Header, body: Bytes) -> Result<String, DecodeError> {
    let request = Request::decode(header, body, &bounds())?;
    Ok(match request {
        Request::Put(Put { items, .. }) => format!("{:?}", all(items)?),
        Request::Settle { settlements, .. } => format!("{:?}", all(settlements)?),
        other => format!("{other:?}"),
    })
}

/// Reads a reply with all that is in it; says what.
fn read_reply(header: &Header, body: Bytes) -> Result<String, DecodeError> {
    Ok(match Reply::decode(header, body)? {
        Reply::Tasks { tasks, .. } => format!("{:?}", all(tasks)?),
        Reply::Peeked(tasks) => format!("{:?}", all(tasks)?),
        Reply::Settled(codes) => format!("{:?}", codes.collect::<Vec<_>>()),
        Reply::Added(Added { count, refusal, numbers }) => {
            format!("{count} {refusal:?} {:?}", numbers.map(Iterator::collect::<Vec<_>>))
        }
        other => format!("{other:?}"),
    })
}

/// Reads every entry; stops at the first that is wrong, behind which there must be none.
fn all<K: batch::Kind>(mut batch: Batch<K>) -> Result<Vec<K::Entry>, DecodeError> {
    let mut entries = Vec::with_capacity(batch.capacity());
    for entry in batch.by_ref() {
        match entry {
            Ok(entry) => entries.push(entry),
            Err(error) => {
                assert!(batch.next().is_none(), "nothing comes after an error");
                return Err(error);
            }
        }
    }
    Ok(entries)
}

/// What a body that was tampered with is refused for.
fn refusal(example: &str, change: impl FnOnce(&mut Header, &mut BytesMut)) -> (Code, String) {
    let (mut header, body) = examples::frame(example);
    let mut body = BytesMut::from(&*body);
    change(&mut header, &mut body);
    header.len = u32::try_from(body.len()).unwrap();
    let read = if header.op < 0x80 { read_request } else { read_reply };
    let error = read(&header, body.freeze()).unwrap_err();
    (error.code(), error.to_string())
}

#[test]
fn every_code_has_a_number_and_a_name_of_its_own() {
    for (index, code) in Code::ALL.iter().enumerate() {
        assert_eq!(usize::from(code.number()), index + 1);
        assert_eq!(Code::of_number(code.number()), Some(*code));
        assert_eq!(Code::ALL.iter().filter(|other| other.name() == code.name()).count(), 1);
    }
    assert_eq!((Code::of_number(0), Code::of_number(28)), (None, None));
}

#[test]
fn the_page_has_every_code_and_op() {
    let page = examples::page();
    for code in Code::ALL {
        assert!(page.contains(&format!("\n| {} | {code} | ", code.number())), "{code}");
    }
    let ops = (0..=u8::MAX).filter(|number| Op::of_number(*number).is_some());
    for op in ops.clone() {
        assert!(page.contains(&format!("\n| `{op:02x}` | ")), "{op:02x}");
    }
    assert_eq!(page.matches("\n| `").count() - 3, ops.count(), "three are codecs");
}

#[test]
fn a_bad_body_is_refused_by_its_place() {
    let refused = |example, at: usize, byte| refusal(example, |_, body| body[at] = byte);
    let malformed = |text: &str| (Code::Malformed, text.to_owned());
    assert_eq!(
        refused("put", 11, b'Q'),
        malformed("item 0: codec at byte 11 of the body is 81; expected 80 (P), 88 (X) or 66 (B)")
    );
    assert_eq!(
        refused("put", 18, 0xff),
        malformed(
            "item 0: the pickle at byte 16 of the body: unknown pickle opcode 0xff at offset 2"
        )
    );
    assert_eq!(
        refused("put", 10, 1),
        malformed("item 0: a byte without a meaning at byte 10 of the body is 1; expected 0")
    );
    let kind = "kind of term at byte 24 of the body is 9; expected 1 to 4, each once";
    assert_eq!(refused("put", 24, 9), malformed(&format!("item 1: {kind}")));
    let zero = "expected 0 in a settlement of this kind";
    assert_eq!(
        refused("settle", 10, 1),
        malformed(&format!("item 0: reason_len at byte 10 of the body is 1; {zero}"))
    );
    assert_eq!(
        refused("settle", 8, 9),
        malformed("item 0: kind at byte 8 of the body is 9; expected 0 to 8")
    );
    let not_utf8 = malformed("item 1: JSON at byte 60 of the body is not UTF-8");
    assert_eq!(refused("put", 60, 0xff), not_utf8);
    let truncated = refusal("get", |_, body| body.truncate(20));
    assert_eq!(
        truncated,
        malformed("max_bytes needs 4 bytes at byte 20 of the body, which has 0 more")
    );
    let rest = refusal("get", |_, body| body.extend_from_slice(b"12"));
    assert_eq!(rest, malformed("the body ends at byte 24, and 2 more came"));
    for op in [0, 0x14, 0x7f] {
        let unknown = refusal("get", |header, _| header.op = op);
        assert_eq!(unknown, (Code::UnknownOp, format!("no frame has op {op:02x}")));
    }
}
