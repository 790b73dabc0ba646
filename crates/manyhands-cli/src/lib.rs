//! The `manyhands` command line.
//!
//! `serve` runs a server; its options and start-up text are in `serve`, where its key comes from in
//! `key`, how queues are declared in `queues`. `commands` has what is done to a running server; `item` shows and reads items. `demo` is a
//! server, a master and workers in one command.

mod commands;
mod demo;
mod item;
mod journal;
mod key;
mod queues;
mod serve;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use manyhands::AuthKey;

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
    /// Put items into a queue
    Put(commands::Put),
    /// Take items out of a queue and print them, one per line
    ///
    /// A str is printed as it is, other values in Python's notation. With --json, tuples become lists
    /// and the keys of a dict become text, as by Python's json.dumps; an item that has no form in JSON
    /// (bytes, sets, objects) is printed as {"pickle": "HEXADECIMAL", "python": "NOTATION"}, with a
    /// note on standard error. An item that cannot be printed is put back at the end of its queue.
    ///
    /// Exit code 1 if the queue is empty when the time is over.
    Get(commands::Get),
    /// List the queues of a manyhands server
    Ls(commands::List),
    /// Move tasks that were given up back to the queues they came from, as new ones
    ///
    /// Prints how many. What is no dead letter, or whose queue is gone, stays.
    Redrive(commands::Redrive),
    /// Drop all that is ready or delayed in a queue, and print how much that was
    Purge(commands::Purge),
    /// Look at the data directory of a server that does not run
    #[command(subcommand)]
    Journal(journal::Journal),
    /// Show a server, a master and workers at work; takes a few seconds and leaves nothing behind
    Demo,
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

/// Runs the command line `args` (the program's name first) and returns its exit code: 0, 1 after a
/// failure, 2 for a command line that cannot be understood.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Where standard output or error is closed there is nobody to tell.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let result = match arguments.command {
        Command::Serve(arguments) => serve::run(arguments),
        Command::Put(arguments) => commands::put(arguments),
        Command::Get(arguments) => commands::get(arguments),
        Command::Ls(arguments) => commands::list(arguments),
        Command::Redrive(arguments) => commands::redrive(arguments),
        Command::Purge(arguments) => commands::purge(arguments),
        Command::Journal(command) => journal::run(command),
        Command::Demo => demo::run(),
        Command::DemoWorker(arguments) => demo::run_worker(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("manyhands: {error:#}");
            ExitCode::FAILURE
        }
    }
}
