//! The short way through small pickles as picklers write them, of which whole batches are made.
//!
//! It checks the same as a [`Scanner`](super::scan::Scanner) and finds the same object, but remembers
//! nothing of each value. Whatever it does not know it leaves to that.

use std::ops::Range;

use super::Limits;
use super::opcode::{Effect, Op, Opcode, Opcodes};
use super::payload::{PROTO_LEN, PROTOCOL_MAX};
use super::scan::newest_allowed;

/// Most opcodes that are looked at: of a longer pickle little time is lost.
const OPCODES_MAX: usize = 256;
/// Most marks that are open at one time.
const MARKS_MAX: usize = 8;
const PROTO: u8 = 0x80;
const FRAME: u8 = Opcode::Frame as u8;
/// FRAME and its length.
const FRAME_LEN: usize = 9;

/// Where the object of a pickle is.
#[derive(Debug)]
pub(super) struct Plain {
    /// Its opcodes, without memo stores at the end.
    pub(super) object: Range<usize>,
    /// The pickle protocol that its reader must know.
    pub(super) protocol: u8,
}

/// The stack and the memo, of which only sizes matter.
#[derive(Debug, Default)]
struct Pass {
    height: usize,
    /// Heights at open marks.
    marks: [usize; MARKS_MAX],
    open: usize,
    stored: usize,
    /// Whether MEMOIZE has stored it.
    is_counted: bool,
}

impl Plain {
    /// `None` if the pickle is not plain, or not well-formed.
    pub(super) fn find(pickle: &[u8], limits: &Limits) -> Option<Self> {
        let &[PROTO, declared @ 2..=PROTOCOL_MAX, ref rest @ ..] = pickle else { return None };
        if limits.marks_max < MARKS_MAX || limits.memo_max < OPCODES_MAX {
            return None;
        }
        let newest = newest_allowed(declared).min(PROTOCOL_MAX - 1);
        let is_framed = newest >= 4 && rest.first() == Some(&FRAME);
        let start = if is_framed { PROTO_LEN + FRAME_LEN } else { PROTO_LEN };
        let mut opcodes = Opcodes::between(pickle, start, pickle.len());
        let first = opcodes.read().ok()?;
        let (mut pass, mut op, mut end, mut values) = (Pass::default(), first, start, 0);
        for _ in 0..OPCODES_MAX {
            if op.protocol > newest {
                return None;
            }
            if op.effect == Effect::Stop {
                let is_whole = op.end == pickle.len() && pass.height == 1 && pass.open == 0;
                let is_constant = values == 1
                    && first.effect == Effect::Constant
                    && first.opcode != Opcode::Global;
                let protocol = if is_constant { first.protocol } else { declared.min(4) };
                return is_whole.then_some(Self { object: start..end, protocol });
            }
            pass.apply(&op)?;
            if op.effect != Effect::Store {
                (end, values) = (op.end, values + 1);
            }
            op = opcodes.read().ok()?;
        }
        None
    }
}

impl Pass {
    fn apply(&mut self, op: &Op<'_>) -> Option<()> {
        match op.effect {
            Effect::Constant | Effect::Container => self.height += 1,
            Effect::Build(count) => self.height = self.without(count.into())? + 1,
            Effect::BuildFromMark => self.height = self.close()? + 1,
            Effect::Change(count) => {
                self.height = self.without(count.into())?;
                self.without(1)?;
            }
            Effect::ChangeFromMark => {
                self.height = self.close()?;
                self.without(1)?;
            }
            Effect::Mark => {
                *self.marks.get_mut(self.open)? = self.height;
                self.open += 1;
            }
            Effect::Store => {
                self.without(1)?;
                self.store(op)?;
            }
            Effect::Fetch => {
                self.memo_index(op).filter(|index| *index < self.stored)?;
                self.height += 1;
            }
            _ => return None,
        }
        Some(())
    }

    /// The height without the top `count` values, which are above the topmost mark.
    fn without(&self, count: usize) -> Option<usize> {
        let mark = self.open.checked_sub(1).and_then(|top| self.marks.get(top));
        let floor = mark.copied().unwrap_or_default();
        self.height.checked_sub(count).filter(|height| *height >= floor)
    }

    /// Takes the topmost mark away; the height that it had.
    fn close(&mut self) -> Option<usize> {
        self.open = self.open.checked_sub(1)?;
        self.marks.get(self.open).copied()
    }

