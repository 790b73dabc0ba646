//! The only reader of the clock.

use std::time::Instant;

/// What time it is.
#[expect(clippy::disallowed_methods, reason = "to measure is all that this program does")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
