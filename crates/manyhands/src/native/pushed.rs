//! Tasks that the server pushes ahead of the program's asking.
//!
//! A credit is a call that stays in flight: its id names the tasks that are pushed for it, and its
//! reply ends it. A task is *started* when it is handed to the program; one that was not goes back
//! without an attempt, when the server asks for it or the program wants no more.

use std::collections::VecDeque;
use std::time::Instant;

use super::calls::{Call, Id, Stage};
use super::hands::Held;
use super::link::Link;
use super::translate::refused;
use super::{Core, NOBODY};
use crate::verb::Verb;
use crate::wire::native::{Code, Fate, Request, Settlement, Task, Tasks};

/// The tasks of one credit.
#[derive(Debug)]
pub(super) struct Pushed {
    queue: u16,
    /// How many may be here or on their way.
    pub(super) ahead: u32,
    /// How many may be on their way.
    pub(super) granted: u32,
    tasks: VecDeque<Task>,
    /// Whether there is no more credit.
    is_over: bool,
}

impl Pushed {
    /// Forgets tasks that went back because their connection was lost.
    pub(super) fn forget(&mut self) {
        self.tasks.clear();
    }

    /// How much credit to give now: not one task at a time if many may be ahead.
    fn missing(&self) -> u32 {
        let here = u32::try_from(self.tasks.len()).unwrap_or(u32::MAX);
        let missing = self.ahead.saturating_sub(here.saturating_add(self.granted));
        let is_worth_it = missing >= self.ahead.div_ceil(2) || here == 0;
        if is_worth_it && !self.is_over { missing } else { 0 }
    }
}

impl Core {
    /// Has tasks pushed, up to `ahead` before the program asks for them. A session has one credit for a
    /// queue: a second one is refused, and one that follows another waits for its end.
    pub(crate) fn subscribe(&mut self, queue: u16, ahead: u32, now: Instant) -> Id {
        let is_taken = self.has_credit(queue);
        let is_held = !self.credits_of(queue, |call| call.is_let_go).is_empty();
        let id = self.add(NOBODY, queue, Verb::Credit { ahead });
        self.calls.get(id).into_iter().for_each(|call| call.is_held = is_held);
        let tasks = VecDeque::new();
        self.pushed.insert(id, Pushed { queue, ahead, granted: 0, tasks, is_over: false });
        if let Err(closed) = self.check_open() {
            self.decide(id, Err(closed), now);
        } else if is_taken {
            let text = "leases of this queue are being taken; close those first".to_owned();
            self.decide(id, Err(refused(Code::Refused, text)), now);
        }
        self.fill(now);
        id
    }

    /// Whether the program has a credit for this queue, by whichever handle.
    fn has_credit(&self, queue: u16) -> bool {
        let mut open = self.pushed.values().filter(|pushed| !pushed.is_over);
        open.any(|pushed| self.queues.is_same(pushed.queue, queue))
    }

    /// The credits of this queue, by whichever handle, of which this is so.
    fn credits_of(&self, queue: u16, is_wanted: impl Fn(&Call) -> bool) -> Vec<Id> {
        let is_credit = |call: &Call| matches!(call.verb, Verb::Credit { .. });
        let is_of = |call: &Call| self.queues.is_same(call.queue, queue);
        self.calls.ids(|call| is_credit(call) && is_wanted(call) && is_of(call))
    }

    /// Has the credit begin that waited for the end of another one.
    pub(super) fn release_credit(&mut self, queue: u16) {
        for id in self.credits_of(queue, |call| call.is_held) {
            self.calls.release(id);
        }
    }

    /// Starts the next task that was pushed, if there is one.
    pub(crate) fn next_task(&mut self, id: Id) -> Option<Task> {
        let pushed = self.pushed.get_mut(&id)?;
        let task = pushed.tasks.pop_front()?;
        let queue = pushed.queue;
        self.started.extend(task.token.map(|token| Held { caller: NOBODY, queue, token }));
        self.top_up(id);
        Some(task)
    }

