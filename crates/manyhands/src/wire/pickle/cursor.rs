//! Steps through a pickle one opcode at a time, without meaning.
//!
//! Knows how long each of the 68 opcodes of protocols 0 to 5 is; a count is checked against the
//! bytes that are there before it is used. Source: CPython `Lib/pickletools.py`.

use super::PickleError;

macro_rules! opcodes {
    ($($name:ident = $code:expr;)*) => {
        /// The opcodes, under the names of CPython's `pickle.py`.
        #[allow(missing_docs, reason = "the names are CPython's")]
        pub(super) mod op {
            $(pub(in crate::wire) const $name: u8 = $code;)*
        }
    };
}

opcodes! {
    MARK = b'('; EMPTY_TUPLE = b')'; STOP = b'.'; POP = b'0'; POP_MARK = b'1'; DUP = b'2';
    BINBYTES = b'B'; SHORT_BINBYTES = b'C'; FLOAT = b'F'; BINFLOAT = b'G'; INT = b'I';
    BININT = b'J'; BININT1 = b'K'; LONG = b'L'; BININT2 = b'M'; NONE = b'N'; PERSID = b'P';
    BINPERSID = b'Q'; REDUCE = b'R'; STRING = b'S'; BINSTRING = b'T'; SHORT_BINSTRING = b'U';
    UNICODE = b'V'; BINUNICODE = b'X'; EMPTY_LIST = b']'; APPEND = b'a'; BUILD = b'b';
    GLOBAL = b'c'; DICT = b'd'; APPENDS = b'e'; GET = b'g'; BINGET = b'h'; INST = b'i';
    LONG_BINGET = b'j'; LIST = b'l'; OBJ = b'o'; PUT = b'p'; BINPUT = b'q'; LONG_BINPUT = b'r';
    SETITEM = b's'; TUPLE = b't'; SETITEMS = b'u'; EMPTY_DICT = b'}'; PROTO = 0x80;
    NEWOBJ = 0x81; EXT1 = 0x82; EXT2 = 0x83; EXT4 = 0x84; TUPLE1 = 0x85; TUPLE2 = 0x86;
    TUPLE3 = 0x87; NEWTRUE = 0x88; NEWFALSE = 0x89; LONG1 = 0x8a; LONG4 = 0x8b;
    SHORT_BINUNICODE = 0x8c; BINUNICODE8 = 0x8d; BINBYTES8 = 0x8e; EMPTY_SET = 0x8f;
    ADDITEMS = 0x90; FROZENSET = 0x91; NEWOBJ_EX = 0x92; STACK_GLOBAL = 0x93; MEMOIZE = 0x94;
    FRAME = 0x95; BYTEARRAY8 = 0x96; NEXT_BUFFER = 0x97; READONLY_BUFFER = 0x98;
}

/// One opcode and its argument.
#[derive(Debug, Clone, Copy)]
pub(in crate::wire) struct Op<'p> {
    /// Where it stands in the pickle.
    pub(in crate::wire) offset: usize,
    /// The opcode itself.
    pub(in crate::wire) code: u8,
    /// Its argument: without the count in front of it, or the line feed behind it. The two lines
    /// of a global name keep the line feed between them.
    pub(in crate::wire) arg: &'p [u8],
}

/// Where the reader stands in a pickle.
#[derive(Debug)]
pub(in crate::wire) struct Cursor<'p> {
    bytes: &'p [u8],
    at: usize,
}

