//! The 68 opcodes of pickle protocols 0 to 5, and a cursor that walks them.
//!
//! The leaf of this folder: it knows how long every opcode is and what it does to the stack, never
//! what its value means. The cursor allocates nothing, reads no byte twice and cannot leave its
//! input: every length is checked against what is there before it is used.

use super::PickleError;

/// How the argument behind an opcode is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// So many bytes, perhaps none.
    Fixed(u8),
    /// A length of one byte, then the content.
    Sized1,
    /// A little-endian length of four bytes, then the content.
    Sized4,
    /// The same, but the length is an `i32` that must not be negative.
    SizedSigned,
    /// A little-endian length of eight bytes, then the content.
    Sized8,
    /// So many text lines, each ended by a newline.
    Lines(u8),
}

/// What an opcode does to stack and memo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::wire) enum Effect {
    /// Nothing: PROTO and FRAME.
    Nothing,
    /// Pushes an immutable value that this opcode alone spells.
    Constant,
    /// Pushes a fresh mutable value.
    Container,
    /// Replaces the top values, so many, by one.
    Build(u8),
    /// Replaces everything down to the topmost mark, and the mark, by one value.
    BuildFromMark,
    /// Takes the top values, so many, into the value below them.
    Change(u8),
    /// Takes everything down to the topmost mark, and the mark, into the value below.
    ChangeFromMark,
    /// Pushes a mark.
    Mark,
    /// Drops the top value, or the mark if that is on top.
    Pop,
    /// Drops everything down to the topmost mark, and the mark.
    PopMark,
    /// Pushes the top value once more.
    Dup,
    /// Stores the top value in the memo and leaves it where it is.
    Store,
    /// Pushes a value from the memo.
    Fetch,
    /// Ends the pickle.
    Stop,
    /// Asks for something outside of the pickle, which no receiver could supply.
    Outside,
}

#[derive(Clone, Copy)]
struct Entry {
    opcode: Opcode,
    layout: Layout,
    effect: Effect,
    protocol: u8,
}

macro_rules! opcodes {
    ($($name:ident $byte:literal $protocol:literal $layout:expr, $effect:expr;)*) => {
        /// An opcode, named as in CPython's `pickletools`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub(in crate::wire) enum Opcode { $($name = $byte,)* }

        const ALL: &[Entry] = {
            use {Effect::*, Layout::*};
            &[$(Entry {
                opcode: Opcode::$name, layout: $layout, effect: $effect, protocol: $protocol,
            },)*]
        };
    };
}

