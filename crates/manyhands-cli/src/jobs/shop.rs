//! Where jobs are run: as many at one time as there are slots.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Seek, Write};
use std::sync::{Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, Result};
use manyhands::{Failed, Task, Value};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::guardian::Guardian;
use super::launch::{Invocation, Launch};
use super::output::{self, Done};
use super::process::{self, Ended, Limits, Outcome};
use super::template::Input;
use crate::serve::parse_seconds;

/// Most jobs at one time, where as many as possible are asked for.
const JOBS_MAX: usize = 250;
/// Most bytes of a result in a queue.
const RESULT_LEN_MAX: u64 = 32 << 20;

/// How jobs are run.
#[derive(Debug, clap::Args)]
pub(super) struct ShopArguments {
    /// Jobs at one time: a number, a percentage of the processors, or 0 for as many as possible
    #[arg(short, long, value_name = "N", default_value = "100%", value_parser = parse_jobs)]
    pub(super) jobs: usize,
    /// Run a job that fails so often at most
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    retries: u32,
    /// Kill a job, with all that it has started, after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    timeout: Option<Duration>,
}

fn parse_jobs(text: &str) -> Result<usize> {
    let jobs = match text.strip_suffix('%') {
        Some(percent) => cores().saturating_mul(percent.parse()?).div_ceil(100).max(1),
        None => text.parse()?,
    };
    Ok(if jobs == 0 { JOBS_MAX } else { jobs })
}

fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

impl ShopArguments {
    /// What waits for jobs. Starting one blocks its thread.
    pub(super) fn runtime(&self) -> io::Result<Runtime> {
        // Jobs have their own limits; this one is for the files with their output.
        rlimit::increase_nofile_limit(u64::MAX).ok();
        let threads = self.jobs.min(cores());
        { tokio::runtime::Builder::new_multi_thread() }.worker_threads(threads).enable_all().build()
    }
}

/// What all jobs have in common.
#[derive(Debug)]
pub(super) struct Shop {
    launch: Launch,
    guardian: Guardian,
    limits: Limits,
    tries: u32,
    free: Mutex<BTreeSet<usize>>,
}

/// The number of a job among those that run, from 1.
struct Slot<'a>(&'a Shop, usize);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.free.lock().unwrap_or_else(PoisonError::into_inner).insert(self.1);
    }
}

impl Shop {
    /// Opens the shop, with what cancels all its jobs.
    pub(super) fn open(
        arguments: &ShopArguments,
        launch: Launch,
    ) -> Result<(Self, watch::Sender<bool>)> {
        let (cancel, is_cancelled) = watch::channel(false);
        let shop = Self {
            launch,
            guardian: Guardian::start()?,
            limits: Limits { timeout: arguments.timeout, is_cancelled },
            tries: arguments.retries,
            free: Mutex::new((1..=arguments.jobs).collect()),
        };
        Ok((shop, cancel))
    }

    /// A slot; there is one more where a job whose lease was lost has not ended.
    fn slot(&self) -> Slot<'_> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        Slot(self, free.pop_first().unwrap_or_default())
    }

    /// Runs a job until it succeeds or was tried often enough.
    pub(super) async fn run(&self, input: Input) -> Result<Done> {
        let slot = self.slot();
        let invocation = self.launch.invocation(&input, slot.1);
        let mut tries = 1;
        let outcome = loop {
            let outcome = self.attempt(&invocation, None).await?;
            if tries >= self.tries || matches!(outcome.ended, Ended::Exit(0) | Ended::Cancelled) {
                break outcome;
            }
            tries += 1;
        };
        Ok(Done { input, line: invocation.line, outcome })
    }

    async fn attempt(&self, invocation: &Invocation, stdin: Option<File>) -> Result<Outcome> {
        let outcome = process::run(invocation, stdin, &self.guardian, &self.limits).await;
        outcome.context("cannot keep the output of a job")
    }

    /// Runs the job of a task, whose result is what it prints. The reason why it failed says how it
    /// ended, and has its last errors.
    pub(super) async fn attempt_task(&self, task: Task<Value>) -> Result<Value, Failed> {
        let (number, attempt) = (task.number, task.attempt);
        let argument = argument(task.item);
        let slot = self.slot();
        let stdin = if self.launch.needs_argument() { None } else { Some(file(&argument)?) };
        let invocation = self.launch.invocation(&Input { number: number + 1, argument }, slot.1);
        let outcome = self.attempt(&invocation, stdin).await?;
        if outcome.ended.is_success() {
            return result(&outcome);
        }
        let tail = output::tail(&outcome.stderr)?;
        let reason = output::reason(&outcome.ended, &tail);
        let head = format!("manyhands: task {number}, attempt {attempt}, failed: {reason}");
        let text = [head.trim_end().as_bytes(), b"\nto run it alone:\n  ", &invocation.line, b"\n"];
        // Whoever started the worker may have left.
        io::stderr().lock().write_all(&text.concat()).ok();
        Err(if attempt >= self.tries { Failed::for_good(reason) } else { reason.into() })
    }
}

/// A task as a command gets it: text and bytes as they are, and anything else as Python writes it.
fn argument(item: Value) -> Vec<u8> {
    match item {
        Value::Str(text) => text.into_bytes(),
        Value::Bytes(bytes) => bytes,
        other => other.to_string().into_bytes(),
    }
}

/// A file to be read from its beginning.
fn file(content: &[u8]) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// What a job has printed, as text if it is.
fn result(outcome: &Outcome) -> Result<Value, Failed> {
    let len = outcome.stdout.len();
    if len > RESULT_LEN_MAX {
        let text = format!("it printed {len} bytes, and a result has {RESULT_LEN_MAX} at most");
        return Err(Failed::for_good(text));
    }
    let mut bytes = Vec::new();
    outcome.stdout.reader().read_to_end(&mut bytes)?;
    Ok(String::from_utf8(bytes).map_or_else(|it| Value::Bytes(it.into_bytes()), Value::Str))
}
