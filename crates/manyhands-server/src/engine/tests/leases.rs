//! Leases by token, calls that wait, and dead letters on their way back.

use manyhands::wire::tasks::TaskState;

use super::*;

impl Client {
    /// A `lease` that has to wait.
    pub(super) fn wait_lease(&self, wait: Wait) -> Waiter {
        let taking = Taking {
            protocol_max: 5,
            settled_by: SettledBy::Token,
            is_informed: false,
            max: 1,
            bytes_max: usize::MAX,
        };
        let (session, tasks) = (self.presence.caller(), self.tasks.reference);
        let (shown, batch) = (Shown::default(), &mut Batch::default());
        match self.engine.get_many(session, tasks, taking, wait, &shown, batch).called.unwrap() {
            Some(Called::Later(waiter)) => waiter,
            other => panic!("{other:?} instead of a wait"),
        }
    }

    pub(crate) fn lease(&self, hold: Option<Duration>) -> manyhands::wire::token::LeaseToken {
        let taking = Taking {
            protocol_max: 5,
            settled_by: hold.map_or(SettledBy::Token, SettledBy::TokenWithin),
            is_informed: false,
            max: 1,
            bytes_max: usize::MAX,
        };
        let (session, tasks) = (self.presence.caller(), self.tasks.reference);
        let (shown, mut batch) = (Shown::default(), Batch::default());
        let taken = self.engine.get_many(session, tasks, taking, Wait::No, &shown, &mut batch);
        taken.called.unwrap();
        self.engine.signer(tasks).unwrap().sign(batch.grants[0].token)
    }
}

#[test]
fn a_result_that_comes_too_late_leaves_the_task_with_who_has_it() {
    let rig = strict();
    let (late, other) = (rig.client("a"), rig.client("b"));
    let stale = late.lease(Some(Duration::from_secs(1)));
    rig.pass(Duration::from_secs(2));
    let token = other.lease(None);
    assert_eq!((stale.task, stale.attempt), (token.task, token.attempt - 1));
    let ack = |client: &Client, token| {
        let (session, tasks) = (client.presence.caller(), client.tasks.reference);
        client.engine.ack(session, tasks, token, Some(item(9)), Wait::No).called
    };
    assert!(matches!(ack(&late, stale), Err(CallError::StaleToken)));
    other.vanish();
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("tasks"), [(1, 3), (2, 1), (3, 1)]);
}

#[test]
fn nothing_is_kept_of_a_lease_that_is_over() {
    let second = Some(Duration::from_secs(1));
    let leased = |options: QueueOptions| {
        let rig = rig(options);
        let worker = rig.client("a");
        for _ in 0..3 {
            worker.lease(second);
        }
        assert_eq!(rig.leases(), 3);
        rig.pass(A_WHILE);
        (rig, worker)
    };
    let (ready, _worker) = leased(at_once());
    assert_eq!((ready.look("tasks", Queue::len), ready.leases()), (3, 0));
    let (delayed, _worker) = leased(QueueOptions { backoff: A_WHILE * 9, ..Default::default() });
    assert_eq!((delayed.look("tasks", Queue::delayed), delayed.leases()), (3, 0));
    let (expired, _worker) = leased(QueueOptions { expires: second, ..at_once() });
    assert_eq!((expired.look("tasks", |queue| queue.tally().expired), expired.leases()), (3, 0));
    let (dead, _worker) = leased(at_once().attempts(1));
    assert_eq!((dead.look("tasks.dead", Queue::len), dead.leases()), (3, 0));

    let (rig, worker) = leased(at_once());
    let other = rig.client("b");
    let taken = other.lease(None);
    assert_eq!((taken.attempt, rig.leases()), (2, 1), "it is the other's now");
    rig.engine.purge(worker.tasks.reference).called.unwrap();
    assert_eq!((rig.look("tasks", Queue::len), rig.leases()), (0, 1));
    let late =
        rig.engine.ack(worker.presence.caller(), worker.tasks.reference, taken, None, Wait::No);
    assert!(late.called.is_ok() && rig.leases() == 0);
}

#[test]
fn nothing_is_kept_of_a_lease_of_a_queue_that_is_gone() {
    let rig = plain();
    let ident = rig.classic.refer_to_new(QueueOptions::default()).unwrap();
    let reference = rig.classic.resolve(&ident).unwrap();
    let mut worker = rig.client("a");
    worker.tasks = Opened { ident: ident.clone(), reference };
    worker.put(&worker.tasks, 1).unwrap();
    worker.lease(None);
    assert_eq!(rig.leases(), 1);
    assert!(rig.classic.decref(&ident));
    assert_eq!(rig.leases(), 0);
}

