//! A put that is ahead of its answer.

use std::pin::Pin;
use std::task::{Context, Poll};

use super::Ahead;
use crate::Error;
use crate::answer::Answer;

/// A put that was sent ahead of its answer: a future of whether the item is in the queue.
///
/// It goes on if this is dropped, but then nobody learns what became of it.
#[derive(Debug)]
#[must_use = "nobody else learns whether the item is in the queue"]
pub struct Put(pub(super) Ahead);

impl Future for Put {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = std::task::ready!(Pin::new(&mut self.0).poll(context));
        Poll::Ready(answer.and_then(Answer::added).map(drop))
    }
}
