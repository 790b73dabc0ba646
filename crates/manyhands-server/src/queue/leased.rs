//! Tasks that are with somebody, by their ids.
//!
//! Tasks that are taken for good in one step mostly follow one another, and are settled together
//! once their reply is sent. They share an entry, a *run*, which is split where one of them ends
//! otherwise.
//!
//! Invariant: each run is under the id of its first task, and no two overlap.

use std::collections::BTreeMap;
use std::time::Duration;

use manyhands::wire::pickle::Payload;

use super::task::RUN_LEN_MAX;
use super::{Holder, TaskId, Time, Token, TokenRun};

/// What a leased task takes besides its payload, in bytes: its place in the table, at the half to
/// two thirds that tree nodes and tables are full on average, and the handles of its payload.
pub(crate) const LEASE_BYTES: u64 = 450;

/// All tasks of a queue that are with somebody.
#[derive(Debug, Default)]
pub(super) struct LeaseTable {
    /// Boxed, because the nodes of a small tree are made and freed with its first and last entry.
    runs: BTreeMap<TaskId, Box<Leased>>,
    len: u64,
}

/// A task with somebody, or a run of them.
#[derive(Debug)]
pub(super) struct Leased {
    pub(super) payload: Payload,
    pub(super) token: Token,
    pub(super) holder: Holder,
    pub(super) since: Time,
    pub(super) deadline: Option<Time>,
    /// How long its holder asked for, if it settles the task by the token.
    pub(super) hold: Option<Duration>,
    /// How long it may last by what was asked for; `max_run` limits it further.
    pub(super) limit: Option<Duration>,
    /// Its result waits for room: nobody else is to do it again.
    pub(super) claimed: bool,
    /// It came by credit, or how it came is forgotten.
    pub(super) is_pushed: bool,
    /// Work on it has begun, as far as its holder says.
    pub(super) is_started: bool,
    /// Payloads of the tasks behind it in a run, of which all else is the same.
    pub(super) others: Vec<Payload>,
}

impl LeaseTable {
    /// Number of tasks.
    pub(super) fn len(&self) -> usize {
        usize::try_from(self.len).unwrap_or(usize::MAX)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The task that was put first.
    pub(super) fn first(&self) -> Option<TaskId> {
        self.runs.first_key_value().map(|(first, _)| *first)
    }

    /// The lease of a task.
    pub(super) fn get(&self, task: TaskId) -> Option<(Token, &Leased)> {
        // Most runs are of one task.
        if let Some(leased) = self.runs.get(&task) {
            return Some((leased.token, leased));
        }
        let (first, leased) = self.runs.range(..task).next_back()?;
        let at = task.0 - first.0;
        (at < leased.len()).then(|| (leased.token.behind(at), &**leased))
    }

    /// The lease that a token names.
    pub(super) fn of(&self, token: Token) -> Option<&Leased> {
        self.get(token.task).filter(|(own, _)| *own == token).map(|(_, leased)| leased)
    }

    /// The same to be changed: it is alone then.
    pub(super) fn of_mut(&mut self, token: Token) -> Option<&mut Leased> {
        if self.of(token)?.len() > 1 {
            let alone = self.remove(token.into())?;
            self.insert(alone);
        }
        self.runs.get_mut(&token.task).map(|leased| &mut **leased)
    }

    /// Adds a lease of a task that is not here.
    pub(super) fn insert(&mut self, leased: impl Into<Box<Leased>>) {
        let leased = leased.into();
        self.len += leased.len();
        self.runs.insert(leased.token.task, leased);
    }

    /// Adds a lease without limits to the last run, if it is the next one there; false if not.
    pub(super) fn append(
        &mut self,
        token: Token,
        holder: Holder,
        now: Time,
        payload: &Payload,
    ) -> bool {
        let Some(mut last) = self.runs.last_entry() else { return false };
        let run = last.get_mut();
        let continues = run.len() < RUN_LEN_MAX
            && run.token.behind(run.len()) == token
            && (run.holder, run.since) == (holder, now)
            && run.is_plain();
        if continues {
            run.others.push(payload.clone());
            self.len += 1;
        }
        continues
    }

    /// Takes out the first of some leases, and those behind it that are in the same run.
    pub(super) fn remove(&mut self, tokens: TokenRun) -> Option<Box<Leased>> {
        let first = self.of(tokens.first)?.token.task;
        let mut leased = self.runs.remove(&first)?;
        self.len -= leased.len();
        if let Some(wanted) = leased.split_off(tokens.first.task.0 - first.0) {
            self.insert(std::mem::replace(&mut leased, Box::new(wanted)));
        }
        if let Some(rest) = leased.split_off(tokens.len) {
            self.insert(rest);
        }
        Some(leased)
    }

    /// Takes out the first run.
    pub(super) fn pop_first(&mut self) -> Option<Box<Leased>> {
        let (_, leased) = self.runs.pop_first()?;
        self.len -= leased.len();
        Some(leased)
    }

    /// The tasks behind `after`, in order.
    pub(super) fn tasks(&self, after: Option<TaskId>) -> impl Iterator<Item = (TaskId, &Payload)> {
        let run = after.and_then(|after| self.runs.range(..=after).next_back());
        let first = run.map_or(TaskId(0), |(first, _)| *first);
        let is_before = move |task: TaskId| after.is_some_and(|after| task <= after);
        let tasks = self.runs.range(first..).flat_map(|(_, leased)| leased.tasks());
        tasks.skip_while(move |(task, _)| is_before(*task))
    }
}

impl Leased {
    pub(super) fn new(token: Token, holder: Holder, payload: Payload, since: Time) -> Self {
        Self {
            payload,
            token,
            holder,
            since,
            deadline: None,
            hold: None,
            limit: None,
            claimed: false,
            is_pushed: false,
            is_started: false,
            others: Vec::new(),
        }
    }

