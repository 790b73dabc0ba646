//! Many short lives of a journal on a disk that crashes between any two calls, each from one seed.
//!
//! `MANYHANDS_SIM_SEEDS=n` runs more of them.

use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::disk::{Disk, Fault};
use super::random::Random;
use super::replica::{Replica, body};
use crate::clock::Clock;
use crate::journal::{
    Class, Desk, Durability, Durable, Entry, Journal, JournalError, Location, Lsn, Opened, Options,
    Record, Recovered, ResultTask, TaskOptions, Upkeep, open,
};
use crate::planted::{self, Bug};

const OPTIONS: Options = Options {
    segment_bytes: 4096,
    frame_bytes_max: 1024,
    spares_max: 3,
    checkpoint_bytes_min: 0,
    checkpoint_chunk_bytes: 1 << 20,
    sparse_percent: 40,
    sync_interval: Duration::ZERO,
};
const QUEUES: u64 = 3;

/// What happened, over all lives; each must, or the simulation shows nothing.
#[derive(Debug, Default)]
struct Seen(BTreeMap<&'static str, u64>);

impl Seen {
    fn when(&mut self, happened: bool, what: &'static str) {
        *self.0.entry(what).or_default() += u64::from(happened);
    }
}

/// What a journal was told, and what it answered.
#[derive(Debug)]
struct Past {
    /// The state after each call.
    states: Vec<(Lsn, Replica)>,
    on_disk: Lsn,
    /// Counts as long as the power stays on.
    written: Lsn,
    epoch: u64,
}

impl Past {
    fn new() -> Self {
        let states = vec![(Lsn(0), Replica::default())];
        Self { states, on_disk: Lsn(0), written: Lsn(0), epoch: 0 }
    }

    fn now(&self) -> &Replica {
        &self.states.last().unwrap().1
    }

    /// Judges what came back, and goes on from there. `starts` are the frames with which epochs
    /// began.
    fn judge(&mut self, recovered: &Recovered, found: Replica, starts: &[(u64, Lsn)]) {
        // A start that was interrupted has cut what comes after its own frame.
        let mut starts = starts.iter().filter(|(epoch, _)| *epoch > self.epoch);
        let last = starts.next().map_or(recovered.lsn, |(_, lsn)| Lsn(lsn.0 - 1));
        let promised = self.written.max(self.on_disk);
        assert!(last >= promised, "frame {last} is the last, {promised} was durable");
        assert!(recovered.epoch > self.epoch, "epoch {} again", recovered.epoch);
        self.states.retain(|(at, _)| *at <= last);
        assert_eq!(found.facts(), self.now().facts(), "at frame {last}");
        for queue in 0..QUEUES {
            assert_eq!(found.next_task(queue), self.now().next_task(queue));
        }
        let epoch_frame = recovered.lsn.next();
        self.states = vec![(epoch_frame, found)];
        (self.on_disk, self.written) = (epoch_frame, epoch_frame);
        self.epoch = recovered.epoch;
    }
}

/// One run of the server.
struct Life<'w> {
    journal: Journal,
    desk: Arc<Mutex<Desk>>,
    upkeep: Upkeep,
    past: &'w mut Past,
    random: &'w mut Random,
    seen: &'w mut Seen,
    waiting: Vec<(Lsn, Durability, Durable)>,
}

