//! What can be seen of the tasks of a queue without taking them: `tasks`, `peek`; and what `get --info`
//! says of one that was taken.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};

use anyhow::{Result, bail};
use manyhands::wire::pickle::Codec;
use manyhands::wire::text::{nearest_first, repr};
use manyhands::{Info, Peeked, QueueInfo, TaskState, Value, blocking};
use serde_json::{Value as Json, json};

use crate::connection::Connection;
use crate::item;
use crate::look::{age, lines};
use crate::serve::print;

#[derive(Debug, clap::Args)]
pub(crate) struct Peek {
    #[command(flatten)]
    connection: Connection,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
    /// Show at most so many; a server shows up to 16,384
    #[arg(long, value_name = "N", default_value_t = 10)]
    count: usize,
    /// Name of the queue, such as tasks.dead
    queue: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Tasks {
    #[command(flatten)]
    connection: Connection,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
    /// Show at most so many; a server shows up to 16,384 of each state
    #[arg(long, value_name = "N", default_value_t = 100)]
    count: usize,
    /// Only tasks that somebody has
    #[arg(long)]
    leased: bool,
    /// Only tasks that are not to be handed out yet
    #[arg(long)]
    delayed: bool,
    /// Only tasks that may be taken
    #[arg(long)]
    ready: bool,
    /// Name of the queue
    queue: String,
}

pub(crate) fn peek(arguments: Peek) -> Result<()> {
    let client = arguments.connection.open()?;
    let (queue, info) = existing(&client, &arguments.queue)?;
    let tasks = queue.peek(manyhands::Peek { max: arguments.count, ..Default::default() })?;
    let mut text = String::new();
    for task in &tasks {
        text += &if arguments.json { as_json(task) + "\n" } else { told(task) };
    }
    let more = info.qsize.saturating_sub(tasks.len() as u64);
    if more > 0 && !arguments.json {
        writeln!(text, "and {more} more; --count N shows as many").ok();
    }
    let QueueInfo { leased, delayed, .. } = info;
    if leased + delayed > 0 && !arguments.json {
        let command = "manyhands tasks --json";
        writeln!(text, "{leased} leased and {delayed} delayed: {command} {}", arguments.queue).ok();
    }
    print(&for_terminal(text))
}

pub(crate) fn tasks(arguments: Tasks) -> Result<()> {
    let client = arguments.connection.open()?;
    let (queue, _) = existing(&client, &arguments.queue)?;
    let Tasks { leased, delayed, ready, count, .. } = arguments;
    let is_all = !leased && !delayed && !ready;
    let states =
        [(TaskState::Leased, leased), (TaskState::Delayed, delayed), (TaskState::Ready, ready)];
    let mut found: Vec<Peeked> = Vec::new();
    for (state, is_asked) in states {
        let max = count.saturating_sub(found.len());
        if (is_all || is_asked) && max > 0 {
            found.extend(queue.peek(manyhands::Peek { max, state, items: false })?);
        }
    }
    if arguments.json {
        let text: String = found.iter().map(|task| as_json(task) + "\n").collect();
        return print(&text);
    }
    print(&table(&found))
}

/// A queue that is there, and its counts: looking at one must not make it.
fn existing(client: &blocking::Client, name: &str) -> Result<(blocking::Queue<Value>, QueueInfo)> {
    let mut queues = client.queues()?;
    if let Some(at) = queues.iter().position(|queue| queue.name == name) {
        return Ok((client.queue(name)?, queues.swap_remove(at)));
    }
    bail!("no queue is called '{name}'{}", in_place_of(name, &queues));
}

/// What there is in place of a queue that there is not, as the end of a sentence.
pub(crate) fn in_place_of(name: &str, queues: &[QueueInfo]) -> String {
    let mut owners = queues.iter().filter(|queue| name.strip_suffix(".dead") == Some(&queue.name));
    if let Some(owner) = owners.find(|queue| queue.dead == 0) {
        return format!(": no task of {} was given up so far", repr(&owner.name));
    }
    let names = nearest_first(name, queues.iter().map(|queue| queue.name.as_str()));
    format!("; there are: {}", if names.is_empty() { "none so far" } else { &names })
}

/// What is read by a person must not command the terminal.
fn for_terminal(text: String) -> String {
    match io::stdout().is_terminal() {
        true => item::escape_controls(&text, |char| matches!(char, '\n' | '\t')),
        false => text,
    }
}

fn table(tasks: &[Peeked]) -> String {
    let header = ["STATE", "WORKER", "ADDRESS", "TASK", "ATTEMPT", "AGE", "HELD", "DUE", "KEY"];
    let time = |time: Option<std::time::Duration>| {
        time.map_or_else(|| "-".to_owned(), |time| age(time.as_secs_f64()))
    };
    let text = |text: Option<&str>| item::escape_controls(text.unwrap_or("-"), |_| false);
    let rows = tasks.iter().map(|task| {
        let key = task.key.as_deref().map(String::from_utf8_lossy);
        vec![
            task.state.name().to_owned(),
            text(task.worker.as_deref()),
            text(task.peer.as_deref()),
            task.task.to_string(),
            task.attempt.to_string(),
            time(task.age),
            time(task.since),
            time(task.due_in),
            text(key.as_deref()),
        ]
    });
    let header = header.map(str::to_owned).to_vec();
    lines(std::iter::once(header).chain(rows).collect(), 3)
}

/// A task as an item and lines that say what is known of it.
fn told(task: &Peeked) -> String {
    let mut text = task.item.as_ref().map(item::to_text).unwrap_or_default();
    write!(text, "\n  task {}, {}, attempt {}", task.task, task.state.name(), task.attempt).ok();
    if let Some(codec) = codec(task) {
        write!(text, ", {codec}").ok();
    }
    if let Some(put) = task.age {
        write!(text, ", put {} ago", age(put.as_secs_f64())).ok();
    }
    if let Some(key) = &task.key {
        write!(text, ", key {}", String::from_utf8_lossy(key)).ok();
    }
    if let Some((queue, task)) = &task.origin {
        write!(text, "\n  was task {task} of {queue}").ok();
    }
    for failure in &task.failures {
        write!(text, "\n  attempt {} failed", failure.attempt).ok();
        if !failure.worker.is_empty() {
            write!(text, " with {}", failure.worker).ok();
        }
        write!(text, ": {}", failure.reason).ok();
    }
    text.push('\n');
    text
}

/// What the item is, unless it is a pickle, as most are.
fn codec(task: &Peeked) -> Option<&'static str> {
    let codec = task.item.as_ref()?.codec;
    (!matches!(codec, Codec::Pickle(_))).then(|| codec.name())
}

