//! Writes one frame: first the body, then what the header says of it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::header::{HEADER_LEN, Header, Op, Route};
use super::item::{PutTerms, write_item};
use super::settlement::{Settlement, write_settlement};
use super::task::{write_peeked, write_task};
use super::{NO_TIME, Wait};
use crate::wire::frame::{Mark, Outbound};
use crate::wire::pickle::Payload;
use crate::wire::tasks::{Info, Peeked};
use crate::wire::token::LeaseToken;

/// A frame that is being written. Nothing else may be written to the same [`Outbound`] until it is
/// [finished](Self::finish).
///
/// Small parts of it are copied into the buffer, large payloads are shared.
#[derive(Debug)]
#[must_use = "the header is written by `finish`"]
pub struct Writer<'o> {
    out: &'o mut Outbound,
    /// Where it begins.
    mark: Mark,
    header: Header,
}

impl<'o> Writer<'o> {
    /// Begins a frame.
    pub fn new(out: &'o mut Outbound, op: Op, flags: u8, route: Route) -> Self {
        let mark = out.mark();
        let header = Header { len: 0, op: op as u8, flags, route, count: 0 };
        header.write(out.own());
        Self { out, mark, header }
    }

    /// How many items it has.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.header.count
    }

    /// Length of its body so far, in bytes.
    #[must_use]
    pub fn body_len(&self) -> usize {
        self.out.len_from(&self.mark) - HEADER_LEN
    }

    /// Adds an item to a put.
    pub fn item(&mut self, payload: &Payload, terms: Option<&PutTerms>) {
        self.header.count += 1;
        write_item(payload, terms, self.out);
    }

    /// Adds a settlement.
    pub fn settlement(&mut self, settlement: &Settlement) {
        self.header.count += 1;
        write_settlement(settlement, self.out);
    }

    /// Adds a task to tasks.
    pub fn task(&mut self, payload: &Payload, token: Option<&LeaseToken>, info: Option<&Info>) {
        self.header.count += 1;
        write_task(payload, token, info, self.out);
    }

    /// Adds a task that was looked at.
    pub fn peeked(&mut self, task: &Peeked) {
        self.header.count += 1;
        write_peeked(task, self.out);
    }

    pub(super) fn set_count(&mut self, count: u32) {
        self.header.count = count;
    }

    /// Takes back all that the body has.
    pub(super) fn clear(&mut self) {
        self.out.truncate(&self.mark);
        self.header.write(self.out.own());
    }

    /// For fields.
    pub(super) fn own(&mut self) -> &mut BytesMut {
        self.out.own()
    }

    /// Adds bytes, which are shared if they are many.
    pub(super) fn put(&mut self, bytes: &Bytes) {
        self.out.put(bytes);
    }

    /// Ends a frame that is short.
    pub(super) fn finish_short(self) {
        let finished = self.finish();
        debug_assert!(finished.is_ok(), "it is short");
    }

    /// Ends it.
    ///
    /// # Errors
    ///
    /// [`TooLong`] if the body has more than 4 GiB; the frame is taken back.
    pub fn finish(self) -> Result<(), TooLong> {
        let len = self.body_len();
        let Self { out, mark, mut header, .. } = self;
        let Ok(len) = u32::try_from(len) else {
            out.truncate(&mark);
            return Err(TooLong { len });
        };
        header.len = len;
        out.overwrite(&mark, &header.bytes());
        Ok(())
    }
}

/// A body that no frame can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes are more than the 4 GiB that a frame can hold")]
pub struct TooLong {
    /// Its length, in bytes.
    pub len: usize,
}

/// A time as it is on the wire; `None` is all ones.
pub(super) fn micros(time: Option<Duration>) -> u64 {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(NO_TIME - 1);
    time.map_or(NO_TIME, |time| micros(time).min(NO_TIME - 1))
}

/// How long a request waits, as it is on the wire.
pub(super) fn wait_micros(wait: Wait) -> u64 {
    match wait {
        Wait::No | Wait::Negative => 0,
        Wait::For(time) => micros(Some(time)),
        Wait::Forever => NO_TIME,
    }
}
