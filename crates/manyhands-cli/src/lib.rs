//! The `manyhands` command line.
//!
//! `serve` runs a server; its options are in `serve`, where its key comes from in `key`, how queues
//! are declared in `queues`, its configuration file in `config`, and what newcomers are told in
//! `hints`. `connection` reaches a running server; `commands` has what is done to it, `look` what is
//! seen of its queues and `tasks` what is seen of tasks; `item` shows and reads items. `journal` looks
//! at a data directory, `log` writes lines without ever waiting. `jobs` runs commands. `demo` is a
//! server, a master and workers in one command.

mod commands;
mod config;
mod connection;
mod demo;
mod hints;
mod item;
#[cfg(unix)]
mod jobs;
mod journal;
mod key;
mod log;
mod look;
mod queues;
mod serve;
mod tasks;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::{Result, bail};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use manyhands::AuthKey;
use manyhands::text::printable;

use crate::config::Config;

/// A work queue for Python's multiprocessing.managers and for Rust.
#[derive(Debug, Parser)]
#[command(name = "manyhands", version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep queues and serve them to Python and Rust programs
    Serve(serve::Arguments),
    /// Run a command for each argument, several at a time
    ///
    /// In COMMAND, {} is the argument, {.} is it without extension, {/} its base name, {//} its
    /// directory, {/.} its base name without extension, {#} the number of the job and {%} that of its
    /// slot; each is quoted for the shell. Without any of them the argument stands at the end, and
    /// without COMMAND each argument is a command. Output of a job is shown when it has ended, whole.
    ///
    /// Options and output are those of GNU parallel. The exit code is the number of jobs that failed, up
    /// to 100, 101 if there are more, that of the job that --halt stopped at, and 255 for other errors.
    #[cfg(unix)]
    Map(jobs::map::Arguments),
    /// Run a command for each task of a queue, several at a time; on any number of machines
    ///
    /// What the command prints is the task's result. If it fails, the attempt does, with the exit code
    /// and the last 20 lines of standard error for its reason; after --retries attempts the task is a
    /// dead letter. A first signal lets what has begun finish, a second one kills it.
    #[cfg(unix)]
    Work(jobs::work::Arguments),
    /// Run a command for each argument: not on this system
    #[cfg(not(unix))]
    Map(NotHere),
    /// Run a command for each task of a queue: not on this system
    #[cfg(not(unix))]
    Work(NotHere),
    /// Put items into a queue
    Put(commands::Put),
    /// Take items out of a queue and print them, one per line
    ///
    /// A str is printed as it is, other values in Python's notation. With --json, tuples become lists
    /// and the keys of a dict become text, as by Python's json.dumps; an item that has no form in JSON
    /// (bytes, sets, objects) is printed as {"pickle": "HEXADECIMAL", "python": "NOTATION"}, with a
    /// note on standard error. An item that cannot be printed is put back at the end of its queue.
    ///
    /// Exit code 1 if the queue is empty when the time is over, 130 after Ctrl-C.
    Get(commands::Get),
    /// List the queues of a manyhands server; takes nothing from them
    ///
    /// LEASED tasks are with somebody, WAITING are calls that wait for a task, for room or in join;
    /// OLDEST is how long ago the oldest task was put, or the server started if that was later.
    /// UNFINISHED is shown where join or task_done is used.
    ///
    /// With --json each queue is an object with name, order, maxsize (0: no bound), qsize, unfinished,
    /// leased, delayed, dead, declared, is_joined, oldest (seconds or null), waiting_get, waiting_put,
    /// waiting_join, references (of clients), bytes (of memory), and put, taken and done, which count
    /// since the server was started. More may be added.
    Ls(look::List),
    /// Show who has the tasks of a queue, since when, and which attempt it is; takes nothing
    ///
    /// AGE is since the put, HELD how long the worker has had the task, DUE when it becomes ready or
    /// its lease runs out. With --json an object for each, as by `manyhands peek`, without the item.
    Tasks(tasks::Tasks),
    /// Print items of a queue, and what is known of each, without taking them
    ///
    /// Of a dead letter, that is why each attempt failed. With --json, one object on each line: task
    /// (its number in the queue), state (ready, delayed or leased), attempt, item, and where they are
    /// known: age, due_in and since in seconds, key, worker, peer, failures (each with attempt, worker
    /// and reason), and queue and origin, the queue and number of the task that it comes from. More may
    /// be added. An item without a form in JSON is as by `manyhands get`.
    Peek(tasks::Peek),
    /// Move tasks that were given up back to the queues they came from, as new ones
    ///
    /// The oldest come first, unless --task chooses some. Prints how many. What is no dead letter, or
    /// whose queue is gone, stays.
    Redrive(commands::Redrive),
    /// Drop all that is ready or delayed in a queue, and print how much that was
    Purge(commands::Purge),
    /// Forget a queue that was not declared, and print how many tasks went with it
    ///
    /// A queue that clients refer to, wait for or have tasks of stays, unless --force says otherwise.
    /// An empty queue that nobody refers to goes by itself after a while (serve --unused-timeout).
    Drop(commands::Drop),
    /// Look at the data directory of a server that does not run
    #[command(subcommand)]
    Journal(journal::Journal),
    /// Say what of a Python script will behave differently, without running it
    ///
    /// Reads scripts that use multiprocessing.managers and that are to be run by
    /// `python -m manyhands SCRIPT.py`. It comes with the Python package (pip install manyhands), whose
    /// command `manyhands` has all that this one has. Exit code 1 if a script cannot run as it is.
    Doctor {
        /// Python scripts
        #[arg(value_name = "SCRIPT", required = true)]
        scripts: Vec<std::path::PathBuf>,
    },
    /// Print what a shell needs to complete this command, for its start-up file
    ///
    /// In bash: source <(manyhands completion bash)
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Show a server, a master and workers at work; takes a few seconds and leaves nothing behind
    Demo,
    #[cfg(unix)]
    #[command(hide = true)]
    Guardian { mark: String },
    #[command(hide = true)]
    DemoWorker(demo::WorkerArguments),
}

