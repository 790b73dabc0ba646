//! What a server answers.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::header::{Header, Op, Route, flag};
use super::reader::{Reader, length, no_count};
use super::task::{PeekedKind, PeekedTasks, TaskKind, Tasks};
use super::writer::{TooLong, Writer, micros};
use super::{Code, DecodeError, NO_NUMBER, What};
use crate::text;
use crate::wire::frame::Outbound;
use crate::wire::reply::QueueInfo;

/// What a server answers.
#[derive(Debug, Clone)]
pub enum Reply {
    /// It is done.
    Done,
    /// So many.
    Count(u64),
    /// A queue is open.
    Opened(Properties),
    /// What became of items.
    Added(Added),
    /// Tasks.
    Tasks {
        /// The tasks.
        tasks: Tasks,
        /// Whether they were pushed by credit, and are no reply to a request.
        pushed: bool,
    },
    /// What became of settlements.
    Settled(Codes),
    /// How many items there are.
    Size {
        /// Items in the queue.
        qsize: u64,
        /// Most that it holds; 0 is no bound.
        maxsize: u64,
    },
    /// A JSON text.
    Text {
        /// The text.
        json: String,
        /// Whether there is more after it.
        more: bool,
    },
    /// Tasks that were looked at.
    Peeked(PeekedTasks),
    /// The server asks for pushed tasks back.
    Recall {
        /// How many.
        count: u32,
    },
    /// The request had no effect.
    Error {
        /// Why.
        code: Code,
        /// The same in words, with what matters.
        text: String,
    },
}

/// What a client needs to know of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// Which task comes next.
    pub order: QueueOrder,
    /// What survives.
    pub durability: QueueDurability,
    /// Whether an ack needs a result.
    pub needs_results: bool,
    /// Whether results come in the order of their tasks' puts.
    pub is_ordered: bool,
    /// Most items that it holds; 0 is no bound.
    pub maxsize: u64,
    /// How long a lease lasts that says no more; `None` is as long as its session.
    pub hold: Option<Duration>,
    /// Whether its items are handed out as CPython's server does: taken for good.
    pub delivery_cpython: bool,
    /// The queue that its results go to.
    pub results: Option<String>,
}

/// Which task comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QueueOrder {
    /// The first put.
    Fifo,
    /// The last put.
    Lifo,
    /// The least.
    Priority,
}

/// What survives of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QueueDurability {
    /// Nothing.
    Memory,
    /// What was answered survives the server.
    Os,
    /// What was answered survives a power cut.
    Disk,
}

/// What became of items.
#[derive(Debug, Clone)]
pub struct Added {
    /// How many, from the first on, are in the queue.
    pub count: u32,
    /// Why the next one is not.
    pub refusal: Option<(Code, String)>,
    /// The numbers of their tasks, if they were asked for or say something.
    pub numbers: Option<Numbers>,
}

/// The numbers of tasks that were put; `None` stands for one that was put before with the same key.
#[derive(Debug, Clone)]
pub struct Numbers(Bytes);

impl Iterator for Numbers {
    type Item = Option<u64>;

    fn next(&mut self) -> Option<Option<u64>> {
        let number = self.0.try_get_u64_le().ok()?;
        Some((number != NO_NUMBER).then_some(number))
    }
}

/// What became of each settlement; `None` took effect.
#[derive(Debug, Clone)]
pub struct Codes {
    /// Nothing, if all took effect.
    codes: Bytes,
    left: u32,
}

impl Iterator for Codes {
    type Item = Option<Code>;

    fn next(&mut self) -> Option<Option<Code>> {
        self.left = self.left.checked_sub(1)?;
        Some(self.codes.try_get_u16_le().ok().and_then(Code::of_number))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (length(self.left), Some(length(self.left)))
    }
}

/// The flags that replies have.
const fn known_flags(op: Op) -> u8 {
    match op {
        Op::Text => flag::MORE,
        Op::Tasks => flag::PUSHED,
        _ => 0,
    }
}

impl Reply {
    /// Reads a reply. Tasks are read later, one by one.
    ///
    /// # Errors
    ///
    /// [`DecodeError`]: the server does not speak this protocol.
    pub fn decode(header: &Header, body: Bytes) -> Result<Self, DecodeError> {
        let op = Op::of_number(header.op).filter(|op| !op.is_request());
        let op = op.ok_or(What::UnknownOp(header.op))?;
        let found = header.flags & !known_flags(op);
        if found != 0 {
            return Err(What::UnknownFlag { op: header.op, found }.into());
        }
        let count = header.count;
        if !matches!(op, Op::Added | Op::Tasks | Op::Settled | Op::Peeked | Op::Recall) {
            no_count(count)?;
        }
        let mut fields = Reader::new(body);
        let reply = match op {
            Op::Tasks => {
                let tasks = Tasks::new(fields, count, TaskKind);
                return Ok(Self::Tasks { tasks, pushed: header.flags & flag::PUSHED != 0 });
            }
            Op::Peeked => return Ok(Self::Peeked(PeekedTasks::new(fields, count, PeekedKind))),
            _ => Self::read(op, header, &mut fields)?,
        };
        fields.finish()?;
        Ok(reply)
    }

