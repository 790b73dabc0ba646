//! What a server reads and answers: [`Control`] and [`Operation`] out of a scanned [`Call`],
//! [`Reply`] into bytes that every Python from 2.7 on loads.
//!
//! Source of the calls, their parameters and error texts: CPython `Lib/multiprocessing/managers.py`,
//! class `Server`, and `Lib/queue.py`.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Serialize};

use super::extra::{self, Handed, Peeked, write_peeked};
use super::frame::Outbound;
use super::pickle::{Argument, Atom, Call, Limits, Payload, PickleError};

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

/// The first request on a connection: one call of the manager itself.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Control {
    /// Sent by `connect()` to see whether somebody is there.
    Dummy,
    /// Makes a reference to the object registered as `typeid`.
    Create {
        /// Registered name.
        typeid: String,
        /// Further arguments, for the registered callable.
        parameters: Vec<Parameter>,
    },
    /// One more reference to this ident.
    Incref(String),
    /// One reference fewer to this ident.
    Decref(String),
    /// The method names of the object with this ident.
    GetMethods(String),
    /// How many idents are referenced.
    NumberOfObjects,
    /// A text about every referenced ident.
    DebugInfo,
    /// Turns the connection into a session.
    AcceptConnection {
        /// Name of the client's process and thread.
        name: String,
    },
    /// Stops the server.
    Shutdown,
    /// What queues there are, in the first form. Ours alone; CPython's server answers that it is
    /// unknown.
    Queues,
    /// What queues there are and all that is known of them.
    ListQueues,
    /// Forgets a queue and its tasks.
    DropQueue {
        /// Its name.
        name: String,
        /// Also while it is in use.
        force: bool,
    },
}

/// One argument for a registered callable.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Keyword; `None` if positional.
    pub keyword: Option<String>,
    /// The value; `None` if it is not a simple one.
    pub value: Option<Atom>,
}

impl Control {
    /// Reads the manager's call in `call`.
    ///
    /// # Errors
    ///
    /// The text of a traceback for the client, if there is no such call or its arguments are wrong.
    pub fn decode(call: &Call) -> Result<Self, String> {
        let method = call.method();
        let wrong =
            || format!("TypeError: wrong arguments for the manager's call {}", repr(method));
        let text = || match call.args() {
            [only] if call.kwargs().next().is_none() => text(call, only).ok_or_else(wrong),
            _ => Err(wrong()),
        };
        let nothing = |control| match call.args() {
            [] if call.kwargs().next().is_none() => Ok(control),
            _ => Err(wrong()),
        };
        match method {
            "dummy" => nothing(Self::Dummy),
            "create" => Self::decode_create(call).ok_or_else(wrong),
            "incref" => text().map(Self::Incref),
            "decref" => text().map(Self::Decref),
            "get_methods" => match call.args() {
                [token] => call.token_id(token).map(Self::GetMethods).ok_or_else(wrong),
                _ => Err(wrong()),
            },
            "number_of_objects" => nothing(Self::NumberOfObjects),
            "debug_info" => nothing(Self::DebugInfo),
            "accept_connection" => text().map(|name| Self::AcceptConnection { name }),
            "shutdown" => nothing(Self::Shutdown),
            "queues" => nothing(Self::Queues),
            "list_queues" => nothing(Self::ListQueues),
            "drop_queue" => match call.args() {
                [name, force] if call.kwargs().next().is_none() => {
                    match (call.atom(name), call.atom(force)) {
                        (Some(Atom::Text(name)), Some(Atom::Bool(force))) => {
                            Ok(Self::DropQueue { name, force })
                        }
                        _ => Err(wrong()),
                    }
                }
                _ => Err(wrong()),
            },
            _ => Err(format!("AssertionError: {} unrecognized", repr(method))),
        }
    }

    fn decode_create(call: &Call) -> Option<Self> {
        let (first, rest) = call.args().split_first()?;
        let typeid = text(call, first)?;
        let positional =
            rest.iter().map(|argument| Parameter { keyword: None, value: call.atom(argument) });
        let keywords = call.kwargs().map(|(keyword, argument)| Parameter {
            keyword: Some(keyword.to_owned()),
            value: call.atom(&argument),
        });
        Some(Self::Create { typeid, parameters: positional.chain(keywords).collect() })
    }
}

