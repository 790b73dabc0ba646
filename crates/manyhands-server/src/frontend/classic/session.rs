//! A connection after `accept_connection`: request, reply, request, reply, until the client closes.
//!
//! [`Session::converse`] is the loop. Our own clients may send requests ahead; their replies go out in
//! order, many in one write.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use manyhands::wire::announcement::{announced, is_ours};
use manyhands::wire::frame::{Decoder, Frame, FrameError, Outbound};
use manyhands::wire::method::{Method, Refusal};
use manyhands::wire::pickle::{Call, Habits, PickleError};
use manyhands::wire::reply::{Exception, Reader, Reply};
use memchr::memmem;
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep};

use super::foreign::{self, Request, forward};
use super::methods::Begun;
use super::replies::{fail, refuse, reply_to, traceback, unknown_ident};
use super::shared::Shared;
use crate::config::SMALL_BYTES;
use crate::engine::{
    BATCH_AT_ONCE, Called, Engine, Presence, Promise, Reference, SessionId, Waiter, both,
};
use crate::error::{CallError, ConnectionError};
use crate::memory::{Parked, Room};
use crate::queue::{Grant, Outcome, Token};
use crate::socket::{Socket, Wire, within};

/// Requests above this many bytes are scanned on a thread of their own, so that nobody waits.
const SCANNED_AT_ONCE_MAX: usize = 256 << 10;
/// The same for batches, which are taken apart besides.
const BATCH_SCANNED_AT_ONCE_MAX: usize = 16 << 10;
/// Where in a request the name of its method stands, in bytes from its beginning.
const METHOD_WITHIN: usize = 128;

/// Requests that a session has served one after the other before others have their turn.
const SERVED_AT_ONCE: usize = 64;
/// Replies are sent once they are this long together, in bytes, even if more requests are at hand.
const REPLIES_LEN_MAX: usize = 64 << 10;
/// Room for unconfirmed items that a session keeps between calls.
const UNCONFIRMED_LEN_KEPT: usize = 4;
/// Requests that are read ahead while a call waits, in bytes. Above, whether the client hangs up is
/// seen only when the call ends.
const READ_AHEAD_MAX: usize = 64 << 10;

/// A connection after `accept_connection`.
pub(super) struct Session<'a, S> {
    pub(super) wire: Wire<S>,
    pub(super) shared: &'a Arc<Shared>,
    pub(super) name: String,
    /// Whether the client is one of ours, who may send requests ahead and has more methods.
    is_ours: bool,
    decoder: Decoder,
    /// What it asks for again and again, and of which queue.
    habits: Habits<Reference>,
    /// Replies that are not sent yet.
    pub(super) outbound: Outbound,
    /// What has to be durable before they are.
    promise: Option<Promise>,
    /// What the engine knows it by.
    pub(super) presence: Presence,
    /// The items whose replies were sent last. The next request proves that they were read.
    pub(super) unconfirmed: Vec<(Reference, Token)>,
    /// Memory of the request or reply under way.
    pub(super) room: Room,
    /// Length of the request under way, in bytes.
    request_len: usize,
    /// When the session has been silent for too long, if it can be; taken while it is waited for.
    idle: Option<Pin<Box<Sleep>>>,
    /// Who answers for what is no queue, once that was called.
    pub(super) guest: Option<foreign::Guest>,
}

/// A call that waits.
struct Wait {
    reference: Reference,
    waiter: Waiter,
    on_shut_down: Exception,
}

/// What a request comes to at once.
enum Answer {
    Reply(Reply),
    Item(Reference, Grant),
    Wait(Box<Wait>),
    /// A method of our own clients alone.
    Extra(Reference, Box<Method>),
    /// Not ours: the embedding program has to answer this request.
    Guest(Request),
    /// A call that puts proxies of these objects into a queue: it is applied once the embedding
    /// program has taken note of them.
    Carries(BTreeSet<String>, Box<(Reference, Method, Reader)>),
}

impl<'a, S: Socket> Session<'a, S> {
    pub(super) fn new(
        wire: Wire<S>,
        shared: &'a Arc<Shared>,
        name: String,
        peer: &Arc<str>,
    ) -> Self {
        let decoder = Decoder::new(shared.limits.frame_bytes_max);
        let presence = shared.engine.enter(&name, peer);
        Self {
            wire,
            shared,
            is_ours: announced(&name) > 0,
            name,
            decoder,
            habits: Habits::default(),
            outbound: Outbound::default(),
            promise: None,
            presence,
            unconfirmed: Vec::new(),
            room: shared.engine.memory().room(),
            request_len: 0,
            idle: None,
            guest: None,
        }
    }

