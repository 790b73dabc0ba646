//! Writes down what happens in a simulated world, as real clients do.

use std::fmt::Display;

use super::machine::begin;
use super::model::{Answer, CallId, Item, LeaseNumber, Process, SessionNumber};
use super::setting::Setting;
use super::world::{DEAD, NAMES, RESULTS, TASKS};
use crate::queue::{Delivery, Time};

/// Events that can be told apart within a nanosecond.
const SCALE: u64 = 1000;

/// The lines of a history, each with its time.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    lines: Vec<String>,
    now: u128,
}

impl Recorder {
    pub(super) fn lines(&self) -> &[String] {
        &self.lines
    }

    fn say(&mut self, what: impl Display) {
        // No two things happen at one time.
        self.now += 1;
        self.lines.push(format!("{} {what}", self.now));
    }

    /// Time goes on.
    pub(super) fn now(&mut self, now: Time) {
        self.now = self.now.max(now.since(begin()).as_nanos() * u128::from(SCALE));
    }

    pub(super) fn queues(&mut self, Setting { tasks, results, dead: letters, .. }: &Setting) {
        let of = tasks.results.as_ref().map_or("", |_| " results=results");
        let at_once = if tasks.delivery == Delivery::Cpython { " cpython" } else { "" };
        let sorted = if results.ordered { " sorted" } else { "" };
        let dead = NAMES[DEAD];
        let max_run = tasks.max_run.map(|max_run| max_run.as_nanos() * u128::from(SCALE));
        let max_run = max_run.map_or_else(String::new, |max_run| format!(" max_run={max_run}"));
        self.say(format_args!("queue {} dead={dead}{of}{at_once}{max_run}", NAMES[TASKS]));
        self.say(format_args!("queue {}{sorted}", NAMES[RESULTS]));
        let expires = if letters.expires.is_some() { " expires" } else { "" };
        self.say(format_args!("queue {dead} sorted{expires}"));
    }

    pub(super) fn enter(&mut self, process: Process, session: SessionNumber) {
        self.say(format_args!("session {process} {session}"));
    }

    pub(super) fn exited(&mut self, process: Process) {
        self.say(format_args!("exited {process}"));
    }

    pub(super) fn killed(&mut self, process: Process) {
        self.say(format_args!("killed {process}"));
    }

    pub(super) fn put(
        &mut self,
        session: SessionNumber,
        call: CallId,
        queue: usize,
        item: Item,
        of: Option<Item>,
        is_special: bool,
    ) {
        let of = of.map_or_else(String::new, |of| format!(" of={of}"));
        let special = if is_special { " special" } else { "" };
        self.say(format_args!("put {session} {call} {} {item}{of}{special}", NAMES[queue]));
    }

    /// One of a batch of a client of our own that settles nothing by it.
    pub(super) fn put_alone(
        &mut self,
        session: SessionNumber,
        call: CallId,
        queue: usize,
        item: Item,
        is_special: bool,
    ) {
        let special = if is_special { " special" } else { "" };
        self.say(format_args!("put {session} {call} {} {item}{special} alone", NAMES[queue]));
    }

    pub(super) fn get(&mut self, session: SessionNumber, call: CallId, queue: usize) {
        self.say(format_args!("get {session} {call} {}", NAMES[queue]));
    }

    pub(super) fn task_done(&mut self, session: SessionNumber, call: CallId, queue: usize) {
        self.say(format_args!("done {session} {call} {}", NAMES[queue]));
    }

    pub(super) fn join(&mut self, session: SessionNumber, call: CallId, queue: usize) {
        self.say(format_args!("join {session} {call} {}", NAMES[queue]));
    }

    pub(super) fn answer(&mut self, call: CallId, answer: Answer) {
        match answer {
            Answer::Accepted
            | Answer::Done
            | Answer::Joined
            | Answer::Extended
            | Answer::Started
            | Answer::Count(_) => {
                self.say(format_args!("yes {call}"));
            }
            Answer::Item(item, attempt) => self.say(format_args!("yes {call} {item} {attempt}")),
            Answer::Known
            | Answer::Full
            | Answer::Empty
            | Answer::Stale
            | Answer::Duplicate
            | Answer::NoResults
            | Answer::Wrong
            | Answer::TooManyDone => {
                self.say(format_args!("no {call} {answer:?}"));
            }
        }
    }

    /// A call was done.
    pub(super) fn done(&mut self, call: CallId) {
        self.say(format_args!("yes {call}"));
    }

    /// A call was refused, or there was nothing.
    pub(super) fn refused(&mut self, call: CallId, why: &str) {
        self.say(format_args!("no {call} {why}"));
    }

    /// What was asked for by a client of our own.
    pub(super) fn take(&mut self, session: SessionNumber, call: CallId, queue: usize, max: usize) {
        self.say(format_args!("lease {session} {call} {} {max}", NAMES[queue]));
    }

    pub(super) fn taken(
        &mut self,
        verb: &str,
        call: CallId,
        item: Item,
        attempt: u32,
        lease: Option<LeaseNumber>,
    ) {
        let lease = lease.map_or_else(String::new, |lease| format!(" {lease}"));
        self.say(format_args!("{verb} {call} {item} {attempt}{lease}"));
    }

    pub(super) fn ack(
        &mut self,
        session: SessionNumber,
        call: CallId,
        queue: usize,
        item: Item,
        lease: LeaseNumber,
        result: Option<Item>,
    ) {
        let result = result.map(|result| format!(" {} {result}", NAMES[RESULTS]));
        let (name, result) = (NAMES[queue], result.unwrap_or_default());
        self.say(format_args!("ack {session} {call} {name} {item} {lease}{result}"));
    }

    pub(super) fn nack(
        &mut self,
        session: SessionNumber,
        call: CallId,
        queue: usize,
        item: Item,
        lease: LeaseNumber,
    ) {
        self.say(format_args!("nack {session} {call} {} {item} {lease}", NAMES[queue]));
    }

    pub(super) fn redrive(&mut self, session: SessionNumber, call: CallId, queue: usize) {
        self.say(format_args!("redrive {session} {call} {}", NAMES[queue]));
    }

    pub(super) fn purge(&mut self, session: SessionNumber, call: CallId, queue: usize) {
        self.say(format_args!("purge {session} {call} {}", NAMES[queue]));
    }

    pub(super) fn crash(&mut self) {
        self.say("crash");
    }

    pub(super) fn left(&mut self, queue: usize, item: Item) {
        self.say(format_args!("left {} {item}", NAMES[queue]));
    }
}