fn text(call: &Call, argument: &Argument) -> Option<String> {
    match call.atom(argument)? {
        Atom::Text(text) => Some(text),
        _ => None,
    }
}

/// How long a call may wait, as its caller said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wait {
    /// Not at all.
    No,
    /// At most this long.
    For(Duration),
    /// For ever.
    Forever,
    /// The time-out was negative: a `ValueError` wherever the call could wait.
    Negative,
}

/// One call of a method of a queue.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Operation {
    /// `put`, `put_nowait`
    Put {
        /// The item.
        item: Payload,
        /// For a free slot.
        wait: Wait,
    },
    /// `get`, `get_nowait`
    Get {
        /// For an item.
        wait: Wait,
    },
    /// `qsize`
    Qsize,
    /// `empty`
    Empty,
    /// `full`
    Full,
    /// `task_done`
    TaskDone,
    /// `join`
    Join,
    /// `shutdown`
    Shutdown {
        /// Also drop what is in the queue.
        immediate: bool,
    },
    /// `close`, `join_thread`, `cancel_join_thread`: of the feeder thread of a
    /// `multiprocessing.Queue`, which we do not have.
    Nothing,
    /// `__str__`, `__repr__`
    Repr,
    /// `#GETVALUE`: a copy of the queue itself, which nobody can pickle.
    GetValue,
}

/// Why a session's request has no [`Operation`].
#[derive(Debug, Clone, PartialEq)]
pub enum Refusal {
    /// The method does not exist; the text of a traceback.
    Unknown(String),
    /// The arguments are wrong, as the method itself would say.
    Arguments(Exception),
    /// An argument cannot be cut out.
    Pickle(PickleError),
}

impl From<Exception> for Refusal {
    fn from(exception: Exception) -> Self {
        Self::Arguments(exception)
    }
}

impl Operation {
    /// Reads the method call in `call`.
    ///
    /// # Errors
    ///
    /// [`Refusal`], in the order and words of CPython where programs could depend on them.
    pub fn decode(call: &Call, limits: &Limits) -> Result<Self, Refusal> {
        match call.method_bytes() {
            b"put" => Self::decode_put(call, limits),
            b"put_nowait" => {
                let [item] = bind(call, "put_nowait", ["item"], 1)?;
                Ok(Self::Put { item: payload(call, item, limits)?, wait: Wait::No })
            }
            b"get" => {
                let [block, timeout] = bind(call, "get", ["block", "timeout"], 0)?;
                Ok(Self::Get { wait: wait(call, block, timeout)? })
            }
            b"get_nowait" => plain(call, Self::Get { wait: Wait::No }),
            b"qsize" => plain(call, Self::Qsize),
            b"empty" => plain(call, Self::Empty),
            b"full" => plain(call, Self::Full),
            b"task_done" => plain(call, Self::TaskDone),
            b"join" => plain(call, Self::Join),
            b"shutdown" => {
                let [immediate] = bind(call, "shutdown", ["immediate"], 0)?;
                Ok(Self::Shutdown { immediate: truth(call, immediate, "immediate", false)? })
            }
            b"close" | b"join_thread" | b"cancel_join_thread" => plain(call, Self::Nothing),
            b"__str__" | b"__repr__" => plain(call, Self::Repr),
            b"#GETVALUE" => plain(call, Self::GetValue),
            _ => Err(Refusal::Unknown(format!(
                "a queue has no method {}; it has {}\nKeyError: {}",
                repr(call.method()),
                EXPOSED.join(", "),
                repr(call.method())
            ))),
        }
    }

    fn decode_put(call: &Call, limits: &Limits) -> Result<Self, Refusal> {
        let [item, block, timeout] = bind(call, "put", ["item", "block", "timeout"], 1)?;
        let wait = wait(call, block, timeout)?;
        Ok(Self::Put { item: payload(call, item, limits)?, wait })
    }
}