opcodes! {
    Mark            0x28 0 Fixed(0), Mark;
    EmptyTuple      0x29 1 Fixed(0), Constant;
    Stop            0x2e 0 Fixed(0), Stop;
    Pop             0x30 0 Fixed(0), Pop;
    PopMark         0x31 1 Fixed(0), PopMark;
    Dup             0x32 0 Fixed(0), Dup;
    BinBytes        0x42 3 Sized4, Constant;
    ShortBinBytes   0x43 3 Sized1, Constant;
    Float           0x46 0 Lines(1), Constant;
    BinFloat        0x47 1 Fixed(8), Constant;
    Int             0x49 0 Lines(1), Constant;
    BinInt          0x4a 1 Fixed(4), Constant;
    BinInt1         0x4b 1 Fixed(1), Constant;
    Long            0x4c 0 Lines(1), Constant;
    BinInt2         0x4d 1 Fixed(2), Constant;
    None            0x4e 0 Fixed(0), Constant;
    PersId          0x50 0 Lines(1), Outside;
    BinPersId       0x51 1 Fixed(0), Outside;
    Reduce          0x52 0 Fixed(0), Build(2);
    String          0x53 0 Lines(1), Constant;
    BinString       0x54 1 SizedSigned, Constant;
    ShortBinString  0x55 1 Sized1, Constant;
    Unicode         0x56 0 Lines(1), Constant;
    BinUnicode      0x58 1 Sized4, Constant;
    EmptyList       0x5d 1 Fixed(0), Container;
    Append          0x61 0 Fixed(0), Change(1);
    Build           0x62 0 Fixed(0), Change(1);
    Global          0x63 0 Lines(2), Constant;
    Dict            0x64 0 Fixed(0), BuildFromMark;
    Appends         0x65 1 Fixed(0), ChangeFromMark;
    Get             0x67 0 Lines(1), Fetch;
    BinGet          0x68 1 Fixed(1), Fetch;
    Inst            0x69 0 Lines(2), BuildFromMark;
    LongBinGet      0x6a 1 Fixed(4), Fetch;
    List            0x6c 0 Fixed(0), BuildFromMark;
    Obj             0x6f 1 Fixed(0), BuildFromMark;
    Put             0x70 0 Lines(1), Store;
    BinPut          0x71 1 Fixed(1), Store;
    LongBinPut      0x72 1 Fixed(4), Store;
    SetItem         0x73 0 Fixed(0), Change(2);
    Tuple           0x74 0 Fixed(0), BuildFromMark;
    SetItems        0x75 1 Fixed(0), ChangeFromMark;
    EmptyDict       0x7d 1 Fixed(0), Container;
    Proto           0x80 2 Fixed(1), Nothing;
    NewObj          0x81 2 Fixed(0), Build(2);
    Ext1            0x82 2 Fixed(1), Constant;
    Ext2            0x83 2 Fixed(2), Constant;
    Ext4            0x84 2 Fixed(4), Constant;
    Tuple1          0x85 2 Fixed(0), Build(1);
    Tuple2          0x86 2 Fixed(0), Build(2);
    Tuple3          0x87 2 Fixed(0), Build(3);
    NewTrue         0x88 2 Fixed(0), Constant;
    NewFalse        0x89 2 Fixed(0), Constant;
    Long1           0x8a 2 Sized1, Constant;
    Long4           0x8b 2 SizedSigned, Constant;
    ShortBinUnicode 0x8c 4 Sized1, Constant;
    BinUnicode8     0x8d 4 Sized8, Constant;
    BinBytes8       0x8e 4 Sized8, Constant;
    EmptySet        0x8f 4 Fixed(0), Container;
    AddItems        0x90 4 Fixed(0), ChangeFromMark;
    FrozenSet       0x91 4 Fixed(0), BuildFromMark;
    NewObjEx        0x92 4 Fixed(0), Build(3);
    StackGlobal     0x93 4 Fixed(0), Build(2);
    Memoize         0x94 4 Fixed(0), Store;
    Frame           0x95 4 Fixed(8), Nothing;
    ByteArray8      0x96 5 Sized8, Container;
    NextBuffer      0x97 5 Fixed(0), Outside;
    ReadonlyBuffer  0x98 5 Fixed(0), Change(0);
}

#[expect(
    clippy::indexing_slicing,
    reason = "runs at compile time, where it cannot go wrong unseen"
)]
static TABLE: [Option<Entry>; 256] = {
    let mut table = [None; 256];
    let mut i = 0;
    while i < ALL.len() {
        table[ALL[i].opcode as usize] = Some(ALL[i]);
        i += 1;
    }
    table
};

/// One opcode where it stands.
#[derive(Debug, Clone, Copy)]
pub(in crate::wire) struct Op<'a> {
    /// Which.
    pub(in crate::wire) opcode: Opcode,
    /// What it does to stack and memo.
    pub(in crate::wire) effect: Effect,
    /// First protocol that has it.
    pub(in crate::wire) protocol: u8,
    /// Offset of the opcode itself.
    pub(in crate::wire) start: usize,
    /// Offset behind its argument.
    pub(in crate::wire) end: usize,
    /// The argument without its length or final newline; two lines keep the newline between them.
    pub(in crate::wire) argument: &'a [u8],
}

impl<'a> Op<'a> {
    /// The argument as a little-endian unsigned number; 0 without one. For arguments up to 8 bytes.
    pub(in crate::wire) fn unsigned(&self) -> u64 {
        little_endian(self.argument)
    }

    /// Both lines of GLOBAL and INST: module and name.
    pub(in crate::wire) fn lines(&self) -> (&'a [u8], &'a [u8]) {
        let cut = newline(self.argument).unwrap_or(self.argument.len());
        let (module, rest) = self.argument.split_at(cut);
        (module, rest.get(1..).unwrap_or_default())
    }

