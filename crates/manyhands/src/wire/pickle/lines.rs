//! What the text lines of protocol 0 spell.

/// Undoes Python's `raw-unicode-escape`. `None` for a bad escape or a lone surrogate.
pub(super) fn raw_unicode_escape(line: &[u8]) -> Option<String> {
    let mut units = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some((&byte, after)) = rest.split_first() {
        let (kind, width) = match after.first() {
            Some(b'u') if byte == b'\\' => (b'u', 4),
            Some(b'U') if byte == b'\\' => (b'U', 8),
            Some(&next) if byte == b'\\' => (next, 0),
            _ => (byte, 0),
        };
        if width > 0 {
            let code = hexadecimal(after.get(1..=width)?)?;
            match (char::from_u32(code), u16::try_from(code)) {
                (Some(c), _) => units.extend_from_slice(c.encode_utf16(&mut [0; 2])),
                (None, Ok(surrogate)) => units.push(surrogate),
                (None, Err(_)) => return None,
            }
            rest = after.get(1 + width..)?;
        } else if byte == b'\\' && !after.is_empty() {
            // A backslash shields the character behind it, even another backslash.
            units.extend([u16::from(byte), u16::from(kind)]);
            rest = after.get(1..)?;
        } else {
            units.push(u16::from(byte));
            rest = after;
        }
    }
    String::from_utf16(&units).ok()
}

/// Reads the `repr` of a Python 2 byte string. `None` for bad quotes or escapes.
pub(super) fn quoted(line: &[u8]) -> Option<Vec<u8>> {
    let inner = match line.trim_ascii() {
        [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => inner,
        _ => return None,
    };
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.iter().copied();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next()? {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'a' => 0x07,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'v' => 0x0b,
            b'x' => {
                let digits = [rest.next()?, rest.next()?];
                u8::try_from(hexadecimal(&digits)?).ok()?
            }
            same @ (b'\\' | b'\'' | b'"') => same,
            _ => return None,
        });
    }
    Some(bytes)
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |number, &digit| Some(number << 4 | char::from(digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_undone() {
        let text = raw_unicode_escape(b"a\\u005c\\U0001f600\xe9\\x\\\\u0041");
        assert_eq!(text.as_deref(), Some("a\\\u{1f600}\u{e9}\\x\\\\u0041"));
        assert_eq!(raw_unicode_escape(b"\\ud83d\\ude00").as_deref(), Some("\u{1f600}"));
        assert_eq!(quoted(b"'p\\x75t\\n\\'\"'").as_deref(), Some(&b"put\n'\""[..]));
        assert_eq!(quoted(b"\"a'b\"").as_deref(), Some(&b"a'b"[..]));
    }

    #[test]
    fn what_is_misspelled_is_nothing() {
        for line in [&b"\\ud800"[..], b"\\u12", b"\\u+123", b"\\U00110000"] {
            assert_eq!(raw_unicode_escape(line), None, "{line:?}");
        }
        for line in [&b""[..], b"'", b"'a", b"a", b"'a\"", b"'\\'", b"'\\x4'", b"'\\x+4'"] {
            assert_eq!(quoted(line), None, "{line:?}");
        }
    }
}