impl<'p> Cursor<'p> {
    pub(in crate::wire) fn new(bytes: &'p [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// How far the cursor has come, in bytes.
    pub(in crate::wire) fn offset(&self) -> usize {
        self.at
    }

    /// Steps over the next opcode; `None` at the end of the bytes.
    pub(in crate::wire) fn next(&mut self) -> Result<Option<Op<'p>>, PickleError> {
        let offset = self.at;
        let Some(&code) = self.bytes.get(offset) else { return Ok(None) };
        self.at += 1;
        let arg = match code {
            op::PROTO | op::BININT1 | op::BINGET | op::BINPUT | op::EXT1 => self.take(1)?,
            op::BININT2 | op::EXT2 => self.take(2)?,
            op::BININT | op::LONG_BINGET | op::LONG_BINPUT | op::EXT4 => self.take(4)?,
            op::BINFLOAT | op::FRAME => self.take(8)?,
            op::SHORT_BINBYTES | op::SHORT_BINSTRING | op::SHORT_BINUNICODE | op::LONG1 => {
                self.counted(1)?
            }
            op::BINBYTES | op::BINUNICODE => self.counted(4)?,
            op::BINSTRING | op::LONG4 => self.counted_signed(offset)?,
            op::BINUNICODE8 | op::BINBYTES8 | op::BYTEARRAY8 => self.counted(8)?,
            op::FLOAT | op::INT | op::LONG | op::PERSID | op::STRING | op::UNICODE => {
                self.lines(1)?
            }
            op::GET | op::PUT => self.lines(1)?,
            op::GLOBAL | op::INST => self.lines(2)?,
            op::MARK | op::EMPTY_TUPLE | op::STOP | op::POP | op::POP_MARK | op::DUP => &[],
            op::NONE | op::BINPERSID | op::REDUCE | op::EMPTY_LIST | op::APPEND | op::BUILD => &[],
            op::DICT | op::APPENDS | op::LIST | op::OBJ | op::SETITEM | op::TUPLE => &[],
            op::SETITEMS | op::EMPTY_DICT | op::NEWOBJ | op::TUPLE1..=op::NEWFALSE => &[],
            op::EMPTY_SET..=op::MEMOIZE | op::NEXT_BUFFER | op::READONLY_BUFFER => &[],
            opcode => return Err(PickleError::UnknownOpcode { opcode, offset }),
        };
        Ok(Some(Op { offset, code, arg }))
    }

    fn take(&mut self, len: usize) -> Result<&'p [u8], PickleError> {
        let taken = self
            .at
            .checked_add(len)
            .and_then(|end| self.bytes.get(self.at..end))
            .ok_or(PickleError::Truncated { offset: self.bytes.len() })?;
        self.at += len;
        Ok(taken)
    }

    /// Bytes behind their count, an unsigned little-endian number of `width` bytes.
    fn counted(&mut self, width: usize) -> Result<&'p [u8], PickleError> {
        let count = little_endian(self.take(width)?);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        self.take(count)
    }

    /// Bytes behind a signed count of four bytes.
    fn counted_signed(&mut self, offset: usize) -> Result<&'p [u8], PickleError> {
        let count = little_endian(self.take(4)?);
        if count > i32::MAX as u64 {
            return Err(PickleError::Malformed { what: "negative byte count", offset });
        }
        self.take(usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// `count` lines, without the last line feed.
    fn lines(&mut self, count: usize) -> Result<&'p [u8], PickleError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let end = rest.iter().enumerate().filter(|&(_, &byte)| byte == b'\n').nth(count - 1);
        let Some((end, _)) = end else {
            return Err(PickleError::Truncated { offset: self.bytes.len() });
        };
        let lines = self.take(end)?;
        self.at += 1;
        Ok(lines)
    }
}

/// Reads an unsigned little-endian number of at most eight bytes.
pub(in crate::wire) fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(pickle: &[u8]) -> Result<Vec<(u8, Vec<u8>)>, PickleError> {
        let mut cursor = Cursor::new(pickle);
        let mut found = Vec::new();
        while let Some(op) = cursor.next()? {
            found.push((op.code, op.arg.to_vec()));
        }
        Ok(found)
    }

    #[test]
    fn sixty_eight_opcodes_are_known() {
        let known = (0..=255u8)
            .filter(|&code| !matches!(codes(&[code]), Err(PickleError::UnknownOpcode { .. })));
        assert_eq!(known.count(), 68);
    }

    #[test]
    fn arguments_of_every_kind_are_found() {
        let pickle = b"\x80\x04U\x03abc\x8c\x02hiT\x01\0\0\0xcmodule\nname\nI12\n.";
        let found = codes(pickle).unwrap();
        let args: Vec<_> =
            found.iter().map(|(_, arg)| String::from_utf8_lossy(arg).into_owned()).collect();
        assert_eq!(args, ["\u{4}", "abc", "hi", "x", "module\nname", "12", ""]);
    }

    #[test]
    fn absurd_counts_are_truncation_not_allocation() {
        for pickle in [&b"X\xff\xff\xff\xff"[..], b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff", b"I1"] {
            assert_eq!(codes(pickle), Err(PickleError::Truncated { offset: pickle.len() }));
        }
        let negative = codes(b"\x8b\xff\xff\xff\xff");
        let expected = PickleError::Malformed { what: "negative byte count", offset: 0 };
        assert_eq!(negative, Err(expected));
    }
}