    pub(super) async fn run(mut self) -> Result<(), ConnectionError> {
        let end = self.converse().await;
        self.presence.depart(end.is_err());
        if let Some(&(reference, _)) = self.unconfirmed.last()
            && (end.is_err() || self.breaks_off(reference).await)
        {
            tracing::debug!(session = self.name, "items did not arrive and go back");
            self.take_back().await;
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
        if !self.shared.engine.is_referenced(reference) {
            return false;
        }
        let pause = self.shared.looks.pause(self.shared.engine.uptime());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.shared.stop.cancelled() => {}
        }
        is_broken()
    }

    /// Request, reply, request, reply. Replies to requests that were sent ahead go out together.
    async fn converse(&mut self) -> Result<(), ConnectionError> {
        let mut served = 0usize;
        while let Some(frame) = self.next_request().await? {
            served += 1;
            if served.is_multiple_of(SERVED_AT_ONCE) {
                yield_now().await;
            }
            let (reader, answer) = self.handle(frame).await;
            let reply = self.finish(answer).await?;
            self.catch_up().await;
            let Some(reply) = reply else { continue };
            let items_len = reply.items_len() as u64;
            if items_len > SMALL_BYTES {
                self.make_room(self.outbound.len() as u64 + items_len).await?;
            }
            reply.push_frame(reader, &mut self.outbound);
            drop(reply);
            if !self.is_ours || self.is_enough() {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Whether the replies that are not sent are to be sent before more are made.
    fn is_enough(&mut self) -> bool {
        let len = self.outbound.len();
        len >= REPLIES_LEN_MAX || len as u64 > SMALL_BYTES && !self.room.try_grow_to(len as u64)
    }

    /// Waits for memory for replies that are to be sent.
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
        let mut is_behind = false;
        while self.presence.settle_more() {
            is_behind = true;
            yield_now().await;
        }
        if is_behind {
            let owed = self.shared.engine.owed(self.presence.id());
            self.promise = both(self.promise, owed);
        }
    }

    /// The next whole request; `None` if the client closed between two requests.
    async fn next_request(&mut self) -> Result<Option<Frame>, ConnectionError> {
        if self.outbound.is_empty() {
            self.room.clear();
        }
        let shared = self.shared;
        let stop = &shared.stop;
        loop {
            let is_stopping = stop.is_cancelled();
            if !is_stopping && let Some(frame) = self.wire.next(&mut self.decoder)? {
                if !self.is_ours {
                    self.confirm();
                }
                return Ok(Some(frame));
            }
            // Also at the end: what has been done is told.
            self.flush().await?;
            if is_stopping {
                return Err(ConnectionError::Stopping);
            }
            let is_inside = self.decoder.is_inside_frame(self.wire.inbound());
            let mut idle = self.idle_until_closed();
            let read = tokio::select! {
                biased;
                read = self.read(is_inside) => read?,
                () = stop.cancelled() => return Err(ConnectionError::Stopping),
                limit = expired(&mut idle, shared.limits.idle_timeout), if !is_inside => {
                    if self.unconfirmed.is_empty() && self.presence.dismiss() {
                        return Err(ConnectionError::Idle(limit));
                    }
                    continue;
                }
            };
            self.idle = idle;
            match read {
                0 if is_inside => return Err(ConnectionError::Cut("a request")),
                0 => return Ok(None),
                // What was sent ahead proves nothing; this came after the replies.
                _ => self.confirm(),
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

    /// What was sent has been read. Between calls this holds little memory.
    fn confirm(&mut self) {
        self.unconfirmed.clear();
        self.unconfirmed.shrink_to(UNCONFIRMED_LEN_KEPT);
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
        within(limit, self.read_rest(missing)).await
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
        let mut left = missing;
        loop {
            let growth = self.wire.growth(left);
            let held = (self.wire.inbound().len() + growth) as u64;
            if !self.room.try_grow_to(held) {
                let begin = Instant::now();
                self.room.grow_to(held).await;
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
            self.wire.socket().acknowledge();
        }
    }

    /// How long `len` bytes may take to move on.
    pub(super) fn patience(&self, len: u64) -> Duration {
        self.shared.limits.frame_timeout + Duration::from_secs(len >> 20)
    }

    /// Sends the replies that are due, once what they say is durable.
    pub(super) async fn flush(&mut self) -> Result<(), ConnectionError> {
        if self.outbound.is_empty() {
            return Ok(());
        }
        if self.is_ours {
            self.promise = both(self.promise, self.shared.engine.owed(self.presence.id()));
        }
        if let Some(promise) = self.promise.take()
            && let Some(durable) = self.shared.engine.durable(promise)
        {
            let kept = if self.is_ours {
                Some(durable.await)
            } else {
                Box::pin(self.unless_given_up(durable)).await?
            };
            let Some(kept) = kept else {
                self.outbound.clear();
                self.take_back().await;
                return Ok(());
            };
            kept.map_err(|_| ConnectionError::NotKept)?;
        }
        let len = self.outbound.len() as u64;
        if len > SMALL_BYTES {
            return Box::pin(self.flush_large(len)).await;
        }
        let outbound = std::mem::take(&mut self.outbound);
        let limit = self.patience(len);
        // So little is not in parts.
        within(limit, self.wire.send(outbound.whole().unwrap_or_default())).await
    }

    /// The same for replies that take room, and lose it if the client does not take them.
    async fn flush_large(&mut self, len: u64) -> Result<(), ConnectionError> {
        self.make_room(len).await?;
        let outbound = std::mem::take(&mut self.outbound);
        let limit = self.patience(len);
        let Self { room, wire, .. } = self;
        let sending = wire.send_parts(outbound, |sent| room.moved(sent));
        within(limit, async { Ok(room.unless_cut_off(sending).await) }).await???;
        self.room.clear();
        Ok(())
    }

    /// Waits for what is decided and only becomes durable; `None` if nobody wants to be told any more,
    /// as in [`wait`](Self::wait).
    async fn unless_given_up<F: Future + Unpin>(
        &mut self,
        mut becomes_durable: F,
    ) -> Result<Option<F::Output>, ConnectionError> {
        tokio::select! {
            biased;
            read = self.wire.read(), if !self.is_ours => match read? {
                0 => Err(ConnectionError::Cut("a call that waited")),
                _ => Ok(None),
            },
            kept = &mut becomes_durable => Ok(Some(kept)),
        }
    }

    /// Gives back the items whose replies did not arrive.
    async fn take_back(&mut self) {
        for (at, (reference, token)) in
            std::mem::take(&mut self.unconfirmed).into_iter().enumerate()
        {
            self.shared.engine.take_back(self.presence.id(), reference, token);
            if (at + 1).is_multiple_of(BATCH_AT_ONCE) {
                yield_now().await;
            }
        }
    }

    /// Applies a request. A large one is read without keeping others waiting.
    async fn handle(&mut self, frame: Frame) -> (Reader, Answer) {
        let body = match frame {
            Frame::Body(body) => body,
            Frame::TooLong { len, limit } => {
                let error = FrameError::TooLong { len, limit };
                let text = format!("{error} (--frame-bytes-max of the server)");
                let reply = Reply::Error(Exception::ValueError(text));
                return (Reader::new(&self.name, 2), Answer::Reply(reply));
            }
        };
        self.request_len = body.len();
        let (limits, is_ours) = (self.shared.pickle_limits, self.is_ours);
        if body.len() > SCANNED_AT_ONCE_MAX || is_ours && is_large_batch(&body) {
            let scanned = Box::pin(scan_apart(body.clone(), self.shared.clone(), is_ours)).await;
            return self.answer(body, scanned);
        }
        if let Some((call, &at)) = self.habits.recognize(&body, &limits) {
            let asked = Method::decode(&call, &limits, is_ours);
            let carried = forward::carried(self.shared, &body, &asked);
            return self.answer_call(body, (call, asked, carried), Some(at));
        }
        let scanned = scan(body.clone(), self.shared, is_ours);
        self.answer(body, scanned)
    }

    /// Answers a request that was scanned.
    fn answer(&mut self, body: Bytes, scanned: Result<Scanned, PickleError>) -> (Reader, Answer) {
        let scanned = match scanned {
            Ok(scanned) => scanned,
            Err(error) => return self.refuse_pickle(body, &error),
        };
        let at = self.shared.engine.parse(scanned.0.ident().unwrap_or_default());
        if let Some(at) = at.filter(|_| body.len() <= SCANNED_AT_ONCE_MAX) {
            self.habits.learn(&scanned.0, at);
        }
        self.answer_call(body, scanned, at)
    }

    /// Answers a call of the queue `at`; `None` is somebody else's.
    fn answer_call(
        &mut self,
        body: Bytes,
        (call, asked, carried): Scanned,
        at: Option<Reference>,
    ) -> (Reader, Answer) {
        let reader = Reader::new(&self.name, call.protocol());
        let answer = match (at, asked) {
            (Some(at), Ok(asked)) if !carried.is_empty() => {
                Answer::Carries(carried, Box::new((at, asked, reader)))
            }
            (Some(at), asked) => self.apply(at, asked, reader).unwrap_or_else(Answer::Reply),
            (None, _) => match call.ident() {
                Some(ident) if self.shared.reception.is_some() => {
                    Answer::Guest(Request::Call { ident: ident.to_owned(), body })
                }
                ident => Answer::Reply(unknown_ident(ident.unwrap_or_default())),
            },
        };
        (reader, answer)
    }

    /// Answers what is no request that we can read, if nobody else can.
    fn refuse_pickle(&self, body: Bytes, error: &PickleError) -> (Reader, Answer) {
        let answer = match forward::foreign_call(self.shared, body) {
            Some(request) => Answer::Guest(request),
            None => Answer::Reply(traceback(&error.to_string())),
        };
        (Reader::new(&self.name, 2), answer)
    }

    /// Applies a call; a failure is the reply to it.
    fn apply(
        &mut self,
        at: Reference,
        request: Result<Method, Refusal>,
        reader: Reader,
    ) -> Result<Answer, Reply> {
        let (engine, session) = (&self.shared.engine, self.presence.id());
        let (called, on_shut_down) = match request.map_err(refuse)? {
            Method::Put { item, wait, terms: None } => {
                (engine.put(session, at, item, None, wait), Exception::PutShutDown)
            }
            Method::Get { wait } => {
                let called = engine.get(session, at, reader.protocol_max(), wait);
                (called, Exception::GetShutDown)
            }
            Method::Join => (engine.join(session, at), Exception::GetShutDown),
            Method::TaskDone => (engine.task_done(session, at), Exception::GetShutDown),
            Method::Shutdown { immediate } => {
                (engine.shut_down(session, at, immediate), Exception::GetShutDown)
            }
            method @ (Method::Put { .. }
            | Method::PutMany { .. }
            | Method::Take { .. }
            | Method::Ack(_)
            | Method::Nack(_)
            | Method::Extend { .. }
            | Method::Redrive { .. }
            | Method::Purge
            | Method::Peek(_)) => return Ok(Answer::Extra(at, Box::new(method))),
            other => return look(engine, session, at, &other).map(Answer::Reply).map_err(fail),
        };
        let called = called.map_err(|error| {
            // It may have changed something before it failed.
            self.promise = both(self.promise, engine.owed(session));
            fail(error)
        });
        Ok(match called? {
            Called::Now(Outcome::Task(grant)) => Answer::Item(at, grant),
            Called::Now(outcome) => Answer::Reply(reply_to(outcome, on_shut_down)),
            Called::Later(mut waiter) => match self.decided(&mut waiter) {
                Some(outcome) => Answer::Reply(reply_to(outcome, on_shut_down)),
                None => Answer::Wait(Box::new(Wait { reference: at, waiter, on_shut_down })),
            },
        })
    }

    /// The outcome of a call that need not wait, though its reply has to: for what it promises.
    pub(super) fn decided(&mut self, waiter: &mut Waiter) -> Option<Outcome> {
        let (outcome, promise) = waiter.split()?;
        self.promise = both(self.promise, promise);
        Some(outcome)
    }

    /// Waits where the call has to; `None` if nobody wants the reply any more.
    ///
    /// What takes longer is boxed: a connection between two requests need not have room for it.
    async fn finish(&mut self, answer: Answer) -> Result<Option<Reply>, ConnectionError> {
        let (reference, outcome, on_shut_down) = match answer {
            Answer::Guest(request) => return Box::pin(self.pass_on(request)).await,
            Answer::Carries(carried, call) => {
                Box::pin(self.tell_guest(Request::Carried(carried))).await?;
                let (at, asked, reader) = *call;
                let answer = self.apply(at, Ok(asked), reader).unwrap_or_else(Answer::Reply);
                return Box::pin(self.finish(answer)).await;
            }
            Answer::Extra(reference, extra) => match self.begin_extra(reference, *extra)? {
                Begun::Over(reply) => return Ok(Some(reply)),
                Begun::Waits(waits) => {
                    return Box::pin(self.finish_extra(reference, *waits)).await;
                }
            },
            Answer::Reply(reply) => return Ok(Some(reply)),
            Answer::Item(reference, grant) => return Ok(Some(self.hand_out(reference, grant))),
            Answer::Wait(wait) => {
                let Wait { reference, waiter, on_shut_down } = *wait;
                let waited = Box::pin(self.wait_parked(waiter)).await?;
                let Some(outcome) = waited else { return Ok(None) };
                (reference, outcome, on_shut_down)
            }
        };
        let Outcome::Task(grant) = outcome else {
            return Ok(Some(reply_to(outcome, on_shut_down)));
        };
        Ok(Some(self.hand_out(reference, grant)))
    }

    /// Waits for the outcome of a call without using up what others need for their requests; `Full`
    /// if there is no room for its item even so. `None` if nobody wants the reply any more.
    pub(super) async fn wait_parked(
        &mut self,
        mut waiter: Waiter,
    ) -> Result<Option<Outcome>, ConnectionError> {
        if waiter.is_decided() {
            let Some(outcome) = self.unless_given_up(&mut waiter).await? else { return Ok(None) };
            self.room = waiter.take_room();
            return outcome.map(Some).ok_or(ConnectionError::NotKept);
        }
        let Some(_parked) = self.park() else {
            // Another thread may have let it in by now.
            let Some(decided) = waiter.leave() else { return Ok(Some(Outcome::Full)) };
            return self.wait(decided).await;
        };
        self.wait(waiter).await
    }

    /// Waits for the outcome of a call, and for the client to leave or to lose interest.
    pub(super) async fn wait(
        &mut self,
        mut waiter: Waiter,
    ) -> Result<Option<Outcome>, ConnectionError> {
        self.flush().await?;
        loop {
            let reads_on = !self.is_ours || self.wire.inbound().len() < READ_AHEAD_MAX;
            tokio::select! {
                biased;
                read = self.wire.read(), if reads_on => match read? {
                    0 => return Err(ConnectionError::Cut("a call that waited")),
                    _ if self.is_ours => {}
                    // A client sends a second request only when it gave up on the reply to the
                    // first, after Ctrl-C for example. It would take that reply for the second's.
                    _ => return Ok(None),
                },
                outcome = &mut waiter => {
                    self.room = waiter.take_room();
                    return match outcome {
                        // Another of our clients' threads has closed it. Python's are about to end.
                        None if is_ours(&self.name) => Err(ConnectionError::Released),
                        outcome => Ok(outcome),
                    };
                }
                () = self.shared.stop.cancelled() => return Err(ConnectionError::Stopping),
            }
        }
    }

    /// Exchanges the room of the request for memory of calls that wait; `None` if there is none.
    pub(super) fn park(&mut self) -> Option<Parked> {
        self.room.clear();
        let bytes = Some(self.request_len as u64).filter(|bytes| *bytes > SMALL_BYTES);
        self.shared.engine.memory().park(bytes.unwrap_or_default())
    }

    fn hand_out(&mut self, reference: Reference, grant: Grant) -> Reply {
        self.unconfirmed.push((reference, grant.token));
        Reply::Item(grant.payload)
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

/// A request, what it asks for, and the objects whose proxies it puts into a queue.
type Scanned = (Call, Result<Method, Refusal>, BTreeSet<String>);

fn scan(body: Bytes, shared: &Shared, is_ours: bool) -> Result<Scanned, PickleError> {
    let call = Call::parse(body.clone(), &shared.pickle_limits)?;
    let asked = Method::decode(&call, &shared.pickle_limits, is_ours);
    let carried = forward::carried(shared, &body, &asked);
    Ok((call, asked, carried))
}

/// Whether a request seems to bring a batch that takes longer to be taken apart.
fn is_large_batch(body: &Bytes) -> bool {
    let head = body.get(..METHOD_WITHIN).filter(|_| body.len() > BATCH_SCANNED_AT_ONCE_MAX);
    head.is_some_and(|head| memmem::find(head, b"put_many").is_some())
}

/// The same on a thread of its own.
async fn scan_apart(
    body: Bytes,
    shared: Arc<Shared>,
    is_ours: bool,
) -> Result<Scanned, PickleError> {
    let scanned = tokio::task::spawn_blocking(move || scan(body, &shared, is_ours)).await;
    scanned.unwrap_or(Err(PickleError::NotARequest { what: "it could not be scanned" }))
}

/// Answers a call that changes nothing.
fn look(
    engine: &Engine,
    session: SessionId,
    at: Reference,
    method: &Method,
) -> Result<Reply, CallError> {
    match method {
        Method::Qsize => engine.look(session, at, |queue| Reply::Count(queue.len() as u64)),
        Method::Empty => engine.look(session, at, |queue| Reply::Bool(queue.is_empty())),
        Method::Full => engine.look(session, at, |queue| Reply::Bool(queue.is_full())),
        Method::Repr => Ok(Reply::Text(engine.describe(at))),
        Method::GetValue => Ok(Reply::Unserializable(
            "TypeError: a queue cannot be copied; use get() and put()\n".into(),
        )),
        _ => Ok(Reply::None),
    }
}
