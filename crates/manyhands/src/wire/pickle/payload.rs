//! A user's object as opaque bytes, and how it is written into replies.

use bytes::{BufMut, Bytes, BytesMut};

use super::super::frame::{Outbound, SHARED_LEN_MIN};
use super::DataError;
use super::opcode::Opcode;

/// What a payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// A pickle. Its reader must know this pickle protocol, 0 to 5.
    Pickle(u8),
    /// A JSON text. Python gets it as a `str`.
    Json,
    /// Bytes of which only their users know what they are. Python gets them as `bytes`.
    Bytes,
}

impl Codec {
    /// The codec as one byte, which never changes: it is what a journal has.
    #[must_use]
    pub const fn tag(self) -> u8 {
        match self {
            Self::Pickle(protocol) => protocol,
            Self::Json => JSON_TAG,
            Self::Bytes => BYTES_TAG,
        }
    }

    /// The codec of this [tag](Self::tag), if there is one.
    #[must_use]
    pub const fn of_tag(tag: u8) -> Option<Self> {
        match tag {
            ..=PROTOCOL_MAX => Some(Self::Pickle(tag)),
            JSON_TAG => Some(Self::Json),
            BYTES_TAG => Some(Self::Bytes),
            _ => None,
        }
    }

    /// `pickle`, `json` or `bytes`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pickle(_) => "pickle",
            Self::Json => "json",
            Self::Bytes => "bytes",
        }
    }

    /// The pickle protocol that a reader must know, 0 to 5: every Python is given JSON and bytes.
    #[must_use]
    pub const fn protocol(self) -> u8 {
        match self {
            Self::Pickle(protocol) => protocol,
            Self::Json | Self::Bytes => 0,
        }
    }
}

/// A user's object, never built: opcodes of a pickle that stand alone in any reply.
///
/// Most are one argument of a request, cut out. JSON and bytes are the operand of one opcode, so
/// that nothing has to be composed for Python; [`content`](Self::content) leaves the opcode out.
///
/// A standalone pickle of it is `PROTO protocol` + `bytes` + `STOP`. `bytes` is a *prelude* that
/// fills the memo and leaves the stack as it was, then the object's own opcodes; a reply puts its
/// kind between the two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// What it is.
    pub codec: Codec,
    /// Length of the prelude at the start of `bytes`, in bytes; mostly 0 or 4.
    pub prelude_len: u32,
    /// Prelude and object.
    pub bytes: Bytes,
}

const JSON_TAG: u8 = 64;
const BYTES_TAG: u8 = 65;
/// Newest pickle protocol there is.
pub(super) const PROTOCOL_MAX: u8 = 5;
/// The opcode of JSON and bytes, and the length of what follows.
const HEAD_LEN: usize = 5;
/// Longest JSON text, and most bytes, in bytes: Python 2 reads the length as a signed number.
const CONTENT_LEN_MAX: usize = i32::MAX as usize;
const STOP: u8 = b'.';
const PROTO: u8 = 0x80;
/// PROTO and its number.
pub(super) const PROTO_LEN: usize = 2;
const TUPLE2: u8 = 0x86;

/// The kind of a reply that returns a value: SHORT_BINSTRING, which every protocol has, and not
/// memoized, which would move the object's memo.
const RETURN: &[u8] = b"U\x07#RETURN";

impl Payload {
    /// The opcodes of one object, which need no prelude.
    #[must_use]
    pub fn pickle(protocol: u8, opcodes: Bytes) -> Self {
        Self { codec: Codec::Pickle(protocol), prelude_len: 0, bytes: opcodes }
    }

    /// A JSON text, which is not checked to be one. Python is given a `str`.
    ///
    /// # Errors
    ///
    /// [`DataError`] if it is over 2 GiB long.
    pub fn json(text: &str) -> Result<Self, DataError> {
        Self::of_content(Codec::Json, Opcode::BinUnicode, text.as_bytes(), &mut BytesMut::new())
    }

    /// Bytes, whatever they are. Python is given `bytes`.
    ///
    /// # Errors
    ///
    /// [`DataError`] if they are over 2 GiB long.
    pub fn bytes(bytes: &[u8]) -> Result<Self, DataError> {
        Self::bytes_in(&mut BytesMut::new(), bytes)
    }