    /// Only entries that are numbered one after the other, and in one way.
    fn store(&mut self, op: &Op<'_>) -> Option<()> {
        let is_counted = op.opcode == Opcode::Memoize;
        if self.stored > 0 && self.is_counted != is_counted {
            return None;
        }
        self.memo_index(op).filter(|index| *index == self.stored)?;
        (self.stored, self.is_counted) = (self.stored + 1, is_counted);
        Some(())
    }

    fn memo_index(&self, op: &Op<'_>) -> Option<usize> {
        match op.opcode {
            Opcode::Put | Opcode::Get => None,
            _ => op.memo_index(self.stored).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::Payload;
    use super::*;

    fn check(pickle: &[u8]) -> bool {
        let limits = Limits::default();
        let Some(plain) = Plain::find(pickle, &limits) else { return false };
        let found = Payload::pickle(plain.protocol, Bytes::copy_from_slice(&pickle[plain.object]));
        let scanned = Payload::scanned(&Bytes::copy_from_slice(pickle), &limits);
        assert_eq!(scanned, Ok(found), "{}", pickle.escape_ascii());
        true
    }

    #[test]
    fn a_constant_is_found_as_any_object_is() {
        let values: [&[u8]; 11] = [
            b"N",
            b"K\x07",
            b"\x8c\x02hi",
            b"X\x02\0\0\0hi",
            b"C\x02hi",
            b"U\x02hi",
            b"I12\n",
            b")",
            b"cos\nsystem\n",
            b"]",
            b"B\x09\0\0\0hi",
        ];
        let frame: &[u8] = b"\x95\x05\0\0\0\0\0\0\0";
        let stores: [&[u8]; 5] = [b"", b"\x94", b"q\x00", b"\x94\x94", b"0N"];
        let mut simple = 0;
        for (declared, value, store) in (0..7u8).flat_map(|declared| {
            values.iter().flat_map(move |value| stores.map(|store| (declared, value, store)))
        }) {
            for frame in [b"", frame] {
                let pickle = [&[PROTO, declared], frame, value, store, b"."].concat();
                simple += usize::from(check(&pickle));
            }
        }
        assert!(simple > 80, "{simple}");
    }

    #[test]
    fn what_picklers_write_is_plain() {
        let pickles = [
            &b"\x80\x04\x95\x0f\0\0\0\0\0\0\0\x8c\x02ab\x94K\x07K\x08\x87\x94."[..],
            b"\x80\x04\x95\x0f\0\0\0\0\0\0\0\x8c\x02ab\x94h\0h\0\x87\x94.",
            b"\x80\x03}q\0(X\x01\0\0\0aq\x01]q\x02(K\x01K\x02eX\x01\0\0\0bq\x03h\x01u.",
            b"\x80\x02U\x02hiq\0.",
            b"\x80\x04cm\nJob\n\x94)\x81\x94}\x94\x8c\x01a\x94K\x01sb.",
            b"\x80\x05(K\x01(K\x02tt.",
        ];
        for pickle in pickles {
            assert!(check(pickle), "{}", pickle.escape_ascii());
        }
    }

    const OPCODES: &[&[u8]] = &[
        b"(",
        b"N",
        b"K\x01",
        b"]",
        b"}",
        b"t",
        b"a",
        b"e",
        b"s",
        b"u",
        b"\x85",
        b"\x86",
        b"\x94",
        b"h\0",
        b"h\x01",
        b"q\0",
        b"q\x01",
        b"r\x01\0\0\0",
        b"0",
        b"2",
        b"\x8c\x01a",
        b"cm\nC\n",
        b"R",
        b"b",
        b"\x95\0\0\0\0\0\0\0\0",
        b"p0\n",
        b"g0\n",
        b".",
    ];

    proptest! {
        #[test]
        fn opcodes_at_random_are_found_as_by_a_scan(
            declared in 2u8..7, is_framed: bool,
            opcodes in prop::collection::vec(prop::sample::select(OPCODES), 0..12),
        ) {
            let frame = if is_framed { &b"\x95\x05\0\0\0\0\0\0\0"[..] } else { b"" };
            check(&[&[PROTO, declared], frame, &opcodes.concat(), b"."].concat());
        }
    }
}
