//! One account of the memory that is held for clients.
//!
//! Its parts: *tasks* with all that is known of them, counted under the engine's lock; *parked* calls,
//! which keep their items while they wait; and *room* for what is moving, requests that arrive and
//! replies that leave. Room is taken as bytes come, never for what is only announced. When it is
//! short, who moves nothing is cut off first, so that nobody waits long for somebody who stalls.
//! Invariant: one transfer can always go on, the oldest, so that no two wait for each other.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::{Limits, MEMORY_FREE_BYTES, STALL, STALL_BYTES};

/// How often somebody who waits for room looks for transfers that stand still.
const LOOK: Duration = Duration::from_millis(250);
/// Transfers that are let in at a time, so that a crowd of them keeps nobody waiting for the lock.
const LET_IN_MAX: usize = 64;

/// The account.
#[derive(Debug)]
pub(crate) struct Memory {
    /// The bound on everything, in bytes.
    max: u64,
    parked: AtomicU64,
    /// What front ends remember of their clients.
    remembered: AtomicU64,
    moving: Mutex<Moving>,
}

#[derive(Debug)]
struct Moving {
    used: u64,
    max: u64,
    next: u64,
    /// Oldest first.
    transfers: BTreeMap<u64, Transfer>,
    waiting: BTreeMap<u64, Waiting>,
}

#[derive(Debug)]
struct Transfer {
    bytes: u64,
    pulse: Arc<Pulse>,
    /// What had moved when it was looked at last, and since when it has moved too little.
    seen: u64,
    since: Instant,
}

/// What a transfer tells of itself without a lock.
#[derive(Debug, Default)]
struct Pulse {
    moved: AtomicU64,
    /// Whether it is the peer's turn to move something.
    depends_on_peer: AtomicBool,
    cut_off: CancellationToken,
}

#[derive(Debug)]
struct Waiting {
    bytes: u64,
    let_in: Arc<Notify>,
}

/// Memory of one request on its way in, or of a reply on its way out.
#[derive(Debug)]
pub(crate) struct Room {
    memory: Arc<Memory>,
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    number: u64,
    bytes: u64,
    pulse: Arc<Pulse>,
}

/// Memory of a call that waits.
#[derive(Debug)]
pub(crate) struct Parked {
    memory: Arc<Memory>,
    bytes: u64,
}

/// The peer moved too little while others waited for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "cut off: it moved less than {STALL_BYTES} bytes in {STALL:?} while others waited for memory"
)]
pub(crate) struct CutOff;

