//! The fields of records as bytes: numbers, texts, options and bodies.

use manyhands::wire::pickle::{Codec, Payload};

/// What a put may ask for, and what became of it since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TaskOptions<'a> {
    /// Smaller goes first; compared as bytes.
    pub priority: Option<&'a [u8]>,
    /// Not handed out before.
    pub not_before: Option<u64>,
    /// Dropped if nobody took it by then.
    pub expires: Option<u64>,
    /// The key of its put, whoever may use it by now.
    pub key: Option<&'a [u8]>,
    /// Attempts that failed so far.
    pub attempt: u32,
    /// Whatever else the engine keeps with a task: who ran it, how long, its history.
    pub note: &'a [u8],
}

/// A payload, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body<'a> {
    /// What it is.
    pub codec: Codec,
    /// Length of the prelude, in bytes.
    pub prelude_len: u32,
    /// Prelude and object.
    pub bytes: &'a [u8],
}

/// Why bytes are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordError {
    /// A kind, option or codec that this version does not know.
    Unknown(u8),
    /// Not what this version writes.
    Malformed,
}

impl<'a> From<&'a Payload> for Body<'a> {
    fn from(payload: &'a Payload) -> Self {
        let Payload { codec, prelude_len, bytes } = payload;
        Self { codec: *codec, prelude_len: *prelude_len, bytes }
    }
}

/// Which of the options follow.
mod option {
    pub(super) const PRIORITY: u8 = 1;
    pub(super) const NOT_BEFORE: u8 = 2;
    pub(super) const EXPIRES: u8 = 4;
    pub(super) const KEY: u8 = 8;
    pub(super) const ATTEMPT: u8 = 16;
    pub(super) const NOTE: u8 = 32;
    pub(super) const ALL: u8 = 63;
}

pub(super) struct Encoder<'o>(pub(super) &'o mut Vec<u8>);

impl Encoder<'_> {
    pub(super) fn kind(&mut self, kind: u8) -> &mut Self {
        self.0.push(kind);
        self
    }

    /// Seven bits to a byte, lowest first; the high bit says that more follow.
    pub(super) fn number(&mut self, mut number: u64) -> &mut Self {
        while number >= 0x80 {
            self.0.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.0.push(number.to_le_bytes()[0]);
        self
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len() as u64).0.extend_from_slice(bytes);
        self
    }

    pub(super) fn options(&mut self, options: &TaskOptions<'_>) -> &mut Self {
        let TaskOptions { priority, not_before, expires, key, attempt, note } = *options;
        let flag = |present, flag| if present { flag } else { 0 };
        self.0.push(
            flag(priority.is_some(), option::PRIORITY)
                | flag(not_before.is_some(), option::NOT_BEFORE)
                | flag(expires.is_some(), option::EXPIRES)
                | flag(key.is_some(), option::KEY)
                | flag(attempt != 0, option::ATTEMPT)
                | flag(!note.is_empty(), option::NOTE),
        );
        priority.map(|bytes| self.bytes(bytes).0.len());
        not_before.map(|instant| self.number(instant).0.len());
        expires.map(|instant| self.number(instant).0.len());
        key.map(|bytes| self.bytes(bytes).0.len());
        if attempt != 0 {
            self.number(attempt.into());
        }
        if !note.is_empty() {
            self.bytes(note);
        }
        self
    }

    pub(super) fn codec(&mut self, codec: Codec) -> &mut Self {
        self.0.push(codec.tag());
        self
    }

    pub(super) fn body(&mut self, body: &Body<'_>, seed: u32) -> (usize, usize) {
        self.codec(body.codec).number(body.prelude_len.into()).number(body.bytes.len() as u64);
        let at = self.0.len();
        self.0.extend_from_slice(&crc32c::crc32c_append(seed, body.bytes).to_le_bytes());
        self.0.extend_from_slice(body.bytes);
        (at, body.bytes.len())
    }
}

pub(super) struct Decoder<'a>(pub(super) &'a [u8]);

impl<'a> Decoder<'a> {
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(RecordError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    #[inline]
    pub(super) fn byte(&mut self) -> Result<u8, RecordError> {
        let (&byte, rest) = self.0.split_first().ok_or(RecordError::Malformed)?;
        self.0 = rest;
        Ok(byte)
    }

    /// Most numbers have one byte.
    #[inline]
    pub(super) fn number(&mut self) -> Result<u64, RecordError> {
        match self.0.split_first() {
            Some((&byte, rest)) if byte < 0x80 => {
                self.0 = rest;
                Ok(byte.into())
            }
            _ => self.long_number(),
        }
    }

    pub(super) fn long_number(&mut self) -> Result<u64, RecordError> {
        let mut number = 0;
        let mut shift = 0;
        while shift < u64::BITS {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
            shift += 7;
        }
        Err(RecordError::Malformed)
    }

    #[inline]
    pub(super) fn small<T: TryFrom<u64>>(&mut self) -> Result<T, RecordError> {
        T::try_from(self.number()?).map_err(|_| RecordError::Malformed)
    }

    pub(super) fn numbers(&mut self) -> Result<Vec<u64>, RecordError> {
        let len: usize = self.small()?;
        // Every number takes a byte at least, so a lie about the length allocates nothing.
        if len > self.0.len() {
            return Err(RecordError::Malformed);
        }
        (0..len).map(|_| self.number()).collect()
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], RecordError> {
        let len = self.small()?;
        self.take(len)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, RecordError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| RecordError::Malformed)
    }

    pub(super) fn options(&mut self) -> Result<TaskOptions<'a>, RecordError> {
        let flags = self.byte()?;
        if flags == 0 {
            return Ok(TaskOptions::default());
        }
        if flags & !option::ALL != 0 {
            return Err(RecordError::Unknown(flags));
        }
        let has = |flag| flags & flag != 0;
        Ok(TaskOptions {
            priority: has(option::PRIORITY).then(|| self.bytes()).transpose()?,
            not_before: has(option::NOT_BEFORE).then(|| self.number()).transpose()?,
            expires: has(option::EXPIRES).then(|| self.number()).transpose()?,
            key: has(option::KEY).then(|| self.bytes()).transpose()?,
            attempt: has(option::ATTEMPT).then(|| self.small()).transpose()?.unwrap_or_default(),
            note: has(option::NOTE).then(|| self.bytes()).transpose()?.unwrap_or_default(),
        })
    }

    pub(super) fn codec(&mut self) -> Result<Codec, RecordError> {
        let tag = self.byte()?;
        Codec::of_tag(tag).ok_or(RecordError::Unknown(tag))
    }

    /// The checksum is that of the frame's bytes too; it is looked at when the body is read alone.
    pub(super) fn body(&mut self, at: &mut Option<usize>) -> Result<Body<'a>, RecordError> {
        let codec = self.codec()?;
        let prelude_len = self.small()?;
        let len = self.small()?;
        *at = Some(self.0.len());
        self.take(4)?;
        Ok(Body { codec, prelude_len, bytes: self.take(len)? })
    }
}
