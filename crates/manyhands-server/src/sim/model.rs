//! What the server promises, as plainly as it can be said: lists that are looked through, and one
//! rule after the other. The judge of the simulation.
//!
//! A call joins the end of a line, and then whatever can happen does. There is no index, no token
//! table and no notification; time comes as an argument, one instant with something due at a time.

mod credit;
mod leases;
mod queue;
mod tests;
mod time;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use self::credit::Credit;
pub(super) use self::credit::{Push, Pushed};
use self::leases::Back;
use crate::queue::{Delivery, QueueOptions, Random, Time};

/// How long the verdict on a client that is gone waits; `docs/delivery.md`.
const GRACE: Duration = Duration::from_millis(1200);

/// Names an item; no two puts bring the same one.
pub(super) type Item = u32;
/// Names a call.
pub(super) type CallId = u64;
/// Names a session.
pub(super) type SessionNumber = u64;
/// Names a process of a client: it may have one session after the other.
pub(super) type Process = u64;

/// How a call ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Answer {
    Accepted,
    Known,
    Full,
    /// This item, at this attempt.
    Item(Item, u32),
    Empty,
    Stale,
    /// This token settled its task before.
    Duplicate,
    /// There is no queue for a result.
    NoResults,
    /// The call itself makes no sense here.
    Wrong,
    Joined,
    Done,
    TooManyDone,
    /// The lease lasts longer.
    Extended,
    /// Work on the task has begun, which nothing remembers.
    Started,
    /// So many were moved, or dropped.
    Count(u64),
}

/// How long a call waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    No,
    Until(Time),
    Forever,
}

/// What a put asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) key: Option<u8>,
    pub(super) delay: Option<Duration>,
    pub(super) expires: Option<Duration>,
    /// Of no consequence where the order is that of the puts.
    pub(super) priority: Option<i64>,
}

/// How a call takes tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// What its session does next settles them.
    Plain,
    /// Their tokens settle them; so long, if that was asked for.
    Leased(Option<Duration>),
    /// They are settled once they are received.
    ForGood,
}

/// Names a lease.
pub(super) type LeaseNumber = u64;

#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) now: Time,
    /// Spreads pauses as the engine does.
    random: Random,
    queues: Vec<Queue>,
    sessions: BTreeMap<SessionNumber, Session>,
    /// Sessions that ended without a word, and when they are judged.
    silent: Vec<(Time, SessionNumber)>,
    answers: Vec<(CallId, Answer)>,
    /// Given up in this step; they are buried at its end.
    letters: Vec<(usize, Item)>,
    /// Ended without a result in this step.
    resultless: Vec<TaskAt>,
    leases: LeaseNumber,
    /// What has come by credit since it was looked at.
    pushed: Vec<Push>,
    /// What the calls that take by token were given.
    granted: BTreeMap<CallId, Vec<Held>>,
    /// Leases that settled their tasks by token.
    settled: BTreeSet<LeaseNumber>,
    /// Whether there is no room for puts on the disk.
    pub(super) full: bool,
    /// Whether there was a delay or a key. If the time of day is set back, what is over may or may
    /// not begin again after a restart.
    pub(super) has_dates: bool,
}

#[derive(Debug, Clone)]
struct Queue {
    options: QueueOptions,
    results: Option<usize>,
    dead: usize,
    /// In the order of their puts.
    tasks: Vec<Task>,
    /// Results before their turn, with their tasks.
    early: Vec<(TaskAt, Item)>,
    /// Tasks whose results need not be waited for.
    over: BTreeSet<TaskAt>,
    getters: Vec<Getter>,
    credits: Vec<Credit>,
    /// Whether somebody may have begun to wait for what lies with others.
    looks_for_work: bool,
    putters: Vec<Putter>,
    joiners: Vec<CallId>,
    keys: Vec<(Time, u8)>,
    unfinished: u64,
}

