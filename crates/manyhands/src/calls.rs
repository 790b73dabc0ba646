//! What each verb of a queue sends and how its answer reads; the same for both clients.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::connect::{Address, ConnectOptions};
use crate::wire::auth::AuthKey;
use crate::wire::pickle::{DataError, Dialect, Limits, Object, Payload, Value};
use crate::wire::pickle::{from_payload, to_payload};
use crate::wire::request::{Answer, Kind, Parameter, encode};

/// Time-outs from here on, in seconds, are as good as none: a hundred years. Python's locks refuse
/// to wait much longer.
const FOREVER_SECS: u64 = 100 * 365 * 24 * 60 * 60;

/// How our server says that it does not know an ident.
const FORGOTTEN: &str = "the server does not know this object";

/// A request and how long the server may take of its own accord.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) request: Bytes,
    /// `None`: for ever.
    pub(crate) patience: Option<Duration>,
}

impl Call {
    /// A call of the manager itself.
    pub(crate) fn control(name: &str, text: Option<&str>) -> Self {
        let parameter = text.map(Parameter::Text);
        Self { request: encode(None, name, parameter.as_slice()), patience: Some(Duration::ZERO) }
    }

    /// The manager's call that forgets a queue.
    pub(crate) fn drop_queue(name: &str, force: bool) -> Self {
        let parameters = [Parameter::Text(name), Parameter::Bool(force)];
        Self { request: encode(None, "drop_queue", &parameters), patience: Some(Duration::ZERO) }
    }

    /// A call that does not wait.
    pub(crate) fn prompt(ident: &str, method: &str) -> Self {
        Self { request: encode(Some(ident), method, &[]), patience: Some(Duration::ZERO) }
    }

    pub(crate) fn put(ident: &str, item: &Payload, timeout: Option<Duration>) -> Self {
        let timeout = finite(timeout);
        let mut parameters = vec![Parameter::Item(item)];
        parameters.extend(timeout.into_iter().flat_map(waiting));
        Self { request: encode(Some(ident), "put", &parameters), patience: timeout }
    }

    pub(crate) fn try_put(ident: &str, item: &Payload) -> Self {
        let request = encode(Some(ident), "put_nowait", &[Parameter::Item(item)]);
        Self { request, patience: Some(Duration::ZERO) }
    }

    pub(crate) fn get(ident: &str, timeout: Option<Duration>) -> Self {
        let timeout = finite(timeout);
        let parameters: Vec<_> = timeout.into_iter().flat_map(waiting).collect();
        Self { request: encode(Some(ident), "get", &parameters), patience: timeout }
    }

    pub(crate) fn join(ident: &str) -> Self {
        Self { request: encode(Some(ident), "join", &[]), patience: None }
    }

    pub(crate) fn shutdown(ident: &str, immediate: bool) -> Self {
        let request = encode(Some(ident), "shutdown", &[Parameter::Bool(immediate)]);
        Self { request, patience: Some(Duration::ZERO) }
    }

    /// How long the client waits for the answer.
    pub(crate) fn time_limit(&self, options: &ConnectOptions) -> Option<Duration> {
        self.patience.map(|patience| patience.saturating_add(options.call_margin))
    }
}

/// A time-out that is one.
pub(crate) fn finite(timeout: Option<Duration>) -> Option<Duration> {
    timeout.filter(|timeout| timeout.as_secs() < FOREVER_SECS)
}

/// `block=True` and a time-out.
fn waiting<'a>(timeout: Duration) -> [Parameter<'a>; 2] {
    [Parameter::Bool(true), Parameter::Seconds(timeout.as_secs_f64())]
}

/// What both clients know of a server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: Arc<Address>,
    pub(crate) key: AuthKey,
    pub(crate) options: ConnectOptions,
}

impl Server {
    /// Reads an answer's value.
    pub(crate) fn read<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, Error> {
        let payload = self.result(answer)?;
        from_payload(payload, &self.options.limits).map_err(|error| self.unexpected(&error))
    }

    /// Takes the item that came as an answer.
    pub(crate) fn item<T: DeserializeOwned>(
        &self,
        queue: &str,
        payload: Payload,
    ) -> Result<T, Error> {
        from_payload(&payload, &self.options.limits).map_err(|error| {
            let queue = queue.to_owned();
            Error::Item { queue, error, payload: Box::new(payload) }
        })
    }

