//! What a server answers: [`Reply`] into bytes that every Python from 2.7 on loads.
//!
//! Source of the exceptions: CPython `Lib/queue.py` and `Lib/multiprocessing/managers.py`.

use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Serialize};

use super::frame::Outbound;
use super::pickle::Payload;
use super::text::{write_count, write_text};

/// The methods that a proxy of a queue gets: those of `queue.Queue` and of `multiprocessing.Queue`
/// together, because the server cannot know which of them the script's own server would have had.
pub const EXPOSED: [&str; 13] = [
    "cancel_join_thread",
    "close",
    "empty",
    "full",
    "get",
    "get_nowait",
    "join",
    "join_thread",
    "put",
    "put_nowait",
    "qsize",
    "shutdown",
    "task_done",
];

/// Who reads the replies of a session: decides which pickles it understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// Python 2.7.
    Python2,
    /// Python 3.7 and earlier.
    Python37,
    /// Python 3.8 and later.
    Python38,
}

impl Reader {
    /// The reader behind requests of this pickle protocol.
    #[must_use]
    pub fn new(protocol: u8) -> Self {
        match protocol {
            ..=2 => Self::Python2,
            3 => Self::Python37,
            4.. => Self::Python38,
        }
    }

    /// The highest pickle protocol that it reads.
    #[must_use]
    pub fn protocol_max(self) -> u8 {
        match self {
            Self::Python2 => 2,
            Self::Python37 => 4,
            Self::Python38 => 5,
        }
    }
}

/// An exception that the client's proxy raises.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exception {
    /// `queue.Empty`
    Empty,
    /// `queue.Full`
    Full,
    /// `queue.Full`, and why.
    FullBecause(String),
    /// `queue.ShutDown` from `get`; `queue.Empty` before Python 3.13, which does not have it.
    GetShutDown,
    /// `queue.ShutDown` from `put`; `queue.Full` before Python 3.13, which does not have it.
    PutShutDown,
    /// `TypeError`
    TypeError(String),
    /// `ValueError`
    ValueError(String),
}

/// What is known of one queue.
///
/// On the wire an object of JSON with these members, of which a reader passes over those that it does
/// not know and does without those that are missing.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct QueueInfo {
    /// Its name.
    pub name: String,
    /// `fifo`, `lifo` or `priority`.
    pub order: String,
    /// Most items that it holds; 0 is no bound.
    pub maxsize: u64,
    /// Items in it.
    pub qsize: u64,
    /// Items put that are not done for `join`: nobody called `task_done` or acked their lease.
    pub unfinished: u64,
    /// Items that a client has and that are not settled.
    pub leased: u64,
    /// Items that are not to be handed out yet.
    pub delayed: u64,
    /// Items that were given up so far.
    pub dead: u64,
    /// Whether it stays when nobody uses it: it is declared, or named by a declared queue.
    #[serde(default)]
    pub declared: bool,
    /// Whether anybody has called `join` or `task_done`, so that `unfinished` means something.
    #[serde(default)]
    pub is_joined: bool,
    /// Seconds since the oldest item that is there was put, or since the server was started if that
    /// was later; `None` if there is none, or the order does not tell.
    #[serde(default)]
    pub oldest: Option<f64>,
    /// `get`s that wait for an item.
    #[serde(default)]
    pub waiting_get: u64,
    /// `put`s that wait for room.
    #[serde(default)]
    pub waiting_put: u64,
    /// `join`s that wait.
    #[serde(default)]
    pub waiting_join: u64,
    /// References of clients to it.
    #[serde(default)]
    pub references: u64,
    /// Items put since the server was started.
    #[serde(default)]
    pub put: u64,
    /// Items handed out since then.
    #[serde(default)]
    pub taken: u64,
    /// Items settled since then.
    #[serde(default)]
    pub done: u64,
    /// Bytes of memory that it takes.
    #[serde(default)]
    pub bytes: u64,
}

/// Room for most replies, in bytes, so that they are written without growing the buffer.
const SMALL_REPLY_LEN: usize = 128;
/// The reply to most calls: `('#RETURN', None)`.
const DONE: &[u8] = b"\x80\x02U\x07#RETURNN\x86.";

/// One answer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Reply {
    /// `None`
    None,
    /// A truth value.
    Bool(bool),
    /// A count.
    Count(u64),
    /// A text; what is not ASCII is escaped.
    Text(String),
    /// The answer to `create`: an ident and the names of the methods.
    Created(String),
    /// The answer to `get_methods`.
    Methods,
    /// An item.
    Item(Payload),
    /// An exception.
    Error(Exception),
    /// A failure of the server's own, shown by the client as `RemoteError`.
    Traceback(String),
    /// A value that cannot be sent, shown by the client as `RemoteError`.
    Unserializable(String),
}

impl Reply {
    /// Appends the reply as one frame to `out`.
    ///
    /// All replies but items and `queue.ShutDown` are protocol 2 with Python 2 names and byte
    /// strings, which Python 3 readers map.
    pub fn push_frame(&self, reader: Reader, out: &mut Outbound) {
        out.reserve(SMALL_REPLY_LEN);
        out.push_frame(|out| self.write(reader, out));
    }

    /// How many bytes the item takes that it hands out, roughly.
    #[must_use]
    pub fn item_len(&self) -> usize {
        match self {
            Self::Item(payload) => payload.bytes.len(),
            _ => 0,
        }
    }

