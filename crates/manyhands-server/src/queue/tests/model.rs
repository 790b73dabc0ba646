//! Random calls against a model that says the rules in the plainest way.
//!
//! In the model everybody joins the end of a line, and then whatever can happen does, one thing at
//! a time. Who is still in line and has no patience leaves it.

use proptest::prelude::*;

use super::*;
use crate::queue::key::Key;

struct Model {
    options: QueueOptions,
    phase: Phase,
    ready: Vec<Task>,
    getters: Vec<(WaiterId, Option<Time>, u8)>,
    putters: Vec<(WaiterId, Option<Time>, Payload)>,
    joiners: Vec<WaiterId>,
    unfinished: u64,
    next_id: u64,
    budget: Budget,
    wakes: Vec<Wake>,
}

impl Model {
    fn put(
        &mut self,
        payload: Payload,
        patience: Patience,
        waiter: WaiterId,
    ) -> Result<Option<Outcome>, OrderError> {
        if self.phase != Phase::Open {
            return Ok(Some(Outcome::ShutDown));
        }
        self.check(&payload)?;
        self.putters.push((waiter, deadline(patience), payload));
        self.settle();
        if patience == Patience::Now && self.cancel(waiter) {
            return Ok(Some(Outcome::Full));
        }
        Ok(self.outcome_of(waiter))
    }

    fn get(&mut self, reader: u8, patience: Patience, waiter: WaiterId) -> Option<Outcome> {
        self.getters.push((waiter, deadline(patience), reader));
        self.settle();
        if patience == Patience::Now && self.cancel(waiter) {
            return Some(Outcome::Empty);
        }
        self.outcome_of(waiter)
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

    fn shutdown(&mut self, immediate: bool) {
        if immediate {
            self.phase = Phase::Closed;
            for task in std::mem::take(&mut self.ready) {
                self.budget.used -= self.cost(&task.payload);
                self.unfinished = self.unfinished.saturating_sub(1);
            }
        } else if self.phase == Phase::Open {
            self.phase = Phase::Draining;
        }
        self.settle();
    }

    fn restore(&mut self, task: Task) {
        if self.phase == Phase::Closed {
            self.unfinished = self.unfinished.saturating_sub(1);
        } else {
            self.budget.used += self.cost(&task.payload);
            self.ready.push(task);
        }
        self.settle();
    }

    fn expire(&mut self, now: Time) {
        let due = |deadline: Option<Time>| deadline.is_some_and(|deadline| deadline <= now);
        for (waiter, ..) in self.getters.extract_if(.., |(_, deadline, _)| due(*deadline)) {
            self.wakes.push((waiter, Outcome::Empty));
        }
        for (waiter, ..) in self.putters.extract_if(.., |(_, deadline, _)| due(*deadline)) {
            self.wakes.push((waiter, Outcome::Full));
        }
        self.settle();
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
            self.wakes.extend(self.getters.drain(..).map(|(id, ..)| (id, Outcome::ShutDown)));
            self.wakes.extend(self.putters.drain(..).map(|(id, ..)| (id, Outcome::ShutDown)));
        }
        if self.unfinished == 0 {
            self.wakes.extend(self.joiners.drain(..).map(|id| (id, Outcome::Joined)));
        }
    }

    fn admit_one(&mut self) -> bool {
        let Some((_, _, payload)) = self.putters.first() else { return false };
        let fits = self.budget.used + self.cost(payload) <= self.budget.max;
        if self.phase != Phase::Open || self.is_full() || !fits {
            return false;
        }
        let (waiter, _, payload) = self.putters.remove(0);
        let outcome = match self.check(&payload) {
            Ok(()) => {
                self.budget.used += self.cost(&payload);
                let task = self.accept(payload);
                self.ready.push(task);
                Outcome::Accepted
            }
            Err(error) => Outcome::Unorderable(error),
        };
        self.wakes.push((waiter, outcome));
        true
    }

    fn serve_one(&mut self) -> bool {
        let next = self.next();
        let protocol = match (next, self.putters.first()) {
            (Some(next), _) => self.ready[next].payload.protocol,
            (None, Some((_, _, payload))) => payload.protocol,
            (None, None) => return false,
        };
        if self.getters.is_empty() {
            return false;
        }
        let (getter, _, reader) = self.getters.remove(0);
        let outcome = if protocol > reader {
            Outcome::Unreadable { protocol }
        } else if let Some(next) = next {
            let task = self.ready.remove(next);
            self.budget.used -= self.cost(&task.payload);
            Outcome::Task(task)
        } else {
            let (putter, _, payload) = self.putters.remove(0);
            self.wakes.push((putter, Outcome::Accepted));
            Outcome::Task(self.accept(payload))
        };
        self.wakes.push((getter, outcome));
        true
    }

