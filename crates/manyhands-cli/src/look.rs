//! What can be seen of a running server without taking anything from it: `ls`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use manyhands::QueueInfo;

use crate::connection::Connection;
use crate::item;
use crate::serve::{parse_seconds, print};

/// Clears the terminal and begins at its top.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    #[command(flatten)]
    connection: Connection,
    /// Print a JSON array; with --watch one on each line
    #[arg(long)]
    json: bool,
    /// Look again every so many seconds [default: 2], until interrupted, and show how much was put
    /// and settled per second in between
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, num_args = 0..=1,
          default_missing_value = "2", require_equals = true)]
    watch: Option<Duration>,
}

pub(crate) fn list(arguments: List) -> Result<()> {
    let client = arguments.connection.open()?;
    let mut last: Option<Look> = None;
    loop {
        let look = Look::take(client.queues()?);
        let text = match arguments.json {
            true => item::escape_controls(&serde_json::to_string(&look.queues)?, |_| false) + "\n",
            false => table(&look, last.as_ref(), arguments.watch.is_some()),
        };
        let clears = arguments.watch.is_some() && !arguments.json && io::stdout().is_terminal();
        print(&if clears { format!("{CLEAR}{text}") } else { text })?;
        let Some(pause) = arguments.watch else { return Ok(()) };
        if !arguments.json && !clears {
            print("\n")?;
        }
        last = Some(look);
        thread::sleep(pause);
    }
}

/// The queues at one time.
struct Look {
    queues: Vec<QueueInfo>,
    at: Instant,
}

impl Look {
    #[expect(clippy::disallowed_methods, reason = "measures the time between two looks")]
    fn take(mut queues: Vec<QueueInfo>) -> Self {
        queues.sort_by(|a, b| a.name.cmp(&b.name));
        Self { queues, at: Instant::now() }
    }
}

/// A column: its title, and what it says of a queue.
type Column<'a> = (&'static str, Box<dyn Fn(&QueueInfo) -> String + 'a>);

/// Names to the left, numbers to the right, columns as wide as what is in them. What nobody uses has
/// no column.
fn table(look: &Look, last: Option<&Look>, has_rates: bool) -> String {
    let mut columns: Vec<Column<'_>> = vec![
        ("NAME", Box::new(|queue| item::escape_controls(&queue.name, |_| false))),
        ("ORDER", Box::new(|queue| queue.order.clone())),
        ("MAXSIZE", Box::new(|queue| some(queue.maxsize != 0, queue.maxsize))),
        ("QSIZE", Box::new(|queue| queue.qsize.to_string())),
    ];
    if look.queues.iter().any(|queue| queue.is_joined) {
        columns.push(("UNFINISHED", Box::new(|queue| some(queue.is_joined, queue.unfinished))));
    }
    let waiting = |queue: &QueueInfo| queue.waiting_get + queue.waiting_put + queue.waiting_join;
    columns.extend::<[Column<'_>; 5]>([
        ("LEASED", Box::new(|queue| queue.leased.to_string())),
        ("DELAYED", Box::new(|queue| queue.delayed.to_string())),
        ("DEAD", Box::new(|queue| queue.dead.to_string())),
        ("WAITING", Box::new(move |queue| waiting(queue).to_string())),
        ("OLDEST", Box::new(|queue| queue.oldest.map_or_else(|| "-".into(), age))),
    ]);
    if has_rates {
        let before = rates(look, last);
        let rate = move |queue: &QueueInfo, pick: fn(&QueueInfo) -> u64| {
            let rate = before.get(&queue.name).map(|(then, seconds)| {
                let more = pick(queue).saturating_sub(pick(then));
                #[expect(clippy::cast_precision_loss, reason = "shown to one digit")]
                let rate = more as f64 / seconds;
                format!("{rate:.1}")
            });
            rate.unwrap_or_else(|| "-".into())
        };
        let other = rate.clone();
        columns.push(("PUT/S", Box::new(move |queue| rate(queue, |queue| queue.put))));
        columns.push(("DONE/S", Box::new(move |queue| other(queue, |queue| queue.done))));
    }
    aligned(&columns, &look.queues)
}