impl Life<'_> {
    /// Returns whether it could go on.
    fn act(&mut self) -> bool {
        let done = match self.random.below(100) {
            0..45 => {
                self.call();
                Ok(())
            }
            45..70 => self.write(),
            70..74 => self.desk().writer().sync(),
            74..80 => {
                let failed = self.upkeep.step().is_err();
                self.seen.when(failed, "no spare could be had");
                Ok(())
            }
            80..88 => {
                self.checkpoint();
                Ok(())
            }
            _ => {
                self.read();
                Ok(())
            }
        };
        self.listen();
        done.is_ok() && self.journal.failure().is_none()
    }

    /// Does the writer's next step, or lets somebody else do it.
    fn write(&mut self) -> Result<(), JournalError> {
        let before = self.journal.reached(Durability::Os);
        if self.random.percent(50) {
            self.journal.write_here();
        }
        let is_written = before < self.journal.reached(Durability::Os);
        self.seen.when(is_written, "a frame was not written by the writer");
        if is_written { Ok(()) } else { self.desk().step().map(drop) }
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap()
    }

    fn call(&mut self) {
        let mut next = self.past.now().clone();
        let bytes: Vec<u8> = (0..=255).cycle().take(self.random.below(400)).collect();
        let bytes = bytes.repeat(if self.random.percent(5) { 5 } else { 1 });
        let mut class = Class::Settle;
        let mut records = Vec::new();
        for _ in 0..=self.random.below(3) {
            let (record, is_put) = self.record(&next, &bytes);
            if is_put {
                class = Class::Admit;
            }
            // Its place is not known yet; only what it does to the others matters here.
            next.apply(&record, record.body().map(|_| NOWHERE));
            records.push(record);
        }
        let bytes_max = records.iter().map(Record::bytes_max).sum();
        if !self.journal.has_room(class, bytes_max) {
            let what = if class == Class::Admit { "a put was refused" } else { "reserve used up" };
            return self.seen.when(true, what);
        }
        let levels = [Durability::Os, Durability::Disk];
        let durability = levels[self.random.below(2)];
        self.append(&records, durability);
        let reserve = self.journal.has_room(Class::Result, 100) || self.journal.failure().is_some();
        assert!(reserve || class == Class::Settle, "a put took what is kept for settlements");
    }

    fn record<'r>(&mut self, state: &Replica, bytes: &'r [u8]) -> (Record<'r>, bool) {
        let queue = self.random.next() % QUEUES;
        let task = state.next_task(queue);
        let options = TaskOptions::default();
        let old = state.tasks.len().checked_sub(1).map(|last| self.random.below(last + 1));
        let Some((&(from, old), kept)) = old.and_then(|nth| state.tasks.iter().nth(nth)) else {
            return (Record::Put { queue, task, options, body: body(bytes) }, true);
        };
        let cause = "worker died";
        match self.random.below(20) {
            0..8 if state.tasks.len() < 30 => {
                (Record::Put { queue, task, options, body: body(bytes) }, true)
            }
            8..11 => {
                let result = Some(ResultTask { queue, task, options, body: body(bytes) });
                (Record::Ack { queue: from, task: old, attempt: 0, result }, true)
            }
            11 | 12 => {
                let attempt = kept.attempt + 1;
                (
                    Record::Returned { queue: from, task: old, attempt, not_before: None, cause },
                    false,
                )
            }
            13 => (
                Record::Dead { queue: from, task: old, to_queue: queue, to_task: task, cause },
                false,
            ),
            14 if self.random.percent(50) => {
                let (to_queue, to_task) = (queue, task);
                (Record::Redriven { queue: from, task: old, to_queue, to_task }, false)
            }
            14 => (Record::Purged { queue, before: task / 2, kept: vec![0, 1].into() }, false),
            _ => (Record::Ack { queue: from, task: old, attempt: 0, result: None }, false),
        }
    }

    fn append(&mut self, records: &[Record<'_>], durability: Durability) {
        let mut locations = Vec::new();
        let lsn = self.journal.append(records, durability, &mut locations);
        let mut state = self.past.now().clone();
        let mut locations = locations.into_iter();
        for record in records {
            state.apply(record, record.body().and_then(|_| locations.next()));
        }
        assert_eq!(locations.next(), None);
        self.past.states.push((lsn, state));
        self.waiting.push((lsn, durability, self.journal.durable(lsn, durability)));
    }

    /// Hears what became durable.
    fn listen(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        let failed = self.journal.failure().is_some();
        let Past { on_disk, written, .. } = &mut *self.past;
        self.waiting.retain_mut(|(lsn, durability, durable)| {
            match Pin::new(durable).poll(&mut context) {
                Poll::Pending => {
                    assert!(!failed, "frame {lsn} was never answered");
                    return true;
                }
                Poll::Ready(Err(error)) => assert!(failed, "{error}"),
                Poll::Ready(Ok(())) => {
                    *written = (*written).max(*lsn);
                    if *durability == Durability::Disk {
                        *on_disk = (*on_disk).max(*lsn);
                    }
                }
            }
            false
        });
    }

    fn checkpoint(&mut self) {
        let mark = self.journal.mark();
        let snapshot = self.past.now().clone();
        let mut records = snapshot.checkpoint();
        // The log goes on while the checkpoint is written, and is never behind it in the end.
        let (desk, random) = (&self.desk, &mut *self.random);
        let step = || desk.lock().unwrap().writer().step();
        let records = std::iter::from_fn(|| {
            let next = records.next();
            while (next.is_none() || random.percent(10)) && matches!(step(), Ok(true)) {}
            if next.is_none() {
                desk.lock().unwrap().writer().sync().ok();
            }
            next
        });
        match self.journal.checkpoint(mark, records) {
            Ok(done) => {
                self.seen.when(true, "a checkpoint was made");
                self.seen.when(done.freed > 0, "segments were freed");
                self.move_stragglers(&done.stragglers);
            }
            Err(error) => self.seen.when(error.is_full(), "no room for a checkpoint"),
        }
    }

    fn move_stragglers(&mut self, stragglers: &[crate::journal::Straggler]) {
        self.seen.when(!stragglers.is_empty(), "stragglers were moved");
        for straggler in stragglers {
            let Ok(bytes) = self.journal.bodies().read(straggler.location) else { continue };
            let (queue, task) = (straggler.queue, straggler.task);
            let record = Record::Moved { queue, task, body: body(&bytes) };
            if self.journal.has_room(Class::Copy, record.bytes_max()) {
                self.append(&[record], Durability::Os);
            }
        }
    }

    fn read(&mut self) {
        // Sometimes of a task that was settled long ago.
        let written = self.past.written;
        let states: Vec<_> = self.past.states.iter().filter(|(lsn, _)| *lsn <= written).collect();
        let Some(last) = states.len().checked_sub(1) else { return };
        let old = if self.random.percent(20) { self.random.below(last + 1) } else { last };
        let (_, state) = states[old];
        let nth = self.random.below(state.tasks.len().max(1));
        let Some(kept) = state.tasks.values().nth(nth) else { return };
        match self.journal.bodies().read(kept.location) {
            Ok(body) => assert_eq!(body, kept.body),
            Err(JournalError::Gone) => self.seen.when(true, "a body was gone"),
            Err(error) => panic!("{error}"),
        }
    }
}