fn as_json(task: &Peeked) -> String {
    let seconds = |time: std::time::Duration| json!(time.as_secs_f64());
    let failure = |failure: &manyhands::Failure| json!({ "attempt": failure.attempt, "worker": failure.worker, "reason": failure.reason });
    let failures = || Json::from(task.failures.iter().map(failure).collect::<Vec<_>>());
    let fields = [
        ("task", Some(json!(task.task))),
        ("state", Some(json!(task.state.name()))),
        ("attempt", Some(json!(task.attempt))),
        ("codec", codec(task).map(|codec| json!(codec))),
        ("age", task.age.map(seconds)),
        ("due_in", task.due_in.map(seconds)),
        ("key", task.key.as_deref().map(|key| json!(String::from_utf8_lossy(key)))),
        ("worker", task.worker.as_ref().map(|worker| json!(worker))),
        ("peer", task.peer.as_ref().map(|peer| json!(peer))),
        ("since", task.since.map(seconds)),
        ("failures", (!task.failures.is_empty()).then(failures)),
        ("queue", task.origin.as_ref().map(|(queue, _)| json!(queue))),
        ("origin", task.origin.as_ref().map(|(_, task)| json!(task))),
    ];
    let fields: Vec<_> =
        fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    match &task.item {
        Some(item) => with_item(&fields, &item::to_json(item).0),
        None => object(&fields),
    }
}

/// An object with these fields and the item, which is JSON already: numbers in it may be wider than
/// what a parser keeps.
pub(crate) fn with_item(fields: &[(&str, Json)], item: &str) -> String {
    let mut text = object(fields);
    text.pop();
    let comma = if fields.is_empty() { "" } else { "," };
    format!("{text}{comma}\"item\":{item}}}")
}

fn object(fields: &[(&str, Json)]) -> String {
    let fields: Vec<_> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    item::escape_controls(&format!("{{{}}}", fields.join(",")), |_| false)
}

/// Where a result or a dead letter comes from, as lines after its item.
pub(crate) fn info_text(info: &Info) -> String {
    let Info { queue, task, attempt, worker, waited, ran, history } = info;
    let mut text = format!("\n  was task {task} of {queue}, attempt {attempt}");
    if !worker.is_empty() {
        let (waited, ran) = (age(waited.as_secs_f64()), age(ran.as_secs_f64()));
        write!(text, ", by {worker}; waited {waited}, ran {ran}").ok();
    }
    for reason in history {
        write!(text, "\n  failed: {reason}").ok();
    }
    text
}

/// The same as JSON; null of an item that comes from no task.
pub(crate) fn info_json(info: Option<&Info>) -> Json {
    info.map_or(Json::Null, |info| {
        let Info { queue, task, attempt, worker, waited, ran, history } = info;
        json!({ "queue": queue, "task": task, "attempt": attempt, "worker": worker,
                "waited": waited.as_secs_f64(), "ran": ran.as_secs_f64(), "history": history })
    })
}
