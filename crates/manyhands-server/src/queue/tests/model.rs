//! Any run of calls ends as a model says that is too naive to be wrong.
//!
//! The model has no index, no chunk and no fast path: tasks are in lists, the next one is found by
//! looking at all. A call joins the end of a line, and then whatever can happen does, one thing at
//! a time. Who is still in line and has no patience leaves it.

mod calls;

use std::collections::BTreeMap;

use manyhands::wire::pickle::Codec;
use proptest::prelude::*;

use self::calls::{Call, Wait, calls, options};
use super::*;
use crate::queue::key::Key;

/// Everything that was ever put, and where it is.
struct Model {
    options: QueueOptions,
    phase: Phase,
    tasks: BTreeMap<TaskId, Known>,
    getters: Vec<(WaiterId, Option<Time>, Taker)>,
    credits: BTreeMap<Holder, Credit>,
    looks_for_work: bool,
    putters: Vec<(WaiterId, Option<Time>, Payload, Terms)>,
    joiners: Vec<WaiterId>,
    keys: Vec<(Time, Arc<[u8]>)>,
    unfinished: u64,
    /// Tokens that settled their tasks.
    concluded: Vec<Token>,
    lease: u64,
    now: Time,
    /// Taken by the other queues.
    others: u64,
    max: u64,
    wakes: Vec<Wake>,
    dead: Vec<(TaskId, u32)>,
}

#[derive(Debug, Default)]
struct Credit {
    left: u32,
    is_open: bool,
    is_recalled: bool,
}

#[derive(Debug, Clone)]
struct Known {
    payload: Payload,
    place: Place,
    failures: u32,
    priority: Option<i64>,
    expires: Option<Time>,
    /// It expires as soon as it comes back.
    overdue: bool,
    since: Time,
    last: Option<Token>,
    has_metadata: bool,
    /// Who has it by credit and has not started.
    lies_with: Option<Holder>,
    /// Who has it by credit and has started.
    works_on: Option<Holder>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Ready,
    Delayed(Time),
    Leased {
        token: Token,
        deadline: Option<Time>,
    },
    /// Acked, dead, expired or dropped.
    Gone,
}

impl Model {
    fn new(options: QueueOptions, max: u64) -> Self {
        Self {
            options,
            phase: Phase::Open,
            tasks: BTreeMap::new(),
            getters: vec![],
            credits: BTreeMap::new(),
            looks_for_work: false,
            putters: vec![],
            joiners: vec![],
            keys: vec![],
            unfinished: 0,
            concluded: vec![],
            lease: 0,
            now: Time::default(),
            others: 0,
            max,
            wakes: vec![],
            dead: vec![],
        }
    }

    fn put(
        &mut self,
        payload: Payload,
        terms: Terms,
        patience: Patience,
        waiter: WaiterId,
    ) -> Result<Option<Outcome>, OrderError> {
        if self.phase != Phase::Open {
            return Ok(Some(Outcome::ShutDown));
        }
        if self.knows(&terms) {
            return Ok(Some(Outcome::Known));
        }
        self.check(&payload, &terms)?;
        self.putters.push((waiter, deadline(patience), payload, terms));
        self.settle();
        if patience == Patience::Now && self.cancel(waiter) {
            return Ok(Some(Outcome::Full));
        }
        Ok(self.outcome_of(waiter))
    }

    fn get(&mut self, taker: Taker, patience: Patience, waiter: WaiterId) -> Option<Outcome> {
        self.getters.push((waiter, deadline(patience), taker));
        self.settle();
        if patience == Patience::Now && self.cancel(waiter) {
            return Some(Outcome::Empty);
        }
        self.looks_for_work |= self.getters.iter().any(|(id, ..)| *id == waiter);
        self.outcome_of(waiter)
    }

