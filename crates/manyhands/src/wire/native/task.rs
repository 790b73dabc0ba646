//! Tasks as they are handed out, pushed, or looked at.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Serialize};

use super::What;
use super::batch::{Batch, Kind};
use super::payload::{PAYLOAD_LEN_MIN, Trust, read_payload, write_payload};
use super::reader::{Reader, length};
use super::settlement::{read_token, token_bytes};
use crate::wire::frame::Outbound;
use crate::wire::pickle::Payload;
use crate::wire::tasks::{Failure, Info, Peeked, TaskState};
use crate::wire::token::LeaseToken;

const HAS_TOKEN: u8 = 1;
const HAS_INFO: u8 = 2;

/// A task that was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// The item.
    pub payload: Payload,
    /// How to settle it, if it is leased.
    pub token: Option<LeaseToken>,
    /// What is known of it, if that was asked for and anything is.
    pub info: Option<Box<Info>>,
}

/// The tasks of a reply.
pub type Tasks = Batch<TaskKind>;

/// The entries of [`Tasks`].
#[derive(Debug, Clone)]
pub struct TaskKind;

impl Kind for TaskKind {
    type Entry = Task;
    const LEN_MIN: usize = 3 + PAYLOAD_LEN_MIN;

    fn read(&self, fields: &mut Reader) -> Result<Task, What> {
        let at = fields.at();
        let flags = fields.u8("flags")?;
        fields.zeros::<2>()?;
        if flags & !(HAS_TOKEN | HAS_INFO) != 0 {
            let (field, found) = ("flags of a task", flags.into());
            return Err(What::Value { field, at, found, expected: "0 to 3" });
        }
        let token = if flags & HAS_TOKEN == 0 { None } else { Some(read_token(fields)?) };
        let info = if flags & HAS_INFO == 0 { None } else { Some(Box::new(read_info(fields)?)) };
        let payload = read_payload(fields, &Trust::Server)?;
        Ok(Task { payload, token, info })
    }
}

fn read_info(fields: &mut Reader) -> Result<Info, What> {
    let (task, attempt) = (fields.u64("task")?, fields.u32("attempt")?);
    fields.zeros::<4>()?;
    let (waited, ran) = (fields.duration("waited")?, fields.duration("ran")?);
    let queue_len = fields.u16("queue_len")?;
    let worker_len = fields.u16("worker_len")?;
    let history_len = fields.u16("history_len")?;
    let queue = fields.text("queue", queue_len.into())?;
    let worker = fields.text("worker", worker_len.into())?;
    let mut history = Vec::new();
    for _ in 0..history_len {
        let len = length(fields.u32("len of a text of history")?);
        history.push(fields.text("history", len)?);
    }
    Ok(Info { queue, task, attempt, worker, waited, ran, history })
}

/// Appends a task.
pub(super) fn write_task(
    payload: &Payload,
    token: Option<&LeaseToken>,
    info: Option<&Info>,
    out: &mut Outbound,
) {
    let mut flags = 0;
    flags |= if token.is_some() { HAS_TOKEN } else { 0 };
    flags |= if info.is_some() { HAS_INFO } else { 0 };
    let own = out.own();
    own.put_slice(&[flags, 0, 0]);
    if let Some(token) = token {
        own.put_slice(&token_bytes(token));
    }
    if let Some(info) = info {
        write_info(info, own);
    }
    write_payload([], payload, out);
}

/// What of a name is too long is left out, and so are the oldest attempts if there are too many.
fn write_info(info: &Info, out: &mut BytesMut) {
    let Info { queue, task, attempt, worker, waited, ran, history } = info;
    let [queue, worker] =
        [queue, worker].map(|text| crate::text::start(text, u16::MAX.into()).as_bytes());
    let history_len = u16::try_from(history.len()).unwrap_or(u16::MAX);
    out.put_u64_le(*task);
    out.put_u32_le(*attempt);
    out.put_u32_le(0);
    for time in [waited, ran] {
        out.put_u64_le(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }
    for len in [queue.len(), worker.len()] {
        out.put_u16_le(u16::try_from(len).unwrap_or(u16::MAX));
    }
    out.put_u16_le(history_len);
    out.put_slice(queue);
    out.put_slice(worker);
    for reason in history.iter().skip(history.len() - usize::from(history_len)) {
        let len = u32::try_from(reason.len()).unwrap_or(u32::MAX);
        out.put_u32_le(len);
        out.put_slice(reason.get(..length(len)).unwrap_or(reason).as_bytes());
    }
}

/// Tasks that were looked at.
pub type PeekedTasks = Batch<PeekedKind>;

/// The entries of [`PeekedTasks`].
#[derive(Debug, Clone)]
pub struct PeekedKind;

impl Kind for PeekedKind {
    type Entry = Peeked;
    const LEN_MIN: usize = 5;

    fn read(&self, fields: &mut Reader) -> Result<Peeked, What> {
        let json_len = length(fields.u32("json_len")?);
        let at = fields.at();
        let item = fields.u8("item")?;
        if item > 1 {
            let (field, found) = ("item", item.into());
            return Err(What::Value { field, at, found, expected: "0 or 1" });
        }
        let at = fields.at();
        let known = serde_json::from_slice::<Known>(fields.slice("json", json_len)?);
        let known = known.map_err(|error| What::Json { at, error: error.to_string() })?;
        let payload = if item == 0 { None } else { Some(read_payload(fields, &Trust::Server)?) };
        known.peeked(payload).ok_or(What::Json { at, error: "not what is known of a task".into() })
    }
}

/// Appends a task that was looked at.
pub(super) fn write_peeked(task: &Peeked, out: &mut Outbound) {
    let json = serde_json::to_vec(&Known::of(task)).unwrap_or_default();
    let own = out.own();
    // A task's texts are bounded.
    own.put_u32_le(u32::try_from(json.len()).unwrap_or(u32::MAX));
    own.put_u8(task.item.is_some().into());
    own.put_slice(&json);
    if let Some(payload) = &task.item {
        write_payload([], payload, out);
    }
}

/// What is known of a task, as JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Known {
    task: u64,
    state: String,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    age: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    due_in: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failures: Vec<Failure>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<u64>,
}

impl Known {
    fn of(task: &Peeked) -> Self {
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        let (queue, origin) = task.origin.clone().unzip();
        Self {
            task: task.task,
            state: task.state.name().into(),
            attempt: task.attempt,
            age: seconds(task.age),
            due_in: seconds(task.due_in),
            since: seconds(task.since),
            key: task.key.as_deref().map(hexadecimal),
            worker: task.worker.clone(),
            peer: task.peer.clone(),
            failures: task.failures.clone(),
            queue,
            origin,
        }
    }

    fn peeked(self, item: Option<Payload>) -> Option<Peeked> {
        let duration = |seconds: Option<f64>| match seconds {
            Some(seconds) => Duration::try_from_secs_f64(seconds).ok().map(Some),
            None => Some(None),
        };
        let key = match self.key {
            Some(digits) => Some(of_hexadecimal(&digits)?),
            None => None,
        };
        Some(Peeked {
            task: self.task,
            state: TaskState::named(&self.state)?,
            item,
            attempt: self.attempt,
            age: duration(self.age)?,
            due_in: duration(self.due_in)?,
            key,
            worker: self.worker,
            peer: self.peer,
            since: duration(self.since)?,
            failures: self.failures,
            origin: self.queue.zip(self.origin),
        })
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn of_hexadecimal(digits: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|it| u8::try_from(it).ok());
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    };
    digits.as_bytes().chunks(2).map(pair).collect()
}
