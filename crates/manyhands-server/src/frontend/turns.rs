//! The end of a connection takes longer than most calls: a session to end, a socket to close, memory
//! to free. Thousands may end together, so they do it one after the other, and others are served in
//! between.

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::yield_now;

/// Whose turn it is to end.
#[derive(Debug)]
pub(crate) struct Turns(Semaphore);

impl Default for Turns {
    fn default() -> Self {
        Self(Semaphore::new(1))
    }
}

impl Turns {
    /// Waits for the turn of a connection, which lasts as long as it keeps the permit. There is one in
    /// each round of the event loop at most.
    pub(crate) async fn next(&self) -> Option<SemaphorePermit<'_>> {
        let turn = self.0.acquire().await.ok();
        // Whoever has asked for something meanwhile comes first.
        yield_now().await;
        turn
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn connections_that_end_together_take_turns_and_others_are_served_in_between() {
        const MANY: usize = 10_000;
        let (turns, ended) = (Arc::new(Turns::default()), Arc::new(AtomicUsize::new(0)));
        let mut other = JoinSet::new();
        other.spawn({
            let ended = ended.clone();
            async move {
                let mut most = 0;
                loop {
                    let before = ended.load(Ordering::Relaxed);
                    if before == MANY {
                        return most;
                    }
                    yield_now().await;
                    most = most.max(ended.load(Ordering::Relaxed) - before);
                }
            }
        });
        let mut connections = JoinSet::new();
        for _ in 0..MANY {
            let (turns, ended) = (turns.clone(), ended.clone());
            connections.spawn(async move {
                let _turn = turns.next().await;
                ended.fetch_add(1, Ordering::Relaxed);
            });
        }
        let most = other.join_next().await.unwrap().unwrap();
        assert!((1..=2).contains(&most), "{most} ended in a row");
    }
}
