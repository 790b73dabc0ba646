//! Items that are put, and what their puts say beside them.

use std::time::Duration;

use bytes::BufMut;

use super::What;
use super::batch::{Batch, Kind};
use super::payload::{PAYLOAD_LEN_MIN, Trust, read_payload, write_payload};
use super::reader::{Reader, time_of};
use super::writer::micros;
use crate::wire::arguments::KEY_LEN_MAX;
use crate::wire::frame::Outbound;
use crate::wire::pickle::Payload;

const DELAY: u8 = 1;
const PRIORITY: u8 = 2;
const EXPIRES: u8 = 3;
const KEY: u8 = 4;

/// An item that is put.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// What it is.
    pub payload: Payload,
    /// What its put says beside it; mostly nothing.
    pub terms: Option<Box<PutTerms>>,
}

/// What a put says beside its item.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PutTerms {
    /// A further put with this key within the window of the queue is the same task.
    pub key: Option<Vec<u8>>,
    /// Not to be handed out sooner than this.
    pub delay: Option<Duration>,
    /// Place in a priority queue, instead of the item's own.
    pub priority: Option<i64>,
    /// Dropped if it was not taken within this time.
    pub expires: Option<Duration>,
}

/// The items of a put.
pub type Items = Batch<ItemKind>;

/// The entries of [`Items`].
#[derive(Debug, Clone)]
pub struct ItemKind(pub(super) Trust);

impl Kind for ItemKind {
    type Entry = Item;
    const LEN_MIN: usize = 3 + PAYLOAD_LEN_MIN;

    fn read(&self, fields: &mut Reader) -> Result<Item, What> {
        let terms_len = fields.u16("terms_len")?;
        fields.zeros::<1>()?;
        let terms = if terms_len == 0 { None } else { Some(read_terms(fields, terms_len)?) };
        let payload = read_payload(fields, &self.0)?;
        Ok(Item { payload, terms })
    }
}

fn read_terms(fields: &mut Reader, len: u16) -> Result<Box<PutTerms>, What> {
    let mut terms = Box::<PutTerms>::default();
    let mut fields = fields.inside("terms", len.into())?;
    let mut seen = [false; KEY as usize + 1];
    while fields.left() > 0 {
        let at = fields.at();
        let kind = fields.u8("kind of term")?;
        match seen.get_mut(usize::from(kind)) {
            Some(seen) if !*seen && kind != 0 => *seen = true,
            _ => {
                let (field, found) = ("kind of term", kind.into());
                return Err(What::Value { field, at, found, expected: "1 to 4, each once" });
            }
        }
        match kind {
            DELAY => terms.delay = time_of(fields.u64("delay")?),
            PRIORITY => terms.priority = Some(fields.array("priority").map(i64::from_le_bytes)?),
            EXPIRES => terms.expires = time_of(fields.u64("expires")?),
            _ => terms.key = Some(read_key(&mut fields)?),
        }
    }
    Ok(terms)
}

fn read_key(fields: &mut Reader) -> Result<Vec<u8>, What> {
    let at = fields.at();
    let len = fields.u16("key_len")?;
    if usize::from(len) > KEY_LEN_MAX {
        let (field, expected) = ("key_len", "at most 256 bytes");
        return Err(What::Value { field, at, found: len.into(), expected });
    }
    Ok(fields.slice("key", len.into())?.to_vec())
}

/// Appends an item.
pub(super) fn write_item(payload: &Payload, terms: Option<&PutTerms>, out: &mut Outbound) {
    let Some(terms) = terms else { return write_payload([0; 3], payload, out) };
    let mark = out.mark();
    let own = out.own();
    let before = own.len();
    own.put_slice(&[0; 3]);
    write_terms(terms, own);
    // Three numbers and a key, which is short.
    let terms_len = u16::try_from(own.len() - before - 3).unwrap_or(u16::MAX);
    out.overwrite(&mark, &terms_len.to_le_bytes());
    write_payload([], payload, out);
}

/// What of a key is too long is left out; the server would refuse it.
fn write_terms(terms: &PutTerms, own: &mut bytes::BytesMut) {
    let PutTerms { key, delay, priority, expires } = terms;
    for (kind, time) in [(DELAY, delay), (EXPIRES, expires)] {
        if let Some(time) = time {
            own.put_u8(kind);
            own.put_u64_le(micros(Some(*time)));
        }
    }
    if let Some(priority) = priority {
        own.put_u8(PRIORITY);
        own.put_i64_le(*priority);
    }
    if let Some(key) = key {
        own.put_u8(KEY);
        let len = u16::try_from(key.len()).unwrap_or(u16::MAX);
        own.put_u16_le(len);
        own.put_slice(key.get(..len.into()).unwrap_or(key));
    }
}
