//! The lives of a server with a disk: it is killed, the power fails, the disk fails; then it is there
//! again, with everything that somebody was told of.
//!
//! Every state that the model was in is remembered. What comes back after a crash must be one of
//! them, and none from before the last promise.

use std::collections::BTreeMap;
use std::time::Duration;

use super::machine::Machine;
use super::model::{Answer, Item, Kept, Model};
use super::world::{Verdict, World, Wrong, demand};
use crate::journal::Lsn;
use crate::journal::tests::disk::Fault;

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
        let mut past = Self { states: vec![], promised: 0, first: BTreeMap::new() };
        past.note(model, lsn);
        past
    }

    /// The number of the last state.
    pub(super) fn now(&self) -> usize {
        self.states.len() - 1
    }

    /// Remembers how the model is now; whether that would be kept in another way than before.
    pub(super) fn note(&mut self, model: &Model, lsn: Lsn) -> bool {
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
            Answer::Known | Answer::Joined | Answer::Empty | Answer::Full => {
                due.changed.then_some(due.at)
            }
            Answer::Stale | Answer::TooManyDone => None,
        };
        let Some(promised) = promised else { return Ok(()) };
        let lsn = self.states.get(promised).map_or(Lsn::default(), |state| state.lsn);
        demand!(lsn <= durable, "{:?} was told before frame {lsn} is durable", due.answer);
        self.promised = self.promised.max(promised);
        Ok(())
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
        if work(&mut self.machine) && self.machine.keep_room() {
            return self.compare();
        }
        self.see("the disk failed");
        // What was durable before that may still be told.
        self.compare()?;
        self.crash()
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
        self.see(if power { "the power failed" } else { "the server was killed" });
        let jump = [ahead, behind].map(Duration::from_millis);
        self.resume(now, jump)
    }

    /// Finds out which of the states came back, and goes on from there.
    fn resume(&mut self, now: crate::queue::Time, [ahead, behind]: [Duration; 2]) -> Verdict {
        let kept = self.machine.kept();
        let Some((at, model)) = self.past.find(&kept) else {
            let Past { states, promised, .. } = &self.past;
            let states: Vec<_> = states.iter().skip(*promised).map(|it| &it.kept).collect();
            return Err(Wrong(format!("{kept:?} came back, which is none of {states:#?}")));
        };
        let lost = self.past.now() - at;
        self.model = model.clone();
        if lost > 0 {
            self.see("what nobody was told of was lost");
        }
        self.model.restart(now, ahead, behind);
        self.past = Past::new(&self.model, self.machine.durable());
        self.armed = self.machine.engine.arm();
        self.history.now(now);
        for between in self.model.pass(now) {
            self.past.note(&between, self.machine.appended());
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
        self.work(Machine::sync)?;
        demand!(self.due.is_empty(), "it is durable, and nobody was told: {:?}", self.due);
        Ok(())
    }
}