#[test]
fn who_asks_again_while_a_result_waits_for_room_is_not_told_that_it_was_kept() {
    let rig = strict();
    let results = rig.engine.open("results").unwrap();
    let options = QueueOptions::bounded(1);
    rig.engine.lock(0).on(results.queue, |queue, _| *queue = Queue::new(options, 0));
    let worker = rig.client("a");
    worker.answer(1);
    let token = worker.lease(None);
    let (session, tasks) = (worker.presence.caller(), worker.tasks.reference);
    let ack = |result, wait| rig.engine.ack(session, tasks, token, result, wait).called;
    let Ok(Called::Later(first)) = ack(Some(item(2)), Wait::Forever) else { panic!("no room") };
    for result in [None, Some(item(2))] {
        let again = ack(result, Wait::Forever).unwrap_err();
        assert!(again.to_string().starts_with("stale: "), "{again}");
    }
    drop(first);
    assert_eq!(rig.drain("results"), [(1, 1)], "the first was not kept");
    assert!(matches!(ack(Some(item(2)), Wait::No), Ok(Called::Now(Outcome::Accepted(_)))));
    assert!(matches!(ack(Some(item(2)), Wait::No), Err(CallError::SettledBefore)));
    assert_eq!(rig.drain("results"), [(2, 1)]);
}

#[test]
fn a_reply_that_was_not_read_takes_nothing_from_who_has_its_task_by_now() {
    let rig = strict();
    let (late, other) = (rig.client("a"), rig.client("b"));
    let unread = late.lease(None);
    let tasks = late.tasks.reference;
    rig.engine.nack(other.presence.caller(), tasks, unread, Retry::Backoff, "").called.unwrap();
    let token = other.lease(None);
    assert_eq!(token.task, unread.task);
    let token = Token { task: TaskId(unread.task), attempt: unread.attempt, lease: unread.lease };
    rig.engine.return_unread(late.presence.caller(), tasks, token);
    other.vanish();
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("tasks"), [(1, 3), (2, 1), (3, 1)]);
}

// ---- calls that wait

#[test]
fn who_leaves_a_put_that_was_let_in_is_still_told_so() {
    let rig = rig(QueueOptions { maxsize: 3, ..at_once() });
    let tasks = rig.engine.open("tasks").unwrap();
    let put = || rig.engine.put(Caller::IN_PROCESS, tasks, item(9), None, Wait::Forever).called;
    let put = || match put() {
        Ok(Called::Later(waiter)) => waiter,
        other => panic!("{other:?}: there are three already"),
    };
    let (let_in, waiting) = (put(), put());
    rig.engine.get(Caller::IN_PROCESS, tasks, 5, Wait::No).called.unwrap();
    let mut let_in = let_in.leave().expect("it is decided");
    let outcome = std::pin::Pin::new(&mut let_in)
        .poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
        .map(|told| told.map(|told| told.outcome));
    assert!(matches!(outcome, std::task::Poll::Ready(Some(Outcome::Accepted(_)))));
    assert!(waiting.leave().is_err());
    assert_eq!(rig.drain("tasks").len(), 3);
}

/// Ends calls of which a large put and the result of a task behind it wait for memory.
fn end_puts_that_wait_for_memory(end: impl FnOnce(&Rig, Reference)) {
    let limits = Limits { memory_bytes_max: 20_000, ..Limits::default() };
    let rig = rig_within(&limits, at_once().results("results"));
    let worker = rig.client("a");
    let (caller, results) = (worker.presence.caller(), worker.results.reference);
    let token = given(worker.lease(None));
    let answered = Some(Held { queue: worker.tasks.reference.queue, token });
    let answer = Settles { answered, is_by_token: true, counts: true, ..Settles::default() };
    let large = || Payload::pickle(2, Bytes::from(vec![0; 12_000]));
    let put = |item: Payload, settles| {
        let wait = Wait::Forever;
        rig.engine.put_settling(caller, results, item.into(), None, wait, settles).called.unwrap()
    };
    let nothing = &Settles::default();
    assert!(matches!(put(large(), nothing), Called::Now(Outcome::Accepted(_))));
    let waiting = [put(large(), nothing), put(item(9), &answer)];
    assert!(waiting.iter().all(|called| matches!(called, Called::Later(_))));
    end(&rig, results);
    assert_eq!(rig.look("results", Queue::len), 2, "the large one has made room by leaving");
    let counts = rig.look("tasks", |queue| (queue.len(), queue.leased(), queue.tally().done));
    assert_eq!(counts, (2, 0, 1), "the task of a result that was let in is settled");
}

#[test]
fn a_result_that_is_let_in_while_calls_are_ended_settles_its_task() {
    end_puts_that_wait_for_memory(|rig, results| rig.engine.release(&[results]));
    end_puts_that_wait_for_memory(|rig, _| rig.engine.stop());
}

