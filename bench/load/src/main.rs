//! Load for `bench/all`: the same work for every server, and for the disk alone.
//!
//! `drive` keeps a fixed number of requests in flight on a fixed number of connections, whatever is
//! at their other end; `floor` writes the same bytes without any server. Each prints its measurement
//! as one line of JSON. `delay` is a network that takes its time.
//!
//! Invariant: the servers differ in a [`Speaker`](speaker::Speaker) only, so none of them meets a
//! cheaper client. A protocol more is a module with a speaker, and a name in `drive`. The client
//! library alone has a driver of its own, which costs more.

mod amqp;
mod beanstalkd;
mod classic;
mod client;
mod clock;
mod delay;
mod drive;
mod echo;
mod floor;
mod histogram;
mod login;
mod native;
mod nats;
mod redis;
mod redis_stream;
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
    /// Pass on what clients and a server say, some time later
    Delay(delay::Arguments),
}

fn main() -> Result<()> {
    let measured = match Arguments::parse().command {
        Command::Drive(arguments) => serde_json::to_string(&drive::run(arguments)?)?,
        Command::Floor(arguments) => serde_json::to_string(&floor::run(&arguments)?)?,
        Command::Delay(arguments) => return delay::run(&arguments),
    };
    writeln!(std::io::stdout(), "{measured}")?;
    Ok(())
}
