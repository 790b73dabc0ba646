//! What one step of a queue needs of its surroundings, and what it leaves for them to do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use manyhands::wire::pickle::Payload;

use super::{DeadLetter, Failed, Holder, Outcome, TaskId, Terms, Time, Token, WaiterId};

/// The surroundings of all queues together. Whoever drives the queues sets `now` before each call
/// and empties the lists after it.
#[derive(Debug)]
pub struct Step {
    /// The time of this step.
    pub now: Time,
    /// Memory of all queues.
    pub budget: Budget,
    /// Parked calls that ended; every one must reach its waiter.
    pub wakes: Vec<Wake>,
    /// Tasks that were given up; each goes to the dead-letter queue in the same step.
    pub dead: Vec<DeadLetter>,
    /// Tasks of a queue with results that ended without one.
    pub resultless: Vec<TaskId>,
    /// Tasks whose lease ran out: whoever had them has them no more.
    pub lapsed: Vec<(TaskId, Holder)>,
    /// Who has tasks whose time is up in this step, as far as that is known.
    pub overdue: BTreeMap<TaskId, Arc<str>>,
    /// Every change of the queue in order, one record each; `None` if the queue has no journal.
    pub changes: Option<Vec<Change>>,
    /// What the journal still has room for in this step.
    pub room: Room,
    /// Spreads retries.
    pub random: Random,
}

/// What the journal of a queue still has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes of puts. One that does not fit waits, or is [`Outcome::Full`], as if memory were
    /// short.
    pub puts: u64,
    /// Bytes of puts that settle a task, up to what that frees.
    pub results: u64,
    /// Tasks that can be handed out. Without it getters wait as if nothing were ready.
    pub leases: u64,
}

impl Room {
    /// For everything.
    pub const ENOUGH: Self = Self { puts: u64::MAX, results: u64::MAX, leases: u64::MAX };
}

/// A parked call and how it ended.
pub type Wake = (WaiterId, Outcome);

/// Memory of all queues together, in bytes: payloads, keys and bookkeeping of tasks that are ready,
/// delayed or leased.
///
/// A payload that does not fit waits, or is [`Outcome::Full`], exactly as on a bounded queue. One
/// larger than `max` never fits, so the limit of a message must be lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Taken. Tasks that are handed out or given back may bring it above `max`.
    pub used: u64,
    /// The bound.
    pub max: u64,
    /// How far above `max` what a waiting getter takes may bring it.
    pub over: u64,
}

impl Budget {
    /// Whether so many more bytes may wait in a queue.
    pub(super) fn allows_put(&self, bytes: u64) -> bool {
        self.used.saturating_add(bytes) <= self.max
    }

    /// How many more bytes may be handed out.
    pub(super) fn left_for_leases(&self) -> u64 {
        self.max.saturating_add(self.over).saturating_sub(self.used)
    }

    /// Whether so many more bytes may be handed out.
    pub(crate) fn allows_lease(&self, bytes: u64) -> bool {
        self.used.saturating_add(bytes) <= self.max.saturating_add(self.over)
    }
}

/// One change of one queue: what a journal needs to make it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A task was accepted.
    Put {
        /// Its place in the order.
        task: TaskId,
        /// The user's object.
        payload: Payload,
        /// What the put said beside it.
        terms: Option<Box<Terms>>,
    },
    /// A put had this key, which no other may have for a while.
    Seen {
        /// The key.
        key: Arc<[u8]>,
    },
    /// A task was handed out.
    Leased {
        /// Names the lease.
        token: Token,
        /// How long its holder asked to keep it, if it is to be settled by its token.
        hold: Option<Duration>,
    },
    /// A lease by token lasts for so long from now.
    Extended {
        /// Names the lease.
        token: Token,
        /// How long.
        hold: Duration,
    },
    /// A task was settled and is gone.
    Acked {
        /// Which.
        task: TaskId,
        /// The attempt that did it.
        attempt: u32,
    },
    /// It was settled by this token, for which nobody else can have it.
    Settled {
        /// Names the lease.
        token: Token,
    },
    /// The turn of a result has come; until then it was kept back.
    Turned {
        /// Which.
        task: TaskId,
        /// What it is called from now on: its place in the order.
        turned: TaskId,
    },
    /// A task that was handed out is in the queue again.
    Returned {
        /// Which.
        task: TaskId,
        /// How often it has failed.
        failures: u32,
        /// Not to be handed out before.
        not_before: Option<Time>,
        /// Why it came back, and from whom.
        attempt: Failed,
    },
    /// A task failed too often; it goes to another queue.
    Dead {
        /// Which.
        task: TaskId,
        /// How it failed the last time, and with whom.
        attempt: Failed,
    },
    /// A task was not taken in its time.
    Expired {
        /// Which.
        task: TaskId,
    },
    /// All tasks that were ready or delayed are gone.
    Cleared {
        /// What the queue has counted since.
        counts: Counts,
        /// The tasks that were with somebody, in order; they stay.
        kept: Vec<TaskId>,
    },
    /// The queue takes no more puts.
    ShutDown {
        /// And gives nothing any more.
        immediate: bool,
    },
    /// So many tasks were counted as done.
    Done(u64),
    /// The queue is there. This and what follows is said by whoever has the queue.
    Declared(Counts),
    /// The queue is gone, or not kept any more.
    Dropped,
    /// Instead of its put: a dead letter goes on as a task of this queue.
    Redriven {
        /// The queue of the dead letter, and the letter.
        letter: (u64, TaskId),
        /// The task that it is now.
        task: TaskId,
    },
}