    fn next(&self) -> Option<usize> {
        let all = 0..self.ready.len();
        match self.options.order {
            Order::Fifo => all.min_by_key(|&at| self.ready[at].id),
            Order::Lifo => all.max_by_key(|&at| self.ready[at].id),
            Order::Priority => {
                all.min_by_key(|&at| (Key::of(&self.ready[at].payload), self.ready[at].id))
            }
        }
    }

    /// The keys next to a payload's; `key.rs` shows that they speak for all.
    fn check(&self, payload: &Payload) -> Result<(), OrderError> {
        if self.options.order != Order::Priority {
            return Ok(());
        }
        let key = Key::of(payload);
        let mut keys: Vec<_> = self.ready.iter().map(|task| Key::of(&task.payload)).collect();
        keys.sort();
        let below = keys.iter().rev().find(|at| **at <= key);
        let above = keys.iter().find(|at| **at > key);
        below.into_iter().chain(above).try_for_each(|at| key.check_against(at))
    }

    fn cost(&self, payload: &Payload) -> u64 {
        Ready::new(self.options.order).candidate(payload.clone()).cost
    }

    fn accept(&mut self, payload: Payload) -> Task {
        self.unfinished += 1;
        self.next_id += 1;
        Task { id: TaskId(self.next_id - 1), payload }
    }

    fn is_full(&self) -> bool {
        self.options.maxsize != 0 && self.ready.len() >= self.options.maxsize
    }

    /// What a call was answered at once.
    fn outcome_of(&mut self, waiter: WaiterId) -> Option<Outcome> {
        let at = self.wakes.iter().position(|(id, _)| *id == waiter)?;
        Some(self.wakes.remove(at).1)
    }
}

fn deadline(patience: Patience) -> Option<Time> {
    match patience {
        Patience::Until(deadline) => Some(deadline),
        Patience::Now | Patience::Forever => None,
    }
}

#[derive(Debug, Clone)]
enum Call {
    Put {
        object: Vec<u8>,
        protocol: u8,
        wait: Wait,
    },
    Get {
        reader: u8,
        wait: Wait,
    },
    TaskDone,
    Join,
    /// One of the waiters gives up.
    Cancel(prop::sample::Index),
    /// Time goes on by so many seconds.
    Expire(u64),
    /// One of the tasks in hand is given back.
    Restore(prop::sample::Index),
    /// Other queues take so much of the budget now.
    Others(u64),
    Shutdown {
        immediate: bool,
    },
}

#[derive(Debug, Clone, Copy)]
enum Wait {
    No,
    Seconds(u64),
    Forever,
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let wait =
        || prop_oneof![Just(Wait::No), (0u64..4).prop_map(Wait::Seconds), Just(Wait::Forever)];
    let object = prop_oneof![
        // 0 to 3, (0,) to (1,), two dicts, None, text, and a payload too large for a chunk
        6 => (0u8..4).prop_map(|n| vec![b'K', n]),
        2 => (0u8..2).prop_map(|n| vec![b'K', n, 0x85]),
        1 => (0u8..2).prop_map(|n| vec![b'}', b'K', n, b'N', b's']),
        1 => Just(vec![b'N']),
        1 => Just(text("text").bytes.to_vec()),
        1 => Just(text(&"long".repeat(1200)).bytes.to_vec()),
    ];
    let index = any::<prop::sample::Index>;
    let call = prop_oneof![
        30 => (object, 2u8..5, wait())
            .prop_map(|(object, protocol, wait)| Call::Put { object, protocol, wait }),
        25 => (2u8..6, wait()).prop_map(|(reader, wait)| Call::Get { reader, wait }),
        6 => Just(Call::TaskDone),
        2 => Just(Call::Join),
        6 => index().prop_map(Call::Cancel),
        4 => (0u64..3).prop_map(Call::Expire),
        8 => index().prop_map(Call::Restore),
        4 => (0u64..200).prop_map(Call::Others),
        1 => any::<bool>().prop_map(|immediate| Call::Shutdown { immediate }),
    ];
    prop::collection::vec(call, 1..150)
}

fn options() -> impl Strategy<Value = QueueOptions> {
    let order = prop_oneof![Just(Order::Fifo), Just(Order::Lifo), Just(Order::Priority)];
    (order, 0usize..4).prop_map(|(order, maxsize)| QueueOptions { order, maxsize })
}

