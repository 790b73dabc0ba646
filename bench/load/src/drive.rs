//! Keeps a fixed number of requests in flight on each connection, and counts.
//!
//! A *slot* makes one request at a time. A producer's slot puts, and puts again; a consumer's puts a
//! task, takes one, and settles it. A connection sends what its slots ask for in one write, and never waits for a
//! reply while another request could go out.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, BytesMut};
use clap::ValueEnum;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::beanstalkd::Beanstalkd;
use crate::histogram::{Histogram, Summary};
use crate::redis::Redis;
use crate::speaker::{Items, Speaker, Step};
use crate::{clock, manyhands};

/// Room for what is received, in bytes.
const ROOM: usize = 64 << 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Who serves
    #[arg(long)]
    peer: Peer,
    /// HOST:PORT
    #[arg(long)]
    address: String,
    /// The authkey of manyhands
    #[arg(long, default_value = "/dev/null")]
    key_file: PathBuf,
    /// What to do
    #[arg(long)]
    work: Work,
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Requests in flight on each connection
    #[arg(long, default_value_t = 1)]
    outstanding: usize,
    /// Items of each put
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Bytes of an item
    #[arg(long, default_value_t = 100)]
    payload: usize,
    /// Seconds that are not measured at first
    #[arg(long, default_value_t = 0.0)]
    warm: f64,
    /// Seconds that are measured
    #[arg(long, default_value_t = 1e9)]
    seconds: f64,
    /// Stop after so many items
    #[arg(long, default_value_t = u64::MAX)]
    count: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// manyhands, with leases
    Manyhands,
    /// manyhands, as a stock client
    Classic,
    Redis,
    Beanstalkd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Work {
    /// Put, and put again
    Put,
    /// Put a task, take one, settle it
    Cycle,
}

#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    /// Items put, or cycles completed, in the time that was measured.
    done: u64,
    /// The same from the first request to the last reply.
    done_in_all: u64,
    /// How long was measured.
    seconds: f64,
    /// From the request of a put to its reply.
    put_us: Summary,
    /// What was done in each second that was measured.
    each_second: Vec<u64>,
}

pub(crate) fn run(arguments: Arguments) -> Result<Measured> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(drive(Arc::new(arguments)))
}

async fn drive(arguments: Arc<Arguments>) -> Result<Measured> {
    let mut connections = Vec::new();
    for number in 0..arguments.connections {
        connections.push(connect(&arguments, number).await?);
    }
    let items = Items::new(arguments.payload)?;
    let from = clock::now() + Duration::from_secs_f64(arguments.warm);
    let until = from + Duration::from_secs_f64(arguments.seconds);
    let left = Arc::new(AtomicU64::new(arguments.count));
    let mut tasks = JoinSet::new();
    for (socket, speaker) in connections {
        let tally = Tally::new(from, until);
        let slots = (0..arguments.outstanding).map(|_| Slot::default()).collect();
        let connection = Connection {
            arguments: arguments.clone(),
            speaker,
            slots,
            in_flight: VecDeque::new(),
            items: items.clone(),
            left: left.clone(),
            tally,
        };
        tasks.spawn(connection.run(socket));
    }
    let mut total = Tally::new(from, until);
    while let Some(tally) = tasks.join_next().await {
        total.merge(&tally??);
    }
    Ok(total.measured())
}

async fn connect(arguments: &Arguments, number: usize) -> Result<(TcpStream, Box<dyn Speaker>)> {
    let address = arguments.address.as_str();
    if let Peer::Manyhands | Peer::Classic = arguments.peer {
        let leases = arguments.peer == Peer::Manyhands;
        let (socket, session) = manyhands::connect(address, &arguments.key_file, leases).await?;
        return Ok((socket, Box::new(session)));
    }
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let speaker: Box<dyn Speaker> = match arguments.peer {
        Peer::Redis => Box::new(Redis::new(number)),
        _ if arguments.batch > 1 => bail!("beanstalkd has no batches"),
        _ => Box::new(Beanstalkd),
    };
    Ok((socket, speaker))
}