// ---- dead letters

#[test]
fn many_large_dead_letters_go_back_in_steps() {
    let rig = rig(at_once().attempts(1));
    let tasks = rig.engine.open("tasks").unwrap();
    let large = Payload::pickle(2, vec![b'x'; 5 << 20].into());
    for _ in 0..3 {
        rig.engine.put(Caller::IN_PROCESS, tasks, large.clone(), None, Wait::No).called.unwrap();
    }
    for _ in 0..6 {
        let worker = rig.client("MainProcess");
        worker.get();
        worker.vanish();
    }
    rig.pass(A_WHILE);
    let dead = rig.engine.open("tasks.dead").unwrap();
    let redrive = || rig.engine.redrive(dead, Redriving::of(100)).called.unwrap();
    assert_eq!([redrive(), redrive(), redrive()], [5, 1, 0]);
    assert_eq!(rig.look("tasks", Queue::len), 6);
}

#[test]
fn one_dead_letter_goes_back_out_of_turn() {
    let rig = rig(at_once().attempts(1));
    let tasks = rig.engine.open("tasks").unwrap();
    let (first, second) = (rig.client("a"), rig.client("b"));
    for worker in [&first, &second, &first] {
        let lease = worker.lease(None);
        let (caller, at) = (worker.presence.caller(), worker.tasks.reference);
        rig.engine.nack(caller, at, lease, Retry::Never, "no").called.unwrap();
    }
    let dead = rig.engine.open("tasks.dead").unwrap();
    rig.engine.put(Caller::IN_PROCESS, dead, item(9), None, Wait::No).called.unwrap();
    let before = rig.look("tasks.dead", Queue::tally);
    let redrive = |letter| {
        let redriving = Redriving::one(TaskId(letter));
        rig.engine.redrive(dead, redriving).called.unwrap()
    };
    assert_eq!([redrive(1), redrive(1)], [1, 0], "once it is no letter any more");
    assert_eq!([redrive(3), redrive(4)], [0, 0], "no dead letter, and no task at all");
    let now = rig.look("tasks.dead", Queue::tally);
    assert_eq!(now.taken, before.taken + 1, "what stays was never taken");
    let elsewhere = rig.engine.redrive(tasks, Redriving::one(TaskId(0)));
    assert_eq!(elsewhere.called.unwrap(), 0);
    assert_eq!(rig.look("tasks", Queue::len), 1);
    assert_eq!(rig.drain("tasks.dead").len(), 3);
}