#[derive(Debug, Clone)]
struct Task {
    item: Item,
    place: Place,
    failures: u32,
    expires: Option<Time>,
    /// The lease before, if it came back.
    last: Option<LeaseNumber>,
    /// The last one by token that came back, which is what a log knows.
    last_token: Option<LeaseNumber>,
    /// When the lease before began.
    since: Time,
    /// The queue that it came from, if it is a dead letter.
    letter: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Ready,
    Delayed(Time),
    Held { lease: LeaseNumber, until: Option<Time>, answered: bool, terms: Holding },
    Gone,
}

/// On which terms somebody has a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holding {
    since: Time,
    /// How long a lease by token runs after a restart.
    hold: Option<Duration>,
    /// How long it runs if its time is counted anew, beside `max_run`.
    limit: Option<Duration>,
    /// Who was given it by credit and has not started; [`NOBODY`] if that is forgotten.
    lies_with: Option<SessionNumber>,
    /// Who was given it by credit and has started.
    works_on: Option<SessionNumber>,
    /// Its token came by a get, and nobody has said anything about it.
    is_silent: bool,
}

impl Holding {
    fn since(since: Time) -> Self {
        let (hold, limit, lies_with, works_on) = (None, None, None, None);
        Self { since, hold, limit, lies_with, works_on, is_silent: false }
    }
}

/// No session has this number.
const NOBODY: SessionNumber = 0;

/// Queue and position.
type TaskAt = (usize, usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    at: TaskAt,
    pub(super) lease: LeaseNumber,
}

#[derive(Debug, Clone)]
struct Session {
    process: Process,
    hand: Vec<Held>,
    /// What it has by token.
    leases: Vec<Held>,
    /// What its last call gave it.
    last: Vec<Held>,
    is_there: bool,
    has_taken: bool,
}

#[derive(Debug, Clone)]
struct Getter {
    call: CallId,
    session: SessionNumber,
    manner: Manner,
    until: Option<Time>,
    /// It is there for all of a credit.
    is_credit: bool,
}

#[derive(Debug, Clone)]
struct Putter {
    call: CallId,
    session: SessionNumber,
    item: Item,
    asked: Asked,
    until: Option<Time>,
    answers: Option<Held>,
    /// It is an ack.
    by_token: bool,
}

/// Something that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Getter(usize, CallId),
    Putter(usize, CallId),
    Ready(TaskAt),
    Lease(TaskAt),
    Expiry(TaskAt),
    Key(usize, u8),
    Verdict(SessionNumber),
}

/// What has to be there after a restart: queue, item and failures of each task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) tasks: BTreeSet<(usize, Item, u32)>,
    /// What is leased by token, and for how many milliseconds.
    pub(super) leases: BTreeSet<(usize, Item, u128)>,
    pub(super) unfinished: Vec<u64>,
}

impl Kept {
    /// What is here and not there, and the other way round.
    pub(super) fn unlike(&self, other: &Self) -> String {
        let tasks = |one: &Self, other: &Self| -> Vec<_> {
            one.tasks.difference(&other.tasks).copied().collect()
        };
        let leases = |one: &Self, other: &Self| -> Vec<_> {
            one.leases.difference(&other.leases).copied().collect()
        };
        format!(
            "{:?} {:?} {:?} was, {:?} {:?} {:?} is",
            tasks(self, other),
            leases(self, other),
            self.unfinished,
            tasks(other, self),
            leases(other, self),
            other.unfinished
        )
    }
}

/// What is in a queue, for a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) ready: usize,
    pub(super) held: usize,
    pub(super) delayed: usize,
    pub(super) unfinished: u64,
}

impl Model {
    /// `queues` names for each its queue of results and of dead letters.
    pub(super) fn new(
        now: Time,
        queues: Vec<(QueueOptions, Option<usize>, usize)>,
        random: Random,
    ) -> Self {
        let queues = queues.into_iter().map(|(options, results, dead)| Queue {
            options,
            results,
            dead,
            tasks: vec![],
            early: vec![],
            over: BTreeSet::new(),
            getters: vec![],
            credits: vec![],
            looks_for_work: false,
            putters: vec![],
            joiners: vec![],
            keys: vec![],
            unfinished: 0,
        });
        Self {
            now,
            random,
            queues: queues.collect(),
            sessions: BTreeMap::new(),
            silent: vec![],
            answers: vec![],
            letters: vec![],
            resultless: vec![],
            leases: 0,
            pushed: vec![],
            granted: BTreeMap::new(),
            settled: BTreeSet::new(),
            full: false,
            has_dates: false,
        }
    }