/// One producer or consumer of a connection.
#[derive(Debug, Default)]
struct Slot {
    next: Next,
    receipt: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Next {
    #[default]
    Put,
    Take,
    Settle,
}

/// A request without its reply.
struct Request {
    slot: usize,
    step: Next,
    sent: Instant,
}

struct Connection {
    arguments: Arc<Arguments>,
    speaker: Box<dyn Speaker>,
    slots: Vec<Slot>,
    in_flight: VecDeque<Request>,
    items: Items,
    /// Items that may still be put, by all.
    left: Arc<AtomicU64>,
    tally: Tally,
}

impl Connection {
    async fn run(mut self, mut socket: TcpStream) -> Result<Tally> {
        let mut inbound = BytesMut::with_capacity(ROOM);
        let mut out = Vec::new();
        for slot in 0..self.slots.len() {
            self.ask(slot, &mut out);
        }
        while !self.in_flight.is_empty() {
            socket.write_all(&out).await?;
            out.clear();
            inbound.reserve(ROOM);
            ensure!(socket.read_buf(&mut inbound).await? > 0, "closed by the server");
            self.read_replies(&mut inbound, &mut out)?;
        }
        Ok(self.tally)
    }

    /// Makes a slot's next request, unless it has no work any more.
    fn ask(&mut self, number: usize, out: &mut Vec<u8>) {
        let now = clock::now();
        let Some(slot) = self.slots.get(number) else { return };
        let step = slot.next;
        match step {
            Next::Put => {
                let batch = self.arguments.batch;
                if now >= self.tally.until || !take(&self.left, batch as u64) {
                    return;
                }
                self.speaker.ask(Step::Put(&mut self.items, batch), out);
            }
            Next::Take => self.speaker.ask(Step::Take, out),
            Next::Settle => self.speaker.ask(Step::Settle(&slot.receipt), out),
        }
        self.in_flight.push_back(Request { slot: number, step, sent: now });
    }

    /// Reads the replies that have come, and lets their slots ask again.
    fn read_replies(&mut self, inbound: &mut BytesMut, out: &mut Vec<u8>) -> Result<()> {
        while let Some(reply) = self.speaker.reply(inbound)? {
            let len = reply.len;
            let Request { slot: number, step, sent } =
                self.in_flight.pop_front().context("a reply that nobody asked for")?;
            let slot = self.slots.get_mut(number).context("a slot")?;
            slot.receipt.clear();
            slot.receipt.extend_from_slice(reply.receipt);
            slot.next = match (self.arguments.work, step) {
                (Work::Cycle, Next::Put) => Next::Take,
                (Work::Cycle, Next::Take) if self.speaker.settles() => Next::Settle,
                _ => Next::Put,
            };
            let done = if slot.next == Next::Put { self.arguments.batch as u64 } else { 0 };
            self.tally.add(step, sent, clock::now(), done);
            inbound.advance(len);
            self.ask(number, out);
        }
        Ok(())
    }
}

/// Takes `count` off `left`, if there are as many.
fn take(left: &AtomicU64, count: u64) -> bool {
    let taken =
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(count));
    taken.is_ok()
}

/// What was done, and when.
#[derive(Debug)]
struct Tally {
    from: Instant,
    until: Instant,
    last: Instant,
    done: u64,
    done_in_all: u64,
    puts: Histogram,
    each_second: Vec<u64>,
}

impl Tally {
    fn new(from: Instant, until: Instant) -> Self {
        let (puts, each_second) = (Histogram::new(), Vec::new());
        Self { from, until, last: from, done: 0, done_in_all: 0, puts, each_second }
    }

    fn add(&mut self, step: Next, sent: Instant, now: Instant, done: u64) {
        self.done_in_all += done;
        if now < self.from || now >= self.until {
            return;
        }
        self.last = now;
        self.done += done;
        if step == Next::Put {
            self.puts.add(now - sent);
        }
        let second = usize::try_from((now - self.from).as_secs()).unwrap_or(usize::MAX);
        if self.each_second.len() <= second {
            self.each_second.resize(second + 1, 0);
        }
        if let Some(count) = self.each_second.get_mut(second) {
            *count += done;
        }
    }

    fn merge(&mut self, other: &Self) {
        self.last = self.last.max(other.last);
        self.done += other.done;
        self.done_in_all += other.done_in_all;
        self.puts.merge(&other.puts);
        let len = self.each_second.len().max(other.each_second.len());
        self.each_second.resize(len, 0);
        for (count, more) in self.each_second.iter_mut().zip(&other.each_second) {
            *count += more;
        }
    }

    fn measured(self) -> Measured {
        Measured {
            done: self.done,
            done_in_all: self.done_in_all,
            seconds: (self.last - self.from).as_secs_f64(),
            put_us: self.puts.summary(),
            each_second: self.each_second,
        }
    }
}
