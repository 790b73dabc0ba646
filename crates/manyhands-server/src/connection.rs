//! One client from first byte to last.
//!
//! A connection is a handshake, one control request and, if that is `accept_connection`, a session:
//! request, reply, request, reply, until the client closes. [`serve`] is the whole of it,
//! [`Session::converse`] the loop. Our own clients may send requests ahead; their replies go out in
//! order, many in one write.

mod extra;
pub(crate) mod lists;
mod outbox;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::slice;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use manyhands::wire::auth::{AuthError, AuthKey, Handshake, NONCE_LEN, Step};
use manyhands::wire::extra::Extra;
use manyhands::wire::frame::{AUTH_FRAME_BYTES_MAX, Decoder, Frame, FrameError, Outbound};
use manyhands::wire::message::{Control, Exception, Operation, Reader, Refusal, Reply, Wait, repr};
use manyhands::wire::pickle::{self, Call, Habits, Payload, PickleError};
use memchr::memmem;
use tokio::task::{spawn_blocking, yield_now};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::extra::Waits;
use self::outbox::Outbox;
pub(crate) use self::turns::Turns;
use crate::config::{Limits, Policy, SMALL_BYTES};
use crate::engine::{
    BATCH_AT_ONCE, Batch, CallError, Called, Caller, Completion, Engine, Presence, Promise,
    Reading, Reference, Signer, Ticket, Waiter,
};
use crate::guests::{self, Reception, Request};
#[cfg(unix)]
use crate::loan::{self, Lent, Loan};
use crate::lobby::{Guest, Member};
use crate::memory::{CutOff, Parked, Room};
use crate::queue::{Grant, Outcome, Queue, Token};
use crate::socket::{Socket, Wire};

/// How long after the end of a stream the reset of a reply that was not read may come.
const RESET_GRACE: Duration = Duration::from_secs(1);
/// What a pickled proxy names: CPython's `managers.RebuildProxy`. Only where these bytes are, a look
/// at the item's structure can find one.
const PROXY_MARK: &[u8] = b"RebuildProxy";

/// How much of a session's name is kept, in characters: those of Python are shorter.
const SESSION_NAME_CHARS_MAX: usize = 200;
/// Why a queue is full that has room.
const NO_ROOM: &str = "no room for more tasks on the disk of the server; settling some goes on";
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

/// What all connections of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) engine: Arc<Engine>,
    pub(crate) key: AuthKey,
    pub(crate) limits: Limits,
    pub(crate) pickle_limits: pickle::Limits,
    pub(crate) policy: Policy,
    /// For what is no queue, if the embedding program serves that.
    pub(crate) reception: Option<Reception>,
    /// Cancelled when the server stops.
    pub(crate) stop: CancellationToken,
    /// Of connections that end.
    pub(crate) turns: Turns,
}

impl Shared {
    /// The request if the embedding program has to answer it: a call that is for none of our queues.
    fn for_guest(&self, body: Bytes) -> Option<Request> {
        self.reception.as_ref()?;
        let ident = Call::addressee(&body, &self.pickle_limits).ok()??;
        (!self.engine.is_own(&ident)).then_some(Request::Call { ident, body })
    }

    /// The objects whose proxies a call puts into a queue, where an embedding program counts them;
    /// `None` if there are none.
    fn carried(&self, body: &Bytes, asked: &Result<Asked, Refusal>) -> Option<BTreeSet<String>> {
        self.reception.as_ref()?;
        let asked = asked.as_ref().ok().filter(|_| memmem::find(body, PROXY_MARK).is_some())?;
        let carried: BTreeSet<_> = asked.items().iter().flat_map(Payload::proxies).collect();
        Some(carried).filter(|carried| !carried.is_empty())
    }
}