/// A call without arguments.
fn plain(call: &Call, operation: Operation) -> Result<Operation, Refusal> {
    let [] = bind(call, call.method(), [], 0)?;
    Ok(operation)
}

/// Puts the arguments of `call` to the parameters `names`, of which the first `required` must be
/// there, as Python does. `multiprocessing.Queue` calls the item `obj`.
pub(super) fn bind<const N: usize>(
    call: &Call,
    method: &str,
    names: [&str; N],
    required: usize,
) -> Result<[Option<Argument>; N], Exception> {
    let given = call.args().len();
    if given > N {
        let takes = if required == N {
            format!("{}", N + 1)
        } else {
            format!("from {} to {}", required + 1, N + 1)
        };
        let s = if N == 0 { "" } else { "s" };
        return Err(Exception::TypeError(format!(
            "Queue.{method}() takes {takes} positional argument{s} but {} were given",
            given + 1
        )));
    }
    let mut bound = [None; N];
    for (slot, argument) in bound.iter_mut().zip(call.args()) {
        *slot = Some(*argument);
    }
    for (keyword, argument) in call.kwargs() {
        let name = if keyword == "obj" { "item" } else { keyword };
        let slot = names.iter().zip(&mut bound).find(|(known, _)| **known == name);
        let Some((_, slot)) = slot else {
            return Err(Exception::TypeError(format!(
                "Queue.{method}() got an unexpected keyword argument {}",
                repr(keyword)
            )));
        };
        if slot.replace(argument).is_some() {
            return Err(Exception::TypeError(format!(
                "Queue.{method}() got multiple values for argument {}",
                repr(keyword)
            )));
        }
    }
    match names.iter().zip(&bound).take(required).find(|(_, slot)| slot.is_none()) {
        Some((name, _)) => Err(Exception::TypeError(format!(
            "Queue.{method}() missing 1 required positional argument: {}",
            repr(name)
        ))),
        None => Ok(bound),
    }
}

pub(super) fn payload(
    call: &Call,
    argument: Option<Argument>,
    limits: &Limits,
) -> Result<Payload, Refusal> {
    let argument = argument.ok_or(Refusal::Pickle(PickleError::NotARequest { what: "no item" }))?;
    call.payload(&argument, limits).map_err(Refusal::Pickle)
}

pub(super) fn wait(
    call: &Call,
    block: Option<Argument>,
    timeout: Option<Argument>,
) -> Result<Wait, Exception> {
    let block = truth(call, block, "block", true)?;
    let seconds = match timeout.map(|argument| call.atom(&argument)) {
        None | Some(Some(Atom::None)) => return Ok(if block { Wait::Forever } else { Wait::No }),
        Some(Some(Atom::Bool(seconds))) => f64::from(u8::from(seconds)),
        #[expect(clippy::cast_precision_loss, reason = "seconds, not a count")]
        Some(Some(Atom::Int(seconds))) => seconds as f64,
        Some(Some(Atom::Float(seconds))) => seconds,
        Some(_) => {
            return Err(Exception::TypeError(
                "'timeout' must be None or a plain int or float of seconds".into(),
            ));
        }
    };
    if !block {
        return Ok(Wait::No);
    }
    if seconds.is_nan() {
        return Err(Exception::ValueError("Invalid value NaN (not a number)".into()));
    }
    if seconds < 0.0 {
        return Ok(Wait::Negative);
    }
    // What is longer than a Duration holds is as good as for ever.
    Ok(Duration::try_from_secs_f64(seconds).map_or(Wait::Forever, Wait::For))
}

/// The truth of a simple argument, as Python's `bool()` sees it.
pub(super) fn truth(
    call: &Call,
    argument: Option<Argument>,
    name: &str,
    default: bool,
) -> Result<bool, Exception> {
    let Some(argument) = argument else { return Ok(default) };
    match call.atom(&argument) {
        Some(Atom::None) => Ok(false),
        Some(Atom::Bool(value)) => Ok(value),
        Some(Atom::Int(value)) => Ok(value != 0),
        Some(Atom::Float(value)) => Ok(value != 0.0),
        Some(Atom::Text(text)) => Ok(!text.is_empty()),
        Some(Atom::Bytes(bytes)) => Ok(!bytes.is_empty()),
        _ => Err(Exception::TypeError(format!("'{name}' must be a bool or another plain value"))),
    }
}

