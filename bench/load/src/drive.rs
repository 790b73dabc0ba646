//! Keeps a fixed number of requests in flight on each connection, and counts.
//!
//! A *slot* makes one request at a time: it puts, or puts a task, takes one and settles it. A connection
//! sends what its slots ask for in one write, and never waits for a reply while another request could
//! go out.

use std::collections::VecDeque;
use std::io::Write;
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

use crate::amqp;
use crate::beanstalkd::Beanstalkd;
use crate::classic;
use crate::client::{self, RustClient};
use crate::clock;
use crate::echo::Echo;
use crate::histogram::{Histogram, Summary};
use crate::native;
use crate::nats;
use crate::redis::Redis;
use crate::redis_stream::{self, RedisStream};
use crate::speaker::{Items, Speaker, Step, To};

/// Least and most room for what is received, in bytes.
const ROOM: std::ops::RangeInclusive<usize> = 64 << 10..=1 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Which protocol to speak
    #[arg(long)]
    driver: Driver,
    /// HOST:PORT
    #[arg(long)]
    address: String,
    /// The authkey of manyhands
    #[arg(long, default_value = "/dev/null")]
    key_file: PathBuf,
    /// What to do
    #[arg(long)]
    pub(crate) work: Work,
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Requests in flight on each connection
    #[arg(long, default_value_t = 1)]
    pub(crate) outstanding: usize,
    /// Items of each put, and of each take
    #[arg(long, default_value_t = 1)]
    pub(crate) batch: usize,
    /// Bytes of an item
    #[arg(long, default_value_t = 100)]
    pub(crate) payload: usize,
    /// Ask a server that keeps queues in memory or on disk, as the client says, for the disk
    #[arg(long)]
    pub(crate) durable: bool,
    /// Leave what is in a queue that is there before, where the server is not started anew
    #[arg(long)]
    pub(crate) keep: bool,
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
enum Driver {
    /// CPython's protocol, as a stock client speaks it
    Classic,
    /// The native protocol of manyhands
    Native,
    /// The Rust client of manyhands
    Client,
    /// Lists of Redis
    Redis,
    /// A stream of Redis with a group of consumers
    RedisStream,
    Beanstalkd,
    /// A work queue of NATS JetStream
    Nats,
    /// A quorum queue of RabbitMQ
    Amqp,
    /// Frames that come back as they are
    Echo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Work {
    /// Put, and put again
    Put,
    /// Put and take, with as little as the server lets a taken task cost
    Pair,
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
    /// The same of a take.
    take_us: Summary,
    /// What was done in each second that was measured.
    each_second: Vec<u64>,
}

pub(crate) fn run(arguments: Arguments) -> Result<Measured> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(drive(Arc::new(arguments)))
}

async fn drive(arguments: Arc<Arguments>) -> Result<Measured> {
    let mut connections = Vec::new();
    for number in 0..arguments.connections {
        connections.push(connect(&arguments, number).await?);
    }
    let load = Load::new(arguments)?;
    // From here on the server's CPU is that of the work.
    writeln!(std::io::stdout(), "connected")?;
    let mut tasks = JoinSet::new();
    for driven in connections {
        tasks.spawn(driven.run(load.clone()));
    }
    let mut total = load.tally();
    while let Some(tally) = tasks.join_next().await {
        total.merge(&tally??);
    }
    Ok(total.measured())
}

/// What is left to do, shared by all connections.
///
/// A client library needs no [`Speaker`]: it puts while this says so, and returns its [`Tally`].
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) arguments: Arc<Arguments>,
    pub(crate) items: Items,
    begun: Instant,
    from: Instant,
    until: Instant,
    /// Items that may still be put.
    left: Arc<AtomicU64>,
}

impl Load {
    fn new(arguments: Arc<Arguments>) -> Result<Self> {
        let begun = clock::now();
        let from = begun + Duration::from_secs_f64(arguments.warm);
        let until = from + Duration::from_secs_f64(arguments.seconds);
        let left = Arc::new(AtomicU64::new(arguments.count));
        Ok(Self { items: Items::new(arguments.payload)?, begun, from, until, left, arguments })
    }

