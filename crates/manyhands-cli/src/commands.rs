//! What is done to a running server: `put`, `get`, `redrive`, `purge`, `drop`.

use std::io::{self, BufRead, IsTerminal, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use manyhands::wire::pickle::Payload;
use manyhands::{Error, Info, PutOptions, Taken, Value};

use crate::connection::Connection;
use crate::item;
use crate::serve::parse_seconds;
use crate::tasks;

/// What a shell says of a command that an interrupt ended: 128 and the number of the signal.
const INTERRUPTED: u8 = 130;
/// How long an interrupted command takes leave of its server.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(crate) struct Put {
    #[command(flatten)]
    connection: Connection,
    /// Read each value as JSON instead of text
    #[arg(long)]
    json: bool,
    /// Seconds to wait for a free slot in a full queue [default: for ever]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    timeout: Option<Duration>,
    /// Add nothing if an item was put with this key in the last 10 minutes, or what the queue's dedup
    /// says; for a single VALUE
    #[arg(long, requires = "values")]
    key: Option<String>,
    /// Name of the queue
    queue: String,
    /// Items; without any, one is read from each line of standard input, and put before the next is
    /// read
    #[arg(value_name = "VALUE", allow_negative_numbers = true)]
    values: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    #[command(flatten)]
    connection: Connection,
    /// Print items as JSON
    #[arg(long)]
    json: bool,
    /// Print after each result or dead letter which task it comes from, who made it and why attempts
    /// failed; with --json, each line is an object with item and info
    #[arg(long)]
    info: bool,
    /// Take this many items
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "follow")]
    count: u64,
    /// Take items until interrupted, or until none comes within the --timeout
    #[arg(long)]
    follow: bool,
    /// Seconds to wait for each item; 0 takes only what is there [default: for ever]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    timeout: Option<Duration>,
    /// Name of the queue
    queue: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Redrive {
    #[command(flatten)]
    connection: Connection,
    /// Move no more than this many tasks [default: all]
    #[arg(long, value_name = "N", conflicts_with = "task")]
    count: Option<usize>,
    /// Move only the task with this number, which `manyhands peek` shows; may be given several times
    #[arg(long, value_name = "NUMBER")]
    task: Vec<u64>,
    /// Name of the dead-letter queue, such as tasks.dead
    queue: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Purge {
    #[command(flatten)]
    connection: Connection,
    /// Name of the queue
    queue: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Drop {
    #[command(flatten)]
    connection: Connection,
    /// Also while clients refer to the queue, wait for it or have its tasks in hand: they are told
    /// that it is shut down, or gone
    #[arg(long)]
    force: bool,
    /// Do not ask, where a terminal is there to be asked
    #[arg(long)]
    yes: bool,
    /// Name of the queue
    queue: String,
}

pub(crate) fn put(arguments: Put) -> Result<()> {
    let Put { connection, json, timeout, key, queue, values } = arguments;
    ensure!(
        !values.is_empty() || !connection.key.is_standard_input(),
        "standard input cannot hold both the authkey and the items"
    );
    ensure!(
        key.is_none() || values.len() == 1,
        "--key is for one item, and not for {}",
        values.len()
    );
    let read = |text: String| if json { item::from_json(&text) } else { Ok(Value::Str(text)) };
    // All of them are read before the first is put.
    let values = values.into_iter().map(read).collect::<Result<Vec<_>>>()?;
    let client = connection.open()?;
    let queue = client.queue::<Value>(&queue)?;
    let options = PutOptions { key: key.map(String::into_bytes), timeout, ..Default::default() };
    let put = |value: &Value| queue.put_with(value, &options);
    if values.is_empty() {
        for (i, line) in io::stdin().lock().lines().enumerate() {
            let read = line.map_err(Into::into).and_then(read);
            let value = read.with_context(|| format!("line {}", i + 1))?;
            put(&value).with_context(|| format!("line {}", i + 1))?;
        }
    }
    for (i, value) in values.iter().enumerate() {
        let is_new = put(value).with_context(|| format!("item {} of {}", i + 1, values.len()))?;
        if !is_new {
            eprintln!("manyhands: this key was used a short while ago, and nothing was added");
        }
    }
    Ok(())
}

/// Asynchronous, so that an interrupt ends the waiting and the client takes its leave.
pub(crate) fn get(arguments: Get) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        let client = arguments.connection.open_async().await?;
        let taken = tokio::select! {
            taken = take(&client, &arguments) => taken.map(|()| ExitCode::SUCCESS),
            interrupt = tokio::signal::ctrl_c() => {
                interrupt.context("cannot wait for an interrupt")?;
                // Where the server does not answer, it finds out by itself.
                tokio::time::timeout(LEAVE_TIMEOUT, client.close()).await.ok();
                return Ok(ExitCode::from(INTERRUPTED));
            }
        };
        let closed = client.close().await;
        let code = taken?;
        closed?;
        anyhow::Ok(code)
    })?;
    // Name look-ups that go on elsewhere are not waited for.
    runtime.shutdown_background();
    Ok(code)
}

