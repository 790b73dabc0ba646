//! What our own clients may ask of a queue beyond CPython's methods, on the same kind of session.
//!
//! They announce themselves in the session's name; to anybody else these methods do not exist.
//! `docs/protocol.md` describes them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use smallvec::SmallVec;

use super::frame::{Outbound, SHARED_LEN_MIN};
use super::message::{Exception, Refusal, Wait, bind, payload, truth, wait};
use super::message::{write_ascii, write_count, write_text, write_unicode};
use super::pickle::{Argument, Atom, Call, Limits, Payload};

/// How the session names of our own clients begin; the version follows.
const PREFIX: &str = "manyhands/";
/// The version that this crate speaks.
pub const VERSION: u32 = 1;
/// Most items of one call.
pub const BATCH_LEN_MAX: usize = 16_384;
/// Longest key, in bytes: it is kept for as long as its window.
const KEY_LEN_MAX: usize = 256;
/// Longest reason of a `nack` that is kept, in characters.
const REASON_CHARS_MAX: usize = 1000;
/// Longest delay or hold: a hundred years. What is longer is as good as that.
const TIME_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The name of a session of a client of ours; `about` says more of it, for people.
#[must_use]
pub fn announcement(about: &str) -> String {
    format!("{PREFIX}{VERSION} {about}")
}

/// Whether a session of this name is one of our own clients.
#[must_use]
pub fn is_ours(session: &str) -> bool {
    session.starts_with(PREFIX)
}

/// The version that a session of this name announces; 0 for those that know none of this.
#[must_use]
pub fn announced(session: &str) -> u32 {
    let rest = session.strip_prefix(PREFIX).unwrap_or_default();
    let number = rest.split(' ').next().unwrap_or_default();
    number.parse().unwrap_or(0)
}

/// Names one lease: what `lease` hands out, and `ack` and its like take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseToken {
    /// Position of the task's put in its queue.
    pub task: u64,
    /// Which attempt at it, from 1.
    pub attempt: u32,
    /// Number of the lease in its queue.
    pub epoch: u64,
    /// Proves that the server gave it out, for this queue.
    pub seal: u64,
}

impl LeaseToken {
    /// Appends its text, four numbers in hexadecimal.
    fn write(self, out: &mut TokenText) {
        let Self { task, attempt, epoch, seal } = self;
        for number in [task, attempt.into(), epoch] {
            write_hexadecimal(number, out);
            out.push(b'.');
        }
        write_hexadecimal(seal, out);
    }
}

/// Appends a number without zeros before it.
fn write_hexadecimal(number: u64, out: &mut TokenText) {
    let (mut digits, mut first, mut left) = ([0; HEXADECIMAL_LEN_MAX], HEXADECIMAL_LEN_MAX, number);
    for place in digits.iter_mut().rev() {
        let digit = b"0123456789abcdef".get((left & 0xf) as usize);
        *place = digit.copied().unwrap_or_default();
        first -= 1;
        left >>= 4;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(first..).unwrap_or_default());
}

/// The text of a token, without an allocation.
type TokenText = SmallVec<[u8; TOKEN_LEN_MAX]>;

/// Most digits of a number of 64 bits.
const HEXADECIMAL_LEN_MAX: usize = 16;
/// Room for three numbers of 64 bits, one of 32, and what parts them: 59 bytes.
const TOKEN_LEN_MAX: usize = 64;

impl fmt::Display for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = TokenText::new();
        self.write(&mut text);
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

/// A text that is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoToken;

impl FromStr for LeaseToken {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let mut numbers = text.as_bytes().split(|&byte| byte == b'.').map(hexadecimal);
        let mut next = || numbers.next().flatten().ok_or(NoToken);
        let (task, attempt, epoch, seal) = (next()?, next()?, next()?, next()?);
        if numbers.next().is_some() {
            return Err(NoToken);
        }
        let attempt = u32::try_from(attempt).map_err(|_| NoToken)?;
        Ok(Self { task, attempt, epoch, seal })
    }
}

/// A number as our tokens and idents hold it: 1 to 16 digits, without a sign.
#[must_use]
pub fn hexadecimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > HEXADECIMAL_LEN_MAX {
        return None;
    }
    let mut number = 0;
    for &byte in digits {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => return None,
        };
        number = number << 4 | u64::from(digit);
    }
    Some(number)
}