    pub(crate) fn tally(&self) -> Tally {
        Tally::new(self.begun, self.from, self.until)
    }

    /// Whether one more batch is to be put now; it counts as put then.
    pub(crate) fn goes_on(&self, now: Instant) -> bool {
        let batch = self.arguments.batch as u64;
        let take = |left: u64| left.checked_sub(batch);
        now < self.until
            && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// What gives one connection work.
enum Driven {
    Speaker(TcpStream, Box<dyn Speaker>),
    Client(RustClient),
}

impl Driven {
    async fn run(self, load: Load) -> Result<Tally> {
        match self {
            Self::Speaker(socket, speaker) => Connection::new(load, speaker).run(socket).await,
            Self::Client(client) => client.run(load).await,
        }
    }
}

async fn connect(arguments: &Arguments, number: usize) -> Result<Driven> {
    let address = arguments.address.as_str();
    let (key, batch) = (arguments.key_file.as_path(), arguments.batch);
    match arguments.driver {
        Driver::Native => {
            let (socket, session) = native::connect(address, key, arguments.work, batch).await?;
            return Ok(Driven::Speaker(socket, Box::new(session)));
        }
        Driver::Classic if batch == 1 && arguments.work != Work::Cycle => {
            let (socket, session) = classic::connect(address, key).await?;
            return Ok(Driven::Speaker(socket, Box::new(session)));
        }
        Driver::Client => return Ok(Driven::Client(client::connect(address, key).await?)),
        Driver::Classic => bail!("CPython's protocol has neither batches nor settlements"),
        _ => {}
    }
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let first = number == 0;
    let speaker: Box<dyn Speaker> = match arguments.driver {
        Driver::Redis => Box::new(Redis::new(number, arguments.work)),
        Driver::Echo => Box::new(Echo::new(arguments.payload)),
        _ if batch > 1 => bail!("{:?} has no batches", arguments.driver),
        Driver::RedisStream => {
            if first {
                redis_stream::create(&mut socket).await?;
            }
            Box::new(RedisStream)
        }
        Driver::Nats => Box::new(nats::connect(&mut socket, arguments, first).await?),
        Driver::Amqp => Box::new(amqp::connect(&mut socket, arguments, first).await?),
        _ => Box::new(Beanstalkd),
    };
    Ok(Driven::Speaker(socket, speaker))
}

/// One producer or consumer of a connection.
#[derive(Debug, Default)]
struct Slot {
    next: Next,
    receipt: Vec<u8>,
    /// The request that has no reply yet, and when it was made.
    asked: Option<(Next, Instant)>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    #[default]
    Put,
    Take,
    Settle,
}

struct Connection {
    load: Load,
    speaker: Box<dyn Speaker>,
    slots: Vec<Slot>,
    /// Slots whose requests have no reply yet, the oldest first.
    in_flight: VecDeque<usize>,
    tally: Tally,
}

impl Connection {
    fn new(load: Load, speaker: Box<dyn Speaker>) -> Self {
        let slots = (0..load.arguments.outstanding).map(|_| Slot::default()).collect();
        let (in_flight, tally) = (VecDeque::new(), load.tally());
        Self { load, speaker, slots, in_flight, tally }
    }

    async fn run(mut self, mut socket: TcpStream) -> Result<Tally> {
        let room = self.load.arguments.payload.clamp(*ROOM.start(), *ROOM.end());
        let mut inbound = BytesMut::with_capacity(room);
        let mut out = Vec::new();
        for slot in 0..self.slots.len() {
            self.ask(slot, &mut out);
        }
        while !self.in_flight.is_empty() {
            socket.write_all(&out).await?;
            out.clear();
            inbound.reserve(room);
            ensure!(socket.read_buf(&mut inbound).await? > 0, "closed by the server");
            self.read_replies(&mut inbound, &mut out)?;
        }
        Ok(self.tally)
    }

    /// Makes a slot's next request, unless it has no work any more.
    fn ask(&mut self, number: usize, out: &mut Vec<u8>) {
        let now = clock::now();
        let Some(slot) = self.slots.get_mut(number) else { return };
        let batch = self.load.arguments.batch;
        let step = match slot.next {
            Next::Put => {
                if !self.load.goes_on(now) {
                    return;
                }
                Step::Put(&mut self.load.items, batch)
            }
            Next::Take => Step::Take(batch),
            Next::Settle => Step::Settle,
        };
        self.speaker.ask(number, &slot.receipt, step, out);
        slot.asked = Some((slot.next, now));
        self.in_flight.push_back(number);
    }

    /// Reads the replies that have come, and lets their slots ask again.
    fn read_replies(&mut self, inbound: &mut BytesMut, out: &mut Vec<u8>) -> Result<()> {
        while let Some(reply) = self.speaker.reply(inbound)? {
            let len = reply.len;
            let place = match reply.to {
                To::Nobody => {
                    inbound.advance(len);
                    continue;
                }
                To::Oldest => Some(0),
                To::Slot(slot) => self.in_flight.iter().position(|number| *number == slot),
            };
            let number = place.and_then(|place| self.in_flight.remove(place));
            let number = number.context("a reply that nobody asked for")?;
            let slot = self.slots.get_mut(number).context("a slot")?;
            let (step, sent) = slot.asked.take().context("a request")?;
            slot.receipt.clear();
            slot.receipt.extend_from_slice(reply.receipt);
            slot.next = match (self.load.arguments.work, step) {
                (Work::Pair | Work::Cycle, Next::Put) => Next::Take,
                (_, Next::Take) if self.speaker.settles() => Next::Settle,
                _ => Next::Put,
            };
            let done = if slot.next == Next::Put { self.load.arguments.batch as u64 } else { 0 };
            self.tally.add(step, sent, clock::now(), done);
            inbound.advance(len);
            self.ask(number, out);
        }
        Ok(())
    }
}

/// What was done, and when.
#[derive(Debug)]
pub(crate) struct Tally {
    begun: Instant,
    from: Instant,
    until: Instant,
    /// The last reply of those that are measured, and of all.
    last: Instant,
    last_in_all: Instant,
    done: u64,
    done_in_all: u64,
    puts: Histogram,
    takes: Histogram,
    each_second: Vec<u64>,
}

impl Tally {
    fn new(begun: Instant, from: Instant, until: Instant) -> Self {
        let (puts, takes, each_second) = (Histogram::new(), Histogram::new(), Vec::new());
        let (last, last_in_all, done, done_in_all) = (from, begun, 0, 0);
        Self { begun, from, until, last, last_in_all, done, done_in_all, puts, takes, each_second }
    }

    pub(crate) fn add(&mut self, step: Next, sent: Instant, now: Instant, done: u64) {
        self.done_in_all += done;
        self.last_in_all = now;
        if now < self.from || now >= self.until {
            return;
        }
        self.last = now;
        self.done += done;
        match step {
            Next::Put => self.puts.add(now - sent),
            Next::Take => self.takes.add(now - sent),
            Next::Settle => {}
        }
        let second = usize::try_from((now - self.from).as_secs()).unwrap_or(usize::MAX);
        if self.each_second.len() <= second {
            self.each_second.resize(second + 1, 0);
        }
        if let Some(count) = self.each_second.get_mut(second) {
            *count += done;
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.last = self.last.max(other.last);
        self.last_in_all = self.last_in_all.max(other.last_in_all);
        self.done += other.done;
        self.done_in_all += other.done_in_all;
        self.puts.merge(&other.puts);
        self.takes.merge(&other.takes);
        let len = self.each_second.len().max(other.each_second.len());
        self.each_second.resize(len, 0);
        for (count, more) in self.each_second.iter_mut().zip(&other.each_second) {
            *count += more;
        }
    }

    /// Where nothing is through in the time that is measured, all of it counts.
    fn measured(self) -> Measured {
        let (done, seconds) = match self.done {
            0 => (self.done_in_all, self.last_in_all - self.begun),
            done => (done, self.last - self.from),
        };
        Measured {
            done,
            done_in_all: self.done_in_all,
            seconds: seconds.as_secs_f64(),
            put_us: self.puts.summary(),
            take_us: self.takes.summary(),
            each_second: self.each_second,
        }
    }
}
