//! How the requests of CPython's protocol say each [`Verb`]; [`reply`](crate::reply) reads the
//! answers to them.

use std::time::Duration;

use bytes::Bytes;

use crate::connect::ConnectOptions;
use crate::verb::Verb;
use crate::wire::arguments::BATCH_LEN_MAX;
use crate::wire::request::{Parameter, encode};
use crate::wire::tasks::Peek;

/// Time-outs from here on, in seconds, are as good as none: a hundred years. Python's locks refuse
/// to wait much longer.
const FOREVER_SECS: u64 = 100 * 365 * 24 * 60 * 60;

/// A request and how long the server may take of its own accord.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) request: Bytes,
    /// `None`: for ever.
    pub(crate) patience: Option<Duration>,
}

impl Call {
    /// A call of the manager itself.
    pub(crate) fn manager(method: &str, parameters: &[Parameter<'_>]) -> Self {
        let request = encode(None, method, parameters);
        Self { request, patience: Some(Duration::ZERO) }
    }

    /// A call of the manager about what `name` says.
    pub(crate) fn named(method: &str, name: &str) -> Self {
        Self::manager(method, &[Parameter::Text(name)])
    }

    /// The manager's call that forgets a queue.
    pub(crate) fn drop_queue(name: &str, force: bool) -> Self {
        Self::manager("drop_queue", &[Parameter::Text(name), Parameter::Bool(force)])
    }

    /// Asks the queue with this ident.
    pub(crate) fn queue(ident: &str, verb: &Verb<'_>, has_extras: bool) -> Self {
        let request = request(ident, verb, has_extras);
        Self { request, patience: patience(verb) }
    }

    /// How long the client waits for the answer.
    pub(crate) fn time_limit(&self, options: &ConnectOptions) -> Option<Duration> {
        self.patience.map(|patience| patience.saturating_add(options.call_margin))
    }
}

fn request(ident: &str, verb: &Verb<'_>, has_extras: bool) -> Bytes {
    use Parameter::{Batch, Bool, Bytes, Int, Item, None, Text};
    let call = |method, parameters: &[Parameter<'_>]| encode(Some(ident), method, parameters);
    let get = |timeout| match finite(timeout) {
        Some(_) => call("get", &[Bool(true), seconds(timeout)]),
        Option::None => call("get", &[]),
    };
    let many = |method, max, timeout| {
        call(method, &[count(max, BATCH_LEN_MAX), Bool(true), seconds(finite(timeout))])
    };
    match *verb {
        Verb::Put { item, timeout } => match finite(timeout) {
            Some(_) => call("put", &[Item(item), Bool(true), seconds(timeout)]),
            Option::None => call("put", &[Item(item)]),
        },
        Verb::TryPut { item } => call("put_nowait", &[Item(item)]),
        Verb::PutWith { item, options } | Verb::PutTask { item, options } => {
            let parameters = [
                Item(item),
                Bool(true),
                seconds(finite(options.timeout)),
                options.key.as_deref().map_or(None, Bytes),
                seconds(options.delay),
                options.priority.map_or(None, Int),
                seconds(options.expires),
                // Whether the number of the task is wanted.
                Bool(true),
            ];
            let [plain @ .., _] = &parameters;
            let wants_number = matches!(verb, Verb::PutTask { .. });
            call("put", if wants_number { &parameters } else { plain })
        }
        Verb::PutMany { items, timeout } => {
            call("put_many", &[Batch(items), Bool(true), seconds(finite(timeout))])
        }
        Verb::Take { timeout } if has_extras => many("take_many", 1, timeout),
        Verb::Get { timeout } | Verb::Take { timeout } => get(timeout),
        Verb::TryGet => call("get_nowait", &[]),
        Verb::GetMany { max, timeout } => many("get_many", max, timeout),
        Verb::LeaseMany { max, timeout } => many("lease_many", max, timeout),
        Verb::Ack { token, result: Option::None } => call("ack", &[Text(token)]),
        Verb::Ack { token, result: Some(result) } => call("ack", &[Text(token), Item(result)]),
        Verb::Nack { token, delay, reason } => {
            call("nack", &[Text(token), seconds(delay), Text(reason)])
        }
        Verb::GiveUp { token, reason } => {
            call("nack", &[Text(token), None, Text(reason), Bool(true)])
        }
        Verb::Extend { token, hold } => call("extend", &[Text(token), seconds(Some(hold))]),
        Verb::TaskDone => call("task_done", &[]),
        Verb::Join => call("join", &[]),
        Verb::Size => call("qsize", &[]),
        Verb::IsEmpty => call("empty", &[]),
        Verb::IsFull => call("full", &[]),
        Verb::Peek(Peek { max, state, items }) => {
            call("peek", &[count(max, BATCH_LEN_MAX), Text(state.name()), Bool(items)])
        }
        Verb::Redrive { max } => call("redrive", &[count(max, usize::MAX)]),
        Verb::RedriveTask { task } => {
            call("redrive", &[Int(1), Int(i64::try_from(task).unwrap_or(i64::MAX))])
        }
        Verb::Purge => call("purge", &[]),
        Verb::Shutdown { immediate } => call("shutdown", &[Bool(immediate)]),
    }
}

/// How long the server may take of its own accord; `None` is for ever.
fn patience(verb: &Verb<'_>) -> Option<Duration> {
    match *verb {
        Verb::Put { timeout, .. }
        | Verb::PutMany { timeout, .. }
        | Verb::Get { timeout }
        | Verb::GetMany { timeout, .. }
        | Verb::Take { timeout }
        | Verb::LeaseMany { timeout, .. } => finite(timeout),
        Verb::PutWith { options, .. } | Verb::PutTask { options, .. } => finite(options.timeout),
        Verb::Join | Verb::Ack { result: Some(_), .. } => None,
        _ => Some(Duration::ZERO),
    }
}

/// A time-out that is one.
fn finite(timeout: Option<Duration>) -> Option<Duration> {
    timeout.filter(|timeout| timeout.as_secs() < FOREVER_SECS)
}

fn seconds<'a>(time: Option<Duration>) -> Parameter<'a> {
    time.map_or(Parameter::None, |time| Parameter::Seconds(time.as_secs_f64()))
}

fn count<'a>(count: usize, max: usize) -> Parameter<'a> {
    Parameter::Int(i64::try_from(count.min(max)).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_of_centuries_is_none() {
        let get = |timeout| Call::queue("q", &Verb::Get { timeout }, true);
        assert_eq!(get(Some(Duration::MAX)).request, get(None).request);
        assert_eq!(get(Some(Duration::MAX)).patience, None);
    }
}
