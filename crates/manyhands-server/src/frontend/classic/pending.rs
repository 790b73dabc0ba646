//! What a request still waits for, if it could not be answered at once.

use std::collections::BTreeSet;
use std::vec::IntoIter;

use bytes::Bytes;
use manyhands::wire::arguments::Wait;
use manyhands::wire::method::{Manner, Method};
use manyhands::wire::pickle::Payload;
use manyhands::wire::reply::{Reader, Reply};
use manyhands::wire::tasks::Peek;

use super::foreign::Request;
use super::waiter::Waiter;
use crate::engine::{Added, Batch, Promise, Reading, Redriving, Reference, Taking};
use crate::queue::{Patience, Prepared};

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
    /// A call that is about many tasks.
    Batch(Reference, BatchPending),
    /// For the embedding program, which has to answer it: it is not ours.
    Guest(Request),
    /// A call that puts proxies of these objects into a queue: it is applied once the embedding
    /// program has taken note of them.
    Carries(BTreeSet<String>, Reference, Method, Reader),
    /// A put, or a result, for a thread that copies its item.
    Large(Reference, Method, Reader),
    /// A reply, for memory.
    Reply(Reader, Reply, Promise),
    /// For nothing: no reply can be made any more.
    NotDurable,
}

/// What a call that is about many tasks waits for.
pub(super) enum BatchPending {
    /// For its turn, because others come in between the parts of a batch.
    Items { items: Vec<Payload>, wait: Wait },
    /// For room for the next item.
    PutMany { items: IntoIter<Prepared>, added: Added<Waiter>, patience: Patience },
    /// For the first task.
    Task { waiter: Waiter, order: Order },
    /// For its turn to take more.
    More { batch: Batch, order: Order },
    /// For the rest of many dead letters.
    Redrive(Redriving),
    /// For the disk, where the tasks that were taken are.
    Bodies { batch: Batch, reading: Reading, order: Order },
    /// For memory for what is told of each task, and for its turn to be told more.
    Infos { batch: Batch, order: Order },
    /// For memory for what is told of tasks, and for its turn to look at more of them.
    Look(Peek),
}

/// A verb that may have to wait, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Verb {
    /// What its reply says of the task.
    Put(Told),
    Get(Wait),
    /// One that is told nothing but that it is over.
    Other,
}

/// What the reply to a put that was accepted says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Nothing,
    /// Whether the task is new.
    IsNew,
    /// The task's number, if it is new.
    Number,
}

/// What is to be handed out, and how.
#[derive(Clone, Copy)]
pub(super) struct Order {
    pub(super) manner: Manner,
    pub(super) taking: Taking,
    pub(super) wait: Wait,
    pub(super) is_list: bool,
}
