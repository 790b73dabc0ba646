//! What becomes of leased tasks.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use manyhands::wire::arguments::Wait;
use manyhands::wire::native::{Code, DecodeError, Fate, Route, Settlements, reply};
use manyhands::wire::token::LeaseToken;
use tokio::task::{spawn_blocking, yield_now};

use super::pending::{Cancel, Left, PENDING_BYTES, Rest, Waits};
use super::puts::READ_AT_ONCE_MAX;
use super::replies::{cancelled, failure, no_memory, refusal};
use super::session::Session;
use crate::engine::{
    BATCH_AT_ONCE, Called, Calls, Completion, PLACED_AT_ONCE_MAX, Promise, Reference, Settled,
    Settlement, Waiter,
};
use crate::error::ConnectionError;
use crate::memory::Parked;
use crate::queue::{Order, Patience, Prepared, Retry};
use crate::socket::Socket;

/// Settlements that are to be read.
#[derive(Debug)]
pub(super) struct SettleBatch {
    pub(super) wait: Wait,
    pub(super) settlements: Settlements,
    pub(super) len: usize,
    /// Of the queue of results.
    pub(super) order: Order,
}

/// Settlements, each with the lease that it is of.
type Read = Vec<(LeaseToken, Settlement)>;

/// Settlements that were made, some of which wait for room for results.
#[derive(Debug)]
pub(super) struct Settling {
    codes: Vec<Option<Code>>,
    waiting: FuturesUnordered<Numbered>,
    promise: Promise,
    _parked: Option<Parked>,
}

/// A settlement that waits, and its place in the batch.
#[derive(Debug)]
struct Numbered(usize, Waiter);

impl Future for Numbered {
    type Output = (usize, Option<Completion>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let place = self.0;
        Pin::new(&mut self.1).poll(cx).map(|told| (place, told))
    }
}

impl Settling {
    fn note(&mut self, place: usize, code: Option<Code>) {
        if let Some(set) = self.codes.get_mut(place) {
            *set = code;
        }
    }
}

impl Future for Settling {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        while let Poll::Ready(told) = self.waiting.poll_next_unpin(cx) {
            let Some((place, told)) = told else { return Poll::Ready(()) };
            let code = match told {
                Some(Completion { outcome, promise, .. }) => {
                    self.promise = self.promise.and(promise);
                    refusal(&outcome).map(|(code, _)| code)
                }
                None => Some(cancelled().0),
            };
            self.note(place, code);
        }
        Poll::Pending
    }
}

fn settlement(fate: Fate, order: Order) -> Settlement {
    let prepared = |result| Prepared::new(result, None, order);
    match fate {
        Fate::Ack { result: None } => Settlement::Ack,
        Fate::Ack { result: Some(result) } => Settlement::Answer(prepared(result)),
        Fate::Done { result } => Settlement::Done(result.map(prepared)),
        Fate::Nack { delay, reason } => Settlement::Nack(Retry::from(delay), reason.into()),
        Fate::GiveUp { reason } => Settlement::Nack(Retry::Never, reason.into()),
        Fate::Extend { hold } => Settlement::Extend(hold),
        Fate::Start => Settlement::Start,
        Fate::Return => Settlement::Return,
    }
}

fn read(settlements: Settlements, order: Order) -> Result<Read, DecodeError> {
    settlements.map(|it| it.map(|it| (it.token, settlement(it.fate, order)))).collect()
}

/// The same, letting others have their turn.
async fn read_gradually(mut settlements: Settlements, order: Order) -> Result<Read, DecodeError> {
    let mut read = Vec::new();
    loop {
        for _ in 0..BATCH_AT_ONCE {
            let Some(next) = settlements.next() else { return Ok(read) };
            let next = next?;
            read.push((next.token, settlement(next.fate, order)));
        }
        yield_now().await;
    }
}

