//! What the answers of CPython's protocol say to each [`Verb`](crate::verb::Verb);
//! [`calls`](crate::calls) encodes the requests.

use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::server::Server;
use crate::verb::Taken;
use crate::wire::pickle::{Limits, Object, Payload, Value, from_payload};
use crate::wire::request::{Answer, Kind};
use crate::wire::tasks::{Failure, Info, Peeked, TaskState};

/// How our server says that it does not know an ident.
const FORGOTTEN: &str = "the server does not know this object";

/// A lease as it came.
#[derive(Debug)]
pub(crate) struct Leased {
    pub(crate) token: String,
    pub(crate) task: u64,
    pub(crate) attempt: u32,
    pub(crate) payload: Payload,
}

/// A server's answer to a call. Whoever asked reads it as what he asked for.
#[derive(Debug)]
pub(crate) struct Reply<'a> {
    pub(crate) server: &'a Server,
    pub(crate) answer: Answer,
    /// Whether the server may have got the call before.
    pub(crate) is_repeated: bool,
    /// Whether the server was asked in more than CPython's methods.
    pub(crate) has_extras: bool,
}

impl Reply<'_> {
    /// A value of plain data.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        from_payload(self.result()?, self.limits()).map_err(|error| self.unexpected(&error))
    }

    /// The value as it is, unless the call failed.
    pub(crate) fn result(&self) -> Result<&Payload, Error> {
        let (answer, limits) = (&self.answer, self.limits());
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

    /// The ident that `create` gives to a reference to the queue `name`.
    pub(crate) fn created(&self, name: &str) -> Result<String, Error> {
        let (ident, _exposed): (String, Value) = self.read().map_err(|error| match error {
            Error::Remote { class, message } if class == "KeyError" => {
                let first = message.lines().next().unwrap_or_default();
                let declared = first.split_once("declared are: ").map(|(_, names)| names);
                Error::UnknownQueue {
                    name: name.to_owned(),
                    address: Arc::clone(&self.server.address),
                    declared: declared.map(str::to_owned),
                }
            }
            error => error,
        })?;
        Ok(ident)
    }

    /// What only our servers tell. CPython's manager asserts that it knows a call; without
    /// assertions it looks for a method of that name.
    pub(crate) fn of_ours<T: DeserializeOwned>(&self) -> Result<T, Error> {
        self.read().map_err(|error| match error {
            Error::Remote { class, .. }
                if class == "AssertionError" || class == "AttributeError" =>
            {
                Error::NotManyhands { address: Arc::clone(&self.server.address) }
            }
            error => error,
        })
    }

    /// How many items were added. A plain `put` has nothing to say, and added one.
    pub(crate) fn added(&self) -> Result<usize, Error> {
        Ok(self.read::<Option<usize>>()?.unwrap_or(1))
    }

    /// Whether a put with a key is the first with it. A put without one has nothing to say.
    pub(crate) fn is_new(&self) -> Result<bool, Error> {
        // The first of two attempts may have been the one that added it.
        Ok(self.read::<Option<bool>>()?.unwrap_or(true) || self.is_repeated)
    }

    /// The item that was taken.
    pub(crate) fn payload(&self) -> Result<Payload, Error> {
        self.result().cloned()
    }

    /// The item that was taken from the queue `name`.
    pub(crate) fn item<T: DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        self.server.item(name, self.payload()?)
    }

    /// The items that were taken.
    pub(crate) fn payloads(&self) -> Result<Vec<Payload>, Error> {
        self.list()?.into_iter().map(|item| self.pickle(item)).collect()
    }

    /// The item that was taken with what is known of it: nothing, by a server of CPython's.
    pub(crate) fn taken(&self) -> Result<Taken<Payload>, Error> {
        if !self.has_extras {
            return Ok(Taken { item: self.payload()?, info: None });
        }
        let taken = self.list()?.into_iter().next().ok_or(Error::Empty)?;
        let Some([item, info]) = parts(taken) else {
            return Err(self.unexpected(&"no pair of an item and what is known of it"));
        };
        let info = self.info(info)?;
        Ok(Taken { item: self.pickle(item)?, info })
    }

    /// The tasks that were leased.
    pub(crate) fn leases(&self) -> Result<Vec<Leased>, Error> {
        let lease = |value| match parts(value) {
            Some([Value::Str(token), task, attempt, item]) => Ok(Leased {
                token,
                task: number(&task).unwrap_or_default(),
                attempt: number(&attempt).unwrap_or_default(),
                payload: self.pickle(item)?,
            }),
            _ => Err(self.unexpected(&"no lease")),
        };
        self.list()?.into_iter().map(lease).collect()
    }

    /// The tasks that were looked at. What a newer server says beside is passed over.
    pub(crate) fn peeked(&self) -> Result<Vec<Peeked>, Error> {
        let task = |value| match value {
            Value::Dict(pairs) => self.task(pairs),
            _ => Err(self.unexpected(&"no dict of what is known of a task")),
        };
        self.list()?.into_iter().map(task).collect()
    }

    /// That a task is done. Where the call was made twice, `duplicate:` says that the first time did
    /// it, and `stale:` does not say whether it did.
    pub(crate) fn acked(&self) -> Result<(), Error> {
        match self.settled() {
            Err(Error::SettledBefore) if self.is_repeated => Ok(()),
            Err(Error::Stale { message }) if self.is_repeated => {
                let error = io::Error::other(format!("asked again, the server says: {message}"));
                Err(Error::InDoubt { address: Arc::clone(&self.server.address), error })
            }
            settled => settled,
        }
    }

    /// That a task went back.
    pub(crate) fn given_back(&self) -> Result<(), Error> {
        match self.settled() {
            // The first of two attempts has done it, or the task was back before.
            Err(Error::SettledBefore | Error::Stale { .. }) if self.is_repeated => Ok(()),
            settled => settled,
        }
    }

    /// That a call by token was done. Where twice comes to the same as once, the last answer is the
    /// one that holds.
    pub(crate) fn settled(&self) -> Result<(), Error> {
        self.result().map(drop).map_err(|error| match error {
            Error::Remote { class, message } if class == "ValueError" => {
                match message.split_once(": ") {
                    Some(("stale", rest)) => Error::Stale { message: rest.to_owned() },
                    Some(("duplicate", _)) => Error::SettledBefore,
                    _ => Error::Remote { class, message },
                }
            }
            error => error,
        })
    }

    fn task(&self, pairs: Vec<(Value, Value)>) -> Result<Peeked, Error> {
        let mut task = Peeked::default();
        let mut origin = (None, None);
        for (name, value) in pairs {
            let Value::Str(name) = name else { continue };
            match name.as_str() {
                "task" => task.task = number(&value).unwrap_or_default(),
                "state" => task.state = TaskState::named(&text(value)).unwrap_or_default(),
                "item" => task.item = Some(self.pickle(value)?),
                "codec" => {
                    let codec = text(value);
                    task.item = task.item.map(|item| item.that_is(&codec));
                }
                "attempt" => task.attempt = number(&value).unwrap_or_default(),
                "age" => task.age = Some(seconds(&value)),
                "due_in" => task.due_in = Some(seconds(&value)),
                "since" => task.since = Some(seconds(&value)),
                "key" => task.key = Some(bytes(value)),
                "worker" => task.worker = Some(text(value)),
                "peer" => task.peer = Some(text(value)),
                "queue" => origin.0 = Some(text(value)),
                "origin" => origin.1 = number(&value),
                "failures" => task.failures = failures(value),
                _ => {}
            }
        }
        task.origin = origin.0.zip(origin.1);
        Ok(task)
    }

    fn list(&self) -> Result<Vec<Value>, Error> {
        match self.value()? {
            Value::List(items) => Ok(items),
            _ => Err(self.unexpected(&"no list of items")),
        }
    }

    fn value(&self) -> Result<Value, Error> {
        self.result()?.value(self.limits()).map_err(|error| self.unexpected(&error))
    }

    fn pickle(&self, item: Value) -> Result<Payload, Error> {
        match item {
            Value::Bytes(pickle) => Payload::from_standalone(Bytes::from(pickle), self.limits())
                .map_err(|error| self.unexpected(&error)),
            _ => Err(self.unexpected(&"an item that is not bytes")),
        }
    }

    fn info(&self, info: Value) -> Result<Option<Info>, Error> {
        if info == Value::None {
            return Ok(None);
        }
        let Some([queue, task, attempt, worker, waited, ran, history]) = parts(info) else {
            return Err(self.unexpected(&"something else than what is known of an item"));
        };
        let history = match history {
            Value::List(causes) => causes.into_iter().map(text).collect(),
            _ => Vec::new(),
        };
        Ok(Some(Info {
            queue: text(queue),
            task: number(&task).unwrap_or_default(),
            attempt: number(&attempt).unwrap_or_default(),
            worker: text(worker),
            waited: seconds(&waited),
            ran: seconds(&ran),
            history,
        }))
    }

    fn limits(&self) -> &Limits {
        &self.server.options.limits
    }

    fn unexpected(&self, what: &dyn Display) -> Error {
        self.server.unexpected(what)
    }
}

