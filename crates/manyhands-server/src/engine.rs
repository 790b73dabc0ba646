//! The one owner of all queues: the commit that ends each step, and the timer.
//!
//! Every call takes the lock of its shard once, applies itself to the pure [`Queue`] and hands out what that
//! sets free; nothing is awaited under the lock, and what takes longer for a larger item is done
//! before it. The order of the lock is the order of the queue.
//!
//! - [`verbs`]: what can be asked of a queue, the one place where a protocol finds all of it;
//! - [`ticket`]: what a verb returns, and when its reply may leave;
//! - [`callers`]: who calls;
//! - [`directory`]: the names of queues;
//! - [`shards`]: which shard has which queue; [`shard`]: what its lock guards, with the single door
//!   of every change, and a step drawn;
//! - [`credit`]: tasks that are pushed to callers as they come;
//! - [`leases`]: tasks that are out, by their tokens; [`dead_letters`]: those that were given up;
//! - [`calls`]: those that share a step;
//! - [`observers`]: whoever looks at all changes.

mod callers;
mod calls;
mod credit;
mod dead_letters;
mod directory;
mod leases;
mod notices;
#[cfg_attr(not(test), expect(dead_code, reason = "the page and the metrics will look"))]
mod observers;
mod parked;
mod peek;
mod persist;
mod remains;
mod shard;
mod shards;
mod shortage;
mod signer;
#[cfg(test)]
mod simulated;
mod stats;
#[cfg(test)]
pub(crate) mod tests;
mod ticket;
mod verbs;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

pub(crate) use self::callers::{Caller, Held};
pub(crate) use self::calls::Calls;
use self::credit::Credits;
pub(crate) use self::credit::{Push, Pushed, Pushes};
#[cfg(test)]
pub(crate) use self::dead_letters::REDRIVEN_AT_ONCE_MAX;
pub(crate) use self::dead_letters::Redriving;
pub(crate) use self::directory::Reference;
use self::directory::check;
pub(crate) use self::directory::configured::{NotConfigured, Opened};
pub(crate) use self::directory::unused::NotDropped;
use self::leases::Leases;
pub(crate) use self::leases::{Demand, Fate, Tokens};
use self::notices::Notices;
use self::observers::Observers;
use self::parked::{Parked, Waiting};
pub(crate) use self::peek::Looked;
use self::persist::{Journal, Log, QueueLog};
pub(crate) use self::persist::{Recovery, RecoveryError};
pub use self::persist::{Restored, Salvaged, salvage};
use self::remains::Ruin;
use self::shard::{Alarm, Hosted, State};
use self::shards::{Common, Shards};
use self::shortage::Starved;
pub(crate) use self::signer::Signer;
use self::stats::Listed;
pub(crate) use self::stats::{Described, PAGE_LEN, QueueStats, Snapshot};
#[cfg(test)]
pub(crate) use self::tests::{locks, work};
pub(crate) use self::ticket::{
    Batch, Called, Completion, Place, Promise, Reading, Ticket, UntilDurable, Waiter,
};
use self::verbs::patience;
pub(crate) use self::verbs::{PLACED_AT_ONCE_MAX, Settles, Shown, Taking};
pub(crate) use self::verbs::{Put, Settled, Settlement};
use crate::clock::Clock;
use crate::config::Limits;
use crate::error::{CallError, NoQueue};
use crate::memory::Memory;
use crate::queue::{Step, Time, WaiterId};

/// Tasks of a batch that are put, handed out or moved in one step. In between others have their turn.
pub(crate) const BATCH_AT_ONCE: usize = 256;
/// How often it is looked whether there is room again for tasks to be handed out.
const LEASE_ROOM_INTERVAL: Duration = Duration::from_secs(1);
/// Alarms that are worked off at a time.
pub(crate) const ALARMS_MAX: usize = 16;
/// How long the timer works them off before it lets calls come in between.
pub(crate) const TURN: Duration = Duration::from_micros(500);

/// Names a queue; 0 is none.
pub(crate) type QueueId = u64;

pub(crate) struct Engine {
    shards: Shards,
    clock: Clock,
    memory: Arc<Memory>,
    /// Told when a deadline comes before the one that the timer sleeps for.
    timer: Notify,
    queues_max: usize,
    create_on_use: bool,
    /// Where queues on disk are kept, if there are any.
    journal: Option<Journal>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine of queues in memory. `boot` tells its leases from those of earlier runs.
    pub(crate) fn new(limits: &Limits, create_on_use: bool, boot: u32) -> Self {
        Self::with(limits, create_on_use, Clock::start(), u64::from(boot) << 32, 1)
    }