const NOWHERE: Location = Location { segment: 0, offset: 0, len: 0 };

/// Starts the server and lets it run until the end of its life, or the fault.
fn live(disk: &Disk, past: &mut Past, random: &mut Random, seen: &mut Seen, steps: usize) {
    let mut found = Replica::default();
    let mut starts = Vec::new();
    let visit = &mut |entry: Entry<'_>| {
        if let Record::Epoch { epoch } = entry.record {
            starts.push((epoch, entry.lsn));
        }
        found.replay(&entry);
    };
    let opened = open(Arc::new(disk.clone()), OPTIONS, 42, visit);
    let Opened { journal, writer, upkeep, recovered } = match opened {
        Ok(opened) => opened,
        Err(JournalError::Io { .. } | JournalError::Stopped(_)) => {
            return seen.when(true, "a start was interrupted");
        }
        Err(error) => panic!("{error}"),
    };
    found.read(&journal.bodies());
    seen.when(recovered.torn.is_some(), "a torn frame was cut");
    seen.when(recovered.lsn < past.states.last().unwrap().0, "calls without an answer were lost");
    past.judge(&recovered, found, &starts);
    let desk = journal.share(writer, Clock::manual(0));
    let mut life = Life { journal, desk, upkeep, past, random, seen, waiting: Vec::new() };
    let goes_on = (0..steps).all(|_| life.act());
    if life.journal.failure().is_some() {
        let calls = disk.calls();
        life.append(&[Record::Removed { queue: QUEUES }], Durability::Os);
        life.journal.write_here();
        assert!(life.desk().step().is_err() && life.desk().writer().sync().is_err());
        assert_eq!(disk.calls(), calls, "nothing is tried again");
        life.listen();
    }
    if goes_on && life.random.percent(30) && life.write().is_ok() {
        let Life { desk, journal, past, .. } = life;
        let last = past.states.last().unwrap().0;
        if desk.lock().unwrap().writer().close().is_ok() {
            past.on_disk = past.on_disk.max(last);
        }
        drop(desk);
        let lsn = journal.append(&[Record::Closed], Durability::Os, &mut Vec::new());
        assert!(journal.durable(lsn, Durability::Os).wait().is_err(), "the writer is gone");
    }
}

/// Returns how many calls of the disk the first life takes.
fn run(seed: u64, fault: Option<(u64, Fault)>, disk: &Disk, seen: &mut Seen) -> u64 {
    let mut random = Random::new(seed);
    let mut past = Past::new();
    if let Some((at, fault)) = fault {
        disk.fail(at, fault);
    }
    live(disk, &mut past, &mut random, seen, 60);
    let calls = disk.calls();
    // The same seed has the same first life, whatever comes after it.
    let mut random = Random::new(seed ^ fault.map_or(0, |(at, _)| at << 32));
    for _ in 0..3 {
        if random.percent(50) {
            disk.lose_power(&mut random);
            past.written = past.on_disk;
        } else {
            disk.restart();
        }
        // Crashes while it recovers, too.
        let fault = if random.percent(70) { Fault::Crash } else { Fault::Broken };
        disk.fail(1 + random.next() % 60, fault);
        live(disk, &mut past, &mut random, seen, 20);
    }
    disk.lose_power(&mut random);
    past.written = past.on_disk;
    live(disk, &mut past, &mut random, seen, 0);
    calls
}