    /// Reads a reply whose body is no batch.
    fn read(op: Op, header: &Header, fields: &mut Reader) -> Result<Self, What> {
        let Header { flags, count, .. } = *header;
        Ok(match op {
            Op::Done => Self::Done,
            Op::Count => Self::Count(fields.u64("count")?),
            Op::Opened => Self::Opened(Properties::read(fields)?),
            Op::Added => Self::Added(Added::read(count, fields)?),
            Op::Settled => Self::Settled(read_codes(count, fields)?),
            Op::Sizes => {
                Self::Size { qsize: fields.u64("qsize")?, maxsize: fields.u64("maxsize")? }
            }
            Op::Text => {
                Self::Text { json: fields.last_text("json")?, more: flags & flag::MORE != 0 }
            }
            Op::Recall => Self::Recall { count },
            Op::Error => {
                let code = read_code(fields)?;
                fields.zeros::<2>()?;
                Self::Error { code, text: fields.last_text("text")? }
            }
            request => return Err(What::UnknownOp(request as u8)),
        })
    }
}

fn read_code(fields: &mut Reader) -> Result<Code, What> {
    let at = fields.at();
    let number = fields.u16("code")?;
    Code::of_number(number).ok_or(What::Value {
        field: "code",
        at,
        found: number.into(),
        expected: "the code of an error",
    })
}

fn read_codes(count: u32, fields: &mut Reader) -> Result<Codes, What> {
    let from = fields.at();
    if fields.left() > 0 {
        for _ in 0..count {
            let mut ahead = fields.clone();
            match fields.u16("code")? {
                0 => {}
                _ => drop(read_code(&mut ahead)?),
            }
        }
    }
    Ok(Codes { codes: fields.since(from), left: count })
}

impl Added {
    fn read(count: u32, fields: &mut Reader) -> Result<Self, What> {
        if fields.left() == 0 {
            return Ok(Self { count, refusal: None, numbers: None });
        }
        let mut ahead = fields.clone();
        let code = match fields.u16("code")? {
            0 => None,
            _ => Some(read_code(&mut ahead)?),
        };
        fields.zeros::<2>()?;
        let text_len = length(fields.u32("text_len")?);
        let text = fields.text("text", text_len)?;
        let numbers = match fields.left() {
            0 => None,
            _ => Some(Numbers(fields.bytes("numbers", length(count).saturating_mul(8))?)),
        };
        Ok(Self { count, refusal: code.map(|code| (code, text)), numbers })
    }
}

const NEEDS_RESULTS: u8 = 1;
const ORDERED: u8 = 2;
const DELIVERY_CPYTHON: u8 = 4;

impl Properties {
    fn read(fields: &mut Reader) -> Result<Self, What> {
        let at = fields.at();
        let [order, durability, flags] = fields.array("order, durability and flags")?;
        let value = |field, at, found: u8, expected| {
            Err(What::Value { field, at, found: found.into(), expected })
        };
        let order = match order {
            0 => QueueOrder::Fifo,
            1 => QueueOrder::Lifo,
            2 => QueueOrder::Priority,
            found => return value("order", at, found, "0 to 2"),
        };
        let durability = match durability {
            0 => QueueDurability::Memory,
            1 => QueueDurability::Os,
            2 => QueueDurability::Disk,
            found => return value("durability", at + 1, found, "0 to 2"),
        };
        if flags & !(NEEDS_RESULTS | ORDERED | DELIVERY_CPYTHON) != 0 {
            return value("flags of a queue", at + 2, flags, "0 to 7");
        }
        fields.zeros::<5>()?;
        Ok(Self {
            order,
            durability,
            needs_results: flags & NEEDS_RESULTS != 0,
            is_ordered: flags & ORDERED != 0,
            maxsize: fields.u64("maxsize")?,
            hold: fields.time("hold")?,
            delivery_cpython: flags & DELIVERY_CPYTHON != 0,
            results: Some(fields.last_text("results")?).filter(|name| !name.is_empty()),
        })
    }

    fn write(&self, out: &mut BytesMut) {
        let set = |truth: bool, flag: u8| if truth { flag } else { 0 };
        let flags = set(self.needs_results, NEEDS_RESULTS)
            | set(self.is_ordered, ORDERED)
            | set(self.delivery_cpython, DELIVERY_CPYTHON);
        let order = match self.order {
            QueueOrder::Fifo => 0,
            QueueOrder::Lifo => 1,
            QueueOrder::Priority => 2,
        };
        let durability = match self.durability {
            QueueDurability::Memory => 0,
            QueueDurability::Os => 1,
            QueueDurability::Disk => 2,
        };
        out.put_slice(&[order, durability, flags, 0, 0, 0, 0, 0]);
        out.put_u64_le(self.maxsize);
        out.put_u64_le(micros(self.hold));
        out.put_slice(self.results.as_deref().unwrap_or_default().as_bytes());
    }
}

