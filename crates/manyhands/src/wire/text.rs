//! Texts and counts as every Python reads them: as opcodes of a pickle, and as `repr` shows them.

use bytes::{BufMut, BytesMut};

/// Names in a message, at most.
const NAMES_SHOWN_MAX: usize = 20;

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
    out.put_slice(ascii.as_bytes());
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

/// A list of names as a message shows it, those first that `name` may have meant.
#[must_use]
pub fn nearest_first<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> String {
    let mut names: Vec<_> = names.map(|other| (unlikeness(name, other), other)).collect();
    names.sort_unstable();
    let more = names.len().saturating_sub(NAMES_SHOWN_MAX);
    let shown: Vec<_> = names.iter().take(NAMES_SHOWN_MAX).map(|(_, name)| repr(name)).collect();
    let end = if more > 0 { format!(" and {more} more") } else { String::new() };
    shown.join(", ") + &end
}

/// How much two names differ: what is left of both beside what they begin and end with in common.
fn unlikeness(one: &str, other: &str) -> usize {
    let begin = one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    let rest = one.len().min(other.len()) - begin;
    let (tail, other_tail) = (one.bytes().rev().take(rest), other.bytes().rev());
    let end = tail.zip(other_tail).take_while(|(a, b)| a == b).count();
    one.len() + other.len() - 2 * (begin + end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repr_is_ascii_and_short() {
        assert_eq!(repr("a'b\\c\n\u{e9}\u{20ac}\u{1f600}"), r"'a\'b\\c\n\xe9\u20ac\U0001f600'");
        assert_eq!(repr(&"x".repeat(200)).len(), 80 + 3 + 2);
    }

    #[test]
    fn the_names_that_may_have_been_meant_come_first() {
        let names = ["answers", "tasks.dead", "tasks"];
        assert_eq!(nearest_first("task", names.into_iter()), "'tasks', 'tasks.dead', 'answers'");
        let many = vec!["x"; NAMES_SHOWN_MAX + 2];
        assert!(nearest_first("y", many.into_iter()).ends_with("'x' and 2 more"));
        assert_eq!(nearest_first("y", std::iter::empty()), "");
    }
}
