//! Command lines with placeholders, those of GNU parallel.

use super::quote;

/// What a placeholder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placeholder {
    /// `{}`: the argument.
    Argument,
    /// `{.}`: without its extension.
    Stem,
    /// `{/}`: what stands behind its last slash.
    Name,
    /// `{//}`: its directory.
    Directory,
    /// `{/.}`: its name without the extension.
    NameStem,
    /// `{#}`: the number of the job, from 1.
    Number,
    /// `{%}`: the number of the slot that it runs in, from 1.
    Slot,
}

const PLACEHOLDERS: [(&[u8], Placeholder); 7] = [
    (b"{}", Placeholder::Argument),
    (b"{.}", Placeholder::Stem),
    (b"{/}", Placeholder::Name),
    (b"{//}", Placeholder::Directory),
    (b"{/.}", Placeholder::NameStem),
    (b"{#}", Placeholder::Number),
    (b"{%}", Placeholder::Slot),
];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(Vec<u8>),
    Placeholder(Placeholder),
}

/// What a job is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Input {
    /// Which one, from 1.
    pub(super) number: u64,
    pub(super) argument: Vec<u8>,
}

/// A command line with placeholders.
#[derive(Debug, Clone)]
pub(super) struct Template {
    parts: Vec<Part>,
}

impl Template {
    /// Reads a command line.
    pub(super) fn new(text: &[u8]) -> Self {
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        let mut rest = text;
        while let Some((&first, tail)) = rest.split_first() {
            let found = PLACEHOLDERS.iter().find(|(text, _)| rest.starts_with(text));
            if let Some((text, placeholder)) = found {
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                }
                parts.push(Part::Placeholder(*placeholder));
                rest = rest.get(text.len()..).unwrap_or_default();
            } else {
                literal.push(first);
                rest = tail;
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Self { parts }
    }

    /// Whether it says where an argument goes, or anything else of a job.
    pub(super) fn has_placeholder(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Placeholder(_)))
    }

    /// With the argument at the end, if there is no placeholder.
    pub(super) fn with_argument(mut self) -> Self {
        if !self.has_placeholder() {
            // There is one literal part at most.
            if let Some(Part::Literal(text)) = self.parts.last_mut() {
                text.push(b' ');
            }
            self.parts.push(Part::Placeholder(Placeholder::Argument));
        }
        self
    }

    /// The line as a shell reads it: what stands for placeholders is quoted.
    pub(super) fn line(&self, input: &Input, slot: usize) -> Vec<u8> {
        let mut line = Vec::new();
        for part in &self.parts {
            match part {
                Part::Literal(text) => line.extend_from_slice(text),
                Part::Placeholder(it) => quote::push(&mut line, &it.value(input, slot)),
            }
        }
        line
    }

    /// The words, if the literal parts have nothing but plain ones and blanks.
    pub(super) fn words(&self, input: &Input, slot: usize) -> Option<Vec<Vec<u8>>> {
        let mut words = Vec::new();
        let mut word: Option<Vec<u8>> = None;
        for part in &self.parts {
            match part {
                Part::Placeholder(it) => {
                    word.get_or_insert_default().extend(it.value(input, slot));
                }
                Part::Literal(text) => {
                    for &byte in text {
                        match byte {
                            b' ' | b'\t' => words.extend(word.take()),
                            byte if is_word(byte) => word.get_or_insert_default().push(byte),
                            _ => return None,
                        }
                    }
                }
            }
        }
        words.extend(word);
        Some(words)
    }

    /// The first word, if no placeholder has to do with it.
    pub(super) fn program(&self) -> Option<&[u8]> {
        let Some(Part::Literal(text)) = self.parts.first() else { return None };
        let mut words = text.split(|byte| b" \t".contains(byte)).skip_while(|word| word.is_empty());
        let first = words.next()?;
        // A word that nothing ends goes on with what the next part stands for.
        (words.next().is_some() || self.parts.len() == 1).then_some(first)
    }
}

/// What is part of a word and nothing else to a shell, wherever it stands but in the first word.
fn is_word(byte: u8) -> bool {
    quote::is_plain(byte) || b",:@%=".contains(&byte)
}

impl Placeholder {
    fn value(self, input: &Input, slot: usize) -> Vec<u8> {
        let argument = &input.argument[..];
        match self {
            Self::Argument => argument.to_vec(),
            Self::Stem => stem(argument).to_vec(),
            Self::Name => name(argument).to_vec(),
            Self::Directory => directory(argument).to_vec(),
            Self::NameStem => stem(name(argument)).to_vec(),
            Self::Number => input.number.to_string().into_bytes(),
            Self::Slot => slot.to_string().into_bytes(),
        }
    }
}

/// Without a last dot and what stands behind it, if no slash does.
fn stem(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| b"./".contains(byte)) {
        Some(at) if path.get(at) == Some(&b'.') => path.get(..at).unwrap_or_default(),
        _ => path,
    }
}

fn name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// As by dirname(1).
fn directory(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let path = path.get(..end).filter(|path| !path.is_empty()).unwrap_or(path);
    let Some(slash) = path.iter().rposition(|byte| *byte == b'/') else { return b"." };
    let directory = path.get(..slash).unwrap_or_default();
    match directory.iter().rposition(|byte| *byte != b'/') {
        Some(last) => directory.get(..=last).unwrap_or_default(),
        None => b"/",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(template: &str, argument: &str) -> String {
        let input = Input { number: 7, argument: argument.into() };
        let template = Template::new(template.as_bytes()).with_argument();
        String::from_utf8(template.line(&input, 2)).unwrap()
    }

    #[test]
    fn placeholders_stand_for_parts_of_the_argument() {
        let all = "{} {.} {/} {//} {/.} {#} {%}";
        for (argument, expected) in [
            ("/a/b.c/d.tar.gz", "/a/b.c/d.tar.gz /a/b.c/d.tar d.tar.gz /a/b.c d.tar 7 2"),
            ("d", "d d d . d 7 2"),
            ("/f", "/f /f f / f 7 2"),
            ("a.b/c", "a.b/c a.b/c c a.b c 7 2"),
            ("/a/.hid", "/a/.hid /a/ .hid /a '' 7 2"),
            ("a//b", "a//b a//b b a b 7 2"),
            ("..", ".. . .. . . 7 2"),
            ("a/b/", "a/b/ a/b/ '' a '' 7 2"),
        ] {
            assert_eq!(line(all, argument), expected);
        }
    }

    #[test]
    fn an_argument_without_a_place_stands_at_the_end() {
        assert_eq!(line("gzip -9", "a b"), "gzip -9 'a b'");
        assert_eq!(line("echo {#} {?} {", "a"), "echo 7 {?} {");
    }

    #[test]
    fn words_are_told_apart_where_no_shell_is_needed() {
        let input = Input { number: 7, argument: b"a b".to_vec() };
        let words = |text: &str| Template::new(text.as_bytes()).words(&input, 1);
        assert_eq!(words(" cp  {} x/{}.old").unwrap(), [&b"cp"[..], b"a b", b"x/a b.old"]);
        for shell in ["a | b", "a >b", "a $b", "a 'b'", "a ~", "a;", "a *", "a {b,c}", "a #"] {
            assert_eq!(words(shell), None, "{shell}");
        }
        let program = |text: &'static str| {
            Template::new(text.as_bytes())
                .program()
                .map(|it| String::from_utf8(it.to_vec()).unwrap())
        };
        assert_eq!(program(" cp {}"), Some("cp".to_owned()));
        assert_eq!((program("cp{} a"), program("{} a"), program("")), (None, None, None));
    }
}