/// Appends `done`.
pub fn push_done(route: Route, out: &mut Outbound) {
    Writer::new(out, Op::Done, 0, route).finish_short();
}

/// Appends a number.
pub fn push_count(count: u64, route: Route, out: &mut Outbound) {
    let mut frame = Writer::new(out, Op::Count, 0, route);
    frame.own().put_u64_le(count);
    frame.finish_short();
}

/// Appends the properties of a queue that was opened.
pub fn push_opened(properties: &Properties, route: Route, out: &mut Outbound) {
    let mut frame = Writer::new(out, Op::Opened, 0, route);
    properties.write(frame.own());
    frame.finish_short();
}

/// Appends what became of items: how many were added, why the next one was not, and, if they were
/// asked for or one was put before with the same key, the numbers of as many tasks as were added.
pub fn push_added(
    count: u32,
    refusal: Option<(Code, &str)>,
    numbers: impl IntoIterator<Item = Option<u64>>,
    route: Route,
    out: &mut Outbound,
) {
    let mut frame = Writer::new(out, Op::Added, 0, route);
    frame.set_count(count);
    let own = frame.own();
    let mut numbers = numbers.into_iter().peekable();
    if refusal.is_some() || numbers.peek().is_some() {
        let (code, text) = refusal.map_or((0, ""), |(code, text)| (code.number(), text));
        let text = text::start(text, TEXT_LEN_MAX);
        own.put_u32_le(code.into());
        own.put_u32_le(u32::try_from(text.len()).unwrap_or(u32::MAX));
        own.put_slice(text.as_bytes());
    }
    numbers.for_each(|number| own.put_u64_le(number.unwrap_or(NO_NUMBER)));
    frame.finish_short();
}

/// Longest text of an error, in bytes.
const TEXT_LEN_MAX: usize = 1 << 20;

/// Begins tasks, which are added one by one.
pub fn begin_tasks(pushed: bool, route: Route, out: &mut Outbound) -> Writer<'_> {
    Writer::new(out, Op::Tasks, if pushed { flag::PUSHED } else { 0 }, route)
}

/// Appends what became of settlements, in their order. That all took effect takes no body.
pub fn push_settled(
    codes: impl IntoIterator<Item = Option<Code>>,
    route: Route,
    out: &mut Outbound,
) {
    let mut frame = Writer::new(out, Op::Settled, 0, route);
    let (mut count, mut effective) = (0, 0);
    for code in codes {
        count += 1;
        effective += u32::from(code.is_none());
        frame.own().put_u16_le(code.map_or(0, Code::number));
    }
    if effective == count {
        frame.clear();
    }
    frame.set_count(count);
    frame.finish_short();
}

/// Appends the size of a queue.
pub fn push_size(qsize: u64, maxsize: u64, route: Route, out: &mut Outbound) {
    let mut frame = Writer::new(out, Op::Sizes, 0, route);
    frame.own().put_u64_le(qsize);
    frame.own().put_u64_le(maxsize);
    frame.finish_short();
}

/// Appends what is known of queues, as JSON, and whether there are more.
///
/// # Errors
///
/// [`TooLong`] if it is longer than 4 GiB; nothing is appended then.
pub fn push_list(
    queues: &[QueueInfo],
    more: bool,
    route: Route,
    out: &mut Outbound,
) -> Result<(), TooLong> {
    let mut frame = Writer::new(out, Op::Text, if more { flag::MORE } else { 0 }, route);
    frame.own().put_slice(&serde_json::to_vec(queues).unwrap_or_default());
    frame.finish()
}

/// Reads the [text](Reply::Text) that is the reply to a list.
///
/// # Errors
///
/// [`DecodeError`] if it is not what is known of queues.
pub fn read_list(json: &str) -> Result<Vec<QueueInfo>, DecodeError> {
    let queues = serde_json::from_str(json);
    queues.map_err(|error| What::Json { at: 0, error: error.to_string() }.into())
}

/// Begins tasks that were looked at, which are added one by one.
pub fn begin_peeked(route: Route, out: &mut Outbound) -> Writer<'_> {
    Writer::new(out, Op::Peeked, 0, route)
}

/// Appends a recall.
pub fn push_recall(count: u32, route: Route, out: &mut Outbound) {
    let mut frame = Writer::new(out, Op::Recall, 0, route);
    frame.set_count(count);
    frame.finish_short();
}

/// Appends an error.
pub fn push_error(code: Code, text: &str, route: Route, out: &mut Outbound) {
    let mut frame = Writer::new(out, Op::Error, 0, route);
    frame.own().put_u32_le(code.number().into());
    frame.own().put_slice(text::start(text, TEXT_LEN_MAX).as_bytes());
    frame.finish_short();
}
