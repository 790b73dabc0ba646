//! Clients of our own: batches, leases that their tokens settle, and what is done with dead letters.
//!
//! A token that was given out once is tried by anybody at any later time, also after a restart.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use manyhands::wire::arguments::Wait;
use manyhands::wire::token::LeaseToken;

use super::clients::{Client, in_line, terms};
use super::lives::Due;
use super::model::{Answer, Asked, CallId, Held, Item, Manner, Patience};
use super::setting::Action;
use super::world::{DEAD, NAMES, RESULTS, TASKS, Verdict, World, Wrong, demand, item, payload};
use crate::engine::{
    Batch, Called, Caller, Completion, Promise, Put, Redriving, Reference, Settled, Settlement,
    Shown, Taking, Ticket,
};
use crate::journal::JournalError;
use crate::queue::{
    Delivery, Grant, Order, Outcome, Prepared, Retry, SettledBy, TaskId, Token, TokenRun,
};

/// Most tokens that are remembered.
const TOKENS_MAX: usize = 12;

/// What a client does when its call that waits is over.
#[derive(Debug, Default)]
pub(super) enum Then {
    #[default]
    Nothing,
    /// Takes more of what is there.
    Take(Manner, Taking),
    /// Puts the rest of a batch to a queue.
    Put(usize, Vec<Item>, Patience),
}

/// What a client is told once it is durable.
pub(super) struct Reply {
    pub(super) kept: Pin<Box<dyn Future<Output = Result<(), JournalError>>>>,
    pub(super) told: Told,
}

impl Reply {
    /// The last call that it is about.
    pub(super) fn call(&self) -> CallId {
        match &self.told {
            Told::Answers(answers) => answers.last().unwrap().0,
            Told::Taken { call, .. } | Told::Pushed { call, .. } => *call,
        }
    }
}

/// What is told.
#[derive(Debug)]
pub(super) enum Told {
    Answers(Vec<(CallId, Answer)>),
    /// What a call has taken, in this state.
    Taken {
        call: CallId,
        queue: usize,
        manner: Manner,
        items: Vec<(Item, Token)>,
        at: usize,
    },
    /// What has come by a credit, in this state.
    Pushed {
        call: CallId,
        item: Item,
        token: Token,
        held: Held,
        at: usize,
    },
}

/// How a stock client takes a task.
pub(super) fn single() -> Taking {
    Taking::one(5)
}

/// A lease that somebody was told of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) item: Item,
    pub(super) token: LeaseToken,
    pub(super) held: Held,
}

