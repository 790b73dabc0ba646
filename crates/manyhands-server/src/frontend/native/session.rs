//! A native session: reads what has come, applies it, sends what may leave, until the client leaves.
//!
//! [`Session::run`] is the loop. In each turn all whole requests that have come are applied, none of
//! which is waited for, and all replies that may leave go out in one write. A request that has to wait
//! for others is [pending], and the loop goes on; its reply leaves when it leaves.
//!
//! The loop waits for nobody but its own client, and for that only while it sends: a client that does
//! not read is not served. In particular it never waits for memory, which requests of its own may have
//! that it would have to go on with.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hashbrown::HashMap;
use manyhands::wire::frame::{Decoder, Outbound};
use manyhands::wire::native::{Bounds, HEADER_LEN, Header, Hello, Route};
use tokio::task::yield_now;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use super::connection::BATCH_MAX;
use super::credit::Inbox;
use super::handles::Handles;
use super::pending::{Cancel, Ended, Pending, Rest};
use super::presence::Presence;
use super::spare;
use super::unsent::UnsentTasks;
use crate::config::SMALL_BYTES;
use crate::engine::{BATCH_AT_ONCE, Caller, Calls, Promise, Reference, UntilDurable};
use crate::error::ConnectionError;
use crate::frontend::outbox::Outbox;
use crate::frontend::shared::Shared;
use crate::memory::Room;
use crate::queue::{Cause, Token};
use crate::socket::{MOVED_AT_ONCE, Socket, Wire, within};

/// Requests that a session has served, or items of theirs that it has moved, without a pause before
/// others have their turn.
const WORK_AT_ONCE: usize = 256;
/// What a request is worth in items.
const WORK_OF_REQUEST: usize = 4;
/// Replies are sent once they take so much memory, in bytes, even if more requests are at hand.
const REPLIES_BYTES_MAX: u64 = 64 << 10;

/// What a session waits for.
enum Event {
    /// So many bytes came; none at the end of the stream.
    Read(usize),
    /// There is memory for what comes.
    Room,
    /// A request that waited goes on.
    Ended(Route, Ended),
    /// Replies may leave that were held back.
    Durable,
    /// Tasks have come by credit.
    Pushed,
    /// It was silent for too long.
    Idle(Duration),
}

/// What is read next.
enum Coming<'s, S> {
    /// What has come, into a buffer on the stack.
    Small(&'s mut Wire<S>),
    /// Some of a large request, or memory for it.
    Large(Pin<Box<dyn Future<Output = Result<Event, ConnectionError>> + Send + 's>>),
}

impl<S: Socket> Coming<'_, S> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, ConnectionError>> {
        match self {
            Self::Small(wire) => wire.poll_read(cx).map(|read| Ok(Event::Read(read?))),
            Self::Large(coming) => coming.as_mut().poll(cx),
        }
    }
}

/// The end of the server, which all sessions wait for all the time.
struct Stop<'s, 'a> {
    stop: &'a CancellationToken,
    cancelled: Pin<&'s mut WaitForCancellationFuture<'a>>,
    /// Who is told of it.
    told: Option<Waker>,
}

impl Stop<'_, '_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // To be among those that wait costs more than a look.
        if self.told.as_ref().is_some_and(|told| told.will_wake(cx.waker())) {
            return if self.stop.is_cancelled() { Poll::Ready(()) } else { Poll::Pending };
        }
        self.told = Some(cx.waker().clone());
        self.cancelled.as_mut().poll(cx)
    }
}

/// Ends a request that stands still.
#[derive(Debug)]
struct Stall {
    /// Whether it was known how long the request is.
    has_header: bool,
    timer: Pin<Box<Sleep>>,
}

