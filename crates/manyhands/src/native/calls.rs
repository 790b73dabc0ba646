//! The calls of a client, by their ids.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::hands::Claim;
use super::lines::{Line, Lines, Waits};
use crate::Error;
use crate::retry::Retry;
use crate::verb::Verb;
use crate::wire::arguments::Wait;
use crate::wire::native::Reply;

/// The number of a call, good until it is taken or let go.
pub(crate) type Id = u32;

/// A call that was decided.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) caller: u64,
    /// The handle of its queue, or 0.
    pub(crate) queue: u16,
    pub(crate) verb: Verb,
    pub(crate) outcome: Result<Reply, Error>,
    /// Whether the server may have got the call before.
    pub(crate) is_repeated: bool,
    /// Items of a batch that requests before the last one have added.
    pub(crate) added: usize,
}

impl Decided {
    /// Whose [hand](super::Core::hold) its tasks are in once they were read, and of which queue.
    pub(crate) fn holder(&self) -> Option<(u64, u16)> {
        let is_plain_get = matches!(self.verb, Verb::Get { leased: false, .. });
        is_plain_get.then_some((self.caller, self.queue))
    }
}

#[derive(Debug)]
pub(super) struct Call {
    /// Whose hand it has to do with.
    pub(super) caller: u64,
    pub(super) verb: Verb,
    /// The handle of its queue, or 0.
    pub(super) queue: u16,
    /// Its position among all calls.
    pub(super) number: u64,
    pub(super) stage: Stage,
    pub(super) retry: Retry,
    /// Whether nobody waits for what becomes of it.
    pub(super) is_let_go: bool,
    /// Whether it is a credit that begins when an earlier one of its queue has ended.
    pub(super) is_held: bool,
    /// Whether it is ahead of its caller, who does not wait for it yet.
    pub(super) is_ahead: bool,
    /// Why its caller waits no longer, if the reply is overdue.
    pub(super) overdue: Option<Error>,
    /// What it settles if its items are accepted.
    pub(super) claim: Claim,
    /// Items that were added, and items in the request that is under way.
    pub(super) added: usize,
    pub(super) piece: usize,
    /// Whether it is a credit of which more was asked than that it begins, on this connection.
    pub(super) asked_more: bool,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// It waits for a connection, or for others to be answered.
    Waits,
    /// Its frame is behind this many bytes of the connection.
    Sent {
        behind: u64,
        since: Instant,
    },
    Decided(Result<Reply, Error>),
}

impl Call {
    /// How long its answer may take; `None` is for ever.
    pub(super) fn limit(&self, margin: Duration) -> Option<Duration> {
        self.verb.patience().map(|patience| patience.saturating_add(margin))
    }

    /// Where it stands in line. What must come after the puts of its queue stands behind them.
    fn line(&self) -> Line {
        let line = |waits| Line { queue: self.queue, waits };
        match self.verb {
            Verb::Put { wait: Wait::No, .. }
            | Verb::Get { wait: Wait::No, .. }
            | Verb::Settle { wait: Wait::No, .. } => line(Waits::Nothing),
            Verb::Put { .. }
            | Verb::PutMany { .. }
            | Verb::Join
            | Verb::Shutdown { .. }
            | Verb::Purge
            | Verb::Close => line(Waits::Room),
            Verb::Get { .. } => line(Waits::Items),
            Verb::Settle { .. } => line(Waits::Results),
            Verb::Credit { .. } => line(Waits::Credit),
            _ => line(Waits::Nothing),
        }
    }

    /// Whether older calls of its queue must go first, whatever they wait for.
    fn is_last(&self) -> bool {
        matches!(self.verb, Verb::Close | Verb::Shutdown { .. } | Verb::Purge)
    }

    /// Whether its items are the results of tasks in hand, which one step settles and adds.
    pub(super) fn is_answer(&self) -> bool {
        let is_plain = !matches!(
            self.verb,
            Verb::Put { terms: Some(_), .. } | Verb::Put { numbered: true, .. }
        );
        !self.claim.answered.is_empty() && is_plain
    }

    fn is_credit(&self) -> bool {
        matches!(self.verb, Verb::Credit { .. })
    }