/// Who reads the replies of a session: decides which pickles it understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// Python 2.7.
    Python2,
    /// Python 3.7 and earlier.
    Python37,
    /// Python 3.8 and later.
    Python38,
    /// A client of ours, which says so in the name of its session.
    Manyhands,
}

impl Reader {
    /// The reader behind a session called `name` whose requests have pickle protocol `protocol`.
    #[must_use]
    pub fn new(name: &str, protocol: u8) -> Self {
        match protocol {
            _ if extra::is_ours(name) => Self::Manyhands,
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
            Self::Python38 | Self::Manyhands => 5,
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
/// On the wire a dict with these names, of which a reader passes over those that it does not know and
/// does without those that are missing; in the answer to `queues` a tuple of the first eight.
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
    /// The answer to `queues`.
    Queues(Vec<QueueInfo>),
    /// The answer to `list_queues`.
    QueueList(Vec<QueueInfo>),
    /// An item.
    Item(Payload),
    /// Items, each with what was asked for beside it: for our own clients.
    Handed(Handed),
    /// Tasks that were looked at: for our own clients.
    Peeked(Vec<Peeked>),
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
        out.own().reserve(SMALL_REPLY_LEN);
        out.push_frame(|out| self.write(reader, out));
    }

    /// How many bytes the items take that it hands out, roughly.
    #[must_use]
    pub fn items_len(&self) -> usize {
        match self {
            Self::Item(payload) => payload.bytes.len(),
            Self::Handed(handed) => handed.len(),
            Self::Peeked(tasks) => tasks.iter().map(Peeked::len).sum(),
            _ => 0,
        }
    }

    fn write(&self, reader: Reader, out: &mut Outbound) {
        match self {
            Self::Item(payload) => return payload.push_reply(out),
            Self::Handed(handed) => return handed.write_reply(out),
            Self::Peeked(tasks) => return write_peeked(tasks, out),
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
            Self::None | Self::Item(_) | Self::Handed(_) | Self::Peeked(_) => out.put_u8(b'N'),
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
            Self::Queues(queues) => write_queues(queues, out),
            Self::QueueList(queues) => write_queue_list(queues, out),
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

fn write_queues(queues: &[QueueInfo], out: &mut BytesMut) {
    out.put_u8(b'(');
    for queue in queues {
        out.put_u8(b'(');
        write_unicode(&queue.name, out);
        write_text(&queue.order, out);
        let counts = [queue.maxsize, queue.qsize, queue.unfinished];
        for count in counts.into_iter().chain([queue.leased, queue.delayed, queue.dead]) {
            write_count(count, out);
        }
        out.put_u8(b't');
    }
    out.put_u8(b't');
}

fn write_queue_list(queues: &[QueueInfo], out: &mut BytesMut) {
    out.put_u8(b'(');
    for queue in queues {
        out.put_slice(b"}(");
        write_text("name", out);
        write_unicode(&queue.name, out);
        write_text("order", out);
        write_text(&queue.order, out);
        for (name, truth) in [("declared", queue.declared), ("is_joined", queue.is_joined)] {
            write_text(name, out);
            out.put_u8(if truth { 0x88 } else { 0x89 });
        }
        write_text("oldest", out);
        match queue.oldest {
            Some(seconds) => {
                out.put_u8(b'G');
                out.put_f64(seconds);
            }
            None => out.put_u8(b'N'),
        }
        let counts = [
            ("maxsize", queue.maxsize),
            ("qsize", queue.qsize),
            ("unfinished", queue.unfinished),
            ("leased", queue.leased),
            ("delayed", queue.delayed),
            ("dead", queue.dead),
            ("waiting_get", queue.waiting_get),
            ("waiting_put", queue.waiting_put),
            ("waiting_join", queue.waiting_join),
            ("references", queue.references),
            ("put", queue.put),
            ("taken", queue.taken),
            ("done", queue.done),
            ("bytes", queue.bytes),
        ];
        for (name, count) in counts {
            write_text(name, out);
            write_count(count, out);
        }
        out.put_u8(b'u');
    }
    out.put_u8(b't');
}

/// A text that need not be ASCII.
pub(super) fn write_unicode(text: &str, out: &mut BytesMut) {
    out.put_u8(b'X');
    out.put_u32_le(u32::try_from(text.len()).unwrap_or(u32::MAX));
    out.put_slice(text.as_bytes());
}

pub(super) fn write_count(count: u64, out: &mut BytesMut) {
    if let Ok(small) = u8::try_from(count) {
        out.put_u8(b'K');
        out.put_u8(small);
    } else if let Ok(medium) = i32::try_from(count) {
        out.put_u8(b'J');
        out.put_i32_le(medium);
    } else {
        // Nine bytes, so that the sign bit is clear.
        out.put_slice(b"\x8a\x09");
        out.put_u64_le(count);
        out.put_u8(0);
    }
}

/// A byte string, which is a `str` in Python 2 and, because it is ASCII, in Python 3 too.
pub(super) fn write_text(text: &str, out: &mut BytesMut) {
    let escaped;
    let ascii = if text.is_ascii() {
        text
    } else {
        escaped = escape(text);
        &escaped
    };
    write_ascii(ascii.as_bytes(), out);
}

/// The same for a text that is ASCII.
pub(super) fn write_ascii(ascii: &[u8], out: &mut BytesMut) {
    match u8::try_from(ascii.len()) {
        Ok(len) => {
            out.put_u8(b'U');
            out.put_u8(len);
        }
        Err(_) => {
            out.put_u8(b'T');
            out.put_i32_le(i32::try_from(ascii.len()).unwrap_or(i32::MAX));
        }
    }
    out.put_slice(ascii);
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
        Reader::Manyhands => write_global("queue", "ShutDown", out),
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

/// `text` with everything but printable ASCII and line ends escaped as Python would.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut ascii = String::with_capacity(text.len());
    for char in text.chars() {
        match u32::from(char) {
            _ if char == '\n' || char == ' ' || char.is_ascii_graphic() => ascii.push(char),
            code @ ..=0xff => ascii.push_str(&format!("\\x{code:02x}")),
            code @ ..=0xffff => ascii.push_str(&format!("\\u{code:04x}")),
            code => ascii.push_str(&format!("\\U{code:08x}")),
        }
    }
    ascii
}

/// `text` in quotes, as Python's `repr` shows a `str`, in ASCII. Long texts are cut.
#[must_use]
pub fn repr(text: &str) -> String {
    const SHOWN_MAX: usize = 80;
    let cut = text.char_indices().nth(SHOWN_MAX).map_or(text.len(), |(end, _)| end);
    let (shown, rest) = text.split_at(cut);
    let dots = if rest.is_empty() { "" } else { "..." };
    let escaped = escape(&shown.replace('\\', "\\\\").replace('\'', "\\'")).replace('\n', "\\n");
    format!("'{escaped}{dots}'")
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
        assert_eq!(repr("a'b\\c\n\u{e9}\u{20ac}\u{1f600}"), r"'a\'b\\c\n\xe9\u20ac\U0001f600'");
        assert_eq!(repr(&"x".repeat(200)).len(), 80 + 3 + 2);
        check(&Reply::Text("\u{e9}".into()), b"\0\0\0\x13\x80\x02U\x07#RETURNU\x04\\xe9\x86.");
    }

    #[test]
    fn a_long_text_takes_the_long_opcode() {
        let mut out = Outbound::default();
        Reply::Traceback("x".repeat(300)).push_frame(Reader::Python2, &mut out);
        assert!(out.own().starts_with(b"\0\0\x01\x41\x80\x02U\x0a#TRACEBACKT\x2c\x01\0\0xxx"));
    }
}