/// A native session.
pub(super) struct Session<'a, S> {
    wire: Wire<S>,
    pub(super) shared: &'a Arc<Shared>,
    presence: Presence,
    /// The newest pickle protocol that the client reads.
    pub(super) reader: u8,
    pub(super) bounds: Bounds,
    decoder: Decoder<Header>,
    pub(super) handles: Handles,
    /// Requests that wait.
    pub(super) pending: FuturesUnordered<Pending>,
    /// Their ids with what ends their waits, and those of credit.
    pub(super) ids: HashMap<u32, Cancel>,
    /// Where tasks arrive for which there is credit, once there was some.
    pub(super) inbox: Option<Box<Inbox>>,
    /// Replies that may leave.
    ready: Outbound,
    /// Replies that wait for what they say to be durable.
    held: Outbox,
    /// The wait for the promise of the first of these.
    keeping: Option<UntilDurable>,
    unsent: UnsentTasks,
    /// Memory of the request that comes and of the replies that are not sent yet.
    pub(super) room: Room,
    /// Until when the request that comes must be there.
    stall: Option<Stall>,
    /// When the session has been silent for too long, if it can be; taken while it is waited for.
    idle: Option<Pin<Box<Sleep>>>,
    /// What was done since others had their turn.
    work: usize,
    /// The same for bytes that were read.
    moved: usize,
}

impl<'a, S: Socket> Session<'a, S> {
    pub(super) fn new(
        wire: Wire<S>,
        shared: &'a Arc<Shared>,
        hello: Hello,
        peer: &Arc<str>,
    ) -> Self {
        let memory = shared.engine.memory();
        let presence = Presence::new(shared, &hello.name, peer);
        let unsent = UnsentTasks::new(&shared.engine, presence.caller());
        Self {
            wire,
            shared,
            presence,
            reader: hello.reader,
            bounds: Bounds { batch_max: BATCH_MAX, pickle: shared.pickle_limits },
            decoder: Decoder::new(shared.limits.frame_bytes_max.min(u32::MAX.into())),
            handles: Handles::new(memory),
            pending: FuturesUnordered::new(),
            ids: HashMap::new(),
            inbox: None,
            ready: Outbound::default(),
            held: Outbox::default(),
            keeping: None,
            unsent,
            room: memory.room(),
            stall: None,
            idle: None,
            work: 0,
            moved: 0,
        }
    }

    pub(super) fn caller(&self) -> Caller {
        self.presence.caller()
    }

    /// The session, from the first request to its end.
    pub(super) async fn run(&mut self) -> Result<(), ConnectionError> {
        let shared = self.shared;
        // One for all turns: it costs something to be among those that wait for it.
        let cancelled = pin!(shared.stop.cancelled());
        let mut stop = Stop { stop: &shared.stop, cancelled, told: None };
        let mut rest: Rest = None;
        loop {
            if let Some(left) = rest.take() {
                rest = Box::pin(self.do_rest(*left)).await?;
            } else if !self.wire.inbound().is_empty()
                && let Some(done) = self.apply_all()?
            {
                rest = done;
            } else if let Some(done) = poll_fn(|cx| Poll::Ready(self.go_on_at_once(cx))).await? {
                rest = done;
            } else {
                self.flush().await?;
                match self.next_event(&mut stop).await? {
                    Event::Read(0) if self.is_inside() => {
                        return Err(ConnectionError::Cut("a request"));
                    }
                    Event::Read(0) => return Box::pin(self.flush_all()).await,
                    Event::Read(read) => self.note_read(read),
                    Event::Ended(route, ended) => rest = self.go_on(route, ended)?,
                    Event::Idle(limit) if !shared.engine.has_leases(self.caller()) => {
                        return Err(ConnectionError::Idle(limit));
                    }
                    Event::Room | Event::Durable | Event::Pushed | Event::Idle(_) => {}
                }
            }
            if self.replies_bytes() >= REPLIES_BYTES_MAX || self.work >= WORK_AT_ONCE {
                self.pause().await?;
            }
        }
    }

    /// Applies all whole requests that have come, until there is more to do for one of them or others
    /// are to have their turn; nothing if there are none. Those of one item each share a step.
    fn apply_all(&mut self) -> Result<Option<Rest>, ConnectionError> {
        let mut calls = Calls::new(&self.shared.engine);
        let mut done = None;
        if self.ready.is_empty() {
            self.ready = spare::take();
        }
        while !self.is_full()
            && let Some((header, frame)) = self.wire.next_with_header(&mut self.decoder)?
        {
            self.stall = None;
            self.work += WORK_OF_REQUEST;
            let rest = self.handle(&mut calls, header, frame);
            let is_over = rest.is_some() || self.work >= WORK_AT_ONCE;
            done = Some(rest);
            if is_over {
                break;
            }
        }
        Ok(done)
    }

