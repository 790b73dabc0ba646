//! A list of `bytes`: how our own clients send many items at once. Nothing is built, and nothing is
//! copied.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::opcode::{Effect, Op, Opcode, Opcodes};
use super::{Payload, PickleError};

/// Values and memo entries beside the items: the list itself, and texts of the request.
const BESIDE_MAX: usize = 128;

/// What a reader of batches keeps of a value.
#[derive(Debug, Clone)]
enum Slot {
    Item(Bytes),
    Items(Vec<Bytes>),
    Mark,
    /// Not `bytes`: a text that the memo needs, for example.
    Other,
}

/// Reads one pickle of a list or tuple of `bytes`.
#[derive(Debug, Default)]
struct Reader {
    /// Most items that a batch may have.
    len_max: usize,
    stack: Vec<Slot>,
    /// `None`: something that is no item.
    memo: BTreeMap<usize, Option<Bytes>>,
}

impl Payload {
    /// The elements of a list or tuple of `bytes`. They share the memory of this payload.
    ///
    /// # Errors
    ///
    /// [`PickleError::Malformed`] if it is anything else; [`PickleError::TooLarge`] if there are
    /// more than `len_max`.
    pub fn batch(&self, len_max: usize) -> Result<Vec<Bytes>, PickleError> {
        let mut reader = Reader { len_max, ..Reader::default() };
        for op in Opcodes::new(&self.bytes) {
            reader.apply(&op?, &self.bytes)?;
        }
        let items = match reader.stack.as_mut_slice() {
            [Slot::Items(items)] => std::mem::take(items),
            _ => return Err(no_batch(0)),
        };
        reader.check(items.len())?;
        Ok(items)
    }
}

impl Reader {
    fn apply(&mut self, op: &Op<'_>, pickle: &Bytes) -> Result<(), PickleError> {
        let slot = match (op.effect, op.opcode) {
            (
                Effect::Constant,
                Opcode::BinBytes
                | Opcode::ShortBinBytes
                | Opcode::BinBytes8
                | Opcode::BinString
                | Opcode::ShortBinString,
            ) => Slot::Item(pickle.slice_ref(op.argument)),
            (_, Opcode::EmptyList | Opcode::EmptyTuple) => Slot::Items(Vec::new()),
            (Effect::Constant, _) => Slot::Other,
            (Effect::Mark, _) => Slot::Mark,
            (Effect::Build(len), Opcode::Tuple1 | Opcode::Tuple2 | Opcode::Tuple3) => {
                let from = self.stack.len().checked_sub(len.into()).ok_or(no_batch(op.start))?;
                Slot::Items(self.items_from(from, op)?)
            }
            (_, Opcode::Tuple | Opcode::List) => Slot::Items(self.items_from_mark(op)?),
            (_, Opcode::Append) => {
                let from = self.stack.len().checked_sub(1).ok_or(no_batch(op.start))?;
                let items = self.items_from(from, op)?;
                return self.extend(items, op);
            }
            (_, Opcode::Appends) => {
                let items = self.items_from_mark(op)?;
                return self.extend(items, op);
            }
            (Effect::Store, _) => {
                let item = match self.stack.last() {
                    Some(Slot::Item(item)) => Some(item.clone()),
                    _ => None,
                };
                self.memo.insert(op.memo_index(self.memo.len())?, item);
                return self.check(self.memo.len().saturating_sub(BESIDE_MAX));
            }
            (Effect::Fetch, _) => match self.memo.get(&op.memo_index(0)?) {
                Some(Some(item)) => Slot::Item(item.clone()),
                _ => return Err(no_batch(op.start)),
            },
            (Effect::Pop, _) => {
                self.stack.pop();
                return Ok(());
            }
            (Effect::Nothing, _) => return Ok(()),
            _ => return Err(no_batch(op.start)),
        };
        self.stack.push(slot);
        self.check(self.stack.len().saturating_sub(BESIDE_MAX))
    }

    /// Nothing that is kept while it is read grows beyond what a batch needs.
    fn check(&self, items: usize) -> Result<(), PickleError> {
        if items <= self.len_max {
            return Ok(());
        }
        Err(PickleError::TooLarge { what: "items in a batch", limit: self.len_max })
    }

    fn items_from_mark(&mut self, op: &Op<'_>) -> Result<Vec<Bytes>, PickleError> {
        let mark = self.stack.iter().rposition(|slot| matches!(slot, Slot::Mark));
        let mark = mark.ok_or(no_batch(op.start))?;
        let items = self.items_from(mark + 1, op)?;
        self.stack.pop();
        Ok(items)
    }

