//! What clients speak: each front end turns its bytes, or calls, into verbs of the engine and their
//! outcomes back. None knows another.

pub(crate) mod classic;
pub(crate) mod embedded;
