//! A call takes the lock once.

use std::cell::Cell;

use super::*;

std::thread_local! {
    static TAKEN: Cell<usize> = const { Cell::new(0) };
}

/// The engine's lock is taken on this thread.
pub(in super::super) fn count() {
    TAKEN.set(TAKEN.get() + 1);
}

/// How often a call takes it.
fn locks<R>(call: impl FnOnce() -> R) -> (R, usize) {
    TAKEN.set(0);
    let result = call();
    (result, TAKEN.get())
}
