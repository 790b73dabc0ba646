//! The directory: which names and references there are, and how long they stay.

pub(super) mod unused;
