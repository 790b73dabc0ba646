//! The verbs of the engine as the sessions of this protocol call them: with what each call shows of tasks
//! that its session has [in hand](super::hands).
//!
//! [`presence`](super::presence) has how sessions begin and end, [`references`](super::references) how
//! they come by the queues that they call.
//!
//! [`Classic`] has the hands of all sessions. Its lock comes before the engine's and is held while the
//! engine's verb is called, so that nobody sees the one changed and not the other; nothing is awaited
//! under it. All sessions are served on one thread, so that hardly anybody ever waits for it.

use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};

use manyhands::wire::arguments::Wait;
use tokio::sync::Notify;

use super::hands::{Alarm, Hands};
use super::waiter::{Asked, Waiter};
use crate::config::Limits;
use crate::engine::{
    ALARMS_MAX, Batch, Called, Caller, Engine, Held, PLACED_AT_ONCE_MAX, Reading, Reference, Shown,
    TURN, Ticket, Tokens,
};
use crate::error::{CallError, ConnectionError};
use crate::frontend::shared::Idents;
use crate::memory::Room;
use crate::queue::{Outcome, Prepared, Queue, Time, Token};

/// What the sessions of a server have in hand, and the engine that they call.
pub(crate) struct Classic {
    pub(crate) engine: Arc<Engine>,
    hands: Mutex<Hands>,
    pub(crate) idents: Idents,
    /// Told when a deadline comes before the one that the timer sleeps for.
    timer: Notify,
}

impl fmt::Debug for Classic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Classic").finish_non_exhaustive()
    }
}

impl Classic {
    pub(crate) fn new(engine: Arc<Engine>, limits: &Limits) -> Arc<Self> {
        let hands = Mutex::new(Hands::within(limits));
        Arc::new(Self { engine, hands, idents: Idents::default(), timer: Notify::new() })
    }

