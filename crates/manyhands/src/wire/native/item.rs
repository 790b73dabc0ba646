//! Items that are put, and payloads as they are in items, tasks and settlements.

use bytes::{BufMut, Bytes};

use super::reader::{Reader, length, time_of};
use super::writer::micros;
use super::{DecodeError, What};
use crate::wire::frame::Outbound;
use crate::wire::method::PutTerms;
use crate::wire::pickle::{Codec, Limits, Payload};

const DELAY: u8 = 1;
const PRIORITY: u8 = 2;
const EXPIRES: u8 = 3;
const KEY: u8 = 4;
/// Longest key, in bytes.
const KEY_LEN_MAX: u16 = 256;

/// An item that is put.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// What it is.
    pub payload: Payload,
    /// What its put says beside it; mostly nothing. Its `id` is not set: numbers are asked for all
    /// items of a put.
    pub terms: Option<Box<PutTerms>>,
}

/// The items of a body, read one by one. After an error there are no more.
#[derive(Debug, Clone)]
pub struct Items {
    fields: Reader,
    count: u32,
    next: u32,
    limits: Limits,
}

impl Items {
    pub(super) fn new(fields: Reader, count: u32, limits: Limits) -> Self {
        Self { fields, count, next: 0, limits }
    }

    fn read(&mut self) -> Result<Item, What> {
        let fields = &mut self.fields;
        let len = length(fields.u32("len")?);
        let codec_at = fields.at();
        let codec = fields.u8("codec")?;
        fields.zeros::<1>()?;
        let terms_len = fields.u16("terms_len")?;
        let terms = if terms_len == 0 { None } else { Some(read_terms(fields, terms_len)?) };
        let payload = read_payload(fields, (codec, codec_at), len, &self.limits)?;
        Ok(Item { payload, terms })
    }
}

impl Iterator for Items {
    type Item = Result<Item, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.count {
            let rest = self.fields.finish().err()?;
            self.fields = Reader::new(Bytes::new());
            return Some(Err(rest.into()));
        }
        let item = self.next;
        self.next += 1;
        let read = self.read();
        if read.is_err() {
            *self = Self::new(Reader::new(Bytes::new()), 0, self.limits);
        }
        Some(read.map_err(|what| DecodeError::from(what).in_item(item)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // An item takes eight bytes at least, whatever the header says.
        let most = self.fields.left() / 8 + 1;
        (0, Some(most.min(length(self.count - self.next.min(self.count)) + 1)))
    }
}

fn read_terms(fields: &mut Reader, len: u16) -> Result<Box<PutTerms>, What> {
    todo!("{fields:?} {len} {DELAY} {PRIORITY} {EXPIRES} {KEY} {KEY_LEN_MAX} {:?}", time_of(0))
}

/// A payload of `len` bytes of this codec, which shares the memory of the body.
pub(super) fn read_payload(
    fields: &mut Reader,
    (codec, codec_at): (u8, usize),
    len: usize,
    limits: &Limits,
) -> Result<Payload, What> {
    todo!("{fields:?} {codec} {codec_at} {len} {limits:?} {}", micros(None))
}

/// The number of a codec in this protocol.
pub(super) const fn codec_number(codec: Codec) -> u8 {
    match codec {
        Codec::Pickle(_) => 0,
        Codec::Json => 1,
        Codec::Bytes => 2,
    }
}

/// Appends an item.
pub(super) fn write_item(payload: &Payload, terms: Option<&PutTerms>, out: &mut Outbound) {
    todo!("{payload:?} {terms:?} {}", out.own().remaining_mut())
}
