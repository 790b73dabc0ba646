//! Durable records per second of the journal, beside a bare write and `fdatasync` of the same bytes.
//!
//! `cargo run --release -p manyhands-server --example journal_floor [DIRECTORY [ROUNDS]]`
//!
//! Both take turns commit by commit, so that what disturbs the disk disturbs both alike. `growing`
//! is a plain file that grows; `warm` is one whose blocks were written before, as the journal's are.
#![expect(clippy::print_stdout, reason = "it is all this program does")]
#![expect(clippy::disallowed_methods, reason = "it measures time")]

use std::error::Error;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use manyhands::wire::pickle::Codec;
use manyhands_server::journal::{Body, Durability, Journal, Options, Record, Running, TaskOptions};

/// Bytes of a body.
const BODY: [u8; 200] = [7; 200];
/// What a put of one takes in the journal, in bytes.
const RECORD_LEN: usize = 214;
/// Bytes of the file that was written before.
const WARM_LEN: usize = 64 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let rounds: usize = arguments.next().map_or(Ok(300), |rounds| rounds.parse())?;
    let directory = tempfile::tempdir_in(directory)?;
    let running =
        Running::start(&directory.path().join("journal"), Options::default(), &mut |_| {})?;
    let journal = running.journal();
    let mut growing = File::create(directory.path().join("growing"))?;
    let mut warm = File::create(directory.path().join("warm"))?;
    warm.write_all(&vec![0; WARM_LEN])?;
    warm.sync_all()?;
    println!("batch   growing p50    warm p50 journal p50   journal/growing  /warm  records/s");
    let (mut task, mut at) = (0, 0);
    // The first segment of all was never written before.
    while task * (RECORD_LEN as u64) < WARM_LEN as u64 {
        let puts: Vec<_> = (task..).map(put).take(1000).collect();
        task += puts.len() as u64;
        durable(journal, &puts)?;
    }
    for batch in [1, 64, 256] {
        let bytes = vec![7; batch * RECORD_LEN];
        let [mut grow, mut overwrite, mut append] = [const { Vec::new() }; 3];
        for _ in 0..rounds {
            grow.push(time(|| {
                growing.write_all(&bytes)?;
                growing.sync_data()
            })?);
            overwrite.push(time(|| {
                warm.write_all_at(&bytes, at)?;
                warm.sync_data()
            })?);
            at = (at + bytes.len() as u64) % (WARM_LEN - bytes.len()) as u64;
            let puts: Vec<_> = (task..).map(put).take(batch).collect();
            task += batch as u64;
            append.push(time(|| durable(journal, &puts))?);
        }
        let [grow, overwrite, append] = [grow, overwrite, append].map(median);
        println!(
            "{batch:5} {grow:>12.1?} {overwrite:>12.1?} {append:>12.1?} {:14.2} {:9.2} {:10.0}",
            append.as_secs_f64() / grow.as_secs_f64(),
            append.as_secs_f64() / overwrite.as_secs_f64(),
            batch as f64 / append.as_secs_f64(),
        );
    }
    Ok(running.close()?)
}

fn put(task: u64) -> Record<'static> {
    let body = Body { codec: Codec::Pickle(4), prelude_len: 4, bytes: &BODY };
    Record::Put { queue: 1, task, options: TaskOptions::default(), body }
}

fn durable(journal: &Journal, records: &[Record<'_>]) -> std::io::Result<()> {
    let lsn = journal.append(records, Durability::Disk, &mut Vec::with_capacity(records.len()));
    journal.durable(lsn, Durability::Disk).wait().map_err(std::io::Error::other)
}

fn time(act: impl FnOnce() -> std::io::Result<()>) -> std::io::Result<Duration> {
    let start = Instant::now();
    act()?;
    Ok(start.elapsed())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
