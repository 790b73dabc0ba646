//! One account of the memory that is taken for clients.
//!
//! Its parts: *tasks* with all that is known of them, counted under the engine's lock; *parked* calls,
//! which keep their items while they wait; and *room* for what is moving, requests that arrive and
//! replies that leave. Room is taken as bytes come, never for what is only announced. When it is
//! short, who moves nothing is cut off first, so that nobody waits long for somebody who stalls; never
//! more of them than those in line need.
//! Invariant: one transfer can always go on, the oldest, so that no two wait for each other.

use std::cmp::Reverse;
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
/// A transfer that moves all that it holds in so many times [`STALL`], a minute, is in time.
const STALLS_MAX: u64 = 30;
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
    /// What had moved when its present window began, and when that was. A window ends when enough has
    /// moved, or after [`STALL`], and does not begin before the peer's turn does.
    seen: u64,
    since: Instant,
    /// Whether it was the peer's turn when it was last looked.
    depended_on_peer: bool,
    /// What moved in the window before, if it was the peer's turn and that was too little.
    slow: Option<u64>,
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
    entry: Option<Entry>,
}

#[derive(Debug)]
struct Entry {
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
        Room { memory: self.clone(), entry: None }
    }

    /// Memory for a call that waits with so many bytes; `None` if too many do.
    pub(crate) fn park(self: &Arc<Self>, bytes: u64) -> Option<Parked> {
        let max = (self.max / 4).max(MEMORY_FREE_BYTES);
        let add = |parked: u64| parked.checked_add(bytes).filter(|sum| *sum <= max);
        self.parked.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Parked { memory: self.clone(), bytes })
    }

    /// What requests and replies on their way take.
    #[cfg(any(test, fuzzing))]
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
        self.entry.as_ref().map_or(0, |entry| entry.bytes)
    }

    /// Makes it at least so many bytes if that can be had at once; false if not.
    pub(crate) fn try_grow_to(&mut self, bytes: u64) -> bool {
        let Some(more) = bytes.checked_sub(self.bytes()).filter(|more| *more > 0) else {
            return true;
        };
        let number = self.enter();
        let grown = self.memory.moving().grow(number, more);
        if let Some(entry) = self.entry.as_mut().filter(|_| grown) {
            entry.bytes += more;
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
        let in_line = InLine { room: self, number, more };
        while timeout(LOOK, let_in.notified()).await.is_err() {
            in_line.room.memory.moving().look(number);
        }
    }

    /// Makes it larger by another one, which is no more then.
    pub(crate) fn absorb(&mut self, mut other: Self) {
        let Some(absorbed) = other.entry.take() else { return };
        let Some(entry) = &mut self.entry else {
            self.entry = Some(absorbed);
            return;
        };
        entry.bytes += absorbed.bytes;
        self.memory.moving().merge(entry.number, absorbed.number);
    }

    /// So many bytes have moved.
    pub(crate) fn moved(&self, bytes: usize) {
        if let Some(entry) = &self.entry {
            entry.pulse.moved.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Waits for the peer to move something; an error if it is cut off meanwhile.
    pub(crate) async fn unless_cut_off<T>(
        &self,
        moves: impl Future<Output = T>,
    ) -> Result<T, CutOff> {
        let Some(Entry { pulse, .. }) = &self.entry else { return Ok(moves.await) };
        let turn = PeersTurn::begin(pulse);
        tokio::select! {
            biased;
            moved = moves => Ok(moved),
            () = turn.0.cut_off.cancelled() => Err(CutOff),
        }
    }

    /// Gives all of it back. Mostly there is none.
    #[inline]
    pub(crate) fn clear(&mut self) {
        if self.entry.is_some() {
            self.leave();
        }
    }

    fn leave(&mut self) {
        if let Some(Entry { number, .. }) = self.entry.take() {
            self.memory.moving().leave(number);
        }
    }

    fn enter(&mut self) -> u64 {
        let enter = || {
            let (number, pulse) = self.memory.moving().enter();
            Entry { number, bytes: 0, pulse }
        };
        self.entry.get_or_insert_with(enter).number
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Waits in line for more room. Dropped, it has left the line; what it was given meanwhile is there.
struct InLine<'r> {
    room: &'r mut Room,
    number: u64,
    more: u64,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        let was_let_in = self.room.memory.moving().waiting.remove(&self.number).is_none();
        if let Some(entry) = self.room.entry.as_mut().filter(|_| was_let_in) {
            entry.bytes += self.more;
        }
    }
}

/// While it is the peer's turn to move something.
struct PeersTurn<'p>(&'p Pulse);

impl<'p> PeersTurn<'p> {
    fn begin(pulse: &'p Pulse) -> Self {
        pulse.depends_on_peer.store(true, Ordering::Relaxed);
        Self(pulse)
    }
}

impl Drop for PeersTurn<'_> {
    fn drop(&mut self) {
        self.0.depends_on_peer.store(false, Ordering::Relaxed);
    }
}

