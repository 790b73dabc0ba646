//! What a client asks.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::header::{Header, Op, Route, flag};
use super::item::{ItemKind, Items};
use super::payload::Trust;
use super::reader::{Reader, length, no_count};
use super::settlement::{SettlementKind, Settlements};
use super::writer::{TooLong, Writer, micros, wait_micros};
use super::{Bounds, DecodeError, NO_NUMBER, Wait, What};
use crate::text;
use crate::wire::frame::Outbound;
use crate::wire::tasks::{Peek, TaskState};

/// What a client asks of the queue that its frame's [`Route`] names, or of the server.
#[derive(Debug, Clone)]
pub enum Request {
    /// Open the queue of this name under the handle of the frame.
    Open {
        /// The name.
        name: String,
    },
    /// Forget the handle.
    Close,
    /// Add items.
    Put(Put),
    /// Take or lease tasks.
    Get(Get),
    /// Settle leases.
    Settle {
        /// For room for results.
        wait: Wait,
        /// What becomes of which lease.
        settlements: Settlements,
    },
    /// Push tasks.
    Credit {
        /// How long each is leased; `None` is as long as the queue says.
        hold: Option<Duration>,
        /// How many more.
        credit: u32,
        /// Push no more, instead.
        ends: bool,
    },
    /// End the request with the id of the frame.
    Cancel,
    /// Count tasks as done for `join`.
    TaskDone {
        /// How many.
        count: u32,
    },
    /// Wait until all tasks are done.
    Join,
    /// Say how many items there are.
    Size,
    /// Say what is known of queues.
    List {
        /// Only of those whose names come after it.
        after: String,
    },
    /// Look at tasks.
    Peek(Peek),
    /// Move dead letters back.
    Redrive {
        /// How many at most.
        max: u64,
        /// Only this one.
        task: Option<u64>,
    },
    /// Drop what is ready or delayed.
    Purge,
    /// Take no more items.
    Shutdown {
        /// Also drop what is in the queue.
        immediate: bool,
    },
    /// Forget a queue with its tasks.
    Drop {
        /// Its name.
        name: String,
        /// Also if it is in use.
        forced: bool,
    },
    /// Declare a queue.
    Configure {
        /// Its name.
        name: String,
        /// Its options, as on the command line.
        options: String,
    },
    /// Say that the server is there.
    Ping,
    /// End a task, whoever has it.
    Revoke {
        /// Its number.
        task: u64,
    },
}

/// Items to add.
#[derive(Debug, Clone)]
pub struct Put {
    /// For free slots.
    pub wait: Wait,
    /// Whether to answer with the numbers of the tasks.
    pub numbered: bool,
    /// The items.
    pub items: Items,
}

/// How tasks are taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Get {
    /// For the first.
    pub wait: Wait,
    /// Whether they are leased, instead of taken for good.
    pub leased: bool,
    /// How long each is leased; `None` is as long as the queue says.
    pub hold: Option<Duration>,
    /// Whether what is known of each is asked for.
    pub informed: bool,
    /// How many at most.
    pub max: u32,
    /// Bytes of payload at most; `None` is as many as the server has in a batch.
    pub bytes_max: Option<u32>,
}

/// The flags that requests have.
const fn known_flags(op: Op) -> u8 {
    match op {
        Op::Put => flag::NUMBERED,
        Op::Get => flag::LEASED | flag::INFORMED,
        Op::Credit => flag::END,
        Op::Shutdown => flag::IMMEDIATE,
        Op::Drop => flag::FORCED,
        _ => 0,
    }
}

impl Request {
    /// Reads a request. Items and settlements are read later, one by one.
    ///
    /// # Errors
    ///
    /// [`DecodeError`], which says how to answer; the session goes on.
    pub fn decode(header: &Header, body: Bytes, bounds: &Bounds) -> Result<Self, DecodeError> {
        let op = Op::of_number(header.op).filter(|op| op.is_request());
        let op = op.ok_or(What::UnknownOp(header.op))?;
        let found = header.flags & !known_flags(op);
        if found != 0 {
            return Err(What::UnknownFlag { op: header.op, found }.into());
        }
        let (count, max) = (header.count, bounds.batch_max);
        match op {
            Op::Put | Op::Settle if count > max => return Err(What::TooMany { count, max }.into()),
            Op::Put | Op::Settle | Op::TaskDone => {}
            _ => no_count(count)?,
        }
        let mut fields = Reader::new(body);
        let trust = Trust::Nobody(bounds.pickle);
        let request = match op {
            Op::Put => {
                let (wait, numbered) = (fields.wait()?, header.flags & flag::NUMBERED != 0);
                let items = Items::new(fields, count, ItemKind(trust));
                return Ok(Self::Put(Put { wait, numbered, items }));
            }
            Op::Settle => {
                let wait = fields.wait()?;
                let settlements = Settlements::new(fields, count, SettlementKind(trust));
                return Ok(Self::Settle { wait, settlements });
            }
            _ => Self::read(op, header, &mut fields)?,
        };
        fields.finish()?;
        Ok(request)
    }

