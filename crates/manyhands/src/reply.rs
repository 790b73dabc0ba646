//! The calls that only a manyhands server knows, as both clients make them: requests, and what their
//! answers hold.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::Error;
use crate::calls::{Call, Server, finite};
use crate::wire::extra::{BATCH_LEN_MAX, Failure, Info, Peek, Peeked, TaskState};
use crate::wire::pickle::{Payload, Value};
use crate::wire::request::{Answer, Parameter, encode};

/// A batch that is put goes out in pieces of about this many bytes: 4 MiB.
const PIECE_BYTES_MAX: usize = 4 << 20;

/// What a put says beside its item.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PutOptions {
    /// A further put with this key within the window of the queue (`dedup`) is the same task: it adds
    /// nothing. At most 256 bytes.
    pub key: Option<Vec<u8>>,
    /// Not to be handed out sooner than this.
    pub delay: Option<Duration>,
    /// Place in a priority queue, instead of the item's own; the lowest comes first.
    pub priority: Option<i64>,
    /// Dropped if nobody took it within this time.
    pub expires: Option<Duration>,
    /// How long to wait for a free slot; `None` is for ever.
    pub timeout: Option<Duration>,
}

impl PutOptions {
    /// With a key, which is text or bytes.
    #[must_use]
    pub fn keyed(key: impl AsRef<[u8]>) -> Self {
        Self { key: Some(key.as_ref().to_vec()), ..Self::default() }
    }
}

/// An item that was taken, with what is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken<T> {
    /// The item.
    pub item: T,
    /// Where it comes from, if it is the result of a task or a dead letter.
    pub info: Option<Info>,
}

/// A lease as it came.
#[derive(Debug)]
pub(crate) struct Leased {
    pub(crate) token: String,
    pub(crate) task: u64,
    pub(crate) attempt: u32,
    pub(crate) payload: Payload,
}

impl Call {
    fn of(ident: &str, method: &str, parameters: &[Parameter<'_>]) -> Self {
        Self { request: encode(Some(ident), method, parameters), patience: Some(Duration::ZERO) }
    }

    fn waiting(mut self, timeout: Option<Duration>) -> Self {
        self.patience = timeout;
        self
    }

    /// `put` with options; it returns the task's number if `id` is asked for.
    pub(crate) fn put_with(ident: &str, item: &Payload, options: &PutOptions, id: bool) -> Self {
        let seconds = |time: Option<Duration>| {
            time.map_or(Parameter::None, |time| Parameter::Seconds(time.as_secs_f64()))
        };
        let timeout = finite(options.timeout);
        let mut parameters = vec![
            Parameter::Item(item),
            Parameter::Bool(true),
            seconds(timeout),
            options.key.as_deref().map_or(Parameter::None, Parameter::Bytes),
            seconds(options.delay),
            options.priority.map_or(Parameter::None, Parameter::Int),
            seconds(options.expires),
        ];
        parameters.extend(id.then_some(Parameter::Bool(true)));
        Self::of(ident, "put", &parameters).waiting(timeout)
    }

    pub(crate) fn put_many(ident: &str, items: &[Payload], timeout: Option<Duration>) -> Self {
        let [block, timeout, wait] = wait(timeout);
        let parameters = [Parameter::Batch(items), block, timeout];
        Self::of(ident, "put_many", &parameters).waiting(patience(wait))
    }

    /// `get_many`, `take_many` or `lease_many`.
    pub(crate) fn many(ident: &str, method: &str, max: usize, timeout: Option<Duration>) -> Self {
        let [block, timeout, wait] = wait(timeout);
        let max = i64::try_from(max.min(BATCH_LEN_MAX)).unwrap_or(i64::MAX);
        Self::of(ident, method, &[Parameter::Int(max), block, timeout]).waiting(patience(wait))
    }

    pub(crate) fn ack(ident: &str, token: &str) -> Self {
        Self::of(ident, "ack", &[Parameter::Text(token)])
    }

    pub(crate) fn ack_with(ident: &str, token: &str, result: &Payload) -> Self {
        let parameters = [Parameter::Text(token), Parameter::Item(result)];
        Self::of(ident, "ack", &parameters).waiting(None)
    }

    pub(crate) fn nack(ident: &str, token: &str, delay: Option<Duration>, reason: &str) -> Self {
        let delay = delay.map_or(Parameter::None, |delay| Parameter::Seconds(delay.as_secs_f64()));
        Self::of(ident, "nack", &[Parameter::Text(token), delay, Parameter::Text(reason)])
    }

    /// `nack` of a task that no further attempt can do.
    pub(crate) fn give_up(ident: &str, token: &str, reason: &str) -> Self {
        let (token, reason) = (Parameter::Text(token), Parameter::Text(reason));
        Self::of(ident, "nack", &[token, Parameter::None, reason, Parameter::Bool(true)])
    }

    pub(crate) fn peek(ident: &str, Peek { max, state, items }: Peek) -> Self {
        let max = i64::try_from(max.min(BATCH_LEN_MAX)).unwrap_or(i64::MAX);
        let state = Parameter::Text(state.name());
        Self::of(ident, "peek", &[Parameter::Int(max), state, Parameter::Bool(items)])
    }

    pub(crate) fn extend(ident: &str, token: &str, hold: Duration) -> Self {
        let hold = Parameter::Seconds(hold.as_secs_f64());
        Self::of(ident, "extend", &[Parameter::Text(token), hold])
    }

    pub(crate) fn redrive(ident: &str, max: usize) -> Self {
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        Self::of(ident, "redrive", &[Parameter::Int(max)])
    }
}

/// `block`, `timeout`, and the time-out once more.
fn wait<'a>(timeout: Option<Duration>) -> [Parameter<'a>; 3] {
    let seconds = finite(timeout)
        .map_or(Parameter::None, |timeout| Parameter::Seconds(timeout.as_secs_f64()));
    [Parameter::Bool(true), seconds, seconds]
}

