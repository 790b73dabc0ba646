//! Memory for replies: one piece that all sessions of a thread use in turn. A session that waits has none
//! of its own, and one that is served need not ask for any.

use std::cell::Cell;

use manyhands::wire::frame::Outbound;

/// More than so many bytes are not kept.
const KEPT_MAX: usize = 64 << 10;

thread_local! {
    static SPARE: Cell<Option<Outbound>> = const { Cell::new(None) };
}

/// Nothing, with room for replies if there is some to spare.
pub(super) fn take() -> Outbound {
    SPARE.take().unwrap_or_default()
}

/// What has been sent may have its memory used again.
pub(super) fn keep(sent: Outbound) {
    if let Some(emptied) = sent.emptied(KEPT_MAX) {
        SPARE.set(Some(emptied));
    }
}
