//! A connection after `accept_connection`: request, reply, request, reply, until the client closes.
//!
//! [`Session::converse`] is the loop.

#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use manyhands::wire::frame::{Decoder, Frame, Outbound};
use manyhands::wire::pickle::RequestTemplates;
use manyhands::wire::reply::{Reader, Reply};
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::WaitForCancellationFuture;

use super::foreign;
use super::pending::{Pending, Rest};
use super::presence::Presence;
use super::requests::Known;
use super::shared::Shared;
use super::waiter::Waiter;
use crate::config::SMALL_BYTES;
use crate::engine::{Completion, Promise, Reference};
use crate::error::ConnectionError;
use crate::memory::{Parked, Room};
use crate::queue::Token;
use crate::socket::{MOVED_AT_ONCE, Socket, Wire, within};

/// How long after the end of a stream the reset of a reply that was not read may come.
const RESET_GRACE: Duration = Duration::from_secs(1);
/// Requests that a session has served without a pause before others have their turn.
const SERVED_AT_ONCE: usize = 64;
/// A connection after `accept_connection`.
pub(super) struct Session<'a, S> {
    pub(super) wire: &'a mut Wire<S>,
    pub(super) shared: &'a Arc<Shared>,
    pub(super) name: Arc<str>,
    decoder: Decoder,
    /// What it asks for again and again, and of which queue.
    pub(super) templates: RequestTemplates<Known>,
    /// The reply that is not sent yet.
    reply: Outbound,
    /// What must be durable before it is.
    promise: Promise,
    /// What the engine knows it by.
    pub(super) presence: Presence,
    /// The task whose reply was sent last. The next request proves that it was read.
    pub(super) unconfirmed: Option<(Reference, Token)>,
    /// Memory of the request or reply under way.
    pub(super) room: Room,
    /// Length of the request under way, in bytes.
    pub(super) request_len: usize,
    /// When the session has been silent for too long, if it can be; taken while it is waited for.
    idle: Option<Pin<Box<Sleep>>>,
    /// Who answers for what is no queue, once that was called.
    pub(super) guest: Option<foreign::Guest>,
}

impl<'a, S: Socket> Session<'a, S> {
    pub(super) fn new(
        wire: &'a mut Wire<S>,
        shared: &'a Arc<Shared>,
        name: String,
        peer: &Arc<str>,
    ) -> Self {
        let decoder = Decoder::new(shared.limits.frame_bytes_max);
        let name: Arc<str> = name.into();
        let presence = shared.classic.enter(name.clone(), peer);
        Self {
            wire,
            shared,
            name,
            decoder,
            templates: RequestTemplates::default(),
            reply: Outbound::default(),
            promise: Promise::NOTHING,
            presence,
            unconfirmed: None,
            room: shared.engine.memory().room(),
            request_len: 0,
            idle: None,
            guest: None,
        }
    }

    /// Serves the client until it leaves. By reference, as a future has room for its arguments twice.
    pub(super) async fn run(&mut self) -> Result<(), ConnectionError> {
        let end = self.converse().await;
        let at = self.shared.engine.now();
        let turn = self.shared.turns.next().await;
        self.presence.depart(at, end.is_err());
        drop(turn);
        if let Some((reference, _)) = self.unconfirmed
            && (end.is_err() || self.breaks_off(reference).await)
        {
            tracing::debug!(session = &*self.name, "an item did not arrive and goes back");
            self.return_unread();
        }
        end
    }

    /// Whether the client closed without having read the last reply. Its machine says so with a
    /// reset, which may come after the end of the stream if the reply was still under way.
    async fn breaks_off(&self, reference: Reference) -> bool {
        // Asking takes the socket's error away: nobody may ask again after a yes.
        let is_broken = || self.wire.socket().is_broken();
        if is_broken() {
            return true;
        }
        if !self.shared.classic.is_referenced(reference) {
            return false;
        }
        tokio::select! {
            () = sleep(RESET_GRACE) => {}
            () = self.shared.stop.cancelled() => {}
        }
        // It ends in this turn, unless it has much to give back.
        let _turn = self.shared.turns.next().await;
        is_broken()
    }

    /// Request, reply, request, reply.
    async fn converse(&mut self) -> Result<(), ConnectionError> {
        let shared = self.shared;
        // One for all requests: it costs something to be among those that wait for it.
        let mut stop = pin!(shared.stop.cancelled());
        let mut served = 0usize;
        while let Some(frame) = self.next_request(stop.as_mut()).await? {
            let mut rest = self.handle(frame);
            while let Some(pending) = rest {
                rest = Box::pin(self.finish(*pending)).await?;
            }
            if self.presence.is_behind() {
                self.catch_up().await;
            }
            self.send_reply().await?;
            served = if self.wire.has_waited() { 1 } else { served + 1 };
            if served.is_multiple_of(SERVED_AT_ONCE) {
                yield_now().await;
                // Whoever sends requests without a pause is never waited for.
                if self.shared.stop.is_cancelled() {
                    return Err(ConnectionError::Stopping);
                }
            }
        }
        Ok(())
    }

