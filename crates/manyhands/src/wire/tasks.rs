//! Tasks as our own clients are told of them: handed out in batches or by leases, or looked at.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Serialize};

use super::frame::{Outbound, SHARED_LEN_MIN};
use super::pickle::{Codec, Payload};
use super::text::{write_ascii, write_count, write_text, write_unicode};
use super::token::LeaseToken;

/// What mostly comes with an item of a reply, in bytes, and its opcodes.
const ITEM_OVERHEAD_LEN: usize = 64;

/// A reply that hands items out as bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Handed {
    /// The items.
    pub items: Vec<HandedItem>,
    /// Whether they come as a list, or as the one that there is.
    pub is_list: bool,
}

/// An item, and what was asked for beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct HandedItem {
    /// The item.
    pub payload: Payload,
    /// The rest.
    pub with: Beside,
}

/// What comes with an item.
#[derive(Debug, Clone, PartialEq)]
pub enum Beside {
    /// Nothing.
    Nothing,
    /// What is known of it, if anything is.
    Info(Option<Info>),
    /// How to settle it.
    Lease(LeaseToken),
}

impl Beside {
    /// The bytes of its texts.
    fn text_len(&self) -> usize {
        let Self::Info(Some(info)) = self else { return 0 };
        let history = info.history.iter().map(|reason| reason.len() + ITEM_OVERHEAD_LEN / 8);
        info.queue.len() + info.worker.len() + history.sum::<usize>()
    }
}

/// Where a result or a dead letter comes from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Info {
    /// Name of the queue of its task.
    pub queue: String,
    /// The task's position among the puts of that queue, from 0.
    pub task: u64,
    /// Which attempt at it this comes from, from 1.
    pub attempt: u32,
    /// Who made it: session and address.
    pub worker: String,
    /// From the task's put to its start.
    pub waited: Duration,
    /// From there to the result.
    pub ran: Duration,
    /// Why each attempt failed, of a dead letter.
    pub history: Vec<String>,
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TaskState {
    /// It may be taken.
    #[default]
    Ready,
    /// It is not to be handed out yet: for a time, or, a result in order, until its turn.
    Delayed,
    /// A worker has it.
    Leased,
}

impl TaskState {
    /// As it is called on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Delayed => "delayed",
            Self::Leased => "leased",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Ready, Self::Delayed, Self::Leased].into_iter().find(|state| state.name() == name)
    }
}

/// What to look at, without taking it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peek {
    /// How many tasks at most: 10.
    pub max: usize,
    /// In which state: ready ones.
    pub state: TaskState,
    /// Whether with their items.
    pub items: bool,
}

impl Default for Peek {
    fn default() -> Self {
        Self { max: 10, state: TaskState::Ready, items: true }
    }
}

/// A task that was looked at. What is not known is left out.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Peeked {
    /// Its position among the puts of its queue, from 0.
    pub task: u64,
    /// Where it stands.
    pub state: TaskState,
    /// The item, if it was asked for.
    pub item: Option<Payload>,
    /// Which attempt this is, or the next one will be; of a dead letter, how many were made.
    pub attempt: u32,
    /// Since its put.
    pub age: Option<Duration>,
    /// Until it becomes ready, or its lease runs out.
    pub due_in: Option<Duration>,
    /// The key of its put.
    pub key: Option<Vec<u8>>,
    /// Who has it, as its session says: process and thread, or a client of ours and its pid.
    pub worker: Option<String>,
    /// The address of who has it.
    pub peer: Option<String>,
    /// How long who has it has had it.
    pub since: Option<Duration>,
    /// The attempts that failed, the last ones if there were many.
    pub failures: Vec<Failure>,
    /// The queue and number of the task that a result or a dead letter comes from.
    pub origin: Option<(String, u64)>,
}

/// An attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which one, from 1.
    pub attempt: u32,
    /// Whose it was; empty if that is not known.
    pub worker: String,
    /// Why it failed.
    pub reason: String,
}

impl Peeked {
    /// The bytes of its texts.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        let failures = self.failures.iter().map(|it| it.worker.len() + it.reason.len());
        failures.sum::<usize>()
            + self.key.as_ref().map_or(0, Vec::len)
            + self.worker.as_ref().map_or(0, String::len)
            + self.origin.as_ref().map_or(0, |(queue, _)| queue.len())
    }

    /// How long it is, in bytes, roughly and at most.
    pub(super) fn len(&self) -> usize {
        let item = self.item.as_ref().map_or(0, |item| item.bytes.len());
        item + self.text_bytes() + 3 * ITEM_OVERHEAD_LEN
    }

    /// A `dict` of what is known.
    fn write(&self, message: &mut Outbound) {
        let out = message.own();
        out.put_slice(b"}(");
        write_text("task", out);
        write_count(self.task, out);
        write_text("state", out);
        write_text(self.state.name(), out);
        write_text("attempt", out);
        write_count(self.attempt.into(), out);
        if let Some(item) = &self.item {
            write_text("item", out);
            write_pickle(item, message);
            if !matches!(item.codec, Codec::Pickle(_)) {
                write_text("codec", message.own());
                write_text(item.codec.name(), message.own());
            }
        }
        let out = message.own();
        let times = [("age", self.age), ("due_in", self.due_in), ("since", self.since)];
        for (word, time) in times {
            if let Some(time) = time {
                write_text(word, out);
                out.put_u8(b'G');
                out.put_f64(time.as_secs_f64());
            }
        }
        if let Some(key) = &self.key {
            write_text("key", out);
            match std::str::from_utf8(key) {
                Ok(text) => write_unicode(text, out),
                Err(_) => write_bytes(key, out),
            }
        }
        let texts = [("worker", &self.worker), ("peer", &self.peer)];
        for (word, text) in texts {
            if let Some(text) = text {
                write_text(word, out);
                write_unicode(text, out);
            }
        }
        if let Some((queue, task)) = &self.origin {
            write_text("queue", out);
            write_unicode(queue, out);
            write_text("origin", out);
            write_count(*task, out);
        }
        if !self.failures.is_empty() {
            write_text("failures", out);
            out.put_slice(b"](");
            for failure in &self.failures {
                write_count(failure.attempt.into(), out);
                write_unicode(&failure.worker, out);
                write_unicode(&failure.reason, out);
                out.put_u8(0x87);
            }
            out.put_u8(b'e');
        }
        out.put_u8(b'u');
    }
}

