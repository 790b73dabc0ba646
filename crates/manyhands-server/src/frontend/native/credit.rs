//! Credit: tasks that are pushed to a client as they come.
//!
//! What comes arrives in one inbox of the session, and is told in its next turn. While the client does
//! not read, its credit is withdrawn, and given again once it does.

use std::sync::Arc;
use std::time::Duration;
use std::vec::IntoIter;

use manyhands::wire::native::{Code, Request, Route, reply};

use super::connection::CREDIT_MAX;
use super::handles::{Handles, Open};
use super::pending::{Cancel, Left, Rest};
use super::replies::{Refusal, cancelled, failure, refusal};
use super::session::Session;
use super::takes::{Hand, Order};
use crate::engine::{
    BATCH_AT_ONCE, Batch, Caller, Engine, Promise, Push, Pushed, Pushes, QueueId, Reference,
};
use crate::error::CallError;
use crate::queue::{Grant, SettledBy, TaskId};
use crate::socket::Socket;

/// What a session has given credit for.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// Where what is pushed arrives.
    pushes: Arc<Pushes>,
    /// What has arrived and was not told yet.
    arrived: IntoIter<Push>,
    /// The handles of queues with credit.
    handles: Vec<u16>,
}

/// The credit of a session for a queue.
#[derive(Debug)]
pub(super) struct Credit {
    /// What its pushes are numbered with.
    id: u32,
    settled_by: SettledBy,
    /// How many tasks may still come.
    left: u32,
    /// Pushes that are read from the disk, or wait for memory.
    on_the_way: usize,
    /// Whether it has ended: what is on the way still comes.
    over: Option<Over>,
}

/// How credit has ended.
#[derive(Debug)]
enum Over {
    /// Its client has said so.
    Done,
    /// For this reason, once that may be told.
    Refused(Refusal, Promise),
}

impl Inbox {
    /// Waits until something has come.
    pub(super) async fn arrived(&self) {
        self.pushes.arrived().await;
    }

    /// Takes no more tasks for now.
    pub(super) fn withdraw(&self, engine: &Engine, caller: Caller, handles: &Handles) -> Vec<u32> {
        let withdraw = |handle: &u16| {
            let open = handles.get(*handle);
            open.map_or(0, |open| engine.withdraw_credit(caller, open.reference))
        };
        self.handles.iter().map(withdraw).collect()
    }

    /// Gives credit again that was withdrawn.
    pub(super) fn restore(
        &self,
        engine: &Engine,
        (caller, reader): (Caller, u8),
        handles: &Handles,
        left: Vec<u32>,
    ) {
        for (handle, left) in self.handles.iter().zip(left) {
            if let Some(Open { reference, credit: Some(credit), .. }) = handles.get(*handle)
                && credit.over.is_none()
            {
                let settled_by = credit.settled_by;
                // If the queue is gone, that was pushed.
                engine.credit(caller, *reference, reader, settled_by, left, &self.pushes).ok();
            }
        }
    }

    /// The next push, if it is a task of this queue.
    fn next_task(&mut self, at: Reference) -> Option<(Grant, Promise)> {
        let next = self.arrived.as_slice().first()?;
        if next.reference != at || !matches!(next.pushed, Pushed::Task(_)) {
            return None;
        }
        match self.arrived.next()? {
            Push { pushed: Pushed::Task(grant), promise, .. } => Some((grant, promise)),
            Push { .. } => None,
        }
    }

    fn handle_of(&self, handles: &Handles, at: Reference) -> Option<u16> {
        let is_at = |handle: &&u16| handles.get(**handle).is_some_and(|it| it.reference == at);
        self.handles.iter().find(is_at).copied()
    }
}

