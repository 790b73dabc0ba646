//! One process group from its start to its end, and what it printed.
//!
//! Output goes into files without a name instead of pipes: nobody has to read it while the job runs, it
//! takes no memory, and a job that leaves children behind which hold its output open ends all the same.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Child;
use tokio::sync::watch;

use super::guardian::Guardian;
use super::launch::Invocation;

/// How long a group may take to end when it is asked to.
const GRACE: Duration = Duration::from_millis(200);
/// What is read into memory at once, so that its file can be closed.
const SMALL_LEN_MAX: u64 = 16 << 10;
/// "Exec format error": a script that does not say what reads it. Only a shell does.
const ENOEXEC: i32 = 8;

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    Exit(i32),
    Signal(i32),
    TimedOut,
    /// It was killed because nobody wants it any more.
    Cancelled,
    /// It was not started, and why.
    Refused(String),
}

impl Ended {
    fn of(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exit(code),
            (None, signal) => Self::Signal(signal.unwrap_or_default()),
        }
    }

    pub(super) fn is_success(&self) -> bool {
        *self == Self::Exit(0)
    }

    /// Exit code and signal, as GNU parallel logs them.
    pub(super) fn codes(&self) -> (i32, i32) {
        match self {
            Self::Exit(code) => (*code, 0),
            Self::Signal(signal) => (0, *signal),
            Self::TimedOut | Self::Cancelled => (-1, Signal::TERM.as_raw()),
            Self::Refused(_) => (126, 0),
        }
    }

    /// The exit code of a program that ends with this job.
    pub(super) fn exit_code(&self) -> u8 {
        let code = match self.codes() {
            (0, signal) if signal != 0 => 128 + signal,
            (code, _) => code,
        };
        u8::try_from(code).unwrap_or(u8::MAX)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::TimedOut => f.write_str("its time was over"),
            Self::Cancelled => f.write_str("it was cancelled"),
            Self::Refused(reason) => write!(f, "it cannot be started: {reason}"),
        }
    }
}

/// What became of a job.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) ended: Ended,
    pub(super) started: SystemTime,
    pub(super) ran: Duration,
    pub(super) stdout: Printed,
    pub(super) stderr: Printed,
}

/// What a job has printed until it ended.
#[derive(Debug)]
pub(super) enum Printed {
    Bytes(Vec<u8>),
    File(File, u64),
}

impl Printed {
    fn of(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        let printed = Self::File(file, len);
        if len > SMALL_LEN_MAX {
            return Ok(printed);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or_default());
        printed.reader().read_to_end(&mut bytes)?;
        Ok(Self::Bytes(bytes))
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, len) => *len,
        }
    }

    /// Reads it from its beginning.
    pub(super) fn reader(&self) -> Reader<'_> {
        self.reader_from(0)
    }

    pub(super) fn reader_from(&self, at: u64) -> Reader<'_> {
        Reader { printed: self, at }
    }
}

/// Reads what was printed. It does not move the position at which a child that was left behind writes.
pub(super) struct Reader<'a> {
    printed: &'a Printed,
    at: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.printed.len() - self.at).unwrap_or(usize::MAX);
        let len = into.len().min(left);
        let into = into.get_mut(..len).unwrap_or_default();
        let read = match self.printed {
            Printed::Bytes(bytes) => {
                let from = bytes.get(usize::try_from(self.at).unwrap_or(usize::MAX)..);
                into.copy_from_slice(from.and_then(|from| from.get(..len)).unwrap_or_default());
                len
            }
            Printed::File(file, _) => file.read_at(into, self.at)?,
        };
        self.at += read as u64;
        Ok(read)
    }
}

/// What ends a job from outside.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) timeout: Option<Duration>,
    pub(super) is_cancelled: watch::Receiver<bool>,
}

/// Runs a job to its end. If this future is dropped, its group is killed.
///
/// # Errors
///
/// That its output could not be kept.
pub(super) async fn run(
    invocation: &Invocation,
    stdin: Option<File>,
    guardian: &Guardian,
    limits: &Limits,
) -> io::Result<Outcome> {
    let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let (started, clock) = now();
    let child = start(invocation, stdin, (&stdout, &stderr), guardian)?;
    let ended = match child {
        Ok(child) => wait(child, guardian, limits).await?,
        Err(error) => Ended::Refused(error.to_string()),
    };
    let ran = now().1.duration_since(clock);
    let (stdout, stderr) = (Printed::of(stdout)?, Printed::of(stderr)?);
    Ok(Outcome { ended, started, ran, stdout, stderr })
}

#[expect(clippy::disallowed_methods, reason = "says when a job began, and how long it ran")]
fn now() -> (SystemTime, Instant) {
    (SystemTime::now(), Instant::now())
}

/// Starts the process, with the error if the system does not want to.
fn start(
    invocation: &Invocation,
    stdin: Option<File>,
    (stdout, stderr): (&File, &File),
    guardian: &Guardian,
) -> io::Result<io::Result<Child>> {
    let set_up = |mut command: Command| -> io::Result<io::Result<Child>> {
        command
            .stdin(stdin.as_ref().map_or(Ok(Stdio::null()), |it| it.try_clone().map(Stdio::from))?)
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?)
            .process_group(0);
        guardian.mark(&mut command);
        Ok(tokio::process::Command::from(command).spawn())
    };
    match set_up(invocation.command())? {
        Err(error) if error.raw_os_error() == Some(ENOEXEC) => set_up(invocation.shell_command()),
        started => Ok(started),
    }
}

async fn wait(mut child: Child, guardian: &Guardian, limits: &Limits) -> io::Result<Ended> {
    let group = Group::of(&child, guardian);
    let mut is_cancelled = limits.is_cancelled.clone();
    let ended = tokio::select! {
        biased;
        status = child.wait() => {
            group.has_ended();
            return status.map(Ended::of);
        }
        // Whoever can cancel it lives longer.
        _ = is_cancelled.wait_for(|is_cancelled| *is_cancelled) => Ended::Cancelled,
        () = elapsed(limits.timeout) => Ended::TimedOut,
    };
    group.signal(Signal::TERM);
    tokio::time::timeout(GRACE, child.wait()).await.ok();
    // Its children may be deaf to the first.
    drop(group);
    child.wait().await?;
    Ok(ended)
}

async fn elapsed(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// A process group that is killed when this is dropped, unless it has ended.
struct Group<'a> {
    leader: Option<Pid>,
    guardian: &'a Guardian,
}

impl<'a> Group<'a> {
    fn of(child: &Child, guardian: &'a Guardian) -> Self {
        let leader = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        leader.iter().for_each(|leader| guardian.watch(*leader));
        Self { leader, guardian }
    }

    /// A group that is gone hears nothing.
    fn signal(&self, signal: Signal) {
        if let Some(leader) = self.leader {
            kill_process_group(leader, signal).ok();
        }
    }

    /// What it has left behind may stay.
    fn has_ended(mut self) {
        self.leader.take().iter().for_each(|leader| self.guardian.forget(*leader));
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        self.leader.iter().for_each(|leader| self.guardian.forget(*leader));
    }
}
