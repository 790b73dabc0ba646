//! Between the writer and an event loop: one wake each way for a frame, however many wait for it.
//!
//! To wake a task of an event loop from another thread costs a system call, and to wake the writer
//! for the first of many records makes a frame of that one. The relay is a task of the loop. It is
//! called by both sides, wakes the writer once the tasks before it have appended what they had, and
//! tells those who wait on their own thread. Invariant: without it, nobody is told less.

use super::state::Shared;
use super::{Durability, Journal};

impl Journal {
    /// Passes on, for ever, what the writer and the tasks of this event loop have for each other.
    /// While it does not run they tell each other themselves.
    pub async fn relay(&self) {
        let _present = Present::of(&self.shared);
        loop {
            self.shared.call.notified().await;
            self.shared.pass_on();
        }
    }
}

/// Says that there is a relay, as long as it lives.
struct Present<'s>(&'s Shared);

impl<'s> Present<'s> {
    fn of(shared: &'s Shared) -> Self {
        shared.lock().has_relay = true;
        Self(shared)
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.lock().has_relay = false;
        self.0.pass_on();
    }
}

impl Shared {
    fn pass_on(&self) {
        let told = {
            let mut state = self.lock();
            if state.is_wanted() {
                state.idle = false;
                self.work.notify_one();
            }
            [Durability::Os, Durability::Disk].map(|durability| state.take_reached(durability))
        };
        told.into_iter().for_each(super::state::wake);
    }
}