impl Memory {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        let moving = Moving {
            used: 0,
            max: limits.moving_bytes_max(),
            next: 0,
            transfers: BTreeMap::new(),
            waiting: BTreeMap::new(),
        };
        let (parked, remembered) = (AtomicU64::new(0), AtomicU64::new(0));
        let max = limits.memory_bytes_max;
        Arc::new(Self { max, parked, remembered, moving: Mutex::new(moving) })
    }

    /// The front end remembers so many bytes of its clients beside their sessions.
    pub(crate) fn remember(&self, bytes: u64) {
        self.remembered.store(bytes, Ordering::Relaxed);
    }

    /// What tasks may take, beside so many bytes of sessions and queues.
    pub(crate) fn for_tasks(&self, standing: u64) -> u64 {
        let standing = standing + self.remembered.load(Ordering::Relaxed);
        let parked = self.parked.load(Ordering::Relaxed).saturating_sub(self.max / 16);
        let standing = standing.saturating_sub(MEMORY_FREE_BYTES);
        (self.max - self.max / 16 * 3).saturating_sub(parked).saturating_sub(standing)
    }

    /// How far above that tasks may go when they are handed out, which takes a lease each.
    pub(crate) fn for_leases(&self) -> u64 {
        self.max / 16
    }

    /// Nothing so far.
    pub(crate) fn room(self: &Arc<Self>) -> Room {
        Room { memory: self.clone(), held: None }
    }

    /// Memory for a call that waits with so many bytes; `None` if too many do.
    pub(crate) fn park(self: &Arc<Self>, bytes: u64) -> Option<Parked> {
        let max = (self.max / 4).max(MEMORY_FREE_BYTES);
        let add = |parked: u64| parked.checked_add(bytes).filter(|sum| *sum <= max);
        self.parked.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Parked { memory: self.clone(), bytes })
    }

    /// What requests and replies on their way take.
    #[cfg(test)]
    pub(crate) fn moving_bytes(&self) -> u64 {
        self.moving().used
    }

    fn moving(&self) -> MutexGuard<'_, Moving> {
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.memory.parked.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Room {
    /// How much it is, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.held.as_ref().map_or(0, |held| held.bytes)
    }

    /// Makes it at least so many bytes if that can be had at once; false if not.
    pub(crate) fn try_grow_to(&mut self, bytes: u64) -> bool {
        let Some(more) = bytes.checked_sub(self.bytes()).filter(|more| *more > 0) else {
            return true;
        };
        let number = self.enter();
        let grown = self.memory.moving().grow(number, more);
        if let Some(held) = self.held.as_mut().filter(|_| grown) {
            held.bytes += more;
        }
        grown
    }

    /// Makes it at least so many bytes, when they are to be had.
    pub(crate) async fn grow_to(&mut self, bytes: u64) {
        if self.try_grow_to(bytes) {
            return;
        }
        let more = bytes.saturating_sub(self.bytes());
        let let_in = Arc::new(Notify::new());
        let number = self.enter();
        self.memory.moving().wait(number, Waiting { bytes: more, let_in: let_in.clone() });
        while timeout(LOOK, let_in.notified()).await.is_err() {
            self.memory.moving().look(number);
        }
        if let Some(held) = &mut self.held {
            held.bytes += more;
        }
    }

    /// So many bytes have moved.
    pub(crate) fn moved(&self, bytes: usize) {
        if let Some(held) = &self.held {
            held.pulse.moved.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Waits for the peer to move something; an error if it is cut off meanwhile.
    pub(crate) async fn unless_cut_off<T>(
        &self,
        moves: impl Future<Output = T>,
    ) -> Result<T, CutOff> {
        let Some(Held { pulse, .. }) = &self.held else { return Ok(moves.await) };
        pulse.depends_on_peer.store(true, Ordering::Relaxed);
        let moved = tokio::select! {
            biased;
            moved = moves => Ok(moved),
            () = pulse.cut_off.cancelled() => Err(CutOff),
        };
        pulse.depends_on_peer.store(false, Ordering::Relaxed);
        moved
    }

    /// Gives all of it back.
    pub(crate) fn clear(&mut self) {
        if let Some(Held { number, .. }) = self.held.take() {
            self.memory.moving().leave(number);
        }
    }

    fn enter(&mut self) -> u64 {
        let enter = || {
            let (number, pulse) = self.memory.moving().enter();
            Held { number, bytes: 0, pulse }
        };
        self.held.get_or_insert_with(enter).number
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Moving {
    fn enter(&mut self) -> (u64, Arc<Pulse>) {
        let (number, pulse) = (self.next, Arc::<Pulse>::default());
        self.next += 1;
        let transfer = Transfer { bytes: 0, pulse: pulse.clone(), seen: 0, since: Instant::now() };
        self.transfers.insert(number, transfer);
        (number, pulse)
    }

    /// Gives a transfer more room, if there is some or it is the oldest.
    fn grow(&mut self, number: u64, bytes: u64) -> bool {
        let is_oldest = self.transfers.first_key_value().is_some_and(|(&first, _)| first == number);
        let fits = self.used.saturating_add(bytes) <= self.max || is_oldest;
        if let Some(transfer) = self.transfers.get_mut(&number).filter(|_| fits) {
            transfer.bytes += bytes;
            self.used += bytes;
        }
        fits
    }

    fn wait(&mut self, number: u64, waiting: Waiting) {
        self.waiting.insert(number, waiting);
        self.let_in();
    }

    fn leave(&mut self, number: u64) {
        self.waiting.remove(&number);
        let left = self.transfers.remove(&number);
        self.used -= left.map_or(0, |transfer| transfer.bytes);
        self.let_in();
    }

    /// Small ones need not wait behind a large one: that gets in once it is the oldest.
    fn let_in(&mut self) {
        let first: Vec<_> =
            self.waiting.iter().take(LET_IN_MAX).map(|(&n, it)| (n, it.bytes)).collect();
        for (number, bytes) in first {
            if self.grow(number, bytes)
                && let Some(waiting) = self.waiting.remove(&number)
            {
                waiting.let_in.notify_one();
            }
        }
    }

    /// Cuts off who has stood still for long; the first in line does that for all.
    fn look(&mut self, number: u64) {
        if self.waiting.first_key_value().is_none_or(|(&first, _)| first != number) {
            return;
        }
        let now = Instant::now();
        for transfer in self.transfers.values_mut() {
            let Pulse { moved, depends_on_peer, cut_off } = &*transfer.pulse;
            let moved = moved.load(Ordering::Relaxed);
            if !depends_on_peer.load(Ordering::Relaxed) || moved - transfer.seen >= STALL_BYTES {
                (transfer.seen, transfer.since) = (moved, now);
            } else if now - transfer.since >= STALL {
                cut_off.cancel();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(max: u64) -> Arc<Memory> {
        Memory::new(&Limits { memory_bytes_max: max, ..Limits::default() })
    }

    const MIB: u64 = 1 << 20;

    #[tokio::test(start_paused = true)]
    async fn who_stands_still_is_cut_off_when_others_wait_and_only_then() {
        let memory = memory(32 * MIB);
        let mut still = memory.room();
        assert!(still.try_grow_to(4 * MIB));
        let never = || std::future::pending::<()>();
        let alone = timeout(STALL * 9, still.unless_cut_off(never())).await;
        assert!(alone.is_err(), "nobody waits for its room");
        let mut moving = memory.room();
        let mut next = memory.room();
        assert!(!moving.try_grow_to(MIB));
        let keeps_moving = async {
            moving.grow_to(MIB).await;
            for _ in 0..100 {
                let pause = tokio::time::sleep(LOOK);
                moving.unless_cut_off(pause).await.expect("it moves");
                moving.moved(usize::try_from(STALL_BYTES).unwrap());
            }
            moving.clear();
        };
        let stalls = async {
            let ended = still.unless_cut_off(never()).await;
            still.clear();
            ended
        };
        let (cut, (), ()) = tokio::join!(stalls, keeps_moving, next.grow_to(4 * MIB));
        assert_eq!(cut, Err(CutOff));
    }

    #[tokio::test(start_paused = true)]
    async fn transfers_that_grow_side_by_side_all_end() {
        let memory = memory(32 * MIB);
        let one = || async {
            let mut room = memory.room();
            for step in 1..=4 {
                room.grow_to(step * MIB).await;
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(one(), one(), one(), one(), one());
        let moving = memory.moving();
        assert_eq!((moving.used, moving.transfers.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_room_and_leaves_takes_none() {
        let memory = memory(32 * MIB);
        let mut first = memory.room();
        first.grow_to(4 * MIB).await;
        let mut second = memory.room();
        assert!(timeout(LOOK * 3, second.grow_to(MIB)).await.is_err());
        drop(second);
        first.clear();
        let moving = memory.moving();
        assert_eq!((moving.used, moving.waiting.len()), (0, 0));
    }

    #[test]
    fn calls_that_wait_take_a_quarter_at_most_and_leave_less_for_tasks() {
        let memory = memory(64 * MIB);
        let before = memory.for_tasks(0);
        let parked = memory.park(16 * MIB).expect("a quarter");
        assert!(memory.park(1).is_none());
        assert_eq!(memory.for_tasks(0), before - 12 * MIB);
        assert_eq!(memory.for_tasks(2 * MIB), before - 12 * MIB - (2 * MIB - MEMORY_FREE_BYTES));
        drop(parked);
        assert_eq!(memory.for_tasks(0), before);
    }
}
