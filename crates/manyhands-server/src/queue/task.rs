//! What a task is, where it can be, and what a caller gets of it.
//!
//! A task is in exactly one of these states. Each arrow is named by the method of
//! [`Queue`](super::Queue) that moves the task:
//!
//! ```text
//!            put, force
//!                │ enter
//!       ┌────────┴───┬──────────────────┐
//!       ▼            ▼                  ▼
//!  ┌───────────┐ ┌─────────┐   ring   ┌───────┐
//!  │ kept back │ │ delayed ├─────────►│ ready │
//!  └─────┬─────┘ └─────────┘          └──────┬┘
//!        │         ▲     ▲              ▲ ▲  │
//!        └─────────┴─────│──────────────┘ │  │
//!        release_in_turn │                │  │ lease
//!                        └──────┬─────────┘  │
//!                               │ give_back  ▼
//!                               │         ┌────────┐  claim    ┌─────────┐
//!                               ├─────────┤ leased ├──────────►│ claimed │
//!                               │         └──┬─────┘◄──────────┴───┬─────┘
//!                               │ give_up    │ ack     unclaim     │ ack
//!                               ▼            ▼                     │
//!                           ┌──────┐      ┌──────┐                 │
//!                           │ dead │      │ gone │◄────────────────┘
//!                           └──────┘      └──────┘
//! ```
//!
//! - *Kept back* is a result before its turn, in a queue that is `ordered` (`Queue::sequence`).
//! - *Delayed* is a task that is put with a delay, or pauses after a failure (`Queue::delayed`).
//! - *Ready* is a task that the next `get` may take (`Queue::ready`). If a `get` waits already,
//!   `place` and `make_ready` lease it at once, or `serve` as soon as there is room for a lease.
//! - *Leased* is a task with a worker (`Queue::leased`). `ring` gives it back when its deadline
//!   comes. One that is handed out with [`SettledBy::Delivery`] is gone at once.
//! - *Claimed* is a leased task whose result waits for room (`Leased::claimed`). It has no
//!   deadline; `give_back` treats it like any other lease.
//! - *Dead* is a task that failed too often, or for good. It leaves by [`Step::dead`](super::Step)
//!   for another queue.
//! - *Gone* is a task that was settled or dropped.
//!
//! Less common ways, which the drawing leaves out:
//!
//! - While nobody has taken a returned task again, its last token still settles it: `ack` (by
//!   `settle_returned`) turns delayed or ready into gone, and `claim` (by `reclaim`) into claimed.
//! - A task that expired is dropped by `drop_expired`: delayed or ready by `ring`, leased by
//!   `give_back`.
//! - `purge` and an immediate `shutdown` drop what is kept back, delayed or ready (`clear`). After
//!   such a shutdown `give_back` drops the task too.
//! - `tear_down` drops everything that a deleted queue had, leases included.
//! - A restart builds each state anew: see `restore.rs`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use manyhands::wire::pickle::Payload;

use super::OrderError;

/// Position of a task's put among the puts of its queue, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TaskId(pub u64);

/// Names one lease of one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    /// Which task.
    pub task: TaskId,
    /// Which attempt at it, from 1. One that did not reach its worker does not count.
    pub attempt: u32,
    /// Number of the lease in this queue; none is used twice.
    pub lease: u64,
}

/// Names leases that follow one another: the number of each, and its task, is one more than that of
/// the lease before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenRun {
    /// The first of them.
    pub first: Token,
    /// How many.
    pub len: u64,
}

/// Most leases of a run: they are settled in one step.
pub(super) const RUN_LEN_MAX: u64 = 256;

impl Token {
    /// The token that is so many places behind this one in a run.
    pub(super) fn behind(self, places: u64) -> Self {
        Self { task: TaskId(self.task.0 + places), lease: self.lease + places, ..self }
    }
}

impl TokenRun {
    /// Some tokens, in their order.
    pub(crate) fn of(tokens: impl Iterator<Item = Token>) -> impl Iterator<Item = Self> {
        let mut tokens = tokens.peekable();
        std::iter::from_fn(move || {
            let mut run = Self::from(tokens.next()?);
            while tokens.next_if(|next| run.push(*next)).is_some() {}
            Some(run)
        })
    }