    /// Goes on with what can go on at once; nothing if nothing can.
    fn go_on_at_once(&mut self, cx: &mut Context<'_>) -> Result<Option<Rest>, ConnectionError> {
        if !self.pending.is_empty()
            && let Poll::Ready(Some((route, ended))) = self.pending.poll_next_unpin(cx)
        {
            return self.go_on(route, ended).map(Some);
        }
        Ok(self.tell_next_push())
    }

    /// Goes on with a request that has waited.
    fn go_on(&mut self, route: Route, ended: Ended) -> Result<Rest, ConnectionError> {
        self.work += WORK_OF_REQUEST;
        if !ended.is_pushed() && !planted!(IdStaysInUse) {
            self.ids.remove(&route.id);
        }
        self.resume(route, ended)
    }

    /// So many items were moved since others had their turn.
    pub(super) fn add_work(&mut self, items: usize) {
        self.work += items;
    }

    /// Sends replies, of which there are many, and lets others have their turn if they have waited for
    /// it.
    async fn pause(&mut self) -> Result<(), ConnectionError> {
        self.flush().await?;
        if self.work < WORK_AT_ONCE {
            return Ok(());
        }
        (self.work, self.moved) = (0, 0);
        yield_now().await;
        // Whoever sends requests without a pause is never waited for.
        if self.shared.stop.is_cancelled() {
            Box::pin(self.flush_all()).await?;
            return Err(ConnectionError::Stopping);
        }
        Ok(())
    }

    /// Ends the session: gives back all that it has, some of it at a time.
    pub(super) async fn leave(self, cause: Cause) {
        let Self { shared, presence, mut handles, pending, mut unsent, .. } = self;
        let turn = shared.turns.next().await;
        // Who waits leaves the line; what it was given meanwhile goes back.
        for (at, waits) in pending.into_iter().enumerate() {
            drop(waits);
            if (at + 1).is_multiple_of(BATCH_AT_ONCE / WORK_OF_REQUEST) {
                yield_now().await;
            }
        }
        while unsent.give_back() {
            yield_now().await;
        }
        let open: Vec<_> = handles.drain().map(|open| open.reference).collect();
        for some in open.chunks(BATCH_AT_ONCE) {
            shared.engine.release(some);
            yield_now().await;
        }
        presence.leave(cause).await;
        drop(turn);
    }

    // ---- replies

    /// Where a reply is written that waits for a promise. A large one needs [memory](Self::has_room_for)
    /// before.
    pub(super) fn behind(&mut self, promise: Promise) -> &mut Outbound {
        let may_leave = promise.is_nothing() || planted!(SentBeforeDurable);
        if may_leave { &mut self.ready } else { self.held.behind(promise) }
    }

    /// Memory that replies take which are not sent yet, in bytes.
    fn replies_bytes(&self) -> u64 {
        self.ready.len() as u64 + self.held.bytes()
    }

    /// Whether there is memory for a reply of so many bytes at once.
    pub(super) fn has_room_for(&mut self, bytes: u64) -> bool {
        let all = self.replies_bytes() + bytes;
        all <= SMALL_BYTES || self.room.try_grow_to(all + self.wire.inbound().len() as u64)
    }

    /// Tasks are in a reply that waits for this. Until that is sent, they may go back.
    pub(super) fn note_unsent(
        &mut self,
        at: Reference,
        tokens: impl Iterator<Item = Token>,
        promise: Promise,
        is_leased: bool,
    ) {
        // Its place in line may wait for more.
        let promise = if promise.is_nothing() { promise } else { self.held.last_promise() };
        self.unsent.add(at, tokens, promise, is_leased);
    }

    /// Whether no more requests are served until replies have left: a client that does not read, or a disk
    /// that stands still, must not let them pile up.
    fn is_full(&mut self) -> bool {
        let bytes = self.replies_bytes();
        bytes >= REPLIES_BYTES_MAX || bytes > SMALL_BYTES && !self.has_room_for(0)
    }

