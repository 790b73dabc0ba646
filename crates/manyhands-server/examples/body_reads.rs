//! What it costs to read a body back that the system still has in memory: by a read that may wait for
//! the disk, and by one that does not.
//!
//! `cargo run --release -p manyhands-server --example body_reads [DIRECTORY]`
#![expect(clippy::print_stdout, reason = "it is all this program does")]
#![expect(clippy::disallowed_methods, reason = "it measures time")]

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use manyhands_server::journal::{
    Body, Durability, Location, Options, Record, Running, TaskOptions,
};

/// Bodies of each size.
const BODIES: u64 = 1000;
/// How often each is read, by turns.
const ROUNDS: usize = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = tempfile::tempdir_in(directory)?;
    let running = Running::start(directory.path(), Options::default(), &mut |_| {})?;
    let (journal, mut locations) = (running.journal(), Vec::new());
    println!("   bytes         read      at once   possible");
    for len in [100, 1000, 10_000, 100_000] {
        let bytes = vec![7; len];
        let body = Body { protocol: 4, prelude_len: 0, bytes: &bytes };
        locations.clear();
        for task in 0..BODIES {
            let put = Record::Put { queue: 1, task, options: TaskOptions::default(), body };
            let lsn = journal.append(&[put], Durability::Os, &mut locations);
            journal.durable(lsn, Durability::Os).wait()?;
        }
        let bodies = journal.bodies();
        let (read, _) = time(&locations, |at| bodies.read(at).is_ok());
        let (at_once, count) =
            time(&locations, |at| matches!(bodies.read_at_once(at), Ok(Some(_))));
        println!("{len:8} {read:>12.1?} {at_once:>12.1?} {count:>6} of {BODIES}");
    }
    Ok(running.close()?)
}

/// The least of what a read took on average over all, and how many of them said yes the last time.
fn time(locations: &[Location], read: impl Fn(Location) -> bool) -> (Duration, usize) {
    let round = |_| {
        let start = Instant::now();
        let count = locations.iter().filter(|at| read(**at)).count();
        (start.elapsed(), count)
    };
    let rounds: Vec<_> = (0..ROUNDS).map(round).collect();
    let least = rounds.iter().map(|(took, _)| *took).min().unwrap_or_default();
    let count = rounds.last().map_or(0, |(_, count)| *count);
    (least / u32::try_from(locations.len()).unwrap_or(u32::MAX), count)
}