    /// Adds a token if it is the next one; false if not.
    pub(crate) fn push(&mut self, token: Token) -> bool {
        let is_next = self.len < RUN_LEN_MAX && self.first.behind(self.len) == token;
        self.len += u64::from(is_next);
        is_next
    }

    /// The tokens, in order.
    pub(crate) fn iter(self) -> impl Iterator<Item = Token> {
        (0..self.len).map(move |place| self.first.behind(place))
    }

    /// Leaves out the first ones.
    pub(super) fn skip(self, places: u64) -> Self {
        Self { first: self.first.behind(places), len: self.len.saturating_sub(places) }
    }
}

impl From<Token> for TokenRun {
    fn from(first: Token) -> Self {
        Self { first, len: 1 }
    }
}

/// A task that is ready: a payload, and where it stood in the order of puts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Task {
    /// Position of its put; a task that is given back finds its place by it.
    pub(crate) id: TaskId,
    /// The user's object.
    pub(crate) payload: Payload,
}

/// A task that was handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// By which it is settled, or given back.
    pub token: Token,
    /// The user's object.
    pub payload: Payload,
}

/// Who has a task: a number that means nothing to the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Holder(pub u64);

/// Who takes a task, and on which terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taker {
    /// Highest pickle protocol that it reads.
    pub reader: u8,
    /// What settles the task that it takes.
    pub settled_by: SettledBy,
    /// Who has it then.
    pub holder: Holder,
    /// It is given tasks as they come, and has not begun with any of them.
    pub is_pushed: bool,
}

impl Taker {
    /// Takes until it says, or shows, that it is through.
    pub fn leasing(reader: u8) -> Self {
        let holder = Holder::default();
        Self { reader, settled_by: SettledBy::Session, holder, is_pushed: false }
    }
}

/// What settles a task that was handed out, how long that may take, and what its lease survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettledBy {
    /// It is settled as it is handed out.
    Delivery,
    /// What its session does next, as long as the queue allows; the lease ends with the server.
    Session,
    /// Its token, as long as its session and the queue allow; the lease ends with the server.
    TokenOfSession,
    /// Its token, within so long (its hold), and no longer than the queue allows; the time begins
    /// again after a restart.
    TokenWithin(Duration),
    /// Its token, whoever comes with it, as long as the queue allows, also after a restart.
    Token,
}

impl SettledBy {
    /// Whether the token alone settles the task, whoever comes with it.
    pub fn is_by_token(self) -> bool {
        matches!(self, Self::TokenOfSession | Self::TokenWithin(_) | Self::Token)
    }
}

/// How a call ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// `put`: the task is in the queue, or already with a getter.
    Accepted(TaskId),
    /// `put`: a task with this key was put before.
    Known,
    /// `get`: this task.
    Task(Grant),
    /// `get`: no task in time.
    Empty,
    /// `put`: no room in time.
    Full,
    /// `put`: no room in time in the journal.
    NoRoom,
    /// `get`, `put`: the queue was shut down.
    ShutDown,
    /// `join`: every task is done.
    Joined,
    /// `task_done`, `shutdown`: it has happened.
    Done,
    /// `get`: the next task needs a reader of this pickle protocol, and stays.
    Unreadable {
        /// Pickle protocol of the task.
        protocol: u8,
    },
    /// `put`, after waiting: the task has no place among those that are in the queue by now.
    Unorderable(OrderError),
}

/// What a token is still good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// The task is settled now.
    Accepted,
    /// It was settled before, by the same token.
    AcceptedBefore,
    /// It is somebody else's by now, or was settled by somebody else. Nothing happened.
    Stale,
}

/// What is known of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// From the task's put to when it was handed out.
    pub waited: Duration,
    /// From there until now.
    pub ran: Duration,
}

