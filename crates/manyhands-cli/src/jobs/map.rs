//! `manyhands map`: a command for each argument, several at a time.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};

use super::halt::Halt;
use super::joblog::{Joblog, Resume};
use super::launch::Launch;
use super::output::{self, Printer, Style};
use super::queue::Queues;
use super::run::Run;
use super::shop::{Shop, ShopArguments};
use super::source::Source;
use super::template::{Input, Template};
use crate::connection::Connection;
use crate::key::KeyArguments;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    shop: ShopArguments,
    /// Show output in the order of the arguments
    #[arg(short, long)]
    keep_order: bool,
    /// Begin each line of output with the argument and a tab
    #[arg(long)]
    tag: bool,
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
    /// Put the arguments into a queue of this server, whose workers run `manyhands work`; COMMAND, if
    /// there is one, also runs here: HOST:PORT, [IPV6]:PORT or unix:PATH
    #[arg(long, value_name = "ADDRESS", requires = "queue")]
    connect: Option<String>,
    #[command(flatten)]
    key: KeyArguments,
    /// The queue of tasks, which declares results=QUEUE and failures=results
    #[arg(long, value_name = "QUEUE", requires = "connect")]
    queue: Option<String>,
    /// The queue of their results
    #[arg(long, value_name = "QUEUE", requires = "connect")]
    result_queue: Option<String>,
    /// The command and its arguments: COMMAND ::: ARGUMENT…; without ::: each line of standard input
    /// is an argument, and with :::: FILE those of a file
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    words: Vec<OsString>,
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
    let runtime = arguments.shop.runtime()?;
    let code = match arguments.dry_run {
        true => dry_run(&launch, source),
        false => runtime.block_on(arguments.work(launch, source)),
    };
    // The thread that reads the input may wait for ever.
    runtime.shutdown_background();
    code
}

fn dry_run(launch: &Launch, source: Source) -> Result<ExitCode> {
    let mut inputs = source.start();
    for number in 1.. {
        let Some(argument) = inputs.blocking_recv() else { break };
        let input = Input { number, argument: argument? };
        let line = [&launch.invocation(&input, 1).line[..], b"\n"].concat();
        io::stdout().lock().write_all(&line).context("cannot write to standard output")?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Arguments {
    async fn work(&self, launch: Launch, source: Source) -> Result<ExitCode> {
        let style = Style {
            keeps_order: self.keep_order,
            has_tags: self.tag,
            results: self.results.clone(),
            bar: self.bar.then(|| output::bar(source.len())),
        };
        let log = self.joblog.as_ref();
        let log = log.map(|path| Joblog::open(path, self.resume())).transpose()?;
        let mut run = Run::new(self.halt, log, Printer::new(style));
        let worked = match &self.connect {
            None => run.work(source.start(), Shop::open(&self.shop, launch)?, self.shop.jobs).await,
            Some(address) => self.work_by_queue(address, &mut run, launch, source).await,
        };
        let shown = run.printer.finish();
        worked.and_then(|()| shown.map(|()| run.exit_code()))
    }

    async fn work_by_queue(
        &self,
        address: &str,
        run: &mut Run,
        launch: Launch,
        source: Source,
    ) -> Result<()> {
        let (Some(tasks), Some(results)) = (&self.queue, &self.result_queue) else {
            bail!(
                "--connect needs the --queue of the tasks, and the --result-queue that it declares"
            );
        };
        let client = Connection::to(address, &self.key).open_async().await?;
        // Without a command, all the work is done elsewhere.
        let crew = match &launch {
            Launch::Lines => None,
            Launch::Template(..) => {
                let (shop, cancel) = Shop::open(&self.shop, launch.clone())?;
                Some((shop, cancel, self.shop.jobs))
            }
        };
        let queues = Queues { client: &client, tasks, results };
        let how = (&launch, self.keep_order);
        let worked = run.work_by_queue(source.start(), &queues, how, crew).await;
        let closed = client.close().await;
        worked.and_then(|()| Ok(closed?))
    }
}