    /// Number of tasks.
    pub(super) fn len(&self) -> u64 {
        1 + self.others.len() as u64
    }

    /// What it takes from the budget, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let others = self.others.iter().map(lease_bytes);
        lease_bytes(&self.payload) + others.sum::<u64>()
    }

    pub(super) fn tokens(&self) -> TokenRun {
        TokenRun { first: self.token, len: self.len() }
    }

    fn tasks(&self) -> impl Iterator<Item = (TaskId, &Payload)> {
        let payloads = std::iter::once(&self.payload).chain(&self.others);
        self.tokens().iter().map(|token| token.task).zip(payloads)
    }

    /// Whether it was pushed and lies with its holder, who has not begun with it.
    pub(super) fn lies_there(&self) -> bool {
        self.is_pushed && !self.is_started
    }

    /// Whether it has no limits, and nothing has happened to it.
    fn is_plain(&self) -> bool {
        let has_limit = self.deadline.is_some() || self.hold.is_some();
        !has_limit && !self.claimed && !self.is_pushed && !self.is_started
    }

    /// Splits off all but the first `len` tasks; nothing if there are no more, or if that is all.
    fn split_off(&mut self, len: u64) -> Option<Self> {
        if !(1..self.len()).contains(&len) {
            return None;
        }
        let mut others = self.others.split_off(usize::try_from(len - 1).ok()?);
        let payload = others.remove(0);
        let token = self.token.behind(len);
        let Self { holder, since, deadline, hold, limit, claimed, is_pushed, is_started, .. } =
            *self;
        let rest = Self {
            payload,
            token,
            holder,
            since,
            deadline,
            hold,
            limit,
            claimed,
            is_pushed,
            is_started,
            others,
        };
        Some(rest)
    }
}

/// What a task takes that is with somebody.
pub(super) fn lease_bytes(payload: &Payload) -> u64 {
    LEASE_BYTES + payload.bytes.len() as u64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn token(task: u64) -> Token {
        Token { task: TaskId(task), attempt: 1, lease: 1000 + task }
    }

    fn payload(task: u64) -> Payload {
        Payload::pickle(4, Bytes::copy_from_slice(&task.to_le_bytes()))
    }

    /// A table with these tasks of one holder, which are runs as far as they follow one another.
    fn table(tasks: impl IntoIterator<Item = u64>) -> LeaseTable {
        let mut table = LeaseTable::default();
        for task in tasks {
            let (token, payload) = (token(task), payload(task));
            let (holder, now) = (Holder(1), Time::default());
            if !table.append(token, holder, now, &payload) {
                table.insert(Leased::new(token, holder, payload, now));
            }
        }
        table
    }

    #[test]
    fn what_follows_one_another_is_one_run_of_bounded_length() {
        let lens =
            |table: &LeaseTable| table.runs.values().map(|run| run.len()).collect::<Vec<_>>();
        assert_eq!(lens(&table((0..10).chain(12..20))), [10, 8]);
        assert_eq!(lens(&table(0..RUN_LEN_MAX + 1)), [RUN_LEN_MAX, 1]);
    }

    #[test]
    fn a_task_to_which_something_happens_stands_alone() {
        let mut table = table(0..10);
        table.of_mut(token(4)).unwrap().claimed = true;
        assert!(table.of(token(4)).unwrap().claimed);
        assert!(!table.of(token(3)).unwrap().claimed && !table.of(token(5)).unwrap().claimed);
        assert_eq!((table.runs.len(), table.len()), (3, 10));
        assert!(table.of_mut(Token { lease: 1, ..token(5) }).is_none(), "an earlier lease");
        let whole = table.remove(TokenRun { first: token(5), len: 99 }).unwrap();
        assert_eq!((whole.token, whole.len(), table.len()), (token(5), 5, 5));
    }

    proptest! {
        #[test]
        fn any_part_of_a_run_ends_and_the_rest_stays(
            len in 1u64..40,
            parts in prop::collection::vec((0u64..40, 1u64..10), 0..20),
        ) {
            let mut table = table(0..len);
            let mut model: BTreeMap<_, _> = (0..len).map(|task| (task, payload(task))).collect();
            for (first, count) in parts {
                let removed = table.remove(TokenRun { first: token(first), len: count });
                prop_assert_eq!(removed.is_some(), model.contains_key(&first));
                let removed = removed.iter().flat_map(|removed| removed.tasks());
                for (at, (task, payload)) in removed.enumerate() {
                    prop_assert_eq!(task.0, first + at as u64);
                    let expected = model.remove(&task.0);
                    prop_assert_eq!(expected.as_ref(), Some(payload));
                }
                prop_assert_eq!(table.len(), model.len());
                prop_assert_eq!(table.first().map(|first| first.0), model.keys().next().copied());
                for task in 0..len {
                    let own = model.get(&task).map(|_| token(task));
                    prop_assert_eq!(table.get(TaskId(task)).map(|(token, _)| token), own);
                }
                for after in [None, Some(first)] {
                    let behind = model.iter().filter(|(task, _)| after < Some(**task));
                    let behind: Vec<_> = behind.map(|(task, it)| (TaskId(*task), it)).collect();
                    prop_assert_eq!(table.tasks(after.map(TaskId)).collect::<Vec<_>>(), behind);
                }
            }
        }
    }
}