    fn credit(&mut self, taker: Taker, more: u32) {
        let has_work = self.has_work(taker.holder);
        let waiter = waiter_of(taker.holder);
        if self.phase != Phase::Open && self.count(|place| place == Place::Ready) == 0 {
            self.end_credit(taker.holder);
            return self.wakes.push((waiter, Outcome::ShutDown));
        }
        let credit = self.credits.entry(taker.holder).or_default();
        self.looks_for_work |= !has_work || !credit.is_open;
        credit.is_open = true;
        let is_in_line = credit.left > 0;
        credit.left += more;
        if is_in_line {
            self.getters.iter_mut().find(|(id, ..)| *id == waiter).unwrap().2 = taker;
        } else if more > 0 {
            self.getters.push((waiter, None, taker));
        }
        self.settle();
    }

    fn withdraw(&mut self, holder: Holder) -> u32 {
        self.getters.retain(|(_, _, taker)| !taker.is_pushed || taker.holder != holder);
        self.credits.get_mut(&holder).map_or(0, |credit| std::mem::take(&mut credit.left))
    }

    fn end_credit(&mut self, holder: Holder) {
        self.withdraw(holder);
        self.credits.entry(holder).or_default().is_open = false;
    }

    fn lying_with(&self, holder: Holder) -> u32 {
        let lies = self.tasks.values().filter(|known| known.lies_with == Some(holder));
        u32::try_from(lies.count()).unwrap()
    }

    fn work_of(&self, holder: Holder) -> usize {
        let holder = Some(holder);
        let is_its = |known: &&Known| known.lies_with == holder || known.works_on == holder;
        self.tasks.values().filter(is_its).count()
    }

    fn has_work(&self, holder: Holder) -> bool {
        self.work_of(holder) > 0
    }

    /// The task does not lie with its holder any more, who may have started it.
    fn take_up(&mut self, task: TaskId) -> Option<Holder> {
        let holder = self.tasks.get_mut(&task).and_then(|known| known.lies_with.take())?;
        let is_recalled = &mut self.credits.get_mut(&holder).unwrap().is_recalled;
        self.looks_for_work |= std::mem::take(is_recalled);
        Some(holder)
    }

    /// The task is not with its holder any more.
    fn let_go(&mut self, task: TaskId) {
        self.take_up(task);
        let holder = self.tasks.get_mut(&task).and_then(|known| known.works_on.take());
        self.looks_for_work |= holder.is_some_and(|holder| !self.has_work(holder));
    }

    fn start(&mut self, token: Token) -> bool {
        let is_held = self.is_held(token);
        if is_held && let Some(holder) = self.take_up(token.task) {
            self.known(token.task).works_on = Some(holder);
        }
        is_held
    }

    fn is_held(&self, token: Token) -> bool {
        let place = self.tasks.get(&token.task).map(|known| known.place);
        matches!(place, Some(Place::Leased { token: held, .. }) if held == token)
    }

    fn recall(&mut self) -> Option<(WaiterId, u32)> {
        if !std::mem::take(&mut self.looks_for_work) || self.next().is_some() {
            return None;
        }
        let is_idle = |(_, _, taker): &&(WaiterId, Option<Time>, Taker)| {
            !taker.is_pushed || !self.has_work(taker.holder)
        };
        let waiting = u32::try_from(self.getters.iter().filter(is_idle).count()).unwrap();
        // For another credit nobody gives the only task that it has.
        let is_for_get = self.getters.iter().any(|(_, _, taker)| !taker.is_pushed);
        let can_give = |(holder, credit): &(&Holder, &Credit)| {
            let has_more = is_for_get || self.work_of(**holder) > 1;
            credit.is_open && !credit.is_recalled && self.lying_with(**holder) > 0 && has_more
        };
        let who = self.credits.iter().filter(can_give).map(|(holder, _)| *holder);
        // The first of those that have most.
        let who =
            who.rev().max_by_key(|holder| self.lying_with(*holder)).filter(|_| waiting > 0)?;
        let tasks = waiting.min(self.lying_with(who).div_ceil(2));
        self.credits.get_mut(&who).unwrap().is_recalled = true;
        Some((waiter_of(who), tasks))
    }

