//! Reads the fields of a body, and says where it stopped making sense.

use std::time::Duration;

use bytes::Bytes;

use super::{NO_TIME, Wait, What};

/// A body, and how far it has been read.
#[derive(Debug, Clone)]
pub(super) struct Reader {
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

    pub(super) fn wait(&mut self) -> Result<Wait, What> {
        Ok(match self.u64("wait")? {
            0 => Wait::No,
            NO_TIME => Wait::Forever,
            time => Wait::For(Duration::from_micros(time)),
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

    /// Bytes that share the memory of the body.
    pub(super) fn bytes(&mut self, field: &'static str, len: usize) -> Result<Bytes, What> {
        let from = self.at;
        self.slice(field, len)?;
        Ok(self.body.slice(from..self.at))
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
    (micros != NO_TIME).then(|| Duration::from_micros(micros))
}

/// The number of a length that fits into the address space.
pub(super) fn length(len: impl Into<u64>) -> usize {
    usize::try_from(len.into()).unwrap_or(usize::MAX)
}
