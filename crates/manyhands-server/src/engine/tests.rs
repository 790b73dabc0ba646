//! The engine with clients that call it, by references and sessions of the classic front end, as stock
//! ones do, or by its own verbs, as native sessions do. What becomes of tasks in the hand of stock
//! clients is tested there.

mod credit;
mod leases;
pub(crate) mod locks;
mod observers;
mod panics;
mod remains;
mod restart;
mod settles;
mod shards;
mod stats;
pub(crate) mod work;

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use manyhands::wire::arguments::Wait;
use manyhands::wire::pickle::Payload;

use super::*;
use crate::frontend::classic::presence::Presence;
use crate::frontend::classic::verbs::Classic;
use crate::frontend::classic::waiter as classic;
use crate::queue::{
    Cause, Failed, Grant, Outcome, Queue, QueueOptions, Retry, SettledBy, TaskId, Token,
};

pub(crate) struct Rig {
    pub(crate) engine: Arc<Engine>,
    pub(crate) classic: Arc<Classic>,
}

/// A process with one reference to each queue that it uses, and the session of one thread.
pub(crate) struct Client {
    pub(crate) engine: Arc<Engine>,
    pub(crate) classic: Arc<Classic>,
    pub(crate) presence: Presence,
    pub(crate) tasks: Opened,
    pub(crate) results: Opened,
}

#[derive(Clone)]
pub(crate) struct Opened {
    pub(crate) ident: String,
    pub(crate) reference: Reference,
}

pub(crate) const A_WHILE: Duration = Duration::from_secs(3);

/// A queue whose tasks come back without a pause.
pub(crate) fn at_once() -> QueueOptions {
    QueueOptions::default().backoff(Duration::ZERO)
}

/// A server with these options for its queue of tasks, which then holds the tasks 1, 2 and 3.
pub(crate) fn rig(options: QueueOptions) -> Rig {
    rig_within(&Limits::default(), options)
}

pub(crate) fn rig_within(limits: &Limits, options: QueueOptions) -> Rig {
    rig_of(Engine::new(limits, true, 7), limits, options)
}

/// One of these limits, with no queue yet.
pub(crate) fn empty(limits: &Limits) -> Rig {
    Rig::new(Engine::new(limits, true, 7), limits)
}

pub(crate) fn rig_of(engine: Engine, limits: &Limits, options: QueueOptions) -> Rig {
    let rig = Rig::new(engine, limits);
    rig.engine.declare("tasks", options).unwrap();
    rig.engine.declare_named().unwrap();
    let tasks = rig.engine.open("tasks").unwrap();
    for number in 1..=3 {
        let called = rig.engine.put(Caller::IN_PROCESS, tasks, item(number), None, Wait::No).called;
        assert!(matches!(called, Ok(Called::Now(Outcome::Accepted(_)))));
    }
    rig
}

pub(crate) fn plain() -> Rig {
    rig(at_once())
}

pub(crate) fn strict() -> Rig {
    rig(at_once().results("results"))
}

pub(crate) fn item(number: u8) -> Payload {
    Payload::pickle(2, Bytes::from(vec![b'K', number]))
}

pub(crate) fn number(grant: &Grant) -> u8 {
    grant.payload.bytes[1]
}

impl Rig {
    pub(crate) fn new(engine: Engine, limits: &Limits) -> Self {
        let engine = Arc::new(engine);
        Self { classic: Classic::new(engine.clone(), limits), engine }
    }

    pub(crate) fn client(&self, name: &str) -> Client {
        let open = |queue| {
            let ident = self.classic.refer_to(queue).unwrap();
            let reference = self.classic.resolve(&ident).unwrap();
            Opened { ident, reference }
        };
        let (tasks, results) = (open("tasks"), open("results"));
        self.thread(name, &tasks, &results)
    }

    /// Another session that uses the same references.
    pub(crate) fn thread(&self, name: &str, tasks: &Opened, results: &Opened) -> Client {
        let presence = self.classic.enter(name, &"127.0.0.1:1".into());
        let (tasks, results) = (tasks.clone(), results.clone());
        Client {
            engine: self.engine.clone(),
            classic: self.classic.clone(),
            presence,
            tasks,
            results,
        }
    }

    /// Gives a queue other options.
    pub(crate) fn make_anew(&self, queue: &str, options: QueueOptions) {
        let queue = self.engine.open(queue).unwrap().queue;
        self.engine.lock(queue).on(queue, |queue, _| *queue = Queue::new(options, 0));
    }

