//! Tests only: bytes of large payloads that were copied, or read to find their place. Whoever is served
//! by the same thread waits for that.

use std::cell::{Cell, RefCell};

/// As much is done at once, in bytes.
const AT_ONCE_MAX: usize = 256 << 10;

std::thread_local! {
    static DONE: Cell<usize> = const { Cell::new(0) };
    static WATCH: RefCell<Option<Box<dyn Fn()>>> = const { RefCell::new(None) };
}

/// A payload of so many bytes was worked on, on this thread.
pub(crate) fn add(bytes: usize) {
    WATCH.with_borrow(|watch| watch.iter().for_each(|watch| watch()));
    if bytes > AT_ONCE_MAX {
        DONE.set(DONE.get() + bytes);
    }
}

/// What was done on this thread since this was asked last.
pub(crate) fn take() -> usize {
    DONE.take()
}

/// Calls this whenever a payload is worked on, on this thread, however small it is.
pub(crate) fn watch(watch: impl Fn() + 'static) {
    WATCH.set(Some(Box::new(watch)));
}
