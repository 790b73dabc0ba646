//! The clients of a world: they come, call, wait, give up, leave and die.

use std::time::Duration;

use manyhands::wire::arguments::Wait;

use super::model::{Answer, Asked, CallId, Item, Manner, Patience, Process, SessionNumber};
use super::ours::{Reply, Then, Told, single};
use super::world::{NAMES, RESULTS, TASKS, Verdict, World, payload};
use crate::engine::{Batch, Called, Promise, Reference, Ticket};
use crate::error::CallError;
use crate::frontend::classic::presence::Presence;
use crate::frontend::classic::waiter::Waiter;
use crate::journal::tests::random::Random;
use crate::queue::{Outcome, Queue, Terms, Token};

/// A process with a session.
pub(super) struct Client {
    process: Process,
    pub(super) session: SessionNumber,
    pub(super) presence: Presence,
    /// Its references, one to each queue.
    pub(super) references: Vec<(String, Reference)>,
    /// Whether it speaks our own methods.
    pub(super) is_ours: bool,
    pub(super) waiting: Option<(CallId, usize, Waiter)>,
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
}

impl Client {
    /// Whether it has not been answered yet.
    pub(super) fn waits(&self) -> bool {
        self.waiting.is_some() || !self.replies.is_empty()
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
        let references = NAMES.map(|name| {
            let ident = self.machine.classic.refer_to(name).unwrap();
            let reference = self.machine.classic.resolve(&ident).unwrap();
            (ident, reference)
        });
        let process = self.next();
        let is_ours = self.random.percent(self.setting.ours_percent);
        self.begin_session(process, references.into(), is_ours);
    }

    pub(super) fn begin_session(
        &mut self,
        process: Process,
        references: Vec<(String, Reference)>,
        is_ours: bool,
    ) {
        self.machine.engine.look_at_unused();
        let session = self.next();
        let name = if is_ours { "manyhands/1 sim" } else { "MainProcess" };
        let presence = self.machine.classic.enter(name, &"127.0.0.1:1".into());
        for (_, reference) in &references {
            self.machine.classic.look(presence.caller(), *reference, Queue::len).unwrap();
        }
        self.model.enter(session, process, is_ours);
        self.history.enter(process, session);
        self.clients.push(Client {
            process,
            session,
            presence,
            references,
            is_ours,
            waiting: None,
            then: Then::Nothing,
            replies: vec![],
            answering: None,
            unread: vec![],
            todo: vec![],
        });
    }

    /// The process says nothing any more; perhaps it has not read its last reply.
    pub(super) fn kill(&mut self, at: usize, unread: bool) {
        let Client { session, presence, waiting, unread: last, process, replies, is_ours, .. } =
            self.clients.remove(at);
        self.history.killed(process);
        // Stock clients are watched while their replies become durable.
        let cut = waiting.is_some() || !is_ours && !replies.is_empty();
        // A reply that was not sent is one that was not read.
        let unread = unread || !replies.is_empty();
        let is_in_line = waiting.is_some();
        replies.into_iter().for_each(|reply| self.forget_reply(reply));
        if let Some((call, _, waiter)) = waiting {
            drop(waiter);
            self.forget_call(session, call);
            self.see("killed while it waited");
        }
        self.vanish(session, presence, cut, if unread && !is_in_line { last } else { vec![] });
    }

    pub(super) fn vanish(
        &mut self,
        session: SessionNumber,
        presence: Presence,
        cut: bool,
        unread: Vec<(usize, Token)>,
    ) {
        presence.depart(self.machine.engine.now(), cut);
        if !unread.is_empty() {
            self.see("a reply was not read");
        }
        for (queue, token) in unread {
            let reference = self.machine.engine.open(NAMES[queue]).unwrap();
            self.machine.classic.return_unread(presence.caller(), reference, token);
            self.model.unread(session);
            self.past.remember(&self.model, self.machine.appended());
        }
        drop(presence);
        self.model.vanish(session);
    }

    pub(super) fn exit(&mut self, at: usize) -> Verdict {
        let Client { session, presence, references, process, .. } = self.clients.remove(at);
        for (ident, _) in &references {
            self.machine.classic.decref(ident);
        }
        // What earlier sessions of it had is decided on by the timer.
        self.turn_timer()?;
        presence.depart(self.machine.engine.now(), false);
        drop(presence);
        for between in self.model.exit(session) {
            self.past.remember(&between, self.machine.appended());
        }
        self.history.exited(process);
        Ok(())
    }

