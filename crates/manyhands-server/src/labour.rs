//! Tests only: bytes of large payloads that were copied, or read to find their place. Whoever is served
//! by the same thread waits for that.

use std::cell::Cell;

/// As much is done at once, in bytes.
const AT_ONCE_MAX: usize = 256 << 10;

std::thread_local! {
    static DONE: Cell<usize> = const { Cell::new(0) };
}

/// A payload of so many bytes was worked on, on this thread.
pub(crate) fn add(bytes: usize) {
    if bytes > AT_ONCE_MAX {
        DONE.set(DONE.get() + bytes);
    }
}

/// What was done on this thread since this was asked last.
pub(crate) fn take() -> usize {
    DONE.take()
}