    /// Has a reply sent once what it says is durable; nothing is left to do for its request then.
    /// A large one waits for memory before.
    pub(super) fn tell(&mut self, reader: Reader, reply: &Reply, promise: Promise) -> Rest {
        reply.push_frame(reader, &mut self.reply);
        self.promise = promise;
        None
    }

    /// The same for one that may be large.
    pub(super) fn tell_item(&mut self, reader: Reader, reply: Reply, promise: Promise) -> Rest {
        if reply.item_len() as u64 > SMALL_BYTES {
            return Some(Box::new(Pending::Reply(reader, reply, promise)));
        }
        self.tell(reader, &reply, promise)
    }

    /// Waits for memory for a reply that is to be sent.
    pub(super) async fn make_room(&mut self, bytes: u64) -> Result<(), ConnectionError> {
        if self.room.try_grow_to(bytes) {
            return Ok(());
        }
        tokio::select! {
            () = Box::pin(self.room.grow_to(bytes)) => Ok(()),
            () = self.shared.stop.cancelled() => Err(ConnectionError::Stopping),
        }
    }

    /// Settles what the last call has shown to be through, if that was too much for one step.
    async fn catch_up(&mut self) {
        while self.presence.is_behind() {
            let promise = self.presence.settle_more();
            self.promise = self.promise.and(promise);
            yield_now().await;
        }
    }

    /// The next whole request; `None` if the client closed between two requests.
    async fn next_request(
        &mut self,
        mut stop: Pin<&mut WaitForCancellationFuture<'_>>,
    ) -> Result<Option<Frame>, ConnectionError> {
        self.room.clear();
        let shared = self.shared;
        loop {
            if let Some(frame) = self.wire.next(&mut self.decoder)? {
                shared.alone.note(self.presence.caller());
                self.unconfirmed = None;
                return Ok(Some(frame));
            }
            let is_inside = self.decoder.is_inside_frame(self.wire.inbound());
            let mut idle = self.idle_until_closed();
            let read = tokio::select! {
                biased;
                read = self.read(is_inside) => read?,
                () = stop.as_mut() => return Err(ConnectionError::Stopping),
                limit = expired(&mut idle, shared.limits.idle_timeout), if !is_inside => {
                    if self.unconfirmed.is_none() && self.presence.dismiss() {
                        return Err(ConnectionError::Idle(limit));
                    }
                    continue;
                }
            };
            self.idle = idle;
            match read {
                0 if is_inside => return Err(ConnectionError::Cut("a request")),
                0 => return Ok(None),
                // What is sent next proves that the reply was read.
                _ => self.unconfirmed = None,
            }
        }
    }

    /// What ends the silence that begins now, if anything does.
    fn idle_until_closed(&mut self) -> Option<Pin<Box<Sleep>>> {
        let limit = self.shared.limits.idle_timeout?;
        let Some(mut idle) = self.idle.take() else { return Some(Box::pin(sleep(limit))) };
        idle.as_mut().reset(tokio::time::Instant::now() + limit);
        Some(idle)
    }

    /// Waits for a request to begin, as long as it takes, or reads on in one.
    async fn read(&mut self, is_inside: bool) -> Result<usize, ConnectionError> {
        if is_inside { self.read_on().await } else { Ok(self.wire.read().await?) }
    }

    /// Reads on in a request that has begun.
    async fn read_on(&mut self) -> Result<usize, ConnectionError> {
        // The rest may be held back until what came is acknowledged.
        self.wire.socket().acknowledge();
        if self.decoder.is_passing() {
            // Its length is only a claim, and may be absurd: it must not buy time.
            return within(self.shared.limits.frame_timeout, self.wire.read()).await;
        }
        let missing = self.decoder.missing(self.wire.inbound());
        let limit = self.patience(missing);
        if missing.saturating_add(self.wire.inbound().len() as u64) > SMALL_BYTES {
            return Box::pin(self.read_large(missing, limit)).await;
        }
        within(limit, pin!(self.read_rest(missing))).await
    }

    /// Reads until the request is whole, or until its length is known if it was not; 0 at the end of
    /// the stream. One time limit holds for all of it, so that a trickle does not keep a connection.
    async fn read_rest(&mut self, mut missing: u64) -> io::Result<usize> {
        loop {
            let read = self.wire.read().await?;
            let expected = missing.saturating_sub(read as u64);
            missing = self.decoder.missing(self.wire.inbound());
            if read == 0 || missing == 0 || missing != expected {
                return Ok(read);
            }
            self.wire.socket().acknowledge();
        }
    }

