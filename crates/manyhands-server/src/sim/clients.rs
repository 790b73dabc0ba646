//! The clients of a world: they come, call, wait, give up, leave and die.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use manyhands::wire::arguments::Wait;

use super::model::{Answer, Asked, CallId, Item, Manner, Patience, Process, SessionNumber};
use super::ours::{Reply, Then, Told, single};
use super::world::{NAMES, RESULTS, TASKS, Verdict, World, payload};
use crate::engine::{
    self, BATCH_AT_ONCE, Batch, Called, Caller, Completion, Engine, Promise, Pushes, Reference,
    Ticket,
};
use crate::error::CallError;
use crate::frontend::classic::presence::Presence;
use crate::journal::tests::random::Random;
use crate::queue::{Cause, Outcome, Queue, Terms, Token};

/// A call that waits, of whatever client. Dropping it takes it out of its line.
pub(super) type Line = Pin<Box<dyn Future<Output = Option<Completion>>>>;

/// What a server knows of a session.
pub(super) enum Session {
    /// An unmodified client's.
    Stock(Presence),
    /// One of our own, which says by tokens what it settles.
    Native(Caller),
}

/// A process with a session.
pub(super) struct Client {
    process: Process,
    pub(super) session: SessionNumber,
    pub(super) at_server: Session,
    /// Its references, one to each queue; with idents if it is a stock client.
    pub(super) references: Vec<(String, Reference)>,
    pub(super) waiting: Option<(CallId, usize, Line)>,
    /// What is to be done once that is over.
    pub(super) then: Then,
    /// What it will be told once that is durable.
    pub(super) replies: Vec<Reply>,
    /// The task that its put under way is the result of.
    answering: Option<Item>,
    /// What its last call gave it.
    pub(super) unread: Vec<(usize, Token)>,
    /// What it took and has not answered, as it sees it.
    pub(super) todo: Vec<Item>,
    /// Items of its batches that wait for room.
    pub(super) in_line: Vec<(CallId, engine::Waiter)>,
    /// Where what it is given by credit arrives.
    pub(super) pushes: Arc<Pushes>,
    /// The calls by which it gave credit first.
    pub(super) credits: [Option<CallId>; 3],
    /// What it was given by credit and will be told once that is durable.
    pub(super) pushed: Vec<Reply>,
}

impl Session {
    pub(super) fn caller(&self) -> Caller {
        match self {
            Self::Stock(presence) => presence.caller(),
            Self::Native(caller) => *caller,
        }
    }
}

impl Client {
    pub(super) fn caller(&self) -> Caller {
        self.at_server.caller()
    }

    /// Whether it is one of our own.
    pub(super) fn is_native(&self) -> bool {
        matches!(self.at_server, Session::Native(_))
    }

    /// Whether it has not been answered yet.
    pub(super) fn waits(&self) -> bool {
        self.waiting.is_some() || !self.in_line.is_empty() || !self.replies.is_empty()
    }

    /// It goes on with the task whose result was not accepted.
    fn resume(&mut self) {
        if let Some(task) = self.answering.take() {
            self.todo.insert(0, task);
        }
    }
}

impl World {
    // ---- coming and going

    pub(super) fn connect(&mut self) {
        let is_native = self.random.percent(self.setting.ours_percent);
        self.connect_as(is_native);
    }

    pub(super) fn connect_as(&mut self, is_native: bool) {
        let process = self.next();
        if is_native {
            return self.begin_native(process);
        }
        let references = NAMES.map(|name| {
            let ident = self.machine.classic.refer_to(name).unwrap();
            let reference = self.machine.classic.resolve(&ident).unwrap();
            (ident, reference)
        });
        self.begin_stock(process, references.into());
    }

    fn begin_stock(&mut self, process: Process, references: Vec<(String, Reference)>) {
        self.machine.engine.look_at_unused();
        let presence = self.machine.classic.enter("MainProcess", &"127.0.0.1:1".into());
        for (_, reference) in &references {
            self.machine.classic.look(presence.caller(), *reference, Queue::len).unwrap();
        }
        self.begin_session(process, Session::Stock(presence), references);
    }

    fn begin_native(&mut self, process: Process) {
        let engine = &self.machine.engine;
        engine.look_at_unused();
        let caller = engine.enter("sim".into(), "127.0.0.1:1".into());
        let references = NAMES.map(|name| (String::new(), engine.refer_to(name).unwrap()));
        self.begin_session(process, Session::Native(caller), references.into());
    }

