//! The `manyhands` command line.
//!
//! `serve` runs a server; its options and start-up text are in `serve`, where its key comes from in
//! `key`.

mod key;
mod serve;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("manyhands: {error:#}");
            ExitCode::FAILURE
        }
    }
}