struct Saying(u64, Option<(u64, Fault)>);

impl Drop for Saying {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {} with fault {:?}", self.0, self.1);
        }
    }
}

fn seeds(default: u64) -> u64 {
    std::env::var("MANYHANDS_SIM_SEEDS").map_or(default, |seeds| seeds.parse().unwrap())
}

/// Makes every call of the first life fail in turn.
fn fail_everywhere(seeds: std::ops::Range<u64>, fault: Fault, new: fn(u64) -> Disk) -> (u64, Seen) {
    let mut seen = Seen::default();
    let mut points = 0;
    for seed in seeds {
        let calls = {
            let _saying = Saying(seed, None);
            run(seed, None, &new(seed), &mut seen)
        };
        for at in 1..=calls {
            let _saying = Saying(seed, Some((at, fault)));
            run(seed, Some((at, fault)), &new(seed), &mut seen);
        }
        points += calls;
    }
    (points, seen)
}

fn check(points: u64, seen: &Seen, must: &[&str]) {
    eprintln!("{points} points; {seen:?}");
    for what in must {
        assert!(seen.0.get(what).is_some_and(|times| *times > 0), "never: {what}: {seen:?}");
    }
}

#[test]
fn what_was_durable_survives_a_crash_at_any_call_of_the_disk() {
    let (points, seen) = fail_everywhere(0..seeds(12), Fault::Crash, |_| Disk::default());
    let must = [
        "a checkpoint was made",
        "segments were freed",
        "stragglers were moved",
        "a torn frame was cut",
        "calls without an answer were lost",
        "a start was interrupted",
        "a body was gone",
        "a frame was not written by the writer",
    ];
    check(points, &seen, &must);
}

#[test]
fn nothing_is_durable_after_a_call_of_the_disk_that_failed() {
    let seeds = 1_000_000..1_000_000 + seeds(6);
    let (points, seen) = fail_everywhere(seeds, Fault::Broken, |_| Disk::default());
    check(points, &seen, &["a checkpoint was made", "a start was interrupted"]);
}

#[test]
fn a_full_disk_refuses_puts_and_settles_tasks() {
    let seeds = 2_000_000..2_000_000 + seeds(6);
    let new = |seed| Disk::with_capacity(small(seed));
    let (points, seen) = fail_everywhere(seeds, Fault::Crash, new);
    check(
        points,
        &seen,
        &["a put was refused", "no spare could be had", "no room for a checkpoint"],
    );
}

/// Room for five segments, the head, the least reserve, and a part of another segment, in bytes.
fn small(seed: u64) -> usize {
    5 * 4096 + 24 + 1024 + usize::try_from(seed % 5 * 1000).unwrap()
}

#[test]
fn a_seed_gives_the_same_bytes_every_time() {
    for seed in 0..20 {
        let [one, two] = [Disk::default(), Disk::default()];
        for disk in [&one, &two] {
            run(seed, Some((seed * 7, Fault::Crash)), disk, &mut Seen::default());
        }
        assert!(one.files() == two.files(), "seed {seed}");
    }
}

/// Seeds that a planted bug may get through, at most.
const SEEDS_PER_BUG: u64 = 40;

#[test]
fn every_planted_bug_is_found() {
    let (mut found, mut not_found) = (vec![], vec![]);
    for bug in Bug::JOURNAL {
        planted::plant(Some(*bug));
        let seed = (0..SEEDS_PER_BUG).find(|seed| goes_wrong(*seed));
        planted::plant(None);
        match seed {
            Some(seed) => found.push((bug, seed)),
            None => not_found.push(bug),
        }
    }
    eprintln!("found, with the first seed: {found:?}");
    assert!(not_found.is_empty(), "not found: {not_found:?}");
}

/// Whether any fault in the first life of this seed shows that something is wrong.
fn goes_wrong(seed: u64) -> bool {
    let new = || match seed % 4 {
        3 => Disk::with_capacity(small(seed)),
        _ => Disk::default(),
    };
    let lives = |fault| catch_unwind(|| run(seed, fault, &new(), &mut Seen::default()));
    let Ok(calls) = lives(None) else { return true };
    let fault = if seed.is_multiple_of(2) { Fault::Crash } else { Fault::Broken };
    (1..=calls).any(|at| lives(Some((at, fault))).is_err())
}