impl<S: Socket> Session<'_, S> {
    pub(super) fn settle(
        &mut self,
        calls: &mut Calls<'_>,
        route: Route,
        (wait, settlements): (Wait, Settlements),
        (count, len): (u32, usize),
    ) -> Rest {
        let Some(open) = self.handles.get(route.queue) else { return self.no_handle(route) };
        let at = open.reference;
        let order = calls.order_of(at, true);
        if count != 1 || len > PLACED_AT_ONCE_MAX {
            calls.end();
        }
        let batch = SettleBatch { wait, settlements, len, order };
        if len > READ_AT_ONCE_MAX || count as usize > BATCH_AT_ONCE {
            return Some(Box::new(Left::Settle(route, batch)));
        }
        let read = match read(batch.settlements, order) {
            Ok(read) => read,
            Err(error) => return self.refuse_malformed(route, &error),
        };
        let patience = self.shared.engine.patience(wait);
        let mut settled = Settled::default();
        self.settle_some(calls, at, &mut read.into_iter(), patience, &mut settled);
        if count != 1 || !settled.others.is_empty() {
            calls.end();
        }
        self.tell_settled(route, settled, len)
    }

    /// The same for many, or for large results.
    pub(super) async fn settle_large(
        &mut self,
        route: Route,
        batch: SettleBatch,
    ) -> Result<Rest, ConnectionError> {
        let SettleBatch { wait, settlements, len, order } = batch;
        let read = if len > READ_AT_ONCE_MAX {
            let read = move || read(settlements, order);
            spawn_blocking(read).await.map_err(|_| ConnectionError::NotDurable)?
        } else {
            read_gradually(settlements, order).await
        };
        let Some(open) = self.handles.get(route.queue) else { return Ok(self.no_handle(route)) };
        let at = open.reference;
        let mut read = match read {
            Ok(read) => read.into_iter(),
            Err(error) => return Ok(self.refuse_malformed(route, &error)),
        };
        let patience = self.shared.engine.patience(wait);
        let mut settled = Settled::default();
        while self.settle_alone(at, &mut read, patience, &mut settled) {
            yield_now().await;
        }
        Ok(self.tell_settled(route, settled, len))
    }

    /// Settles some tasks in a step of their own; true if there may be more.
    fn settle_alone(
        &mut self,
        at: Reference,
        settlements: &mut impl Iterator<Item = (LeaseToken, Settlement)>,
        patience: Patience,
        settled: &mut Settled,
    ) -> bool {
        self.settle_some(&mut Calls::new(&self.shared.engine), at, settlements, patience, settled)
    }

    /// Settles some tasks; true if there may be more.
    fn settle_some(
        &mut self,
        calls: &mut Calls<'_>,
        at: Reference,
        settlements: &mut impl Iterator<Item = (LeaseToken, Settlement)>,
        patience: Patience,
        settled: &mut Settled,
    ) -> bool {
        let before = settled.count;
        let is_more = calls.settle_many(self.caller(), at, settlements, patience, settled);
        self.add_work(settled.count - before);
        is_more
    }

    /// Tells what became of settlements, once those that wait for room for results do not any more.
    fn tell_settled(&mut self, route: Route, settled: Settled, len: usize) -> Rest {
        let Settled { count, others, promise } = settled;
        if others.is_empty() {
            let codes = std::iter::repeat_n(None, count);
            let promise = if planted!(SettledTooSoon) { Promise::NOTHING } else { promise };
            reply::push_settled(codes, route, self.behind(promise));
            return None;
        }
        let mut settling = Settling {
            codes: vec![None; count],
            waiting: FuturesUnordered::new(),
            promise,
            _parked: None,
        };
        for (place, called) in others {
            match called {
                Ok(Called::Now(outcome)) => {
                    settling.note(place, refusal(&outcome).map(|(code, _)| code));
                }
                Ok(Called::Later(waiter)) => settling.waiting.push(Numbered(place, waiter)),
                Err(error) => settling.note(place, Some(failure(&error).0)),
            }
        }
        if settling.waiting.is_empty() {
            return self.tell_codes(route, settling);
        }
        let bytes = settling.waiting.len() as u64 * PENDING_BYTES + len as u64;
        settling._parked = self.shared.engine.memory().park(bytes);
        if settling._parked.is_none() {
            for Numbered(place, waiter) in std::mem::take(&mut settling.waiting) {
                match waiter.leave() {
                    // Another thread has let it in by now.
                    Ok(decided) => settling.waiting.push(Numbered(place, decided)),
                    Err(before) => {
                        settling.promise = settling.promise.and(before);
                        settling.note(place, Some(no_memory().0));
                    }
                }
            }
        }
        let places = settling.waiting.iter().map(|numbered| numbered.1.place()).collect();
        self.wait(route, Waits::Settle(Box::new(settling)), None, Cancel::Calls(places))
    }

    /// All settlements are decided.
    pub(super) fn tell_codes(&mut self, route: Route, settling: Settling) -> Rest {
        let Settling { codes, promise, .. } = settling;
        reply::push_settled(codes, route, self.behind(promise));
        None
    }
}