    fn write(&self, reader: Reader, out: &mut Outbound) {
        match self {
            Self::Item(payload) if reader == Reader::Python2 => {
                return payload.for_python2().push_reply(out);
            }
            Self::Item(payload) => return payload.push_reply(out),
            Self::None => return out.own().put_slice(DONE),
            _ => {}
        }
        let out = out.own();
        match self {
            Self::Error(Exception::GetShutDown) => return write_shut_down("Empty", reader, out),
            Self::Error(Exception::PutShutDown) => return write_shut_down("Full", reader, out),
            _ => {}
        }
        out.put_slice(b"\x80\x02");
        write_text(self.kind(), out);
        self.write_value(out);
        out.put_slice(b"\x86.");
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Error(_) => "#ERROR",
            Self::Traceback(_) => "#TRACEBACK",
            Self::Unserializable(_) => "#UNSERIALIZABLE",
            _ => "#RETURN",
        }
    }

    fn write_value(&self, out: &mut BytesMut) {
        match self {
            Self::None | Self::Item(_) => out.put_u8(b'N'),
            Self::Bool(value) => out.put_u8(if *value { 0x88 } else { 0x89 }),
            Self::Count(count) => write_count(*count, out),
            Self::Text(text) | Self::Traceback(text) | Self::Unserializable(text) => {
                write_text(text, out);
            }
            Self::Created(ident) => {
                write_text(ident, out);
                write_methods(out);
                out.put_u8(0x86);
            }
            Self::Methods => write_methods(out),
            Self::Error(exception) => write_exception(exception, out),
        }
    }
}

fn write_methods(out: &mut BytesMut) {
    out.put_u8(b'(');
    for method in EXPOSED {
        write_text(method, out);
    }
    out.put_u8(b't');
}

fn write_exception(exception: &Exception, out: &mut BytesMut) {
    let (module, name, text) = match exception {
        Exception::Empty | Exception::GetShutDown => ("Queue", "Empty", None),
        Exception::Full | Exception::PutShutDown => ("Queue", "Full", None),
        Exception::FullBecause(text) => ("Queue", "Full", Some(text)),
        Exception::TypeError(text) => ("exceptions", "TypeError", Some(text)),
        Exception::ValueError(text) => ("exceptions", "ValueError", Some(text)),
    };
    write_global(module, name, out);
    match text {
        None => out.put_u8(b')'),
        Some(text) => {
            write_text(text, out);
            out.put_u8(0x85);
        }
    }
    out.put_u8(b'R');
}

/// `queue.ShutDown()` where that class exists, else the class `fallback` of the same module.
///
/// Python 3.8 to 3.13 cannot be told apart by what they send, so the reply decides at the reader:
/// `getattr(import_module('queue'), 'ShutDown', <fallback>)()`. Protocol 3, because the names are
/// Python 3's own.
fn write_shut_down(fallback: &str, reader: Reader, out: &mut BytesMut) {
    out.put_slice(if reader == Reader::Python2 { b"\x80\x02" } else { b"\x80\x03" });
    write_text("#ERROR", out);
    match reader {
        Reader::Python2 => write_global("Queue", fallback, out),
        Reader::Python37 | Reader::Python38 => {
            write_global("builtins", "getattr", out);
            out.put_u8(b'(');
            write_global("importlib", "import_module", out);
            write_text("queue", out);
            out.put_slice(b"\x85R");
            write_text("ShutDown", out);
            write_global("queue", fallback, out);
            out.put_slice(b"tR");
        }
    }
    out.put_slice(b")R\x86.");
}

fn write_global(module: &str, name: &str, out: &mut BytesMut) {
    out.put_u8(b'c');
    out.put_slice(module.as_bytes());
    out.put_u8(b'\n');
    out.put_slice(name.as_bytes());
    out.put_u8(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(reply: &Reply, expected: &[u8]) {
        let mut out = Outbound::default();
        reply.push_frame(Reader::Python2, &mut out);
        assert_eq!(out.own(), expected, "{reply:?}");
    }

    // The expected bytes were loaded by Python 2.7 and 3.6 to 3.13.
    #[test]
    fn replies_are_bytes_that_every_python_reads() {
        check(&Reply::None, b"\0\0\0\x0e\x80\x02U\x07#RETURNN\x86.");
        check(&Reply::Bool(true), b"\0\0\0\x0e\x80\x02U\x07#RETURN\x88\x86.");
        check(&Reply::Count(3), b"\0\0\0\x0f\x80\x02U\x07#RETURNK\x03\x86.");
        check(&Reply::Count(300), b"\0\0\0\x12\x80\x02U\x07#RETURNJ\x2c\x01\0\0\x86.");
        check(
            &Reply::Error(Exception::Empty),
            b"\0\0\0\x1b\x80\x02U\x06#ERRORcQueue\nEmpty\n)R\x86.",
        );
        check(
            &Reply::Error(Exception::Full),
            b"\0\0\0\x1a\x80\x02U\x06#ERRORcQueue\nFull\n)R\x86.",
        );
        check(
            &Reply::Error(Exception::ValueError("no".into())),
            b"\0\0\0\x29\x80\x02U\x06#ERRORcexceptions\nValueError\nU\x02no\x85R\x86.",
        );
    }

    #[test]
    fn texts_are_ascii() {
        check(&Reply::Text("\u{e9}".into()), b"\0\0\0\x13\x80\x02U\x07#RETURNU\x04\\xe9\x86.");
    }

    #[test]
    fn a_long_text_takes_the_long_opcode() {
        let mut out = Outbound::default();
        Reply::Traceback("x".repeat(300)).push_frame(Reader::Python2, &mut out);
        assert!(out.own().starts_with(b"\0\0\x01\x41\x80\x02U\x0a#TRACEBACKT\x2c\x01\0\0xxx"));
    }
}