    /// The process closes its session and goes on with another one.
    pub(super) fn reconnect(&mut self, at: usize) {
        let client = self.clients.remove(at);
        self.vanish(client.session, client.presence, false, vec![]);
        self.begin_session(client.process, client.references, client.is_ours);
        // Until the verdict it is not known whose result it brings.
        self.is_attributable &= client.todo.is_empty();
        self.clients.last_mut().unwrap().todo = client.todo;
        self.see("moved to another session");
    }

    /// As Ctrl-C does.
    pub(super) fn give_up(&mut self, at: usize) {
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
        if client.is_ours {
            return None;
        }
        let call = client.replies.pop()?.call();
        let Client { presence, references, unread, .. } = client;
        for (queue, token) in std::mem::take(unread) {
            self.machine.classic.return_unread(presence.caller(), references[queue].1, token);
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
        let mut asked = Asked::default();
        if queue == TASKS {
            asked.key = self.random.percent(40).then(|| [0, 1][self.random.below(2)]);
            let later = |random: &mut Random| {
                random.percent(15).then(|| Duration::from_millis(1 + random.next() % 10_000))
            };
            (asked.delay, asked.expires) = (later(&mut self.random), later(&mut self.random));
            let is_ours = self.clients[at].is_ours;
            asked.priority = (is_ours && self.random.percent(3)).then_some(-1);
        }
        let (wait, patience) = self.patience();
        let call = self.next();
        let client = &mut self.clients[at];
        client.unread.clear();
        if queue == RESULTS && self.setting.tasks.results.is_some() && !client.todo.is_empty() {
            client.answering = Some(client.todo.remove(0));
        }
        let is_special = asked != Asked::default() || queue == TASKS && self.may_expire;
        self.history.put(client.session, call, queue, item, client.answering, is_special);
        let terms = (asked != Asked::default()).then(|| Box::new(terms(asked)));
        let reference = client.references[queue].1;
        self.model.put(client.session, queue, call, (item, asked), patience);
        let called = self.machine.classic.put(
            client.presence.caller(),
            reference,
            payload(item),
            terms,
            wait,
        );
        self.called(at, call, queue, called)
    }

    pub(super) fn get(&mut self, at: usize, queue: usize) -> Verdict {
        let (wait, patience) = self.patience();
        self.get_for(at, queue, wait, patience)
    }

    fn get_for(&mut self, at: usize, queue: usize, wait: Wait, patience: Patience) -> Verdict {
        let call = self.next();
        let client = &mut self.clients[at];
        client.unread.clear();
        self.history.get(client.session, call, queue);
        self.model.get(client.session, queue, call, Manner::Plain, patience);
        let reference = client.references[queue].1;
        let called = self.machine.classic.get(client.presence.caller(), reference, 5, wait);
        self.called(at, call, queue, called)
    }

    pub(super) fn join(&mut self, at: usize) -> Verdict {
        let call = self.next();
        let client = &mut self.clients[at];
        client.unread.clear();
        self.history.join(client.session, call, TASKS);
        self.model.join(client.session, TASKS, call);
        let reference = client.references[TASKS].1;
        let called = self.machine.classic.join(client.presence.caller(), reference);
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
        let reference = client.references[TASKS].1;
        let called = self.machine.classic.task_done(client.presence.caller(), reference);
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
        Ticket { called, promise }: Ticket<Called<Waiter>>,
    ) -> Verdict {
        match called {
            Ok(Called::Now(outcome)) => return self.answered(at, call, queue, outcome, promise),
            Ok(Called::Later(waiter)) => self.clients[at].waiting = Some((call, queue, waiter)),
            Err(error) => self.failed(at, call, error, promise),
        }
        Ok(())
    }

    pub(super) fn failed(&mut self, at: usize, call: CallId, error: CallError, promise: Promise) {
        let answer = match error {
            CallError::Stale => {
                self.clients[at].answering = None;
                self.see("a result came too late");
                Answer::Stale
            }
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
            CallError::NoResult(_) | CallError::NoOrder(_) => Answer::Wrong,
            other => panic!("{other}"),
        };
        self.reply(at, Told::Answers(vec![(call, answer)]), promise);
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

fn terms(Asked { key, delay, expires, priority }: Asked) -> Terms {
    let key = key.map(|key| vec![key].into());
    Terms { key, delay, expires, priority, ..Terms::default() }
}