impl World {
    pub(super) fn let_ours_act(&mut self, at: usize, action: Action) -> Verdict {
        let queue = [TASKS, TASKS, TASKS, TASKS, TASKS, RESULTS, DEAD][self.random.below(7)];
        match action {
            Action::PutMany => self.put_batch(at),
            Action::Lease => return self.take_many(at, queue, true),
            Action::TakeMany => return self.take_many(at, queue, false),
            Action::Ack => return self.ack(at),
            Action::Nack => self.nack(at),
            Action::Extend => self.extend(at),
            Action::SettleMany => return self.settle_batch(at),
            Action::Credit => self.give_credit(at, queue),
            Action::EndCredit => return self.end_credit(at, queue),
            Action::Redrive => self.redrive(at),
            Action::Purge => {
                let queue = [TASKS, RESULTS, RESULTS, DEAD][self.random.below(4)];
                self.purge(at, queue);
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn begin_call(
        &mut self,
        at: usize,
        queue: usize,
    ) -> (CallId, Caller, Reference, u64) {
        let call = self.next();
        let client = &mut self.clients[at];
        client.unread.clear();
        (call, client.caller(), client.references[queue].1, client.session)
    }

    // ---- replies

    /// The client hears this once what the promise names is durable.
    pub(super) fn reply(&mut self, at: usize, told: Told, promise: Promise) {
        if promise.is_nothing() {
            return self.tell(at, told);
        }
        let engine = self.machine.engine.clone();
        let kept = Box::pin(async move { engine.until_durable(promise).await });
        self.wait_for(at, Reply { kept, told });
    }

    fn wait_for(&mut self, at: usize, reply: Reply) {
        let Client { replies, pushed, .. } = &mut self.clients[at];
        let is_push = matches!(reply.told, Told::Pushed { .. });
        if is_push { pushed } else { replies }.push(reply);
    }

    /// Tells clients what is durable by now.
    pub(super) fn poll_replies(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        for at in 0..self.clients.len() {
            let Client { replies, pushed, .. } = &mut self.clients[at];
            let (replies, pushed) = (std::mem::take(replies), std::mem::take(pushed));
            for Reply { mut kept, told } in replies.into_iter().chain(pushed) {
                match kept.as_mut().poll(&mut context) {
                    Poll::Pending => self.wait_for(at, Reply { kept, told }),
                    Poll::Ready(Ok(())) => self.tell(at, told),
                    // The server is about to end.
                    Poll::Ready(Err(_)) => assert!(self.machine.has_failed(), "{told:?} is lost"),
                }
            }
        }
    }

    fn tell(&mut self, at: usize, told: Told) {
        match told {
            Told::Answers(answers) => {
                answers.into_iter().for_each(|(call, answer)| self.hear(call, answer));
            }
            Told::Taken { call, queue, manner, items, at: state } => {
                self.hear_taken(at, call, queue, manner, &items, state);
            }
            Told::Pushed { call, item, token, held, at: state } => {
                self.hear_pushed(at, call, item, token, held, state);
            }
        }
    }

    fn hear_taken(
        &mut self,
        at: usize,
        call: CallId,
        queue: usize,
        manner: Manner,
        items: &[(Item, Token)],
        state: usize,
    ) {
        let reference = self.clients[at].references[queue].1;
        let signer = self.machine.engine.signer(reference).unwrap();
        let leases = match manner {
            Manner::ForGood => self.model.receive(self.clients[at].session),
            _ => self.model.granted(call),
        };
        for (nth, (item, token)) in items.iter().enumerate() {
            let lease = leases.get(nth).map(|held| held.number());
            let answer = Answer::Item(*item, token.attempt);
            let verb = if nth + 1 == items.len() { "yes" } else { "also" };
            self.history.taken(verb, call, *item, token.attempt, lease);
            if nth == 0 {
                self.answers.push((call, answer));
            } else {
                self.told_beside.push(Due { answer, at: state, changed: true });
            }
            if manner == Manner::ForGood {
                continue;
            }
            if let Some(held) = leases.get(nth) {
                let token = signer.sign(*token);
                self.tokens.push(Known { item: *item, token, held: *held });
            } else if queue == TASKS && self.setting.tasks.delivery == Delivery::Leased {
                self.clients[at].todo.push(*item);
            }
        }
        match manner {
            Manner::Plain => {}
            Manner::Leased(_) => self.told_leases = self.told_leases.max(Some(state)),
            Manner::ForGood => self.receive(at, queue, items, &leases),
        }
        self.forget_tokens();
    }

    /// What was taken for good has reached its client, and is settled by that; whether a restart
    /// knows it is in doubt.
    fn receive(&mut self, at: usize, queue: usize, items: &[(Item, Token)], leases: &[Held]) {
        let reference = self.clients[at].references[queue].1;
        for ((item, _), held) in items.iter().zip(leases) {
            let call = self.next();
            let session = self.clients[at].session;
            self.history.ack(session, call, queue, *item, held.number(), None);
        }
        let tokens = TokenRun::of(items.iter().map(|(_, token)| *token));
        self.machine.engine.settle_received(reference, tokens);
        self.past.remember(&self.model, self.machine.appended());
        self.see("tasks were taken for good");
    }

    pub(super) fn forget_tokens(&mut self) {
        let surplus = self.tokens.len().saturating_sub(TOKENS_MAX);
        self.tokens.drain(..surplus);
    }

    /// Nobody reads a reply any more.
    pub(super) fn forget_reply(&mut self, Reply { told, .. }: Reply) {
        let calls = match told {
            Told::Answers(answers) => answers.into_iter().map(|(call, _)| call).collect(),
            Told::Taken { call, .. } | Told::Pushed { call, .. } => vec![call],
        };
        for call in calls {
            self.due.remove(&call);
            self.model.forget_answer(call);
        }
    }

    fn settled(&mut self, at: usize, call: CallId, ticket: Ticket<Answer>) {
        match ticket.called {
            Ok(answer) => self.reply(at, Told::Answers(vec![(call, answer)]), ticket.promise),
            Err(error) => self.failed(at, call, error, ticket.promise),
        }
    }

    // ---- batches

    fn put_batch(&mut self, at: usize) {
        let items = (0..1 + self.random.below(3)).map(|_| Item::try_from(self.next()).unwrap());
        let items = items.collect();
        let (_, patience) = self.patience();
        // Some of what is where dead letters are is none.
        let queue = if self.random.percent(6) { DEAD } else { TASKS };
        if queue == TASKS && self.random.percent(40) {
            return self.put_with_terms(at, items, patience);
        }
        self.put_many(at, queue, items, patience);
    }

    /// Puts a batch each item of which has terms of its own. One that has to wait is the last one.
    fn put_with_terms(&mut self, at: usize, items: Vec<Item>, patience: Patience) {
        let (_, caller, reference, number) = self.begin_call(at, TASKS);
        let puts: Vec<_> = items.iter().map(|item| (*item, self.some_terms())).collect();
        let (engine, patience_of_all) = (self.machine.engine.clone(), self.until(patience));
        let prepared = puts.iter().map(|(item, asked)| {
            let terms = (*asked != Asked::default()).then(|| Box::new(terms(*asked)));
            Put::new(payload(*item), terms, Order::Fifo)
        });
        let (mut numbers, mut prepared) = (vec![], prepared.collect::<Vec<_>>().into_iter());
        let numbers_of_all = Some(&mut numbers);
        let added =
            engine.put_many(caller, reference, &mut prepared, patience_of_all, numbers_of_all);
        let (count, Ticket { called: end, promise }) = (added.count, added.end);
        assert_eq!(count, numbers.len());
        let mut calls = vec![];
        for (item, asked) in puts.into_iter().take(count + 1) {
            let call = self.next();
            let is_special = asked != Asked::default() || self.may_expire;
            self.history.put_alone(number, call, TASKS, item, is_special);
            self.model.put_alone(number, TASKS, call, (item, asked), patience);
            calls.push(call);
        }
        let answer = |number: &Option<TaskId>| number.map_or(Answer::Known, |_| Answer::Accepted);
        let mut told: Vec<_> = calls.iter().copied().zip(numbers.iter().map(answer)).collect();
        match end {
            Ok(None) => {}
            Ok(Some(Called::Later(waiter))) => {
                self.clients[at].in_line.push((calls[count], waiter));
                self.see("an item with terms had to wait");
            }
            Ok(Some(Called::Now(Outcome::Full | Outcome::NoRoom))) => {
                told.push((calls[count], Answer::Full));
            }
            Err(error) => told.push((calls[count], self.refusal(&error))),
            other => panic!("{other:?}"),
        }
        if numbers.iter().any(Option::is_none) {
            self.see("a key in a batch was known");
        }
        if !told.is_empty() {
            self.reply(at, Told::Answers(told), promise);
        }
    }

    fn until(&self, patience: Patience) -> crate::queue::Patience {
        match patience {
            Patience::No => crate::queue::Patience::Now,
            Patience::Forever => crate::queue::Patience::Forever,
            Patience::Until(until) => crate::queue::Patience::Until(until),
        }
    }

    /// Puts a batch, or the rest of one.
    pub(super) fn put_many(
        &mut self,
        at: usize,
        queue: usize,
        items: Vec<Item>,
        patience: Patience,
    ) {
        let (_, caller, reference, number) = self.begin_call(at, queue);
        let (engine, patience_of_all) = (self.machine.engine.clone(), self.until(patience));
        let puts = items.iter().map(|item| Put::new(payload(*item), None, Order::Fifo));
        let mut puts = puts.collect::<Vec<_>>().into_iter();
        let added = engine.put_many(caller, reference, &mut puts, patience_of_all, None);
        let (count, Ticket { called: end, promise }) = (added.count, added.end);
        let mut calls = vec![];
        for item in &items[..items.len().min(count + 1)] {
            let call = self.next();
            let is_special = queue == TASKS && self.may_expire;
            self.history.put_alone(number, call, queue, *item, is_special);
            self.model.put_alone(number, queue, call, (*item, Asked::default()), patience);
            calls.push(call);
        }
        self.past.remember(&self.model, self.machine.appended());
        let rest: Vec<_> = items.into_iter().skip(count + 1).collect();
        let mut told: Vec<_> =
            calls.iter().take(count).map(|call| (*call, Answer::Accepted)).collect();
        match end {
            Ok(None) => {}
            Ok(Some(Called::Now(Outcome::Full | Outcome::NoRoom))) => {
                told.push((calls[count], Answer::Full));
            }
            Ok(Some(Called::Later(waiter))) => {
                let last = calls[count];
                self.clients[at].waiting = Some((last, queue, Box::pin(waiter)));
                self.clients[at].then = Then::Put(queue, rest, patience);
                self.see("a batch had to wait");
            }
            other => panic!("{other:?}"),
        }
        if !told.is_empty() {
            self.reply(at, Told::Answers(told), promise);
        }
    }

    /// Takes some, by token or for good.
    fn take_many(&mut self, at: usize, queue: usize, by_token: bool) -> Verdict {
        let patience = self.patience();
        let hold = self.random.percent(60).then(|| self.some_time(6000));
        let manner = if by_token { Manner::Leased(hold) } else { Manner::ForGood };
        let taking = Taking {
            protocol_max: 5,
            settled_by: match by_token {
                true => hold.map_or(SettledBy::Token, SettledBy::TokenWithin),
                false => SettledBy::Session,
            },
            is_informed: !by_token && self.random.percent(50),
            max: [1, 1, 2, 4][self.random.below(4)],
            bytes_max: usize::MAX,
        };
        self.begin_take(at, queue, manner, taking, patience)
    }

    pub(super) fn begin_take(
        &mut self,
        at: usize,
        queue: usize,
        manner: Manner,
        taking: Taking,
        (wait, patience): (Wait, Patience),
    ) -> Verdict {
        let (call, caller, reference, number) = self.begin_call(at, queue);
        self.history.take(number, call, queue, taking.max);
        self.model.get(number, queue, call, manner, patience);
        let (engine, mut batch) = (self.machine.engine.clone(), Batch::default());
        let shown = Shown::default();
        let ticket = engine.get_many(caller, reference, taking, wait, &shown, &mut batch);
        match ticket.called.unwrap() {
            None => return self.taken(at, call, queue, manner, taking, batch),
            Some(Called::Now(outcome)) => self.ended(at, call, &outcome, ticket.promise),
            Some(Called::Later(waiter)) => {
                self.clients[at].waiting = Some((call, queue, Box::pin(waiter)));
                self.clients[at].then = Then::Take(manner, taking);
            }
        }
        Ok(())
    }

    /// The first of what a call takes has come, and more of what is there with it.
    pub(super) fn taken(
        &mut self,
        at: usize,
        call: CallId,
        queue: usize,
        manner: Manner,
        taking: Taking,
        mut batch: Batch,
    ) -> Verdict {
        let client = &self.clients[at];
        let (caller, number) = (client.caller(), client.session);
        let (reference, is_native) = (client.references[queue].1, client.is_native());
        let more = match taking.max {
            0 | 1 => vec![],
            max => self.model.take_more(number, queue, call, manner, max - 1),
        };
        let given = |grant: &Grant| (item(&grant.payload), grant.token.attempt);
        let engine = self.machine.engine.clone();
        // Whoever reads them waits meanwhile.
        while engine.unwritten(reference, &batch.grants).0.is_some() && self.machine.write() {
            self.see("a body was not written yet");
        }
        if self.machine.has_failed() {
            return Ok(());
        }
        let room = &mut engine.memory().room();
        let is_collected = match is_native {
            true => engine.collect(caller, reference, &mut batch, room).unwrap().is_none(),
            false => {
                let classic = &self.machine.classic;
                classic.collect(caller, reference, &mut batch, room).unwrap().is_none()
            }
        };
        assert!(is_collected, "there is no thread that would read it");
        if batch.grants.is_empty() {
            return self.take_again(at, call, queue, manner, taking);
        }
        let Batch { grants, mut promise, .. } = batch;
        let taken: Vec<_> = grants.iter().skip(1).map(given).collect();
        demand!(taken == more, "{call} was given {taken:?} beside the first, not {more:?}");
        if taking.is_informed {
            promise = promise.and(engine.inform(caller, reference, &grants).1);
        }
        if grants.len() > 1 {
            let is_leased = taking.settled_by.is_by_token();
            self.see(if is_leased { "many were leased" } else { "many were taken" });
        }
        self.past.remember(&self.model, self.machine.appended());
        let state = self.past.first_with(&self.model.granted(call));
        let mut items = vec![];
        for grant in grants {
            let item = item(&grant.payload);
            assert_eq!(grant.payload, payload(item), "what was put is what is given");
            let is_new = self.lease_numbers.insert((queue, grant.token.lease));
            assert!(is_new, "lease {} of {} again", grant.token.lease, NAMES[queue]);
            self.clients[at].unread.push((queue, grant.token));
            items.push((item, grant.token));
        }
        self.reply(at, Told::Taken { call, queue, manner, items, at: state }, promise);
        Ok(())
    }

    /// What a call was given was taken from it, and is gone, before it was read. It goes on.
    fn take_again(
        &mut self,
        at: usize,
        call: CallId,
        queue: usize,
        manner: Manner,
        taking: Taking,
    ) -> Verdict {
        let due = self.due.remove(&call).map(|due| due.answer);
        let Some(Answer::Item(item, _)) = due else {
            return Err(Wrong(format!("{call} was not answered with {due:?}")));
        };
        demand!(self.model.is_gone(queue, item), "{call} was not answered");
        self.see("went on when a task was gone");
        if manner == Manner::Plain {
            return self.get_for(at, queue, Wait::No, Patience::No);
        }
        self.begin_take(at, queue, manner, taking, (Wait::No, Patience::No))
    }

    /// A call that waited is over.
    pub(super) fn go_on(
        &mut self,
        at: usize,
        call: CallId,
        queue: usize,
        completion: Completion,
        then: Then,
    ) -> Verdict {
        let Completion { outcome, promise, .. } = completion;
        match (then, outcome) {
            (Then::Take(manner, taking), Outcome::Task(grant)) => {
                let (caller, reference) =
                    (self.clients[at].caller(), self.clients[at].references[queue].1);
                let mut batch = Batch::of(grant, promise);
                self.machine.engine.take_more(caller, reference, taking, &mut batch);
                return self.taken(at, call, queue, manner, taking, batch);
            }
            (Then::Put(queue, rest, patience), accepted @ Outcome::Accepted(_)) => {
                self.ended(at, call, &accepted, promise);
                let is_over = matches!(patience, Patience::Until(until) if until <= self.model.now);
                if !rest.is_empty() && !is_over {
                    self.put_many(at, queue, rest, patience);
                }
            }
            (Then::Nothing, outcome) => return self.answered(at, call, queue, outcome, promise),
            (_, outcome) => self.ended(at, call, &outcome, promise),
        }
        Ok(())
    }

    /// A call that takes nothing has ended.
    fn ended(&mut self, at: usize, call: CallId, outcome: &Outcome, promise: Promise) {
        let answer = match outcome {
            Outcome::Accepted(_) => Answer::Accepted,
            Outcome::Full | Outcome::NoRoom => Answer::Full,
            Outcome::Empty => Answer::Empty,
            other => panic!("{other:?}"),
        };
        self.reply(at, Told::Answers(vec![(call, answer)]), promise);
    }

    // ---- tokens

    pub(super) fn some_time(&mut self, most: u64) -> Duration {
        Duration::from_millis(1 + self.random.next() % most)
    }

    /// Some token, mostly one of the last.
    fn some_token(&mut self) -> Option<Known> {
        let from_end = [1, 1, 1, 2, 3, 5, 8, 12][self.random.below(8)];
        let at = self.tokens.len().checked_sub(from_end)?;
        self.tokens.get(at).copied()
    }

    fn ack(&mut self, at: usize) -> Verdict {
        let Some(Known { item, token, held }) = self.some_token() else { return Ok(()) };
        let queue = held.queue();
        let (wait, patience) = self.patience();
        let (call, caller, reference, number) = self.begin_call(at, queue);
        let has_result = if self.setting.tasks.results.is_some() && queue == TASKS {
            self.random.percent(80)
        } else {
            self.random.percent(5)
        };
        // If such a result finds no room, what is left of the delay after a restart depends on whether
        // a checkpoint has seen it.
        let has_result = has_result && !(self.setting.has_disk && self.model.is_delayed(held));
        let result = has_result.then(|| Item::try_from(self.next()).unwrap());
        self.history.ack(number, call, queue, item, held.number(), result);
        match result {
            Some(result) => self.model.ack_with(number, call, held, result, patience),
            None => self.model.ack_alone(number, call, held),
        }
        let result = result.map(payload);
        let ticket = in_line(self.machine.engine.ack(caller, reference, token, result, wait));
        match &ticket.called {
            Ok(Called::Now(Outcome::Done)) => {
                self.see("an ack was kept");
                self.settled(at, call, ticket.map(|_| Answer::Accepted));
                return Ok(());
            }
            Ok(Called::Now(Outcome::Accepted(_))) => self.see("an ack was kept"),
            Ok(Called::Later(_)) => self.see("an ack had to wait"),
            _ => {}
        }
        self.called(at, call, RESULTS, ticket)
    }

    fn nack(&mut self, at: usize) {
        let Some(Known { item, token, held }) = self.some_token() else { return };
        let delay = match self.random.below(3) {
            0 => None,
            1 => Some(Duration::ZERO),
            _ => Some(self.some_time(10_000)),
        };
        let queue = held.queue();
        let (call, caller, reference, number) = self.begin_call(at, queue);
        self.history.nack(number, call, queue, item, held.number());
        self.model.nack(number, call, held, delay);
        let nacked = self.machine.engine.nack(
            caller,
            reference,
            token,
            Retry::from(delay),
            "it is not for me",
        );
        self.settled(at, call, nacked.map(|()| Answer::Accepted));
    }

    fn extend(&mut self, at: usize) {
        let Some(Known { token, held, .. }) = self.some_token() else { return };
        let time = self.some_time(8000);
        let (call, caller, reference, number) = self.begin_call(at, held.queue());
        self.history.join(number, call, held.queue());
        self.model.extend(number, call, held, time);
        let extended = self.machine.engine.extend(caller, reference, token, time);
        if extended.called.is_ok() {
            self.see("a lease was extended");
        }
        self.settled(at, call, extended.map(|()| Answer::Extended));
        // It may be over by what its queue allows.
        for between in self.model.pass(self.model.now) {
            self.past.remember(&between, self.machine.appended());
        }
    }

    /// Settles some tasks of a queue in one step, each in its own way.
    fn settle_batch(&mut self, at: usize) -> Verdict {
        let Some(first) = self.some_token() else { return Ok(()) };
        let queue = first.held.queue();
        let (_, patience) = self.patience();
        let (_, caller, reference, number) = self.begin_call(at, queue);
        let mut known = vec![first];
        for _ in 0..self.random.below(5) {
            known.extend(self.some_token().filter(|known| known.held.queue() == queue));
        }
        let (mut settlements, mut told) = (vec![], vec![]);
        for known in known {
            let call = self.next();
            let (settlement, answer) = self.some_settlement(number, call, known, patience);
            settlements.push((known.token, settlement));
            told.push((call, Some(answer)));
        }
        let engine = self.machine.engine.clone();
        let (mut settled, until) = (Settled::default(), self.until(patience));
        let mut all = settlements.into_iter();
        let is_more = engine.settle_many(caller, reference, &mut all, until, &mut settled);
        let Settled { count, others, promise } = settled;
        demand!(!is_more && count == told.len(), "{count} of {} were settled", told.len());
        for (place, called) in others {
            let (call, answer) = &mut told[place];
            *answer = match called {
                Ok(Called::Later(waiter)) => {
                    self.clients[at].in_line.push((*call, waiter));
                    self.see("a result in a batch had to wait");
                    None
                }
                Ok(Called::Now(Outcome::Full | Outcome::NoRoom)) => Some(Answer::Full),
                Ok(other) => panic!("{other:?}"),
                Err(error) => Some(self.refusal(&error)),
            };
        }
        let told = told.into_iter().filter_map(|(call, answer)| Some((call, answer?)));
        let told: Vec<_> = told.collect();
        if told.len() > 1 {
            self.see("many were settled");
        }
        if !told.is_empty() {
            self.reply(at, Told::Answers(told), promise);
        }
        // A lease may be over by what its queue allows.
        for between in self.model.pass(self.model.now) {
            self.past.remember(&between, self.machine.appended());
        }
        Ok(())
    }

    /// Settles a task in some way by the model, and says what it is told if that takes effect.
    fn some_settlement(
        &mut self,
        number: u64,
        call: CallId,
        Known { item, held, .. }: Known,
        patience: Patience,
    ) -> (Settlement, Answer) {
        let queue = held.queue();
        let may_answer = self.setting.tasks.results.is_some() && queue == TASKS;
        // If such a result finds no room, what is left of the delay after a restart depends on whether
        // a checkpoint has seen it.
        let may_answer = may_answer && !(self.setting.has_disk && self.model.is_delayed(held));
        match self.random.below(9) {
            0..=2 if may_answer => {
                let result = Item::try_from(self.next()).unwrap();
                self.history.ack(number, call, queue, item, held.number(), Some(result));
                self.model.ack_with(number, call, held, result, patience);
                (Settlement::Answer(Prepared::from(payload(result))), Answer::Accepted)
            }
            0..=2 => {
                self.history.ack(number, call, queue, item, held.number(), None);
                self.model.ack_alone(number, call, held);
                (Settlement::Ack, Answer::Accepted)
            }
            3 => {
                let delay = self.random.percent(50).then(|| self.some_time(10_000));
                self.history.nack(number, call, queue, item, held.number());
                self.model.nack(number, call, held, delay);
                (Settlement::Nack(Retry::from(delay), "it is not for me".into()), Answer::Accepted)
            }
            4 => {
                let time = self.some_time(8000);
                self.history.join(number, call, queue);
                self.model.extend(number, call, held, time);
                (Settlement::Extend(time), Answer::Extended)
            }
            5..=6 => {
                self.history.join(number, call, queue);
                self.model.start(number, call, held);
                (Settlement::Start, Answer::Started)
            }
            _ => {
                self.history.join(number, call, queue);
                self.model.hand_back(number, call, held);
                (Settlement::Return, Answer::Accepted)
            }
        }
    }

    /// Which tokens are good after a restart, where only what came back can tell.
    pub(super) fn decide_doubts(&mut self, power: bool) -> Verdict {
        let Self { tokens, model, .. } = self;
        tokens.retain(|known| model.item(known.held) == Some(known.item));
        for held in self.model.doubts() {
            let known = self.tokens.iter().find(|known| known.held == held);
            let is_good =
                known.is_some_and(|known| self.machine.is_last(held.queue(), known.token));
            self.model.decide(held, is_good);
        }
        // That a lease has been and is over leaves no other trace, and a power cut may take both.
        for Known { token, held, .. } in self.tokens.clone() {
            if self.model.is_last(held) && !self.machine.is_last(held.queue(), token) {
                demand!(power, "{held:?} was forgotten");
                self.model.decide(held, false);
            }
        }
        // What nobody was told of may be lost, and a lease by a power cut even so.
        for Known { token, held, .. } in self.tokens.clone() {
            let is_good = self.machine.is_last(held.queue(), token);
            let Some(other) = self.model.other_last(held).filter(|_| is_good) else { continue };
            let is_known = self.tokens.iter().any(|known| Some(known.held.number()) == other);
            demand!(power || !is_known, "lease {other:?} of {held:?} was forgotten");
            self.model.decide_for(held);
        }
        // Nor can a lease be told from the next one of the same task for as long by anything else.
        for Known { token, held, .. } in self.tokens.clone() {
            let is_held = self.machine.is_held(held.queue(), token);
            let Some(other) = self.model.other_holder(held).filter(|_| is_held) else { continue };
            let is_known = self.tokens.iter().any(|known| known.held.number() == other);
            demand!(power || !is_known, "lease {other} of {held:?} was forgotten");
            self.model.hold_for(held);
        }
        Ok(())
    }

    // ---- dead letters

    fn redrive(&mut self, at: usize) {
        let most = [1, 3, 100][self.random.below(3)];
        // One that nobody has put, too.
        let tasks = self.model.tasks_so_far(DEAD) + 1;
        let only = (self.random.below(3) == 0).then(|| self.random.below(tasks));
        let (call, _, reference, number) = self.begin_call(at, DEAD);
        self.history.redrive(number, call, DEAD);
        let between = self.model.redrive(number, call, DEAD, only.map_or(most, |_| 1), only);
        let mut redriving = match only {
            Some(task) => Redriving::one(TaskId(task as u64)),
            None => Redriving::of(most),
        };
        // The last frame of each step.
        let mut frames = Vec::new();
        let called = loop {
            let goes_on = self.machine.engine.redrive_some(reference, &mut redriving);
            frames.push(self.machine.appended());
            match goes_on {
                Ok(true) => {}
                Ok(false) => break Ok(redriving.moved),
                Err(error) => break Err(error),
            }
        };
        let moved = Ticket { called, promise: redriving.promise };
        for (between, frame) in between.iter().zip(frames) {
            self.past.remember(between, frame);
            self.see("dead letters were redriven in steps");
        }
        if moved.called.as_ref().is_ok_and(|moved| *moved > 0) {
            self.see("dead letters were redriven");
            if only.is_some() {
                self.see("one dead letter was redriven out of turn");
            }
        }
        self.settled(at, call, moved.map(Answer::Count));
    }

    pub(super) fn purge(&mut self, at: usize, queue: usize) {
        if !self.model.is_worth_a_purge(queue) {
            return;
        }
        let (call, _, reference, number) = self.begin_call(at, queue);
        self.history.purge(number, call, queue);
        self.model.purge(number, call, queue);
        let dropped = self.machine.engine.purge(reference);
        if dropped.called.as_ref().is_ok_and(|dropped| *dropped > 0) {
            self.see("a queue was purged");
        }
        self.settled(at, call, dropped.map(Answer::Count));
    }
}
