//! What the disk alone does: append as many bytes at a time, sync, and again.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::clock;
use crate::histogram::{Histogram, Summary};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where the file is made, and taken away again
    #[arg(long)]
    directory: PathBuf,
    /// Bytes of one append
    #[arg(long)]
    bytes: usize,
    /// How long
    #[arg(long)]
    seconds: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    /// Appends that are on the disk.
    appends: u64,
    seconds: f64,
    append_us: Summary,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Measured> {
    let path = arguments.directory.join("floor");
    let opened = OpenOptions::new().append(true).create_new(true).open(&path);
    let mut file = opened.with_context(|| format!("create {}", path.display()))?;
    let mut bytes = vec![0; arguments.bytes];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    let (begun, mut histogram, mut appends) = (clock::now(), Histogram::new(), 0);
    let end = begun + Duration::from_secs_f64(arguments.seconds);
    let mut last = begun;
    while last < end {
        file.write_all(&bytes)?;
        file.sync_data()?;
        appends += 1;
        let now = clock::now();
        histogram.add(now - last);
        last = now;
    }
    std::fs::remove_file(&path)?;
    let seconds = (last - begun).as_secs_f64();
    Ok(Measured { appends, seconds, append_us: histogram.summary() })
}