    // ---- clients

    pub(super) fn enter(&mut self, session: SessionNumber, process: Process) {
        let entered = Session {
            process,
            hand: vec![],
            leases: vec![],
            last: vec![],
            is_there: true,
            has_taken: false,
        };
        self.sessions.insert(session, entered);
    }

    /// The session ends and its process has said nothing.
    pub(super) fn vanish(&mut self, session: SessionNumber) {
        self.session(session).is_there = false;
        self.silent.push((self.now + GRACE, session));
    }

    /// The session of a client of our own ends, and what it has goes back.
    pub(super) fn leave(&mut self, session: SessionNumber) {
        self.end_credits(session);
        let Session { leases, .. } = self.sessions.remove(&session).unwrap();
        self.give_all_back(leases);
        self.end_step();
    }

    /// What a session took for good has reached it.
    pub(super) fn receive(&mut self, session: SessionNumber) -> Vec<Held> {
        let it = self.session(session);
        let received = std::mem::take(&mut it.last);
        it.hand.retain(|held| !received.contains(held));
        for held in &received {
            if self.is_with(*held) {
                self.settle(*held);
            }
        }
        self.end_step();
        received
    }

    /// The process gives its references back and ends. Returns what it was like in between.
    pub(super) fn exit(&mut self, session: SessionNumber) -> Vec<Self> {
        let mut between = vec![];
        let process = self.session(session).process;
        let mut ended: Vec<_> = self.silent.iter().map(|(_, session)| *session).collect();
        ended.retain(|ended| self.sessions[ended].process == process);
        self.silent.retain(|(_, session)| !ended.contains(session));
        for session in ended.into_iter().chain([session]) {
            let Some(Session { hand, .. }) = self.sessions.remove(&session) else { continue };
            for held in by_queue(hand) {
                if self.queues[held.at.0].results.is_some() {
                    self.give_back(held, Back::Left, None);
                } else {
                    self.settle(held);
                }
            }
            self.end_step();
            between.push(self.clone());
        }
        between
    }

    /// The last reply was not read: the first thing that it brought goes back, unless somebody else has
    /// taken it over.
    pub(super) fn unread(&mut self, session: SessionNumber) {
        let it = self.session(session);
        if it.last.is_empty() {
            return;
        }
        let held = it.last.remove(0);
        if it.hand.contains(&held) || it.leases.contains(&held) {
            it.hand.retain(|other| *other != held);
            it.leases.retain(|other| *other != held);
            self.give_back(held, Back::Unread, None);
            self.end_step();
        }
    }

    /// The client ended, or gave up, and does not wait for this call any more. What it was answered
    /// it has not heard.
    pub(super) fn give_up(
        &mut self,
        session: SessionNumber,
        call: CallId,
        answered: Option<Answer>,
    ) {
        let at = self.answers.iter().position(|(answered, _)| *answered == call);
        if let Some(answer) = answered.or_else(|| at.map(|at| self.answers.remove(at).1)) {
            if let Answer::Item(..) = answer {
                self.unread(session);
            }
            return;
        }
        self.session(session).last.clear();
        for queue in 0..self.queues.len() {
            let it = &mut self.queues[queue];
            it.getters.retain(|getter| getter.call != call);
            it.joiners.retain(|joiner| *joiner != call);
            let putter = it.putters.iter().position(|putter| putter.call == call);
            let putter = putter.map(|at| it.putters.remove(at));
            self.unclaim(putter.and_then(|putter| putter.answers));
            self.run(queue);
        }
    }

    fn session(&mut self, session: SessionNumber) -> &mut Session {
        self.sessions.get_mut(&session).unwrap()
    }