/// What a queue has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// The next task that is put.
    pub next_task: TaskId,
    /// Tasks put and not yet done.
    pub unfinished: u64,
}

/// A seeded source of numbers that are evenly spread and nothing more (SplitMix64).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Random(u64);

impl Step {
    /// The beginning of time, with `budget_max` bytes for all queues, and nothing recorded.
    pub fn new(budget_max: u64, seed: u64) -> Self {
        Self {
            now: Time::default(),
            budget: Budget { used: 0, max: budget_max, over: u64::MAX },
            wakes: Vec::new(),
            dead: Vec::new(),
            resultless: Vec::new(),
            lapsed: Vec::new(),
            overdue: BTreeMap::new(),
            changes: None,
            room: Room::ENOUGH,
            random: Random(seed),
        }
    }

    pub(super) fn wake(&mut self, waiter: WaiterId, outcome: Outcome) {
        self.wakes.push((waiter, outcome));
    }

    /// Whether there is room for this put in the journal. One that settles a task
    /// counts as a settlement, up to what is freed by that.
    pub(super) fn takes(&self, payload: &Payload, terms: Option<&Terms>) -> bool {
        let bytes = record_bytes(payload, terms);
        let freed = terms.map_or(0, |terms| terms.frees);
        bytes <= self.room.puts
            || payload.bytes.len() as u64 <= freed && bytes <= self.room.results && freed > 0
    }

    /// A put was accepted, for which there was room.
    pub(super) fn use_room(&mut self, payload: &Payload, terms: Option<&Terms>) {
        if self.room != Room::ENOUGH {
            let bytes = record_bytes(payload, terms);
            self.room.puts = self.room.puts.saturating_sub(bytes);
            self.room.results = self.room.results.saturating_sub(bytes);
        }
    }

    /// Whether a task may be handed out.
    pub(super) fn allows_lease(&self) -> bool {
        self.room.leases > 0
    }

    /// A task is handed out.
    pub(super) fn use_lease(&mut self) {
        if self.room != Room::ENOUGH {
            let Room { puts, leases, .. } = self.room;
            self.room.puts = puts.saturating_sub(LEASE_RECORD_BYTES);
            self.room.leases = leases.saturating_sub(u64::from(leases != u64::MAX));
        }
    }

    pub(super) fn record(&mut self, change: impl FnOnce() -> Change) {
        if let Some(changes) = &mut self.changes {
            changes.push(change());
        }
    }
}

/// Most that the record of a put takes, in bytes.
fn record_bytes(payload: &Payload, terms: Option<&Terms>) -> u64 {
    let terms = terms.map_or(0, |terms| {
        // With the task, and as one that was seen.
        let key = terms.key.as_ref().map_or(0, |key| 2 * key.len());
        let origin = terms.origin.as_ref().map_or(0, |it| it.queue.len() + it.worker.len());
        TERMS_RECORD_BYTES + key + origin
    });
    PUT_RECORD_BYTES + (payload.bytes.len() + terms) as u64
}

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Some time between half of `whole` and all of it.
    pub(crate) fn jitter(&mut self, whole: Duration) -> Duration {
        let half = whole / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        half + Duration::from_nanos(self.next() % nanos.saturating_add(1).max(1))
    }
}

/// Most that the record of a put takes beside its payload, in bytes.
const PUT_RECORD_BYTES: u64 = 48;
/// Most that its terms take there beside key and names, with the settlement of a task that it is
/// the result of, in bytes.
const TERMS_RECORD_BYTES: usize = 160 + 96;
/// Most that the record of a lease takes, in bytes.
const LEASE_RECORD_BYTES: u64 = 48;