    /// Reads a request whose body is no batch.
    fn read(op: Op, header: &Header, fields: &mut Reader) -> Result<Self, What> {
        let Header { flags, count, .. } = *header;
        Ok(match op {
            Op::Open => Self::Open { name: fields.last_text("name")? },
            Op::Close => Self::Close,
            Op::Get => Self::Get(Get::read(flags, fields)?),
            Op::Credit => Self::Credit {
                hold: fields.time("hold")?,
                credit: fields.u32("credit")?,
                ends: flags & flag::END != 0,
            },
            Op::Cancel => Self::Cancel,
            Op::TaskDone => Self::TaskDone { count },
            Op::Join => Self::Join,
            Op::Size => Self::Size,
            Op::List => Self::List { after: fields.last_text("name")? },
            Op::Peek => Self::Peek(read_peek(fields)?),
            Op::Redrive => {
                let (max, task) = (fields.u64("max")?, fields.u64("task")?);
                Self::Redrive { max, task: (task != NO_NUMBER).then_some(task) }
            }
            Op::Purge => Self::Purge,
            Op::Shutdown => Self::Shutdown { immediate: flags & flag::IMMEDIATE != 0 },
            Op::Drop => {
                Self::Drop { name: fields.last_text("name")?, forced: flags & flag::FORCED != 0 }
            }
            Op::Configure => {
                let name_len = fields.u16("name_len")?;
                let name = fields.text("name", name_len.into())?;
                Self::Configure { name, options: fields.last_text("options")? }
            }
            Op::Ping => Self::Ping,
            Op::Revoke => Self::Revoke { task: fields.u64("task")? },
            reply => return Err(What::UnknownOp(reply as u8)),
        })
    }

    /// Appends a request. What [`begin_put`](Self::begin_put) and [`begin_settle`](Self::begin_settle)
    /// begin is written item by item instead.
    ///
    /// # Errors
    ///
    /// [`TooLong`] if its texts have more than 4 GiB; nothing is appended then.
    pub fn push(&self, route: Route, out: &mut Outbound) -> Result<(), TooLong> {
        let (op, flags, count) = self.head();
        let mut frame = Writer::new(out, op, flags, route);
        frame.set_count(count);
        let own = frame.own();
        match self {
            Self::Open { name } | Self::List { after: name } | Self::Drop { name, .. } => {
                own.put_slice(name.as_bytes());
            }
            Self::Put(Put { wait, items, .. }) => {
                own.put_u64_le(wait_micros(*wait));
                frame.put(&items.rest());
            }
            Self::Settle { wait, settlements } => {
                own.put_u64_le(wait_micros(*wait));
                frame.put(&settlements.rest());
            }
            Self::Get(get) => get.write(own),
            Self::Credit { hold, credit, .. } => {
                own.put_u64_le(micros(*hold));
                own.put_u32_le(*credit);
            }
            Self::Peek(peek) => write_peek(peek, own),
            Self::Revoke { task } => own.put_u64_le(*task),
            Self::Redrive { max, task } => {
                own.put_u64_le(*max);
                own.put_u64_le(task.unwrap_or(NO_NUMBER));
            }
            Self::Configure { name, options } => {
                let name = text::start(name, u16::MAX.into());
                own.put_u16_le(u16::try_from(name.len()).unwrap_or(u16::MAX));
                own.put_slice(name.as_bytes());
                own.put_slice(options.as_bytes());
            }
            Self::Close
            | Self::Cancel
            | Self::TaskDone { .. }
            | Self::Join
            | Self::Size
            | Self::Purge
            | Self::Shutdown { .. }
            | Self::Ping => {}
        }
        frame.finish()
    }