/// Why a connection ended before its client closed it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("handshake failed: {0}")]
    Auth(#[from] AuthError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("no complete first request within {0:?}")]
    HandshakeTimeout(Duration),
    #[error(transparent)]
    CutOff(#[from] CutOff),
    #[error("a request or reply stood still for {0:?}")]
    Stalled(Duration),
    #[error("the client closed in the middle of {0}")]
    Cut(&'static str),
    #[error("made way for a newer connection, as it had not authenticated itself")]
    Evicted,
    #[error("held nothing and was silent for {0:?}")]
    Idle(Duration),
    #[error("the reference of the call was released")]
    Released,
    #[error("the server stops")]
    Stopping,
    #[error("the journal stopped before the reply was durable")]
    NotKept,
}

/// Serves one client until it leaves. It is a `guest` until it has shown that it knows the key.
pub(crate) async fn serve(
    socket: impl Socket,
    peer: &Arc<str>,
    shared: &Arc<Shared>,
    guest: Guest,
) -> Result<(), ConnectionError> {
    let limit = shared.limits.handshake_timeout;
    let mut wire = Wire::new(socket);
    let mut room = shared.engine.memory().room();
    // In a box: a session that is open and silent need not have room for its handshake.
    let opening = Box::pin(open(&mut wire, shared, guest, &mut room));
    let opened = tokio::select! {
        opened = timeout(limit, opening) => {
            opened.map_err(|_| ConnectionError::HandshakeTimeout(limit))??
        }
        () = shared.stop.cancelled() => return Err(ConnectionError::Stopping),
    };
    let Some((request, _place)) = opened else { return Ok(()) };
    let call = Call::parse(request.clone(), &shared.pickle_limits);
    if let Some(reception) = &shared.reception
        && is_for_guest(&call, &shared.engine)
    {
        return Box::pin(pass_control_on(wire, shared, reception, request)).await;
    }
    drop(request);
    let control = call.as_ref().map_err(ToString::to_string).and_then(Control::decode);
    let protocol = call.as_ref().map_or(2, Call::protocol);
    drop(call);
    let told = control.as_ref().ok().and_then(|control| lists::told_bytes(control, &shared.engine));
    let begun = match told {
        Some(bytes) => {
            tokio::select! {
                () = room.grow_to(bytes) => {}
                () = shared.stop.cancelled() => return Err(ConnectionError::Stopping),
            }
            let shared = shared.clone();
            let listing = spawn_blocking(move || begin(control, protocol, &shared));
            listing.await.map_err(|_| ConnectionError::Stopping)?
        }
        None => begin(control, protocol, shared),
    };
    let (outbound, session, promise) = begun;
    shared.engine.kept(promise).await.map_err(|_| ConnectionError::NotKept)?;
    Box::pin(send_first(&mut wire, outbound, &room, limit)).await?;
    room.clear();
    match session {
        None => Ok(()),
        Some(name) => Box::pin(Session::new(wire, shared, name, peer).run()).await,
    }
}

/// Sends the reply to the first request, which may be a long list.
async fn send_first<S: Socket>(
    wire: &mut Wire<S>,
    outbound: Outbound,
    room: &Room,
    limit: Duration,
) -> Result<(), ConnectionError> {
    let sending = wire.send_parts(outbound, |sent| room.moved(sent));
    within(limit, async { Ok(room.unless_cut_off(sending).await) }).await???;
    Ok(())
}

/// Answers the first request; the name of the session, if it begins one; and what has to be durable
/// before the answer is sent.
fn begin(
    control: Result<Control, String>,
    protocol: u8,
    shared: &Shared,
) -> (Outbound, Option<String>, Promise) {
    let mut promise = Promise::NOTHING;
    let (reply, session) = match control {
        Ok(Control::AcceptConnection { name }) => (Reply::None, Some(shortened(&name))),
        Ok(Control::DropQueue { name, force }) => {
            let dropped = shared.engine.drop_queue(&name, force).map(|(tasks, when)| {
                tracing::info!(queue = name, tasks, "dropped by a client");
                promise = when;
                Reply::Count(tasks)
            });
            (dropped.unwrap_or_else(|error| traceback(&error.to_string())), None)
        }
        Ok(control) => (answer(control, shared), None),
        Err(text) => (traceback(&text), None),
    };
    let mut outbound = Outbound::default();
    reply.push_frame(Reader::new("", protocol), &mut outbound);
    (outbound, session, promise)
}

/// A session's name as long as it is kept.
fn shortened(name: &str) -> String {
    name.chars().take(SESSION_NAME_CHARS_MAX).collect()
}

/// Authenticates the client and reads its first request; `None` if it left before that.
async fn open<S: Socket>(
    wire: &mut Wire<S>,
    shared: &Shared,
    guest: Guest,
    room: &mut Room,
) -> Result<Option<(Bytes, Member)>, ConnectionError> {
    let nonce = nonce()?;
    let (mut handshake, greeting) =
        Handshake::server(shared.key.clone(), shared.policy.accept_md5, nonce);
    wire.send_frame(&greeting).await?;
    let proof = tokio::select! {
        biased;
        proof = wire.frame(AUTH_FRAME_BYTES_MAX) => proof?,
        () = guest.is_evicted() => return Err(ConnectionError::Evicted),
    };
    let Some(proof) = proof else { return Ok(None) };
    let mut is_done = advance(&mut handshake, wire, &proof).await?;
    let place = guest.admit();
    wire.socket().prepare();
    while !is_done {
        let Some(message) = wire.frame(AUTH_FRAME_BYTES_MAX).await? else { return Ok(None) };
        is_done = advance(&mut handshake, wire, &message).await?;
    }
    let request = wire.frame_in(shared.limits.control_bytes_max, room).await?;
    Ok(request.map(|request| (request, place)))
}

/// Answers the next message of a handshake; whether the two sides know each other now.
async fn advance<S: Socket>(
    handshake: &mut Handshake,
    wire: &mut Wire<S>,
    message: &[u8],
) -> Result<bool, ConnectionError> {
    match handshake.receive(message) {
        Ok(Step::Send(message)) => wire.send_frame(&message).await?,
        Ok(Step::Done(_)) => return Ok(true),
        Err(error) => {
            if let Some(farewell) = error.farewell() {
                wire.send_frame(farewell).await?;
            }
            return Err(error.into());
        }
    }
    Ok(false)
}

fn nonce() -> io::Result<[u8; NONCE_LEN]> {
    let mut nonce = [0; NONCE_LEN];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    Ok(nonce)
}

/// Bounds `io` in time. What is done at once, as most replies are, needs no timer.
async fn within<T>(
    limit: Duration,
    io: impl Future<Output = io::Result<T>>,
) -> Result<T, ConnectionError> {
    let mut io = pin!(io);
    let at_once = poll_fn(|cx| Poll::Ready(io.as_mut().poll(cx))).await;
    if let Poll::Ready(done) = at_once {
        return Ok(done?);
    }
    Ok(timeout(limit, io).await.map_err(|_| ConnectionError::Stalled(limit))??)
}

/// Whether a control request is about more than queues, where there are guests too.
fn is_for_guest(call: &Result<Call, PickleError>, engine: &Engine) -> bool {
    match call.as_ref().map_err(ToString::to_string).and_then(Control::decode) {
        Ok(
            Control::Dummy
            | Control::AcceptConnection { .. }
            | Control::Queues
            | Control::ListQueues
            | Control::DropQueue { .. },
        ) => false,
        Ok(Control::Incref(ident) | Control::Decref(ident)) => !engine.is_own(&ident),
        Ok(_) => true,
        Err(_) => false,
    }
}

/// Has the embedding program answer a control request, with as many replies as it likes.
async fn pass_control_on<S: Socket>(
    mut wire: Wire<S>,
    shared: &Shared,
    reception: &Reception,
    request: Bytes,
) -> Result<(), ConnectionError> {
    let mut guest = reception.open(None);
    guest.ask(Request::Control(request));
    loop {
        let reply = tokio::select! {
            biased;
            reply = guest.reply() => reply,
            () = shared.stop.cancelled() => return Err(ConnectionError::Stopping),
        };
        let Some(reply) = reply else { return Ok(()) };
        within(shared.limits.frame_timeout, wire.send_frame(&reply)).await?;
    }
}

/// Answers every control request but `accept_connection`.
fn answer(control: Control, shared: &Shared) -> Reply {
    let engine = &shared.engine;
    let counted = |known, ident: &str| {
        if known { Reply::None } else { unknown_ident(ident) }
    };
    match control {
        Control::Dummy | Control::AcceptConnection { .. } => Reply::None,
        Control::Create { typeid, parameters } => match engine.create(&typeid, &parameters) {
            Ok(ident) => Reply::Created(ident),
            Err(text) => traceback(&text),
        },
        Control::Incref(ident) => counted(engine.incref(&ident), &ident),
        Control::Decref(ident) => counted(engine.decref(&ident), &ident),
        Control::GetMethods(ident) if engine.resolve(&ident).is_some() => Reply::Methods,
        Control::GetMethods(ident) => unknown_ident(&ident),
        Control::NumberOfObjects => Reply::Count(engine.number_of_objects()),
        Control::DebugInfo => Reply::Text(lists::debug_info(engine)),
        Control::Queues => Reply::Queues(lists::queues(engine)),
        Control::ListQueues => Reply::QueueList(lists::queues(engine)),
        Control::Shutdown if shared.policy.accept_shutdown => {
            tracing::info!("a client stops the server");
            shared.stop.cancel();
            Reply::None
        }
        Control::Shutdown => {
            tracing::warn!("a client asked the server to stop; it goes on");
            Reply::None
        }
        _ => traceback("NotImplementedError"),
    }
}

/// A text that `RemoteError` shows; ours name nothing of the server's machine.
fn traceback(text: &str) -> Reply {
    Reply::Traceback(format!("{text}\n"))
}

fn unknown_ident(ident: &str) -> Reply {
    traceback(&format!(
        "the server does not know this object; it may have been restarted\nKeyError: {}",
        repr(ident)
    ))
}

#[cfg(unix)]
impl<S: Socket> Wire<S> {
    /// Lends the socket to the thread of the embedding program, if nothing else has come on it.
    fn lend(&self, shared: &Arc<Shared>) -> Option<(Loan, Lent)> {
        if !self.inbound().is_empty() {
            return None;
        }
        let (limit, shared) = (shared.limits.frame_timeout, shared.clone());
        let judge = Box::new(move |body| shared.for_guest(body));
        Some(loan::lend(self.socket().duplicate()?, judge, limit))
    }
}

/// A connection after `accept_connection`.
struct Session<'a, S> {
    wire: Wire<S>,
    shared: &'a Arc<Shared>,
    name: String,
    /// Whether the client is one of ours, who may send requests ahead and has more methods.
    is_ours: bool,
    decoder: Decoder,
    /// What it asks for again and again, and of which queue.
    habits: Habits<Reference>,
    /// Replies that are not sent yet.
    outbox: Outbox,
    /// What the engine knows it by.
    presence: Presence,
    /// The items whose replies were sent last. The next request proves that they were read.
    unconfirmed: Vec<(Reference, Token)>,
    /// Memory of the request or reply under way.
    room: Room,
    /// Length of the request under way, in bytes.
    request_len: usize,
    /// When the session has been silent for too long, if it can be; taken while it is waited for.
    idle: Option<Pin<Box<Sleep>>>,
    /// Who answers for what is no queue, once that was called.
    guest: Option<guests::Guest>,
    /// What signs the tokens of the queue that it leased from last.
    signer: Option<(Reference, Signer)>,
}

/// What a request still waits for, if it could not be answered at once. Most are: they need no
/// future of their own.
enum Pending {
    /// For a thread that scans it.
    Scan(Bytes),
    /// For its turn.
    Line { at: Reference, waiter: Waiter, of: Verb, reader: Reader },
    /// For the disk, where the task is that it has taken.
    Body { at: Reference, batch: Batch, reading: Reading, of: Verb, reader: Reader },
    /// A call of our own clients alone.
    Extra(Reference, Waits),
    /// For the embedding program, which has to answer it: it is not ours.
    Guest(Request),
    /// A call that puts proxies of these objects into a queue: it is applied once the embedding
    /// program has taken note of them.
    Carries(BTreeSet<String>, Reference, Asked, Reader),
    /// A reply, for memory.
    Reply(Reader, Reply, Promise),
    /// For nothing: no reply can be made any more.
    NotKept,
}

/// A verb that may have to wait, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Verb {
    Put,
    Get(Wait),
    /// One that is told nothing but that it is over.
    Other,
}