async fn take(client: &manyhands::Client, arguments: &Get) -> Result<()> {
    let queue = client.queue::<Value>(&arguments.queue).await?;
    let mut left = arguments.count;
    while arguments.follow || left > 0 {
        let taken = if arguments.info {
            queue.take_payload_with_info(arguments.timeout).await
        } else {
            let item = queue.get_payload(arguments.timeout).await;
            item.map(|item| Taken { item, info: None })
        };
        let Taken { item, info } = match taken {
            Err(Error::Empty) if arguments.follow => return Ok(()),
            taken => taken?,
        };
        if let Err(error) = print(&item, info, arguments) {
            queue.put_payload(&item, None).await.context("an item was lost")?;
            return Err(error).context("an item could not be printed and was put back");
        }
        left = left.saturating_sub(1);
    }
    Ok(())
}

fn print(item: &Payload, info: Option<Info>, arguments: &Get) -> io::Result<()> {
    let (line, note) =
        if arguments.json { item::to_json(item) } else { (item::to_text(item), None) };
    let line = match (arguments.info, arguments.json) {
        (false, _) => line,
        (true, true) => tasks::with_item(&[("info", tasks::info_json(info.as_ref()))], &line),
        (true, false) => line + &info.map(|info| tasks::info_text(&info)).unwrap_or_default(),
    };
    let mut stdout = io::stdout().lock();
    let line = if stdout.is_terminal() {
        item::escape_controls(&line, |char| matches!(char, '\n' | '\t'))
    } else {
        line
    };
    writeln!(stdout, "{line}")?;
    stdout.flush()?;
    if let Some(note) = note {
        eprintln!("manyhands: {note}");
    }
    Ok(())
}

pub(crate) fn redrive(arguments: Redrive) -> Result<()> {
    let client = arguments.connection.open()?;
    let queue = client.queue::<Value>(&arguments.queue)?;
    if !arguments.task.is_empty() {
        return redrive_tasks(&queue, &arguments.task);
    }
    // No more than there are now: a task may be given up again while we are at it.
    let there = usize::try_from(queue.qsize()?)?;
    let mut left = arguments.count.unwrap_or(there).min(there);
    let mut moved = 0;
    while left > 0 {
        // A server moves so many at a time; none is left when it moves none.
        let now = queue.redrive(left)?;
        if now == 0 {
            break;
        }
        moved += now;
        left = left.saturating_sub(usize::try_from(now)?);
    }
    crate::serve::print(&format!("{moved}\n"))
}

/// Moves the tasks with these numbers, and fails at the first one that stays.
fn redrive_tasks(queue: &manyhands::blocking::Queue<Value>, tasks: &[u64]) -> Result<()> {
    for (moved, &task) in tasks.iter().enumerate() {
        ensure!(
            queue.redrive_task(task)?,
            "task {task} of {} is no dead letter that can be moved: it is not there, or somebody has \
             it, or the queue that it came from is gone (moved before it: {moved})",
            item::escape_controls(queue.name(), |_| false)
        );
    }
    crate::serve::print(&format!("{}\n", tasks.len()))
}

pub(crate) fn purge(arguments: Purge) -> Result<()> {
    let client = arguments.connection.open()?;
    let dropped = client.queue::<Value>(&arguments.queue)?.purge()?;
    crate::serve::print(&format!("{dropped}\n"))
}

pub(crate) fn drop(arguments: Drop) -> Result<()> {
    let Drop { connection, force, yes, queue } = arguments;
    let client = connection.open()?;
    if !yes && io::stdin().is_terminal() && !is_confirmed(&client, &queue)? {
        return crate::serve::print("nothing was dropped\n");
    }
    let dropped = client.drop_queue(&queue, force).map_err(|error| match error {
        Error::Remote { class, message } if class == "KeyError" => {
            let instead = client.queues().map(|queues| tasks::in_place_of(&queue, &queues));
            anyhow!("{message}{}", instead.unwrap_or_default())
        }
        Error::Remote { class, message } if class == "RuntimeError" => {
            anyhow!("{message}; --force drops it all the same")
        }
        Error::Remote { message, .. } => anyhow!("{message}"),
        error => error.into(),
    })?;
    crate::serve::print(&format!("{dropped}\n"))
}

/// Asks at the terminal whether tasks may go with their queue.
fn is_confirmed(client: &manyhands::blocking::Client, queue: &str) -> Result<bool> {
    let queues = client.queues()?;
    let tasks = queues.iter().find(|info| info.name == queue);
    let tasks = tasks.map_or(0, |info| info.qsize + info.delayed + info.leased);
    if tasks == 0 {
        return Ok(true);
    }
    let name = item::escape_controls(queue, |_| false);
    eprint!("manyhands: drop the queue {name} and the {tasks} tasks in it? [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
