//! `manyhands map`: a command for each argument, several at a time.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::guardian::Guardian;
use super::halt::{Counts, Halt};
use super::joblog::{Joblog, Line, Resume};
use super::launch::{Invocation, Launch};
use super::output::{self, Done, Printer, Style};
use super::process::{self, Limits, Outcome};
use super::source::Source;
use super::template::{Input, Template};
use crate::serve::parse_seconds;

/// Most jobs at one time, where as many as possible are asked for.
const JOBS_MAX: usize = 250;
/// Jobs that may have ended before one that is to be shown first.
const WAITING_MAX: usize = 256;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Jobs at one time: a number, a percentage of the processors, or 0 for as many as possible
    #[arg(short, long, value_name = "N", default_value = "100%", value_parser = parse_jobs)]
    jobs: usize,
    /// Show output in the order of the arguments
    #[arg(short, long)]
    keep_order: bool,
    /// Begin each line of output with the argument and a tab
    #[arg(long)]
    tag: bool,
    /// Run a job that fails so often at most
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    retries: u32,
    /// Kill a job, with all that it has started, after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    timeout: Option<Duration>,
    /// Write a line here for each job that has ended
    #[arg(long, value_name = "FILE")]
    joblog: Option<PathBuf>,
    /// Leave out the jobs that the --joblog has
    #[arg(long, requires = "joblog")]
    resume: bool,
    /// Leave out the jobs that have succeeded according to the --joblog
    #[arg(long, requires = "joblog", conflicts_with = "resume")]
    resume_failed: bool,
    /// Stop after so many jobs: (now|soon),(fail|success|done)=N; `now` kills those that run
    #[arg(long, value_name = "WHEN")]
    halt: Option<Halt>,
    /// Show a progress bar, if standard error is a terminal
    #[arg(long)]
    bar: bool,
    /// Print the command lines instead of running them
    #[arg(long)]
    dry_run: bool,
    /// Keep output in DIR/1/ARGUMENT/stdout and stderr, instead of showing it
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
    /// Arguments end with NUL instead of a newline
    #[arg(short = '0', long)]
    null: bool,
    /// Read arguments from this file instead of standard input
    #[arg(short, long, value_name = "FILE")]
    arg_file: Option<PathBuf>,
    /// The command and its arguments: COMMAND ::: ARGUMENT…; without ::: each line of standard input
    /// is an argument, and with :::: FILE those of a file
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    words: Vec<OsString>,
}

fn parse_jobs(text: &str) -> Result<usize> {
    let cores = available_parallelism().map_or(1, usize::from);
    let jobs = match text.strip_suffix('%') {
        Some(percent) => cores.saturating_mul(percent.parse()?).div_ceil(100).max(1),
        None => text.parse()?,
    };
    Ok(if jobs == 0 { JOBS_MAX } else { jobs })
}

impl Arguments {
    /// The template of the commands, and what they are run with.
    fn split(&mut self) -> Result<(Launch, Source)> {
        let mut command = std::mem::take(&mut self.words);
        let is_separator = |word: &OsString| word == ":::" || word == "::::";
        let mut source = None;
        if let Some(at) = command.iter().position(is_separator) {
            let mut behind = command.split_off(at);
            let separator = behind.remove(0);
            ensure!(!behind.iter().any(is_separator), "there may be only one ::: or ::::");
            ensure!(
                self.arg_file.is_none(),
                "--arg-file and {} exclude each other",
                separator.display()
            );
            source = Some(if separator == ":::" {
                Source::Arguments(behind)
            } else {
                let [file] = &behind[..] else { bail!(":::: needs one file") };
                self.lines(Some(file.into()))
            });
        }
        let source = source.unwrap_or_else(|| self.lines(self.arg_file.clone()));
        let command: Vec<_> = command.into_iter().map(OsStringExt::into_vec).collect();
        let launch = match &command[..] {
            [] => Launch::Lines,
            words => Launch::new(Template::new(&words.join(&b' ')).with_argument()),
        };
        Ok((launch, source))
    }

    fn lines(&self, file: Option<PathBuf>) -> Source {
        let file = file.filter(|file| file.as_os_str() != "-");
        Source::Lines { file, end: if self.null { 0 } else { b'\n' } }
    }

    fn resume(&self) -> Resume {
        match (self.resume, self.resume_failed) {
            (true, _) => Resume::Ended,
            (_, true) => Resume::Succeeded,
            _ => Resume::No,
        }
    }
}

/// Runs jobs until there are no more.
///
/// # Errors
///
/// What ends everything: the caller's exit code is 255 then.
pub(crate) fn run(mut arguments: Arguments) -> Result<ExitCode> {
    let (launch, source) = arguments.split()?;
    // Jobs have their own limits; these are for the files with their output.
    rlimit::increase_nofile_limit(u64::MAX).ok();
    let threads = arguments.jobs.min(available_parallelism().map_or(1, usize::from));
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(threads).enable_all().build()?;
    let code = runtime.block_on(async {
        let mut run = Run::new(&arguments, launch, &source)?;
        let worked = run.work(source.start()).await;
        let shown = run.printer.finish();
        worked.and_then(|code| shown.map(|()| code))
    });
    // The thread that reads the input may wait for ever.
    runtime.shutdown_background();
    code
}

/// A run of many jobs.
struct Run {
    shop: Arc<Shop>,
    jobs: usize,
    keeps_order: bool,
    is_dry: bool,
    halt: Option<Halt>,
    joblog: Option<Joblog>,
    printer: Printer,
    counts: Counts,
    running: JoinSet<(u64, usize, Result<Done>)>,
    free: BTreeSet<usize>,
    /// Jobs that were started.
    started: u64,
    /// Arguments that were read.
    read: u64,
    cancel: watch::Sender<bool>,
    /// The exit code of whoever stops before the end.
    stopped: Option<u8>,
}