fn patience(wait: Parameter<'_>) -> Option<Duration> {
    match wait {
        Parameter::Seconds(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        _ => None,
    }
}

/// The first part of a batch that goes out in one request.
pub(crate) fn piece(items: &[Payload]) -> &[Payload] {
    let mut bytes = 0;
    let fits = |item: &&Payload| {
        bytes += item.bytes.len();
        bytes <= PIECE_BYTES_MAX
    };
    let len = items.iter().take(BATCH_LEN_MAX).take_while(fits).count().max(1);
    items.get(..len).unwrap_or(items)
}

impl Server {
    /// The payloads of an answer to `get_many`.
    pub(crate) fn payloads(&self, answer: &Answer) -> Result<Vec<Payload>, Error> {
        self.list(answer)?.into_iter().map(|item| self.payload(item)).collect()
    }

    /// Items with what is known of each, of an answer to `take_many`.
    pub(crate) fn taken(&self, answer: &Answer) -> Result<Vec<Taken<Payload>>, Error> {
        let taken = |value| match parts(value) {
            Some([item, info]) => {
                let info = self.info(info)?;
                Ok(Taken { item: self.payload(item)?, info })
            }
            None => Err(self.unexpected(&"no pair of an item and what is known of it")),
        };
        self.list(answer)?.into_iter().map(taken).collect()
    }

    /// The leases of an answer to `lease_many`.
    pub(crate) fn leases(&self, answer: &Answer) -> Result<Vec<Leased>, Error> {
        let lease = |value| match parts(value) {
            Some([Value::Str(token), task, attempt, item]) => Ok(Leased {
                token,
                task: number(&task).unwrap_or_default(),
                attempt: number(&attempt).unwrap_or_default(),
                payload: self.payload(item)?,
            }),
            _ => Err(self.unexpected(&"no lease")),
        };
        self.list(answer)?.into_iter().map(lease).collect()
    }

    /// The tasks of an answer to `peek`. What a newer server says beside is passed over.
    pub(crate) fn peeked(&self, answer: &Answer) -> Result<Vec<Peeked>, Error> {
        let task = |value| match value {
            Value::Dict(pairs) => self.task(pairs),
            _ => Err(self.unexpected(&"no dict of what is known of a task")),
        };
        self.list(answer)?.into_iter().map(task).collect()
    }

    fn task(&self, pairs: Vec<(Value, Value)>) -> Result<Peeked, Error> {
        let mut task = Peeked::default();
        let mut origin = (None, None);
        for (name, value) in pairs {
            let Value::Str(name) = name else { continue };
            match name.as_str() {
                "task" => task.task = number(&value).unwrap_or_default(),
                "state" => task.state = TaskState::named(&text(value)).unwrap_or_default(),
                "item" => task.item = Some(self.payload(value)?),
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

    fn list(&self, answer: &Answer) -> Result<Vec<Value>, Error> {
        match self.value(answer)? {
            Value::List(items) => Ok(items),
            _ => Err(self.unexpected(&"no list of items")),
        }
    }

    fn value(&self, answer: &Answer) -> Result<Value, Error> {
        let payload = self.result(answer)?;
        payload.value(&self.options.limits).map_err(|error| self.unexpected(&error))
    }

    fn payload(&self, item: Value) -> Result<Payload, Error> {
        match item {
            Value::Bytes(pickle) => {
                Payload::from_standalone(Bytes::from(pickle), &self.options.limits)
                    .map_err(|error| self.unexpected(&error))
            }
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

    /// The error of a call by token. To one that was made twice, `duplicate:` says that the first
    /// time did it, and `stale:` does not say whether it did.
    pub(crate) fn settled(&self, answer: &Answer, is_repeated: bool) -> Result<(), Error> {
        match self.result(answer) {
            Ok(_) => Ok(()),
            Err(Error::Remote { class, message }) if class == "ValueError" => {
                if let Some(rest) = message.strip_prefix("stale: ") {
                    return Err(if is_repeated {
                        let error =
                            io::Error::other(format!("asked again, the server says: {rest}"));
                        Error::InDoubt { address: Arc::clone(&self.address), error }
                    } else {
                        Error::Stale { message: rest.to_owned() }
                    });
                }
                match message.starts_with("duplicate: ") {
                    true if is_repeated => Ok(()),
                    true => Err(Error::SettledBefore),
                    false => Err(Error::Remote { class, message }),
                }
            }
            Err(error) => Err(error),
        }
    }
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
    use crate::connect::ConnectOptions;
    use crate::wire::auth::AuthKey;
    use crate::wire::message::{Exception, Reader, Reply};
    use crate::wire::pickle::Limits;

    #[test]
    fn what_a_second_ack_is_told_depends_on_what_the_first_may_have_done() {
        let (address, options) =
            (Arc::new("localhost:1".parse().unwrap()), ConnectOptions::default());
        let server = Server { address, key: AuthKey::new(b"key"), options };
        let settled = |text: &str, is_repeated| {
            let mut frame = crate::wire::frame::Outbound::default();
            let reply = Reply::Error(Exception::ValueError(text.to_owned()));
            reply.push_frame(Reader::Manyhands, &mut frame);
            let body = frame.own().split_off(4).freeze();
            let answer = Answer::decode(&body, &Limits::default()).unwrap();
            server.settled(&answer, is_repeated)
        };
        assert!(matches!(settled("stale: x", false), Err(Error::Stale { .. })));
        assert!(matches!(settled("stale: x", true), Err(Error::InDoubt { .. })));
        assert!(matches!(settled("duplicate: x", false), Err(Error::SettledBefore)));
        assert!(settled("duplicate: x", true).is_ok());
    }

    #[test]
    fn a_batch_goes_out_in_pieces() {
        let payload = |len| Payload { protocol: 3, prelude_len: 0, bytes: vec![0; len].into() };
        let large = [payload(3 << 20), payload(1 << 20), payload(1)];
        assert_eq!(piece(&large).len(), 2);
        assert_eq!(piece(&[payload(5 << 20), payload(1)]).len(), 1);
        assert_eq!(piece(&vec![payload(1); BATCH_LEN_MAX + 1]).len(), BATCH_LEN_MAX);
        assert_eq!(piece(&[]).len(), 0);
    }
}
