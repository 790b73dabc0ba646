//! How much one step of the engine does. Others wait for as long as that takes, however fast the
//! machine is, so it is counted and not timed.

use std::cell::Cell;

use crate::engine::BATCH_AT_ONCE;

/// The most changes of one step: it settles what a call has shown to be through, moves what the call
/// asks for, and does a little beside.
const STEP_MAX: usize = 2 * BATCH_AT_ONCE + 16;

std::thread_local! {
    static DONE: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
}

/// A step begins on this thread.
pub(in crate::engine) fn begin() {
    DONE.set(0);
}

/// The step makes so many changes more.
pub(in crate::engine) fn add(changes: usize) {
    DONE.set(DONE.get() + changes);
    MOST.set(MOST.get().max(DONE.get()));
}

/// Fails if a step on this thread has made more changes than may be made at once, since this was asked
/// last; says how many the largest has made.
pub(crate) fn was_bounded(what: &str) -> usize {
    let most = MOST.take();
    assert!(most <= STEP_MAX, "{what}: {most} changes in one step");
    most
}
