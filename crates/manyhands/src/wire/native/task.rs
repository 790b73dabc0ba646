//! Tasks as they are handed out, pushed, or looked at.

use super::DecodeError;
use super::reader::Reader;
use crate::wire::frame::Outbound;
use crate::wire::pickle::Payload;
use crate::wire::tasks::{Info, Peeked};
use crate::wire::token::LeaseToken;

/// A task that was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// The item.
    pub payload: Payload,
    /// How to settle it, if it is leased.
    pub token: Option<LeaseToken>,
    /// What is known of it, if that was asked for and anything is.
    pub info: Option<Box<Info>>,
}

/// The tasks of a body, read one by one. After an error there are no more.
#[derive(Debug, Clone)]
pub struct Tasks {
    /// Whether they were pushed by credit.
    pub is_pushed: bool,
    fields: Reader,
    count: u32,
    next: u32,
}

impl Tasks {
    pub(super) fn new(fields: Reader, count: u32, is_pushed: bool) -> Self {
        Self { is_pushed, fields, count, next: 0 }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }
}

impl Iterator for Tasks {
    type Item = Result<Task, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        todo!("{:?} {} {}", self.fields, self.count, self.next)
    }
}

/// Tasks that were looked at, read one by one. After an error there are no more.
#[derive(Debug, Clone)]
pub struct PeekedTasks {
    fields: Reader,
    count: u32,
    next: u32,
}

impl PeekedTasks {
    pub(super) fn new(fields: Reader, count: u32) -> Self {
        Self { fields, count, next: 0 }
    }
}

impl Iterator for PeekedTasks {
    type Item = Result<Peeked, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        todo!("{:?} {} {}", self.fields, self.count, self.next)
    }
}

/// Appends a task.
pub(super) fn write_task(
    payload: &Payload,
    token: Option<&LeaseToken>,
    info: Option<&Info>,
    out: &mut Outbound,
) {
    todo!("{payload:?} {token:?} {info:?} {}", out.len())
}

/// Appends a task that was looked at.
pub(super) fn write_peeked(task: &Peeked, out: &mut Outbound) {
    todo!("{task:?} {}", out.len())
}
