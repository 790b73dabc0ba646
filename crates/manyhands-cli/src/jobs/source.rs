//! What jobs are run with: arguments, or the lines of files and of standard input.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, bail};
use tokio::sync::mpsc;

/// Longest argument, in bytes: what Linux accepts.
const ARGUMENT_LEN_MAX: usize = 128 << 10;
/// Arguments that were read ahead.
const AHEAD: usize = 256;

/// Where arguments come from.
#[derive(Debug)]
pub(super) enum Source {
    Arguments(Vec<OsString>),
    /// A file, or standard input, and what ends each argument.
    Lines {
        file: Option<PathBuf>,
        end: u8,
    },
}

impl Source {
    /// How many there are, if that is known.
    pub(super) fn len(&self) -> Option<u64> {
        match self {
            Self::Arguments(arguments) => u64::try_from(arguments.len()).ok(),
            Self::Lines { .. } => None,
        }
    }

    /// Reads arguments on a thread of its own, because whoever reads a pipe waits.
    pub(super) fn start(self) -> mpsc::Receiver<Result<Vec<u8>>> {
        let (sender, receiver) = mpsc::channel(AHEAD);
        thread::spawn(move || {
            let sent = |argument| sender.blocking_send(argument).is_ok();
            if let Err(error) = self.each(|argument| sent(Ok(argument))) {
                sent(Err(error));
            }
        });
        receiver
    }

    /// Calls a function with each argument, as long as it says so.
    fn each(self, mut next: impl FnMut(Vec<u8>) -> bool) -> Result<()> {
        match self {
            Self::Arguments(arguments) => {
                arguments.into_iter().map(OsString::into_vec).all(next);
                Ok(())
            }
            Self::Lines { file: None, end } => lines(io::stdin().lock(), end, &mut next),
            Self::Lines { file: Some(path), end } => {
                let file = File::open(&path).with_context(|| path.display().to_string())?;
                let read = lines(BufReader::new(file), end, &mut next);
                read.with_context(|| path.display().to_string())
            }
        }
    }
}

fn lines(mut from: impl BufRead, end: u8, next: &mut impl FnMut(Vec<u8>) -> bool) -> Result<()> {
    for number in 1.. {
        let mut line = Vec::new();
        let limit = u64::try_from(ARGUMENT_LEN_MAX)? + 1;
        if (&mut from).take(limit).read_until(end, &mut line)? == 0 {
            break;
        }
        if line.last() == Some(&end) {
            line.pop();
        } else if line.len() > ARGUMENT_LEN_MAX {
            bail!("line {number} is longer than {ARGUMENT_LEN_MAX} bytes, the most of an argument");
        }
        if !next(line) {
            break;
        }
    }
    Ok(())
}