    /// The value of an answer, unless it says that the call failed.
    pub(crate) fn result<'a>(&self, answer: &'a Answer) -> Result<&'a Payload, Error> {
        let limits = &self.options.limits;
        match answer.kind {
            Kind::Return => Ok(&answer.value),
            Kind::Error => Err(raised(&answer.value, limits)),
            Kind::Traceback => Err(traceback(&answer.text(limits))),
            Kind::Unserializable => Err(Error::Remote {
                class: "Unserializable".to_owned(),
                message: traceback(&answer.text(limits)).to_string(),
            }),
            Kind::Proxy => Err(self.unexpected(&"a proxy, which only Python can use")),
        }
    }

    /// The ident in the answer to `create`.
    pub(crate) fn created(&self, name: &str, answer: &Answer) -> Result<String, Error> {
        let (ident, _exposed): (String, Value) =
            self.read(answer).map_err(|error| match error {
                Error::Remote { class, message } if class == "KeyError" => {
                    let first = message.lines().next().unwrap_or_default();
                    let declared = first.split_once("declared are: ").map(|(_, names)| names);
                    Error::UnknownQueue {
                        name: name.to_owned(),
                        address: Arc::clone(&self.address),
                        declared: declared.map(str::to_owned),
                    }
                }
                error => error,
            })?;
        Ok(ident)
    }

    /// Whether an answer says that the server has been started anew, and knows the object no more.
    pub(crate) fn is_forgotten(&self, answer: &Answer) -> bool {
        answer.kind == Kind::Traceback && answer.text(&self.options.limits).starts_with(FORGOTTEN)
    }

    /// The answer to a call that only our servers know. CPython's manager asserts that it knows a
    /// call; without assertions it looks for a method of that name.
    pub(crate) fn of_ours<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, Error> {
        self.read(answer).map_err(|error| match error {
            Error::Remote { class, .. }
                if class == "AssertionError" || class == "AttributeError" =>
            {
                Error::NotManyhands { address: Arc::clone(&self.address) }
            }
            error => error,
        })
    }

    pub(crate) fn unexpected(&self, what: &dyn std::fmt::Display) -> Error {
        Error::Protocol { address: Arc::clone(&self.address), what: what.to_string() }
    }

    pub(crate) fn closed(&self) -> Error {
        Error::Closed { address: Arc::clone(&self.address) }
    }

    pub(crate) fn timed_out(&self, after: Duration) -> Error {
        Error::TimedOut { address: Arc::clone(&self.address), after }
    }
}

/// Pickles an item.
pub(crate) fn pickled<T: Serialize + ?Sized>(item: &T, dialect: Dialect) -> Result<Payload, Error> {
    Ok(to_payload(item, dialect)?)
}

/// Pickles items.
pub(crate) fn pickled_all<'a, T: Serialize + 'a>(
    items: impl IntoIterator<Item = &'a T>,
    dialect: Dialect,
) -> Result<Vec<Payload>, Error> {
    items.into_iter().map(|item| pickled(item, dialect)).collect()
}

/// Refuses a payload that the server's Python could not read.
pub(crate) fn readable(item: &Payload, dialect: Dialect) -> Result<(), Error> {
    if dialect == Dialect::Python2 && item.protocol > 2 {
        return Err(Error::Data(DataError::Shape(format!(
            "it is a pickle of protocol {}, and Python 2 reads up to 2",
            item.protocol
        ))));
    }
    Ok(())
}

/// The exception that the server raised.
fn raised(payload: &Payload, limits: &Limits) -> Error {
    let object = match payload.value(limits) {
        Ok(Value::Object(object)) => *object,
        Ok(other) => return remote("Exception", &other.to_string()),
        Err(error) => return remote("Exception", &error.to_string()),
    };
    match (object.module.as_str(), object.name.as_str()) {
        ("queue" | "_queue" | "Queue", "Empty") => Error::Empty,
        ("queue" | "_queue" | "Queue", "Full") => Error::Full,
        ("queue" | "_queue" | "Queue", "ShutDown") => Error::ShutDown,
        (_, class) => remote(class, &message(&object)),
    }
}

fn remote(class: &str, message: &str) -> Error {
    Error::Remote { class: class.to_owned(), message: message.to_owned() }
}

