//! Texts and counts as every Python reads them: as opcodes of a pickle, and as `repr` shows them.

use bytes::{BufMut, BytesMut};

/// A text that need not be ASCII.
pub(super) fn write_unicode(text: &str, out: &mut BytesMut) {
    out.put_u8(b'X');
    out.put_u32_le(u32::try_from(text.len()).unwrap_or(u32::MAX));
    out.put_slice(text.as_bytes());
}

pub(super) fn write_count(count: u64, out: &mut BytesMut) {
    if let Ok(small) = u8::try_from(count) {
        out.put_u8(b'K');
        out.put_u8(small);
    } else if let Ok(medium) = i32::try_from(count) {
        out.put_u8(b'J');
        out.put_i32_le(medium);
    } else {
        // Nine bytes, so that the sign bit is clear.
        out.put_slice(b"\x8a\x09");
        out.put_u64_le(count);
        out.put_u8(0);
    }
}

/// A byte string, which is a `str` in Python 2 and, because it is ASCII, in Python 3 too.
pub(super) fn write_text(text: &str, out: &mut BytesMut) {
    let escaped;
    let ascii = if text.is_ascii() {
        text
    } else {
        escaped = escape(text);
        &escaped
    };
    write_ascii(ascii.as_bytes(), out);
}

/// The same for a text that is ASCII.
pub(super) fn write_ascii(ascii: &[u8], out: &mut BytesMut) {
    match u8::try_from(ascii.len()) {
        Ok(len) => {
            out.put_u8(b'U');
            out.put_u8(len);
        }
        Err(_) => {
            out.put_u8(b'T');
            out.put_i32_le(i32::try_from(ascii.len()).unwrap_or(i32::MAX));
        }
    }
    out.put_slice(ascii);
}

/// `text` with everything but printable ASCII and line ends escaped as Python would.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut ascii = String::with_capacity(text.len());
    for char in text.chars() {
        match u32::from(char) {
            _ if char == '\n' || char == ' ' || char.is_ascii_graphic() => ascii.push(char),
            code @ ..=0xff => ascii.push_str(&format!("\\x{code:02x}")),
            code @ ..=0xffff => ascii.push_str(&format!("\\u{code:04x}")),
            code => ascii.push_str(&format!("\\U{code:08x}")),
        }
    }
    ascii
}

/// `text` in quotes, as Python's `repr` shows a `str`, in ASCII. Long texts are cut.
#[must_use]
pub fn repr(text: &str) -> String {
    const SHOWN_MAX: usize = 80;
    let cut = text.char_indices().nth(SHOWN_MAX).map_or(text.len(), |(end, _)| end);
    let (shown, rest) = text.split_at(cut);
    let dots = if rest.is_empty() { "" } else { "..." };
    let escaped = escape(&shown.replace('\\', "\\\\").replace('\'', "\\'")).replace('\n', "\\n");
    format!("'{escaped}{dots}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repr_is_ascii_and_short() {
        assert_eq!(repr("a'b\\c\n\u{e9}\u{20ac}\u{1f600}"), r"'a\'b\\c\n\xe9\u20ac\U0001f600'");
        assert_eq!(repr(&"x".repeat(200)).len(), 80 + 3 + 2);
    }
}