    fn items_from(&mut self, from: usize, op: &Op<'_>) -> Result<Vec<Bytes>, PickleError> {
        let mut items = Vec::with_capacity(self.stack.len().saturating_sub(from));
        for slot in self.stack.drain(from..) {
            match slot {
                Slot::Item(item) => items.push(item),
                _ => return Err(no_batch(op.start)),
            }
        }
        Ok(items)
    }

    fn extend(&mut self, more: Vec<Bytes>, op: &Op<'_>) -> Result<(), PickleError> {
        let len = match self.stack.last_mut() {
            Some(Slot::Items(items)) => {
                items.extend(more);
                items.len()
            }
            _ => return Err(no_batch(op.start)),
        };
        self.check(len)
    }
}

fn no_batch(offset: usize) -> PickleError {
    PickleError::Malformed { what: "not a list of bytes", offset }
}

#[cfg(test)]
mod tests {
    use super::super::Limits;
    use super::*;

    fn batch(pickle: &'static [u8]) -> Result<Vec<Bytes>, PickleError> {
        Payload::from_standalone(Bytes::from_static(pickle), &Limits::default())?.batch(4)
    }

    // As Python writes them: 2.7 with protocol 2, 3.7 with 3, 3.8 with 4.
    #[test]
    fn lists_and_tuples_of_every_python_are_read() {
        let batches = [
            &b"\x80\x02]q\x00(U\x01aq\x01U\x01bq\x02e."[..],
            b"\x80\x03]q\x00(C\x01aq\x01C\x01bq\x02e.",
            b"\x80\x04\x95\x0d\0\0\0\0\0\0\0]\x94(C\x01a\x94C\x01b\x94e.",
            b"\x80\x04C\x01a\x94C\x01b\x94\x86\x94.",
            b"\x80\x03(B\x01\0\0\0aC\x01bt.",
            b"\x80\x03(C\x01aC\x01bl.",
        ];
        for pickle in batches {
            assert_eq!(batch(pickle).unwrap(), ["a", "b"], "{}", pickle.escape_ascii());
        }
        assert_eq!(batch(b"\x80\x04]\x94.").unwrap(), [""; 0]);
        assert_eq!(batch(b"\x80\x04).").unwrap(), [""; 0]);
        assert_eq!(batch(b"\x80\x04]\x94C\x01a\x94a.").unwrap(), ["a"]);
    }

    #[test]
    fn an_item_that_occurs_twice_is_shared() {
        assert_eq!(batch(b"\x80\x04]\x94(C\x01a\x94h\x01h\x01e.").unwrap(), ["a", "a", "a"]);
    }

    #[test]
    fn what_is_no_batch_is_refused() {
        let others = [
            &b"\x80\x04N."[..],
            b"\x80\x04C\x01a.",
            b"\x80\x04]\x94Na.",
            b"\x80\x04]\x94(C\x01a\x94Ne.",
            b"\x80\x04]\x94]\x94a.",
            b"\x80\x04}\x94.",
            b"\x80\x04]\x94h\x00a.",
            b"\x80\x04]\x94(C\x01a\x94Ku\x8c\x01xe.",
            b"\x80\x04]\x94C\x01a\x94a2a.",
        ];
        for pickle in others {
            assert!(batch(pickle).is_err(), "{}", pickle.escape_ascii());
        }
        let five = batch(b"\x80\x04]\x94(C\x01a\x94h\x01h\x01h\x01h\x01e.");
        assert_eq!(five, Err(PickleError::TooLarge { what: "items in a batch", limit: 4 }));
    }

    #[test]
    fn what_is_no_batch_is_refused_before_it_takes_memory() {
        let many = |begin: &[u8], op: &[u8], end: &[u8]| {
            let bytes = [begin, &op.repeat(1000), end].concat().into();
            Payload::pickle(4, bytes).batch(4)
        };
        let too_large = Err(PickleError::TooLarge { what: "items in a batch", limit: 4 });
        assert_eq!(many(b"(", b"N", b"t"), too_large);
        assert_eq!(many(b"(", b"C\0", b"t"), too_large);
        assert_eq!(many(b"", b"(", b""), too_large);
        assert_eq!(many(b"]", b"C\0a", b""), too_large);
        assert_eq!(many(b"]", b"\x94", b""), too_large);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(0u8.., 0..60)) {
            let payload = Payload::pickle(4, bytes.into());
            drop(payload.batch(10));
        }
    }
}
