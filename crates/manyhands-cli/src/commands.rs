//! What is done to a running server: `put`, `get`, `ls`, `redrive`, `purge`.

use std::fmt::Write as _;
use std::io::{self, BufRead, IsTerminal, Write as _};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use manyhands::text::printable;
use manyhands::wire::pickle::Payload;
use manyhands::{ConnectOptions, Error, QueueInfo, Value, blocking};

use crate::item;
use crate::key::KeyArguments;
use crate::serve::parse_seconds;

/// Options that name a running server.
#[derive(Debug, clap::Args)]
pub(crate) struct Connection {
    /// Server: HOST:PORT, [IPV6]:PORT or unix:PATH; CPython's own managers will do as well
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000")]
    connect: String,
    #[command(flatten)]
    key: KeyArguments,
    /// Refuse servers that know only HMAC-MD5: those of Python 3.11 and earlier
    #[arg(long)]
    no_md5: bool,
}

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
pub(crate) struct List {
    #[command(flatten)]
    connection: Connection,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Redrive {
    #[command(flatten)]
    connection: Connection,
    /// Move no more than this many tasks [default: all]
    #[arg(long, value_name = "N")]
    count: Option<usize>,
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

pub(crate) fn put(arguments: Put) -> Result<()> {
    let Put { connection, json, timeout, queue, values } = arguments;
    ensure!(
        !values.is_empty() || !connection.key.is_standard_input(),
        "standard input cannot hold both the authkey and the items"
    );
    let read = |text: String| if json { item::from_json(&text) } else { Ok(Value::Str(text)) };
    // All of them are read before the first is put.
    let values = values.into_iter().map(read).collect::<Result<Vec<_>>>()?;
    let client = connection.open()?;
    let queue = client.queue::<Value>(&queue)?;
    let put = |value: &Value| match timeout {
        Some(timeout) => queue.put_timeout(value, timeout),
        None => queue.put(value),
    };
    if values.is_empty() {
        for (i, line) in io::stdin().lock().lines().enumerate() {
            let read = line.map_err(Into::into).and_then(read);
            let value = read.with_context(|| format!("line {}", i + 1))?;
            put(&value).with_context(|| format!("line {}", i + 1))?;
        }
    }
    for (i, value) in values.iter().enumerate() {
        put(value).with_context(|| format!("item {} of {}", i + 1, values.len()))?;
    }
    Ok(())
}

/// Asynchronous, so that an interrupt ends the waiting and the client takes its leave.
pub(crate) fn get(arguments: Get) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = arguments.connection.open_async().await?;
        let taken = tokio::select! {
            taken = take(&client, &arguments) => taken,
            interrupt = tokio::signal::ctrl_c() => interrupt.context("cannot wait for an interrupt"),
        };
        let closed = client.close().await;
        taken?;
        Ok(closed?)
    })
}

async fn take(client: &manyhands::Client, arguments: &Get) -> Result<()> {
    let queue = client.queue::<Value>(&arguments.queue).await?;
    let mut left = arguments.count;
    while arguments.follow || left > 0 {
        let item = match queue.get_payload(arguments.timeout).await {
            Err(Error::Empty) if arguments.follow => return Ok(()),
            item => item?,
        };
        if let Err(error) = print(&item, arguments.json) {
            queue.put_payload(&item, None).await.context("an item was lost")?;
            return Err(error).context("an item could not be printed and was put back");
        }
        left = left.saturating_sub(1);
    }
    Ok(())
}

fn print(item: &Payload, json: bool) -> io::Result<()> {
    let (line, note) = if json { item::to_json(item) } else { (item::to_text(item), None) };
    let mut stdout = io::stdout().lock();
    let line = if stdout.is_terminal() {
        printable(&line, |char| matches!(char, '\n' | '\t')).into_owned()
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

pub(crate) fn list(arguments: List) -> Result<()> {
    let mut queues = arguments.connection.open()?.queues()?;
    queues.sort_by(|a, b| a.name.cmp(&b.name));
    let text = if arguments.json {
        printable(&serde_json::to_string(&queues)?, |_| false).into_owned() + "\n"
    } else {
        table(&queues)
    };
    crate::serve::print(&text)
}

pub(crate) fn redrive(arguments: Redrive) -> Result<()> {
    let client = arguments.connection.open()?;
    let queue = client.queue::<Value>(&arguments.queue)?;
    let mut left = arguments.count.unwrap_or(usize::MAX);
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

pub(crate) fn purge(arguments: Purge) -> Result<()> {
    let client = arguments.connection.open()?;
    let dropped = client.queue::<Value>(&arguments.queue)?.purge()?;
    crate::serve::print(&format!("{dropped}\n"))
}

/// Names to the left, numbers to the right, columns as wide as what is in them.
fn table(queues: &[QueueInfo]) -> String {
    let header = ["NAME", "ORDER", "MAXSIZE", "QSIZE", "UNFINISHED", "LEASED", "DELAYED", "DEAD"];
    let header = header.map(str::to_owned);
    let rows = queues.iter().map(|queue| {
        [
            printable(&queue.name, |_| false).into_owned(),
            queue.order.clone(),
            if queue.maxsize == 0 { "-".to_owned() } else { queue.maxsize.to_string() },
            queue.qsize.to_string(),
            queue.unfinished.to_string(),
            queue.leased.to_string(),
            queue.delayed.to_string(),
            queue.dead.to_string(),
        ]
    });
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = width(column).unwrap_or_default();
            if column < 2 { format!("{cell:width$}") } else { format!("{cell:>width$}") }
        });
        writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ")).ok();
    }
    text
}

impl Connection {
    fn open(&self) -> Result<blocking::Client> {
        let key = self.key.read(false)?.key;
        Ok(blocking::Client::connect_with(&self.connect, key, self.options())?)
    }

    async fn open_async(&self) -> Result<manyhands::Client> {
        let key = self.key.read(false)?.key;
        Ok(manyhands::Client::connect_with(&self.connect, key, self.options()).await?)
    }

    fn options(&self) -> ConnectOptions {
        ConnectOptions { accept_md5: !self.no_md5, ..ConnectOptions::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_cannot_command_a_terminal() {
        let queue = |name: &str, maxsize, qsize| QueueInfo {
            name: name.to_owned(),
            order: "fifo".to_owned(),
            maxsize,
            qsize,
            unfinished: qsize,
            leased: 1,
            delayed: 2,
            dead: 3,
        };
        let expected = "\
NAME                 ORDER  MAXSIZE   QSIZE  UNFINISHED  LEASED  DELAYED  DEAD
get_task             fifo         -  100000      100000       1        2     3
red\\u001b[31m\\u202e  fifo        10       0           0       1        2     3
";
        assert_eq!(
            table(&[queue("get_task", 0, 100_000), queue("red\x1b[31m\u{202e}", 10, 0)]),
            expected
        );
    }
}