    pub(super) fn hands(&self) -> MutexGuard<'_, Hands> {
        self.hands.lock().unwrap_or_else(|_| {
            // Whoever has which task is not to be guessed.
            tracing::error!("what clients have in hand is not known any more; the process ends");
            std::process::abort()
        })
    }

    /// A session calls by a reference.
    fn call(&self, caller: Caller, at: Reference) -> MutexGuard<'_, Hands> {
        let mut hands = self.hands();
        let engine = &self.engine;
        hands.use_reference(caller, at, || engine.now(), || engine.refer_again(at));
        engine.memory().remember(hands.bytes());
        hands
    }

    /// The engine for a session that calls by a reference, which is used by that: for verbs that show
    /// nothing of the tasks that it has in hand.
    pub(crate) fn engine_for(&self, caller: Caller, at: Reference) -> &Arc<Engine> {
        drop(self.call(caller, at));
        &self.engine
    }

    // ---- tasks

    /// Same as [`Engine::put`]. If the session has a task in hand whose results go to this queue, the item
    /// is the result of the oldest one and settles it, in one step.
    pub(crate) fn put(
        self: &Arc<Self>,
        caller: Caller,
        at: Reference,
        item: impl Into<Prepared>,
        wait: Wait,
    ) -> Ticket<Called<Waiter>> {
        let mut item = item.into();
        if item.payload_len() > PLACED_AT_ONCE_MAX && self.hands().may_settle(caller) {
            // Nobody waits for that under the lock of the hands.
            self.engine.find_place(at, &mut item);
        }
        let mut hands = self.call(caller, at);
        let mut settles = hands.settled_by_put(caller, at.queue);
        if settles.answered.is_none() && hands.may_inherit() {
            settles.answered = hands.inherit(caller, at.queue, self.engine.now());
        }
        let ticket = self.engine.put_settling(caller, at, item, None, wait, &settles);
        if settles.is_nothing() {
            drop(hands);
            return self.plain(caller, at, ticket);
        }
        let (answered, through) = (settles.answered, settles.through);
        match &ticket.called {
            Ok(Called::Now(Outcome::Accepted(_) | Outcome::Known)) => {
                hands.accepted(caller, at.queue, answered, &through);
            }
            Err(CallError::Stale) => {
                answered.into_iter().for_each(|held| hands.lose(caller, held));
            }
            Ok(Called::Later(_)) => {
                drop(hands);
                return self.waits(caller, at, ticket, Asked::Put(Box::new((answered, through))));
            }
            _ => {}
        }
        drop(hands);
        self.plain(caller, at, ticket)
    }

    /// Same as [`Engine::get`]. It shows that tasks of the queue that the session has in hand are through,
    /// unless only a result settles them. What it takes is in hand then.
    pub(crate) fn get(
        self: &Arc<Self>,
        caller: Caller,
        at: Reference,
        protocol_max: u8,
        wait: Wait,
    ) -> Ticket<Called<Waiter>> {
        let mut hands = self.call(caller, at);
        let shown = self.shown_by_get(&mut hands, caller, at, wait);
        let (ticket, demand) = self.engine.get_showing(caller, at, protocol_max, wait, &shown);
        if let Ok(Called::Now(Outcome::Task(grant))) = &ticket.called {
            hands.take(caller, Held { queue: at.queue, token: grant.token }, demand);
        }
        drop(hands);
        self.waits(caller, at, ticket, Asked::Task(demand))
    }

    /// Same as [`Engine::join`].
    pub(crate) fn join(self: &Arc<Self>, caller: Caller, at: Reference) -> Ticket<Called<Waiter>> {
        let ticket = self.engine_for(caller, at).join(caller, at);
        self.plain(caller, at, ticket)
    }

    /// Same as [`Engine::task_done`]; settles the oldest task of the queue that the session has in hand.
    pub(crate) fn task_done(
        self: &Arc<Self>,
        caller: Caller,
        at: Reference,
    ) -> Ticket<Called<Waiter>> {
        let mut hands = self.call(caller, at);
        let settles = hands.settled_by_task_done(caller, at.queue);
        let ticket = self.engine.task_done_settling(at, settles);
        drop(hands);
        self.plain(caller, at, ticket)
    }

    /// Same as [`Engine::shut_down`].
    pub(crate) fn shut_down(
        self: &Arc<Self>,
        caller: Caller,
        at: Reference,
        immediate: bool,
    ) -> Ticket<Called<Waiter>> {
        let ticket = self.engine_for(caller, at).shut_down(at, immediate);
        self.plain(caller, at, ticket)
    }

    /// What a queue is [looked](Engine::look) at for.
    ///
    /// # Errors
    ///
    /// [`CallError::NoQueue`].
    pub(crate) fn look<R>(
        &self,
        caller: Caller,
        at: Reference,
        look: impl FnOnce(&Queue) -> R,
    ) -> Result<R, CallError> {
        self.engine_for(caller, at).look(at, look)
    }

    /// A call that shows nothing of tasks in hand has ended, or waits.
    #[inline]
    fn plain(
        self: &Arc<Self>,
        caller: Caller,
        at: Reference,
        ticket: Ticket,
    ) -> Ticket<Called<Waiter>> {
        self.waits(caller, at, ticket, Asked::Nothing)
    }

    #[inline]
    fn waits(
        self: &Arc<Self>,
        caller: Caller,
        at: Reference,
        ticket: Ticket,
        asked: Asked,
    ) -> Ticket<Called<Waiter>> {
        ticket.map(|called| self.called(caller, at, called, asked))
    }

    #[inline]
    fn called(
        self: &Arc<Self>,
        caller: Caller,
        at: Reference,
        called: Called,
        asked: Asked,
    ) -> Called<Waiter> {
        match called {
            Called::Now(outcome) => Called::Now(outcome),
            Called::Later(waiter) => {
                Called::Later(Waiter::new(self, caller, at.queue, waiter, asked))
            }
        }
    }

    // ---- tasks that were taken

    /// Same as [`Engine::collect`]. Tasks that are gone are in hand no more.
    ///
    /// # Errors
    ///
    /// [`ConnectionError::NotDurable`] if a body cannot be read.
    pub(crate) fn collect(
        &self,
        caller: Caller,
        at: Reference,
        batch: &mut Batch,
        room: &mut Room,
    ) -> Result<Option<Reading>, ConnectionError> {
        let reading = self.engine.collect(caller, at, batch, room);
        self.drop_all(caller, at, std::mem::take(&mut batch.gone));
        reading.map_err(|_| ConnectionError::NotDurable)
    }

    /// Same as [`Engine::arrive`]. Tasks that go back are in hand no more.
    ///
    /// # Errors
    ///
    /// [`ConnectionError::NotDurable`] if a body cannot be read.
    pub(crate) fn arrive(
        &self,
        caller: Caller,
        at: Reference,
        batch: Batch,
        reading: Reading,
    ) -> impl Future<Output = Result<(Batch, Room), ConnectionError>> {
        let tokens = batch.grants.iter().map(|grant| grant.token).collect();
        let on_the_way = OnTheWay { classic: self, caller, at, tokens };
        let arriving = self.engine.arrive(caller, at, batch, reading);
        async move {
            let (mut batch, room) = arriving.await.map_err(|_| ConnectionError::NotDurable)?;
            on_the_way.over(std::mem::take(&mut batch.gone));
            Ok((batch, room))
        }
    }

    /// Takes back an item that did not reach its client, to its original place.
    pub(crate) fn return_unread(&self, caller: Caller, at: Reference, token: Token) {
        let mut hands = self.hands();
        hands.lose(caller, Held { queue: at.queue, token });
        self.engine.return_unread(caller, at, token);
    }

    fn drop_all(&self, caller: Caller, at: Reference, tokens: Vec<Token>) {
        if !tokens.is_empty() {
            let mut hands = self.hands();
            for token in tokens {
                hands.lose(caller, Held { queue: at.queue, token });
            }
        }
    }

    /// What a `get` shows, unless it is refused.
    fn shown_by_get(&self, hands: &mut Hands, caller: Caller, at: Reference, wait: Wait) -> Shown {
        let through = match wait {
            Wait::Negative => Tokens::default(),
            _ => hands.through_by_get(caller, at.queue),
        };
        Shown { through, has_tasks: self.has_tasks(hands, caller) }
    }

    fn has_tasks(&self, hands: &mut Hands, caller: Caller) -> bool {
        hands.has_tasks(caller, |tasks| self.engine.lapsed(tasks))
    }

    // ---- time

    /// Judges sessions that have ended, and lets references go that nobody uses, for ever.
    pub(crate) async fn keep_time(&self) {
        loop {
            let armed = self.arm();
            let sleep = async {
                match armed {
                    Some(deadline) => self.engine.sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let (sleep, told) = (pin!(sleep), pin!(self.timer.notified()));
            tokio::select! {
                () = sleep => {}
                () = told => {}
            }
            self.expire();
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn arm(&self) -> Option<Time> {
        let mut hands = self.hands();
        hands.arm(self.engine.now())
    }

    /// Sees to it that a newcomer finds neither names nor references that have not been used for too long,
    /// or has it found soon if there is much.
    pub(super) fn look_at_unused(&self) {
        let is_due = self.hands().has_unused(self.engine.now());
        if is_due {
            self.expire();
            self.timer.notify_one();
        }
        self.engine.look_at_unused();
    }

    /// Does what is due, a bounded part of it at a time so that calls come in between.
    pub(crate) fn expire(&self) {
        let mut hands = self.hands();
        let now = self.engine.now();
        let end = now + TURN;
        for _ in 0..ALARMS_MAX {
            match hands.next_due(now) {
                None => break,
                Some(Alarm::Session(session)) => self.judge(&mut hands, session, now),
                Some(Alarm::Reference(serial)) => {
                    let keeps = |queue| self.engine.needs_references(queue);
                    if let Some(unused) = hands.look_at(serial, now, keeps) {
                        self.engine.release(&[unused]);
                        self.engine.memory().remember(hands.bytes());
                    }
                }
            }
            if end < self.engine.now() {
                break;
            }
        }
    }

    pub(super) fn tell_timer(&self, hands: &Hands) {
        if hands.oversleeps() {
            self.timer.notify_one();
        }
    }

    /// Whether nobody has the lock of the hands.
    #[cfg(test)]
    pub(crate) fn is_free(&self) -> bool {
        self.hands.try_lock().is_ok()
    }

    #[cfg(test)]
    pub(crate) fn number_of_deadlines(&self) -> usize {
        self.hands().number_of_deadlines()
    }

    /// Whether something is to be done by now.
    #[cfg(test)]
    pub(crate) fn is_due(&self) -> bool {
        self.hands().is_due(self.engine.now())
    }

    /// Ends when the timer is told of an earlier deadline.
    #[cfg(test)]
    pub(crate) fn timer_is_told(&self) -> impl Future<Output = ()> {
        self.timer.notified()
    }
}

/// Tasks on their way to a session. Dropped before they are there, they are in its hand no more.
struct OnTheWay<'a> {
    classic: &'a Classic,
    caller: Caller,
    at: Reference,
    tokens: Vec<Token>,
}

impl OnTheWay<'_> {
    /// They are there, but for those that are `gone`.
    fn over(mut self, gone: Vec<Token>) {
        self.tokens = gone;
    }
}

impl Drop for OnTheWay<'_> {
    fn drop(&mut self) {
        self.classic.drop_all(self.caller, self.at, std::mem::take(&mut self.tokens));
    }
}