    /// The memo entry that a [`Effect::Store`] or [`Effect::Fetch`] names; `stored` counts the
    /// stores before it, which is the entry that MEMOIZE means.
    #[inline]
    pub(in crate::wire) fn memo_index(&self, stored: usize) -> Result<usize, PickleError> {
        match self.opcode {
            Opcode::Memoize => Ok(stored),
            Opcode::Get | Opcode::Put => self.decimal_index(),
            _ => usize::try_from(self.unsigned()).map_err(|_| self.malformed("bad memo index")),
        }
    }

    fn decimal_index(&self) -> Result<usize, PickleError> {
        decimal(self.argument).ok_or_else(|| self.malformed("bad memo index"))
    }

    /// An error that points at this opcode.
    pub(in crate::wire) fn malformed(&self, what: &'static str) -> PickleError {
        PickleError::Malformed { what, offset: self.start }
    }
}

/// Walks a pickle, or any run of whole opcodes out of one, from front to back.
///
/// Ends where the bytes end; STOP is an opcode like any other. After an error it yields nothing.
#[derive(Debug, Clone)]
pub(in crate::wire) struct Opcodes<'a> {
    rest: &'a [u8],
    /// Offset behind `rest`.
    end: usize,
}

impl<'a> Opcodes<'a> {
    /// The opcodes of a whole pickle.
    pub(in crate::wire) fn new(pickle: &'a [u8]) -> Self {
        Self { rest: pickle, end: pickle.len() }
    }

    /// The opcodes from offset `start` to `end` of `pickle`; offsets go on counting from its start.
    pub(in crate::wire) fn between(pickle: &'a [u8], start: usize, end: usize) -> Self {
        let end = end.min(pickle.len());
        Self { rest: pickle.get(start..end).unwrap_or_default(), end }
    }

    /// Bytes that are not read yet.
    pub(in crate::wire) fn len(&self) -> usize {
        self.rest.len()
    }

    fn offset(&self) -> usize {
        self.end - self.rest.len()
    }

    /// The next opcode.
    ///
    /// # Errors
    ///
    /// What is wrong with it, or [`PickleError::Truncated`] if no byte is left.
    #[inline(always)]
    pub(in crate::wire) fn read(&mut self) -> Result<Op<'a>, PickleError> {
        let start = self.offset();
        let [byte] = self.take_array()?;
        let Some(Some(entry)) = TABLE.get(usize::from(byte)) else {
            return Err(PickleError::UnknownOpcode { opcode: byte, offset: start });
        };
        let &Entry { opcode, layout, effect, protocol } = entry;
        let argument = match layout {
            Layout::Fixed(len) => self.take(len.into())?,
            Layout::Sized1 => {
                let len = u8::from_le_bytes(self.take_array()?);
                self.take(len.into())?
            }
            Layout::Sized4 => {
                let len = u32::from_le_bytes(self.take_array()?);
                self.take_long(len.into())?
            }
            Layout::Sized8 => {
                let len = u64::from_le_bytes(self.take_array()?);
                self.take_long(len)?
            }
            Layout::SizedSigned => {
                let len = u64::try_from(i32::from_le_bytes(self.take_array()?));
                let negative = PickleError::Malformed { what: "negative length", offset: start };
                self.take_long(len.map_err(|_| negative)?)?
            }
            Layout::Lines(count) => self.take_lines(count)?,
        };
        Ok(Op { opcode, effect, protocol, start, end: self.offset(), argument })
    }

    #[inline]
    fn take(&mut self, len: usize) -> Result<&'a [u8], PickleError> {
        let Some((taken, rest)) = self.rest.split_at_checked(len) else {
            return Err(self.truncated());
        };
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let Some((taken, rest)) = self.rest.split_first_chunk() else {
            return Err(self.truncated());
        };
        self.rest = rest;
        Ok(*taken)
    }

    fn take_long(&mut self, len: u64) -> Result<&'a [u8], PickleError> {
        self.take(usize::try_from(len).map_err(|_| self.truncated())?)
    }

    fn take_lines(&mut self, count: u8) -> Result<&'a [u8], PickleError> {
        let mut len = 0;
        for _ in 0..count {
            let line = newline(self.rest.get(len..).unwrap_or_default());
            len += line.ok_or_else(|| self.truncated())? + 1;
        }
        let lines = self.take(len)?;
        Ok(lines.strip_suffix(b"\n").unwrap_or(lines))
    }

    fn truncated(&self) -> PickleError {
        PickleError::Truncated { offset: self.end }
    }
}