    fn waits(&self) -> bool {
        matches!(self.stage, Stage::Waits) && !self.is_held
    }
}

/// All calls that were not taken or let go.
#[derive(Debug, Default)]
pub(super) struct Calls {
    calls: Vec<Option<Call>>,
    free: Vec<Id>,
    /// Ids of credits that the server has ended after more was asked for. That may have been on its way,
    /// and its reply is still to come: no other call gets such an id on this connection.
    ended: BTreeSet<Id>,
    made: u64,
    /// How many are not decided.
    open: usize,
    lines: Lines,
    /// Those that were decided since somebody looked.
    pub(super) decided: VecDeque<Id>,
}

impl Calls {
    pub(super) fn add(&mut self, caller: u64, queue: u16, verb: Verb, retry: Retry) -> Id {
        let number = self.made;
        self.made += 1;
        self.open += 1;
        let call = Call {
            caller,
            verb,
            queue,
            number,
            stage: Stage::Waits,
            retry,
            is_let_go: false,
            is_held: false,
            is_ahead: false,
            overdue: None,
            claim: Claim::default(),
            added: 0,
            piece: 0,
            asked_more: false,
        };
        let line = call.line();
        let id = self.free.pop().unwrap_or_else(|| {
            self.calls.push(None);
            // Each call takes memory, which ends before the numbers do.
            Id::try_from(self.calls.len() - 1).unwrap_or(Id::MAX)
        });
        if let Some(place) = self.calls.get_mut(id as usize) {
            *place = Some(call);
        }
        self.lines.push(line, number, id);
        id
    }

    pub(super) fn get(&mut self, id: Id) -> Option<&mut Call> {
        self.calls.get_mut(id as usize)?.as_mut()
    }

    pub(super) fn remove(&mut self, id: Id) -> Option<Call> {
        let call = self.calls.get_mut(id as usize)?.take()?;
        if !self.ended.contains(&id) {
            self.free.push(id);
        }
        if !matches!(call.stage, Stage::Decided(_)) {
            self.open -= 1;
        }
        Some(call)
    }

    /// Notes that the server has ended a credit. It may not have got all that was asked by then.
    pub(super) fn credit_ended(&mut self, id: Id) {
        if self.get(id).is_some_and(|call| call.asked_more) {
            self.ended.insert(id);
        }
    }

    /// Whether the server has ended the credit with this id.
    pub(super) fn is_ended_credit(&self, id: Id) -> bool {
        self.ended.contains(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Id, &Call)> {
        (0..).zip(&self.calls).filter_map(|(id, call)| Some((id, call.as_ref()?)))
    }

    pub(super) fn ids(&self, is_wanted: impl Fn(&Call) -> bool) -> Vec<Id> {
        self.iter().filter(|(_, call)| is_wanted(call)).map(|(id, _)| id).collect()
    }

    /// The next call that may be sent. It stays the next one until it waits no longer.
    pub(super) fn next(&mut self, pending_max: u32) -> Option<Id> {
        let call = |id: Id| self.calls.get(id as usize).and_then(Option::as_ref);
        let waits = |number, id| call(id).is_some_and(|it| it.number == number && it.waits());
        let is_last = |id| call(id).is_some_and(Call::is_last);
        let is_early = |id| call(id).is_some_and(|it| has_credit_ending(&self.calls, it));
        self.lines.next(pending_max, waits, is_last, is_early)
    }

    /// Notes that the next request of a call was sent.
    pub(super) fn sent(&mut self, id: Id, behind: u64, since: Instant) {
        if let Some(call) = self.calls.get_mut(id as usize).and_then(Option::as_mut) {
            call.stage = Stage::Sent { behind, since };
            self.lines.sent(call.line());
        }
    }

    /// Notes that a request of a call has its reply.
    pub(super) fn landed(&mut self, id: Id) {
        if let Some(call @ Call { stage: Stage::Sent { .. }, .. }) =
            self.calls.get(id as usize).and_then(Option::as_ref)
        {
            self.lines.landed(call.line());
        }
    }

    /// Has a call wait once more, before those that were made after it.
    pub(super) fn wait_again(&mut self, id: Id) {
        self.landed(id);
        if let Some(call) = self.calls.get_mut(id as usize).and_then(Option::as_mut) {
            call.stage = Stage::Waits;
            self.lines.push_first(call.line(), call.number, id);
        }
    }

    /// Has a call that was held stand in line.
    pub(super) fn release(&mut self, id: Id) {
        if let Some(call) = self.calls.get_mut(id as usize).and_then(Option::as_mut) {
            call.is_held = false;
            self.lines.push_first(call.line(), call.number, id);
        }
    }

    /// Notes that nothing is in flight any more. All calls that wait stand in line in the order in
    /// which they were made.
    pub(super) fn line_up(&mut self) {
        for call in self.calls.iter_mut().flatten() {
            (call.is_held, call.asked_more) = (false, false);
        }
        let ended = std::mem::take(&mut self.ended).into_iter();
        let is_free = |id: &Id| self.calls.get(*id as usize).is_some_and(Option::is_none);
        self.free.extend(ended.filter(is_free));
        let mut waiting: Vec<_> = (self.iter().filter(|(_, call)| call.waits()))
            .map(|(id, call)| (call.number, id, call.line()))
            .collect();
        waiting.sort_unstable_by_key(|(number, ..)| *number);
        self.lines.clear();
        waiting.into_iter().for_each(|(number, id, line)| self.lines.push(line, number, id));
    }

    /// Whether no request is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.lines.is_idle()
    }