/// What Python's `str` shows of an exception, for most of them.
fn message(exception: &Object) -> String {
    match exception.args.as_deref() {
        Some([Value::Str(text)]) => text.clone(),
        Some([only]) => only.to_string(),
        Some(args) if !args.is_empty() => Value::Tuple(args.to_vec()).to_string(),
        _ => String::new(),
    }
}

/// The error at the end of a traceback. What leads to it is the server's business.
fn traceback(text: &str) -> Error {
    let text = text.trim_end();
    let last = text.rsplit('\n').next().unwrap_or(text);
    let (class, rest) = last.split_once(": ").unwrap_or((last, ""));
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_');
    if class.is_empty() || !class.chars().all(is_name) {
        return remote("RemoteError", text);
    }
    let class = class.rsplit('.').next().unwrap_or(class);
    let is_pythons = text.starts_with("Traceback");
    remote(class, if is_pythons || text == last { rest } else { text })
}

/// The references to objects that a server counts for this client.
#[derive(Debug, Default)]
pub(crate) struct References {
    /// Of queues that are in use.
    used: Vec<String>,
    /// Of queues that are no longer.
    dropped: Vec<String>,
}

impl References {
    pub(crate) fn add(&mut self, ident: String) {
        self.used.push(ident);
    }

    /// A server that was started anew knows the reference by another ident.
    pub(crate) fn rename(&mut self, old: &str, new: &str) {
        if let Some(ident) = self.used.iter_mut().find(|ident| *ident == old) {
            new.clone_into(ident);
        }
    }

    /// Notes that one queue is no longer used; tells whether its reference is still held.
    pub(crate) fn remove(&mut self, ident: &str) -> bool {
        let position = self.used.iter().position(|used| used == ident);
        position.map(|position| self.used.remove(position)).is_some()
    }

    /// The same, for a reference that is given back some time later.
    pub(crate) fn defer(&mut self, ident: &str) {
        if self.remove(ident) {
            self.dropped.push(ident.to_owned());
        }
    }

    /// Takes a reference that is to be given back now, if there is one.
    pub(crate) fn pop_dropped(&mut self) -> Option<String> {
        self.dropped.pop()
    }

    /// Takes any reference, the newest first, as a Python program gives them back at its end.
    pub(crate) fn pop(&mut self) -> Option<String> {
        self.used.pop().or_else(|| self.pop_dropped())
    }
}

/// A reference on its way back to the server. It counts as held, and is tried again at the next
/// occasion, unless [`settle`](Self::settle) finds that it arrived.
#[derive(Debug)]
pub(crate) struct Returning<'a> {
    references: &'a Mutex<References>,
    ident: Option<String>,
    pub(crate) call: Call,
}

impl<'a> Returning<'a> {
    pub(crate) fn new(references: &'a Mutex<References>, ident: String) -> Self {
        let call = Call::control("decref", Some(&ident));
        Self { references, ident: Some(ident), call }
    }

    /// Judges by what came of the call. A reference that has perhaps arrived is not given back
    /// again: CPython's server would take the second for another client's.
    pub(crate) fn settle<T>(mut self, outcome: Result<T, Error>) -> Result<(), Error> {
        let is_unsent = matches!(
            outcome,
            Err(Error::Connect { .. } | Error::Authentication { .. } | Error::TimedOut { .. })
        );
        if !is_unsent {
            self.ident = None;
        }
        outcome.map(drop)
    }
}

impl Drop for Returning<'_> {
    fn drop(&mut self) {
        lock(self.references).dropped.extend(self.ident.take());
    }
}

/// Whether an ident was made by a manyhands server: Python's are numbers.
pub(crate) fn is_of_manyhands(ident: &str) -> bool {
    ident.split('.').count() == 3
}