    /// The same for a request that needs room, which it takes as its bytes come. While it waits for
    /// that, its time stands still.
    async fn read_large(
        &mut self,
        missing: u64,
        limit: Duration,
    ) -> Result<usize, ConnectionError> {
        let mut timer = pin!(sleep(limit));
        let (mut left, mut at_once) = (missing, 0);
        loop {
            let growth = self.wire.growth(left);
            let needed = (self.wire.inbound().len() + growth) as u64;
            if !self.room.try_grow_to(needed) {
                let begin = Instant::now();
                self.room.grow_to(needed).await;
                let deadline = timer.deadline() + begin.elapsed();
                timer.as_mut().reset(deadline);
            }
            let reading = self.room.unless_cut_off(self.wire.read_in_place(growth));
            let read = tokio::select! {
                biased;
                read = reading => read??,
                () = &mut timer => return Err(ConnectionError::Stalled(limit)),
            };
            self.room.moved(read);
            left = left.saturating_sub(read as u64);
            if read == 0 || left == 0 {
                return Ok(read);
            }
            at_once += read;
            if at_once >= MOVED_AT_ONCE {
                at_once = 0;
                yield_now().await;
            }
            self.wire.socket().acknowledge();
        }
    }

    /// How long `len` bytes may take to move on.
    pub(super) fn patience(&self, len: u64) -> Duration {
        self.shared.limits.frame_timeout + Duration::from_secs(len >> 20)
    }

    /// Sends the reply, once what it says is durable.
    async fn send_reply(&mut self) -> Result<(), ConnectionError> {
        let reply = std::mem::take(&mut self.reply);
        let promise = std::mem::replace(&mut self.promise, Promise::NOTHING);
        if reply.is_empty() {
            return Ok(());
        }
        let is_kept = promise.is_nothing()
            || self.shared.alone.is(self.presence.caller())
                && self.shared.engine.durable_here(promise).covers(promise);
        if !is_kept {
            let durable = self.shared.engine.until_durable(promise);
            let Some(durable) = self.unless_given_up(durable).await? else {
                self.return_unread();
                return Ok(());
            };
            durable.map_err(|_| ConnectionError::NotDurable)?;
        }
        let len = reply.len() as u64;
        if len > SMALL_BYTES {
            return Box::pin(self.send_large(reply)).await;
        }
        let limit = self.patience(len);
        // So little is not in parts.
        let whole = reply.whole().unwrap_or_default();
        within(limit, pin!(self.wire.send(whole))).await
    }

    /// Sends a reply that takes room, and loses it if the client does not take it.
    async fn send_large(&mut self, outbound: Outbound) -> Result<(), ConnectionError> {
        let len = outbound.len() as u64;
        self.make_room(len).await?;
        let limit = self.patience(len);
        let Self { room, wire, .. } = self;
        let sending = wire.send_parts(outbound, |sent| room.moved(sent));
        within(limit, pin!(async { Ok(room.unless_cut_off(sending).await) })).await???;
        Ok(())
    }

    /// Waits for what is decided and only has to be written or read; `None` if nobody wants to be
    /// told any more, as in [`wait`](Self::wait).
    pub(super) async fn unless_given_up<F: Future>(
        &mut self,
        is_decided: F,
    ) -> Result<Option<F::Output>, ConnectionError> {
        tokio::select! {
            biased;
            read = self.wire.read() => match read? {
                0 => Err(ConnectionError::Cut("a call that waited")),
                _ => Ok(None),
            },
            done = is_decided => Ok(Some(done)),
        }
    }

    /// Gives back the item whose reply did not arrive.
    fn return_unread(&mut self) {
        if let Some((reference, token)) = self.unconfirmed.take() {
            self.shared.classic.return_unread(self.presence.caller(), reference, token);
        }
    }

    /// Waits for the outcome of a call without using up what others need for their requests; `Full`
    /// if there is no room for its item even so. `None` if nobody wants the reply any more.
    pub(super) async fn wait_parked(
        &mut self,
        waiter: Waiter,
    ) -> Result<Option<Completion>, ConnectionError> {
        let Some(_parked) = self.park() else {
            // Another thread may have let it in by now.
            return match waiter.leave() {
                Ok(decided) => self.wait(decided).await,
                Err(promise) => Ok(Some(Completion::full(promise))),
            };
        };
        self.wait(waiter).await
    }

    /// Waits for the outcome of a call, and for the client to leave or to lose interest.
    async fn wait(&mut self, waiter: Waiter) -> Result<Option<Completion>, ConnectionError> {
        tokio::select! {
            biased;
            read = self.wire.read() => match read? {
                0 => Err(ConnectionError::Cut("a call that waited")),
                // A client sends a second request only when it gave up on the reply to the first,
                // after Ctrl-C for example. It would take that reply for the second's.
                _ => Ok(None),
            },
            told = waiter => Ok(told),
            () = self.shared.stop.cancelled() => Err(ConnectionError::Stopping),
        }
    }

    /// Exchanges the room of the request for memory of calls that wait; `None` if there is none.
    fn park(&mut self) -> Option<Parked> {
        self.room.clear();
        let bytes = Some(self.request_len as u64).filter(|bytes| *bytes > SMALL_BYTES);
        self.shared.engine.memory().park(bytes.unwrap_or_default())
    }
}

/// Completes when a silence has lasted for too long; never if it may last for ever.
async fn expired(idle: &mut Option<Pin<Box<Sleep>>>, limit: Option<Duration>) -> Duration {
    match (idle, limit) {
        (Some(idle), Some(limit)) => {
            idle.await;
            limit
        }
        _ => std::future::pending().await,
    }
}