    fn begin_session(
        &mut self,
        process: Process,
        at_server: Session,
        references: Vec<(String, Reference)>,
    ) {
        let session = self.next();
        self.model.enter(session, process);
        self.history.enter(process, session);
        self.clients.push(Client {
            process,
            session,
            at_server,
            references,
            waiting: None,
            then: Then::Nothing,
            replies: vec![],
            answering: None,
            unread: vec![],
            todo: vec![],
            in_line: vec![],
            pushes: Arc::default(),
            credits: [None; 3],
            pushed: vec![],
        });
    }

    /// The process says nothing any more; perhaps it has not read its last reply.
    pub(super) fn kill(&mut self, at: usize, unread: bool) {
        let mut client = self.clients.remove(at);
        self.history.killed(client.process);
        let replies = std::mem::take(&mut client.replies);
        // Stock clients are watched while their replies become durable.
        let cut = client.waiting.is_some() || !replies.is_empty();
        // A reply that was not sent is one that was not read. What one of ours was sent it has.
        let unread = unread && !client.is_native() || !replies.is_empty();
        let is_in_line = client.waiting.is_some();
        self.leave_line(client.session, std::mem::take(&mut client.in_line));
        replies.into_iter().for_each(|reply| self.forget_reply(reply));
        if let Some((call, _, waiter)) = client.waiting.take() {
            drop(waiter);
            self.forget_call(client.session, call);
            self.see("killed while it waited");
        }
        if !unread || is_in_line {
            client.unread.clear();
        }
        self.vanish(client, cut);
    }

    /// A session ends, and the last replies were not read that are said to be.
    fn vanish(&mut self, client: Client, cut: bool) {
        let Client { session, at_server, references, unread, .. } = client;
        if let Session::Stock(presence) = &at_server {
            presence.depart(self.machine.engine.now(), cut);
        }
        if !unread.is_empty() {
            self.see("a reply was not read");
        }
        for (queue, token) in unread {
            let (caller, reference) = (at_server.caller(), references[queue].1);
            match &at_server {
                Session::Stock(_) => {
                    self.machine.classic.return_unread(caller, reference, token);
                }
                Session::Native(_) => self.machine.engine.return_unread(caller, reference, token),
            }
            self.model.unread(session);
            self.past.remember(&self.model, self.machine.appended());
        }
        match at_server {
            Session::Stock(presence) => {
                drop(presence);
                self.model.vanish(session);
            }
            Session::Native(caller) => {
                end_native(&self.machine.engine, caller, &references);
                self.model.leave(session);
            }
        }
    }

    pub(super) fn exit(&mut self, at: usize) -> Verdict {
        let client = self.clients.remove(at);
        let process = client.process;
        if client.is_native() {
            self.vanish(client, false);
            self.history.exited(process);
            return Ok(());
        }
        let Client { session, at_server, references, .. } = client;
        for (ident, _) in &references {
            self.machine.classic.decref(ident);
        }
        // What earlier sessions of it had is decided on by the timer.
        self.turn_timer()?;
        if let Session::Stock(presence) = at_server {
            presence.depart(self.machine.engine.now(), false);
        }
        for between in self.model.exit(session) {
            self.past.remember(&between, self.machine.appended());
        }
        self.history.exited(process);
        Ok(())
    }

    /// The process closes its session and goes on with another one.
    pub(super) fn reconnect(&mut self, at: usize) {
        let mut client = self.clients.remove(at);
        client.unread.clear();
        let Client { process, ref references, .. } = client;
        let (is_native, references) = (client.is_native(), references.clone());
        let todo = std::mem::take(&mut client.todo);
        self.vanish(client, false);
        match is_native {
            true => self.begin_native(process),
            false => self.begin_stock(process, references),
        }
        // Until the verdict it is not known whose result it brings.
        self.is_attributable &= todo.is_empty();
        self.clients.last_mut().unwrap().todo = todo;
        self.see("moved to another session");
    }

    /// Nobody waits any more for items of batches that have found no room.
    fn leave_line(&mut self, session: SessionNumber, in_line: Vec<(CallId, engine::Waiter)>) {
        for (call, waiter) in in_line {
            drop(waiter);
            self.forget_call(session, call);
            self.see("an item of a batch left its line");
        }
    }

    /// As Ctrl-C does.
    pub(super) fn give_up(&mut self, at: usize) {
        let in_line = std::mem::take(&mut self.clients[at].in_line);
        if !in_line.is_empty() {
            let session = self.clients[at].session;
            return self.leave_line(session, in_line);
        }
        let call = match self.clients[at].waiting.take() {
            Some((call, _, waiter)) => {
                drop(waiter);
                call
            }
            None => match self.give_up_reply(at) {
                Some(call) => call,
                None => return,
            },
        };
        let session = self.clients[at].session;
        self.clients[at].then = Then::Nothing;
        match self.forget_call(session, call) {
            // It cannot know that its result was kept, and would put it again.
            Some(Answer::Accepted) => self.clients[at].answering = None,
            _ => self.clients[at].resume(),
        }
        self.see("gave up");
    }

