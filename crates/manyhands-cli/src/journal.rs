//! `manyhands journal`: looks at a data directory without a server, and changes nothing in it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use manyhands::text::printable;
use manyhands_server::journal::{self, Entry, JournalError, Record, Report, TaskOptions};
use manyhands_server::{Salvaged, salvage};
use serde_json::{Map, Value, json};

use crate::item::escape_controls;
use crate::serve::print;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Journal {
    /// Read everything that a start would read, and every body that it may need
    ///
    /// Prints what there is. Exit code 1, and the file and the place in it, if anything is damaged.
    Check {
        /// The data directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Print every record that a start would read, one per line, without the items themselves
    Dump {
        /// The data directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// As JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Copy all that is whole of a damaged data directory to a new one, which a server can use
    ///
    /// Prints what is left out: each task whose item is damaged, by queue and number, and each part
    /// of the log that is lost. A task that was settled in such a part may come back, and one that
    /// was put there is missing. The directory itself is not changed; a server that uses it must be
    /// stopped. Exit code 0 if all was whole, 1 if anything was left out, or nothing could be copied:
    /// then TO is not there.
    Salvage {
        /// The data directory that is damaged
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// The new one: a name that is free, or an empty directory
        #[arg(value_name = "TO")]
        to: PathBuf,
    },
}

pub(crate) fn run(command: Journal) -> Result<()> {
    match command {
        Journal::Check { directory } => {
            let report = journal::check(&directory)?;
            ensure!(report.frames > 0 || report.checkpoint.is_some(), no_journal(&directory));
            print(&told(&report))
        }
        Journal::Dump { directory, json } => {
            let (mut printed, mut is_empty) = (Ok(()), true);
            journal::dump(&directory, &mut |entry| {
                is_empty = false;
                if printed.is_ok() {
                    let line = described(&entry);
                    let line = if json { format!("{line}\n") } else { plain(&line) };
                    printed = print(&escape_controls(&line, |char| char == '\n'));
                }
            })?;
            ensure!(!is_empty, no_journal(&directory));
            printed
        }
        Journal::Salvage { directory, to } => {
            let done = salvage_whole(&directory, &to)?;
            let text = salvaged(&done, &to);
            print(&printable(&text, |char| char == '\n'))?;
            ensure!(done.is_whole(), "not everything in {} was whole", directory.display());
            Ok(())
        }
    }
}

/// Nobody finds half a copy under the new name.
fn salvage_whole(directory: &Path, to: &Path) -> Result<Salvaged> {
    let name = to.display();
    let is_free = match to.read_dir() {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    ensure!(is_free, "{name} is there already; salvage needs a new name, or an empty directory");
    ensure!(directory.is_dir(), no_journal(directory));
    let mut part = to.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    if part.exists() {
        bail!("{} is what a salvage before has left when it was ended; remove it", part.display());
    }
    let rename = || {
        if to.exists() {
            // Not everywhere can it be replaced.
            std::fs::remove_dir(to)?;
        }
        std::fs::rename(&part, to)
    };
    let done = salvage(directory, &part).map_err(anyhow::Error::from).and_then(|done| {
        rename().with_context(|| format!("cannot rename {} to {name}", part.display()))?;
        Ok(done)
    });
    if done.is_err() && part.exists() {
        std::fs::remove_dir_all(&part).ok();
    }
    done
}

fn salvaged(done: &Salvaged, to: &Path) -> String {
    let Salvaged { queues, tasks, damages, bodies, nameless, .. } = done;
    let mut text = String::new();
    for error in damages {
        writeln!(text, "{error}").ok();
    }
    for error in bodies {
        match error {
            JournalError::DamagedBody { file, offset, queue, task, .. } => {
                writeln!(text, "queue {queue}: task {task}: its body at {file}:{offset} is damaged")
            }
            error => writeln!(text, "{error}"),
        }
        .ok();
    }
    for name in nameless {
        writeln!(text, "queue {name}: its name and settings were damaged and may be wrong").ok();
    }
    if !damages.is_empty() {
        text.push_str(
            "What was put, settled or counted in the parts that are damaged is not known: tasks may \
             be missing, and tasks that were settled may come back.\n",
        );
    }
    writeln!(text, "{tasks} tasks of {queues} queues are in {}", to.display()).ok();
    text
}

/// A name that was mistyped must not look healthy.
fn no_journal(directory: &Path) -> String {
    format!("there is no journal in {}", directory.display())
}

fn told(report: &Report) -> String {
    let Report { segments, frames, records, lsn, epoch, bodies, .. } = report;
    let mut text = format!(
        "intact: {segments} segments, {records} records, {frames} frames, the last of them {lsn}, \
         {epoch} starts\n"
    );
    if let Some(checkpoint) = report.checkpoint {
        writeln!(text, "checkpoint of frame {checkpoint}, with {bodies} bodies before it").ok();
    }
    if let Some((segment, offset)) = report.torn {
        writeln!(
            text,
            "the end of segment {segment} was not written whole: a start cuts it off at byte \
             {offset}, which loses nothing that was answered"
        )
        .ok();
    }
    text.push_str(if report.is_closed { "stopped cleanly\n" } else { "not stopped cleanly\n" });
    text
}

/// A record as an object.
fn described(entry: &Entry<'_>) -> Value {
    let (kind, fields) = fields(&entry.record);
    let mut object = Map::new();
    object.insert("frame".into(), json!(entry.lsn.0));
    object.insert("record".into(), json!(kind));
    if let Value::Object(fields) = fields {
        object.extend(fields);
    }
    if let Some(body) = entry.record.body() {
        object.insert("codec".into(), json!(body.codec.name()));
        object.insert("bytes".into(), json!(body.bytes.len()));
    }
    if let Some(location) = entry.location {
        object.insert("at".into(), json!(format!("{}:{}", location.segment, location.offset)));
    }
    Value::Object(object)
}

fn fields(record: &Record<'_>) -> (&'static str, Value) {
    match record {
        Record::Epoch { epoch } => ("epoch", json!({ "epoch": epoch })),
        Record::Closed => ("closed", json!({})),
        Record::Queue { queue, name, settings, next_task, unfinished } => {
            let counts = json!({ "queue": queue, "name": name, "settings": settings,
                                 "next_task": next_task, "unfinished": unfinished });
            ("queue", counts)
        }
        Record::Removed { queue } => ("removed", json!({ "queue": queue })),
        Record::Put { queue, task, options, .. } => ("put", of(*queue, *task, options)),
        Record::Ack { queue, task, attempt, result } => {
            let result = result.map(|result| of(result.queue, result.task, &result.options));
            let ack = json!({ "queue": queue, "task": task, "attempt": attempt });
            ("ack", with(ack, "result", result))
        }
        Record::Returned { queue, task, attempt, not_before, cause } => {
            let back = json!({ "queue": queue, "task": task, "attempt": attempt,
                               "not_before": not_before, "cause": cause });
            ("returned", back)
        }
        Record::Dead { queue, task, to_queue, to_task, cause } => {
            let dead = json!({ "queue": queue, "task": task, "to_queue": to_queue,
                               "to_task": to_task, "cause": cause });
            ("dead", dead)
        }
        Record::Redriven { queue, task, to_queue, to_task } => {
            let redriven = json!({ "queue": queue, "task": task, "to_queue": to_queue,
                                   "to_task": to_task });
            ("redriven", redriven)
        }
        Record::Purged { queue, before, kept } => {
            ("purged", json!({ "queue": queue, "before": before, "kept": kept }))
        }
        Record::Moved { queue, task, .. } => ("moved", json!({ "queue": queue, "task": task })),
        Record::Seen { queue, key, until } => {
            let key = String::from_utf8_lossy(key);
            ("seen", json!({ "queue": queue, "key": key, "until": until }))
        }
        Record::Leased { queue, task, attempt, lease, hold } => {
            let leased = json!({ "queue": queue, "task": task, "attempt": attempt,
                                 "epoch": lease, "milliseconds": hold });
            ("leased", leased)
        }
        Record::Done { queue, tasks } => ("done", json!({ "queue": queue, "tasks": tasks })),
        Record::Turned { queue, task, turned } => {
            ("turned", json!({ "queue": queue, "task": task, "turned": turned }))
        }
        Record::Expired { queue, task } => ("expired", json!({ "queue": queue, "task": task })),
        Record::Lasts { queue, task, until } => {
            ("lasts", json!({ "queue": queue, "task": task, "until": until }))
        }
        Record::Settled { queue, task, attempt, lease } => {
            let settled = json!({ "queue": queue, "task": task, "attempt": attempt,
                                  "epoch": lease });
            ("settled", settled)
        }
        Record::Live { queue, task, options, codec, location, .. } => {
            let at = format!("{}:{}", location.segment, location.offset);
            let live = with(of(*queue, *task, options), "codec", Some(json!(codec.name())));
            let live = with(live, "bytes", Some(json!(location.len)));
            ("held", with(live, "at", Some(json!(at))))
        }
    }
}

/// A task, with those of its options that are set.
fn of(queue: u64, task: u64, options: &TaskOptions<'_>) -> Value {
    let TaskOptions { not_before, expires, key, attempt, .. } = *options;
    let task = json!({ "queue": queue, "task": task });
    let task = with(task, "key", key.map(|key| json!(String::from_utf8_lossy(key))));
    let task = with(task, "not_before", not_before.map(|instant| json!(instant)));
    let task = with(task, "expires", expires.map(|instant| json!(instant)));
    with(task, "failures", (attempt != 0).then(|| json!(attempt)))
}

/// The same object with one field more, if there is one.
fn with(mut object: Value, key: &str, value: Option<Value>) -> Value {
    if let (Some(fields), Some(value)) = (object.as_object_mut(), value) {
        fields.insert(key.to_owned(), value);
    }
    object
}

/// The same as words.
fn plain(line: &Value) -> String {
    let word = |key| line.get(key).and_then(Value::as_str).unwrap_or_default();
    let mut text = format!("{} {}", line.get("frame").unwrap_or(&Value::Null), word("record"));
    for (key, value) in line.as_object().into_iter().flatten() {
        if !value.is_null() && key != "frame" && key != "record" {
            write!(text, " {key}={value}").ok();
        }
    }
    text.push('\n');
    text
}