/// Appends the pickle of `('#RETURN', [{…}, …])`.
pub(super) fn write_peeked(tasks: &[Peeked], out: &mut Outbound) {
    out.own().put_slice(b"\x80\x03");
    write_text("#RETURN", out.own());
    out.own().put_slice(b"](");
    tasks.iter().for_each(|task| task.write(out));
    out.own().put_slice(b"e\x86.");
}

fn write_bytes(bytes: &[u8], out: &mut BytesMut) {
    out.put_u8(b'B');
    // A key is short.
    out.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

impl Handed {
    /// Appends the pickle of `('#RETURN', …)`.
    pub(super) fn write_reply(&self, out: &mut Outbound) {
        let copied = self.items.iter().map(|item| match item.payload.bytes.len() {
            len @ ..=SHARED_LEN_MIN => len + ITEM_OVERHEAD_LEN,
            _ => ITEM_OVERHEAD_LEN,
        });
        out.own().reserve(copied.sum());
        out.own().put_slice(b"\x80\x03");
        write_text("#RETURN", out.own());
        if self.is_list {
            out.own().put_slice(b"](");
        }
        for item in &self.items {
            item.write(out);
        }
        if self.is_list {
            out.own().put_u8(b'e');
        }
        out.own().put_slice(b"\x86.");
    }

    /// How long it is, in bytes, roughly and at most.
    pub(super) fn len(&self) -> usize {
        let items = self.items.iter().map(|item| item.payload.bytes.len() + item.with.text_len());
        items.sum::<usize>() + self.items.len() * ITEM_OVERHEAD_LEN
    }
}

impl HandedItem {
    fn write(&self, out: &mut Outbound) {
        match &self.with {
            Beside::Nothing => write_pickle(&self.payload, out),
            Beside::Info(info) => {
                write_pickle(&self.payload, out);
                match info {
                    Some(info) => info.write(out.own()),
                    None => out.own().put_u8(b'N'),
                }
                out.own().put_u8(0x86);
            }
            Beside::Lease(token) => {
                out.own().put_u8(b'(');
                write_ascii(&token.text(), out.own());
                write_count(token.task, out.own());
                write_count(token.attempt.into(), out.own());
                write_pickle(&self.payload, out);
                out.own().put_u8(b't');
            }
        }
    }
}

impl Info {
    fn write(&self, out: &mut BytesMut) {
        out.put_u8(b'(');
        write_unicode(&self.queue, out);
        write_count(self.task, out);
        write_count(self.attempt.into(), out);
        write_unicode(&self.worker, out);
        for time in [self.waited, self.ran] {
            out.put_u8(b'G');
            out.put_f64(time.as_secs_f64());
        }
        out.put_slice(b"](");
        for cause in &self.history {
            write_unicode(cause, out);
        }
        out.put_slice(b"et");
    }
}

/// An item as the `bytes` of a pickle of its own.
fn write_pickle(payload: &Payload, out: &mut Outbound) {
    // An item came in a frame, whose length is bounded.
    let len = u32::try_from(payload.standalone_len()).unwrap_or(u32::MAX);
    out.own().put_u8(b'B');
    out.own().put_u32_le(len);
    payload.push_standalone(out);
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::pickle::{Limits, Value};
    use super::super::request::Answer;
    use super::*;

    #[test]
    fn items_are_handed_out_as_bytes() {
        let payload = Payload::pickle(2, Bytes::from_static(b"K\x07"));
        let token = LeaseToken { task: 1, attempt: 2, lease: 3, seal: 4 };
        let info = Info { queue: "tasks".into(), ..Info::default() };
        let value = |with, is_list| {
            let items = vec![HandedItem { payload: payload.clone(), with }];
            let mut out = Outbound::default();
            Handed { items, is_list }.write_reply(&mut out);
            let answer = Answer::decode(&out.own().split().freeze(), &Limits::default()).unwrap();
            answer.value.value(&Limits::default()).unwrap()
        };
        let bytes = Value::Bytes(b"\x80\x02K\x07.".to_vec());
        assert_eq!(value(Beside::Nothing, true), Value::List(vec![bytes.clone()]));
        let lease = [Value::Str("1.2.3.4".into()), Value::Int(1), Value::Int(2), bytes.clone()];
        assert_eq!(value(Beside::Lease(token), false), Value::Tuple(lease.to_vec()));
        let none = Value::Tuple(vec![bytes.clone(), Value::None]);
        assert_eq!(value(Beside::Info(None), false), none);
        let Value::Tuple(taken) = value(Beside::Info(Some(info)), false) else { panic!() };
        assert_eq!(taken[1].to_string(), "('tasks', 0, 0, '', 0.0, 0.0, [])");
    }
}
