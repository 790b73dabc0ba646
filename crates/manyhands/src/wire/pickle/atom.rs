//! Simple values, read from the one opcode that spells each.

use std::borrow::Cow;

use bytes::Bytes;

use super::lines::{quoted, raw_unicode_escape};
use super::opcode::{Op, Opcode};

/// A simple value of an argument, read without building objects.
#[derive(Debug, Clone, PartialEq)]
pub enum Atom {
    /// `None`
    None,
    /// `bool`
    Bool(bool),
    /// `int`; the nearest `i64` if it is larger.
    Int(i64),
    /// `float`
    Float(f64),
    /// `str`; also a Python 2 byte string that is ASCII.
    Text(String),
    /// `bytes`; also a Python 2 byte string that is not ASCII.
    Bytes(Bytes),
}

impl Atom {
    /// The value that `op` pushes; `None` if it is not a simple one, or misspelled.
    pub(super) fn read(op: &Op<'_>) -> Option<Self> {
        match op.opcode {
            Opcode::None => Some(Self::None),
            Opcode::NewTrue => Some(Self::Bool(true)),
            Opcode::NewFalse => Some(Self::Bool(false)),
            Opcode::Int => match op.argument {
                b"01" => Some(Self::Bool(true)),
                b"00" => Some(Self::Bool(false)),
                digits => decimal(digits).map(Self::Int),
            },
            Opcode::Long => {
                decimal(op.argument.strip_suffix(b"L").unwrap_or(op.argument)).map(Self::Int)
            }
            Opcode::BinInt1 | Opcode::BinInt2 => i64::try_from(op.unsigned()).ok().map(Self::Int),
            Opcode::BinInt | Opcode::Long1 | Opcode::Long4 => {
                Some(Self::Int(twos_complement(op.argument)))
            }
            Opcode::Float => {
                std::str::from_utf8(op.argument).ok()?.trim().parse().ok().map(Self::Float)
            }
            Opcode::BinFloat => {
                op.argument.try_into().ok().map(f64::from_be_bytes).map(Self::Float)
            }
            Opcode::BinBytes | Opcode::ShortBinBytes | Opcode::BinBytes8 => {
                Some(Self::Bytes(Bytes::copy_from_slice(op.argument)))
            }
            Opcode::String | Opcode::BinString | Opcode::ShortBinString => {
                let bytes = byte_string(op)?;
                Some(match std::str::from_utf8(&bytes) {
                    Ok(ascii) if ascii.is_ascii() => Self::Text(ascii.to_owned()),
                    _ => Self::Bytes(Bytes::from(bytes.into_owned())),
                })
            }
            _ => text(op).map(|text| Self::Text(text.into_owned())),
        }
    }
}

/// The text that `op` pushes: a `str`, or a Python 2 byte string that is ASCII. `None` if it is
/// something else, or has lone surrogates.
pub(super) fn text<'a>(op: &Op<'a>) -> Option<Cow<'a, str>> {
    match op.opcode {
        Opcode::ShortBinUnicode | Opcode::BinUnicode | Opcode::BinUnicode8 => {
            std::str::from_utf8(op.argument).ok().map(Cow::Borrowed)
        }
        Opcode::ShortBinString | Opcode::BinString if op.argument.is_ascii() => {
            std::str::from_utf8(op.argument).ok().map(Cow::Borrowed)
        }
        Opcode::String => {
            let bytes = quoted(op.argument).filter(|bytes| bytes.is_ascii())?;
            String::from_utf8(bytes).ok().map(Cow::Owned)
        }
        Opcode::Unicode => raw_unicode_escape(op.argument).map(Cow::Owned),
        _ => None,
    }
}

/// The same, if it stands in the pickle as it is.
pub(super) fn verbatim<'a>(op: &Op<'a>) -> Option<&'a str> {
    match text(op)? {
        Cow::Borrowed(text) => Some(text),
        Cow::Owned(_) => None,
    }
}

fn byte_string<'a>(op: &Op<'a>) -> Option<Cow<'a, [u8]>> {
    match op.opcode {
        Opcode::String => quoted(op.argument).map(Cow::Owned),
        _ => Some(Cow::Borrowed(op.argument)),
    }
}

/// A decimal number, cut off at the ends of `i64`. Long runs of digits cost nothing to read.
fn decimal(digits: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(digits).ok()?.trim();
    let magnitude = text.strip_prefix(['-', '+']).unwrap_or(text);
    if magnitude.is_empty() || !magnitude.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let end = if text.starts_with('-') { i64::MIN } else { i64::MAX };
    Some(text.parse().unwrap_or(end))
}