    /// A stock client does not wait any more for a reply that becomes durable: what it brings goes
    /// back.
    fn give_up_reply(&mut self, at: usize) -> Option<CallId> {
        let client = &mut self.clients[at];
        if client.is_native() {
            return None;
        }
        let call = client.replies.pop()?.call();
        for (queue, token) in std::mem::take(&mut client.unread) {
            let (caller, reference) = (client.caller(), client.references[queue].1);
            self.machine.classic.return_unread(caller, reference, token);
        }
        self.see("gave up while a reply became durable");
        Some(call)
    }

    /// Nobody waits for this call any more. Returns what it would have been told.
    pub(super) fn forget_call(&mut self, session: SessionNumber, call: CallId) -> Option<Answer> {
        let answer = self.due.remove(&call).map(|due| due.answer);
        self.model.give_up(session, call, answer);
        answer
    }

    // ---- calls

    pub(super) fn put(&mut self, at: usize, queue: usize) -> Verdict {
        let item = Item::try_from(self.next()).unwrap();
        let is_native = self.clients[at].is_native();
        let has_terms = queue == TASKS && is_native;
        let asked = if has_terms { self.some_terms() } else { Asked::default() };
        let (wait, patience) = self.patience();
        let call = self.next();
        let client = &mut self.clients[at];
        client.unread.clear();
        if queue == RESULTS && self.setting.tasks.results.is_some() && !client.todo.is_empty() {
            client.answering = Some(client.todo.remove(0));
        }
        let is_special = asked != Asked::default() || queue == TASKS && self.may_expire;
        let terms = (asked != Asked::default()).then(|| Box::new(terms(asked)));
        let (caller, reference) = (client.caller(), client.references[queue].1);
        let called = if is_native {
            self.history.put_alone(client.session, call, queue, item, is_special);
            self.model.put_alone(client.session, queue, call, (item, asked), patience);
            in_line(self.machine.engine.put(caller, reference, payload(item), terms, wait))
        } else {
            self.history.put(client.session, call, queue, item, client.answering, is_special);
            self.model.put(client.session, queue, call, (item, asked), patience);
            in_line(self.machine.classic.put(caller, reference, payload(item), wait))
        };
        self.called(at, call, queue, called)
    }

    /// What a put may say.
    pub(super) fn some_terms(&mut self) -> Asked {
        let later = |random: &mut Random| {
            random.percent(15).then(|| Duration::from_millis(1 + random.next() % 10_000))
        };
        let key = self.random.percent(40).then(|| [0, 1][self.random.below(2)]);
        let (delay, expires) = (later(&mut self.random), later(&mut self.random));
        let priority = self.random.percent(3).then_some(-1);
        Asked { key, delay, expires, priority }
    }

    pub(super) fn get(&mut self, at: usize, queue: usize) -> Verdict {
        if self.clients[at].is_native() {
            let patience = self.patience();
            return self.begin_take(at, queue, Manner::ForGood, single(), patience);
        }
        let (wait, patience) = self.patience();
        self.get_for(at, queue, wait, patience)
    }

    pub(super) fn get_for(
        &mut self,
        at: usize,
        queue: usize,
        wait: Wait,
        patience: Patience,
    ) -> Verdict {
        let call = self.next();
        let client = &mut self.clients[at];
        client.unread.clear();
        self.history.get(client.session, call, queue);
        self.model.get(client.session, queue, call, Manner::Plain, patience);
        let (caller, reference) = (client.caller(), client.references[queue].1);
        let called = in_line(self.machine.classic.get(caller, reference, 5, wait));
        self.called(at, call, queue, called)
    }

    pub(super) fn join(&mut self, at: usize) -> Verdict {
        let call = self.next();
        let client = &mut self.clients[at];
        client.unread.clear();
        self.history.join(client.session, call, TASKS);
        self.model.join(client.session, TASKS, call);
        let (caller, reference) = (client.caller(), client.references[TASKS].1);
        let called = match client.is_native() {
            true => in_line(self.machine.engine.join(caller, reference)),
            false => in_line(self.machine.classic.join(caller, reference)),
        };
        self.called(at, call, TASKS, called)
    }

