//! Reads the fields of a body, and says where it stopped making sense.

use std::time::Duration;

use bytes::Bytes;

use super::{NO_TIME, Wait, What};
use crate::wire::arguments::TIME_MAX;

/// A body, and how far it has been read.
#[derive(Debug, Clone)]
pub struct Reader {
    body: Bytes,
    at: usize,
}

impl Reader {
    pub(super) fn new(body: Bytes) -> Self {
        Self { body, at: 0 }
    }

    /// Where the next field begins.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// How many bytes were not read.
    pub(super) fn left(&self) -> usize {
        self.body.len() - self.at
    }

    pub(super) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], What> {
        match self.body.get(self.at..).and_then(<[u8]>::first_chunk::<N>) {
            Some(bytes) => {
                self.at += N;
                Ok(*bytes)
            }
            None => Err(self.truncated(field, N)),
        }
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, What> {
        self.array(field).map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, What> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, What> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, What> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub(super) fn time(&mut self, field: &'static str) -> Result<Option<Duration>, What> {
        Ok(time_of(self.u64(field)?))
    }

    pub(super) fn duration(&mut self, field: &'static str) -> Result<Duration, What> {
        self.u64(field).map(duration_of)
    }

    pub(super) fn wait(&mut self) -> Result<Wait, What> {
        Ok(match self.u64("wait")? {
            0 => Wait::No,
            NO_TIME => Wait::Forever,
            time => Wait::For(duration_of(time)),
        })
    }

    /// Bytes that have no meaning yet.
    pub(super) fn zeros<const N: usize>(&mut self) -> Result<(), What> {
        let at = self.at;
        match self.array::<N>("zeros")?.into_iter().find(|byte| *byte != 0) {
            Some(byte) => Err(What::Value {
                field: "a byte without a meaning",
                at,
                found: byte.into(),
                expected: "0",
            }),
            None => Ok(()),
        }
    }

    pub(super) fn slice(&mut self, field: &'static str, len: usize) -> Result<&[u8], What> {
        let from = self.at;
        let end = from.checked_add(len).filter(|end| *end <= self.body.len());
        let end = end.ok_or_else(|| self.truncated(field, len))?;
        self.at = end;
        Ok(self.body.get(from..end).unwrap_or_default())
    }

    /// What was read since `from`; it shares the memory of the body.
    pub(super) fn since(&self, from: usize) -> Bytes {
        self.body.slice(from.min(self.at)..self.at)
    }

    /// What was not read; it shares the memory of the body.
    pub(super) fn rest(&self) -> Bytes {
        self.body.slice(self.at..)
    }

    /// The next `len` bytes as a body of their own, whose fields stand where they stand.
    pub(super) fn inside(&mut self, field: &'static str, len: usize) -> Result<Self, What> {
        let at = self.at;
        self.slice(field, len)?;
        Ok(Self { body: self.body.slice(..self.at), at })
    }

    /// Bytes that share the memory of the body.
    pub(super) fn bytes(&mut self, field: &'static str, len: usize) -> Result<Bytes, What> {
        let from = self.at;
        self.slice(field, len)?;
        Ok(self.since(from))
    }

    pub(super) fn text(&mut self, field: &'static str, len: usize) -> Result<String, What> {
        let at = self.at;
        let text = std::str::from_utf8(self.slice(field, len)?);
        text.map(str::to_owned).map_err(|_| What::NotUtf8 { field, at })
    }

    /// All that is left, as a text.
    pub(super) fn last_text(&mut self, field: &'static str) -> Result<String, What> {
        self.text(field, self.left())
    }

    /// The body must end here.
    pub(super) fn finish(&self) -> Result<(), What> {
        match self.left() {
            0 => Ok(()),
            left => Err(What::Rest { at: self.at, left }),
        }
    }

    #[cold]
    fn truncated(&self, field: &'static str, len: usize) -> What {
        What::Truncated { field, len, at: self.at, left: self.left() }
    }
}

/// The time that a field says, if it says one.
pub(super) fn time_of(micros: u64) -> Option<Duration> {
    (micros != NO_TIME).then(|| duration_of(micros))
}

/// What is longer than a hundred years is as good as that.
fn duration_of(micros: u64) -> Duration {
    Duration::from_micros(micros).min(TIME_MAX)
}

/// The number of a length that fits into the address space.
pub(super) fn length(len: impl Into<u64>) -> usize {
    usize::try_from(len.into()).unwrap_or(usize::MAX)
}

/// Only some frames have items.
pub(super) fn no_count(count: u32) -> Result<(), What> {
    let expected = "0, as this op has no items";
    match count {
        0 => Ok(()),
        found => Err(What::Value { field: "count", at: 0, found: found.into(), expected }),
    }
}