/// What a `put` says beside its item.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PutTerms {
    /// A further put with this key within the window of the queue is the same task.
    pub key: Option<Vec<u8>>,
    /// Not to be handed out sooner than this.
    pub delay: Option<Duration>,
    /// Place in a priority queue, instead of the item's own.
    pub priority: Option<i64>,
    /// Dropped if it was not taken within this time.
    pub expires: Option<Duration>,
}

/// How items are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As `get` does.
    Plain,
    /// The same, with what is known of each.
    Informed,
    /// By a token, until it is settled.
    Leased {
        /// For no longer than this.
        hold: Option<Duration>,
    },
}

/// One call of a method that only our own clients have.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Extra {
    /// `put` with more than CPython's arguments.
    Put {
        /// The item.
        item: Payload,
        /// For a free slot.
        wait: Wait,
        /// The rest.
        terms: PutTerms,
        /// Whether to answer with the task's number.
        id: bool,
    },
    /// `put_many`
    PutMany {
        /// The items.
        items: Vec<Payload>,
        /// For free slots.
        wait: Wait,
    },
    /// `get_many`, `take`, `take_many`, `lease`, `lease_many`
    Take {
        /// In which form.
        manner: Manner,
        /// How many at most; `None` is one, and no list.
        max: Option<usize>,
        /// For the first.
        wait: Wait,
    },
    /// `ack`
    Ack {
        /// Which lease.
        token: LeaseToken,
        /// For the queue of results.
        result: Option<Payload>,
        /// For a free slot there.
        wait: Wait,
    },
    /// `nack`
    Nack {
        /// Which lease.
        token: LeaseToken,
        /// Not to be handed out sooner.
        delay: Option<Duration>,
        /// Why it failed.
        reason: String,
        /// No further attempt can do it.
        give_up: bool,
    },
    /// `extend`
    Extend {
        /// Which lease.
        token: LeaseToken,
        /// From now on.
        hold: Duration,
    },
    /// `redrive`
    Redrive {
        /// How many at most.
        max: usize,
    },
    /// `purge`
    Purge,
    /// `peek`
    Peek(Peek),
}

impl Extra {
    /// Reads the method call in `call`; `None` if it is one of CPython's, or unknown.
    #[must_use]
    pub fn decode(call: &Call, limits: &Limits) -> Option<Result<Self, Refusal>> {
        let take = |manner| Some(decode_take(call, manner, false));
        let take_many = |manner| Some(decode_take(call, manner, true));
        let leased = Manner::Leased { hold: None };
        match call.method_bytes() {
            b"put" => decode_put(call, limits),
            b"put_many" => Some(decode_put_many(call, limits)),
            b"get_many" => take_many(Manner::Plain),
            b"take" => take(Manner::Informed),
            b"take_many" => take_many(Manner::Informed),
            b"lease" => take(leased),
            b"lease_many" => take_many(leased),
            b"ack" => Some(decode_ack(call, limits)),
            b"nack" => Some(decode_nack(call)),
            b"extend" => Some(decode_extend(call)),
            b"redrive" => Some(decode_redrive(call)),
            b"peek" => Some(decode_peek(call)),
            b"purge" => {
                Some(bind(call, "purge", [], 0).map(|[]| Self::Purge).map_err(Refusal::from))
            }
            _ => None,
        }
    }
}

fn decode_put(call: &Call, limits: &Limits) -> Option<Result<Extra, Refusal>> {
    const NAMES: [&str; 8] =
        ["item", "block", "timeout", "key", "delay", "priority", "expires", "id"];
    let has_terms = call.args().len() > 3
        || call.kwargs().any(|(name, _)| NAMES.get(3..).is_some_and(|it| it.contains(&name)));
    has_terms.then(|| {
        let [item, block, timeout, key, delay, priority, expires, id] =
            bind(call, "put", NAMES, 1)?;
        let terms = PutTerms {
            key: read_key(call, key)?,
            delay: seconds(call, delay, "delay")?,
            priority: int(call, priority, "priority")?,
            expires: seconds(call, expires, "expires")?,
        };
        let (wait, id) = (wait(call, block, timeout)?, truth(call, id, "id", false)?);
        Ok(Extra::Put { item: payload(call, item, limits)?, wait, terms, id })
    })
}