    /// Sends all replies that may leave, in one write.
    async fn flush(&mut self) -> Result<(), ConnectionError> {
        let mut durable = Promise::NOTHING;
        let mut outbound = std::mem::take(&mut self.ready);
        if !self.held.is_empty() {
            durable = self.durable();
            let held = self.held.take(durable);
            if !held.is_empty() {
                self.keeping = None;
            }
            outbound.append(held);
        }
        if outbound.is_empty() {
            spare::keep(outbound);
            return Ok(());
        }
        let sent =
            match outbound.whole().filter(|whole| whole.len() as u64 <= 2 * REPLIES_BYTES_MAX) {
                Some(whole) => poll_fn(|cx| Poll::Ready(self.wire.poll_send(cx, whole))).await?,
                None => 0,
            };
        if sent < outbound.len() {
            Box::pin(self.send_slowly(outbound.split_off(sent))).await?;
        } else {
            spare::keep(outbound);
        }
        self.unsent.settle_sent(durable);
        let is_empty = self.ready.is_empty() && self.held.is_empty();
        if is_empty && self.wire.inbound().len() as u64 <= SMALL_BYTES {
            self.room.clear();
        }
        Ok(())
    }

    /// Covers all that is durable by now. A session that is alone has made it so itself, if it can.
    fn durable(&self) -> Promise {
        let Shared { engine, alone, .. } = &**self.shared;
        if !alone.is(self.caller()) {
            return engine.durable_by_now();
        }
        engine.durable_here(self.held.last_promise())
    }

    /// Sends what the socket may not take at once. Whoever does not read gets no more tasks by credit
    /// meanwhile, and no room if others need it.
    async fn send_slowly(&mut self, outbound: Outbound) -> Result<(), ConnectionError> {
        let limit = self.patience(outbound.len() as u64);
        let Self { wire, room, inbox, handles, reader, .. } = self;
        let sending = wire.send_parts(outbound, |sent| room.moved(sent));
        let sending = pin!(async { Ok(room.unless_cut_off(sending).await) });
        let mut sending = pin!(within(limit, sending));
        let at_once = poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await;
        if let Poll::Ready(sent) = at_once {
            return Ok(sent???);
        }
        let (engine, caller) = (&self.shared.engine, self.presence.caller());
        let left = inbox.as_ref().map(|inbox| inbox.withdraw(engine, caller, handles));
        sending.await???;
        if let (Some(inbox), Some(left)) = (inbox, left)
            && !planted!(CreditNotRestored)
        {
            inbox.restore(engine, (caller, *reader), handles, left);
        }
        Ok(())
    }

    /// What a reply has to wait for that must not come before those that were told before it.
    pub(super) fn after_held(&self, promise: Promise) -> Promise {
        if self.held.is_empty() { promise } else { promise.and(self.held.last_promise()) }
    }

    /// Sends all replies there are, once they may leave: nobody asks for more.
    async fn flush_all(&mut self) -> Result<(), ConnectionError> {
        self.flush().await?;
        while let Some(promise) = self.held.promise() {
            let kept = self.shared.engine.until_durable(promise).await;
            kept.map_err(|_| ConnectionError::NotDurable)?;
            self.flush().await?;
        }
        Ok(())
    }

    // ---- what it waits for

    fn is_inside(&self) -> bool {
        self.decoder.is_inside_frame(self.wire.inbound())
    }

