//! How a user's object is cut out of the pickle it came in.
//!
//! Invariant: no memo index inside of the object's own opcodes is ever changed. What they read from
//! outside is put into the memo by a short prelude instead.

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::{Buf, Bytes};

use super::memo::{Memo, MemoStyle, Query, definitions};
use super::opcode::{Effect, Op, Opcode, Opcodes};
use super::payload::{PROTO_LEN, PROTOCOL_MAX};
use super::plain::Plain;
use super::regions::{Kind, Region};
use super::scan::{Header, Scanner};
use super::{Codec, Limits, Payload, PickleError};

const STOP: u8 = b'.';
const NONE: u8 = b'N';
const POP: u8 = b'0';
const PUT: u8 = b'p';
const BINPUT: u8 = b'q';
const LONG_BINPUT: u8 = b'r';
const PROTO: u8 = 0x80;
const MEMOIZE: u8 = 0x94;

impl Payload {
    /// Takes a whole pickle, such as one of our own clients wrote or a file holds.
    ///
    /// # Errors
    ///
    /// Whatever makes it something that no unpickler loads, and the bounds of `limits`.
    pub fn from_standalone(pickle: Bytes, limits: &Limits) -> Result<Self, PickleError> {
        match Plain::find(&pickle, limits) {
            Some(Plain { object, protocol }) => Ok(Self::pickle(protocol, within(pickle, object))),
            None => Self::scanned(&pickle, limits),
        }
    }

    /// Takes a whole pickle from a server, which has scanned it.
    ///
    /// # Errors
    ///
    /// If it does not begin with a protocol and end with STOP.
    pub fn from_server(pickle: Bytes) -> Result<Self, PickleError> {
        match *pickle {
            [PROTO, protocol @ ..=PROTOCOL_MAX, _, .., STOP] => {
                let object = PROTO_LEN..pickle.len() - 1;
                Ok(Self::pickle(protocol, within(pickle, object)))
            }
            _ => Err(PickleError::Malformed { what: "not PROTO, an object and STOP", offset: 0 }),
        }
    }

    pub(super) fn scanned(pickle: &Bytes, limits: &Limits) -> Result<Self, PickleError> {
        let mut scanner = Scanner::default();
        let scan = scanner.scan(pickle, limits)?;
        cut(pickle, &scan.header, &scan.root, limits)
    }
}

/// A part of `bytes`, without counting one more who has them.
fn within(mut bytes: Bytes, part: Range<usize>) -> Bytes {
    bytes.truncate(part.end);
    bytes.advance(part.start.min(bytes.len()));
    bytes
}

/// Cuts a region out of the pickle it stands in.
///
/// # Errors
///
/// [`PickleError::TooLarge`] if its prelude would be longer than `limits` allow.
pub(super) fn cut(
    pickle: &Bytes,
    header: &Header,
    region: &Region,
    limits: &Limits,
) -> Result<Payload, PickleError> {
    if !region.remarkable {
        let bytes = pickle.slice(region.start..region.end);
        return Ok(Payload::pickle(required(header, region, &bytes), bytes));
    }
    let look = Look::at(pickle, region, limits)?;
    let prelude = Prelude::new(pickle, header, region, &look, limits)?;
    let prelude_len = u32::try_from(prelude.bytes.len()).map_err(|_| too_long(limits))?;
    let protocol = header.required.max(look.newest).max(prelude.newest);
    let bytes = if prelude_len == 0 && !look.framed {
        pickle.slice(look.start..region.end)
    } else {
        let mut bytes = prelude.bytes;
        bytes.reserve_exact(region.end - look.start);
        copy_without_frames(pickle, look.start, region.end, &mut bytes)?;
        Bytes::from(bytes)
    };
    Ok(Payload { codec: Codec::Pickle(protocol), prelude_len, bytes })
}

/// The lowest protocol that reads a region with nothing remarkable in it.
///
/// Numbers, texts and `None` are single opcodes, often older than the pickle around them: so Python 2
/// reads the numbers of Python 3. The name of a class says nothing of its protocol.
fn required(header: &Header, region: &Region, bytes: &[u8]) -> u8 {
    // What was popped in front of it counts too.
    if region.kind != Kind::Constant(region.start) {
        return header.required;
    }
    match Opcodes::new(bytes).next() {
        Some(Ok(op)) if op.opcode != Opcode::Global => op.protocol,
        _ => header.required,
    }
}

