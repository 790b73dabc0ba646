//! What a session's request asks of a queue: [`Method`] out of a scanned [`Call`].
//!
//! Source of the parameters and error texts: CPython `Lib/queue.py`.

use super::arguments::{Wait, bind, payload, truth, wait};
use super::pickle::{Call, Limits, Payload, PickleError};
use super::reply::{EXPOSED, Exception};
use super::text::repr;

/// One call of a method of a queue.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
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
    Noop,
    /// `__str__`, `__repr__`
    Repr,
    /// `#GETVALUE`: a copy of the queue itself, which nobody can pickle.
    GetValue,
}

/// Why a session's request has no [`Method`].
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

impl From<PickleError> for Refusal {
    fn from(error: PickleError) -> Self {
        Self::Pickle(error)
    }
}

impl Method {
    /// Reads the method call in `call`.
    ///
    /// # Errors
    ///
    /// [`Refusal`], in the order and words of CPython where programs could depend on them.
    pub fn decode(call: &Call, limits: &Limits) -> Result<Self, Refusal> {
        match call.method_bytes() {
            b"put" => {
                let [item, block, timeout] = bind(call, "put", ["item", "block", "timeout"], 1)?;
                let wait = wait(call, block, timeout)?;
                Ok(Self::Put { item: payload(call, item, limits)?, wait })
            }
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
            b"close" | b"join_thread" | b"cancel_join_thread" => plain(call, Self::Noop),
            b"__str__" | b"__repr__" => plain(call, Self::Repr),
            b"#GETVALUE" => plain(call, Self::GetValue),
            _ => Err(unknown(call)),
        }
    }

    /// The item that it brings.
    #[must_use]
    pub fn item(&self) -> Option<&Payload> {
        match self {
            Self::Put { item, .. } => Some(item),
            _ => None,
        }
    }
}

fn unknown(call: &Call) -> Refusal {
    let method = repr(call.method());
    Refusal::Unknown(format!(
        "a queue has no method {method}; it has {}\nKeyError: {method}",
        EXPOSED.join(", ")
    ))
}

/// A call without arguments.
fn plain(call: &Call, method: Method) -> Result<Method, Refusal> {
    let [] = bind(call, call.method(), [], 0)?;
    Ok(method)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn decode(method: &str, args: &[u8]) -> Result<Method, Refusal> {
        let len = u8::try_from(method.len()).unwrap();
        let request =
            [b"\x80\x03(U\x01qU", &[len][..], method.as_bytes(), b"(", args, b"t}t."].concat();
        let limits = Limits::default();
        Method::decode(&Call::parse(Bytes::from(request), &limits).unwrap(), &limits)
    }

    #[test]
    fn a_queue_has_the_methods_of_cpython_and_no_others() {
        for method in EXPOSED {
            let refusal = decode(method, b"");
            assert!(!matches!(refusal, Err(Refusal::Unknown(_))), "{method}: {refusal:?}");
        }
        for method in ["put_many", "get_many", "lease", "ack", "peek", "purge", "redrive"] {
            let refusal = decode(method, b"");
            assert!(matches!(refusal, Err(Refusal::Unknown(_))), "{method}: {refusal:?}");
        }
        let more = decode("put", b"K\x01\x88NU\x01k");
        assert!(matches!(more, Err(Refusal::Arguments(Exception::TypeError(_)))), "{more:?}");
    }

    /// What every call moves about, in bytes.
    #[test]
    fn a_method_is_small() {
        assert!(size_of::<Method>() <= 72, "{}", size_of::<Method>());
    }
}