    fn join(&mut self, waiter: WaiterId) -> Option<Outcome> {
        self.joiners.push(waiter);
        self.settle();
        self.outcome_of(waiter)
    }

    fn task_done(&mut self) -> Result<(), TooManyTaskDone> {
        self.unfinished = self.unfinished.checked_sub(1).ok_or(TooManyTaskDone)?;
        self.settle();
        Ok(())
    }

    fn ack(&mut self, token: Token) -> Ack {
        if self.concluded.contains(&token) {
            return Ack::AcceptedBefore;
        }
        let Some(known) = self.tasks.get_mut(&token.task) else { return Ack::Stale };
        let kept = match known.place {
            Place::Leased { token: held, .. } => held == token,
            Place::Ready | Place::Delayed(_) => known.last == Some(token),
            Place::Gone => false,
        };
        if kept {
            known.place = Place::Gone;
            self.let_go(token.task);
        }
        self.settle();
        if kept { Ack::Accepted } else { Ack::Stale }
    }

    /// Whoever settled the task has said so.
    fn conclude(&mut self, token: Token) {
        self.concluded.push(token);
        self.finish();
        self.settle();
    }

    fn give_back(&mut self, token: Token, cause: &Cause, delay: Option<Duration>) -> bool {
        let lay_with = self.tasks.get(&token.task).and_then(|known| known.lies_with);
        let lay_with = lay_with.filter(|_| self.is_held(token));
        let failed = match cause {
            Cause::Unread => false,
            Cause::Crashed | Cause::Unanswered => lay_with.is_none(),
            Cause::Overdue | Cause::Refused(_) => true,
        };
        if self.is_held(token) {
            self.let_go(token.task);
        }
        if let Some(holder) = lay_with {
            let waiter = waiter_of(holder);
            let at = self.getters.iter().position(|(id, ..)| *id == waiter);
            if let Some(at) = at.filter(|_| !failed) {
                let getter = self.getters.remove(at);
                self.getters.push(getter);
            }
        }
        let closed = self.phase == Phase::Closed;
        let (now, attempts) = (self.now, self.options.attempts);
        let Some(known) = self.tasks.get_mut(&token.task) else { return false };
        match known.place {
            Place::Leased { token: held, .. } if held == token => {}
            _ => return false,
        }
        known.last = Some(token);
        known.has_metadata = true;
        known.failures += u32::from(failed);
        known.place = match delay.filter(|delay| !delay.is_zero()) {
            Some(delay) => Place::Delayed(now + delay),
            None => Place::Ready,
        };
        let expired = known.expires.is_some_and(|expires| expires <= now);
        let dead = failed && attempts != 0 && known.failures >= attempts;
        let failures = known.failures;
        if closed || expired || dead {
            known.place = Place::Gone;
            self.finish();
        }
        if dead && !closed && !expired {
            self.dead.push((token.task, failures));
        }
        self.settle();
        true
    }

    fn extend(&mut self, token: Token, hold: Duration) -> bool {
        let (now, max_run) = (self.now, self.options.max_run);
        let Some(known) = self.tasks.get_mut(&token.task) else { return false };
        let Place::Leased { token: held, deadline } = &mut known.place else { return false };
        if *held != token {
            return false;
        }
        let most = max_run.map(|max_run| known.since + max_run);
        *deadline = Some(most.map_or(now + hold, |most| most.min(now + hold)));
        true
    }

    fn shutdown(&mut self, immediate: bool) {
        if immediate {
            self.phase = Phase::Closed;
            let mut dropped = 0;
            for known in self.tasks.values_mut() {
                if matches!(known.place, Place::Ready | Place::Delayed(_)) {
                    known.place = Place::Gone;
                    dropped += 1;
                }
            }
            (0..dropped).for_each(|_| self.finish());
            self.keys.clear();
        } else if self.phase == Phase::Open {
            self.phase = Phase::Draining;
        }
        self.settle();
        for (holder, credit) in &mut self.credits {
            if std::mem::take(&mut credit.is_open) {
                credit.left = 0;
                self.wakes.push((waiter_of(*holder), Outcome::ShutDown));
            }
        }
    }