/// What a second look at a region finds.
#[derive(Debug)]
struct Look {
    /// Where the region begins, frames at its start left out.
    start: usize,
    /// Whether there are frames further inside.
    framed: bool,
    /// Whether it reads the memo.
    fetches: bool,
    /// The memo entries that it reads and that were stored before it.
    outside: BTreeSet<usize>,
    /// See [`newest`].
    newest: u8,
}

impl Look {
    fn at(pickle: &[u8], region: &Region, limits: &Limits) -> Result<Self, PickleError> {
        let (start, outside) = (region.start, BTreeSet::new());
        let mut look = Self { start, framed: false, fetches: false, outside, newest: 0 };
        let mut own = Memo::behind(region.stored);
        for op in Opcodes::between(pickle, region.start, region.end) {
            let op = op?;
            look.newest = look.newest.max(newest(&op));
            match op.effect {
                Effect::Store => own.store(&op, limits)?,
                Effect::Fetch => look.fetch(own.fetch(&op)?, &own, limits)?,
                _ if op.opcode != Opcode::Frame => {}
                _ if op.start == look.start => look.start = op.end,
                _ => look.framed = true,
            }
        }
        Ok(look)
    }

    fn fetch(&mut self, index: usize, own: &Memo, limits: &Limits) -> Result<(), PickleError> {
        self.fetches = true;
        if !own.contains(index) {
            self.outside.insert(index);
        }
        // Each takes at least three bytes of prelude.
        if self.outside.len() > limits.expansion_max / 3 {
            return Err(too_long(limits));
        }
        Ok(())
    }
}

/// Opcodes that fill the memo for a region and leave the stack as it was.
#[derive(Debug, Default)]
struct Prelude {
    bytes: Vec<u8>,
    /// See [`newest`].
    newest: u8,
}

impl Prelude {
    fn new(
        pickle: &[u8],
        header: &Header,
        region: &Region,
        look: &Look,
        limits: &Limits,
    ) -> Result<Self, PickleError> {
        let counted = header.style == Some(MemoStyle::Counted);
        // Where nothing is read, entries may be counted from anywhere.
        let shifted = counted && look.fetches && region.stored > 0;
        if !shifted && look.outside.is_empty() {
            return Ok(Self::default());
        }
        let at = region.start;
        let queries: Vec<Query> = look.outside.iter().map(|&index| Query { at, index }).collect();
        let constants = definitions(pickle, &queries)?.into_iter();
        let constants = constants.map(|range| pickle.get(range?));
        let constants = look.outside.iter().zip(constants);
        let constants = constants.map(|(&index, opcode)| Some((index, opcode?)));
        let mut prelude = Self::default();
        match constants.collect::<Option<Vec<_>>>() {
            None => prelude.replay(pickle, header, region, limits)?,
            Some(constants) if counted => prelude.count(region.stored, &constants, limits)?,
            Some(constants) => prelude.number(header.style, &constants, limits)?,
        }
        Ok(prelude)
    }

    /// Stores `stored` entries by MEMOIZE: `constants` where they belong, None elsewhere.
    fn count(
        &mut self,
        stored: usize,
        constants: &[(usize, &[u8])],
        limits: &Limits,
    ) -> Result<(), PickleError> {
        if stored > limits.expansion_max {
            return Err(too_long(limits));
        }
        let mut constants = constants.iter().peekable();
        self.bytes.push(NONE);
        for index in 0..stored {
            match constants.next_if(|constant| constant.0 == index) {
                None => self.bytes.push(MEMOIZE),
                Some((_, opcode)) => self.push(&[opcode, &[MEMOIZE, POP]], limits)?,
            }
        }
        self.push(&[&[POP]], limits)
    }