    /// The same in memory that payloads share, at the end of `arena`, which is empty again afterwards.
    ///
    /// # Errors
    ///
    /// [`DataError`] if they are over 2 GiB long.
    pub fn bytes_in(arena: &mut BytesMut, bytes: &[u8]) -> Result<Self, DataError> {
        Self::of_content(Codec::Bytes, Opcode::BinBytes, bytes, arena)
    }

    fn of_content(
        codec: Codec,
        opcode: Opcode,
        content: &[u8],
        arena: &mut BytesMut,
    ) -> Result<Self, DataError> {
        let len = u32::try_from(content.len()).ok().filter(|_| content.len() <= CONTENT_LEN_MAX);
        let len = len.ok_or_else(|| {
            let len = content.len();
            DataError::new(format!("{len} bytes are more than {CONTENT_LEN_MAX} bytes"))
        })?;
        arena.reserve(HEAD_LEN + content.len());
        let [a, b, c, d] = len.to_le_bytes();
        arena.put_slice(&[opcode as u8, a, b, c, d]);
        arena.put_slice(content);
        Ok(Self { codec, prelude_len: 0, bytes: arena.split().freeze() })
    }

    /// The JSON text, or the bytes; a pickle as a [pickle of its own](Self::standalone).
    #[must_use]
    pub fn content(&self) -> Bytes {
        match self.codec {
            Codec::Pickle(_) => self.standalone(),
            Codec::Json | Codec::Bytes => self.bytes.slice(HEAD_LEN.min(self.bytes.len())..),
        }
    }

    /// The JSON text, or the bytes, without a copy; `None` of a pickle.
    #[must_use]
    pub fn plain_content(&self) -> Option<&[u8]> {
        match self.codec {
            Codec::Pickle(_) => None,
            Codec::Json | Codec::Bytes => Some(self.bytes.get(HEAD_LEN..).unwrap_or_default()),
        }
    }

