//! Thousands of clients that leave at one time: every verdict is found, none takes long, and others
//! have their turn in between.

use manyhands::wire::arguments::Wait;

use super::*;
use crate::clock::Clock;
use crate::config::Limits;
use crate::engine::{Engine, work};
use crate::frontend::classic::presence::Presence;
use crate::queue::QueueOptions;

/// No turn of the timer and no call may take longer, on a machine that is busy: with a look through
/// all sessions it took tens of seconds.
const TURN_MAX: Duration = Duration::from_secs(2);

/// What is to be done, and the longest that one part of it took.
#[derive(Default)]
struct Turns {
    longest: Duration,
}

impl Turns {
    #[expect(clippy::disallowed_methods, reason = "measures for how long others would wait")]
    fn take<R>(&mut self, turn: impl FnOnce() -> R) -> R {
        let begin = std::time::Instant::now();
        let result = turn();
        self.longest = self.longest.max(begin.elapsed());
        work::was_bounded("a turn");
        result
    }

    /// Does what is due, turn by turn.
    fn pass(&mut self, rig: &Rig, time: Duration) {
        rig.put_forward(time);
        while rig.due() {
            self.take(|| rig.engine.expire());
            self.take(|| rig.classic.expire());
        }
    }

    fn were_short(&self) {
        assert!(self.longest < TURN_MAX, "a turn took {:?}", self.longest);
    }
}

/// A server with so many tasks, whose time stands still.
fn crowded(count: u32) -> Rig {
    let limits = Limits::default();
    let engine = Engine::simulated(&limits, Clock::manual(0));
    let rig = rig_of(engine, &limits, QueueOptions::default());
    let tasks = rig.engine.open("tasks").unwrap();
    for _ in 3..count {
        rig.engine.put(Caller::IN_PROCESS, tasks, item(9), None, Wait::No).called.unwrap();
    }
    rig
}

#[test]
fn what_a_session_took_over_from_thousands_is_settled_in_parts() {
    const SESSIONS: u32 = 2000;
    let rig = crowded(SESSIONS + 1);
    let first = rig.client("MainProcess");
    let (tasks, results) = (first.tasks.clone(), first.results.clone());
    let session = |_| {
        let session = rig.thread("MainProcess", &tasks, &results);
        session.get();
        session
    };
    let sessions: Vec<_> = (0..SESSIONS).map(session).collect();
    let last = rig.thread("MainProcess", &tasks, &results);
    rig.classic.look(last.presence.caller(), tasks.reference, Queue::len).unwrap();
    let mut turns = Turns::default();
    sessions.into_iter().for_each(|session| turns.take(|| session.vanish()));
    turns.pass(&rig, A_WHILE);
    assert_eq!(rig.look("tasks", Queue::leased), SESSIONS as usize, "the last one has them");
    turns.take(|| last.get());
    let mut parts = 1;
    while last.presence.is_behind() {
        turns.take(|| last.presence.settle_more());
        parts += 1;
    }
    assert_eq!(rig.look("tasks", |queue| (queue.len(), queue.leased())), (0, 1));
    assert!(parts > 5, "it took {parts} turns");
    turns.were_short();
}

#[test]
fn children_of_one_parent_that_are_killed_together_give_their_tasks_back() {
    const CHILDREN: u32 = 4000;
    let rig = crowded(CHILDREN);
    let parent = rig.client("MainProcess");
    rig.classic.look(parent.presence.caller(), parent.results.reference, Queue::len).unwrap();
    let child = |_| {
        let child = rig.thread("MainProcess", &parent.tasks, &parent.results);
        child.get();
        child
    };
    let children: Vec<_> = (0..CHILDREN).map(child).collect();
    assert_eq!(rig.look("tasks", Queue::len), 0);
    let mut turns = Turns::default();
    turns.take(|| parent.vanish());
    children.into_iter().for_each(|child| turns.take(|| child.vanish()));
    turns.pass(&rig, A_WHILE);
    assert_eq!(rig.look("tasks", Queue::len), CHILDREN as usize);
    assert_eq!(rig.classic.number_of_references(), 0, "what they referred to is let go");
    turns.were_short();
}