#[test]
fn who_had_a_task_that_failed_is_known() {
    let rig = rig(at_once().attempts(3));
    let (slow, quick, mortal) = (rig.client("slow"), rig.client("quick"), rig.client("mortal"));
    slow.lease(Some(Duration::from_secs(1)));
    rig.pass(Duration::from_secs(2));
    let lease = quick.lease(None);
    let (caller, at) = (quick.presence.caller(), quick.tasks.reference);
    rig.engine.nack(caller, at, lease, Retry::Backoff, "no").called.unwrap();
    mortal.get();
    mortal.vanish();
    rig.pass(A_WHILE);
    let letters = rig.look("tasks.dead", |queue| queue.look_at(TaskState::Ready, None, 1, false).0);
    let tell = |(_, failed): &(u32, Failed)| {
        format!("{}: {}", failed.worker.as_deref().unwrap_or_default(), failed.cause)
    };
    let told: Vec<_> = letters[0].failures.iter().map(tell).collect();
    let expected = [
        "slow at 127.0.0.1:1: its time was up",
        "quick at 127.0.0.1:1: no",
        "mortal at 127.0.0.1:1: its worker crashed or was cut off",
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_reply_that_was_not_read_ends_nobody_elses_lease() {
    let rig = plain();
    let (late, worker) = (rig.client("a"), rig.client("b"));
    let lapsed = late.lease(Some(Duration::from_secs(1)));
    rig.pass(Duration::from_secs(2));
    let held = worker.lease(None);
    assert_eq!(lapsed.task, held.task);
    let manyhands::wire::token::LeaseToken { task, attempt, lease, .. } = lapsed;
    let token = Token { task: TaskId(task), attempt, lease };
    rig.engine.return_unread(late.presence.caller(), late.tasks.reference, token);
    assert_eq!(rig.leases(), 1);
    let ready = rig.look("tasks", Queue::len);
    worker.end(true);
    rig.pass(A_WHILE);
    let now = rig.look("tasks", |queue| (queue.len(), queue.leased()));
    assert_eq!(now, (ready + 1, 0), "it came back when its worker was killed");
}

#[test]
fn a_look_at_a_task_whose_time_was_up_takes_it_from_nobody() {
    let options = QueueOptions { max_run: Some(Duration::from_secs(1)), ..at_once() };
    let rig = rig(options);
    let (late, worker) = (rig.client("a"), rig.client("b"));
    let taking = Taking {
        protocol_max: 5,
        settled_by: SettledBy::Session,
        is_informed: true,
        max: 1,
        bytes_max: usize::MAX,
    };
    let (session, at, mut batch) = (late.presence.caller(), late.tasks.reference, Batch::default());
    let shown = Shown::default();
    rig.engine.get_many(session, at, taking, Wait::No, &shown, &mut batch).called.unwrap();
    rig.pass(Duration::from_secs(2));
    let held = worker.lease(None);
    assert_eq!(held.task, batch.grants[0].token.task.0);
    rig.engine.inform(session, at, &batch.grants);
    assert_eq!(rig.leases(), 1);
}

#[test]
fn while_memory_is_short_who_has_a_task_in_hand_settles_it_before_it_gets_another() {
    // Room for three tasks and one lease.
    let limits = Limits { memory_bytes_max: 1000, ..Limits::default() };
    let rig = rig_within(&limits, QueueOptions::default());
    let (a, b) = (rig.client("a"), rig.client("b"));
    let held = a.lease(None);
    let mut patient = pin!(a.wait_lease(Wait::Forever));
    let mut hasty = pin!(a.wait_lease(Wait::For(A_WHILE)));
    drop(a.wait_lease(Wait::Forever));
    let mut context = Context::from_waker(Waker::noop());
    assert!(patient.as_mut().poll(&mut context).is_pending());
    rig.pass(A_WHILE);
    let outcome = hasty.as_mut().poll(&mut context).map(|told| told.map(|told| told.outcome));
    assert_eq!(outcome, Poll::Ready(Some(Outcome::Empty)));
    let of_b = b.lease(None);
    assert_eq!(of_b.task, 1, "who has nothing gets a task");
    let ack = |client: &Client, token| {
        let (session, tasks) = (client.presence.caller(), client.tasks.reference);
        rig.engine.ack(session, tasks, token, None, Wait::No).called.unwrap();
    };
    ack(&a, held);
    assert!(patient.as_mut().poll(&mut context).is_pending());
    ack(&b, of_b);
    let outcome = patient.as_mut().poll(&mut context).map(|told| told.map(|told| told.outcome));
    let Poll::Ready(Some(Outcome::Task(grant))) = outcome else {
        panic!("there is memory for a lease again")
    };
    assert_eq!(number(&grant), 3);
    assert!(rig.engine.lock(0).starved.is_empty());
}

// ---- several sessions of one client

/// A token as it was given to a client.
fn given(token: manyhands::wire::token::LeaseToken) -> Token {
    Token { task: TaskId(token.task), attempt: token.attempt, lease: token.lease }
}

#[test]
fn a_reply_that_was_not_read_leaves_the_task_with_who_is_answering_it() {
    let rig = strict();
    rig.make_anew("results", QueueOptions::bounded(1));
    let (first, second) = (rig.client("a"), rig.client("a"));
    second.answer(1);
    let token = first.lease(None);
    let (caller, tasks) = (second.presence.caller(), second.tasks.reference);
    let ack = second.engine.ack(caller, tasks, token, Some(item(2)), Wait::Forever).called;
    assert!(matches!(ack, Ok(Called::Later(_))), "there is a result already");
    rig.engine.return_unread(first.presence.caller(), tasks, given(token));
    first.end(true);
    let counts = || rig.look("tasks", |queue| (queue.len(), queue.leased()));
    assert_eq!(counts(), (2, 1), "it is still being answered");
    let results = [rig.drain("results"), rig.drain("results")].concat();
    assert_eq!(results, [(1, 1), (2, 1)]);
    assert_eq!(counts(), (2, 0));
    assert_eq!(rig.look("tasks", |queue| queue.tally().done), 1);
}

#[test]
fn a_reply_that_was_not_read_leaves_the_lease_with_who_has_extended_it() {
    let rig = plain();
    let (first, second) = (rig.client("a"), rig.client("a"));
    let token = first.lease(Some(Duration::from_secs(1)));
    let (caller, tasks) = (second.presence.caller(), second.tasks.reference);
    rig.engine.extend(caller, tasks, token, A_WHILE * 9).called.unwrap();
    rig.engine.return_unread(first.presence.caller(), tasks, given(token));
    first.end(true);
    rig.pass(A_WHILE);
    let counts = || rig.look("tasks", |queue| (queue.len(), queue.leased()));
    assert_eq!((counts(), rig.leases()), ((2, 1), 1));
    second.end(true);
    rig.pass(A_WHILE);
    assert_eq!((counts(), rig.leases()), ((3, 0), 0), "it went back with its new holder");
}
