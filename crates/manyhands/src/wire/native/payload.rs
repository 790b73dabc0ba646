//! Payloads, which have the same form in items, tasks and settlements.
//!
//! What stands before JSON and bytes is the pickle opcode that makes Python's `str` or `bytes` of
//! them, so that a [`Payload`] is a slice of the frame that it came in.

use bytes::BufMut;

use super::What;
use super::reader::{Reader, length};
use crate::wire::frame::Outbound;
use crate::wire::pickle::{Codec, Limits, Opcode, Payload};

const PICKLE: u8 = b'P';
const JSON: u8 = Opcode::BinUnicode as u8;
const BYTES: u8 = Opcode::BinBytes as u8;
/// Codec and length.
const HEAD_LEN: usize = 5;
/// Longest JSON text, and most bytes, in bytes: Python 2 reads the length as a signed number.
const CONTENT_LEN_MAX: usize = i32::MAX as usize;

/// The least that a payload takes, in bytes.
pub(super) const PAYLOAD_LEN_MIN: usize = HEAD_LEN;

/// How much the writer of a pickle is trusted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Trust {
    /// Its pickles are scanned within these limits.
    Nobody(Limits),
    /// It scanned its pickles itself.
    Server,
}

/// A payload, which shares the memory of the body.
pub(super) fn read_payload(fields: &mut Reader, trust: &Trust) -> Result<Payload, What> {
    let head_at = fields.at();
    let [codec, len @ ..] = fields.array::<HEAD_LEN>("codec and length")?;
    let len = length(u32::from_le_bytes(len));
    let at = fields.at();
    match codec {
        PICKLE => {
            let pickle = fields.bytes("content", len)?;
            let taken = match trust {
                Trust::Nobody(limits) => Payload::from_standalone(pickle, limits),
                Trust::Server => Payload::from_server(pickle),
            };
            taken.map_err(|error| What::Pickle { at, error })
        }
        JSON | BYTES if len > CONTENT_LEN_MAX => Err(What::Value {
            field: "length",
            at: head_at + 1,
            found: len as u64,
            expected: "less than 2 GiB",
        }),
        JSON => {
            let content = fields.slice("content", len)?;
            std::str::from_utf8(content).map_err(|_| What::NotUtf8 { field: "JSON", at })?;
            Ok(Payload { codec: Codec::Json, prelude_len: 0, bytes: fields.since(head_at) })
        }
        BYTES => {
            fields.slice("content", len)?;
            Ok(Payload { codec: Codec::Bytes, prelude_len: 0, bytes: fields.since(head_at) })
        }
        _ => Err(What::Value {
            field: "codec",
            at: head_at,
            found: codec.into(),
            expected: "80 (P), 88 (X) or 66 (B)",
        }),
    }
}

/// Appends a payload, which is shared if it is large, behind the fields of `before`.
pub(super) fn write_payload<const N: usize>(
    before: [u8; N],
    payload: &Payload,
    out: &mut Outbound,
) {
    out.own().put_slice(&before);
    match payload.codec {
        Codec::Pickle(_) => {
            // What is too long for its length makes a frame that is taken back.
            let len = u32::try_from(payload.standalone_len()).unwrap_or(u32::MAX);
            let [a, b, c, d] = len.to_le_bytes();
            out.own().put_slice(&[PICKLE, a, b, c, d]);
            payload.push_standalone(out);
        }
        Codec::Json | Codec::Bytes => out.put(&payload.bytes),
    }
}
