//! A user's object as opaque bytes, and how it is written into replies.

use bytes::{BufMut, Bytes, BytesMut};

use super::super::frame::{Outbound, SHARED_LEN_MIN};

/// A user's object, pickled and never built: the bytes of one argument of a request, cut out so
/// that they stand alone in any reply.
///
/// A standalone pickle of it is `PROTO protocol` + `bytes` + `STOP`. `bytes` is a *prelude* that
/// fills the memo and leaves the stack as it was, then the object's own opcodes; a reply puts its
/// kind between the two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// Pickle protocol that a reader must know, 0 to 5.
    pub protocol: u8,
    /// Length of the prelude at the start of `bytes`, in bytes; mostly 0 or 4.
    pub prelude_len: u32,
    /// Prelude and object.
    pub bytes: Bytes,
}

const STOP: u8 = b'.';
const PROTO: u8 = 0x80;
/// PROTO and its number.
const PROTO_LEN: usize = 2;
const TUPLE2: u8 = 0x86;

/// The kind of a reply that returns a value: SHORT_BINSTRING, which every protocol has, and not
/// memoized, which would move the object's memo.
const RETURN: &[u8] = b"U\x07#RETURN";

impl Payload {
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
        out.put_slice(&[PROTO, self.protocol.max(2)]);
    }
}