/// What all jobs have in common.
struct Shop {
    launch: Launch,
    guardian: Option<Guardian>,
    limits: Limits,
    tries: u32,
}

impl Run {
    fn new(arguments: &Arguments, launch: Launch, source: &Source) -> Result<Self> {
        let (cancel, is_cancelled) = watch::channel(false);
        let limits = Limits { timeout: arguments.timeout, is_cancelled };
        let guardian = if arguments.dry_run { None } else { Some(Guardian::start()?) };
        let style = Style {
            keeps_order: arguments.keep_order,
            has_tags: arguments.tag,
            results: arguments.results.clone(),
            bar: arguments.bar.then(|| output::bar(source.len())),
        };
        let log = arguments.joblog.as_ref().filter(|_| !arguments.dry_run);
        Ok(Self {
            shop: Arc::new(Shop { launch, guardian, limits, tries: arguments.retries }),
            jobs: arguments.jobs,
            keeps_order: arguments.keep_order,
            is_dry: arguments.dry_run,
            halt: arguments.halt,
            joblog: log.map(|path| Joblog::open(path, arguments.resume())).transpose()?,
            printer: Printer::new(style),
            counts: Counts::default(),
            running: JoinSet::new(),
            free: (1..=arguments.jobs).collect(),
            started: 0,
            read: 0,
            cancel,
            stopped: None,
        })
    }

    async fn work(&mut self, mut inputs: mpsc::Receiver<Result<Vec<u8>>>) -> Result<ExitCode> {
        let mut signals = Signals::new()?;
        let mut has_more = true;
        while !self.running.is_empty() || (has_more && self.stopped.is_none()) {
            let may_start = has_more && self.may_start();
            tokio::select! {
                biased;
                name = signals.next() => self.interrupted(name),
                Some(ended) = self.running.join_next() => self.ended(ended?)?,
                input = inputs.recv(), if may_start => match input {
                    Some(argument) => self.next(argument?)?,
                    None => has_more = false,
                },
            }
        }
        Ok(ExitCode::from(self.stopped.unwrap_or_else(|| self.counts.exit_code())))
    }

    fn may_start(&self) -> bool {
        let has_room = !self.keeps_order || self.printer.waiting() < WAITING_MAX;
        self.stopped.is_none() && self.running.len() < self.jobs && has_room
    }

    fn next(&mut self, argument: Vec<u8>) -> Result<()> {
        self.read += 1;
        if self.joblog.as_ref().is_some_and(|log| log.has(self.read)) {
            return Ok(());
        }
        let input = Input { number: self.read, argument };
        if self.is_dry {
            let mut line = self.shop.launch.invocation(&input, 1).line;
            line.push(b'\n');
            return io::Write::write_all(&mut io::stdout().lock(), &line)
                .context("cannot write to standard output");
        }
        let slot = self.free.pop_first().context("no slot is free")?;
        let (shop, order) = (Arc::clone(&self.shop), self.started);
        self.started += 1;
        self.running.spawn(async move { (order, slot, shop.run(input, slot).await) });
        Ok(())
    }

    fn ended(&mut self, (order, slot, done): (u64, usize, Result<Done>)) -> Result<()> {
        self.free.insert(slot);
        let done = done?;
        let Outcome { ended, started, ran, stdout, .. } = &done.outcome;
        if *ended == process::Ended::Cancelled {
            return Ok(());
        }
        self.counts.add(ended);
        if let Some(log) = &mut self.joblog {
            log.write(&Line {
                number: done.input.number,
                started: *started,
                ran: *ran,
                printed: stdout.len(),
                ended,
                command: &done.line,
            })?;
        }
        if let Some(halt) = self.halt
            && self.stopped.is_none()
            && halt.is_reached(&self.counts, ended)
        {
            self.stopped = Some(halt.exit_code(&self.counts, ended));
            if halt.is_now {
                self.cancel.send_replace(true);
            }
        }
        self.printer.take(order, done)
    }

    /// Kills all jobs. The first signal says so; further ones have nothing to add.
    fn interrupted(&mut self, (name, code): (&str, u8)) {
        if self.cancel.send_replace(true) {
            return;
        }
        self.stopped = Some(code);
        let (done, running) = (self.counts.done, self.running.len());
        eprintln!("manyhands: {name}: {done} jobs have ended, {running} are killed");
    }
}

impl Shop {
    /// Runs a job until it succeeds or was tried often enough.
    async fn run(&self, input: Input, slot: usize) -> Result<Done> {
        let invocation = self.launch.invocation(&input, slot);
        let mut tries = 1;
        let outcome = loop {
            let outcome = self.attempt(&invocation).await?;
            let is_over = outcome.ended.is_success()
                || outcome.ended == process::Ended::Cancelled
                || tries >= self.tries;
            if is_over {
                break outcome;
            }
            tries += 1;
        };
        Ok(Done { input, line: invocation.line, outcome })
    }

    async fn attempt(&self, invocation: &Invocation) -> Result<Outcome> {
        let guardian = self.guardian.as_ref().context("jobs need their guardian")?;
        let outcome = process::run(invocation, None, guardian, &self.limits).await;
        outcome.context("cannot keep the output of a job")
    }
}

/// The signals that end a run.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// The next one: what it is called, and the exit code of who is ended by it.
    async fn next(&mut self) -> (&'static str, u8) {
        tokio::select! {
            _ = self.interrupt.recv() => ("interrupted", 130),
            _ = self.terminate.recv() => ("terminated", 143),
            _ = self.hang_up.recv() => ("hung up", 129),
        }
    }
}