    fn expire(&mut self, now: Time) {
        self.now = now;
        let due = |deadline: Option<Time>| deadline.is_some_and(|deadline| deadline <= now);
        for (waiter, ..) in self.getters.extract_if(.., |(_, deadline, _)| due(*deadline)) {
            self.wakes.push((waiter, Outcome::Empty));
        }
        for (waiter, ..) in self.putters.extract_if(.., |(_, deadline, ..)| due(*deadline)) {
            self.wakes.push((waiter, Outcome::Full));
        }
        while let Some((_, timer)) = self.next_timer().filter(|(time, _)| *time <= now) {
            self.ring(timer);
        }
        self.settle();
    }

    fn next_timer(&self) -> Option<(Time, Timer)> {
        let timers = self.tasks.iter().flat_map(|(&id, known)| {
            let (place, deadline) = match known.place {
                Place::Delayed(until) => (Some((until, Timer::Due(id))), None),
                Place::Leased { deadline, .. } => {
                    (None, deadline.map(|deadline| (deadline, Timer::Lease(id))))
                }
                _ => (None, None),
            };
            let expiry = known.expires.map(|expires| (expires, Timer::Expiry(id)));
            let expiry = expiry.filter(|_| known.place != Place::Gone && !known.overdue);
            [place, deadline, expiry].into_iter().flatten()
        });
        let windows = self.keys.iter().map(|(time, key)| (*time, Timer::Window(key.clone())));
        timers.chain(windows).min()
    }

    fn ring(&mut self, timer: Timer) {
        match timer {
            Timer::Due(id) => {
                self.known(id).place = Place::Ready;
                self.settle();
            }
            Timer::Lease(id) => {
                if let Place::Leased { token, .. } = self.known(id).place {
                    self.give_back(token, &Cause::Overdue, None);
                }
            }
            Timer::Expiry(id) => match self.known(id).place {
                Place::Leased { .. } => self.known(id).overdue = true,
                _ => {
                    self.known(id).place = Place::Gone;
                    self.finish();
                }
            },
            Timer::Window(key) => self.keys.retain(|(_, known)| *known != key),
        }
        self.settle();
    }

    /// One task is done; whoever joins sees that before another put is let in.
    fn finish(&mut self) {
        self.unfinished = self.unfinished.saturating_sub(1);
        self.end_joins();
    }

    fn end_joins(&mut self) {
        if self.unfinished == 0 {
            self.wakes.extend(self.joiners.drain(..).map(|id| (id, Outcome::Joined)));
        }
    }

    fn known(&mut self, id: TaskId) -> &mut Known {
        self.tasks.get_mut(&id).unwrap()
    }

    fn knows(&self, terms: &Terms) -> bool {
        terms.key.as_ref().is_some_and(|key| self.keys.iter().any(|(_, known)| known == key))
    }

    /// Takes a waiter out of its line, without looking who can go on then.
    fn cancel(&mut self, waiter: WaiterId) -> bool {
        let before = self.waiting().len();
        self.getters.retain(|(id, ..)| *id != waiter);
        self.putters.retain(|(id, ..)| *id != waiter);
        self.joiners.retain(|id| *id != waiter);
        self.waiting().len() < before
    }

    fn waiting(&self) -> Vec<WaiterId> {
        let getters = self.getters.iter().map(|(id, ..)| *id);
        let putters = self.putters.iter().map(|(id, ..)| *id);
        getters.chain(putters).chain(self.joiners.iter().copied()).collect()
    }

    fn settle(&mut self) {
        while self.admit_one() || self.serve_one() {}
        if self.phase != Phase::Open {
            while !self.getters.is_empty() {
                self.dismiss(Outcome::ShutDown);
            }
            self.wakes.extend(self.putters.drain(..).map(|(id, ..)| (id, Outcome::ShutDown)));
        }
        self.end_joins();
    }