    fn judge(&mut self, session: SessionNumber) {
        let Session { process, hand, .. } = self.sessions.remove(&session).unwrap();
        let mut others = self.sessions.values_mut();
        if let Some(successor) = others.find(|other| other.is_there && other.process == process) {
            // In the order in which they were taken: a session between the two may be judged later.
            successor.hand.extend(hand);
            successor.hand.sort_by_key(|held| held.lease);
            return;
        }
        by_queue(hand).into_iter().for_each(|held| self.give_back(held, Back::Left, None));
    }

    // ---- calls

    pub(super) fn put(
        &mut self,
        session: SessionNumber,
        queue: usize,
        call: CallId,
        (item, asked): (Item, Asked),
        patience: Patience,
    ) {
        let it = self.session(session);
        it.last.clear();
        let hand = it.hand.clone();
        if asked.priority.is_some() {
            // None of these queues has an order.
            return self.answer(call, Answer::Wrong);
        }
        let answers = hand.into_iter().find(|held| self.queues[held.at.0].results == Some(queue));
        let answers = answers.or_else(|| self.inherit(session, queue));
        if let Some(held) = answers
            && !self.claim(held)
        {
            self.session(session).hand.retain(|other| *other != held);
            return self.answer(call, Answer::Stale);
        }
        self.line_up(
            queue,
            Putter { call, session, item, asked, until: None, answers, by_token: false },
            patience,
        );
    }

    /// The same by a batch of a client that says what it settles in other ways.
    pub(super) fn put_alone(
        &mut self,
        session: SessionNumber,
        queue: usize,
        call: CallId,
        (item, asked): (Item, Asked),
        patience: Patience,
    ) {
        self.session(session).last.clear();
        if asked.priority.is_some() {
            return self.answer(call, Answer::Wrong);
        }
        let (answers, until, by_token) = (None, None, true);
        self.line_up(
            queue,
            Putter { call, session, item, asked, until, answers, by_token },
            patience,
        );
    }

    /// The task that this process was cut off with, if this is the first that it says of it.
    fn inherit(&mut self, session: SessionNumber, to: usize) -> Option<Held> {
        let Session { process, has_taken, .. } = *self.session(session);
        if has_taken {
            return None;
        }
        let gone = self.sessions.values().filter(|it| it.process == process && !it.is_there);
        let answered = gone.flat_map(|it| it.hand.iter().copied());
        let held = answered
            .filter(|held| self.queues[held.at.0].results == Some(to))
            .min_by_key(|held| held.lease)?;
        self.sessions.values_mut().for_each(|it| it.hand.retain(|other| *other != held));
        self.session(session).hand.push(held);
        Some(held)
    }

    fn line_up(&mut self, queue: usize, putter: Putter, patience: Patience) {
        let Putter { call, answers, asked, .. } = putter;
        if self.knows(queue, asked.key) {
            return self.accepted(queue, &putter, Answer::Known);
        }
        let until = if let Patience::Until(until) = patience { Some(until) } else { None };
        let putter = Putter { until, ..putter };
        // Those in line wait for the disk where somebody waits for what they bring.
        let goes_first = !self.queues[queue].getters.is_empty() && self.has_room(&putter);
        let line = &mut self.queues[queue].putters;
        line.insert(if goes_first { 0 } else { line.len() }, putter);
        self.run(queue);
        let line = &mut self.queues[queue].putters;
        if patience == Patience::No
            && let Some(at) = line.iter().position(|putter| putter.call == call)
        {
            line.remove(at);
            self.refused(call, answers);
        }
    }

    pub(super) fn get(
        &mut self,
        session: SessionNumber,
        queue: usize,
        call: CallId,
        manner: Manner,
        patience: Patience,
    ) {
        self.session(session).last.clear();
        if self.queues[queue].results.is_none() && manner == Manner::Plain {
            self.settle_all(session, |at| at.0 == queue);
        }
        let until = if let Patience::Until(until) = patience { Some(until) } else { None };
        let is_credit = false;
        self.queues[queue].getters.push(Getter { call, session, manner, until, is_credit });
        self.run(queue);
        let it = &mut self.queues[queue];
        let Some(at) = it.getters.iter().position(|getter| getter.call == call) else { return };
        if patience == Patience::No {
            it.getters.remove(at);
            self.answer(call, Answer::Empty);
        } else {
            it.looks_for_work = true;
        }
    }