    /// Whether no call is ahead of its caller.
    pub(super) fn is_flushed(&self) -> bool {
        let is_decided = |call: &Call| matches!(call.stage, Stage::Decided(_));
        self.iter().all(|(_, call)| !call.is_ahead || is_decided(call))
    }

    /// How many are not decided.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// Whether any call waits for a connection.
    pub(super) fn is_waiting(&self) -> bool {
        self.iter().any(|(_, call)| call.waits())
    }

    /// How long the most patient of the calls that wait for a connection will do so.
    pub(super) fn patience(&self, now: Instant) -> Option<Duration> {
        let waiting = self.iter().filter(|(_, call)| call.waits());
        waiting.map(|(_, call)| call.retry.left(now)).max()
    }

    pub(super) fn is_all_decided(&self) -> bool {
        self.open == 0
    }

    /// Notes what became of a call.
    pub(super) fn decide(&mut self, id: Id, outcome: Result<Reply, Error>) {
        self.landed(id);
        let Some(call) = self.get(id) else { return };
        let stage = std::mem::replace(&mut call.stage, Stage::Decided(outcome));
        call.overdue = None;
        let is_let_go = call.is_let_go;
        if !matches!(stage, Stage::Decided(_)) {
            self.open -= 1;
        }
        if is_let_go {
            self.remove(id);
        } else {
            self.decided.push_back(id);
        }
    }

    /// Notes that the reply to a call is overdue. It stays in flight.
    pub(super) fn overdue(&mut self, id: Id, error: Error) {
        if let Some(call) = self.get(id) {
            call.overdue = Some(error);
            self.decided.push_back(id);
        }
    }

    /// Takes what became of a call, if that is decided.
    pub(super) fn take(&mut self, id: Id) -> Option<Decided> {
        let call = self.get(id)?;
        if let Some(error) = call.overdue.take() {
            call.is_let_go = true;
            let Call { caller, queue, added, .. } = *call;
            let (verb, outcome) = (Verb::Connect, Err(error));
            let is_repeated = call.retry.is_repeated;
            return Some(Decided { caller, queue, verb, outcome, is_repeated, added });
        }
        if !matches!(call.stage, Stage::Decided(_)) {
            return None;
        }
        let Call { caller, queue, verb, stage, retry, added, .. } = self.remove(id)?;
        let Stage::Decided(outcome) = stage else { return None };
        Some(Decided { caller, queue, verb, outcome, is_repeated: retry.is_repeated, added })
    }
}

/// Whether a call gives credit for a queue whose credit before is being ended: there is one at a time.
fn has_credit_ending(calls: &[Option<Call>], of: &Call) -> bool {
    let ends = |call: &Call| {
        let is_sent = matches!(call.stage, Stage::Sent { .. });
        call.is_credit() && call.queue == of.queue && call.is_let_go && is_sent
    };
    of.is_credit() && calls.iter().flatten().any(ends)
}
