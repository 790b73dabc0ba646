//! The calls of a client, by their ids.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::Error;
use crate::retry::Retry;
use crate::verb::Verb;
use crate::wire::native::Reply;

/// The number of a call, good until it is taken or let go.
pub(crate) type Id = u32;

/// A call that was decided.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) verb: Verb,
    pub(crate) outcome: Result<Reply, Error>,
    /// Whether the server may have got the call before.
    pub(crate) is_repeated: bool,
}

#[derive(Debug)]
pub(super) struct Call {
    pub(super) verb: Verb,
    /// The handle of its queue, or 0.
    pub(super) queue: u16,
    /// Its position among all calls.
    pub(super) number: u64,
    pub(super) stage: Stage,
    pub(super) retry: Retry,
    /// Whether nobody waits for what becomes of it.
    pub(super) is_let_go: bool,
    /// Why its caller waits no longer, if the reply is overdue.
    pub(super) overdue: Option<Error>,
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
}

/// All calls that were not taken or let go.
#[derive(Debug, Default)]
pub(super) struct Calls {
    calls: Vec<Option<Call>>,
    free: Vec<Id>,
    made: u64,
    /// Those that wait, in their order; some of them wait no longer.
    line: VecDeque<(u64, Id)>,
    /// Those that were decided since somebody looked.
    pub(super) decided: VecDeque<Id>,
}

impl Calls {
    pub(super) fn add(&mut self, queue: u16, verb: Verb, retry: Retry, is_let_go: bool) -> Id {
        let number = self.made;
        self.made += 1;
        let call =
            Call { verb, queue, number, stage: Stage::Waits, retry, is_let_go, overdue: None };
        let id = self.free.pop().unwrap_or_else(|| {
            self.calls.push(None);
            // Each call takes memory, which ends before the numbers do.
            Id::try_from(self.calls.len() - 1).unwrap_or(Id::MAX)
        });
        if let Some(place) = self.calls.get_mut(id as usize) {
            *place = Some(call);
        }
        self.line.push_back((number, id));
        id
    }

    pub(super) fn get(&mut self, id: Id) -> Option<&mut Call> {
        self.calls.get_mut(id as usize)?.as_mut()
    }

    pub(super) fn remove(&mut self, id: Id) -> Option<Call> {
        let call = self.calls.get_mut(id as usize)?.take()?;
        self.free.push(id);
        Some(call)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Id, &Call)> {
        (0..).zip(&self.calls).filter_map(|(id, call)| Some((id, call.as_ref()?)))
    }

    pub(super) fn ids(&self, is_wanted: impl Fn(&Call) -> bool) -> Vec<Id> {
        self.iter().filter(|(_, call)| is_wanted(call)).map(|(id, _)| id).collect()
    }

    /// The next call that waits. It stays the next one until it waits no longer.
    pub(super) fn next(&mut self) -> Option<(Id, &mut Call)> {
        while let Some((number, id)) = self.line.front().copied() {
            let waits = |call: &Call| call.number == number && matches!(call.stage, Stage::Waits);
            if self.calls.get(id as usize).is_some_and(|call| call.as_ref().is_some_and(waits)) {
                return self.get(id).map(|call| (id, call));
            }
            self.line.pop_front();
        }
        None
    }

    /// Has all calls that wait stand in line in the order in which they were made, but first those
    /// that are `urgent`.
    pub(super) fn line_up(&mut self, urgent: impl Fn(&Call) -> bool) {
        let waits = |call: &Call| matches!(call.stage, Stage::Waits);
        let mut line: Vec<_> = (self.iter().filter(|(_, call)| waits(call)))
            .map(|(id, call)| (!urgent(call), call.number, id))
            .collect();
        line.sort_unstable();
        self.line = line.into_iter().map(|(_, number, id)| (number, id)).collect();
    }

    pub(super) fn len(&self) -> usize {
        self.calls.len() - self.free.len()
    }

    /// Whether any call waits for a connection.
    pub(super) fn is_waiting(&self) -> bool {
        self.iter().any(|(_, call)| matches!(call.stage, Stage::Waits))
    }

    /// How long the most patient of the calls that wait for a connection will do so.
    pub(super) fn patience(&self, now: Instant) -> Option<Duration> {
        let waits = self.iter().filter(|(_, call)| matches!(call.stage, Stage::Waits));
        waits.map(|(_, call)| call.retry.left(now)).max()
    }

    pub(super) fn is_all_decided(&self) -> bool {
        self.iter().all(|(_, call)| matches!(call.stage, Stage::Decided(_)))
    }

    /// Notes what became of a call.
    pub(super) fn decide(&mut self, id: Id, outcome: Result<Reply, Error>) {
        let Some(call) = self.get(id) else { return };
        (call.stage, call.overdue) = (Stage::Decided(outcome), None);
        if call.is_let_go {
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
            let (verb, outcome) = (Verb::Connect, Err(error));
            return Some(Decided { verb, outcome, is_repeated: call.retry.is_repeated });
        }
        if !matches!(call.stage, Stage::Decided(_)) {
            return None;
        }
        let Call { verb, stage, retry, .. } = self.remove(id)?;
        let Stage::Decided(outcome) = stage else { return None };
        Some(Decided { verb, outcome, is_repeated: retry.is_repeated })
    }
}