fn decode_put_many(call: &Call, limits: &Limits) -> Result<Extra, Refusal> {
    let [items, block, timeout] = bind(call, "put_many", ["items", "block", "timeout"], 1)?;
    let wait = wait(call, block, timeout)?;
    let list = payload(call, items, limits)?;
    let bad = |error: &dyn fmt::Display| Exception::ValueError(format!("'items': {error}"));
    let items = list.batch(BATCH_LEN_MAX).map_err(|error| bad(&error))?;
    // One item may occur many times, and is copied each time.
    let bytes_max = list.bytes.len().saturating_add(limits.expansion_max);
    if items.iter().map(|item| item.len()).sum::<usize>() > bytes_max {
        return Err(bad(&"they repeat one another too often").into());
    }
    // As long at once as it will be.
    let mut payloads = Vec::with_capacity(items.len());
    for (position, pickle) in items.into_iter().enumerate() {
        let payload = Payload::from_standalone(pickle, limits)
            .map_err(|error| bad(&format_args!("number {position} is no pickle: {error}")))?;
        payloads.push(payload);
    }
    Ok(Extra::PutMany { items: payloads, wait })
}

fn decode_take(call: &Call, manner: Manner, is_many: bool) -> Result<Extra, Refusal> {
    let method = call.method();
    let is_leased = manner != Manner::Plain && manner != Manner::Informed;
    let [max, block, timeout, hold] = match (is_many, is_leased) {
        (true, true) => bind(call, method, ["max", "block", "timeout", "hold"], 1)?,
        (true, false) => {
            let [max, block, timeout] = bind(call, method, ["max", "block", "timeout"], 1)?;
            [max, block, timeout, None]
        }
        (false, true) => {
            let [block, timeout, hold] = bind(call, method, ["block", "timeout", "hold"], 0)?;
            [None, block, timeout, hold]
        }
        (false, false) => {
            let [block, timeout] = bind(call, method, ["block", "timeout"], 0)?;
            [None, block, timeout, None]
        }
    };
    let max = if is_many { Some(count(call, max, "max")?.unwrap_or(BATCH_LEN_MAX)) } else { None };
    let manner = match manner {
        Manner::Leased { .. } => Manner::Leased { hold: seconds(call, hold, "hold")? },
        other => other,
    };
    Ok(Extra::Take { manner, max, wait: wait(call, block, timeout)? })
}

fn decode_ack(call: &Call, limits: &Limits) -> Result<Extra, Refusal> {
    let names = ["token", "result", "block", "timeout"];
    let [token, result, block, timeout] = bind(call, "ack", names, 1)?;
    let wait = wait(call, block, timeout)?;
    let result = result.map(|result| payload(call, Some(result), limits)).transpose()?;
    Ok(Extra::Ack { token: read_token(call, token)?, result, wait })
}

fn decode_nack(call: &Call) -> Result<Extra, Refusal> {
    let names = ["token", "delay", "reason", "give_up"];
    let [token, delay, reason, give_up] = bind(call, "nack", names, 1)?;
    let reason = match reason.map(|reason| call.atom(&reason)) {
        None | Some(Some(Atom::None)) => String::new(),
        Some(Some(Atom::Text(text))) => text.chars().take(REASON_CHARS_MAX).collect(),
        Some(_) => return Err(Exception::TypeError("'reason' must be a str".into()).into()),
    };
    let delay = seconds(call, delay, "delay")?;
    let give_up = truth(call, give_up, "give_up", false)?;
    Ok(Extra::Nack { token: read_token(call, token)?, delay, reason, give_up })
}

fn decode_extend(call: &Call) -> Result<Extra, Refusal> {
    let [token, hold] = bind(call, "extend", ["token", "hold"], 2)?;
    let wrong = || Exception::TypeError("'hold' must be a number of seconds".into());
    let hold = seconds(call, hold, "hold")?.ok_or_else(wrong)?;
    Ok(Extra::Extend { token: read_token(call, token)?, hold })
}

fn decode_redrive(call: &Call) -> Result<Extra, Refusal> {
    let [max] = bind(call, "redrive", ["max"], 0)?;
    Ok(Extra::Redrive { max: count(call, max, "max")?.unwrap_or(BATCH_LEN_MAX) })
}

fn decode_peek(call: &Call) -> Result<Extra, Refusal> {
    let [max, state, items] = bind(call, "peek", ["max", "state", "items"], 0)?;
    let plain = Peek::default();
    Ok(Extra::Peek(Peek {
        max: count(call, max, "max")?.unwrap_or(plain.max),
        state: read_state(call, state)?.unwrap_or(plain.state),
        items: truth(call, items, "items", plain.items)?,
    }))
}