    /// Stores `constants` by their numbers, in the opcodes of the pickle's own style: to the C
    /// unpickler of Python 2, PUT 1 and BINPUT 1 are different entries.
    fn number(
        &mut self,
        style: Option<MemoStyle>,
        constants: &[(usize, &[u8])],
        limits: &Limits,
    ) -> Result<(), PickleError> {
        for &(index, opcode) in constants {
            let store = match (style, u8::try_from(index), u32::try_from(index)) {
                (Some(MemoStyle::Text), ..) => format!("{}{index}\n", char::from(PUT)).into_bytes(),
                (_, Ok(index), _) => vec![BINPUT, index],
                (_, _, Ok(index)) => [&[LONG_BINPUT][..], &index.to_le_bytes()].concat(),
                (_, _, Err(_)) => return Err(too_long(limits)),
            };
            self.push(&[opcode, &store, &[POP]], limits)?;
        }
        Ok(())
    }

    /// Repeats all that came before the region, then drops the values: they go, the memo stays.
    /// For calls whose arguments share objects.
    fn replay(
        &mut self,
        pickle: &[u8],
        header: &Header,
        region: &Region,
        limits: &Limits,
    ) -> Result<(), PickleError> {
        if region.start - header.body + region.below > limits.expansion_max {
            return Err(too_long(limits));
        }
        self.newest = copy_without_frames(pickle, header.body, region.start, &mut self.bytes)?;
        self.bytes.resize(self.bytes.len() + region.below, POP);
        Ok(())
    }

    fn push(&mut self, parts: &[&[u8]], limits: &Limits) -> Result<(), PickleError> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if self.bytes.len() + len > limits.expansion_max {
            return Err(too_long(limits));
        }
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        Ok(())
    }
}

/// Copies opcodes; returns the [`newest`] of them.
fn copy_without_frames(
    pickle: &[u8],
    start: usize,
    end: usize,
    out: &mut Vec<u8>,
) -> Result<u8, PickleError> {
    let mut copied = start;
    let mut newest_found = 0;
    for op in Opcodes::between(pickle, start, end) {
        let op = op?;
        newest_found = newest_found.max(newest(&op));
        if op.opcode == Opcode::Frame {
            out.extend_from_slice(pickle.get(copied..op.start).unwrap_or_default());
            copied = op.end;
        }
    }
    out.extend_from_slice(pickle.get(copied..end).unwrap_or_default());
    Ok(newest_found)
}

/// The protocol of an opcode that not every reader of protocol 4 knows, else 0.
fn newest(op: &Op<'_>) -> u8 {
    if op.protocol > 4 { op.protocol } else { 0 }
}