/// What each queue was at the last look, and how many seconds ago.
fn rates<'a>(look: &Look, last: Option<&'a Look>) -> HashMap<String, (&'a QueueInfo, f64)> {
    let then = last.into_iter().flat_map(|last| {
        let seconds = look.at.saturating_duration_since(last.at).as_secs_f64();
        last.queues.iter().map(move |queue| (queue.name.clone(), (queue, seconds.max(1e-9))))
    });
    then.collect()
}

fn aligned(columns: &[Column<'_>], queues: &[QueueInfo]) -> String {
    let header = columns.iter().map(|(title, _)| (*title).to_owned()).collect();
    let rows = queues.iter().map(|queue| columns.iter().map(|(_, cell)| cell(queue)).collect());
    lines(std::iter::once(header).chain(rows).collect(), 2)
}

/// Rows of cells as lines; all but the first `left` columns stand to the right.
pub(crate) fn lines(rows: Vec<Vec<String>>, left: usize) -> String {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<_> = (0..).map_while(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if column < left { format!("{cell:width$}") } else { format!("{cell:>width$}") }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(text, "{}", line.trim_end()).ok();
    }
    text
}

fn some(is: bool, number: u64) -> String {
    if is { number.to_string() } else { "-".to_owned() }
}

/// A time as long as it takes to judge it.
pub(crate) fn age(seconds: f64) -> String {
    match seconds {
        ..10.0 => format!("{seconds:.1}s"),
        ..120.0 => format!("{seconds:.0}s"),
        ..7200.0 => format!("{:.0}m", seconds / 60.0),
        ..172_800.0 => format!("{:.0}h", seconds / 3600.0),
        _ => format!("{:.0}d", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(name: &str, maxsize: u64, qsize: u64) -> QueueInfo {
        QueueInfo {
            name: name.to_owned(),
            order: "fifo".to_owned(),
            maxsize,
            qsize,
            unfinished: qsize,
            leased: 1,
            delayed: 2,
            dead: 3,
            waiting_get: 4,
            waiting_put: 1,
            ..QueueInfo::default()
        }
    }

    #[test]
    fn a_table_is_aligned_and_cannot_command_a_terminal() {
        let expected = "\
NAME           ORDER  MAXSIZE   QSIZE  LEASED  DELAYED  DEAD  WAITING  OLDEST
get_task       fifo         -  100000       1        2     3        5     90m
red\\u001b[31m  fifo        10       0       1        2     3        5       -
";
        let old = QueueInfo { oldest: Some(5400.0), ..queue("get_task", 0, 100_000) };
        let look = Look::take(vec![old, queue("red\x1b[31m", 10, 0)]);
        assert_eq!(table(&look, None, false), expected);
    }

    #[test]
    fn unfinished_tasks_are_shown_where_somebody_counts_them() {
        let expected = "\
NAME  ORDER  MAXSIZE  QSIZE  UNFINISHED  LEASED  DELAYED  DEAD  WAITING  OLDEST
a     fifo         -      7           7       1        2     3        5       -
b     fifo         -      8           -       1        2     3        5       -
";
        let joined = QueueInfo { is_joined: true, ..queue("a", 0, 7) };
        assert_eq!(table(&Look::take(vec![joined, queue("b", 0, 8)]), None, false), expected);
    }

    #[test]
    fn rates_are_those_since_the_last_look() {
        let mut last = Look::take(vec![QueueInfo { put: 100, done: 7, ..queue("a", 0, 0) }]);
        let now = vec![QueueInfo { put: 121, done: 8, ..queue("a", 0, 0) }, queue("new", 0, 0)];
        let look = Look::take(now);
        last.at = look.at - Duration::from_secs(2);
        let text = table(&look, Some(&last), true);
        let cells = |line: usize| {
            let mut cells: Vec<_> = text.lines().nth(line).unwrap().split_whitespace().collect();
            cells.split_off(cells.len() - 2)
        };
        assert_eq!(
            [cells(0), cells(1), cells(2)],
            [["PUT/S", "DONE/S"], ["10.5", "0.5"], ["-", "-"]]
        );
    }

    #[test]
    fn a_time_is_told_in_its_own_unit() {
        let ages = [0.04, 9.96, 119.0, 3600.0, 7200.0, 200_000.0].map(age);
        assert_eq!(ages, ["0.0s", "10.0s", "119s", "60m", "2h", "2d"]);
    }
}