    pub(super) fn task_done(&mut self, session: SessionNumber, queue: usize, call: CallId) {
        let it = self.session(session);
        it.last.clear();
        if let Some(at) = it.hand.iter().position(|held| held.at.0 == queue) {
            let held = it.hand.remove(at);
            self.settle(held);
        }
        let unfinished = self.queues[queue].unfinished;
        self.finish(queue, 1);
        self.answer(call, if unfinished == 0 { Answer::TooManyDone } else { Answer::Done });
    }

    pub(super) fn join(&mut self, session: SessionNumber, queue: usize, call: CallId) {
        self.session(session).last.clear();
        self.queues[queue].joiners.push(call);
        self.end_joins(queue);
    }

    /// The answers since the last time, which have reached their clients now. What CPython's way of
    /// delivery hands out is settled by that.
    pub(super) fn hear(&mut self) -> Vec<(CallId, Answer)> {
        for session in self.sessions.keys().copied().collect::<Vec<_>>() {
            for held in self.session(session).last.clone() {
                let is_plain = self.session(session).hand.contains(&held);
                if is_plain && self.queues[held.at.0].options.delivery == Delivery::Cpython {
                    self.session(session).last.retain(|other| *other != held);
                    self.session(session).hand.retain(|other| *other != held);
                    self.settle(held);
                }
            }
        }
        self.end_step();
        std::mem::take(&mut self.answers)
    }

    fn answer(&mut self, call: CallId, answer: Answer) {
        self.answers.push((call, answer));
    }

    // ---- looks

    pub(super) fn kept(&self) -> Kept {
        let mut kept = Kept::default();
        for (number, queue) in self.queues.iter().enumerate() {
            for task in &queue.tasks {
                if let Place::Held { terms: Holding { hold: Some(hold), .. }, .. } = task.place {
                    kept.leases.insert((number, task.item, hold.as_millis()));
                }
            }
            kept.unfinished.push(queue.unfinished);
            let live = queue.tasks.iter().filter(|task| task.place != Place::Gone);
            kept.tasks.extend(live.map(|task| (number, task.item, task.failures)));
            kept.tasks.extend(queue.early.iter().map(|(_, item)| (number, *item, 0)));
        }
        kept
    }

    pub(super) fn counts(&self, queue: usize) -> Counts {
        self.queues[queue].counts()
    }

    /// Takes what is ready, in order and for good.
    pub(super) fn drain(&mut self, queue: usize) -> Vec<Item> {
        let mut drained = vec![];
        let is_ready = |task: &Task| task.place == Place::Ready;
        while let Some(at) = self.queues[queue].tasks.iter().position(is_ready) {
            let task = self.place((queue, at));
            task.place = Place::Gone;
            drained.push(task.item);
            self.end_without_result((queue, at));
        }
        drained
    }
}

/// A hand is emptied queue by queue.
fn by_queue(mut hand: Vec<Held>) -> Vec<Held> {
    hand.sort_by_key(|held| (held.at.0, held.lease));
    hand
}

impl Queue {
    fn add(&mut self, now: Time, item: Item, asked: Asked) {
        let place = match asked.delay {
            Some(delay) => Place::Delayed(now + delay),
            None => Place::Ready,
        };
        let expires = asked.expires.or(self.options.expires).map(|expires| now + expires);
        self.tasks.push(Task {
            item,
            place,
            failures: 0,
            expires,
            last: None,
            last_token: None,
            since: now,
            letter: None,
        });
    }

    fn counts(&self) -> Counts {
        let count = |is: fn(&Place) -> bool| self.tasks.iter().filter(|it| is(&it.place)).count();
        Counts {
            ready: count(|place| *place == Place::Ready),
            held: count(|place| matches!(place, Place::Held { .. })),
            delayed: count(|place| matches!(place, Place::Delayed(_))) + self.early.len(),
            unfinished: self.unfinished,
        }
    }
}