impl Moving {
    fn enter(&mut self) -> (u64, Arc<Pulse>) {
        let (number, pulse) = (self.next, Arc::<Pulse>::default());
        self.next += 1;
        let since = Instant::now();
        let transfer = Transfer {
            bytes: 0,
            pulse: pulse.clone(),
            seen: 0,
            since,
            depended_on_peer: false,
            slow: None,
        };
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

    /// What one transfer has is another one's, which is as old as the older of the two is not: it has no
    /// better place than before.
    fn merge(&mut self, into: u64, from: u64) {
        let bytes = self.transfers.remove(&from).map_or(0, |transfer| transfer.bytes);
        if let Some(transfer) = self.transfers.get_mut(&into) {
            transfer.bytes += bytes;
        }
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

    /// Cuts off the slowest, as far as those in line need their room; the first does it for all.
    fn look(&mut self, number: u64) {
        if self.waiting.first_key_value().is_none_or(|(&first, _)| first != number) {
            return;
        }
        let now = Instant::now();
        self.transfers.values_mut().for_each(|transfer| transfer.look(now));
        let leaving = self.transfers.iter().filter(|(number, transfer)| {
            // One in line sees that it was cut off only once it has what it waits for.
            transfer.is_cut_off() && !self.waiting.contains_key(number)
        });
        let leaving: u64 = leaving.map(|(_, transfer)| transfer.bytes).sum();
        let wanted: u64 = self.waiting.values().take(LET_IN_MAX).map(|it| it.bytes).sum();
        let mut missing = (self.used - leaving).saturating_add(wanted).saturating_sub(self.max);
        let share = self.max / self.transfers.len().max(1) as u64;
        let transfers = self.transfers.values().filter(|transfer| !transfer.is_cut_off());
        let mut slowest: Vec<_> =
            transfers.filter_map(|transfer| Some((transfer.pace(share)?, transfer))).collect();
        slowest.sort_by_key(|(pace, transfer)| (*pace, Reverse(transfer.bytes)));
        for (_, transfer) in slowest {
            if missing == 0 {
                break;
            }
            missing = missing.saturating_sub(transfer.bytes);
            transfer.pulse.cut_off.cancel();
        }
    }
}

impl Transfer {
    /// Measures how much it moves.
    fn look(&mut self, now: Instant) {
        let Pulse { moved, depends_on_peer, .. } = &*self.pulse;
        let now_moved = moved.load(Ordering::Relaxed);
        let moved = now_moved - self.seen;
        let depends_on_peer = depends_on_peer.load(Ordering::Relaxed);
        let depended_on_peer = std::mem::replace(&mut self.depended_on_peer, depends_on_peer);
        let is_well = !(depends_on_peer && depended_on_peer) || moved >= STALL_BYTES;
        if is_well || now - self.since >= STALL {
            self.slow = (!is_well).then_some(moved);
            (self.seen, self.since) = (now_moved, now);
        }
    }

    fn is_cut_off(&self) -> bool {
        self.pulse.cut_off.is_cancelled()
    }

    /// If it may be cut off: how much it moves for what it holds. Of those that stand still, the
    /// largest goes first; a client on a slow line that holds no more than its share, and is in time
    /// with that, has to make way for nobody.
    fn pace(&self, share: u64) -> Option<u64> {
        let moved = self.slow.filter(|_| self.bytes > 0)?;
        let is_in_time = moved.saturating_mul(STALLS_MAX) >= self.bytes;
        (self.bytes > share || !is_in_time).then(|| (moved << 20) / self.bytes)
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
    async fn who_is_slow_is_not_cut_off_for_those_that_stand_still() {
        let memory = memory(64 * MIB);
        let [mut slow, mut large, mut small, mut next] = [(); 4].map(|()| memory.room());
        assert!(slow.try_grow_to(128 << 10) && large.try_grow_to(4 * MIB));
        assert!(small.try_grow_to(3 * MIB));
        let never = || std::future::pending::<()>();
        let trickles = async {
            for _ in 0..20 {
                slow.unless_cut_off(tokio::time::sleep(STALL / 4)).await?;
                slow.moved(12 << 10);
            }
            Ok::<_, CutOff>(())
        };
        let stalls = async {
            let ended = large.unless_cut_off(never()).await;
            large.clear();
            ended
        };
        let stays = timeout(STALL * 4, small.unless_cut_off(never()));
        let waits = next.grow_to(4 * MIB);
        let (trickled, stalled, stayed, ()) = tokio::join!(trickles, stalls, stays, waits);
        assert_eq!((trickled, stalled), (Ok(()), Err(CutOff)));
        assert!(stayed.is_err(), "nobody needs its room once the largest has left");
    }

    #[tokio::test(start_paused = true)]
    async fn whose_turn_has_just_come_has_its_time() {
        let memory = memory(32 * MIB);
        let [mut kept, mut next] = [(); 2].map(|()| memory.room());
        assert!(kept.try_grow_to(4 * MIB));
        // The server has its own work to do first.
        tokio::time::sleep(STALL * 3).await;
        let stalls = async {
            let begin = Instant::now();
            let ended = kept.unless_cut_off(std::future::pending::<()>()).await;
            kept.clear();
            (ended, begin.elapsed())
        };
        let ((ended, time), ()) = tokio::join!(stalls, next.grow_to(4 * MIB));
        assert_eq!(ended, Err(CutOff));
        assert!(time >= STALL, "it was cut off after {time:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_trickles_makes_way_when_nobody_stands_still() {
        let memory = memory(64 * MIB);
        let mut rooms: Vec<_> = (0..64).map(|_| memory.room()).collect();
        assert!(rooms.iter_mut().all(|room| room.try_grow_to(128 << 10)));
        let [mut first, mut next] = [(); 2].map(|()| memory.room());
        let trickle = |mut room: Room| async move {
            for _ in 0..30 {
                if room.unless_cut_off(tokio::time::sleep(STALL / 4)).await.is_err() {
                    return true;
                }
                room.moved(1);
            }
            room.clear();
            false
        };
        let mut tricklers = tokio::task::JoinSet::new();
        rooms.into_iter().for_each(|room| drop(tricklers.spawn(trickle(room))));
        let waiting = async {
            first.grow_to(MIB).await;
            next.grow_to(MIB).await;
        };
        timeout(STALL * 4, waiting).await.expect("they do not wait for the tricklers' end");
        let cut_off = tricklers.join_all().await.into_iter().filter(|is_cut_off| *is_cut_off);
        assert_eq!(cut_off.count(), 16, "no more than was needed");
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