/// The key that the commands use when no other is named: the one that `serve` has made and kept.
///
/// # Errors
///
/// That there is none, or that others can read it. The text names its file.
pub fn kept_authkey() -> io::Result<AuthKey> {
    let path = key::kept_path().map_err(|error| io::Error::other(format!("{error:#}")))?;
    AuthKey::from_file(path)
}

/// A command line for a command that this system does not have.
#[cfg(not(unix))]
#[derive(Debug, clap::Args)]
struct NotHere {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

#[cfg(not(unix))]
fn not_here() -> Result<()> {
    bail!("jobs are process groups, which this system does not have; Linux, macOS and the BSDs do")
}

/// The exit code of `map` and `work` for errors that are not those of its jobs.
#[cfg(unix)]
const JOBS_ERROR: u8 = 255;

/// What runs this program where that is not a binary of its own: a program and its first arguments.
static LAUNCHER: OnceLock<Vec<OsString>> = OnceLock::new();

/// [`run`] in a program that is started anew by `launcher`: a program and its first arguments.
pub fn run_by(launcher: Vec<OsString>, arguments: Vec<OsString>) -> ExitCode {
    // It does not change from one command to the next.
    LAUNCHER.set(launcher).ok();
    run(arguments)
}

/// A process that runs this program.
fn this_program() -> io::Result<std::process::Command> {
    let Some((program, arguments)) = LAUNCHER.get().and_then(|it| it.split_first()) else {
        return Ok(std::process::Command::new(std::env::current_exe()?));
    };
    let mut command = std::process::Command::new(program);
    command.args(arguments);
    Ok(command)
}

/// Runs the command line `args` (the program's name first) and returns its exit code: 0, 1 after a
/// failure, 2 for a command line that cannot be understood, 130 for one that waited and was
/// interrupted.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<_> = args.into_iter().collect();
    let (command, config) = match parsed(args) {
        Ok(Ok(parsed)) => parsed,
        Ok(Err(error)) => return failed(&error),
        Err(error) => {
            // Where standard output or error is closed there is nobody to tell.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let result = match command {
        Command::Serve(arguments) => serve::run(arguments, config),
        #[cfg(unix)]
        Command::Map(arguments) => return of_jobs(jobs::map::run(arguments)),
        #[cfg(unix)]
        Command::Work(arguments) => return of_jobs(jobs::work::run(arguments)),
        #[cfg(not(unix))]
        Command::Map(_) | Command::Work(_) => not_here(),
        Command::Put(arguments) => commands::put(arguments),
        Command::Get(arguments) => match commands::get(arguments) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Ls(arguments) => look::list(arguments),
        Command::Tasks(arguments) => tasks::tasks(arguments),
        Command::Peek(arguments) => tasks::peek(arguments),
        Command::Redrive(arguments) => commands::redrive(arguments),
        Command::Purge(arguments) => commands::purge(arguments),
        Command::Drop(arguments) => commands::drop(arguments),
        Command::Journal(command) => journal::run(command),
        Command::Doctor { .. } => doctor(),
        Command::Completion { shell } => completion(shell),
        Command::Demo => demo::run(),
        #[cfg(unix)]
        Command::Guardian { mark } => jobs::stand_by(&mark),
        Command::DemoWorker(arguments) => demo::run_worker(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

#[cfg(unix)]
fn of_jobs(run: Result<ExitCode>) -> ExitCode {
    run.unwrap_or_else(|error| {
        failed(&error);
        ExitCode::from(JOBS_ERROR)
    })
}

fn failed(error: &anyhow::Error) -> ExitCode {
    let text = printable(&format!("manyhands: {error:#}"), |char| char == '\n').into_owned();
    // If nobody reads it, there is nobody to tell.
    log::write_with_patience(move || writeln!(io::stderr(), "{text}").ok());
    ExitCode::FAILURE
}

/// The command, and what its configuration file says.
type Parsed = (Command, Option<Config>);

/// Reads a command line, and what its configuration file adds to it.
fn parsed(args: Vec<OsString>) -> Result<Result<Parsed>, clap::Error> {
    let matches = Arguments::command().try_get_matches_from(&args)?;
    let command = Arguments::from_arg_matches(&matches)?.command;
    let Command::Serve(arguments) = &command else { return Ok(Ok((command, None))) };
    let config = match arguments.config() {
        Ok(None) => return Ok(Ok((command, None))),
        Ok(Some(config)) => config,
        Err(error) => return Ok(Err(error)),
    };
    let given = matches.subcommand_matches("serve").map(given).unwrap_or_default();
    let added = config.arguments(&serve::command(), |id| given.iter().any(|it| it == id));
    let added = match added {
        Ok(added) => added,
        Err(error) => return Ok(Err(error)),
    };
    let arguments = Arguments::try_parse_from(args.into_iter().chain(added))?;
    Ok(Ok((arguments.command, Some(config))))
}

/// What the command line itself says.
fn given(matches: &ArgMatches) -> Vec<String> {
    let ids = matches.ids().map(|id| id.as_str());
    let is_given = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
    ids.filter(is_given).map(str::to_owned).collect()
}

fn doctor() -> Result<()> {
    bail!(
        "doctor reads Python, and comes with the Python package: pip install manyhands, then \
         python -m manyhands doctor SCRIPT"
    )
}

fn completion(shell: clap_complete::Shell) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "manyhands", &mut text);
    serve::print(&String::from_utf8(text)?)
}