/// What a put says beside its item.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Terms {
    /// A further put with this key within the window of the queue is the same task.
    pub key: Option<Arc<[u8]>>,
    /// Not to be handed out sooner than this.
    pub delay: Option<Duration>,
    /// Dropped if it was not taken within this time; instead of the queue's own.
    pub expires: Option<Duration>,
    /// Place in a priority queue, instead of the item's own.
    pub priority: Option<i64>,
    /// Where the item comes from: a result its task, a dead letter its life.
    pub origin: Option<Box<Origin>>,
    /// Bytes on disk that its put frees, because it settles a task; its own payload may take as
    /// many of them.
    pub frees: u64,
}

/// Where a result or a dead letter comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Name of the queue of its task.
    pub queue: Arc<str>,
    /// Its task.
    pub task: TaskId,
    /// Which attempt it was, from 1.
    pub attempt: u32,
    /// Who did it: session and address.
    pub worker: Arc<str>,
    /// From the task's put to when it was handed out.
    pub waited: Duration,
    /// From there to the result.
    pub ran: Duration,
    /// The attempts that failed, of a dead letter.
    pub history: Vec<Failed>,
}

/// Why a task came back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The reply never reached the client: no attempt is used up.
    Unread,
    /// The worker crashed or was cut off.
    Crashed,
    /// The worker left without the result that the queue demands.
    Unanswered,
    /// The lease ran out.
    Overdue,
    /// The worker said so, and why.
    Refused(Arc<str>),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unread => "it never reached its worker",
            Self::Crashed => "its worker crashed or was cut off",
            Self::Unanswered => "its worker left without an answer",
            Self::Overdue => "its time was up",
            Self::Refused(reason) => reason,
        })
    }
}

/// An attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Failed {
    /// Why.
    pub cause: Cause,
    /// Who had the task: session and address, where that is known.
    pub worker: Option<Arc<str>>,
}

impl From<Cause> for Failed {
    fn from(cause: Cause) -> Self {
        Self { cause, worker: None }
    }
}

/// When a task that failed is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// After the queue's own pause, if attempts are left.
    Backoff,
    /// After so long, if attempts are left.
    After(Duration),
    /// Never: no attempt can do it.
    Never,
}

impl From<Option<Duration>> for Retry {
    fn from(delay: Option<Duration>) -> Self {
        delay.map_or(Self::Backoff, Self::After)
    }
}

/// A task that was given up, with what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The user's object.
    pub payload: Payload,
    /// The task that it was.
    pub task: TaskId,
    /// The key of its put.
    pub key: Option<Arc<[u8]>>,
    /// How often it was tried.
    pub attempts: u32,
    /// The attempts that failed; the last ones if there were many.
    pub history: Vec<Failed>,
}

impl Terms {
    /// What they take in memory, in bytes, roughly.
    pub(super) fn bytes(&self) -> u64 {
        self.metadata_bytes() + self.key.as_ref().map_or(0, Self::key_bytes)
    }

    /// The same without the key, which is kept longer.
    pub(super) fn metadata_bytes(&self) -> u64 {
        Self::least_bytes() + self.origin.as_ref().map_or(0, |origin| origin.bytes())
    }

    pub(super) fn least_bytes() -> u64 {
        METADATA_BYTES
    }

    pub(super) fn key_bytes(key: &Arc<[u8]>) -> u64 {
        key.len() as u64 + KEY_BYTES
    }
}

impl Origin {
    /// What it takes in memory, in bytes, roughly. The queue's name is shared.
    pub(crate) fn bytes(&self) -> u64 {
        let attempts = self.history.iter().map(|it| size_of::<Failed>() as u64 + it.bytes());
        (size_of::<Self>() + self.worker.len()) as u64 + attempts.sum::<u64>()
    }
}

impl Failed {
    /// What it takes in memory beside itself, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let reason = if let Cause::Refused(reason) = &self.cause { reason.len() } else { 0 };
        (reason + self.worker.as_ref().map_or(0, |worker| worker.len())) as u64
    }
}

/// What a task with metadata takes beside payload, key and origin, in bytes: a place in up to five
/// trees, by its id, while it is delayed, and by the times when it is due and when it expires;
/// terms.
const METADATA_BYTES: u64 = 480;
/// What a key takes besides its bytes: a place in two trees.
const KEY_BYTES: u64 = 150;
