//! Shows what jobs have printed: whole, one job after the other, in their order if that is asked for.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::process::{Ended, Outcome, Printed};
use super::template::Input;

/// Bytes that are copied at a time.
const PIECE_LEN: usize = 64 << 10;

/// What is shown of the errors of a job that failed.
const TAIL_LINES: usize = 20;
const TAIL_LEN_MAX: u64 = 8 << 10;
/// Between how a job ended and its last errors.
const TOLD: &str = "; its last lines:\n";

/// A job that has ended.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) input: Input,
    /// The line that it ran.
    pub(super) line: Vec<u8>,
    pub(super) outcome: Outcome,
}

/// How output is shown.
#[derive(Debug)]
pub(super) struct Style {
    pub(super) keeps_order: bool,
    pub(super) has_tags: bool,
    pub(super) results: Option<PathBuf>,
    pub(super) bar: Option<ProgressBar>,
}

/// Shows jobs that have ended.
#[derive(Debug)]
pub(super) struct Printer {
    style: Style,
    /// Which job is shown next, in order.
    next: u64,
    waiting: BTreeMap<u64, Done>,
}

impl Printer {
    pub(super) fn new(style: Style) -> Self {
        Self { style, next: 0, waiting: BTreeMap::new() }
    }

    /// How many jobs have ended and are not shown.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes the job that was started as number `order`, from 0, and shows what can be shown.
    pub(super) fn take(&mut self, order: u64, done: Done) -> Result<()> {
        self.style.bar.iter().for_each(|bar| bar.inc(1));
        if !self.style.keeps_order {
            return self.show(&done);
        }
        self.waiting.insert(order, done);
        while let Some(done) = self.waiting.remove(&self.next) {
            self.next += 1;
            self.show(&done)?;
        }
        Ok(())
    }

    /// Shows what is left, with gaps.
    pub(super) fn finish(&mut self) -> Result<()> {
        for done in std::mem::take(&mut self.waiting).into_values() {
            self.show(&done)?;
        }
        self.style.bar.iter().for_each(ProgressBar::finish_and_clear);
        Ok(())
    }

    fn show(&self, done: &Done) -> Result<()> {
        if let Some(directory) = &self.style.results {
            let kept = keep(directory, done);
            kept.with_context(|| format!("cannot keep results in {}", directory.display()))?;
        }
        match &self.style.bar {
            Some(bar) => bar.suspend(|| self.print(done)),
            None => self.print(done),
        }
    }

    fn print(&self, done: &Done) -> Result<()> {
        let Outcome { ended, stderr, .. } = &done.outcome;
        let is_shown = self.style.results.is_none();
        if is_shown {
            self.print_output(done)?;
        }
        if !ended.is_success() {
            let mut errors = io::stderr().lock();
            if !is_shown {
                errors.write_all(&tail(stderr)?).context("cannot write to standard error")?;
            }
            let text = format!("manyhands: job {} failed: {ended}", done.input.number);
            let text = [text.as_bytes(), b"; to run it alone:\n  ", &done.line, b"\n"].concat();
            errors.write_all(&text).context("cannot write to standard error")?;
        }
        Ok(())
    }

    fn print_output(&self, done: &Done) -> Result<()> {
        let tag = self.style.has_tags.then(|| [&done.input.argument[..], b"\t"].concat());
        let tag = tag.unwrap_or_default();
        let shown = copy(&done.outcome.stdout, &tag, io::stdout().lock());
        shown.context("cannot write to standard output")?;
        let shown = copy(&done.outcome.stderr, &tag, io::stderr().lock());
        shown.context("cannot write to standard error")
    }
}

/// The last lines that were printed.
pub(super) fn tail(printed: &Printed) -> io::Result<Vec<u8>> {
    let mut tail = Vec::new();
    printed.reader_from(printed.len().saturating_sub(TAIL_LEN_MAX)).read_to_end(&mut tail)?;
    let end = tail.strip_suffix(b"\n").map_or(tail.len(), <[u8]>::len);
    let ends = tail.iter().take(end).enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    let begin = { ends }.nth(TAIL_LINES - 1).map_or(0, |(at, _)| at + 1);
    Ok(tail.split_off(begin))
}

/// Why a task failed: how its job ended, and its last errors.
pub(super) fn reason(ended: &Ended, tail: &[u8]) -> String {
    let tail = String::from_utf8_lossy(tail);
    if tail.is_empty() { ended.to_string() } else { format!("{ended}{TOLD}{tail}") }
}