    /// The first in line gets nothing any more.
    fn dismiss(&mut self, outcome: Outcome) {
        let (waiter, _, taker) = self.getters.remove(0);
        self.wakes.push((waiter, outcome));
        if taker.is_pushed {
            self.end_credit(taker.holder);
        }
    }

    fn admit_one(&mut self) -> bool {
        let Some((_, _, payload, terms)) = self.putters.first() else { return false };
        let fits = self.used() + self.cost(payload, terms) + metadata_bytes(terms) <= self.max;
        if self.phase != Phase::Open || self.is_full() || !fits {
            return false;
        }
        self.admit_first();
        true
    }

    fn admit_first(&mut self) {
        let (waiter, _, payload, terms) = self.putters.remove(0);
        let outcome = match self.check(&payload, &terms) {
            _ if self.knows(&terms) => Outcome::Known,
            Ok(()) => Outcome::Accepted(self.accept(payload, &terms)),
            Err(error) => Outcome::Unorderable(error),
        };
        self.wakes.push((waiter, outcome));
    }

    fn serve_one(&mut self) -> bool {
        let next = self.next();
        let protocol = match (next, self.putters.first()) {
            (Some(next), _) => self.tasks[&next].payload.protocol(),
            (None, Some((_, _, payload, _))) => payload.protocol(),
            (None, None) => return false,
        };
        if self.getters.is_empty() {
            return false;
        }
        if protocol > self.getters[0].2.reader {
            self.dismiss(Outcome::Unreadable { protocol });
        } else if let Some(next) = next {
            let (getter, _, taker) = self.getters.remove(0);
            let grant = self.lease(next, taker);
            if taker.is_pushed {
                self.looks_for_work |= self.has_work(taker.holder);
                self.known(next).lies_with = Some(taker.holder);
                let credit = self.credits.get_mut(&taker.holder).unwrap();
                credit.left -= 1;
                if credit.left > 0 {
                    self.getters.push((getter, None, taker));
                }
            }
            self.wakes.push((getter, Outcome::Task(grant)));
        } else {
            self.admit_first();
        }
        true
    }

    fn lease(&mut self, id: TaskId, taker: Taker) -> Grant {
        let lease = self.lease;
        self.lease += 1;
        let (now, max_run) = (self.now, self.options.max_run);
        let known = self.known(id);
        known.since = now;
        let token = Token { task: id, attempt: known.failures + 1, lease };
        known.place = match taker.settled_by {
            SettledBy::Delivery => Place::Gone,
            SettledBy::Session | SettledBy::TokenOfSession | SettledBy::Token => {
                Place::Leased { token, deadline: max_run.map(|most| now + most) }
            }
            SettledBy::TokenWithin(hold) => {
                let hold = max_run.map_or(hold, |most| most.min(hold));
                Place::Leased { token, deadline: Some(now + hold) }
            }
        };
        Grant { token, payload: known.payload.clone() }
    }

    fn next(&self) -> Option<TaskId> {
        let ready = || self.tasks.iter().filter(|(_, known)| known.place == Place::Ready);
        let first = match self.options.order {
            Order::Fifo => ready().min_by_key(|(id, _)| **id),
            Order::Lifo => ready().max_by_key(|(id, _)| **id),
            Order::Priority => ready().min_by_key(|(id, known)| (known.key(), **id)),
        };
        first.map(|(id, _)| *id)
    }

    /// The keys next to a payload's; `key.rs` shows that they speak for all.
    fn check(&self, payload: &Payload, terms: &Terms) -> Result<(), OrderError> {
        if self.options.order != Order::Priority {
            return Ok(());
        }
        let key = terms.priority.map_or_else(|| Key::of(payload), Key::of_int);
        let ready = self.tasks.values().filter(|known| known.place == Place::Ready);
        let mut keys: Vec<_> = ready.map(Known::key).collect();
        keys.sort();
        let below = keys.iter().rev().find(|at| **at <= key);
        let above = keys.iter().find(|at| **at > key);
        below.into_iter().chain(above).try_for_each(|at| key.check_against(at))
    }

