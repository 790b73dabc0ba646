//! Text that somebody else wrote, made fit for terminals and logs.

use std::borrow::Cow;

/// `text` without what a terminal obeys or does not show: control characters, marks that turn the
/// direction of writing, separators of lines, and invisible characters. Each becomes the escape that
/// JSON and Python share (`\u202e`), unless it is one to `keep`.
///
/// Backslashes and quotes stay as they are: what is in a JSON text stays the same value.
#[must_use]
pub fn printable(text: &str, keep: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_hidden = |char: char| is_unprintable(char) && !keep(char);
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        if is_hidden(char) {
            for unit in char.encode_utf16(&mut [0; 2]) {
                shown.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            shown.push(char);
        }
    }
    Cow::Owned(shown)
}

/// Unicode's categories Cc, Cf, Zl and Zp, and unassigned characters among them: what CPython's
/// `str.isprintable` refuses because it acts on its neighbours or cannot be seen.
fn is_unprintable(char: char) -> bool {
    if char.is_ascii() {
        return char.is_ascii_control();
    }
    matches!(u32::from(char),
        0x80..=0x9f // C1 controls
        | 0xad // soft hyphen
        | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x890..=0x891 | 0x8e2 // Arabic, Syriac
        | 0x180e
        | 0x200b..=0x200f // of no width; marks of direction
        | 0x2028..=0x202e // separators of lines and paragraphs; embeddings and overrides
        | 0x2060..=0x206f // joiners, isolates
        | 0xfeff | 0xfff0..=0xfffb
        | 0x110bd | 0x110cd | 0x13430..=0x1343f | 0x1bca0..=0x1bca3 | 0x1d173..=0x1d17a
        | 0xe0000..=0xe0fff // tags
    )
}

/// The start of `text`, as much of it as fits into `len_max` bytes.
pub(crate) fn start(text: &str, len_max: usize) -> &str {
    let mut len = text.len().min(len_max);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    text.get(..len).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_a_text_ends_between_two_characters() {
        assert_eq!(
            (start("aä", 3), start("aä", 2), start("aä", 1), start("ä", 0)),
            ("aä", "a", "a", "")
        );
    }

    #[test]
    fn what_acts_on_a_terminal_or_hides_is_escaped() {
        let hidden = "\x1b\x7f\u{9b}\u{ad}\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\
                      \u{2066}\u{2069}\u{feff}\u{e0001}";
        for char in hidden.chars() {
            let text = format!("a{char}b");
            let shown = printable(&text, |_| false);
            assert!(shown.is_ascii() && shown.starts_with("a\\u"), "{}", shown.escape_debug());
            let json: String = serde_json::from_str(&format!("\"{shown}\"")).unwrap();
            assert_eq!(json, text);
        }
        assert_eq!(printable("a\u{202e}\n", |char| char == '\n'), "a\\u202e\n");
    }

    #[test]
    fn what_can_be_read_stays() {
        for text in ["", "get_task_queue", "Größe", "列 🙂", "'\\\""] {
            assert!(matches!(printable(text, |_| false), Cow::Borrowed(shown) if shown == text));
        }
    }
}
