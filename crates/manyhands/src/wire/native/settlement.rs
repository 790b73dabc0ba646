//! What becomes of leased tasks.

use std::time::Duration;

use super::reader::Reader;
use super::{DecodeError, What};
use crate::wire::frame::Outbound;
use crate::wire::pickle::{Limits, Payload};
use crate::wire::token::LeaseToken;

/// What becomes of one lease.
#[derive(Debug, Clone, PartialEq)]
pub struct Settlement {
    /// Which lease.
    pub token: LeaseToken,
    /// What becomes of it.
    pub fate: Fate,
}

/// What becomes of a lease.
#[derive(Debug, Clone, PartialEq)]
pub enum Fate {
    /// The task is done.
    Ack {
        /// For the queue of results.
        result: Option<Payload>,
    },
    /// The attempt failed.
    Nack {
        /// Until the next one; `None` is the queue's pause.
        delay: Option<Duration>,
        /// Why.
        reason: String,
    },
    /// No further attempt can do it.
    GiveUp {
        /// Why.
        reason: String,
    },
    /// The lease lasts longer.
    Extend {
        /// From now on.
        hold: Duration,
    },
    /// Work on a pushed task begins.
    Start,
    /// A pushed task that was not started goes back.
    Return,
}

/// The settlements of a body, read one by one. After an error there are no more.
#[derive(Debug, Clone)]
pub struct Settlements {
    fields: Reader,
    count: u32,
    next: u32,
    limits: Limits,
}

impl Settlements {
    pub(super) fn new(fields: Reader, count: u32, limits: Limits) -> Self {
        Self { fields, count, next: 0, limits }
    }
}

impl Iterator for Settlements {
    type Item = Result<Settlement, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let _: (&Limits, Option<What>) = (&self.limits, None);
        todo!("{:?} {} {}", self.fields, self.count, self.next)
    }
}

/// Appends a settlement.
pub(super) fn write_settlement(settlement: &Settlement, out: &mut Outbound) {
    todo!("{settlement:?} {}", out.len())
}