    /// Op, flags and count of its header.
    fn head(&self) -> (Op, u8, u32) {
        let set = |truth: bool, flag: u8| if truth { flag } else { 0 };
        match self {
            Self::Open { .. } => (Op::Open, 0, 0),
            Self::Close => (Op::Close, 0, 0),
            Self::Put(put) => (Op::Put, set(put.numbered, flag::NUMBERED), put.items.left()),
            Self::Get(get) => {
                let informed = set(get.informed, flag::INFORMED);
                (Op::Get, set(get.leased, flag::LEASED) | informed, 0)
            }
            Self::Settle { settlements, .. } => (Op::Settle, 0, settlements.left()),
            Self::Credit { ends, .. } => (Op::Credit, set(*ends, flag::END), 0),
            Self::Cancel => (Op::Cancel, 0, 0),
            Self::TaskDone { count } => (Op::TaskDone, 0, *count),
            Self::Join => (Op::Join, 0, 0),
            Self::Size => (Op::Size, 0, 0),
            Self::List { .. } => (Op::List, 0, 0),
            Self::Peek(_) => (Op::Peek, 0, 0),
            Self::Redrive { .. } => (Op::Redrive, 0, 0),
            Self::Purge => (Op::Purge, 0, 0),
            Self::Shutdown { immediate } => (Op::Shutdown, set(*immediate, flag::IMMEDIATE), 0),
            Self::Drop { forced, .. } => (Op::Drop, set(*forced, flag::FORCED), 0),
            Self::Configure { .. } => (Op::Configure, 0, 0),
            Self::Ping => (Op::Ping, 0, 0),
            Self::Revoke { .. } => (Op::Revoke, 0, 0),
        }
    }

    /// Begins a put, to which items are added.
    pub fn begin_put(wait: Wait, numbered: bool, route: Route, out: &mut Outbound) -> Writer<'_> {
        let flags = if numbered { flag::NUMBERED } else { 0 };
        let mut frame = Writer::new(out, Op::Put, flags, route);
        frame.own().put_u64_le(wait_micros(wait));
        frame
    }

    /// Begins settlements, which are added one by one.
    pub fn begin_settle(wait: Wait, route: Route, out: &mut Outbound) -> Writer<'_> {
        let mut frame = Writer::new(out, Op::Settle, 0, route);
        frame.own().put_u64_le(wait_micros(wait));
        frame
    }
}

impl Get {
    fn read(flags: u8, fields: &mut Reader) -> Result<Self, What> {
        let (wait, hold) = (fields.wait()?, fields.time("hold")?);
        let (max, bytes_max) = (fields.u32("max")?, fields.u32("max_bytes")?);
        Ok(Self {
            wait,
            leased: flags & flag::LEASED != 0,
            hold,
            informed: flags & flag::INFORMED != 0,
            max,
            bytes_max: (bytes_max != 0).then_some(bytes_max),
        })
    }

    fn write(&self, out: &mut BytesMut) {
        out.put_u64_le(wait_micros(self.wait));
        out.put_u64_le(micros(self.hold));
        out.put_u32_le(self.max);
        out.put_u32_le(self.bytes_max.unwrap_or(0));
    }
}

/// The states of tasks, by their numbers.
const STATES: [TaskState; 3] = [TaskState::Ready, TaskState::Delayed, TaskState::Leased];

fn read_peek(fields: &mut Reader) -> Result<Peek, What> {
    let max = length(fields.u32("max")?);
    let at = fields.at();
    let [number, items] = fields.array("state and items")?;
    let value =
        |field, at, found: u8, expected| What::Value { field, at, found: found.into(), expected };
    let state = STATES.get(usize::from(number)).copied();
    let state = state.ok_or(value("state", at, number, "0 to 2"))?;
    if items > 1 {
        return Err(value("items", at + 1, items, "0 or 1"));
    }
    fields.zeros::<2>()?;
    Ok(Peek { max, state, items: items == 1 })
}

fn write_peek(peek: &Peek, out: &mut BytesMut) {
    let state = match peek.state {
        TaskState::Ready => 0,
        TaskState::Delayed => 1,
        TaskState::Leased => 2,
    };
    out.put_u32_le(u32::try_from(peek.max).unwrap_or(u32::MAX));
    out.put_slice(&[state, peek.items.into(), 0, 0]);
}
