//! Requests that wait for others, and what is left to do at once for those that do not.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::vec::IntoIter;

use manyhands::wire::native::Route;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::looks::Report;
use super::puts::{PutBatch, PutRest};
use super::settlements::{SettleBatch, Settling};
use super::takes::{Hand, Order};
use crate::engine::{Completion, Place, Reference, Waiter};
use crate::error::ConnectionError;
use crate::memory::{Parked, Room};
use crate::queue::TaskId;

/// What a request takes that waits, beside what it brought, in bytes.
pub(super) const PENDING_BYTES: u64 = 512;

/// What is left to do for a request at once, some of it at a time. For most it is nothing.
pub(super) type Rest = Option<Box<Left>>;

/// Something that takes a while.
pub(super) enum Left {
    /// Items to be read, and put then.
    Put(Route, PutBatch),
    /// Items to be put.
    PutOn(Box<PutRest>),
    /// Settlements to be read, and made then.
    Settle(Route, SettleBatch),
    /// Calls to be taken out of their lines.
    Cancel(IntoIter<Place>),
    /// Tasks of a queue that was closed, to go back from this one on.
    Return(Route, Reference, TaskId),
    /// Tasks to be taken beside those that are in hand.
    Take(Order, Hand),
    /// Tasks to be told, for which there is room.
    Tell(Order, Hand),
    /// No reply can be made any more.
    NotDurable,
}

/// A request that waits.
pub(super) struct Pending {
    route: Route,
    /// Taken when it ends.
    waits: Option<Waits>,
    /// Its memory, until then.
    _parked: Option<Parked>,
}

/// Tasks that were waited for, with their memory.
pub(super) type Coming = Result<(Hand, Room), ConnectionError>;

/// What a request waits for.
pub(super) enum Waits {
    /// For a free slot.
    Put(Waiter, Box<PutRest>),
    /// For an earlier put of its queue that has further items.
    Turn(Box<Turn>),
    /// For a task.
    Task(Waiter, Box<Order>),
    /// For the disk, where the tasks are that it has taken, or for memory to tell of them.
    Hand(Pin<Box<dyn Future<Output = Coming> + Send>>, Box<Order>),
    /// Until all tasks are done.
    Join(Waiter),
    /// For room for results.
    Settle(Box<Settling>),
    /// For work that others do.
    Work(Pin<Box<dyn Future<Output = Report> + Send>>),
}

/// A put waits for its turn.
pub(super) struct Turn {
    /// Told when it is its turn.
    turn: oneshot::Receiver<()>,
    /// Until when it may wait.
    timer: Option<Pin<Box<Sleep>>>,
    /// Told, or dropped, when nobody wants it any more.
    cancel: oneshot::Receiver<()>,
    rest: Box<PutRest>,
}

/// Whose turn it is when a put that has waited for its own waits no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    Own,
    /// That of others: its time is up.
    Others,
    /// It wants none any more.
    Nobodys,
}

impl Turn {
    pub(super) fn new(
        turn: oneshot::Receiver<()>,
        timer: Option<Pin<Box<Sleep>>>,
        rest: Box<PutRest>,
    ) -> (Self, Cancel) {
        let (told, cancel) = oneshot::channel();
        (Self { turn, timer, cancel, rest }, Cancel::Turn(told))
    }
}

/// How the wait of a request is ended by its client.
#[derive(Debug)]
pub(super) enum Cancel {
    /// Not at all: it goes on by itself, or is credit.
    Not,
    Call(Place),
    Turn(oneshot::Sender<()>),
    Calls(Vec<Place>),
}

/// What a request goes on with that has waited.
pub(super) enum Ended {
    Put(Option<Completion>, Box<PutRest>),
    Turn(Whose, Box<PutRest>),
    Task(Option<Completion>, Box<Order>),
    Hand(Coming, Box<Order>),
    Join(Option<Completion>),
    Settle(Box<Settling>),
    Work(Report),
}

impl Ended {
    /// Whether it is no request: tasks that are pushed have the id of their credit.
    pub(super) fn is_pushed(&self) -> bool {
        matches!(self, Self::Hand(_, order) if order.is_pushed)
    }
}

impl Pending {
    pub(super) fn new(route: Route, waits: Waits, parked: Option<Parked>) -> Self {
        Self { route, waits: Some(waits), _parked: parked }
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("route", &self.route).finish_non_exhaustive()
    }
}

impl Future for Pending {
    type Output = (Route, Ended);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { route, waits, .. } = &mut *self;
        let route = *route;
        macro_rules! told {
            ($future:expr) => {{
                let told = ready!(Pin::new($future).poll(cx));
                (told, waits.take())
            }};
        }
        let ended = match waits {
            Some(Waits::Put(waiter, _)) => match told!(waiter) {
                (told, Some(Waits::Put(_, rest))) => Ended::Put(told, rest),
                _ => return Poll::Pending,
            },
            Some(Waits::Turn(turn)) => match told!(turn) {
                (is_its, Some(Waits::Turn(turn))) => Ended::Turn(is_its, turn.rest),
                _ => return Poll::Pending,
            },
            Some(Waits::Task(waiter, _)) => match told!(waiter) {
                (told, Some(Waits::Task(_, order))) => Ended::Task(told, order),
                _ => return Poll::Pending,
            },
            Some(Waits::Hand(coming, _)) => match told!(coming) {
                (hand, Some(Waits::Hand(_, order))) => Ended::Hand(hand, order),
                _ => return Poll::Pending,
            },
            Some(Waits::Join(waiter)) => Ended::Join(told!(waiter).0),
            Some(Waits::Settle(settling)) => match told!(settling) {
                ((), Some(Waits::Settle(settling))) => Ended::Settle(settling),
                _ => return Poll::Pending,
            },
            Some(Waits::Work(work)) => Ended::Work(told!(work).0),
            None => return Poll::Pending,
        };
        Poll::Ready((route, ended))
    }
}

impl Future for Turn {
    type Output = Whose;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Whose> {
        let Self { turn, timer, cancel, .. } = &mut *self;
        if let Poll::Ready(turn) = Pin::new(turn).poll(cx) {
            // The handle was closed if nobody says so any more.
            return Poll::Ready(if turn.is_ok() { Whose::Own } else { Whose::Nobodys });
        }
        if Pin::new(cancel).poll(cx).is_ready() {
            return Poll::Ready(Whose::Nobodys);
        }
        if let Some(timer) = timer
            && timer.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Whose::Others);
        }
        Poll::Pending
    }
}
