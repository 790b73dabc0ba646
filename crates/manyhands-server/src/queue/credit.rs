//! Credit: callers that are given tasks as they come, without a call for each.
//!
//! A credit waits in the line of gets. When its turn comes it takes one task and goes to the end of
//! the line with what is left of it, so that tasks go round among all who wait. What it takes is
//! leased and not *started*: it lies with its holder until that begins to work on it. So it can be
//! asked for again when somebody else has nothing to do: [`Queue::recall`].
//!
//! Invariants: a credit of which something is left is in line, or hungry; `unstarted` and `started`
//! are the numbers of the tasks that came by it and are with its holder still; while a credit is open
//! its waiter names it.

use std::cmp::Reverse;

use super::leased::{LEASE_BYTES, Leased};
use super::{Getter, Holder, Outcome, Phase, Queue, Step, Taker, Token, WaiterId};

/// Tasks that wait in the queue already and are handed out in one step. In between others have
/// their turn.
pub(crate) const SERVED_AT_ONCE: usize = 256;

/// What one holder can take, and has taken and not started.
#[derive(Debug)]
pub(super) struct Credit {
    /// Who is told of what it takes; nobody once the credit has ended.
    waiter: Option<WaiterId>,
    taker: Taker,
    left: u32,
    /// It has left the line for want of memory for another lease.
    is_hungry: bool,
    unstarted: u32,
    started: u32,
    /// It was asked for some back, and has not returned or started any since.
    is_recalled: bool,
}

impl Credit {
    /// Whether its holder has something to do.
    fn has_work(&self) -> bool {
        self.unstarted > 0 || self.started > 0
    }

    /// Whether it is in line.
    fn waits(&self) -> bool {
        self.waiter.is_some() && self.left > 0 && !self.is_hungry
    }

    /// Whether nothing more is to be known of it.
    fn is_over(&self) -> bool {
        self.waiter.is_none() && !self.has_work()
    }

    /// Whether it can be asked for some back, so that its holder `keeps` something to do or not.
    fn can_be_recalled(&self, keeps: bool) -> bool {
        let has_more = !keeps || self.unstarted + self.started > 1;
        self.waiter.is_some() && !self.is_recalled && self.unstarted > 0 && has_more
    }
}

impl Queue {
    /// The holder of `taker` can take so many `more` tasks. Each comes as a wake of `waiter`, which
    /// is the same as long as the credit is open; any other outcome ends it.
    pub fn credit(&mut self, taker: Taker, more: u32, waiter: WaiterId, step: &mut Step) {
        let taker = Taker { is_pushed: true, ..taker };
        if self.phase != Phase::Open && self.is_empty() {
            self.end_credit(taker.holder);
            return step.wake(waiter, Outcome::ShutDown);
        }
        let credit = self.credits.entry(taker.holder).or_insert(Credit {
            waiter: None,
            taker,
            left: 0,
            is_hungry: false,
            unstarted: 0,
            started: 0,
            is_recalled: false,
        });
        self.looks_for_work |= !credit.has_work() || credit.waiter.is_none();
        (credit.waiter, credit.taker) = (Some(waiter), taker);
        let joins = credit.left == 0 && more > 0;
        credit.left = credit.left.saturating_add(more);
        if joins {
            self.getters.park(waiter, None, Getter { taker });
        } else if let Some(getter) = self.getters.get_mut(waiter) {
            getter.taker = taker;
        }
        self.serve(step);
    }

    /// A holder takes no more until it gives credit again. Returns what was left.
    pub fn withdraw_credit(&mut self, holder: Holder) -> u32 {
        let Some(credit) = self.credits.get_mut(&holder) else { return 0 };
        if std::mem::take(&mut credit.is_hungry) {
            self.hungry -= 1;
        } else if let Some(waiter) = credit.waiter.filter(|_| credit.left > 0) {
            self.getters.cancel(waiter);
        }
        std::mem::take(&mut credit.left)
    }

    /// The credit of a holder is over. What it has taken stays with it.
    pub fn end_credit(&mut self, holder: Holder) {
        self.withdraw_credit(holder);
        if let Some(credit) = self.credits.get_mut(&holder) {
            credit.waiter = None;
            if credit.is_over() {
                self.credits.remove(&holder);
            }
        }
    }

    /// Takes the first in line, or one task off its credit: then it goes to the end of the line.
    pub(super) fn next_getter(&mut self) -> Option<(WaiterId, Taker)> {
        let taker = self.getters.first()?.taker;
        let credit = self.credits.get_mut(&taker.holder).filter(|_| taker.is_pushed);
        let Some((credit, waiter)) = credit.and_then(|it| it.waiter.map(|waiter| (it, waiter)))
        else {
            return self.getters.pop().map(|(waiter, Getter { taker })| (waiter, taker));
        };
        credit.left -= u32::from(!planted!(PushBeyondCredit));
        // It may have to wait there while somebody behind has nothing to do.
        self.looks_for_work |= credit.has_work() && !planted!(PushedBehindWorkStays);
        credit.unstarted += 1;
        let taker = credit.taker;
        if credit.left == 0 {
            self.getters.pop();
        } else if !planted!(CreditJumpsLine) {
            self.getters.send_back(waiter);
        }
        Some((waiter, taker))
    }

    /// The first in line is told that it gets nothing any more.
    pub(super) fn dismiss_getter(&mut self, outcome: Outcome, step: &mut Step) {
        let Some((waiter, Getter { taker })) = self.getters.pop() else { return };
        step.wake(waiter, outcome);
        if taker.is_pushed {
            self.end_credit(taker.holder);
        }
    }

