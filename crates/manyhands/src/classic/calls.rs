//! How the requests of CPython's protocol say each [`Verb`]; [`reply`](super::reply) reads the answers
//! to them.

use std::time::Duration;

use bytes::Bytes;

use crate::connect::ConnectOptions;
use crate::verb::Verb;
use crate::wire::arguments::Wait;
use crate::wire::request::{Parameter, encode};

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

    /// Asks the queue with this ident. `None` if it has no such method.
    pub(crate) fn queue(ident: &str, verb: &Verb) -> Option<Self> {
        Some(Self { request: request(ident, verb)?, patience: verb.patience() })
    }

    /// How long the client waits for the answer.
    pub(crate) fn time_limit(&self, options: &ConnectOptions) -> Option<Duration> {
        self.patience.map(|patience| patience.saturating_add(options.call_margin))
    }
}

fn request(ident: &str, verb: &Verb) -> Option<Bytes> {
    use Parameter::{Bool, Item, Seconds};
    let call = |method, parameters: &[Parameter<'_>]| Some(encode(Some(ident), method, parameters));
    match verb {
        Verb::Put { item, wait, .. } => match wait {
            Wait::Forever => call("put", &[Item(item)]),
            Wait::For(time) => call("put", &[Item(item), Bool(true), Seconds(time.as_secs_f64())]),
            Wait::No | Wait::Negative => call("put_nowait", &[Item(item)]),
        },
        Verb::Get { wait, .. } => match wait {
            Wait::Forever => call("get", &[]),
            Wait::For(time) => call("get", &[Bool(true), Seconds(time.as_secs_f64())]),
            Wait::No | Wait::Negative => call("get_nowait", &[]),
        },
        Verb::TaskDone => call("task_done", &[]),
        Verb::Join => call("join", &[]),
        Verb::Size => call("qsize", &[]),
        Verb::IsEmpty => call("empty", &[]),
        Verb::IsFull => call("full", &[]),
        Verb::Shutdown { immediate } => call("shutdown", &[Bool(*immediate)]),
        _ => None,
    }
}