    pub(crate) fn put_forward(&self, time: Duration) {
        self.engine.clock.put_forward(time);
    }

    pub(crate) fn pass(&self, time: Duration) {
        self.put_forward(time);
        while self.due() {
            self.expire();
        }
    }

    /// Whether something is to be done by now.
    pub(crate) fn due(&self) -> bool {
        self.engine.lock_each().any(|state| state.due().is_some()) || self.classic.is_due()
    }

    /// One turn of both timers.
    pub(crate) fn expire(&self) {
        self.engine.expire();
        self.classic.expire();
    }

    /// Takes all that is ready, with the number of the attempt.
    pub(crate) fn drain(&self, queue: &str) -> Vec<(u8, u32)> {
        let reference = self.engine.open(queue).unwrap();
        std::iter::from_fn(|| {
            match self.engine.get(Caller::IN_PROCESS, reference, 5, Wait::No).called.unwrap() {
                Called::Now(Outcome::Task(grant)) => Some((number(&grant), grant.token.attempt)),
                _ => None,
            }
        })
        .collect()
    }

    /// What clients know queues by, in the order of a list of all.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut snapshot = Snapshot::default();
        let pages = std::iter::from_fn(|| {
            Some(self.engine.next_queues(&mut snapshot)).filter(|page| !page.is_empty())
        });
        pages.flatten().map(|queue| queue.name.to_string()).collect()
    }

    /// How many alarms are set.
    pub(crate) fn number_of_deadlines(&self) -> usize {
        let of_hands = self.classic.number_of_deadlines();
        let state = self.engine.lock(0);
        of_hands + state.deadlines.len() + state.directory.alarms.len()
    }

    pub(crate) fn number_of_queues(&self) -> usize {
        self.engine.lock(0).queues.len()
    }

    /// How many leases by token are known.
    pub(crate) fn leases(&self) -> usize {
        self.engine.lock(0).leases.len()
    }

    pub(crate) fn look<R>(&self, queue: &str, look: impl FnOnce(&Queue) -> R) -> R {
        self.engine.look(self.engine.open(queue).unwrap(), look).unwrap()
    }
}

impl Client {
    pub(crate) fn get(&self) -> u8 {
        match self
            .classic
            .get(self.presence.caller(), self.tasks.reference, 5, Wait::No)
            .called
            .unwrap()
        {
            Called::Now(Outcome::Task(grant)) => number(&grant),
            other => panic!("{other:?} instead of a task"),
        }
    }

    /// A `get` that has to wait.
    pub(crate) fn wait(&self) -> classic::Waiter {
        let (session, reference) = (self.presence.caller(), self.tasks.reference);
        match self.classic.get(session, reference, 5, Wait::Forever).called.unwrap() {
            Called::Later(waiter) => waiter,
            other @ Called::Now(_) => panic!("{other:?} instead of a wait"),
        }
    }

    pub(crate) fn put(
        &self,
        queue: &Opened,
        number: u8,
    ) -> Result<Called<classic::Waiter>, CallError> {
        self.ask_put(queue, number).called
    }

    pub(crate) fn ask_put(&self, queue: &Opened, number: u8) -> Ticket<Called<classic::Waiter>> {
        self.classic.put(self.presence.caller(), queue.reference, item(number), Wait::No)
    }

    pub(crate) fn answer(&self, number: u8) {
        assert!(matches!(self.put(&self.results, number), Ok(Called::Now(Outcome::Accepted(_)))));
    }

    pub(crate) fn task_done(&self) {
        self.classic.task_done(self.presence.caller(), self.tasks.reference).called.unwrap();
    }

    pub(crate) fn release(&self) {
        for queue in [&self.results, &self.tasks] {
            assert!(self.classic.decref(&queue.ident));
        }
    }

    /// End of the script, `sys.exit`, an exception that nobody catches, Ctrl-C.
    pub(crate) fn exit(self) {
        self.release();
        self.end(false);
    }

    /// SIGKILL, SIGTERM, `os._exit`, a segmentation fault; also the end of a thread.
    pub(crate) fn vanish(self) {
        self.end(false);
    }

    pub(crate) fn end(self, cut: bool) {
        self.presence.depart(self.engine.now(), cut);
        // What it has leased by token goes back as it does from a native session.
        let caller = self.presence.caller();
        while self.engine.end_leases(caller, &Cause::Crashed, BATCH_AT_ONCE) {}
    }
}