    fn cost(&self, payload: &Payload, terms: &Terms) -> u64 {
        let terms = Some(Box::new(terms.clone()));
        Ready::new(self.options.order).candidate(payload.clone(), terms).cost
    }

    /// What the queue and all others take from the budget.
    fn used(&self) -> u64 {
        let tasks = self.tasks.values().filter(|known| known.place != Place::Gone).map(|known| {
            let terms = Terms { priority: known.priority, ..Terms::default() };
            let place = match known.place {
                Place::Leased { .. } => LEASE_BYTES + known.payload.bytes.len() as u64,
                _ => self.cost(&known.payload, &terms),
            };
            place + if known.has_metadata { Terms::least_bytes() } else { 0 }
        });
        let keys = self.keys.iter().map(|(_, key)| Terms::key_bytes(key));
        self.others + tasks.sum::<u64>() + keys.sum::<u64>()
    }

    fn accept(&mut self, payload: Payload, terms: &Terms) -> TaskId {
        self.unfinished += 1;
        let id = TaskId(self.tasks.len() as u64);
        let expires = terms.expires.or(self.options.expires);
        if let Some(key) = &terms.key {
            self.keys.push((self.now + self.options.dedup, key.clone()));
        }
        let place = match terms.delay.filter(|delay| !delay.is_zero()) {
            Some(delay) => Place::Delayed(self.now + delay),
            None => Place::Ready,
        };
        let known = Known {
            payload,
            place,
            failures: 0,
            priority: terms.priority,
            expires: expires.map(|expires| self.now + expires),
            overdue: false,
            since: self.now,
            last: None,
            lies_with: None,
            works_on: None,
            has_metadata: *terms != Terms::default() || expires.is_some(),
        };
        self.tasks.insert(id, known);
        id
    }

    fn is_full(&self) -> bool {
        self.options.maxsize != 0
            && self.count(|place| place == Place::Ready) >= self.options.maxsize
    }

    fn count(&self, is: impl Fn(Place) -> bool) -> usize {
        self.tasks.values().filter(|known| is(known.place)).count()
    }

    /// What a call was answered at once.
    fn outcome_of(&mut self, waiter: WaiterId) -> Option<Outcome> {
        let at = self.wakes.iter().position(|(id, _)| *id == waiter)?;
        Some(self.wakes.remove(at).1)
    }
}

impl Known {
    fn key(&self) -> Key {
        self.priority.map_or_else(|| Key::of(&self.payload), Key::of_int)
    }
}

fn metadata_bytes(terms: &Terms) -> u64 {
    if *terms == Terms::default() { 0 } else { terms.bytes() }
}

fn deadline(patience: Patience) -> Option<Time> {
    match patience {
        Patience::Until(deadline) => Some(deadline),
        Patience::Now | Patience::Forever => None,
    }
}

/// Who is told of what a holder takes by credit.
fn waiter_of(holder: Holder) -> WaiterId {
    WaiterId(1_000_000 + holder.0)
}

/// A pickled object behind a number that only tells it from others: put on the stack and dropped.
fn tagged(tag: u64, object: &[u8], codec: Codec) -> Payload {
    let tag = u32::try_from(tag).unwrap().to_le_bytes();
    let bytes = Bytes::from([b"J", tag.as_slice(), b"0", object].concat());
    Payload { codec, prelude_len: 6, bytes }
}

fn sorted(mut wakes: Vec<Wake>) -> Vec<Wake> {
    wakes.sort_by_key(|(waiter, _)| *waiter);
    wakes
}

/// What the changes of a queue add up to: which tasks there are, by the records alone.
#[derive(Debug, Default)]
struct Replay {
    tasks: BTreeMap<TaskId, Payload>,
    leased: BTreeMap<TaskId, u64>,
}

