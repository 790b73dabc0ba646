//! What a request still waits for, if it could not be answered at once.

use std::collections::BTreeSet;

use bytes::Bytes;
use manyhands::wire::arguments::Wait;
use manyhands::wire::method::Method;
use manyhands::wire::pickle::Payload;
use manyhands::wire::reply::{Reader, Reply};

use super::foreign::Request;
use super::waiter::Waiter;
use crate::engine::{Batch, Promise, Reading, Reference};

/// What is left to do for a request. For most it is nothing: they need no future of their own.
pub(super) type Rest = Option<Box<Pending>>;

/// What a request waits for.
pub(super) enum Pending {
    /// For a thread that scans it.
    Scan(Bytes),
    /// For its turn.
    Line { at: Reference, waiter: Waiter, of: Verb, reader: Reader },
    /// For the disk, where the task is that it has taken.
    Body { at: Reference, batch: Batch, reading: Reading, of: Verb, reader: Reader },
    /// For the embedding program, which has to answer it: it is not ours.
    Guest(Request),
    /// A call that puts proxies of these objects into a queue: it is applied once the embedding
    /// program has taken note of them.
    Carries(BTreeSet<String>, Reference, Method, Reader),
    /// A put, for a thread that copies its item.
    Large(Reference, (Payload, Wait), Reader),
    /// A reply, for memory.
    Reply(Reader, Reply, Promise),
    /// For nothing: no reply can be made any more.
    NotDurable,
}

/// A verb that may have to wait, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Verb {
    Put,
    Get(Wait),
    /// One that is told nothing but that it is over.
    Other,
}
