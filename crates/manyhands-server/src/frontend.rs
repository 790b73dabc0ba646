//! What clients speak: each front end turns its bytes, or calls, into verbs of the engine and their
//! outcomes back. None knows another, but that the program's own queues without a name
//! ([`PinnedQueue`](embedded::PinnedQueue)) have idents by which classic clients call them.

pub(crate) mod classic;
pub(crate) mod embedded;