impl Replay {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Put { task, payload, .. } => {
                assert_eq!(self.tasks.insert(task, payload), None, "{task:?} is put twice");
            }
            Change::Leased { token: Token { task, lease, .. }, .. } => {
                assert_eq!(self.leased.insert(task, lease), None, "{task:?} is with two");
            }
            Change::Extended { token: Token { task, lease, .. }, .. } => {
                assert_eq!(self.leased.get(&task), Some(&lease), "{task:?} is not with it");
            }
            Change::Turned { task, turned } => {
                let payload = self.tasks.remove(&task).unwrap();
                assert_eq!(self.tasks.insert(turned, payload), None, "{turned:?} is there twice");
            }
            Change::Returned { task, .. } => assert!(self.leased.remove(&task).is_some()),
            Change::Acked { task, .. } | Change::Dead { task, .. } | Change::Expired { task } => {
                assert!(self.tasks.remove(&task).is_some(), "{task:?} ends twice");
                self.leased.remove(&task);
            }
            Change::Cleared { .. } => self.tasks.retain(|task, _| self.leased.contains_key(task)),
            Change::Seen { .. }
            | Change::ShutDown { .. }
            | Change::Settled { .. }
            | Change::Done(_) => {}
            Change::Declared(_) | Change::Dropped | Change::Redriven { .. } => {
                unreachable!("a queue never says {change:?}")
            }
        }
    }
}

fn run(options: QueueOptions, max: u64, calls: Vec<Call>) {
    let mut rig = rig(options.clone());
    rig.step = Step { changes: Some(Vec::new()), ..Step::new(max, 0) };
    let (mut model, mut replay) = (Model::new(options, max), Replay::default());
    let mut tokens: Vec<Token> = Vec::new();
    let pick = |tokens: &[Token], index: prop::sample::Index| match tokens {
        [] => Token { task: TaskId(0), attempt: 1, lease: 99 },
        tokens => *index.get(tokens),
    };
    for call in calls {
        let waiter = rig.call();
        let Rig { queue, step, .. } = &mut rig;
        let now = step.now;
        let patience = |wait| match wait {
            Wait::No => Patience::Now,
            Wait::Seconds(seconds) => Patience::Until(now + Duration::from_secs(seconds)),
            Wait::Forever => Patience::Forever,
        };
        let mut outcome = None;
        match call {
            Call::Put { object, codec, wait, terms } => {
                let payload = tagged(waiter.0, &object, codec);
                let given = (terms != Terms::default()).then(|| Box::new(terms.clone()));
                let expected = model.put(payload.clone(), terms, patience(wait), waiter);
                let item = Prepared::new(payload, given.as_deref(), queue.options().order);
                assert_eq!(queue.put(item, given, patience(wait), waiter, step), expected);
            }
            Call::Get { taker, wait } => {
                outcome = queue.get(taker, patience(wait), waiter, step);
                assert_eq!(outcome, model.get(taker, patience(wait), waiter));
            }
            Call::TaskDone => assert_eq!(queue.task_done(step), model.task_done()),
            Call::Join => assert_eq!(queue.join(waiter), model.join(waiter)),
            Call::Cancel(index) => {
                let mut waiting = model.waiting();
                waiting.retain(|id| *id < waiter_of(Holder(0)));
                let gone = if waiting.is_empty() { waiter } else { *index.get(&waiting) };
                assert_eq!(queue.cancel(gone, step), model.cancel(gone));
                model.settle();
            }
            Call::Expire(seconds) => {
                step.now = now + Duration::from_secs(seconds);
                queue.expire(step);
                model.expire(step.now);
            }
            Call::Ack { index, by_token } => {
                let token = pick(&tokens, index);
                let ack = queue.ack(token, step);
                assert_eq!(ack, model.ack(token));
                if by_token && ack == Ack::Accepted {
                    queue.conclude(token, step);
                    model.conclude(token);
                }
            }
            Call::GiveBack { index, cause, delay } => {
                let token = pick(&tokens, index);
                let delay = delay.map(Duration::from_secs);
                let given = queue.give_back(token, cause.clone(), Retry::from(delay), step);
                assert_eq!(given, model.give_back(token, &cause, delay));
            }
            Call::Credit { taker, more } => {
                queue.credit(taker, more, waiter_of(taker.holder), step);
                model.credit(Taker { is_pushed: true, ..taker }, more);
            }
            Call::Withdraw(holder) => {
                assert_eq!(queue.withdraw_credit(holder), model.withdraw(holder));
            }
            Call::EndCredit(holder) => {
                queue.end_credit(holder);
                model.end_credit(holder);
            }
            Call::Start(index) => {
                let token = pick(&tokens, index);
                assert_eq!(queue.start(token), model.start(token));
            }
            Call::Extend(index, seconds) => {
                let (token, hold) = (pick(&tokens, index), Duration::from_secs(seconds));
                assert_eq!(queue.extend(token, hold, step), model.extend(token, hold));
            }
            Call::Others(bytes) => {
                step.budget.used = step.budget.used - model.others + bytes;
                model.others = bytes;
                queue.admit(step);
                model.settle();
            }
            Call::Shutdown { immediate } => {
                queue.shutdown(immediate, step);
                model.shutdown(immediate);
            }
        }
        assert_eq!(rig.queue.recall(), model.recall());
        let wakes = sorted(std::mem::take(&mut rig.step.wakes));
        assert_eq!(wakes, sorted(std::mem::take(&mut model.wakes)));
        let outcomes = wakes.into_iter().map(|(_, outcome)| outcome).chain(outcome);
        tokens.extend(outcomes.filter_map(|outcome| match outcome {
            Outcome::Task(grant) => Some(grant.token),
            _ => None,
        }));
        let dead = rig.step.dead.drain(..).map(|letter| (letter.task, letter.attempts));
        assert!(dead.eq(model.dead.drain(..)), "the same tasks are given up");
        for change in rig.step.changes.as_mut().unwrap().drain(..) {
            replay.apply(change);
        }
        compare_visible(&rig, &model, &replay);
        while rig.queue.has_remains() {
            rig.queue.clear_away(&mut rig.step);
        }
        assert!(rig.step.wakes.is_empty(), "a queue that was shut down lets nobody in");
        compare(&rig, &model);
    }
}