/// Locks what no code panics over.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::reply::{QueueInfo, Reader, Reply};

    fn check(text: &str, class: &str, message: &str) {
        let Error::Remote { class: found_class, message: found } = traceback(text) else {
            panic!("not a remote error")
        };
        assert_eq!((found_class.as_str(), found.as_str()), (class, message));
    }

    #[test]
    fn a_traceback_is_reduced_to_its_error() {
        let python = "Traceback (most recent call last):\n  File \"x.py\", line 1, in f\n\
                      KeyError: 'get_queue'\n";
        check(python, "KeyError", "'get_queue'");
        check("pickle.PicklingError: no\n", "PicklingError", "no");
        check("Traceback (most recent call last):\nKeyError", "KeyError", "");
        check("no such queue; there is 'a'\nKeyError: 'b'", "KeyError", {
            "no such queue; there is 'a'\nKeyError: 'b'"
        });
        check("something else happened", "RemoteError", "something else happened");
    }

    #[test]
    fn a_time_out_of_centuries_is_none() {
        assert_eq!(Call::get("q", Some(Duration::MAX)).request, Call::get("q", None).request);
        assert_eq!(Call::get("q", Some(Duration::MAX)).patience, None);
    }

    #[test]
    fn what_python_2_cannot_read_is_not_sent_there() {
        let bytes = |dialect| pickled(&Value::Bytes(vec![0xff]), dialect).unwrap();
        assert!(readable(&bytes(Dialect::Python2), Dialect::Python2).is_ok());
        let error = readable(&bytes(Dialect::Python3), Dialect::Python2).unwrap_err();
        let expected =
            "the item cannot be sent: it is a pickle of protocol 3, and Python 2 reads up to 2";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn queues_are_told_by_our_servers_alone() {
        let (address, options) =
            (Arc::new("localhost:1".parse().unwrap()), ConnectOptions::default());
        let server = Server { address, key: AuthKey::new(b"key"), options };
        let ask = |reply: Reply| {
            let mut frame = crate::wire::frame::Outbound::default();
            reply.push_frame(Reader::Manyhands, &mut frame);
            let body = frame.own().split_off(4).freeze();
            server.of_ours::<Vec<QueueInfo>>(&Answer::decode(&body, &Limits::default()).unwrap())
        };
        let (name, order) = ("ä".to_owned(), "lifo".to_owned());
        let (maxsize, qsize, unfinished, leased, delayed, dead) = (300, 1, 1 << 40, 2, 3, 4);
        let queue = QueueInfo {
            name,
            order,
            maxsize,
            qsize,
            unfinished,
            leased,
            delayed,
            dead,
            ..QueueInfo::default()
        };
        let more = QueueInfo {
            declared: true,
            is_joined: true,
            oldest: Some(1.5),
            waiting_get: 5,
            waiting_put: 6,
            waiting_join: 7,
            references: 8,
            put: 9,
            taken: 10,
            done: 11,
            bytes: 1 << 33,
            ..queue.clone()
        };
        let reply = Reply::Queues(vec![more.clone()]);
        assert_eq!(
            ask(reply).unwrap(),
            std::slice::from_ref(&queue),
            "the first form has the first eight"
        );
        let queues = vec![more, queue];
        assert_eq!(ask(Reply::QueueList(queues.clone())).unwrap(), queues);
        for text in ["AssertionError: 'queues' unrecognized", "AttributeError: 'queues'"] {
            let error = ask(Reply::Traceback(text.to_owned())).unwrap_err();
            assert!(matches!(error, Error::NotManyhands { .. }), "{error}");
        }
    }

    #[test]
    fn references_go_back_newest_first() {
        let mut references = References::default();
        for ident in ["a", "b", "c"] {
            references.add(ident.to_owned());
        }
        references.defer("a");
        assert_eq!(references.pop_dropped().as_deref(), Some("a"));
        assert_eq!(references.pop_dropped(), None);
        assert_eq!([references.pop(), references.pop()], [Some("c".into()), Some("b".into())]);
        assert!(!references.remove("b"), "each goes back once");
    }

    #[test]
    fn a_reference_is_kept_until_it_has_perhaps_arrived() {
        let address = Arc::new("localhost:1".parse().unwrap());
        let server = Server { address, key: AuthKey::new(b"key"), options: Default::default() };
        let references = Mutex::default();
        let returning = || Returning::new(&references, "a".to_owned());
        drop(returning());
        assert_eq!(lock(&references).pop().as_deref(), Some("a"), "it was cancelled");
        returning().settle::<()>(Err(server.timed_out(Duration::ZERO))).unwrap_err();
        assert_eq!(lock(&references).pop().as_deref(), Some("a"), "nobody answered");
        returning().settle(Ok(())).unwrap();
        assert_eq!(lock(&references).pop(), None, "it arrived");
    }
}