#[test]
fn threads_with_names_of_their_own_that_leave_together_are_judged_in_time() {
    const THREADS: u32 = 4000;
    let rig = crowded(THREADS);
    let main = rig.client("MainProcess");
    rig.classic.look(main.presence.caller(), main.tasks.reference, Queue::len).unwrap();
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let name = format!("MainProcess|Thread-{number}");
            let thread = rig.thread(&name, &main.tasks, &main.results);
            thread.get();
            thread
        })
        .collect();
    let mut turns = Turns::default();
    threads.into_iter().for_each(|thread| turns.take(|| thread.vanish()));
    turns.take(|| main.vanish());
    turns.pass(&rig, A_WHILE);
    assert_eq!(rig.look("tasks", Queue::leased), 0);
    turns.were_short();
}

#[test]
fn sessions_that_share_hundreds_of_references_and_release_them_are_judged_in_time() {
    const MANY: u32 = 200;
    let rig = crowded(MANY);
    let references: Vec<_> = (0..MANY)
        .map(|_| {
            let ident = rig.classic.refer_to("tasks").unwrap();
            (rig.classic.resolve(&ident).unwrap(), ident)
        })
        .collect();
    let sessions: Vec<_> = (0..MANY)
        .map(|number| {
            let presence = rig.classic.enter(format!("Process-{number}"), &"127.0.0.1:1".into());
            for (reference, _) in &references {
                rig.classic.look(presence.caller(), *reference, Queue::len).unwrap();
            }
            rig.classic.get(presence.caller(), references[0].0, 5, Wait::No).called.unwrap();
            presence
        })
        .collect();
    let mut turns = Turns::default();
    for presence in sessions {
        turns.take(|| presence.depart(rig.engine.now(), false));
    }
    // The last first, so that only the last release decides.
    for (_, ident) in references.iter().rev() {
        assert!(turns.take(|| rig.classic.decref(ident)));
        turns.pass(&rig, Duration::ZERO);
    }
    turns.pass(&rig, A_WHILE);
    assert_eq!(rig.look("tasks", Queue::leased), 0);
    turns.were_short();
}

#[test]
fn clients_with_references_of_their_own_leave_while_thousands_of_others_wait() {
    const CLIENTS: usize = 3000;
    const EACH: usize = 10;
    let rig = plain();
    rig.drain("tasks");
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let presence = rig.classic.enter("MainProcess", &"127.0.0.1:1".into());
            let idents: Vec<_> =
                (0..EACH).map(|_| rig.classic.refer_to("tasks").unwrap()).collect();
            let references =
                idents.iter().map(|ident| rig.classic.resolve(ident).unwrap()).collect::<Vec<_>>();
            for reference in &references {
                rig.classic.look(presence.caller(), *reference, Queue::len).unwrap();
            }
            let waits =
                rig.classic.get(presence.caller(), references[0], 5, Wait::Forever).called.unwrap();
            let Called::Later(waiter) = waits else { panic!("a task") };
            (presence, idents, waiter)
        })
        .collect();
    let mut turns = Turns::default();
    for (number, (presence, idents, waiter)) in clients.into_iter().enumerate() {
        turns.take(|| presence.depart(rig.engine.now(), true));
        turns.take(|| drop(waiter));
        if number % 2 == 0 {
            idents.iter().for_each(|ident| assert!(turns.take(|| rig.classic.decref(ident))));
        }
        turns.take(|| drop(presence));
    }
    turns.pass(&rig, A_WHILE);
    assert_eq!(rig.classic.number_of_references(), 0);
    assert_eq!(rig.look("tasks", Queue::waiting_getters), 0);
    turns.were_short();
}

#[test]
fn what_is_remembered_of_who_uses_what_is_bounded() {
    let memory_bytes_max = 1 << 20;
    let limits = Limits { memory_bytes_max, ..Limits::default() };
    let rig = empty(&limits);
    let references: Vec<_> = (0..500)
        .map(|_| rig.classic.refer_to("tasks").unwrap())
        .map(|ident| rig.classic.resolve(&ident).unwrap())
        .collect();
    let peer = "127.0.0.1:1".into();
    let sessions: Vec<_> = (0..20).map(|_| rig.classic.enter("MainProcess", &peer)).collect();
    for session in &sessions {
        for reference in &references {
            rig.classic.look(session.caller(), *reference, Queue::len).unwrap();
        }
    }
    let hands = rig.classic.hands();
    assert!(hands.sessions.use_bytes() < memory_bytes_max / 8);
    let used = |session: &Presence| hands.sessions.all[&session.caller()].used.len();
    assert_eq!((used(&sessions[0]), used(&sessions[19])), (500, 16), "each is known by some");
}