    /// Waits for whatever comes next.
    async fn next_event(&mut self, stop: &mut Stop<'_, '_>) -> Result<Event, ConnectionError> {
        let (growth, wanted) = self.growth();
        let has_room = self.room.try_grow_to(wanted);
        if let Some(promise) = self.held.promise()
            && self.keeping.is_none()
        {
            self.keeping = Some(self.shared.engine.until_durable(promise));
        }
        let is_full = self.is_full();
        let is_silent = self.stall.is_none() && self.ids.is_empty() && self.held.is_empty();
        let mut idle = is_silent.then(|| self.idle_until_closed()).flatten();
        let limits = &self.shared.limits;
        let event = {
            let Self { wire, room, pending, keeping, stall, inbox, .. } = self;
            let mut coming = match (has_room, growth) {
                (true, 0) => Coming::Small(wire),
                (true, _) => Coming::Large(Box::pin(async move {
                    let reading = wire.read_in_place(growth);
                    Ok(Event::Read(room.unless_cut_off(reading).await??))
                })),
                (false, _) => Coming::Large(Box::pin(async move {
                    room.grow_to(wanted).await;
                    Ok(Event::Room)
                })),
            };
            // In a box: few sessions have one, and none needs room for it while it waits.
            let mut arrived = inbox.as_deref().map(|inbox| Box::pin(inbox.arrived()));
            // By hand: few sessions wait for more than the next request.
            poll_fn(|cx| {
                if !is_full && let Poll::Ready(event) = coming.poll(cx) {
                    return Poll::Ready(event);
                }
                if !pending.is_empty()
                    && let Poll::Ready(Some((route, ended))) = pending.poll_next_unpin(cx)
                {
                    return Poll::Ready(Ok(Event::Ended(route, ended)));
                }
                if let Some(keeping) = keeping
                    && let Poll::Ready(kept) = Pin::new(keeping).poll(cx)
                {
                    let kept = kept.map_err(|_| ConnectionError::NotDurable);
                    return Poll::Ready(kept.map(|()| Event::Durable));
                }
                if let Some(arrived) = &mut arrived
                    && arrived.as_mut().poll(cx).is_ready()
                {
                    return Poll::Ready(Ok(Event::Pushed));
                }
                if stop.poll(cx).is_ready() {
                    return Poll::Ready(Err(ConnectionError::Stopping));
                }
                if has_room
                    && !is_full
                    && let Some(Stall { timer, .. }) = stall
                    && timer.as_mut().poll(cx).is_ready()
                {
                    return Poll::Ready(Err(ConnectionError::Stalled(limits.frame_timeout)));
                }
                if let Some(idle) = &mut idle
                    && idle.as_mut().poll(cx).is_ready()
                {
                    return Poll::Ready(Ok(Event::Idle(limits.idle_timeout.unwrap_or_default())));
                }
                Poll::Pending
            })
            .await
        };
        self.idle = idle;
        match event {
            Ok(Event::Room) => self.stall = None,
            Err(ConnectionError::Stopping) => Box::pin(self.flush_all()).await?,
            _ => {}
        }
        event
    }

    /// By how much the buffer grows for the request that comes, if that is large, and the memory that
    /// the session has then. A request that has begun has so long to come.
    fn growth(&mut self) -> (usize, u64) {
        if !self.is_inside() {
            self.stall = None;
            return (0, 0);
        }
        let inbound = self.wire.inbound();
        let (len, has_header) = (inbound.len() as u64, inbound.len() >= HEADER_LEN);
        let is_passing = self.decoder.is_passing();
        // What is passed over only claims to be long: it must not buy time.
        let missing = if is_passing { 0 } else { self.decoder.missing(inbound) };
        if self.stall.as_ref().is_none_or(|stall| stall.has_header != has_header && !is_passing) {
            let timer = Box::pin(sleep(self.patience(missing)));
            self.stall = Some(Stall { has_header, timer });
        }
        if missing.saturating_add(len) <= SMALL_BYTES || is_passing {
            return (0, 0);
        }
        let growth = self.wire.growth(missing);
        (growth, len + growth as u64 + self.replies_bytes())
    }

    /// How long `len` bytes may take to move on.
    fn patience(&self, len: u64) -> Duration {
        self.shared.limits.frame_timeout + Duration::from_secs(len >> 20)
    }

    /// What ends the silence that begins now, if anything does.
    fn idle_until_closed(&mut self) -> Option<Pin<Box<Sleep>>> {
        let limit = self.shared.limits.idle_timeout?;
        let Some(mut idle) = self.idle.take() else { return Some(Box::pin(sleep(limit))) };
        idle.as_mut().reset(tokio::time::Instant::now() + limit);
        Some(idle)
    }

    /// So many bytes have come. Who sends without a pause lets others have their turn.
    fn note_read(&mut self, read: usize) {
        self.shared.alone.note(self.caller());
        if self.wire.has_waited() {
            (self.work, self.moved) = (0, 0);
        }
        self.room.moved(read);
        self.moved += read;
        if self.moved >= MOVED_AT_ONCE {
            self.work += WORK_AT_ONCE;
        }
    }
}