fn read_state(call: &Call, argument: Option<Argument>) -> Result<Option<TaskState>, Exception> {
    let wrong = || Exception::ValueError("'state' must be 'ready', 'delayed' or 'leased'".into());
    match argument.map(|argument| call.atom(&argument)) {
        None | Some(Some(Atom::None)) => Ok(None),
        Some(Some(Atom::Text(word))) => TaskState::named(&word).map(Some).ok_or_else(wrong),
        Some(_) => Err(wrong()),
    }
}

fn read_token(call: &Call, argument: Option<Argument>) -> Result<LeaseToken, Exception> {
    match argument.as_ref().and_then(|argument| call.text(argument)) {
        Some(text) => text
            .parse()
            .map_err(|NoToken| Exception::ValueError("'token' is none that we gave out".into())),
        None => Err(Exception::TypeError("'token' must be a str, as it came".into())),
    }
}

fn read_key(call: &Call, argument: Option<Argument>) -> Result<Option<Vec<u8>>, Exception> {
    let key = match argument.map(|argument| call.atom(&argument)) {
        None | Some(Some(Atom::None)) => return Ok(None),
        Some(Some(Atom::Text(text))) => text.into_bytes(),
        Some(Some(Atom::Bytes(bytes))) => bytes.to_vec(),
        Some(_) => return Err(Exception::TypeError("'key' must be a str or bytes".into())),
    };
    if key.len() > KEY_LEN_MAX {
        let len = key.len();
        let text = format!("'key' of {len} bytes exceeds the limit of {KEY_LEN_MAX} bytes");
        return Err(Exception::ValueError(text));
    }
    Ok(Some(key))
}

/// A number of items, 1 to [`BATCH_LEN_MAX`]; more counts as that. `None` if it is not given.
fn count(call: &Call, argument: Option<Argument>, name: &str) -> Result<Option<usize>, Exception> {
    let Some(count) = int(call, argument, name)? else { return Ok(None) };
    if count < 1 {
        return Err(Exception::ValueError(format!("'{name}' must be at least 1")));
    }
    Ok(Some(usize::try_from(count).map_or(BATCH_LEN_MAX, |count| count.min(BATCH_LEN_MAX))))
}

fn int(call: &Call, argument: Option<Argument>, name: &str) -> Result<Option<i64>, Exception> {
    match argument.map(|argument| call.atom(&argument)) {
        None | Some(Some(Atom::None)) => Ok(None),
        Some(Some(Atom::Int(number))) => Ok(Some(number)),
        Some(_) => Err(Exception::TypeError(format!("'{name}' must be an int"))),
    }
}