impl<S: Socket> Session<'_, S> {
    pub(super) fn credit(&mut self, route: Route, hold: Option<Duration>, more: u32) -> Rest {
        let Some(open) = self.handles.get_mut(route.queue) else { return self.no_handle(route) };
        let settled_by = hold.map_or(SettledBy::Token, SettledBy::TokenWithin);
        let is_new = open.credit.is_none();
        let queue = open.reference.queue;
        if is_new && let Some(id) = self.credit_for(queue) {
            let text =
                format!("this session has credit for the queue already, by another handle: {id}");
            return self.refuse(route, Code::Refused, &text);
        }
        let Some(open) = self.handles.get_mut(route.queue) else { return self.no_handle(route) };
        let credit = open.credit.get_or_insert_with(|| {
            let Route { id, .. } = route;
            Box::new(Credit { id, settled_by, left: 0, on_the_way: 0, over: None })
        });
        if credit.id != route.id || credit.over.is_some() {
            let text = format!("the credit of this queue has the id {}", credit.id);
            return self.refuse(route, Code::IdInUse, &text);
        }
        credit.settled_by = settled_by;
        credit.left = credit.left.saturating_add(more);
        let left = credit.left;
        if is_new {
            self.ids.insert(route.id, Cancel::Not);
            self.inbox.get_or_insert_default().handles.push(route.queue);
        }
        if left > CREDIT_MAX {
            let text = format!("{left} tasks are more than {CREDIT_MAX}, the most of a queue");
            let refused = (Code::TooMuchCredit, text.into());
            return self.forget_credit(route.queue, Promise::NOTHING, Some(&refused));
        }
        match self.give_credit(route.queue, more) {
            Ok(()) => None,
            Err(error) => self.forget_credit(route.queue, Promise::NOTHING, Some(&failure(&error))),
        }
    }

    /// Whether a request is about credit that is open: it takes no further place.
    pub(super) fn has_credit(&self, route: Route, request: &Request) -> bool {
        let credit = self.handles.get(route.queue).and_then(|open| open.credit.as_ref());
        matches!(request, Request::Credit { .. }) && credit.is_some_and(|it| it.id == route.id)
    }

    /// The tasks of a queue that was closed go back, some of them at a time, if they were pushed and the
    /// client has not started them: it has no handle any more to do so.
    pub(super) fn return_unstarted(&mut self, route: Route, at: Reference, from: TaskId) -> Rest {
        self.add_work(BATCH_AT_ONCE);
        match self.shared.engine.return_unstarted(self.caller(), at, from) {
            Some(next) => Some(Box::new(Left::Return(route, at, next))),
            None => self.tell_closed(route, at),
        }
    }

    /// The id of the credit that the session has for a queue, by whichever handle.
    fn credit_for(&self, queue: QueueId) -> Option<u32> {
        let mut handles = self.inbox.as_ref()?.handles.iter();
        handles.find_map(|handle| {
            let open = self.handles.get(*handle).filter(|open| open.reference.queue == queue)?;
            open.credit.as_ref().map(|credit| credit.id)
        })
    }

    fn give_credit(&self, handle: u16, more: u32) -> Result<(), CallError> {
        let (Some(Open { reference, credit: Some(credit), .. }), Some(inbox)) =
            (self.handles.get(handle), &self.inbox)
        else {
            return Ok(());
        };
        let (engine, caller) = (&self.shared.engine, self.caller());
        engine.credit(caller, *reference, self.reader, credit.settled_by, more, &inbox.pushes)
    }

    /// The client wants no more tasks. What is on the way still comes.
    pub(super) fn end_credit(&mut self, route: Route) -> Rest {
        let caller = self.caller();
        let Some(open) = self.handles.get_mut(route.queue) else { return self.no_handle(route) };
        let Some(credit) = open.credit.as_mut().filter(|credit| credit.id == route.id) else {
            reply::push_done(route, self.behind(Promise::NOTHING));
            return None;
        };
        credit.over.get_or_insert(Over::Done);
        self.shared.engine.end_credit(caller, open.reference);
        None
    }

    /// Credit is over, whoever ended it; nothing if there was none.
    pub(super) fn forget_credit(
        &mut self,
        handle: u16,
        promise: Promise,
        refused: Option<&Refusal>,
    ) -> Rest {
        let caller = self.caller();
        let open = self.handles.get_mut(handle)?;
        let Credit { id, .. } = *open.credit.take()?;
        self.shared.engine.end_credit(caller, open.reference);
        if let Some(inbox) = &mut self.inbox {
            inbox.handles.retain(|other| *other != handle);
        }
        self.ids.remove(&id);
        let route = Route { queue: handle, id };
        // The tasks that were pushed come first.
        let promise = self.after_held(promise);
        match refused {
            Some(refused) => self.refuse_with(promise, route, refused),
            None => {
                reply::push_done(route, self.behind(promise));
                None
            }
        }
    }

    /// Tells what was pushed next, as far as it can be told together; nothing if there is none.
    pub(super) fn tell_next_push(&mut self) -> Option<Rest> {
        let inbox = self.inbox.as_mut()?;
        if inbox.arrived.len() == 0 {
            let mut arrived = std::mem::take(&mut inbox.arrived).collect();
            inbox.pushes.take(&mut arrived);
            inbox.arrived = arrived.into_iter();
        }
        let Some(Push { reference, pushed, mut promise }) = inbox.arrived.next() else {
            self.tell_ends();
            return None;
        };
        let handle = inbox.handle_of(&self.handles, reference);
        Some(match (pushed, handle) {
            (Pushed::Task(first), handle) => {
                let mut grants = vec![first];
                while grants.len() < BATCH_AT_ONCE
                    && let Some((next, put)) = inbox.next_task(reference)
                {
                    grants.push(next);
                    promise = promise.and(put);
                }
                if handle.is_none() && planted!(PushToClosedLost) {
                    return Some(None);
                }
                if planted!(PushRestForgotten) {
                    grants.truncate(1);
                }
                let batch = Batch::pushed(grants, promise);
                let hand = Hand::new(&self.shared.engine, self.caller(), reference, batch);
                // If its handle was closed, they go back.
                handle.and_then(|handle| self.tell_pushed(handle, hand))
            }
            (Pushed::Recall(count), Some(handle)) => self.tell_recall(handle, count),
            (Pushed::Ended(outcome), Some(handle)) => {
                let refused = refusal(&outcome).unwrap_or_else(cancelled);
                if let Some(credit) = self.handles.get_mut(handle).and_then(|it| it.credit.as_mut())
                {
                    credit.over = Some(Over::Refused(refused, promise));
                }
                None
            }
            (Pushed::Recall(_) | Pushed::Ended(_), None) => None,
        })
    }

    fn tell_pushed(&mut self, handle: u16, hand: Hand) -> Rest {
        let reader = self.reader;
        let open = self.handles.get_mut(handle)?;
        let (at, signer) = (open.reference, open.signer);
        let credit = open.credit.as_mut()?;
        credit.left = credit.left.saturating_sub(u32::try_from(hand.len()).unwrap_or(u32::MAX));
        let route = Route { queue: handle, id: credit.id };
        self.add_work(hand.len());
        self.collect(Order::of_push(route, at, signer, reader), hand)
    }

    fn tell_recall(&mut self, handle: u16, count: u32) -> Rest {
        let credit = self.handles.get(handle)?.credit.as_ref()?;
        let route = Route { queue: handle, id: credit.id };
        if planted!(RecallNotTold) {
            return None;
        }
        // Not before those that it asks for.
        let promise = self.after_held(Promise::NOTHING);
        reply::push_recall(count, route, self.behind(promise));
        None
    }

    /// Says of credit that has ended that it is over, once nothing more is to come.
    fn tell_ends(&mut self) {
        let Some(inbox) = &self.inbox else { return };
        let is_over = |handle: &&u16| {
            let credit = self.handles.get(**handle).and_then(|open| open.credit.as_ref());
            credit.is_some_and(|credit| credit.over.is_some() && credit.on_the_way == 0)
        };
        let over: Vec<_> = inbox.handles.iter().filter(is_over).copied().collect();
        for handle in over {
            let credit = self.handles.get_mut(handle).and_then(|open| open.credit.as_mut());
            match credit.and_then(|credit| credit.over.take()) {
                Some(Over::Refused(refused, promise)) => {
                    self.forget_credit(handle, promise, Some(&refused));
                }
                _ => drop(self.forget_credit(handle, Promise::NOTHING, None)),
            }
        }
    }

    /// Pushed tasks begin to be waited for, or are not any more. False if nobody wants them.
    pub(super) fn note_on_the_way(&mut self, order: &Order, is_begin: bool) -> bool {
        let Route { queue, .. } = order.route;
        let open = self.handles.get_mut(queue).filter(|open| open.reference == order.at);
        let Some(credit) = open.and_then(|open| open.credit.as_mut()) else { return false };
        match is_begin {
            true => credit.on_the_way += 1,
            false => credit.on_the_way = credit.on_the_way.saturating_sub(1),
        }
        true
    }

    /// Tasks were gone before they were read: their credit is there again.
    pub(super) fn return_credit(&mut self, handle: u16, tasks: usize) {
        let tasks = u32::try_from(tasks).unwrap_or(u32::MAX);
        let open = self.handles.get_mut(handle);
        if let Some(credit) = open.and_then(|open| open.credit.as_mut())
            && credit.over.is_none()
        {
            credit.left = credit.left.saturating_add(tasks);
            // If the queue is gone, that was pushed.
            self.give_credit(handle, tasks).ok();
        }
    }
}