    /// How many tasks were pushed and not started.
    pub(crate) fn unstarted(&self, id: Id) -> usize {
        self.pushed.get(&id).map_or(0, |pushed| pushed.tasks.len())
    }

    /// Ends a credit: what was not started goes back.
    pub(crate) fn unsubscribe(&mut self, id: Id, now: Instant) {
        let Some(Pushed { queue, tasks, .. }) = self.pushed.remove(&id) else { return };
        self.send_back(queue, tasks, now);
        match self.calls.get(id) {
            Some(call @ Call { stage: Stage::Sent { .. }, .. }) => {
                // If the server ends it by itself, this has a reply of its own.
                (call.is_let_go, call.asked_more) = (true, true);
                let end = Request::Credit { hold: None, credit: 0, ends: true };
                self.say(&end, queue, id);
            }
            Some(_) => drop(self.calls.remove(id)),
            None => {}
        }
    }

    pub(super) fn pushed(&mut self, id: Id, tasks: Tasks, now: Instant) {
        let Some(pushed) = self.pushed.get_mut(&id) else {
            let queue = self.calls.get(id).map_or(0, |call| call.queue);
            return self.send_back(queue, tasks.map_while(Result::ok), now);
        };
        for task in tasks {
            match task {
                Ok(task) => {
                    pushed.granted = pushed.granted.saturating_sub(1);
                    pushed.tasks.push_back(task);
                }
                Err(error) => {
                    let error = self.server.unexpected(&error);
                    return self.fail(&error, now);
                }
            }
        }
        self.calls.decided.push_back(id);
    }

    /// Returns tasks that the server asks for, the last ones first.
    pub(super) fn recalled(&mut self, id: Id, count: u32, now: Instant) {
        let Some(pushed) = self.pushed.get_mut(&id).filter(|_| !planted!(RecallIgnored)) else {
            return;
        };
        let left = pushed.tasks.len().saturating_sub(usize::try_from(count).unwrap_or(usize::MAX));
        let (queue, tasks) = (pushed.queue, pushed.tasks.split_off(left));
        self.send_back(queue, tasks, now);
        self.top_up(id);
    }

    /// Notes that a credit is over. What was pushed before is still handed out.
    pub(super) fn credit_ended(&mut self, id: Id) {
        if let Some(pushed) = self.pushed.get_mut(&id) {
            pushed.is_over = true;
        }
    }

    /// Tells the server which tasks were started, before anything else is written.
    pub(super) fn tell_starts(&mut self, now: Instant) {
        let mut started = std::mem::take(&mut self.started);
        started.sort_by_key(|held| held.queue);
        self.tell_fate(&started, &Fate::Start, now);
    }

    /// A settlement starts its task by itself.
    pub(super) fn forget_starts(&mut self, settlements: &[Settlement]) {
        if !self.started.is_empty() {
            let is_settled = |held: &Held| settlements.iter().any(|it| it.token == held.token);
            self.started.retain(|held| !is_settled(held));
        }
    }

    /// Gives tasks back that were not started.
    fn send_back(&mut self, queue: u16, tasks: impl IntoIterator<Item = Task>, now: Instant) {
        let tokens = tasks.into_iter().filter_map(|task| task.token);
        let held: Vec<_> = tokens.map(|token| Held { caller: NOBODY, queue, token }).collect();
        let back =
            if planted!(UnstartedSettled) { Fate::Done { result: None } } else { Fate::Return };
        self.tell_fate(&held, &back, now);
    }

    /// Gives further credit, if it is time to.
    fn top_up(&mut self, id: Id) {
        let Some(call) = self.calls.get(id) else { return };
        let (Link::Up(_), Stage::Sent { .. }) = (&self.link, &call.stage) else { return };
        let Some(pushed) = self.pushed.get_mut(&id) else { return };
        let credit = pushed.missing();
        if credit > 0 {
            pushed.granted += credit;
            call.asked_more = true;
            let queue = pushed.queue;
            self.say(&Request::Credit { hold: None, credit, ends: false }, queue, id);
        }
    }
}