    /// See [`Codec::protocol`].
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.codec.protocol()
    }

    /// The pickle protocol of its opcodes.
    #[must_use]
    pub fn written_in(&self) -> u8 {
        match self.codec {
            Codec::Pickle(protocol) => protocol,
            Codec::Json => 1,
            Codec::Bytes => 3,
        }
    }

    /// The same in opcodes that Python 2 reads: its `bytes` are its `str`.
    #[must_use]
    pub fn for_python2(&self) -> Self {
        if self.codec != Codec::Bytes {
            return self.clone();
        }
        let opcode = [Opcode::BinString as u8];
        let operand = self.bytes.get(opcode.len()..).unwrap_or_default();
        Self::pickle(1, [&opcode, operand].concat().into())
    }

    /// The opcodes that fill the memo and leave the stack as it was; mostly empty.
    #[must_use]
    pub fn prelude(&self) -> &[u8] {
        let len = usize::try_from(self.prelude_len).unwrap_or(usize::MAX);
        self.bytes.get(..len).unwrap_or_default()
    }

    /// The object's own opcodes.
    #[must_use]
    pub fn object(&self) -> &[u8] {
        self.bytes.get(self.prelude().len()..).unwrap_or_default()
    }

    /// The object as a pickle of its own.
    #[must_use]
    pub fn standalone(&self) -> Bytes {
        let mut pickle = BytesMut::with_capacity(self.standalone_len());
        self.write_standalone(&mut pickle);
        pickle.freeze()
    }

    /// Appends the object as a pickle of its own.
    pub fn write_standalone(&self, out: &mut BytesMut) {
        self.write_protocol(out);
        out.put_slice(&self.bytes);
        out.put_u8(STOP);
    }

    /// The same into room of [`standalone_len`](Self::standalone_len) bytes.
    pub fn copy_standalone(&self, mut room: &mut [u8]) {
        for part in [&[PROTO, self.written_in().max(2)][..], &self.bytes, &[STOP]] {
            let len = part.len().min(room.len());
            room.put_slice(part.get(..len).unwrap_or_default());
        }
    }

    /// Appends the pickle of `('#RETURN', object)`, a manager's reply.
    pub fn write_reply(&self, out: &mut BytesMut) {
        out.reserve(self.bytes.len() + RETURN.len() + 4);
        self.write_protocol(out);
        out.put_slice(self.prelude());
        out.put_slice(RETURN);
        out.put_slice(self.object());
        out.put_slice(&[TUPLE2, STOP]);
    }

    /// The same, sharing a large object.
    pub fn push_reply(&self, out: &mut Outbound) {
        if self.bytes.len() <= SHARED_LEN_MIN {
            return self.write_reply(out.own());
        }
        self.write_protocol(out.own());
        let prelude_len = self.prelude().len();
        out.put(&self.bytes.slice(..prelude_len));
        out.own().put_slice(RETURN);
        out.put(&self.bytes.slice(prelude_len..));
        out.own().put_slice(&[TUPLE2, STOP]);
    }

    /// Appends the object as a pickle of its own, sharing a large one.
    pub fn push_standalone(&self, out: &mut Outbound) {
        self.write_protocol(out.own());
        out.put(&self.bytes);
        out.own().put_u8(STOP);
    }

    /// Length of the object as a pickle of its own, in bytes.
    #[must_use]
    pub fn standalone_len(&self) -> usize {
        self.bytes.len() + PROTO_LEN + 1
    }

    /// Protocols 0 and 1 have no PROTO; every reader of theirs that there is knows 2.
    fn write_protocol(&self, out: &mut BytesMut) {
        out.put_slice(&[PROTO, self.written_in().max(2)]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::reply::{Reader, Reply};
    use super::super::{Limits, Value};
    use super::*;

    #[test]
    fn every_tag_means_one_codec() {
        let known: Vec<_> = (0..=u8::MAX).filter_map(Codec::of_tag).collect();
        assert_eq!(known.len(), 8);
        assert!(known.iter().all(|codec| Codec::of_tag(codec.tag()) == Some(*codec)));
        assert_eq!((Codec::Json.tag(), Codec::Bytes.tag()), (64, 65), "journals have them");
        assert_eq!(size_of::<Payload>(), size_of::<Bytes>() + 8);
    }

    #[test]
    fn json_is_a_str_and_bytes_are_bytes_to_who_reads_pickles() {
        let (json, bytes) = (Payload::json("[\"ä\"]").unwrap(), Payload::bytes(b"\0\xff").unwrap());
        let value = |payload: &Payload| payload.value(&Limits::default()).unwrap();
        assert_eq!(value(&json), Value::Str("[\"ä\"]".into()));
        assert_eq!(value(&bytes), Value::Bytes(b"\0\xff".into()));
        assert_eq!(json.standalone(), &b"\x80\x02X\x06\0\0\0[\"\xc3\xa4\"]."[..]);
        assert_eq!(bytes.standalone(), &b"\x80\x03B\x02\0\0\0\0\xff."[..]);
        assert_eq!((json.content(), bytes.content()), ("[\"ä\"]".into(), b"\0\xff"[..].into()));
        let pickle = Payload::pickle(1, b"K\x07"[..].into());
        assert_eq!(pickle.content(), &b"\x80\x02K\x07."[..]);
        let empty = Payload::bytes(b"").unwrap();
        assert_eq!((empty.content().len(), empty.bytes.len()), (0, HEAD_LEN));
    }

    #[test]
    fn every_reader_is_given_opcodes_that_it_knows() {
        let reply = |payload: Payload, reader| {
            let mut out = Outbound::default();
            Reply::Item(payload).push_frame(reader, &mut out);
            out.own().split().freeze().slice(4..)
        };
        let bytes = || Payload::bytes(b"\0\xff").unwrap();
        let python2 = b"\x80\x02U\x07#RETURNT\x02\0\0\0\0\xff\x86.";
        assert_eq!(reply(bytes(), Reader::Python2), &python2[..]);
        let python3 = b"\x80\x03U\x07#RETURNB\x02\0\0\0\0\xff\x86.";
        assert_eq!(reply(bytes(), Reader::Python37), &python3[..]);
        let json = b"\x80\x02U\x07#RETURNX\x02\0\0\0{}\x86.";
        for reader in [Reader::Python2, Reader::Python37, Reader::Python38] {
            assert_eq!(reply(Payload::json("{}").unwrap(), reader), &json[..]);
        }
        assert_eq!((bytes().protocol(), Payload::json("").unwrap().protocol()), (0, 0));
    }
}