    /// Nobody who waits gets anything any more.
    pub(super) fn dismiss_getters(&mut self, step: &mut Step) {
        while !self.getters.is_empty() {
            self.dismiss_getter(Outcome::ShutDown, step);
        }
    }

    /// All credit is over, also what is used up.
    pub(super) fn end_credits(&mut self, step: &mut Step) {
        let open = self.credits.iter().filter_map(|(holder, it)| Some((*holder, it.waiter?)));
        for (holder, waiter) in open.collect::<Vec<_>>() {
            step.wake(waiter, Outcome::ShutDown);
            self.end_credit(holder);
        }
    }

    // ---- memory

    /// Whether the first in line has to wait for memory: it is there for more than one task. It
    /// leaves the line then.
    pub(super) fn goes_hungry(&mut self, taker: Taker, step: &Step) -> bool {
        if !taker.is_pushed || step.budget.allows_lease(LEASE_BYTES) {
            return false;
        }
        self.getters.pop();
        if let Some(credit) = self.credits.get_mut(&taker.holder) {
            credit.is_hungry = true;
            self.hungry += 1;
        }
        true
    }

    /// Whether a credit waits for memory.
    pub fn is_hungry(&self) -> bool {
        self.hungry > 0
    }

    /// Whether more can be handed out than one step may do.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Lets credits that waited for memory into the line again.
    pub(super) fn feed(&mut self, step: &Step) {
        if self.hungry == 0 || !step.budget.allows_lease(LEASE_BYTES) {
            return;
        }
        for credit in self.credits.values_mut().filter(|it| it.is_hungry) {
            credit.is_hungry = false;
            if let Some(waiter) = credit.waiter {
                self.getters.park(waiter, None, Getter { taker: credit.taker });
            }
        }
        self.hungry = 0;
    }

    // ---- tasks that are not started

    /// Work on the task of a lease begins. False if the lease is over.
    pub fn start(&mut self, token: Token) -> bool {
        let Some(leased) = self.leased.of_mut(token) else {
            self.tally.stale += 1;
            return false;
        };
        let (holder, is_pushed) = (leased.holder, leased.is_pushed);
        let was_started = std::mem::replace(&mut leased.is_started, true);
        if is_pushed && !was_started && !planted!(RecallTakesStarted) {
            self.count_started(holder);
        }
        true
    }

    /// Whether the task of this lease was pushed, and work on it has not begun.
    pub fn is_unstarted(&self, token: Token) -> bool {
        self.leased.of(token).is_some_and(Leased::lies_there)
    }

    /// Whether work on the task of this lease has not begun, as far as its holder says. If the task
    /// came by `get`, nothing may have been said of it.
    pub fn is_returnable(&self, token: Token) -> bool {
        self.leased.of(token).is_some_and(|leased| !leased.is_started)
    }

    /// This holder has begun with a task that was pushed.
    fn count_started(&mut self, holder: Holder) {
        let Some(credit) = self.credits.get_mut(&holder) else { return };
        credit.unstarted = credit.unstarted.saturating_sub(1);
        credit.started += 1;
        self.looks_for_work |= std::mem::take(&mut credit.is_recalled);
    }

    /// A task that was pushed is not with this holder any more.
    pub(super) fn count_ended(&mut self, holder: Holder, was_started: bool) {
        let Some(credit) = self.credits.get_mut(&holder) else { return };
        self.looks_for_work |= if was_started {
            credit.started = credit.started.saturating_sub(1);
            !credit.has_work()
        } else {
            credit.unstarted = credit.unstarted.saturating_sub(1);
            std::mem::take(&mut credit.is_recalled)
        };
        if credit.is_over() {
            self.credits.remove(&holder);
        }
    }

    /// A holder returns a task that it has not started: it goes to the end of the line, so that it is
    /// not given the same one again while others wait.
    pub(super) fn yield_turn(&mut self, holder: Holder) {
        if let Some(waiter) = self.credits.get(&holder).and_then(|it| it.waiter) {
            self.getters.send_back(waiter);
        }
    }

    /// At the end of a step: whoever has most tasks that are not started is asked for some back, if
    /// somebody waits that has nothing to do. Says who, and for how many.
    ///
    /// The only task of a holder is not asked for on behalf of another credit: both would have it in
    /// turn, for as long as neither starts it.
    pub fn recall(&mut self) -> Option<(WaiterId, u32)> {
        if !std::mem::take(&mut self.looks_for_work) || !self.ready.is_empty() {
            return None;
        }
        let (mut in_line, mut idle) = (0, 0);
        for credit in self.credits.values().filter(|it| it.waits()) {
            in_line += 1;
            idle += usize::from(!credit.has_work());
        }
        let gets = self.getters.len().saturating_sub(in_line);
        let waiting = u32::try_from(gets + idle).ok()?;
        if waiting == 0 {
            return None;
        }
        let keeps = gets == 0;
        let can_give = self.credits.iter_mut().filter(|(_, it)| it.can_be_recalled(keeps));
        let (_, credit) = can_give.max_by_key(|(holder, it)| (it.unstarted, Reverse(**holder)))?;
        credit.is_recalled = true;
        let (waiter, most) = (credit.waiter?, credit.unstarted.div_ceil(2));
        Some((waiter, most.min(waiting)))
    }
}