fn too_long(limits: &Limits) -> PickleError {
    let what = "bytes added to an argument that shares objects with others";
    PickleError::TooLarge { what, limit: limits.expansion_max }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::super::Call;
    use super::*;

    fn payloads(request: &[u8]) -> Vec<Payload> {
        let limits = Limits::default();
        let call = Call::parse(Bytes::copy_from_slice(request), &limits).unwrap();
        let positional = call.args().iter().copied();
        let arguments = positional.chain(call.kwargs().map(|(_, argument)| argument));
        arguments.map(|argument| call.payload(&argument, &limits).unwrap()).collect()
    }

    fn check(request: &[u8], expected: &[&[u8]]) {
        let standalone: Vec<_> = payloads(request).iter().map(Payload::standalone).collect();
        assert_eq!(standalone, expected);
    }

    fn reply(payload: &Payload) -> BytesMut {
        let mut out = BytesMut::new();
        payload.write_reply(&mut out);
        out
    }

    #[test]
    fn an_object_that_reads_no_memo_is_cut_out_as_it_stands() {
        // ('q1', 'put', ([1],), {})
        let request = b"\x80\x04(\x8c\x02q1\x94\x8c\x03put\x94]\x94K\x01a\x85\x94}\x94t\x94.";
        check(request, &[b"\x80\x04]\x94K\x01a."]);
        let payload = payloads(request).remove(0);
        assert_eq!(reply(&payload), &b"\x80\x04U\x07#RETURN]\x94K\x01a\x86."[..]);
    }

    #[test]
    fn the_bytes_of_an_object_are_shared_with_its_request() {
        let request =
            Bytes::from_static(b"\x80\x04(N\x8c\x01m\x94C\x04item\x94\x85\x94}\x94t\x94.");
        let call = Call::parse(request.clone(), &Limits::default()).unwrap();
        let payload = call.payload(&call.args()[0], &Limits::default()).unwrap();
        assert_eq!(payload.bytes.as_ptr(), request[8..].as_ptr());
        assert_eq!(payload.bytes, &b"C\x04item"[..]);
    }

    #[test]
    fn frames_around_a_large_object_do_not_make_it_a_copy() {
        let frame = b"\x95\x05\0\0\0\0\0\0\0";
        let request =
            [&b"\x80\x04"[..], frame, b"(N\x8c\x01m\x94", frame, b"C\x02ab", frame, b"\x94\x85}t."];
        let request = Bytes::from(request.concat());
        let call = Call::parse(request.clone(), &Limits::default()).unwrap();
        let payload = call.payload(&call.args()[0], &Limits::default()).unwrap();
        assert_eq!(payload.bytes.as_ptr(), request[26..].as_ptr());
        assert_eq!(payload.bytes, &b"C\x02ab"[..]);
    }

    #[test]
    fn frames_inside_an_object_are_left_out() {
        let request = b"\x80\x04(N\x8c\x01m\x94(C\x01a\x95\0\0\0\0\0\0\0\0C\x01bt\x85}t.";
        check(request, &[b"\x80\x04(C\x01aC\x01bt."]);
    }

    #[test]
    fn a_name_of_the_envelope_inside_an_object_is_repaired() {
        // ('q1', 'put', ({'put': [1]},), {}): the key is the same interned string as the method.
        let request = b"\x80\x04(\x8c\x02q1\x94\x8c\x03put\x94}\x94h\x01]\x94K\x01as\x85\x94}t.";
        check(request, &[b"\x80\x04N\x94\x8c\x03put\x9400}\x94h\x01]\x94K\x01as."]);
        let payload = payloads(request).remove(0);
        assert_eq!(payload.prelude_len, 10);
        let expected = b"\x80\x04N\x94\x8c\x03put\x9400U\x07#RETURN}\x94h\x01]\x94K\x01as\x86.";
        assert_eq!(reply(&payload), &expected[..]);
    }

    #[test]
    fn an_object_that_reads_its_own_memo_keeps_its_numbers() {
        // x = []; x.append(x)
        let request = b"\x80\x04(\x8c\x02q1\x94\x8c\x03put\x94]\x94h\x02a\x85\x94}t.";
        check(request, &[b"\x80\x04N\x94\x940]\x94h\x02a."]);
    }

    #[test]
    fn numbers_that_stand_in_the_pickle_need_no_prelude() {
        let request = b"\x80\x02(U\x02q1q\x01U\x03putq\x02]q\x03h\x03a\x85q\x04}t.";
        check(request, &[b"\x80\x02]q\x03h\x03a."]);
    }

    #[test]
    fn a_name_of_the_envelope_is_repaired_in_the_style_of_the_pickle() {
        check(b"\x80\x02(NU\x03putq\x01h\x01\x85}t.", &[b"\x80\x02U\x03putq\x010h\x01."]);
        let long = b"\x80\x02(NU\x03putr\0\x01\0\0j\0\x01\0\0\x85}t.";
        check(long, &[b"\x80\x02U\x03putr\0\x01\0\x000j\0\x01\0\0."]);
        check(b"(NS'put'\np1\n(g1\nt(dt.", &[b"\x80\x02S'put'\np1\n0g1\n."]);
    }

    #[test]
    fn an_object_shared_between_arguments_is_made_for_each() {
        // y = [1]; (None, 'm', (y, [y]), {})
        let request = b"\x80\x04(N\x8c\x01m\x94]\x94K\x01a]\x94h\x01a\x86\x94}t.";
        let replayed = b"\x80\x04(N\x8c\x01m\x94]\x94K\x01a0000]\x94h\x01a.";
        check(request, &[b"\x80\x04]\x94K\x01a.", replayed]);
    }

    #[test]
    fn a_recursive_tuple_keeps_what_it_dropped() {
        // t = ([],); t[0].append(t): items, POP, GET
        let request = b"\x80\x03(NU\x01m]q\x00h\x00\x85q\x01a0h\x01\x85}t.";
        check(request, &[b"\x80\x03]q\x00h\x00\x85q\x01a0h\x01."]);
    }

    #[test]
    fn the_protocol_is_the_lowest_that_reads_the_object() {
        let protocols = |request: &[u8]| -> Vec<u8> {
            payloads(request).iter().map(|payload| payload.protocol()).collect()
        };
        assert_eq!(protocols(b"(NS'm'\n(NI1\nt(dt."), [0, 0]);
        assert_eq!(protocols(b"\x80\x02(NU\x01m]\x85}t."), [2]);
        assert_eq!(protocols(b"\x80\x03(NX\x01\0\0\0m]\x85}t."), [3]);
        assert_eq!(protocols(b"\x80\x03(NX\x01\0\0\0mK\x01C\x01x\x86}t."), [1, 3]);
        let byte_array = b"\x96\x01\0\0\0\0\0\0\0x";
        let request = [&b"\x80\x05(N\x8c\x01m\x94N"[..], byte_array, b"\x86}t."].concat();
        assert_eq!(protocols(&request), [0, 5]);
        // So does what an argument drops.
        assert_eq!(protocols(b"\x80\x04(N\x8c\x01mN0\x8c\x01x\x8c\x01x0N\x86}t."), [4, 4]);
        // A replayed argument counts too.
        let request = [&b"\x80\x05(N\x8c\x01m\x94"[..], byte_array, b"\x94h\x01\x86}t."].concat();
        assert_eq!(protocols(&request), [5, 5]);
    }

    #[test]
    fn growth_by_shared_objects_is_bounded() {
        let limits = Limits { expansion_max: 64, ..Limits::default() };
        let large = [&b"U\xf0"[..], &[b'x'; 0xf0]].concat();
        let bounded = |request: &[&[u8]]| {
            let call = Call::parse(Bytes::from(request.concat()), &limits).unwrap();
            let argument = *call.args().last().unwrap();
            call.payload(&argument, &limits)
        };
        let too_long = Err(too_long(&limits));
        let constant = bounded(&[b"\x80\x02(NU\x01m", &large, b"q\x01h\x01\x86}t."]);
        assert_eq!(constant, too_long);
        let shared = bounded(&[b"\x80\x02(NU\x01m]q\x01", &large, b"ah\x01\x86}t."]);
        assert_eq!(shared, too_long);
        let entries = [&b"\x80\x04(NU\x01m("[..], &b"N\x94".repeat(70), b"t]\x94h\x46a\x86}t."];
        assert_eq!(bounded(&entries), too_long);
    }

    #[test]
    fn a_pickle_of_its_own_is_taken_whole() {
        let take = |pickle: &'static [u8]| {
            Payload::from_standalone(Bytes::from_static(pickle), &Limits::default())
        };
        let framed = take(b"\x80\x04\x95\x04\0\0\0\0\0\0\0]\x94K\x01a.").unwrap();
        assert_eq!(framed.standalone(), &b"\x80\x04]\x94K\x01a."[..]);
        assert_eq!(take(b"I1\n.").unwrap().standalone(), &b"\x80\x02I1\n."[..]);
        assert_eq!(take(b"N."), Ok(Payload::pickle(0, "N".into())));
        assert_eq!(take(b""), Err(PickleError::Truncated { offset: 0 }));
        assert_eq!(take(b"N"), Err(PickleError::Truncated { offset: 1 }));
    }

    #[test]
    fn taking_what_was_cut_changes_nothing_but_the_prelude() {
        let request = b"\x80\x04(\x8c\x02q1\x94\x8c\x03put\x94}\x94h\x01]\x94K\x01as\x85\x94}t.";
        let cut = payloads(request).remove(0);
        let taken = Payload::from_standalone(cut.standalone(), &Limits::default()).unwrap();
        assert_eq!((taken.prelude_len, taken.standalone()), (0, cut.standalone()));
    }
}
