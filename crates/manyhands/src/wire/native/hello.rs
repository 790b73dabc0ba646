//! The first message of a native session, and the answer to it. Both are framed as CPython's messages
//! are ([`frame`](crate::wire::frame)).

use std::ops::RangeInclusive;

use bytes::{BufMut, Bytes, BytesMut};

use super::What;
use super::reader::Reader;
use crate::text;

/// What hello and its answer begin with. No pickle begins with a zero byte.
pub const MAGIC: [u8; 8] = *b"\0mnative";
/// The version of the protocol that this crate speaks.
pub const VERSION: u16 = 1;
/// Newest pickle protocol there is.
const PROTOCOL_MAX: u8 = 5;
/// Longest name of a client, in bytes.
const NAME_LEN_MAX: u16 = 200;

/// What a client says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The versions that it speaks.
    pub versions: RangeInclusive<u16>,
    /// The newest pickle protocol that it reads, 0 to 5.
    pub reader: u8,
    /// What it is called where it is told who has a task.
    pub name: String,
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The session begins.
    Welcome(Welcome),
    /// There is none, and the connection ends; the text says why.
    Refused(String),
}

/// How a session begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The version that both speak.
    pub version: u16,
    /// Whether the server keeps queues in a data directory.
    pub is_durable: bool,
    /// Whether a name that is not declared becomes a queue when it is opened.
    pub creates: bool,
    /// What the server allows.
    pub limits: SessionLimits,
    /// Name and version of the server.
    pub server: String,
}

/// What a server allows a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// Longest body of a frame, in bytes.
    pub frame_max: u32,
    /// Most items of a batch.
    pub batch_max: u32,
    /// Most requests in flight.
    pub pending_max: u32,
    /// Most queues that are open at one time; their handles are below it.
    pub queues_max: u32,
    /// Most tasks of one queue that credit is given for.
    pub credit_max: u32,
}

/// Why a message is no hello, or no answer to one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HelloError {
    /// It does not begin with [`MAGIC`].
    #[error("not a message of the native protocol")]
    OtherProtocol,
    /// It begins well, and then it does not make sense.
    #[error(transparent)]
    Malformed(What),
}

impl From<What> for HelloError {
    fn from(what: What) -> Self {
        Self::Malformed(what)
    }
}

/// What follows the magic.
fn fields(message: &Bytes) -> Result<Reader, HelloError> {
    if !message.starts_with(&MAGIC) {
        return Err(HelloError::OtherProtocol);
    }
    let mut fields = Reader::new(message.clone());
    fields.array::<{ MAGIC.len() }>("magic")?;
    Ok(fields)
}

impl Hello {
    /// The hello of this crate's version of the protocol.
    #[must_use]
    pub fn new(reader: u8, name: String) -> Self {
        Self { versions: VERSION..=VERSION, reader, name }
    }

    /// Reads the first message of a connection.
    ///
    /// # Errors
    ///
    /// [`HelloError::OtherProtocol`] if it speaks CPython's protocol.
    pub fn decode(message: &Bytes) -> Result<Self, HelloError> {
        let mut fields = fields(message)?;
        let (oldest, newest) = (fields.u16("oldest")?, fields.u16("newest")?);
        let at = fields.at();
        let reader = fields.u8("reader")?;
        if reader > PROTOCOL_MAX {
            let expected = "a pickle protocol, 0 to 5";
            return Err(What::Value { field: "reader", at, found: reader.into(), expected }.into());
        }
        fields.zeros::<1>()?;
        let at = fields.at();
        let name_len = fields.u16("name_len")?;
        if name_len > NAME_LEN_MAX {
            let expected = "at most 200 bytes";
            return Err(
                What::Value { field: "name_len", at, found: name_len.into(), expected }.into()
            );
        }
        let name = fields.text("name", name_len.into())?;
        fields.finish()?;
        Ok(Self { versions: oldest..=newest, reader, name })
    }

    /// Appends the message. What of the name is too long is left out.
    pub fn write(&self, out: &mut BytesMut) {
        let name = text::start(&self.name, NAME_LEN_MAX.into());
        out.put_slice(&MAGIC);
        out.put_u16_le(*self.versions.start());
        out.put_u16_le(*self.versions.end());
        out.put_slice(&[self.reader, 0]);
        out.put_u16_le(name.len().try_into().unwrap_or(NAME_LEN_MAX));
        out.put_slice(name.as_bytes());
    }

    /// The version that this crate speaks too, if there is one.
    #[must_use]
    pub fn version(&self) -> Option<u16> {
        self.versions.contains(&VERSION).then_some(VERSION)
    }
}

const DURABLE: u16 = 1;
const CREATES: u16 = 2;

impl Answer {
    /// Reads the answer to a hello.
    ///
    /// # Errors
    ///
    /// [`HelloError::OtherProtocol`] if it comes from a server of CPython's.
    pub fn decode(message: &Bytes) -> Result<Self, HelloError> {
        let mut fields = fields(message)?;
        let version = fields.u16("version")?;
        if version == 0 {
            return Ok(Self::Refused(fields.last_text("reason")?));
        }
        let at = fields.at();
        let flags = fields.u16("flags")?;
        if flags & !(DURABLE | CREATES) != 0 {
            let expected = "bits 0 and 1 at most";
            return Err(What::Value { field: "flags", at, found: flags.into(), expected }.into());
        }
        let limits = SessionLimits {
            frame_max: fields.u32("frame_max")?,
            batch_max: fields.u32("batch_max")?,
            pending_max: fields.u32("pending_max")?,
            queues_max: fields.u32("queues_max")?,
            credit_max: fields.u32("credit_max")?,
        };
        Ok(Self::Welcome(Welcome {
            version,
            is_durable: flags & DURABLE != 0,
            creates: flags & CREATES != 0,
            limits,
            server: fields.last_text("server")?,
        }))
    }

    /// Appends the message.
    pub fn write(&self, out: &mut BytesMut) {
        out.put_slice(&MAGIC);
        match self {
            Self::Refused(reason) => {
                out.put_u16_le(0);
                out.put_slice(reason.as_bytes());
            }
            Self::Welcome(welcome) => welcome.write(out),
        }
    }
}

impl Welcome {
    fn write(&self, out: &mut BytesMut) {
        let Self { version, is_durable, creates, limits, server } = self;
        out.put_u16_le(*version);
        out.put_u16_le((u16::from(*is_durable) * DURABLE) | (u16::from(*creates) * CREATES));
        let SessionLimits { frame_max, batch_max, pending_max, queues_max, credit_max } = *limits;
        for limit in [frame_max, batch_max, pending_max, queues_max, credit_max] {
            out.put_u32_le(limit);
        }
        out.put_slice(server.as_bytes());
    }
}
