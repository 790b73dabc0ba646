//! The lives of a server with a disk: it is killed, the power fails, the disk fails; then it is there
//! again, with everything that somebody was told of.
//!
//! Every state that the model was in is remembered. What comes back after a crash must be one of
//! them, and none from before the last promise.

use std::collections::BTreeMap;
use std::time::Duration;

use super::machine::Machine;
use super::model::{Answer, Held, Item, Kept, Model};
use super::setting::Action;
use super::world::{Verdict, World, Wrong, demand};
use crate::journal::Lsn;
use crate::journal::tests::disk::Fault;

/// Syncs after which everybody is told who waits for nothing else: what a batch brings may be
/// followed by more.
const SYNCS_MAX: usize = 10;

/// An answer that a client has not heard yet.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) answer: Answer,
    /// The state in which it was given.
    pub(super) at: usize,
    /// Whether that state was new.
    pub(super) changed: bool,
}

/// The states since the last start.
pub(super) struct Past {
    states: Vec<State>,
    /// The first one that may come back.
    promised: usize,
    /// The first one that may come back if nothing but the process ends.
    written: usize,
    /// In which state each item was there for the first time.
    first: BTreeMap<Item, usize>,
}

struct State {
    kept: Kept,
    model: Model,
    /// The frame that says so.
    lsn: Lsn,
}

impl Past {
    pub(super) fn new(model: &Model, lsn: Lsn) -> Self {
        let mut past = Self { states: vec![], promised: 0, written: 0, first: BTreeMap::new() };
        past.remember(model, lsn);
        past
    }

    /// The number of the last state.
    pub(super) fn now(&self) -> usize {
        self.states.len() - 1
    }

    /// The first state in which all of these leases had begun.
    pub(super) fn first_with(&self, leases: &[Held]) -> usize {
        let last = leases.iter().map(|held| held.number()).max();
        self.states.partition_point(|state| Some(state.model.last_lease()) < last)
    }

    /// Remembers how the model is now; whether that would be kept in another way than before.
    pub(super) fn remember(&mut self, model: &Model, lsn: Lsn) -> bool {
        let kept = model.kept();
        if let Some(last) = self.states.last_mut().filter(|last| last.kept == kept) {
            last.model.clone_from(model);
            return false;
        }
        for (_, item, _) in &kept.tasks {
            self.first.entry(*item).or_insert(self.states.len());
        }
        self.states.push(State { kept, model: model.clone(), lsn });
        true
    }

    /// Whether the time of day matters to what may come back.
    fn has_dates(&self) -> bool {
        self.states.iter().skip(self.promised).any(|state| state.model.has_dates)
    }

    /// A client was told something, when frames up to `durable` were.
    pub(super) fn promise(&mut self, due: &Due, durable: Lsn) -> Verdict {
        let promised = match due.answer {
            Answer::Item(item, _) => self.first.get(&item).copied(),
            Answer::Accepted | Answer::Done => Some(due.at),
            // What others did to other queues before is no part of these.
            Answer::Known | Answer::Joined | Answer::Empty | Answer::Full | Answer::Count(_) => {
                due.changed.then_some(due.at)
            }
            Answer::Stale
            | Answer::Duplicate
            | Answer::NoResults
            | Answer::Wrong
            | Answer::Extended
            | Answer::TooManyDone => None,
        };
        let Some(promised) = promised else { return Ok(()) };
        let lsn = self.states.get(promised).map_or(Lsn::default(), |state| state.lsn);
        demand!(lsn <= durable, "{:?} was told before frame {lsn} is durable", due.answer);
        self.promised = self.promised.max(promised);
        Ok(())
    }

    /// A client was told of a lease, when frames up to `written` were with the system.
    pub(super) fn promise_written(&mut self, state: usize, written: Lsn) -> Verdict {
        let lsn = self.states.get(state).map_or(Lsn::default(), |state| state.lsn);
        demand!(lsn <= written, "a lease was told before frame {lsn} is written");
        self.written = self.written.max(state);
        Ok(())
    }

    /// Nothing but the process has ended.
    fn keep_written(&mut self) {
        self.promised = self.promised.max(self.written);
    }

    /// The last of the states that may come back which is this one.
    fn find(&self, kept: &Kept) -> Option<(usize, &Model)> {
        let states = self.states.iter().enumerate().skip(self.promised);
        states.rev().find(|(_, state)| state.kept == *kept).map(|(at, state)| (at, &state.model))
    }
}

impl World {
    /// The disk does something, and dies of it perhaps.
    pub(super) fn work(&mut self, work: impl FnOnce(&mut Machine) -> bool) -> Verdict {
        if work(&mut self.machine) && self.machine.keep_room() && !self.disk.is_dead() {
            // Segments that were let go make no room on a disk that others fill.
            let is_over = self.model.full && !self.machine.take_room();
            return if is_over { self.fill() } else { self.compare() };
        }
        self.see("the disk failed");
        // What was durable before that may still be told.
        self.compare()?;
        self.crash()
    }

    /// Sees to it that the journal has as much room for puts as the model thinks: all or none.
    pub(super) fn provide_room(&mut self) -> Verdict {
        let is_provided = if !self.model.full {
            self.machine.keep_room()
        } else if self.machine.take_room() {
            true
        } else {
            return self.fill();
        };
        if is_provided && !self.disk.is_dead() && !self.machine.has_failed() {
            return Ok(());
        }
        self.see("the disk failed");
        self.crash()
    }