impl Verb {
    fn on_shut_down(self) -> Exception {
        if self == Self::Put { Exception::PutShutDown } else { Exception::GetShutDown }
    }
}

/// What is left to do for a request.
type Rest = Option<Box<Pending>>;

impl<'a, S: Socket> Session<'a, S> {
    fn new(wire: Wire<S>, shared: &'a Arc<Shared>, name: String, peer: &Arc<str>) -> Self {
        let decoder = Decoder::new(shared.limits.frame_bytes_max);
        let presence = shared.engine.enter(&name, peer);
        Self {
            wire,
            shared,
            is_ours: presence.caller().is_own(),
            name,
            decoder,
            habits: Habits::default(),
            outbox: Outbox::default(),
            presence,
            unconfirmed: Vec::new(),
            room: shared.engine.memory().room(),
            request_len: 0,
            idle: None,
            guest: None,
            signer: None,
        }
    }

    async fn run(mut self) -> Result<(), ConnectionError> {
        let end = self.converse().await;
        let at = self.shared.engine.now();
        let turn = self.shared.turns.next().await;
        self.presence.depart(at, end.is_err());
        drop(turn);
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
        tokio::select! {
            () = sleep(RESET_GRACE) => {}
            () = self.shared.stop.cancelled() => {}
        }
        // It ends in this turn, unless it has much to give back.
        let _turn = self.shared.turns.next().await;
        is_broken()
    }