/// A pickled object behind a number that only tells it from others: put on the stack and dropped.
fn tagged(tag: u64, object: &[u8], protocol: u8) -> Payload {
    let tag = u32::try_from(tag).unwrap().to_le_bytes();
    let bytes = Bytes::from([b"J", tag.as_slice(), b"0", object].concat());
    Payload { protocol, prelude_len: 6, bytes }
}

fn sorted(mut wakes: Vec<Wake>) -> Vec<Wake> {
    wakes.sort_by_key(|(waiter, _)| *waiter);
    wakes
}

fn run(options: QueueOptions, max: u64, calls: Vec<Call>) {
    let mut rig = Rig { budget: Budget::new(max), ..rig(options) };
    let mut model = Model {
        options,
        phase: Phase::Open,
        ready: vec![],
        getters: vec![],
        putters: vec![],
        joiners: vec![],
        unfinished: 0,
        next_id: 0,
        budget: Budget::new(max),
        wakes: vec![],
    };
    let (mut now, mut others) = (Time::default(), 0);
    let (mut accepted, mut given, mut in_hand, mut dropped) = (0, 0, Vec::new(), 0);
    for call in calls {
        let waiter = rig.call();
        let patience = |wait| match wait {
            Wait::No => Patience::Now,
            Wait::Seconds(seconds) => Patience::Until(now + Duration::from_secs(seconds)),
            Wait::Forever => Patience::Forever,
        };
        let Rig { queue, budget, wakes, .. } = &mut rig;
        let mut outcome = None;
        match call {
            Call::Put { object, protocol, wait } => {
                let payload = tagged(waiter.0, &object, protocol);
                let expected = model.put(payload.clone(), patience(wait), waiter);
                let found = queue.put(payload, patience(wait), waiter, budget, wakes);
                assert_eq!(found, expected);
                outcome = found.ok().flatten();
            }
            Call::Get { reader, wait } => {
                outcome = queue.get(reader, patience(wait), waiter, budget, wakes);
                assert_eq!(outcome, model.get(reader, patience(wait), waiter));
            }
            Call::TaskDone => assert_eq!(queue.task_done(wakes), model.task_done()),
            Call::Join => assert_eq!(queue.join(waiter), model.join(waiter)),
            Call::Cancel(index) => {
                let waiting = model.waiting();
                let gone = if waiting.is_empty() { waiter } else { *index.get(&waiting) };
                assert_eq!(queue.cancel(gone, budget, wakes), model.cancel(gone));
                model.settle();
            }
            Call::Expire(seconds) => {
                now = now + Duration::from_secs(seconds);
                queue.expire(now, budget, wakes);
                model.expire(now);
            }
            Call::Restore(index) => {
                if !in_hand.is_empty() {
                    let task: Task = in_hand.swap_remove(index.index(in_hand.len()));
                    given -= 1;
                    dropped += usize::from(model.phase == Phase::Closed);
                    queue.restore(task.clone(), budget, wakes);
                    model.restore(task);
                }
            }
            Call::Others(bytes) => {
                for budget in [&mut *budget, &mut model.budget] {
                    budget.used = budget.used - others + bytes;
                }
                others = bytes;
                queue.admit(budget, wakes);
                model.settle();
            }
            Call::Shutdown { immediate } => {
                dropped += if immediate { model.ready.len() } else { 0 };
                queue.shutdown(immediate, budget, wakes);
                model.shutdown(immediate);
            }
        }
        let wakes = sorted(std::mem::take(&mut rig.wakes));
        assert_eq!(wakes, sorted(std::mem::take(&mut model.wakes)));
        for outcome in outcome.into_iter().chain(wakes.into_iter().map(|(_, outcome)| outcome)) {
            match outcome {
                Outcome::Accepted => accepted += 1,
                Outcome::Task(task) => {
                    given += 1;
                    in_hand.push(task);
                }
                _ => (),
            }
        }
        let queue = &rig.queue;
        assert_eq!(accepted, queue.len() + given + dropped, "no task is lost or doubled");
        assert_eq!(queue.len(), model.ready.len());
        assert_eq!(queue.is_full(), model.is_full());
        assert_eq!(queue.unfinished(), model.unfinished);
        assert_eq!(rig.budget, model.budget);
        assert_eq!(queue.bytes(), model.budget.used - others);
        assert_eq!(queue.waiting_getters(), model.getters.len());
        assert_eq!(queue.waiting_putters(), model.putters.len());
        assert_eq!(queue.has_waiters(), !model.waiting().is_empty());
        let getters = model.getters.iter().map(|(_, deadline, _)| deadline);
        let putters = model.putters.iter().map(|(_, deadline, _)| deadline);
        assert_eq!(queue.next_deadline(), getters.chain(putters).copied().flatten().min());
    }
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
