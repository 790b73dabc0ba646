//! Load for `bench/durable`: the same work for manyhands, Redis and beanstalkd, and for the disk alone.
//!
//! `drive` keeps a fixed number of requests in flight on a fixed number of connections, whatever is
//! at their other end; `floor` writes the same bytes without any server. Each prints its measurement as one line of JSON.
//!
//! Invariant: the peers differ in a [`Speaker`](speaker::Speaker) only, so none of them meets a cheaper client.

mod beanstalkd;
mod clock;
mod drive;
mod floor;
mod histogram;
mod manyhands;
mod redis;
mod speaker;

use std::io::Write;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Give a server work
    Drive(drive::Arguments),
    /// Append to a file and sync it
    Floor(floor::Arguments),
}

fn main() -> Result<()> {
    let measured = match Arguments::parse().command {
        Command::Drive(arguments) => serde_json::to_string(&drive::run(arguments)?)?,
        Command::Floor(arguments) => serde_json::to_string(&floor::run(&arguments)?)?,
    };
    writeln!(std::io::stdout(), "{measured}")?;
    Ok(())
}