fn seconds(
    call: &Call,
    argument: Option<Argument>,
    name: &str,
) -> Result<Option<Duration>, Exception> {
    let seconds = match argument.map(|argument| call.atom(&argument)) {
        None | Some(Some(Atom::None)) => return Ok(None),
        #[expect(clippy::cast_precision_loss, reason = "seconds, not a count")]
        Some(Some(Atom::Int(seconds))) => seconds as f64,
        Some(Some(Atom::Float(seconds))) => seconds,
        Some(_) => {
            return Err(Exception::TypeError(format!("'{name}' must be a number of seconds")));
        }
    };
    if seconds.is_nan() || seconds < 0.0 {
        return Err(Exception::ValueError(format!("'{name}' must be a non-negative number")));
    }
    let time = Duration::try_from_secs_f64(seconds).unwrap_or(TIME_MAX);
    Ok(Some(time.min(TIME_MAX)))
}

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
#[derive(Debug, Clone, PartialEq, Eq)]
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
                let mut text = TokenText::new();
                token.write(&mut text);
                write_ascii(&text, out.own());
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

    use super::super::pickle::Value;
    use super::super::request::Answer;
    use super::*;

    fn decode(method: &str, args: &[u8]) -> Option<Result<Extra, Refusal>> {
        let len = u8::try_from(method.len()).unwrap();
        let request =
            [b"\x80\x03(U\x01qU", &[len][..], method.as_bytes(), b"(", args, b"t}t."].concat();
        let limits = Limits::default();
        Extra::decode(&Call::parse(Bytes::from(request), &limits).unwrap(), &limits)
    }

    fn refused(method: &str, args: &[u8]) -> String {
        match decode(method, args).unwrap() {
            Err(Refusal::Arguments(Exception::TypeError(text) | Exception::ValueError(text))) => {
                text
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_session_says_by_its_name_what_it_knows() {
        assert_eq!(announced(&announcement("x")), VERSION);
        assert!(is_ours(&announcement("")));
        assert_eq!(announced("manyhands/12"), 12);
        for old in ["manyhands/0.1.0 pid=7", "manyhands/", "manyhands/x", "manyhands/1x"] {
            assert_eq!((announced(old), is_ours(old)), (0, true), "{old}");
        }
        assert_eq!((announced("MainProcess"), is_ours("MainProcess")), (0, false));
    }

    #[test]
    fn tokens_come_back_as_they_went() {
        let token = LeaseToken { task: u64::MAX, attempt: 7, epoch: 1 << 32, seal: u64::MAX };
        assert_eq!(token.to_string().parse(), Ok(token));
        let small = LeaseToken { task: 0, attempt: 1, epoch: 0x10, seal: 0xf };
        assert_eq!(small.to_string(), "0.1.10.f");
        for text in [
            "",
            "1.2.3",
            "1.2.3.",
            "1..3.4",
            "1.2.3.g",
            "1.1ffffffff.3.4",
            "10000000000000000.1.1.1",
            "1.2.3.4.5",
            "1.2.3.4.",
            "-1.2.3.4",
            "+1.2.3.4",
        ] {
            assert_eq!(text.parse::<LeaseToken>(), Err(NoToken), "{text}");
        }
    }

    #[test]
    fn a_put_is_extra_only_with_extra_arguments() {
        assert_eq!(decode("put", b"K\x01"), None);
        assert_eq!(decode("put", b"K\x01\x88N"), None);
        assert_eq!(decode("qsize", b""), None);
        let Some(Ok(Extra::Put { wait, terms, .. })) =
            decode("put", b"K\x01\x88NU\x01kK\x02K\x03N")
        else {
            panic!("no put")
        };
        assert_eq!(wait, Wait::Forever);
        let expected = PutTerms {
            key: Some(b"k".to_vec()),
            delay: Some(Duration::from_secs(2)),
            priority: Some(3),
            expires: None,
        };
        assert_eq!(terms, expected);
    }

    #[test]
    fn absurd_arguments_are_refused_by_name() {
        assert_eq!(refused("get_many", b"K\x00"), "'max' must be at least 1");
        assert_eq!(refused("get_many", b"U\x01x"), "'max' must be an int");
        assert_eq!(refused("ack", b"K\x01"), "'token' must be a str, as it came");
        assert_eq!(refused("ack", b"U\x01x"), "'token' is none that we gave out");
        assert_eq!(refused("extend", b"U\x071.1.1.1J\xff\xff\xff\xff"), {
            "'hold' must be a non-negative number"
        });
        assert!(refused("put_many", b"K\x01").starts_with("'items': not a list of bytes"));
        assert!(refused("put_many", b"](C\x01xe").starts_with("'items': number 0 is no pickle"));
        assert!(refused("lease", b"NNNN").contains("takes from 1 to 4 positional arguments"));
        let long = [&b"K\x01\x88NX\x01\x01\0\0"[..], &[b'k'; 257]].concat();
        assert_eq!(refused("put", &long), "'key' of 257 bytes exceeds the limit of 256 bytes");
    }

    #[test]
    fn a_count_above_the_limit_is_the_limit() {
        let Some(Ok(Extra::Take { max, .. })) = decode("get_many", b"J\xff\xff\xff\x7f") else {
            panic!("no take")
        };
        assert_eq!(max, Some(BATCH_LEN_MAX));
    }

    #[test]
    fn an_item_that_is_repeated_too_often_is_refused() {
        let item = [&b"\x80\x03X\0\0\x01\0"[..], &[b'x'; 1 << 16], b"."].concat();
        let len = u32::try_from(item.len()).unwrap().to_le_bytes();
        let gets = b"h\x01".repeat(1000);
        let args = [b"](B", &len[..], &item, b"q\x01", &gets, b"e"].concat();
        assert_eq!(refused("put_many", &args), "'items': they repeat one another too often");
    }

    #[test]
    fn items_are_handed_out_as_bytes() {
        let payload = Payload { protocol: 2, prelude_len: 0, bytes: Bytes::from_static(b"K\x07") };
        let token = LeaseToken { task: 1, attempt: 2, epoch: 3, seal: 4 };
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