    /// The disk is full from now on, or not any more. What is there can be settled all the same.
    pub(super) fn fill(&mut self) -> Verdict {
        self.model.full ^= true;
        if self.model.full {
            self.see("the disk was full");
            return self.provide_room();
        }
        self.machine.give_room();
        if !self.machine.keep_room() {
            self.see("the disk failed");
            return self.crash();
        }
        self.machine.engine.let_puts_in();
        self.model.let_puts_in();
        self.work(|_| true)
    }

    /// A checkpoint begins to be written, or goes on for a while.
    pub(super) fn checkpoint(&mut self) -> Verdict {
        if !self.machine.is_in_checkpoint() {
            self.see("a checkpoint");
        }
        let steps = if self.setting.is_calm { [1, 10, 60, 60] } else { [1, 1, 4, 60] };
        for _ in 0..steps[self.random.below(4)] {
            let mut done = None;
            self.work(|machine| {
                done = machine.checkpoint();
                !machine.has_failed()
            })?;
            match done {
                None if self.machine.is_in_checkpoint() => {}
                None => break,
                Some(Ok(done)) => {
                    self.see("a checkpoint ended");
                    if done.freed > 0 {
                        self.see("segments were let go");
                    }
                    if !done.stragglers.is_empty() {
                        self.see("bodies were copied forward");
                    }
                    // Before another one, or more of the log, hides what is wrong with it.
                    let odds = if self.setting.is_calm { 0 } else { 25 };
                    if self.setting.happens(Action::Crash) && self.random.percent(odds) {
                        return self.crash();
                    }
                    break;
                }
                Some(Err(_)) => {
                    self.see("a checkpoint failed");
                    break;
                }
            }
        }
        Ok(())
    }

    /// Decides whether and when the disk will fail in this life.
    pub(super) fn tempt_fate(&mut self) {
        if self.setting.has_disk && self.random.percent(40) {
            let fault = if self.random.percent(70) { Fault::Crash } else { Fault::Broken };
            self.disk.fail(1 + self.random.next() % 60, fault);
        }
    }

    /// The server is killed, or the power fails; then it is started, as often as it takes.
    pub(super) fn crash(&mut self) -> Verdict {
        self.history.crash();
        let mut power = false;
        self.machine.end();
        self.clients.clear();
        self.answers.clear();
        self.due.clear();
        self.told_beside.clear();
        self.told_leases = None;
        let down = Duration::from_millis(self.random.next() % 10_000);
        let now = self.model.now + down;
        // The time of day may have been set meanwhile.
        let day = 24 * 3600 * 1000;
        let (ahead, behind) = match self.random.below(5) {
            0 => (day, 0),
            1 if !self.past.has_dates() => (0, day),
            _ => (0, 0),
        };
        self.unix = self.unix + ahead - behind;
        self.machine = loop {
            if self.random.percent(50) {
                power = true;
                self.disk.lose_power(&mut self.random);
            } else {
                self.disk.restart();
            }
            self.tempt_fate();
            if let Some(machine) = Machine::on(&self.disk, &self.setting, now, self.unix) {
                break machine;
            }
            self.see("a start was interrupted");
        };
        if !power {
            self.past.keep_written();
        }
        self.see(if power { "the power failed" } else { "the server was killed" });
        let jump = [ahead, behind].map(Duration::from_millis);
        self.resume(now, jump, power)
    }

    /// Finds out which of the states came back, and goes on from there.
    fn resume(
        &mut self,
        now: crate::queue::Time,
        [ahead, behind]: [Duration; 2],
        power: bool,
    ) -> Verdict {
        let kept = self.machine.kept();
        let Some((at, model)) = self.past.find(&kept) else {
            let Past { states, promised, .. } = &self.past;
            let states = states.iter().skip(*promised).map(|it| it.kept.unlike(&kept));
            let states: Vec<_> = states.collect();
            return Err(Wrong(format!("what came back is none of the states: {states:#?}")));
        };
        let lost = self.past.now() - at;
        let mut model = model.clone();
        model.number_leases_after(&self.model);
        self.model = model;
        if lost > 0 {
            self.see("what nobody was told of was lost");
        }
        self.model.restart(now, ahead, behind);
        self.decide_doubts(power)?;
        self.past = Past::new(&self.model, self.machine.durable());
        self.armed = self.machine.arm();
        self.history.now(now);
        for between in self.model.pass(now) {
            self.past.remember(&between, self.machine.appended());
        }
        self.compare()
    }

    /// No fault happens any more. What is there comes back as it is.
    pub(super) fn be_kind(&mut self) -> Verdict {
        if !self.setting.has_disk {
            return Ok(());
        }
        self.work(Machine::sync)?;
        self.crash()?;
        self.disk.restart();
        self.sync()
    }

    /// Makes everything durable, and what is done once something is.
    pub(super) fn sync(&mut self) -> Verdict {
        for _ in 0..SYNCS_MAX {
            self.work(Machine::sync)?;
            if self.clients.iter().all(|client| client.replies.is_empty()) {
                break;
            }
        }
        demand!(self.due.is_empty(), "it is durable, and nobody was told: {:?}", self.due);
        Ok(())
    }
}