impl Server {
    /// The reply that an answer is, to a call that was made once.
    pub(crate) fn reply(&self, answer: Answer) -> Reply<'_> {
        Reply { server: self, answer, is_repeated: false, has_extras: false }
    }

    /// Reads an item that was taken from the queue `name`.
    pub(crate) fn item<T: DeserializeOwned>(&self, name: &str, item: Payload) -> Result<T, Error> {
        from_payload(&item, &self.options.limits).map_err(|error| Error::Item {
            queue: name.to_owned(),
            error,
            payload: Box::new(item),
        })
    }
}

/// Whether an answer says that the server has been started anew, and knows the object no more.
pub(crate) fn is_forgotten(answer: &Answer, limits: &Limits) -> bool {
    answer.kind == Kind::Traceback && answer.text(limits).starts_with(FORGOTTEN)
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

fn parts<const N: usize>(value: Value) -> Option<[Value; N]> {
    match value {
        Value::Tuple(parts) => parts.try_into().ok(),
        _ => None,
    }
}

fn number<N: TryFrom<i64>>(value: &Value) -> Option<N> {
    match value {
        Value::Int(number) => N::try_from(*number).ok(),
        _ => None,
    }
}

fn seconds(value: &Value) -> Duration {
    match value {
        Value::Float(seconds) => Duration::try_from_secs_f64(*seconds).unwrap_or_default(),
        _ => Duration::ZERO,
    }
}

fn bytes(value: Value) -> Vec<u8> {
    match value {
        Value::Bytes(bytes) => bytes,
        other => text(other).into_bytes(),
    }
}

fn failures(value: Value) -> Vec<Failure> {
    let Value::List(list) = value else { return Vec::new() };
    let failure = |value| {
        let [attempt, worker, reason] = parts(value)?;
        let attempt = number(&attempt)?;
        Some(Failure { attempt, worker: text(worker), reason: text(reason) })
    };
    list.into_iter().filter_map(failure).collect()
}

fn text(value: Value) -> String {
    match value {
        Value::Str(text) => text,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::tests::{received, server};
    use crate::wire::reply as wire;
    use crate::wire::reply::{Exception, QueueInfo};

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
    fn queues_are_told_by_our_servers_alone() {
        let server = server(b"key");
        let ask = |sent| server.reply(received(&server, &sent)).of_ours::<Vec<QueueInfo>>();
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
        let reply = wire::Reply::Queues(vec![more.clone()]);
        assert_eq!(
            ask(reply).unwrap(),
            std::slice::from_ref(&queue),
            "the first form has the first eight"
        );
        let queues = vec![more, queue];
        assert_eq!(ask(wire::Reply::QueueList(queues.clone())).unwrap(), queues);
        for text in ["AssertionError: 'queues' unrecognized", "AttributeError: 'queues'"] {
            let error = ask(wire::Reply::Traceback(text.to_owned())).unwrap_err();
            assert!(matches!(error, Error::NotManyhands { .. }), "{error}");
        }
    }

    #[test]
    fn what_a_second_ack_is_told_depends_on_what_the_first_may_have_done() {
        let server = server(b"key");
        let reply = |text: &str, is_repeated| {
            let raised = wire::Reply::Error(Exception::ValueError(text.to_owned()));
            Reply { is_repeated, ..server.reply(received(&server, &raised)) }
        };
        let acked = |text, is_repeated| reply(text, is_repeated).acked();
        assert!(matches!(acked("stale: x", false), Err(Error::Stale { .. })));
        assert!(matches!(acked("stale: x", true), Err(Error::InDoubt { .. })));
        assert!(matches!(acked("duplicate: x", false), Err(Error::SettledBefore)));
        assert!(acked("duplicate: x", true).is_ok());
        assert!(matches!(reply("stale: x", false).given_back(), Err(Error::Stale { .. })));
        assert!(reply("stale: x", true).given_back().is_ok());
        assert!(reply("duplicate: x", true).given_back().is_ok());
        assert!(matches!(reply("stale: x", true).settled(), Err(Error::Stale { .. })));
    }
}