    /// Request, reply, request, reply. Replies to requests that were sent ahead go out together.
    async fn converse(&mut self) -> Result<(), ConnectionError> {
        let mut served = 0usize;
        while let Some(frame) = self.next_request().await? {
            served += 1;
            if served.is_multiple_of(SERVED_AT_ONCE) {
                yield_now().await;
                // Whoever sends requests without a pause is never waited for.
                if self.shared.stop.is_cancelled() {
                    self.flush().await?;
                    return Err(ConnectionError::Stopping);
                }
            }
            let mut rest = self.handle(frame);
            while let Some(pending) = rest {
                rest = Box::pin(self.finish(*pending)).await?;
            }
            if self.presence.is_behind() {
                self.catch_up().await;
            }
            if !self.is_ours || self.is_enough() {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Has a reply sent once its promise is kept. A large one waits for memory before.
    fn tell(&mut self, reader: Reader, reply: &Reply, promise: Promise) {
        reply.push_frame(reader, self.outbox.behind(promise));
    }

    /// The same for one that may be large.
    fn tell_items(&mut self, reader: Reader, reply: Reply, promise: Promise) -> Rest {
        if reply.items_len() as u64 > SMALL_BYTES {
            return Some(Box::new(Pending::Reply(reader, reply, promise)));
        }
        self.tell(reader, &reply, promise);
        None
    }

    /// Whether the replies that are not sent are to be sent before more are made.
    fn is_enough(&mut self) -> bool {
        let len = self.outbox.len();
        len >= REPLIES_LEN_MAX || len as u64 > SMALL_BYTES && !self.room.try_grow_to(len as u64)
    }

    /// Waits for memory for replies that are to be sent.
    async fn make_room(&mut self, bytes: u64) -> Result<(), ConnectionError> {
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
            self.outbox.hold_back(promise);
            yield_now().await;
        }
    }

    /// The next whole request; `None` if the client closed between two requests.
    async fn next_request(&mut self) -> Result<Option<Frame>, ConnectionError> {
        if self.outbox.is_empty() {
            self.room.clear();
        }
        let shared = self.shared;
        let stop = &shared.stop;
        loop {
            if let Some(frame) = self.wire.next(&mut self.decoder)? {
                if !self.is_ours {
                    self.confirm();
                }
                return Ok(Some(frame));
            }
            // Also at the end: what has been done is told.
            self.flush().await?;
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
    fn patience(&self, len: u64) -> Duration {
        self.shared.limits.frame_timeout + Duration::from_secs(len >> 20)
    }

    /// Sends the replies that are due, each once what it says is durable.
    async fn flush(&mut self) -> Result<(), ConnectionError> {
        while let Some((outbound, promise)) = self.outbox.next() {
            if !promise.is_nothing() && !Box::pin(self.is_kept(promise)).await? {
                self.outbox.clear();
                self.take_back().await;
                return Ok(());
            }
            let len = outbound.len() as u64;
            if len > SMALL_BYTES {
                Box::pin(self.send_large(outbound)).await?;
            } else {
                let limit = self.patience(len);
                // So little is not in parts.
                within(limit, self.wire.send(outbound.whole().unwrap_or_default())).await?;
            }
        }
        Ok(())
    }

    /// Waits until a promise is kept; false if nobody wants to be told any more.
    async fn is_kept(&mut self, promise: Promise) -> Result<bool, ConnectionError> {
        let shared = self.shared;
        let kept = self.unless_given_up(shared.engine.kept(promise)).await?;
        Ok(kept.transpose().map_err(|_| ConnectionError::NotKept)?.is_some())
    }

    /// Sends replies that take room, and lose it if the client does not take them.
    async fn send_large(&mut self, outbound: Outbound) -> Result<(), ConnectionError> {
        let len = outbound.len() as u64;
        self.make_room(len).await?;
        let limit = self.patience(len);
        let Self { room, wire, .. } = self;
        let sending = wire.send_parts(outbound, |sent| room.moved(sent));
        within(limit, async { Ok(room.unless_cut_off(sending).await) }).await???;
        self.room.clear();
        Ok(())
    }

    /// Waits for what is decided and only has to be written or read; `None` if nobody wants to be
    /// told any more, as in [`wait`](Self::wait).
    async fn unless_given_up<F: Future>(
        &mut self,
        is_decided: F,
    ) -> Result<Option<F::Output>, ConnectionError> {
        tokio::select! {
            biased;
            read = self.wire.read(), if !self.is_ours => match read? {
                0 => Err(ConnectionError::Cut("a call that waited")),
                _ => Ok(None),
            },
            done = is_decided => Ok(Some(done)),
        }
    }

    /// Gives back the items whose replies did not arrive.
    async fn take_back(&mut self) {
        for (at, (reference, token)) in
            std::mem::take(&mut self.unconfirmed).into_iter().enumerate()
        {
            self.shared.engine.take_back(self.presence.caller(), reference, token);
            if (at + 1).is_multiple_of(BATCH_AT_ONCE) {
                yield_now().await;
            }
        }
    }

    /// Applies a request. A large one is read without keeping others waiting.
    fn handle(&mut self, frame: Frame) -> Rest {
        let body = match frame {
            Frame::Body(body) => body,
            Frame::TooLong { len, limit } => {
                let error = FrameError::TooLong { len, limit };
                let text = format!("{error} (--frame-bytes-max of the server)");
                let reply = Reply::Error(Exception::ValueError(text));
                self.tell(Reader::new(&self.name, 2), &reply, Promise::NOTHING);
                return None;
            }
        };
        self.request_len = body.len();
        let (limits, is_ours) = (self.shared.pickle_limits, self.is_ours);
        if body.len() > SCANNED_AT_ONCE_MAX || is_ours && is_large_batch(&body) {
            return Some(Box::new(Pending::Scan(body)));
        }
        if let Some((call, &at)) = self.habits.recognize(&body, &limits) {
            let asked = decode(&call, &limits, is_ours);
            let carried = self.shared.carried(&body, &asked);
            return self.answer_call(&call, (body, asked, carried), Some(at));
        }
        let scanned = scan(body.clone(), self.shared, is_ours);
        self.answer(body, scanned)
    }

    /// Answers a request that was scanned.
    fn answer(&mut self, body: Bytes, scanned: Result<Scanned, PickleError>) -> Rest {
        let (call, asked, carried) = match scanned {
            Ok(scanned) => scanned,
            Err(error) => return self.refuse_pickle(body, &error),
        };
        let at = self.shared.engine.parse(call.ident().unwrap_or_default());
        if let Some(at) = at.filter(|_| body.len() <= SCANNED_AT_ONCE_MAX) {
            self.habits.learn(&call, at);
        }
        self.answer_call(&call, (body, asked, carried), at)
    }

    /// Answers a call of the queue `at`; `None` is somebody else's.
    fn answer_call(
        &mut self,
        call: &Call,
        (body, asked, carried): (Bytes, Result<Asked, Refusal>, Option<BTreeSet<String>>),
        at: Option<Reference>,
    ) -> Rest {
        let reader = Reader::new(&self.name, call.protocol());
        let Some(at) = at else {
            if let Some(ident) = call.ident().filter(|_| self.shared.reception.is_some()) {
                let request = Request::Call { ident: ident.to_owned(), body };
                return Some(Box::new(Pending::Guest(request)));
            }
            let reply = unknown_ident(call.ident().unwrap_or_default());
            self.tell(reader, &reply, Promise::NOTHING);
            return None;
        };
        match (asked, carried) {
            (Ok(asked), Some(carried)) => {
                Some(Box::new(Pending::Carries(carried, at, asked, reader)))
            }
            (Ok(asked), None) => self.apply(at, asked, reader),
            (Err(refusal), _) => {
                self.tell(reader, &refuse(refusal), Promise::NOTHING);
                None
            }
        }
    }

    /// Answers what is no request that we can read, if nobody else can.
    fn refuse_pickle(&mut self, body: Bytes, error: &PickleError) -> Rest {
        if let Some(request) = self.shared.for_guest(body) {
            return Some(Box::new(Pending::Guest(request)));
        }
        let reply = traceback(&error.to_string());
        self.tell(Reader::new(&self.name, 2), &reply, Promise::NOTHING);
        None
    }

    /// Applies a call.
    fn apply(&mut self, at: Reference, asked: Asked, reader: Reader) -> Rest {
        let operation = match asked {
            Asked::Operation(operation) => operation,
            Asked::Extra(extra) => return self.begin_extra(at, *extra),
        };
        let (engine, caller) = (&self.shared.engine, self.presence.caller());
        let (ticket, of) = match operation {
            Operation::Put { item, wait } => (engine.put(caller, at, item, None, wait), Verb::Put),
            Operation::Get { wait } => {
                (engine.get(caller, at, reader.protocol_max(), wait), Verb::Get(wait))
            }
            Operation::Join => (engine.join(caller, at), Verb::Other),
            Operation::TaskDone => (engine.task_done(caller, at), Verb::Other),
            Operation::Shutdown { immediate } => {
                (engine.shut_down(caller, at, immediate), Verb::Other)
            }
            other => {
                let reply = look(engine, caller, at, &other).unwrap_or_else(fail);
                self.tell(reader, &reply, Promise::NOTHING);
                return None;
            }
        };
        self.tell_ticket(at, ticket, of, reader)
    }

    /// Tells what came of a call, unless it has to wait.
    fn tell_ticket(&mut self, at: Reference, ticket: Ticket, of: Verb, reader: Reader) -> Rest {
        let Ticket { called, promise } = ticket;
        match called {
            Ok(Called::Now(outcome)) => self.tell_outcome(at, outcome, promise, of, reader),
            Ok(Called::Later(waiter)) => Some(Box::new(Pending::Line { at, waiter, of, reader })),
            Err(error) => {
                self.tell(reader, &fail(error), promise);
                None
            }
        }
    }

    fn tell_outcome(
        &mut self,
        at: Reference,
        outcome: Outcome,
        promise: Promise,
        of: Verb,
        reader: Reader,
    ) -> Rest {
        match outcome {
            Outcome::Task(grant) if !Queue::is_away(&grant.payload) => {
                self.hand_out(at, grant, promise, reader)
            }
            Outcome::Task(grant) => self.collect(at, Batch::of(grant, promise), of, reader),
            outcome => {
                self.tell(reader, &reply_to(outcome, of.on_shut_down()), promise);
                None
            }
        }
    }

    /// Reads the body of a task, or begins to.
    fn collect(&mut self, at: Reference, mut batch: Batch, of: Verb, reader: Reader) -> Rest {
        let (engine, caller) = (&self.shared.engine, self.presence.caller());
        match engine.collect(caller, at, false, &mut batch, &mut self.room) {
            Ok(None) => self.tell_batch(at, batch, of, reader),
            Ok(Some(reading)) => Some(Box::new(Pending::Body { at, batch, reading, of, reader })),
            Err(_) => Some(Box::new(Pending::NotKept)),
        }
    }

    /// Hands out a task that is in memory; if it is gone, the next one.
    fn tell_batch(&mut self, at: Reference, mut batch: Batch, of: Verb, reader: Reader) -> Rest {
        if let Some(grant) = batch.grants.pop() {
            return self.hand_out(at, grant, batch.promise, reader);
        }
        let wait = if of == Verb::Get(Wait::Forever) { Wait::Forever } else { Wait::No };
        let (engine, caller) = (&self.shared.engine, self.presence.caller());
        let ticket = engine.get(caller, at, reader.protocol_max(), wait);
        self.tell_ticket(at, ticket, of, reader)
    }

    fn hand_out(&mut self, at: Reference, grant: Grant, promise: Promise, reader: Reader) -> Rest {
        self.unconfirmed.push((at, grant.token));
        self.tell_items(reader, Reply::Item(grant.payload), promise)
    }

    /// Waits for what a request waits for, and goes on with it.
    async fn finish(&mut self, pending: Pending) -> Result<Rest, ConnectionError> {
        match pending {
            Pending::Scan(body) => {
                let scanned = scan_apart(body.clone(), self.shared.clone(), self.is_ours).await;
                Ok(self.answer(body, scanned))
            }
            Pending::Line { at, waiter, of, reader } => {
                let Some(told) = self.wait_parked(waiter).await? else { return Ok(None) };
                let Completion { outcome, promise, .. } = told;
                Ok(self.tell_outcome(at, outcome, promise, of, reader))
            }
            Pending::Body { at, mut batch, reading, of, reader } => {
                let (engine, caller) = (&self.shared.engine, self.presence.caller());
                let arriving = engine.arrive(caller, at, false, &mut batch, reading);
                let Some(room) = self.unless_given_up(arriving).await? else { return Ok(None) };
                self.room = room.map_err(|_| ConnectionError::NotKept)?;
                Ok(self.tell_batch(at, batch, of, reader))
            }
            Pending::Extra(at, waits) => self.finish_extra(at, waits).await,
            Pending::Guest(request) => self.pass_on(request).await.map(|()| None),
            Pending::Carries(carried, at, asked, reader) => {
                self.tell_guest(Request::Carried(carried)).await?;
                Ok(self.apply(at, asked, reader))
            }
            Pending::Reply(reader, reply, promise) => {
                self.make_room(self.outbox.len() as u64 + reply.items_len() as u64).await?;
                self.tell(reader, &reply, promise);
                Ok(None)
            }
            Pending::NotKept => Err(ConnectionError::NotKept),
        }
    }

    /// Has the embedding program take note of something.
    async fn tell_guest(&mut self, request: Request) -> Result<(), ConnectionError> {
        let Some(reception) = &self.shared.reception else { return Ok(()) };
        let guest = self.guest.get_or_insert_with(|| reception.open(Some(&self.name)));
        guest.ask(request);
        tokio::select! {
            reply = guest.reply() => reply.map(drop).ok_or(ConnectionError::Stopping),
            () = self.shared.stop.cancelled() => Err(ConnectionError::Stopping),
        }
    }

    /// Has the embedding program answer a request, and sends its reply.
    async fn pass_on(&mut self, request: Request) -> Result<(), ConnectionError> {
        self.flush().await?;
        let Some(reception) = &self.shared.reception else { return Ok(()) };
        let guest = self.guest.get_or_insert_with(|| reception.open(Some(&self.name)));
        #[cfg(unix)]
        if let Some((loan, mut lent)) = self.wire.lend(self.shared) {
            guest.ask_on_loan(request, loan);
            let returned = tokio::select! {
                returned = lent.returned() => returned.ok_or(ConnectionError::Stopping)?,
                () = self.shared.stop.cancelled() => {
                    lent.revoke();
                    return Err(ConnectionError::Stopping);
                }
            };
            self.wire.push(&returned);
            return Ok(());
        }
        guest.ask(request);
        let mut is_wanted = true;
        let reply = loop {
            tokio::select! {
                biased;
                reply = guest.reply() => break reply.ok_or(ConnectionError::Stopping)?,
                read = self.wire.read(), if is_wanted => match read? {
                    0 => return Err(ConnectionError::Cut("a call that waited")),
                    // As in `wait`; but the program cannot be interrupted, so that its reply is
                    // passed over when it comes.
                    _ => is_wanted = false,
                },
                () = self.shared.stop.cancelled() => return Err(ConnectionError::Stopping),
            }
        };
        if is_wanted {
            let limit = self.patience(reply.len() as u64);
            within(limit, self.wire.send_frame(&reply)).await?;
        }
        Ok(())
    }

    /// Waits for the outcome of a call without using up what others need for their requests; `Full`
    /// if there is no room for its item even so. `None` if nobody wants the reply any more.
    async fn wait_parked(&mut self, waiter: Waiter) -> Result<Option<Completion>, ConnectionError> {
        let Some(_parked) = self.park() else {
            // Another thread may have let it in by now.
            let Some(decided) = waiter.leave() else { return Ok(Some(Completion::full())) };
            return self.wait(decided).await;
        };
        self.wait(waiter).await
    }

    /// Waits for the outcome of a call, and for the client to leave or to lose interest.
    async fn wait(&mut self, mut waiter: Waiter) -> Result<Option<Completion>, ConnectionError> {
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
                told = &mut waiter => return match told {
                    // Another of our clients' threads has closed it. Python's are about to end.
                    None if self.is_ours => Err(ConnectionError::Released),
                    told => Ok(told),
                },
                () = self.shared.stop.cancelled() => return Err(ConnectionError::Stopping),
            }
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

/// What a session's request asks for.
enum Asked {
    Operation(Operation),
    Extra(Box<Extra>),
}

impl Asked {
    /// The items that it brings.
    fn items(&self) -> &[Payload] {
        match self {
            Self::Operation(Operation::Put { item, .. }) => slice::from_ref(item),
            Self::Operation(_) => &[],
            Self::Extra(extra) => match &**extra {
                Extra::Put { item, .. } | Extra::Ack { result: Some(item), .. } => {
                    slice::from_ref(item)
                }
                Extra::PutMany { items, .. } => items,
                _ => &[],
            },
        }
    }
}

/// A request, what it asks for, and the objects whose proxies it puts into a queue.
type Scanned = (Call, Result<Asked, Refusal>, Option<BTreeSet<String>>);

fn scan(body: Bytes, shared: &Shared, is_ours: bool) -> Result<Scanned, PickleError> {
    let call = Call::parse(body.clone(), &shared.pickle_limits)?;
    let asked = decode(&call, &shared.pickle_limits, is_ours);
    let carried = shared.carried(&body, &asked);
    Ok((call, asked, carried))
}

fn decode(call: &Call, limits: &pickle::Limits, is_ours: bool) -> Result<Asked, Refusal> {
    let extra = if is_ours { Extra::decode(call, limits) } else { None };
    match extra {
        Some(extra) => extra.map(|extra| Asked::Extra(Box::new(extra))),
        None => Operation::decode(call, limits).map(Asked::Operation),
    }
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
    let scanned = spawn_blocking(move || scan(body, &shared, is_ours)).await;
    scanned.unwrap_or(Err(PickleError::NotARequest { what: "it could not be scanned" }))
}

/// Answers a call that changes nothing.
fn look(
    engine: &Engine,
    caller: Caller,
    at: Reference,
    operation: &Operation,
) -> Result<Reply, CallError> {
    match operation {
        Operation::Qsize => engine.look(caller, at, |queue| Reply::Count(queue.len() as u64)),
        Operation::Empty => engine.look(caller, at, |queue| Reply::Bool(queue.is_empty())),
        Operation::Full => engine.look(caller, at, |queue| Reply::Bool(queue.is_full())),
        Operation::Repr => Ok(Reply::Text(engine.describe(at))),
        Operation::GetValue => Ok(Reply::Unserializable(
            "TypeError: a queue cannot be copied; use get() and put()\n".into(),
        )),
        _ => Ok(Reply::None),
    }
}

fn reply_to(outcome: Outcome, on_shut_down: Exception) -> Reply {
    match outcome {
        Outcome::Accepted(_) | Outcome::Known | Outcome::Joined | Outcome::Done => Reply::None,
        Outcome::Task(grant) => Reply::Item(grant.payload),
        Outcome::Empty => Reply::Error(Exception::Empty),
        Outcome::Full => Reply::Error(Exception::Full),
        Outcome::NoRoom => Reply::Error(Exception::FullBecause(NO_ROOM.into())),
        Outcome::ShutDown => Reply::Error(on_shut_down),
        Outcome::Unorderable(error) => Reply::Error(Exception::TypeError(error.to_string())),
        Outcome::Unreadable { protocol } => Reply::Error(Exception::ValueError(format!(
            "the next item is a pickle of protocol {protocol}, which this Python cannot read; \
             it stays in the queue for others"
        ))),
    }
}

fn refuse(refusal: Refusal) -> Reply {
    match refusal {
        Refusal::Unknown(text) => traceback(&text),
        Refusal::Arguments(exception) => Reply::Error(exception),
        Refusal::Pickle(error) => traceback(&error.to_string()),
    }
}

fn fail(error: CallError) -> Reply {
    let text = error.to_string();
    match error {
        CallError::NoQueue => traceback(&text),
        CallError::Order(_) => Reply::Error(Exception::TypeError(text)),
        _ => Reply::Error(Exception::ValueError(text)),
    }
}