/// What anybody can see, also before the memory is given back of what was dropped.
fn compare_visible(rig: &Rig, model: &Model, replay: &Replay) {
    let queue = &rig.queue;
    assert_eq!(queue.len(), model.count(|place| place == Place::Ready));
    assert_eq!(queue.delayed(), model.count(|place| matches!(place, Place::Delayed(_))));
    assert_eq!(queue.leased(), model.count(|place| matches!(place, Place::Leased { .. })));
    assert_eq!(queue.is_full(), model.is_full());
    assert_eq!(queue.unfinished(), model.unfinished);
    assert_eq!(queue.waiting_getters(), model.getters.len());
    assert_eq!(queue.waiting_putters(), model.putters.len());
    assert_eq!(queue.has_waiters(), !model.waiting().is_empty());
    let there = model.tasks.iter().filter(|(_, known)| known.place != Place::Gone);
    assert!(replay.tasks.keys().eq(there.map(|(id, _)| id)), "the records tell what is there");
    assert_eq!(replay.leased.len(), queue.leased());
}

fn compare(rig: &Rig, model: &Model) {
    let queue = &rig.queue;
    assert_eq!(rig.step.budget.used, model.used());
    assert_eq!(queue.bytes(), model.used() - model.others);
    let getters = model.getters.iter().map(|(_, deadline, _)| deadline);
    let putters = model.putters.iter().map(|(_, deadline, ..)| deadline);
    let calls = getters.chain(putters).copied().flatten();
    let timers = model.next_timer().map(|(time, _)| time);
    assert_eq!(queue.next_deadline(), calls.chain(timers).min());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_run_of_calls_ends_as_the_model_says(
        options in options(),
        max in prop_oneof![3 => Just(1 << 40), 1 => 20u64..1000, 1 => 4000u64..12_000],
        calls in calls(),
    ) {
        run(options, max, calls);
    }
}