    pub(super) fn task_done(&mut self, at: usize) -> Verdict {
        let call = self.next();
        let client = &mut self.clients[at];
        client.unread.clear();
        if !client.todo.is_empty() {
            client.todo.remove(0);
        }
        self.history.task_done(client.session, call, TASKS);
        self.model.task_done(client.session, TASKS, call);
        let (caller, reference) = (client.caller(), client.references[TASKS].1);
        let called = match client.is_native() {
            true => in_line(self.machine.engine.task_done(reference)),
            false => in_line(self.machine.classic.task_done(caller, reference)),
        };
        self.called(at, call, TASKS, called)
    }

    pub(super) fn patience(&mut self) -> (Wait, Patience) {
        let kind = self.random.below(if self.setting.is_busy { 5 } else { 3 });
        match kind {
            0 | 3.. => (Wait::No, Patience::No),
            1 => (Wait::Forever, Patience::Forever),
            _ => {
                let wait = Duration::from_millis(1 + self.random.next() % 5000);
                (Wait::For(wait), Patience::Until(self.model.now + wait))
            }
        }
    }

    pub(super) fn called(
        &mut self,
        at: usize,
        call: CallId,
        queue: usize,
        Ticket { called, promise }: Ticket<Called<Line>>,
    ) -> Verdict {
        match called {
            Ok(Called::Now(outcome)) => return self.answered(at, call, queue, outcome, promise),
            Ok(Called::Later(waiter)) => self.clients[at].waiting = Some((call, queue, waiter)),
            Err(error) => self.failed(at, call, error, promise),
        }
        Ok(())
    }

    pub(super) fn failed(&mut self, at: usize, call: CallId, error: CallError, promise: Promise) {
        if matches!(error, CallError::Stale) {
            self.clients[at].answering = None;
            self.see("a result came too late");
        }
        let answer = self.refusal(&error);
        self.reply(at, Told::Answers(vec![(call, answer)]), promise);
    }

    pub(super) fn refusal(&mut self, error: &CallError) -> Answer {
        match error {
            CallError::Stale => Answer::Stale,
            CallError::TooManyTaskDone(_) => Answer::TooManyDone,
            CallError::StaleToken | CallError::Answering => {
                self.see("a token was stale");
                Answer::Stale
            }
            CallError::SettledBefore => {
                self.see("a token had settled its task");
                Answer::Duplicate
            }
            CallError::NoResults => {
                self.see("a token found no queue of results");
                Answer::NoResults
            }
            CallError::Started => {
                self.see("a task that was started was not returned");
                Answer::Wrong
            }
            CallError::NoResult(_) | CallError::NoOrder(_) => Answer::Wrong,
            other => panic!("{other}"),
        }
    }

    pub(super) fn answered(
        &mut self,
        at: usize,
        call: CallId,
        queue: usize,
        outcome: Outcome,
        promise: Promise,
    ) -> Verdict {
        let answer = match outcome {
            Outcome::Accepted(_) => {
                self.clients[at].answering = None;
                Answer::Accepted
            }
            Outcome::Known => Answer::Known,
            Outcome::Full | Outcome::NoRoom => {
                self.clients[at].resume();
                Answer::Full
            }
            Outcome::Empty => Answer::Empty,
            Outcome::Joined => Answer::Joined,
            Outcome::Done => Answer::Done,
            Outcome::Task(grant) => {
                let batch = Batch::of(grant, promise);
                return self.taken(at, call, queue, Manner::Plain, single(), batch);
            }
            other => panic!("{other:?}"),
        };
        self.reply(at, Told::Answers(vec![(call, answer)]), promise);
        Ok(())
    }

    pub(super) fn hear(&mut self, call: CallId, answer: Answer) {
        self.history.answer(call, answer);
        self.answers.push((call, answer));
    }
}

pub(super) fn terms(Asked { key, delay, expires, priority }: Asked) -> Terms {
    let key = key.map(|key| vec![key].into());
    Terms { key, delay, expires, priority, ..Terms::default() }
}

/// A call that has ended, or waits, of whatever client.
pub(super) fn in_line<W>(ticket: Ticket<Called<W>>) -> Ticket<Called<Line>>
where
    W: Future<Output = Option<Completion>> + 'static,
{
    ticket.map(|called| match called {
        Called::Now(outcome) => Called::Now(outcome),
        Called::Later(waiter) => {
            let line: Line = Box::pin(waiter);
            Called::Later(line)
        }
    })
}

/// The session of a client of our own ends: what it has goes back.
fn end_native(engine: &Engine, caller: Caller, references: &[(String, Reference)]) {
    let references: Vec<_> = references.iter().map(|(_, reference)| *reference).collect();
    engine.release(&references);
    while engine.end_leases(caller, &Cause::Crashed, BATCH_AT_ONCE) {}
    engine.forget(caller);
}
