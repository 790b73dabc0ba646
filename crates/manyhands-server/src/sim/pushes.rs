//! Credit in a world: what is pushed to clients of our own, and items of their batches that wait.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::lives::Due;
use super::model::{self, Answer, CallId, Held, Item, Manner};
use super::ours::{Known, Told};
use super::world::{NAMES, Verdict, World, Wrong, demand, item, payload};
use crate::engine::{Batch, Push, Pushed};
use crate::queue::{Grant, Outcome, SettledBy, Token};

impl World {
    /// A client can take some more tasks of a queue.
    pub(super) fn give_credit(&mut self, at: usize, queue: usize) {
        let hold = self.random.percent(60).then(|| self.some_time(6000));
        let more = [1, 1, 2, 3, 5][self.random.below(5)];
        let (call, caller, reference, number) = self.begin_call(at, queue);
        let call_of_all = *self.clients[at].credits[queue].get_or_insert(call);
        self.history.take(number, call, queue, more as usize);
        self.model.credit(number, queue, call_of_all, Manner::Leased(hold), more);
        let settled_by = hold.map_or(SettledBy::Token, SettledBy::TokenWithin);
        let pushes = &self.clients[at].pushes;
        self.machine.engine.credit(caller, reference, 5, settled_by, more, pushes).unwrap();
        self.see("credit was given");
    }

    /// A client takes no more for a while, or for good.
    pub(super) fn end_credit(&mut self, at: usize, queue: usize) -> Verdict {
        if self.clients[at].credits[queue].is_none() {
            return Ok(());
        }
        let (_, caller, reference, number) = self.begin_call(at, queue);
        let engine = self.machine.engine.clone();
        if self.random.percent(40) {
            self.model.end_credit(number, queue);
            engine.end_credit(caller, reference);
            self.see("credit was ended");
            return Ok(());
        }
        let expected = self.model.withdraw(number, queue);
        let left = engine.withdraw_credit(caller, reference);
        demand!(left == expected, "{left} of the credit was left, not {expected}");
        self.see("credit was withdrawn");
        Ok(())
    }

    /// What has come by credit is what the model says, for everybody who is there.
    pub(super) fn compare_pushes(&mut self) -> Verdict {
        let expected = self.model.take_pushed();
        for at in 0..self.clients.len() {
            let mut arrived = vec![];
            self.clients[at].pushes.take(&mut arrived);
            let session = self.clients[at].session;
            let mut expected: Vec<_> = expected.iter().filter(|it| it.session == session).collect();
            for Push { reference, pushed, promise } in arrived {
                let references = &self.clients[at].references;
                let queue = references.iter().position(|(_, it)| *it == reference).unwrap();
                let next = expected.iter().position(|push| push.queue == queue);
                let next = next.map(|next| expected.remove(next).pushed);
                match (pushed, next) {
                    (Pushed::Task(grant), Some(model::Pushed::Task(item, attempt, held))) => {
                        let batch = Batch::pushed(vec![grant], promise);
                        self.arrive(at, queue, batch, (item, attempt), held)?;
                    }
                    (Pushed::Recall(tasks), Some(model::Pushed::Recall(expected))) => {
                        demand!(tasks == expected, "{tasks} were recalled, not {expected}");
                        self.see("tasks were recalled");
                    }
                    (pushed, next) => {
                        let name = NAMES[queue];
                        return Err(Wrong(format!("{name} pushed {pushed:?} instead of {next:?}")));
                    }
                }
            }
            demand!(expected.is_empty() || self.machine.has_failed(), "not pushed: {expected:?}");
        }
        Ok(())
    }

    /// A task was pushed: its client is told once it may be.
    fn arrive(
        &mut self,
        at: usize,
        queue: usize,
        mut batch: Batch,
        expected: (Item, u32),
        held: Held,
    ) -> Verdict {
        let client = &self.clients[at];
        let (caller, reference) = (client.caller(), client.references[queue].1);
        let call = client.credits[queue].unwrap();
        let engine = self.machine.engine.clone();
        while engine.unwritten(reference, &batch.grants).0.is_some() && self.machine.write() {
            self.see("a pushed body was not written yet");
        }
        if self.machine.has_failed() {
            return Ok(());
        }
        let room = &mut engine.memory().room();
        let collected = engine.collect(caller, reference, &mut batch, room);
        assert!(collected.unwrap().is_none(), "there is no thread that would read it");
        let Some(Grant { token, payload: pushed }) = batch.grants.pop() else {
            demand!(self.model.is_gone(queue, expected.0), "{} was not pushed", expected.0);
            return Ok(());
        };
        let given = (item(&pushed), token.attempt);
        demand!(given == expected, "{given:?} was pushed, not {expected:?}");
        assert_eq!(pushed, payload(given.0), "what was put is what is given");
        let is_new = self.lease_numbers.insert((queue, token.lease));
        assert!(is_new, "lease {} of {} again", token.lease, NAMES[queue]);
        let state = self.past.first_with(&[held]);
        self.see("a task was pushed");
        let told = Told::Pushed { call, item: given.0, token, held, at: state };
        self.reply(at, told, batch.promise);
        Ok(())
    }

    pub(super) fn hear_pushed(
        &mut self,
        at: usize,
        call: CallId,
        item: Item,
        token: Token,
        held: Held,
        state: usize,
    ) {
        let reference = self.clients[at].references[held.queue()].1;
        let signer = self.machine.engine.signer(reference).unwrap();
        self.history.taken("also", call, item, token.attempt, Some(held.number()));
        let answer = Answer::Item(item, token.attempt);
        self.told_beside.push(Due { answer, at: state, changed: true });
        self.told_leases = self.told_leases.max(Some(state));
        self.tokens.push(Known { item, token: signer.sign(token), held });
        self.forget_tokens();
    }

    /// Items of batches that waited may have found room.
    pub(super) fn poll_lines(&mut self) -> Verdict {
        let mut context = Context::from_waker(Waker::noop());
        for at in 0..self.clients.len() {
            for (call, mut waiter) in std::mem::take(&mut self.clients[at].in_line) {
                match Pin::new(&mut waiter).poll(&mut context) {
                    Poll::Pending => self.clients[at].in_line.push((call, waiter)),
                    Poll::Ready(Some(completion)) => {
                        let answer = match completion.outcome {
                            Outcome::Accepted(_) => Answer::Accepted,
                            Outcome::Known => Answer::Known,
                            Outcome::Full | Outcome::NoRoom => Answer::Full,
                            other => panic!("{other:?}"),
                        };
                        self.reply(at, Told::Answers(vec![(call, answer)]), completion.promise);
                    }
                    Poll::Ready(None) => return Err(Wrong(format!("{call} was not answered"))),
                }
            }
        }
        Ok(())
    }
}