/// A little-endian number with sign, cut off at the ends of `i64`.
fn twos_complement(bytes: &[u8]) -> i64 {
    let negative = bytes.last().is_some_and(|&top| top & 0x80 != 0);
    let fill = if negative { 0xff } else { 0 };
    let (low, high) = bytes.split_at(bytes.len().min(8));
    let mut number = [fill; 8];
    for (to, from) in number.iter_mut().zip(low) {
        *to = *from;
    }
    let number = i64::from_le_bytes(number);
    let fits = high.iter().all(|&byte| byte == fill) && (number < 0) == negative;
    match (fits, negative) {
        (true, _) => number,
        (false, true) => i64::MIN,
        (false, false) => i64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::super::opcode::Opcodes;
    use super::*;

    fn read(pickle: &[u8]) -> Option<Atom> {
        Atom::read(&Opcodes::new(pickle).next().unwrap().unwrap())
    }

    fn text(text: &str) -> Option<Atom> {
        Some(Atom::Text(text.to_owned()))
    }

    #[test]
    fn integers_of_every_spelling_are_read_and_cut_off_at_64_bits() {
        assert_eq!(read(b"K\xff"), Some(Atom::Int(255)));
        assert_eq!(read(b"M\x01\x02"), Some(Atom::Int(0x201)));
        assert_eq!(read(b"J\xff\xff\xff\xff"), Some(Atom::Int(-1)));
        assert_eq!(read(b"\x8a\0"), Some(Atom::Int(0)));
        assert_eq!(read(b"\x8a\x02\0\x80"), Some(Atom::Int(-32768)));
        assert_eq!(read(b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\0"), Some(Atom::Int(i64::MAX)));
        assert_eq!(read(b"\x8a\x09\0\0\0\0\0\0\0\0\xff"), Some(Atom::Int(i64::MIN)));
        assert_eq!(read(b"\x8b\x01\0\0\0\x07"), Some(Atom::Int(7)));
        assert_eq!(read(b"I-12\n"), Some(Atom::Int(-12)));
        assert_eq!(read(b"L99999999999999999999L\n"), Some(Atom::Int(i64::MAX)));
        assert_eq!(read(b"L-99999999999999999999L\n"), Some(Atom::Int(i64::MIN)));
        assert_eq!(read(b"I01\n"), Some(Atom::Bool(true)));
        assert_eq!(read(b"I00\n"), Some(Atom::Bool(false)));
        assert_eq!(read(b"Ix\n"), None);
        assert_eq!(read(b"I-\n"), None);
    }

    #[test]
    fn floats_of_both_spellings_are_read() {
        assert_eq!(read(b"F2.5\n"), Some(Atom::Float(2.5)));
        assert_eq!(read(b"F-inf\n"), Some(Atom::Float(f64::NEG_INFINITY)));
        assert_eq!(read(b"G\x40\x04\0\0\0\0\0\0"), Some(Atom::Float(2.5)));
    }

    #[test]
    fn text_of_every_spelling_is_read() {
        assert_eq!(read(b"\x8c\x03put"), text("put"));
        assert_eq!(read(b"X\x02\0\0\0\xc3\xa9"), text("\u{e9}"));
        assert_eq!(read(b"Va\\u005c\\U0001f600\xe9\\x\n"), text("a\\\u{1f600}\u{e9}\\x"));
        assert_eq!(read(b"U\x03put"), text("put"));
        assert_eq!(read(b"S'p\\x75t\\n\\''\n"), text("put\n'"));
        assert_eq!(read(b"U\x01\xe9"), Some(Atom::Bytes(Bytes::from_static(b"\xe9"))));
        assert_eq!(read(b"S'\\xe9'\n"), Some(Atom::Bytes(Bytes::from_static(b"\xe9"))));
        assert_eq!(read(b"C\x01a"), Some(Atom::Bytes(Bytes::from_static(b"a"))));
    }

    #[test]
    fn misspelled_text_is_no_value() {
        let cases: [&[u8]; 4] = [b"S'a\n", b"V\\ud800\n", b"\x8c\x03\xed\xa0\x80", b"\x8c\x01\xff"];
        for case in cases {
            assert_eq!(read(case), None, "{case:?}");
        }
    }

    #[test]
    fn what_needs_code_is_no_value() {
        assert_eq!(read(b"cQueue\nEmpty\n"), None);
        assert_eq!(read(b")"), None);
        assert_eq!(read(b"]"), None);
    }
}