impl<'a> Iterator for Opcodes<'a> {
    type Item = Result<Op<'a>, PickleError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let op = self.read();
        if op.is_err() {
            self.rest = &[];
        }
        Some(op)
    }
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// A number as CPython writes it into PUT and GET: no sign, no spare zeros.
fn decimal(digits: &[u8]) -> Option<usize> {
    let plain = digits.iter().all(u8::is_ascii_digit)
        && (digits.len() == 1 || digits.first() != Some(&b'0'));
    let number = std::str::from_utf8(digits).ok().filter(|_| plain)?;
    usize::try_from(number.parse::<u32>().ok()?).ok()
}

fn newline(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|&byte| byte == b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(bytes: &[u8]) -> Result<Op<'_>, PickleError> {
        Opcodes::new(bytes).next().unwrap()
    }

    #[test]
    fn the_table_has_every_opcode_once() {
        assert_eq!(ALL.len(), 68);
        assert_eq!(TABLE.iter().flatten().count(), 68);
    }

    #[test]
    fn arguments_come_without_their_length_and_newline() {
        assert_eq!(first(b"\x8c\x03abcN").unwrap().argument, b"abc");
        assert_eq!(first(b"X\x03\0\0\0abcN").unwrap().argument, b"abc");
        assert_eq!(first(b"T\x03\0\0\0abcN").unwrap().argument, b"abc");
        assert_eq!(first(b"\x8e\x03\0\0\0\0\0\0\0abcN").unwrap().argument, b"abc");
        assert_eq!(first(b"I12\nN").unwrap().argument, b"12");
        assert_eq!(first(b"cQueue\nEmpty\nN").unwrap().lines(), (&b"Queue"[..], &b"Empty"[..]));
        assert_eq!(first(b"M\x01\x02N").unwrap().unsigned(), 0x0201);
    }

    #[test]
    fn offsets_count_from_the_start_of_the_pickle() {
        let ops: Vec<_> =
            Opcodes::between(b"\x80\x02K\x07\x85.", 2, 5).map(Result::unwrap).collect();
        assert_eq!(ops.iter().map(|op| (op.start, op.end)).collect::<Vec<_>>(), [(2, 4), (4, 5)]);
    }

    #[test]
    fn a_length_beyond_the_end_is_truncation_however_large() {
        let cases: [&[u8]; 8] = [
            b"\x8c\x03ab",
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
            b"X\xff\xff\xff\xffab",
            b"J\0\0",
            b"X\0",
            b"I12",
            b"cQueue\nEmpty",
            b"\x8b\xff\xff\xff\x7f",
        ];
        for bytes in cases {
            let error = first(bytes).unwrap_err();
            assert_eq!(error, PickleError::Truncated { offset: bytes.len() }, "{bytes:?}");
        }
    }

    #[test]
    fn a_negative_length_is_refused() {
        for bytes in [b"\x8b\xff\xff\xff\xff", b"T\0\0\0\x80"] {
            let what = "negative length";
            assert_eq!(first(bytes).unwrap_err(), PickleError::Malformed { what, offset: 0 });
        }
    }

    #[test]
    fn an_unknown_opcode_is_named_and_ends_the_walk() {
        let mut opcodes = Opcodes::new(b"N\xffN");
        assert!(opcodes.next().unwrap().is_ok());
        let unknown = PickleError::UnknownOpcode { opcode: 0xff, offset: 1 };
        assert_eq!(opcodes.next().unwrap().unwrap_err(), unknown);
        assert!(opcodes.next().is_none());
    }

    #[test]
    fn memo_indexes_are_read_in_every_form() {
        let index = |bytes| first(bytes).unwrap().memo_index(9);
        assert_eq!(index(b"\x94"), Ok(9));
        assert_eq!(index(b"h\x05"), Ok(5));
        assert_eq!(index(b"r\0\0\0\x80"), Ok(1 << 31));
        assert_eq!(index(b"g12\n"), Ok(12));
        for text in [b"p\n".as_slice(), b"p-1\n", b"p+1\n", b"p01\n", b"p4294967296\n", b"px\n"] {
            assert!(index(text).is_err(), "{text:?}");
        }
    }
}
