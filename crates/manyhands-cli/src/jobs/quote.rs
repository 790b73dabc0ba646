//! Words as a POSIX shell reads them, for any bytes.

/// What needs no quotes, and what GNU parallel leaves without.
pub(super) fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_.+/-".contains(&byte)
}

/// Appends `word` so that a shell reads it as one word.
pub(super) fn push(line: &mut Vec<u8>, word: &[u8]) {
    if !word.is_empty() && word.iter().copied().all(is_plain) {
        return line.extend_from_slice(word);
    }
    if word.is_empty() {
        return line.extend_from_slice(b"''");
    }
    let mut is_first = true;
    for piece in word.split(|byte| *byte == b'\'') {
        if !is_first {
            line.extend_from_slice(b"\"'\"");
        }
        is_first = false;
        if !piece.is_empty() {
            line.push(b'\'');
            line.extend_from_slice(piece);
            line.push(b'\'');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quoted(word: &[u8]) -> Vec<u8> {
        let mut line = Vec::new();
        push(&mut line, word);
        line
    }

    #[test]
    fn words_are_quoted_as_by_gnu_parallel() {
        for (word, expected) in [
            ("a.b/c-d_e+1", "a.b/c-d_e+1"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r#"'it'"'"'s'"#),
            ("'", r#""'""#),
            ("x=$y", "'x=$y'"),
        ] {
            assert_eq!(quoted(word.as_bytes()), expected.as_bytes());
        }
    }

    #[test]
    fn a_shell_reads_every_byte_as_it_is() {
        let every: Vec<u8> = (1..=255).collect();
        let words = [&every[..], b"--", b"'a''b'", b"\n", b"~", b"-n"];
        let mut line = b"printf %s\\\\n".to_vec();
        for word in words {
            line.push(b' ');
            push(&mut line, word);
        }
        let line = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&line);
        let output = std::process::Command::new("sh").arg("-c").arg(line).output().unwrap();
        let expected: Vec<u8> = words.iter().flat_map(|word| [word, &b"\n"[..]].concat()).collect();
        assert_eq!(output.stdout, expected);
    }
}