/// What such a [`reason`] says. Whatever else has failed is told as it is.
pub(super) fn told(reason: &str) -> (Ended, Vec<u8>) {
    let (text, tail) = reason.split_once(TOLD).unwrap_or((reason, ""));
    let number = |prefix| text.strip_prefix(prefix).and_then(|it: &str| it.parse().ok());
    let ended = number("exit code ").map(Ended::Exit);
    let ended = ended.or_else(|| number("signal ").map(Ended::Signal));
    let is_timed_out = text == Ended::TimedOut.to_string();
    let ended = ended.or_else(|| is_timed_out.then_some(Ended::TimedOut));
    (ended.unwrap_or_else(|| Ended::Refused(text.to_owned())), tail.as_bytes().to_vec())
}

/// A bar for `total` jobs, if that is known. There is none without a terminal.
pub(super) fn bar(total: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    let template = match total {
        Some(_) => "{bar:30} {pos}/{len} {per_sec} eta {eta} {msg}",
        None => "{spinner} {pos} {per_sec} {msg}",
    };
    // The templates are right.
    bar.set_style(ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar()));
    bar
}

/// Copies what was printed, each line behind a tag.
fn copy(printed: &Printed, tag: &[u8], mut to: impl Write) -> io::Result<()> {
    if printed.len() == 0 {
        return Ok(());
    }
    let mut from = printed.reader();
    let mut piece = vec![0; PIECE_LEN.min(usize::try_from(printed.len()).unwrap_or(PIECE_LEN))];
    let mut begins_line = true;
    loop {
        let len = from.read(&mut piece)?;
        let Some(read) = piece.get(..len).filter(|read| !read.is_empty()) else { break };
        if tag.is_empty() {
            to.write_all(read)?;
            continue;
        }
        for line in read.split_inclusive(|byte| *byte == b'\n') {
            if begins_line {
                to.write_all(tag)?;
            }
            to.write_all(line)?;
            begins_line = line.ends_with(b"\n");
        }
    }
    to.flush()
}

/// Writes what a job has printed as GNU parallel does: `DIR/1/ARGUMENT/{seq,stdout,stderr}`.
fn keep(directory: &Path, done: &Done) -> io::Result<()> {
    let name = file_name(&done.input.argument);
    let directory = directory.join("1").join(std::ffi::OsStr::from_bytes(&name));
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("seq"), done.input.number.to_string())?;
    for (name, printed) in [("stdout", &done.outcome.stdout), ("stderr", &done.outcome.stderr)] {
        io::copy(&mut printed.reader(), &mut fs::File::create(directory.join(name))?)?;
    }
    Ok(())
}

/// An argument as the name of a file: `\` is `\\`, a tab `\t`, a slash `\_`. What would be a directory
/// above has a `\` in front.
fn file_name(argument: &[u8]) -> Vec<u8> {
    if matches!(argument, b"." | b"..") {
        return [b"\\", argument].concat();
    }
    let escaped = argument.iter().flat_map(|byte| match byte {
        b'\\' => b"\\\\".to_vec(),
        b'\t' => b"\\t".to_vec(),
        b'/' => b"\\_".to_vec(),
        byte => vec![*byte],
    });
    escaped.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_tags() {
        let mut shown = Vec::new();
        copy(&Printed::Bytes(b"a\nb".to_vec()), b"x\t", &mut shown).unwrap();
        assert_eq!(shown, b"x\ta\nx\tb");
    }

    #[test]
    fn a_reason_is_read_as_it_is_written() {
        for ended in [Ended::Exit(3), Ended::Signal(9), Ended::TimedOut] {
            for tail in [&b""[..], b"why\nnot\n"] {
                assert_eq!(told(&reason(&ended, tail)), (ended.clone(), tail.to_vec()));
            }
        }
        assert_eq!(told("x"), (Ended::Refused("x".into()), Vec::new()));
    }

    #[test]
    fn the_last_twenty_lines_are_told() {
        let lines =
            |range: std::ops::Range<u32>| -> String { range.map(|n| format!("{n}\n")).collect() };
        for (printed, expected) in [(lines(0..25), lines(5..25)), (lines(0..3), lines(0..3))] {
            for end in ["", "\n"] {
                let cut = |text: &str| text.strip_suffix(end).unwrap().as_bytes().to_vec();
                let printed = Printed::Bytes(cut(&printed));
                assert_eq!(tail(&printed).unwrap(), cut(&expected));
            }
        }
        assert!(tail(&Printed::Bytes(Vec::new())).unwrap().is_empty());
    }

    #[test]
    fn arguments_are_names_of_files() {
        for (argument, name) in [("a/b", "a\\_b"), ("..", "\\.."), ("a\tb\\", "a\\tb\\\\")] {
            assert_eq!(file_name(argument.as_bytes()), name.as_bytes());
        }
    }
}
