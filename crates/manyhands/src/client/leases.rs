//! Leases that come by themselves.

use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use serde::de::DeserializeOwned;

use super::{Lease, Reference};
use crate::Error;
use crate::line::Subscription;

/// Leases of a queue's tasks, which the server sends ahead of the program's asking.
///
/// A task is started when it is handed out here. Those that were sent and not started go back, and
/// have used up no attempt, when this is dropped, when the connection is lost, or when another worker
/// has nothing to do. Also a [`Stream`].
pub struct Leases<T> {
    reference: Arc<Reference>,
    subscription: Subscription,
    item: PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for Leases<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases").field("queue", &self.reference.name).finish_non_exhaustive()
    }
}

impl<T: DeserializeOwned> Leases<T> {
    pub(super) fn new(reference: Arc<Reference>, subscription: Subscription) -> Self {
        Self { reference, subscription, item: PhantomData }
    }

    /// The next lease; `None` if the queue is shut down and empty.
    ///
    /// # Errors
    ///
    /// [`Error::Item`], and the task is a dead letter, so that the program can go on with the next;
    /// or that the server was lost, and then there are no more.
    pub async fn next(&mut self) -> Option<Result<Lease<T>, Error>> {
        poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }
}

impl<T: DeserializeOwned> Stream for Leases<T> {
    type Item = Result<Lease<T>, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(match ready!(self.subscription.poll_next(context)) {
            None | Some(Err(Error::ShutDown)) => None,
            Some(Err(error)) => Some(Err(error)),
            Some(Ok(task)) => Some(Lease::of(&self.reference, task.into())),
        })
    }
}