    /// One of so many shards.
    #[cfg(test)]
    pub(crate) fn of_shards(shards: u64, limits: &Limits, clock: Clock) -> Self {
        Self::with(limits, true, clock, 7 << 32, shards)
    }

    fn with(
        limits: &Limits,
        create_on_use: bool,
        clock: Clock,
        first_lease: u64,
        shards: u64,
    ) -> Self {
        let memory = Memory::new(limits);
        let common = Common::of(usize::try_from(shards).unwrap_or(1));
        let state = |shard| {
            let mut step = Step::new(limits.memory_bytes_max, first_lease);
            step.budget.over = memory.for_leases();
            State::new(limits, step, first_lease, common.clone(), (shard, shards))
        };
        Self {
            shards: Shards::new(state(0), (1..shards).map(state)),
            clock,
            memory,
            timer: Notify::new(),
            queues_max: limits.queues_max,
            create_on_use,
            journal: None,
        }
    }

    /// This moment, by the clock of the queues.
    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }

    /// Waits until then.
    pub(crate) async fn sleep_until(&self, time: Time) {
        tokio::time::sleep(self.clock.until(time)).await;
    }

    /// Since that clock was started.
    pub(crate) fn uptime(&self) -> Duration {
        self.now().since(Time::default())
    }

    /// The account of all memory that is held for clients.
    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    // ---- calls of queues

    /// After every change: hands out what became free, buries the dead, looks after the deadlines
    /// and writes down what is to be kept. The step ends here; the promise says when what it changed is
    /// durable.
    ///
    /// Nothing of that happens yet if the step [goes on](Calls) and owes nobody anything.
    fn commit(&self, state: &mut State) -> Promise {
        if state.goes_on && !state.owes() {
            return Promise::NOTHING;
        }
        state.follow_up();
        let is_early = state.look_after();
        let is_less = self.shards.common().set_used(state.shard, state.step.budget.used);
        if is_early || is_less {
            self.timer.notify_one();
        }
        let promise = state.append(&self.clock);
        state.has_cleared = false;
        state.tell_answers(promise);
        state.tell_pushes(promise);
        #[cfg(test)]
        tests::work::begin();
        promise
    }

    // ---- time and end

    /// Answers the calls whose time-out has come, for ever.
    pub(crate) async fn keep_time(&self) {
        loop {
            let armed = self.arm();
            let sleep = async {
                match armed {
                    Some(deadline) => self.sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {}
                () = self.timer.notified() => {}
            }
            self.expire();
            tokio::task::yield_now().await;
        }
    }

    /// Lets puts in that waited for the disk, whenever there is more room on it, for ever.
    pub(crate) async fn keep_room(&self) {
        let Some(journal) = self.journal() else { return std::future::pending().await };
        loop {
            let more = journal.more_room();
            self.let_puts_in();
            let mut more = std::pin::pin!(more);
            // Leases that ended make room, too, of which nobody tells.
            while tokio::time::timeout(LEASE_ROOM_INTERVAL, &mut more).await.is_err()
                && !self.lacks_room()
            {}
        }
    }

    /// Whether somebody may wait for room on the disk.
    fn lacks_room(&self) -> bool {
        self.lock_each().any(|state| {
            let lacks_leases = state.log.as_ref().is_some_and(|log| log.lacks_leases);
            lacks_leases || !state.short_of_memory.is_empty()
        })
    }

    pub(crate) fn journal(&self) -> Option<&Journal> {
        self.journal.as_ref()
    }

    /// Lets puts in that waited for room, and serves getters that did, where there is some now.
    pub(crate) fn let_puts_in(&self) {
        for mut state in self.lock_each() {
            state.let_puts_in();
            self.commit(&mut state);
        }
    }

    pub(crate) fn arm(&self) -> Option<Time> {
        self.lock_each().filter_map(|mut state| state.arm()).min()
    }

    /// Does what is due, a bounded part of it at a time so that calls come in between.
    pub(crate) fn expire(&self) {
        for mut state in self.lock_each() {
            let end = state.step.now + TURN;
            if self.shards.are_several() {
                // Memory that other shards have given back.
                self.commit(&mut state);
            }
            for _ in 0..ALARMS_MAX {
                if !state.expire_first() {
                    break;
                }
                self.commit(&mut state);
                if end < self.clock.now() {
                    break;
                }
            }
        }
    }

    /// Ends every call that waits, and every later one that would, without an answer.
    pub(crate) fn stop(&self) {
        for mut state in self.lock_each() {
            state.is_stopped = true;
            for id in state.waiting.all() {
                if let Some(waiting) = state.waiting.remove(id) {
                    state.cancel(id, waiting);
                }
            }
            state.end_all_credits();
            self.commit(&mut state);
        }
    }
}
