//! What becomes of leased tasks.

use std::time::Duration;

use bytes::BufMut;

use super::What;
use super::batch::{Batch, Kind};
use super::payload::{Trust, read_payload, write_payload};
use super::reader::{Reader, time_of};
use super::writer::micros;
use crate::text;
use crate::wire::arguments::{REASON_CHARS_MAX, TIME_MAX};
use crate::wire::frame::Outbound;
use crate::wire::pickle::Payload;
use crate::wire::token::LeaseToken;

const ACK: u8 = 0;
const ACK_WITH_RESULT: u8 = 1;
const NACK: u8 = 2;
const GIVE_UP: u8 = 3;
const EXTEND: u8 = 4;
const START: u8 = 5;
const RETURN: u8 = 6;
const DONE: u8 = 7;
const DONE_WITH_RESULT: u8 = 8;

/// Length of a token, in bytes.
pub(super) const TOKEN_LEN: usize = 28;
/// Kind, reason_len, token and time.
const FIELDS_LEN: usize = 4 + TOKEN_LEN + 8;

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
    /// The task is done, and `join` waits for a `task_done` still. It may be without a result where
    /// an ack may not.
    Done {
        /// For the queue of results.
        result: Option<Payload>,
    },
}

impl Fate {
    fn kind(&self) -> u8 {
        match self {
            Self::Ack { result: None } => ACK,
            Self::Ack { result: Some(_) } => ACK_WITH_RESULT,
            Self::Nack { .. } => NACK,
            Self::GiveUp { .. } => GIVE_UP,
            Self::Extend { .. } => EXTEND,
            Self::Start => START,
            Self::Return => RETURN,
            Self::Done { result: None } => DONE,
            Self::Done { result: Some(_) } => DONE_WITH_RESULT,
        }
    }

    fn result(&self) -> Option<&Payload> {
        match self {
            Self::Ack { result } | Self::Done { result } => result.as_ref(),
            _ => None,
        }
    }

    fn reason(&self) -> &str {
        match self {
            Self::Nack { reason, .. } | Self::GiveUp { reason } => reason,
            _ => "",
        }
    }

    fn time(&self) -> u64 {
        match self {
            Self::Nack { delay, .. } => micros(*delay),
            Self::Extend { hold } => micros(Some(*hold)),
            _ => 0,
        }
    }
}

/// The settlements of a request.
pub type Settlements = Batch<SettlementKind>;

/// The entries of [`Settlements`].
#[derive(Debug, Clone)]
pub struct SettlementKind(pub(super) Trust);

impl Kind for SettlementKind {
    type Entry = Settlement;
    const LEN_MIN: usize = FIELDS_LEN;

    fn read(&self, fields: &mut Reader) -> Result<Settlement, What> {
        let at = fields.at();
        let kind = fields.u8("kind")?;
        fields.zeros::<1>()?;
        let reason_at = fields.at();
        let reason_len = fields.u16("reason_len")?;
        let token = read_token(fields)?;
        let time_at = fields.at();
        let time = fields.u64("time")?;
        let takes_reason = matches!(kind, NACK | GIVE_UP);
        let takes_time = matches!(kind, NACK | EXTEND);
        let zero = |field, at, found, may_be_set| match found {
            0 => Ok(()),
            _ if may_be_set => Ok(()),
            found => {
                Err(What::Value { field, at, found, expected: "0 in a settlement of this kind" })
            }
        };
        zero("reason_len", reason_at, reason_len.into(), takes_reason)?;
        zero("time", time_at, time, takes_time)?;
        let reason = fields.text("reason", reason_len.into())?;
        let reason = reason.chars().take(REASON_CHARS_MAX).collect();
        let fate = match kind {
            ACK => Fate::Ack { result: None },
            ACK_WITH_RESULT => Fate::Ack { result: Some(read_payload(fields, &self.0)?) },
            NACK => Fate::Nack { delay: time_of(time), reason },
            GIVE_UP => Fate::GiveUp { reason },
            EXTEND => Fate::Extend { hold: time_of(time).unwrap_or(TIME_MAX) },
            START => Fate::Start,
            RETURN => Fate::Return,
            DONE => Fate::Done { result: None },
            DONE_WITH_RESULT => Fate::Done { result: Some(read_payload(fields, &self.0)?) },
            _ => {
                let (field, found) = ("kind", kind.into());
                return Err(What::Value { field, at, found, expected: "0 to 8" });
            }
        };
        Ok(Settlement { token, fate })
    }
}

/// Appends a settlement. What of a reason is too long is left out.
pub(super) fn write_settlement(settlement: &Settlement, out: &mut Outbound) {
    let Settlement { token, fate } = settlement;
    let reason = text::start(fate.reason(), u16::MAX.into());
    let [len_low, len_high] = u16::try_from(reason.len()).unwrap_or(u16::MAX).to_le_bytes();
    // In one piece: batches have many, and each piece costs as much as its bytes.
    let mut fields = [0; FIELDS_LEN];
    let (head, rest) = fields.split_at_mut(4);
    let (token_place, time) = rest.split_at_mut(TOKEN_LEN);
    head.copy_from_slice(&[fate.kind(), 0, len_low, len_high]);
    token_place.copy_from_slice(&token_bytes(token));
    time.copy_from_slice(&fate.time().to_le_bytes());
    let own = out.own();
    own.put_slice(&fields);
    if !reason.is_empty() {
        own.put_slice(reason.as_bytes());
    }
    if let Some(result) = fate.result() {
        write_payload([], result, out);
    }
}

pub(super) fn read_token(fields: &mut Reader) -> Result<LeaseToken, What> {
    let bytes = fields.array::<TOKEN_LEN>("token")?;
    let [t0, t1, t2, t3, t4, t5, t6, t7, rest @ ..] = bytes;
    let [e0, e1, e2, e3, e4, e5, e6, e7, rest @ ..] = rest;
    let [s0, s1, s2, s3, s4, s5, s6, s7, attempt @ ..] = rest;
    Ok(LeaseToken {
        task: u64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
        lease: u64::from_le_bytes([e0, e1, e2, e3, e4, e5, e6, e7]),
        seal: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
        attempt: u32::from_le_bytes(attempt),
    })
}

pub(super) fn token_bytes(token: &LeaseToken) -> [u8; TOKEN_LEN] {
    let LeaseToken { task, attempt, lease, seal } = *token;
    let mut bytes = [0; TOKEN_LEN];
    let (numbers, last) = bytes.split_at_mut(TOKEN_LEN - size_of::<u32>());
    for (place, number) in numbers.chunks_exact_mut(8).zip([task, lease, seal]) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    last.copy_from_slice(&attempt.to_le_bytes());
    bytes
}
