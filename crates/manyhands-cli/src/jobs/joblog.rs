//! The log of jobs, in the format of GNU parallel: one line for each that has ended.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use super::process::Ended;

const HEADER: &str = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n";

/// Which jobs of an earlier run are not run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Resume {
    #[default]
    No,
    /// Those that have ended.
    Ended,
    /// Those that have succeeded.
    Succeeded,
}

/// What is logged of a job.
pub(super) struct Line<'a> {
    pub(super) number: u64,
    pub(super) started: SystemTime,
    pub(super) ran: Duration,
    pub(super) printed: u64,
    pub(super) ended: &'a Ended,
    pub(super) command: &'a [u8],
}

/// Which jobs were run before, and whether each of them succeeded.
#[derive(Debug, Default)]
pub(super) struct Past {
    jobs: HashMap<u64, bool>,
    resume: Resume,
}

impl Past {
    /// Whether a job is not to be run again.
    pub(super) fn has(&self, number: u64) -> bool {
        match (self.resume, self.jobs.get(&number)) {
            (Resume::Ended, Some(_)) => true,
            (Resume::Succeeded, Some(succeeded)) => *succeeded,
            _ => false,
        }
    }
}

/// The log, and which jobs it had at first.
pub(super) struct Joblog {
    file: File,
    past: Arc<Past>,
}

impl Joblog {
    /// Opens the log, or begins it if nothing is resumed.
    pub(super) fn open(path: &Path, resume: Resume) -> Result<Self> {
        let opened = Self::open_file(path, resume);
        opened.with_context(|| format!("cannot use the job log {}", path.display()))
    }

    fn open_file(path: &Path, resume: Resume) -> Result<Self> {
        if resume == Resume::No {
            let mut file = File::create(path)?;
            file.write_all(HEADER.as_bytes())?;
            return Ok(Self { file, past: Arc::default() });
        }
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        let (jobs, len) = read(BufReader::new(&file))?;
        // The last line may be torn, if its writer was killed.
        file.set_len(len)?;
        file.seek(SeekFrom::Start(len))?;
        if len == 0 {
            file.write_all(HEADER.as_bytes())?;
        }
        Ok(Self { file, past: Arc::new(Past { jobs, resume }) })
    }

    pub(super) fn past(&self) -> Arc<Past> {
        Arc::clone(&self.past)
    }

    pub(super) fn write(&mut self, line: &Line<'_>) -> Result<()> {
        let since = line.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (exit, signal) = line.ended.codes();
        let mut text = format!(
            "{}\t:\t{}.{:03}\t{:10.3}\t0\t{}\t{exit}\t{signal}\t",
            line.number,
            since.as_secs(),
            since.subsec_millis(),
            line.ran.as_secs_f64(),
            line.printed,
        )
        .into_bytes();
        text.extend(line.command.iter().map(|byte| if *byte == b'\n' { 0 } else { *byte }));
        text.push(b'\n');
        self.file.write_all(&text).context("cannot write the job log")
    }
}

/// Which jobs a log has, and where its last whole line ends.
fn read(mut from: impl BufRead) -> Result<(HashMap<u64, bool>, u64)> {
    let (mut past, mut len, mut line) = (HashMap::new(), 0, Vec::new());
    loop {
        line.clear();
        let read = from.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Ok((past, len));
        }
        if len == 0 {
            if line != HEADER.as_bytes() {
                bail!("it is no log of jobs: its first line is another one");
            }
        } else if let Some((number, succeeded)) = job(&line) {
            past.insert(number, succeeded);
        } else {
            bail!("it is no log of jobs: {}", String::from_utf8_lossy(&line).trim_end());
        }
        len += u64::try_from(read)?;
    }
}

/// The number of a job, and whether it succeeded.
fn job(line: &[u8]) -> Option<(u64, bool)> {
    let mut fields = line.split(|byte| *byte == b'\t').map(std::str::from_utf8);
    let number = fields.next()?.ok()?.parse().ok()?;
    let exit = fields.nth(5)?.ok()?;
    let signal = fields.next()?.ok()?;
    Some((number, exit == "0" && signal == "0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(log: &mut Joblog, number: u64, ended: &Ended) {
        let (started, ran) = (SystemTime::UNIX_EPOCH, Duration::from_millis(1500));
        let command = b"a\nb";
        log.write(&Line { number, started, ran, printed: 3, ended, command }).unwrap();
    }

    #[test]
    fn a_log_is_gone_on_with() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = Joblog::open(&path, Resume::Ended).unwrap();
        write(&mut log, 1, &Ended::Exit(0));
        write(&mut log, 3, &Ended::Signal(9));
        drop(log);
        let text = std::fs::read(&path).unwrap();
        let expected = format!(
            "{HEADER}1\t:\t0.000\t     1.500\t0\t3\t0\t0\ta\0b\n3\t:\t0.000\t     1.500\t0\t3\t0\t9\ta\0b\n"
        );
        assert_eq!(text, expected.as_bytes());
        std::fs::write(&path, [&text[..], b"4\t:\t0.0"].concat()).unwrap();
        for (resume, expected) in
            [(Resume::Ended, [true, false, true]), (Resume::Succeeded, [true, false, false])]
        {
            let log = Joblog::open(&path, resume).unwrap();
            assert_eq!([1, 2, 3].map(|number| log.past.has(number)), expected);
        }
        assert_eq!(std::fs::read(&path).unwrap(), text, "the torn line is cut off");
        std::fs::write(&path, "something else\n").unwrap();
        assert!(Joblog::open(&path, Resume::Ended).is_err());
    }
}
